//! The guest's top page table in memory of all kinds.
//!
//! SDM volume 3, 5.5 and 7.15 (#DF); APM volume 2, 8.2.9. Reads of what is no memory give ones, which as an
//! entry is reserved bits: no fetch succeeds, nor the delivery of the fault, nor that of #DF.

use crate::tables::{TABLES, lay};
use crate::{AREA, AT, MARK, PAGE, show};
use payload_rt::apic::{self, Delivery, Destination};
use payload_rt::lab::{self, Backing, Memory, kind};
use payload_rt::paging::{self, Flags};
use payload_rt::*;

/// Copies the runtime's top table to the beginning of a memory, as the host.
fn copy_root(memory: Memory) {
    let top = check_ok!(lab::sregs()).cr3 & paging::ADDRESS;
    for offset in (0..PAGE).step_by(8) {
        let entry: u64 = check_ok!(mem::read(top + offset));
        if entry != 0 {
            check_ok!(memory.write_u64(offset, entry));
        }
    }
}

test!(
    root_in_slot,
    "A top table in a slot serves, and where the slot moves it serves there.",
    || {
        const TABLES_AT: u64 = AREA + 0x1000_0000;
        let (memory, mut slot) = show(1, 0);
        let frame = frames::alloc().address();
        check_ok!(mem::write(frame, MARK));
        let below = check_ok!(Memory::new(TABLES * PAGE, Backing::Small));
        check_ok!(below.slot(TABLES_AT, 0, TABLES * PAGE, 0));
        lay(below, TABLES_AT, AT, frame | Flags::RW.0);
        copy_root(memory);
        // By the host: see `tables::flush`.
        let own = check_ok!(lab::sregs()).cr3;
        for round in 0..4 {
            let gpa = AREA + round * 0x20_3000;
            check_ok!(slot.move_to(gpa));
            check_ok!(reg::set_cr3(gpa), "CR3 = {gpa:#x}");
            check_eq!(mem::read::<u64>(AT), Ok(MARK), "by the top table at {gpa:#x}");
            check_eq!(check_ok!(lab::sregs()).cr3, gpa, "CR3 by the host");
            // Not while it is in use: what then comes is another test's.
            check_ok!(reg::set_cr3(own));
        }
    }
);

/// What vCPU 1 comes to with CR3 at an address: the kind of its exit and its first word.
fn with_root(at: u64) -> u64 {
    let kinds = kind::SHUTDOWN | kind::INTERNAL_ERROR | kind::FAIL_ENTRY | kind::RUN_ERROR;
    match lab::until_exit(kinds, || reg::set_cr3(at)) {
        Ok(Ok(())) => 0,
        Ok(Err(trap)) => u64::from(trap.vector) << 32,
        Err(exit) => u64::from(exit.kind) | exit.words[0] << 48,
    }
}

/// Lets vCPU 1 have CR3 at an address where no table is; it must end, one way or the other.
fn ends(at: u64, what: &str) {
    check!(smp::start() >= 2, "one CPU");
    let job = smp::spawn(1, with_root, at);
    if !time::wait_until(5_000_000, || job.is_done()) {
        // INIT takes it out of whatever it does.
        let local = apic::local();
        local.enable();
        local.send(Delivery::Init, Destination::Physical(smp::apic_id(1)));
        fail!("{what}: cpu 1 neither goes on nor ends, in seconds");
    }
    let found = job.wait();
    let ended = u64::from(kind::SHUTDOWN | kind::INTERNAL_ERROR);
    check!(found as u32 as u64 & ended != 0, "{what}: {found:#x}");
}

test!(
    root_absent,
    "CR3 where no memory is ends the guest: a triple fault, or an internal error.",
    || {
        ends(AREA, "no memory");
    }
);

test!(root_of_zeroes, "CR3 to a table that maps nothing ends the guest.", || {
    let (_, _) = show(1, 0);
    ends(AREA, "a table of zeroes");
});
