//! Dirty rings: a page once, of the vCPU that wrote it, and none lost when the ring is full.
//!
//! KVM API, KVM_CAP_DIRTY_LOG_RING_ACQ_REL.

use crate::{AREA, AT, PAGE, show, start_all};
use payload_rt::lab::{self, Backing, DirtyPage, Errno, Memory, Rule, kind, kvm, op};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::user::{End, User};
use payload_rt::*;

const LOG: u32 = kvm::slot::LOG_DIRTY;

fn dirty(pages: impl IntoIterator<Item = u64>) {
    for page in pages {
        check_ok!(mem::write(AREA + page * PAGE, 1u8));
    }
}

/// Pages of this vCPU's ring, one bit each, which leave it; the ring is reset. A page may be in it more
/// than once: where KVM itself writes for the guest, each write is an entry.
fn harvest(slot: u32) -> u64 {
    let mut entries = [DirtyPage::default(); 32];
    let count = check_ok!(lab::harvest(&mut entries));
    check_eq!(lab::reset_dirty_rings(), Ok(count as i64), "entries that were reset");
    entries[..count].iter().fold(0, |bits, entry| {
        check_eq!(entry.slot, slot, "the slot of an entry");
        bits | 1 << entry.page
    })
}

fn check_ring(slot: u32, what: &str, wanted: &[u64]) {
    let wanted = wanted.iter().fold(0, |bits, page| bits | 1 << page);
    check_eq!(harvest(slot), wanted, "pages in the ring after {what}");
}

test!(ring_pages, "The ring has the pages that were written, and again after a reset.", || {
    let (_, slot) = show(16, LOG);
    check_ring(slot.id, "nothing", &[]);
    dirty([9, 3, 9, 9, 3, 12]);
    check_ring(slot.id, "three pages, some of them often", &[9, 3, 12]);
    dirty([3]);
    check_ring(slot.id, "one of them again", &[3]);
    check_ok!(mem::read::<u64>(AREA + 5 * PAGE));
    check_ring(slot.id, "a read", &[]);
});

test!(ring_before_reset, "Entries that were not taken stay when the others are reset.", || {
    let (_, slot) = show(16, LOG);
    dirty([4, 5]);
    let mut entries = [DirtyPage::default(); 1];
    check_eq!(lab::harvest(&mut entries), Ok(1), "one of two");
    check_eq!((entries[0].slot, entries[0].page), (slot.id, 4));
    dirty([4, 6]);
    check_eq!(lab::reset_dirty_rings(), Ok(1), "what was taken is reset");
    dirty([4]);
    check_ring(slot.id, "the rest", &[5, 6, 4]);
});

test!(ring_unlogged, "A slot without the flag has nothing in the ring.", || {
    let (_, mut slot) = show(16, 0);
    dirty([1, 2]);
    check_ring(slot.id, "writes that are not logged", &[]);
    check_ok!(slot.set_flags(LOG));
    dirty([2]);
    check_ring(slot.id, "a write that is", &[2]);
    check_ok!(slot.set_flags(0));
    dirty([3]);
    check_ring(slot.id, "the flag was taken away", &[]);
});

test!(ring_two_slots, "An entry names its slot and the page in it.", || {
    let memory = check_ok!(Memory::new(4 * PAGE, Backing::Small));
    let slots =
        [0, 1].map(|n| check_ok!(memory.slot(AREA + 8 * n * PAGE, 2 * n * PAGE, 2 * PAGE, LOG)));
    // Over the edge of the second slot's pages, then the first.
    check_ok!(mem::write(AREA + 9 * PAGE - 4, u64::MAX));
    dirty([1]);
    let mut entries = [DirtyPage::default(); 8];
    check_eq!(lab::harvest(&mut entries), Ok(3));
    let found = [0, 1, 2].map(|n| (entries[n].slot, entries[n].page));
    let mut second = [found[0], found[1]];
    second.sort_unstable();
    check_eq!(second, [(slots[1].id, 0), (slots[1].id, 1)], "the store over an edge");
    check_eq!(found[2], (slots[0].id, 1));
});

test!(ring_of_each_cpu, "Each CPU's ring has what that CPU wrote.", || {
    start_all();
    let (_, slot) = show(16, LOG);
    smp::run_on(1, || dirty([2, 7]));
    dirty([8]);
    check_ok!(mem::read::<u64>(AREA + 2 * PAGE));
    check_eq!(smp::run_on(1, || harvest(slot.id)), 1 << 2 | 1 << 7, "the other CPU's");
    check_ring(slot.id, "a write of this CPU", &[8]);
});

const PAGES: u64 = 1500;
const ENTRIES: u64 = 1024;

// "…the vcpu will exit with KVM_EXIT_DIRTY_RING_FULL": the ring has a reserve for what is written until
// the exit, so nothing is lost.
fn check_full(write_all: impl FnOnce()) {
    // A ring that also takes the processor's own log of pages is full sooner.
    const FULL: usize = 5;
    let (_, slot) = show(PAGES, LOG);
    let buffers: [u64; FULL] =
        core::array::from_fn(|_| frames::alloc_range((16 * ENTRIES).div_ceil(PAGE), PAGE));
    let chains = buffers.map(|buffer| {
        let mut chain = lab::Chain::new();
        chain.ask(op::HARVEST, &[buffer, 16 * ENTRIES]);
        chain.call(kvm::RESET_DIRTY_RINGS, 0);
        chain
    });
    let rules: [Rule; FULL] =
        core::array::from_fn(|n| Rule::on(kind::DIRTY_RING_FULL).then(&chains[n]).limit(1));
    let log = check_ok!(lab::record(&rules));
    write_all();
    let fulls = log.count() as usize;
    check!(fulls > 0, "{PAGES} pages in a ring of {ENTRIES}, and it was never full");
    let mut next = 0;
    let mut check_page = |found: u32, page: u64| {
        check_eq!(found, slot.id, "the slot of an entry");
        // The write at which the ring was full comes again after the exit.
        if page + 1 != next {
            check_eq!(page, next, "pages in their order, after {fulls} exits");
            next += 1;
        }
    };
    for (chain, buffer) in chains.iter().zip(buffers).take(fulls) {
        let count = check_ok!(chain.result(0)) as u64;
        check_eq!(chain.result(1), Ok(count as i64), "entries that were reset");
        for entry in (0..count).map(|n| buffer + 16 * n) {
            check_page(check_ok!(mem::read(entry)), check_ok!(mem::read(entry + 8)));
        }
    }
    let mut entries = [DirtyPage::default(); 32];
    loop {
        match check_ok!(lab::harvest(&mut entries)) {
            0 => break,
            count => entries[..count].iter().for_each(|entry| check_page(entry.slot, entry.page)),
        }
    }
    check_eq!(next, PAGES, "pages in all");
}

test!(ring_full, "A full ring leaves the guest, and no page is lost.", || {
    check_full(|| dirty(0..PAGES));
});

test!(ring_full_cpl3, "A ring that CPL 3 fills leaves the guest, and no page is lost.", || {
    const LARGE: u64 = crate::LARGE;
    let base = AT & !(LARGE - 1);
    for large in 0..(PAGES * PAGE).div_ceil(LARGE) {
        paging::map(base + large * LARGE, AREA + large * LARGE, Size::M2, Flags::RWU);
    }
    let code = asm_code!("5:", "mov [rdi], al", "add rdi, 4096", "dec ecx", "jnz 5b", "ret");
    let mut user = User::new(code);
    (user.regs.rdi, user.regs.rcx) = (base, PAGES);
    check_full(|| check_eq!(user.run().end, End::Done));
});

test!(ring_alone, "With a ring there is no bitmap.", || {
    let (_, slot) = show(4, LOG);
    let mut bitmap = [0];
    check_eq!(slot.dirty_log(&mut bitmap), Err(Errno::ENXIO), "KVM_GET_DIRTY_LOG");
    check_eq!(slot.clear_dirty_log(0, 4, &bitmap), Err(Errno::ENXIO), "KVM_CLEAR_DIRTY_LOG");
});
