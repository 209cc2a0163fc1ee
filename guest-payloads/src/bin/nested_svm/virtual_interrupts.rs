//! Virtual interrupts, V_TPR, interrupt shadows and the virtual GIF (AMD APM volume 2, 15.21 and
//! 15.33.2).

use crate::{guest, run_to, run_to_end};
use payload_rt::svm::vmcb::{V_GIF, V_GIF_ENABLE, V_IGN_TPR, V_INTR_MASKING, V_IRQ, v_priority};
use payload_rt::svm::{Guest, VGIF, exit, vmcb};
use payload_rt::{asm_code, check_eq, check_ok, reg, test};

const VECTOR: u8 = 0x71;

/// A guest with a virtual interrupt of priority 7 pending, on vector 0x71.
fn pending(code: &'static [u8]) -> Guest {
    let mut guest = guest(code);
    guest.warm();
    guest.vmcb.set(vmcb::V_INTR, V_IRQ | v_priority(7) | V_INTR_MASKING);
    guest.vmcb.set(vmcb::V_INTR_VECTOR, VECTOR.into());
    guest
}

/// Runs until the guest takes the virtual interrupt, at this offset of its code.
fn taken_at(guest: &mut Guest, code: &[u8], offset: u64) {
    let found = guest.run();
    let Some(trap) = guest.trap() else {
        payload_rt::fail!("{found:?} at {:#x}, must be the virtual interrupt", guest.rip())
    };
    check_eq!(trap.vector, VECTOR, "the vector that the guest takes");
    check_eq!(trap.rip, code.as_ptr() as u64 + offset, "RIP on the guest's stack");
    check_eq!(guest.vmcb.get(vmcb::V_INTR) & V_IRQ, 0, "V_IRQ once it is taken");
}

// 15.21.4.
test!(virq_taken, "A virtual interrupt is taken at once by a guest with IF set.", || {
    let code = asm_code!("nop", "vmmcall");
    let mut guest = pending(code);
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
    taken_at(&mut guest, code, 0);
});

test!(
    virq_first,
    "A virtual interrupt arrives though the guest has not touched its stack yet.",
    || {
        let code = asm_code!("nop", "vmmcall");
        let mut guest = guest(code);
        guest.vmcb.set(vmcb::V_INTR, V_IRQ | v_priority(7) | V_INTR_MASKING);
        guest.vmcb.set(vmcb::V_INTR_VECTOR, VECTOR.into());
        guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
        taken_at(&mut guest, code, 0);
    }
);

test!(virq_without_masking, "A virtual interrupt is taken without V_INTR_MASKING as well.", || {
    let code = asm_code!("nop", "vmmcall");
    let mut guest = pending(code);
    guest.vmcb.remove(vmcb::V_INTR, V_INTR_MASKING);
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
    taken_at(&mut guest, code, 0);
});

test!(virq_waits_for_if, "A virtual interrupt waits for IF, and for the shadow of STI.", || {
    let code = asm_code!("nop", "sti", "nop", "nop", "vmmcall");
    taken_at(&mut pending(code), code, 3);
});

test!(virq_stays, "A virtual interrupt that was not taken is still in the VMCB.", || {
    let mut guest = pending(asm_code!("nop", "vmmcall"));
    run_to_end(&mut guest, "with IF clear");
    check_eq!(guest.vmcb.get(vmcb::V_INTR) & V_IRQ, V_IRQ, "V_IRQ");
});

// 15.21.2 and 15.21.4: taken if the priority is above V_TPR.
test!(virq_waits_for_tpr, "A virtual interrupt below V_TPR waits until CR8 is lower.", || {
    let code = asm_code!("sti", "nop", "nop", "mov cr8, rax", "nop", "vmmcall");
    let mut guest = pending(code);
    guest.vmcb.add(vmcb::V_INTR, 9);
    guest.vmcb.set(vmcb::RAX, 6);
    taken_at(&mut guest, code, 7);
});

test!(virq_equal_to_tpr, "A virtual interrupt of V_TPR's own priority waits.", || {
    let mut guest = pending(asm_code!("nop", "vmmcall"));
    guest.vmcb.add(vmcb::V_INTR, 7);
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
    run_to_end(&mut guest, "with V_TPR 7");
    check_eq!(guest.vmcb.get(vmcb::V_INTR) & V_IRQ, V_IRQ, "V_IRQ");
});

test!(virq_above_tpr, "A virtual interrupt above V_TPR's priority does not wait.", || {
    let code = asm_code!("nop", "vmmcall");
    let mut guest = pending(code);
    guest.vmcb.add(vmcb::V_INTR, 6);
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
    taken_at(&mut guest, code, 0);
});

test!(virq_ignores_tpr, "With V_IGN_TPR a virtual interrupt does not look at V_TPR.", || {
    let code = asm_code!("nop", "vmmcall");
    let mut guest = pending(code);
    guest.vmcb.add(vmcb::V_INTR, V_IGN_TPR | 15);
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
    taken_at(&mut guest, code, 0);
});

// 15.21.6: the exit comes before the interrupt is taken.
test!(vintr_exits, "The intercept of virtual interrupts exits before one is taken.", || {
    let code = asm_code!("nop", "vmmcall");
    let mut guest = pending(code);
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
    guest.intercept(&[exit::VINTR]);
    let rsp = guest.vmcb.get(vmcb::RSP);
    run_to(&mut guest, exit::VINTR, "with IF set");
    check_eq!(guest.rip(), code.as_ptr() as u64, "RIP at the exit");
    check_eq!(guest.vmcb.get(vmcb::RSP), rsp, "RSP at the exit");
    check_eq!(guest.vmcb.get(vmcb::V_INTR) & V_IRQ, V_IRQ, "V_IRQ at the exit");
});

test!(
    interrupt_window,
    "The intercept of virtual interrupts tells when a guest's IF is set.",
    || {
        let code = asm_code!("nop", "sti", "nop", "nop", "vmmcall");
        let mut guest = pending(code);
        guest.intercept(&[exit::VINTR]);
        run_to(&mut guest, exit::VINTR, "the window");
        check_eq!(guest.rip(), code.as_ptr() as u64 + 3, "RIP at the exit");
        guest.vmcb.intercept(exit::VINTR, false);
        taken_at(&mut guest, code, 3);
    }
);

// 15.21.5: INTERRUPT_SHADOW holds interrupts back for one instruction.
test!(
    shadow_holds,
    "A guest that starts in an interrupt shadow runs one instruction first.",
    || {
        let code = asm_code!("nop", "nop", "vmmcall");
        let mut guest = pending(code);
        guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
        guest.vmcb.set(vmcb::INTERRUPT_SHADOW, 1);
        taken_at(&mut guest, code, 1);
    }
);

fn shadow_after(code: &'static [u8], shadow: u64) {
    let mut guest = guest(code);
    guest.vmcb.set(vmcb::RAX, reg::ss().into());
    guest.intercept(&[exit::CPUID]);
    run_to(&mut guest, exit::CPUID, "the exit");
    check_eq!(guest.vmcb.get(vmcb::INTERRUPT_SHADOW) & 1, shadow, "INTERRUPT_SHADOW");
}

test!(shadow_of_sti, "An exit right behind STI has INTERRUPT_SHADOW set.", || {
    shadow_after(asm_code!("sti", "cpuid"), 1);
});

test!(shadow_of_mov_ss, "An exit right behind MOV SS has INTERRUPT_SHADOW set.", || {
    shadow_after(asm_code!("mov ss, eax", "cpuid"), 1);
});

test!(shadow_ends, "An exit one instruction behind STI has INTERRUPT_SHADOW clear.", || {
    shadow_after(asm_code!("sti", "nop", "cpuid"), 0);
});

// 15.21.2: under V_INTR_MASKING CR8 is V_TPR.
test!(cr8_is_v_tpr, "With V_INTR_MASKING the guest's CR8 is V_TPR, and L1's TPR stays.", || {
    let mut guest = guest(asm_code!("mov rbx, cr8", "mov eax, 9", "mov cr8, rax", "vmmcall"));
    guest.vmcb.set(vmcb::V_INTR, V_INTR_MASKING | 5);
    check_ok!(reg::set_cr8(2));
    run_to_end(&mut guest, "the guest");
    check_eq!(guest.regs.rbx, 5, "CR8 as the guest reads it");
    check_eq!(guest.vmcb.get(vmcb::V_INTR) & 0xff, 9, "V_TPR after the exit");
    check_eq!(reg::cr8(), 2, "CR8 of L1");
});

test!(cr8_is_shared, "Without V_INTR_MASKING the guest's CR8 is L1's TPR.", || {
    let mut guest = guest(asm_code!("mov rbx, cr8", "mov eax, 9", "mov cr8, rax", "vmmcall"));
    check_ok!(reg::set_cr8(2));
    run_to_end(&mut guest, "the guest");
    check_eq!(guest.regs.rbx, 2, "CR8 as the guest reads it");
    check_eq!(reg::cr8(), 9, "CR8 of L1");
    check_ok!(reg::set_cr8(0));
});

fn v_gif(code: &'static [u8], gif: u64) -> Guest {
    VGIF.require();
    let mut guest = pending(code);
    guest.vmcb.add(vmcb::V_INTR, V_GIF_ENABLE | gif);
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
    guest
}

// 15.33.2.
test!(
    vgif_clgi_stgi,
    "With V_GIF enabled the guest's CLGI and STGI change V_GIF, without an exit.",
    || {
        for (code, before, after) in
            [(asm_code!("clgi", "vmmcall"), V_GIF, 0), (asm_code!("stgi", "vmmcall"), 0, V_GIF)]
        {
            let mut guest = v_gif(code, before);
            guest.vmcb.remove(vmcb::V_INTR, V_IRQ);
            run_to_end(&mut guest, "the guest");
            check_eq!(guest.vmcb.get(vmcb::V_INTR) & V_GIF, after, "V_GIF, which was {before:#x}");
        }
    }
);

test!(
    vgif_holds_virq,
    "While V_GIF is clear a virtual interrupt waits, and comes after STGI.",
    || {
        let code = asm_code!("nop", "nop", "stgi", "nop", "vmmcall");
        let mut guest = v_gif(code, 0);
        taken_at(&mut guest, code, 5);
    }
);

test!(vgif_intercepted, "Intercepts of STGI and CLGI come before V_GIF.", || {
    for (code, exit) in
        [(asm_code!("stgi", "vmmcall"), exit::STGI), (asm_code!("clgi", "vmmcall"), exit::CLGI)]
    {
        let mut guest = v_gif(code, V_GIF);
        guest.vmcb.remove(vmcb::V_INTR, V_IRQ);
        guest.intercept(&[exit]);
        run_to(&mut guest, exit, "with V_GIF enabled");
        check_eq!(guest.vmcb.get(vmcb::V_INTR) & V_GIF, V_GIF, "V_GIF");
    }
});
