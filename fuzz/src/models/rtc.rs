//! A PC's clock, after Motorola's MC146818A data sheet, with ACPI's century (FADT) in byte 0x32.
//!
//! What the data sheet leaves open is not predicted: where in its period the periodic interrupt comes,
//! what the clock makes of a time that is none, and the divider's settings for other quartzes and tests.
//!
//! What is the board's own: the update takes no time, the calendar is Gregorian, and a reset leaves the
//! index at 0.

use vmm::device::{Nanos, SECOND};
use vmm::script::Op;

use super::{Byte, Line, Model, Seen, bits, same};

const PF: u8 = 0x40;
const AF: u8 = 0x20;
const UF: u8 = 0x10;

/// What the clock's time consists of, and is written to.
const SECONDS: usize = 0;
const MINUTES: usize = 2;
const HOURS: usize = 4;
const WEEKDAY: usize = 6;
const DATE: [usize; 4] = [7, 8, 9, 0x32];

/// What DV says of the divider (table 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Divider {
    /// Runs from a quartz of 32.768 kHz.
    Runs,
    Reset,
    /// Something else.
    Other,
}

pub(super) struct Rtc {
    line: Line,
    index: usize,
    bytes: [u8; 128],
    /// Which of them are known.
    known: u128,
    /// Flags of register C that are set, and those that may be.
    set: u8,
    may: u8,
    /// Where in a second the updates are.
    phase: Option<Nanos>,
    now: Nanos,
    /// Since when every edge of the periodic tap is to be seen in PF.
    periodic: Nanos,
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(month: u64, year: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days later.
pub(super) fn later([mut day, mut month, mut year]: [u64; 3], mut days: u64) -> [u64; 3] {
    // Four centuries are always as long.
    year += days / 146_097 * 400;
    days %= 146_097;
    while days > 0 {
        let in_year = 365 + u64::from(is_leap(year + u64::from(month > 2)));
        let left = days_of(month, year) - day;
        if days >= in_year && day < 29 {
            (days, year) = (days - in_year, year + 1);
        } else if days <= left {
            (day, days) = (day + days, 0);
        } else {
            (days, day, month) = (days - left - 1, 1, month + 1);
            (month, year) = if month > 12 { (1, year + 1) } else { (month, year) };
        }
    }
    [day, month, year % 10_000]
}

impl Rtc {
    /// The clock that shows so many seconds after 1970.
    pub(super) fn new(unix_time: u64, alone: bool) -> Rtc {
        let mut rtc = Rtc {
            line: Line::new(8, alone),
            index: 0,
            bytes: [0; 128],
            // Nobody told what else the firmware puts there.
            known: 1 << 0x32 | 0x3fff,
            set: 0,
            may: 0,
            phase: Some(0),
            now: 0,
            periodic: 0,
        };
        // What firmware leaves: 32.768 kHz, 1024 Hz; BCD, 24 hours.
        (rtc.bytes[10], rtc.bytes[11]) = (0x26, 0x02);
        let [day, month, year] = later([1, 1, 1970], unix_time / 86_400);
        // It began with a Thursday; Sunday is 1.
        let weekday = (4 + unix_time / 86_400) % 7 + 1;
        let clock = [unix_time % 60, unix_time / 60 % 60, unix_time / 3600 % 24, weekday];
        let clock = [SECONDS, MINUTES, HOURS, WEEKDAY].into_iter().zip(clock);
        let date = DATE.into_iter().zip([day, month, year % 100, year / 100]);
        clock.chain(date).for_each(|(at, number)| rtc.put(at, number));
        rtc
    }

    fn b(&self, bit: u8) -> bool {
        self.bytes[11] & bit != 0
    }

    /// A number as it stands in byte `at` (table 3): binary or BCD (DM); hours from 1 to 12, with bit 7
    /// for the afternoon, or from 0 to 23 (24/12).
    fn written(&self, at: usize, number: u64) -> u8 {
        let (number, afternoon) = match number {
            hour if at / 2 == HOURS / 2 && !self.b(2) => ((hour + 11) % 12 + 1, hour >= 12),
            number => (number, false),
        };
        let byte = if self.b(4) { number } else { number / 10 * 16 + number % 10 };
        byte as u8 | u8::from(afternoon) << 7
    }

    fn put(&mut self, at: usize, number: u64) {
        self.bytes[at] = self.written(at, number);
        self.known |= 1 << at;
    }

    fn forget(&mut self, at: usize) {
        self.known &= !(1 << at);
    }

    /// The number in byte `at`, if it is known and one of these.
    fn number(&self, at: usize, mut of: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let byte = self.bytes[at];
        let decimal = u64::from(byte >> 4) * 10 + u64::from(byte & 0xf);
        let likely = if self.b(4) { byte.into() } else { decimal };
        let found = match at {
            HOURS => of.find(|&hour| self.written(at, hour) == byte),
            _ => Some(likely).filter(|n| of.contains(n) && self.written(at, *n) == byte),
        };
        found.filter(|_| self.known >> at & 1 == 1)
    }

    fn divider(&self) -> Divider {
        match self.bytes[10] >> 4 & 7 {
            2 => Divider::Runs,
            6 | 7 => Divider::Reset,
            _ => Divider::Other,
        }
    }

    /// Flags that are set now, and those that may be.
    fn flag(&mut self, set: u8, may: u8) {
        self.set |= set;
        self.may |= set | may;
        self.line.late |= (set | may) & self.bytes[11] != 0;
    }

    /// Time passes.
    fn pass(&mut self, now: Nanos) {
        let from = std::mem::replace(&mut self.now, now);
        if now == from {
            return;
        }
        let rate = u32::from(self.bytes[10] & 15);
        let updates = !self.b(0x80);
        match self.divider() {
            Divider::Reset => self.periodic = now,
            Divider::Other => {
                self.phase = None;
                self.flag(0, PF);
                if updates {
                    self.flag(0, UF);
                    self.update(None);
                }
            }
            Divider::Runs => {
                if rate > 0 {
                    // Table 5: 1 and 2 are as 8 and 9.
                    let period = 1 << if rate < 3 { rate + 6 } else { rate - 1 };
                    let whole = u128::from(now - self.periodic) * 32_768 >= period * 1_000_000_000;
                    self.flag(if whole { PF } else { 0 }, PF);
                }
                match self.phase {
                    _ if !updates => {}
                    Some(phase) => {
                        let before = |time: Nanos| (time + SECOND - phase) / SECOND;
                        match before(now) - before(from) {
                            0 => {}
                            seconds => self.update(Some(seconds)),
                        }
                    }
                    None => {
                        self.flag(if now - from >= SECOND { UF } else { 0 }, UF);
                        self.update(None);
                    }
                }
            }
        }
    }

    /// The time is some seconds later, or nobody knows how many.
    fn update(&mut self, seconds: Option<u64>) {
        let Some(seconds) = seconds else {
            self.flag(0, AF);
            [SECONDS, MINUTES, HOURS, WEEKDAY]
                .into_iter()
                .chain(DATE)
                .for_each(|at| self.forget(at));
            return;
        };
        self.flag(UF, 0);
        let clock =
            [(SECONDS, 60), (MINUTES, 60), (HOURS, 24)].map(|(at, n)| self.number(at, 0..=n - 1));
        match clock {
            [Some(s), Some(m), Some(h)] => {
                if self.is_alarm_in(h * 3600 + m * 60 + s, seconds) {
                    self.flag(AF, 0);
                }
            }
            _ => self.flag(0, AF),
        }
        // Each counts what the one before it carries.
        let mut carry = Some(seconds);
        for ((at, modulus), number) in
            [(SECONDS, 60), (MINUTES, 60), (HOURS, 24)].into_iter().zip(clock)
        {
            match (carry, number) {
                (Some(n), Some(number)) => {
                    self.put(at, (number + n) % modulus);
                    carry = Some((number + n) / modulus);
                }
                _ => {
                    self.forget(at);
                    carry = carry.filter(|&n| n == 0);
                }
            }
        }
        match (carry, self.number(WEEKDAY, 1..=7)) {
            (Some(days), Some(weekday)) => self.put(WEEKDAY, (weekday - 1 + days) % 7 + 1),
            _ => self.forget(WEEKDAY),
        }
        let date = [1..=31, 1..=12, 0..=99, 0..=99];
        let date: [Option<u64>; 4] = {
            let mut of = date.into_iter();
            DATE.map(|at| of.next().and_then(|of| self.number(at, of)))
        };
        match (carry, date) {
            (Some(days), [Some(day), Some(month), Some(year), Some(century)])
                if day <= days_of(month, century * 100 + year) =>
            {
                let [day, month, year] = later([day, month, century * 100 + year], days);
                let date = [day, month, year % 100, year / 100];
                DATE.into_iter().zip(date).for_each(|(at, number)| self.put(at, number));
            }
            _ => DATE.into_iter().for_each(|at| self.forget(at)),
        }
    }

    /// Whether a second of the next ones is that of the alarm: bytes from 0xc0 on are any, others are
    /// compared with what the clock shows.
    fn is_alarm_in(&self, second_of_day: u64, seconds: u64) -> bool {
        let fits = |at: usize, number| {
            let byte = self.bytes[at + 1];
            byte >= 0xc0 || byte == self.written(at, number)
        };
        // Today and tomorrow.
        let (first, last) = (second_of_day + 1, second_of_day + seconds.min(86_400));
        (0..48).any(|h| {
            let hour = h * 3600;
            hour + 3599 >= first
                && hour <= last
                && fits(HOURS, h % 24)
                && (0..60).any(|m| {
                    let minute = hour + m * 60;
                    minute + 59 >= first
                        && minute <= last
                        && fits(MINUTES, m)
                        && (minute.max(first)..=(minute + 59).min(last))
                            .any(|second| fits(SECONDS, second % 60))
                })
        })
    }

    fn read(&mut self, got: Option<u8>) -> Result<(), String> {
        let byte = self.bytes[self.index];
        match self.index {
            10 => {
                let (uip, sure) = match (self.divider(), self.phase) {
                    _ if self.b(0x80) => (false, true),
                    (Divider::Reset, _) => (false, true),
                    // Table 6: from 244 us before the update on.
                    (Divider::Runs, Some(phase)) => {
                        ((self.now + SECOND - phase) % SECOND >= SECOND - 244_000, true)
                    }
                    _ => (false, false),
                };
                let mask = if sure { 0xff } else { 0x7f };
                bits("register A", got, byte | u8::from(uip) << 7, mask)
            }
            12 => {
                let (set, may) = (self.set, self.may);
                (self.set, self.may, self.periodic) = (0, 0, self.now);
                self.line.late = false;
                let Some(got) = got else { return Ok(()) };
                bits("register C", Some(got), set, set | !may & 0x7f)?;
                let irqf = got & self.bytes[11] & 0x70 != 0;
                bits("IRQF of register C", Some(got), u8::from(irqf) << 7, 0x80)
            }
            13 => same("register D", got, 0x80),
            index if self.known >> index & 1 == 0 => {
                if let Some(got) = got.filter(|_| index > 13 && index != 0x32) {
                    // From now on it is known.
                    (self.bytes[index], self.known) = (got, self.known | 1 << index);
                }
                Ok(())
            }
            index => {
                if got.is_some_and(|got| got != byte) {
                    return same(&format!("byte {index:#x}"), got, byte);
                }
                Ok(())
            }
        }
    }

    fn write(&mut self, value: u8) {
        match self.index {
            10 => {
                let before = (self.divider(), self.bytes[10] & 15);
                self.bytes[10] = value & 0x7f;
                match (before.0, self.divider()) {
                    // "The first update cycle begins one-half second later."
                    (Divider::Reset, Divider::Runs) => {
                        self.phase = Some((self.now + SECOND / 2) % SECOND);
                    }
                    (Divider::Other, _) => self.phase = None,
                    _ => {}
                }
                if before != (self.divider(), value & 15) {
                    self.periodic = self.now;
                }
            }
            // SET clears UIE when it goes high.
            11 if value & !self.bytes[11] & 0x80 != 0 => self.bytes[11] = value & !0x10,
            12 | 13 => {}
            index => {
                self.bytes[index] = value;
                self.known |= 1 << index;
            }
        }
    }

    /// The level of the line, if it is known.
    fn level(&self) -> Option<bool> {
        let enabled = self.bytes[11] & 0x70;
        match (self.set & enabled, self.may & enabled) {
            (0, 0) => Some(false),
            (0, _) => None,
            _ => Some(true),
        }
    }
}

impl Model for Rtc {
    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.line.hear(seen.outcome);
        self.pass(seen.now);
        let mut called = seen.is_told();
        for (port, byte) in seen.bytes(0x70, 2) {
            called = true;
            match (port, byte) {
                // The index cannot be read on all PCs.
                (0, Byte::Read(_)) => {}
                (0, Byte::Write(value)) => self.index = usize::from(value & 0x7f),
                (_, Byte::Read(got)) => self.read(got)?,
                (_, Byte::Write(value)) => self.write(value),
            }
        }
        if *seen.op == Op::Reset {
            // The RESET pin: clears PIE, AIE, UIE, SQWE and the flags.
            self.bytes[11] &= 0x87;
            (self.index, self.set, self.may, self.periodic) = (0, 0, 0, seen.now);
        }
        self.line.late &= !seen.is_told();
        if called { self.line.must(self.level()) } else { Ok(()) }
    }
}
