//! Page tables: walk, map, unmap, and set entries to anything.
//!
//! At the start the first 4 GiB are mapped to themselves in 2 MiB pages, for CPL 0 only; tables
//! allow everything, leaves decide. Tables are below 4 GiB, so physical addresses serve as
//! pointers. Edits are for one CPU at a time, and flush the TLB of the CPU that makes them;
//! others flush with `smp::on_all(|_| paging::flush())`.

use crate::trap::Trap;
use crate::{frames, insn, reg};
use core::ops::BitOr;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Bits of a page-table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u64);

impl BitOr for Flags {
    type Output = Flags;
    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

macro_rules! flags {
    ($($name:ident = $bit:literal, $about:literal;)*) => {
        impl Flags {
            $(#[doc = $about] pub const $name: Flags = Flags(1 << $bit);)*
            /// No bit.
            pub const NONE: Flags = Flags(0);
        }
    };
}
flags! {
    P = 0, "Present.";
    W = 1, "Writable.";
    U = 2, "For CPL 3 too.";
    PWT = 3, "Write-through.";
    PCD = 4, "Cache disable.";
    A = 5, "Accessed.";
    D = 6, "Dirty.";
    PS = 7, "Page size, in levels 2 and 3: this is a leaf.";
    G = 8, "Global.";
    NX = 63, "No execution.";
}

impl Flags {
    /// Present and writable.
    pub const RW: Flags = Flags(0b11);
    /// Present, writable, for CPL 3.
    pub const RWU: Flags = Flags(0b111);
    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// How much a leaf maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 4 KiB: a leaf at level 1.
    K4 = 1,
    /// 2 MiB: a leaf at level 2.
    M2 = 2,
    /// 1 GiB: a leaf at level 3, if CPUID has [`PAGE_1G`](crate::cpuid::PAGE_1G).
    G1 = 3,
}

impl Size {
    /// Bytes.
    pub const fn bytes(self) -> u64 {
        1 << shift(self as u32)
    }
}

/// Bits of an entry that hold an address.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

const fn slot(address: u64, level: u32) -> u64 {
    address >> shift(level) & 0x1ff
}

/// Bits of a leaf's entry that hold its address.
const fn leaf_address(entry: u64, level: u32) -> u64 {
    entry & ADDRESS & !((1 << shift(level)) - 1)
}

/// An entry of a table: where it lies and what was in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its level: 1 for a table of 4 KiB pages, up to 4, or 5 under CR4.LA57.
    pub level: u32,
    /// Its address.
    pub at: u64,
    /// Its value.
    pub value: u64,
}

impl Entry {
    /// Whether it is present and maps memory (and does not lead to another table).
    pub const fn is_leaf(&self) -> bool {
        self.value & 1 != 0 && (self.level == 1 || self.level <= 3 && self.value & Flags::PS.0 != 0)
    }

    /// Its flags.
    pub const fn flags(&self) -> Flags {
        Flags(self.value & !ADDRESS)
    }

    /// As it is in memory now.
    pub fn reload(&self) -> Entry {
        Entry { value: cell(self.at).load(SeqCst), ..*self }
    }

    /// Writes a value, whatever it means, without flushing any TLB.
    pub fn set(&self, value: u64) {
        cell(self.at).store(value, SeqCst);
    }
}

/// A table's entry as a memory cell.
fn cell(at: u64) -> &'static AtomicU64 {
    assert!(at < 1 << 32 && at.is_multiple_of(8), "no page-table entry at {at:#x}");
    // SAFETY: an aligned word of RAM below 4 GiB, which is identity-mapped; tables are only
    // touched through such cells. A test that put a wrong address into a table reads nonsense or
    // faults, as its own accesses would.
    unsafe { &*(at as *const AtomicU64) }
}

fn top_level() -> u32 {
    if reg::cr4() & reg::CR4_LA57 != 0 { 5 } else { 4 }
}

/// The entry that decides about `address`: its leaf, or where the way down ends.
pub fn walk(address: u64) -> Entry {
    entry(address, 1)
}

/// The entry for `address` at `level`, or the one above where the way down ends.
pub fn entry(address: u64, level: u32) -> Entry {
    entry_below(reg::cr3() & ADDRESS, top_level(), address, level)
}

/// As [`entry`], in the tables at `root` that have `top` levels.
pub(crate) fn entry_below(root: u64, top: u32, address: u64, level: u32) -> Entry {
    let mut table = root;
    let mut now = top;
    loop {
        let at = table + 8 * slot(address, now);
        let found = Entry { level: now, at, value: cell(at).load(SeqCst) };
        if now == level || found.value & 1 == 0 || found.is_leaf() {
            return found;
        }
        table = found.value & ADDRESS;
        now -= 1;
    }
}

/// The physical address that `address` leads to.
pub fn translate(address: u64) -> Option<u64> {
    let leaf = walk(address);
    let inside = (1 << shift(leaf.level)) - 1;
    leaf.is_leaf().then(|| leaf_address(leaf.value, leaf.level) | address & inside)
}

/// The entry for `address` at `level`, after making the tables above it and splitting larger
/// pages on the way; the smaller pages then map the same.
pub fn reach(address: u64, level: u32) -> Entry {
    loop {
        let found = entry(address, level);
        if found.level == level {
            return found;
        }
        let table = frames::alloc().address();
        if found.is_leaf() {
            split(&found, table);
        }
        found.set(table | Flags::RWU.0);
        flush();
    }
}

/// Fills `table` with the next smaller pages of a leaf.
pub(crate) fn split(leaf: &Entry, table: u64) {
    const PAT_LARGE: u64 = 1 << 12;
    let below = leaf.level - 1;
    let mut flags = leaf.value & !ADDRESS;
    let pat = leaf.value & PAT_LARGE != 0;
    if below == 1 {
        // The page-size bit's place is the PAT bit at level 1.
        flags &= !Flags::PS.0;
        flags |= if pat { Flags::PS.0 } else { 0 };
    } else if pat {
        flags |= PAT_LARGE;
    }
    let start = leaf_address(leaf.value, leaf.level);
    for i in 0..512 {
        cell(table + 8 * i).store((start + (i << shift(below))) | flags, SeqCst);
    }
}

/// Maps one page at `address` to `physical` with `flags` ([`Flags::P`] comes with it), making
/// tables and splitting larger pages as needed. Both addresses are multiples of the size.
pub fn map(address: u64, physical: u64, size: Size, flags: Flags) -> Entry {
    let inside = size.bytes() - 1;
    assert!(
        address & inside == 0 && physical & inside == 0,
        "map {address:#x} to {physical:#x}: not multiples of {size:?}"
    );
    let level = size as u32;
    let entry = reach(address, level);
    let leaf = if level > 1 { Flags::PS.0 } else { 0 };
    set(address, &entry, physical | flags.0 | Flags::P.0 | leaf)
}

/// Takes the mapping of `address` away, whatever its size, and gives the entry as it was.
pub fn unmap(address: u64) -> Entry {
    let old = walk(address);
    set(address, &old, 0);
    old
}

/// Changes flags of the leaf that maps `address` (of a 4 KiB page of its own, after
/// [`reach`]`(address, 1)`).
pub fn change(address: u64, add: Flags, remove: Flags) -> Entry {
    let leaf = walk(address);
    assert!(leaf.is_leaf(), "change flags at {address:#x}: not mapped");
    set(address, &leaf, leaf.value & !remove.0 | add.0)
}

/// Writes an entry that `address` goes through, and flushes that address.
pub fn set(address: u64, entry: &Entry, value: u64) -> Entry {
    entry.set(value);
    if entry.level == 1 {
        invlpg(address)
    } else {
        flush()
    }
    Entry { value, ..*entry }
}

/// Flushes one address from this CPU's TLB.
pub fn invlpg(address: u64) {
    if let Err(trap) = insn!("invlpg [{}]"; in(reg) address) {
        panic!("invlpg {address:#x}: {trap}");
    }
}

/// Flushes this CPU's TLB but for global pages, by writing CR3.
pub fn flush() {
    if let Err(trap) = reg::set_cr3(reg::cr3()) {
        panic!("reload CR3: {trap}");
    }
}

/// Flushes this CPU's TLB with global pages, by way of CR4.PGE.
pub fn flush_global() -> Result<(), Trap> {
    let cr4 = reg::cr4();
    reg::set_cr4(cr4 ^ reg::CR4_PGE)?;
    reg::set_cr4(cr4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_fall_into_slots() {
        assert_eq!(slot(0xffff_8000_0000_0000, 4), 256);
        assert_eq!(slot(0x4020_3000, 3), 1);
        assert_eq!(slot(0x4020_3000, 2), 1);
        assert_eq!(slot(0x4020_3000, 1), 3);
        assert_eq!(Size::G1.bytes(), 1 << 30);
        assert_eq!(leaf_address(0x8000_0000_0020_1083, 2), 0x20_0000);
    }

    #[test]
    fn leaves_are_told_from_tables() {
        let entry = |level, value| Entry { level, at: 0, value };
        assert!(entry(1, 1).is_leaf());
        assert!(!entry(1, 0).is_leaf());
        assert!(!entry(2, 1).is_leaf());
        assert!(entry(2, 0x81).is_leaf());
        assert!(!entry(4, 0x81).is_leaf());
    }
}
