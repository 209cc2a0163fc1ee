//! CPUID: who the hypervisor is, and that what is announced is there (TLFS, Feature and Interface
//! Discovery).

use crate::*;
use payload_rt::lab::{calls::Cpuid, kvm::number, target};
use payload_rt::{boot, cpuid, test};

/// The MSRs of each feature bit: EAX of leaf 0x40000003 (`true`) or EDX.
const MSRS: &[(&str, bool, u8, &[u32])] = &[
    ("VP_RUNTIME", true, 0, &[VP_RUNTIME]),
    ("TIME_REF_COUNT", true, 1, &[TIME_REF_COUNT]),
    ("SYNIC", true, 2, &[SCONTROL, SVERSION, SIEFP, SIMP, EOM, SINT0, SINT0 + 15]),
    ("STIMER", true, 3, &[STIMER0_CONFIG, STIMER0_COUNT, STIMER0_CONFIG + 6, STIMER0_COUNT + 6]),
    ("APIC", true, 4, &[ICR, TPR, VP_ASSIST_PAGE]),
    ("HYPERCALL", true, 5, &[GUEST_OS_ID, HYPERCALL]),
    ("VP_INDEX", true, 6, &[VP_INDEX]),
    ("RESET", true, 7, &[RESET]),
    ("REFERENCE_TSC", true, 9, &[REFERENCE_TSC]),
    ("FREQUENCIES", true, 11, &[TSC_FREQUENCY, APIC_FREQUENCY]),
    (
        "REENLIGHTENMENT",
        true,
        13,
        &[REENLIGHTENMENT_CONTROL, TSC_EMULATION_CONTROL, TSC_EMULATION_STATUS],
    ),
    ("CRASH", false, 10, &[CRASH_P0, CRASH_P0 + 4, CRASH_CTL]),
];

fn announced(in_eax: bool, bit: u8) -> bool {
    let leaf = cpuid::leaf(FEATURES, 0);
    (if in_eax { leaf.eax } else { leaf.edx }) >> bit & 1 == 1
}

test!(signature, "Hyper-V's leaves name their interface, and KVM's own are behind them.", || {
    check!(cpuid::HYPERVISOR.present(), "no hypervisor bit");
    let first = cpuid::leaf(0x4000_0000, 0);
    check!((0x4000_0005..0x4000_0100).contains(&first.eax), "leaves up to {:#x}", first.eax);
    check_eq!(cpuid::leaf(0x4000_0001, 0).eax.to_le_bytes(), *b"Hv#1", "interface");
    check_eq!(&cpuid::signature(0x4000_0100), b"KVMKVMKVM\0\0\0", "behind them");
    let last = cpuid::leaf(0x4000_0100, 0).eax;
    check!((0x4000_0101..0x4000_0200).contains(&last), "KVM's leaves up to {last:#x}");
});

// Leaf 0x40000005: virtual processors and logical ones.
test!(limits, "There may be as many virtual processors as there are, and more.", || {
    let cpus = boot::number("cpus").unwrap_or(1);
    let most = cpuid::leaf(0x4000_0005, 0).eax;
    check!(u64::from(most) >= cpus, "at most {most}, and there are {cpus}");
});

test!(announced_msrs, "Every MSR that CPUID announces can be read.", || {
    let mut some = 0;
    for &(name, in_eax, bit, msrs) in MSRS.iter().filter(|m| announced(m.1, m.2)) {
        for &msr in msrs {
            check_ok!(
                reg::rdmsr(msr),
                "{name} is announced (bit {bit}, EAX {in_eax}); MSR {msr:#x}"
            );
            some += 1;
        }
    }
    check!(some > 0, "nothing is announced");
});

// KVM_CAP_HYPERV_ENFORCE_CPUID.
test!(enforced_msrs, "With CPUID enforced, an MSR that is not announced is #GP.", || {
    let mut none = 0;
    for &(_, in_eax, bit, msrs) in MSRS {
        for &msr in msrs {
            if announced(in_eax, bit) {
                check_ok!(reg::rdmsr(msr), "MSR {msr:#x}, which is announced");
            } else {
                unreadable(msr);
                refused(msr, 0);
                none += 1;
            }
        }
    }
    check!(none > 0, "everything is announced");
});

// KVM_CAP_HYPERV_ENFORCE_CPUID: HV_STATUS_ACCESS_DENIED.
test!(enforced_hypercalls, "With CPUID enforced, what is not announced may not be called.", || {
    introduce();
    let (features, advice) = (cpuid::leaf(FEATURES, 0), cpuid::leaf(ADVICE, 0));
    let mut none = 0;
    for (call_code, there) in [
        (code::FLUSH_SPACE, advice.eax >> 2 & 1 == 1),
        (code::FLUSH_LIST, advice.eax >> 2 & 1 == 1),
        (code::FLUSH_SPACE_EX, advice.eax & 0x804 == 0x804),
        (code::SEND_IPI, advice.eax >> 10 & 1 == 1),
        (code::SEND_IPI_EX, advice.eax & 0xc00 == 0xc00),
        (code::LONG_SPIN_WAIT, advice.ebx != u32::MAX),
        (code::POST_MESSAGE, features.ebx >> 4 & 1 == 1),
        (code::SIGNAL_EVENT, features.ebx >> 5 & 1 == 1),
    ] {
        // A start index without a count is wrong for every one that may be called.
        let result = call(1 << START | call_code, 0, 0);
        let expected = if there { status::INVALID_HYPERCALL_INPUT } else { status::ACCESS_DENIED };
        check_eq!(result, expected, "call {call_code:#x}, announced: {there}");
        none += u32::from(!there);
    }
    check!(none > 0, "everything is announced");
});

// Leaf 0x40000004, EBX: spins before a guest tells of one; all ones for never.
test!(spin_retries, "The tries of a spin lock are those that the machine has.", || {
    let expected = boot::number("retries").map_or(u32::MAX, |n| n as u32);
    check_eq!(cpuid::leaf(ADVICE, 0).ebx, expected);
});

/// What depends on the vCPU: direct timers on its local APIC, the enlightened VMCS on its having been
/// switched on (api.rst, KVM_GET_SUPPORTED_HV_CPUID).
const DYNAMIC_EDX: u32 = 1 << 19;
const DYNAMIC_ADVICE: u32 = 1 << 14;

test!(offered, "CPUID announces nothing that KVM_GET_SUPPORTED_HV_CPUID has not.", || {
    let mut system = check_ok!(Cpuid::get(target::SYSTEM, number::GET_SUPPORTED_HV_CPUID));
    let mut vcpu = check_ok!(Cpuid::get(target::VCPU, number::GET_SUPPORTED_HV_CPUID));
    for leaf in [0x4000_0000, 0x4000_0001, 0x4000_0002, FEATURES, ADVICE, 0x4000_0005] {
        let (Some(all), Some(own)) = (system.find(leaf, 0), vcpu.find(leaf, 0)) else {
            payload_rt::fail!("no leaf {leaf:#x}");
        };
        let dynamic = if leaf == ADVICE { DYNAMIC_ADVICE } else { 0 };
        check_eq!(
            [all.eax & !dynamic, all.ebx, all.ecx, all.edx & !DYNAMIC_EDX],
            [own.eax & !dynamic, own.ebx, own.ecx, own.edx & !DYNAMIC_EDX],
            "leaf {leaf:#x} of the system and of a vCPU"
        );
        let told = cpuid::leaf(leaf, 0);
        if leaf == FEATURES {
            check_eq!([told.eax & !own.eax, told.ebx & !own.ebx, told.edx & !own.edx], [0; 3]);
        }
        if leaf == ADVICE {
            check_eq!(told.eax & !own.eax, 0, "recommendations");
        }
    }
});
