//! Extended page tables (Intel SDM volume 3, "The Extended Page Table Mechanism (EPT)").

use super::{Field, caps, get};
use crate::{frames, mem};

/// Entry bits: read, write, execute.
pub const RWX: u64 = 7;
/// Entry: readable.
pub const R: u64 = 1;
/// Entry: writable.
pub const W: u64 = 2;
/// Entry: executable.
pub const X: u64 = 4;
/// Leaf: write-back memory.
pub const WB: u64 = 6 << 3;
/// Leaf: the memory type is the EPT's alone, not that of the guest's PAT.
pub const IGNORE_PAT: u64 = 1 << 6;
/// A leaf at level 2 or 3.
pub const LEAF: u64 = 1 << 7;
/// Accessed.
pub const A: u64 = 1 << 8;
/// Dirty, in a leaf.
pub const D: u64 = 1 << 9;
/// EPT pointer: accessed and dirty flags are kept.
pub const POINTER_AD: u64 = 1 << 6;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Extended page tables with four levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept {
    root: u64,
}

/// An entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its level, 1 to 4.
    pub level: u32,
    /// Where it is.
    pub at: u64,
}

impl Slot {
    /// Its value.
    pub fn get(self) -> u64 {
        match mem::read(self.at) {
            Ok(value) => value,
            Err(trap) => panic!("read the EPT entry at {:#x}: {trap}", self.at),
        }
    }

    /// Writes its value. Nothing is flushed.
    pub fn set(self, value: u64) {
        if let Err(trap) = mem::write(self.at, value) {
            panic!("write the EPT entry at {:#x}: {trap}", self.at);
        }
    }
}

const fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

impl Ept {
    /// The first 4 GiB at their places, in pages of 2 MiB, for everything, write-back.
    pub fn identity() -> Ept {
        let ept = Ept { root: frames::alloc().address() };
        let pdpt = frames::alloc().address();
        Slot { level: 4, at: ept.root }.set(pdpt | RWX);
        for gib in 0..4 {
            let pd = frames::alloc().address();
            Slot { level: 3, at: pdpt + 8 * gib }.set(pd | RWX);
            for i in 0..512 {
                let leaf = gib << 30 | i << 21 | LEAF | WB | RWX;
                Slot { level: 2, at: pd + 8 * i }.set(leaf);
            }
        }
        ept
    }

    /// The EPT pointer: write-back, four levels, no accessed and dirty flags.
    pub fn pointer(self) -> u64 {
        let memory_type = if caps::ept_vpid() & caps::EPT_WB != 0 { 6 } else { 0 };
        self.root | 3 << 3 | memory_type
    }

    /// The entry for a guest-physical address at a level; larger pages above are split on the way.
    pub fn slot(self, address: u64, level: u32) -> Slot {
        let mut table = self.root;
        let mut now = 4;
        loop {
            let slot = Slot { level: now, at: table + 8 * (address >> shift(now) & 0x1ff) };
            if now == level {
                return slot;
            }
            let value = slot.get();
            if value & RWX == 0 || now <= 3 && value & LEAF != 0 {
                slot.set(split(value, now) | RWX);
            }
            table = slot.get() & ADDRESS;
            now -= 1;
        }
    }

    /// INVEPT of this EPT's context, or of all where only that is there.
    pub fn flush(self) {
        let kind = if caps::ept_vpid() & caps::EPT_INVEPT_SINGLE != 0 { 1 } else { 2 };
        if let Err(refusal) = super::invept(kind, [get(Field::EPTP), 0]) {
            panic!("INVEPT type {kind}: {refusal:?}");
        }
    }
}

/// A table that maps what a leaf at `level` maps; an empty one for an absent entry.
fn split(leaf: u64, level: u32) -> u64 {
    let table = frames::alloc().address();
    if leaf & RWX != 0 {
        let below = level - 1;
        let flags = leaf & 0xfff & if below == 1 { !LEAF } else { !0 };
        let start = leaf & ADDRESS & !((1 << shift(level)) - 1);
        for i in 0..512 {
            Slot { level: below, at: table + 8 * i }.set((start + (i << shift(below))) | flags);
        }
    }
    table
}
