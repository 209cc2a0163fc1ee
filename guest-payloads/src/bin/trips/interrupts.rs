//! Interrupts, from what raises one to its handler.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use payload_rt::apic::{self, Apic, Delivery, Destination, Register, Timer};
use payload_rt::reg::{self, TSC_DEADLINE};
use payload_rt::rounds::{CMDLINE_PULSE, GSI};
use payload_rt::{boot, check, check_eq, cpuid, ioapic, irq, port, smp, test, testdev, time};

use crate::rounds;

const VECTOR: u8 = 0x61;
/// The port of POST codes.
const POST: u16 = 0x80;

/// A local APIC whose interrupts on [`VECTOR`] are acknowledged and counted.
fn ready() -> Apic {
    let apic = apic::local();
    apic.enable();
    irq::count_only(VECTOR);
    apic
}

/// Makes `raise`, and waits in a loop until its interrupt came.
#[inline(always)]
fn until_handled(raise: impl FnOnce()) {
    let before = irq::count(VECTOR);
    raise();
    while irq::count(VECTOR) == before {
        reg::pause();
    }
}

test!(eoi, "The end of an interrupt, of which none is in service.", || {
    let apic = ready();
    rounds(|| apic.eoi());
    apic.self_ipi(VECTOR);
    check!(irq::wait_for(VECTOR, 1, 1_000_000), "no interrupt comes any more");
    check!(!apic.bit(Register::ISR, VECTOR), "it is in service after its end");
});

test!(self_ipi, "From a self-IPI to its handler.", || {
    let apic = ready();
    reg::sti();
    let all = rounds(|| until_handled(|| apic.self_ipi(VECTOR)));
    reg::cli();
    check_eq!(irq::count(VECTOR), all);
});

test!(hlt_wake, "HLT with an interrupt that waits, to its handler.", || {
    let apic = ready();
    let all = rounds(|| {
        apic.self_ipi(VECTOR);
        reg::wait_for_interrupt();
    });
    check_eq!(irq::count(VECTOR), all);
});

test!(deadline, "From a deadline of the TSC that has come to its handler.", || {
    cpuid::TSC_DEADLINE.require();
    let apic = ready();
    apic.set_timer(Timer::Deadline, VECTOR);
    reg::sti();
    let all = rounds(|| {
        until_handled(|| {
            let _ = reg::wrmsr(TSC_DEADLINE, time::rdtsc());
        });
    });
    reg::cli();
    check_eq!(irq::count(VECTOR), all);
});

test!(line, "From an interrupt line, by way of the I/O APIC, to its handler.", || {
    testdev::require();
    ioapic::require();
    let apic = ready();
    ioapic::set_entry(GSI, u64::from(VECTOR) | ioapic::destination(apic.id() as u8));
    let pulses = boot::number(CMDLINE_PULSE).is_some_and(|pulse| pulse != 0);
    reg::sti();
    let all = rounds(|| {
        until_handled(|| testdev::set_line(GSI, true));
        if !pulses {
            testdev::set_line(GSI, false);
        }
    });
    reg::cli();
    ioapic::set_entry(GSI, ioapic::MASKED);
    check_eq!(irq::count(VECTOR), all);
});

test!(window, "Interrupts are off at a write to a port, and then on.", || {
    rounds(|| {
        port::out8(POST, 0);
        reg::interrupt_window();
    });
    check!(reg::rflags() & reg::FLAG_IF == 0, "interrupts are on after CLI");
});

/// What the other CPU is to do; 0 to come to its end.
static GO_ON: AtomicU32 = AtomicU32::new(0);
/// It is about to halt.
static WAITS: AtomicU32 = AtomicU32::new(0);

/// Waits for interrupts, in a loop.
fn spin(_: u64) -> u64 {
    reg::sti();
    WAITS.store(1, SeqCst);
    while GO_ON.load(SeqCst) != 0 {
        reg::pause();
    }
    reg::cli();
    irq::count(VECTOR).into()
}

/// Waits for interrupts, halted.
fn halt(_: u64) -> u64 {
    while GO_ON.load(SeqCst) != 0 {
        WAITS.store(1, SeqCst);
        reg::wait_for_interrupt();
    }
    irq::count(VECTOR).into()
}

/// Sends IPIs to another CPU that does `work`: each goes when the one before was handled, and, if that `halts`,
/// when it says that it is about to.
fn to_other(work: fn(u64) -> u64, halts: bool) {
    check!(smp::start() > 1, "there is one CPU: an IPI wants two");
    let apic = ready();
    GO_ON.store(1, SeqCst);
    let other = smp::spawn(1, work, 0);
    let to = Destination::Physical(smp::apic_id(1));
    let send = || {
        while halts && WAITS.swap(0, SeqCst) == 0 {
            reg::pause();
        }
        let before = irq::count_on(1, VECTOR);
        apic.send(Delivery::Fixed(VECTOR), to);
        while irq::count_on(1, VECTOR) == before {
            reg::pause();
        }
    };
    check!(time::wait_until(1_000_000, || WAITS.load(SeqCst) == 1), "the other CPU does not wait");
    let all = rounds(send);
    GO_ON.store(0, SeqCst);
    // Brings a halted one out.
    apic.send(Delivery::Fixed(VECTOR), to);
    let handled = other.wait();
    check!(
        handled == u64::from(all) || handled == u64::from(all) + 1,
        "{handled} interrupts, for {all} IPIs"
    );
}

test!(ipi, "From an IPI to its handler on another CPU, which waits in a loop.", || {
    to_other(spin, false);
});

test!(ipi_wake, "From an IPI to its handler on another CPU, which is halted.", || {
    to_other(halt, true);
});
