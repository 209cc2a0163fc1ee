//! Timers that are far from due do not fire.

use crate::{PATIENCE, SETTLE, VECTOR, enabled, msr, read, write};
use payload_rt::apic::{self, Timer};
use payload_rt::*;

/// Checks that the timer, due in `ticks` of the TSC, does not fire in the next milliseconds.
fn far(ticks: u64) {
    cpuid::TSC_DEADLINE.require();
    irq::count_only(VECTOR);
    enabled().set_timer(Timer::Deadline, VECTOR);
    let due = time::rdtsc().wrapping_add(ticks);
    check!(due > ticks, "the TSC is near its end");
    write(reg::TSC_DEADLINE, due);
    irq::let_in(30 * SETTLE);
    check_eq!(irq::count(VECTOR), 0, "interrupts of a deadline that is {ticks:#x} ticks away");
    check_eq!(read(reg::TSC_DEADLINE), due, "IA32_TSC_DEADLINE");
    write(reg::TSC_DEADLINE, 0);
}

// SDM volume 3, 12.5.4.1: an interrupt when the TSC is equal to or above the deadline, not before.
test!(deadline_in_an_hour, "A deadline some hours away does not fire.", || far(1 << 43));

// 2^64 / 10^6 ticks, and some milliseconds more: there ticks times a million, in 64 bits, is the
// product for these milliseconds.
test!(deadline_in_some_hours, "A deadline 2^64 / 10^6 ticks away does not fire.", || {
    far(18_446_744_073_710 + time::tsc_hz() / 500)
});

test!(deadline_at_the_end, "A deadline at the end of the TSC does not fire.", || {
    far(u64::MAX - time::rdtsc() - (1 << 40))
});

test!(longest_count, "The longest count, divided by 128, does not fire.", || {
    irq::count_only(VECTOR);
    let apic = enabled();
    apic.set_timer(Timer::OneShot, VECTOR);
    write(msr::DIVIDE, 0b1010);
    write(msr::INITIAL, u32::MAX.into());
    irq::let_in(10 * SETTLE);
    check_eq!(irq::count(VECTOR), 0);
    let count = read(msr::CURRENT);
    check!((u64::from(u32::MAX) / 2..=u64::from(u32::MAX)).contains(&count), "count {count:#x}");
    write(msr::INITIAL, 0);
});

// 12.5.4: a write of 0 stops the timer.
test!(stopped_timer, "A timer that is stopped, or masked and stopped, does not fire.", || {
    irq::count_only(VECTOR);
    let apic = enabled();
    for mode in [Timer::OneShot, Timer::Periodic] {
        apic.set_timer(mode, VECTOR);
        write(msr::INITIAL, 0xffff_ffff);
        write(msr::INITIAL, 0);
        check_eq!(read(msr::CURRENT), 0);
        irq::let_in(10 * SETTLE);
        check_eq!(irq::count(VECTOR), 0, "{mode:?}");
    }
});

// 12.5.1: what the timer does is its LVT entry's business when it fires.
test!(timer_in_each_mode, "One-shot fires once, periodic again and again, as x2APIC.", || {
    irq::count_only(VECTOR);
    let apic = enabled();
    apic.set_timer(Timer::OneShot, VECTOR);
    write(msr::INITIAL, 100_000);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "one-shot does not fire");
    irq::let_in(10 * SETTLE);
    check_eq!(irq::count(VECTOR), 1, "one-shot");
    apic.set_timer(Timer::Periodic, VECTOR);
    write(msr::INITIAL, 500_000);
    check!(irq::wait_for(VECTOR, 5, PATIENCE), "periodic does not fire four times");
    check_eq!(read(msr::INITIAL), 500_000);
    write(msr::LVT_TIMER, u64::from(apic::LVT_MASKED | u32::from(VECTOR)));
    write(msr::INITIAL, 0);
});
