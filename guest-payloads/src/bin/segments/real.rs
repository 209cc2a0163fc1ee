//! Real mode (Intel SDM volume 3, 22.1; AMD APM volume 2, 4.3, 14.1).

use crate::{get, put};
use payload_rt::legacy::table::{WRITABLE, segment};
use payload_rt::legacy::{CODE, DATA, DATA32, Machine, STACK};
use payload_rt::trap::{GP, SS, UD};
use payload_rt::{apic, check_eq, code16, reg, test};

test!(real_segments, "In real mode a segment's base is its selector times 16.", || {
    let mut m =
        Machine::real(code16!("mov eax, [bx]", "mov ds, cx", "mov dx, [bx]", "push cs", "pop si"));
    m.regs.ecx = (DATA >> 4) + 1;
    put(DATA, 0x1234_5678_u32);
    put(DATA + 16, 0x9abc_u16);
    let out = m.run();
    out.done("reads");
    check_eq!((out.regs.eax, out.regs.edx), (0x1234_5678, 0x9abc), "EAX and EDX");
    check_eq!(out.regs.esi, CODE >> 4, "CS");
});

// SDM volume 3, 22.1.1: no wrap at 64 KiB.
test!(real_limit, "In real mode an access over offset 0xffff is #GP, or #SS with SS.", || {
    for (what, vector, at, offset, code) in [
        ("word read", GP, 0, 0xffff, code16!("mov ax, [bx]")),
        ("word write", GP, 0, 0xffff, code16!("mov [bx], ax")),
        ("dword read", GP, 0, 0xfffd, code16!("mov eax, [bx]")),
        ("qword", GP, 0, 0xfff9, code16!("cmpxchg8b [bx]")),
        ("byte by a 32-bit address", GP, 0, 0x1_0000, code16!("mov al, [ebx]")),
        ("word by BP", SS, 0, 0xffff, code16!("mov ax, [bp]")),
        ("word by override", SS, 0, 0xffff, code16!("mov ax, ss:[bx]")),
        ("word through CS", GP, 0, 0xffff, code16!("mov ax, cs:[bx]")),
    ] {
        let mut m = Machine::real(code);
        (m.regs.ebx, m.regs.ebp) = (offset, offset);
        m.run().faults(vector, 0, at, what);
    }
    let mut m = Machine::real(code16!("mov al, [bx]", "mov cx, [bx - 1]"));
    m.regs.ebx = 0xffff;
    put(DATA + 0xfffe, 0x55aa_u16);
    let out = m.run();
    out.done("the last byte and word");
    check_eq!((out.regs.eax, out.regs.ecx), (0x55, 0x55aa), "EAX and ECX");
});

test!(real_addresses, "In real mode 16-bit addresses wrap at 64 KiB, and SP too.", || {
    let mut m = Machine::real(code16!(
        "mov ax, [bx + si]",
        "mov esp, 0x43210000",
        "push ax",
        "mov edx, esp",
        "mov sp, 0x8000"
    ));
    (m.regs.ebx, m.regs.esi) = (0xfffe, 4);
    put(DATA + 2, 0x4321_u16);
    let out = m.run();
    out.done("reads and a push");
    check_eq!(out.regs.eax, 0x4321, "AX");
    check_eq!(out.regs.edx, 0x4321_fffe, "ESP");
    check_eq!(get::<u16>(STACK + 0xfffe), 0x4321, "what was pushed");
});

test!(real_fetch, "In real mode execution over offset 0xffff is #GP.", || {
    let mut m = Machine::real(code16!("mov cx, 0x1111"));
    // `nop` at the last byte, and an instruction over the end.
    put(CODE + 0xffff, 0x90_u8);
    m.regs.eip = 0xffff;
    let out = m.run();
    out.raises(GP, 0, "behind the last byte");
    put(CODE + 0xfffe, 0x12b8_u16); // mov ax, imm16
    m.regs.eip = 0xfffe;
    let out = m.run();
    out.raises(GP, 0, "an instruction over the end");
    check_eq!((out.regs.eip, out.regs.eax), (0xfffe, 0), "IP and AX");
});

test!(
    real_jumps,
    "In real mode a jump of operand size 32 beyond 0xffff is #GP; 16 bits wrap.",
    || {
        // Offset 0x10000 of the code is the start of the data; who goes there finds an end.
        put(DATA, 0xc88e_u16);
        let mut m = Machine::real(code16!("jmp ebx"));
        m.regs.ebx = 0x1_0000;
        m.run().faults(GP, 0, 0, "jmp ebx");
        let mut m = Machine::real(code16!("push ebx", ".byte 0x66", "ret"));
        m.regs.ebx = 0x1_0000;
        m.run().faults(GP, 0, 2, "a 32-bit near return");
        let mut m = Machine::real(code16!("jmp bx"));
        m.regs.ebx = 0xffff_ff00;
        put(CODE + 0xff00, 0xc88e_u16);
        let out = m.run();
        out.done("jmp bx");
        check_eq!(out.regs.eip, 0xff00, "IP");
    }
);

test!(real_far, "In real mode far JMP, CALL, RET and IRET load any CS, base times 16.", || {
    // At 0x3010:0 lies: pop ax, pop bx (IP and CS of the caller), push both, retf.
    let far = code16!("mov bp, sp", "mov ax, [bp]", "mov bx, [bp + 2]", "mov cx, cs", ".byte 0xcb");
    let mut m = Machine::real(code16!(".byte 0x9a", ".word 0, 0x3010", "mov dx, cs"));
    for (i, &byte) in far.iter().enumerate() {
        put(CODE + 0x100 + i as u32, byte);
    }
    let out = m.run();
    out.done("far call and return");
    check_eq!((out.regs.eax, out.regs.ebx), (5, CODE >> 4), "what the call pushed");
    check_eq!((out.regs.ecx, out.regs.edx), (0x3010, CODE >> 4), "CS there and here");
    let mut m = Machine::real(code16!("pushf", "push 0x3010", "push 0x40", "iret"));
    put(CODE + 0x140, 0xc88e_u16);
    let out = m.run();
    out.done("iret");
    check_eq!((out.regs.cs, out.regs.eip), (0x3010, 0x40), "CS:IP after iret");
    let mut m = Machine::real(code16!(".byte 0xea", ".word 0x50, 0x3011"));
    put(CODE + 0x160, 0xc88e_u16);
    let out = m.run();
    out.done("far jmp");
    check_eq!((out.regs.cs, out.regs.eip), (0x3011, 0x50), "CS:IP after jmp");
});

test!(real_far_32, "In real mode a far jump of operand size 32 beyond 0xffff is #GP.", || {
    let mut m = Machine::real(code16!(".byte 0x66, 0xea", ".long 0x10000", ".word 0x3000"));
    put(DATA, 0xc88e_u16);
    let out = m.run();
    out.faults(GP, 0, 0, "far jmp to offset 0x10000");
    check_eq!(out.regs.cs, CODE >> 4, "CS");
});

test!(
    real_int,
    "INT n in real mode pushes FLAGS, CS, IP, clears IF and TF, and IRET returns.",
    || {
        let handler = code16!(
            "mov bp, sp",
            "mov ax, [bp]",
            "mov bx, [bp + 2]",
            "mov cx, [bp + 4]",
            "pushf",
            "pop dx",
            "iret"
        );
        let mut m = Machine::real(code16!("sti", "stc", "int 0x21", "pushf", "pop si", "cli"));
        for (i, &byte) in handler.iter().enumerate() {
            put(CODE + 0x200 + i as u32, byte);
        }
        m.real_vector(0x21, CODE >> 4, 0x200);
        let out = m.run();
        out.done("int 0x21");
        check_eq!((out.regs.eax, out.regs.ebx), (4, CODE >> 4), "IP and CS on the stack");
        let on = (reg::FLAG_IF | reg::FLAG_CF | 2) as u32;
        check_eq!(out.regs.ecx & 0xfff, on, "FLAGS on the stack");
        check_eq!(out.regs.edx & 0xfff, 3, "FLAGS in the handler");
        check_eq!(out.regs.esi & 0xfff, on, "FLAGS after it");
    }
);

// SDM volume 3, 22.1.4: "If a vector is beyond the limit of the table, #GP"; volume 2, INT n.
test!(real_idt_limit, "INT n in real mode beyond IDTR's limit is #GP.", || {
    let mut m = Machine::real(code16!("nop", "int 0x40"));
    m.idt_limit = 0x40 * 4 + 2;
    m.run().faults(GP, 0, 1, "int 0x40, its entry cut off");
    m.idt_limit = 0x40 * 4 + 3;
    let out = m.run();
    out.raises(0x40, 0, "int 0x40 with its whole entry");
    check_eq!(out.regs.eip, 3, "IP behind int");
});

test!(
    real_unreal,
    "Limits that protected mode loaded stay in real mode, where loads set the base.",
    || {
        let mut m = Machine::real(code16!("mov ds, cx", "mov eax, [ebx]"));
        m.cached = Some(DATA32);
        m.regs.ecx = 0x3ff0;
        m.regs.ebx = 0x1_0100;
        put(0x3_ff00 + 0x1_0100, 0x0bad_cafe_u32);
        let out = m.run();
        out.done("beyond 64 KiB");
        check_eq!(out.regs.eax, 0x0bad_cafe, "EAX");
        // A smaller limit stays too.
        let mut m = Machine::real(code16!("mov ds, cx", "mov al, [0x4fff]", "mov al, [0x5000]"));
        m.cached = Some(m.set(0, segment(0x2_0000, 0x4fff, WRITABLE)));
        m.regs.ecx = DATA >> 4;
        m.regs.esp = 0x4000;
        let out = m.run();
        out.faults(GP, 0, 5, "beyond limit 0x4fff");
        check_eq!(out.regs.ds, DATA >> 4, "DS");
    }
);

// SDM volume 2: "#UD: not recognized in real-address mode".
test!(
    real_none,
    "LAR, LSL, VERR, VERW, ARPL, SLDT, STR, LLDT and LTR are #UD in real mode.",
    || {
        for (what, code) in [
            ("lar", code16!("lar ax, bx")),
            ("lsl", code16!("lsl ax, bx")),
            ("verr", code16!("verr bx")),
            ("verw", code16!("verw bx")),
            ("arpl", code16!(".byte 0x63, 0xd8")),
            ("sldt", code16!("sldt ax")),
            ("str", code16!("str ax")),
            ("lldt", code16!("lldt bx")),
            ("ltr", code16!("ltr bx")),
        ] {
            let out = Machine::real(code).run();
            out.faults(UD, 0, 0, what);
        }
    }
);

test!(real_stores, "SGDT, SIDT and SMSW work in real mode, and LMSW too.", || {
    let mut m = Machine::real(code16!(
        "sgdt [0x10]",
        "sidt [0x20]",
        "smsw bx",
        "smsw cx",
        "or cl, 8",
        "lmsw cx",
        "smsw dx",
        "clts"
    ));
    put(DATA + 0x10, 0_u64);
    put(DATA + 0x20, 0_u64);
    let out = m.run();
    out.done("stores");
    check_eq!(get::<u16>(DATA + 0x10), m.gdt_limit, "the GDT's limit");
    check_eq!(get::<u32>(DATA + 0x12), payload_rt::legacy::GDT, "the GDT's base");
    check_eq!(get::<u16>(DATA + 0x20), m.idt_limit, "the table's limit");
    check_eq!(get::<u32>(DATA + 0x22), payload_rt::legacy::IVT, "the table's base");
    let cr0 = m.regs.cr0 & 0xffff;
    check_eq!(out.regs.ebx & 0xffff, cr0, "smsw");
    check_eq!(out.regs.edx & 0xffff, cr0 | 8, "smsw after lmsw");
});

test!(real_interrupt, "An interrupt in real mode goes through the interrupt table.", || {
    const VECTOR: u8 = 0x51;
    let local = apic::local();
    local.enable();
    local.self_ipi(VECTOR);
    let mut m = Machine::real(code16!("sti", "2:", "jmp 2b"));
    let out = m.run();
    out.raises(VECTOR, 0, "an interrupt");
    check_eq!(out.regs.cs, CODE >> 4, "CS");
    check_eq!(out.regs.eflags & reg::FLAG_IF as u32, reg::FLAG_IF as u32, "IF as it was pushed");
    local.eoi();
});
