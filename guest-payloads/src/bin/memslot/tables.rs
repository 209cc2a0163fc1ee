//! The guest's page tables in memory of all kinds.
//!
//! SDM volume 3, 5.8 (accessed and dirty flags) and 29.3.5; APM volume 2, 15.25.

use crate::{AREA, AT, MARK, PAGE, show};
use payload_rt::lab::{self, Backing, Memory, Slot};
use payload_rt::paging::{self, Flags};
use payload_rt::*;

/// Pages that [`lay`] takes: one a level from 3 to 1.
pub const TABLES: u64 = 3;

fn index(at: u64, level: u64) -> u64 {
    at >> (12 + 9 * (level - 1)) & 0x1ff
}

/// Offset in a memory with tables of [`lay`] of the entry for `at` at this level.
pub fn entry(at: u64, level: u64) -> u64 {
    (3 - level) * PAGE + 8 * index(at, level)
}

/// Fills page tables in a memory that is shown at `gpa`, as the host, and has the runtime's top table
/// lead to them: `at` is then mapped by `leaf`, whose offset in the memory it gives.
pub fn lay(memory: Memory, gpa: u64, at: u64, leaf: u64) -> u64 {
    let values = [(gpa + PAGE) | Flags::RWU.0, (gpa + 2 * PAGE) | Flags::RWU.0, leaf];
    for (level, value) in (1..=3).rev().zip(values) {
        check_ok!(memory.write_u64(entry(at, level), value));
    }
    link(gpa, at);
    entry(at, 1)
}

/// Has the runtime's top table lead to a table at `gpa`, for all of the 512 GiB around `at`.
pub fn link(gpa: u64, at: u64) {
    let top = check_ok!(lab::sregs()).cr3 & paging::ADDRESS;
    check_ok!(mem::write(top + 8 * index(at, 4), gpa | Flags::RWU.0));
    flush();
}

/// Flushes the TLB. The value is the one that KVM has: TCG as a host lets a guest that runs on shadow page
/// tables read the address of those in CR3, since it asks for the intercept of CR0 there (X86_TYPE_C in
/// target/i386/tcg/decode-new.c.inc).
pub fn flush() {
    check_ok!(reg::set_cr3(check_ok!(lab::sregs()).cr3));
}

test!(tables_in_slot, "Page tables in a slot translate, and get their A and D there.", || {
    let (memory, _) = show(TABLES, 0);
    let frame = frames::alloc().address();
    check_ok!(mem::write(frame, MARK));
    lay(memory, AREA, AT, frame | Flags::RW.0);
    let bits = || {
        [3, 2, 1].map(|level| {
            let value = check_ok!(memory.read_u64(entry(AT, level)));
            (value & Flags::A.0 != 0, value & Flags::D.0 != 0)
        })
    };
    check_eq!(bits(), [(false, false); 3], "before");
    check_eq!(mem::read::<u64>(AT), Ok(MARK));
    check_eq!(bits(), [(true, false); 3], "after a read");
    check_ok!(mem::write(AT + 8, MARK));
    check_eq!(bits(), [(true, false), (true, false), (true, true)], "after a write");
    check_eq!(mem::read::<u64>(frame + 8), Ok(MARK));
});

test!(tables_replaced, "Tables whose slot is made over other memory map what that says.", || {
    let memories = [0, 1].map(|_| check_ok!(Memory::new(TABLES * PAGE, Backing::Small)));
    let frames = [0, 1].map(|_| frames::alloc().address());
    for n in 0..2 {
        check_ok!(mem::write(frames[n], n as u64 + 1));
        lay(memories[n], AREA, AT, frames[n] | Flags::RW.0);
    }
    let mut slot = check_ok!(memories[0].slot(AREA, 0, TABLES * PAGE, 0));
    for round in 0..10 {
        let n = round % 2;
        check_ok!(slot.delete());
        slot = Slot { memory: memories[n], ..slot };
        check_ok!(slot.set());
        flush();
        check_eq!(mem::read::<u64>(AT), Ok(n as u64 + 1), "round {round}");
        check_ok!(mem::write(AT + 8, round as u64));
        check_eq!(mem::read::<u64>(frames[n] + 8), Ok(round as u64), "round {round}, a write");
    }
});

test!(tables_move, "Tables that move with their slot serve at the new address.", || {
    let (memory, mut slot) = show(TABLES, 0);
    let frame = frames::alloc().address();
    check_ok!(mem::write(frame, MARK));
    for round in 0..6 {
        let gpa = AREA + round * 0x10_3000;
        check_ok!(slot.move_to(gpa));
        lay(memory, gpa, AT, frame | Flags::RW.0);
        check_eq!(mem::read::<u64>(AT), Ok(MARK), "tables at {gpa:#x}");
    }
});

test!(tables_absent, "Tables where no memory is: a page fault, and none when there is.", || {
    let (memory, slot) = show(TABLES, 0);
    let frame = frames::alloc().address();
    lay(memory, AREA, AT, frame | Flags::RW.0);
    for round in 0..4 {
        check_ok!(slot.delete());
        flush();
        let fault = check_err!(mem::read::<u64>(AT + 8), "round {round}");
        check_eq!((fault.vector, fault.cr2), (trap::PF, AT + 8), "round {round}");
        let fault = check_err!(mem::write(AT + 16, 1u64), "round {round}");
        check_eq!((fault.vector, fault.cr2), (trap::PF, AT + 16), "round {round}");
        check_ok!(slot.set());
        flush();
        check_ok!(mem::write(AT, round));
        check_eq!(mem::read::<u64>(frame), Ok(round));
    }
});

test!(large_in_slot, "A 2 MiB page of the guest's over many slots leads to each.", || {
    const PAGES: u64 = 8;
    let memory = check_ok!(Memory::new(PAGES * PAGE, Backing::Small));
    for page in 0..PAGES {
        check_ok!(memory.fill(page * PAGE, 8, page + 1));
        // Every other page of the memory, from the end; in between is nothing.
        check_ok!(memory.slot(AREA + 2 * page * PAGE, (PAGES - 1 - page) * PAGE, PAGE, 0));
    }
    paging::map(AT & !0x1f_ffff, AREA, paging::Size::M2, Flags::RW);
    for page in 0..PAGES {
        let at = (AT & !0x1f_ffff) + 2 * page * PAGE;
        check_eq!(mem::read::<u64>(at), Ok(PAGES - page), "page {page}");
        check_eq!(mem::read::<u64>(at + PAGE), Ok(u64::MAX), "behind page {page}");
    }
});
