//! ACPI fixed hardware: the PM1a event and control blocks, the PM timer and the SMI command port,
//! after ACPI 6.5, section 4.8.
//!
//! The line is the SCI: a level, high while an event is both enabled and pending and `SCI_EN` says
//! that events go to the operating system. There is no system management mode, so with `SCI_EN`
//! clear an event makes no interrupt; [`ACPI_ENABLE`] and [`ACPI_DISABLE`], written to the SMI
//! command port, do what the firmware's handler would.
//!
//! Host input stands for the buttons of the machine: see [`POWER_BUTTON`] and its siblings.

use serde::{Deserialize, Serialize};

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Nanos, Region, StateError};
use crate::planted::{self, Flaw};
use crate::state;

/// The usual base of the event block; the control block and the timer follow at +4 and +8.
pub const PM_BASE: u64 = 0x600;
/// Where PCs have the SMI command port (`SMI_CMD` of the FADT).
pub const SMI_PORT: u64 = 0xb2;
/// The GSI of the SCI in PCs (`SCI_INT` of the FADT), level triggered, active high.
pub const GSI: u32 = 9;
/// Ticks of the PM timer in a second (section 4.8.3.3).
pub const TIMER_HZ: u64 = 3_579_545;

/// Value of the SMI command port that sets `SCI_EN` (`ACPI_ENABLE` of the FADT).
pub const ACPI_ENABLE: u8 = 0x02;
/// Value of the SMI command port that clears `SCI_EN` (`ACPI_DISABLE` of the FADT).
pub const ACPI_DISABLE: u8 = 0x03;

/// `SLP_TYP` of S5, soft off: what `\_S5` says.
pub const SLP_TYP_S5: u8 = 0;
/// `SLP_TYP` of S3, suspend to RAM: what `\_S3` says.
pub const SLP_TYP_S3: u8 = 1;
/// `SLP_TYP` of S4, suspend to disk: what `\_S4` says.
pub const SLP_TYP_S4: u8 = 2;

/// Host input: the power button is pressed (`PWRBTN_STS`).
pub const POWER_BUTTON: u8 = b'p';
/// Host input: the sleep button is pressed (`SLPBTN_STS`).
pub const SLEEP_BUTTON: u8 = b's';
/// Host input: the real-time clock's alarm goes off (`RTC_STS`).
pub const RTC_ALARM: u8 = b'r';
/// Host input: the board wakes the machine from a sleep state (`WAK_STS`).
pub const WAKE: u8 = b'w';

/// Bits of the status and enable registers, `PM1_STS` and `PM1_EN` (tables 4.11 and 4.12).
pub mod event {
    /// The PM timer's most significant bit changed.
    pub const TIMER: u16 = 1 << 0;
    /// The firmware released the global lock. Nothing sets it here.
    pub const GLOBAL: u16 = 1 << 5;
    /// The power button was pressed.
    pub const POWER_BUTTON: u16 = 1 << 8;
    /// The sleep button was pressed.
    pub const SLEEP_BUTTON: u16 = 1 << 9;
    /// The real-time clock's alarm went off.
    pub const RTC: u16 = 1 << 10;
    /// The machine was woken; a status without an enable bit.
    pub const WAKE: u16 = 1 << 15;
}

/// Bits of the control register, `PM1_CNT` (table 4.13).
pub mod control {
    /// Events raise the SCI.
    pub const SCI_EN: u16 = 1 << 0;
    /// Bus master requests leave C3.
    pub const BM_RLD: u16 = 1 << 1;
    /// The type of the sleep state, 3 bits.
    pub const SLP_TYP: u16 = 7 << SLP_TYP_SHIFT;
    /// Where those bits begin.
    pub const SLP_TYP_SHIFT: u32 = 10;
    /// Writing 1 enters the sleep state; reads as 0.
    pub const SLP_EN: u16 = 1 << 13;
}

const ENABLES: u16 =
    event::TIMER | event::GLOBAL | event::POWER_BUTTON | event::SLEEP_BUTTON | event::RTC;
const STATUSES: u16 = ENABLES | event::WAKE;
const CONTROLS: u16 = control::SCI_EN | control::BM_RLD | control::SLP_TYP;

/// The frequency in lowest terms: [`TICKS`] ticks in [`TICKS_IN`] nanoseconds, exactly.
const TICKS: u64 = TIMER_HZ / 5;
const TICKS_IN: Nanos = crate::device::SECOND / 5;

/// Ticks since the board was switched on: exactly `now` x 3.579545 MHz, rounded down. The quotient
/// and the remainder are scaled apart, so that nothing overflows at any time.
#[inline]
fn ticks(now: Nanos) -> u64 {
    now / TICKS_IN * TICKS + now % TICKS_IN * TICKS / TICKS_IN
}

/// The earliest time at which [`ticks`] is `ticks`; `None` if that is beyond all time.
fn time_of(ticks: u64) -> Option<Nanos> {
    (ticks / TICKS).checked_mul(TICKS_IN)?.checked_add((ticks % TICKS * TICKS_IN).div_ceil(TICKS))
}

/// How wide the PM timer counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimerWidth {
    /// 24 bits: wraps every 4.69 s; the upper byte reads as 0.
    Bits24,
    /// 32 bits (`TMR_VAL_EXT` in the FADT's flags): wraps every 20 minutes.
    #[default]
    Bits32,
}

impl TimerWidth {
    const fn bits(self) -> u32 {
        match self {
            TimerWidth::Bits24 => 24,
            TimerWidth::Bits32 => 32,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Regs {
    status: u16,
    enable: u16,
    control: u16,
    /// How often the timer's most significant bit had changed when it was last looked at.
    carries: u64,
    /// The SMI command port and the scratch byte beside it.
    smi: [u8; 2],
}

/// The ACPI fixed hardware of a board.
#[derive(Clone, Debug)]
pub struct AcpiPm {
    width: TimerWidth,
    regs: Regs,
}

impl AcpiPm {
    /// Its regions: event block, control block, PM timer, SMI command port.
    pub const REGIONS: [Region; 4] = [
        Region { name: "pm1-event", space: Space::Port, len: 4, widest: Size::B2 },
        Region { name: "pm1-control", space: Space::Port, len: 2, widest: Size::B2 },
        Region { name: "pm-timer", space: Space::Port, len: 4, widest: Size::B4 },
        Region { name: "smi-command", space: Space::Port, len: 2, widest: Size::B1 },
    ];

    /// Nothing pending, nothing enabled. The timer counts the board's time, whatever else happens.
    pub fn new(width: TimerWidth) -> AcpiPm {
        AcpiPm { width, regs: Regs::default() }
    }

    fn carries(&self, now: Nanos) -> u64 {
        ticks(now) >> (self.width.bits() - 1)
    }

    /// Notes the timer's carries up to now.
    fn settle(&mut self, env: &mut Env<'_>) {
        let carries = self.carries(env.now());
        if carries > self.regs.carries {
            self.regs.carries = carries;
            if carries % 2 == 1 || !planted::has(Flaw::PmCarry) {
                self.regs.status |= event::TIMER;
            }
        }
    }

    #[inline]
    fn timer(&self, env: &mut Env<'_>) -> u64 {
        ticks(env.now()) & ((1 << self.width.bits()) - 1)
    }

    fn write_event(&mut self, bits: u32, mask: u32) {
        // Status bits are cleared by writing 1; the enable register lies above them.
        self.regs.status &= !(bits as u16);
        if bits as u16 & 0xff00 != 0 && planted::has(Flaw::PmClear) {
            self.regs.status &= 0xff;
        }
        let (bits, mask) = ((bits >> 16) as u16, (mask >> 16) as u16);
        self.regs.enable = (self.regs.enable & !mask | bits) & ENABLES;
    }

    fn write_control(&mut self, env: &mut Env<'_>, bits: u16, mask: u16) {
        self.regs.control = (self.regs.control & !mask | bits) & CONTROLS;
        if bits & control::SLP_EN != 0 {
            match ((self.regs.control & control::SLP_TYP) >> control::SLP_TYP_SHIFT) as u8 {
                SLP_TYP_S3 => env.act(Action::Sleep(3)),
                SLP_TYP_S4 => env.act(Action::Sleep(4)),
                SLP_TYP_S5 => env.act(Action::PowerOff),
                _ => {} // No such state is offered: the machine runs on.
            }
        }
    }

    fn write_smi(&mut self, at: usize, value: u8) {
        self.regs.smi[at] = value;
        match (at, value) {
            (0, ACPI_ENABLE) => self.regs.control |= control::SCI_EN,
            (0, ACPI_DISABLE) => self.regs.control &= !control::SCI_EN,
            _ => {}
        }
    }
}

/// Refuses what lies beyond `len` bytes of a register block.
fn within(at: At, size: Size, len: u64) -> Result<u32, IoError> {
    match at.offset.checked_add(size.bytes()) {
        Some(end) if end <= len => Ok(at.offset as u32 * 8),
        _ if at.offset < len => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &'static str {
        "acpi-pm"
    }

    fn regions(&self) -> &'static [Region] {
        &AcpiPm::REGIONS
    }

    #[inline]
    fn read(&mut self, env: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match at.region {
            2 => Ok(self.timer(env) >> within(at, size, 4)?),
            0 => {
                let shift = within(at, size, 4)?;
                self.settle(env);
                let Regs { status, enable, .. } = self.regs;
                Ok((u64::from(status) | u64::from(enable) << 16) >> shift)
            }
            1 => Ok(u64::from(self.regs.control) >> within(at, size, 2)?),
            3 => Ok(u64::from(u16::from_le_bytes(self.regs.smi)) >> within(at, size, 2)?),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        // An event that is about to be cleared or enabled happens first.
        self.settle(env);
        match at.region {
            0 => {
                let shift = within(at, size, 4)?;
                self.write_event((value as u32) << shift, (size.mask() as u32) << shift);
            }
            1 => {
                let shift = within(at, size, 2)?;
                self.write_control(env, (value as u16) << shift, (size.mask() as u16) << shift);
            }
            2 => {
                within(at, size, 4)?;
                return Err(IoError::ReadOnly);
            }
            3 => {
                within(at, size, 2)?;
                for (i, byte) in (0..size.bytes()).zip(value.to_le_bytes()) {
                    self.write_smi((at.offset + i) as usize, byte);
                }
            }
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }

    fn irq(&self) -> bool {
        let Regs { status, enable, control, .. } = self.regs;
        control & control::SCI_EN != 0 && status & enable != 0
    }

    fn deadline(&self) -> Option<Nanos> {
        let Regs { enable, control, carries, .. } = self.regs;
        let armed = enable & event::TIMER != 0 && control & control::SCI_EN != 0 && !self.irq();
        if !armed {
            return None;
        }
        time_of(carries.checked_add(1)?.checked_mul(1 << (self.width.bits() - 1))?)
    }

    fn advance(&mut self, env: &mut Env<'_>) {
        self.settle(env);
    }

    fn input(&mut self, env: &mut Env<'_>, bytes: &[u8]) -> usize {
        self.settle(env);
        let taken = bytes.len().min(self.input_room());
        for byte in &bytes[..taken] {
            self.regs.status |= match *byte {
                POWER_BUTTON => event::POWER_BUTTON,
                SLEEP_BUTTON => event::SLEEP_BUTTON,
                RTC_ALARM => event::RTC,
                WAKE => event::WAKE,
                _ => 0, // No such button.
            };
        }
        taken
    }

    /// A pressed button is a bit, so there is always room; the bound only bounds one call.
    fn input_room(&self) -> usize {
        64
    }

    /// The timer counts on, so no carry of before is one to tell.
    fn reset(&mut self, env: &mut Env<'_>) {
        self.settle(env);
        let AcpiPm { width: _, regs } = self;
        *regs = Regs { carries: regs.carries, ..Regs::default() };
    }

    fn save(&self) -> Vec<u8> {
        let AcpiPm { width: _, regs } = self;
        state::encode(regs)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let regs: Regs = state::decode("acpi-pm", bytes)?;
        let unknown = regs.status & !STATUSES | regs.enable & !ENABLES | regs.control & !CONTROLS;
        let what = if unknown != 0 {
            "bits set that no register has"
        } else if regs.carries > self.carries(Nanos::MAX) {
            "a timer that is ahead of all time"
        } else {
            self.regs = regs;
            return Ok(());
        };
        Err(StateError { device: "acpi-pm", what: what.into() })
    }
}

#[cfg(test)]
mod tests;
