//! The UART of a PC's first serial port, after National Semiconductor's PC16550D data sheet; section
//! numbers are its own.
//!
//! What is the board's own: a character that is written has left at once, what the host sends has arrived
//! at once, and the modem at the other end holds CTS, DSR and DCD on and RI off.

use vmm::device::Nanos;
use vmm::script::{Effect, Op};

use super::{Byte, Line, Model, Seen, same};

/// What the modem's end of the cable says, as bits 4 to 7 of MSR: CTS, DSR, DCD.
const MODEM: u8 = 0xb0;
/// Quartz, in Hz (8.3, table III).
const QUARTZ: u64 = 1_843_200;

pub(super) struct Uart {
    line: Line,
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: u64,
    /// As it was written, with the FIFOs enabled; 0 without.
    fcr: u8,
    received: [u8; 16],
    held: usize,
    overrun: bool,
    /// "Transmitter holding register empty" was not told in IIR yet.
    empty: bool,
    /// The FIFO's time-out has struck; or since when it has not.
    timeout: bool,
    since: Nanos,
    /// Lower half of MSR.
    changes: u8,
}

impl Uart {
    pub(super) fn new(alone: bool) -> Uart {
        Uart {
            line: Line::new(4, alone),
            // 8.0, table II: what master reset leaves.
            ier: 0,
            lcr: 0,
            mcr: 0,
            fcr: 0,
            held: 0,
            overrun: false,
            empty: false,
            timeout: false,
            changes: 0,
            // The board's own: 9600 baud and 0.
            divisor: 12,
            scr: 0,
            received: [0; 16],
            since: 0,
        }
    }

    fn is_fifo(&self) -> bool {
        self.fcr & 1 != 0
    }

    fn is_looped(&self) -> bool {
        self.mcr & 0x10 != 0
    }

    fn room(&self) -> usize {
        let all = if self.is_fifo() { 16 } else { 1 };
        all - self.held
    }

    /// Four characters in nanoseconds (8.11): start bit, data, parity and stop bits (8.1), each 16 times
    /// the divisor of the quartz's periods (8.3).
    fn patience(&self) -> Nanos {
        let data = 5 + u64::from(self.lcr & 3);
        let parity = u64::from(self.lcr & 8 != 0);
        // In halves: a second stop bit, of which 5 data bits have half a one.
        let stop = match (self.lcr & 4 != 0, data) {
            (false, _) => 2,
            (true, 5) => 3,
            (true, _) => 4,
        };
        let halves = 2 * (1 + data + parity) + stop;
        // A divisor of 0 is not recommended, and here is 1.
        4 * halves * 16 * self.divisor.max(1) * 1_000_000_000 / (2 * QUARTZ)
    }

    fn pass(&mut self, now: Nanos) {
        let waits = self.is_fifo() && self.held > 0 && !self.timeout;
        if waits && now - self.since >= self.patience() {
            self.timeout = true;
            self.line.late = true;
        }
    }

    fn receive(&mut self, now: Nanos, byte: u8) {
        // 8.4, bit 1: without FIFOs the character that was not read is destroyed, with them the new one.
        if self.room() == 0 {
            self.overrun = true;
            if !self.is_fifo() {
                self.received[0] = byte;
            }
            return;
        }
        self.received[self.held] = byte;
        self.held += 1;
        self.since = now;
    }

    /// Modem inputs in MSR's upper half; looped back (8.8, bit 4) RTS, DTR, OUT 1 and OUT 2 of MCR in
    /// the places of CTS, DSR, RI and DCD.
    fn modem(&self) -> u8 {
        let bit = |from: u8, to: u8| (self.mcr >> from & 1) << to;
        if self.is_looped() { bit(1, 4) | bit(0, 5) | bit(2, 6) | bit(3, 7) } else { MODEM }
    }

    /// IIR (8.6, table IV).
    fn identification(&self) -> u8 {
        let trigger = match self.fcr >> 6 {
            _ if !self.is_fifo() => 1,
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        };
        let enabled = |bit: u8| self.ier >> bit & 1 != 0;
        let cause = if enabled(2) && self.overrun {
            0b0110
        } else if enabled(0) && self.held >= trigger {
            0b0100
        } else if enabled(0) && self.timeout {
            0b1100
        } else if enabled(1) && self.empty {
            0b0010
        } else if enabled(3) && self.changes != 0 {
            0b0000
        } else {
            0b0001
        };
        cause | if self.is_fifo() { 0xc0 } else { 0 }
    }

    fn read(&mut self, now: Nanos, register: u64, got: Option<u8>) -> Result<(), String> {
        match (register, self.lcr & 0x80 != 0) {
            (0, true) => same("DLL", got, self.divisor as u8),
            (1, true) => same("DLM", got, (self.divisor >> 8) as u8),
            // Of nothing that was received nothing is said.
            (0, false) if self.held == 0 => Ok(()),
            (0, false) => {
                let first = self.received[0];
                self.received.copy_within(1.., 0);
                self.held -= 1;
                (self.timeout, self.since) = (false, now);
                same("RBR", got, first)
            }
            (1, false) => same("IER", got, self.ier),
            (2, _) => {
                let expected = self.identification();
                // To read what it says of THRE resets that.
                self.empty &= expected & 0xf != 0b0010;
                same("IIR", got, expected)
            }
            (3, _) => same("LCR", got, self.lcr),
            (4, _) => same("MCR", got, self.mcr),
            (5, _) => {
                let overrun = std::mem::take(&mut self.overrun);
                same("LSR", got, 0x60 | u8::from(overrun) << 1 | u8::from(self.held > 0))
            }
            (6, _) => same("MSR", got, self.modem() | std::mem::take(&mut self.changes)),
            _ => same("SCR", got, self.scr),
        }
    }

    /// A character that leaves the machine.
    fn write(&mut self, now: Nanos, register: u64, value: u8) -> Option<u8> {
        match (register, self.lcr & 0x80 != 0) {
            (0, true) => self.divisor = self.divisor & 0xff00 | u64::from(value),
            (1, true) => self.divisor = self.divisor & 0xff | u64::from(value) << 8,
            (0, false) => {
                self.empty = true;
                if self.is_looped() {
                    self.receive(now, value);
                } else if self.lcr & 0x40 == 0 {
                    return Some(value);
                }
                // Else SOUT is held in the break (8.1, bit 6).
            }
            (1, false) => {
                // THR is empty: to enable its interrupt is to have it (8.7, bit 1).
                self.empty |= value & !self.ier & 2 != 0;
                self.ier = value & 0x0f;
            }
            (2, _) => {
                // 8.5: bit 0 must be 1 for the others to be programmed; a change of it clears the FIFOs.
                let enabled = value & 1 != 0;
                if enabled != self.is_fifo() || enabled && value & 2 != 0 {
                    (self.held, self.timeout) = (0, false);
                }
                self.fcr = if enabled { value } else { 0 };
            }
            (3, _) => self.lcr = value,
            (4, _) => {
                let before = self.modem();
                self.mcr = value & 0x1f;
                let changed = before ^ self.modem();
                // 8.9: RI tells of its end alone.
                self.changes |= (changed & (0xb0 | before & 0x40)) >> 4;
            }
            // LSR and MSR are for reading.
            (5 | 6, _) => {}
            _ => self.scr = value,
        }
        None
    }
}

impl Model for Uart {
    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let now = seen.now;
        self.line.hear(seen.outcome);
        self.pass(now);
        let mut left = seen.outcome.effects.iter().filter_map(|effect| match effect {
            Effect::Output { device, byte } if device == "com1" => Some(*byte),
            _ => None,
        });
        let mut called = seen.is_told();
        for (register, byte) in seen.bytes(0x3f8, 8) {
            called = true;
            match byte {
                Byte::Read(got) => self.read(now, register, got)?,
                Byte::Write(value) => {
                    if let Some(byte) = self.write(now, register, value)
                        && left.next() != Some(byte)
                    {
                        return Err(format!("{byte:#x} is to be sent"));
                    }
                }
            }
            // Characters may be shorter now.
            self.pass(now);
        }
        if let Some(byte) = left.next() {
            return Err(format!("{byte:#x} is sent, which nobody wrote"));
        }
        if let Some((bytes, taken)) = seen.input("com1") {
            // Looped back, SIN is disconnected (8.8, bit 4).
            let room = if self.is_looped() { 0 } else { self.room() };
            let expected = bytes.len().min(room);
            bytes[..expected].iter().for_each(|&byte| self.receive(now, byte));
            if taken != Some(expected as u64) {
                return Err(format!("{expected} characters are to be received"));
            }
            called = true;
        }
        if *seen.op == Op::Reset {
            let line = self.line;
            *self = Uart { line, ..Uart::new(line.alone) };
        }
        self.line.late &= !seen.is_told();
        // A PC has a gate on the line that OUT 2 opens; looped back, that output is off (8.8, bit 4).
        let high = self.mcr & 0x18 == 8 && self.identification() & 1 == 0;
        if called { self.line.must(Some(high)) } else { Ok(()) }
    }
}
