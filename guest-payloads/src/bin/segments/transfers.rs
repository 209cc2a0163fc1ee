//! Far transfers between code segments in protected mode (Intel SDM volume 3, 6.8; volume 2, JMP, CALL, RET,
//! IRET; AMD APM volume 2, 4.11).

use crate::{get, put};
use payload_rt::legacy::table::{
    self, BIG, CONFORMING, DPL3, PRESENT, READABLE, WRITABLE, flat, segment,
};
use payload_rt::legacy::{
    CODE, CODE16, CODE32, DATA32, FLAG_VM, FREE, LDT_SELECTOR, Machine, OUTER_CODE, OUTER_STACK,
};
use payload_rt::trap::{GP, NP, SS};
use payload_rt::{asm_code, check_eq, code32, reg, test};

/// `jmp far [ebx]`, `call far [ebx]` and a far return to what lies at EBX; each with the offset of the transfer.
fn transfers() -> [(&'static str, u32, &'static [u8]); 3] {
    [
        ("jmp", 0, asm_code!(".code32", "jmp fword ptr [ebx]")),
        ("call", 0, asm_code!(".code32", "call fword ptr [ebx]")),
        ("retf", 5, asm_code!(".code32", "push [ebx + 4]", "push [ebx]", "retf")),
    ]
}

/// Where the transfers find their pointer, and where it leads: offset 0x200 of the code, with an end.
const POINTER: u32 = CODE + 0x100;
const TARGET: u32 = 0x200;

/// A machine at one of the transfers, to selector:offset.
fn to(code: &[u8], selector: u32, offset: u32) -> Machine {
    let mut m = Machine::new(code);
    put(POINTER, offset);
    put(POINTER + 4, selector);
    put(CODE + TARGET, 0xc88e_u16);
    m.regs.ebx = POINTER;
    m
}

test!(far, "Far JMP, CALL and RET go to another code segment.", || {
    for (name, _, code) in transfers() {
        let mut m = to(code, FREE, TARGET);
        let descriptor = segment(CODE, 0xffff, READABLE) | BIG;
        m.set(0, descriptor);
        let esp = m.regs.esp;
        let out = m.run();
        out.done(name);
        check_eq!((out.regs.cs, out.regs.eip), (FREE, TARGET), "CS:EIP after {name}");
        if name == "call" {
            check_eq!(out.regs.esp, esp - 8, "ESP after call");
            check_eq!(get::<u32>(esp - 8), CODE + 2, "EIP on the stack");
            check_eq!(get::<u16>(esp - 4), CODE32 as u16, "CS on the stack");
        } else {
            check_eq!(out.regs.esp, esp, "ESP after {name}");
        }
    }
});

test!(far_16, "A far JMP to a 16-bit segment and back changes the size of operands.", || {
    let mut m =
        Machine::new(code32!(".byte 0xea", ".long 0x100", ".word 0x60", "mov ecx, 0x12345678"));
    // In 16-bit code: mov ax, 0x1234; 0x66 mov edx, imm32; jmp 0x30:CODE + 7.
    let there = asm_code!(
        ".code16",
        "mov ax, 0x1234",
        "mov edx, 0x56789abc",
        ".byte 0x66, 0xea",
        ".long 0x30007",
        ".word 0x30"
    );
    for (i, &byte) in there.iter().enumerate() {
        put(CODE + 0x100 + i as u32, byte);
    }
    m.regs.eax = 0xffff_0000;
    check_eq!(CODE16, 0x60);
    let out = m.run();
    out.done("there and back");
    let r = out.regs;
    check_eq!((r.eax, r.edx, r.ecx), (0xffff_1234, 0x5678_9abc, 0x1234_5678), "EAX, EDX, ECX");
});

test!(far_bad, "A far transfer to what is no code segment is #GP, or #NP if it is absent.", || {
    for (name, at, code) in transfers() {
        for (what, selector, descriptor, vector, error) in [
            ("null", 0, 0, GP, 0),
            ("null, RPL 3", 3, 0, GP, 0),
            ("data", FREE, flat(WRITABLE), GP, FREE),
            ("beyond the GDT", 0x7f8, 0, GP, 0x7f8),
            ("beyond the LDT", 0x1f4, 0, GP, 0x1f4),
            ("absent code", FREE, flat(READABLE & !PRESENT), NP, FREE),
            ("absent data", FREE, flat(WRITABLE & !PRESENT), GP, FREE),
            ("code of DPL 1", FREE, flat(READABLE | 0x20), GP, FREE),
            ("conforming code of DPL 1", FREE, flat(CONFORMING | 0x20), GP, FREE),
        ] {
            let mut m = to(code, selector, CODE + TARGET);
            m.set(0, descriptor);
            let out = m.run();
            out.faults(vector, error, at, what);
            check_eq!(out.regs.cs, CODE32, "CS after {name} to {what}");
            let pushed = if name == "retf" { 8 } else { 0 };
            check_eq!(out.regs.esp, m.regs.esp - pushed, "ESP after {name} to {what}");
        }
    }
});

test!(far_system, "A far transfer to an LDT's descriptor is #GP(selector).", || {
    for (name, at, code) in transfers() {
        let out = to(code, LDT_SELECTOR, CODE + TARGET).run();
        out.faults(GP, LDT_SELECTOR, at, name);
    }
});

test!(far_limit, "A far JMP or RET beyond the new segment's limit is #GP(0).", || {
    let [jmp, _, ret] = transfers();
    check_far_limit(&[jmp, ret]);
});

test!(far_limit_call, "A far CALL beyond the new segment's limit is #GP(0).", || {
    let [_, call, _] = transfers();
    check_far_limit(&[call]);
});

/// Checks transfers to the first byte beyond a segment.
fn check_far_limit(transfers: &[(&str, u32, &[u8])]) {
    for &(name, at, code) in transfers {
        let mut m = to(code, FREE, 0x1000);
        m.set(0, segment(CODE, 0xfff, READABLE) | BIG);
        let out = m.run();
        out.faults(GP, 0, at, name);
        check_eq!(out.regs.cs, CODE32, "CS after {name}");
    }
}

test!(
    far_rpl,
    "JMP and CALL to conforming code ignore RPL; to other code RPL must not be above CPL.",
    || {
        for (name, at, code) in &transfers()[..2] {
            for rpl in 0..4 {
                let mut m = to(code, FREE | rpl, CODE + TARGET);
                m.set(0, flat(CONFORMING));
                let out = m.run();
                out.done(name);
                check_eq!(out.regs.cs, FREE, "CS has CPL as its RPL, after {name}");
                m.set(0, flat(READABLE));
                let out = m.run();
                if rpl == 0 {
                    out.done(name);
                } else {
                    out.faults(GP, FREE, *at, name);
                }
            }
        }
    }
);

test!(
    far_outer,
    "At CPL 3 a far JMP reaches code of DPL 3 and conforming code, and CPL stays.",
    || {
        let code = asm_code!(".code32", "jmp fword ptr [ebx]");
        for (what, access, arrives) in [
            ("code of DPL 3", READABLE | DPL3, true),
            ("code of DPL 0", READABLE, false),
            ("code of DPL 2", READABLE | 0x40, false),
            ("conforming code of DPL 0", CONFORMING, true),
            ("conforming code of DPL 3", CONFORMING | DPL3, true),
        ] {
            for rpl in [0, 3] {
                let mut m = Machine::outer(code);
                put(POINTER, CODE + TARGET);
                put(POINTER + 4, FREE | rpl);
                put(CODE + TARGET, 0xf4_u8); // hlt
                m.regs.ebx = POINTER;
                m.set(0, flat(access));
                let out = m.run();
                if arrives {
                    out.faults(GP, 0, TARGET, what);
                    check_eq!(out.regs.cs, FREE | 3, "CS in {what}");
                } else {
                    out.faults(GP, FREE, 0, what);
                }
            }
        }
    }
);

test!(ret_imm, "RETF n takes n more bytes off the stack.", || {
    let mut m = Machine::new(code32!("push 1", "push 2", "push 0x30", "push ebx", "retf 8"));
    m.regs.ebx = CODE + 10;
    let out = m.run();
    out.done("retf 8");
    check_eq!(out.regs.esp, m.regs.esp, "ESP");
});

test!(
    far_sizes,
    "With operand size 16 a far CALL pushes words, and RETF and IRET pop words.",
    || {
        // Segments at CODE, so that 16 bits of offset suffice.
        let mut m = Machine::new(asm_code!(".code32", ".byte 0x66, 0x9a", ".word 0x200, 0x78"));
        put(CODE + TARGET, 0xc88e_u16);
        m.set(0, segment(CODE, 0xffff, READABLE) | BIG);
        check_eq!(FREE, 0x78);
        m.regs.cs = FREE;
        m.regs.eip = 0;
        let esp = m.regs.esp;
        let out = m.run();
        out.done("call");
        check_eq!(out.regs.esp, esp - 4, "ESP");
        check_eq!(get::<u32>(esp - 4), 6 | FREE << 16, "IP and CS on the stack");
        let mut m = Machine::new(asm_code!(".code32", "push 0x780200", ".byte 0x66, 0xcb"));
        m.set(0, segment(CODE, 0xffff, READABLE) | BIG);
        let out = m.run();
        out.done("retf");
        check_eq!((out.regs.cs, out.regs.eip, out.regs.esp), (FREE, TARGET, esp), "CS:EIP and ESP");
    }
);

/// At CPL 0 a far return, to CPL 3 at an HLT, on a stack of which FREE | 3 is the SS.
fn retf_outward() -> (&'static str, u32, Machine) {
    let code = asm_code!(".code32", "push eax", "push ecx", "push edx", "push ebx", "retf", "hlt");
    ("retf", 4, outward(code, 5))
}

/// The same by IRET.
fn iret_outward() -> (&'static str, u32, Machine) {
    let code = asm_code!(
        ".code32", "push eax", "push ecx", "push 2", "push edx", "push ebx", "iretd", "hlt"
    );
    ("iret", 6, outward(code, 7))
}

fn outward(code: &[u8], hlt: u32) -> Machine {
    let mut m = Machine::new(code);
    m.regs.eax = FREE | 3;
    m.regs.ecx = OUTER_STACK + 0x400;
    m.regs.edx = OUTER_CODE;
    m.regs.ebx = CODE + hlt;
    m.set(0, flat(WRITABLE | DPL3));
    m
}

test!(outward_stack, "RETF and IRET to an outer CPL pop SS:ESP too, and check SS.", || {
    for make in [retf_outward, iret_outward] {
        let (name, at, mut m) = make();
        let out = m.run();
        out.faults(GP, 0, at + 1, "hlt");
        let r = out.regs;
        check_eq!((r.cs, r.ss), (OUTER_CODE, FREE | 3), "CS and SS after {name}");
        check_eq!(r.esp, OUTER_STACK + 0x400, "ESP after {name}");
        for (what, selector, descriptor, error) in [
            ("a null SS", 3, 0, 0),
            ("an SS of RPL 0", FREE, flat(WRITABLE | DPL3), FREE),
            ("an SS of DPL 0", FREE | 3, flat(WRITABLE), FREE),
            ("a read-only SS", FREE | 3, flat(table::READ_ONLY | DPL3), FREE),
        ] {
            m.set(0, descriptor);
            m.regs.eax = selector;
            let out = m.run();
            out.faults(GP, error, at, what);
            check_eq!((out.regs.cs, out.regs.ss), (CODE32, DATA32), "CS and SS: {name}, {what}");
        }
    }
});

test!(retf_absent_stack, "RETF to an outer CPL with an absent SS is #SS(selector).", || {
    let (name, at, mut m) = retf_outward();
    m.set(0, flat((WRITABLE | DPL3) & !PRESENT));
    m.run().faults(SS, FREE, at, name);
});

test!(iret_same, "IRET at CPL 0 loads EFLAGS, IOPL and AC with it.", || {
    let mut m = Machine::new(code32!(
        "push ecx",
        "push 0x30",
        "push ebx",
        "iretd",
        "pushfd",
        "pop edx",
        "push 2",
        "popfd"
    ));
    m.regs.ebx = CODE + 5;
    // CF, AF, ZF, SF, OF, IOPL and AC.
    m.regs.ecx = (2 | reg::FLAG_CF | reg::FLAG_AC | 3 << 12 | 0x8d0) as u32;
    let out = m.run();
    out.done("iret");
    check_eq!(out.regs.edx, m.regs.ecx, "EFLAGS");
});

// SDM volume 2, IRET: IOPL only at CPL 0, IF only if CPL <= IOPL; VM only at CPL 0.
test!(iret_outer, "IRET at CPL 3 changes neither IOPL, nor IF, nor VM.", || {
    let code = asm_code!(".code32", "push ecx", "push 0x1b", "push ebx", "iretd", "hlt");
    let mut m = Machine::outer(code);
    m.regs.ebx = CODE + 5;
    m.regs.ecx = 3 | FLAG_VM | 3 << 12 | reg::FLAG_IF as u32;
    let out = m.run();
    out.faults(GP, 0, 5, "hlt");
    check_eq!(out.regs.eflags & 0xfff_ffff & !(1 << 16), 3, "EFLAGS");
    // Inward it does not go at all.
    let mut m = Machine::outer(asm_code!(".code32", "push 2", "push 0x30", "push ebx", "iretd"));
    m.regs.ebx = CODE;
    m.run().faults(GP, CODE32, 5, "iret to CPL 0");
});
