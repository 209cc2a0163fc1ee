//! String port I/O: INS and OUTS with REP, directions, page edges and faults in between.
//!
//! SDM volume 2, INS, OUTS and REP; volume 1, 7.3.9.1 ("fast-string" leaves nothing visible here).

use crate::LATCH;
use crate::area::{Area, Page, fill, get, put};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use payload_rt::frames::PAGE;
use payload_rt::trap::Trap;
use payload_rt::*;

/// What the latch holds for reads.
const VALUE: u32 = 0xd4c3_b2a1;
/// What buffers hold before.
const FILL: u8 = 0x5f;

/// RCX and RDI or RSI, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Regs {
    count: u64,
    at: u64,
}

/// An instruction that moves a string between a port and memory.
type Move = fn(&mut Regs) -> Result<(), Trap>;

macro_rules! ins {
    ($($code:literal),+) => {
        |r: &mut Regs| insn!($($code),+; in("dx") LATCH, inout("rcx") r.count, inout("rdi") r.at)
    };
}
macro_rules! outs {
    ($($code:literal),+) => {
        |r: &mut Regs| insn!($($code),+; in("dx") LATCH, inout("rcx") r.count, inout("rsi") r.at)
    };
}

/// Upwards, by element size.
const INS: [(u64, Move); 3] = [(1, ins!("rep insb")), (2, ins!("rep insw")), (4, ins!("rep insd"))];
const OUTS: [(u64, Move); 3] =
    [(1, outs!("rep outsb")), (2, outs!("rep outsw")), (4, outs!("rep outsd"))];
/// Downwards.
const INS_DOWN: [(u64, Move); 3] = [
    (1, ins!("std", "rep insb", "cld")),
    (2, ins!("std", "rep insw", "cld")),
    (4, ins!("std", "rep insd", "cld")),
];
const OUTS_DOWN: [(u64, Move); 3] = [
    (1, outs!("std", "rep outsb", "cld")),
    (2, outs!("std", "rep outsw", "cld")),
    (4, outs!("std", "rep outsd", "cld")),
];

/// Byte `index` of what an INS of `size` bytes an element stores.
fn stored(index: u64, size: u64) -> u8 {
    VALUE.to_le_bytes()[(index % size) as usize]
}

/// Fills `before` and `after` the range, which must hold elements from the latch.
fn check_stored(what: &str, size: u64, range: core::ops::Range<u64>) {
    for at in range.start - 8..range.end + 8 {
        let inside = range.contains(&at);
        let expected = if inside { stored(at - range.start, size) } else { FILL };
        check_eq!(get::<u8>(at), expected, "{what}: the byte at {:#x}", at - range.start);
    }
}

test!(
    ins_widths,
    "`rep ins` of each size stores its elements and nothing else, upwards and downwards.",
    || {
        let area = Area::new(0, &[Page::Ram]);
        port::out32(LATCH, VALUE);
        for (down, forms) in [(false, INS), (true, INS_DOWN)] {
            for (size, run) in forms {
                for count in [1, 2, 7, 16] {
                    let (start, len) = (area.start() + 0x803, count * size);
                    fill(area.start() + 0x7f0, 0x80, FILL);
                    let (first, last) = (start, start + len - size);
                    let mut r = Regs { count, at: if down { last } else { first } };
                    check_ok!(run(&mut r), "{count} times ins of {size} bytes");
                    let end = if down { first - size } else { last + size };
                    check_eq!(r, Regs { count: 0, at: end }, "rcx and rdi, down: {down}");
                    check_stored("rep ins", size, start..start + len);
                }
            }
        }
    }
);

test!(
    outs_widths,
    "`rep outs` of each size writes its elements in order, upwards and downwards.",
    || {
        let area = Area::new(0, &[Page::Ram]);
        for i in 0..64 {
            put(area.start() + i, 0x10 + i as u8);
        }
        for (down, forms) in [(false, OUTS), (true, OUTS_DOWN)] {
            for (size, run) in forms {
                for count in [1, 2, 7, 15] {
                    let (first, last) = (area.start() + 1, area.start() + 1 + (count - 1) * size);
                    port::out32(LATCH, 0);
                    let mut r = Regs { count, at: if down { last } else { first } };
                    check_ok!(run(&mut r), "{count} times outs of {size} bytes");
                    let end = if down { first - size } else { last + size };
                    check_eq!(r, Regs { count: 0, at: end }, "rcx and rsi, down: {down}");
                    // The element that was written last is the one that stays.
                    let kept = if down { first } else { last };
                    let word = get::<u32>(kept) & (u32::MAX >> (32 - 8 * size));
                    check_eq!(port::in32(LATCH), word, "{count} times {size} bytes, down: {down}");
                }
            }
        }
    }
);

test!(single_steps, "INS and OUTS without REP move one element and leave rcx alone.", || {
    let area = Area::new(0, &[Page::Ram]);
    port::out32(LATCH, VALUE);
    for (size, run) in [(1, ins!("insb") as Move), (2, ins!("insw")), (4, ins!("insd"))] {
        fill(area.start(), 0x40, FILL);
        let mut r = Regs { count: 0x1234_5678_9abc, at: area.start() + 0x10 };
        check_ok!(run(&mut r));
        check_eq!(r, Regs { count: 0x1234_5678_9abc, at: area.start() + 0x10 + size });
        check_stored("ins", size, area.start() + 0x10..area.start() + 0x10 + size);
    }
    put(area.start(), 0x0403_0201_u32);
    for (size, run, latch) in [
        (1, outs!("outsb") as Move, 0xffff_ff01_u32),
        (2, outs!("outsw"), 0xffff_0201),
        (4, outs!("outsd"), 0x0403_0201),
    ] {
        port::out32(LATCH, u32::MAX);
        let mut r = Regs { count: 0, at: area.start() };
        check_ok!(run(&mut r));
        check_eq!(r, Regs { count: 0, at: area.start() + size });
        check_eq!(port::in32(LATCH), latch, "outs of {size} bytes");
    }
});

test!(
    count_zero,
    "With rcx 0, `rep ins` and `rep outs` touch neither port nor memory, mapped or not.",
    || {
        let area = Area::new(0, &[Page::Absent]);
        port::out32(LATCH, VALUE);
        for forms in [INS, OUTS, INS_DOWN, OUTS_DOWN] {
            for (size, run) in forms {
                for at in [area.start(), 0x8000_0000_0000_0000] {
                    let mut r = Regs { count: 0, at };
                    check_ok!(run(&mut r), "elements of {size} bytes, rcx 0, address {at:#x}");
                    check_eq!(r, Regs { count: 0, at }, "rcx and the address");
                }
            }
        }
        check_eq!(port::in32(LATCH), VALUE, "the latch");
    }
);

test!(
    over_page_edges,
    "`rep ins` and `rep outs` cross page edges, with elements that straddle them.",
    || {
        let area = Area::new(0, &[Page::Ram, Page::Ram]);
        let edge = area.page(1);
        for (size, run) in INS {
            port::out32(LATCH, VALUE);
            for before in [1, 2, 3, 4, 8] {
                fill(edge - 0x20, 0x60, FILL);
                let mut r = Regs { count: 10, at: edge - before };
                check_ok!(run(&mut r));
                check_eq!(r, Regs { count: 0, at: edge - before + 10 * size });
                check_stored("rep ins over the edge", size, edge - before..r.at);
            }
        }
        for i in 0..16 {
            put(edge - 8 + i, 0x70 + i as u8);
        }
        for (size, run) in OUTS {
            for before in [1, 2, 3] {
                // The last element is the one over the edge.
                let last = edge - before;
                let mut r = Regs { count: 2, at: last - size };
                port::out32(LATCH, 0);
                check_ok!(run(&mut r));
                let word = get::<u32>(last) & (u32::MAX >> (32 - 8 * size));
                check_eq!(port::in32(LATCH), word, "{size} bytes, {before} before the edge");
            }
        }
    }
);

test!(more_than_a_page, "`rep ins` and `rep outs` of more than a page come to their end.", || {
    let area = Area::new(0, &[Page::Ram, Page::Ram, Page::Ram]);
    port::out32(LATCH, VALUE);
    for (size, run) in INS {
        let count = (PAGE + 0x30) / size;
        let (start, len) = (area.start() + 0x808, count * size);
        fill(start - 8, len + 16, FILL);
        let mut r = Regs { count, at: start };
        check_ok!(run(&mut r), "{count} elements of {size} bytes");
        check_eq!(r, Regs { count: 0, at: start + len });
        let word = match size {
            1 => u64::from_ne_bytes([stored(0, 1); 8]),
            2 => u64::from(VALUE & 0xffff) * 0x0001_0001_0001_0001,
            _ => u64::from(VALUE) * 0x1_0000_0001,
        };
        for at in (start - 8..start + len + 8).step_by(8) {
            let inside = (start..start + len).contains(&at);
            let expected = if inside { word } else { u64::from_ne_bytes([FILL; 8]) };
            check_eq!(get::<u64>(at), expected, "{size} bytes: at {:#x}", at - start);
        }
    }
    // Each element of its own value; the latch shows the last.
    let start = area.start() + 0x7fc;
    put(start + PAGE + 0x2c, 0x1357_9bdf_u32);
    let mut r = Regs { count: (PAGE + 0x30) / 4, at: start };
    check_ok!(OUTS[2].1(&mut r));
    check_eq!(r, Regs { count: 0, at: start + PAGE + 0x30 });
    check_eq!(port::in32(LATCH), 0x1357_9bdf, "the last of more than a page of dwords");
});

// SDM volume 2, INS: a fault may come after the port was read, so what the device saw is not told
// here. What memory and registers say is: they are those at the start of the element.
/// `rep ins` up to a page that cannot be written.
fn ins_up_to_fault(forms: &[(u64, Move)]) {
    for (index, page, error) in [(0, Page::Absent, 2), (1, Page::ReadOnly, 3)] {
        let area = Area::new(index, &[Page::Ram, page]);
        let edge = area.page(1);
        for &(size, run) in forms {
            for (fit, over) in [(0, 0), (1, 0), (5, 0), (5, size - 1)] {
                port::out32(LATCH, VALUE);
                fill(edge - 0x40, 0x40, FILL);
                let start = edge - fit * size - over;
                let mut r = Regs { count: fit + 3, at: start };
                let fault = check_err!(run(&mut r), "{fit} elements of {size} fit");
                check!(fault.is(trap::PF, error), "{fault}, into {page:?}");
                check_eq!(fault.cr2, edge, "CR2: the first byte that cannot be written");
                let done = Regs { count: 3, at: start + fit * size };
                check_eq!(r, done, "rcx and rdi at the fault, {fit} elements of {size} bytes fit");
                for at in edge - 0x40..start + fit * size {
                    let inside = at >= start;
                    let expected = if inside { stored(at - start, size) } else { FILL };
                    check_eq!(get::<u8>(at), expected, "the byte {:#x} below", edge - at);
                }
            }
        }
    }
}

test!(
    ins_fault,
    "`rep insb` into a page that is absent or read-only is #PF at the first byte there.",
    || ins_up_to_fault(&INS[..1])
);

test!(
    ins_fault_wide,
    "`rep insw` and `rep insd` fault at the first element that does not fit, with all before stored.",
    || ins_up_to_fault(&INS[1..])
);

test!(
    outs_fault,
    "`rep outs` from an absent page is #PF at the first element there, with all before it written.",
    || {
        let area = Area::new(0, &[Page::Ram, Page::Absent]);
        let edge = area.page(1);
        for i in 1..=32 {
            put(edge - i, 0x80 + i as u8);
        }
        for (size, run) in OUTS {
            for (fit, over) in [(0, 0), (1, 0), (6, 0), (6, size - 1)] {
                port::out32(LATCH, 0);
                let start = edge - fit * size - over;
                let mut r = Regs { count: fit + 2, at: start };
                let fault = check_err!(run(&mut r), "{fit} elements of {size} fit");
                check!(fault.is(trap::PF, 0), "{fault}");
                check_eq!(fault.cr2, edge, "CR2: the first byte that cannot be read");
                check_eq!(r, Regs { count: 2, at: start + fit * size }, "rcx and rsi");
                let latch = port::in32(LATCH);
                let last = (0..4).rev().fold(0, |word, i| {
                    let at = start + fit.saturating_sub(1) * size + i;
                    let byte = if fit > 0 && i < size { get::<u8>(at) } else { 0 };
                    word << 8 | u32::from(byte)
                });
                check_eq!(latch, last, "the last of {fit} elements of {size} bytes");
            }
        }
    }
);

static FAULTS: AtomicU64 = AtomicU64::new(0);
static AT_FAULT: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// `rep ins` of 9 elements, of which 5 fit, with a handler that brings the page.
fn ins_with_restart(index: u64, down: bool, (size, run): (u64, Move)) {
    let pages = [Page::Ram, Page::Absent];
    // Downwards it is the first page that is not there.
    let area = Area::new(index, &if down { [pages[1], pages[0]] } else { pages });
    let edge = area.page(1);
    port::out32(LATCH, VALUE);
    FAULTS.store(0, Relaxed);
    irq::handle(trap::PF, |frame| {
        FAULTS.fetch_add(1, Relaxed);
        let seen = [frame.rcx, frame.rdi, reg::cr2()];
        AT_FAULT.iter().zip(seen).for_each(|(slot, value)| slot.store(value, Relaxed));
        let page = reg::cr2() & !(PAGE - 1);
        let frame = frames::alloc().address();
        paging::map(page, frame, paging::Size::K4, paging::Flags::RW);
    });
    let start = if down { edge + 4 * size } else { edge - 5 * size };
    let mut r = Regs { count: 9, at: start };
    check_ok!(run(&mut r));
    irq::unhandle(trap::PF);
    let [rcx, rdi, cr2] = AT_FAULT.each_ref().map(|slot| slot.load(Relaxed));
    let what = if down { "downwards" } else { "upwards" };
    let at = if down { edge - size } else { edge };
    check_eq!((rcx, rdi, cr2), (4, at, at), "rcx, rdi and CR2 at the fault, {size} bytes {what}");
    check_eq!(FAULTS.load(Relaxed), 1, "page faults, {size} bytes {what}");
    let end = if down { start - 9 * size } else { start + 9 * size };
    check_eq!(r, Regs { count: 0, at: end }, "rcx and rdi at the end, {size} bytes {what}");
    let low = if down { end + size } else { start };
    for at in low..low + 9 * size {
        check_eq!(get::<u8>(at), stored(at - low, size), "byte {:#x}, {what}", at - low);
    }
}

test!(
    restart_after_fault,
    "`rep ins` goes on where it faulted once the page is there, in either direction.",
    || {
        ins_with_restart(0, false, INS[0]);
        for (i, form) in (1..).zip(INS_DOWN) {
            ins_with_restart(i, true, form);
        }
    }
);

test!(
    restart_after_fault_wide,
    "`rep insw` and `rep insd` go on upwards where they faulted once the page is there.",
    || {
        ins_with_restart(0, false, INS[1]);
        ins_with_restart(1, false, INS[2]);
    }
);

test!(
    segment_overrides,
    "OUTS takes its string from the segment that a prefix names; INS always uses ES.",
    || {
        let area = Area::new(0, &[Page::Ram]);
        put(area.start() + 0x10, 0x0403_0201_u32);
        put(area.start() + 0x20, 0x1413_1211_u32);
        put(area.start() + 0x30, 0x2423_2221_u32);
        let (fs, gs) = (area.start() + 0x10, area.start() + 0x20);
        let old = [reg::FS_BASE, reg::GS_BASE].map(|msr| check_ok!(reg::rdmsr(msr)));
        check_ok!(reg::wrmsr(reg::FS_BASE, fs));
        check_ok!(reg::wrmsr(reg::GS_BASE, gs));
        for (what, run, at, expected) in [
            ("fs outsd", outs!(".byte 0x64, 0x6f") as Move, 0, 0x0403_0201_u32),
            ("gs outsd", outs!(".byte 0x65, 0x6f"), 0, 0x1413_1211),
            ("fs rep outsb", outs!(".byte 0x64, 0xf3, 0x6e"), 0, 0x01),
            ("gs rep outsw", outs!(".byte 0xf3, 0x65, 0x66, 0x6f"), 0x10, 0x2221),
            ("ds outsd", outs!(".byte 0x3e, 0x6f"), fs, 0x0403_0201),
            ("es outsd", outs!(".byte 0x26, 0x6f"), gs, 0x1413_1211),
        ] {
            port::out32(LATCH, 0);
            let mut r = Regs { count: 1, at };
            check_ok!(run(&mut r), "{what}");
            check_eq!(port::in32(LATCH), expected, "what {what} wrote");
        }
        port::out32(LATCH, VALUE);
        for (what, run) in [
            ("fs insd", ins!(".byte 0x64, 0x6d") as Move),
            ("gs rep insd", ins!(".byte 0x65, 0xf3, 0x6d")),
        ] {
            let at = area.start() + 0x100;
            put(at, 0_u32);
            let mut r = Regs { count: 1, at };
            check_ok!(run(&mut r), "{what}");
            check_eq!(get::<u32>(at), VALUE, "what {what} stored at es:rdi");
        }
        for (msr, value) in [reg::FS_BASE, reg::GS_BASE].into_iter().zip(old) {
            check_ok!(reg::wrmsr(msr, value));
        }
    }
);

// SDM volume 2, INS: with a 32-bit address size the registers are ECX and EDI; volume 1, 3.3.7.
test!(
    address_size_32,
    "With a 32-bit address size, `rep ins` and `rep outs` use ecx and edi or esi.",
    || {
        let mut low = frames::alloc();
        let at = low.address() + 0x100;
        low.bytes().fill(FILL);
        port::out32(LATCH, VALUE);
        // The upper halves are no part of count and address.
        let run = ins!(".byte 0x67, 0xf3, 0x6d") as Move;
        let mut r = Regs { count: 0x7_0000_0003, at: at | 0x9_0000_0000 };
        check_ok!(run(&mut r), "addr32 rep insd");
        check_eq!((r.count, r.at), (0, at + 12), "rcx and rdi after addr32 rep insd");
        check_stored("addr32 rep insd", 4, at..at + 12);
        put(at, 0x0a0b_0c0d_u32);
        let run = outs!(".byte 0x67, 0xf3, 0x6f") as Move;
        let mut r = Regs { count: 0x7_0000_0001, at: at | 0x9_0000_0000 };
        check_ok!(run(&mut r), "addr32 rep outsd");
        check_eq!(port::in32(LATCH), 0x0a0b_0c0d, "what addr32 rep outsd wrote");
        // A count of zero in ecx is none, whatever rcx has above it.
        let run = ins!(".byte 0x67, 0xf3, 0x6c") as Move;
        fill(at & !7, 16, FILL);
        check_ok!(run(&mut Regs { count: 0x1_0000_0000, at }), "addr32 rep insb, ecx 0");
        check_eq!(get::<u8>(at), FILL, "the byte that `addr32 rep insb` with ecx 0 must not store");
    }
);

test!(ins_to_mmio, "INS stores to, and OUTS loads from, memory that is itself MMIO.", || {
    let at = crate::WINDOW + 0x200;
    for (size, run) in INS {
        port::out32(LATCH, VALUE);
        fill(at - 8, 0x40, FILL);
        let mut r = Regs { count: 5, at };
        check_ok!(run(&mut r), "rep ins of {size} bytes to MMIO");
        check_eq!(r, Regs { count: 0, at: at + 5 * size });
        check_stored("rep ins to MMIO", size, at..at + 5 * size);
    }
    put(at, 0x7766_5544_3322_1100_u64);
    for (size, run) in OUTS {
        port::out32(LATCH, 0);
        let mut r = Regs { count: 2, at };
        check_ok!(run(&mut r), "rep outs of {size} bytes from MMIO");
        let word = get::<u32>(at + size) & (u32::MAX >> (32 - 8 * size));
        check_eq!(port::in32(LATCH), word, "the last element of {size} bytes from MMIO");
    }
});
