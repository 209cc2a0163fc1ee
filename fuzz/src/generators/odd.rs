//! Accesses that are not drawn as one of a register: the last one again, over an edge, anywhere.

use vmm::access::{Access, Dir, Size, Space};

use super::Generator;

impl Generator<'_, '_, '_> {
    /// The last access, once more or the other way.
    pub(super) fn again(&mut self) {
        let Access { space, addr, size, dir } = self.last;
        let access = match (self.byte() % 4, dir) {
            (0 | 1, _) => self.last,
            (2, Dir::Read) | (3, Dir::Write(_)) => self.make(space, addr, size, true),
            (_, _) => Access::read(space, addr, size),
        };
        self.access(access);
    }

    /// An access over an edge of a region.
    pub(super) fn edge(&mut self) {
        let Some(m) = self.mapping() else { return self.nowhere() };
        let sizes = if m.region.space == Space::Port { 3 } else { 4 };
        let size = Size::ALL[usize::from(self.byte()) % sizes];
        let edge = if self.byte() & 1 == 0 { m.base } else { m.base + m.region.len };
        let addr = edge.wrapping_sub(self.below(size.bytes() + 1));
        let write = self.byte() & 1 == 1;
        let access = self.make(m.region.space, addr, size, write);
        self.access(access);
    }

    /// An access anywhere.
    pub(super) fn nowhere(&mut self) {
        let write = self.byte() & 1 == 1;
        let access = if self.byte() & 1 == 0 {
            let addr = self.word();
            let size = self.pick([Size::B1, Size::B2, Size::B4]);
            self.make(Space::Port, addr, size, write)
        } else {
            let (addr, size) = (self.place(), self.pick(Size::ALL));
            self.make(Space::Mmio, addr, size, write)
        };
        self.access(access);
    }
}
