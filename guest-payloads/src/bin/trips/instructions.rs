//! Instructions that KVM carries out, or passes on.

use core::hint::black_box;

use payload_rt::{check_eq, check_ok, check_trap, cpuid, insn, reg, test, trap};

use crate::rounds;

/// An MSR that no processor has and KVM does not know.
const NOBODYS: u32 = 0x4b4c_0000;
/// `KVM_HC_VAPIC_POLL_IRQ`, which does nothing; and `KVM_HC_MAP_GPA_RANGE`, which is the VMM's.
const POLL: u64 = 1;
const MAP_RANGE: u64 = 12;
/// `KVM_ENOSYS`.
const UNKNOWN: i64 = -1000;

test!(cpuid_leaf, "CPUID, which KVM answers itself.", || {
    rounds(|| {
        black_box(cpuid::leaf(0, 0));
    });
    check_eq!(cpuid::leaf(0, 0), cpuid::leaf(0, 0));
});

test!(rdmsr, "RDMSR that KVM answers itself.", || {
    let before = reg::rdmsr(reg::PAT);
    rounds(|| {
        black_box(reg::rdmsr(reg::PAT).is_ok());
    });
    check_eq!(reg::rdmsr(reg::PAT), before);
});

test!(wrmsr, "WRMSR that KVM answers itself.", || {
    let before = check_ok!(reg::rdmsr(reg::PAT));
    rounds(|| {
        black_box(reg::wrmsr(reg::PAT, before).is_ok());
    });
    check_eq!(reg::rdmsr(reg::PAT), Ok(before));
});

test!(rdmsr_user, "RDMSR that nobody answers, or the VMM: #GP.", || {
    rounds(|| {
        black_box(reg::rdmsr(NOBODYS).is_ok());
    });
    check_trap!(reg::rdmsr(NOBODYS).map(drop), trap::GP, 0, "read MSR {NOBODYS:#x}");
});

test!(wrmsr_user, "WRMSR that nobody answers, or the VMM: #GP.", || {
    rounds(|| {
        black_box(reg::wrmsr(NOBODYS, 0).is_ok());
    });
    check_trap!(reg::wrmsr(NOBODYS, 0), trap::GP, 0, "write MSR {NOBODYS:#x}");
});

/// Makes a hypercall with the processor's own instruction.
#[inline]
fn call(amd: bool, number: u64) -> i64 {
    let result: i64;
    macro_rules! by {
        ($instruction:literal) => {
            insn!(
                "xchg rbx, {b}", $instruction, "xchg rbx, {b}";
                b = inout(reg) 0u64 => _, inout("rax") number => result,
                in("rcx") 1u64, in("rdx") 0u64, in("rsi") 0u64
            )
        };
    }
    let done = if amd { by!("vmmcall") } else { by!("vmcall") };
    check_ok!(done, "hypercall {number}");
    result
}

fn is_amd() -> bool {
    matches!(&cpuid::signature(0), b"AuthenticAMD" | b"HygonGenuine")
}

test!(hypercall, "A hypercall that KVM answers itself.", || {
    let amd = is_amd();
    rounds(|| {
        black_box(call(amd, POLL));
    });
    check_eq!(call(amd, POLL), 0);
});

test!(hypercall_user, "A hypercall that nobody answers, or the VMM: there is no such.", || {
    let amd = is_amd();
    rounds(|| {
        black_box(call(amd, MAP_RANGE));
    });
    check_eq!(call(amd, MAP_RANGE), UNKNOWN);
});
