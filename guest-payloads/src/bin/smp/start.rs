//! INIT and start-up IPIs: where a CPU starts, and in which state.

use crate::start_all;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use payload_rt::apic::{self, Delivery, Destination, Mode, Register};
use payload_rt::*;

type Work = fn(u64) -> u64;

const VECTOR: u8 = 0x47;
const PATIENCE: u64 = 5_000_000;
/// Time that must show that nothing happens, in microseconds.
const SETTLE: u64 = 2000;

/// A page below 1 MiB for a started CPU's report: words that `dump` writes.
const REPORT: u64 = 0x6000;
/// Offset of the word that is set when the report is complete.
const DONE: u64 = 0x3c;
/// Offset of a list of bytes: the MSRs from 0x800 on that are wanted, up to a 0.
const WANTED: u64 = 0x100;
/// Offset of their values' low words.
const VALUES: u64 = 0x200;

/// What a CPU does that was started: writes its registers as it finds them, then the MSRs that are
/// wanted, then 1 to [`DONE`], and halts. Real mode; DS is 0.
fn dump() -> &'static [u8] {
    asm_code!(
        ".code16",
        "cli",
        "mov dword ptr [0x6000], eax",
        "mov dword ptr [0x6004], edx",
        "mov eax, cr0",
        "mov dword ptr [0x6008], eax",
        "mov eax, cr2",
        "mov dword ptr [0x600c], eax",
        "mov eax, cr3",
        "mov dword ptr [0x6010], eax",
        "mov eax, cr4",
        "mov dword ptr [0x6014], eax",
        "pushfd",
        "pop eax",
        "mov dword ptr [0x6018], eax",
        "xor eax, eax",
        "mov ax, cs",
        "mov dword ptr [0x601c], eax",
        "mov si, 0x6100",
        "mov di, 0x6200",
        "2: mov al, byte ptr [si]",
        "test al, al",
        "jz 3f",
        "movzx ecx, al",
        "or cx, 0x800",
        "rdmsr",
        "mov dword ptr [di], eax",
        "inc si",
        "add di, 4",
        "jmp 2b",
        "3: mov dword ptr [0x603c], 1",
        "4: hlt",
        "jmp 4b"
    )
}

fn word(offset: u64) -> u32 {
    check_ok!(mem::read(REPORT + offset), "read the report")
}

/// Empties the report, and puts `dump` at the start of `page`, with HLT all around it.
fn prepare(page: u8, wanted: &[u8]) {
    let at = u64::from(page) << 12;
    for offset in (0..0x1000).step_by(8) {
        check_ok!(mem::write(REPORT + offset, 0_u64), "clear the report");
        check_ok!(mem::write(at + offset, 0xf4f4_f4f4_f4f4_f4f4_u64), "fill page {page:#x}");
    }
    check_ok!(mem::write_bytes(REPORT + WANTED, wanted), "write the wanted MSRs");
    check_ok!(mem::write_bytes(at, dump()), "write code to page {page:#x}");
}

fn cpu_1() -> Destination {
    Destination::Physical(smp::apic_id(1))
}

fn init() {
    apic::local().send(Delivery::Init, cpu_1());
    time::delay(100);
}

fn start_up(page: u8) {
    apic::local().send(Delivery::StartUp(page), cpu_1());
}

/// INIT and start-up of CPU 1 at `page`; waits for its report.
fn restart(page: u8, what: &str) {
    init();
    start_up(page);
    let done = time::wait_until(PATIENCE, || word(DONE) == 1);
    check!(done, "cpu 1 {what} did not start at page {page:#x}");
}

test!(
    start_up_vector,
    "A start-up IPI's vector is the page a CPU starts in, at CS = page << 8.",
    || {
        start_all();
        for page in [0x09, 0x10, 0x1f, 0x40, 0x7f, 0x90] {
            prepare(page, &[]);
            restart(page, "after INIT");
            check_eq!(
                word(0x1c),
                u32::from(page) << 8,
                "CS after a start-up IPI for page {page:#x}"
            );
        }
    }
);

test!(
    state_after_init,
    "INIT leaves general and control registers as the manual says, whatever the CPU was doing.",
    || {
        // SDM volume 3, 10.1.1, table 10-1; AMD APM volume 2, 14.1.3.
        let what = init_at_work();
        // ET is set, CD and NW are as they were, the rest of CR0 is clear.
        let cr0 = word(8) & !((reg::CR0_CD | reg::CR0_NW) as u32);
        for (name, value, wanted) in [
            ("EAX", word(0), 0),
            ("EDX (the signature)", word(4), cpuid::leaf(1, 0).eax),
            ("CR0 but CD and NW", cr0, 0x10),
            ("CR2", word(0xc), 0),
            ("CR3", word(0x10), 0),
            ("EFLAGS", word(0x18), 2),
        ] {
            check_eq!(value, wanted, "{name} after INIT of a CPU {what}");
        }
    }
);

test!(cr4_after_init, "INIT clears CR4.", || {
    let what = init_at_work();
    check_eq!(word(0x14), 0, "CR4 after INIT of a CPU {what}");
});

/// Sends INIT to CPU 1 while that does what `work=N` on the command line says, and says what. What it
/// is left with is in the report.
fn init_at_work() -> &'static str {
    start_all();
    // A loop, HLT, and HLT with interrupts off: INIT ends each.
    let loops = |_| loop {
        reg::pause();
    };
    let halts = |_| loop {
        reg::wait_for_interrupt();
    };
    let halts_for_good = |_| loop {
        reg::cli();
        reg::hlt();
    };
    let works: [(&'static str, Work); 3] =
        [("in a loop", loops), ("in HLT", halts), ("in HLT with IF=0", halts_for_good)];
    let which = boot::number("work").unwrap_or(0) as usize;
    let Some(&(what, work)) = works.get(which) else {
        report::error(format_args!("work={which}: it takes 0 to {}", works.len() - 1));
    };
    // It never ends, as far as the runtime knows: INIT ends it.
    let _never_done = smp::spawn(1, work, 0);
    time::delay(SETTLE);
    prepare(0x10, &[]);
    restart(0x10, what);
    what
}

test!(start_up_needs_init, "A start-up IPI to a CPU that runs does nothing.", || {
    start_all();
    prepare(0x10, &[]);
    prepare(0x11, &[]);
    start_up(0x10);
    time::delay(SETTLE);
    check_eq!(word(DONE), 0, "a start-up IPI without INIT moved cpu 1, which was idle: report");
    check_eq!(smp::run_on(1, cpu::index), 1, "cpu 1 after a start-up IPI it should have ignored");
    // After INIT the first one counts, and no second.
    restart(0x10, "after INIT");
    check_ok!(mem::write(REPORT + DONE, 0_u32));
    start_up(0x11);
    time::delay(SETTLE);
    check_eq!(word(DONE), 0, "a second start-up IPI started cpu 1 again: report");
});

static TICKS: AtomicU32 = AtomicU32::new(0);

test!(
    init_stops,
    "After INIT a CPU waits for its start-up IPI: it runs nothing, and no IPI wakes it.",
    || {
        irq::count_only(VECTOR);
        start_all();
        let _never_done = smp::spawn(
            1,
            |_| {
                reg::sti();
                loop {
                    TICKS.fetch_add(1, SeqCst);
                }
            },
            0,
        );
        let runs = time::wait_until(PATIENCE, || TICKS.load(SeqCst) > 100);
        check!(runs, "cpu 1 does not run");
        prepare(0x10, &[]);
        init();
        time::delay(SETTLE);
        let ticks = TICKS.load(SeqCst);
        apic::local().send(Delivery::Fixed(VECTOR), cpu_1());
        time::delay(SETTLE);
        check_eq!(
            TICKS.load(SeqCst),
            ticks,
            "the counter of cpu 1, which INIT should have stopped"
        );
        check_eq!(irq::count_on(1, VECTOR), 0, "interrupts at cpu 1, which waits for start-up");
        start_up(0x10);
        let done = time::wait_until(PATIENCE, || word(DONE) == 1);
        check!(done, "cpu 1 did not start after all that");
    }
);

test!(init_deassert, "INIT with level de-assert is not sent to anybody by today's CPUs.", || {
    // SDM volume 3, 12.6.1: "INIT Level De-assert" is not supported on Pentium 4 and later.
    start_all();
    let id = smp::apic_id(1);
    for low in [5 << 8 | 1 << 15, 5 << 8 | 1 << 15 | 2 << 18] {
        apic::local().send_raw(id, low);
        time::delay(SETTLE);
        check_eq!(smp::run_on(1, cpu::index), 1, "cpu 1 after ICR {low:#x}");
    }
});

const LVT: [Register; 6] = [
    Register::LVT_TIMER,
    Register::LVT_THERMAL,
    Register::LVT_PERF,
    Register::LVT_LINT0,
    Register::LVT_LINT1,
    Register::LVT_ERROR,
];

/// The local vector table of this CPU's APIC, as far as it goes.
fn lvts() -> &'static [Register] {
    // Timer, LINT0, LINT1 and error are always there, then come performance counters, thermal
    // sensor (SDM volume 3, 12.5.1); KVM and others have these six at least.
    let last = apic::local().read(Register::VERSION) >> 16 & 0xff;
    if last < 5 {
        skip!("a local vector table of {} entries", last + 1);
    }
    &LVT
}

/// Changes every register of this CPU's APIC that can be changed, says so, and goes round in a loop
/// with interrupts off.
fn disturb_apic() -> ! {
    let apic = apic::local();
    apic.set_tpr(0x30);
    for &register in lvts() {
        apic.write(register, 0x77 | apic::LVT_MASKED);
    }
    apic.write(Register::LVT_TIMER, 0x77);
    apic.write(Register::TIMER_DIVIDE, 0b1010);
    apic.write(Register::TIMER_INITIAL, u32::MAX);
    // One vector that waits, and a request to nobody in the ICR.
    apic.self_ipi(0x91);
    apic.send_raw(0xfffe, apic::command(Delivery::Fixed(0x92), Destination::Physical(0)));
    check!(apic.bit(Register::IRR, 0x91), "no request of the self-IPI at cpu 1");
    TICKS.store(1, SeqCst);
    loop {
        reg::pause();
    }
}

test!(
    apic_after_init,
    "INIT brings the local APIC to its reset state but for identifier and mode (seen as x2APIC).",
    || {
        // SDM volume 3, 12.4.7.3 and 12.12.5.1.
        cpuid::X2APIC.require();
        start_all();
        (0..2).for_each(|cpu| smp::run_on(cpu, || apic::set_mode(Mode::X2Apic).enable()));
        let version = smp::run_on(1, || apic::local().read(Register::VERSION));
        let lvts = smp::run_on(1, lvts);
        // What the idle loop would take, interrupts being on there, must stay pending: so this CPU
        // does not go back to it.
        let _never_done = smp::spawn(1, |_| disturb_apic(), 0);
        let done = time::wait_until(PATIENCE, || TICKS.load(SeqCst) == 1);
        check!(done, "cpu 1 is not done with its APIC's registers");
        let id = smp::apic_id(1);
        let mut expected = [(0_u8, 0_u32); 48];
        let mut n = 0;
        let mut add = |register: Register, value: u32| {
            expected[n] = ((register.msr() & 0xff) as u8, value);
            n += 1;
        };
        add(Register::ID, id);
        add(Register::VERSION, version);
        add(Register::TPR, 0);
        add(Register::PPR, 0);
        add(Register::LDR, (id >> 4) << 16 | 1 << (id & 15));
        add(Register::SVR, 0xff);
        for bits in [Register::ISR, Register::TMR, Register::IRR] {
            (0..8).for_each(|i| add(Register(bits.0 + 0x10 * i), 0));
        }
        add(Register::ESR, 0);
        add(Register::ICR, 0);
        for &register in lvts {
            add(register, apic::LVT_MASKED);
        }
        add(Register::TIMER_INITIAL, 0);
        add(Register::TIMER_CURRENT, 0);
        add(Register::TIMER_DIVIDE, 0);
        let expected = &expected[..n];
        let mut wanted = [0; 49];
        wanted.iter_mut().zip(expected).for_each(|(byte, (msr, _))| *byte = *msr);
        prepare(0x10, &wanted[..n + 1]);
        restart(0x10, "in x2APIC mode");
        for (i, (msr, value)) in expected.iter().enumerate() {
            let found = word(VALUES + 4 * i as u64);
            check_eq!(found, *value, "x2APIC MSR {:#x} after INIT", 0x800 + u32::from(*msr));
        }
    }
);
