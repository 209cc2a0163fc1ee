//! Events with tables, handlers, stacks and breakpoints at 57-bit addresses (SDM volume 3, 7.14 and 19.2;
//! APM volume 2, 8.9 and 13.1).

use crate::{AT, frame_with, map};
use payload_rt::idt::{self, Gate};
use payload_rt::legacy::DATA;
use payload_rt::levels::{self, LOWER_END, UPPER};
use payload_rt::paging::{self, Flags};
use payload_rt::user::{End, User};
use payload_rt::*;

/// A vector without another use.
const VECTOR: u8 = 0x55;

/// Puts a handler at a linear address of its own, which notes its own address and its RSP in low memory,
/// and lets [`VECTOR`] lead there.
fn handler_at(at: u64) {
    let code = asm_code!(
        "push rax",
        "lea rax, [rip]",
        "mov [0x40000], rax",
        "mov [0x40008], rsp",
        "pop rax",
        "iretq"
    );
    let mut page = frames::alloc();
    page.bytes()[..code.len()].copy_from_slice(code);
    map(at, page.address());
    idt::set(VECTOR, Gate { offset: at, ..Gate::stub(VECTOR) });
    check_ok!(mem::write(u64::from(DATA), 0_u64));
}

/// Where the handler noted that it was, and its RSP.
fn noted() -> (u64, u64) {
    (check_ok!(mem::read(u64::from(DATA))), check_ok!(mem::read(u64::from(DATA) + 8)))
}

/// The page of a handler that was there.
fn page_of(noted: u64) -> u64 {
    noted & !0xfff
}

test!(gates, "A gate leads to a handler at a 57-bit address.", || {
    levels::five();
    for at in [AT, LOWER_END - 0x1000, UPPER, 0xff77_0000_0000_0000] {
        handler_at(at);
        check_ok!(insn!("int 0x55"), "INT through a gate to {at:#x}");
        check_eq!(page_of(noted().0), at, "the handler's page");
        // And from CPL 3.
        idt::set_dpl(VECTOR, 3);
        check_ok!(mem::write(u64::from(DATA), 0_u64));
        check_eq!(User::new(asm_code!("int 0x55", "ret")).run().end, End::Done, "INT at CPL 3");
        check_eq!(page_of(noted().0), at, "the handler's page, from CPL 3");
    }
});

test!(gates_canonical, "A gate to what is not canonical with 57 bits is #GP(0).", || {
    levels::five();
    for at in [LOWER_END, UPPER - 1, 1 << 63] {
        idt::set(VECTOR, Gate { offset: at, ..Gate::stub(VECTOR) });
        let done = trap::catch(|| insn_raw!("int 0x55"));
        let fault = check_trap!(done, trap::GP, 0, "INT through a gate to {at:#x}");
        check!(fault.rip != at, "the fault is behind the gate, must be INT's: {fault}");
    }
});

test!(interrupt, "An interrupt finds its handler at a 57-bit address.", || {
    use payload_rt::apic::{self, Delivery, Destination};
    levels::five();
    handler_at(UPPER);
    let local = apic::local();
    local.enable();
    local.send(Delivery::Fixed(VECTOR), Destination::Own);
    let came = || {
        reg::interrupt_window();
        noted().0 != 0
    };
    check!(time::wait_until(1_000_000, came), "no interrupt");
    check_eq!(page_of(noted().0), UPPER, "the handler's page");
    apic::eoi();
});

test!(
    stack,
    "An event pushes its frame on a stack at a 57-bit address, and IRET takes it off.",
    || {
        levels::five();
        let stack = frame_with(0);
        for at in [AT, UPPER, LOWER_END - 0x1000] {
            map(at, stack);
            handler_at(0xff77_0000_0000_0000);
            let (before, after) = (at + 0x800, reg_rsp(at + 0x800));
            check_eq!(after, Ok(before), "RSP behind IRET");
            // RAX, RIP, CS, RFLAGS, RSP, SS.
            check_eq!(noted().1, before - 6 * 8, "RSP in the handler");
            check_eq!(mem::read::<u64>(stack + 0x800 - 16), Ok(before), "RSP in the frame");
        }
    }
);

/// `int` with RSP at `rsp`; RSP behind it.
fn reg_rsp(rsp: u64) -> Result<u64, trap::Trap> {
    let after: u64;
    // No trap may come while RSP is elsewhere: the runtime knows a CPU by its stack.
    insn!(
        "xchg rsp, {other}", "int 0x55", "xchg rsp, {other}";
        other = inout(reg) rsp => after
    )?;
    Ok(after)
}

test!(tables, "IDT, GDT and TSS at 57-bit addresses serve.", || {
    levels::five();
    let (gdt, idt) = (check_ok!(reg::sgdt()), check_ok!(reg::sidt()));
    // Each page of theirs at the same offset of 57-bit pages.
    let alias = |base: u64, to: u64, bytes: u64| {
        let first = base & !0xfff;
        for page in (first..base + bytes).step_by(0x1000) {
            map(to + (page - first), page);
        }
        to + (base - first)
    };
    let idt_base = alias(idt.base, UPPER + 0x10_0000, u64::from(idt.limit) + 1);
    let gdt_base = alias(gdt.base, LOWER_END - 0x10_0000, u64::from(gdt.limit) + 1);
    check_ok!(reg::lgdt(reg::Table { base: gdt_base, ..gdt }));
    check_ok!(reg::lidt(reg::Table { base: idt_base, ..idt }));
    check_ok!(reg::set_ds(cpu::KERNEL_DS), "a segment of the GDT");
    check_trap!(insn!("ud2"), trap::UD, 0, "UD2 through the IDT");
    handler_at(AT);
    check_ok!(insn!("int 0x55"), "INT through the IDT");
    check_eq!(page_of(noted().0), AT, "the handler's page");
    let end = User::new(asm_code!("ud2")).run().end;
    check!(matches!(end, End::Trap(t) if t.vector == trap::UD), "UD2 at CPL 3: {end:?}");
    // The descriptor of the TSS, with a base of 57 bits.
    let slot = u64::from(cpu::TSS_SELECTOR);
    let low: u64 = check_ok!(mem::read(gdt.base + slot));
    let high: u64 = check_ok!(mem::read(gdt.base + slot + 8));
    let tss = (low >> 16 & 0xff_ffff) | (low >> 56) << 24 | high << 32;
    let at = alias(tss, UPPER + 0x20_0000, 0x200);
    let selector = cpu::set_descriptor(0, move_base(low, at) & !(2 << 40));
    cpu::set_descriptor(1, at >> 32);
    check_ok!(reg::ltr(selector), "LTR of a TSS at {at:#x}");
    check_eq!(reg::str(), Ok(selector));
    let end = User::new(asm_code!("ud2")).run().end;
    check!(matches!(end, End::Trap(t) if t.vector == trap::UD), "RSP0 of the TSS: {end:?}");
    check_ok!(reg::lgdt(gdt));
    check_ok!(reg::lidt(idt));
});

/// A descriptor with another base: its lower 32 bits.
fn move_base(descriptor: u64, base: u64) -> u64 {
    descriptor & 0x00ff_ff00_0000_ffff | (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56
}

test!(data_breakpoints, "Data breakpoints compare all 57 bits.", || {
    levels::five();
    for at in [AT, UPPER, LOWER_END - 0x1000] {
        map(at, frame_with(0));
        check_ok!(reg::set_dr(0, at + 0x10));
        check_eq!(reg::dr(0), Ok(at + 0x10), "DR0");
        // L0, a write of 4 bytes.
        check_ok!(reg::set_dr(7, 0x400 | 1 | 0b1101 << 16));
        check_ok!(reg::set_dr(6, 0));
        check_ok!(mem::write(at + 0x20, 1_u32), "a write beside it");
        let fault = check_err!(mem::write(at + 0x10, 1_u32), "a write of {:#x}", at + 0x10);
        check_eq!(fault.vector, trap::DB, "{fault}");
        check_eq!(check_ok!(reg::dr(6)) & 0xf, 1, "DR6");
        // Not where the lower 48 bits are the same.
        let same = at & 0xffff_ffff_ffff | 0x00ee_0000_0000_0000;
        map(same, frame_with(0));
        check_ok!(mem::write(same + 0x10, 1_u32), "a write of {:#x}", same + 0x10);
        check_ok!(reg::set_dr(7, 0x400));
    }
});

test!(code_breakpoints, "Instruction breakpoints compare all 57 bits.", || {
    levels::five();
    for at in [AT, UPPER, LOWER_END - 0x1000] {
        map(at, crate::frame_of_ret());
        check_ok!(reg::set_dr(1, at + 0x123));
        check_ok!(reg::set_dr(7, 0x400 | 1 << 2));
        check_ok!(mem::call(at + 0x124), "the next instruction");
        let fault = check_err!(mem::call(at + 0x123), "the instruction");
        check_eq!((fault.vector, fault.rip), (trap::DB, at + 0x123), "{fault}");
        check_ok!(reg::set_dr(7, 0x400));
        check_ok!(mem::call(at + 0x123), "switched off");
    }
});

// SDM volume 3, 4.2: 64-bit mode pushes RIP as it is, whatever CPL 3 jumped to.
test!(rip_of_cpl3, "A fault at CPL 3 has its RIP of 57 bits, in the frame and in CR2.", || {
    levels::five();
    for at in [AT, LOWER_END - 0x1000, UPPER] {
        let mut user = User::new(asm_code!("jmp rdi"));
        user.regs.rdi = at + 0x77;
        let End::Trap(fault) = user.run().end else { fail!("no trap at {at:#x}") };
        check_eq!((fault.vector, fault.rip, fault.cr2), (trap::PF, at + 0x77, at + 0x77));
        let mut page = frames::alloc();
        page.bytes()[0x77..0x79].copy_from_slice(&[0x0f, 0x0b]);
        paging::map(at, page.address(), paging::Size::K4, Flags::RWU);
        let End::Trap(fault) = user.run().end else { fail!("no trap at {at:#x}") };
        check_eq!((fault.vector, fault.rip), (trap::UD, at + 0x77), "UD2 there");
    }
});
