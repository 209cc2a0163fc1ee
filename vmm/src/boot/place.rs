//! Where things go in guest memory: pieces to load, free runs, and blocks of structures.

use std::borrow::Cow;
use std::ops::Range;

use super::RamState;
use super::error::{Fault, What};
use super::map::{MIB, MemKind, MemRange, ram_runs};
use crate::ram::{GuestRam, HOLE_END, PAGE, VGA_START};

/// Bytes for one place in guest memory: `data`, then zeros up to `len`.
pub(super) struct Piece<'a> {
    pub(super) what: What,
    pub(super) addr: u64,
    pub(super) data: Cow<'a, [u8]>,
    pub(super) len: u64,
}

impl<'a> Piece<'a> {
    /// A piece without zeros at its end.
    pub(super) fn new(what: What, addr: u64, data: impl Into<Cow<'a, [u8]>>) -> Piece<'a> {
        let data = data.into();
        Piece { what, addr, len: data.len() as u64, data }
    }

    /// First address after the piece; saturates, as what ends there is no RAM anyway.
    pub(super) fn end(&self) -> u64 {
        self.addr.saturating_add(self.len)
    }

    /// Puts the piece into memory. In fresh memory its zeros are there already, and writing them
    /// would cost a host page each; a kernel's file often carries megabytes of them.
    pub(super) fn write(&self, ram: &GuestRam, state: RamState) {
        const IN_RAM: &str = "every piece was checked to lie in RAM";
        if state == RamState::Fresh {
            for run in nonzero_runs(&self.data, self.addr) {
                ram.write(self.addr + run.start as u64, &self.data[run]).expect(IN_RAM);
            }
            return;
        }
        ram.write(self.addr, &self.data).expect(IN_RAM);
        let mut at = self.addr + self.data.len() as u64;
        let mut page = [0; PAGE as usize];
        while at < self.end() {
            let len = (PAGE - at % PAGE).min(self.end() - at) as usize;
            ram.read(at, &mut page[..len]).expect(IN_RAM);
            if page[..len] != ZEROS[..len] {
                ram.write(at, &ZEROS[..len]).expect(IN_RAM);
            }
            at += len as u64;
        }
    }
}

/// A page of zeros to compare with.
static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// The runs of `data`, which goes to `addr`, that cover every page which is not all zeros.
fn nonzero_runs(data: &[u8], addr: u64) -> impl Iterator<Item = Range<usize>> + '_ {
    // Index after the page that index `i` falls into, in the guest's pages.
    let page_end = move |i: usize| (i + (PAGE - (addr + i as u64) % PAGE) as usize).min(data.len());
    let zero = move |i: usize| data[i..page_end(i)] == ZEROS[..page_end(i) - i];
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < data.len() && zero(at) {
            at = page_end(at);
        }
        let start = at;
        while at < data.len() && !zero(at) {
            at = page_end(at);
        }
        (start < at).then_some(start..at)
    })
}

/// Checks that pieces lie in RAM, clear of one another and of what the board reserved; sorts them
/// by address.
pub(super) fn check(
    pieces: &mut [Piece<'_>],
    ram: &GuestRam,
    reserved: &[MemRange],
) -> Result<(), Fault> {
    let runs = ram_runs(ram);
    for piece in pieces.iter() {
        let holds = |&(start, end): &(u64, u64)| {
            start <= piece.addr && piece.addr < end && piece.len <= end - piece.addr
        };
        if !runs.iter().any(holds) {
            return Err(Fault::OutsideRam {
                what: piece.what,
                start: piece.addr,
                len: piece.len,
                why: outside(piece, &runs),
            });
        }
    }
    pieces.sort_by_key(|piece| piece.addr);
    let mut taken: Vec<_> = pieces.iter().map(|p| (p.addr, p.end(), p.what)).collect();
    taken.extend(
        reserved.iter().filter(|r| r.len > 0).map(|r| (r.start, r.end(), What::Reserved(r.kind))),
    );
    taken.sort_by_key(|&(start, ..)| start);
    // The furthest range so far: what the board reserved may overlap itself.
    let mut last: Option<(u64, u64, What)> = None;
    for next in taken {
        if let Some(prev) = last {
            let both_reserved = matches!((prev.2, next.2), (What::Reserved(_), What::Reserved(_)));
            if next.0 < prev.1 && !both_reserved {
                return Err(Fault::Overlap {
                    a: prev.2,
                    a_start: prev.0,
                    a_end: prev.1,
                    b: next.2,
                    b_start: next.0,
                    b_end: next.1,
                });
            }
            if prev.1 >= next.1 {
                continue;
            }
        }
        last = Some(next);
    }
    Ok(())
}

/// Says why a piece is outside RAM, in terms of the hole it meets.
fn outside(piece: &Piece<'_>, runs: &[(u64, u64)]) -> String {
    let list: Vec<String> = runs.iter().map(|(s, e)| format!("{s:#x}..{e:#x}")).collect();
    let list = list.join(", ");
    let top = runs.last().map_or(0, |run| run.1);
    let advice = if piece.addr < MIB && piece.end() > VGA_START {
        "it reaches into the VGA window at 0xa0000..0xc0000; link it at 1 MiB or above"
    } else if piece.addr < HOLE_END && piece.end() > crate::ram::HOLE_START {
        "it reaches into the window of PCI and chips at 3..4 GiB; link it below"
    } else if piece.end() > top {
        "RAM ends before it; give the guest more memory, or check p_paddr in the linker script"
    } else {
        "link it inside one run of RAM"
    };
    format!("{advice} (RAM is {list})")
}

/// Hands out free RAM below 4 GiB, in whole pages.
pub(super) struct Placer {
    free: Vec<(u64, u64)>,
}

impl Placer {
    /// What `map` calls usable, without page 0 and without `pieces`, which are sorted and do not
    /// overlap.
    pub(super) fn new(map: &[MemRange], pieces: &[Piece<'_>]) -> Placer {
        let mut free = Vec::new();
        let mut taken = pieces.iter().map(|p| (p.addr, p.end())).peekable();
        for run in map.iter().filter(|r| r.kind == MemKind::Usable) {
            // Page 0 is where a guest's application processors and real-mode vectors live.
            let mut start = run.start.max(PAGE);
            let end = run.end().min(HOLE_END);
            while let Some(&(from, to)) = taken.peek() {
                if from >= end {
                    break;
                }
                if start < from {
                    free.push((start, from));
                }
                start = start.max(to);
                if to > end {
                    // It reaches into the next run as well.
                    break;
                }
                taken.next();
            }
            if start < end {
                free.push((start, end));
            }
        }
        Placer { free }
    }

    /// The highest free pages below 1 MiB, or of all if there are none: for structures that are
    /// read once, early, out of the way of what a guest uses first.
    pub(super) fn low(&mut self, what: What, len: u64) -> Result<u64, Fault> {
        self.within(MIB, len)
            .or_else(|| self.within(HOLE_END, len))
            .ok_or_else(|| self.no_room(what, len))
    }

    /// The highest free pages below 4 GiB: for modules, far from what a kernel allocates first.
    pub(super) fn high(&mut self, what: What, len: u64) -> Result<u64, Fault> {
        self.within(HOLE_END, len).ok_or_else(|| self.no_room(what, len))
    }

    fn within(&mut self, top: u64, len: u64) -> Option<u64> {
        let len = len.max(1);
        for i in (0..self.free.len()).rev() {
            let (start, end) = self.free[i];
            let Some(at) = end.min(top).checked_sub(len).map(|at| at & !(PAGE - 1)) else {
                continue;
            };
            if at >= start {
                // What is left behind the piece is less than a page of the run's end, or above
                // `top`; it stays free.
                let behind = (at + len, end);
                self.free[i].1 = at;
                if behind.0 < behind.1 {
                    self.free.insert(i + 1, behind);
                }
                return Some(at);
            }
        }
        None
    }

    fn no_room(&self, what: What, len: u64) -> Fault {
        let whole = |&(start, end): &(u64, u64)| end.saturating_sub(start.next_multiple_of(PAGE));
        Fault::NoRoom { what, len, largest: self.free.iter().map(whole).max().unwrap_or(0) }
    }
}

/// Structures built for one address of guest memory.
pub(super) struct Block {
    base: u64,
    bytes: Vec<u8>,
}

impl Block {
    /// An empty block at `base`.
    pub(super) fn new(base: u64) -> Block {
        Block { base, bytes: Vec::new() }
    }

    /// Appends bytes at the next multiple of `align` and says where they lie.
    pub(super) fn put(&mut self, align: usize, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let at = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        at
    }

    /// Appends a string with a zero behind it and says where it lies.
    pub(super) fn string(&mut self, parts: &[&str]) -> u64 {
        let at = self.base + self.bytes.len() as u64;
        for part in parts {
            self.bytes.extend_from_slice(part.as_bytes());
        }
        self.bytes.push(0);
        at
    }

    /// Sets bytes that were put before, at a guest address.
    pub(super) fn set(&mut self, at: u64, bytes: &[u8]) {
        let from = (at - self.base) as usize;
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
    }

    /// Builds with `build` at a place of its own low in memory, and gives back what it says. Builds
    /// twice: a block's length must not depend on its address.
    pub(super) fn place<T>(
        placer: &mut Placer,
        build: impl Fn(&mut Block) -> T,
    ) -> Result<(Piece<'static>, T), Fault> {
        let mut sizing = Block::new(0);
        build(&mut sizing);
        let base = placer.low(What::Info, sizing.bytes.len() as u64)?;
        let mut block = Block::new(base);
        let said = build(&mut block);
        Ok((Piece::new(What::Info, base, block.bytes), said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(runs: &[(u64, u64)]) -> Vec<MemRange> {
        runs.iter().map(|&(s, e)| MemRange::new(s, e, MemKind::Usable)).collect()
    }

    fn piece(start: u64, end: u64) -> Piece<'static> {
        Piece { what: What::Image, addr: start, data: Cow::Borrowed(&[]), len: end - start }
    }

    #[test]
    fn free_memory_is_what_no_piece_takes() {
        let map = usable(&[(0, 0x9_fc00), (MIB, 0x40_0000), (HOLE_END, HOLE_END + MIB)]);
        let free = |pieces: &[(u64, u64)]| {
            let pieces: Vec<_> = pieces.iter().map(|&(s, e)| piece(s, e)).collect();
            Placer::new(&map, &pieces).free
        };
        let high = (MIB, 0x40_0000);
        assert_eq!(free(&[]), [(0x1000, 0x9_fc00), high]);
        assert_eq!(free(&[(0, 0x800)]), [(0x1000, 0x9_fc00), high]);
        assert_eq!(free(&[(0, 0x9_fc00)]), [high]);
        assert_eq!(
            free(&[(0x8000, 0x9000), (0xc_0000, 0x20_0000), (0x30_0000, 0x40_0000)]),
            [(0x1000, 0x8000), (0x9000, 0x9_fc00), (0x20_0000, 0x30_0000)]
        );
    }

    #[test]
    fn pages_of_zeros_are_left_out_of_a_copy() {
        let runs = |data: &[u8], addr| nonzero_runs(data, addr).collect::<Vec<_>>();
        assert_eq!(runs(&[], 0x1234), []);
        assert_eq!(runs(&[0; 0x3000], 0x1234), []);
        assert_eq!(runs(&[1; 0x3000], 0x1234).first(), Some(&(0..0x3000)));
        let mut data = vec![0; 0x5000];
        (data[0], data[0x1800], data[0x2801], data[0x4fff]) = (1, 1, 1, 1);
        // The data begins in the middle of a page.
        assert_eq!(runs(&data, 0x1800), [0..0x800, 0x1800..0x3800, 0x4800..0x5000]);
        assert_eq!(runs(&data, 0x1000), [0..0x3000, 0x4000..0x5000]);
    }

    #[test]
    fn places_are_whole_pages_and_never_given_twice() {
        let map = usable(&[(0, 0x9_fc00), (MIB, 0x20_0000)]);
        let mut placer = Placer::new(&map, &[]);
        assert_eq!(placer.high(What::Module(0), 0x1001), Ok(0x1f_e000));
        assert_eq!(placer.high(What::Module(1), 0), Ok(0x1f_d000));
        assert_eq!(placer.low(What::Info, 0x400), Ok(0x9_f000));
        assert_eq!(placer.low(What::Info, 0xc01), Ok(0x9_e000));
        assert_eq!(
            placer.high(What::Module(2), 0xfe_0000),
            Err(Fault::NoRoom { what: What::Module(2), len: 0xfe_0000, largest: 0xf_d000 })
        );
        // Low memory is full, so what belongs there goes up.
        assert_eq!(placer.low(What::Stack, 0x9_d000), Ok(0x1000));
        assert_eq!(placer.low(What::Stack, 0x2000), Ok(0x1f_b000));
    }
}
