//! TLB flushes by hypercall (TLFS, Virtual MMU).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::*;
use payload_rt::paging::{self, Entry, Flags, Size};
use payload_rt::{check_eq, smp, test, time};

/// Where the pages under test are mapped: no RAM and no device lies there.
const AT: u64 = 0x60_0000_0000;
const MARKS: [u64; 2] = [0x1111_1111_1111_1111, 0x2222_2222_2222_2222];

/// Flags of a flush: all processors, all address spaces, no global pages.
const ALL_PROCESSORS: u64 = 1;
const ALL_SPACES: u64 = 2;

static STOP: AtomicBool = AtomicBool::new(false);
/// How often the reader was asked, and has answered; what it read then.
static ASKED: AtomicU64 = AtomicU64::new(0);
static ANSWERED: AtomicU64 = AtomicU64::new(0);
static FOUND: AtomicU64 = AtomicU64::new(0);

/// Reads the page over and over, so that its processor remembers it.
fn reader(_: u64) -> u64 {
    while !STOP.load(SeqCst) {
        let asked = ASKED.load(SeqCst);
        FOUND.store(mem::read(AT).unwrap_or(0), SeqCst);
        ANSWERED.store(asked, SeqCst);
        reg::pause();
    }
    0
}

/// What the other processor reads from here on.
fn elsewhere() -> u64 {
    let question = ASKED.fetch_add(1, SeqCst) + 1;
    let answered = time::wait_until(PATIENCE, || ANSWERED.load(SeqCst) >= question);
    check!(answered, "cpu 1 does not answer");
    FOUND.load(SeqCst)
}

/// A page that leads to one frame or the other, which processor 1 reads.
struct Rig {
    frames: [u64; 2],
    leaf: Entry,
    job: smp::Job,
}

impl Rig {
    fn start() -> Rig {
        let frames = MARKS.map(|mark| {
            let at = page();
            put(at, mark);
            at
        });
        let leaf = paging::map(AT, frames[0], Size::K4, Flags::RW);
        let cpus = smp::start();
        check!(cpus >= 2, "{cpus} CPUs: the case must give the machine two");
        introduce();
        Rig { frames, leaf, job: smp::spawn(1, reader, 0) }
    }

    /// Makes the page lead to the other frame, flushes, and looks, a few times.
    fn check(self, flush: impl Fn() -> u64, expected: u64) {
        for round in 0..32 {
            let (old, new) = (round % 2, (round + 1) % 2);
            check_eq!(elsewhere(), MARKS[old], "at cpu 1 before round {round}");
            check_eq!(word::<u64>(AT), MARKS[old], "at cpu 0 before round {round}");
            self.leaf.set(self.frames[new] | Flags::RW.0);
            check_eq!(flush(), expected, "the flush of round {round}");
            check_eq!(elsewhere(), MARKS[new], "at cpu 1 after round {round}");
            check_eq!(word::<u64>(AT), MARKS[new], "at cpu 0 after round {round}");
        }
        STOP.store(true, SeqCst);
        self.job.wait();
    }
}

/// An input of words.
fn input(words: &[u64]) -> u64 {
    let at = page();
    for (at, word) in (at..).step_by(8).zip(words) {
        put(at, *word);
    }
    at
}

test!(flush_space, "HvFlushVirtualAddressSpace of some processors, one address space.", || {
    let rig = Rig::start();
    let at = input(&[reg::cr3(), 0, 0b11]);
    rig.check(|| call(code::FLUSH_SPACE, at, 0), status::SUCCESS);
});

test!(flush_everything, "HvFlushVirtualAddressSpace of all processors and spaces.", || {
    let rig = Rig::start();
    let at = input(&[0, ALL_PROCESSORS | ALL_SPACES, 0]);
    rig.check(|| call(code::FLUSH_SPACE, at, 0), status::SUCCESS);
});

test!(flush_list, "HvFlushVirtualAddressList flushes the pages of its list.", || {
    let rig = Rig::start();
    // The low twelve bits: so many pages more.
    let list = [AT + 0x10_0000, (AT - 0x1000) | 2, AT + 0x20_0000];
    let at = input(&[0, ALL_SPACES, 0b11, list[0], list[1], list[2]]);
    rig.check(|| call(3 << REPS | code::FLUSH_LIST, at, 0), 3 << REPS);
});

test!(flush_set, "HvFlushVirtualAddressSpaceEx flushes a set of processors.", || {
    let rig = Rig::start();
    // Space, flags, format (banks), valid banks, banks.
    let at = input(&[0, ALL_SPACES, 0, 0b101, 0b11, u64::MAX]);
    rig.check(|| call(2 << VARIABLE | code::FLUSH_SPACE_EX, at, 0), status::SUCCESS);
});

test!(flush_list_of_set, "HvFlushVirtualAddressListEx takes a set and a list.", || {
    let rig = Rig::start();
    let at = input(&[0, ALL_SPACES, 0, 1, 0b11, AT + 0x10_0000, AT]);
    rig.check(|| call(2 << REPS | 1 << VARIABLE | code::FLUSH_LIST_EX, at, 0), 2 << REPS);
});

test!(flush_all_of_set, "HvFlushVirtualAddressSpaceEx of all processors needs no banks.", || {
    let rig = Rig::start();
    let at = input(&[0, ALL_SPACES, 1, 0]);
    rig.check(|| call(code::FLUSH_SPACE_EX, at, 0), status::SUCCESS);
});

test!(
    bad_flushes,
    "A flush with another header than its set's, or none it has, is refused.",
    || {
        introduce();
        let at = input(&[0, ALL_SPACES, 0, 0b11, 1, 1]);
        for (bits, what) in [
            (code::FLUSH_SPACE_EX, "two banks, and no header"),
            (1 << VARIABLE | code::FLUSH_SPACE_EX, "two banks, and one in the header"),
            (1 << REPS | 2 << VARIABLE | code::FLUSH_SPACE_EX, "a rep count for a simple call"),
            (1 << VARIABLE | code::FLUSH_SPACE, "a header for a call without one"),
            (1 << REPS | 1 << VARIABLE | code::FLUSH_LIST, "a header for a call without one"),
            (2 << VARIABLE | code::FLUSH_LIST_EX, "a list without a count"),
        ] {
            check_eq!(call(bits, at, 0), status::INVALID_HYPERCALL_INPUT, "{what}");
        }
        check_eq!(
            call(2 << VARIABLE | code::FLUSH_SPACE_EX, at, 0),
            status::SUCCESS,
            "a right one"
        );
        let result = call(code::FLUSH_SPACE, NOWHERE, 0);
        check_eq!(result, status::INVALID_HYPERCALL_INPUT, "input where there is no memory");
    }
);
