//! What a CPU may remember of the page tables, and what makes it forget.
//!
//! SDM volume 3, 5.10; AMD APM volume 2, 5.5. Only what must be forgotten is tested: a translation
//! that could still be in the TLB may be gone.

use crate::{AT, E_P, E_W, frame_with, is_fault, map};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::*;

const MARKS: [u64; 2] = [0x1111_1111_1111_1111, 0x2222_2222_2222_2222];

fn two_frames() -> [u64; 2] {
    MARKS.map(frame_with)
}

fn check_reads(at: u64, wanted: u64, what: &str) {
    let found = check_ok!(mem::read::<u64>(at), "{what}: a read of {at:#x}");
    check_eq!(found, wanted, "{what}: a read of {at:#x}");
}

test!(invlpg, "After INVLPG a page leads to the frame that its entry has by then.", || {
    let frames = two_frames();
    let leaf = map(AT, frames[0]);
    for round in 0..64 {
        check_reads(AT, MARKS[round % 2], "before the change");
        leaf.set(frames[(round + 1) % 2] | Flags::RW.0);
        // Any byte of the page will do.
        paging::invlpg(AT + ((round as u64 * 0x41) & 0xfff));
        check_reads(AT, MARKS[(round + 1) % 2], "after INVLPG");
    }
});

test!(cr3_reload, "A write to CR3 forgets all pages that are not global.", || {
    let frames = two_frames();
    const PAGES: u64 = 16;
    let leaves: [_; PAGES as usize] =
        core::array::from_fn(|i| map(AT + 0x1000 * i as u64, frames[0]));
    for round in 0..16 {
        for page in 0..PAGES {
            check_reads(AT + 0x1000 * page, MARKS[round % 2], "before the change");
        }
        leaves.iter().for_each(|leaf| leaf.set(frames[(round + 1) % 2] | Flags::RW.0));
        paging::flush();
        for page in 0..PAGES {
            check_reads(AT + 0x1000 * page, MARKS[(round + 1) % 2], "after CR3");
        }
    }
});

test!(another_cr3, "Each value of CR3 shows its own tables' pages, back and forth.", || {
    let frames = two_frames();
    map(AT, frames[0]);
    // A second top-level table, the same but for the slot of AT.
    let first = reg::cr3();
    let second = frames::alloc().address();
    for slot in 0..512 {
        let entry = check_ok!(mem::read::<u64>((first & paging::ADDRESS) + 8 * slot));
        check_ok!(mem::write(second + 8 * slot, if slot == AT >> 39 { 0 } else { entry }));
    }
    check_ok!(reg::set_cr3(second), "load the second table");
    map(AT, frames[1]);
    for round in 0..20 {
        check_ok!(reg::set_cr3([second, first][round % 2]));
        check_reads(AT, MARKS[(round + 1) % 2], "after a change of CR3");
    }
    check_ok!(reg::set_cr3(first));
});

test!(
    not_present_is_not_kept,
    "An entry that becomes present is used at once, at each level, with no flush.",
    || {
        // SDM volume 3, 5.10.2.3: nothing is cached of entries that are not present.
        let frame = two_frames()[0];
        map(AT, frame);
        for level in 1..=4 {
            let entry = paging::entry(AT, level);
            for round in 0..8 {
                entry.set(0);
                paging::flush();
                let fault = check_err!(mem::read::<u64>(AT), "level {level} not present");
                check!(is_fault(&fault, 0, AT), "level {level}, round {round}: {fault}");
                entry.set(entry.value);
                check_reads(AT, MARKS[0], "after the entry became present");
            }
        }
    }
);

test!(reserved_is_not_kept, "An entry whose reserved bits are cleared is used at once.", || {
    map(AT, two_frames()[0]);
    let entry = paging::entry(AT, 4);
    for _ in 0..8 {
        entry.set(entry.value | Flags::PS.0);
        paging::flush();
        let fault = check_err!(mem::read::<u64>(AT), "a reserved bit");
        check!(is_fault(&fault, E_P | crate::E_RSVD, AT), "a reserved bit: {fault}");
        entry.set(entry.value);
        check_reads(AT, MARKS[0], "after the reserved bit was cleared");
    }
});

test!(
    rights_after_a_fault,
    "After a page fault the entry is read anew: a right that was added counts.",
    || {
        // SDM volume 3, 5.10.4.3: a page fault invalidates what it used.
        let leaf = map(AT, two_frames()[0]);
        for round in 0..16_u64 {
            leaf.set(leaf.value & !Flags::W.0);
            paging::invlpg(AT);
            check_reads(AT, MARKS[0], "read-only");
            let fault = check_err!(mem::write(AT + 8, round), "a write to a read-only page");
            check!(is_fault(&fault, E_P | E_W, AT + 8), "round {round}: {fault}");
            leaf.set(leaf.value);
            check_ok!(mem::write(AT + 8, round), "a write after W was set, with no INVLPG");
        }
    }
);

test!(upper_levels, "A change at each level counts after INVLPG of an address below it.", || {
    // SDM volume 3, 5.10.4.1: INVLPG also drops what is cached of the levels above.
    let frames = two_frames();
    for level in 2..=4 {
        // Two tables below the entry, each with a way to one of the frames.
        let mut ways = [0; 2];
        map(AT, frames[0]);
        let entry = paging::entry(AT, level);
        for (way, frame) in ways.iter_mut().zip(frames) {
            entry.set(0);
            paging::flush();
            map(AT, frame);
            *way = entry.reload().value;
        }
        for round in 0..8 {
            entry.set(ways[round % 2]);
            paging::invlpg(AT);
            check_reads(AT, MARKS[round % 2], "after a change above and INVLPG");
        }
        entry.set(0);
        paging::flush();
    }
});

test!(
    global,
    "Global pages are forgotten by INVLPG and by a change of CR4.PGE; CR3 may keep them.",
    || {
        cpuid::PGE.require();
        let frames = two_frames();
        let cr4 = reg::cr4();
        let global = Flags::RW.0 | Flags::G.0;
        for size in [Size::K4, Size::M2] {
            let at = AT & !(size.bytes() - 1);
            let memory = match size {
                Size::K4 => frames,
                _ => {
                    let start = frames::alloc_range(1024, size.bytes());
                    let both = [start, start + size.bytes()];
                    both.iter().zip(MARKS).for_each(|(&at, mark)| check_ok!(mem::write(at, mark)));
                    both
                }
            };
            check_ok!(reg::set_cr4(cr4 | reg::CR4_PGE), "set CR4.PGE");
            let leaf = paging::map(at, memory[0], size, Flags(global));
            let kind = leaf.value & Flags::PS.0;
            for round in 0..8 {
                let (old, new) = (round % 2, (round + 1) % 2);
                check_reads(at, MARKS[old], "before the change");
                leaf.set(memory[new] | global | kind);
                paging::flush();
                let found = check_ok!(mem::read::<u64>(at), "a global page after CR3");
                check!(
                    MARKS.contains(&found),
                    "a global page after CR3: {found:#x} is in neither frame"
                );
                if round % 4 < 2 {
                    paging::invlpg(at);
                    check_reads(at, MARKS[new], "a global page after INVLPG");
                } else {
                    check_ok!(paging::flush_global(), "toggle CR4.PGE");
                    check_reads(at, MARKS[new], "a global page after CR4.PGE");
                }
            }
            // Without PGE the bit means nothing.
            check_ok!(reg::set_cr4(cr4 & !reg::CR4_PGE), "clear CR4.PGE");
            leaf.set(memory[1] | global | kind);
            paging::flush();
            check_reads(at, MARKS[1], "a page with G after CR3, CR4.PGE clear");
            leaf.set(memory[0] | global | kind);
            paging::flush();
            check_reads(at, MARKS[0], "a page with G after CR3, CR4.PGE clear");
            check_ok!(reg::set_cr4(cr4), "put CR4 back");
            paging::set(at, &leaf, 0);
            paging::unmap(at);
            let upper = paging::entry(at, 2);
            paging::set(at, &upper, 0);
        }
    }
);

test!(large_pages, "INVLPG of any address in a 2 MiB page forgets all of it.", || {
    let size = Size::M2.bytes();
    let start = frames::alloc_range(1024, size);
    for (at, mark) in [(start, MARKS[0]), (start + size, MARKS[1])] {
        for offset in [0, size / 2, size - 0x1000] {
            check_ok!(mem::write(at + offset, mark));
        }
    }
    let at = AT & !(size - 1);
    let leaf = paging::map(at, start, Size::M2, Flags::RW);
    for round in 0..16_usize {
        let mark = MARKS[(round + 1) % 2];
        let memory = start + size * ((round as u64 + 1) % 2);
        check_reads(at, MARKS[round % 2], "before the change");
        leaf.set(memory | Flags::RW.0 | Flags::PS.0);
        paging::invlpg(at + [0x1000, 0x12_3456, size - 1, 0][round % 4]);
        // What hardware keeps in pieces must be gone in all of them.
        for offset in [0, size / 2, size - 0x1000] {
            check_reads(at + offset, mark, "after INVLPG elsewhere in the page");
        }
    }
});

test!(
    split_and_merge,
    "A 2 MiB page split into 4 KiB pages and put together again keeps its contents.",
    || {
        let size = Size::M2.bytes();
        let start = frames::alloc_range(512, size);
        let at = AT & !(size - 1);
        let offsets = [0, 0x1000, 0xf_f000, 0x10_0000, 0x10_1000, size - 0x1000];
        let whole = paging::map(at, start, Size::M2, Flags::RW);
        for round in 0..4_u64 {
            for offset in offsets {
                check_ok!(
                    mem::write(at + offset, round << 32 | offset),
                    "a write to the large page"
                );
            }
            // `reach` makes the table with the same mapping in small pages, and flushes.
            let small = paging::reach(at + 0x10_0000, 1);
            check_eq!(small.level, 1, "level after the split");
            for offset in offsets {
                check_reads(at + offset, round << 32 | offset, "after the split");
            }
            // One of them goes elsewhere, the others stay.
            let elsewhere = frame_with(MARKS[0]);
            paging::set(at + 0x10_0000, &small, elsewhere | Flags::RW.0);
            check_reads(at + 0x10_0000, MARKS[0], "the page that goes elsewhere");
            for offset in offsets.into_iter().filter(|&offset| offset != 0x10_0000) {
                check_reads(at + offset, round << 32 | offset, "a page that stays");
            }
            let table = paging::entry(at, 2);
            paging::set(at, &table, whole.value);
            for offset in offsets {
                check_reads(at + offset, round << 32 | offset, "after the merge");
            }
        }
    }
);

test!(
    invlpg_of_nothing,
    "INVLPG of an address that is not mapped, or not canonical, does nothing.",
    || {
        // SDM volume 2, INVLPG: no fault on a non-canonical address in 64-bit mode.
        map(AT, two_frames()[0]);
        for at in [0x6000_0000_0000, AT + 0x1000, 0x8000_0000_0000, 0x8000_0000_0000_0000, u64::MAX]
        {
            check_ok!(insn!("invlpg [{}]"; in(reg) at), "invlpg {at:#x}");
            check_reads(AT, MARKS[0], "after INVLPG of something else");
        }
        let end = user::User::new(asm_code!("invlpg [rsp]", "ret")).run().end;
        let user::End::Trap(fault) = end else { fail!("INVLPG at CPL 3: {end:?}") };
        check!(fault.is(trap::GP, 0), "INVLPG at CPL 3: {fault}");
    }
);

test!(
    tables_reused,
    "A page that was a page table is memory again, and the other way round.",
    || {
        // A shadow MMU write-protects tables, and must let go of them.
        let frames = two_frames();
        let window = AT ^ 1 << 30;
        for round in 0..4_u64 {
            map(AT, frames[0]);
            let upper = paging::entry(AT, 2);
            let table = upper.value & paging::ADDRESS;
            check_reads(AT, MARKS[0], "through the table");
            paging::set(AT, &upper, 0);
            // Now it is data, by another name, and holds what looks like entries.
            map(window, table);
            for word in 0..512 {
                check_ok!(
                    mem::write(window + 8 * word, frames[1] | Flags::RW.0),
                    "write a former table"
                );
            }
            check_reads(window + 8 * 17, frames[1] | Flags::RW.0, "a former table");
            // And a table again.
            paging::set(AT, &upper, table | Flags::RW.0);
            check_reads(AT, MARKS[1], "through the table that was data");
            check_reads(AT + 0x1000 * (round % 8), MARKS[1], "through the table that was data");
            paging::set(AT, &upper, 0);
        }
    }
);
