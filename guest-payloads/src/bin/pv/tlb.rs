//! Flushes of a TLB that other CPUs ask for while a vCPU does not run (msr.rst, MSR_KVM_STEAL_TIME:
//! `KVM_VCPU_FLUSH_TLB` in `preempted`; cpuid.rst, KVM_FEATURE_PV_TLB_FLUSH).
//!
//! The page is read at CPL 3, where a host without EPT or NPT has the processor translate by tables of
//! the host's own: these keep what the guest's said before, until something has them brought up to date.
//! An exit alone does not. With EPT or NPT it depends on the processor's TLB: what is left over there
//! without a request is the value `stale`.

use crate::steal::{self, PREEMPTED};
use crate::{PATIENCE, feature, page, put, word};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use payload_rt::lab::{AREA, Backing, Memory};
use payload_rt::user::{End, User};
use payload_rt::*;

/// Bits of `preempted`.
const IS_PREEMPTED: u64 = 1;
const FLUSH_TLB: u64 = 2;
/// What is mapped in turn at an address that nothing else uses.
const LINEAR: u64 = 0x7f10_0000;
const MARKS: [u32; 2] = [0x1111_1111, 0x2222_2222];
/// Present, writable, for CPL 3, accessed and dirty: no walk has a reason to write the entry.
const BITS: u64 = 0x67;

/// The page that leads to one frame or the other.
struct Page {
    entry: paging::Entry,
    frames: [u64; 2],
}

impl Page {
    fn new() -> Page {
        let frames = MARKS.map(|mark| {
            let frame = page();
            put(frame, mark);
            frame
        });
        let entry = paging::map(LINEAR, frames[0], paging::Size::K4, paging::Flags::RWU);
        let leaf = Page { entry, frames };
        leaf.lead_to(0);
        paging::flush();
        leaf
    }

    /// Changes the entry, and flushes nothing.
    fn lead_to(&self, which: usize) {
        self.entry.set(self.frames[which] | BITS);
    }
}

/// Reads the page at CPL 3.
struct Reader(User);

impl Reader {
    fn new() -> Reader {
        let mut user = User::new(asm_code!("mov eax, [rdi]", "ret"));
        user.regs.rdi = LINEAR;
        Reader(user)
    }

    fn read(&self) -> u32 {
        let outcome = self.0.run();
        check_eq!(outcome.end, End::Done, "a read at CPL 3");
        outcome.regs.rax as u32
    }
}

test!(tlb_flush, "A request in `preempted` of a vCPU that is out has its TLB flushed.", || {
    feature("kvm-pv-tlb-flush", 9).require();
    const AT: u64 = 0x40;
    let memory = check_ok!(Memory::new(4096, Backing::Small));
    check_ok!(memory.slot(AREA, 0, 4096, 0));
    steal::start(AREA + AT);
    let (leaf, reader) = (Page::new(), Reader::new());
    let mut stale = 0;
    for round in 1..=20 {
        let (before, after) = (MARKS[(round - 1) % 2], MARKS[round % 2]);
        check_eq!(reader.read(), before, "before round {round}");
        leaf.lead_to(round % 2);
        // An exit like the other one, by which nothing is asked for: an old translation may be used.
        check_ok!(memory.write(0x800, &[0]));
        let now = reader.read();
        check!(now == before || now == after, "round {round}: {now:#x} is on neither page");
        stale += u64::from(now == before);
        let mut preempted = [0];
        let request = [(IS_PREEMPTED | FLUSH_TLB) as u8];
        check_ok!(memory.write(AT + PREEMPTED, &request));
        check_eq!(reader.read(), after, "round {round}: by a translation that was to be flushed");
        check_ok!(memory.read(AT + PREEMPTED, &mut preempted));
        check_eq!(preempted[0] & FLUSH_TLB as u8, 0, "the request, after the vCPU ran");
    }
    report::value("stale", stale);
});

/// `struct kvm_steal_time` of the CPU whose TLB is flushed: 64 bytes, aligned so.
#[repr(align(64))]
struct Steal([AtomicU64; 8]);

static STEAL: Steal = Steal([const { AtomicU64::new(0) }; 8]);
/// The round that the reader has read in, and what it found.
static DONE: AtomicU32 = AtomicU32::new(0);
static FOUND: AtomicU32 = AtomicU32::new(0);
/// Where the round that the reader is to read in can be seen at CPL 3.
const GO: u64 = LINEAR + 0x1000;
const LAST: u32 = u32::MAX;

/// Reads once a round, and spins at CPL 3 in between, where no host interprets it.
fn read_and_spin(_: u64) -> u64 {
    steal::start(&raw const STEAL as u64);
    let mut user =
        User::new(asm_code!("2: pause", "cmp [rsi], ebx", "je 2b", "mov eax, [rdi]", "ret"));
    (user.regs.rdi, user.regs.rsi) = (LINEAR, GO);
    loop {
        let outcome = user.run();
        let round = word(GO);
        if outcome.end != End::Done || round == LAST {
            return u64::from(outcome.end != End::Done);
        }
        user.regs.rbx = u64::from(round);
        FOUND.store(outcome.regs.rax as u32, SeqCst);
        DONE.store(round, SeqCst);
    }
}

/// Has the reader read; `None` if it does not come to that.
fn read_there(round: u32) -> Option<u32> {
    put(GO, round);
    time::wait_until(PATIENCE, || DONE.load(SeqCst) == round).then(|| FOUND.load(SeqCst))
}

/// Waits until the host says that the reader does not run, and asks for a flush there, in one step as a
/// guest must; whether it came to that.
fn ask_for_a_flush() -> bool {
    let word = &STEAL.0[PREEMPTED as usize / 8];
    let asked = IS_PREEMPTED | FLUSH_TLB;
    let put = || word.compare_exchange(IS_PREEMPTED, asked, SeqCst, SeqCst).is_ok();
    time::wait_until(PATIENCE, put)
}

/// Rounds of [`tlb_flush_of_a_preempted_cpu`]; how many there were, and how many reads without a request
/// were by the translation of before.
fn rounds(leaf: &Page) -> Result<(u32, u64), &'static str> {
    let mut stale = 0;
    for round in 0..5 {
        let (old, new) = (MARKS[round as usize % 2], MARKS[(round as usize + 1) % 2]);
        let read = |n| read_there(3 * round + n).ok_or("the reader does not read");
        if read(1)? != old {
            return Err("the reader finds the new page before there is one");
        }
        leaf.lead_to((round as usize + 1) % 2);
        stale += u64::from(read(2)? == old);
        if !ask_for_a_flush() {
            return Ok((round, stale));
        }
        if read(3)? != new {
            return Err("a read by a translation that was to be flushed");
        }
    }
    Ok((5, stale))
}

// KVM says so of a vCPU that an interrupt of its host took off a processor, not of one that halts.
test!(
    tlb_flush_of_a_preempted_cpu,
    "What is asked for a CPU that waits is done when it runs.",
    || {
        feature("kvm-pv-tlb-flush", 9).require();
        let cpus = smp::start();
        let leaf = Page::new();
        paging::map(GO, page(), paging::Size::K4, paging::Flags::RWU);
        let reader = smp::spawn(1, read_and_spin, 0);
        let spin = |_| {
            while word::<u32>(GO) != LAST {
                reg::pause();
            }
            0
        };
        let mut others = [const { None }; 16];
        let jobs = (2..cpus).map(|cpu| smp::spawn(cpu, spin, 0));
        others.iter_mut().zip(jobs).for_each(|(to, job)| *to = Some(job));
        let outcome = rounds(&leaf);
        put(GO, LAST);
        check_eq!(reader.wait(), 0, "the reader at CPL 3 ended by a trap: 1");
        for job in others.into_iter().flatten() {
            job.wait();
        }
        match outcome {
            Err(what) => fail!("{what}: {:#x}", FOUND.load(SeqCst)),
            Ok((0, _)) => {
                skip!("the host says of none of {cpus} vCPUs that it waits for a processor")
            }
            Ok((done, stale)) => {
                report::value("rounds", done.into());
                report::value("stale", stale);
            }
        }
    }
);
