//! Loads of segment registers, LDTR and TR in 32-bit protected mode (Intel SDM volume 3, 3.4.2 to 3.4.5, 6.4
//! to 6.7; volume 2, MOV, LDS, LLDT, LTR; AMD APM volume 2, 4.5 to 4.11).

use crate::put;
use payload_rt::legacy::table::{
    self, ACCESSED, BIG, DPL3, PRESENT, READABLE, WRITABLE, flat, segment,
};
use payload_rt::legacy::{
    CODE, CODE32, DATA, DATA32, FREE, GDT, LDT_SELECTOR, Machine, OUTER_STACK, TSS_SELECTOR, TSS2,
    TSS2_SELECTOR,
};
use payload_rt::trap::{GP, NP, SS};
use payload_rt::{check, check_eq, code32, test};

/// Loads of AX into DS, ES, FS and GS.
fn data_loads() -> [(&'static str, &'static [u8]); 4] {
    [
        ("ds", code32!("mov ds, eax")),
        ("es", code32!("mov es, eax")),
        ("fs", code32!("mov fs, eax")),
        ("gs", code32!("mov gs, eax")),
    ]
}

/// Code, and what of a load of AX by it.
fn load(code: &[u8], selector: u32, m: impl FnOnce(&mut Machine)) -> payload_rt::legacy::Outcome {
    let mut machine = Machine::new(code);
    m(&mut machine);
    machine.regs.eax = selector;
    machine.run()
}

test!(types, "DS, ES, FS and GS take data and readable code; all else is #GP(selector).", || {
    let selector = FREE;
    for (name, code) in data_loads() {
        let mut m = Machine::new(code);
        m.regs.eax = selector;
        for kind in 0..32_u64 {
            m.set(0, segment(DATA, 0xffff, PRESENT | kind) | BIG);
            let out = m.run();
            let code_or_data = kind & 0x10 != 0;
            if code_or_data && (kind & 8 == 0 || kind & 2 != 0) {
                out.done(name);
            } else {
                out.faults(GP, selector, 0, name);
            }
        }
    }
});

test!(types_ss, "SS takes writable data of its CPL; all else is #GP(selector).", || {
    let selector = FREE;
    let code = code32!("mov ecx, ss", "mov ss, eax", "mov ss, ecx");
    let mut m = Machine::new(code);
    m.regs.eax = selector;
    for kind in 0..32_u64 {
        // Limits that leave room for an expand-down stack too.
        let limit = if kind & 0x1c == 0x14 { 0 } else { 0xf_ffff };
        m.set(0, segment(0, limit, PRESENT | kind) | BIG | table::PAGES);
        let out = m.run();
        if kind & 0x1a == 0x12 {
            out.done("ss");
        } else {
            out.faults(GP, selector, 2, "ss");
        }
    }
});

test!(absent, "A segment that is not present is #NP(selector), and #SS(selector) for SS.", || {
    for (name, code) in data_loads() {
        let out = load(code, FREE | 3, |m| {
            m.set(0, flat((WRITABLE | DPL3) & !PRESENT));
        });
        out.faults(NP, FREE, 0, name);
    }
    let out = load(code32!("mov ss, eax"), FREE, |m| {
        m.set(0, flat(WRITABLE & !PRESENT));
    });
    out.faults(SS, FREE, 0, "ss");
    // Type and privilege come first.
    let out = load(code32!("mov ss, eax"), FREE, |m| {
        m.set(0, flat(table::READ_ONLY & !PRESENT));
    });
    out.faults(GP, FREE, 0, "ss, read-only");
});

test!(
    accessed,
    "A load sets the accessed bit of the descriptor, and a refused one does not.",
    || {
        for (name, code) in data_loads() {
            let mut m = Machine::new(code);
            m.regs.eax = m.set(0, flat(WRITABLE & !ACCESSED));
            m.run().done(name);
            check_eq!(m.descriptor(FREE), flat(WRITABLE), "the descriptor after a load of {name}");
            m.set(0, flat(WRITABLE & !ACCESSED & !PRESENT));
            m.run().faults(NP, FREE, 0, name);
            let refused = flat(WRITABLE & !ACCESSED & !PRESENT);
            check_eq!(m.descriptor(FREE), refused, "the descriptor after a refused load of {name}");
        }
        let mut m = Machine::new(code32!("mov ss, eax"));
        m.regs.eax = m.set(0, flat(WRITABLE & !ACCESSED));
        m.run().done("ss");
        check_eq!(m.descriptor(FREE), flat(WRITABLE), "the descriptor after a load of ss");
    }
);

test!(
    accessed_code,
    "A far return sets the accessed bit of the code segment that it goes to.",
    || {
        let mut m = Machine::new(code32!("push eax", "push ebx", "retf"));
        m.regs.eax = m.set(0, flat(READABLE & !ACCESSED));
        m.regs.ebx = CODE + 3;
        m.run().done("retf");
        check_eq!(m.descriptor(FREE), flat(READABLE), "the descriptor after a load of cs");
    }
);

test!(cached, "A changed descriptor has no effect before its segment is loaded again.", || {
    // The descriptor's limit goes to 0 through ES; then DS is used, loaded again, and used.
    let mut m = Machine::new(code32!(
        "mov ds, eax",
        "mov word ptr es:[edi], 0",
        "mov ecx, [ebx]",
        "mov ds, eax",
        "mov edx, [ebx]"
    ));
    m.regs.eax = m.set(0, segment(DATA, 0xffff, WRITABLE) | BIG);
    m.regs.edi = GDT + FREE;
    put(DATA + 0x100, 0x600d_600d_u32);
    m.regs.ebx = 0x100;
    let out = m.run();
    out.faults(GP, 0, 12, "a read beyond the new limit");
    check_eq!(out.regs.ecx, 0x600d_600d, "what DS read before it was loaded again");
    // Nor does a descriptor that is gone, at all.
    let mut m = Machine::new(code32!(
        "mov ds, eax",
        "mov dword ptr es:[edi + 4], 0",
        "mov ecx, [ebx]",
        "mov fs, eax"
    ));
    m.regs.eax = m.set(0, segment(DATA, 0xffff, WRITABLE) | BIG);
    m.regs.edi = GDT + FREE;
    m.regs.ebx = 0x100;
    let out = m.run();
    out.faults(GP, FREE, 12, "a load of what is gone");
    check_eq!(out.regs.ecx, 0x600d_600d, "what DS read");
});

// SDM volume 3, 3.4.2: null selectors may be loaded, and not be used.
test!(null, "DS, ES, FS and GS take null selectors, and an access through them is #GP(0).", || {
    for (name, at, code) in [
        ("ds", 2, code32!("mov ds, eax", "mov cl, [ebx]")),
        ("es", 2, code32!("mov es, eax", "mov cl, es:[ebx]")),
        ("fs", 2, code32!("mov fs, eax", "mov cl, fs:[ebx]")),
        ("gs", 2, code32!("mov gs, eax", "mov cl, gs:[ebx]")),
        ("ds, written", 2, code32!("mov ds, eax", "mov [ebx], cl")),
    ] {
        for null in 0..4 {
            let out = load(code, null, |m| m.regs.ebx = DATA);
            out.faults(GP, 0, at, name);
        }
    }
});

test!(null_ss, "SS does not take a null selector in protected mode: #GP(0).", || {
    for null in 0..4 {
        let out = load(code32!("mov ss, eax"), null, |_| ());
        out.faults(GP, 0, 0, "ss");
        check_eq!(out.regs.ss, DATA32, "SS");
    }
});

test!(beyond, "A selector whose descriptor is not wholly within the GDT's limit is #GP.", || {
    for (name, code) in data_loads() {
        let mut m = Machine::new(code);
        m.regs.eax = m.set(0, flat(WRITABLE)) | 1;
        m.set(0, flat(WRITABLE | DPL3));
        m.gdt_limit = (FREE + 7) as u16;
        m.run().done(name);
        m.gdt_limit -= 1;
        m.run().faults(GP, FREE, 0, name);
    }
});

test!(local, "Selectors with TI lead to the LDT; beyond its limit they are #GP with TI.", || {
    let mut m = Machine::new(code32!("mov ds, eax", "mov ecx, [ebx]", "mov es, edx"));
    m.regs.eax = m.set_local(3, segment(DATA, 0xfff, WRITABLE) | BIG);
    m.regs.edx = 0x7f << 3 | 4;
    put(DATA, 0x1d7_1d7_u32);
    let out = m.run();
    out.faults(GP, 0x7f << 3 | 4, 4, "a selector beyond the LDT");
    check_eq!(out.regs.ecx, 0x1d7_1d7, "read through the LDT's segment");
    check_eq!(out.regs.ds, 3 << 3 | 4, "DS");
    // Entry 0 of the LDT is not null.
    let mut m = Machine::new(code32!("mov ds, eax", "mov ecx, [ebx]"));
    m.regs.eax = m.set_local(0, segment(DATA, 0xfff, WRITABLE) | BIG);
    check_eq!(m.run().done("entry 0").regs.ecx, 0x1d7_1d7, "read through entry 0");
    // Without an LDT none is within.
    let mut m = Machine::new(code32!("lldt cx", "mov ds, eax"));
    m.regs.eax = m.set_local(0, flat(WRITABLE)) | 3;
    m.run().faults(GP, 4, 3, "a selector with TI and no LDT");
});

test!(lldt, "LLDT takes a present LDT of the GDT or null; else it is #GP or #NP.", || {
    let code = code32!("lldt ax", "sldt ecx");
    let an_ldt = |access| segment(0x2_0800, 0xff, access);
    for (what, descriptor, vector) in [
        ("an LDT", an_ldt(table::AN_LDT), None),
        ("absent", an_ldt(table::AN_LDT & !PRESENT), Some(NP)),
        ("a TSS", an_ldt(table::TSS32), Some(GP)),
        ("data", flat(WRITABLE), Some(GP)),
        ("absent data", flat(WRITABLE & !PRESENT), Some(GP)),
    ] {
        for rpl in [0, 3] {
            let out = load(code, FREE | rpl, |m| {
                m.set(0, descriptor);
            });
            match vector {
                None => check_eq!(out.done(what).regs.ecx, FREE | rpl, "SLDT after {what}"),
                Some(vector) => {
                    out.faults(vector, FREE, 0, what);
                    check_eq!(out.regs.ldtr, LDT_SELECTOR, "LDTR after {what}");
                }
            }
        }
    }
    check_eq!(load(code, 0, |_| ()).done("null").regs.ecx, 0, "SLDT after a null selector");
    load(code, 0x7f8, |_| ()).faults(GP, 0x7f8, 0, "a selector beyond the GDT");
});

test!(
    ltr,
    "LTR takes an available TSS of 16 or 32 bits and makes it busy; else #GP or #NP.",
    || {
        let code = code32!("ltr ax", "str ecx");
        let tss = |access| segment(TSS2, 103, access);
        for (what, descriptor, vector) in [
            ("a 32-bit TSS", tss(table::TSS32), None),
            ("a 16-bit TSS", tss(table::TSS16), None),
            ("a busy 32-bit TSS", tss(table::TSS32 | table::BUSY), Some(GP)),
            ("a busy 16-bit TSS", tss(table::TSS16 | table::BUSY), Some(GP)),
            ("an absent TSS", tss(table::TSS32 & !PRESENT), Some(NP)),
            ("a task gate", table::gate(TSS2_SELECTOR, 0, table::TASK_GATE, 0), Some(GP)),
            ("an LDT", tss(table::AN_LDT), Some(GP)),
            ("data", flat(WRITABLE), Some(GP)),
        ] {
            let mut m = Machine::new(code);
            m.regs.eax = m.set(0, descriptor);
            let out = m.run();
            match vector {
                None => {
                    check_eq!(out.done(what).regs.ecx, FREE, "STR after {what}");
                    let busy = descriptor | table::BUSY << 40;
                    check_eq!(m.descriptor(FREE), busy, "the descriptor of {what}");
                }
                Some(vector) => {
                    out.faults(vector, FREE, 0, what);
                    check_eq!(out.regs.tr, TSS_SELECTOR, "TR after {what}");
                    check_eq!(m.descriptor(FREE), descriptor, "the descriptor of {what}");
                }
            }
        }
    }
);

test!(global_only, "LLDT and LTR take no selector with TI: #GP(selector).", || {
    for (name, code, descriptor) in [
        ("lldt", code32!("lldt ax"), segment(0x2_0800, 0xff, table::AN_LDT)),
        ("ltr", code32!("ltr ax"), segment(TSS2, 103, table::TSS32)),
    ] {
        let out = load(code, 8 | 4, |m| {
            m.set_local(1, descriptor);
        });
        out.faults(GP, 8 | 4, 0, name);
    }
});

// SDM volume 3, 6.6: RPL and CPL must both be at most DPL, but for conforming code.
test!(
    privileges,
    "At CPL 0 a data segment's DPL must be at least the RPL that it is loaded by.",
    || {
        let mut m = Machine::new(code32!("mov ds, eax", "mov es, ecx", "mov fs, edx"));
        for dpl in 0..4_u32 {
            for rpl in 0..4 {
                let bits = u64::from(dpl) << 5;
                m.regs.eax = m.set(0, flat(WRITABLE | bits)) | rpl;
                m.regs.ecx = m.set(1, flat(READABLE | bits)) | rpl;
                m.regs.edx = m.set(2, flat(table::CONFORMING | bits)) | rpl;
                let out = m.run();
                if rpl <= dpl {
                    out.done("loads with RPL up to DPL");
                } else {
                    out.faults(GP, FREE, 0, "data with RPL above DPL");
                    m.regs.eax = DATA32;
                    m.run().faults(GP, FREE + 8, 2, "code with RPL above DPL");
                    m.regs.ecx = DATA32;
                    m.run().done("conforming code");
                }
            }
        }
        m.code(code32!("mov ss, eax"));
        for dpl in 0..4_u32 {
            for rpl in 0..4 {
                m.regs.eax = m.set(0, flat(WRITABLE | u64::from(dpl) << 5)) | rpl;
                let out = m.run();
                if (dpl, rpl) == (0, 0) {
                    out.done("ss");
                } else {
                    out.faults(GP, FREE, 0, "ss of another privilege");
                }
            }
        }
    }
);

test!(
    privileges_outer,
    "At CPL 3 data of DPL 3 and conforming code can be loaded, whatever RPL.",
    || {
        for dpl in 0..4_u32 {
            for rpl in 0..4 {
                let bits = u64::from(dpl) << 5;
                let mut m = Machine::outer(code32!("mov ds, eax", "mov es, ecx", "hlt"));
                m.regs.eax = m.set(0, flat(table::CONFORMING | bits)) | rpl;
                m.regs.ecx = m.set(1, flat(WRITABLE | bits)) | rpl;
                let out = m.run();
                if dpl == 3 {
                    out.faults(GP, 0, 4, "hlt");
                } else {
                    out.faults(GP, FREE + 8, 2, "data of a lower DPL");
                }
                let mut m = Machine::outer(code32!("mov ss, eax", "hlt"));
                m.regs.eax = m.set(0, flat(WRITABLE | bits)) | rpl;
                let out = m.run();
                if (dpl, rpl) == (3, 3) {
                    out.faults(GP, 0, 2, "hlt");
                } else {
                    out.faults(GP, FREE, 0, "ss of another privilege");
                }
            }
        }
    }
);

test!(far_pointers, "LDS, LES, LFS, LGS and LSS load both halves, or neither.", || {
    for (name, null, code) in [
        ("lds", true, code32!("lds ecx, es:[ebx]", "mov edx, ds")),
        ("les", true, code32!("les ecx, [ebx]", "mov edx, es")),
        ("lfs", true, code32!("lfs ecx, [ebx]", "mov edx, fs")),
        ("lgs", true, code32!("lgs ecx, [ebx]", "mov edx, gs")),
        ("lss", false, code32!("lss ecx, [ebx]", "mov edx, ss")),
    ] {
        let pointer = |selector: u32| {
            let mut m = Machine::new(code);
            m.regs.ebx = DATA;
            m.regs.ecx = 0x7777_7777;
            m.set(0, flat(WRITABLE));
            m.set(1, flat(table::EXECUTE_ONLY));
            put(DATA, 0x1234_5678_u32);
            put(DATA + 4, selector as u16);
            m.run()
        };
        let out = pointer(FREE);
        out.done(name);
        check_eq!((out.regs.ecx, out.regs.edx), (0x1234_5678, FREE), "{name}");
        let out = pointer(FREE + 8);
        out.faults(GP, FREE + 8, 0, name);
        check_eq!(out.regs.ecx, 0x7777_7777, "ECX after a refused {name}");
        let out = pointer(0);
        if null {
            check_eq!(out.done(name).regs.edx, 0, "{name} of a null selector");
        } else {
            out.faults(GP, 0, 0, name);
        }
    }
    // The whole pointer must be within the limit.
    let mut m = Machine::new(code32!("les ecx, fs:[ebx]"));
    m.regs.fs = m.set(0, segment(DATA, 0xfff, WRITABLE) | BIG);
    m.regs.ebx = 0xffb;
    m.run().faults(GP, 0, 0, "les over the limit");
});

test!(
    pushes,
    "PUSH and POP move selectors; POP SS and a refused POP leave ESP as they should.",
    || {
        let mut m = Machine::new(code32!(
            "push eax", "pop ds", "push ds", "pop ecx", "push fs", "push gs", "pop fs", "pop gs",
            "push ss", "pop ss"
        ));
        m.regs.eax = m.set(0, flat(WRITABLE));
        let esp = m.regs.esp;
        let out = m.run();
        out.done("pushes and pops");
        check_eq!(out.regs.ecx & 0xffff, FREE, "DS by way of the stack");
        check_eq!(out.regs.esp, esp, "ESP");
        for (name, code) in [
            ("pop ds", code32!("push eax", "pop ds")),
            ("pop es", code32!("push eax", "pop es")),
            ("pop ss", code32!("push eax", "pop ss")),
        ] {
            let mut m = Machine::new(code);
            m.regs.eax = CODE32 | 3;
            let out = m.run();
            out.faults(GP, CODE32, 1, name);
            check_eq!(out.regs.esp, m.regs.esp - 4, "ESP after a refused {name}");
        }
    }
);

// SDM volume 3, 6.8.6 and volume 2, RET and IRET: "segment register is not CS or SS; if DPL < CPL then
// selector := null".
test!(
    outward_nulls,
    "A return outward takes segments away that the outer CPL may not have.",
    || {
        for (name, code) in [
            (
                "iret",
                code32!("push 0x23", "push ecx", "push 2", "push 0x1b", "push ebx", "iretd", "hlt"),
            ),
            (
                "retf",
                code32!(
                    "push 0x23",
                    "push ecx",
                    "push 0x1b",
                    "push ebx",
                    "nop",
                    "nop",
                    "retf",
                    "hlt"
                ),
            ),
        ] {
            let mut m = Machine::new(code);
            m.regs.ebx = CODE + code.len() as u32 - 3; // at `hlt`
            m.regs.ecx = OUTER_STACK + 0x800;
            m.regs.ds = m.set(0, flat(WRITABLE | DPL3)) | 3;
            m.regs.fs = m.set(1, flat(table::CONFORMING));
            m.regs.gs = m.set(2, flat(READABLE));
            let out = m.run();
            out.faults(GP, 0, code.len() as u32 - 3, name);
            let r = out.regs;
            check_eq!(
                (r.cs, r.ss, r.esp),
                (0x1b, 0x23, OUTER_STACK + 0x800),
                "CS, SS, ESP: {name}"
            );
            check_eq!((r.ds, r.fs), (FREE | 3, FREE + 8), "DS and FS, which it may have: {name}");
            check!(
                r.es == 0 && r.gs == 0,
                "ES {:#x} and GS {:#x} must be null: {name}",
                r.es,
                r.gs
            );
        }
    }
);
