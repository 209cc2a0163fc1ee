//! Physical memory for the taking: RAM above the payload, below 4 GiB.

use crate::boot::{self, Kind, Module};
use crate::mem;
use crate::sync::SpinLock;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

struct Pool {
    next: u64,
    end: u64,
    free: Option<u64>,
}

static POOL: SpinLock<Pool> = SpinLock::new(Pool { next: 0, end: 0, free: None });

unsafe extern "C" {
    static __image_end: u8;
}

/// The address behind the payload's image, its stacks included.
pub fn image_end() -> u64 {
    &raw const __image_end as u64
}

impl Pool {
    /// Finds the RAM that the image lies in, and the largest part of it above the image that no
    /// module takes.
    fn init(&mut self) {
        let image = image_end();
        let info = boot::info();
        let holds = |r: &&boot::Region| r.kind == Kind::Ram && r.start < image && image <= r.end();
        let Some(ram) = info.regions().iter().find(holds) else {
            panic!("the memory map has no RAM that holds the payload up to {image:#x}");
        };
        let end = ram.end().min(1 << 32);
        (self.next, self.end) = largest_gap(image, end, info.modules());
    }
}

/// The largest run of whole pages from `start` to `end` that no module touches.
fn largest_gap(start: u64, end: u64, modules: &[Module]) -> (u64, u64) {
    let after = |m: &Module| m.start.saturating_add(m.len);
    let mut best = (start, start);
    for from in modules.iter().map(after).chain([start]).filter(|&from| from >= start) {
        let to = modules
            .iter()
            .filter(|m| m.len > 0 && after(m) > from)
            .map(|m| m.start.max(from))
            .min()
            .unwrap_or(end)
            .min(end);
        let (from, to) = (from.next_multiple_of(PAGE), to & !(PAGE - 1));
        if to.saturating_sub(from) > best.1 - best.0 {
            best = (from, to);
        }
    }
    best
}

/// `ret`, near.
pub const RET: u8 = 0xc3;

/// A page of RAM, identity-mapped, the owner's alone until it is freed.
#[derive(Debug)]
pub struct Frame(u64);

impl Frame {
    /// Its physical address, which is its linear address too.
    pub fn address(&self) -> u64 {
        self.0
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8; PAGE as usize] {
        // SAFETY: RAM that the pool gave to this frame alone, identity-mapped at boot.
        unsafe { &mut *(self.0 as *mut [u8; PAGE as usize]) }
    }

    /// Gives the page back.
    pub fn free(self) {
        let mut pool = POOL.lock();
        let next = pool.free.unwrap_or(0);
        // SAFETY: as in `bytes`; a free page's first word is the next one's address.
        unsafe { *(self.0 as *mut u64) = next };
        pool.free = Some(self.0);
    }
}

/// A page of zeroes. Ends the payload with an error if memory is out.
pub fn alloc() -> Frame {
    let reused = {
        let mut pool = POOL.lock();
        let address = pool.free;
        if let Some(address) = address {
            // SAFETY: a free page holds the address of the next one, or 0.
            let next = unsafe { *(address as *const u64) };
            pool.free = (next != 0).then_some(next);
        }
        address
    };
    let mut frame = Frame(reused.unwrap_or_else(|| alloc_range(1, PAGE)));
    frame.bytes().fill(0);
    frame
}

/// The address of a page full of `ret`, so that any byte of it can be read, written and called.
pub fn of_ret() -> u64 {
    let mut frame = alloc();
    frame.bytes().fill(RET);
    frame.address()
}

/// The address of a page whose first word is `word`; the rest is zero.
pub fn with_word(word: u64) -> u64 {
    let frame = alloc().address();
    mem::write(frame, word).unwrap_or_else(|trap| panic!("write frame {frame:#x}: {trap}"));
    frame
}

/// The address of `pages` pages in a row, aligned to `align` (a power of two), not zeroed, never
/// given back. Ends the payload with an error if memory is out.
pub fn alloc_range(pages: u64, align: u64) -> u64 {
    match try_alloc_range(pages, align) {
        Some(address) => address,
        None => panic!("out of memory: {pages} pages aligned to {align:#x}"),
    }
}

/// As [`alloc_range`]; `None` if memory is out.
pub fn try_alloc_range(pages: u64, align: u64) -> Option<u64> {
    let mut pool = POOL.lock();
    if pool.end == 0 {
        pool.init();
    }
    let address = pool.next.next_multiple_of(align);
    let end = address.checked_add(pages.checked_mul(PAGE)?)?;
    if end > pool.end {
        return None;
    }
    pool.next = end;
    Some(address)
}

/// Bytes left.
pub fn left() -> u64 {
    let mut pool = POOL.lock();
    if pool.end == 0 {
        pool.init();
    }
    pool.end - pool.next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_stays_clear_of_modules() {
        let module = |start, len| Module { start, len };
        assert_eq!(largest_gap(0x1001, 0x9fff, &[]), (0x2000, 0x9000));
        assert_eq!(largest_gap(0x1000, 0x9000, &[module(0x1000, 0x1800)]), (0x3000, 0x9000));
        assert_eq!(largest_gap(0x1000, 0x9000, &[module(0x8800, 0x100)]), (0x1000, 0x8000));
        let two = [module(0x6000, 0x1000), module(0x2000, 0x1000)];
        assert_eq!(largest_gap(0x1000, 0x9000, &two), (0x3000, 0x6000));
        assert_eq!(largest_gap(0x1000, 0x9000, &[module(0, 0x10_0000)]), (0x1000, 0x1000));
        assert_eq!(largest_gap(0x1000, 0x9000, &[module(0x2000, 0)]), (0x1000, 0x9000));
    }
}
