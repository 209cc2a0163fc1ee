//! Several writes in a row, as a driver makes them; and boards that do not begin as they are switched on.

use vmm::access::{Access, Size, Space};
use vmm::bus::Mapping;
use vmm::chips::pci::DATA_PORT;
use vmm::chips::pci::vtd::reg as vtd;
use vmm::script::Op;
use vmm::script::replay::Player;

use super::tables::{EDGES, PLACES, RAM_PLACES};
use super::values::{self, Tell};
use super::{Generated, Generator, Room, is_data};
use crate::models::Models;
use crate::{Board, registers};

/// The most writes in a row.
const MOST: u64 = 8;

/// The script that `bytes` describe, on a board that took up a state: of that models know nothing.
pub fn go_on(bytes: &[u8], board: &Board<'_>, player: &mut Player<'_>) -> Generated {
    let mut room = Room::default();
    let mut generator = Generator::new(bytes, board, player, &mut room);
    generator.models = Models::none();
    generator.played(&mut room)
}

impl Generator<'_, '_, '_> {
    /// A word that matters, byte by byte, to where the last access went.
    pub(super) fn burst(&mut self) {
        let Access { space, addr, .. } = self.last;
        let which = usize::from(self.byte());
        let words = self.words;
        let Some(word) = words.get(which % words.len().max(1)) else { return self.again() };
        let cut = match self.byte() {
            0..0xc0 => word.len(),
            byte => usize::from(byte) % (word.len() + 1),
        };
        for &byte in &word[..cut] {
            self.play(Op::io(Access::write(space, addr, Size::B1, byte.into())));
        }
    }

    /// A dword of a function's configuration space, mostly of the header or of what comes next: the function's
    /// number, and where the dword is.
    pub(super) fn dword(&mut self) -> (u8, u8) {
        let (slot, offset) = (self.byte(), self.byte());
        let n = self.functions.len();
        let slot = match self.function.filter(|_| slot < 0xc0) {
            Some(function) => function.number(),
            None if n > 0 && slot < 0xf8 => self.functions[usize::from(slot) % n].number(),
            // Where there is none.
            None => slot,
        };
        let offset = match offset {
            // The command register: without it a function does little.
            0..0x40 => 4,
            0x40..0xe0 => offset % 0x60,
            // The capability for messages.
            0xe0..0xf0 => 0x40,
            _ => offset,
        };
        (slot, offset & !3)
    }

    /// Selects it.
    pub(super) fn select(&mut self, slot: u8, offset: u8) {
        let address = 1 << 31 | u64::from(slot) << 8 | u64::from(offset);
        self.access(Access::write(Space::Port, DATA_PORT - 4, Size::B4, address));
    }

    /// Registers that lie in a row are written one after the other, mostly upward: what says to begin is the
    /// last of them, or the first. As a driver does, a PCI function is mostly enabled before, and time goes to
    /// the next deadline after.
    pub(super) fn set_up(&mut self) {
        let Some(m) = self.mapping() else { return self.nowhere() };
        let how = self.byte();
        let down = how >= 0xc0;
        if is_data(&m) && !self.functions.is_empty() {
            let (slot, first) = self.dword();
            // Not many: the base addresses come after the first few.
            for n in 0..1 + how % 4 {
                let by = 4 * n;
                let offset = if down { first.wrapping_sub(by) } else { first.wrapping_add(by) };
                self.select(slot, offset);
                let value = self.brief(values::of(values::CONFIG, offset.into()));
                let value = value & Size::B4.mask();
                self.access(Access::write(Space::Port, DATA_PORT, Size::B4, value));
            }
            return;
        }
        let machine = self.player.machine();
        let name = machine.devices().nth(m.device.into());
        let own = machine.pci_functions().find(|function| Some(function.1) == name);
        let around = self.byte();
        if let (Some((function, _)), 0..0xc0) = (own, around) {
            self.select(function.number(), 4);
            let enabled = values::of(values::CONFIG, 4)[0];
            self.access(Access::write(Space::Port, DATA_PORT, Size::B4, enabled));
        }
        let size = self.size(&m);
        if let (0x40..0x80, [_, ..]) = (how, values::recipes(m.region.name)) {
            self.recipe(&m);
            return self.settle(around);
        }
        let many = 2 + u64::from(how) % (MOST - 1);
        let (first, many) = match how {
            0..0x40 => (self.offset(&m), many),
            _ => self.block(&m, size).unwrap_or((0, many)),
        };
        let first = first - first % size.bytes();
        for n in 0..many {
            let by = n * size.bytes();
            let at = if down { (many - 1) * size.bytes() - by } else { by };
            let Some(at) = first.checked_add(at).filter(|&at| at < m.region.len) else { continue };
            let (own, up) = values::of_access(m.region.name, at, size);
            let value = self.brief(own) << up & size.mask();
            let addr = m.base + at;
            let addr = if m.region.space == Space::Port { addr & 0xffff } else { addr };
            self.access(Access::write(m.region.space, addr, size, value));
        }
        self.settle(around);
    }

    /// What was begun mostly comes to its end.
    fn settle(&mut self, around: u8) {
        if around % 4 != 3 {
            self.at_deadline(0);
            self.play(Op::Timer);
        }
    }

    /// What a driver writes, but for some value that is another.
    fn recipe(&mut self, m: &Mapping) {
        let all = values::recipes(m.region.name);
        let which = usize::from(self.byte()) % all.len();
        for &(register, size, tell) in all[which] {
            let own = values::of(m.region.name, register);
            let value = match (tell, self.byte()) {
                (Tell::Value(value), 0..0xe0) => value,
                // Mostly where memory was filled last.
                (Tell::Place(bits), 0..0x80) => self.places[0] | bits,
                (Tell::Place(bits), byte @ 0x80..0xe0) => {
                    PLACES[usize::from(byte) % RAM_PLACES] | bits
                }
                (Tell::Bytes, byte @ 0..0xe0) if !own.is_empty() => {
                    own[usize::from(byte) % own.len()]
                }
                (_, byte) => EDGES[usize::from(byte) % EDGES.len()],
            };
            let addr = m.base + register;
            self.access(Access::write(m.region.space, addr, size, value & size.mask()));
        }
    }

    /// Has the IOMMU, if there is one, walk tables from there: as a driver does it (VT-d, 10.4.4 and 10.4.6).
    pub(super) fn translate(&mut self, root: u64) {
        let Some(base) = self.base_of(values::IOMMU) else { return };
        let write = |at, size, value| Access::write(Space::Mmio, base + at, size, value);
        self.access(write(vtd::ROOT, Size::B8, root));
        self.access(write(vtd::COMMAND, Size::B4, values::TRANSLATION));
    }

    /// Where a region of this name is, if there is one.
    pub(super) fn base_of(&self, region: &str) -> Option<u64> {
        self.mappings.iter().find(|m| m.region.name == region).map(|m| m.base)
    }

    /// Registers of a large region between which there is no gap, mostly of many: where they begin, and how
    /// many accesses of this size they take.
    fn block(&mut self, m: &Mapping, size: Size) -> Option<(u64, u64)> {
        let registers = self.registers.clone();
        let all = registers.of(m);
        let which = self.below(all.len().max(1) as u64) as usize;
        let one = *all.get(which)?;
        let mut blocks = all.chunk_by(|one, next| one + registers::STRIDE as u64 == *next);
        let block = blocks.find(|block| block.contains(&one))?;
        let bytes = block.len() as u64 * registers::STRIDE as u64;
        Some((block[0], bytes.div_ceil(size.bytes()).min(MOST)))
    }

    /// A value that one byte chooses, so that a record has room for many; `own` are those of the register.
    pub(super) fn brief(&mut self, own: &[u64]) -> u64 {
        let byte = self.byte();
        let n = usize::from(byte >> 3);
        match byte % 8 {
            1..=6 if !own.is_empty() => own[n % own.len()],
            0 => n as u64,
            1..=3 if !self.numbers.is_empty() => self.numbers[n % self.numbers.len()],
            1..=4 => EDGES[n % EDGES.len()],
            5 => 1 << n,
            6 if n & 1 == 0 => PLACES[n / 2 % RAM_PLACES],
            6 => self.places[n / 2 % self.places.len()],
            _ => self.values[n % self.values.len()],
        }
    }
}
