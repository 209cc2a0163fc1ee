//! A clock for each CPU.

use crate::{CLOCKSOURCE_NEW, SYSTEM_TIME_NEW, Shared, clock, read, write};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::time::rdtsc_ordered;
use payload_rt::*;

const MAX: usize = 8;
static PLACES: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];

fn place(cpu: usize) -> Shared {
    Shared { at: PLACES[cpu].load(SeqCst) }
}

/// Turns on the clocks of all CPUs; how many there are.
fn start() -> usize {
    CLOCKSOURCE_NEW.require();
    let cpus = smp::start().min(MAX);
    check!(cpus >= 2, "one CPU: the case must give the machine two");
    (0..cpus).for_each(|cpu| smp::run_on(cpu, || PLACES[cpu].store(clock().at, SeqCst)));
    cpus
}

/// The time on a CPU, by its own clock.
fn now(cpu: usize) -> u64 {
    smp::run_on(cpu, || place(cpu).now())
}

fn stable(cpus: usize) -> bool {
    (0..cpus).all(|cpu| place(cpu).info().flags & 1 != 0)
}

/// Checks that time does not go back from any CPU to any other, read one after the other.
fn check_pairs(cpus: usize) {
    for from in 0..cpus {
        for to in 0..cpus {
            for _ in 0..10 {
                let (first, second) = (now(from), now(to));
                check!(second >= first, "{second} ns on cpu {to} after {first} ns on cpu {from}");
            }
        }
    }
}

test!(each_pair, "With the stable flag, time does not go back between any two CPUs.", || {
    let cpus = start();
    if !stable(cpus) {
        skip!("kvmclock without the stable flag");
    }
    check_pairs(cpus);
});

test!(same_scale, "All CPUs' clocks have the same scale and flags.", || {
    let cpus = start();
    let first = place(0).info();
    for cpu in 1..cpus {
        let info = place(cpu).info();
        let of = |info: crate::Info| (info.mul, info.shift, info.flags);
        check_eq!(of(info), of(first), "cpu {cpu}");
    }
});

test!(an_msr_for_each, "Each CPU's MSR is its own.", || {
    let cpus = start();
    for cpu in 0..cpus {
        let msr = smp::run_on(cpu, || read(SYSTEM_TIME_NEW));
        check_eq!(msr, place(cpu).at | 1, "cpu {cpu}");
    }
    smp::run_on(1, || write(SYSTEM_TIME_NEW, 0));
    check_eq!(read(SYSTEM_TIME_NEW), place(0).at | 1, "cpu 0 after cpu 1 turned its own off");
    check_eq!(smp::run_on(1, || read(SYSTEM_TIME_NEW)), 0, "cpu 1");
    let version: u32 = place(1).get(0);
    for _ in 0..5 {
        write(SYSTEM_TIME_NEW, place(0).at | 1);
    }
    check_eq!(place(1).get::<u32>(0), version, "the version of the clock that is off");
    let first = place(0).now();
    check!(place(0).now() >= first);
});

test!(one_page_for_all, "The clocks of all CPUs fit into one page, side by side.", || {
    let cpus = start();
    let page = Shared::new(0, 0x66);
    for (cpu, place) in PLACES.iter().enumerate().take(cpus) {
        let at = page.at + 32 * cpu as u64;
        place.store(at, SeqCst);
        smp::run_on(cpu, || write(SYSTEM_TIME_NEW, at | 1));
    }
    for cpu in 0..cpus {
        now(cpu);
    }
    page.check_around(32 * cpus as u64, 0x66);
});

// msr.rst, flags bit 0: "time measures taken across multiple cpus are guaranteed to be monotonic".
// TSCs that differ by more than the host's do are what KVM takes the flag away for.
test!(
    tscs_apart,
    "With a TSC that is far from the others', time is still one, if the flag says so.",
    || {
        const TSC: u32 = 0x10;
        let cpus = start();
        let before = stable(cpus);
        let first = now(0);
        smp::run_on(1, || write(TSC, rdtsc_ordered() + (1 << 42)));
        (0..cpus).for_each(|cpu| smp::run_on(cpu, || write(SYSTEM_TIME_NEW, place(cpu).at | 1)));
        let after = stable(cpus);
        report::value("stable_before", before.into());
        report::value("stable_after", after.into());
        check!(before || !after, "the flag comes from TSCs that are apart");
        if after {
            check_pairs(cpus);
        } else {
            // Without it, clocks may differ; not by the hour that the TSCs are apart.
            let last = now(1);
            check!(last.abs_diff(first) < 60 * crate::SECOND, "{last} ns on cpu 1, {first} ns");
        }
    }
);
