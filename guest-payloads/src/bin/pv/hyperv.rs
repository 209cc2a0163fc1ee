//! Hyper-V's clocks and timers, as far as the host can set them up for a guest without Hyper-V's
//! leaves (Linux, Documentation/virt/kvm/api.rst, 4.118 and 8; Hyper-V's Top-Level Functional
//! Specification, chapters 11 and 12).

use crate::{PATIENCE, SETTLE, VECTOR, page, word};
use payload_rt::lab::{self, kvm};
use payload_rt::*;

const GUEST_OS_ID: u32 = 0x4000_0000;
const TIME_REF_COUNT: u32 = 0x4000_0020;
const REFERENCE_TSC: u32 = 0x4000_0021;
const STIMER0_CONFIG: u32 = 0x4000_00b0;
const STIMER0_COUNT: u32 = 0x4000_00b1;
/// `KVM_CAP_HYPERV_SYNIC2`.
const SYNIC2: u32 = 148;
/// Units of Hyper-V's time, of 100 ns, in a second.
const SECOND: u64 = 10_000_000;

fn count() -> u64 {
    match check_ok!(lab::msr(TIME_REF_COUNT)) {
        Some(count) => count,
        None => skip!("this KVM has no HV_X64_MSR_TIME_REF_COUNT"),
    }
}

fn set(msr: u32, value: u64) {
    check_eq!(lab::set_msr(msr, value), Ok(true), "MSR {msr:#x} by the host");
}

test!(
    hyperv_msrs_without_leaves,
    "Without Hyper-V's leaves its MSRs are #GP to the guest.",
    || {
        for msr in [GUEST_OS_ID, TIME_REF_COUNT, REFERENCE_TSC, STIMER0_CONFIG] {
            let fault = check_err!(reg::rdmsr(msr), "read of MSR {msr:#x}");
            check!(fault.is(trap::GP, 0), "read of MSR {msr:#x}: {fault}");
            crate::refused(msr, 1);
        }
    }
);

test!(
    hyperv_leaves,
    "KVM_GET_SUPPORTED_HV_CPUID has Hyper-V's interface and reference time.",
    || {
        let number = kvm::number::GET_SUPPORTED_HV_CPUID;
        let mut leaves = check_ok!(lab::calls::Cpuid::get(lab::target::SYSTEM, number));
        let Some(interface) = leaves.find(0x4000_0001, 0) else { fail!("no leaf 0x40000001") };
        check_eq!(interface.eax.to_le_bytes(), *b"Hv#1");
        let Some(features) = leaves.find(0x4000_0003, 0) else { fail!("no leaf 0x40000003") };
        // The reference counter, synthetic timers, the reference TSC page.
        check_eq!(features.eax & 0x20a, 0x20a);
    }
);

test!(hyperv_reference_counter, "The reference counter is KVM's clock in units of 100 ns.", || {
    for _ in 0..10 {
        let clock = || check_ok!(lab::get(kvm::GET_CLOCK)).clock / 100;
        let (before, count, after) = (clock(), count(), clock());
        check!(before <= count + 20 && count <= after + 20, "{before}, {count}, {after}");
    }
});

test!(
    hyperv_reference_tsc,
    "The reference TSC page makes the reference counter of the TSC.",
    || {
        let at = page();
        set(REFERENCE_TSC, at | 1);
        // It is filled with the next update of the clock.
        check_ok!(lab::regs());
        if word::<u32>(at) == 0 {
            skip!("the host's clock is no TSC: the page says so by its sequence 0");
        }
        let (scale, offset): (u64, i64) = (word(at + 8), word::<u64>(at + 16) as i64);
        for _ in 0..10 {
            let before = count();
            let tsc = time::rdtsc_ordered();
            let after = count();
            let by_page = ((u128::from(tsc) * u128::from(scale)) >> 64) as i64 + offset;
            check!(
                before as i64 <= by_page + 20 && by_page <= after as i64 + 20,
                "{before} by the counter, {by_page} by the page, {after}"
            );
        }
    }
);

test!(hyperv_timer, "A synthetic timer in direct mode fires once, when it is due.", || {
    lab::require_cap(SYNIC2, "HYPERV_SYNIC2");
    check_ok!(lab::enable_vcpu_cap(SYNIC2, 0));
    apic::local().enable();
    irq::count_only(VECTOR);
    // Enabled, direct, with its vector.
    set(STIMER0_CONFIG, 1 << 12 | u64::from(VECTOR) << 4 | 1);
    let due = count() + SECOND / 200;
    set(STIMER0_COUNT, due);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not fire");
    check!(count() + 20 >= due, "it fired before it was due");
    irq::let_in(10 * SETTLE);
    check_eq!(irq::count(VECTOR), 1);
    check_eq!(lab::msr(STIMER0_CONFIG).map(|c| c.map(|c| c & 1)), Ok(Some(0)), "enabled after it");
});
