//! The edu device, after QEMU's description of it (docs/specs/edu.rst), behind a PCI function's command
//! register (PCI Local Bus Specification 3.0, 6.2.2) and, where there is one, behind an IOMMU.
//!
//! What is the board's own: a factorial is there at once; the data of a transfer moves when it is started,
//! all of it or nothing (behind an IOMMU page by page, up to one that is refused or no memory), and its
//! registers are locked for 0.1 ms. Where base addresses overlap, what is on a fixed place answers, and then the
//! function in the lowest slot.

mod dma;

use std::ops::Range;

use vmm::access::{Access, Dir, Size, Space};
use vmm::device::Nanos;
use vmm::machine::Machine;
use vmm::script::Op;
use vmm::script::replay::Touch;

use super::msi::Msi;
use super::vtd::Unit;
use super::{Byte, Line, Model, Seen};
use dma::Transfer;

/// The engine's buffer, as it sees it.
const BUFFER: u64 = 0x4_0000;
const BUSY: Nanos = 100_000;
/// Of its base address register.
const LEN: u64 = 1 << 20;

/// What the DMA registers hold.
#[derive(Clone, Copy, Debug, Default)]
struct Dma {
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
}

/// What an access has to do with it.
enum Met {
    /// A register, by offset.
    Register(u64, Size, Dir),
    /// It reaches into its registers.
    Edge,
}

pub(super) struct Edu {
    /// Its number on the bus, and as a requester.
    slot: u64,
    line: Line,
    unit: Option<Unit>,
    /// Where it is, and what lies before it there; asked again when that may have changed.
    pub(super) base: Option<u64>,
    pub(super) is_placed: bool,
    before: Vec<Range<u64>>,
    /// The configuration address, and the command register.
    address: u64,
    pub(super) command: u8,
    intx_disabled: bool,
    msi: Msi,
    /// Those that leave in this operation.
    messages: [Option<(u64, u32)>; 2],
    alive: u32,
    factorial: u32,
    status: u32,
    causes: u32,
    dma: Dma,
    done: Nanos,
    /// Up to the last byte that was ever written.
    buffer: Vec<u8>,
    is_known: bool,
    /// Where it goes is left open, and what came of it.
    is_lost: bool,
    transfer: Option<Transfer>,
    /// Where it may write to memory: first address, and length; anywhere, if that is left open.
    offered: [(u64, u64); 4],
    is_open: bool,
}

impl Edu {
    /// The one in a slot, whose pin is routed to a GSI that nobody else drives if it is `alone`.
    pub(super) fn new(slot: u64, gsi: u32, alone: bool, unit: Option<Unit>) -> Edu {
        Edu {
            slot,
            line: Line::new(gsi, alone),
            unit,
            base: None,
            is_placed: false,
            before: Vec::new(),
            address: 0,
            command: 0,
            intx_disabled: false,
            msi: Msi::default(),
            messages: [None; 2],
            alive: 0,
            factorial: 0,
            status: 0,
            causes: 0,
            dma: Dma::default(),
            done: 0,
            buffer: Vec::new(),
            is_known: true,
            is_lost: false,
            transfer: None,
            offered: [(0, 0); 4],
            is_open: false,
        }
    }

    /// As a requester: bus 0, device, function 0.
    fn requester(&self) -> u16 {
        (self.slot << 3) as u16
    }

    fn place(&mut self, machine: &Machine) {
        self.is_placed = true;
        self.before.clear();
        self.base = None;
        let fixed = machine.bus().mappings().copied();
        for mapping in fixed.chain(machine.pci_mappings()) {
            match mapping.region.space {
                Space::Mmio if mapping.region.name == "edu" => {
                    self.base = Some(mapping.base);
                    return;
                }
                Space::Mmio => self.before.push(mapping.base..mapping.base + mapping.region.len),
                Space::Port => {}
            }
        }
    }

    /// What an operation has to do with its registers.
    fn met(&mut self, op: &Op, machine: &Machine) -> Option<Met> {
        let Access { space: Space::Mmio, addr, size, dir } = super::access(op)? else {
            return None;
        };
        if !self.is_placed {
            self.place(machine);
        }
        let base = self.base?;
        let (offset, left) = (addr.wrapping_sub(base), base.wrapping_sub(addr));
        if offset >= LEN && left >= size.bytes() {
            return None;
        }
        let meets = |place: &&Range<u64>| {
            addr.wrapping_sub(place.start) < place.end - place.start
                || place.start.wrapping_sub(addr) < size.bytes()
        };
        match self.before.iter().find(meets) {
            Some(place) if place.contains(&addr) && place.end - addr >= size.bytes() => None,
            Some(_) => {
                self.is_lost = true;
                None
            }
            None if offset >= LEN || LEN - offset < size.bytes() => Some(Met::Edge),
            None => Some(Met::Register(offset, size, dir)),
        }
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

    /// Causes of an interrupt, which goes by message if the guest wants that.
    fn raise(&mut self, causes: u32) {
        self.causes |= causes;
        if self.causes != 0 {
            self.msi.request();
            self.send();
        }
    }

    fn send(&mut self) {
        if let Some(message) = self.msi.take(self.command & 4 != 0) {
            let place = usize::from(self.messages[0].is_some());
            self.messages[place] = Some(message);
        }
    }

    /// It is called: a transfer that is over ends.
    fn called(&mut self, now: Nanos) {
        if self.dma.command & 1 != 0 && now >= self.done {
            self.dma.command &= !1;
            if self.dma.command & 4 != 0 {
                self.raise(0x100);
            }
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
                if self.status & 0x80 != 0 {
                    self.raise(1);
                }
            }
            (0x20, Size::B4) => self.status = word & 0x80,
            (0x60, Size::B4) => self.raise(word),
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

    fn register(&mut self, seen: &Seen<'_>, met: Met) -> Result<(), String> {
        match met {
            _ if self.is_lost => {}
            Met::Register(offset, size, Dir::Write(value)) => {
                self.write(offset, size, value, seen)?;
            }
            Met::Register(offset, size, Dir::Read) => {
                if let (Some(is), Some(got)) = (self.read(offset, size), seen.value)
                    && is != got
                {
                    return Err(format!("register {offset:#x} is {is:#x}, not {got:#x}"));
                }
            }
            Met::Edge => {}
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
            // A function that lies over it may move, too.
            self.is_placed = false;
            let selected = self.address & 0x80ff_ff00 == 1 << 31 | self.slot << 11;
            if !selected {
                continue;
            }
            if !called {
                self.called(seen.now);
            }
            called = true;
            match (self.address & 0xfc | port, byte) {
                (4, Byte::Write(value)) => self.command = value,
                (5, Byte::Write(value)) => self.intx_disabled = value & 4 != 0,
                (offset, Byte::Write(value)) => self.msi.write(offset as u32, value),
                _ => {}
            }
            self.send();
        }
        called
    }
}

impl Model for Edu {
    fn before(&mut self, op: &Op, machine: &Machine) {
        self.transfer = None;
        let Some(Met::Register(offset, size, Dir::Write(value))) = self.met(op, machine) else {
            return;
        };
        let is_free = self.dma.command & 1 == 0 || machine.now() >= self.done;
        let starts = |dma: &Dma| is_free && dma.command & 1 != 0 && offset & !4 == 0x98;
        let dma = self.with(offset, size, value).filter(starts);
        self.transfer = dma.and_then(|dma| self.planned(&dma, machine));
    }

    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.line.hear(seen.outcome);
        (self.offered, self.is_open, self.messages) = ([(0, 0); 4], false, [None; 2]);
        let mut called = self.configure(seen);
        match self.met(seen.op, seen.machine) {
            _ if seen.is_told() => {
                self.called(seen.now);
                called = true;
            }
            None => {}
            Some(met) => {
                self.called(seen.now);
                called = true;
                self.register(seen, met)?;
            }
        }
        if *seen.op == Op::Reset {
            let (line, unit, messages) = (self.line, self.unit.take(), self.messages);
            let is_lost = false;
            let new = Edu::new(self.slot, line.gsi, line.alone, unit);
            *self = Edu { line, messages, is_lost, ..new };
        }
        if self.is_lost {
            self.lose();
            return Ok(());
        }
        self.arrive(seen)?;
        let level = self.causes != 0 && !self.intx_disabled && !self.msi.is_enabled;
        if called { self.line.must(Some(level)) } else { Ok(()) }
    }

    fn offers(&self, touch: &Touch) -> bool {
        let inside = |&(at, len): &(u64, u64)| {
            touch.addr >= at && touch.len <= len && touch.addr - at <= len - touch.len
        };
        self.is_open || self.offered.iter().any(inside)
    }
}
