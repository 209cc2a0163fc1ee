//! MSRs of SMM, outside and inside (SDM volume 4, "Architectural MSRs").

use crate::code::{self, SMBASE, note};
use payload_rt::lab::{self, kvm};
use payload_rt::trap::GP;
use payload_rt::{asm_code, check_eq, check_ok, check_trap, cpuid, reg, test};

const SMI_COUNT: u32 = 0x34;
const SMM_MONITOR_CTL: u32 = 0x9b;
pub const SMBASE_MSR: u32 = 0x9e;
/// IA32_VMX_BASIC, whose bit 49 tells of the dual-monitor treatment, and IA32_VMX_MISC, whose bit 15 tells
/// of IA32_SMBASE.
const VMX_BASIC: u32 = 0x480;
const VMX_MISC: u32 = 0x485;

/// Whether a bit of a VMX capability is set.
fn vmx_capability(msr: u32, bit: u32) -> bool {
    cpuid::VMX.present() && reg::rdmsr(msr).is_ok_and(|value| value & 1 << bit != 0)
}

test!(base_outside, "IA32_SMBASE is #GP outside of SMM.", || {
    check_trap!(reg::rdmsr(SMBASE_MSR), GP, 0, "RDMSR");
    check_trap!(reg::wrmsr(SMBASE_MSR, SMBASE), GP, 0, "WRMSR");
});

/// Accesses an MSR in SMM with this code; notes whether it was #GP, and EAX.
fn in_smm(msr: u32, code: &'static [u8]) -> (bool, u32) {
    code::install(&[
        code::stack_and_idt(),
        asm_code!(".code16", "mov ecx, dword ptr [esi + 0x48]", "mov edx, 0", "mov eax, 0x30000"),
        code,
        asm_code!(".code16", "mov dword ptr [esi + 0x44], eax"),
    ]);
    // Both instructions have two bytes.
    code::set_vector(
        GP,
        asm_code!(".code16", "inc dword ptr [esi + 0x40]", "mov bp, sp", "add word ptr [bp], 2",),
    );
    code::set_note(2, msr);
    code::smi();
    (note(0) == 1, note(1))
}

test!(
    base_inside,
    "In SMM IA32_SMBASE reads as SMBASE if IA32_VMX_MISC says so, and cannot be written.",
    || {
        let readable = vmx_capability(VMX_MISC, 15);
        let (gp, value) = in_smm(SMBASE_MSR, asm_code!("rdmsr"));
        check_eq!(gp, !readable, "#GP of RDMSR");
        if readable {
            check_eq!(u64::from(value), SMBASE, "IA32_SMBASE");
        }
        check_eq!(in_smm(SMBASE_MSR, asm_code!("wrmsr")).0, true, "#GP of WRMSR");
    }
);

// SDM volume 3, "Activating the Dual-Monitor Treatment": "on other processors, accesses … generate #GP(0)".
test!(
    monitor_control,
    "Without the dual-monitor treatment, IA32_SMM_MONITOR_CTL is #GP in SMM and outside.",
    || {
        if vmx_capability(VMX_BASIC, 49) {
            payload_rt::skip!("the dual-monitor treatment is there");
        }
        check_trap!(reg::rdmsr(SMM_MONITOR_CTL), GP, 0, "RDMSR");
        check_trap!(reg::wrmsr(SMM_MONITOR_CTL, 0), GP, 0, "WRMSR");
        check_eq!(in_smm(SMM_MONITOR_CTL, asm_code!("rdmsr")).0, true, "#GP of RDMSR in SMM");
        check_eq!(in_smm(SMM_MONITOR_CTL, asm_code!("wrmsr")).0, true, "#GP of WRMSR in SMM");
    }
);

// SDM volume 4, MSR_SMI_COUNT: "SMI Counter (R/O)".
test!(smi_count, "MSR_SMI_COUNT counts SMIs for the host, which can set it.", || {
    code::install(&[]);
    let count = || check_ok!(lab::msr(SMI_COUNT));
    let Some(before) = count() else { payload_rt::fail!("KVM does not give MSR_SMI_COUNT") };
    for n in 1..=3 {
        code::smi();
        check_eq!(count(), Some(before + n), "after SMI {n}");
    }
    check_eq!(lab::set_msr(SMI_COUNT, 77), Ok(true), "the host sets it");
    code::smi();
    check_eq!(count(), Some(78), "after another SMI");
});

test!(base_of_host, "The host reads SMBASE, and where it sets it the next SMI goes.", || {
    const OTHER: u64 = 0x4_0000;
    check_eq!(lab::msr(SMBASE_MSR), Ok(Some(SMBASE)), "at first");
    crate::resume::relocate(OTHER);
    check_eq!(lab::msr(SMBASE_MSR), Ok(Some(OTHER)), "after relocation");
    check_eq!(lab::set_msr(SMBASE_MSR, SMBASE), Ok(true), "the host sets it");
    code::install(&[asm_code!(".code16", "mov dword ptr [esi + 0x40], 0x5a")]);
    code::smi();
    check_eq!(note(0), 0x5a, "the code at the old SMBASE");
    let list = kvm_list();
    check_eq!(list, true, "KVM_GET_MSR_INDEX_LIST has IA32_SMBASE");
});

fn kvm_list() -> bool {
    let mut list = [0; 512];
    let count = check_ok!(lab::msr_index_list(&mut list));
    list[..count].contains(&SMBASE_MSR)
}

// KVM_CAP_MULTI_ADDRESS_SPACE: x86 has two, of which one is for SMM.
test!(capabilities, "KVM tells of SMM and of its address space.", || {
    check_eq!(lab::check_extension(kvm::cap::SMM), 1, "KVM_CAP_X86_SMM");
    let spaces = lab::check_extension(kvm::cap::MULTI_ADDRESS_SPACE);
    check_eq!(spaces, 2, "KVM_CAP_MULTI_ADDRESS_SPACE");
    let of_vm = check_ok!(lab::call_with(kvm::VM_CHECK_EXTENSION, kvm::cap::SMM.into()));
    check_eq!(of_vm, 1, "KVM_CAP_X86_SMM of the VM");
});
