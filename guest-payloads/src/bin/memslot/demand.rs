//! Memory that appears while the guest waits: page faults that a process resolves.
//!
//! Linux, Documentation/admin-guide/mm/userfaultfd.rst.

use crate::tables::{TABLES, entry, link};
use crate::{AREA, AT, PAGE, show, start_all};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::lab::{self, Memory};
use payload_rt::paging::Flags;
use payload_rt::sync::Barrier;
use payload_rt::*;

const SEED: u64 = 0x0123_4567_89ab_0000;

/// So many pages that are not there yet.
fn demand(pages: u64, flags: u32, seed: u64) -> Memory {
    let (memory, _) = show(pages, flags);
    check_ok!(memory.userfault(0, pages * PAGE, seed));
    memory
}

fn check_faults(memory: Memory, wanted: u64, what: &str) {
    check_eq!(memory.userfaults(), Ok(wanted), "faults after {what}");
}

test!(demand_access, "A page appears on a read, a write, an exchange; once each.", || {
    let memory = demand(16, 0, SEED);
    check_eq!(mem::read::<u64>(AREA + PAGE + 8), Ok(SEED ^ (PAGE + 8)));
    check_faults(memory, 1, "a read");
    check_ok!(mem::write(AREA + 3 * PAGE, 7u8));
    check_faults(memory, 2, "a write");
    check_eq!(memory.read_u64(3 * PAGE), Ok((SEED ^ (3 * PAGE)) & !0xff | 7), "around the write");
    check_ok!(insn!("lock add qword ptr [{}], 5"; in(reg) AREA + 5 * PAGE));
    check_faults(memory, 3, "a locked addition");
    check_eq!(memory.read_u64(5 * PAGE), Ok((SEED ^ (5 * PAGE)) + 5));
    for page in [1, 3, 5] {
        check_ok!(mem::read::<u8>(AREA + page * PAGE + 0xfff));
    }
    check_faults(memory, 3, "reads of what is there");
});

test!(demand_over_edge, "An access over the edge of two missing pages brings both.", || {
    let memory = demand(16, 0, SEED);
    let low = (SEED ^ (4 * PAGE - 8)).to_le_bytes();
    let high = (SEED ^ (4 * PAGE)).to_le_bytes();
    let wanted: [u8; 8] = core::array::from_fn(|i| if i < 3 { low[5 + i] } else { high[i - 3] });
    check_eq!(mem::read::<u64>(AREA + 4 * PAGE - 3), Ok(u64::from_le_bytes(wanted)));
    check_faults(memory, 2, "a read");
    check_ok!(insn!("lock not qword ptr [{}]"; in(reg) AREA + 8 * PAGE - 4));
    check_faults(memory, 4, "a locked change");
    check_eq!(memory.read_u64(8 * PAGE), Ok((SEED ^ (8 * PAGE)) ^ 0xffff_ffff));
    check_eq!(memory.read_u64(8 * PAGE - 8), Ok((SEED ^ (8 * PAGE - 8)) ^ 0xffff_ffff << 32));
});

test!(demand_string, "A string brings each page that it goes over.", || {
    let memory = demand(16, 0, SEED);
    let frame = frames::alloc_range(4, PAGE);
    check_ok!(insn!(
        "rep movsq";
        inout("rsi") AREA + 2 * PAGE - 8 => _, inout("rdi") frame => _, inout("rcx") 1026u64 => _
    ));
    check_faults(memory, 4, "`rep movsq` from the end of page 1 to the start of page 4");
    for word in [0, 1, 512, 513, 1024, 1025] {
        let at = 2 * PAGE - 8 + 8 * word;
        check_eq!(mem::read::<u64>(frame + 8 * word), Ok(SEED ^ at), "word {word}");
    }
});

// The first word of a page is the seed ^ its offset: `mov eax, 0x05; ret` and what makes it the same.
test!(demand_fetch, "A page appears when code in it is called.", || {
    let code = u64::from_le_bytes([0xb8, 5, 0, 0, 0, 0xc3, 0xcc, 0xcc]);
    let memory = demand(8, 0, code ^ (6 * PAGE));
    check_eq!(mem::call(AREA + 6 * PAGE), Ok(5));
    check_faults(memory, 1, "a fetch");
    check_eq!(mem::call(AREA + 6 * PAGE), Ok(5));
    check_faults(memory, 1, "a second one");
});

test!(demand_tables, "Page tables appear when the processor walks them.", || {
    let frame = frames::alloc().address();
    check_ok!(mem::write(frame + 0x18, 99u64));
    // Only the last table is missing; its words are the seed ^ their offset.
    let (memory, _) = show(TABLES, 0);
    let leaf = entry(AT, 1);
    for (level, value) in [(3, AREA + PAGE), (2, AREA + 2 * PAGE)] {
        check_ok!(memory.write_u64(entry(AT, level), value | Flags::RWU.0));
    }
    check_ok!(memory.userfault(2 * PAGE, PAGE, leaf ^ frame ^ Flags::RW.0));
    link(AREA, AT);
    check_eq!(mem::read::<u64>(AT + 0x18), Ok(99));
    check_faults(memory, 1, "a walk");
    let value = check_ok!(memory.read_u64(leaf));
    check_eq!(value & !Flags::D.0, frame | (Flags::RW | Flags::A).0, "the entry, with A");
});

test!(demand_by_host, "A page that the host touches first is there for the guest.", || {
    let memory = demand(4, 0, SEED);
    check_eq!(memory.read_u64(2 * PAGE), Ok(SEED ^ (2 * PAGE)));
    check_faults(memory, 1, "a read of the host's");
    check_eq!(mem::read::<u64>(AREA + 2 * PAGE + 8), Ok(SEED ^ (2 * PAGE + 8)));
    check_faults(memory, 1, "a read of the guest's");
    // Dropped, it is missing again.
    check_ok!(memory.advise(2 * PAGE, PAGE, lab::Advice::Drop));
    check_eq!(mem::read::<u64>(AREA + 2 * PAGE), Ok(SEED ^ (2 * PAGE)));
    check_faults(memory, 2, "the page was dropped");
});

test!(
    demand_logged,
    "A page that appears for a write is dirty; one that is there, when it is written.",
    || {
        let (memory, slot) = show(8, lab::kvm::slot::LOG_DIRTY);
        check_ok!(memory.userfault(0, 8 * PAGE, SEED));
        check_ok!(mem::write(AREA + 2 * PAGE, 1u8));
        let mut bitmap = [0];
        check_ok!(slot.dirty_log(&mut bitmap));
        check_eq!(bitmap, [1 << 2]);
        check_ok!(mem::read::<u64>(AREA + PAGE));
        // KVM may map it for writing at once and count that: `first_read`.
        check_ok!(slot.dirty_log(&mut bitmap));
        check_ok!(mem::read::<u64>(AREA + PAGE + 8));
        check_ok!(slot.dirty_log(&mut bitmap));
        check_eq!(bitmap, [0]);
        check_ok!(mem::write(AREA + PAGE, 1u8));
        check_ok!(slot.dirty_log(&mut bitmap));
        check_eq!(bitmap, [1 << 1]);
        check_faults(memory, 2, "two pages");
    }
);

test!(demand_two_cpus, "Two CPUs that touch missing pages at once both get them.", || {
    static BARRIER: Barrier = Barrier::new();
    static SUM: AtomicU64 = AtomicU64::new(0);
    const PAGES: u64 = 24;
    let cpus = start_all();
    let memory = demand(PAGES, 0, SEED);
    smp::on_all(|cpu| {
        for page in 0..PAGES {
            BARRIER.wait(cpus);
            let at = page * PAGE + 8 * cpu as u64;
            check_eq!(mem::read::<u64>(AREA + at), Ok(SEED ^ at), "CPU {cpu}, page {page}");
            check_ok!(insn!("lock inc qword ptr [{}]"; in(reg) AREA + page * PAGE + 0x800));
            SUM.fetch_add(1, SeqCst);
        }
    });
    check_eq!(SUM.load(SeqCst), cpus as u64 * PAGES);
    check_faults(memory, PAGES, "each page was touched by all");
    for page in 0..PAGES {
        let wanted = (SEED ^ (page * PAGE + 0x800)) + cpus as u64;
        check_eq!(memory.read_u64(page * PAGE + 0x800), Ok(wanted), "page {page}");
    }
});
