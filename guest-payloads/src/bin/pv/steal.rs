//! Stolen time (msr.rst, MSR_KVM_STEAL_TIME), and paravirtual EOI.

use crate::{PATIENCE, PV_EOI_EN, SETTLE, STEAL_TIME, VECTOR, feature, page, read, word, write};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use payload_rt::apic::{self, Register};
use payload_rt::lab::{self, AREA, Backing, Memory};
use payload_rt::*;

/// Offsets in `struct kvm_steal_time`.
const VERSION: u64 = 8;
const FLAGS: u64 = 12;
pub(crate) const PREEMPTED: u64 = 16;

pub(crate) fn start(at: u64) {
    feature("kvm-steal-time", 5).require();
    write(STEAL_TIME, at | 1);
}

/// Has the vCPU leave the guest for user space, and come back, which is when time is published.
fn updates(times: u32) {
    for _ in 0..times {
        check_ok!(lab::regs());
    }
}

/// What was stolen, by the protocol of the version.
fn stolen(at: u64) -> u64 {
    for _ in 0..1000 {
        let version: u32 = word(at + VERSION);
        let steal = word(at);
        if version.is_multiple_of(2) && word::<u32>(at + VERSION) == version {
            return steal;
        }
    }
    fail!("the version is odd or changes a thousand times");
}

test!(steal_place_moves, "Stolen time goes on at another place, and the old one stays.", || {
    let (first, second) = (page() + 0x40, page() + 0x380);
    start(first);
    let before = stolen(first);
    write(STEAL_TIME, second | 1);
    check_eq!(read(STEAL_TIME), second | 1);
    let version: u32 = word(first + VERSION);
    updates(3);
    check!(stolen(second) <= before + 60_000_000_000 && word::<u32>(second + VERSION) > 0);
    check_eq!(word::<u32>(first + VERSION), version, "the version at the old place");
});

test!(steal_off, "After it is turned off no stolen time is told.", || {
    let at = page();
    start(at);
    write(STEAL_TIME, 0);
    check_eq!(read(STEAL_TIME), 0);
    let version: u32 = word(at + VERSION);
    updates(5);
    check_eq!(word::<u32>(at + VERSION), version);
});

test!(steal_version, "The version is even while the guest runs, and rises with updates.", || {
    let at = page();
    start(at);
    let mut last: u32 = word(at + VERSION);
    for _ in 0..10 {
        check_ok!(lab::regs());
        let version: u32 = word(at + VERSION);
        check!(version.is_multiple_of(2) && version >= last, "{version} after {last}");
        check_eq!(word::<u32>(at + FLAGS), 0, "flags");
        last = version;
    }
    check!(last > 0, "no update");
});

test!(steal_moves_to_another_vm, "Stolen time does not shrink in another VM.", || {
    let at = page();
    start(at);
    for _ in 0..3 {
        let before = stolen(at);
        check_ok!(lab::transplant());
        check_eq!(read(STEAL_TIME), at | 1);
        let after = stolen(at);
        check!(after >= before, "{after} ns after {before} ns");
        check_eq!(word::<u8>(at + PREEMPTED), 0, "`preempted` of a CPU that runs");
    }
});

test!(steal_slot_goes, "Stolen time in memory that goes harms nothing, and comes with it.", || {
    let memory = check_ok!(Memory::new(4096, Backing::Small));
    let slot = check_ok!(memory.slot(AREA, 0, 4096, 0));
    start(AREA + 0x40);
    check_ok!(lab::regs());
    check_ok!(slot.delete());
    updates(3);
    check_ok!(memory.write_u64(0x40 + VERSION, 0));
    check_ok!(slot.set());
    write(STEAL_TIME, (AREA + 0x40) | 1);
    updates(3);
    check!(word::<u32>(AREA + 0x40 + VERSION) > 0, "no update after the memory is back");
});

// With as many spinning vCPUs as the machine has, some wait for a processor if there are fewer.
test!(steal_counts_up, "A vCPU that waits for a processor has time stolen from it.", || {
    let cpus = smp::start();
    let at = page();
    start(at);
    let first = stolen(at);
    let jobs = || (1..cpus).map(|cpu| smp::spawn(cpu, |_| u64::from(spin()), 0));
    let mut list = [const { None }; 16];
    list.iter_mut().zip(jobs()).for_each(|(to, job)| *to = Some(job));
    let grew = time::wait_until(1_000_000, || stolen(at) > first);
    STOP.store(1, SeqCst);
    for job in list.into_iter().flatten() {
        job.wait();
    }
    report::value("steal_ns", stolen(at) - first);
    if !grew {
        skip!("the host has a processor for each of {cpus} vCPUs: nothing is stolen");
    }
});

static STOP: AtomicU32 = AtomicU32::new(0);

fn spin() -> bool {
    time::wait_until(PATIENCE, || STOP.load(SeqCst) != 0)
}

static EOI: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);

fn eoi_on() -> u64 {
    cpuid::KVM_PV_EOI.require();
    apic::local().enable();
    let at = page() + 0x10;
    EOI.store(at, SeqCst);
    SEEN.store(0xff, SeqCst);
    write(PV_EOI_EN, at | 1);
    at
}

/// Notes whether the bit is set, and ends the interrupt by the register, which is always right.
fn note(_: &mut trap::Frame) {
    SEEN.store(word::<u32>(EOI.load(SeqCst)) & 1, SeqCst);
    apic::eoi();
}

test!(eoi_by_register, "With the bit set, the EOI register ends the interrupt as well.", || {
    let at = eoi_on();
    irq::handle(VECTOR, note);
    for round in 1..=5 {
        apic::local().self_ipi(VECTOR);
        check!(irq::wait_for(VECTOR, round, PATIENCE), "interrupt {round} does not come");
        check!(!apic::local().bit(Register::ISR, VECTOR), "it is in service after its end");
        check_eq!(word::<u32>(at) & 1, 0, "the bit after the end");
    }
    report::value("bit", SEEN.load(SeqCst).into());
});

// msr.rst: the bit says that an EOI can be left out. While another interrupt waits for it, it cannot.
test!(eoi_while_another_waits, "The bit is not set while a lower interrupt is pending.", || {
    const LOWER: u8 = 0x41;
    eoi_on();
    irq::handle(VECTOR, note);
    irq::count_only(LOWER);
    for round in 1..=3 {
        apic::local().self_ipi(LOWER);
        apic::local().self_ipi(VECTOR);
        check!(irq::wait_for(LOWER, round, PATIENCE), "the lower one does not come");
        check_eq!((irq::count(VECTOR), SEEN.load(SeqCst)), (round, 0), "(interrupts, bit)");
    }
});

test!(eoi_of_level, "The bit is not set for a level-triggered interrupt of the I/O APIC.", || {
    const PIN: u8 = 20;
    eoi_on();
    irq::handle(VECTOR, |frame| {
        check_ok!(lab::irq_line(PIN.into(), false));
        note(frame);
    });
    let id = apic::local().id() as u8;
    ioapic::set_entry(PIN, u64::from(VECTOR) | ioapic::destination(id) | ioapic::LEVEL);
    for round in 1..=3 {
        check_ok!(lab::irq_line(PIN.into(), true));
        check!(irq::wait_for(VECTOR, round, PATIENCE), "interrupt {round} does not come");
        check_eq!(SEEN.load(SeqCst), 0, "the bit");
        check_eq!(ioapic::entry(PIN) & ioapic::REMOTE_IRR, 0, "remote IRR after its end");
    }
});

test!(eoi_moves_to_another_vm, "Paravirtual EOI goes on in another VM.", || {
    let at = eoi_on();
    irq::handle(VECTOR, note);
    check_ok!(lab::transplant());
    check_eq!(read(PV_EOI_EN), at | 1);
    apic::local().self_ipi(VECTOR);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not come");
    irq::let_in(SETTLE);
    check_eq!(irq::count(VECTOR), 1);
});
