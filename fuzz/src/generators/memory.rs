//! Values, addresses, and what lies in memory.

use vmm::access::{Access, Size, Space};
use vmm::script::Op;

use super::Generator;
use super::tables::{EDGES, PLACES, RAM_PLACES};
use super::values::{CHAINS, ROWS, Rows, Tell};

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
    /// begin. Or, one time of four where a device finds such in memory: rows.
    pub(super) fn chain(&mut self) {
        let byte = self.byte();
        let base = CHAINS[usize::from(byte) % CHAINS.len()];
        if byte >= 0xc0 && self.rows(base) {
            return;
        }
        let levels = self.pick([6u64, 5, 6, 4, 5, 3, 2, 7]);
        let wide = self.pick([2u64, 2, 2, 0, 2, 1, 2, 3]);
        // Of a context: the address width, mostly that of so many tables, and a domain.
        let right = levels.saturating_sub(4) as u8;
        let second = self.pick([right, 1, right, 0, right, 2, right, 7]);
        let second = u64::from(second) | u64::from(self.byte()) << 8;
        let wrong = (self.byte(), self.byte(), self.byte());
        let is_told = self.byte() < 0xc0;
        // What the last table allows: reading and writing, or one of both; or a large page.
        let rights = self.pick([3u64, 1, 2, 3, 3, 0x83, 3, 3]);
        for level in 0..levels {
            let at = base + level * 0x1000;
            let flags = match level {
                _ if level < wide => 1,
                _ if level + 1 == levels => rights,
                _ => 3,
            };
            let mut entry = (at + 0x1000) | flags;
            if wrong.0 >= 0xc0 && u64::from(wrong.1) % levels == level {
                // Mostly one of its flags, of which there are fewer than bits of the address.
                let bit = if wrong.2 < 0x80 { wrong.2 % 12 } else { wrong.2 % 64 };
                entry ^= 1 << bit;
            }
            let odd = match level + 1 {
                n if n < wide => 0,
                n if n == wide => second,
                _ => entry,
            };
            // What leads from where there is memory; a whole page takes an execution's time.
            let bytes = [entry, odd].map(u64::to_le_bytes).as_flattened().repeat(64);
            self.play(Op::Ram { addr: at, bytes, after: 0 });
        }
        self.places.rotate_right(1);
        self.places[0] = base;
        self.filled = true;
        if is_told {
            self.translate(base);
        }
    }

    /// Rows that a device of this board finds in memory. Mostly it is then told of them. Whether there is such a
    /// device.
    fn rows(&mut self, base: u64) -> bool {
        let which = usize::from(self.byte());
        let is_there = |rows: &&Rows| self.base_of(rows.region).is_some();
        let there = ROWS.iter().filter(is_there).count();
        let rows = ROWS.iter().filter(is_there).nth(which % there.max(1));
        let Some(Rows { region, halves, tells }) = rows else { return false };
        let how = self.byte();
        let mut bytes = Vec::new();
        for _ in 0..1 + how % 5 {
            for half in halves {
                bytes.extend(self.brief(half).to_le_bytes());
            }
        }
        let len = bytes.len() as u64;
        self.play(Op::Ram { addr: base, bytes, after: 0 });
        self.places.rotate_right(1);
        self.places[0] = base;
        self.filled = true;
        if let (0..0xc0, Some(at)) = (how, self.base_of(region)) {
            for &(register, size, tell) in *tells {
                let value = match tell {
                    Tell::Value(value) => value,
                    Tell::Place(bits) => base | bits,
                    Tell::Bytes => len,
                };
                self.access(Access::write(Space::Mmio, at + register, size, value));
            }
        }
        true
    }
}
