//! Dirty pages that are cleared by hand.
//!
//! KVM API, KVM_CLEAR_DIRTY_LOG and KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.

use crate::{AREA, PAGE, show};
use payload_rt::lab::{self, Errno, Slot, kvm};
use payload_rt::*;

const CAP: u32 = kvm::cap::MANUAL_DIRTY_LOG_PROTECT2;
/// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE` and `KVM_DIRTY_LOG_INITIALLY_SET`.
const ENABLE: u64 = 1;
const INITIALLY_SET: u64 = 2;

fn manual(pages: u64, flags: u64) -> Slot {
    let offered = lab::check_extension(CAP);
    if offered & flags != flags {
        skip!("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is {offered}, not {flags}");
    }
    check_ok!(lab::enable_cap(CAP, flags));
    show(pages, kvm::slot::LOG_DIRTY).1
}

fn log<const N: usize>(slot: &Slot) -> [u64; N] {
    let mut bitmap = [0; N];
    check_ok!(slot.dirty_log(&mut bitmap));
    bitmap
}

fn dirty(pages: impl IntoIterator<Item = u64>) {
    for page in pages {
        check_ok!(mem::write(AREA + page * PAGE, 1u8));
    }
}

test!(manual_clear, "A page stays in the log until it is cleared.", || {
    let slot = manual(64, ENABLE);
    dirty([1, 2, 3]);
    check_eq!(log(&slot), [0b1110]);
    check_eq!(log(&slot), [0b1110], "a second time");
    check_ok!(slot.clear_dirty_log(0, 64, &[0b0110]));
    check_eq!(log(&slot), [0b1000], "two were cleared");
    dirty([2]);
    check_eq!(log(&slot), [0b1100], "one of them was written again");
    // What is clear stays clear.
    check_ok!(slot.clear_dirty_log(0, 64, &[u64::MAX]));
    check_eq!(log(&slot), [0]);
    dirty([63]);
    check_eq!(log(&slot), [1 << 63]);
});

test!(
    written_before_clear,
    "A page written between get and clear is not lost if it is copied after.",
    || {
        let slot = manual(64, ENABLE);
        dirty([5]);
        check_eq!(log(&slot), [1 << 5]);
        // Not protected again yet: this write takes no fault, and needs none.
        dirty([5]);
        check_eq!(log(&slot), [1 << 5]);
        check_ok!(slot.clear_dirty_log(0, 64, &[1 << 5]));
        check_eq!(log(&slot), [0]);
        dirty([5]);
        check_eq!(log(&slot), [1 << 5], "after it was cleared");
    }
);

test!(clear_a_range, "Only pages of the range that the bitmap names are cleared.", || {
    let slot = manual(130, ENABLE);
    dirty(0..130);
    let all = [u64::MAX, u64::MAX, 0b11];
    check_eq!(log(&slot), all);
    check_ok!(slot.clear_dirty_log(64, 64, &[0xff00_0000_0000_00ff]));
    check_eq!(log(&slot), [u64::MAX, 0x00ff_ffff_ffff_ff00, 0b11]);
    check_ok!(slot.clear_dirty_log(128, 2, &[0b10]), "the rest of the slot");
    check_eq!(log(&slot), [u64::MAX, 0x00ff_ffff_ffff_ff00, 0b01]);
    dirty([64, 129]);
    check_eq!(log(&slot), [u64::MAX, 0x00ff_ffff_ffff_ff01, 0b11]);
});

// "first_page must be a multiple of 64 […]; num_pages must also be a multiple of 64 unless first_page
// + num_pages is the size of the memory slot."
test!(clear_refused, "A range that is not in words, or not in the slot, is EINVAL.", || {
    let slot = manual(130, ENABLE);
    dirty([0, 65, 129]);
    let before: [u64; 3] = log(&slot);
    let bits = [u64::MAX; 4];
    for (first, pages) in [
        (1, 64),
        (63, 64),
        (0, 63),
        (0, 129),
        (64, 65),
        (128, 1),
        (64, 67),
        (128, 64),
        (192, 64),
        (0, 192),
    ] {
        let done = slot.clear_dirty_log(first, pages, &bits);
        check_eq!(done, Err(Errno::EINVAL), "{pages} pages from {first}");
    }
    check_eq!(log(&slot), before, "nothing was cleared");
    let none = Slot { id: slot.id + 9, ..slot };
    check_eq!(none.clear_dirty_log(0, 64, &bits), Err(Errno::ENOENT), "no slot");
    check_ok!(slot.clear_dirty_log(0, 130, &bits), "all of it");
    check_eq!(log(&slot), [0; 3]);
});

test!(initially_set, "All pages are dirty at first, and logged once they are cleared.", || {
    let slot = manual(130, ENABLE | INITIALLY_SET);
    check_eq!(log(&slot), [u64::MAX, u64::MAX, 0b11]);
    check_ok!(slot.clear_dirty_log(0, 64, &[u64::MAX]));
    check_eq!(log(&slot), [0, u64::MAX, 0b11]);
    dirty([7, 70]);
    check_eq!(log(&slot), [1 << 7, u64::MAX, 0b11]);
    check_ok!(slot.clear_dirty_log(0, 130, &[u64::MAX; 3]));
    check_eq!(log(&slot), [0; 3]);
    dirty([7, 70, 128]);
    check_eq!(log(&slot), [1 << 7, 1 << 6, 1]);
});

test!(
    clear_without_the_capability,
    "Without the capability a page is clear once it was told.",
    || {
        let slot = show(64, kvm::slot::LOG_DIRTY).1;
        dirty([4, 9]);
        check_eq!(log(&slot), [1 << 4 | 1 << 9]);
        check_eq!(log(&slot), [0]);
        check_eq!(lab::enable_cap(CAP, INITIALLY_SET), Err(Errno::EINVAL), "initially set alone");
        check_eq!(lab::enable_cap(CAP, 1 << 40), Err(Errno::EINVAL), "a flag that there is not");
    }
);
