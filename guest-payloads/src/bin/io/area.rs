//! Pages next to each other in linear addresses and nowhere else.

use payload_rt::paging::{self, Flags, Size};
use payload_rt::{check_ok, frames, mem};

/// A linear range whose pages are backed as the test asks.
pub struct Area {
    start: u64,
}

/// What backs a page of an [`Area`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// A page of RAM, zeroed.
    Ram,
    /// RAM that cannot be written.
    ReadOnly,
    /// Nothing: not present.
    Absent,
    /// The physical page at this address.
    At(u64),
}

/// Where areas begin, 1 MiB apart.
const AREAS: u64 = 0x5000_0000_0000;

impl Area {
    /// Area number `index`, of these pages. RAM is taken so that no two pages are neighbours in
    /// physical memory: a stray access over a page's end shows.
    pub fn new(index: u64, pages: &[Page]) -> Area {
        Area::with_flags(index, pages, Flags::NONE)
    }

    /// The same with further flags, [`Flags::U`] for CPL 3.
    pub fn with_flags(index: u64, pages: &[Page], flags: Flags) -> Area {
        let start = AREAS + (index << 20);
        for (i, page) in (0..).zip(pages) {
            let at = start + i * frames::PAGE;
            let physical = match page {
                Page::At(address) => *address,
                _ => {
                    // The page between two of ours.
                    let gap = frames::alloc();
                    let frame = frames::alloc().address();
                    gap.free();
                    frame
                }
            };
            let write = if *page == Page::ReadOnly { Flags::NONE } else { Flags::W };
            paging::map(at, physical, Size::K4, Flags::P | write | flags);
            if *page == Page::Absent {
                paging::unmap(at);
            }
        }
        Area { start }
    }

    /// Its first address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The first address of page `index`.
    pub fn page(&self, index: u64) -> u64 {
        self.start + index * frames::PAGE
    }
}

/// One value of RAM; a fault ends the test.
pub fn get<T: mem::Word>(at: u64) -> T {
    check_ok!(mem::read(at), "read {at:#x}")
}

/// Puts one value into RAM; a fault ends the test.
pub fn put<T: mem::Word>(at: u64, value: T) {
    check_ok!(mem::write(at, value), "write {at:#x}")
}

/// Fills `len` bytes, a multiple of 8, with one byte.
pub fn fill(at: u64, len: u64, byte: u8) {
    let word = u64::from_ne_bytes([byte; 8]);
    (0..len).step_by(8).for_each(|offset| put(at + offset, word));
}
