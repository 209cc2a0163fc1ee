//! Instructions that look at segments without loading them (Intel SDM volume 3, 6.10; volume 2, LAR, LSL,
//! VERR, ARPL, SGDT, SLDT, STR, SMSW; AMD APM volume 2, 4.11.5).

use crate::{get, put};
use payload_rt::legacy::table::{self, BIG, DPL3, PAGES, PRESENT, WRITABLE, flat, segment};
use payload_rt::legacy::{
    DATA, FREE, GDT, IDT, LDT_SELECTOR, Machine, OUTER_CODE, OUTER_DATA, TSS_SELECTOR,
};
use payload_rt::trap::GP;
use payload_rt::{asm_code, check_eq, code16, code32, test};

const ZF: u32 = 1 << 6;

/// What LAR, LSL, VERR and VERW of AX say of it: the value of LAR and of LSL, and the two answers.
fn looks(m: &mut Machine, selector: u32) -> (Option<u32>, Option<u32>, bool, bool) {
    m.code(code32!(
        "lar ebx, eax",
        "setz cl",
        "lsl edx, eax",
        "setz ch",
        "verr ax",
        "setz al",
        "movzx esi, al",
        "mov eax, edi",
        "verw ax",
        "setz al",
        "movzx edi, al"
    ));
    m.regs.eax = selector;
    m.regs.edi = selector;
    (m.regs.ebx, m.regs.edx, m.regs.ecx) = (0x1bad_1bad, 0x2bad_2bad, 0);
    let out = m.run();
    out.done("lar, lsl, verr, verw");
    let r = out.regs;
    let lar = (r.ecx & 0xff != 0).then_some(r.ebx);
    let lsl = (r.ecx & 0xff00 != 0).then_some(r.edx);
    if lar.is_none() {
        check_eq!(r.ebx, 0x1bad_1bad, "the register of a refused LAR");
    }
    if lsl.is_none() {
        check_eq!(r.edx, 0x2bad_2bad, "the register of a refused LSL");
    }
    (lar, lsl, r.esi != 0, r.edi != 0)
}

// SDM volume 2, tables 3-51 and 3-63: the types that LAR and LSL tell of.
test!(looks_types, "LAR, LSL, VERR and VERW tell of those types that they are for.", || {
    let mut m = Machine::new(code32!("nop"));
    for kind in 0..32_u64 {
        m.set(0, segment(DATA, 0x1_2345, PRESENT | kind) | BIG);
        let (lar, lsl, verr, verw) = looks(&mut m, FREE);
        let memory = kind & 0x10 != 0;
        let rights = (0x40_8000 | (kind as u32) << 8) | 0x1_0000;
        let lar_knows = memory || matches!(kind, 1..=5 | 9 | 11 | 12);
        // Bits 16 to 19 of LAR's answer are undefined: they are the limit's.
        check_eq!(
            lar.map(|v| v & !0xf_0000),
            lar_knows.then_some(rights & !0xf_0000),
            "LAR of type {kind:#x}"
        );
        let lsl_knows = memory || matches!(kind, 1..=3 | 9 | 11);
        check_eq!(lsl, lsl_knows.then_some(0x1_2345), "LSL of type {kind:#x}");
        check_eq!(verr, memory && (kind & 8 == 0 || kind & 2 != 0), "VERR of type {kind:#x}");
        check_eq!(verw, memory && kind & 0xa == 2, "VERW of type {kind:#x}");
    }
});

test!(
    looks_absent,
    "LAR and LSL tell of absent segments; VERR and VERW too; not of what is not there.",
    || {
        let mut m = Machine::new(code32!("nop"));
        m.set(0, segment(0, 1, WRITABLE & !PRESENT) | BIG | PAGES);
        let (lar, lsl, ..) = looks(&mut m, FREE);
        check_eq!(lar.map(|v| v & 0xf0_ff00), Some(0xc0_1300), "LAR of an absent segment");
        check_eq!(lsl, Some(0x1fff), "LSL of an absent segment that counts in pages");
        for nothing in [0, 3, 0x7f8, 0x1f4] {
            let seen = looks(&mut m, nothing);
            check_eq!(seen, (None, None, false, false), "of selector {nothing:#x}");
        }
    }
);

test!(
    looks_privilege,
    "LAR, LSL, VERR and VERW weigh CPL and RPL against DPL, but for conforming code.",
    || {
        let mut m = Machine::new(code32!("nop"));
        for dpl in 0..4_u32 {
            for rpl in 0..4 {
                m.set(0, flat(WRITABLE | u64::from(dpl) << 5));
                let seen = looks(&mut m, FREE | rpl);
                let visible = rpl <= dpl;
                let told = (seen.0.is_some(), seen.1.is_some(), seen.2, seen.3);
                check_eq!(told, (visible, visible, visible, visible), "DPL {dpl}, RPL {rpl}");
                m.set(0, flat(table::CONFORMING | u64::from(dpl) << 5));
                let seen = looks(&mut m, FREE | rpl);
                let told = (seen.0.is_some(), seen.1.is_some(), seen.2, seen.3);
                check_eq!(told, (true, true, true, false), "conforming, DPL {dpl}, RPL {rpl}");
            }
        }
    }
);

test!(arpl, "ARPL raises the RPL of a selector to that of another, and says so in ZF.", || {
    for (selector, other, zf) in
        [(0x70, 0x03, true), (0x72, 0x01, false), (0x72, 0x02, false), (0x71, 0xff, true)]
    {
        let mut m = Machine::new(code32!("arpl ax, cx", "pushfd", "pop edx", "arpl [ebx], cx"));
        (m.regs.eax, m.regs.ecx) = (0xabcd_0000 | selector, other);
        m.regs.ebx = DATA;
        put(DATA, selector);
        let out = m.run();
        out.done("arpl");
        let adjusted = if zf { selector & !3 | other & 3 } else { selector };
        check_eq!(out.regs.eax, 0xabcd_0000 | adjusted, "EAX");
        check_eq!(out.regs.edx & ZF != 0, zf, "ZF");
        check_eq!(get::<u32>(DATA), adjusted, "in memory");
    }
});

test!(
    stores,
    "SGDT, SIDT, SLDT, STR and SMSW store what is loaded, at CPL 0 and at CPL 3.",
    || {
        let code = asm_code!(
            ".code32",
            "sgdt [ebx]",
            "sidt [ebx + 8]",
            "sldt word ptr [ebx + 16]",
            "str word ptr [ebx + 20]",
            "smsw word ptr [ebx + 24]",
            "sldt ecx",
            "str edx",
            "smsw eax",
            "ud2"
        );
        for mut m in [Machine::new(code), Machine::outer(code)] {
            for at in (0..32).step_by(4) {
                put(DATA + at, 0x7777_7777_u32);
            }
            m.regs.ebx = DATA;
            let out = m.run();
            out.raises(6, 0, "the end");
            check_eq!((get::<u16>(DATA), get::<u32>(DATA + 2)), (m.gdt_limit, GDT), "SGDT");
            check_eq!((get::<u16>(DATA + 8), get::<u32>(DATA + 10)), (m.idt_limit, IDT), "SIDT");
            check_eq!(get::<u32>(DATA + 16), 0x7777_0000 | LDT_SELECTOR, "SLDT to memory");
            check_eq!(get::<u32>(DATA + 20), 0x7777_0000 | TSS_SELECTOR, "STR to memory");
            check_eq!(get::<u32>(DATA + 24), 0x7777_0000 | m.regs.cr0 & 0xffff, "SMSW to memory");
            let r = out.regs;
            check_eq!(
                (r.ecx & 0xffff, r.edx & 0xffff),
                (LDT_SELECTOR, TSS_SELECTOR),
                "SLDT and STR"
            );
            check_eq!(r.eax, m.regs.cr0, "SMSW to a 32-bit register");
        }
    }
);

test!(stores_16, "SGDT and LGDT in 16-bit code: the load takes 24 bits of base.", || {
    let mut m =
        Machine::new16(code16!("sgdt [bx]", "lgdt [bx + 8]", "sgdt [bx + 16]", "mov es, cx"));
    put(DATA, 0_u64);
    put(DATA + 8, 0x3ff_u16);
    put(DATA + 10, 0xff00_0000 | GDT);
    put(DATA + 16, 0_u64);
    m.regs.ecx = payload_rt::legacy::DATA16;
    let out = m.run();
    out.done("sgdt and lgdt");
    check_eq!((get::<u16>(DATA), get::<u32>(DATA + 2)), (m.gdt_limit, GDT), "SGDT");
    check_eq!((get::<u16>(DATA + 16), get::<u32>(DATA + 18)), (0x3ff, GDT), "SGDT after LGDT");
});

// SDM volume 2, LMSW: it cannot clear PE.
test!(lmsw, "LMSW sets MP, EM and TS and cannot clear PE; CLTS clears TS.", || {
    let mut m = Machine::new(code32!(
        "lmsw ax",
        "mov ecx, cr0",
        "clts",
        "mov edx, cr0",
        "xor eax, eax",
        "lmsw ax",
        "mov ebx, cr0"
    ));
    m.regs.eax = 0xfff0 | 0xe;
    let cr0 = m.regs.cr0;
    let out = m.run();
    out.done("lmsw");
    check_eq!(out.regs.ecx, cr0 | 0xe, "CR0 after lmsw");
    check_eq!(out.regs.edx, cr0 | 6, "CR0 after clts");
    check_eq!(out.regs.ebx, cr0, "CR0 after lmsw of 0");
});

test!(
    looks_outer,
    "At CPL 3 LAR and LSL show conforming code of any DPL and all of DPL 3.",
    || {
        let code =
            asm_code!(".code32", "lar ebx, eax", "setz cl", "lsl edx, eax", "setz ch", "hlt");
        for (what, descriptor, visible) in [
            ("data of DPL 0", flat(WRITABLE), false),
            ("data of DPL 3", flat(WRITABLE | DPL3), true),
            ("conforming code of DPL 0", flat(table::CONFORMING), true),
            ("a TSS of DPL 0", segment(DATA, 103, table::TSS32), false),
            ("a TSS of DPL 3", segment(DATA, 103, table::TSS32 | DPL3), true),
        ] {
            let mut m = Machine::outer(code);
            m.regs.eax = m.set(0, descriptor);
            let out = m.run();
            out.raises(GP, 0, "hlt");
            check_eq!(out.regs.ecx, if visible { 0x101 } else { 0 }, "ZF of {what}");
            check_eq!((out.regs.cs, out.regs.ss), (OUTER_CODE, OUTER_DATA), "CS and SS");
        }
    }
);
