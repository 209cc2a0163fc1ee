//! Through every page size that the host has: the byte that the guest names is the byte that the host
//! has there, and the other way round.
//!
//! KVM API, KVM_SET_USER_MEMORY_REGION; SDM volume 3, 29.3; APM volume 2, 15.25.

use crate::{AREA, AT, LARGE, MARK, PAGE, backing, ones, read, write};
use payload_rt::lab::{Backing, Memory};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::*;

/// Pages all over a memory, the ones at the edge of a large page among them.
fn pages(size: u64) -> impl Iterator<Item = u64> {
    let pages = size / PAGE;
    let step = (pages / 64) as usize | 1;
    let edge = [511, 512, 513].into_iter().filter(move |&page| page < pages);
    (0..pages).step_by(step).chain(edge).filter(move |&page| page < pages)
}

test!(every_page, "Pages all over a slot lead to their own bytes, from both sides.", || {
    let (backing, size) = backing();
    let memory = check_ok!(Memory::new(size, backing), "{size:#x} bytes of {backing:?}");
    check_ok!(memory.slot(AREA, 0, size, 0));
    let mark = |page: u64| MARK ^ page.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for page in pages(size) {
        check_ok!(memory.fill(page * PAGE, PAGE, mark(page)));
    }
    for page in pages(size) {
        for offset in [0, 0x7f8, PAGE - 8] {
            let at = AREA + page * PAGE + offset;
            check_eq!(mem::read::<u64>(at), Ok(mark(page)), "a read of {at:#x}");
        }
        let offset = (page * 0x88) & 0xff8;
        check_ok!(mem::write(AREA + page * PAGE + offset, !mark(page)));
    }
    for page in pages(size) {
        let offset = (page * 0x88) & 0xff8;
        let found = check_ok!(memory.read_u64(page * PAGE + offset));
        check_eq!(found, !mark(page), "the word at {offset:#x} of page {page}");
        let beside = offset ^ 8;
        let found = check_ok!(memory.read_u64(page * PAGE + beside));
        check_eq!(found, mark(page), "the word at {beside:#x} of page {page}");
    }
});

test!(sizes, "Each size at each end of a page writes its bytes and no others.", || {
    let (backing, size) = backing();
    let memory = check_ok!(Memory::new(size, backing));
    check_ok!(memory.slot(AREA, 0, size, 0));
    let page = size / 2;
    for bytes in [1, 2, 4, 8] {
        for offset in [0, 1, 3, 0x7ff, PAGE - bytes] {
            check_ok!(memory.fill(page - 64, PAGE + 128, 0xeeee_eeee_eeee_eeee));
            write(AREA + page + offset, bytes, MARK);
            // The word with the access in it, and those around.
            let start = page + (offset & !7) - 8;
            let mut wanted = [0xee; 32];
            let inside = (page + offset - start) as usize;
            let len = bytes as usize;
            wanted[inside..inside + len].copy_from_slice(&MARK.to_le_bytes()[..len]);
            let mut found = [0; 32];
            check_ok!(memory.read(start, &mut found));
            check_eq!(found, wanted, "from {start:#x} after {bytes} bytes at {offset:#x}");
            check_ok!(memory.write_u64(page + (offset & !7), !MARK));
            check_ok!(memory.write(page + offset, &MARK.to_le_bytes()[..bytes as usize]));
            let found = read(AREA + page + offset, bytes);
            check_eq!(found, MARK & ones(bytes), "{bytes} bytes at {offset:#x}");
        }
    }
});

/// Bytes to each side of an edge that are looked at.
const NEAR: usize = 32;

/// A place where one page ends and another begins, and where the host has both.
struct Edge {
    gpa: u64,
    below: (Memory, u64),
    above: (Memory, u64),
}

impl Edge {
    fn set(&self, bytes: &[u8; 2 * NEAR]) {
        let (below, above) = bytes.split_at(NEAR);
        check_ok!(self.below.0.write(self.below.1 - NEAR as u64, below));
        check_ok!(self.above.0.write(self.above.1, above));
    }

    fn get(&self) -> [u8; 2 * NEAR] {
        let mut bytes = [0; 2 * NEAR];
        let (below, above) = bytes.split_at_mut(NEAR);
        check_ok!(self.below.0.read(self.below.1 - NEAR as u64, below));
        check_ok!(self.above.0.read(self.above.1, above));
        bytes
    }

    /// Writes `size` bytes at each place over the edge, and reads there.
    fn check(&self, size: usize, write: impl Fn(u64, &[u8]), read: impl Fn(u64, &mut [u8])) {
        for below in 1..size {
            let (start, at) = (NEAR - below, self.gpa - below as u64);
            let value: [u8; NEAR] = core::array::from_fn(|i| 0x11 + 7 * i as u8);
            let mut wanted = [0xee; 2 * NEAR];
            self.set(&wanted);
            write(at, &value[..size]);
            wanted[start..start + size].copy_from_slice(&value[..size]);
            check_eq!(self.get(), wanted, "after a write of {size} bytes at {at:#x}");
            let other: [u8; 2 * NEAR] = core::array::from_fn(|i| (3 * i + below) as u8);
            self.set(&other);
            let mut found = [0; NEAR];
            read(at, &mut found[..size]);
            let wanted = &other[start..start + size];
            check_eq!(&found[..size], wanted, "a read of {size} bytes at {at:#x}");
        }
    }

    /// Does that with the sizes of general registers.
    fn check_all(&self) {
        for size in [2, 4, 8] {
            let to = |at, bytes: &[u8]| {
                let mut word = [0; 8];
                word[..size].copy_from_slice(bytes);
                write(at, size as u64, u64::from_le_bytes(word));
            };
            self.check(size, to, |at, bytes| {
                bytes.copy_from_slice(&read(at, size as u64).to_le_bytes()[..size]);
            });
        }
    }
}

/// Two slots that lie side by side: large pages below, small ones from the middle of other memory
/// above.
fn unlike_slots() -> Edge {
    let below = check_ok!(Memory::new(LARGE, Backing::Transparent));
    let above = check_ok!(Memory::new(8 * PAGE, Backing::Small));
    check_ok!(below.slot(AREA, 0, LARGE, 0));
    check_ok!(above.slot(AREA + LARGE, 3 * PAGE, 4 * PAGE, 0));
    Edge { gpa: AREA + LARGE, below: (below, LARGE), above: (above, 3 * PAGE) }
}

test!(over_pages, "Accesses over the edge of two pages have their bytes in order.", || {
    let (backing, size) = backing();
    let memory = check_ok!(Memory::new(size, backing));
    check_ok!(memory.slot(AREA, 0, size, 0));
    // Two small pages, then where large ones would meet.
    for offset in [5 * PAGE, LARGE].into_iter().filter(|&offset| offset < size) {
        let side = (memory, offset);
        Edge { gpa: AREA + offset, below: side, above: side }.check_all();
    }
});

test!(over_slots, "Accesses over the edge of two slots have their bytes in order.", || {
    unlike_slots().check_all();
});

test!(pages_in_reverse, "Slots of one page each show a memory's pages in reverse.", || {
    const PAGES: u64 = 12;
    let memory = check_ok!(Memory::new(PAGES * PAGE, Backing::Small));
    for page in 0..PAGES {
        check_ok!(memory.fill(page * PAGE, PAGE, page));
        check_ok!(memory.slot(AREA + (PAGES - 1 - page) * PAGE, page * PAGE, PAGE, 0));
    }
    for page in 0..PAGES {
        let at = AREA + page * PAGE;
        check_eq!(mem::read::<u64>(at), Ok(PAGES - 1 - page), "the word at {at:#x}");
    }
    let (below, above) = ((memory, 7 * PAGE), (memory, 5 * PAGE));
    Edge { gpa: AREA + 6 * PAGE, below, above }.check_all();
});

simd_fn! {
    fn store_16(at: u64, bytes: &[u8]) {
        check_ok!(insn!("movups xmm0, [{}]", "movups [{}], xmm0"; in(reg) bytes.as_ptr(), in(reg) at));
    }
    fn load_16(at: u64, bytes: &mut [u8]) {
        let to = bytes.as_mut_ptr();
        check_ok!(insn!("movups xmm0, [{}]", "movups [{}], xmm0"; in(reg) at, in(reg) to));
    }
    fn store_32(at: u64, bytes: &[u8]) {
        check_ok!(insn!("vmovups ymm0, [{}]", "vmovups [{}], ymm0"; in(reg) bytes.as_ptr(), in(reg) at));
    }
    fn load_32(at: u64, bytes: &mut [u8]) {
        let to = bytes.as_mut_ptr();
        check_ok!(insn!("vmovups ymm0, [{}]", "vmovups [{}], ymm0"; in(reg) at, in(reg) to));
    }
}

test!(sixteen_bytes, "16 bytes over the edge of two slots have their order.", || {
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSFXSR), "set CR4.OSFXSR");
    unlike_slots().check(16, store_16, load_16);
});

test!(thirty_two_bytes, "32 bytes over the edge of two slots have their order.", || {
    cpuid::AVX.require();
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSFXSR | reg::CR4_OSXSAVE));
    check_ok!(reg::xsetbv(0, 7), "x87, SSE and AVX in XCR0");
    unlike_slots().check(32, store_32, load_32);
});

test!(locked, "LOCK over the edge of two slots changes both sides.", || {
    let edge = unlike_slots();
    for below in 1..8 {
        let at = edge.gpa - below;
        let get = || {
            let bytes = edge.get();
            let start = NEAR - below as usize;
            u64::from_le_bytes(core::array::from_fn(|i| bytes[start + i]))
        };
        edge.set(&[0xff; 2 * NEAR]);
        check_ok!(insn!("lock add qword ptr [{}], 2"; in(reg) at));
        check_eq!(get(), 1, "`lock add` over all ones, {below} bytes below");
        let old: u64;
        check_ok!(insn!("xchg [{}], {}"; in(reg) at, inout(reg) MARK => old));
        check_eq!((old, get()), (1, MARK), "`xchg`, {below} bytes below");
        let old: u64;
        check_ok!(
            insn!("lock cmpxchg [{}], {}"; in(reg) at, in(reg) !MARK, inout("rax") MARK => old)
        );
        check_eq!((old, get()), (MARK, !MARK), "`lock cmpxchg`, {below} bytes below");
    }
});

test!(fetch, "An instruction over the edge of two slots is fetched from both.", || {
    let edge = unlike_slots();
    // mov rax, imm64; ret
    let mut code = [0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xc3];
    for below in 1..10 {
        let value = MARK.rotate_left(8 * below as u32);
        code[2..10].copy_from_slice(&value.to_le_bytes());
        let mut bytes = [0xcc; 2 * NEAR];
        bytes[NEAR - below..][..code.len()].copy_from_slice(&code);
        edge.set(&bytes);
        check_eq!(mem::call(edge.gpa - below as u64), Ok(value), "{below} bytes below");
    }
});

test!(last_page, "The last page of the guest-physical address space can be RAM.", || {
    let top = 1u64 << cpuid::physical_bits();
    let memory = check_ok!(Memory::new(PAGE, Backing::Small));
    check_ok!(memory.slot(top - PAGE, 0, PAGE, 0), "a page below {top:#x}");
    paging::map(AT, top - PAGE, Size::K4, Flags::RW);
    check_ok!(mem::write(AT + PAGE - 8, MARK));
    check_eq!(memory.read_u64(PAGE - 8), Ok(MARK));
    check_ok!(memory.write_u64(0, !MARK));
    check_eq!(mem::read::<u64>(AT), Ok(!MARK));
});

test!(many_slots, "Each of many slots, made in no order, leads to its own page.", || {
    const SLOTS: u64 = 61;
    let memory = check_ok!(Memory::new(SLOTS * PAGE, Backing::Small));
    let gpa = |slot: u64| AREA + slot * 5 % SLOTS * 0x9000;
    for slot in 0..SLOTS {
        check_ok!(memory.fill(slot * PAGE, 8, MARK ^ slot));
        check_ok!(memory.slot(gpa(slot), slot * PAGE, PAGE, 0), "slot {slot}");
    }
    for slot in 0..SLOTS {
        let at = gpa(slot);
        check_eq!(mem::read::<u64>(at), Ok(MARK ^ slot), "slot {slot}");
        check_eq!(mem::read::<u64>(at + PAGE), Ok(u64::MAX), "behind slot {slot}");
    }
});
