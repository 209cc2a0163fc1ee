//! Hypercalls about other CPUs: IPIs, a kick out of HLT, a yield.

use crate::{PATIENCE, SETTLE, VECTOR, call, errors, feature};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use payload_rt::*;

const KICK_CPU: u64 = 5;
const SEND_IPI: u64 = 10;
const SCHED_YIELD: u64 = 11;

fn start() -> usize {
    irq::count_only(VECTOR);
    let cpus = smp::start();
    check!(cpus >= 4, "{cpus} CPUs: the case must give the machine four");
    cpus
}

/// A hypercall for IPIs: bits from identifier `least` on; how many CPUs it reached.
fn send(low: u64, high: u64, least: u32, icr: u64) -> i64 {
    call(SEND_IPI, [low, high, least.into(), icr])
}

/// Sends, and checks which CPUs take one, and what the hypercall says.
fn expect(cpus: usize, vector: u8, low: u64, high: u64, least: u32, icr: u64, mask: u32) {
    let mut before = [0; 16];
    (0..cpus).for_each(|cpu| before[cpu] = irq::count_on(cpu, vector));
    check_eq!(send(low, high, least, icr), mask.count_ones().into(), "CPUs reached");
    let took = |cpu: usize| irq::count_on(cpu, vector) - before[cpu];
    let wanted = |cpu: usize| mask >> cpu & 1;
    time::wait_until(PATIENCE, || {
        irq::let_in(1);
        (0..cpus).all(|cpu| took(cpu) >= wanted(cpu))
    });
    irq::let_in(SETTLE);
    for cpu in 0..cpus {
        check_eq!(took(cpu), wanted(cpu), "interrupts at cpu {cpu}, of {low:#x} from {least} on");
    }
}

const FIXED: u64 = 0x4000 | VECTOR as u64;

test!(ipi_to_each, "The hypercall sends an IPI to each CPU whose bit is set.", || {
    feature("kvm-pv-ipi", 11).require();
    let cpus = start();
    for mask in [0b1_u32, 0b10, 0b1000, 0b1010, 0b1111] {
        expect(cpus, VECTOR, mask.into(), 0, 0, FIXED, mask);
    }
});

test!(ipi_from_an_offset, "The bits begin at the identifier that is given.", || {
    feature("kvm-pv-ipi", 11).require();
    let cpus = start();
    expect(cpus, VECTOR, 0b1, 0, 3, FIXED, 0b1000);
    expect(cpus, VECTOR, 0b101, 0, 1, FIXED, 0b1010);
    expect(cpus, VECTOR, 0b11, 0, 2, FIXED, 0b1100);
});

test!(ipi_to_nobody, "Bits of CPUs that are not there reach nobody, and are not counted.", || {
    feature("kvm-pv-ipi", 11).require();
    let cpus = start();
    expect(cpus, VECTOR, 0, 0, 0, FIXED, 0);
    expect(cpus, VECTOR, 1 << 40 | 0b10, 0, 0, FIXED, 0b10);
    expect(cpus, VECTOR, 0, u64::MAX, 0, FIXED, 0);
    for least in [200, 0x8000_0000, u32::MAX] {
        check_eq!(send(u64::MAX, u64::MAX, least, FIXED), 0, "from {least:#x} on");
    }
});

test!(ipi_nmi, "The hypercall sends NMIs.", || {
    feature("kvm-pv-ipi", 11).require();
    irq::handle(trap::NMI, |_| {});
    let cpus = start();
    expect(cpus, trap::NMI, 0b1100, 0, 0, 0x4400, 0b1100);
});

test!(ipi_bad_command, "Shorthands and logical destinations are -KVM_EINVAL.", || {
    feature("kvm-pv-ipi", 11).require();
    let cpus = start();
    for bits in [1 << 11, 1 << 18, 2 << 18, 3 << 18] {
        check_eq!(send(0b1111, 0, 0, FIXED | bits), errors::EINVAL, "command bits {bits:#x}");
    }
    irq::let_in(SETTLE);
    for cpu in 0..cpus {
        check_eq!(irq::count_on(cpu, VECTOR), 0, "interrupts at cpu {cpu}");
    }
});

static STEP: AtomicU32 = AtomicU32::new(0);

fn halt(_: u64) -> u64 {
    STEP.store(1, SeqCst);
    reg::cli();
    reg::hlt();
    STEP.store(2, SeqCst);
    0
}

test!(kick_wakes, "A kick wakes a CPU that has halted with interrupts off.", || {
    feature("kvm-pv-unhalt", 7).require();
    start();
    let id = smp::apic_id(2).into();
    let job = smp::spawn(2, halt, 0);
    check!(time::wait_until(PATIENCE, || STEP.load(SeqCst) >= 1), "cpu 2 does not start");
    time::delay(3000);
    check_eq!(STEP.load(SeqCst), 1, "cpu 2 before the kick");
    check_eq!(call(KICK_CPU, [0, id, 0, 0]), 0);
    check!(time::wait_until(PATIENCE, || STEP.load(SeqCst) == 2), "cpu 2 still halts");
    job.wait();
});

test!(kick_is_for_one, "A kick wakes the CPU that it names, and no other.", || {
    feature("kvm-pv-unhalt", 7).require();
    start();
    let (one, other) = (smp::apic_id(2).into(), smp::apic_id(3).into());
    let job = smp::spawn(2, halt, 0);
    check!(time::wait_until(PATIENCE, || STEP.load(SeqCst) >= 1), "cpu 2 does not start");
    time::delay(2000);
    for id in [other, 77] {
        check_eq!(call(KICK_CPU, [0, id, 0, 0]), 0, "a kick of {id}");
    }
    time::delay(2000);
    check_eq!(STEP.load(SeqCst), 1, "cpu 2 after kicks of others");
    check_eq!(call(KICK_CPU, [0, one, 0, 0]), 0);
    check!(time::wait_until(PATIENCE, || STEP.load(SeqCst) == 2), "cpu 2 still halts");
    job.wait();
});

test!(yields_to_each, "A yield to a CPU that runs, halts, or is oneself, is 0.", || {
    feature("kvm-pv-sched-yield", 13).require();
    let cpus = start();
    for cpu in 0..cpus {
        for _ in 0..20 {
            check_eq!(call(SCHED_YIELD, [smp::apic_id(cpu).into(), 0, 0, 0]), 0, "cpu {cpu}");
        }
    }
});
