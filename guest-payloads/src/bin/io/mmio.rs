//! MMIO by width and place: alignment, page edges, the region's edges, nobody's addresses.

use crate::area::{Area, Page, fill, get, put};
use crate::{WINDOW, WINDOW_LEN};
use payload_rt::*;

/// Where nothing is.
const NOBODY: u64 = 0xfeb0_0000;

/// Writes the low `size` bytes of `value` with one instruction.
fn write(at: u64, size: u64, value: u64) {
    match size {
        1 => put(at, value as u8),
        2 => put(at, value as u16),
        4 => put(at, value as u32),
        _ => put(at, value),
    }
}

/// Reads `size` bytes with one instruction.
fn read(at: u64, size: u64) -> u64 {
    match size {
        1 => get::<u8>(at).into(),
        2 => get::<u16>(at).into(),
        4 => get::<u32>(at).into(),
        _ => get(at),
    }
}

/// All ones of `size` bytes.
fn ones(size: u64) -> u64 {
    u64::MAX >> (64 - 8 * size)
}

const VALUE: u64 = 0x8877_6655_4433_2211;

/// Writes and reads `size` bytes at `at`; the 16 bytes from `around` must show just those.
fn write_and_read(at: u64, size: u64, around: u64, what: &str) {
    fill(around, 16, 0xee);
    write(at, size, VALUE);
    let byte = |i: u64| match (around + i).checked_sub(at).filter(|&i| i < size) {
        Some(i) => VALUE.to_le_bytes()[i as usize],
        None => 0xee,
    };
    for half in [0, 8] {
        let expected = (0..8).rev().fold(0, |word, i| word << 8 | u64::from(byte(half + i)));
        check_eq!(
            get::<u64>(around + half),
            expected,
            "{what}: the 8 bytes at {:#x} after {size} bytes were written at {at:#x}",
            around + half
        );
    }
    check_eq!(read(at, size), VALUE & ones(size), "{what}: {size} bytes read at {at:#x}");
}

test!(
    mmio_alignment,
    "An MMIO access of 1, 2, 4 or 8 bytes at any alignment reads and writes just its bytes.",
    || {
        for size in [1, 2, 4, 8] {
            for offset in 0..8 {
                write_and_read(WINDOW + 0x100 + offset, size, WINDOW + 0x100, "alignment");
            }
        }
    }
);

test!(
    mmio_page_edges,
    "An MMIO access over the edge of two pages reaches both, wherever they are mapped.",
    || {
        // Once as neighbours, once the other way round: the parts must go by physical address.
        let swapped = Area::new(0, &[Page::At(WINDOW + 0x6000), Page::At(WINDOW + 0x5000)]);
        let last = Area::new(1, &[Page::At(WINDOW + 0x6000)]);
        let first = Area::new(2, &[Page::At(WINDOW + 0x5000)]);
        for size in [2, 4, 8] {
            for before in 1..size {
                let edge = WINDOW + 0x6000;
                write_and_read(edge - before, size, edge - 8, "neighbours");
                let edge = swapped.page(1);
                write_and_read(edge - before, size, edge - 8, "pages the other way round");
                let byte = get::<u8>(last.start() + 0xfff);
                check_eq!(byte, (VALUE >> (8 * (before - 1))) as u8, "the last byte of page 0");
                let byte = get::<u8>(first.start());
                check_eq!(byte, (VALUE >> (8 * before)) as u8, "the first byte of page 1");
            }
        }
    }
);

test!(mmio_and_ram, "An access that is half in RAM and half in MMIO reaches both halves.", || {
    for (index, pages, what) in [
        (0, [Page::Ram, Page::At(WINDOW + 0x7000)], "RAM, then MMIO"),
        (1, [Page::At(WINDOW + 0x7000), Page::Ram], "MMIO, then RAM"),
    ] {
        let area = Area::new(index, &pages);
        let edge = area.page(1);
        for size in [2, 4, 8] {
            for before in 1..size {
                write_and_read(edge - before, size, edge - 8, what);
            }
        }
    }
});

test!(
    mmio_region_edges,
    "An access over the edge of an MMIO region reaches it with the bytes that are inside.",
    || {
        let end = WINDOW + WINDOW_LEN;
        for size in [2, 4, 8] {
            for inside in 1..size {
                put(end - 8, 0_u64);
                write(end - inside, size, VALUE);
                let kept = VALUE & ones(inside);
                check_eq!(get::<u64>(end - 8) >> (64 - 8 * inside), kept, "{inside} of {size}");
                let outside = ones(size) & !ones(inside);
                check_eq!(read(end - inside, size), outside | kept, "read {inside} of {size}");

                put(WINDOW, 0_u64);
                let start = WINDOW - (size - inside);
                write(start, size, VALUE);
                let kept = VALUE >> (8 * (size - inside)) & ones(inside);
                check_eq!(get::<u64>(WINDOW), kept, "the last {inside} of {size} bytes");
                let expected = ones(size - inside) | kept << (8 * (size - inside));
                check_eq!(read(start, size), expected, "read the last {inside} of {size}");
            }
        }
    }
);

test!(mmio_unclaimed, "MMIO that belongs to nobody reads as all ones; writes go nowhere.", || {
    for at in [NOBODY, NOBODY + 3, NOBODY + 0xffc, 0xd000_0000, 0xe123_4567] {
        for size in [1, 2, 4, 8] {
            write(at, size, 0);
            check_eq!(read(at, size), ones(size), "{size} bytes at {at:#x}");
        }
    }
});

test!(
    mmio_unclaimed_strings,
    "String instructions on MMIO that belongs to nobody come to their end, with all ones.",
    || {
        let area = Area::new(0, &[Page::Ram]);
        let (rdi, rcx): (u64, u64);
        fill(area.start(), 0x40, 0);
        check_ok!(insn!(
            "rep movsd";
            inout("rsi") NOBODY => _, inout("rdi") area.start() + 4 => rdi,
            inout("rcx") 9_u64 => rcx
        ));
        check_eq!((rdi, rcx), (area.start() + 40, 0), "rdi and rcx after rep movsd");
        for i in 0..16 {
            let expected = if (1..10).contains(&i) { u32::MAX } else { 0 };
            check_eq!(get::<u32>(area.start() + 4 * i), expected, "dword {i}");
        }
        check_ok!(insn!(
            "rep stosq";
            inout("rdi") NOBODY => _, inout("rcx") 700_u64 => _, in("rax") 0
        ));
        check_eq!(read(NOBODY, 8), u64::MAX, "after rep stosq");
    }
);

// SDM volume 3, 4.10.2.2: what an access does to page tables does not depend on what is behind
// the page; a fault comes before any access to the device.
test!(
    mmio_faults,
    "A page fault on the second page of a straddling access keeps all of it from the device.",
    || {
        let area = Area::new(0, &[Page::At(WINDOW + 0x8000), Page::Absent]);
        let edge = area.page(1);
        for size in [2, 4, 8] {
            for before in 1..size {
                fill(edge - 8, 8, 0x77);
                let done = match size {
                    2 => mem::write(edge - before, 0_u16),
                    4 => mem::write(edge - before, 0_u32),
                    _ => mem::write(edge - before, 0_u64),
                };
                let fault = check_err!(done, "{size} bytes, {before} before the edge");
                check!(fault.is(trap::PF, 2), "{fault}");
                check_eq!(fault.cr2, edge, "CR2");
                check_eq!(get::<u64>(edge - 8), 0x7777_7777_7777_7777, "the first page");
            }
        }
    }
);

test!(
    mmio_string_fault,
    "`rep movs` out of and into MMIO faults where its page ends, with all before it moved.",
    || {
        let area = Area::new(0, &[Page::At(WINDOW + 0x9000), Page::Absent]);
        let ram = Area::new(1, &[Page::Ram]);
        let edge = area.page(1);
        put(edge - 8, VALUE);
        for (what, error, out) in [("out of MMIO", 0, true), ("into MMIO", 2, false)] {
            fill(ram.start(), 32, 0x33);
            let (from, to) =
                if out { (edge - 6, ram.start() + 8) } else { (ram.start() + 8, edge - 6) };
            let (rsi, rdi, rcx): (u64, u64, u64);
            let moved = insn!(
                "rep movsb";
                inout("rsi") from => rsi, inout("rdi") to => rdi, inout("rcx") 10_u64 => rcx
            );
            let fault = check_err!(moved, "rep movsb {what}");
            check!(fault.is(trap::PF, error) && fault.cr2 == edge, "{what}: {fault}");
            check_eq!((rsi, rdi, rcx), (from + 6, to + 6, 4), "rsi, rdi, rcx {what}");
            let seen = if out { get::<u64>(ram.start() + 8) } else { get::<u64>(edge - 8) };
            let expected = if out { 0x3333_8877_6655_4433 } else { 0x3333_3333_3333_2211 };
            check_eq!(seen, expected, "what was moved {what}");
        }
    }
);
