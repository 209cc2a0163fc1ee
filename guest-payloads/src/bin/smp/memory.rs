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

/// What a CPU, given by its index, does to a word, given by its address.
type Step = dyn Fn(u64, u64) + Sync;

/// Runs one step on a shared word from all CPUs, `ROUNDS` times each.
fn hammer(cpus: usize, word: &AtomicU64, step: &Step) {
    let at = word.as_ptr() as u64;
    smp::on_all(|cpu| {
        BARRIER.wait(cpus);
        for _ in 0..ROUNDS {
            step(at, cpu as u64);
        }
    });
}

const ROUNDS: u64 = 500;

macro_rules! run {
    ($($insn:tt)+) => { if let Err(trap) = insn!($($insn)+) { fail!("{}: {trap}", stringify!($($insn)+)) } };
}

test!(locked_counters, "No update is lost of a word that all CPUs change with LOCK.", || {
    static WORD: Line = Line(AtomicU64::new(0));
    let word = &WORD.0;
    let cpus = start_all();
    let n = cpus as u64;
    let steps: [(&str, &Step, u64); 7] = [
        ("lock inc", &|at, _| run!("lock inc qword ptr [{}]"; in(reg) at), n * ROUNDS),
        ("lock add", &|at, _| run!("lock add dword ptr [{}], 3"; in(reg) at), 3 * n * ROUNDS),
        (
            "lock xadd",
            &|at, _| run!("lock xadd [{}], {}"; in(reg) at, inout(reg) 1_u64 => _),
            n * ROUNDS,
        ),
        (
            "lock sub",
            &|at, _| run!("lock sub qword ptr [{}], 1"; in(reg) at),
            (n * ROUNDS).wrapping_neg(),
        ),
        (
            "lock cmpxchg",
            &|at, _| {
                run!(
                    "mov rax, [{0}]", "2: lea {1}, [rax + 1]", "lock cmpxchg [{0}], {1}", "jne 2b";
                    in(reg) at, out(reg) _, out("rax") _
                );
            },
            n * ROUNDS,
        ),
        (
            "lock cmpxchg8b",
            &|at, _| {
                run!(
                    "mov r8, rbx", "mov eax, [{0}]", "mov edx, [{0} + 4]",
                    "2: mov ebx, eax", "mov ecx, edx", "add ebx, 1", "adc ecx, 0",
                    "lock cmpxchg8b [{0}]", "jne 2b", "mov rbx, r8";
                    in(reg) at, out("eax") _, out("ecx") _, out("edx") _, out("r8") _
                );
            },
            n * ROUNDS,
        ),
        // A byte in the middle: its neighbours stay.
        (
            "lock inc byte",
            &|at, _| run!("lock inc byte ptr [{} + 3]"; in(reg) at),
            ((n * ROUNDS) & 0xff) << 24,
        ),
    ];
    for (name, step, sum) in steps {
        word.store(0, SeqCst);
        hammer(cpus, word, step);
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
        for round in 0..ROUNDS {
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

static X: Line = Line(AtomicU64::new(0));
static Y: Line = Line(AtomicU64::new(0));
static SEEN: [Line; 2] = [const { Line(AtomicU64::new(0)) }; 2];

/// Runs `first` on this CPU and `second` on CPU 1, together, `rounds` times, and `judge` after each.
fn duel(
    rounds: u64,
    first: impl Fn() + Sync,
    second: impl Fn() + Sync,
    judge: impl Fn(u64) + Sync,
) {
    smp::on_all(|cpu| {
        if cpu > 1 {
            return;
        }
        for round in 0..rounds {
            BARRIER.wait(2);
            if cpu == 0 {
                first()
            } else {
                second()
            }
            BARRIER.wait(2);
            if cpu == 0 {
                judge(round);
                X.0.store(0, SeqCst);
                Y.0.store(0, SeqCst);
            }
        }
    });
}

const DUELS: u64 = 80;

test!(
    store_then_load_with_lock,
    "A locked instruction between a store and a load keeps them in order for all CPUs.",
    || {
        // SDM volume 3, 10.2.3.9; without the fence both may read 0 (10.2.3.4).
        start_all();
        let side = |mine: &'static Line, other: &'static Line, seen: &'static Line| {
            move || {
                let value: u64;
                run!(
                    "mov qword ptr [{0}], 1", "lock or dword ptr [rsp], 0", "mov {2}, [{1}]";
                    in(reg) mine.0.as_ptr(), in(reg) other.0.as_ptr(), out(reg) value
                );
                seen.0.store(value, SeqCst);
            }
        };
        duel(DUELS, side(&X, &Y, &SEEN[0]), side(&Y, &X, &SEEN[1]), |round| {
            let (a, b) = (SEEN[0].0.load(SeqCst), SEEN[1].0.load(SeqCst));
            check!(a == 1 || b == 1, "round {round}: both CPUs read 0 behind a locked instruction");
        });
    }
);

test!(
    store_then_load_with_mfence,
    "MFENCE between a store and a load keeps them in order.",
    || {
        start_all();
        let side = |mine: &'static Line, other: &'static Line, seen: &'static Line| {
            move || {
                let value: u64;
                run!(
                    "mov qword ptr [{0}], 1", "mfence", "mov {2}, [{1}]";
                    in(reg) mine.0.as_ptr(), in(reg) other.0.as_ptr(), out(reg) value
                );
                seen.0.store(value, SeqCst);
            }
        };
        duel(DUELS, side(&X, &Y, &SEEN[0]), side(&Y, &X, &SEEN[1]), |round| {
            let (a, b) = (SEEN[0].0.load(SeqCst), SEEN[1].0.load(SeqCst));
            check!(a == 1 || b == 1, "round {round}: both CPUs read 0 behind MFENCE");
        });
    }
);

test!(stores_in_order, "Stores of one CPU are seen by another in their order.", || {
    // SDM volume 3, 10.2.3.2: neither stores nor loads pass each other.
    start_all();
    let write = || {
        run!(
            "mov qword ptr [{}], 1", "mov qword ptr [{}], 1";
            in(reg) X.0.as_ptr(), in(reg) Y.0.as_ptr()
        )
    };
    let read = || {
        for _ in 0..20 {
            let (x, y): (u64, u64);
            run!(
                "mov {2}, [{1}]", "mov {3}, [{0}]";
                in(reg) X.0.as_ptr(), in(reg) Y.0.as_ptr(), out(reg) y, out(reg) x
            );
            check!(x >= y, "the second store was seen, and then not the first");
        }
    };
    duel(DUELS, write, read, |_| {});
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
        const ROUNDS: usize = 24;
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
        for round in 0..8 {
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
        for round in 0..30 {
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
