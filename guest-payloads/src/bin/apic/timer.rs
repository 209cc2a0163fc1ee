//! The local APIC's timer. No verdict rests on how fast the host is: only on what the timer's own
//! registers say, on order, and on what may not come early.

use crate::{PATIENCE, SETTLE, modes, note_and_eoi, taken};
use payload_rt::apic::{self, Apic, Register, Timer};
use payload_rt::*;

const VECTOR: u8 = 0x59;

test!(one_shot, "A one-shot timer fires once, and its count stays 0.", || {
    irq::handle(VECTOR, note_and_eoi);
    for apic in modes() {
        apic.set_timer(Timer::OneShot, VECTOR);
        irq::reset();
        for round in 1..=3 {
            apic.start_timer(50_000);
            check!(irq::wait_for(VECTOR, round, PATIENCE), "{:?}: it did not fire", apic.mode());
            irq::let_in(SETTLE);
            check_eq!(irq::count(VECTOR), round, "interrupts after {round} one-shots");
            check_eq!(apic.read(Register::TIMER_CURRENT), 0, "current count after it fired");
            check_eq!(apic.read(Register::TIMER_INITIAL), 50_000, "initial count after it fired");
        }
    }
});

test!(periodic, "A periodic timer fires until its initial count is set to 0.", || {
    irq::handle(VECTOR, note_and_eoi);
    for apic in modes() {
        irq::reset();
        apic.set_timer(Timer::Periodic, VECTOR);
        apic.start_timer(500_000);
        check!(irq::wait_for(VECTOR, 4, PATIENCE), "{:?}: it did not fire four times", apic.mode());
        apic.start_timer(0);
        // One may be pending.
        irq::let_in(10 * SETTLE);
        let count = irq::count(VECTOR);
        irq::let_in(4 * SETTLE);
        check_eq!(irq::count(VECTOR), count, "interrupts of a stopped timer");
        check_eq!(apic.read(Register::TIMER_CURRENT), 0, "current count of a stopped timer");
    }
});

test!(
    counts_down,
    "The current count falls from the initial one and never rises (one-shot).",
    || {
        for apic in modes() {
            apic.set_timer(Timer::OneShot, VECTOR);
            apic.write(Register::LVT_TIMER, apic::LVT_MASKED | u32::from(VECTOR));
            apic.start_timer(u32::MAX);
            let mut last = u32::MAX;
            for _ in 0..100 {
                let now = apic.read(Register::TIMER_CURRENT);
                check!(now <= last, "the count rose from {last:#x} to {now:#x}");
                last = now;
            }
            let fell = time::wait_until(PATIENCE, || apic.read(Register::TIMER_CURRENT) < last);
            check!(fell, "the count stands still at {last:#x}");
            apic.start_timer(0);
            check_eq!(apic.read(Register::TIMER_CURRENT), 0, "count after a write of 0");
        }
    }
);

test!(masked, "A masked timer counts and makes no request.", || {
    irq::handle(VECTOR, note_and_eoi);
    for apic in modes() {
        apic.set_timer(Timer::OneShot, VECTOR);
        apic.write(Register::LVT_TIMER, apic::LVT_MASKED | u32::from(VECTOR));
        apic.start_timer(20_000);
        let over = || apic.read(Register::TIMER_CURRENT) == 0;
        check!(time::wait_until(PATIENCE, over), "the masked timer does not count");
        irq::let_in(SETTLE);
        check!(!apic.bit(Register::IRR, VECTOR), "the masked timer made a request");
        check_eq!(taken().count(), 0, "interrupts of the masked timer");
        // A busy host notices late that the count is over, and must not find the timer unmasked by
        // the next round.
        apic.start_timer(0);
    }
});

test!(
    masked_is_not_kept,
    "What expired while the timer was masked does not fire when it is unmasked.",
    || {
        // SDM volume 3, 12.5.1: the mask inhibits the interrupt; nothing holds it for later.
        irq::handle(VECTOR, note_and_eoi);
        for apic in modes() {
            apic.set_timer(Timer::OneShot, VECTOR);
            apic.write(Register::LVT_TIMER, apic::LVT_MASKED | u32::from(VECTOR));
            apic.start_timer(20_000);
            let over = || apic.read(Register::TIMER_CURRENT) == 0;
            check!(time::wait_until(PATIENCE, over), "the masked timer does not count");
            irq::let_in(SETTLE);
            apic.write(Register::LVT_TIMER, VECTOR.into());
            irq::let_in(10 * SETTLE);
            check_eq!(taken().count(), 0, "interrupts of a timer that expired masked");
        }
    }
);

/// Counts and TSC ticks between two readings, as what they were at least and at most.
struct Span {
    counts: u64,
    least: u64,
    most: u64,
}

/// The timer's count over about a millisecond; each reading of it lies between two of the TSC, so the
/// bounds hold however long the host had other things to do.
fn span(apic: Apic, divide: u32) -> Span {
    apic.write(Register::TIMER_DIVIDE, divide);
    apic.write(Register::LVT_TIMER, apic::LVT_MASKED | u32::from(VECTOR));
    apic.start_timer(u32::MAX);
    let read = || {
        let before = time::rdtsc_ordered();
        let count = apic.read(Register::TIMER_CURRENT);
        (before, count, time::rdtsc_ordered())
    };
    let first = read();
    time::delay(2000);
    let second = read();
    Span {
        counts: u64::from(first.1 - second.1),
        least: second.0 - first.2,
        most: second.2 - first.0,
    }
}

test!(
    divide,
    "The divide configuration divides: 1, 2, 4, up to 128 (by the TSC, within bounds).",
    || {
        // SDM volume 3, 12.5.4, figure 12-10.
        const CODES: [(u32, u64); 8] = [
            (0b1011, 1),
            (0b0000, 2),
            (0b0001, 4),
            (0b0010, 8),
            (0b0011, 16),
            (0b1000, 32),
            (0b1001, 64),
            (0b1010, 128),
        ];
        for apic in modes() {
            let one = span(apic, 0b1011);
            check!(one.counts > 1000, "only {} counts in two milliseconds", one.counts);
            for (code, by) in CODES {
                let other = span(apic, code);
                check_eq!(apic.read(Register::TIMER_DIVIDE), code, "divide configuration");
                // Input clocks a TSC tick, by `one` and by `other`: the ranges must meet. A count less
                // or more is rounding.
                let product = |counts: u64, ticks: u64| u128::from(counts) * u128::from(ticks);
                let low = product(other.counts.saturating_sub(1) * by, one.least);
                let high = product((other.counts + 1) * by, one.most);
                check!(
                    low <= product(one.counts + 1, other.most),
                    "divided by {by} it counts too fast: {} in at most {} ticks; {} in at least {} by 1",
                    other.counts,
                    other.most,
                    one.counts,
                    one.least
                );
                check!(
                    high >= product(one.counts.saturating_sub(1), other.least),
                    "divided by {by} it counts too slowly: {} in at least {} ticks; {} in at most {} by 1",
                    other.counts,
                    other.least,
                    one.counts,
                    one.most
                );
            }
            apic.start_timer(0);
        }
    }
);

test!(
    restart,
    "A write of the initial count starts the timer anew, and the old count never fires.",
    || {
        irq::handle(VECTOR, note_and_eoi);
        for apic in modes() {
            irq::reset();
            apic.set_timer(Timer::OneShot, VECTOR);
            for _ in 0..20 {
                apic.start_timer(u32::MAX / 2);
                let count = apic.read(Register::TIMER_CURRENT);
                check!(count > u32::MAX / 4, "count {count:#x} just after a restart");
            }
            apic.start_timer(10_000);
            check!(irq::wait_for(VECTOR, 1, PATIENCE), "it did not fire");
            irq::let_in(SETTLE);
            check_eq!(irq::count(VECTOR), 1, "interrupts of twenty-one starts");
        }
    }
);

test!(
    vector_changes,
    "A timer that runs fires on the vector that its LVT entry has by then.",
    || {
        const OTHER: u8 = 0x5b;
        irq::handle(VECTOR, note_and_eoi);
        irq::handle(OTHER, note_and_eoi);
        for apic in modes() {
            // A host that was away until the timer had fired makes it another try.
            let mut tries = 0..50;
            let before = loop {
                check!(tries.next().is_some(), "the timer never ran when its vector changed");
                irq::reset();
                apic.set_timer(Timer::OneShot, VECTOR);
                apic.start_timer(3_000_000);
                apic.write(Register::LVT_TIMER, OTHER.into());
                if apic.read(Register::TIMER_CURRENT) != 0 {
                    break irq::count(VECTOR);
                }
                irq::let_in(SETTLE);
            };
            check_eq!(before, 0, "interrupts on the old vector while the timer ran");
            check!(irq::wait_for(OTHER, 1, PATIENCE), "nothing on the new vector");
            check_eq!(irq::count(VECTOR), 0, "interrupts on the old vector");
        }
    }
);

fn deadline_mode() -> impl Iterator<Item = Apic> {
    cpuid::TSC_DEADLINE.require();
    irq::handle(VECTOR, note_and_eoi);
    modes().inspect(|apic| {
        irq::reset();
        apic.set_timer(Timer::Deadline, VECTOR);
    })
}

fn deadline() -> u64 {
    check_ok!(reg::rdmsr(reg::TSC_DEADLINE), "read of IA32_TSC_DEADLINE")
}

fn set_deadline(value: u64) {
    check_ok!(reg::wrmsr(reg::TSC_DEADLINE, value), "write of IA32_TSC_DEADLINE");
}

test!(
    deadline_fires,
    "The TSC-deadline timer fires at its time, not before, once, and disarms.",
    || {
        // SDM volume 3, 12.5.4.1.
        for apic in deadline_mode() {
            let early = apic.mode();
            for (round, ticks) in (1..).zip([0, 1, 100_000, 2_000_000]) {
                let due = time::rdtsc_ordered() + ticks;
                set_deadline(due);
                check!(irq::wait_for(VECTOR, round, PATIENCE), "{early:?}: it did not fire");
                let now = time::rdtsc_ordered();
                check!(now >= due, "it fired at {now:#x}, and was due at {due:#x}");
                check_eq!(deadline(), 0, "IA32_TSC_DEADLINE after it fired");
                irq::let_in(SETTLE);
                check_eq!(irq::count(VECTOR), round, "interrupts of {round} deadlines");
            }
            // The past is due at once.
            set_deadline(1);
            check!(irq::wait_for(VECTOR, 5, PATIENCE), "a deadline in the past did not fire");
        }
    }
);

test!(deadline_disarms, "A deadline is kept until it is due, and 0 takes it back.", || {
    for _ in deadline_mode() {
        let far = time::rdtsc() + (1 << 50);
        set_deadline(far);
        check_eq!(deadline(), far, "IA32_TSC_DEADLINE");
        // What is taken back before it is due never fires; a host that was busy in between makes it
        // another try. So does one that came back at the very end: KVM takes a timer as expired some
        // microseconds early, and waits for the rest when it injects.
        let mut tries = 0..100;
        let before = loop {
            check!(tries.next().is_some(), "no deadline could be taken back in time");
            let due = time::rdtsc() + 3_000_000;
            set_deadline(due);
            set_deadline(0);
            check_eq!(deadline(), 0, "IA32_TSC_DEADLINE after 0");
            if time::rdtsc_ordered() + 300_000 < due {
                break irq::count(VECTOR);
            }
            irq::let_in(SETTLE);
        };
        irq::let_in(4 * SETTLE);
        check_eq!(irq::count(VECTOR), before, "interrupts after the deadline was taken back");
    }
});

test!(
    deadline_and_counts,
    "Deadline mode ignores the initial count, the other modes the deadline.",
    || {
        for apic in deadline_mode() {
            apic.start_timer(1000);
            irq::let_in(SETTLE);
            check_eq!(irq::count(VECTOR), 0, "interrupts by the initial count in deadline mode");
            check_eq!(apic.read(Register::TIMER_CURRENT), 0, "current count in deadline mode");
            // Leaving the mode disarms.
            set_deadline(time::rdtsc() + (1 << 50));
            apic.set_timer(Timer::OneShot, VECTOR);
            check_eq!(deadline(), 0, "IA32_TSC_DEADLINE after the mode was left");
            set_deadline(time::rdtsc() + 1000);
            check_eq!(deadline(), 0, "IA32_TSC_DEADLINE as one-shot");
            irq::let_in(SETTLE);
            check_eq!(irq::count(VECTOR), 0, "interrupts by a deadline as one-shot");
        }
    }
);
