//! What KVM does with rates where no processor scales: a TSC that is to be faster catches up at each entry,
//! one that is to be slower is refused (api.rst, 4.55; kvm_set_tsc_khz in arch/x86/kvm/x86.c).

use crate::{Clock, check_khz, check_told, khz, scales, set_khz};
use payload_rt::lab::Errno;
use payload_rt::time::rdtsc_ordered;
use payload_rt::*;

/// The host's rate, where KVM does not scale TSCs.
fn host_khz() -> u64 {
    if scales() {
        skip!("this KVM scales TSCs (KVM_CAP_TSC_CONTROL)");
    }
    khz()
}

test!(slower_refused, "A rate below the host's is EINVAL without scaling.", || {
    let host = host_khz();
    let clock = Clock::on();
    for slower in [host / 2, host - host / 100, 1] {
        check_eq!(set_khz(slower), Err(Errno::EINVAL), "{slower} kHz");
        clock.renew();
        check!(clock.hz().abs_diff(host * 1000) <= host, "kvmclock is for {} Hz", clock.hz());
        check_khz(host, "after a refused rate");
    }
    check_ok!(set_khz(host), "the host's own");
    check_told(host, &clock, "the host's own");
});

/// Checks that TSCs of higher rates have them, over exits.
fn catches_up(host: u64) {
    for (of, by) in [(5, 4), (2, 1)] {
        let wanted = host * of / by;
        check_ok!(set_khz(wanted), "{wanted} kHz");
        check_eq!(khz(), wanted, "KVM_GET_TSC_KHZ");
        check_khz(wanted, "over exits");
    }
}

test!(faster_catches_up, "Without scaling a TSC of a higher rate catches up at exits.", || {
    let host = host_khz();
    Clock::on();
    catches_up(host);
});

// MSR_KVM_SYSTEM_TIME, the old one, on the CPU that booted: then each vCPU's clock is updated for itself, not
// from one moment for all of them (KVM's master clock).
test!(
    faster_catches_up_alone,
    "So it does where a vCPU's clock is its own, without KVM's master clock.",
    || {
        const SYSTEM_TIME_OLD: u32 = 0x12;
        let host = host_khz();
        let page = frames::alloc().address();
        check_ok!(reg::wrmsr(SYSTEM_TIME_OLD, page | 1), "turn the old kvmclock on");
        catches_up(host);
    }
);

test!(faster_is_monotonic, "A TSC that catches up never goes back, with exits or without.", || {
    let host = host_khz();
    Clock::on();
    check_ok!(set_khz(host * 2));
    let mut last = rdtsc_ordered();
    for round in 0..2000 {
        let now = rdtsc_ordered();
        check!(now >= last, "round {round}: {now:#x} after {last:#x}");
        last = now;
        if round % 5 == 0 {
            port::out8(0x80, 0);
        }
    }
});
