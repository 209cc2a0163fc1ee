//! Limits in protected mode (Intel SDM volume 3, 6.3; AMD APM volume 2, 4.12).

use crate::{get, put};
use payload_rt::legacy::table::{
    self, ACCESSED, BIG, DPL3, EXPAND_DOWN, PAGES, READABLE, WRITABLE, segment,
};
use payload_rt::legacy::{CODE, DATA, Machine, OUTER_STACK};
use payload_rt::trap::{GP, SS};
use payload_rt::{check_eq, code16, code32, test};

/// Accesses of 1, 2, 4 and 8 bytes at EBX.
fn accesses() -> [(u32, &'static str, &'static [u8]); 7] {
    [
        (1, "byte read", code32!("mov al, [ebx]")),
        (2, "word read", code32!("mov ax, [ebx]")),
        (4, "dword read", code32!("mov eax, [ebx]")),
        (1, "byte write", code32!("mov [ebx], al")),
        (2, "word write", code32!("mov [ebx], ax")),
        (4, "dword write", code32!("mov [ebx], eax")),
        (8, "qword read and write", code32!("cmpxchg8b [ebx]")),
    ]
}

/// Checks an access of each size in the segment that DS is, at its last place and one byte further on.
fn edges(descriptor: u64, last: u32) {
    for (size, what, code) in accesses() {
        let mut m = Machine::new(code);
        m.regs.ds = m.set(0, descriptor);
        m.regs.ebx = last - (size - 1);
        m.run().done(what);
        m.regs.ebx += 1;
        m.run().faults(GP, 0, 0, what);
    }
}

test!(up, "In an expand-up segment accesses end at the limit: one byte more is #GP(0).", || {
    edges(segment(DATA, 0x1234, WRITABLE) | BIG, 0x1234);
});

test!(up_pages, "With G the limit counts in pages, and its low 12 bits are ones.", || {
    edges(segment(DATA, 1, WRITABLE) | BIG | PAGES, 0x1fff);
});

test!(up_16, "B does not matter for the limit of an expand-up data segment.", || {
    edges(segment(DATA, 0x1234, WRITABLE), 0x1234);
    edges(segment(DATA, 0x1_8000, WRITABLE), 0x1_8000);
});

test!(one_byte, "A segment with limit 0 has one byte, and no word.", || {
    let mut m = Machine::new(code32!("mov al, [ebx]", "mov ax, [ebx]"));
    m.regs.ds = m.set(0, segment(DATA, 0, WRITABLE) | BIG);
    put(DATA, 0x5a_u8);
    let out = m.run();
    out.faults(GP, 0, 2, "word at 0");
    check_eq!(out.regs.eax, 0x5a, "EAX");
});

test!(stack_segment, "Beyond the limit of SS it is #SS(0), by EBP and by an override.", || {
    for (what, code) in [
        ("by ebp", code32!("mov al, [ebp - 1]", "mov eax, [ebp]")),
        ("by override", code32!("mov al, ss:[ebx - 1]", "mov eax, ss:[ebx]")),
        ("written", code32!("mov [ebp - 1], al", "mov [ebp], eax")),
    ] {
        let mut m = Machine::new(code);
        m.regs.ss = m.set(0, segment(0, 0x58, WRITABLE) | BIG | PAGES);
        m.regs.esp = 0x5_8000;
        (m.regs.ebx, m.regs.ebp) = (0x5_8ffd, 0x5_8ffd);
        let out = m.run();
        let at = out.regs.eip - CODE;
        out.raises(SS, 0, what);
        check_eq!(at != 0, true, "the first access went on, {what}");
    }
    // DS and SS by what the instruction says, not by what lies below.
    let mut m = Machine::new(code32!("mov eax, ds:[ebp]"));
    m.regs.ds = m.set(0, segment(DATA, 0xfff, WRITABLE) | BIG);
    m.regs.ebp = 0xffd;
    m.run().faults(GP, 0, 0, "DS by an override, with EBP");
});

test!(base_wraps, "Base plus offset wraps at 4 GiB.", || {
    let mut m = Machine::new(code32!("mov eax, [ebx]"));
    m.regs.ds = m.set(0, segment(0xffff_f000, 0xf_ffff, WRITABLE) | BIG | PAGES);
    m.regs.ebx = DATA + 0x1000;
    put(DATA, 0x7e57_ab1e_u32);
    check_eq!(m.run().done("read behind the wrap").regs.eax, 0x7e57_ab1e, "EAX");
});

test!(
    down,
    "In an expand-down segment all up to the limit is #GP(0), B says where it ends.",
    || {
        let limit = 0xfff;
        for (size, what, code) in accesses() {
            let mut m = Machine::new(code);
            m.regs.ds = m.set(0, segment(DATA, limit, EXPAND_DOWN) | BIG);
            for bad in [0, 1, limit - 1, limit] {
                m.regs.ebx = bad;
                m.run().faults(GP, 0, 0, what);
            }
            m.regs.ebx = limit + 1;
            m.run().done(what);
            // Far up, which is low memory again.
            m.regs.ds = m.set(0, segment(DATA.wrapping_sub(0x9000_0000), limit, EXPAND_DOWN) | BIG);
            m.regs.ebx = 0x9000_0000;
            m.run().done(what);
            // Without B the end is 0xffff.
            m.regs.ds = m.set(0, segment(DATA, limit, EXPAND_DOWN));
            m.regs.ebx = 0xffff - (size - 1);
            m.run().done(what);
            for bad in [0x1_0000 - (size - 1), 0x1_0000, limit] {
                m.regs.ebx = bad;
                m.run().faults(GP, 0, 0, what);
            }
        }
    }
);

test!(down_pages, "With G the limit of an expand-down segment counts in pages.", || {
    let mut m = Machine::new(code32!("mov al, [ebx]"));
    m.regs.ds = m.set(0, segment(DATA, 1, EXPAND_DOWN) | BIG | PAGES);
    m.regs.ebx = 0x1fff;
    m.run().faults(GP, 0, 0, "the last byte up to the limit");
    m.regs.ebx = 0x2000;
    m.run().done("the first byte above the limit");
});

test!(down_stack, "Below an expand-down stack segment it is #SS(0).", || {
    let mut m = Machine::new(code32!("mov al, [ebp]"));
    m.regs.ss = m.set(0, segment(0, 0x4f, EXPAND_DOWN) | BIG | PAGES);
    m.regs.ebp = 0x5_0000;
    m.run().done("the first byte above the limit");
    m.regs.ebp = 0x4_ffff;
    m.run().faults(SS, 0, 0, "the last byte up to the limit");
});

test!(fetch, "Execution that leaves CS's limit is #GP(0), where the instruction starts.", || {
    // Two nops and `mov eax, 0x12345678`, of which the limit leaves less and less.
    let code = code32!("nop", "nop", "mov eax, 0x12345678");
    for (limit, at) in [(0_u32, 1), (1, 2), (2, 2), (5, 2)] {
        let mut m = Machine::new(code);
        m.regs.cs = m.set(0, segment(CODE, limit, READABLE) | BIG);
        m.regs.eip = 0;
        let out = m.run();
        out.raises(GP, 0, "over the limit of CS");
        check_eq!(out.regs.eip, at, "EIP with limit {limit}");
        check_eq!(out.regs.eax, 0, "EAX with limit {limit}");
    }
    let mut m = Machine::new(code);
    m.regs.cs = m.set(0, segment(CODE, 8, READABLE) | BIG);
    m.regs.eip = 0;
    let out = m.run();
    out.done("all within the limit");
    check_eq!(out.regs.eax, 0x1234_5678, "EAX");
});

test!(near_jumps, "A near JMP, CALL or RET beyond CS's limit is #GP(0) of its own.", || {
    for (what, at, code) in [
        ("jmp", 0, code32!("jmp ebx")),
        ("call", 0, code32!("call ebx")),
        ("ret", 1, code32!("push ebx", "ret")),
        ("jmp rel32", 0, code32!(".byte 0xe9", ".long 0x1000")),
        ("call rel32", 0, code32!(".byte 0xe8", ".long 0x1000")),
    ] {
        let mut m = Machine::new(code);
        m.regs.cs = m.set(0, segment(CODE, 0xfff, READABLE) | BIG);
        m.regs.eip = 0;
        m.regs.ebx = 0x1000;
        let esp = m.regs.esp - if what == "ret" { 4 } else { 0 };
        let out = m.run();
        out.faults(GP, 0, at, what);
        check_eq!(out.regs.esp, esp, "ESP after {what}");
    }
});

test!(
    write_protected,
    "Writes to read-only data and to code are #GP(0), and reads are not.",
    || {
        let code = code32!("mov al, [ebx]", "mov [ebx], al");
        for access in [table::READ_ONLY, READABLE, table::CONFORMING] {
            let mut m = Machine::new(code);
            m.regs.ds = m.set(0, segment(DATA, 0xffff, access) | BIG);
            put(DATA, 0x3c_u8);
            let out = m.run();
            out.faults(GP, 0, 2, "a write");
            check_eq!(out.regs.eax, 0x3c, "AL, access byte {access:#x}");
        }
        // An expand-down one, above its limit.
        let mut m = Machine::new(code);
        m.regs.ds = m.set(0, segment(DATA, 0xfff, EXPAND_DOWN & !2) | BIG);
        m.regs.ebx = 0x1000;
        m.run().faults(GP, 0, 2, "a write to read-only expand-down data");
        let mut m = Machine::new(code32!("mov al, cs:[ebx]", "mov cs:[ebx], al"));
        m.regs.ebx = DATA;
        m.run().faults(GP, 0, 3, "a write through CS");
    }
);

test!(execute_only, "A read through an execute-only CS is #GP(0).", || {
    let mut m = Machine::new(code32!("nop", "mov al, cs:[ebx]"));
    m.regs.cs = m.set(0, table::flat(table::EXECUTE_ONLY));
    m.regs.ebx = DATA;
    m.run().faults(GP, 0, 1, "a read through CS");
});

// SDM volume 2, PUSH, CALL, ENTER and POP: "#SS(0) If the new value of the SP or ESP register is outside
// the stack segment limit".
test!(
    stack_limit,
    "PUSH, CALL, PUSHA, POP and RET beyond SS's limit are #SS(0), ESP stays.",
    || {
        for (what, esp, code) in [
            ("push", 2, code32!("push eax")),
            ("call", 3, code32!("call ebx")),
            ("pusha", 0x1f, code32!("pushad")),
            ("pushf", 0, code32!("pushfd")),
            ("pop", 0xffd, code32!("pop eax")),
            ("popa", 0xfe2, code32!("popad")),
            ("ret", 0x1000, code32!("ret")),
            ("leave", 0x800, code32!("leave")),
            ("push to the end", 0x1004, code32!("push eax")),
        ] {
            let mut m = Machine::outer(code);
            m.regs.ss = m.set(0, segment(OUTER_STACK, 0xfff, WRITABLE | DPL3) | BIG) | 3;
            m.regs.esp = esp;
            m.regs.ebp = 0xffe;
            m.regs.ebx = CODE;
            let out = m.run();
            out.faults(SS, 0, 0, what);
            check_eq!(out.regs.esp, esp, "ESP after {what}");
        }
    }
);

test!(stack_16, "With a 16-bit stack segment SP counts, and the upper half of ESP stays.", || {
    let mut m = Machine::new(code32!("push eax", "pop ecx"));
    m.regs.ss = m.set(0, segment(OUTER_STACK, 0xffff, WRITABLE));
    m.regs.eax = 0xabcd_1234;
    m.regs.esp = 0x4000;
    let out = m.run();
    out.done("push and pop");
    check_eq!(out.regs.ecx, 0xabcd_1234, "ECX");
    // SP wraps around where ESP would not.
    let mut m =
        Machine::new(code32!("mov esp, 0x12340000", "push eax", "mov edx, esp", "mov esp, 0x4000"));
    m.regs.ss = m.set(0, segment(OUTER_STACK, 0xffff, WRITABLE));
    m.regs.esp = 0x4000;
    m.regs.eax = 0x1357_9bdf;
    let out = m.run();
    out.done("push at SP 0");
    check_eq!(out.regs.edx, 0x1234_fffc, "ESP");
    check_eq!(get::<u32>(OUTER_STACK + 0xfffc), 0x1357_9bdf, "what was pushed");
});

test!(limits_16, "16-bit protected mode keeps to limits with 16- and 32-bit addresses.", || {
    for (what, at, code) in [
        ("bx", 3, code16!("mov al, [bx - 1]", "mov ax, [bx]")),
        ("ebx", 4, code16!("mov al, [ebx - 1]", "mov ax, [ebx]")),
        ("bp with an override", 4, code16!("mov al, ds:[bp - 1]", "mov ax, ds:[bp]")),
    ] {
        let mut m = Machine::new16(code);
        m.regs.ds = m.set(0, segment(DATA, 0x1fff, WRITABLE & !ACCESSED));
        (m.regs.ebx, m.regs.ebp) = (0x1fff, 0x1fff);
        m.run().faults(GP, 0, at, what);
    }
    // An address of 16 bits wraps within the segment.
    let mut m = Machine::new16(code16!("mov ax, [bx + si]", "mov ax, [ebx + esi]"));
    (m.regs.ebx, m.regs.esi) = (0xfffe, 4);
    put(DATA + 2, 0x4321_u16);
    let out = m.run();
    out.faults(GP, 0, 2, "offset 0x10002");
    check_eq!(out.regs.eax, 0x4321, "AX");
});
