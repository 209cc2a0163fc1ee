//! Event injection and events cut short (AMD APM volume 2, 15.20 and 15.7.2).

use crate::{guest, page, run_to, run_to_end};
use payload_rt::svm::npt::Npt;
use payload_rt::svm::{Guest, NPT, exit, vmcb};
use payload_rt::trap::*;
use payload_rt::{asm_code, check, check_eq, cpu, mem, reg, test};

const VALID: u64 = 1 << 31;
const HAS_CODE: u64 = 1 << 11;
const INTERRUPT: u64 = 0;
const NON_MASKABLE: u64 = 2 << 8;
const EXCEPTION: u64 = 3 << 8;
const SOFTWARE: u64 = 4 << 8;

fn error_code(code: u64) -> u64 {
    HAS_CODE | code << 32
}

/// Injects `event` and checks that the guest's handler of `vector` is entered before its first
/// instruction.
fn injected(event: u64, vector: u8, code: u64, prepare: impl Fn(&mut Guest)) -> Guest {
    let mut guest = guest(asm_code!("mov ebx, 7", "vmmcall"));
    guest.warm();
    inject(&mut guest, event, vector, code, prepare);
    guest
}

/// The same into this guest.
fn inject(guest: &mut Guest, event: u64, vector: u8, code: u64, prepare: impl Fn(&mut Guest)) {
    prepare(guest);
    let (rip, rsp) = (guest.rip(), guest.vmcb.get(vmcb::RSP));
    guest.vmcb.set(vmcb::EVENTINJ, VALID | event);
    let found = guest.run();
    let Some(trap) = guest.trap() else {
        payload_rt::fail!(
            "event {event:#x}: {found:?} {} bytes on, RBX {:#x}",
            guest.rip().wrapping_sub(rip),
            guest.regs.rbx
        )
    };
    check_eq!((trap.vector, trap.error_code), (vector, code), "what arrived");
    check_eq!((trap.rip, trap.rsp), (rip, rsp), "RIP and RSP on the guest's stack");
    check_eq!(trap.cs, u64::from(cpu::KERNEL_CS), "CS on the guest's stack");
    check_eq!(guest.regs.rbx, 0, "RBX before the first instruction");
    check_eq!(guest.vmcb.get(vmcb::EVENTINJ) & VALID, 0, "EVENTINJ's valid bit after the exit");
    check_eq!(guest.vmcb.get(vmcb::EXITINTINFO) & VALID, 0, "EXITINTINFO's valid bit");
    guest.resume_at(rip);
    run_to_end(guest, "after the handler");
    check_eq!(guest.regs.rbx, 7, "RBX after the handler");
}

test!(inject_interrupt, "An injected interrupt arrives although the guest has IF clear.", || {
    injected(INTERRUPT | 0x61, 0x61, 0, |_| {});
});

test!(inject_with_if, "An injected interrupt clears IF as any other does.", || {
    let mut guest = guest(asm_code!("vmmcall"));
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_IF);
    guest.vmcb.set(vmcb::EVENTINJ, VALID | INTERRUPT | 0x62);
    let found = guest.run();
    let Some(trap) = guest.trap() else { payload_rt::fail!("{found:?}") };
    check_eq!(trap.rflags & reg::FLAG_IF, reg::FLAG_IF, "IF on the guest's stack");
    check_eq!(guest.vmcb.get(vmcb::RFLAGS) & reg::FLAG_IF, 0, "IF in the handler");
});

test!(inject_nmi, "An injected NMI arrives on vector 2.", || {
    injected(NON_MASKABLE | 2, NMI, 0, |_| {});
});

test!(inject_ud, "An injected exception without error code arrives as one.", || {
    injected(EXCEPTION | u64::from(UD), UD, 0, |_| {});
});

test!(inject_gp, "An injected #GP arrives with the error code that came with it.", || {
    injected(EXCEPTION | u64::from(GP) | error_code(0x1230), GP, 0x1230, |_| {});
});

test!(
    inject_pf,
    "An injected #PF arrives with its error code, and CR2 as the VMCB has it.",
    || {
        let event = EXCEPTION | u64::from(PF) | error_code(6);
        let guest = injected(event, PF, 6, |guest| guest.vmcb.set(vmcb::CR2, 0xdead_b000));
        check_eq!(guest.vmcb.get(vmcb::CR2), 0xdead_b000, "CR2 after the exit");
    }
);

// 15.20: without NextRIP the hypervisor advances RIP itself, and RIP is what is pushed.
test!(inject_software, "An injected software interrupt arrives.", || {
    injected(SOFTWARE | 0x63, 0x63, 0, |guest| {
        guest.vmcb.set(vmcb::NRIP, guest.rip());
    });
});

test!(
    inject_first,
    "Injected events arrive though the guest has not touched its stack yet.",
    || {
        for (event, vector) in
            [(INTERRUPT | 0x68, 0x68), (NON_MASKABLE | 2, NMI), (EXCEPTION | u64::from(UD), UD)]
        {
            inject(&mut guest(asm_code!("mov ebx, 7", "vmmcall")), event, vector, 0, |_| {});
        }
    }
);

test!(
    inject_software_first,
    "An injected software interrupt arrives on an untouched stack.",
    || {
        let mut guest = guest(asm_code!("mov ebx, 7", "vmmcall"));
        inject(&mut guest, SOFTWARE | 0x69, 0x69, 0, |guest| {
            guest.vmcb.set(vmcb::NRIP, guest.rip())
        });
    }
);

// 15.20: injected events are not subject to intercept checks.
test!(
    inject_ignores_intercepts,
    "An injected exception reaches the guest though intercepted.",
    || {
        injected(EXCEPTION | u64::from(UD), UD, 0, |guest| guest.intercept(&[exit::exception(UD)]));
        injected(EXCEPTION | u64::from(GP) | error_code(0), GP, 0, |guest| {
            guest.intercept(&[exit::exception(GP)]);
        });
    }
);

test!(
    inject_nmi_ignores_intercept,
    "An injected NMI reaches the guest though NMIs are intercepted.",
    || {
        injected(NON_MASKABLE | 2, NMI, 0, |guest| guest.intercept(&[exit::NMI]));
    }
);

test!(inject_once, "What was injected once is not injected by the next VMRUN.", || {
    let mut guest = guest(asm_code!("vmmcall"));
    let rip = guest.rip();
    guest.vmcb.set(vmcb::EVENTINJ, VALID | INTERRUPT | 0x64);
    guest.run();
    check_eq!(guest.trap().map(|trap| trap.vector), Some(0x64), "the first time");
    guest.resume_at(rip);
    run_to_end(&mut guest, "the second time");
});

// 15.20: a second exception during the injection is subject to intercepts; 15.7.2: the event that was
// being delivered is in EXITINTINFO.
fn cut_short(event: u64, vector: u8) -> u64 {
    let mut guest = guest(asm_code!("mov ebx, 7", "vmmcall"));
    guest.close_gate(vector);
    guest.intercept(&[exit::exception(NP)]);
    guest.vmcb.set(vmcb::EVENTINJ, VALID | event);
    let rip = guest.rip();
    let found = run_to(&mut guest, exit::exception(NP), "with the gate absent");
    check_eq!(found.info1 & !1, (u64::from(vector) * 8) | 2, "the error code of #NP but for EXT");
    check_eq!(guest.vmcb.get(vmcb::EXITINTINFO), VALID | event, "EXITINTINFO");
    check_eq!(guest.rip(), rip, "RIP at the exit");
    found.info1
}

test!(
    inject_interrupt_cut_short,
    "An injected interrupt without a gate is in EXITINTINFO.",
    || {
        cut_short(INTERRUPT | 0x65, 0x65);
    }
);

test!(
    inject_exception_cut_short,
    "An injected exception without a gate is in EXITINTINFO.",
    || {
        cut_short(EXCEPTION | u64::from(UD), UD);
    }
);

// 8.4.1: EXT, bit 0 of the error code.
test!(inject_interrupt_ext, "The #NP of an injected interrupt has EXT in its error code.", || {
    check_eq!(cut_short(INTERRUPT | 0x65, 0x65) & 1, 1, "EXT");
});

test!(exception_cut_short, "An exception of the guest without a gate is in EXITINTINFO.", || {
    let mut guest = guest(asm_code!("ud2", "vmmcall"));
    guest.close_gate(UD);
    guest.intercept(&[exit::exception(NP)]);
    run_to(&mut guest, exit::exception(NP), "with the gate absent");
    check_eq!(guest.vmcb.get(vmcb::EXITINTINFO), VALID | EXCEPTION | u64::from(UD), "EXITINTINFO");
});

// 15.7.2 and 15.25.6: a nested page fault in the delivery, here on the guest's stack.
fn stack_fault(nmi_or: u64, cause: fn(&mut Guest)) {
    NPT.require();
    let tables = Npt::identity();
    let mut guest = guest(asm_code!("ud2", "vmmcall"));
    guest.nest(&tables);
    let stack = page();
    guest.vmcb.set(vmcb::RSP, stack + 0x1000);
    tables.reach(stack, 1).set(0);
    cause(&mut guest);
    let found = run_to(&mut guest, exit::NPF, "with the stack absent");
    check_eq!(found.info2 & !0xfff, stack, "EXITINFO2");
    check_eq!(guest.vmcb.get(vmcb::EXITINTINFO), VALID | nmi_or, "EXITINTINFO");
    tables.reach(stack, 1).set(stack | 7);
    guest.vmcb.set(vmcb::EVENTINJ, guest.vmcb.get(vmcb::EXITINTINFO));
    guest.vmcb.set(vmcb::TLB_CONTROL, 1);
    guest.run();
    let vector = guest.trap().map(|trap| trap.vector);
    check_eq!(vector, Some(nmi_or as u8), "injected again once the stack is there");
}

test!(npf_in_delivery, "A nested page fault in the delivery of an exception names it.", || {
    stack_fault(EXCEPTION | u64::from(UD), |_| {});
});

test!(npf_in_injection, "A nested page fault in the injection of an interrupt names it.", || {
    stack_fault(INTERRUPT | 0x66, |guest| {
        guest.vmcb.set(vmcb::EVENTINJ, VALID | INTERRUPT | 0x66);
    });
});

// 15.20 with 8.2.9: an injected #GP whose gate is absent is a double fault that the guest takes.
test!(
    inject_double_fault,
    "An injected #GP whose gates are absent is a #DF for the guest.",
    || {
        let mut guest = guest(asm_code!("vmmcall"));
        guest.close_gate(GP);
        guest.close_gate(NP);
        guest.vmcb.set(vmcb::EVENTINJ, VALID | EXCEPTION | u64::from(GP) | error_code(0));
        let found = guest.run();
        check_eq!(guest.trap().map(|trap| trap.vector), Some(DF), "{found:?}");
    }
);

// 15.20: vectors 3 and 4 as exceptions behave as INT3 and INTO, whose gates' DPL counts.
test!(inject_bp, "An injected #BP arrives on vector 3.", || {
    injected(EXCEPTION | u64::from(BP), BP, 0, |guest| guest.vmcb.set(vmcb::NRIP, guest.rip()));
});

// The guest's own handler, with IRETQ back into the guest.
test!(
    guest_handles_injected,
    "A guest's handler of an injected interrupt returns by IRETQ.",
    || {
        let mut guest = guest(asm_code!("mov ebx, 7", "vmmcall"));
        let handler = asm_code!("mov ecx, 9", "iretq");
        guest.set_gate(0x67, handler.as_ptr() as u64, 0);
        guest.vmcb.set(vmcb::EVENTINJ, VALID | INTERRUPT | 0x67);
        run_to_end(&mut guest, "through the handler");
        check_eq!((guest.regs.rbx, guest.regs.rcx), (7, 9), "RBX and RCX");
    }
);

test!(
    guest_handles_own_fault,
    "A guest mends its own page fault and goes on, without an exit.",
    || {
        // The handler points RCX at a mapped page, and the guest's load runs again.
        let mut guest = guest(asm_code!("mov rax, [rcx]", "vmmcall"));
        let handler = asm_code!("mov rcx, rdx", "add rsp, 8", "iretq");
        guest.set_gate(PF, handler.as_ptr() as u64, 0);
        guest.regs.rcx = 5 << 30;
        guest.regs.rdx = page();
        check!(mem::write(guest.regs.rdx, 0x1234_5678_u64).is_ok());
        run_to_end(&mut guest, "through the handler");
        check_eq!(guest.vmcb.get(vmcb::RAX), 0x1234_5678, "RAX");
        check_eq!(guest.vmcb.get(vmcb::CR2), 5 << 30, "CR2");
    }
);
