//! The edu device, after QEMU's description of it (docs/specs/edu.rst), behind a PCI function's command
//! register (PCI Local Bus Specification 3.0, 6.2.2).
//!
//! What is the board's own: a factorial is there at once; the data of a transfer moves when it is started,
//! all of it or nothing, and its registers are locked for 0.1 ms.
//!
//! What is not predicted: whether a function that may send messages drives its line.

use vmm::access::{Access, Dir, Size, Space};
use vmm::device::Nanos;
use vmm::machine::Machine;
use vmm::script::Op;
use vmm::script::replay::Touch;

use super::{Byte, Line, Model, Seen};

/// Its number on the bus of its board, and the GSI that its pin is routed to.
const SLOT: u64 = 3;
const GSI: u32 = 11;
/// The engine's buffer, as it sees it.
const BUFFER: u64 = 0x4_0000;
const BUSY: Nanos = 100_000;

/// What the DMA registers hold.
#[derive(Clone, Copy, Debug, Default)]
struct Dma {
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
}

pub(super) struct Edu {
    line: Line,
    /// Where it is; asked again when that may have changed.
    pub(super) base: Option<u64>,
    pub(super) is_placed: bool,
    /// The configuration address, and the command register.
    address: u64,
    pub(super) command: u8,
    intx_disabled: bool,
    /// Capabilities were written: messages may have been switched on.
    has_messages: bool,
    alive: u32,
    factorial: u32,
    status: u32,
    causes: u32,
    dma: Dma,
    done: Nanos,
    /// Up to the last byte that was ever written.
    buffer: Vec<u8>,
    is_known: bool,
    /// Where a transfer goes to in memory: first address, and length.
    offered: (u64, u64),
}

impl Edu {
    pub(super) fn new() -> Edu {
        Edu {
            line: Line::new(GSI, true),
            base: None,
            is_placed: false,
            address: 0,
            command: 0,
            intx_disabled: false,
            has_messages: false,
            alive: 0,
            factorial: 0,
            status: 0,
            causes: 0,
            dma: Dma::default(),
            done: 0,
            buffer: Vec::new(),
            is_known: true,
            offered: (0, 0),
        }
    }

    /// An access to it, by offset.
    fn mine(&mut self, op: &Op, machine: &Machine) -> Option<(u64, Size, Dir)> {
        let Op::Exit { exit: vmm::exit::Exit::Io(access), .. } = op else { return None };
        let Access { space: Space::Mmio, addr, size, dir } = *access else { return None };
        if !self.is_placed {
            let mappings = machine.pci_mappings();
            self.base = mappings.iter().find(|m| m.region.name == "edu").map(|m| m.base);
            self.is_placed = true;
        }
        let offset = addr.wrapping_sub(self.base?);
        (offset < 1 << 20).then_some((offset, size, dir))
    }

    /// What a DMA register is after a write of a half or of the whole.
    fn with(&self, offset: u64, size: Size, value: u64) -> Option<Dma> {
        let mut dma = self.dma;
        let register = match offset & !4 {
            0x80 => &mut dma.source,
            0x88 => &mut dma.destination,
            0x90 => &mut dma.count,
            0x98 => &mut dma.command,
            _ => return None,
        };
        *register = match (size, offset & 4) {
            (Size::B8, 0) => value,
            (Size::B4, half) => *register & !(0xffff_ffff << (half * 8)) | value << (half * 8),
            _ => return None,
        };
        dma.command &= 7;
        Some(dma)
    }

    /// A transfer: the part of the buffer, and the place in memory, of 28 bits. None if it moves nothing.
    fn transfer(&self, dma: &Dma, machine: &Machine) -> Option<(std::ops::Range<usize>, u64)> {
        let (inside, outside) = match dma.command & 2 {
            0 => (dma.destination, dma.source),
            _ => (dma.source, dma.destination),
        };
        let outside = outside & 0xfff_ffff;
        let start = inside.checked_sub(BUFFER)?;
        let end = start.checked_add(dma.count).filter(|&end| end <= 4096)?;
        let moves = self.command & 4 != 0 && machine.ram().contains(outside, dma.count);
        moves.then_some((start as usize..end as usize, outside))
    }

    fn start(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.done = seen.now.saturating_add(BUSY);
        let Some((range, at)) = self.transfer(&self.dma, seen.machine) else { return Ok(()) };
        if self.dma.command & 2 == 0 {
            self.is_known &= !seen.is_racing && !self.has_messages;
            self.buffer.resize(self.buffer.len().max(range.end), 0);
            // It is RAM.
            let _ = seen.machine.ram().peek(at, &mut self.buffer[range]);
            return Ok(());
        }
        self.offered = (at, range.len() as u64);
        let mut got = [0; 4096];
        let got = &mut got[..range.len()];
        let _ = seen.machine.ram().peek(at, got);
        let inside = |place| self.buffer.get(place).copied().unwrap_or(0);
        let wrong = got.iter().zip(range).position(|(got, place)| *got != inside(place));
        // A message that leaves in the same operation may lie over it.
        match wrong.filter(|_| self.is_known && !seen.is_racing && !self.has_messages) {
            Some(byte) => {
                Err(format!("byte {byte} of the transfer to {at:#x} is {:#x}", got[byte]))
            }
            None => Ok(()),
        }
    }

    fn read(&self, offset: u64, size: Size) -> Option<u64> {
        let Dma { source, destination, count, command } = self.dma;
        let wide = match offset & !4 {
            0x80 => Some(source),
            0x88 => Some(destination),
            0x90 => Some(count),
            0x98 => Some(command),
            _ => None,
        };
        match (wide, size, offset) {
            (Some(value), Size::B8, _) if offset & 4 == 0 => Some(value),
            (Some(value), Size::B4, _) => Some(value >> ((offset & 4) * 8) & 0xffff_ffff),
            (_, Size::B4, 0) => Some(0x0100_00ed),
            (_, Size::B4, 4) => Some(self.alive.into()),
            (_, Size::B4, 8) => Some(self.factorial.into()),
            (_, Size::B4, 0x20) => Some(self.status.into()),
            (_, Size::B4, 0x24) => Some(self.causes.into()),
            _ => None,
        }
    }

    fn write(
        &mut self,
        offset: u64,
        size: Size,
        value: u64,
        seen: &Seen<'_>,
    ) -> Result<(), String> {
        let word = value as u32;
        match (offset, size) {
            (4, Size::B4) => self.alive = !word,
            (8, Size::B4) => {
                // Of 32 bits, and so 0 from 34 on.
                self.factorial = (1..=word.min(34)).fold(1, u32::wrapping_mul);
                self.causes |= self.status >> 7 & 1;
            }
            (0x20, Size::B4) => self.status = word & 0x80,
            (0x60, Size::B4) => self.causes |= word,
            (0x64, Size::B4) => self.causes &= !word,
            _ => {
                let free = self.dma.command & 1 == 0;
                if let Some(dma) = self.with(offset, size, value).filter(|_| free) {
                    self.dma = dma;
                    if self.dma.command & 1 != 0 {
                        return self.start(seen);
                    }
                }
            }
        }
        Ok(())
    }

    /// Configuration mechanism 1: the address register takes dwords, the data register anything.
    fn configure(&mut self, seen: &Seen<'_>) -> bool {
        if let Some(Access { space: Space::Port, addr: 0xcf8, size: Size::B4, dir }) = seen.access
            && let Dir::Write(value) = dir
        {
            self.address = value;
        }
        let mut called = false;
        for (port, byte) in seen.bytes(0xcfc, 4) {
            let selected = self.address & 0x80ff_ff00 == 1 << 31 | SLOT << 11;
            if !selected {
                continue;
            }
            called = true;
            self.is_placed = false;
            match (self.address & 0xfc | port, byte) {
                (4, Byte::Write(value)) => self.command = value,
                (5, Byte::Write(value)) => self.intx_disabled = value & 4 != 0,
                (0x40.., Byte::Write(_)) => self.has_messages = true,
                _ => {}
            }
        }
        called
    }
}

impl Model for Edu {
    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.line.hear(seen.outcome);
        self.offered = (0, 0);
        if self.dma.command & 1 != 0 && seen.now >= self.done {
            self.dma.command &= !1;
            if self.dma.command & 4 != 0 {
                self.causes |= 0x100;
                self.line.late = true;
            }
        }
        let mut called = self.configure(seen) || seen.is_told();
        if let Some((offset, size, dir)) = self.mine(seen.op, seen.machine) {
            called = true;
            match dir {
                Dir::Write(value) => self.write(offset, size, value, seen)?,
                Dir::Read => {
                    if let (Some(is), Some(got)) = (self.read(offset, size), seen.value)
                        && is != got
                    {
                        return Err(format!("register {offset:#x} is {is:#x}, not {got:#x}"));
                    }
                }
            }
        }
        if *seen.op == Op::Reset {
            *self = Edu { line: self.line, ..Edu::new() };
        }
        self.line.late &= !seen.is_told();
        let level = match self.causes {
            0 => Some(false),
            _ if self.intx_disabled => Some(false),
            _ if self.has_messages => None,
            _ => Some(true),
        };
        if called { self.line.must(level) } else { Ok(()) }
    }
    fn offers(&self, touch: &Touch) -> bool {
        let (at, len) = self.offered;
        let inside = touch.addr >= at && touch.len <= len && touch.addr - at <= len - touch.len;
        // A message is a write to memory, too (PCI 3.0, 6.8), wherever the guest has it go.
        inside || self.has_messages
    }
}
