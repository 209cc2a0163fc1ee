//! A TSC that the processor scales: api.rst, 4.55; SDM volume 3, 26.3 and 27.5.3; APM volume 2, 15.30.5.

use crate::{Clock, SECOND, check_khz, check_told, khz, pm_timer, scales, set_khz};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::lab::{self, kvm};
use payload_rt::time::rdtsc_ordered;
use payload_rt::*;

/// IA32_TSC_ADJUST (SDM volume 3, 18.17.3).
const TSC_ADJUST: u32 = 0x3b;

/// The host's rate, where KVM scales TSCs.
fn host_khz() -> u64 {
    if !scales() {
        skip!("this KVM lacks KVM_CAP_TSC_CONTROL");
    }
    khz()
}

/// Rates by the host's: below it and above it.
const RATES: [(u64, u64); 5] = [(1, 2), (9, 10), (1001, 1000), (5, 4), (3, 1)];

test!(scales_rate, "The TSC counts at the rate that the host set.", || {
    let host = host_khz();
    for (of, by) in RATES {
        let wanted = host * of / by;
        check_ok!(set_khz(wanted), "{wanted} kHz");
        check_eq!(khz(), wanted, "KVM_GET_TSC_KHZ");
        check_khz(wanted, "a scaled TSC");
    }
    check_ok!(set_khz(host));
    check_khz(host, "the host's rate again");
});

test!(scales_clock, "kvmclock's scale is for the rate that the host set.", || {
    let host = host_khz();
    let clock = Clock::on();
    check_told(host, &clock, "as it came up");
    for (of, by) in RATES {
        let wanted = host * of / by;
        check_ok!(set_khz(wanted), "{wanted} kHz");
        check_told(wanted, &clock, "a scaled TSC");
    }
});

test!(
    scales_clock_time,
    "kvmclock counts the same nanoseconds whatever the TSC's rate is.",
    || {
        let host = host_khz();
        let clock = Clock::on();
        for (of, by) in RATES {
            let before = clock.now();
            check_ok!(set_khz(host * of / by));
            clock.renew();
            let after = clock.now();
            check!(after >= before && after < before + 60 * SECOND, "{after} ns after {before} ns");
            // A tenth of a second by the PM timer is one by the clock; bounds are the reads before and after.
            let (outer, start) = (clock.now(), pm_timer());
            let inner = clock.now();
            while pm_timer().wrapping_sub(start) & crate::PM_MASK < crate::PM_HZ / 50 {}
            let (end, last) = (clock.now(), pm_timer());
            let ns = u128::from(last.wrapping_sub(start) & crate::PM_MASK) * u128::from(SECOND)
                / u128::from(crate::PM_HZ);
            let least = u128::from(end - inner);
            check!(
                least <= ns + ns / 500 + 1000,
                "{least} ns by kvmclock, {ns} ns by the PM timer"
            );
            let most = u128::from(clock.now() - outer);
            check!(
                most + most / 500 + 1000 >= ns,
                "{most} ns by kvmclock, {ns} ns by the PM timer"
            );
        }
    }
);

/// Within a second of where it was, by `hz` ticks a second.
fn near(now: u64, before: u64, khz: u64) -> bool {
    now.wrapping_sub(before) < khz * 1000
}

// vcpu.rst: guest_tsc = host_tsc * ratio + KVM_VCPU_TSC_OFFSET.
test!(scales_offset, "Under scaling the offset is in the guest's ticks.", || {
    const STEP: u64 = 1 << 44;
    let host = host_khz();
    for (of, by) in RATES {
        let wanted = host * of / by;
        check_ok!(set_khz(wanted));
        let offset = check_ok!(lab::tsc_offset());
        let before = rdtsc_ordered();
        check_ok!(lab::set_tsc_offset(offset.wrapping_add(STEP)));
        let after = rdtsc_ordered();
        check!(near(after, before.wrapping_add(STEP), wanted), "from {before:#x} to {after:#x}");
        check_eq!(lab::tsc_offset(), Ok(offset.wrapping_add(STEP)));
        check_khz(wanted, "with another offset");
    }
});

test!(
    scales_formula,
    "The guest's TSC is the host's by the ratio of the rates, and the offset on top.",
    || {
        const HOST_TSC: u32 = 8;
        let host = host_khz();
        // The ratio has 48 bits behind the point in a VMCS, 32 in SVM's MSR.
        let bits = if cpuid::signature(0) == *b"GenuineIntel" { 48 } else { 32 };
        Clock::on();
        for (of, by) in RATES {
            let wanted = host * of / by;
            check_ok!(set_khz(wanted));
            let offset = check_ok!(lab::tsc_offset());
            let ratio = (u128::from(wanted) << bits) / u128::from(host);
            let before = rdtsc_ordered();
            let data = check_ok!(lab::get(kvm::GET_CLOCK));
            let after = rdtsc_ordered();
            if data.flags & HOST_TSC == 0 {
                skip!("KVM_GET_CLOCK gives no TSC: the host's clock is none");
            }
            let tsc = (((u128::from(data.host_tsc) * ratio) >> bits) as u64).wrapping_add(offset);
            check!(
                (before..=after).contains(&tsc),
                "{wanted} kHz: {tsc:#x} by the host's, read {before:#x} and {after:#x}"
            );
        }
    }
);

test!(scales_writes, "Writes of the TSC and of TSC_ADJUST count in the guest's ticks.", || {
    let host = host_khz();
    for (of, by) in RATES {
        let wanted = host * of / by;
        check_ok!(set_khz(wanted));
        for value in [1 << 45, 1 << 52, 0] {
            check_ok!(reg::wrmsr(reg::TSC, value));
            let now = rdtsc_ordered();
            check!(near(now, value, wanted), "{now:#x} after a write of {value:#x}");
            let read = check_ok!(reg::rdmsr(reg::TSC));
            check!(near(read, value, wanted), "{read:#x} by RDMSR after a write of {value:#x}");
        }
        if cpuid::TSC_ADJUST.present() {
            let adjust = check_ok!(reg::rdmsr(TSC_ADJUST));
            let before = rdtsc_ordered();
            check_ok!(reg::wrmsr(TSC_ADJUST, adjust.wrapping_add(1 << 46)));
            let after = rdtsc_ordered();
            check!(near(after, before.wrapping_add(1 << 46), wanted), "{before:#x}, {after:#x}");
        }
        check_khz(wanted, "after writes");
    }
});

test!(scales_rdtscp, "RDTSC at CPL 3, RDTSCP and RDMSR read the same scaled TSC.", || {
    let host = host_khz();
    check_ok!(set_khz(host / 2));
    for _ in 0..20 {
        let before = rdtsc_ordered();
        let msr = check_ok!(reg::rdmsr(reg::TSC));
        let outcome = user::User::new(asm_code!("rdtsc", "ret")).run();
        check_eq!(outcome.end, user::End::Done, "RDTSC at CPL 3");
        let cpl3 = outcome.regs.rax | outcome.regs.rdx << 32;
        let by_host = check_ok!(lab::msr(reg::TSC)).unwrap_or(0);
        let after = rdtsc_ordered();
        let all = [before, msr, cpl3, by_host, after];
        check!(all.is_sorted(), "one after the other: {all:x?}");
    }
});

test!(scales_deadline, "The APIC timer's TSC deadline is in the guest's ticks.", || {
    use payload_rt::apic::{self, Timer};
    const VECTOR: u8 = 0x61;
    static CAME: AtomicU64 = AtomicU64::new(0);
    cpuid::TSC_DEADLINE.require();
    let host = host_khz();
    irq::handle(VECTOR, |_| {
        CAME.store(rdtsc_ordered(), SeqCst);
        apic::eoi();
    });
    let apic = apic::local();
    apic.enable();
    for (of, by) in RATES {
        let wanted = host * of / by;
        check_ok!(set_khz(wanted));
        apic.set_timer(Timer::Deadline, VECTOR);
        CAME.store(0, SeqCst);
        // 10 ms of the guest's ticks.
        let start = pm_timer();
        let deadline = rdtsc_ordered() + wanted * 10;
        check_ok!(reg::wrmsr(reg::TSC_DEADLINE, deadline));
        reg::sti();
        let came = time::wait_until(10_000_000, || CAME.load(SeqCst) != 0);
        reg::cli();
        let ticks = pm_timer().wrapping_sub(start) & crate::PM_MASK;
        check!(came, "{wanted} kHz: no interrupt");
        let at = CAME.load(SeqCst);
        check!(at >= deadline, "{wanted} kHz: at {at:#x}, before the deadline {deadline:#x}");
        // Not before 10 ms by the PM timer, either.
        let least = crate::PM_HZ / 100 * (1_000_000 - crate::PPM) / 1_000_000;
        check!(ticks >= least, "{wanted} kHz: after {ticks} ticks of the PM timer, of {least}");
    }
});

test!(scales_one_vcpu, "The rate is that of one vCPU, and others keep theirs.", || {
    let host = host_khz();
    check!(smp::start() >= 2, "one CPU");
    smp::run_on(1, || {
        check_ok!(set_khz(host / 2));
        check_khz(host / 2, "cpu 1");
    });
    check_eq!(khz(), host, "KVM_GET_TSC_KHZ on cpu 0");
    check_khz(host, "cpu 0");
    check_ok!(set_khz(host * 2));
    check_khz(host * 2, "cpu 0");
    smp::run_on(1, || {
        check_eq!(khz(), host / 2, "KVM_GET_TSC_KHZ on cpu 1");
        check_khz(host / 2, "cpu 1, still");
    });
});

test!(scales_clocks, "kvmclock is one clock over vCPUs whose TSCs have different rates.", || {
    let host = host_khz();
    check!(smp::start() >= 2, "one CPU");
    let here = Clock::on();
    let there = smp::run_on(1, || {
        check_ok!(set_khz(host / 2));
        Clock::on()
    });
    check!(there.hz().abs_diff(host * 500) <= host, "cpu 1 has {} Hz", there.hz());
    here.renew();
    check!(here.hz().abs_diff(host * 1000) <= host, "cpu 0 has {} Hz", here.hz());
    for _ in 0..20 {
        let before = here.now();
        let between = smp::run_on(1, || there.now());
        let after = here.now();
        // Scales round.
        const SLACK: u64 = 200_000;
        check!(
            before <= between + SLACK && between <= after + SLACK,
            "{before} ns, {between} ns on cpu 1, {after} ns"
        );
    }
});

// The order of a restore: the rate first, then the TSC of each vCPU; KVM takes such writes for one.
test!(
    scales_writes_agree,
    "TSCs of vCPUs that the host sets to one value run side by side, at a scaled rate too.",
    || {
        let host = host_khz();
        check!(smp::start() >= 2, "one CPU");
        const START: u64 = 1 << 40;
        let restore = || {
            check_ok!(set_khz(host / 4 * 3));
            check_eq!(lab::set_msr(reg::TSC, START), Ok(true));
            check_ok!(lab::tsc_offset())
        };
        let offsets = [restore(), smp::run_on(1, restore)];
        check_eq!(offsets[0], offsets[1], "KVM_VCPU_TSC_OFFSET");
        for _ in 0..50 {
            let before = rdtsc_ordered();
            let between = smp::run_on(1, rdtsc_ordered);
            let after = rdtsc_ordered();
            check!(before <= between && between <= after, "{before:#x} {between:#x} {after:#x}");
        }
        let now = rdtsc_ordered();
        check!(now.wrapping_sub(START) < host * 60_000, "{now:#x} after a write of {START:#x}");
    }
);

test!(scales_in_another_vm, "A scaled TSC goes on in another VM, at its rate.", || {
    let host = host_khz();
    check_ok!(set_khz(host / 2));
    for _ in 0..3 {
        let before = rdtsc_ordered();
        check_ok!(lab::transplant());
        check_eq!(khz(), host / 2, "KVM_GET_TSC_KHZ");
        let after = rdtsc_ordered();
        check!(near(after, before, host * 60), "from {before:#x} to {after:#x}");
        check_khz(host / 2, "in another VM");
    }
});
