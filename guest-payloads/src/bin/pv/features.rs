//! What CPUID says, and that it is so.

use crate::{
    ASYNC_PF_ACK, ASYNC_PF_EN, ASYNC_PF_INT, MIGRATION_CONTROL, POLL_CONTROL, PV_EOI_EN,
    STEAL_TIME, feature, read, refused, write,
};
use payload_rt::lab::{self, Rule, kind};
use payload_rt::*;

const LEAF: u32 = 0x4000_0000;

/// Features by their bit in EAX, with the MSRs that they bring (cpuid.rst, msr.rst).
const MSRS: [(u8, &[u32]); 8] = [
    (0, &[0x11, 0x12]),
    (3, &[0x4b56_4d00, 0x4b56_4d01]),
    (4, &[ASYNC_PF_EN]),
    (5, &[STEAL_TIME]),
    (6, &[PV_EOI_EN]),
    (12, &[POLL_CONTROL]),
    (14, &[ASYNC_PF_INT, ASYNC_PF_ACK]),
    (17, &[MIGRATION_CONTROL]),
];

fn present(bit: u8) -> bool {
    feature("of KVM", bit).present()
}

test!(signature, "KVM's leaves have its name, and are announced.", || {
    check!(cpuid::HYPERVISOR.present(), "no hypervisor in CPUID");
    check_eq!(&cpuid::signature(LEAF), b"KVMKVMKVM\0\0\0");
    let last = cpuid::leaf(LEAF, 0).eax;
    // cpuid.rst: an old host says 0 and means 0x40000001.
    check!(last == 0 || (LEAF + 1..LEAF + 0x100).contains(&last), "last leaf {last:#x}");
});

test!(hidden, "A KVM that is hidden has no leaves.", || {
    check!(&cpuid::signature(LEAF) != b"KVMKVMKVM\0\0\0", "KVM's name");
    check!(!cpuid::KVM_CLOCK.present(), "KVM's features");
});

test!(known_bits, "The feature bits are those that the documentation knows.", || {
    let words = cpuid::leaf(LEAF + 1, 0);
    // Bits 0 to 7, 9 to 17, 24; in EDX the hint of vCPUs that have processors of their own.
    const KNOWN: u32 = 0x0103_feff;
    check_eq!(words.eax & !KNOWN, 0, "feature bits");
    check_eq!((words.ebx, words.ecx, words.edx & !1), (0, 0, 0), "other registers");
    report::value("features", words.eax.into());
});

test!(features_have_msrs, "Each feature that is announced has its MSRs.", || {
    let mut tried = 0;
    for (bit, msrs) in MSRS.into_iter().filter(|(bit, _)| present(*bit)) {
        for &msr in msrs {
            let value = check_ok!(reg::rdmsr(msr), "bit {bit}: read of MSR {msr:#x}");
            if msr != ASYNC_PF_ACK {
                check_ok!(reg::wrmsr(msr, value), "bit {bit}: write of MSR {msr:#x}");
            }
            tried += 1;
        }
    }
    check!(tried > 0, "no feature with an MSR");
});

test!(host_lists_the_msrs, "The host has the MSRs of all features in its list of state.", || {
    let mut list = [0; 1024];
    let count = check_ok!(lab::msr_index_list(&mut list));
    for (bit, msrs) in MSRS.into_iter().filter(|(bit, _)| present(*bit)) {
        // What is acknowledged is no state.
        for msr in msrs.iter().filter(|&&msr| msr != ASYNC_PF_ACK) {
            check!(list[..count].contains(msr), "bit {bit}: MSR {msr:#x} is not in the list");
        }
    }
});

test!(no_more_msrs, "The numbers behind KVM's MSRs are #GP.", || {
    let found = (0x4b56_4d09..=0x4b56_4dff).filter(|&msr| reg::rdmsr(msr).is_ok());
    let mut count = 0;
    for msr in found {
        report::value("msr", msr.into());
        count += 1;
    }
    check_eq!(count, 0, "MSRs that nobody defined");
    for msr in 0x4b56_4d09..=0x4b56_4dff {
        refused(msr, 0);
    }
});

// api.rst, 7.26 KVM_CAP_ENFORCE_PV_FEATURE_CPUID. The machine's CPUID lacks these features.
test!(enforced, "MSRs of features that CPUID lacks are #GP where the host enforces that.", || {
    const ENFORCE: u32 = 190;
    lab::require_cap(ENFORCE, "ENFORCE_PV_FEATURE_CPUID");
    const LACKING: [(u8, u32); 3] = [(5, STEAL_TIME), (6, PV_EOI_EN), (12, POLL_CONTROL)];
    for (bit, msr) in LACKING {
        check!(!present(bit), "bit {bit}: the case must take it from CPUID");
        check_ok!(reg::rdmsr(msr), "MSR {msr:#x} before");
    }
    check_ok!(lab::enable_vcpu_cap(ENFORCE, 1));
    for (_, msr) in LACKING {
        let fault = check_err!(reg::rdmsr(msr), "read of MSR {msr:#x}");
        check!(fault.is(trap::GP, 0), "read of MSR {msr:#x}: {fault}");
        refused(msr, 0);
    }
});

test!(msr_filter, "A filter takes KVM's MSRs away, and user space answers them.", || {
    lab::require_cap(lab::kvm::cap::X86_MSR_FILTER, "X86_MSR_FILTER");
    check_ok!(lab::msr_exits(4));
    let range = lab::MsrRange { flags: 3, first: 0x4b56_4d00, count: 9, bitmap: &[0, 0] };
    check_ok!(lab::msr_filter(false, &[range]));
    let log = check_ok!(lab::record(&[Rule::on(kind::RDMSR | kind::WRMSR).value(0x1234)]));
    check_eq!(read(STEAL_TIME), 0x1234);
    write(0x4b56_4d01, 0x5001);
    let exits = [0, 1].map(|i| log.get(i).map(|e| (e.kind, e.words[0], e.words[1])));
    check_eq!(exits[0], Some((kind::RDMSR, STEAL_TIME.into(), 0)));
    check_eq!(exits[1], Some((kind::WRMSR, 0x4b56_4d01, 0x5001)));
    check_ok!(lab::msr_filter(false, &[]));
    check_eq!((read(STEAL_TIME), read(0x4b56_4d01)), (0, 0), "what the filter kept away");
});

// msr.rst, MSR_KVM_POLL_CONTROL: bit 0, and after reset it is set.
test!(poll_control, "The poll control is a bit that is set after reset; others are #GP.", || {
    feature("kvm-poll-control", 12).require();
    check_eq!(read(POLL_CONTROL), 1);
    for value in [0, 1, 0] {
        write(POLL_CONTROL, value);
        check_eq!(read(POLL_CONTROL), value);
        reg::cli();
        time::sleep(2000);
    }
    for bit in 1..64 {
        refused(POLL_CONTROL, 1 << bit);
    }
    check_eq!(read(POLL_CONTROL), 0);
});
