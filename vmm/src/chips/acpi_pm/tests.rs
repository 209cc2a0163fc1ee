use proptest::prelude::*;

use super::*;
use crate::device::{Actions, SECOND};
use crate::laws::{Op, TestClock};
use crate::ram::{Backing, GuestRam, MIN_SIZE};

/// The chip on a bench where time passes only when told to.
struct Bench {
    clock: TestClock,
    ram: GuestRam,
    actions: Actions,
    chip: AcpiPm,
}

impl Bench {
    fn new(width: TimerWidth) -> Bench {
        let ram = GuestRam::new(MIN_SIZE, Backing::Auto).expect("2 MiB");
        let (clock, actions) = (TestClock::default(), Actions::default());
        Bench { clock, ram, actions, chip: AcpiPm::new(width) }
    }

    fn call<T>(&mut self, f: impl FnOnce(&mut AcpiPm, &mut Env<'_>) -> T) -> T {
        f(&mut self.chip, &mut Env::new(&self.clock, &self.ram, &mut self.actions))
    }

    fn read(&mut self, region: u8, offset: u64, size: Size) -> u64 {
        self.call(|d, env| d.read(env, At { region, offset }, size)).expect("a register")
            & size.mask()
    }

    fn write(&mut self, region: u8, offset: u64, size: Size, value: u64) {
        self.call(|d, env| d.write(env, At { region, offset }, size, value)).expect("a register");
    }

    fn press(&mut self, button: u8) {
        assert_eq!(self.call(|d, env| d.input(env, &[button])), 1);
    }
}

#[test]
fn the_timer_is_exact_and_any_width_reads_its_bytes() {
    let mut b = Bench::new(TimerWidth::Bits32);
    assert_eq!(b.read(2, 0, Size::B4), 0);
    b.clock.set(SECOND * 1000);
    assert_eq!(b.read(2, 0, Size::B4), 3_579_545_000);
    let bytes = 3_579_545_000u32.to_le_bytes();
    for (offset, byte) in (0..).zip(bytes) {
        assert_eq!(b.read(2, offset, Size::B1), u64::from(byte));
    }
    assert_eq!(b.read(2, 1, Size::B2), u64::from(u16::from_le_bytes([bytes[1], bytes[2]])));
    let mut b = Bench::new(TimerWidth::Bits24);
    b.clock.set(SECOND * 1000);
    assert_eq!(b.read(2, 0, Size::B4), 3_579_545_000 & 0xff_ffff);
    let at = At { region: 2, offset: 0 };
    assert_eq!(b.call(|d, env| d.write(env, at, Size::B4, 1)), Err(IoError::ReadOnly));
    assert_eq!(b.call(|d, env| d.read(env, at, Size::B8)), Err(IoError::Width));
}

/// It was told all the same, once the timer had carried.
#[test]
fn a_carry_before_a_reset_is_not_told_after_it() {
    let mut b = Bench::new(TimerWidth::Bits24);
    b.clock.set(5 * SECOND);
    b.call(|d, env| d.reset(env));
    assert_eq!(b.read(0, 0, Size::B2), 0);
    b.clock.set(8 * SECOND);
    assert_eq!(b.read(0, 0, Size::B2), u64::from(event::TIMER));
}

#[test]
fn a_carry_of_the_timer_raises_the_sci() {
    let mut b = Bench::new(TimerWidth::Bits24);
    b.write(0, 2, Size::B2, event::TIMER.into());
    assert_eq!(b.chip.deadline(), None, "no event makes an SCI yet");
    b.write(3, 0, Size::B1, ACPI_ENABLE.into());
    assert_eq!(b.read(1, 0, Size::B2), u64::from(control::SCI_EN));
    // 2^23 ticks of 3.579545 MHz are 2.343484 s.
    let due = b.chip.deadline().expect("armed");
    assert_eq!(due / 1000, 2_343_484);
    b.clock.set(due - 1);
    b.call(|d, env| d.advance(env));
    assert!(!b.chip.irq());
    b.clock.set(due);
    b.call(|d, env| d.advance(env));
    assert!(b.chip.irq());
    assert_eq!(b.read(2, 0, Size::B4), 1 << 23);
    assert_eq!(b.chip.deadline(), None);
    b.write(0, 0, Size::B2, event::TIMER.into());
    assert!(!b.chip.irq());
    assert_eq!(b.chip.deadline().map(|next| next / 10_000), Some(2 * due / 10_000));
    b.write(3, 0, Size::B1, ACPI_DISABLE.into());
    assert_eq!((b.read(1, 0, Size::B2), b.chip.deadline()), (0, None));
}

#[test]
fn buttons_are_events_that_writing_1_clears() {
    let mut b = Bench::new(TimerWidth::Bits32);
    for (button, bit) in [
        (POWER_BUTTON, event::POWER_BUTTON),
        (SLEEP_BUTTON, event::SLEEP_BUTTON),
        (RTC_ALARM, event::RTC),
    ] {
        b.write(0, 2, Size::B2, bit.into());
        b.press(button);
        assert!(!b.chip.irq(), "without SCI_EN an event is an SMI, which nobody hears");
        b.write(1, 0, Size::B2, control::SCI_EN.into());
        assert!(b.chip.irq());
        b.write(0, 2, Size::B2, 0);
        assert!(!b.chip.irq());
        assert_eq!(b.read(0, 0, Size::B2), u64::from(bit));
        b.write(0, 0, Size::B1, 0xff);
        assert_eq!(b.read(0, 0, Size::B2), u64::from(bit), "that was the other byte");
        b.write(0, 1, Size::B1, u64::from(bit >> 8));
        assert_eq!(b.read(0, 0, Size::B2), 0);
        b.write(1, 0, Size::B2, 0);
    }
    b.press(WAKE);
    assert_eq!(b.read(0, 1, Size::B1), 0x80);
    b.press(b'?');
    assert_eq!(b.read(0, 0, Size::B2), u64::from(event::WAKE));
    b.write(0, 2, Size::B2, 0xffff);
    assert_eq!(b.read(0, 2, Size::B2), u64::from(ENABLES), "other enable bits do not exist");
}

#[test]
fn sleep_states_leave_the_board_and_slp_en_reads_0() {
    let mut b = Bench::new(TimerWidth::Bits32);
    let mut sleep = |size, offset, value| {
        b.write(1, offset, size, value);
        let actions: Vec<_> = b.actions.drain().collect();
        (actions, b.read(1, 0, Size::B2))
    };
    // What kvm-unit-tests writes for S3.
    assert_eq!(sleep(Size::B2, 0, 0x2400), (vec![Action::Sleep(3)], 0x400));
    assert_eq!(sleep(Size::B1, 1, 0x28), (vec![Action::Sleep(4)], 0x800));
    assert_eq!(sleep(Size::B2, 0, 0x2001), (vec![Action::PowerOff], 1));
    assert_eq!(sleep(Size::B2, 0, 0x3c00), (vec![], 0x1c00), "no such state");
    assert_eq!(sleep(Size::B2, 0, 0x0400), (vec![], 0x400), "without SLP_EN");
}

#[test]
fn impossible_states_are_refused() {
    let mut chip = AcpiPm::new(TimerWidth::Bits24);
    for regs in [
        Regs { status: 2, ..Regs::default() },
        Regs { enable: event::WAKE, ..Regs::default() },
        Regs { control: control::SLP_EN, ..Regs::default() },
        Regs { carries: u64::MAX, ..Regs::default() },
    ] {
        assert!(chip.restore(&state::encode(&regs)).is_err(), "{regs:?}");
    }
}

fn any_time() -> impl Strategy<Value = Nanos> {
    (any::<u64>(), 0..64u32).prop_map(|(t, shift)| t >> shift)
}

proptest! {
    #[test]
    fn ticks_are_those_of_plain_arithmetic(now in any_time()) {
        let plain = u128::from(now) * u128::from(TIMER_HZ) / u128::from(SECOND);
        prop_assert_eq!(u128::from(ticks(now)), plain);
    }

    #[test]
    fn the_time_of_a_tick_is_the_first(tick in any_time()) {
        match time_of(tick) {
            Some(time) => {
                prop_assert!(ticks(time) >= tick);
                prop_assert!(time == 0 || ticks(time - 1) < tick);
            }
            None => prop_assert!(ticks(Nanos::MAX) < tick),
        }
    }

    #[test]
    fn the_carry_is_seen_whenever_the_top_bit_changed(a in any_time(), b in any_time()) {
        for (width, top) in [(TimerWidth::Bits24, 23), (TimerWidth::Bits32, 31)] {
            let (first, second) = (a.min(b), a.max(b));
            let mut bench = Bench::new(width);
            bench.clock.set(first);
            bench.write(0, 0, Size::B2, event::TIMER.into());
            prop_assert_eq!(bench.read(0, 0, Size::B2), 0);
            bench.clock.set(second);
            let changed = ticks(first) >> top != ticks(second) >> top;
            prop_assert_eq!(bench.read(0, 0, Size::B2) != 0, changed);
        }
    }
}

/// SCI on, timer event enabled.
fn armed() -> Vec<Op> {
    vec![
        Op::write(2, Size::B2, event::TIMER.into()),
        Op::Write { region: 3, offset: 0, size: Size::B1, value: ACPI_ENABLE.into() },
    ]
}

crate::device_laws!(laws, || AcpiPm::new(TimerWidth::Bits24), prologues: [armed()],
    keeps: |old, new| new.regs.carries = old.regs.carries);
crate::device_laws!(laws_32, || AcpiPm::new(TimerWidth::Bits32), prologues: [armed()],
    keeps: |old, new| new.regs.carries = old.regs.carries);
