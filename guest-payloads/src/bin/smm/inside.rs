//! What SMM code can do beyond real mode: other modes, exceptions and interrupts of its own (SDM
//! "Exceptions and Interrupts Within SMM"; APM 10.3.3 and 10.3.5).

use crate::code::{self, saved};
use crate::map;
use payload_rt::apic::{self, Mode};
use payload_rt::{
    asm_code, check, check_eq, check_ok, check_trap, frames, irq, mem, paging, reg, test, trap,
};

const VECTOR: u8 = 0x51;

test!(protected_mode, "SMM code can go to protected mode, and RSM leaves from there.", || {
    code::install(&[asm_code!(
        ".code16",
        "mov eax, cr0",
        "or al, 1",
        "mov cr0, eax",
        "mov eax, cr0",
        "mov dword ptr [esi + 0x40], eax",
    )]);
    let cr0 = reg::cr0();
    code::smi();
    check_eq!(code::note(0) & 1, 1, "PE in SMM");
    check_eq!(reg::cr0(), cr0, "CR0 afterwards");
    code::smi();
});

test!(long_mode, "SMM code can go to 64-bit mode and paging, and RSM leaves from there.", || {
    // A page that only page tables lead to.
    const AT: u64 = 0x6000_0000;
    let page = frames::alloc().address();
    check_ok!(mem::write(page, 0x0123_4567_89ab_cdef_u64));
    paging::map(AT, page, paging::Size::K4, paging::Flags::RW);
    code::install(&[code::entering_long_mode()]);
    code::put_long(asm_code!(
        "mov rax, [0x60000000]",
        "not rax",
        "mov [0x60000008], rax",
        "mov r15, -1",
        "mov [0x36040], r15",
    ));
    code::smi();
    check_eq!(mem::read(page + 8), Ok(!0x0123_4567_89ab_cdef_u64), "what SMM wrote");
    check_eq!((code::note(0), code::note(1)), (u32::MAX, u32::MAX), "R15 in SMM");
    code::smi();
});

test!(
    above_4_gib,
    "SMM code reads and writes the same RAM above 4 GiB as the code outside.",
    || {
        const AT: u64 = 0x6000_0000;
        paging::map(AT, (4 << 30) + 0x1000, paging::Size::K4, paging::Flags::RW);
        check_ok!(mem::write(AT, 0xfeed_0001_u32));
        check_eq!(mem::read(AT), Ok(0xfeed_0001_u32), "RAM at 4 GiB");
        code::install(&[code::entering_long_mode()]);
        code::put_long(asm_code!(
            "mov eax, [0x60000000]",
            "mov [0x36040], eax",
            "mov dword ptr [0x60000004], 0x600d",
        ));
        code::smi();
        check_eq!(code::note(0), 0xfeed_0001, "what SMM read");
        check_eq!(mem::read(AT + 4), Ok(0x600d_u32), "what SMM wrote");
    }
);

test!(exception, "An exception in SMM goes through the IDT that SMM code loads.", || {
    code::install(&[
        code::stack_and_idt(),
        asm_code!(".code16", "xor cx, cx", "ud2", "inc dword ptr [esi + 0x44]"),
    ]);
    // It goes on behind the UD2, of two bytes.
    code::set_vector(
        trap::UD,
        asm_code!(".code16", "inc dword ptr [esi + 0x40]", "mov bp, sp", "add word ptr [bp], 2",),
    );
    code::smi();
    check_eq!((code::note(0), code::note(1)), (1, 1), "#UD, and what is behind it");
});

/// Makes an interrupt of the local APIC due.
fn due() {
    apic::set_mode(Mode::XApic).enable();
    irq::count_only(VECTOR);
    apic::local().self_ipi(VECTOR);
}

// SDM "Exceptions and Interrupts Within SMM": IF is clear at first.
test!(interrupt_waits, "An interrupt that is due waits through SMM, and comes behind it.", || {
    code::install(&[asm_code!(
        ".code16",
        "mov ecx, 10000",
        "2: dec ecx",
        "jnz 2b",
        "mov dword ptr [esi + 0x40], 1",
    )]);
    let chain = code::smi_chain();
    due();
    // STI holds the interrupt for one instruction more, so the SMI comes before it.
    check_ok!(payload_rt::insn!(
        "sti", "out dx, eax", "nop", "cli";
        in("dx") payload_rt::lab::PORT, in("eax") chain.address()
    ));
    check_eq!((code::count(), code::note(0)), (1, 1), "SMIs that ran to their end");
    check!(irq::wait_for(VECTOR, 1, crate::PATIENCE), "the interrupt does not come");
    check_eq!(irq::count(VECTOR), 1, "interrupts");
});

test!(interrupt_inside, "With IF set, an interrupt is taken in SMM, by its IDT.", || {
    code::install(&[
        code::stack_and_idt(),
        asm_code!(
            ".code16",
            "sti",
            "mov ecx, 100000",
            "2: cmp dword ptr [esi + 0x40], 0",
            "jne 3f",
            "dec ecx",
            "jnz 2b",
            "3: cli",
        ),
    ]);
    code::set_vector(
        VECTOR,
        asm_code!(
            ".code16",
            "inc dword ptr [esi + 0x40]",
            "mov edi, 0xfee000b0",
            "mov dword ptr [edi], 0",
        ),
    );
    due();
    code::smi();
    check_eq!(code::note(0), 1, "interrupts in SMM");
    irq::let_in(100);
    check_eq!(irq::count(VECTOR), 0, "the same interrupt outside");
});

test!(halt_inside, "HLT in SMM with IF set ends by an interrupt, and SMM goes on.", || {
    code::install(&[
        code::stack_and_idt(),
        asm_code!(".code16", "sti", "hlt", "cli", "inc dword ptr [esi + 0x44]"),
    ]);
    code::set_vector(
        VECTOR,
        asm_code!(
            ".code16",
            "inc dword ptr [esi + 0x40]",
            "mov edi, 0xfee000b0",
            "mov dword ptr [edi], 0",
        ),
    );
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    irq::count_only(VECTOR);
    apic.set_timer(apic::Timer::OneShot, VECTOR);
    apic.start_timer(1_000_000);
    code::smi();
    check_eq!((code::note(0), code::note(1)), (1, 1), "the interrupt, and what is behind HLT");
    check_eq!(irq::count(VECTOR), 0, "interrupts outside");
});

// APM 10.3.3 and SDM "SMI Handler Execution Environment": DR7 is 400h.
test!(no_breakpoints, "Breakpoints of the code outside do not trap in SMM.", || {
    code::install(&[asm_code!(".code16", "mov dword ptr [esi + 0x40], 7", "nop")]);
    check_ok!(reg::set_dr(0, 0x3_6040));
    check_ok!(reg::set_dr(6, 0xffff_0ff0));
    check_ok!(reg::set_dr(7, 2 | 0xd << 16));
    code::smi();
    check_eq!(code::note(0), 7, "what SMM wrote to the address in DR0");
    check_eq!(reg::dr(6), Ok(0xffff_0ff0), "DR6");
    check_trap!(mem::write(0x3_6040, 1_u32), trap::DB, 0, "a write outside");
    check_ok!(reg::set_dr(7, 0x400));
});

// SDM volume 3, "Priority Among Concurrent Events": SMI, in class 3, goes before traps on the last
// instruction, in class 4. APM volume 2, 8.5, has the same order.
test!(
    before_step,
    "Of an SMI and a single-step trap that are both due, the SMI is taken first.",
    || {
        code::install(&[asm_code!(".code16", "mov dword ptr [esi + 0x40], 7", "nop")]);
        let chain = code::smi_chain();
        let stepped = payload_rt::insn!(
            "pushfq", "or dword ptr [rsp], 0x100", "popfq", "out dx, eax", "nop";
            in("dx") payload_rt::lab::PORT, in("eax") chain.address()
        );
        check_trap!(stepped, trap::DB, 0, "TF outside");
        check_eq!((code::count(), code::note(0)), (1, 7), "SMIs that ran to their end");
        check!(saved::<u64>(map::RFLAGS) & reg::FLAG_TF != 0, "the trap came first");
    }
);
