//! Several CPUs: how they start, how they interrupt each other, what they see of each other's
//! memory.
//!
//! Intel SDM volume 3: 10.4 (bring-up), 12.6 (IPIs), 10.2 (memory ordering), 5.10.5 (TLB
//! shootdown); AMD APM volume 2: 16.5 (IPIs), 7.1 and 7.2 (memory ordering).
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "smp/ipi.rs"]
mod ipi;
#[path = "smp/memory.rs"]
mod memory;
#[path = "smp/start.rs"]
mod start;

use payload_rt::apic::{self, Mode};
use payload_rt::{cpuid, skip, smp};

/// Starts all CPUs, at least two, and says how many there are.
fn start_all() -> usize {
    let cpus = smp::start();
    if cpus < 2 {
        skip!("one CPU");
    }
    cpus
}

/// Brings the local APICs of all CPUs into one mode after the other, as far as there is such a
/// mode, and calls `test` in each.
fn in_each_mode(cpus: usize, test: impl Fn(Mode)) {
    for mode in [Mode::XApic, Mode::X2Apic] {
        if mode == Mode::X2Apic && !cpuid::X2APIC.present() {
            continue;
        }
        (0..cpus).for_each(|cpu| smp::run_on(cpu, || apic::set_mode(mode).enable()));
        test(mode);
    }
}
