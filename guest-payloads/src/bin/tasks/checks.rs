//! What is checked before a task switch, while the old task still runs (Intel SDM volume 3, 9.2.2, 9.2.5, 9.3
//! and table 9-1; volume 2, JMP, CALL, IRET; AMD APM volume 2, 12.3).

use crate::{check_second, first_tss, put, second, second_tss};
use payload_rt::cpu;
use payload_rt::legacy::table::{
    BUSY, DPL3, PRESENT, TASK_GATE, TSS16, TSS32, Tss, gate, segment, tss32,
};
use payload_rt::legacy::{
    CODE, DATA, DATA32, FLAG_NT, FREE, LDT_SELECTOR, Machine, OUTER_CODE, TSS_SELECTOR, TSS2,
    TSS2_SELECTOR,
};
use payload_rt::trap::{GP, NP, PF, TS, UD, catch};
use payload_rt::{
    asm_code, check_eq, check_ok, check_trap, code32, frames, idt, insn_raw, mem, test,
};

/// Far JMP and CALL to selector 0x78, the first free one.
const TRANSFERS: [(&str, &[u8]); 2] =
    [("jmp", &[0xea, 0, 0, 0, 0, 0x78, 0]), ("call", &[0x9a, 0, 0, 0, 0, 0x78, 0])];

test!(
    bad_tss,
    "JMP and CALL to a TSS that is busy, absent, or too short are #GP, #NP, #TS.",
    || {
        for (name, code) in TRANSFERS {
            for (what, descriptor, vector) in [
                ("a busy 32-bit TSS", segment(TSS2, 103, TSS32 | BUSY), GP),
                ("a busy 16-bit TSS", segment(TSS2, 43, TSS16 | BUSY), GP),
                ("an absent TSS", segment(TSS2, 103, TSS32 & !PRESENT), NP),
                ("an absent busy TSS", segment(TSS2, 103, (TSS32 | BUSY) & !PRESENT), GP),
                ("a short 32-bit TSS", segment(TSS2, 102, TSS32), TS),
                ("a short 16-bit TSS", segment(TSS2, 42, TSS16), TS),
            ] {
                let mut m = Machine::new(code);
                second(&m, code32!("nop"));
                m.set(0, descriptor);
                let out = m.run();
                out.faults(vector, FREE, 0, what);
                check_eq!(out.regs.tr, TSS_SELECTOR, "TR after {name} to {what}");
                check_eq!(m.descriptor(FREE), descriptor, "descriptor of {what}, after {name}");
                check_eq!(
                    m.descriptor(TSS_SELECTOR),
                    first_tss(true),
                    "descriptor of the first TSS"
                );
                check_eq!(out.regs.cr0 & 8, 0, "CR0.TS after {name} to {what}");
            }
        }
    }
);

test!(itself, "A task cannot JMP or CALL to its own TSS: it is busy.", || {
    for code in [&[0xea, 0, 0, 0, 0, 0x38, 0], &[0x9a, 0, 0, 0, 0, 0x38, 0]] {
        Machine::new(code).run().faults(GP, TSS_SELECTOR, 0, "its own TSS");
    }
});

test!(bad_gate, "A task gate must be present and lead to a free TSS of the GDT.", || {
    for (name, code) in TRANSFERS {
        for (what, a_gate, vector, error) in [
            ("an absent gate", gate(TSS2_SELECTOR, 0, TASK_GATE & !PRESENT, 0), NP, FREE),
            ("a gate to null", gate(0, 0, TASK_GATE, 0), GP, 0),
            ("a gate to data", gate(DATA32, 0, TASK_GATE, 0), GP, DATA32),
            ("a gate to an LDT", gate(LDT_SELECTOR, 0, TASK_GATE, 0), GP, LDT_SELECTOR),
            ("a gate to a busy TSS", gate(TSS_SELECTOR, 0, TASK_GATE, 0), GP, TSS_SELECTOR),
            ("a gate beyond the GDT", gate(0x7f8, 0, TASK_GATE, 0), GP, 0x7f8),
        ] {
            let mut m = Machine::new(code);
            second(&m, code32!("nop"));
            m.set(0, a_gate);
            let out = m.run();
            out.faults(vector, error, 0, what);
            check_eq!(out.regs.tr, TSS_SELECTOR, "TR after {name} through {what}");
        }
    }
});

test!(gate_to_ldt, "A task gate to a TSS in the LDT is #GP that names it.", || {
    for (name, code) in TRANSFERS {
        let mut m = Machine::new(code);
        second(&m, code32!("nop"));
        m.set_local(1, segment(TSS2, 103, TSS32));
        m.set(0, gate(8 | 4, 0, TASK_GATE, 0));
        m.run().faults(GP, 8 | 4, 0, name);
    }
});

test!(
    privileges,
    "The DPL of a TSS must be at least CPL and RPL; of a gate the same, its TSS's is not.",
    || {
        for (_, code) in TRANSFERS {
            let machine = |descriptor: u64, rpl: u32| {
                let mut m = Machine::outer(code);
                second(&m, code32!("nop"));
                m.set(0, descriptor);
                put(CODE + 5, (FREE | rpl) as u16);
                m
            };
            machine(segment(TSS2, 103, TSS32), 0).run().faults(GP, FREE, 0, "a TSS of DPL 0");
            machine(segment(TSS2, 103, TSS32 | 0x40), 0).run().faults(
                GP,
                FREE,
                0,
                "a TSS of DPL 2",
            );
            let out = machine(segment(TSS2, 103, TSS32 | DPL3), 3).run();
            check_eq!(out.done("a TSS of DPL 3").regs.tr, FREE | 3, "TR");
            machine(gate(TSS2_SELECTOR, 0, TASK_GATE, 0), 0).run().faults(
                GP,
                FREE,
                0,
                "a gate of DPL 0",
            );
            let mut m = machine(gate(TSS2_SELECTOR, 0, TASK_GATE | DPL3, 0), 3);
            let out = m.run();
            out.done("a gate of DPL 3 to a TSS of DPL 0");
            check_eq!(out.regs.tr, TSS2_SELECTOR, "TR");
            // At CPL 0 RPL alone.
            let mut m = Machine::new(code);
            second(&m, code32!("nop"));
            m.set(0, segment(TSS2, 103, TSS32));
            put(CODE + 5, (FREE | 3) as u16);
            m.run().faults(GP, FREE, 0, "RPL 3 for a TSS of DPL 0");
        }
    }
);

test!(iret_bad, "IRET with NT to a link that is no busy TSS is #TS that names it.", || {
    for (what, link, descriptor, vector, error) in [
        ("a free TSS", FREE, segment(TSS2, 103, TSS32), TS, FREE),
        ("data", DATA32, 0, TS, DATA32),
        ("an LDT", LDT_SELECTOR, 0, TS, LDT_SELECTOR),
        ("a selector of the LDT", 8 | 4, 0, TS, 8 | 4),
        ("null", 0, 0, TS, 0),
        ("beyond the GDT", 0x7f8, 0, TS, 0x7f8),
        ("an absent busy TSS", FREE, segment(TSS2, 103, (TSS32 | BUSY) & !PRESENT), NP, FREE),
    ] {
        let mut m = Machine::new(asm_code!(".code32", "iretd"));
        second(&m, code32!("nop"));
        m.set_local(1, segment(TSS2, 103, TSS32 | BUSY));
        m.set(0, descriptor);
        m.regs.eflags |= FLAG_NT;
        Tss::FIRST.set(tss32::LINK, link);
        let out = m.run();
        out.faults(vector, error, 0, what);
        check_eq!(out.regs.tr, TSS_SELECTOR, "TR after IRET to {what}");
        check_eq!(out.regs.eflags & FLAG_NT, FLAG_NT, "NT on the stack, {what}");
    }
});

test!(iret_at_once, "IRET with NT set by POPF goes to whatever busy TSS the link names.", || {
    let mut m = Machine::new(asm_code!(".code32", "iretd"));
    second(&m, code32!("nop"));
    m.set_at(TSS2_SELECTOR, second_tss(true));
    m.regs.eflags |= FLAG_NT;
    Tss::FIRST.set(tss32::LINK, TSS2_SELECTOR);
    let out = m.run();
    out.done("the second task");
    check_second(&m, &out, false, false, "iret");
    check_eq!(Tss::FIRST.get(tss32::EFLAGS), 2, "EFLAGS in the first TSS: without NT");
    check_eq!(Tss::FIRST.get(tss32::EIP), CODE + 1, "EIP in the first TSS");
});

test!(
    int_bad,
    "INT n through a task gate to a bad TSS is #GP, #NP or #TS that names the TSS.",
    || {
        for (what, a_gate, vector, error) in [
            ("a busy TSS", gate(TSS_SELECTOR, 0, TASK_GATE, 0), GP, TSS_SELECTOR),
            ("data", gate(DATA32, 0, TASK_GATE, 0), GP, DATA32),
            ("null", gate(0, 0, TASK_GATE, 0), GP, 0),
            ("an absent TSS", gate(FREE, 0, TASK_GATE, 0), NP, FREE),
            ("a short TSS", gate(FREE + 8, 0, TASK_GATE, 0), TS, FREE + 8),
        ] {
            let mut m = Machine::new(asm_code!(".code32", "int 0x50"));
            second(&m, code32!("nop"));
            m.set(0, segment(TSS2, 103, TSS32 & !PRESENT));
            m.set(1, segment(TSS2, 50, TSS32));
            m.gate(0x50, a_gate);
            let out = m.run();
            out.faults(vector, error, 0, what);
            check_eq!(out.regs.tr, TSS_SELECTOR, "TR, {what}");
        }
    }
);

// SDM volume 3, 9.3: faults before the switch is committed are in the old task.
test!(
    absent_page,
    "A page fault on the new TSS comes in the old task, which can be tried again.",
    || {
        let mut m = Machine::new(&[0xea, 0, 0, 0, 0, 0x48, 0, 0x8e, 0xc8]);
        m.page();
        second(&m, code32!("nop"));
        m.forbid(TSS2, 1);
        let out = m.run();
        out.faults(PF, 0, 0, "an absent TSS page");
        let cr2 = payload_rt::reg::cr2();
        check_eq!(cr2 & !0xfff, u64::from(TSS2), "CR2's page");
        check_eq!(out.regs.tr, TSS_SELECTOR, "TR");
    }
);

test!(user_pages, "A task switch at CPL 3 reads and writes TSSs in pages for CPL 0 alone.", || {
    let mut m = Machine::outer(&[0x9a, 0, 0, 0, 0, 0x7b, 0]);
    m.page();
    second(&m, code32!("nop"));
    m.set(0, gate(TSS2_SELECTOR, 0, TASK_GATE | DPL3, 0));
    for page in [TSS2, 0x2_4000, 0x2_0000] {
        m.forbid(page, 4);
    }
    let out = m.run();
    out.done("call");
    check_second(&m, &out, true, true, "call");
    check_eq!(Tss::FIRST.get16(tss32::CS), OUTER_CODE, "CS in the first TSS");
});

// SDM volume 3, 9.7; volume 2, JMP, CALL: 64-bit mode has no task switches.
test!(
    long_mode,
    "In 64-bit mode a far JMP or CALL to a TSS or a task gate is #GP that names it.",
    || {
        let page = frames::alloc();
        let at = page.address();
        let tss = cpu::set_descriptor(0, segment(DATA, 103, TSS32));
        cpu::set_descriptor(1, 0);
        let task_gate = cpu::set_descriptor(2, gate(TSS2_SELECTOR, 0, TASK_GATE, 0));
        cpu::set_descriptor(3, 0);
        for (what, selector) in [("a TSS", tss), ("a task gate", task_gate)] {
            check_ok!(mem::write(at + 4, selector));
            let jmp = catch(|| insn_raw!("jmp fword ptr [{}]"; in(reg) at));
            check_trap!(jmp, GP, u64::from(selector), "jmp to {what}");
            let call = catch(|| insn_raw!("call fword ptr [{}]"; in(reg) at));
            check_trap!(call, GP, u64::from(selector), "call to {what}");
        }
    }
);

test!(
    long_mode_gate,
    "In long mode an exception through a task gate is #GP with the entry.",
    || {
        let low = idt::base() + 16 * u64::from(UD);
        let old = check_ok!(mem::read::<u64>(low));
        check_ok!(mem::write(low, gate(TSS2_SELECTOR, 0, TASK_GATE, 0)));
        let result = catch(|| insn_raw!("ud2"));
        check_ok!(mem::write(low, old));
        let trap = payload_rt::check_err!(result);
        check_eq!((trap.vector, trap.error_code & !1), (GP, u64::from(UD) << 3 | 2), "the fault");
    }
);
