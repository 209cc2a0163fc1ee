//! The ways to another task (Intel SDM volume 3, 9.1.3, 9.3 and 9.4; AMD APM volume 2, 12.3).

use crate::{TARGET, check_second, first_tss, put, second, second_tss, target};
use payload_rt::legacy::table::{self, DPL3, TASK_GATE, Tss, gate, tss32};
use payload_rt::legacy::{
    CODE, DATA32, FLAG_NT, FREE, Machine, OTHER, OUTER_CODE, OUTER_DATA, OUTER_STACK, TOP,
    TSS_SELECTOR, TSS2_SELECTOR,
};
use payload_rt::trap::{DB, GP, NP, UD};
use payload_rt::{apic, asm_code, check_eq, code32, mem, reg, test};

/// Far JMP and CALL to selector 0x48 (the second TSS) and 0x78 (the first free one).
const JMP: &[u8] = &[0xea, 0, 0, 0, 0, 0x48, 0];
const CALL: &[u8] = &[0x9a, 0, 0, 0, 0, 0x48, 0];
const JMP_GATE: &[u8] = &[0xea, 0, 0, 0, 0, 0x78, 0];
const CALL_GATE: &[u8] = &[0x9a, 0, 0, 0, 0, 0x78, 0];

test!(jmp, "A far JMP to a TSS loads its registers, and frees the TSS it leaves.", || {
    let mut m = Machine::new(JMP);
    second(&m, code32!("nop"));
    let out = m.run();
    out.done("jmp");
    check_second(&m, &out, false, false, "jmp");
    let r = out.regs;
    check_eq!((r.eax, r.ecx, r.edx, r.ebx), (0xa0a0_0001, 0xa0a0_0002, 0xa0a0_0003, 0xa0a0_0004));
    check_eq!((r.esp, r.ebp, r.esi, r.edi), (OTHER + TOP, 0xa0a0_0005, 0xa0a0_0006, 0xa0a0_0007));
    check_eq!(r.eip, TARGET + 1, "EIP");
});

test!(call, "A far CALL to a TSS links it to the first, sets NT, and leaves both busy.", || {
    let mut m = Machine::new(CALL);
    second(&m, code32!("nop"));
    let out = m.run();
    out.done("call");
    check_second(&m, &out, true, true, "call");
    check_eq!(out.regs.esp, OTHER + TOP, "ESP: nothing is pushed");
});

test!(
    gates,
    "JMP and CALL through a task gate do the same, from the GDT and from the LDT.",
    || {
        for (what, code, first_busy) in [("jmp", JMP_GATE, false), ("call", CALL_GATE, true)] {
            for local in [false, true] {
                let mut m = Machine::new(code);
                let a_gate = gate(TSS2_SELECTOR, 0xdead_beef, TASK_GATE, 0);
                if local {
                    let selector = m.set_local(2, a_gate);
                    put(CODE + 5, selector as u16);
                } else {
                    m.set(0, a_gate);
                }
                second(&m, code32!("nop"));
                let out = m.run();
                out.done(what);
                check_second(&m, &out, first_busy, first_busy, what);
                check_eq!(Tss::FIRST.get(tss32::EIP), CODE + 7, "EIP in the first TSS");
            }
        }
    }
);

test!(
    iret,
    "IRET with NT goes back by the link, frees the TSS it leaves, and clears NT there.",
    || {
        let mut m = Machine::new(asm_code!(
            ".code32",
            ".byte 0x9a, 0, 0, 0, 0, 0x48, 0",
            "mov ecx, eax",
            ".byte 0x8e, 0xc8"
        ));
        m.regs.eax = 0x1357_9bdf;
        second(&m, asm_code!(".code32", "mov edx, 5", "iretd", "nop", ".byte 0x8e, 0xc8"));
        let out = m.run();
        out.done("the first task");
        check_eq!(out.regs.tr, TSS_SELECTOR, "TR");
        check_eq!(m.descriptor(TSS_SELECTOR), first_tss(true), "descriptor of the first TSS");
        check_eq!(m.descriptor(TSS2_SELECTOR), second_tss(false), "descriptor of the second TSS");
        check_eq!(out.regs.eflags & FLAG_NT, 0, "NT in the first task");
        check_eq!(
            out.regs.ecx,
            0x1357_9bdf,
            "EAX of the first task, which goes on behind its CALL"
        );
        check_eq!(out.regs.esp, m.regs.esp, "ESP of the first task");
        let t = Tss::SECOND;
        check_eq!((t.get(tss32::EIP), t.get(tss32::EDX)), (TARGET + 6, 5), "what IRET saved");
        check_eq!(t.get(tss32::EFLAGS) & FLAG_NT, 0, "NT in the second TSS");
        check_eq!(t.get16(tss32::LINK), TSS_SELECTOR, "the second TSS's link");
    }
);

test!(again, "A task that was left by IRET goes on behind it when it is called again.", || {
    let mut m = Machine::new(asm_code!(
        ".code32",
        ".byte 0x9a, 0, 0, 0, 0, 0x48, 0",
        ".byte 0x9a, 0, 0, 0, 0, 0x48, 0",
        ".byte 0x8e, 0xc8"
    ));
    second(&m, asm_code!(".code32", "inc edx", "iretd", "add edx, 0x100", ".byte 0x8e, 0xc8"));
    let out = m.run();
    out.done("the second task, at its second time");
    check_eq!(out.regs.edx, 0xa0a0_0104, "EDX");
    check_second(&m, &out, true, true, "again");
});

test!(chain, "Three tasks call each other, and return through their links.", || {
    // The third lies at OTHER.
    const THIRD: u32 = OTHER;
    let mut m =
        Machine::new(asm_code!(".code32", ".byte 0x9a, 0, 0, 0, 0, 0x48, 0", ".byte 0x8e, 0xc8"));
    second(&m, asm_code!(".code32", ".byte 0x9a, 0, 0, 0, 0, 0x78, 0", "iretd"));
    m.set(0, table::segment(THIRD, 103, table::TSS32));
    let third = Tss(THIRD);
    for at in (0..104).step_by(4) {
        third.set(at, Tss::SECOND.get(at));
    }
    third.set(tss32::ESP, OTHER + TOP - 0x1000);
    third.set(tss32::EIP, TARGET + 0x100);
    put(TARGET + 0x100, 0xcf_u8);
    let out = m.run();
    out.done("the first task");
    check_eq!((out.regs.tr, out.regs.eip), (TSS_SELECTOR, CODE + 7), "TR and EIP");
    check_eq!(third.get16(tss32::LINK), TSS2_SELECTOR, "the third TSS's link");
    let free = table::segment(THIRD, 103, table::TSS32);
    check_eq!(m.descriptor(FREE), free, "descriptor of the third TSS");
    check_eq!(m.descriptor(TSS2_SELECTOR), second_tss(false), "descriptor of the second TSS");
});

test!(int, "INT n through a task gate saves EIP behind itself, and pushes nothing.", || {
    let mut m = Machine::new(asm_code!(".code32", "nop", "int 0x50"));
    second(&m, code32!("nop"));
    m.gate(0x50, gate(TSS2_SELECTOR, 0, TASK_GATE, 0));
    let out = m.run();
    out.done("int 0x50");
    check_second(&m, &out, true, true, "int 0x50");
    check_eq!(Tss::FIRST.get(tss32::EIP), CODE + 3, "EIP in the first TSS");
    check_eq!(out.regs.esp, OTHER + TOP, "ESP");
});

test!(int_back, "IRET from a task that INT n led to goes on behind it, with IF as it was.", || {
    let mut m = Machine::new(asm_code!(
        ".code32",
        "sti",
        "int 0x50",
        "pushfd",
        "pop ecx",
        "cli",
        ".byte 0x8e, 0xc8"
    ));
    second(&m, asm_code!(".code32", "pushfd", "pop dword ptr [0x40000]", "iretd"));
    m.gate(0x50, gate(TSS2_SELECTOR, 0, TASK_GATE, 0));
    let out = m.run();
    out.done("int 0x50 and back");
    check_eq!(out.regs.ecx & reg::FLAG_IF as u32, reg::FLAG_IF as u32, "IF in the first task");
    let inside = mem::read::<u32>(0x4_0000);
    check_eq!(inside, Ok(2 | FLAG_NT), "EFLAGS of the second task");
    check_eq!(out.regs.tr, TSS_SELECTOR, "TR");
});

test!(
    int_outer,
    "INT n at CPL 3 needs a task gate of DPL 3: else it is #GP with the entry.",
    || {
        let code = asm_code!(".code32", "int 0x50");
        let mut m = Machine::outer(code);
        second(&m, code32!("nop"));
        m.gate(0x50, gate(TSS2_SELECTOR, 0, TASK_GATE, 0));
        m.run().faults(GP, 0x50 << 3 | 2, 0, "a task gate of DPL 0");
        m.gate(0x50, gate(TSS2_SELECTOR, 0, TASK_GATE | DPL3, 0));
        let out = m.run();
        out.done("a task gate of DPL 3");
        check_second(&m, &out, true, true, "from CPL 3");
        let t = Tss::FIRST;
        check_eq!((t.get16(tss32::CS), t.get16(tss32::SS)), (OUTER_CODE, OUTER_DATA), "CS and SS");
        check_eq!(t.get(tss32::ESP), OUTER_STACK + TOP, "ESP in the first TSS");
        let mut m2 = Machine::outer(code);
        second(&m2, code32!("nop"));
        m2.gate(0x50, gate(TSS2_SELECTOR, 0, (TASK_GATE | DPL3) & !table::PRESENT, 0));
        m2.run().faults(NP, 0x50 << 3 | 2, 0, "an absent task gate");
    }
);

test!(
    exception,
    "A fault through a task gate saves EIP of the instruction; its handler returns.",
    || {
        // The handler steps over the two bytes of UD2, in the first TSS.
        // The end that code has otherwise is a #UD too.
        let mut m = Machine::new(asm_code!(".code32", "nop", "ud2", "mov ecx, 7", "mov ds, edx"));
        second(
            &m,
            asm_code!(".code32", "mov eax, [0x24020]", "add dword ptr [0x24020], 2", "iretd"),
        );
        m.gate(UD, gate(TSS2_SELECTOR, 0, TASK_GATE, 0));
        m.regs.edx = 0x7f8;
        let out = m.run();
        out.faults(GP, 0x7f8, 8, "the end");
        check_eq!(out.regs.ecx, 7, "ECX");
        check_eq!(Tss::SECOND.get(tss32::EAX), CODE + 1, "EIP that the handler saw");
    }
);

test!(
    error_code,
    "The error code of a fault lies on the stack of the task that its gate leads to.",
    || {
        let mut m = Machine::new(asm_code!(".code32", "mov ds, eax"));
        m.regs.eax = 0x7f8 | 3;
        let esp = m.regs.esp;
        second(&m, code32!("pop ecx"));
        m.gate(GP, gate(TSS2_SELECTOR, 0, TASK_GATE, 0));
        let out = m.run();
        out.done("the handler");
        check_second(&m, &out, true, true, "a #GP");
        check_eq!(out.regs.ecx, 0x7f8, "what was on the stack");
        check_eq!(out.regs.esp, OTHER + TOP, "ESP behind it");
        check_eq!(Tss::FIRST.get(tss32::ESP), esp, "ESP in the first TSS");
        check_eq!(Tss::FIRST.get(tss32::EIP), CODE, "EIP in the first TSS");
    }
);

test!(interrupt, "An interrupt through a task gate switches tasks, and IRET goes back.", || {
    const VECTOR: u8 = 0x53;
    let local = apic::local();
    local.enable();
    local.self_ipi(VECTOR);
    let mut m = Machine::new(asm_code!(
        ".code32",
        "sti",
        "nop",
        "nop",
        "nop",
        "nop",
        "cli",
        "mov ecx, 3",
        ".byte 0x8e, 0xc8"
    ));
    second(&m, asm_code!(".code32", "inc dword ptr [0x40000]", "iretd"));
    put(0x4_0000, 0_u32);
    m.gate(VECTOR, gate(TSS2_SELECTOR, 0, TASK_GATE, 0));
    let out = m.run();
    out.done("the first task");
    check_eq!(mem::read(0x4_0000), Ok(1_u32), "times that the second task ran");
    check_eq!((out.regs.ecx, out.regs.tr), (3, TSS_SELECTOR), "ECX and TR");
    check_eq!(Tss::SECOND.get16(tss32::LINK), TSS_SELECTOR, "the second TSS's link");
    check_eq!(Tss::FIRST.get(tss32::EFLAGS) & 0x200, 0x200, "IF in the first TSS");
    local.eoi();
});

// SDM volume 3, 9.3 and 9.2.1: T set in the new TSS is #DB behind the switch, with DR6.BT.
test!(
    trap_flag,
    "The T bit of a TSS is #DB before the task's first instruction, with DR6.BT.",
    || {
        payload_rt::check_ok!(reg::set_dr(6, 0xffff_0ff0));
        let mut m = Machine::new(JMP);
        second(&m, code32!("nop"));
        Tss::SECOND.set16(tss32::TRAP, 1);
        let out = m.run();
        out.raises(DB, 0, "T");
        check_eq!((out.regs.eip, out.regs.tr), (TARGET, TSS2_SELECTOR), "EIP and TR");
        check_eq!(reg::dr(6), Ok(0xffff_8ff0), "DR6");
    }
);

test!(
    local_breakpoints,
    "A task switch clears the local enables of DR7 and leaves the global ones.",
    || {
        payload_rt::check_ok!(reg::set_dr(0, u64::from(OTHER)));
        payload_rt::check_ok!(reg::set_dr(7, 0x400 | 0b101_0111));
        let mut m = Machine::new(JMP);
        second(&m, code32!("nop"));
        m.run().done("jmp");
        let dr7 = reg::dr(7);
        payload_rt::check_ok!(reg::set_dr(7, 0x400));
        check_eq!(dr7, Ok(0x400 | 0b10), "DR7: of L0 to L3 and G0");
    }
);

test!(outer_task, "A TSS leads to any CPL: that of its CS.", || {
    let mut m = Machine::new(JMP);
    second(&m, asm_code!(".code32", "hlt"));
    let t = Tss::SECOND;
    t.set(tss32::CS, OUTER_CODE);
    for field in [tss32::SS, tss32::DS, tss32::ES, tss32::FS, tss32::GS] {
        t.set(field, OUTER_DATA);
    }
    t.set(tss32::ESP, OUTER_STACK + 0x700);
    let out = m.run();
    out.faults(GP, 0, TARGET - CODE, "hlt at CPL 3");
    let r = out.regs;
    check_eq!((r.cs, r.ss, r.esp), (OUTER_CODE, OUTER_DATA, OUTER_STACK + 0x700), "CS, SS, ESP");
    // The stack for traps is the second TSS's.
    let mut m = Machine::new(JMP);
    second(&m, asm_code!(".code32", "hlt"));
    t.set(tss32::CS, OUTER_CODE);
    t.set(tss32::SS, OUTER_DATA);
    t.set(tss32::ESP0, OTHER + 0x900);
    for field in [tss32::DS, tss32::ES, tss32::FS, tss32::GS] {
        t.set(field, OUTER_DATA);
    }
    let out = m.run();
    out.faults(GP, 0, TARGET - CODE, "hlt at CPL 3");
    check_eq!(out.inner, (DATA32, OTHER + 0x900), "the handler's stack");
});

test!(virtual_task, "A TSS with VM in its EFLAGS leads to virtual-8086 mode.", || {
    let mut m = Machine::new(JMP);
    second(&m, payload_rt::code16!("mov ax, ds"));
    let t = Tss::SECOND;
    t.set(tss32::EFLAGS, 2 | 1 << 17);
    t.set(tss32::EIP, 0x200);
    for (field, value) in [
        (tss32::CS, CODE >> 4),
        (tss32::SS, OUTER_STACK >> 4),
        (tss32::ESP, 0x800),
        (tss32::DS, 0x1234),
        (tss32::ES, 0x2345),
        (tss32::FS, 0x3456),
        (tss32::GS, 0x4567),
    ] {
        t.set(field, value);
    }
    let out = m.run();
    out.done("virtual-8086 mode");
    let r = out.regs;
    check_eq!((r.ds, r.es, r.fs, r.gs), (0x1234, 0x2345, 0x3456, 0x4567), "DS, ES, FS, GS");
    check_eq!((r.eax & 0xffff, r.tr), (0x1234, TSS2_SELECTOR), "AX and TR");
    check_eq!((r.cs, r.eip), (CODE >> 4, 0x202), "CS:EIP");
});

test!(
    from_virtual,
    "An interrupt out of virtual-8086 mode can go through a task gate, and back.",
    || {
        let mut m = Machine::virtual_8086(asm_code!(
            ".code16",
            "int 0x50",
            "mov cx, 1",
            ".byte 0x8e, 0xc8"
        ));
        m.regs.eflags |= 3 << 12;
        second(&m, asm_code!(".code32", "iretd"));
        target(&[0xcf]);
        m.gate(0x50, gate(TSS2_SELECTOR, 0, TASK_GATE | DPL3, 0));
        let out = m.run();
        out.done("virtual-8086 mode again");
        check_eq!((out.regs.ecx, out.regs.cs), (1, CODE >> 4), "CX and CS");
        check_eq!(out.regs.eflags & 1 << 17, 1 << 17, "VM");
        check_eq!(out.regs.tr, TSS_SELECTOR, "TR");
    }
);
