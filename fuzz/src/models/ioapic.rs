//! An I/O APIC, after Intel's 82093AA data sheet (order number 290566), section 3, and its messages,
//! after the SDM, volume 3, 12.11.
//!
//! What is the board's own: registers take 4 bytes and nothing else, an entry has 16 bits of destination,
//! a message has arrived at once, and the bit of the polarity changes nothing.

use vmm::access::{Access, Dir, Space};
use vmm::exit::Exit;
use vmm::script::{Effect, Op};

use super::{Model, Seen};

const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;
/// Vector, delivery and destination mode, polarity, trigger mode, mask; destination (3.2.4).
const WRITABLE: u64 = 0xffff_0000_0001_afff;

/// Bit 14 of a message's dword means nothing without bit 15.
const ASSERT: u32 = 1 << 14;

pub(super) struct IoApic {
    select: u32,
    id: u32,
    entries: [u64; 24],
    /// Which lines are asserted.
    lines: u32,
    /// Nobody else sends messages.
    alone: bool,
}

/// What was sent during an operation, as far as it was not looked at.
struct Sent<'a>(std::iter::Peekable<std::slice::Iter<'a, Effect>>);

impl Sent<'_> {
    /// The next that happened but a message's end being waited for.
    fn next(&mut self) -> Option<&Effect> {
        self.0.find(|effect| matches!(effect, Effect::Line { .. } | Effect::Message { .. }))
    }
}

impl IoApic {
    pub(super) fn new(alone: bool) -> IoApic {
        IoApic { select: 0, id: 0, entries: [MASKED; 24], lines: 0, alone }
    }

    /// The message of an entry was sent next.
    fn send(&self, pin: usize, sent: &mut Sent<'_>) -> Result<(), String> {
        let entry = self.entries[pin];
        let logical = entry >> 11 & 1;
        let to = 0xfee0_0000 | entry >> 56 << 12 | (entry >> 48 & 0xff) << 4 | logical << 2;
        let level = entry & LEVEL != 0;
        let dword = (entry & 0x7ff) as u32 | if level { 3 << 14 } else { 0 };
        match sent.next() {
            Some(Effect::Message { address, data })
                if *address == to && (data ^ dword) & !(if level { 0 } else { ASSERT }) == 0 =>
            {
                Ok(())
            }
            other => Err(format!("pin {pin} is to send {dword:#x} to {to:#x}, not {other:?}")),
        }
    }

    /// A level that is asserted is sent once, until its end.
    fn deliver(&mut self, pin: usize, sent: &mut Sent<'_>) -> Result<(), String> {
        let is_quiet = self.entries[pin] & (LEVEL | MASKED | REMOTE_IRR) == LEVEL;
        if self.lines >> pin & 1 == 1 && is_quiet {
            self.entries[pin] |= REMOTE_IRR;
            return self.send(pin, sent);
        }
        Ok(())
    }

    /// A line changes: an edge is sent at once or lost, a level is sent when it may be.
    fn line(&mut self, pin: usize, level: bool, sent: &mut Sent<'_>) -> Result<(), String> {
        let was = self.lines >> pin & 1 == 1;
        self.lines = self.lines & !(1 << pin) | u32::from(level) << pin;
        match self.entries[pin] & (LEVEL | MASKED) {
            0 if level && !was => self.send(pin, sent),
            LEVEL => self.deliver(pin, sent),
            _ => Ok(()),
        }
    }

    fn register(&self) -> u32 {
        match self.select {
            // 3.2.1, 3.2.3: the arbitration identifier is loaded with the identifier.
            0 | 2 => self.id << 24,
            // 3.2.2: 24 entries, version 0x11.
            1 => 23 << 16 | 0x11,
            entry @ 0x10..0x40 => {
                (self.entries[entry as usize / 2 - 8] >> (32 * (entry & 1))) as u32
            }
            _ => 0,
        }
    }

    fn write(&mut self, value: u32, sent: &mut Sent<'_>) -> Result<(), String> {
        match self.select {
            0 => self.id = value >> 24 & 0xf,
            entry @ 0x10..0x40 => {
                let pin = entry as usize / 2 - 8;
                let shift = 32 * (entry & 1);
                let here = &mut self.entries[pin];
                let new = *here & !(0xffff_ffff << shift) | u64::from(value) << shift;
                // The remote IRR is of levels alone.
                let irr = if new & LEVEL != 0 { *here & REMOTE_IRR } else { 0 };
                *here = new & WRITABLE | irr;
                return self.deliver(pin, sent);
            }
            _ => {}
        }
        Ok(())
    }
}

impl IoApic {
    /// An access to the registers, by dwords: of 8 bytes the low one first.
    fn access(
        &mut self,
        seen: &Seen<'_>,
        access: &Access,
        sent: &mut Sent<'_>,
    ) -> Result<(), String> {
        let Access { addr, size, dir, .. } = *access;
        let start = addr.wrapping_sub(0xfec0_0000);
        let dwords = if start < 0x20 { size.bytes() / 4 } else { 0 };
        for dword in 0..dwords {
            let offset = start + 4 * dword;
            let part = |value: u64| (value >> (32 * dword)) as u32;
            match (dir, offset) {
                (Dir::Write(value), 0) => self.select = part(value) & 0xff,
                (Dir::Write(value), 0x10) => self.write(part(value), sent)?,
                (Dir::Read, 0 | 0x10) => {
                    let expected = if offset == 0 { self.select } else { self.register() };
                    if let Some(got) = seen.value.map(part).filter(|&got| got != expected) {
                        let which = self.select;
                        return Err(format!("register {which:#x} is {expected:#x}, not {got:#x}"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Model for IoApic {
    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let mut sent = Sent(seen.outcome.effects.iter().peekable());
        match seen.op {
            Op::Exit { exit: Exit::Io(access), .. } if access.space == Space::Mmio => {
                self.access(seen, access, &mut sent)?;
            }
            Op::Exit { exit: Exit::IoapicEoi(vector), .. } => {
                for pin in 0..24 {
                    let entry = self.entries[pin];
                    if entry & REMOTE_IRR != 0 && entry as u8 == *vector {
                        self.entries[pin] &= !REMOTE_IRR;
                        self.deliver(pin, &mut sent)?;
                    }
                }
            }
            // The lines are what drives them.
            Op::Reset => *self = IoApic { lines: self.lines, ..IoApic::new(self.alone) },
            _ => {}
        }
        while let Some(effect) = sent.next() {
            match *effect {
                Effect::Line { gsi, level } if gsi < 24 => {
                    self.line(gsi as usize, level, &mut sent)?;
                }
                Effect::Message { address, data } if self.alone => {
                    return Err(format!("it sends {data:#x} to {address:#x}, and is not to"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
