//! HLT: what wakes a CPU, what does not, and where it goes on.
//!
//! Intel SDM volume 2, HLT and STI; volume 3, 12.8 (handling of local interrupts). A wake-up that
//! a hypervisor loses does not end in `fail` here but in a guest that is halted for good, which
//! the VMM reports.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use payload_rt::apic::{self, Apic, Delivery, Destination, Mode, Register, Timer};
use payload_rt::trap::Frame;
use payload_rt::*;

const VECTOR: u8 = 0x51;
const LOW_VECTOR: u8 = 0x31;
/// First vector of the PICs.
const PIC_BASE: u8 = 0x60;
/// A GSI with nothing on it but the test device.
const LINE: u8 = 11;
/// Long enough for an interrupt that is due to come, in microseconds; nothing is asserted of it.
const SETTLE: u64 = 1000;

/// RIP in the frame of the first interrupt since [`CAME`] was 0, and how many came since.
static RIP: AtomicU64 = AtomicU64::new(0);
static CAME: AtomicU32 = AtomicU32::new(0);

/// NMIs that came before HLT was executed.
static EARLY: AtomicU32 = AtomicU32::new(0);
/// The one vector that [`CAME`] counts, for tests whose requests have several.
static EXPECTED: AtomicU64 = AtomicU64::new(0);

fn note(frame: &mut Frame) {
    if CAME.fetch_add(1, SeqCst) == 0 {
        RIP.store(frame.rip, SeqCst);
    }
}

fn note_and_eoi(frame: &mut Frame) {
    note(frame);
    apic::eoi();
}

/// The local APIC in each mode there is, enabled.
fn modes() -> impl Iterator<Item = Apic> {
    let x2apic = cpuid::X2APIC.present().then_some(Mode::X2Apic);
    [Some(Mode::XApic), x2apic].into_iter().flatten().map(|mode| {
        let apic = apic::set_mode(mode);
        apic.enable();
        apic
    })
}

/// `sti; hlt; cli`, and the address behind `hlt`.
fn sti_hlt() -> u64 {
    let behind: u64;
    check_ok!(insn!("lea {}, [rip + 3f]", "sti", "hlt", "3:", "cli"; out(reg) behind));
    behind
}

/// The address behind the `hlt` of [`bare_hlt`], noted before that is executed.
static BEHIND: AtomicU64 = AtomicU64::new(0);

/// `hlt` with the interrupt flag as it is, and the address behind it.
fn bare_hlt() -> u64 {
    check_ok!(insn!(
        "lea {behind}, [rip + 3f]", "mov [{note}], {behind}", "hlt", "3:", "nop";
        behind = out(reg) _, note = in(reg) BEHIND.as_ptr()
    ));
    BEHIND.load(SeqCst)
}

test!(
    wakes_on_apic_timer,
    "The local APIC's timer ends HLT, and execution goes on behind it.",
    || {
        irq::handle(VECTOR, note_and_eoi);
        for apic in modes() {
            apic.set_timer(Timer::OneShot, VECTOR);
            // From an interrupt that is there before HLT is to one that comes well after.
            for count in [1, 100, 10_000, 100_000, 1_000_000] {
                CAME.store(0, SeqCst);
                apic.start_timer(count);
                let behind = sti_hlt();
                check_eq!(CAME.load(SeqCst), 1, "interrupts of {:?} after {count}", apic.mode());
                check_eq!(RIP.load(SeqCst), behind, "where the interrupt found {:?}", apic.mode());
            }
        }
    }
);

test!(wakes_on_tsc_deadline, "The TSC-deadline timer ends HLT, not before its time.", || {
    cpuid::TSC_DEADLINE.require();
    irq::handle(VECTOR, note_and_eoi);
    for apic in modes() {
        apic.set_timer(Timer::Deadline, VECTOR);
        for ticks in [1, 10_000, 1_000_000] {
            CAME.store(0, SeqCst);
            let deadline = time::rdtsc_ordered() + ticks;
            check_ok!(reg::wrmsr(reg::TSC_DEADLINE, deadline), "arm the timer");
            let behind = sti_hlt();
            let now = time::rdtsc_ordered();
            check_eq!(CAME.load(SeqCst), 1, "interrupts with {ticks} ticks to go");
            check_eq!(RIP.load(SeqCst), behind, "where the interrupt found the CPU");
            check!(now >= deadline, "awake at {now:#x}, before the deadline {deadline:#x}");
        }
    }
});

/// Programs the PIT's channel 0 for one interrupt after `count` of its ticks (mode 0; Intel 8254
/// datasheet).
fn start_pit(count: u16) {
    port::out8(0x43, 0b0011_0000);
    port::out8(0x40, count as u8);
    port::out8(0x40, (count >> 8) as u8);
}

fn require_pit() {
    port::out8(0x43, 0b0011_0000);
    port::out8(0x40, 0xff);
    port::out8(0x40, 0xff);
    port::out8(0x43, 0b1110_0010); // latch the status of channel 0
    if port::in8(0x40) & 0x3f != 0x30 {
        skip!("no PIT");
    }
    pic::require();
}

test!(wakes_on_pit, "The PIT ends HLT through the PIC and LINT0 as ExtINT.", || {
    require_pit();
    for apic in modes() {
        irq::handle(PIC_BASE, |frame| {
            note(frame);
            pic::eoi(0);
        });
        pic::init(PIC_BASE);
        apic.write(Register::LVT_LINT0, 7 << 8);
        start_pit(0xffff);
        pic::set_mask(!1);
        for count in [2, 1200, 12_000] {
            CAME.store(0, SeqCst);
            start_pit(count);
            let behind = sti_hlt();
            check_eq!(CAME.load(SeqCst), 1, "interrupts after {count} PIT ticks");
            check_eq!(RIP.load(SeqCst), behind, "where the interrupt found the CPU");
        }
        pic::set_mask(0xffff);
        apic.write(Register::LVT_LINT0, apic::LVT_MASKED);
    }
});

test!(
    wakes_on_pit_as_nmi,
    "The PIT through LINT0 in NMI mode ends HLT with interrupts off (the old NMI watchdog).",
    || {
        require_pit();
        // Nothing keeps the NMI away until HLT is executed, and on a busy host that may be late: one
        // that came before it wakes nobody, and the PIT is started again.
        irq::handle(trap::NMI, |frame| {
            let early = frame.rip != BEHIND.load(SeqCst);
            if early && EARLY.fetch_add(1, SeqCst) < 10 {
                start_pit(60_000);
            } else {
                note(frame);
            }
        });
        for apic in modes() {
            pic::init(PIC_BASE);
            apic.write(Register::LVT_LINT0, 4 << 8);
            CAME.store(0, SeqCst);
            EARLY.store(0, SeqCst);
            start_pit(0xffff);
            pic::set_mask(!1);
            start_pit(6000);
            let behind = bare_hlt();
            check_eq!(CAME.load(SeqCst), 1, "NMIs as {:?}", apic.mode());
            check_eq!(RIP.load(SeqCst), behind, "where the NMI found the CPU");
            pic::set_mask(0xffff);
            apic.write(Register::LVT_LINT0, apic::LVT_MASKED);
        }
    }
);

test!(
    sti_hlt_has_no_window,
    "An interrupt that waits for STI is taken once HLT has begun, not between the two.",
    || {
        irq::handle(VECTOR, note_and_eoi);
        for apic in modes() {
            for round in 0..50 {
                apic.self_ipi(VECTOR);
                CAME.store(0, SeqCst);
                let behind = sti_hlt();
                check_eq!(CAME.load(SeqCst), 1, "interrupts in round {round}");
                // In the gap it would have found the CPU on `hlt`, and HLT would wait for ever.
                check_eq!(RIP.load(SeqCst), behind, "where the interrupt found the CPU");
            }
        }
    }
);

test!(
    tpr_keeps_halted,
    "An interrupt that the task priority masks does not end HLT; one above it does.",
    || {
        irq::handle(LOW_VECTOR, note_and_eoi);
        irq::handle(VECTOR, note_and_eoi);
        for apic in modes() {
            irq::reset();
            apic.set_tpr(0x40);
            apic.self_ipi(LOW_VECTOR);
            apic.set_timer(Timer::OneShot, VECTOR);
            apic.start_timer(300_000);
            sti_hlt();
            let counts = (irq::count(LOW_VECTOR), irq::count(VECTOR));
            check_eq!(counts, (0, 1), "({LOW_VECTOR:#x}, {VECTOR:#x}) under TPR 0x40");
            check!(apic.bit(Register::IRR, LOW_VECTOR), "{LOW_VECTOR:#x} is no longer pending");
            apic.set_tpr(0);
            // Now it is due, and HLT must not wait for anything else.
            sti_hlt();
            check_eq!(irq::count(LOW_VECTOR), 1, "{LOW_VECTOR:#x} under TPR 0");
        }
    }
);

test!(
    if0_stays_halted,
    "HLT with interrupts off waits for ever (this ends with the machine).",
    || {
        reg::cli();
        reg::hlt();
        fail!("HLT with IF=0 came back with nothing to wake it");
    }
);

test!(
    if0_stays_halted_with_pending,
    "HLT with interrupts off is not ended by a maskable interrupt that is pending.",
    || {
        irq::count_only(VECTOR);
        let apic = apic::local();
        apic.enable();
        apic.self_ipi(VECTOR);
        reg::cli();
        reg::hlt();
        fail!("HLT with IF=0 was ended by vector {VECTOR:#x}, taken {} times", irq::count(VECTOR));
    }
);

test!(
    if0_stays_halted_with_timer,
    "HLT with interrupts off is not ended by the APIC timer, which still ticks into IRR.",
    || {
        irq::count_only(VECTOR);
        let apic = apic::local();
        apic.enable();
        apic.set_timer(Timer::OneShot, VECTOR);
        apic.start_timer(5_000_000);
        reg::cli();
        reg::hlt();
        fail!("HLT with IF=0 was ended by the timer, taken {} times", irq::count(VECTOR));
    }
);

/// That CPU 1 may go on to its HLT, and that it is about to.
static GO: AtomicBool = AtomicBool::new(false);
static HALTING: AtomicBool = AtomicBool::new(false);

fn need_two() -> usize {
    let cpus = smp::start();
    if cpus < 2 {
        skip!("one CPU");
    }
    cpus
}

/// Runs `halt` on CPU 1, and `wake` here some time after it has begun.
fn halt_elsewhere(halt: fn(u64) -> u64, wake: impl Fn()) -> u64 {
    begin_halt(halt, wake).wait()
}

/// As [`halt_elsewhere`] with interrupts off there, and with NMIs until CPU 1 is awake. Nothing
/// keeps an NMI away until HLT is executed, and a busy host may let CPU 1 get to it late: an NMI
/// that came before it wakes nobody, and the next one is sent.
fn halt_until_nmi(before: impl Fn()) -> u64 {
    let nmi = || apic::local().send(Delivery::Nmi, Destination::Physical(smp::apic_id(1)));
    let job = begin_halt(halt_without_if, || {
        before();
        nmi();
    });
    for _ in 0..10 {
        if time::wait_until(500_000, || job.is_done()) {
            break;
        }
        check_eq!(CAME.load(SeqCst), 1, "NMIs at cpu 1, which sleeps");
        let (found, behind) = (RIP.load(SeqCst), BEHIND.load(SeqCst));
        check!(found != behind, "an NMI found cpu 1 in HLT, before {behind:#x}, and it sleeps on");
        CAME.store(0, SeqCst);
        nmi();
    }
    job.wait()
}

fn begin_halt(halt: fn(u64) -> u64, wake: impl Fn()) -> smp::Job {
    GO.store(false, SeqCst);
    HALTING.store(false, SeqCst);
    let job = smp::spawn(1, halt, 0);
    GO.store(true, SeqCst);
    check!(time::wait_until(5_000_000, || HALTING.load(SeqCst)), "cpu 1 did not get to its HLT");
    time::delay(SETTLE);
    check_eq!(CAME.load(SeqCst), 0, "interrupts at cpu 1 before any was sent");
    wake();
    job
}

/// Takes the IPI that woke this CPU for its work, which may come while the work runs already, and
/// what else is left from before.
fn about_to_halt() {
    while !GO.load(SeqCst) {
        reg::pause();
    }
    irq::let_in(SETTLE);
    CAME.store(0, SeqCst);
    HALTING.store(true, SeqCst);
}

fn halt_with_if(_: u64) -> u64 {
    about_to_halt();
    sti_hlt()
}

/// Halts until the request came that is waited for; another may wake this CPU, and finds it asleep
/// again.
fn halt_until_expected(_: u64) -> u64 {
    about_to_halt();
    loop {
        let behind = sti_hlt();
        if CAME.load(SeqCst) != 0 {
            return behind;
        }
    }
}

fn halt_without_if(_: u64) -> u64 {
    about_to_halt();
    bare_hlt()
}

test!(wakes_on_ipi, "An IPI from another CPU ends HLT.", || {
    irq::handle(VECTOR, note_and_eoi);
    let cpus = need_two();
    for mode in [Mode::XApic, Mode::X2Apic] {
        if mode == Mode::X2Apic && !cpuid::X2APIC.present() {
            continue;
        }
        (0..cpus).for_each(|cpu| smp::run_on(cpu, || apic::set_mode(mode).enable()));
        let id = smp::apic_id(1);
        for destination in [Destination::Physical(id), Destination::Others] {
            let behind = halt_elsewhere(halt_with_if, || {
                apic::local().send(Delivery::Fixed(VECTOR), destination);
            });
            let at_1 = irq::count_on(1, VECTOR);
            check!(at_1 >= 1, "cpu 1 is awake without {VECTOR:#x}, {mode:?}, {destination:?}");
            if destination == Destination::Physical(id) {
                check_eq!(RIP.load(SeqCst), behind, "where the IPI found cpu 1");
            }
        }
    }
});

test!(
    wakes_on_nmi,
    "An NMI ends HLT with interrupts off, and execution goes on behind it.",
    || {
        irq::handle(trap::NMI, note);
        need_two();
        for _ in 0..3 {
            let behind = halt_until_nmi(|| {});
            check_eq!(CAME.load(SeqCst), 1, "NMIs at cpu 1");
            check_eq!(RIP.load(SeqCst), behind, "where the NMI found cpu 1");
        }
    }
);

test!(
    maskable_does_not_end_if0,
    "A CPU halted with interrupts off sleeps through an IPI and wakes on the NMI after it.",
    || {
        irq::count_only(VECTOR);
        irq::handle(trap::NMI, note);
        need_two();
        let id = Destination::Physical(smp::apic_id(1));
        halt_until_nmi(|| {
            apic::local().send(Delivery::Fixed(VECTOR), id);
            time::delay(SETTLE);
            check_eq!(CAME.load(SeqCst), 0, "NMIs at cpu 1 before one was sent");
            check_eq!(irq::count_on(1, VECTOR), 0, "{VECTOR:#x} at cpu 1 with IF=0");
        });
        check_eq!(CAME.load(SeqCst), 1, "NMIs at cpu 1");
        // The idle loop of cpu 1 turns interrupts on: what was pending was kept.
        let came = time::wait_until(5_000_000, || irq::count_on(1, VECTOR) == 1);
        check!(came, "cpu 1 lost {VECTOR:#x}, which came while it was halted with IF=0");
    }
);

test!(
    wakes_on_level_line,
    "A level-triggered line ends HLT, raised before it or during it.",
    || {
        testdev::require();
        ioapic::require();
        // Some hosts send a level's request twice, and the second time late: each request has a
        // vector of its own, and one that nobody waits for any more is only acknowledged.
        let handler = |frame: &mut Frame| {
            if frame.vector == EXPECTED.load(SeqCst) {
                note(frame);
                testdev::set_line(LINE, false);
            }
            apic::eoi();
        };
        let expect = |round: u8, cpu| {
            let vector = u64::from(VECTOR + round);
            irq::handle(VECTOR + round, handler);
            EXPECTED.store(vector, SeqCst);
            // Edge-triggered in between, it forgets that the last request was not acknowledged.
            ioapic::set_entry(LINE, ioapic::MASKED);
            let to = ioapic::destination(smp::apic_id(cpu) as u8);
            ioapic::set_entry(LINE, to | ioapic::LEVEL | vector);
        };
        need_two();
        for round in 0..3 {
            expect(round, 1);
            let behind = halt_elsewhere(halt_until_expected, || testdev::set_line(LINE, true));
            check_eq!(RIP.load(SeqCst), behind, "where the interrupt found cpu 1, round {round}");
        }
        // High before HLT, and masked by IF alone.
        expect(3, 0);
        CAME.store(0, SeqCst);
        testdev::set_line(LINE, true);
        let behind = sti_hlt();
        check!(CAME.load(SeqCst) >= 1, "no interrupt of a line that was high before HLT");
        check_eq!(RIP.load(SeqCst), behind, "where the interrupt found cpu 0");
    }
);

test!(wakes_on_edge_line, "An edge-triggered line ends HLT.", || {
    testdev::require();
    ioapic::require();
    irq::handle(VECTOR, note_and_eoi);
    need_two();
    let id = smp::apic_id(1) as u8;
    ioapic::set_entry(LINE, ioapic::destination(id) | u64::from(VECTOR));
    for round in 0..3 {
        let behind = halt_elsewhere(halt_with_if, || testdev::pulse(LINE));
        check_eq!(CAME.load(SeqCst), 1, "interrupts in round {round}");
        check_eq!(RIP.load(SeqCst), behind, "where the interrupt found cpu 1");
    }
});

test!(
    ping_pong,
    "Two CPUs wake each other from HLT by IPI, over and over: no wake-up is lost.",
    || {
        const ROUNDS: u32 = 200;
        irq::count_only(VECTOR);
        need_two();
        let partner = |_| {
            for round in 1..=ROUNDS {
                while irq::count(VECTOR) < round {
                    reg::wait_for_interrupt();
                }
                let back = Destination::Physical(smp::apic_id(0));
                apic::local().send(Delivery::Fixed(VECTOR), back);
            }
            u64::from(irq::count(VECTOR))
        };
        // Known before CPU 1 wants it, as only CPU 0 may ask for its own.
        let id = Destination::Physical(smp::apic_id(1));
        let job = smp::spawn(1, partner, 0);
        for round in 1..=ROUNDS {
            apic::local().send(Delivery::Fixed(VECTOR), id);
            while irq::count(VECTOR) < round {
                reg::wait_for_interrupt();
            }
        }
        check_eq!(job.wait(), u64::from(ROUNDS), "IPIs at cpu 1");
        check_eq!(irq::count(VECTOR), ROUNDS, "IPIs at cpu 0");
    }
);
