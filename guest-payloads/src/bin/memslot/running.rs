//! Slots that change while another CPU uses them.
//!
//! KVM API, KVM_SET_USER_MEMORY_REGION: the call is over when no vCPU sees the old slot any more.

use crate::{AREA, LARGE, MARK, PAGE, show, start_all};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::lab::{self, Backing, Errno, Memory, Slot, kvm};
use payload_rt::*;

const PATIENCE: u64 = 8_000_000;
/// What the other CPU is to know: the round, or [`STOP`].
static ROUND: AtomicU64 = AtomicU64::new(0);
const STOP: u64 = u64::MAX;
/// The last round that the other CPU has seen.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// How often it went round.
static TURNS: AtomicU64 = AtomicU64::new(0);

/// Leaves the guest at times. Under Bochs a host with two vCPUs that both loop without an exit stands still
/// (one alone does not); why is not known, and no business of these tests.
fn exit_now_and_then() {
    if TURNS.load(SeqCst).is_multiple_of(8) {
        port::in8(0x80);
    }
}

fn wait_for(what: &str, done: impl FnMut() -> bool) {
    check!(time::wait_until(PATIENCE, done), "{what}: nothing in {PATIENCE} us");
}

/// Tells the other CPU that a round has begun, and waits until it has looked.
fn begin(round: u64) {
    ROUND.store(round, SeqCst);
    wait_for("the other CPU", || SEEN.load(SeqCst) == round);
}

fn mark(round: u64) -> u64 {
    MARK ^ (round % 2)
}

/// Reads without end. The first read in a round must give the round's mark; each, one of the two or
/// what nothing reads as.
fn reader(_: u64) -> u64 {
    loop {
        let round = ROUND.load(SeqCst);
        if round == STOP {
            return 0;
        }
        let word = check_ok!(mem::read::<u64>(AREA + 0x18));
        if SEEN.load(SeqCst) != round {
            check_eq!(word, mark(round), "the first read in round {round}");
            SEEN.store(round, SeqCst);
        }
        check!(word == mark(0) || word == mark(1) || word == u64::MAX, "read {word:#x}");
        TURNS.fetch_add(1, SeqCst);
        exit_now_and_then();
    }
}

test!(switched_under_reader, "Another CPU reads the memory that a slot has from then on.", || {
    start_all();
    let memories = [0, 1].map(|n| {
        let memory = check_ok!(Memory::new(PAGE, Backing::Small));
        check_ok!(memory.fill(0, PAGE, mark(n)));
        memory
    });
    let mut slot = check_ok!(memories[0].slot(AREA, 0, PAGE, 0));
    let job = smp::spawn(1, reader, 0);
    for round in 2..14 {
        check_ok!(slot.delete());
        slot = Slot { memory: memories[round as usize % 2], ..slot };
        check_ok!(slot.set());
        begin(round);
    }
    ROUND.store(STOP, SeqCst);
    job.wait();
});

test!(moved_under_reader, "Another CPU sees a slot where it went.", || {
    start_all();
    let memory = check_ok!(Memory::new(2 * PAGE, Backing::Small));
    check_ok!(memory.fill(0, PAGE, mark(0)));
    check_ok!(memory.fill(PAGE, PAGE, mark(1)));
    let mut slot = check_ok!(memory.slot(AREA, 0, 2 * PAGE, 0));
    let job = smp::spawn(1, reader, 0);
    for round in 2..14u64 {
        // The second page comes to where the first one was, and back.
        check_ok!(slot.move_to(AREA - round % 2 * PAGE));
        begin(round);
    }
    ROUND.store(STOP, SeqCst);
    job.wait();
});

fn adder(at: u64) -> u64 {
    let mut turns = 0;
    while ROUND.load(SeqCst) != STOP {
        check_ok!(insn!(
            "mov ecx, 50", "5:", "lock inc qword ptr [{}]", "dec ecx", "jnz 5b";
            in(reg) at, out("ecx") _
        ));
        turns += 50;
        TURNS.store(turns, SeqCst);
        exit_now_and_then();
    }
    turns
}

test!(neighbours, "No write is lost of one slot while others come, move and go.", || {
    start_all();
    let (memory, _) = show(1, 0);
    let other = check_ok!(Memory::new(4 * PAGE, Backing::Small));
    let mut slot = check_ok!(other.slot(AREA + LARGE, 0, 4 * PAGE, 0));
    let job = smp::spawn(1, adder, AREA + 0x40);
    for round in 0..10 {
        let before = TURNS.load(SeqCst);
        check_ok!(slot.delete());
        check_ok!(slot.set());
        check_ok!(slot.move_to(AREA + LARGE + round % 3 * PAGE));
        check_ok!(mem::write(slot.gpa, round));
        wait_for("an addition", || TURNS.load(SeqCst) != before);
    }
    ROUND.store(STOP, SeqCst);
    let turns = job.wait();
    check_eq!(memory.read_u64(0x40), Ok(turns), "after {turns} additions");
});

const PAGES: u64 = 16;

fn writer(_: u64) -> u64 {
    let mut n = 0;
    while ROUND.load(SeqCst) != STOP {
        n += 1;
        check_ok!(mem::write(AREA + n * 7 % PAGES * PAGE + 8, n));
        TURNS.store(n, SeqCst);
        exit_now_and_then();
    }
    n
}

/// Copies what the log names until the writer has stopped; what was copied is then what is there.
fn copy_by_log(slot: &Slot, mut log: impl FnMut() -> u64) {
    let mut copy = [0; PAGES as usize];
    let job = smp::spawn(1, writer, 0);
    for round in 0..=20 {
        let before = TURNS.load(SeqCst);
        let bits = log();
        for (page, to) in (0..).zip(&mut copy).filter(|(page, _)| bits >> page & 1 != 0) {
            *to = check_ok!(slot.memory.read_u64(page * PAGE + 8));
        }
        match round {
            20 => {}
            19 => ROUND.store(STOP, SeqCst),
            _ => wait_for("a write", || TURNS.load(SeqCst) > before + PAGES),
        }
        if round == 19 {
            wait_for("the writer's end", || job.is_done());
        }
    }
    check!(job.wait() > 20 * PAGES, "the writer hardly wrote");
    for (page, copied) in (0..).zip(copy) {
        let word = check_ok!(slot.memory.read_u64(page * PAGE + 8));
        check_eq!(copied, word, "page {page}: what the log led to, and what is there");
    }
}

test!(logged_under_writer, "No write of another CPU is missing in the dirty log.", || {
    start_all();
    let (_, slot) = show(PAGES, kvm::slot::LOG_DIRTY);
    copy_by_log(&slot, || {
        let mut bitmap = [0];
        check_ok!(slot.dirty_log(&mut bitmap));
        bitmap[0]
    });
});

// KVM API, KVM_CLEAR_DIRTY_LOG: what is cleared before it is copied is told again if it is written.
test!(cleared_under_writer, "Nor with pages that are cleared by hand.", || {
    lab::require_cap(kvm::cap::MANUAL_DIRTY_LOG_PROTECT2, "MANUAL_DIRTY_LOG_PROTECT2");
    start_all();
    check_ok!(lab::enable_cap(kvm::cap::MANUAL_DIRTY_LOG_PROTECT2, 1));
    let (_, slot) = show(PAGES, kvm::slot::LOG_DIRTY);
    copy_by_log(&slot, || {
        let mut bitmap = [0];
        check_ok!(slot.dirty_log(&mut bitmap));
        check_ok!(slot.clear_dirty_log(0, PAGES as u32, &bitmap));
        bitmap[0]
    });
});

test!(lab_of_another_cpu, "A second CPU changes slots and records exits of its own.", || {
    start_all();
    let (memory, slot) = show(1, 0);
    let log = smp::run_on(1, || {
        check_ok!(slot.delete());
        let log = crate::watch(AREA, AREA + PAGE);
        check_eq!(mem::read::<u64>(AREA), Ok(crate::NOTHING), "on the CPU that records");
        log
    });
    check_eq!(mem::read::<u64>(AREA), Ok(u64::MAX), "on the one that does not");
    check_eq!(log.get(0).map(|exit| exit.cpu), Some(1));
    check_eq!(log.count(), 1);
    smp::run_on(1, || check_ok!(slot.set()));
    check_ok!(mem::write(AREA, MARK));
    check_eq!(smp::run_on(1, || memory.read_u64(0)), Ok(MARK));
    check_eq!(lab::transplant().err().map(|e| e.errno), Some(Errno::EBUSY), "more CPUs than one");
});
