//! Memory that several CPUs share: atomics, ordering, and page tables.

use crate::start_all;
use core::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use payload_rt::apic::{self, Delivery, Destination};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::sync::Barrier;
use payload_rt::*;

const PATIENCE: u64 = 5_000_000;

#[repr(align(64))]
struct Line(AtomicU64);

static BARRIER: Barrier = Barrier::new();

/// What a CPU does [`ROUNDS`] times to the word at an address.
type Steps = fn(u64) -> Result<(), trap::Trap>;

/// Steps of each CPU in a test of counting, and the same for the assembler.
const ROUNDS: u64 = 8000;

macro_rules! run {
    ($($insn:tt)+) => { if let Err(trap) = insn!($($insn)+) { fail!("{}: {trap}", stringify!($($insn)+)) } };
}

/// A loop in assembly, so that little but the step itself is in it: address in RDI, count in R9.
macro_rules! steps {
    ($($step:literal),+) => {
        |at| insn!(
            "mov r8, rbx", "mov r9d, 8000", "5:", $($step,)+ "dec r9d", "jnz 5b", "mov rbx, r8";
            in("rdi") at, out("rax") _, out("rcx") _, out("rdx") _, out("r8") _, out("r9") _
        )
    };
}

test!(locked_counters, "No update is lost of a word that all CPUs change with LOCK.", || {
    static WORD: Line = Line(AtomicU64::new(0));
    let word = &WORD.0;
    let cpus = start_all();
    let total = cpus as u64 * ROUNDS;
    let tests: [(&str, Steps, u64); 7] = [
        ("lock inc", steps!("lock inc qword ptr [rdi]"), total),
        ("lock add", steps!("lock add dword ptr [rdi], 3"), 3 * total),
        ("lock xadd", steps!("mov eax, 1", "lock xadd [rdi], rax"), total),
        ("lock sub", steps!("lock sub qword ptr [rdi], 1"), total.wrapping_neg()),
        (
            "lock cmpxchg",
            steps!("mov rax, [rdi]", "2: lea rcx, [rax + 1]", "lock cmpxchg [rdi], rcx", "jne 2b"),
            total,
        ),
        (
            "lock cmpxchg8b",
            steps!(
                "mov eax, [rdi]",
                "mov edx, [rdi + 4]",
                "2: mov ebx, eax",
                "mov ecx, edx",
                "add ebx, 1",
                "adc ecx, 0",
                "lock cmpxchg8b [rdi]",
                "jne 2b"
            ),
            total,
        ),
        // A byte in the middle: its neighbours stay.
        ("lock inc byte", steps!("lock inc byte ptr [rdi + 3]"), (total & 0xff) << 24),
    ];
    for (name, steps, sum) in tests {
        word.store(0, SeqCst);
        smp::on_all(|cpu| {
            BARRIER.wait(cpus);
            check_ok!(steps(word.as_ptr() as u64), "`{name}` on cpu {cpu}");
        });
        check_eq!(word.load(SeqCst), sum, "{ROUNDS} times `{name}` on {cpus} CPUs");
    }
});

test!(locked_bits, "Each CPU flips its own bit of a shared word, and loses no flip.", || {
    static WORD: Line = Line(AtomicU64::new(0));
    let cpus = start_all().min(64);
    let word = &WORD.0;
    smp::on_all(|cpu| {
        if cpu >= cpus {
            return;
        }
        let (at, bit) = (word.as_ptr() as u64, cpu as u64);
        BARRIER.wait(cpus);
        let was = |what: &str, round: u64, old: u8, wanted: u8| {
            check_eq!(old, wanted, "cpu {cpu}, round {round}: its bit before `{what}`");
        };
        for round in 0..500 {
            let old: u8;
            run!("lock bts qword ptr [{}], {}", "setc {}"; in(reg) at, in(reg) bit, out(reg_byte) old);
            was("lock bts", round, old, 0);
            let old: u8;
            run!("lock btr qword ptr [{}], {}", "setc {}"; in(reg) at, in(reg) bit, out(reg_byte) old);
            was("lock btr", round, old, 1);
            let old: u8;
            run!("lock btc qword ptr [{}], {}", "setc {}"; in(reg) at, in(reg) bit, out(reg_byte) old);
            was("lock btc", round, old, 0);
            run!("lock xor [{}], {}"; in(reg) at, in(reg) 1_u64 << bit);
        }
    });
    check_eq!(word.load(SeqCst), 0, "the word after each bit was put back");
});

test!(xchg_is_a_lock, "XCHG with memory is atomic without a prefix: it makes a lock.", || {
    static LOCK: AtomicU32 = AtomicU32::new(0);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let cpus = start_all();
    smp::on_all(|_| {
        BARRIER.wait(cpus);
        for _ in 0..200 {
            loop {
                let old: u32;
                run!("xchg [{}], {:e}"; in(reg) LOCK.as_ptr(), inout(reg) 1_u32 => old);
                if old == 0 {
                    break;
                }
                reg::pause();
            }
            // Not atomic, on purpose: the lock is what makes it right.
            COUNT.store(COUNT.load(Relaxed) + 1, Relaxed);
            run!("mov dword ptr [{}], 0"; in(reg) LOCK.as_ptr());
        }
    });
    check_eq!(COUNT.load(SeqCst), 200 * cpus as u64, "sections of 200 each on {cpus} CPUs");
});

/// Where CPL 3 of all CPUs finds the words below, each in a line of its own.
const SHARED: u64 = 0x5000_2000_0000;
/// Offsets: the words that the two CPUs write, how far each is, what each read.
const WORDS: [u64; 2] = [0, 0x40];
const STEP: [u64; 2] = [0x80, 0xc0];
const SEEN: [u64; 2] = [0x100, 0x140];

/// Runs code at CPL 3 of the first two CPUs at once, since that is where every host runs it on the
/// processor. RDI, RSI: the CPU's own word and the other's; R10, R11: own and other's step; R12, R13:
/// what itself and the other has seen; R14: how often. What RBX is on the two CPUs in the end.
fn duel(rounds: u64, code: [&[u8]; 2]) -> [u64; 2] {
    start_all();
    // A new page each time, of zeroes.
    paging::map(SHARED, frames::alloc().address(), Size::K4, Flags::RWU);
    // A CPU's first excursion maps its pages, and tables are for one CPU at a time to edit.
    for (cpu, code) in code.into_iter().enumerate() {
        smp::run_on(cpu, || user::User::new(code));
    }
    smp::on_all(|_| paging::flush());
    let results = [const { AtomicU64::new(0) }; 2];
    smp::on_all(|cpu| {
        if cpu > 1 {
            return;
        }
        let mut user = user::User::new(code[cpu]);
        let other = 1 - cpu;
        user.regs.rdi = SHARED + WORDS[cpu];
        user.regs.rsi = SHARED + WORDS[other];
        user.regs.r10 = SHARED + STEP[cpu];
        user.regs.r11 = SHARED + STEP[other];
        user.regs.r12 = SHARED + SEEN[cpu];
        user.regs.r13 = SHARED + SEEN[other];
        user.regs.r14 = rounds;
        let outcome = user.run();
        check_eq!(outcome.end, user::End::Done, "code of cpu {cpu} at CPL 3");
        results[cpu].store(outcome.regs.rbx, SeqCst);
    });
    results.map(|result| result.load(SeqCst))
}

/// Each round: both CPUs meet, write the round's number to their own word, do `$fence`, and read the
/// other's; both meet again, and RBX counts the rounds in which neither saw the other's write.
macro_rules! store_then_load {
    ($fence:literal) => {
        asm_code!(
            "xor ebx, ebx",
            "mov r8d, 1",
            "2: lea rax, [r8 * 2 - 1]",
            "mov [r10], rax",
            "3: cmp [r11], rax",
            "jb 3b",
            "mov [rdi], r8",
            $fence,
            "mov rdx, [rsi]",
            "mov [r12], rdx",
            "lea rax, [r8 * 2]",
            "mov [r10], rax",
            "4: cmp [r11], rax",
            "jb 4b",
            "cmp [r12], r8",
            "jae 5f",
            "cmp [r13], r8",
            "jae 5f",
            "inc ebx",
            "5: inc r8",
            "cmp r8, r14",
            "jbe 2b",
            "ret"
        )
    };
}

/// Meets of the two CPUs that are tried: in batches, until there are enough or a tenth of a second is
/// over. Where the host does not run both vCPUs at once each meet can take it a time slice.
const BATCH: u64 = 50;
const BATCHES: u64 = 100;

/// Runs `code`, one of [`store_then_load`], on both CPUs.
fn both_see(what: &str, code: &[u8]) {
    let (start, ticks) = (time::rdtsc(), time::tsc_hz() / 10);
    let mut rounds = 0;
    while rounds < BATCH * BATCHES && time::rdtsc() - start < ticks {
        let wrong = duel(BATCH, [code, code]);
        rounds += BATCH;
        check_eq!(
            wrong,
            [0, 0],
            "of {BATCH} rounds, those in which neither CPU saw the other's store, with {what} between"
        );
    }
    report::value("rounds", rounds);
}

test!(
    store_then_load_with_lock,
    "A locked instruction between a store and a load keeps them in order for all CPUs.",
    || {
        // SDM volume 3, 10.2.3.9; without it both may read the old value (10.2.3.4).
        both_see("a locked OR", store_then_load!("lock or dword ptr [rsp - 8], 0"));
    }
);

test!(
    store_then_load_with_mfence,
    "MFENCE between a store and a load keeps them in order.",
    || {
        both_see("MFENCE", store_then_load!("mfence"));
    }
);

test!(stores_in_order, "Stores of one CPU are seen by another in their order.", || {
    // SDM volume 3, 10.2.3.2: neither stores nor loads pass each other.
    const STORES: u64 = 100_000;
    // What is written first is never behind what is written second.
    let write = asm_code!(
        "xor ebx, ebx",
        "mov r8d, 1",
        "2: mov [rdi], r8",
        "mov [r12], r8",
        "inc r8",
        "cmp r8, r14",
        "jbe 2b",
        "ret"
    );
    let read = asm_code!(
        "xor ebx, ebx",
        "2: mov rax, [r13]",
        "mov rdx, [rsi]",
        "cmp rdx, rax",
        "jae 3f",
        "inc ebx",
        "3: cmp rax, r14",
        "jb 2b",
        "ret"
    );
    let wrong = duel(STORES, [write, read]);
    check_eq!(wrong[1], 0, "times that a second store was seen before the first");
});

test!(words_do_not_tear, "An aligned word is read as it was written, never in halves.", || {
    // SDM volume 3, 10.1.1.
    static WORD: Line = Line(AtomicU64::new(0));
    const PATTERNS: [u64; 2] = [0, u64::MAX];
    start_all();
    smp::on_all(|cpu| match cpu {
        0 => {
            BARRIER.wait(2);
            for i in 0..4000 {
                run!("mov [{}], {}"; in(reg) WORD.0.as_ptr(), in(reg) PATTERNS[i % 2]);
            }
        }
        1 => {
            BARRIER.wait(2);
            for _ in 0..4000 {
                let value: u64;
                run!("mov {1}, [{0}]"; in(reg) WORD.0.as_ptr(), out(reg) value);
                check!(PATTERNS.contains(&value), "read {value:#x}, which nobody wrote");
            }
        }
        _ => {}
    });
});

/// Where the page lies that moves, and the one beside it that does not.
const PAGE: u64 = 0x5000_1234_5000;
const VECTOR: u8 = 0x46;
static ACKS: AtomicUsize = AtomicUsize::new(0);

/// Two frames that hold 0x1111... and 0x2222...
fn two_frames() -> [u64; 2] {
    [0x1111_1111_1111_1111_u64, 0x2222_2222_2222_2222].map(|mark| {
        let frame = frames::alloc().address();
        check_ok!(mem::write(frame, mark), "write frame {frame:#x}");
        frame
    })
}

/// Has all other CPUs run the handler of VECTOR, and waits until all have.
fn shoot(others: usize, round: usize) {
    ACKS.store(0, SeqCst);
    apic::local().send(Delivery::Fixed(VECTOR), Destination::Others);
    let all = time::wait_until(PATIENCE, || ACKS.load(SeqCst) == others);
    check!(all, "round {round}: {} of {others} CPUs acknowledged", ACKS.load(SeqCst));
}

test!(
    tlb_shootdown,
    "After an IPI whose handler runs INVLPG, no CPU sees the frame a page was taken from.",
    || {
        const ROUNDS: usize = 10;
        irq::handle(VECTOR, |_| {
            paging::invlpg(PAGE);
            ACKS.fetch_add(1, SeqCst);
            apic::eoi();
        });
        let frames = two_frames();
        let others = start_all() - 1;
        let leaf = paging::map(PAGE, frames[0], Size::K4, Flags::RW);
        for round in 0..ROUNDS {
            for cpu in 1..=others {
                let value = smp::run_on(cpu, || mem::read::<u64>(PAGE));
                let wanted = 0x1111_1111_1111_1111 << (round % 2);
                check_eq!(value, Ok(wanted), "round {round}: the page as cpu {cpu} sees it");
            }
            leaf.set(frames[(round + 1) % 2] | Flags::RW.0);
            shoot(others, round);
        }
    }
);

test!(
    revoked_page_faults,
    "After a shootdown a page taken away faults on every CPU, and one made read-only on writes.",
    || {
        irq::handle(VECTOR, |_| {
            paging::invlpg(PAGE);
            ACKS.fetch_add(1, SeqCst);
            apic::eoi();
        });
        let frame = two_frames()[0];
        let others = start_all() - 1;
        let leaf = paging::map(PAGE, frame, Size::K4, Flags::RW);
        for round in 0..5 {
            let write = |cpu| smp::run_on(cpu, || mem::write(PAGE + 8, round as u64));
            for cpu in 1..=others {
                check_eq!(write(cpu), Ok(()), "round {round}: a write from cpu {cpu}");
            }
            for (value, error_code) in [(frame | Flags::P.0, 3), (0, 2)] {
                leaf.set(value);
                shoot(others, round);
                for cpu in 1..=others {
                    let fault = check_err!(write(cpu), "round {round}: a write from cpu {cpu}");
                    check!(fault.is(trap::PF, error_code), "round {round}, cpu {cpu}: {fault}");
                    check_eq!(fault.cr2, PAGE + 8, "round {round}: CR2 of cpu {cpu}");
                }
            }
            leaf.set(frame | Flags::RW.0);
            shoot(others, round);
        }
    }
);

test!(
    dirty_bits_from_all,
    "All CPUs write to pages whose dirty bits another clears with LOCK: no write goes unrecorded.",
    || {
        // Each CPU writes a rising number to its own page; CPU 0 clears D and shoots the page
        // down, then the number that it finds is what D covers (SDM volume 3, 5.8).
        const PAGES: u64 = 8;
        static STOP: AtomicUsize = AtomicUsize::new(0);
        let page = |cpu: usize| PAGE + 0x1000 * (cpu as u64 % PAGES);
        irq::handle(VECTOR, |_| {
            paging::invlpg(PAGE + 0x1000 * (cpu::index() as u64 % PAGES));
            ACKS.fetch_add(1, SeqCst);
            apic::eoi();
        });
        let cpus = start_all().min(PAGES as usize);
        for cpu in 1..cpus {
            let frame = frames::alloc().address();
            paging::map(page(cpu), frame, Size::K4, Flags::RW);
        }
        STOP.store(0, SeqCst);
        let writer = |page: u64| {
            let mut number = 0_u64;
            reg::sti();
            while STOP.load(SeqCst) == 0 {
                number += 1;
                check_ok!(mem::write(page, number));
            }
            reg::cli();
            number
        };
        let others = smp::count() - 1;
        let mut jobs = [const { None }; PAGES as usize];
        for (cpu, job) in jobs.iter_mut().enumerate().take(cpus).skip(1) {
            *job = Some(smp::spawn(cpu, writer, page(cpu)));
        }
        for round in 0..12 {
            for cpu in 1..cpus {
                let leaf = paging::walk(page(cpu));
                let physical = check_ok!(paging::translate(page(cpu)).ok_or("not mapped"));
                run!("lock and qword ptr [{}], {}"; in(reg) leaf.at, in(reg) !Flags::D.0);
                shoot(others, round);
                let before = check_ok!(mem::read::<u64>(physical));
                time::delay(100);
                let after = check_ok!(mem::read::<u64>(physical));
                let dirty = leaf.reload().flags().has(Flags::D);
                check!(
                    after == before || dirty,
                    "round {round}: cpu {cpu} wrote {before} to {after} with D clear"
                );
            }
        }
        STOP.store(1, SeqCst);
        for job in jobs.into_iter().flatten() {
            check!(job.wait() > 0, "a CPU wrote nothing");
        }
    }
);
