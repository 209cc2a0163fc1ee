use super::*;
use crate::laws::{Answer, Op, Session};

pub(super) type Bench = Session<Rtc>;

/// 28 February 2023, a Tuesday, 23:59:58.
const EVENING: u64 = 1_677_628_798;
const MS: Nanos = 1_000_000;

pub(super) fn bench(unix: u64) -> Bench {
    Session::new(Rtc::new(unix), || Rtc::new(0))
}

pub(super) fn last(s: &Bench) -> Answer {
    s.trace.last().expect("something was done").answer
}

pub(super) fn read(s: &mut Bench, index: usize) -> u8 {
    s.run(&[Op::write(0, Size::B1, index as u64), Op::read(1, Size::B1)]).expect("lawful");
    match last(s) {
        Answer::Read(Ok(v)) => v as u8,
        other => panic!("{other:?}"),
    }
}

pub(super) fn write(s: &mut Bench, index: usize, value: u8) {
    let ops = [Op::write(0, Size::B1, index as u64), Op::write(1, Size::B1, value.into())];
    s.run(&ops).expect("lawful");
    assert_eq!(last(s), Answer::Wrote(Ok(())));
}

pub(super) fn advance(s: &mut Bench, ns: Nanos) {
    s.apply(&Op::Advance(ns)).expect("lawful");
}

/// Century, year, month, day, weekday, hour, minute, second.
fn time(s: &mut Bench) -> [u8; 8] {
    [CENTURY_AT, YEAR, MONTH, DAY_OF_MONTH, WEEKDAY, HOURS, MINUTES, SECONDS].map(|i| read(s, i))
}

#[test]
fn it_shows_the_time_of_day_in_bcd_and_goes_on() {
    let mut s = bench(EVENING);
    assert_eq!(time(&mut s), [0x20, 0x23, 2, 0x28, 3, 0x23, 0x59, 0x58]);
    advance(&mut s, 2 * SECOND - 1);
    assert_eq!(time(&mut s), [0x20, 0x23, 2, 0x28, 3, 0x23, 0x59, 0x59]);
    advance(&mut s, 1);
    assert_eq!(time(&mut s), [0x20, 0x23, 3, 1, 4, 0, 0, 0]);
    // 306 days to the end of the year, and a second more.
    advance(&mut s, (306 * 86_400 + 1) * SECOND);
    assert_eq!(time(&mut s), [0x20, 0x24, 1, 1, 2, 0, 0, 1]);
    assert_eq!(read(&mut s, D), D_VRT);
}

#[test]
fn leap_years_and_the_century() {
    for (from, to) in [
        ([0x20, 0x24, 2, 0x28], [0x20, 0x24, 2, 0x29]),
        ([0x20, 0x23, 2, 0x28], [0x20, 0x23, 3, 1]),
        ([0x20, 0, 2, 0x28], [0x20, 0, 2, 0x29]),
        ([0x21, 0, 2, 0x28], [0x21, 0, 3, 1]),
        ([0x19, 0x99, 0x12, 0x31], [0x20, 0, 1, 1]),
        ([0x99, 0x99, 0x12, 0x31], [0, 0, 1, 1]),
    ] {
        let mut s = bench(EVENING);
        for (index, byte) in [CENTURY_AT, YEAR, MONTH, DAY_OF_MONTH].into_iter().zip(from) {
            write(&mut s, index, byte);
        }
        advance(&mut s, 2 * SECOND);
        assert_eq!(time(&mut s)[..4], to, "after {from:x?}");
    }
}

#[test]
fn registers_count_as_register_b_asks() {
    // Table 3: 12-hour mode has PM in bit 7; the format is not converted, the bytes are read anew.
    for (b, hour, next) in [
        (B_24H, 0x23, 0),
        (B_24H | B_BINARY, 23, 0),
        (0, 0x91, 0x92),
        (0, 0x92, 1),
        (0, 0x11, 0x92),
        (0, 0x12, 1),
        (0, 0x09, 0x10),
        (B_BINARY, 0x80 | 11, 12),
        (B_BINARY, 0x80 | 12, 0x81),
        (B_BINARY, 11, 0x80 | 12),
        (B_BINARY, 12, 1),
    ] {
        let mut s = bench(EVENING);
        write(&mut s, B, b | B_SET);
        let fifty_nine = if b & B_BINARY != 0 { 59 } else { 0x59 };
        write(&mut s, HOURS, hour);
        write(&mut s, MINUTES, fifty_nine);
        write(&mut s, SECONDS, fifty_nine);
        write(&mut s, B, b);
        advance(&mut s, SECOND);
        let expected = match (b, hour) {
            // 11 PM is followed by 12 AM, and 12 PM by 1 PM.
            (0, 0x91) => 0x12,
            (0, 0x92) => 0x81,
            _ => next,
        };
        assert_eq!(read(&mut s, HOURS), expected, "B {b:#x}, hour {hour:#x}");
    }
}

#[test]
fn uip_is_on_for_244_us_before_an_update() {
    let mut s = bench(0);
    advance(&mut s, SECOND - BEFORE_UPDATE - 1);
    assert_eq!(read(&mut s, A), A_POWER_ON);
    advance(&mut s, 1);
    assert_eq!(read(&mut s, A), A_UIP | A_POWER_ON);
    write(&mut s, B, B_SET | B_24H);
    assert_eq!(read(&mut s, A), A_POWER_ON, "SET clears UIP");
    write(&mut s, B, B_24H);
    advance(&mut s, BEFORE_UPDATE - 1);
    assert_eq!((read(&mut s, A), read(&mut s, SECONDS)), (A_UIP | A_POWER_ON, 0));
    advance(&mut s, 1);
    assert_eq!((read(&mut s, A), read(&mut s, SECONDS)), (A_POWER_ON, 1));
}

#[test]
fn set_stops_updates_and_their_interrupt() {
    let mut s = bench(EVENING);
    write(&mut s, B, B_SET | B_UIE | B_24H);
    assert_eq!(read(&mut s, B), B_SET | B_24H, "SET clears UIE");
    advance(&mut s, 10 * SECOND);
    assert_eq!(read(&mut s, SECONDS), 0x58);
    assert_eq!(read(&mut s, C) & B_UIE, 0);
    write(&mut s, B, B_24H);
    advance(&mut s, SECOND);
    assert_eq!(read(&mut s, SECONDS), 0x59);
}

#[test]
fn an_update_interrupts_until_register_c_is_read() {
    let mut s = bench(EVENING);
    read(&mut s, C);
    write(&mut s, B, B_UIE | B_24H);
    assert_eq!(s.device.deadline(), Some(SECOND));
    s.apply(&Op::ToDeadline).expect("lawful");
    assert!(s.device.irq());
    assert_eq!(s.device.deadline(), None);
    assert_eq!(read(&mut s, C), C_IRQF | B_UIE | B_PIE);
    assert!(!s.device.irq());
    assert_eq!(read(&mut s, C), 0);
}

#[test]
fn a_flag_interrupts_as_soon_as_it_is_enabled() {
    let mut s = bench(EVENING);
    advance(&mut s, SECOND);
    assert!(!s.device.irq());
    write(&mut s, B, B_PIE | B_24H);
    assert!(s.device.irq());
}

#[test]
fn periodic_rates_are_the_datasheets() {
    // Table 5, 32.768 kHz column, in ns, rounded up.
    let periods = [
        3_906_250,
        7_812_500,
        122_071,
        244_141,
        488_282,
        976_563,
        1_953_125,
        3_906_250,
        7_812_500,
        15_625_000,
        31_250_000,
        62_500_000,
        125_000_000,
        250_000_000,
        500_000_000,
    ];
    for (rate, period) in (1..).zip(periods) {
        let mut s = bench(0);
        write(&mut s, A, 0x20 | rate);
        write(&mut s, B, B_PIE | B_24H);
        assert_eq!(s.device.deadline(), Some(period), "rate {rate}");
        let mut count = 0;
        while s.now() < SECOND {
            s.apply(&Op::ToDeadline).expect("lawful");
            assert_eq!(read(&mut s, C) & !B_UIE, C_IRQF | B_PIE);
            count += 1;
        }
        assert_eq!((s.now(), count), (SECOND, SECOND.div_ceil(period)), "rate {rate}");
        if rate == 3 {
            assert_eq!(count, 8192);
        }
    }
    let mut s = bench(0);
    write(&mut s, A, 0x20);
    write(&mut s, B, B_PIE | B_24H);
    assert_eq!(s.device.deadline(), None);
}

#[test]
fn the_alarm_goes_off_at_its_time() {
    // It is 23:59:58; 0xc0 and above is any.
    for (alarm, after) in [
        ([0x23, 0x59, 0x59], Some(1)),
        ([0x00, 0x00, 0x00], Some(2)),
        ([0x23, 0x59, 0x58], Some(86_400)),
        ([0xc0, 0xff, 0xc5], Some(1)),
        ([0xff, 0xff, 0x30], Some(32)),
        ([0xff, 0x30, 0x00], Some(2 + 30 * 60)),
        ([0x07, 0xff, 0xff], Some(2 + 7 * 3600)),
        ([0x24, 0x00, 0x00], None),
        ([0x00, 0x60, 0x00], None),
        ([0x00, 0x0a, 0x00], None),
        ([0x0a, 0x00, 0x00], None),
        ([0x00, 0x00, 0xbf], None),
    ] {
        let mut s = bench(EVENING);
        for (index, byte) in [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM].into_iter().zip(alarm) {
            write(&mut s, index, byte);
        }
        write(&mut s, B, B_AIE | B_24H);
        let due = after.map(|seconds: u64| seconds * SECOND);
        assert_eq!(s.device.deadline(), due, "{alarm:x?}");
        let Some(due) = due else {
            advance(&mut s, 2 * 86_400 * SECOND);
            assert!(!s.device.irq(), "{alarm:x?}");
            continue;
        };
        advance(&mut s, due - 1);
        assert!(!s.device.irq(), "{alarm:x?}");
        advance(&mut s, 1);
        assert!(s.device.irq(), "{alarm:x?}");
        assert_eq!(read(&mut s, C) & (C_IRQF | B_AIE), C_IRQF | B_AIE);
    }
}

#[test]
fn the_divider_stops_the_clock_and_starts_it_half_a_second_early() {
    let mut s = bench(EVENING);
    advance(&mut s, 100 * MS);
    write(&mut s, A, 0x76);
    read(&mut s, C);
    advance(&mut s, 10 * SECOND + 100 * MS);
    assert_eq!((read(&mut s, SECONDS), read(&mut s, C)), (0x58, 0));
    write(&mut s, A, 0x26);
    advance(&mut s, 500 * MS - 1);
    assert_eq!(read(&mut s, SECONDS), 0x58);
    advance(&mut s, 1);
    assert_eq!(read(&mut s, SECONDS), 0x59);
    advance(&mut s, SECOND);
    assert_eq!(read(&mut s, SECONDS), 0);
}

#[test]
fn nonsense_becomes_the_nearest_time_at_the_next_update() {
    let mut s = bench(EVENING);
    for index in [CENTURY_AT, YEAR, MONTH, DAY_OF_MONTH, WEEKDAY, HOURS, MINUTES, SECONDS] {
        write(&mut s, index, 0xff);
    }
    assert_eq!(time(&mut s), [0xff; 8]);
    advance(&mut s, SECOND);
    assert_eq!(time(&mut s), [0, 0, 1, 1, 1, 0, 0, 0], "31 December 9999, 23:59:59, and one more");
}

#[test]
fn a_reset_leaves_time_and_memory_alone() {
    let mut s = bench(EVENING);
    write(&mut s, 0x0f, 0x0a);
    write(&mut s, B, B_PIE | B_AIE | B_UIE | B_SQWE | B_24H);
    advance(&mut s, SECOND);
    assert!(s.device.irq());
    s.apply(&Op::Reset).expect("lawful");
    assert!(!s.device.irq());
    assert_eq!([read(&mut s, B), read(&mut s, C)], [B_24H, 0]);
    assert_eq!([read(&mut s, SECONDS), read(&mut s, 0x0f)], [0x59, 0x0a]);
}

#[test]
fn the_index_port_is_written_only_and_masks_nmis() {
    let mut s = bench(0);
    s.apply(&Op::read(0, Size::B1)).expect("lawful");
    assert_eq!(last(&s), Answer::Read(Err(IoError::WriteOnly)));
    assert!(!s.device.nmi_masked());
    write(&mut s, 0x80 | 0x7f, 0x42);
    assert!(s.device.nmi_masked());
    assert_eq!(read(&mut s, 0x7f), 0x42);
    assert!(!s.device.nmi_masked());
    for index in [C, D] {
        let ops = [Op::write(0, Size::B1, index as u64), Op::write(1, Size::B1, 0)];
        s.run(&ops).expect("lawful");
        assert_eq!(last(&s), Answer::Wrote(Err(IoError::ReadOnly)));
    }
}

#[test]
fn firmware_finds_the_memory_size() {
    let bytes = |size: u64| {
        let mut rtc = Rtc::new(0);
        rtc.set_memory(size);
        let at = |i: usize| u32::from(rtc.regs.get(i));
        let word = |i| at(i) | at(i + 1) << 8;
        [word(0x15), word(0x17), word(0x30), word(0x34), word(0x5b) | at(0x5d) << 16]
    };
    assert_eq!(bytes(2 << 20), [640, 1024, 1024, 0, 0]);
    assert_eq!(bytes(128 << 20), [640, 0xffff, 0xffff, 112 << 4, 0]);
    assert_eq!(bytes(4 << 30), [640, 0xffff, 0xffff, 0xbf00, 1 << 14]);
    assert_eq!(bytes(u64::MAX), [640, 0xffff, 0xffff, 0xbf00, 0xff_ffff]);
}

#[test]
fn registers_that_cannot_be_are_refused() {
    let mut rtc = Rtc::new(0);
    let sound = rtc.regs.clone();
    let bad: [fn(&mut Regs); 5] = [
        |r| r.flags = 0x80,
        |r| r.phase = SECOND,
        |r| r.set(A, A_UIP),
        |r| r.set(C, 1),
        |r| r.set(D, 1),
    ];
    for spoil in bad {
        let mut regs = sound.clone();
        spoil(&mut regs);
        assert!(rtc.restore(&encode(&regs)).is_err(), "{regs:?}");
    }
    rtc.restore(&encode(&sound)).expect("sound");
}

fn select(index: usize, value: u8) -> [Op; 2] {
    [Op::write(0, Size::B1, index as u64), Op::write(1, Size::B1, value.into())]
}

crate::device_laws!(
    laws,
    || Rtc::new(super::EVENING),
    prologues: [
        // All interrupts at 2 Hz, the alarm at any second; then register C is at hand.
        [select(A, 0x2f), select(HOURS_ALARM, 0xff), select(MINUTES_ALARM, 0xff),
            select(SECONDS_ALARM, 0xff), select(B, 0x72), select(C, 0)].concat(),
        // 12 hours and binary, bytes that are no time; then seconds are at hand.
        [select(B, B_BINARY | B_AIE), select(HOURS, 0x8d), select(HOURS_ALARM, 0x85),
            select(SECONDS, 77)].concat(),
        // The divider held; then register A is at hand.
        select(A, 0x73).to_vec(),
        // The time is being set; then register B is at hand.
        select(B, B_SET | B_PIE).to_vec(),
    ],
    keeps: |old, new| {
        new.regs = Regs { index: 0, flags: 0, ..old.regs.clone() };
        new.regs.set(B, old.regs.get(B) & 0x87);
    },
);
