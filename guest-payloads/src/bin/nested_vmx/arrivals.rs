//! Events that come while L2 runs: interrupts, NMIs, windows, the preemption timer (SDM volume 3,
//! "External-Interrupt Exiting", "NMI Exiting", "Interrupt-Window Exiting and Virtual-Interrupt Delivery",
//! "VMX-Preemption Timer").

use super::events::{SEEN, VECTOR, forget, note, once, set_gate};
use super::{L1, check_l1, vm};
use core::sync::atomic::Ordering::SeqCst;
use payload_rt::apic::{self, Mode, Register};
use payload_rt::idt::Gate;
use payload_rt::reg::{self, FLAG_IF};
use payload_rt::trap::{NMI, PF};
use payload_rt::vmx::caps::*;
use payload_rt::vmx::exit::{EVENT_VALID, Kind, event, event_with_error};
use payload_rt::vmx::{self, Exit, Field, Reason, Vm, get, set};
use payload_rt::{asm_code, check, check_eq, irq, test, time};

/// The local APIC as x2APIC, which L2 reaches through MSRs that do not exit.
fn x2apic() {
    apic::set_mode(Mode::X2Apic).enable();
}

/// L2: sends itself `command` by the x2APIC's ICR, interrupts on.
fn send(vm: &mut Vm, command: u64) -> u64 {
    let at = vm.start(asm_code!("wrmsr", "nop", "nop", "nop"));
    set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
    vm.regs.rcx = 0x830;
    vm.regs.rax = command;
    vm.regs.rdx = apic::local().id().into();
    at
}

/// Whether an exit came at one of the instructions behind the WRMSR.
fn behind(exit: &Exit, at: u64) -> bool {
    (at + 2..=at + 5).contains(&exit.rip)
}

const FIXED: u64 = 1 << 14 | VECTOR as u64;
const SEND_NMI: u64 = 1 << 14 | 4 << 8;

test!(
    external_exiting,
    "An external interrupt exits under its control, stays pending without acknowledgement, and L1 takes it.",
    || {
        x2apic();
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_EXTERNAL);
        irq::count_only(VECTOR);
        for flags in [2 | FLAG_IF, 2] {
            irq::reset();
            let at = send(&mut vm, FIXED);
            // The control goes before RFLAGS.IF.
            set(Field::GUEST_RFLAGS, flags);
            let exit = vm.run_until(Reason::EXTERNAL_INTERRUPT, "an external interrupt");
            check!(behind(&exit, at), "{exit}, the code is at {at:#x}");
            check_eq!(exit.event & EVENT_VALID, 0, "event without acknowledgement");
            check!(apic::local().bit(Register::IRR, VECTOR), "it is not pending any more");
            check_eq!(irq::count(VECTOR), 0, "interrupts that L1 took with IF clear");
            check!(irq::wait_for(VECTOR, 1, 1_000_000), "L1 does not get it");
            vm.run_until(Reason::VMCALL, "behind the interrupt");
            check_eq!(irq::count(VECTOR), 1, "interrupts in all");
        }
    }
);

test!(
    external_acknowledged,
    "With acknowledge interrupt on exit the vector is in the exit's event, and in service at the APIC.",
    || {
        x2apic();
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_EXTERNAL);
        vm.add(Field::EXIT_CONTROLS, EXIT_ACKNOWLEDGE);
        irq::count_only(VECTOR);
        let at = send(&mut vm, FIXED);
        let exit = vm.run_until(Reason::EXTERNAL_INTERRUPT, "an external interrupt");
        check!(behind(&exit, at), "{exit}, the code is at {at:#x}");
        check_eq!(exit.event, event(Kind::External, VECTOR), "event");
        let apic = apic::local();
        check!(!apic.bit(Register::IRR, VECTOR), "it is still pending");
        check!(apic.bit(Register::ISR, VECTOR), "it is not in service");
        apic.eoi();
        check!(!apic.bit(Register::ISR, VECTOR), "it is in service behind the EOI");
        irq::let_in(100);
        check_eq!(irq::count(VECTOR), 0, "interrupts that L1 took");
        vm.run_until(Reason::VMCALL, "behind the interrupt");
    }
);

/// Lets L2's handler of [`VECTOR`] count in SEEN.
fn count_in_l2() {
    irq::handle(VECTOR, |_| {
        SEEN.fetch_add(1, SeqCst);
        apic::eoi();
    });
    forget();
}

test!(
    external_to_l2,
    "Without external-interrupt exiting L2 takes interrupts itself, as IF says.",
    || {
        x2apic();
        let mut vm = vm();
        count_in_l2();
        send(&mut vm, FIXED);
        vm.run_until(Reason::VMCALL, "with IF");
        check_eq!(SEEN.load(SeqCst), 1, "interrupts that L2 took with IF");
        vm.start(asm_code!("wrmsr", "nop", "nop", "mov rbx, [r8]", "sti", "nop", "nop"));
        vm.regs.rcx = 0x830;
        vm.regs.rax = FIXED;
        vm.regs.rdx = apic::local().id().into();
        vm.regs.r8 = SEEN.as_ptr() as u64;
        vm.run_until(Reason::VMCALL, "without IF, then with");
        check_eq!(vm.regs.rbx, 1, "interrupts that L2 took without IF");
        check_eq!(SEEN.load(SeqCst), 2, "interrupts that L2 took in the end");
    }
);

test!(
    external_kept,
    "An interrupt that comes while L2 has IF clear is not lost by an exit: L2 gets it once it sets IF.",
    || {
        x2apic();
        let mut vm = vm();
        count_in_l2();
        send(&mut vm, FIXED);
        set(Field::GUEST_RFLAGS, 2);
        vm.run_until(Reason::VMCALL, "without IF");
        check_eq!(SEEN.load(SeqCst), 0, "interrupts that L2 took without IF");
        check!(apic::local().bit(Register::IRR, VECTOR), "it is not pending");
        vm.start(asm_code!("sti", "nop", "nop"));
        vm.run_until(Reason::VMCALL, "with STI");
        check_eq!(SEEN.load(SeqCst), 1, "interrupts that L2 took in the end");
    }
);

test!(
    external_in_l1,
    "An interrupt that is pending at the entry exits before L2's first instruction.",
    || {
        x2apic();
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_EXTERNAL);
        irq::count_only(VECTOR);
        reg::cli();
        apic::local().self_ipi(VECTOR);
        let at = vm.start(asm_code!("nop"));
        let exit = vm.run_until(Reason::EXTERNAL_INTERRUPT, "a pending interrupt");
        check_eq!(exit.rip, at, "RIP");
        check!(irq::wait_for(VECTOR, 1, 1_000_000), "L1 does not get it");
        vm.run_until(Reason::VMCALL, "behind it");
    }
);

// "NMI exiting": an exit with the NMI as event, after which NMIs are blocked in L1.
test!(
    nmi_exiting,
    "An NMI exits under NMI exiting, as event of type NMI; without it L2 takes it.",
    || {
        x2apic();
        let mut vm = vm();
        note(NMI);
        send(&mut vm, SEND_NMI);
        vm.run_until(Reason::VMCALL, "without NMI exiting");
        check_eq!(SEEN.load(SeqCst), once(NMI), "NMIs that L2 took");
        forget();
        vm.add(Field::PIN_CONTROLS, PIN_NMI);
        let at = send(&mut vm, SEND_NMI);
        let exit = vm.run_until(Reason::EXCEPTION, "with NMI exiting");
        check!(behind(&exit, at), "{exit}, the code is at {at:#x}");
        check_eq!(exit.event, event(Kind::Nmi, NMI), "event");
        check_eq!(SEEN.load(SeqCst), 0, "NMIs that anybody took");
        vm.run_until(Reason::VMCALL, "behind the NMI");
    }
);

/// Blocking by NMI, in the interruptibility state.
const BLOCKED_BY_NMI: u64 = 8;

test!(
    nmi_blocking,
    "An injected NMI blocks NMIs until L2's IRET: the exit in its handler says so, and the one behind not.",
    || {
        vmx::enable();
        for virtual_nmis in [false, true] {
            let mut vm = Vm::new();
            if virtual_nmis {
                vm.add(Field::PIN_CONTROLS, PIN_NMI | PIN_VIRTUAL_NMIS);
            }
            // The handler: VMCALL, IRET.
            let handler = asm_code!("vmcall", "iretq");
            let gate = Gate { offset: handler.as_ptr() as u64, ist: 0, ..Gate::stub(NMI) };
            set_gate(&vm, NMI, gate);
            vm.start(asm_code!("nop"));
            set(Field::ENTRY_EVENT, event(Kind::Nmi, NMI));
            let exit = vm.run_until(Reason::VMCALL, "in the handler");
            check_eq!(exit.rip, handler.as_ptr() as u64, "RIP in the handler");
            let state = get(Field::INTERRUPTIBILITY);
            check_eq!(state, BLOCKED_BY_NMI, "in the handler, virtual NMIs: {virtual_nmis}");
            vm.skip(&exit);
            vm.run_until(Reason::VMCALL, "behind the handler");
            let state = get(Field::INTERRUPTIBILITY);
            check_eq!(state, 0, "behind the handler, virtual NMIs: {virtual_nmis}");
        }
    }
);

test!(
    nmi_window,
    "NMI-window exiting exits when virtual NMIs are not blocked: at once, or behind L2's IRET.",
    || {
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_NMI | PIN_VIRTUAL_NMIS);
        vm.add(Field::CPU_CONTROLS, CPU_NMI_WINDOW);
        let at = vm.start(asm_code!("nop"));
        let exit = vm.run_until(Reason::NMI_WINDOW, "an open window");
        check_eq!(exit.rip, at, "RIP with an open window");
        // IRET to the NOP behind it.
        let code = asm_code!(
            "mov rax, rsp",
            "mov ebx, ss",
            "push rbx",
            "push rax",
            "push 2",
            "mov ebx, cs",
            "push rbx",
            "lea rax, [rip + 2f]",
            "push rax",
            "iretq",
            "2: nop"
        );
        let at = vm.start(code);
        set(Field::INTERRUPTIBILITY, BLOCKED_BY_NMI);
        let exit = vm.run_until(Reason::NMI_WINDOW, "a window that IRET opens");
        check_eq!(exit.rip, at + code.len() as u64 - 1, "RIP behind IRET");
        check_eq!(get(Field::INTERRUPTIBILITY), 0, "interruptibility behind IRET");
        // The window does not open without virtual NMIs being unblocked.
        vm.start(asm_code!("nop"));
        set(Field::INTERRUPTIBILITY, BLOCKED_BY_NMI);
        vm.run_until(Reason::VMCALL, "no IRET");
        check_eq!(get(Field::INTERRUPTIBILITY), BLOCKED_BY_NMI, "interruptibility without IRET");
    }
);

// "NMI Unblocking Due to IRET": bit 12 of the exit's event.
test!(
    nmi_unblocking,
    "A fault of an IRET that unblocked NMIs exits with bit 12 of its event set.",
    || {
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_NMI | PIN_VIRTUAL_NMIS);
        set(Field::EXCEPTION_BITMAP, 1 << PF);
        for (blocked, expected) in [(BLOCKED_BY_NMI, 1 << 12), (0, 0)] {
            let at = vm.start(asm_code!("iretq"));
            set(Field::GUEST_RSP, 0x7000_0000_0000);
            set(Field::INTERRUPTIBILITY, blocked);
            let exit = vm.run_until(Reason::EXCEPTION, "IRET from an absent stack");
            check_eq!(
                exit.event & !(1 << 12),
                event_with_error(Kind::Hardware, PF),
                "event: {exit}"
            );
            if blocked != 0 {
                check_eq!(exit.event & 1 << 12, expected, "NMI unblocking: {exit}");
            }
            check_eq!(exit.rip, at, "RIP");
        }
    }
);

// "Interrupt-Window Exiting": RFLAGS.IF = 1 and no blocking by STI or MOV SS.
test!(
    interrupt_window,
    "Interrupt-window exiting exits when IF is 1 and nothing blocks: at once, behind STI's shadow, or never.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS, CPU_INTERRUPT_WINDOW);
        let at = vm.start(asm_code!("nop"));
        set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
        let exit = vm.run_until(Reason::INTERRUPT_WINDOW, "an open window");
        check_eq!(exit.rip, at, "RIP with an open window");
        check_eq!(exit.event & EVENT_VALID, 0, "event");
        vm.start(asm_code!("nop"));
        vm.run_until(Reason::VMCALL, "IF clear");
        let at = vm.start(asm_code!("sti", "nop", "nop"));
        let exit = vm.run_until(Reason::INTERRUPT_WINDOW, "STI");
        check_eq!(exit.rip - at, 2, "RIP behind STI and its shadow");
        for blocking in [1, 2] {
            let at = vm.start(asm_code!("nop", "nop"));
            set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
            set(Field::INTERRUPTIBILITY, blocking);
            let exit = vm.run_until(Reason::INTERRUPT_WINDOW, "blocking at the entry");
            check_eq!(exit.rip - at, 1, "RIP behind blocking {blocking}");
            check_eq!(get(Field::INTERRUPTIBILITY), 0, "interruptibility then");
        }
        vm.start(asm_code!("sti", "cli", "nop"));
        vm.run_until(Reason::VMCALL, "STI and CLI");
    }
);

// "Saving Non-Register State": blocking by STI and MOV SS is in the interruptibility state.
test!(shadows_saved, "An exit in the shadow of STI or MOV SS saves that blocking.", || {
    let mut vm = vm();
    vm.start(asm_code!("sti", "cpuid"));
    vm.run_until(Reason::CPUID, "behind STI");
    check_eq!(get(Field::INTERRUPTIBILITY), 1, "interruptibility behind STI");
    vm.start(asm_code!("mov eax, ss", "mov ss, eax", "cpuid"));
    set(Field::INTERRUPTIBILITY, 0);
    vm.run_until(Reason::CPUID, "behind MOV SS");
    check_eq!(get(Field::INTERRUPTIBILITY), 2, "interruptibility behind MOV SS");
    vm.start(asm_code!("sti", "nop", "cpuid"));
    set(Field::INTERRUPTIBILITY, 0);
    vm.run_until(Reason::CPUID, "behind the shadow");
    check_eq!(get(Field::INTERRUPTIBILITY), 0, "interruptibility behind the shadow");
});

test!(
    halted_wakes,
    "L2 that is entered in the HLT state goes on with an injected interrupt, and is running then.",
    || {
        let mut vm = vm();
        note(VECTOR);
        vm.start(asm_code!("nop"));
        set(Field::ACTIVITY, 1);
        set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
        set(Field::ENTRY_EVENT, event(Kind::External, VECTOR));
        vm.run_until(Reason::VMCALL, "behind the handler");
        check_eq!(SEEN.load(SeqCst), once(VECTOR), "handlers run");
        check_eq!(get(Field::ACTIVITY), 0, "activity state");
    }
);

test!(
    halted_exits,
    "L2 that halts without HLT exiting leaves by an interrupt to L1, and its activity state is HLT.",
    || {
        x2apic();
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_EXTERNAL);
        irq::count_only(VECTOR);
        let apic = apic::local();
        apic.set_timer(apic::Timer::OneShot, VECTOR);
        let at = vm.start(asm_code!("hlt"));
        set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
        let before = time::rdtsc();
        apic.start_timer(50_000_000);
        let exit = vm.run_until(Reason::EXTERNAL_INTERRUPT, "a timer while L2 halts");
        check!(time::rdtsc() > before, "the TSC stands");
        check_eq!(exit.rip, at + 1, "RIP");
        check_eq!(get(Field::ACTIVITY), 1, "activity state");
        check!(irq::wait_for(VECTOR, 1, 1_000_000), "L1 does not get it");
    }
);

// "VMX-Preemption Timer": at zero it exits before the next instruction.
test!(
    preemption_timer,
    "The preemption timer exits at once when it starts at 0, and when it has run down.",
    || {
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_TIMER);
        set(Field::PREEMPTION_TIMER, 0);
        let at = vm.start(asm_code!("nop"));
        let l1 = L1::now();
        let exit = vm.run_until(Reason::PREEMPTION_TIMER, "a timer that starts at 0");
        check_eq!((exit.rip, exit.qualification), (at, 0), "RIP and qualification");
        check_l1(&exit, l1, "the preemption timer");
        set(Field::PREEMPTION_TIMER, 0xffff_ffff);
        vm.run_until(Reason::VMCALL, "a timer that is far off");
        // Some milliseconds of a loop that ends by itself, interrupts on.
        set(Field::PREEMPTION_TIMER, 1000);
        let at = vm.start(asm_code!("mov ecx, 100000000", "2: dec ecx", "jnz 2b"));
        set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
        let exit = vm.run_until(Reason::PREEMPTION_TIMER, "a timer that runs down");
        check!((at..at + 9).contains(&exit.rip), "{exit}, the loop is at {at:#x}");
    }
);

test!(
    preemption_timer_saved,
    "With its exit control the timer's value is saved lower than it was, and otherwise not at all.",
    || {
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_TIMER);
        let start = 0xf000_0000;
        let busy = asm_code!("mov ecx, 20000", "2: dec ecx", "jnz 2b");
        set(Field::PREEMPTION_TIMER, start);
        vm.start(busy);
        vm.run_until(Reason::VMCALL, "not saved");
        check_eq!(get(Field::PREEMPTION_TIMER), start, "the field, not saved");
        vm.add(Field::EXIT_CONTROLS, EXIT_SAVE_TIMER);
        vm.start(busy);
        vm.run_until(Reason::VMCALL, "saved");
        let left = get(Field::PREEMPTION_TIMER);
        check!(left < start && left > start / 2, "{left:#x} is left of {start:#x}");
    }
);

test!(
    preemption_timer_ran_out,
    "A timer that ran out is saved as 0, also one that started at 0 behind one that did not run out.",
    || {
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_TIMER);
        vm.add(Field::EXIT_CONTROLS, EXIT_SAVE_TIMER);
        for start in [0, 0xf000_0000, 0] {
            set(Field::PREEMPTION_TIMER, start);
            vm.start(asm_code!("nop"));
            let reason = if start == 0 { Reason::PREEMPTION_TIMER } else { Reason::VMCALL };
            vm.run_until(reason, "a timer");
            let left = get(Field::PREEMPTION_TIMER);
            check!((left == 0) == (start == 0), "{left:#x} is left of {start:#x}");
        }
    }
);
