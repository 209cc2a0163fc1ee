//! The I/O APIC: 24 interrupt lines in, messages to local APICs out.
//!
//! After Intel's 82093AA datasheet (order number 290566), section 3. What it lacks there and later I/O
//! APICs have is taken from them: the upper half of an entry is 16 bits of destination, as a remapping
//! unit's index needs (VT-d specification, 5.1.5.1).
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | register select, 8 bits |
//! | 0x10 | the register selected: identifier, version, arbitration, two for each redirection entry |
//!
//! Registers take 4 bytes. A line is asserted or it is not; the polarity bit is kept and changes nothing.
//! A message is on its way for no time, so the delivery status reads 0. An edge that is masked is lost.
//! The end of a level-triggered interrupt comes from the local APICs by its vector ([`Inputs::eoi`]).

use serde::{Deserialize, Serialize};

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Inputs, Region, StateError};
use crate::planted::{self, Flaw};
use crate::state::{decode, encode};

/// Where a PC's is.
pub const BASE: u64 = 0xfec0_0000;
/// How many lines it has.
pub const LINES: usize = 24;

const NAME: &str = "ioapic";
const REGIONS: &[Region] =
    &[Region { name: NAME, space: Space::Mmio, len: 0x20, widest: Size::B4 }];

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Registers: identifier, version, arbitration, the first redirection entry.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const REDIRECTION: u8 = 0x10;
/// Version 0x11, and the number of the last entry.
const VERSION_VALUE: u32 = 0x11 | (LINES as u32 - 1) << 16;

/// Bits of a redirection entry (3.2.4).
mod entry {
    pub const VECTOR: u64 = 0xff;
    pub const DELIVERY: u64 = 7 << 8;
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// What software writes: not the delivery status and the remote IRR.
    pub const WRITABLE: u64 = 0xffff_0000_0001_afff;
    /// Where the destination, or the index of a remapping entry, begins.
    pub const DESTINATION: u32 = 48;
}

/// A bit for each line.
const ALL: u32 = (1 << LINES) - 1;

/// The interrupt message of an entry.
fn message(entry: u64) -> (u64, u32) {
    let address = 0xfee0_0000
        | (entry >> entry::DESTINATION) << 4
        | if entry & entry::LOGICAL != 0 && !planted::has(Flaw::IoapicLogical) {
            1 << 2
        } else {
            0
        };
    // Trigger mode, and the level that a level-triggered message has (SDM volume 3, 12.11.2).
    let level = if entry & entry::LEVEL != 0 { 0b11 << 14 } else { 0 };
    (address, (entry & (entry::VECTOR | entry::DELIVERY)) as u32 | level)
}

/// The I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    select: u8,
    id: u8,
    /// Which lines are asserted.
    lines: u32,
    entries: [u64; LINES],
}

impl IoApic {
    /// The chip after power-on: every entry is masked.
    pub fn new() -> IoApic {
        IoApic { select: 0, id: 0, lines: 0, entries: [entry::MASKED; LINES] }
    }

    /// The entry and its half that a register is.
    fn half(register: u8) -> Option<(usize, u32)> {
        let half = usize::from(register.checked_sub(REDIRECTION)?);
        let lines = LINES + usize::from(planted::has(Flaw::IoapicLast));
        (half / 2 < lines).then_some((half / 2, if half % 2 == 0 { 0 } else { 32 }))
    }

    fn register(&self) -> u32 {
        match (self.select, IoApic::half(self.select)) {
            (_, Some((pin, shift))) => (self.entries[pin] >> shift) as u32,
            (ARBITRATION, _) if planted::has(Flaw::IoapicArbitration) => 0,
            // The arbitration identifier follows the identifier (3.2.3).
            (ID | ARBITRATION, _) => u32::from(self.id) << 24,
            (VERSION, _) => VERSION_VALUE,
            _ => 0,
        }
    }

    fn set_register(&mut self, env: &mut Env<'_>, value: u32) {
        if let Some((pin, shift)) = IoApic::half(self.select) {
            let old = self.entries[pin];
            let new = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
            let writable =
                if planted::has(Flaw::IoapicReserved) { u64::MAX } else { entry::WRITABLE };
            let mut new = new & writable | old & entry::REMOTE_IRR;
            if planted::has(Flaw::IoapicPolarity) {
                new &= !(1 << 13);
            }
            if new & entry::LEVEL == 0 {
                // The end of an edge is not waited for.
                new &= !entry::REMOTE_IRR;
            }
            self.entries[pin] = new;
            self.deliver_level(env, pin);
        } else if self.select == ID {
            self.id = (value >> 24) as u8 & 0xf;
        }
    }

    /// A level-triggered line that is asserted, and not being served, is delivered.
    fn deliver_level(&mut self, env: &mut Env<'_>, pin: usize) {
        let all = entry::LEVEL | entry::MASKED | entry::REMOTE_IRR;
        if self.lines >> pin & 1 == 1 && self.entries[pin] & all == entry::LEVEL {
            self.entries[pin] |= entry::REMOTE_IRR;
            self.send(env, pin);
        }
    }

    fn send(&self, env: &mut Env<'_>, pin: usize) {
        let (address, data) = message(self.entries[pin]);
        env.act(Action::Message { address, data });
    }
}

impl Default for IoApic {
    fn default() -> Self {
        IoApic::new()
    }
}

impl Device for IoApic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn regions(&self) -> &'static [Region] {
        REGIONS
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match (at.offset, size) {
            (SELECT, Size::B4) => Ok(self.select.into()),
            (WINDOW, Size::B4) => Ok(self.register().into()),
            (SELECT | WINDOW, _) => Err(IoError::Width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match (at.offset, size) {
            (SELECT, Size::B4) => self.select = value as u8,
            (WINDOW, Size::B4) => self.set_register(env, value as u32),
            (SELECT | WINDOW, _) => return Err(IoError::Width),
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }

    fn inputs(&mut self) -> Option<&mut dyn Inputs> {
        Some(self)
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        // The lines are what drives them.
        *self = IoApic { lines: self.lines, ..IoApic::new() };
    }

    fn save(&self) -> Vec<u8> {
        if planted::has(Flaw::IoapicIrr) {
            let entries = self.entries.map(|entry| entry & !entry::REMOTE_IRR);
            return encode(&IoApic { entries, ..self.clone() });
        }
        encode(self)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let new: IoApic = decode(NAME, state)?;
        let possible = |e: &u64| {
            let irr = e & entry::REMOTE_IRR != 0;
            e & !(entry::WRITABLE | entry::REMOTE_IRR) == 0 && (!irr || e & entry::LEVEL != 0)
        };
        if new.id > 0xf || new.lines & !ALL != 0 || !new.entries.iter().all(possible) {
            let what = "registers with bits that do not exist".to_owned();
            return Err(StateError { device: NAME, what });
        }
        *self = new;
        Ok(())
    }
}

impl Inputs for IoApic {
    fn pin(&mut self, env: &mut Env<'_>, pin: u32, level: bool) {
        let bit = 1u32.checked_shl(pin).unwrap_or(0) & ALL;
        let rises = level && self.lines & bit == 0 && bit != 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if rises {
            let pin = pin as usize;
            match self.entries[pin] & (entry::LEVEL | entry::MASKED) {
                0 => self.send(env, pin),
                _ => self.deliver_level(env, pin),
            }
        }
    }

    fn eoi(&mut self, env: &mut Env<'_>, pin: u32, vector: u8) {
        let pin = pin as usize;
        let served = u64::from(vector) | entry::REMOTE_IRR;
        let here = self.entries.get_mut(pin);
        if let Some(here) = here.filter(|e| **e & (entry::VECTOR | entry::REMOTE_IRR) == served) {
            *here &= !entry::REMOTE_IRR;
            self.deliver_level(env, pin);
        }
    }

    fn awaited(&self, pin: u32) -> Option<(u64, u32)> {
        let entry = *self.entries.get(pin as usize)?;
        let waits = entry & (entry::LEVEL | entry::MASKED) == entry::LEVEL
            || entry & entry::REMOTE_IRR != 0;
        waits.then(|| message(entry))
    }
}

#[cfg(test)]
#[path = "ioapic/tests.rs"]
mod tests;
