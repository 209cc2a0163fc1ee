//! Physical interrupts, NMIs and the global interrupt flag (AMD APM volume 2, 15.13, 15.17 and 15.21).

use crate::{guest, run_to, run_to_end};
use payload_rt::apic::{self, Delivery, Destination, Register};
use payload_rt::svm::{self, Around, Guest, exit, vmcb};
use payload_rt::{asm_code, check, check_eq, check_ok, irq, reg, test, time, trap};

const VECTOR: u8 = 0x41;

/// Enables the local APIC, and counts what arrives.
fn listen() {
    apic::set_mode(apic::Mode::XApic).enable();
    irq::count_only(VECTOR);
    irq::handle(trap::NMI, |_| {});
    irq::reset();
}

fn send_self() {
    apic::local().self_ipi(VECTOR);
}

fn send_nmi() {
    let apic = apic::local();
    apic.send(Delivery::Nmi, Destination::Physical(apic.id()));
}

/// A guest with an interrupt that is due.
fn interrupted(code: &'static [u8]) -> Guest {
    let guest = guest(code);
    listen();
    send_self();
    guest
}

/// The interrupt must still be due, and come now.
fn comes_to_l1() {
    check_eq!(irq::count(VECTOR), 0, "interrupts before they are let in");
    check!(irq::wait_for(VECTOR, 1, 1_000_000), "the interrupt does not come to L1");
    check_eq!(irq::count(VECTOR), 1, "interrupts");
}

// 15.13.1.
test!(
    intr_exits,
    "An interrupt that is due exits before the first instruction, and stays due.",
    || {
        let mut guest = interrupted(asm_code!("mov ebx, 7", "vmmcall"));
        let rip = guest.rip();
        guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
        guest.intercept(&[exit::INTR]);
        run_to(&mut guest, exit::INTR, "with IF set");
        check_eq!(guest.rip(), rip, "RIP at the exit");
        comes_to_l1();
        run_to_end(&mut guest, "after the interrupt");
        check_eq!(guest.regs.rbx, 7, "RBX");
    }
);

test!(
    intr_waits_for_if,
    "An interrupt exits when the guest sets IF, behind the shadow of STI.",
    || {
        let code = asm_code!("nop", "nop", "sti", "nop", "nop", "vmmcall");
        let mut guest = interrupted(code);
        guest.intercept(&[exit::INTR]);
        run_to(&mut guest, exit::INTR, "after STI");
        check_eq!(guest.rip(), code.as_ptr() as u64 + 4, "RIP at the exit");
        comes_to_l1();
    }
);

test!(
    intr_to_guest,
    "An interrupt that is not intercepted is the guest's, through its own IDT.",
    || {
        let code = asm_code!("sti", "nop", "nop", "vmmcall");
        let mut guest = interrupted(code);
        run_to(&mut guest, exit::VMMCALL, "the guest");
        let trap = guest.trap();
        check_eq!(trap.map(|trap| trap.vector), Some(VECTOR), "{trap:#x?}");
        check!(apic::local().bit(Register::ISR, VECTOR), "it must be in service");
        apic::eoi();
        irq::let_in(100);
        check_eq!(irq::count(VECTOR), 0, "the same interrupt in L1");
    }
);

// 15.21.1: under V_INTR_MASKING the hypervisor's IF decides about physical interrupts.
test!(
    masking_by_host_if,
    "With V_INTR_MASKING a guest with IF clear is interrupted by L1's IF.",
    || {
        let mut guest = interrupted(asm_code!("mov ebx, 7", "vmmcall"));
        guest.vmcb.add(vmcb::V_INTR, vmcb::V_INTR_MASKING);
        guest.around = Around::INTERRUPTS;
        guest.intercept(&[exit::INTR]);
        run_to(&mut guest, exit::INTR, "with IF of L1 set");
        comes_to_l1();
    }
);

test!(
    masked_by_host_if,
    "With V_INTR_MASKING a guest with IF set is spared while L1's IF is clear.",
    || {
        let mut guest = interrupted(asm_code!("sti", "nop", "mov ebx, 7", "vmmcall"));
        guest.vmcb.add(vmcb::V_INTR, vmcb::V_INTR_MASKING);
        guest.intercept(&[exit::INTR]);
        run_to_end(&mut guest, "with IF of L1 clear");
        comes_to_l1();
    }
);

// The guest shares L1's APIC, as its page tables map it.
test!(own_ipi, "An IPI that the guest sends itself exits behind the write.", || {
    let code = asm_code!("sti", "mov dword ptr [rbx], 0x44041", "nop", "vmmcall");
    let mut guest = guest(code);
    listen();
    guest.regs.rbx = apic::DEFAULT_BASE + 0x300;
    guest.intercept(&[exit::INTR]);
    run_to(&mut guest, exit::INTR, "after the write");
    check_eq!(guest.rip(), code.as_ptr() as u64 + 7, "RIP at the exit");
    comes_to_l1();
});

test!(halted_guest_wakes, "An interrupt takes a halted guest out by INTR, behind its HLT.", || {
    let code = asm_code!("sti", "hlt", "vmmcall");
    let mut guest = guest(code);
    listen();
    guest.vmcb.intercept(exit::HLT, false);
    guest.intercept(&[exit::INTR]);
    let apic = apic::local();
    apic.set_timer(apic::Timer::OneShot, VECTOR);
    apic.start_timer(2_000_000);
    run_to(&mut guest, exit::INTR, "halted");
    check_eq!(guest.rip(), code.as_ptr() as u64 + 2, "RIP at the exit");
    comes_to_l1();
});

// 15.13.2.
test!(nmi_exits, "An NMI exits before the first instruction, and L1 takes it after STGI.", || {
    let mut guest = guest(asm_code!("mov ebx, 7", "vmmcall"));
    listen();
    let rip = guest.rip();
    guest.intercept(&[exit::NMI]);
    check_ok!(svm::clgi());
    send_nmi();
    check_eq!(irq::count(trap::NMI), 0, "NMIs under CLGI");
    run_to(&mut guest, exit::NMI, "with an NMI pending");
    check_eq!(guest.rip(), rip, "RIP at the exit");
    check_eq!(irq::count(trap::NMI), 1, "NMIs of L1 after STGI");
    run_to_end(&mut guest, "after the NMI");
});

test!(nmi_to_guest, "An NMI that is not intercepted is the guest's, on vector 2.", || {
    let mut guest = guest(asm_code!("mov ebx, 7", "vmmcall"));
    listen();
    check_ok!(svm::clgi());
    send_nmi();
    let found = guest.run();
    check_eq!(guest.trap().map(|trap| trap.vector), Some(trap::NMI), "{found:?}");
    check_eq!(irq::count(trap::NMI), 0, "NMIs of L1");
});

// 15.21.9 and 8.2.3: an NMI blocks others until IRET; the intercept of IRET tells a hypervisor when.
test!(nmi_window, "The intercept of IRET exits at the end of the guest's NMI handler.", || {
    let mut guest = guest(asm_code!("mov ebx, 7", "vmmcall"));
    let handler = asm_code!("inc ecx", "iretq");
    guest.set_gate(trap::NMI, handler.as_ptr() as u64, 0);
    listen();
    guest.intercept(&[exit::IRET]);
    check_ok!(svm::clgi());
    send_nmi();
    run_to(&mut guest, exit::IRET, "in the handler");
    check_eq!(guest.rip(), handler.as_ptr() as u64 + 2, "RIP at IRET");
    check_eq!(guest.regs.rcx, 1, "times the handler ran");
    guest.vmcb.intercept(exit::IRET, false);
    run_to_end(&mut guest, "after IRET");
    check_eq!(guest.regs.rbx, 7, "RBX");
});

test!(nmi_waits_for_iret, "A second NMI reaches the guest behind the IRET of the first.", || {
    // The handler sends an NMI, counts, and returns; the second time it only counts.
    let handler = asm_code!(
        "inc ecx",
        "cmp ecx, 1",
        "jne 2f",
        "mov dword ptr [rbx + 0x10], edx",
        "mov dword ptr [rbx], 0x4400",
        "nop",
        "mov esi, ecx",
        "2: iretq",
    );
    let mut guest = guest(asm_code!("nop", "vmmcall"));
    guest.set_gate(trap::NMI, handler.as_ptr() as u64, 0);
    listen();
    guest.regs.rbx = apic::DEFAULT_BASE + 0x300;
    guest.regs.rdx = u64::from(apic::local().id()) << 24;
    check_ok!(svm::clgi());
    send_nmi();
    run_to_end(&mut guest, "two NMIs");
    check_eq!(guest.regs.rcx, 2, "NMIs that the guest handled");
    check_eq!(guest.regs.rsi, 1, "NMIs when the first handler ended");
});

// 15.17.
test!(
    clgi_holds_interrupts,
    "Between CLGI and STGI no interrupt is taken, whatever IF says.",
    || {
        svm::enable();
        listen();
        check_ok!(svm::clgi());
        reg::sti();
        send_self();
        time::delay(100);
        check_eq!(irq::count(VECTOR), 0, "interrupts under CLGI");
        check_ok!(svm::stgi());
        reg::interrupt_window();
        check_eq!(irq::count(VECTOR), 1, "interrupts after STGI");
    }
);

test!(clgi_holds_nmis, "Between CLGI and STGI no NMI is taken, and one is kept.", || {
    svm::enable();
    listen();
    check_ok!(svm::clgi());
    send_nmi();
    send_nmi();
    time::delay(100);
    check_eq!(irq::count(trap::NMI), 0, "NMIs under CLGI");
    check_ok!(svm::stgi());
    let came = time::wait_until(1_000_000, || irq::count(trap::NMI) > 0);
    check!(came, "no NMI after STGI");
});

test!(exit_clears_gif, "After #VMEXIT GIF is clear: an interrupt waits for STGI.", || {
    let mut guest = guest(asm_code!("vmmcall"));
    listen();
    guest.around = Around::BARE;
    run_to_end(&mut guest, "the guest");
    reg::sti();
    send_self();
    time::delay(100);
    check_eq!(irq::count(VECTOR), 0, "interrupts before STGI");
    check_ok!(svm::stgi());
    reg::interrupt_window();
    check_eq!(irq::count(VECTOR), 1, "interrupts after STGI");
});

test!(vmrun_sets_gif, "VMRUN sets GIF: an interrupt that CLGI held exits at once.", || {
    let mut guest = interrupted(asm_code!("vmmcall"));
    check_ok!(svm::clgi());
    guest.around = Around::BARE;
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
    guest.intercept(&[exit::INTR]);
    run_to(&mut guest, exit::INTR, "under CLGI");
    check_ok!(svm::stgi());
    comes_to_l1();
});

// 15.17 and 15.21.8: GIF 0 holds INIT back. After the exit it is still pending, so that the test ends
// with GIF clear.
test!(init_exits, "An INIT that CLGI held is the exit INIT, before the first instruction.", || {
    let mut guest = guest(asm_code!("vmmcall"));
    listen();
    let rip = guest.rip();
    guest.intercept(&[exit::INIT]);
    guest.around = Around::BARE;
    check_ok!(svm::clgi());
    let apic = apic::local();
    apic.send(Delivery::Init, Destination::Physical(apic.id()));
    time::delay(100);
    run_to(&mut guest, exit::INIT, "with INIT pending");
    check_eq!(guest.rip(), rip, "RIP at the exit");
});

// 15.13.3 and 15.22. The SMI stays pending as well: the test ends with GIF clear.
test!(smi_exits, "An SMI that CLGI held is the exit SMI, before the first instruction.", || {
    let mut guest = guest(asm_code!("vmmcall"));
    listen();
    let rip = guest.rip();
    guest.intercept(&[exit::SMI]);
    guest.around = Around::BARE;
    check_ok!(svm::clgi());
    let apic = apic::local();
    apic.send_raw(apic.id(), 2 << 8 | 1 << 14);
    time::delay(100);
    run_to(&mut guest, exit::SMI, "with an SMI pending");
    check_eq!(guest.rip(), rip, "RIP at the exit");
});
