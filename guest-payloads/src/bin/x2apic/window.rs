//! Interrupt windows: when KVM says that a vCPU can take the interrupt that its VMM has for it, and how it
//! is asked to say so (Linux, Documentation/virt/kvm/api.rst, 5 `struct kvm_run`: `request_interrupt_window`,
//! `ready_for_interrupt_injection`, `if_flag`; 4.16 KVM_INTERRUPT).

use crate::{PATIENCE, SETTLE, VECTOR};
use payload_rt::lab::{self, Chain, Errno, Log, Rule, Window, kind, kvm, op};
use payload_rt::*;

/// Records windows. At each the VMM asks for no more of them, and then does the rest of `chain`.
fn windows(chain: &mut Chain) -> Log {
    check_ok!(lab::record(&[Rule::on(kind::IRQ_WINDOW).then(chain)]))
}

/// A chain that asks for no more windows, and which of its requests that is.
fn no_more() -> (Chain, u64) {
    let mut chain = Chain::new();
    let first = chain.ask(op::INTERRUPT_WINDOW, &[0]);
    (chain, first)
}

/// Turns interrupts on until there were so many windows.
fn open_until(log: &Log, count: u64) -> bool {
    reg::sti();
    let came = time::wait_until(PATIENCE, || log.count() >= count);
    reg::cli();
    came
}

/// Byte of the guest's code before the address.
fn byte_before(rip: u64) -> u8 {
    check_ok!(mem::read(rip - 1))
}
const STI: u8 = 0xfb;

/// Checks that the one window there was is at an instruction that can be interrupted.
fn check_one(log: &Log) {
    check_eq!(log.count(), 1, "windows");
    let Some(entry) = log.get(0) else { fail!("no window is in the log") };
    check!(entry.rflags & reg::FLAG_IF != 0, "a window with interrupts off, at {:#x}", entry.rip);
    check!(byte_before(entry.rip) != STI, "a window in the shadow of STI, at {:#x}", entry.rip);
}

test!(window_at_once, "With interrupts on a window that is asked for is there at once.", || {
    let (mut chain, _) = no_more();
    let log = windows(&mut chain);
    for round in 1..=5 {
        reg::sti();
        let asked = lab::request_window(true);
        let came = time::wait_until(PATIENCE, || log.count() >= round);
        reg::cli();
        check_ok!(asked);
        check!(came, "no window {round}");
        check_eq!(log.count(), round, "windows");
        let rflags = log.get(round - 1).map_or(0, |entry| entry.rflags);
        check!(rflags & reg::FLAG_IF != 0, "window {round} with interrupts off");
    }
});

test!(window_waits, "A window that is asked for waits until interrupts are on.", || {
    let (mut chain, _) = no_more();
    let log = windows(&mut chain);
    check_ok!(lab::request_window(true));
    for _ in 0..20 {
        check_ok!(lab::regs());
        cpuid::leaf(0, 0);
    }
    time::delay(SETTLE);
    check_eq!(log.count(), 0, "windows while interrupts are off");
    check!(open_until(&log, 1), "no window when interrupts are on");
    irq::let_in(SETTLE);
    check_one(&log);
});

test!(window_unasked, "A window that nobody asks for, or no more, is no exit.", || {
    let (mut chain, _) = no_more();
    let log = windows(&mut chain);
    irq::let_in(SETTLE);
    check_eq!(log.count(), 0, "before one was asked for");
    check_ok!(lab::request_window(true));
    check_ok!(lab::request_window(false));
    irq::let_in(SETTLE);
    check_eq!(log.count(), 0, "after it was asked for no more");
});

// The way of a VMM with an interrupt for a guest that cannot take it yet.
test!(window_injects, "KVM_INTERRUPT in a window arrives, and once.", || {
    irq::handle(VECTOR, |_| {});
    let (mut chain, first) = no_more();
    let vector = chain.place(u32::from(VECTOR));
    chain.set_from(kvm::INTERRUPT, vector);
    let log = windows(&mut chain);
    for round in 1..=10 {
        check_ok!(lab::request_window(true));
        check_eq!(irq::count(VECTOR), round - 1, "before interrupts are on");
        check!(irq::wait_for(VECTOR, round, PATIENCE), "interrupt {round} does not come");
        irq::let_in(SETTLE);
        check_eq!((irq::count(VECTOR), log.count()), (round, round.into()), "after round {round}");
        check_ok!(chain.result(first));
        check_ok!(chain.all_ok(), "in the window of round {round}");
    }
});

test!(window_is_told, "`if_flag` and `ready_for_interrupt_injection` follow the guest.", || {
    for cr8 in [0, 9, 3] {
        check_ok!(reg::set_cr8(cr8));
        let closed = check_ok!(lab::window());
        reg::sti();
        let open = lab::window();
        reg::cli();
        let open = check_ok!(open);
        check_eq!(closed, Window { ready: false, if_flag: false, cr8, flags: 0 }, "IF is 0");
        check_eq!(open, Window { ready: true, if_flag: true, cr8, flags: 0 }, "IF is 1");
    }
});

// In the exit itself KVM says that the time has come.
test!(window_is_ready, "In a window KVM is ready for KVM_INTERRUPT.", || {
    let (mut chain, first) = no_more();
    let log = windows(&mut chain);
    check_ok!(lab::request_window(true));
    check!(open_until(&log, 1), "no window");
    check_ok!(chain.result(first));
    let told = Window::of(chain.value(first));
    check!(told.ready && told.if_flag, "{told:?}");
});

// 4.16: -EEXIST "if an interrupt is already enqueued".
test!(second_interrupt, "KVM_INTERRUPT refuses a second vector before the first arrived.", || {
    const OTHER: u8 = 0x66;
    irq::handle(VECTOR, |_| {});
    irq::handle(OTHER, |_| {});
    let mut chain = Chain::new();
    let vectors = [VECTOR, OTHER].map(|vector| chain.place(u32::from(vector)));
    let asked = vectors.map(|at| chain.ioctl(lab::target::VCPU, lab::kvm::iow(0x86, 4), at));
    reg::sti();
    chain.run();
    reg::cli();
    irq::let_in(SETTLE);
    check_ok!(chain.result(asked[0]), "the first");
    check_eq!(chain.result(asked[1]).err(), Some(Errno::EEXIST), "the second");
    check_eq!((irq::count(VECTOR), irq::count(OTHER)), (1, 0));
});

fn lint0(value: u32) {
    let apic = apic::local();
    apic.enable();
    apic.write(apic::Register::LVT_LINT0, value);
}
const EXT_INT: u32 = 0x700;
const MASKED: u32 = 1 << 16;

// 4.41 KVM_CAP_SPLIT_IRQCHIP: the PIC is the VMM's. Its INTR is LINT0 (SDM volume 3, 12.5.1).
test!(
    window_by_lint0,
    "With the APIC in the kernel there is a window if LINT0 lets one in.",
    || {
        let (mut chain, _) = no_more();
        let log = windows(&mut chain);
        for (lvt, open) in [(EXT_INT | MASKED, false), (EXT_INT, true), (0x41, false)] {
            lint0(lvt);
            let before = log.count();
            reg::sti();
            let told = lab::request_window(true);
            reg::cli();
            if open {
                check!(open_until(&log, before + 1), "no window with LINT0 {lvt:#x}");
            }
            irq::let_in(SETTLE);
            check_eq!(log.count() - before, u64::from(open), "windows with LINT0 {lvt:#x}");
            check_eq!(check_ok!(told).ready, open, "with LINT0 {lvt:#x}");
            check_ok!(lab::request_window(false));
        }
    }
);

test!(window_of_the_pic, "A window for the PIC brings its vector, past the APIC.", || {
    lint0(EXT_INT);
    irq::handle(VECTOR, |_| {});
    let (mut chain, _) = no_more();
    let vector = chain.place(u32::from(VECTOR));
    chain.set_from(kvm::INTERRUPT, vector);
    let log = windows(&mut chain);
    for round in 1..=5 {
        check_ok!(lab::request_window(true));
        time::delay(SETTLE);
        check_eq!(irq::count(VECTOR), round - 1, "before interrupts are on");
        check!(irq::wait_for(VECTOR, round, PATIENCE), "interrupt {round} does not come");
        check_eq!(log.count(), round.into(), "windows");
        check_ok!(chain.all_ok(), "in the window of round {round}");
        check!(!apic::local().bit(apic::Register::ISR, VECTOR), "it is in service");
    }
});
