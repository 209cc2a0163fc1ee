//! Slots made, moved, changed and deleted: nothing of what was there before is left.
//!
//! KVM API, KVM_SET_USER_MEMORY_REGION.

use crate::{AREA, LARGE, MARK, NOTHING, PAGE, check_exits, ones, read, show, watch, write};
use payload_rt::lab::{self, Backing, Errno, Memory, RamSlot, Slot, kvm};
use payload_rt::*;

test!(numbers, "Slots have numbers below KVM_CAP_NR_MEMSLOTS.", || {
    let most = lab::check_extension(kvm::cap::NR_MEMSLOTS) as u32;
    check!(most >= 32, "{most} slots");
    let (_, slot) = show(1, 0);
    check_ok!(slot.delete());
    let last = Slot { id: most - 1, ..slot };
    check_ok!(last.set(), "slot {}", most - 1);
    check_ok!(mem::write(AREA, MARK));
    check_eq!(last.memory.read_u64(0), Ok(MARK));
    check_ok!(last.delete());
    check_eq!(Slot { id: most, ..slot }.set(), Err(Errno::EINVAL), "slot {most}");
});

test!(refused, "A slot that KVM cannot have is EINVAL, and changes nothing.", || {
    let memory = check_ok!(Memory::new(8 * PAGE, Backing::Small));
    let slot = check_ok!(memory.slot(AREA, 0, 4 * PAGE, 0));
    let other = check_ok!(Memory::new(8 * PAGE, Backing::Small));
    check_ok!(mem::write(AREA, MARK));
    let Slot { id, gpa, .. } = slot;
    let new = Slot { id: id + 50, gpa: gpa + LARGE, ..slot };
    for (what, wrong) in [
        ("an address inside of a page", Slot { gpa: gpa + LARGE + 0x800, ..new }),
        ("half a page", Slot { size: PAGE / 2, ..new }),
        ("a host address inside of a page", Slot { offset: 8, ..new }),
        ("an end beyond the last address", Slot { gpa: !(PAGE - 1), ..new }),
        ("a flag that there is not", Slot { flags: 1 << 31, ..new }),
        ("the deletion of nothing", Slot { size: 0, ..new }),
        ("a larger size", Slot { size: 5 * PAGE, ..slot }),
        ("a smaller size", Slot { size: PAGE, ..slot }),
        ("other memory", Slot { memory: other, ..slot }),
        ("another part of its memory", Slot { offset: PAGE, ..slot }),
        ("read-only from now on", Slot { flags: kvm::slot::READONLY, ..slot }),
    ] {
        check_eq!(wrong.set(), Err(Errno::EINVAL), "{what}");
        check_eq!(mem::read::<u64>(AREA), Ok(MARK), "after {what}");
    }
    check_eq!(mem::read::<u64>(AREA + LARGE), Ok(u64::MAX), "no slot was made");
    check_ok!(slot.set(), "the slot as it is");
});

// "Slots may not overlap in guest physical address space."
test!(overlap, "Slots that would overlap are EEXIST; those that touch are made.", || {
    let memory = check_ok!(Memory::new(16 * PAGE, Backing::Small));
    check_ok!(memory.slot(AREA + 4 * PAGE, 0, 4 * PAGE, 0));
    let try_at = |page: u64, pages: u64| memory.slot(AREA + page * PAGE, 0, pages * PAGE, 0).err();
    for (page, pages) in [(4, 4), (3, 2), (7, 2), (5, 1), (0, 16), (4, 1), (7, 1)] {
        check_eq!(try_at(page, pages), Some(Errno::EEXIST), "{pages} pages from page {page}");
    }
    let board = memory.slot(1 << 20, 0, PAGE, 0).err();
    check_eq!(board, Some(Errno::EEXIST), "over the board's RAM");
    check_eq!(try_at(3, 1), None, "the page below");
    check_eq!(try_at(8, 1), None, "the page above");
    let mut third = check_ok!(memory.slot(AREA + LARGE, 0, PAGE, 0));
    check_eq!(third.move_to(AREA + 5 * PAGE), Err(Errno::EEXIST), "moved there");
    check_eq!(mem::read::<u64>(AREA + LARGE), Ok(0), "it stayed");
});

test!(moves, "A slot that moves is where it went, and nowhere else.", || {
    const PLACES: u64 = 6;
    let (memory, mut slot) = show(2, 0);
    let place = |n: u64| AREA + n * 0x21_7000;
    for round in 0..20u64 {
        let n = round * 5 % PLACES;
        check_ok!(slot.move_to(place(n)));
        check_ok!(mem::write(place(n) + 0x1008, round));
        check_eq!(memory.read_u64(0x1008), Ok(round));
        for other in 0..PLACES {
            let wanted = if other == n { round } else { u64::MAX };
            let at = place(other) + 0x1008;
            check_eq!(mem::read::<u64>(at), Ok(wanted), "round {round}: the word at {at:#x}");
        }
    }
});

test!(moves_over_itself, "A slot moves by one page: each address has the next page.", || {
    const PAGES: u64 = 8;
    let (memory, mut slot) = show(PAGES, 0);
    for page in 0..PAGES {
        check_ok!(memory.fill(page * PAGE, 8, page));
    }
    for by in [1, 2, 1, 0, 4, 3] {
        check_ok!(slot.move_to(AREA + by * PAGE));
        for page in 0..PAGES + 5 {
            let wanted = page.checked_sub(by).filter(|&page| page < PAGES).unwrap_or(u64::MAX);
            let at = AREA + page * PAGE;
            check_eq!(mem::read::<u64>(at), Ok(wanted), "moved by {by}: {at:#x}");
        }
    }
});

test!(deleted, "A deleted slot is MMIO of the right address, size and value.", || {
    let (memory, slot) = show(4, 0);
    check_ok!(memory.fill(0, 4 * PAGE, MARK));
    // There is a translation, for writes too.
    check_ok!(mem::write(AREA + PAGE, MARK));
    let before = check_ok!(memory.hash(0, 4 * PAGE));
    check_ok!(slot.delete());
    let log = watch(AREA, AREA + 4 * PAGE);
    for (n, size) in [1, 2, 4, 8].into_iter().enumerate() {
        let at = AREA + PAGE + 0x18 * n as u64;
        check_eq!(read(at, size), NOTHING & ones(size), "{size} bytes at {at:#x}");
        write(at, size, MARK.rotate_left(20));
        let value = MARK.rotate_left(20) & ones(size);
        check_exits(&log, 2 * n as u64, "deleted", &[(at, size, 0, 0), (at, size, 1, value)]);
    }
    check_eq!(memory.hash(0, 4 * PAGE), Ok(before), "the memory that it showed");
    check_ok!(slot.set());
    for page in 0..4 {
        check_eq!(mem::read::<u64>(AREA + page * PAGE), Ok(MARK), "page {page}, made again");
        check_ok!(mem::write(AREA + page * PAGE, page));
        check_eq!(memory.read_u64(page * PAGE), Ok(page));
    }
    check_eq!(log.count(), 8, "exits after it was made again");
});

test!(
    other_backing,
    "A slot made again over other memory shows that, from the first access.",
    || {
        const SIZE: u64 = LARGE;
        let memories = [Backing::Small, Backing::Transparent, Backing::Small]
            .map(|backing| check_ok!(Memory::new(SIZE, backing)));
        for (n, memory) in (1..).zip(memories) {
            for offset in [0, 0x8_0000, SIZE - PAGE] {
                check_ok!(memory.fill(offset, PAGE, MARK ^ n));
            }
        }
        let slot = check_ok!(memories[0].slot(AREA, 0, SIZE, 0));
        for round in 0..12 {
            let (n, memory) = (round % 3 + 1, memories[round as usize % 3]);
            check_ok!(slot.delete());
            check_ok!(Slot { memory, ..slot }.set());
            for offset in [0x8_0000, 0, SIZE - PAGE] {
                let found = mem::read::<u64>(AREA + offset + 8);
                check_eq!(found, Ok(MARK ^ n), "round {round}: a read at {offset:#x}");
                check_ok!(mem::write(AREA + offset + 16, round));
                check_eq!(memory.read_u64(offset + 16), Ok(round), "round {round}: at {offset:#x}");
            }
        }
    }
);

test!(hole, "A page taken out of the middle is MMIO, the pages around it are RAM.", || {
    let (memory, slot) = show(3, 0);
    for page in 0..3 {
        check_ok!(mem::write(AREA + page * PAGE, page + 10));
    }
    check_ok!(slot.delete());
    check_ok!(memory.slot(AREA, 0, PAGE, 0));
    check_ok!(memory.slot(AREA + 2 * PAGE, 2 * PAGE, PAGE, 0));
    let log = watch(AREA, AREA + 3 * PAGE);
    check_eq!([0, 1, 2].map(|page| read(AREA + page * PAGE, 8)), [10, NOTHING, 12]);
    check_exits(&log, 0, "the hole", &[(AREA + PAGE, 8, 0, 0)]);
});

test!(aliases, "Slots over one page show each write of the others at once.", || {
    let memory = check_ok!(Memory::new(LARGE, Backing::Transparent));
    // All of it, its second page alone, and its last half at an odd place.
    check_ok!(memory.slot(AREA, 0, LARGE, 0));
    check_ok!(memory.slot(AREA + 2 * LARGE, PAGE, PAGE, 0));
    check_ok!(memory.slot(AREA + 3 * LARGE + PAGE, PAGE, LARGE - PAGE, 0));
    let names = [AREA + PAGE, AREA + 2 * LARGE, AREA + 3 * LARGE + PAGE];
    for round in 0..30u64 {
        let at = names[round as usize % 3];
        check_ok!(mem::write(at + 8 * (round % 8), round));
        for name in names {
            let found = mem::read::<u64>(name + 8 * (round % 8));
            check_eq!(found, Ok(round), "written at {at:#x}, read at {name:#x}");
        }
        check_eq!(memory.read_u64(PAGE + 8 * (round % 8)), Ok(round));
    }
});

/// `mov eax, value; ret`.
fn code(value: u8) -> [u8; 6] {
    [0xb8, value, 0, 0, 0, 0xc3]
}

test!(code_moves, "Code is fetched from the memory that its slot shows now.", || {
    let memories = [1, 2].map(|value| {
        let memory = check_ok!(Memory::new(PAGE, Backing::Small));
        check_ok!(memory.write(0x40, &code(value)));
        memory
    });
    let mut slot = check_ok!(memories[0].slot(AREA, 0, PAGE, 0));
    for round in 0..10 {
        let n = round % 2;
        check_ok!(slot.delete());
        slot = Slot { memory: memories[n], ..slot };
        check_ok!(slot.set());
        check_eq!(mem::call(AREA + 0x40), Ok(n as u64 + 1), "round {round}");
        check_ok!(slot.move_to(AREA + LARGE));
        check_eq!(mem::call(AREA + LARGE + 0x40), Ok(n as u64 + 1), "round {round}, moved");
        check_ok!(slot.move_to(AREA));
    }
});

// SDM volume 3, 9.1.3: code changed through another linear address wants a serializing instruction.
test!(code_through_alias, "Code changed through another slot over its page is executed.", || {
    let (memory, _) = show(1, 0);
    check_ok!(memory.slot(AREA + LARGE, 0, PAGE, 0));
    for value in 1..20 {
        check_ok!(mem::write_bytes(AREA + LARGE + 0x80, &code(value)));
        cpuid::leaf(0, 0);
        check_eq!(mem::call(AREA + 0x80), Ok(value.into()));
        check_ok!(mem::write(AREA + 0x81, 100 + value));
        cpuid::leaf(0, 0);
        check_eq!(mem::call(AREA + LARGE + 0x80), Ok(100 + u64::from(value)));
    }
});

test!(flags, "Flags of a slot change, and its memory stays.", || {
    let memory = check_ok!(Memory::new(LARGE, Backing::Transparent));
    let mut slot = check_ok!(memory.slot(AREA, 0, LARGE, 0));
    for round in 0..8u64 {
        check_ok!(mem::write(AREA + round * 0x3_0008, round));
        check_ok!(slot.set_flags(if round % 2 == 0 { kvm::slot::LOG_DIRTY } else { 0 }));
        for old in 0..=round {
            check_eq!(mem::read::<u64>(AREA + old * 0x3_0008), Ok(old), "round {round}");
            check_eq!(memory.read_u64(old * 0x3_0008), Ok(old), "round {round}, the host");
        }
    }
});

test!(board_slot, "The board's own RAM can be logged while the guest runs on it.", || {
    let frame = frames::alloc().address();
    let quiet = frames::alloc().address();
    let slot = check_ok!(RamSlot::of(frame));
    check_eq!(RamSlot::of(AREA), Err(Errno::ENOENT), "no RAM of the board's");
    let bitmap = frames::alloc_range(4, PAGE);
    check_ok!(slot.set_flags(kvm::slot::LOG_DIRTY));
    check_ok!(mem::write(frame, MARK));
    // The bits of the two frames, by the host's word for them.
    let mut bits = [0u64; 2048];
    check_ok!(slot.dirty_log(&mut bits));
    let bit = |at: u64| {
        let page = ((at - slot.gpa) / PAGE) as usize;
        bits[page / 64] >> (page % 64) & 1
    };
    check_eq!((bit(frame), bit(quiet), bit(bitmap)), (1, 0, 0));
    check_ok!(slot.set_flags(0));
    check_eq!(mem::read::<u64>(frame), Ok(MARK));
});
