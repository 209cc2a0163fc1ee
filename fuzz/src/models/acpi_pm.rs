//! ACPI's fixed hardware, after ACPI 6.5, sections 4.8.3 and 4.8.4: the PM1 event and control blocks, the
//! PM timer of 24 bits, and the port that switches to ACPI and back.
//!
//! What is left open, and not predicted: what a guest makes of SCI_EN by writing it.

use vmm::device::Nanos;
use vmm::exit::Stop;
use vmm::script::{Answer, Op};

use super::{Byte, Line, Model, Seen, bits};

/// TMR, GBL, PWRBTN, SLPBTN, RTC (table 4.12).
const ENABLES: u16 = 1 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10;

pub(super) struct AcpiPm {
    line: Line,
    status: u16,
    enable: u16,
    /// Without SCI_EN.
    control: u16,
    sci_enabled: Option<bool>,
    smi: [u8; 2],
    /// What the timer counted to, beyond its bits, and when that was.
    ticks: u128,
    now: Nanos,
}

impl AcpiPm {
    pub(super) fn new(alone: bool) -> AcpiPm {
        AcpiPm {
            line: Line::new(9, alone),
            status: 0,
            enable: 0,
            control: 0,
            sci_enabled: Some(false),
            smi: [0; 2],
            ticks: 0,
            now: 0,
        }
    }

    fn write(&mut self, port: u64, value: u8) -> Option<Stop> {
        let word = u16::from(value) << (8 * (port & 1));
        let mask = 0xff << (8 * (port & 1));
        match port {
            // A one clears it.
            0 | 1 => self.status &= !word,
            2 | 3 => self.enable = (self.enable & !mask | word) & ENABLES,
            4 | 5 => {
                // BM_RLD and SLP_TYP stay; GBL_RLS and SLP_EN are for writing.
                self.control = (self.control & !mask | word) & (1 << 1 | 7 << 10);
                if port == 4 && self.sci_enabled != Some(word & 1 != 0) {
                    self.sci_enabled = None;
                }
                // What \_S5, \_S3 and \_S4 of this board's tables say.
                return match self.control >> 10 {
                    _ if word & 1 << 13 == 0 => None,
                    0 => Some(Stop::PowerOff),
                    1 => Some(Stop::Sleep(3)),
                    2 => Some(Stop::Sleep(4)),
                    _ => None,
                };
            }
            _ => {}
        }
        None
    }
}

impl Model for AcpiPm {
    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.line.hear(seen.outcome);
        if self.now != seen.now {
            // 4.8.3.3: 3.579545 MHz; 4.8.4.1.1: any change of the highest bit sets TMR_STS.
            let ticks = u128::from(seen.now) * 3_579_545 / 1_000_000_000;
            if ticks >> 23 != self.ticks >> 23 {
                self.line.late = true;
                self.status |= 1;
            }
            (self.ticks, self.now) = (ticks, seen.now);
        }
        let mut called = seen.is_told();
        let mut stop = None;
        for (port, byte) in seen.bytes(0x600, 12) {
            called = true;
            match (port, byte) {
                (0..8, Byte::Read(got)) => {
                    let (what, word) = match port {
                        0 | 1 => ("PM1_STS", self.status),
                        2 | 3 => ("PM1_EN", self.enable),
                        4 | 5 => {
                            ("PM1_CNT", self.control | u16::from(self.sci_enabled == Some(true)))
                        }
                        // Nobody is there.
                        _ => continue,
                    };
                    let known = port != 4 || self.sci_enabled.is_some();
                    let byte = (word >> (8 * (port & 1))) as u8;
                    bits(what, got, byte, if known { 0xff } else { 0xfe })?;
                }
                (_, Byte::Read(got)) => {
                    let timer = self.ticks as u32 & 0xff_ffff;
                    bits("the timer", got, timer.to_le_bytes()[port as usize & 3], 0xff)?;
                }
                (_, Byte::Write(value)) => stop = stop.or(self.write(port, value)),
            }
        }
        for (port, byte) in seen.bytes(0xb2, 2) {
            called = true;
            match byte {
                Byte::Read(got) => bits("the SMI port", got, self.smi[port as usize], 0xff)?,
                Byte::Write(value) => {
                    self.smi[port as usize] = value;
                    // ACPI_ENABLE and ACPI_DISABLE of this board's FADT.
                    self.sci_enabled = match (port, value) {
                        (0, 2) => Some(true),
                        (0, 3) => Some(false),
                        _ => self.sci_enabled,
                    };
                }
            }
        }
        if let Some((bytes, Some(taken))) = seen.input("acpi-pm") {
            called = true;
            for byte in bytes.iter().take(taken as usize) {
                // The board's buttons: power, sleep, the clock's alarm, waking.
                self.status |= match byte {
                    b'p' => 1 << 8,
                    b's' => 1 << 9,
                    b'r' => 1 << 10,
                    b'w' => 1 << 15,
                    _ => 0,
                };
            }
        }
        if *seen.op == Op::Reset {
            let Line { gsi, alone, .. } = self.line;
            let line = Line { high: self.line.high, ..Line::new(gsi, alone) };
            *self = AcpiPm { line, ticks: self.ticks, now: self.now, ..AcpiPm::new(alone) };
        }
        if stop.is_some_and(|stop| seen.outcome.answer != Answer::Stop(stop)) {
            // Another device may have had its say first.
            if self.line.alone || !matches!(seen.outcome.answer, Answer::Stop(_)) {
                return Err("the machine is to sleep, or to be off".to_owned());
            }
        }
        self.line.late &= !seen.is_told();
        let pending = self.status & self.enable != 0;
        let level = if pending { self.sci_enabled } else { Some(false) };
        if called { self.line.must(level) } else { Ok(()) }
    }
}
