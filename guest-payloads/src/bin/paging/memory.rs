//! Guest memory: above 4 GiB, around the hole below it, and under a VMM that changes its mapping.

use crate::{AT, RET, frame_of_ret, frame_with, map};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use payload_rt::boot::{Kind, Region};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::*;

const GIB_4: u64 = 1 << 32;
const M2: u64 = 2 << 20;

/// The first RAM above 4 GiB, whole large pages of it.
fn high_ram() -> (u64, u64) {
    let high = |r: &&Region| r.kind == Kind::Ram && r.start >= GIB_4 && r.len >= 4 * M2;
    let Some(ram) = boot::info().regions().iter().find(high) else {
        skip!("no RAM above 4 GiB");
    };
    (ram.start.next_multiple_of(M2), ram.end() & !(M2 - 1))
}

test!(
    above_4g,
    "RAM above 4 GiB is there from its first byte to its last, in pages of each size.",
    || {
        let (start, end) = high_ram();
        let places =
            [start, start + M2 - 0x1000, ((start + end) / 2) & !0xfff, end - M2, end - 0x1000];
        let large = AT & !(M2 - 1);
        let small = large ^ 1 << 30;
        for (i, place) in (1..).zip(places) {
            map(small, place);
            paging::map(large, place & !(M2 - 1), Size::M2, Flags::RW);
            for offset in [0, 0xff8] {
                let mark = place ^ 0x5a5a_0000_0000_0000 ^ offset << 32 ^ i;
                check_ok!(mem::write(small + offset, mark), "write {:#x}", place + offset);
                let by_large = large + (place & (M2 - 1)) + offset;
                check_eq!(mem::read(by_large), Ok(mark), "{:#x} in a 2 MiB page", place + offset);
            }
        }
        if cpuid::PAGE_1G.present() {
            const G1: u64 = 1 << 30;
            let giga = (AT & !(G1 - 1)) + (4 << 30);
            paging::map(giga, start & !(G1 - 1), Size::G1, Flags::RW);
            let at = giga + (start & (G1 - 1));
            check_ok!(mem::write(at + 8, 0x1234_u64), "write in a 1 GiB page");
            map(small, start);
            check_eq!(mem::read(small + 8), Ok(0x1234_u64), "what was written in a 1 GiB page");
        }
    }
);

test!(no_alias, "Each part of RAM is its own: none is seen at another's address.", || {
    // A mark in the middle of each 2 MiB, all written before any is read.
    const WINDOW: u64 = AT & !(M2 - 1);
    let ram = || boot::info().regions().iter().filter(|r| r.kind == Kind::Ram);
    let step = boot::number("step").unwrap_or(16 << 20);
    let places = || {
        ram().flat_map(move |r| {
            // Stay clear of the payload, its stacks and tables: those are low in RAM.
            let first = r.start.max(frames::image_end() + (64 << 20)).next_multiple_of(M2);
            (first..r.end().saturating_sub(M2) + 1).step_by(step as usize)
        })
    };
    let mark = |place: u64| place ^ 0xa5a5_a5a5_0000_0000;
    let visit = |place: u64| {
        paging::map(WINDOW, place, Size::M2, Flags::RW);
        WINDOW + M2 / 2
    };
    let mut count = 0_u64;
    for place in places() {
        check_ok!(mem::write(visit(place), mark(place)), "write {place:#x}");
        count += 1;
    }
    for place in places() {
        check_eq!(mem::read(visit(place)), Ok(mark(place)), "the mark of {place:#x}");
    }
    check!(count > 0, "there is no RAM to mark");
    report::value("marks", count);
});

test!(
    hole,
    "The first page behind low RAM is no memory: it reads as all ones and keeps nothing.",
    || {
        let regions = || boot::info().regions().iter();
        let low =
            regions().filter(|r| r.kind == Kind::Ram && r.end() <= GIB_4).map(Region::end).max();
        let Some(end) = low else { report::error(format_args!("no RAM below 4 GiB")) };
        let end = end.next_multiple_of(0x1000);
        if regions().any(|r| r.start < end + 0x1000 && end < r.end()) {
            skip!("the memory map has something at {end:#x}, behind low RAM");
        }
        for offset in [0, 0x7f8, 0xff8] {
            for value in [0_u64, 0x1234_5678_9abc_def0] {
                check_ok!(mem::write(end + offset, value), "write behind RAM");
                check_eq!(mem::read(end + offset), Ok(u64::MAX), "{:#x}, behind RAM", end + offset);
            }
        }
        check_eq!(mem::read(end + 0x10), Ok(u8::MAX), "a byte behind RAM");
        // The last of RAM is memory still.
        let last = end - 8;
        check_ok!(mem::write(last, 0x1122_3344_5566_7788_u64));
        check_eq!(mem::read(last), Ok(0x1122_3344_5566_7788_u64), "the last word of low RAM");
        // Half in RAM and half behind it.
        check_eq!(mem::read(end - 4), Ok(0xffff_ffff_1122_3344_u64), "a word half behind RAM");
    }
);

test!(tables_above_4g, "Page tables above 4 GiB are walked, and get their A and D bits.", || {
    let (start, _) = high_ram();
    // Three tables, level 3 to 1, each filled through a window.
    let table = |i: u64| start + 0x1000 * i;
    let window = |i: u64| (AT ^ 1 << 46) + 0x1000 * i;
    for i in 0..3 {
        map(window(i), table(i));
        (0..512).for_each(|slot| check_ok!(mem::write(window(i) + 8 * slot, 0_u64)));
    }
    let slot =
        |level: u32| window(3 - u64::from(level)) + 8 * (AT >> (12 + 9 * (level - 1)) & 0x1ff);
    let frame = frame_with(0xfeed);
    check_ok!(mem::write(slot(3), table(1) | Flags::RW.0));
    check_ok!(mem::write(slot(2), table(2) | Flags::RW.0));
    check_ok!(mem::write(slot(1), frame | Flags::RW.0));
    let top = paging::entry(AT, 4);
    check_eq!(top.value, 0, "the top-level entry of {AT:#x}");
    top.set(table(0) | Flags::RW.0);
    paging::flush();
    check_eq!(mem::read(AT), Ok(0xfeed_u64), "by tables above 4 GiB");
    let entry = |level| check_ok!(mem::read::<u64>(slot(level)));
    for (level, wanted) in [(3, Flags::A.0), (2, Flags::A.0), (1, Flags::A.0)] {
        check_eq!(entry(level) & (Flags::A | Flags::D).0, wanted, "A and D at level {level}");
    }
    check_ok!(mem::write(AT + 8, 1_u64));
    check!(entry(1) & Flags::D.0 != 0, "D of the leaf after a write: {:#x}", entry(1));
    // And a change counts.
    let other = frame_with(0xbeef);
    check_ok!(mem::write(slot(1), other | Flags::RW.0));
    paging::invlpg(AT);
    check_eq!(mem::read(AT), Ok(0xbeef_u64), "after a change and INVLPG");
    top.set(0);
    paging::flush();
});

test!(root_above_4g, "A top-level table above 4 GiB serves: CR3 is 64 bits wide.", || {
    let (start, _) = high_ram();
    let window = AT;
    map(window, start);
    let old = reg::cr3();
    for slot in 0..512 {
        let entry = check_ok!(mem::read::<u64>((old & paging::ADDRESS) + 8 * slot));
        check_ok!(mem::write(window + 8 * slot, entry));
    }
    for _ in 0..3 {
        check_ok!(reg::set_cr3(start), "load CR3 with {start:#x}");
        check_eq!(reg::cr3(), start, "CR3");
        let seen = mem::read::<u64>(window + 8 * (AT >> 39));
        check_ok!(reg::set_cr3(old), "load the old CR3");
        check_eq!(
            seen.map(|entry| entry & paging::ADDRESS),
            Ok(paging::entry(AT, 4).value & paging::ADDRESS)
        );
    }
});

test!(remapped_page, "A page that the VMM maps anew keeps what was written to it.", || {
    testdev::require();
    let frame = frame_with(0);
    for round in 1..50_u64 {
        check_ok!(mem::write(frame + 8 * round, round), "write before");
        testdev::remap_page(frame as u32);
        for word in 1..=round {
            check_eq!(mem::read(frame + 8 * word), Ok(word), "word {word} after {round} times");
        }
    }
});

test!(remapped_code, "Code runs on in a page that the VMM maps anew.", || {
    testdev::require();
    let frame = frame_of_ret();
    for round in 0..20_u64 {
        // mov eax, round; ret
        check_ok!(mem::write_bytes(frame, &[0xb8, round as u8, 0, 0, 0, RET]));
        check_eq!(mem::call(frame), Ok(round), "before");
        testdev::remap_page(frame as u32);
        check_eq!(mem::call(frame), Ok(round), "after");
    }
});

test!(
    remapped_tables,
    "A page table that the VMM maps anew is walked as before, and gets its bits.",
    || {
        testdev::require();
        let frames = [frame_with(0x1111), frame_with(0x2222)];
        let leaf = map(AT, frames[0]);
        for level in 1..=4 {
            let table = paging::entry(AT, level).at & !0xfff;
            for round in 0..6 {
                leaf.set(frames[round % 2] | Flags::RW.0);
                testdev::remap_page(table as u32);
                paging::invlpg(AT);
                check_eq!(
                    mem::read(AT),
                    Ok([0x1111_u64, 0x2222][round % 2]),
                    "table of level {level}"
                );
                check!(leaf.reload().flags().has(Flags::A), "A is clear, table of level {level}");
                check_ok!(mem::write(AT + 8, 1_u64));
                check!(leaf.reload().flags().has(Flags::D), "D is clear, table of level {level}");
            }
        }
    }
);

test!(remapped_self, "The payload lives on while the VMM maps every page of it anew.", || {
    // Code, data, stacks, IDT, GDT, TSS and page tables are among them.
    testdev::require();
    for _ in 0..2 {
        for page in (0x10_0000..frames::image_end()).step_by(0x1000) {
            testdev::remap_page(page as u32);
        }
        let fault = check_err!(mem::read::<u8>(AT), "a page that is not there");
        check_eq!(fault.vector, trap::PF);
    }
});

static STOP: AtomicU32 = AtomicU32::new(0);

test!(
    remapped_under_fire,
    "Locked counts by another CPU lose nothing while the VMM maps their page anew.",
    || {
        testdev::require();
        if smp::start() < 2 {
            skip!("one CPU");
        }
        let frame = frame_with(0);
        let job = smp::spawn(
            1,
            |frame| {
                // This loop never exits. Bochs takes no interrupt of the host's while a guest runs that
                // it entered with interrupts off, like KVM's host (cpu/vmx.cc): that host would hang.
                reg::sti();
                let mut count = 0_u64;
                while STOP.load(SeqCst) == 0 || count == 0 {
                    check_ok!(insn!("lock inc qword ptr [{}]"; in(reg) frame));
                    count += 1;
                }
                count
            },
            frame,
        );
        for _ in 0..300 {
            testdev::remap_page(frame as u32);
        }
        STOP.store(1, SeqCst);
        let counted = job.wait();
        report::value("counted", counted);
        check_eq!(mem::read(frame), Ok(counted), "the count in memory");
    }
);
