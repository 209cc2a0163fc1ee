//! Synthetic timers (TLFS, Timers): four for each processor, by messages or with vectors of their own.

use crate::*;
use payload_rt::{check_eq, smp, test, time};

const SINT: u64 = 3;
const VECTOR: u8 = 0x58;
/// A millisecond and what is far away, in units of 100 ns.
const MS: u64 = SECOND / 1000;
const FAR: u64 = 1000 * SECOND;

/// Bits of a timer's configuration.
const ENABLE: u64 = 1;
const PERIODIC: u64 = 2;
const LAZY: u64 = 4;
const AUTO: u64 = 8;
const DIRECT: u64 = 1 << 12;

/// A timer of this processor.
#[derive(Clone, Copy)]
struct Stimer(u32);

impl Stimer {
    fn configure(self, value: u64) {
        write(STIMER0_CONFIG + 2 * self.0, value);
    }
    fn set(self, count: u64) {
        write(STIMER0_COUNT + 2 * self.0, count);
    }
    fn configuration(self) -> u64 {
        read(STIMER0_CONFIG + 2 * self.0)
    }
    fn count(self) -> u64 {
        read(STIMER0_COUNT + 2 * self.0)
    }
    fn is_enabled(self) -> bool {
        self.configuration() & ENABLE == ENABLE
    }
}

/// The configuration that sends messages to source `sint`.
const fn by_messages(sint: u64) -> u64 {
    sint << 16
}

/// The configuration that interrupts with `vector`.
const fn direct(vector: u8) -> u64 {
    DIRECT | (vector as u64) << 4
}

/// Counts interrupts of the timers' vectors.
fn start_direct() {
    apic::local().enable();
    (0..4).for_each(|timer| irq::count_only(VECTOR + timer));
}

/// Starts timer 0, and changes it before it is due, however slow the host is; when that would have been.
fn change_in_time(change: impl Fn(Stimer)) -> u64 {
    let timer = Stimer(0);
    for shift in 0..8 {
        let due = now() + ((5 * MS) << shift);
        timer.set(due);
        timer.configure(direct(VECTOR) | ENABLE);
        change(timer);
        if now() < due {
            return due;
        }
        // It may have come already.
        timer.configure(0);
        irq::let_in(SETTLE);
        irq::reset();
    }
    payload_rt::fail!("writes of two MSRs take longer than half a second")
}

fn nothing(vector: u8) {
    irq::let_in(20 * SETTLE);
    check_eq!(irq::count(vector), 0, "interrupts of vector {vector:#x}");
}

test!(timer_reset, "After a reset the timers are off.", || {
    for timer in (0..4).map(Stimer) {
        check_eq!((timer.configuration(), timer.count()), (0, 0), "timer {}", timer.0);
    }
});

test!(timer_one_shot, "A one-shot timer sends one message when it is due, and is off.", || {
    let synic = Synic::start();
    open(SINT, VECTOR);
    for timer in (0..4).map(Stimer) {
        irq::reset();
        let due = now() + 2 * MS;
        timer.set(due);
        timer.configure(by_messages(SINT) | ENABLE);
        expect_interrupts(VECTOR, 1);
        let slot = synic.slot(SINT);
        // Type, payload size and flags; timer and reserved; expiration, delivery.
        check_eq!((synic.kind(SINT), word::<u32>(slot + 4)), (TIMER_EXPIRED, 24), "header");
        check_eq!(word::<u64>(slot + 16), timer.0.into(), "the timer's number");
        let (expired, delivered): (u64, u64) = (word(slot + 24), word(slot + 32));
        check_eq!(expired, due, "expiration time");
        let end = now();
        check!((due..=end).contains(&delivered), "due {due}, delivered {delivered}, now {end}");
        check!(!timer.is_enabled(), "timer {} is still on", timer.0);
        check_eq!(timer.count(), due, "the count");
        synic.done(SINT);
    }
});

test!(timer_one_shot_direct, "A one-shot timer in direct mode interrupts once, not early.", || {
    start_direct();
    let timer = Stimer(1);
    timer.configure(direct(VECTOR) | ENABLE);
    let due = now() + 2 * MS;
    timer.set(due);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not come");
    check!(now() >= due, "it came before it was due");
    expect_interrupts(VECTOR, 1);
    check!(!timer.is_enabled(), "it is still on");
});

test!(timer_past, "A one-shot timer whose time is over comes at once.", || {
    start_direct();
    for count in [1, now()] {
        irq::reset();
        let timer = Stimer(0);
        timer.set(count);
        timer.configure(direct(VECTOR) | ENABLE);
        expect_interrupts(VECTOR, 1);
        check!(!timer.is_enabled(), "it is still on");
    }
});

test!(timer_periodic, "A periodic timer comes again and again, no more often than it may.", || {
    start_direct();
    let timer = Stimer(2);
    let start = now();
    timer.set(MS);
    timer.configure(direct(VECTOR) | PERIODIC | ENABLE);
    check!(irq::wait_for(VECTOR, 10, PATIENCE), "{} times", irq::count(VECTOR));
    let (times, end) = (u64::from(irq::count(VECTOR)), now());
    check!(end - start >= times * MS, "{times} times in {} units", end - start);
    check!(timer.is_enabled(), "it is off");
    timer.configure(0);
    irq::let_in(SETTLE);
    let last = irq::count(VECTOR);
    irq::let_in(5000);
    check_eq!(irq::count(VECTOR), last, "interrupts after it was switched off");
});

test!(
    timer_periodic_messages,
    "A periodic timer sends messages, each with its own expiration.",
    || {
        let synic = Synic::start();
        open(SINT, VECTOR);
        let timer = Stimer(0);
        timer.set(2 * MS);
        timer.configure(by_messages(SINT) | PERIODIC | ENABLE);
        let mut last = 0;
        for times in 1..=5 {
            check!(irq::wait_for(VECTOR, times, PATIENCE), "message {times} does not come");
            let slot = synic.slot(SINT);
            check_eq!(synic.kind(SINT), TIMER_EXPIRED);
            let (expired, delivered): (u64, u64) = (word(slot + 24), word(slot + 32));
            check!(expired >= last + 2 * MS || last == 0, "{expired} after {last}");
            check!(delivered >= expired, "due {expired}, delivered {delivered}");
            last = expired;
            synic.done(SINT);
        }
        timer.configure(0);
    }
);

// Lazy: ticks that the guest was too busy for may be left out.
test!(timer_lazy, "A lazy periodic timer goes on after its processor let ticks pass.", || {
    start_direct();
    let timer = Stimer(3);
    timer.set(MS);
    timer.configure(direct(VECTOR) | PERIODIC | LAZY | ENABLE);
    check_eq!(timer.configuration() & LAZY, LAZY);
    time::delay(10_000);
    check!(irq::wait_for(VECTOR, 5, PATIENCE), "{} times", irq::count(VECTOR));
    timer.configure(0);
});

test!(timer_auto_enable, "With auto-enable a write of the count switches the timer on.", || {
    start_direct();
    let timer = Stimer(0);
    timer.configure(direct(VECTOR) | AUTO);
    check!(!timer.is_enabled(), "before the count");
    timer.set(now() + FAR);
    check!(timer.is_enabled(), "with the count");
    timer.set(now() + MS);
    expect_interrupts(VECTOR, 1);
    check!(!timer.is_enabled(), "when it is over");
    check_eq!(timer.configuration() & AUTO, AUTO, "auto-enable");
    timer.set(now() + MS);
    expect_interrupts(VECTOR, 2);
});

test!(
    timer_without_auto_enable,
    "Without auto-enable a write of the count switches nothing on.",
    || {
        start_direct();
        let timer = Stimer(0);
        timer.configure(direct(VECTOR));
        timer.set(now() + MS);
        check!(!timer.is_enabled(), "with the count");
        nothing(VECTOR);
        timer.configure(direct(VECTOR) | ENABLE);
        expect_interrupts(VECTOR, 1);
    }
);

test!(timer_count_of_zero, "A count of 0 switches a timer off.", || {
    start_direct();
    for kind in [0, PERIODIC, AUTO] {
        let timer = Stimer(1);
        timer.set(now() + FAR);
        timer.configure(direct(VECTOR) | kind | ENABLE);
        check!(timer.is_enabled(), "kind {kind:#x}: before");
        timer.set(0);
        check!(!timer.is_enabled(), "kind {kind:#x}: with a count of 0");
    }
    nothing(VECTOR);
});

test!(
    timer_disabled_in_time,
    "A timer that is switched off before it is due does not come.",
    || {
        start_direct();
        let due = change_in_time(|timer| timer.configure(direct(VECTOR)));
        check!(time::wait_until(PATIENCE, || now() > due + MS), "time stands still");
        irq::let_in(5 * SETTLE);
        check_eq!(irq::count(VECTOR), 0, "interrupts");
    }
);

test!(timer_count_while_enabled, "A new count of a timer that runs is when it comes.", || {
    start_direct();
    let timer = Stimer(0);
    timer.set(now() + FAR);
    timer.configure(direct(VECTOR) | ENABLE);
    let due = now() + MS;
    timer.set(due);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not come");
    check!(now() >= due, "it came before it was due");
});

test!(timer_configuration_while_enabled, "A timer that runs can get another vector.", || {
    start_direct();
    change_in_time(|timer| timer.configure(direct(VECTOR + 1) | ENABLE));
    expect_interrupts(VECTOR + 1, 1);
    check_eq!(irq::count(VECTOR), 0, "interrupts of the old vector");
});

test!(timer_all_four, "The four timers of a processor run side by side.", || {
    start_direct();
    let start = now();
    for timer in 0..4u32 {
        Stimer(timer).set(start + u64::from(4 - timer) * 2 * MS);
        Stimer(timer).configure(direct(VECTOR + timer as u8) | ENABLE);
    }
    for timer in (0..4u8).rev() {
        check!(irq::wait_for(VECTOR + timer, 1, PATIENCE), "timer {timer} does not come");
    }
    (0..4).for_each(|timer| expect_interrupts(VECTOR + timer, 1));
});

test!(
    timer_slot_taken,
    "A one-shot timer waits for its slot, which says so, and comes with EOM.",
    || {
        let synic = Synic::start();
        open(SINT, VECTOR);
        put(synic.slot(SINT), 0x55u32);
        let timer = Stimer(0);
        timer.set(now() + MS);
        timer.configure(by_messages(SINT) | ENABLE);
        let marked = time::wait_until(PATIENCE, || {
            irq::let_in(1);
            synic.flags(SINT) & 1 == 1
        });
        check!(marked, "the slot is not marked");
        check_eq!((irq::count(VECTOR), synic.kind(SINT)), (0, 0x55), "while it is taken");
        synic.done(SINT);
        expect_interrupts(VECTOR, 1);
        check_eq!(synic.kind(SINT), TIMER_EXPIRED);
    }
);

test!(
    timer_masked_source,
    "A timer whose source is masked leaves its message, and no interrupt.",
    || {
        let synic = Synic::start();
        open(SINT, VECTOR);
        write(SINT0 + SINT as u32, 1 << 16 | u64::from(VECTOR));
        let timer = Stimer(0);
        timer.set(now() + MS);
        timer.configure(by_messages(SINT) | ENABLE);
        let there = time::wait_until(PATIENCE, || {
            irq::let_in(1);
            synic.kind(SINT) == TIMER_EXPIRED
        });
        check!(there, "no message");
        check_eq!(irq::count(VECTOR), 0, "interrupts");
    }
);

test!(timer_other_processor, "A timer interrupts the processor that it is of.", || {
    (0..4).for_each(|timer| irq::count_only(VECTOR + timer));
    let cpus = smp::start();
    check!(cpus >= 2, "{cpus} CPUs: the case must give the machine two");
    for cpu in 1..cpus {
        smp::run_on(cpu, || {
            start_direct();
            Stimer(0).configure(direct(VECTOR) | ENABLE);
            Stimer(0).set(now() + MS);
        });
        let came = time::wait_until(PATIENCE, || irq::count_on(cpu, VECTOR) == 1);
        check!(came, "no interrupt at cpu {cpu}");
    }
    nothing(VECTOR);
});
