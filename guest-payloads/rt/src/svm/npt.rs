//! Nested page tables (AMD APM volume 2, 15.25): guest-physical to system-physical, in the format of
//! the hypervisor's own page tables, here four levels.

use crate::cpuid;
use crate::frames;
use crate::paging::{self, ADDRESS, Entry, Flags, Size};

/// Nested tables of four levels.
#[derive(Debug)]
pub struct Npt {
    root: u64,
}

impl Npt {
    /// Tables that map nothing.
    pub fn empty() -> Npt {
        Npt { root: frames::alloc().address() }
    }

    /// The first 4 GiB to themselves, in the largest pages there are. The leaves have U, since
    /// every access of a guest is a user access here (15.25.5).
    pub fn identity() -> Npt {
        let npt = Npt::empty();
        let size = if cpuid::PAGE_1G.present() { Size::G1 } else { Size::M2 };
        for address in (0..1 << 32).step_by(size.bytes() as usize) {
            npt.map(address, address, size, Flags::RWU);
        }
        npt
    }

    /// What goes into N_CR3.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// The entry for a guest-physical address at `level`, or the one above where the way ends.
    pub fn entry(&self, address: u64, level: u32) -> Entry {
        paging::entry_below(self.root, 4, address, level)
    }

    /// The entry for a guest-physical address at `level`, after making the tables above it and
    /// splitting larger pages on the way. Flushes nothing: TLB_CONTROL is the caller's.
    pub fn reach(&self, address: u64, level: u32) -> Entry {
        loop {
            let found = self.entry(address, level);
            if found.level == level {
                return found;
            }
            let table = frames::alloc().address();
            if found.is_leaf() {
                paging::split(&found, table);
            }
            found.set(table | Flags::RWU.0);
        }
    }

    /// Maps one page; both addresses are multiples of its size.
    pub fn map(&self, address: u64, physical: u64, size: Size, flags: Flags) -> Entry {
        let inside = size.bytes() - 1;
        assert!(
            address & inside == 0 && physical & inside == 0 && physical & !ADDRESS == 0,
            "nested map {address:#x} to {physical:#x}: not multiples of {size:?}"
        );
        let entry = self.reach(address, size as u32);
        let leaf = if size == Size::K4 { 0 } else { Flags::PS.0 };
        entry.set(physical | flags.0 | Flags::P.0 | leaf);
        entry.reload()
    }
}
