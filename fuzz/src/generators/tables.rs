//! What a generator chooses from.

use std::ops::Range;

use vmm::ram::{HOLE_END, HOLE_START, VGA_END, VGA_START};

/// Kinds of operation. Their bits in the swarm's mask do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    Read = 1 << 0,
    Write = 1 << 1,
    Again = 1 << 2,
    Edge = 1 << 3,
    Nowhere = 1 << 4,
    Ram = 1 << 5,
    Input = 1 << 6,
    Advance = 1 << 7,
    Timer = 1 << 8,
    SaveRestore = 1 << 9,
    Reset = 1 << 10,
    Exit = 1 << 11,
    Word = 1 << 12,
    /// Tables that lead to each other.
    Chain = 1 << 14,
    /// Registers in a row.
    SetUp = 1 << 15,
    /// As it is written down; there whatever the mask says.
    Exact = 1 << 13,
}

/// How often each kind is chosen, of 64 times. A kind that the swarm leaves out is a read or a
/// write instead.
#[rustfmt::skip]
pub(super) const KINDS: [Kind; 64] = {
    use Kind::*;
    [
        Read, Write, Read, Write, Read, Write, Read, Write, Read, Write, Read, Write, Read, Write, Read, Write,
        Read, Write, Read, Write, Read, Write, Read, Write, Write, Write, SetUp, SetUp, SetUp, SetUp, Again, Again,
        Again, Again, Again, Again, Edge, Edge, Edge, Nowhere, Nowhere, Ram, Ram, Ram, Ram, Ram, Chain, Input,
        Input, Input, Input, Advance, Advance, Advance, Advance, Timer, Timer, Timer, SaveRestore, Reset, Exit, Exit, Word, Exact,
    ]
};
/// Places of [`KINDS`] that are [`Kind::SetUp`] where there are PCI functions, which do little before.
pub(super) const SET_UP: Range<usize> = 16..24;
/// What a record of [`Kind::Exact`] begins with.
pub(super) const EXACT: u8 = 63;
/// What records of these begin with.
pub(super) const SAVE_RESTORE: u8 = 58;
pub(super) const RESET: u8 = 59;

/// Values at which something may change.
pub(crate) const EDGES: [u64; 16] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    u64::MAX,
];

/// Guest-physical addresses that matter to whoever looks into memory; the first are in RAM.
pub(super) const PLACES: [u64; 16] = [
    0x1000,
    0,
    0x1ff0,
    0x1ffc,
    0x7c00,
    VGA_START - 4,
    VGA_END,
    0xe_0000,
    (2 << 20) - 16,
    (2 << 20) - 1,
    2 << 20,
    VGA_START,
    HOLE_START,
    0xfee0_0000,
    HOLE_END,
    u64::MAX - 3,
];
/// How many of them are.
pub(super) const RAM_PLACES: usize = 10;
