//! The MC146818A real-time clock with its battery-backed RAM, after Motorola's datasheet, wired
//! as a PC has it: 32.768 kHz, an index port with the NMI mask, 128 bytes, the century at 0x32.
//!
//! The time is what the registers say: a guest that changes the format or writes anything at all
//! gets just those bytes back, until the next update makes the nearest valid time of them.
//!
//! What a guest could tell from the real chip:
//!
//! - The update itself takes no time: UIP is on for the 244 us before it (table 6), and off in the
//!   moment that the registers change.
//! - All three time bases run as 32.768 kHz does; the other divider settings stop the clock.
//! - The calendar is Gregorian, with the century that firmware keeps, not "every fourth year".
//! - Daylight saving (DSE) and the square wave (SQWE) are bits without effect.

mod calendar;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use self::calendar::{Alarm, Calendar, Date};
use crate::access::{IoError, Size, Space};
use crate::device::{At, Device, Env, Nanos, Region, SECOND, StateError};
use crate::planted::{self, Flaw};
use crate::ram::HOLE_START;
use crate::state::{decode, encode};

/// Its first port: the index; data is at the next.
pub const BASE: u16 = 0x70;
/// Its GSI.
pub const GSI: u32 = 8;
/// Index of the century, as the FADT tells it to the guest.
pub const CENTURY: u8 = 0x32;

const SECONDS: usize = 0;
const SECONDS_ALARM: usize = 1;
const MINUTES: usize = 2;
const MINUTES_ALARM: usize = 3;
const HOURS: usize = 4;
const HOURS_ALARM: usize = 5;
const WEEKDAY: usize = 6;
const DAY_OF_MONTH: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
const A: usize = 10;
const B: usize = 11;
const C: usize = 12;
const D: usize = 13;
const CENTURY_AT: usize = CENTURY as usize;

const A_UIP: u8 = 1 << 7;
const A_DIVIDER: u8 = 7 << 4;
/// Divider for 32.768 kHz, periodic rate 1024 Hz: what a PC's firmware leaves.
const A_POWER_ON: u8 = 0x26;

const B_SET: u8 = 1 << 7;
const B_PIE: u8 = 1 << 6;
const B_AIE: u8 = 1 << 5;
const B_UIE: u8 = 1 << 4;
const B_SQWE: u8 = 1 << 3;
const B_BINARY: u8 = 1 << 2;
const B_24H: u8 = 1 << 1;

/// The flags of register C, each at the place of its enable bit in B.
const C_FLAGS: u8 = B_PIE | B_AIE | B_UIE;
const C_IRQF: u8 = 1 << 7;

/// Valid RAM and time: the battery is good.
const D_VRT: u8 = 1 << 7;

/// UIP goes on this long before an update (table 6, t_BUC).
const BEFORE_UPDATE: Nanos = 244_000;
/// Ticks of the crystal a second.
const HZ: u64 = 32_768;
/// A tick is 1953125 / 64 ns.
const TICK: (u64, u64) = (1_953_125, 64);
/// Alarm bytes from here on stand for any value.
const ANY: u8 = 0xc0;
/// The hour's PM bit in 12-hour mode.
const PM: u8 = 1 << 7;

/// All that a guest can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Regs {
    /// The index port, with the NMI mask in bit 7.
    index: u8,
    /// The 128 bytes, a quarter in each; those of C and D are not used.
    bytes: [[u8; 32]; 4],
    /// The flags of register C, without IRQF.
    flags: u8,
    /// Where in a second the updates are; below [`SECOND`].
    phase: Nanos,
    /// What time the rest is of.
    synced: Nanos,
}

impl Regs {
    #[inline]
    fn get(&self, index: usize) -> u8 {
        let quarters = if planted::has(Flaw::RtcIndex) { 8 } else { 4 };
        self.bytes[index / 32 % quarters][index % 32]
    }

    #[inline]
    fn set(&mut self, index: usize, value: u8) {
        self.bytes[index / 32 % 4][index % 32] = value;
    }

    fn number(&self, byte: u8) -> u64 {
        if self.get(B) & B_BINARY != 0 {
            return byte.into();
        }
        u64::from(byte >> 4) * 10 + u64::from(byte & 0xf)
    }

    fn byte(&self, number: u64) -> u8 {
        let number = number as u8;
        if self.get(B) & B_BINARY != 0 { number } else { ((number / 10) << 4) | (number % 10) }
    }

    /// The hour that a byte stands for, if any.
    fn hour(&self, byte: u8) -> Option<u64> {
        if self.get(B) & B_24H != 0 {
            return Some(self.number(byte)).filter(|&hour| hour < 24);
        }
        match self.number(byte & !PM) {
            hour @ 1..=12 => Some(hour % 12 + if byte & PM != 0 { 12 } else { 0 }),
            _ => None,
        }
    }

    fn hour_byte(&self, hour: u64) -> u8 {
        if self.get(B) & B_24H != 0 {
            return self.byte(hour);
        }
        let pm = if hour >= 12 { PM } else { 0 };
        self.byte((hour + 11) % 12 + 1) | pm
    }

    /// The nearest valid time to what the registers hold.
    fn calendar(&self) -> Calendar {
        let at = |index| self.number(self.get(index));
        let hour = self.hour(self.get(HOURS)).unwrap_or(23);
        let year = at(CENTURY_AT).min(99) * 100 + at(YEAR).min(99);
        Calendar {
            second_of_day: hour * 3600 + at(MINUTES).min(59) * 60 + at(SECONDS).min(59),
            weekday: at(WEEKDAY).clamp(1, 7),
            day: Date::nearest(year, at(MONTH), at(DAY_OF_MONTH)).to_days(),
        }
    }

    fn set_calendar(&mut self, calendar: Calendar) {
        let Calendar { second_of_day: t, weekday, day } = calendar;
        let date = Date::from_days(day);
        self.set(HOURS, self.hour_byte(t / 3600));
        for (index, number) in [
            (SECONDS, t % 60),
            (MINUTES, t / 60 % 60),
            (WEEKDAY, weekday),
            (DAY_OF_MONTH, date.day),
            (MONTH, date.month),
            (YEAR, date.year % 100),
            (CENTURY_AT, date.year / 100),
        ] {
            self.set(index, self.byte(number));
        }
    }

    /// When the alarm goes off; never, if a byte is neither "any" nor one that the clock shows:
    /// the chip compares bytes, so 0x0a is not 10 in BCD.
    fn alarm(&self) -> Option<Alarm> {
        let field = |byte: u8, number: Option<u64>| match byte {
            ANY..0xe0 if planted::has(Flaw::RtcAny) => number.map(Some),
            ANY.. => Some(None),
            _ => number.map(Some),
        };
        let sixty = |index| {
            let byte = self.get(index);
            field(byte, Some(self.number(byte)).filter(|&n| n < 60 && self.byte(n) == byte))
        };
        let hour = self.get(HOURS_ALARM);
        Some(Alarm {
            hour: field(hour, self.hour(hour).filter(|&h| self.hour_byte(h) == hour))?,
            minute: sixty(MINUTES_ALARM)?,
            second: sixty(SECONDS_ALARM)?,
        })
    }

    /// Whether the divider chain runs.
    fn runs(&self) -> bool {
        self.get(A) & A_DIVIDER <= 0x20
    }

    /// Whether the time is updated each second.
    fn updates(&self) -> bool {
        self.runs() && self.get(B) & B_SET == 0
    }

    /// Ticks of the crystal between two periodic interrupts (table 5, 32.768 kHz), if there are
    /// any.
    fn period(&self) -> Option<u64> {
        match self.get(A) & 0xf {
            0 => None,
            rate @ 1..=2 => Some(64 << rate),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Time as the divider chain counts it: an update is at each whole second. Never 0, so that
    /// what came before the first update has a place.
    fn position(&self, now: Nanos) -> u64 {
        now.saturating_add(SECOND - self.phase)
    }

    /// The time of a position; the end of time if it is later.
    fn time_of(&self, position: u64) -> Nanos {
        position.saturating_sub(SECOND - self.phase)
    }

    fn sync(&mut self, now: Nanos) {
        if now <= self.synced {
            return;
        }
        let (from, to) = (self.position(self.synced), self.position(now));
        self.synced = now;
        if !self.runs() {
            return;
        }
        if self.period().is_some_and(|period| ticks(from) / period != ticks(to) / period) {
            self.flags |= B_PIE;
        }
        let seconds = to / SECOND - from / SECOND;
        if seconds == 0 || !self.updates() {
            return;
        }
        let was = self.calendar();
        if self.alarm().is_some_and(|alarm| alarm.seconds_from(was.second_of_day) <= seconds) {
            self.flags |= B_AIE;
        }
        if self.flags & B_AIE == 0 || !planted::has(Flaw::RtcEnded) {
            self.flags |= B_UIE;
        }
        if planted::has(Flaw::RtcSeconds) {
            for _ in 0..seconds {
                self.set_calendar(self.calendar().after(1));
            }
            return;
        }
        self.set_calendar(was.after(seconds));
    }

    fn update_in_progress(&self, now: Nanos) -> bool {
        self.updates() && self.position(now) % SECOND >= SECOND - BEFORE_UPDATE
    }

    fn irq(&self) -> bool {
        self.flags & self.get(B) & C_FLAGS != 0
    }

    fn deadline(&self) -> Option<Nanos> {
        let enabled = self.get(B) & C_FLAGS;
        if enabled == 0 || self.irq() || !self.runs() {
            return None;
        }
        let from = self.position(self.synced);
        let periodic = self.period().filter(|_| enabled & B_PIE != 0).map(|period| {
            let ahead = if planted::has(Flaw::RtcPeriod) { 0 } else { 1 };
            let next = (ticks(from) / period + ahead) * period;
            let part = (next % HZ * TICK.0).div_ceil(TICK.1);
            (next / HZ).saturating_mul(SECOND).saturating_add(part)
        });
        let seconds = if !self.updates() {
            None
        } else if enabled & B_UIE != 0 {
            Some(1)
        } else if enabled & B_AIE != 0 {
            self.alarm().map(|alarm| alarm.seconds_from(self.calendar().second_of_day))
        } else {
            None
        };
        let update = seconds.map(|s| (from / SECOND).saturating_add(s).saturating_mul(SECOND));
        let next = periodic.into_iter().chain(update).min()?;
        Some(self.time_of(next))
    }

    fn write_a(&mut self, now: Nanos, value: u8) {
        let ran = self.runs();
        self.set(A, value & !A_UIP);
        if !ran && self.runs() {
            // Register A, DV: the first update is half a second after the chain's release.
            let at = now.max(self.synced) % SECOND;
            self.phase = (at + SECOND / 2) % SECOND;
        }
    }

    fn write_b(&mut self, value: u8) {
        let set_rises = value & !self.get(B) & B_SET != 0 && !planted::has(Flaw::RtcSet);
        self.set(B, if set_rises { value & !B_UIE } else { value });
    }
}

/// Ticks of the crystal up to a position.
fn ticks(position: u64) -> u64 {
    position / SECOND * HZ + position % SECOND * TICK.1 / TICK.0
}

/// The clock.
#[derive(Clone, Debug)]
pub struct Rtc {
    regs: Regs,
}

impl Rtc {
    /// A clock that showed this time, in seconds since the beginning of 1970 (UTC), when the board
    /// was switched on. It counts in BCD and 24 hours, and all of its RAM is 0.
    pub fn new(unix_seconds: u64) -> Rtc {
        let mut regs = Regs { index: 0, bytes: [[0; 32]; 4], flags: 0, phase: 0, synced: 0 };
        regs.set(A, A_POWER_ON);
        regs.set(B, B_24H);
        regs.set_calendar(Calendar::from_unix(unix_seconds));
        Rtc { regs }
    }

    /// Tells firmware how much memory there is (`ram_size` bytes, laid out as [`crate::ram`]
    /// does), in the bytes of the CMOS RAM where it looks for that:
    ///
    /// | bytes | what | unit |
    /// |---|---|---|
    /// | 0x15, 0x16 | conventional memory: 640 | KiB |
    /// | 0x17, 0x18 and 0x30, 0x31 | from 1 MiB, at most 65535 | KiB |
    /// | 0x34, 0x35 | from 16 MiB up to the hole | 64 KiB |
    /// | 0x5b to 0x5d | above 4 GiB | 64 KiB |
    pub fn set_memory(&mut self, ram_size: u64) {
        let low = ram_size.min(HOLE_START);
        let extended = (low.saturating_sub(1 << 20) >> 10).min(0xffff);
        let above_16m = (low.saturating_sub(16 << 20) >> 16).min(0xffff);
        let above_4g = ((ram_size - low) >> 16).min(0xff_ffff);
        for (index, value, len) in [
            (0x15, 640, 2),
            (0x17, extended, 2),
            (0x30, extended, 2),
            (0x34, above_16m, 2),
            (0x5b, above_4g, 3),
        ] {
            for (i, byte) in value.to_le_bytes()[..len].iter().enumerate() {
                self.regs.set(index + i, *byte);
            }
        }
    }

    /// Whether the guest masks NMIs: bit 7 of the index port.
    pub fn nmi_masked(&self) -> bool {
        self.regs.index & 0x80 != 0
    }
}

impl Device for Rtc {
    fn name(&self) -> &'static str {
        "rtc"
    }

    fn regions(&self) -> &'static [Region] {
        &[Region { name: "rtc", space: Space::Port, len: 2, widest: Size::B1 }]
    }

    fn read(&mut self, env: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        let regs = &mut self.regs;
        match (at.offset, size) {
            (0, Size::B1) => return Err(IoError::WriteOnly),
            (1, Size::B1) => {}
            (0 | 1, _) => return Err(IoError::Width),
            _ => return Err(IoError::NoRegister),
        }
        let mask = if planted::has(Flaw::RtcIndex) { 0xff } else { 0x7f };
        let index = usize::from(regs.index & mask);
        let value = match index {
            A => regs.get(A) | if regs.update_in_progress(env.now()) { A_UIP } else { 0 },
            C => {
                regs.sync(env.now());
                let irqf = if regs.irq() { C_IRQF } else { 0 };
                std::mem::take(&mut regs.flags) | irqf
            }
            D => D_VRT,
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY_AT => {
                regs.sync(env.now());
                regs.get(index)
            }
            _ => regs.get(index),
        };
        Ok(value.into())
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        let regs = &mut self.regs;
        let value = value as u8;
        match (at.offset, size) {
            (0, Size::B1) => {
                regs.index = value;
                return Ok(());
            }
            (1, Size::B1) => {}
            (0 | 1, _) => return Err(IoError::Width),
            _ => return Err(IoError::NoRegister),
        }
        let index = usize::from(regs.index & 0x7f);
        match index {
            C | D => return Err(IoError::ReadOnly),
            ..=B | CENTURY_AT => {
                let now = env.now();
                regs.sync(now);
                match index {
                    A => regs.write_a(now, value),
                    B => regs.write_b(value),
                    _ => regs.set(index, value),
                }
            }
            _ => regs.set(index, value),
        }
        Ok(())
    }

    fn irq(&self) -> bool {
        self.regs.irq()
    }

    fn deadline(&self) -> Option<Nanos> {
        self.regs.deadline()
    }

    fn advance(&mut self, env: &mut Env<'_>) {
        self.regs.sync(env.now());
    }

    /// The RESET pin: the interrupts are disabled and forgotten; the battery keeps time and RAM.
    fn reset(&mut self, env: &mut Env<'_>) {
        let regs = &mut self.regs;
        regs.sync(env.now());
        regs.index = 0;
        regs.flags = 0;
        regs.set(B, regs.get(B) & !(C_FLAGS | B_SQWE));
    }

    fn save(&self) -> Vec<u8> {
        let Rtc { regs } = self;
        if planted::has(Flaw::RtcFlags) {
            return encode(&Regs { flags: 0, ..regs.clone() });
        }
        encode(regs)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let r: Regs = decode("rtc", state)?;
        let sound = r.flags & !C_FLAGS == 0
            && r.phase < SECOND
            && r.get(A) & A_UIP == 0
            && r.get(C) == 0
            && r.get(D) == 0;
        if !sound {
            let what = "registers that the chip cannot have".to_owned();
            return Err(StateError { device: "rtc", what });
        }
        self.regs = r;
        Ok(())
    }
}
