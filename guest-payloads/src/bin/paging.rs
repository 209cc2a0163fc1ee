//! Paging: translation, faults, accessed and dirty bits, the TLB, and what CPUID adds to them.
//!
//! Intel SDM volume 3, chapter 5; AMD APM volume 2, chapter 5.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "paging/bits.rs"]
mod bits;
#[path = "paging/faults.rs"]
mod faults;
#[path = "paging/features.rs"]
mod features;
#[path = "paging/masking.rs"]
mod masking;
#[path = "paging/memory.rs"]
mod memory;
#[path = "paging/tlb.rs"]
mod tlb;
#[path = "paging/translate.rs"]
mod translate;

use payload_rt::frames::{RET, of_ret as frame_of_ret, with_word as frame_with};
use payload_rt::mem;
use payload_rt::paging::{self, Entry, Flags, Size};
use payload_rt::trap::{self, Trap};

/// Linear addresses for tests: a slot of the top table that nothing else is in, apart from every
/// boundary of a table.
const AT: u64 = 0x1234_4321_5000;

/// Error code of a page fault (SDM volume 3, 5.7): the page is present.
const E_P: u64 = 1 << 0;
/// It was a write.
const E_W: u64 = 1 << 1;
/// It was at CPL 3.
const E_U: u64 = 1 << 2;
/// A reserved bit was set.
const E_RSVD: u64 = 1 << 3;
/// It was a fetch.
const E_I: u64 = 1 << 4;
/// Protection keys forbid it.
const E_PK: u64 = 1 << 5;

/// A way to use an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Fetch,
}

const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Fetch];

impl Access {
    /// Uses `address` at CPL 0. A fetch calls it, so there must be `ret`.
    fn run(self, address: u64) -> Result<(), Trap> {
        match self {
            Access::Read => mem::read::<u8>(address).map(|_| ()),
            Access::Write => mem::write(address, RET),
            Access::Fetch => mem::call(address).map(|_| ()),
        }
    }

    /// Its bits in a page fault's error code.
    const fn error(self) -> u64 {
        match self {
            Access::Read => 0,
            Access::Write => E_W,
            Access::Fetch => E_I,
        }
    }
}

/// Maps a 4 KiB page at `address`, readable, writable, executable, for CPL 0.
fn map(address: u64, frame: u64) -> Entry {
    paging::map(address, frame, Size::K4, Flags::RW)
}

/// Whether a trap is a page fault with this error code on this address.
fn is_fault(trap: &Trap, error_code: u64, address: u64) -> bool {
    trap.is(trap::PF, error_code) && trap.cr2 == address
}
