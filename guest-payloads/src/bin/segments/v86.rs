//! Virtual-8086 mode (Intel SDM volume 3, 22.2 to 22.3; AMD APM volume 2, 8.11, 4.3).

use crate::{get, put};
use payload_rt::legacy::table::{self, Tss, segment, tss32};
use payload_rt::legacy::{
    CODE, DATA, DATA32, FLAG_VM, Machine, OUTER_STACK, Outcome, STACK, TOP, TSS, TSS_SELECTOR,
};
use payload_rt::trap::{GP, SS, UD};
use payload_rt::{apic, asm_code, check_eq, code16, cpuid, reg, test};

const IOPL3: u32 = 3 << 12;
const IF: u32 = reg::FLAG_IF as u32;
const FLAG_VIF: u32 = 1 << 19;

test!(v86, "Virtual-8086 mode has real mode's segments, and traps go to CPL 0.", || {
    let mut m = Machine::virtual_8086(code16!(
        "mov eax, [bx]",
        "mov ds, cx",
        "mov dx, [bx]",
        "mov si, cs",
        "push si",
        "pop fs"
    ));
    m.regs.ecx = (DATA >> 4) + 1;
    put(DATA, 0x1234_5678_u32);
    put(DATA + 16, 0x9abc_u16);
    let out = m.run();
    out.done("the code");
    let r = out.regs;
    check_eq!((r.eax, r.edx, r.esi), (0x1234_5678, 0x9abc, CODE >> 4), "EAX, EDX, ESI");
    check_eq!((r.ds, r.es, r.fs, r.gs), (r.ecx, DATA >> 4, CODE >> 4, DATA >> 4), "DS, ES, FS, GS");
    check_eq!((r.ss, r.esp), (OUTER_STACK >> 4, TOP), "SS and ESP");
    check_eq!(r.eflags & (FLAG_VM | IOPL3), FLAG_VM, "VM and IOPL");
    // Nine words: EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS.
    check_eq!(out.inner, (DATA32, STACK + TOP), "the handler's stack");
});

test!(v86_nulls, "An interrupt out of virtual-8086 mode makes DS, ES, FS and GS null.", || {
    let mut m = Machine::virtual_8086(code16!("nop"));
    // The handler of #UD looks at its segments, and ends by #GP through the null one.
    m.gate(UD, table::gate(0x30, CODE + 0x400, table::INTERRUPT_GATE32, 0));
    for (i, &byte) in asm_code!(
        ".code32",
        "mov eax, ds",
        "mov ebx, es",
        "mov ecx, fs",
        "mov edx, gs",
        "mov byte ptr [0], 1",
        "mov ds, edi"
    )
    .iter()
    .enumerate()
    {
        put(CODE + 0x400 + i as u32, byte);
    }
    m.regs.edi = 0x7f8;
    let out = m.run();
    out.raises(GP, 0, "a write through the null DS");
    let r = out.regs;
    check_eq!((r.eax, r.ebx, r.ecx, r.edx), (0, 0, 0, 0), "DS, ES, FS, GS in the handler");
    check_eq!(r.esp, STACK + TOP - 36, "ESP in the handler");
    check_eq!(get::<u32>(r.esp + 8) & FLAG_VM, FLAG_VM, "VM on the stack");
    let words: [u16; 4] = core::array::from_fn(|i| get(r.esp + 20 + 4 * i as u32));
    check_eq!(words, [(DATA >> 4) as u16; 4], "ES, DS, FS, GS on the stack");
});

/// One instruction in virtual-8086 mode with this IOPL, and what came.
fn one(code: &[u8], eflags: u32) -> Outcome {
    let mut m = Machine::virtual_8086(code);
    m.regs.eflags |= eflags;
    m.regs.edx = 0x80;
    m.run()
}

// SDM volume 3, 22.2.8: CLI, STI, PUSHF, POPF, INT n and IRET are sensitive to IOPL.
test!(v86_iopl, "CLI, STI, PUSHF, POPF, INT n and IRET are #GP(0) below IOPL 3.", || {
    for (what, code) in [
        ("cli", code16!("cli")),
        ("sti", code16!("sti")),
        ("pushf", code16!("pushf")),
        ("popf", code16!("popf")),
        ("int", code16!("int 0x50")),
        ("iret", code16!("iret")),
        ("iretd", code16!("iretd")),
    ] {
        for iopl in [0, 1 << 12, 2 << 12] {
            one(code, iopl).faults(GP, 0, 0, what);
        }
    }
});

test!(
    v86_iopl_3,
    "With IOPL 3 CLI, STI, PUSHF, POPF and IRET work, and cannot change IOPL.",
    || {
        let out = one(
            code16!(
                "pushf", "pop ax", "cli", "pushf", "pop bx", "sti", "pushf", "pop cx", "push 0",
                "popf", "pushf", "pop dx"
            ),
            IOPL3 | IF,
        );
        out.done("cli, sti, pushf, popf");
        let (r, all) = (out.regs, IOPL3 | IF | 2);
        check_eq!((r.eax, r.ebx & 0xffff), (all, IOPL3 | 2), "FLAGS before and after CLI");
        check_eq!((r.ecx & 0xffff, r.edx & 0xffff), (all, IOPL3 | 2), "FLAGS after STI and POPF");
        let mut m =
            Machine::virtual_8086(code16!("push 0x201", "push 0x3010", "push 0x40", "iret"));
        m.regs.eflags |= IOPL3;
        put(CODE + 0x140, 0xc88e_u16);
        let out = m.run();
        out.done("iret");
        check_eq!((out.regs.cs, out.regs.eip), (0x3010, 0x40), "CS:IP");
        let flags = out.regs.eflags & (FLAG_VM | IOPL3 | IF | 1);
        check_eq!(flags, FLAG_VM | IOPL3 | IF | 1, "EFLAGS");
    }
);

test!(v86_int, "With IOPL 3 INT n goes through a gate of DPL 3 to CPL 0; else it is #GP.", || {
    let mut m = Machine::virtual_8086(asm_code!(".code16", "int 0x50"));
    m.regs.eflags |= IOPL3 | IF;
    m.run().faults(GP, 0x50 << 3 | 2, 0, "a gate of DPL 0");
    m.stub(0x50, 3);
    let out = m.run();
    out.raises(0x50, 0, "int 0x50");
    check_eq!((out.regs.eip, out.regs.cs), (2, CODE >> 4), "EIP and CS");
    check_eq!(out.regs.eflags & (FLAG_VM | IF), FLAG_VM | IF, "EFLAGS");
    // To other code than that of CPL 0 there is no way: #GP names it.
    m.set(0, table::flat(table::READABLE | table::DPL3));
    m.gate(
        0x50,
        table::gate(payload_rt::legacy::FREE, CODE, table::INTERRUPT_GATE32 | table::DPL3, 0),
    );
    m.run().faults(GP, payload_rt::legacy::FREE, 0, "a gate to code of DPL 3");
});

test!(v86_int3, "INT3 and INTO in virtual-8086 mode do not depend on IOPL.", || {
    for (what, vector, at, code) in [
        ("int3", 3, 1, asm_code!(".code16", "int3")),
        ("into", 4, 1, asm_code!(".code16", ".byte 0xce")),
    ] {
        let mut m = Machine::virtual_8086(code);
        m.regs.eflags |= 1 << 11;
        m.stub(vector, 3);
        let out = m.run();
        out.raises(vector, 0, what);
        check_eq!(out.regs.eip, at, "EIP after {what}");
    }
});

test!(
    v86_privileged,
    "In virtual-8086 mode privileged instructions are #GP(0), LAR and its kin #UD.",
    || {
        for (what, vector, code) in [
            ("hlt", GP, code16!("hlt")),
            ("mov eax, cr0", GP, code16!("mov eax, cr0")),
            ("mov cr0, eax", GP, code16!("mov cr0, eax")),
            ("mov eax, dr7", GP, code16!("mov eax, dr7")),
            ("clts", GP, code16!("clts")),
            ("lmsw", GP, code16!("lmsw ax")),
            ("lgdt", GP, code16!("lgdt [bx]")),
            ("lidt", GP, code16!("lidt [bx]")),
            ("wrmsr", GP, code16!("wrmsr")),
            ("rdmsr", GP, code16!("rdmsr")),
            ("lldt", UD, code16!("lldt ax")),
            ("ltr", UD, code16!("ltr ax")),
            ("sldt", UD, code16!("sldt ax")),
            ("str", UD, code16!("str ax")),
            ("lar", UD, code16!("lar ax, bx")),
            ("lsl", UD, code16!("lsl ax, bx")),
            ("verr", UD, code16!("verr ax")),
            ("arpl", UD, code16!(".byte 0x63, 0xd8")),
        ] {
            one(code, IOPL3).faults(vector, 0, 0, what);
        }
        one(code16!("smsw ax"), 0).done("smsw");
    }
);

// SDM volume 1, 20.5.2: in virtual-8086 mode the I/O permission map alone decides.
test!(v86_ports, "IN and OUT in virtual-8086 mode obey the I/O map, whatever IOPL is.", || {
    for iopl in [0, IOPL3] {
        for (what, code) in [
            ("in al, 0x80", code16!("in al, 0x80")),
            ("out dx, al", code16!("out dx, al")),
            ("out dx, ax", code16!("out dx, ax")),
        ] {
            let mut m = Machine::virtual_8086(code);
            m.regs.eflags |= iopl;
            m.regs.edx = 0x80;
            // No map within the limit: all is forbidden.
            m.run().faults(GP, 0, 0, what);
            m.set_at(TSS_SELECTOR, segment(TSS, 104 + 0x20, table::TSS32));
            Tss::FIRST.set16(tss32::MAP, 104);
            for at in (104..104 + 0x24).step_by(4) {
                Tss::FIRST.set(at, u32::MAX);
            }
            m.run().faults(GP, 0, 0, what);
            // Port 0x80 alone, and then 0x81 too.
            Tss::FIRST.set(104 + 0x10, 0xffff_fffe);
            let out = m.run();
            if what == "out dx, ax" {
                out.faults(GP, 0, 0, what);
                Tss::FIRST.set(104 + 0x10, 0xffff_fffc);
                m.run().done(what);
            } else {
                out.done(what);
            }
        }
    }
});

test!(v86_limit, "In virtual-8086 mode an access over offset 0xffff is #GP(0), or #SS(0).", || {
    for (what, vector, at, offset, code) in [
        ("word", GP, 0, 0xffff, code16!("mov ax, [bx]")),
        ("dword write", GP, 0, 0xfffd, code16!("mov [bx], eax")),
        ("a 32-bit address", GP, 0, 0x1_0000, code16!("mov al, [ebx]")),
        ("by BP", SS, 0, 0xffff, code16!("mov ax, [bp]")),
        ("a push", SS, 3, 0, code16!("mov sp, 1", "push ax")),
        ("a 32-bit jump", GP, 0, 0x1_0000, code16!("jmp ebx")),
    ] {
        let mut m = Machine::virtual_8086(code);
        (m.regs.ebx, m.regs.ebp) = (offset, offset);
        m.run().faults(vector, 0, at, what);
    }
});

test!(
    v86_interrupt,
    "An interrupt out of virtual-8086 mode goes to CPL 0, with VM on the stack.",
    || {
        const VECTOR: u8 = 0x52;
        let local = apic::local();
        local.enable();
        local.self_ipi(VECTOR);
        let mut m = Machine::virtual_8086(code16!("nop", "nop", "nop", "nop"));
        m.regs.eflags |= IF;
        let out = m.run();
        out.raises(VECTOR, 0, "an interrupt");
        check_eq!(out.regs.eflags & (FLAG_VM | IF), FLAG_VM | IF, "EFLAGS");
        check_eq!(out.regs.cs, CODE >> 4, "CS");
        check_eq!(out.inner, (DATA32, STACK + TOP), "the handler's stack");
        local.eoi();
    }
);

// SDM volume 3, 22.3.1 and 22.4: with CR4.VME, VIF stands for IF below IOPL 3.
test!(v86_vme, "With CR4.VME and IOPL 0, CLI, STI, PUSHF and POPF work on VIF.", || {
    if cpuid::leaf(1, 0).edx & 2 == 0 {
        payload_rt::skip!("the processor has no virtual-8086 mode extensions");
    }
    let mut m = Machine::virtual_8086(code16!("pushf", "pop ax", "sti", "pushf", "pop bx"));
    m.regs.cr4 = 1;
    m.regs.eflags |= IF;
    let out = m.run();
    out.done("sti");
    check_eq!(out.regs.eax & (IOPL3 | IF), IOPL3, "FLAGS before STI: IOPL reads 3, IF is VIF");
    check_eq!(out.regs.ebx & (IOPL3 | IF), IOPL3 | IF, "FLAGS after STI");
    let on = FLAG_VM | FLAG_VIF | IF;
    check_eq!(out.regs.eflags & (on | IOPL3), on, "EFLAGS");
    let mut m = Machine::virtual_8086(code16!("sti", "cli"));
    m.regs.cr4 = 1;
    m.regs.eflags |= IF;
    let out = m.run();
    out.done("cli");
    check_eq!(out.regs.eflags & on, FLAG_VM | IF, "EFLAGS after CLI");
});

test!(v86_redirection, "With CR4.VME, INT n goes where the redirection map says.", || {
    if cpuid::leaf(1, 0).edx & 2 == 0 {
        payload_rt::skip!("the processor has no virtual-8086 mode extensions");
    }
    let mut m = Machine::virtual_8086(code16!("int 0x50", "mov cx, 1"));
    m.regs.cr4 = 1;
    m.regs.eflags |= IOPL3;
    m.set_at(TSS_SELECTOR, segment(TSS, 104 + 32 + 8, table::TSS32));
    // The map of 32 bytes lies below the I/O map; a clear bit leads to the program's own table.
    Tss::FIRST.set16(tss32::MAP, 104 + 32);
    for at in (104..104 + 32).step_by(4) {
        Tss::FIRST.set(at, u32::MAX);
    }
    m.stub(0x50, 3);
    m.run().raises(0x50, 0, "int 0x50, its bit set");
    Tss::FIRST.set(104 + 8, !(1 << 16));
    // The table lies at linear address 0.
    put(4 * 0x50, (CODE >> 4) << 16 | 0x300);
    for (i, &byte) in code16!("mov bp, sp", "mov ax, [bp]", "iret").iter().enumerate() {
        put(CODE + 0x300 + i as u32, byte);
    }
    let out = m.run();
    out.done("int 0x50, its bit clear");
    check_eq!((out.regs.eax & 0xffff, out.regs.ecx), (2, 1), "IP on the stack, and CX");
});
