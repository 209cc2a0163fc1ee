//! Values, addresses, and what lies in memory.

use vmm::access::Size;
use vmm::script::Op;

use super::Generator;
use super::tables::{EDGES, PLACES, RAM_PLACES};
use super::values::CHAINS;

impl Generator<'_, '_, '_> {
    /// A value for a field or register of this width, not cut to it.
    pub(super) fn value(&mut self, size: Size) -> u64 {
        let bits = size.bytes() as u8 * 8;
        let byte = self.byte();
        // What was just put into memory is there for a device to find.
        if self.filled && byte >= 0x80 {
            self.filled = false;
            let place = self.places[0];
            return match byte % 4 {
                0 => (place as u32).swap_bytes().into(),
                1 => place.swap_bytes(),
                _ => place,
            };
        }
        match byte % 9 {
            0 => self.byte().into(),
            1 => match (self.byte(), self.numbers) {
                (byte @ 0x80.., &[_, ..]) => self.numbers[usize::from(byte) % self.numbers.len()],
                (byte, _) => EDGES[usize::from(byte) % EDGES.len()],
            },
            2 => 1 << (self.byte() % bits),
            3 => !(1 << (self.byte() % bits)),
            4 => self.pick(self.values),
            5 => self.pick(self.values) ^ 1 << (self.byte() % bits),
            6 => self.place(),
            // As a device reads it that takes the other byte order.
            7 if self.byte() & 1 == 0 => (self.place() as u32).swap_bytes().into(),
            7 => self.place().swap_bytes(),
            _ => self.number::<8>(),
        }
    }

    /// An address in memory, or beside it.
    pub(super) fn place(&mut self) -> u64 {
        match self.byte() % 4 {
            0 | 1 => self.pick(self.places),
            2 => self.pick(PLACES),
            _ => self.pick(PLACES).wrapping_add(self.byte().into()),
        }
    }

    /// Memory with a structure in it: fields of various widths, in either byte order.
    pub(super) fn ram(&mut self) {
        // Mostly where there is memory.
        let addr = match self.byte() {
            0..0xe0 => PLACES[usize::from(self.byte()) % RAM_PLACES],
            _ => self.place(),
        };
        let mut bytes = Vec::new();
        for _ in 0..1 + self.byte() % 8 {
            let form = self.byte();
            let size = Size::ALL[usize::from(form) % 4];
            let value = self.value(size);
            let size = size.bytes() as usize;
            match form & 4 {
                0 => bytes.extend_from_slice(&value.to_le_bytes()[..size]),
                _ => bytes.extend_from_slice(&value.to_be_bytes()[8 - size..]),
            }
        }
        let after = if self.byte() > 0xe0 { 1 + u32::from(self.byte() % 4) } else { 0 };
        self.places.rotate_right(1);
        self.places[0] = addr;
        self.filled = true;
        self.play(Op::Ram { addr, bytes, after });
    }

    /// Pages of tables, each of whose entries leads to the next page: what an IOMMU walks. Of the first
    /// tables entries have 16 bytes (a root and a context, VT-d specification, chapter 9), of the others
    /// 8. The upper half of a root is 0. Rarely one table is wrong. Mostly the IOMMU is then told where they
    /// begin.
    pub(super) fn chain(&mut self) {
        let base: u64 = self.pick(CHAINS);
        let levels = self.pick([6u64, 5, 4, 3, 2, 7]);
        let wide = self.pick([2u64, 2, 2, 0, 1, 3]);
        // Of a context: the address width, and a domain.
        let second = u64::from(self.pick([2u8, 1, 3, 0, 2, 4, 6, 7])) | u64::from(self.byte()) << 8;
        let wrong = (self.byte(), self.byte(), self.byte());
        for level in 0..levels {
            let at = base + level * 0x1000;
            let mut entry = (at + 0x1000) | if level < wide { 1 } else { 3 };
            if wrong.0 >= 0xc0 && u64::from(wrong.1) % levels == level {
                entry ^= 1 << (wrong.2 % 64);
            }
            let odd = match level + 1 {
                n if n < wide => 0,
                n if n == wide => second,
                _ => entry,
            };
            let bytes = [entry, odd].map(u64::to_le_bytes).as_flattened().repeat(256);
            self.play(Op::Ram { addr: at, bytes, after: 0 });
        }
        self.places.rotate_right(1);
        self.places[0] = base;
        self.filled = true;
        if self.byte() < 0xc0 {
            self.translate(base);
        }
    }
}
