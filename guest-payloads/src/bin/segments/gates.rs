//! Call gates, interrupt gates and trap gates in legacy mode (Intel SDM volume 3, 6.8.3 to 6.8.6, 7.12, 7.13;
//! AMD APM volume 2, 4.11.2, 8.7).

use crate::{get, put};
use payload_rt::legacy::table::{
    self, CALL_GATE16, CALL_GATE32, CONFORMING, DPL3, INTERRUPT_GATE16, INTERRUPT_GATE32, PRESENT,
    READABLE, TRAP_GATE16, TRAP_GATE32, Tss, WRITABLE, flat, gate, segment, tss32,
};
use payload_rt::legacy::{
    CODE, CODE16, CODE32, DATA32, FREE, Machine, OTHER, OUTER_CODE, OUTER_DATA, OUTER_STACK, STACK,
    TOP, TSS, TSS_SELECTOR,
};
use payload_rt::trap::{GP, NP, SS, TS, UD};
use payload_rt::{asm_code, check, check_eq, code16, code32, cpuid, reg, test};

/// Where gates lead.
const TARGET: u32 = CODE + 0x200;

/// Puts code where gates lead.
fn target(code: &[u8]) {
    for (i, &byte) in code.iter().enumerate() {
        put(TARGET + i as u32, byte);
    }
}

/// Far CALL and JMP through selector 0x7b: the first free one with RPL 3.
fn calls() -> [(&'static str, &'static [u8]); 2] {
    [
        ("call", asm_code!(".code32", ".byte 0x9a", ".long 0xdeadbeef", ".word 0x7b", "hlt")),
        ("jmp", asm_code!(".code32", ".byte 0xea", ".long 0xdeadbeef", ".word 0x7b", "hlt")),
    ]
}

test!(
    call_same,
    "A call gate to code of the same CPL keeps the stack and ignores the offset.",
    || {
        for (name, code) in calls() {
            let mut m = Machine::new(code);
            target(code32!("mov eax, 1"));
            m.set(0, gate(CODE32, TARGET, CALL_GATE32 | DPL3, 5));
            let esp = m.regs.esp;
            let out = m.run();
            out.done(name);
            check_eq!(out.regs.cs, CODE32, "CS");
            if name == "call" {
                check_eq!(out.regs.esp, esp - 8, "ESP: no parameters are copied");
                check_eq!(get::<u32>(esp - 8), CODE + 7, "EIP on the stack");
                check_eq!(get::<u16>(esp - 4), CODE32 as u16, "CS on the stack");
            } else {
                check_eq!(out.regs.esp, esp, "ESP");
            }
        }
    }
);

test!(
    call_inward,
    "A call gate from CPL 3 switches to SS0:ESP0 and copies its parameters.",
    || {
        let [(_, code), _] = calls();
        for count in [0, 1, 3, 31] {
            let mut m = Machine::outer(code);
            target(code32!("nop"));
            m.set(0, gate(CODE32, TARGET, CALL_GATE32 | DPL3, count));
            let count = count as u32;
            m.regs.esp = OUTER_STACK + TOP - 0x100;
            for i in 0..count {
                put(m.regs.esp + 4 * i, 0x2000 + i);
            }
            let out = m.run();
            out.done("call");
            let esp = STACK + TOP - 16 - 4 * count;
            check_eq!((out.regs.cs, out.regs.ss), (CODE32, DATA32), "CS and SS");
            check_eq!(out.regs.esp, esp, "ESP with {count} parameters");
            check_eq!(get::<u32>(esp), CODE + 7, "EIP on the stack");
            check_eq!(get::<u16>(esp + 4), OUTER_CODE as u16, "CS on the stack");
            for i in 0..count {
                check_eq!(get::<u32>(esp + 8 + 4 * i), 0x2000 + i, "parameter {i} of {count}");
            }
            check_eq!(get::<u32>(esp + 8 + 4 * count), m.regs.esp, "ESP on the stack");
            check_eq!(get::<u16>(esp + 12 + 4 * count), OUTER_DATA as u16, "SS on the stack");
        }
    }
);

test!(
    call_and_return,
    "RETF n from behind a call gate takes its parameters off both stacks.",
    || {
        let mut m = Machine::outer(asm_code!(
            ".code32",
            "push 7",
            "push 8",
            ".byte 0x9a",
            ".long 0",
            ".word 0x7b",
            "hlt"
        ));
        target(asm_code!(".code32", "mov eax, [esp + 8]", "mov ecx, [esp + 12]", "retf 8"));
        m.set(0, gate(CODE32, TARGET, CALL_GATE32 | DPL3, 2));
        let out = m.run();
        out.faults(GP, 0, 11, "hlt");
        check_eq!((out.regs.eax, out.regs.ecx), (8, 7), "parameters");
        check_eq!((out.regs.cs, out.regs.ss), (OUTER_CODE, OUTER_DATA), "CS and SS");
        check_eq!(out.regs.esp, m.regs.esp, "ESP");
    }
);

test!(call_16, "A 16-bit call gate pushes and copies words.", || {
    let [(_, code), _] = calls();
    let mut m = Machine::outer(code);
    target(code16!("nop"));
    m.regs.esp = OUTER_STACK + 0x100;
    put(m.regs.esp, 0x1111_2222_u32);
    m.set(0, gate(CODE16, 0x200, CALL_GATE16 | DPL3, 2));
    let out = m.run();
    out.done("call");
    check_eq!((out.regs.cs, out.regs.ss), (CODE16, DATA32), "CS and SS");
    let esp = STACK + TOP - 12;
    check_eq!(out.regs.esp, esp, "ESP");
    let words: [u16; 6] = core::array::from_fn(|i| get(esp + 2 * i as u32));
    let (low, outer) = (m.regs.esp as u16, OUTER_DATA as u16);
    check_eq!(words, [7, OUTER_CODE as u16, 0x2222, 0x1111, low, outer], "the stack");
});

// SDM volume 2, CALL: the checks of the gate, then of the code segment.
test!(call_bad, "A call gate's DPL, presence and code segment are checked, in this order.", || {
    for (name, code) in calls() {
        let absent = !PRESENT;
        for (what, gate, vector, error) in [
            ("a gate of DPL 2", gate(CODE32, TARGET, CALL_GATE32 | 0x40, 0), GP, FREE),
            ("an absent gate", gate(CODE32, TARGET, (CALL_GATE32 | DPL3) & absent, 0), NP, FREE),
            ("an absent gate of DPL 0", gate(CODE32, TARGET, CALL_GATE32 & absent, 0), GP, FREE),
            ("a gate to null", gate(0, TARGET, CALL_GATE32 | DPL3, 0), GP, 0),
            ("a gate beyond the GDT", gate(0x7f8, TARGET, CALL_GATE32 | DPL3, 0), GP, 0x7f8),
            ("a gate to data", gate(DATA32, TARGET, CALL_GATE32 | DPL3, 0), GP, DATA32),
        ] {
            let mut m = Machine::outer(code);
            m.set(0, gate);
            let out = m.run();
            out.faults(vector, error, 0, what);
            check_eq!(out.regs.cs, OUTER_CODE, "CS after {name} through {what}");
        }
    }
    // RPL counts too, at CPL 0.
    let [(_, code), _] = calls();
    let mut m = Machine::new(code);
    m.set(0, gate(CODE32, TARGET, CALL_GATE32, 0));
    m.run().faults(GP, FREE, 0, "RPL 3 for a gate of DPL 0");
});

/// Checks a transfer through a gate to code that is not present.
fn check_absent_code((name, code): (&str, &[u8])) {
    let mut m = Machine::outer(code);
    m.set(0, gate(FREE + 8, TARGET, CALL_GATE32 | DPL3, 0));
    m.set(1, flat((READABLE | DPL3) & !PRESENT));
    m.run().faults(NP, FREE + 8, 0, name);
}

test!(call_absent, "CALL through a gate to absent code is #NP(selector of the code).", || {
    check_absent_code(calls()[0]);
});

test!(jmp_absent, "JMP through a call gate to absent code is #NP(selector of the code).", || {
    check_absent_code(calls()[1]);
});

test!(call_limit, "A call gate that leads beyond its segment's limit is #GP(0).", || {
    for (name, code) in calls() {
        let mut m = Machine::outer(code);
        m.set(0, gate(FREE + 8, 0x1000, CALL_GATE32 | DPL3, 0));
        m.set(1, segment(CODE, 0xfff, READABLE | DPL3) | table::BIG);
        m.run().faults(GP, 0, 0, name);
    }
});

test!(
    jmp_inward,
    "JMP through a call gate does not change CPL, unless the code is conforming.",
    || {
        let [_, (_, code)] = calls();
        let mut m = Machine::outer(code);
        m.set(0, gate(CODE32, TARGET, CALL_GATE32 | DPL3, 0));
        m.run().faults(GP, CODE32, 0, "to code of DPL 0");
        target(asm_code!(".code32", "hlt"));
        m.set(0, gate(FREE + 8, TARGET, CALL_GATE32 | DPL3, 0));
        m.set(1, flat(CONFORMING));
        let out = m.run();
        out.faults(GP, 0, 0x200, "hlt in conforming code");
        check_eq!(out.regs.cs, (FREE + 8) | 3, "CS");
    }
);

/// A machine with a call gate to CPL 1 (so that a fault on the way finds the stack of CPL 0), with this SS1;
/// the third free descriptor is `descriptor`.
fn to_cpl_1(code: &[u8], ss: u32, descriptor: u64) -> Machine {
    let mut m = Machine::outer(code);
    m.set(0, gate(FREE + 8, TARGET, CALL_GATE32 | DPL3, 0));
    m.set(1, flat(READABLE | 0x20));
    m.set(2, descriptor);
    Tss::FIRST.set(tss32::ESP1, OTHER + TOP);
    Tss::FIRST.set(tss32::SS1, ss);
    m
}

test!(
    call_stack_absent,
    "An absent stack segment in the TSS is #SS(selector) behind a call gate.",
    || {
        let [(_, code), _] = calls();
        let absent = flat((WRITABLE | 0x20) & !PRESENT);
        to_cpl_1(code, (FREE + 16) | 1, absent).run().faults(SS, FREE + 16, 0, "an absent SS1");
    }
);

test!(
    call_stack,
    "The stack segment that a call gate takes from the TSS is checked: else #TS.",
    || {
        let [(_, code), _] = calls();
        for (what, ss, descriptor, error) in [
            ("null", 0, 0, 0),
            ("of RPL 0", FREE + 16, flat(WRITABLE | 0x20), FREE + 16),
            ("of DPL 0", (FREE + 16) | 1, flat(WRITABLE), FREE + 16),
            ("read-only", (FREE + 16) | 1, flat(table::READ_ONLY | 0x20), FREE + 16),
            ("code", (FREE + 16) | 1, flat(READABLE | 0x20), FREE + 16),
            ("beyond the GDT", 0x7f9, 0, 0x7f8),
        ] {
            let mut m = to_cpl_1(code, ss, descriptor);
            let out = m.run();
            out.faults(TS, error, 0, what);
            check_eq!((out.regs.cs, out.regs.ss), (OUTER_CODE, OUTER_DATA), "CS and SS, {what}");
            check_eq!(out.regs.esp, m.regs.esp, "ESP, {what}");
        }
        // A good one arrives there.
        let ss = (FREE + 16) | 1;
        let mut m = to_cpl_1(code, ss, flat(WRITABLE | 0x20));
        target(asm_code!(".code32", "hlt"));
        let out = m.run();
        out.faults(GP, 0, 0x200, "hlt at CPL 1");
        let r = out.regs;
        check_eq!((r.cs, r.ss, r.esp), ((FREE + 8) | 1, ss, OTHER + TOP - 16), "CS, SS, ESP");
    }
);

test!(call_tss_limit, "A stack beyond the TSS's limit is #TS that names the TSS.", || {
    let [(_, code), _] = calls();
    let mut m = Machine::outer(code);
    m.set(0, gate(FREE + 8, TARGET, CALL_GATE32 | DPL3, 0));
    m.set(1, flat(READABLE | 0x20));
    // ESP1 and SS1 lie at 12 to 17.
    m.set_at(TSS_SELECTOR, segment(TSS, 16, table::TSS32));
    m.run().faults(TS, TSS_SELECTOR, 0, "SS1 cut off");
});

test!(
    int_gates,
    "INT n through 32-bit gates: an interrupt gate clears IF, a trap gate keeps it.",
    || {
        for (access, keeps) in [(INTERRUPT_GATE32, false), (TRAP_GATE32, true)] {
            let mut m = Machine::new(asm_code!(".code32", "sti", "int 0x50"));
            target(code32!("pushfd", "pop eax", "cli"));
            m.gate(0x50, gate(CODE32, TARGET, access, 0));
            m.regs.eflags |= (reg::FLAG_CF | 1 << 14) as u32;
            let esp = m.regs.esp;
            let out = m.run();
            out.done("int 0x50");
            check_eq!(out.regs.eax & reg::FLAG_IF as u32 != 0, keeps, "IF in the handler");
            check_eq!(out.regs.eax & 1 << 14, 0, "NT in the handler");
            check_eq!(out.regs.esp, esp - 12, "ESP");
            check_eq!(get::<u32>(esp - 12), CODE + 3, "EIP on the stack");
            check_eq!(get::<u32>(esp - 8) & 0xffff, CODE32, "CS on the stack");
            let flags = (2 | reg::FLAG_CF | reg::FLAG_IF | 1 << 14) as u32;
            check_eq!(get::<u32>(esp - 4), flags, "EFLAGS on the stack");
        }
    }
);

test!(int_gates_16, "INT n through 16-bit gates pushes words, and a 16-bit IRET returns.", || {
    for access in [INTERRUPT_GATE16, TRAP_GATE16] {
        let mut m = Machine::new16(code16!("stc", "int 0x50", "mov cx, 1"));
        for (i, &byte) in
            asm_code!(".code16", "mov bp, sp", "mov eax, [bp]", "mov dx, [bp + 4]", "iret")
                .iter()
                .enumerate()
        {
            put(TARGET + i as u32, byte);
        }
        m.gate(0x50, gate(CODE16, 0x200, access, 0));
        let out = m.run();
        out.done("int 0x50");
        check_eq!(out.regs.eax, CODE16 << 16 | 3, "CS:IP on the stack");
        check_eq!(out.regs.edx & 0xffff, 3, "FLAGS on the stack");
        check_eq!((out.regs.ecx, out.regs.esp), (1, TOP), "ECX and ESP");
    }
});

test!(int_inward, "INT n at CPL 3 goes to SS0:ESP0 with the outer SS:ESP on the stack.", || {
    let mut m = Machine::outer(asm_code!(".code32", "int 0x50"));
    m.stub(0x50, 3);
    let out = m.run();
    out.raises(0x50, 0, "int 0x50");
    check_eq!(out.regs.eip, CODE + 2, "EIP");
    check_eq!((out.regs.cs, out.regs.ss), (OUTER_CODE, OUTER_DATA), "CS and SS");
    check_eq!(out.regs.esp, m.regs.esp, "ESP");
    check_eq!(out.inner, (DATA32, STACK + TOP), "the handler's stack");
});

/// The error code for an IDT entry.
const fn entry(vector: u32) -> u32 {
    vector << 3 | 2
}

// SDM volume 2, INT n; volume 3, 7.13: software interrupts have EXT clear.
test!(int_absent, "INT n through an absent gate or to absent code is #NP that names it.", || {
    let mut m = Machine::outer(asm_code!(".code32", "int 0x50"));
    m.gate(0x50, gate(CODE32, TARGET, (INTERRUPT_GATE32 | DPL3) & !PRESENT, 0));
    m.run().faults(NP, entry(0x50), 0, "an absent gate");
    m.gate(0x50, gate(FREE, TARGET, INTERRUPT_GATE32 | DPL3, 0));
    m.set(0, flat(READABLE & !PRESENT));
    m.run().faults(NP, FREE, 0, "a gate to absent code");
});

test!(int_bad, "INT n through a bad gate is #GP that names the gate or its segment.", || {
    for (what, gate, error) in [
        ("a gate of DPL 2", gate(CODE32, TARGET, INTERRUPT_GATE32 | 0x40, 0), entry(0x50)),
        ("a call gate", gate(CODE32, TARGET, CALL_GATE32 | DPL3, 0), entry(0x50)),
        ("a segment", flat(READABLE | DPL3), entry(0x50)),
        ("a gate to null", gate(0, TARGET, INTERRUPT_GATE32 | DPL3, 0), 0),
        ("a gate to data", gate(DATA32, TARGET, INTERRUPT_GATE32 | DPL3, 0), DATA32),
        ("a gate beyond the GDT", gate(0x7f8, 0, INTERRUPT_GATE32 | DPL3, 0), 0x7f8),
    ] {
        let mut m = Machine::outer(asm_code!(".code32", "int 0x50"));
        m.gate(0x50, gate);
        m.run().faults(GP, error, 0, what);
    }
    let mut m = Machine::outer(asm_code!(".code32", "int 0x50"));
    m.idt_limit = 0x50 * 8 + 6;
    m.stub(0x50, 3);
    m.run().faults(GP, entry(0x50), 0, "a gate beyond the limit");
    m.idt_limit += 1;
    m.run().raises(0x50, 0, "a gate just within the limit");
});

// SDM volume 3, 7.13: EXT is set for what came on the way of an event that is no INT n; AMD's manual
// (volume 2, 8.4.1) has it for external events alone.
test!(exception_bad, "A fault through a bad gate names the gate, with EXT on Intel.", || {
    let ext = u32::from(&cpuid::signature(0) == b"GenuineIntel");
    for (what, gate, vector, error) in [
        ("an absent gate", gate(CODE32, TARGET, INTERRUPT_GATE32 & !PRESENT, 0), NP, entry(6)),
        ("a call gate", gate(CODE32, TARGET, CALL_GATE32, 0), GP, entry(6)),
        ("a gate to null", gate(0, TARGET, INTERRUPT_GATE32, 0), GP, 0),
        ("a gate to data", gate(DATA32, TARGET, INTERRUPT_GATE32, 0), GP, DATA32),
    ] {
        let mut m = Machine::new(code32!("nop"));
        m.gate(UD, gate);
        let out = m.run();
        let seen = if ext == 1 { out.error } else { out.error & !1 };
        check!(
            (out.vector, seen) == (vector, error | ext),
            "{what}: vector {} with error {:#x}",
            out.vector,
            out.error
        );
        check_eq!(out.regs.eip, CODE + 1, "EIP, {what}");
    }
});
