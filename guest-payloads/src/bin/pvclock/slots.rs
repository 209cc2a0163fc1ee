//! A clock in memory that the host takes away (Linux, Documentation/virt/kvm/api.rst, 4.35).

use crate::{SECOND, SYSTEM_TIME_NEW, Shared, clock, write};
use payload_rt::lab::{self, AREA, Backing, Memory, Slot, kvm};
use payload_rt::*;

const PAGE: u64 = frames::PAGE;

/// A clock in lab memory.
fn in_lab(flags: u32) -> (Memory, Slot, Shared) {
    crate::CLOCKSOURCE_NEW.require();
    let memory = check_ok!(Memory::new(2 * PAGE, Backing::Small));
    let slot = check_ok!(memory.slot(AREA, 0, PAGE, flags));
    let shared = Shared { at: AREA + 0x80 };
    write(SYSTEM_TIME_NEW, shared.at | 1);
    (memory, slot, shared)
}

fn set_clock(clock: u64) {
    check_ok!(lab::set(kvm::SET_CLOCK, &kvm::ClockData { clock, ..Default::default() }));
}

test!(host_reads_the_page, "What the host reads in the page is what the guest has there.", || {
    let (memory, _, shared) = in_lab(0);
    let info = shared.info();
    check_eq!(memory.read_u64(0x80 + 8), Ok(info.tsc_timestamp));
    check_eq!(memory.read_u64(0x80 + 16), Ok(info.system_time));
});

test!(page_is_dirty, "The page of a clock that is set is in the dirty log.", || {
    let (_, slot, _) = in_lab(kvm::slot::LOG_DIRTY);
    let mut bitmap = [0];
    check_ok!(slot.dirty_log(&mut bitmap));
    check_eq!(bitmap, [1], "after it was turned on");
    check_ok!(slot.dirty_log(&mut bitmap));
    set_clock(100 * SECOND);
    check_ok!(slot.dirty_log(&mut bitmap));
    check_eq!(bitmap, [1], "after it was set");
});

test!(slot_goes, "A clock whose memory goes harms nothing, and is there again with it.", || {
    let (memory, slot, shared) = in_lab(0);
    let version = shared.info().version;
    check_ok!(slot.delete());
    set_clock(1000 * SECOND);
    time::delay(500);
    let mut bytes = [0; 4];
    check_ok!(memory.read(0x80, &mut bytes));
    check_eq!(u32::from_le_bytes(bytes), version, "written where no slot shows it");
    check_ok!(slot.set());
    write(SYSTEM_TIME_NEW, shared.at | 1);
    let now = shared.now();
    check!((1000 * SECOND..1060 * SECOND).contains(&now), "{now} ns");
});

test!(slot_comes_back, "Memory that comes back has the clock with its next update.", || {
    let (_, slot, shared) = in_lab(0);
    check_ok!(slot.delete());
    check_ok!(slot.set());
    set_clock(3000 * SECOND);
    let now = shared.now();
    check!((3000 * SECOND..3060 * SECOND).contains(&now), "{now} ns");
});

test!(slot_shows_other_memory, "The clock follows the slot to the memory that it shows.", || {
    let (memory, slot, shared) = in_lab(0);
    let first = check_ok!(memory.read_u64(0x80 + 16));
    check_ok!(slot.delete());
    check_ok!(Slot { offset: PAGE, ..slot }.set());
    set_clock(4000 * SECOND);
    let now = shared.now();
    check!((4000 * SECOND..4060 * SECOND).contains(&now), "{now} ns");
    check_eq!(memory.read_u64(0x80 + 16), Ok(first), "the memory that it showed before");
});

test!(slot_moves, "A slot that moves leaves the clock's address behind.", || {
    let (memory, mut slot, shared) = in_lab(0);
    let before = check_ok!(memory.read_u64(0x80 + 16));
    check_ok!(slot.move_to(AREA + 16 * PAGE));
    set_clock(5000 * SECOND);
    check_eq!(mem::read::<u64>(AREA + 16 * PAGE + 0x80 + 16), Ok(before), "written all the same");
    let moved = Shared { at: shared.at + 16 * PAGE };
    write(SYSTEM_TIME_NEW, moved.at | 1);
    let now = moved.now();
    check!((5000 * SECOND..5060 * SECOND).contains(&now), "{now} ns");
});

test!(read_only_slot, "In a slot that only reads no time appears, and nothing is harmed.", || {
    lab::require_cap(kvm::cap::READONLY_MEM, "READONLY_MEM");
    let (memory, ..) = in_lab(kvm::slot::READONLY);
    check_eq!(memory.read_u64(0x80 + 16), Ok(0), "the system time");
    set_clock(6000 * SECOND);
    check_eq!(memory.read_u64(0x80 + 16), Ok(0), "the system time after it was set");
    let shared = clock();
    check!(shared.now() >= 6000 * SECOND, "a clock in RAM after it");
});

test!(slot_over_nothing, "A clock where no memory is begins when memory comes.", || {
    crate::CLOCKSOURCE_NEW.require();
    let at = AREA + 0x40;
    // KVM may refuse the place; then there is nothing to begin.
    if reg::wrmsr(SYSTEM_TIME_NEW, at | 1).is_err() {
        return;
    }
    let memory = check_ok!(Memory::new(PAGE, Backing::Small));
    check_ok!(memory.slot(AREA, 0, PAGE, 0));
    write(SYSTEM_TIME_NEW, at | 1);
    check!(Shared { at }.info().mul != 0, "no clock");
});
