//! Faults while the new task's state is loaded: these come in the new task, behind the switch (Intel SDM
//! volume 3, 7.15 on #TS and 9.3, table 9-1; AMD APM volume 2, 12.3 and 8.2.11).

use crate::{TARGET, first_tss, second, second_tss};
use payload_rt::legacy::table::{
    self, CONFORMING, DPL3, PRESENT, READABLE, Tss, WRITABLE, flat, segment, tss32,
};
use payload_rt::legacy::{
    DATA32, FREE, LDT_SELECTOR, Machine, Outcome, TSS_SELECTOR, TSS2_SELECTOR,
};
use payload_rt::trap::{GP, NP, SS, TS};
use payload_rt::{check_eq, code32, test};

/// Far JMP and CALL to the second TSS, with an end behind for who goes on there.
const JMP: &[u8] = &[0xea, 0, 0, 0, 0, 0x48, 0, 0x8e, 0xc8];
const CALL: &[u8] = &[0x9a, 0, 0, 0, 0, 0x48, 0, 0x8e, 0xc8];

/// A switch to a second task of which one field is `selector`; [`FREE`] is `descriptor`.
fn switch(code: &[u8], field: u32, selector: u32, descriptor: u64) -> (Machine, Outcome) {
    let mut m = Machine::new(code);
    second(&m, code32!("nop"));
    m.set(0, descriptor);
    Tss::SECOND.set(field, selector);
    let out = m.run();
    (m, out)
}

test!(
    data,
    "DS, ES, FS and GS of the new task that are no good are #TS, and #NP if absent.",
    || {
        for (name, field) in
            [("ds", tss32::DS), ("es", tss32::ES), ("fs", tss32::FS), ("gs", tss32::GS)]
        {
            for (what, selector, descriptor, vector, error) in [
                ("execute-only code", FREE, flat(table::EXECUTE_ONLY), TS, FREE),
                ("an LDT", LDT_SELECTOR, 0, TS, LDT_SELECTOR),
                ("beyond the GDT", 0x7f8, 0, TS, 0x7f8),
                ("RPL 3 for DPL 0", FREE | 3, flat(WRITABLE), TS, FREE),
                ("absent", FREE, flat(WRITABLE & !PRESENT), NP, FREE),
            ] {
                let (_, out) = switch(JMP, field, selector, descriptor);
                out.raises(vector, error, what);
                check_eq!(out.regs.cs, 0x30, "CS, with {name} {what}");
            }
        }
    }
);

/// A switch to a second task at CPL 1 (so that a fault finds the stack of CPL 0) with this SS; [`FREE`] is
/// `descriptor`.
fn with_stack(selector: u32, descriptor: u64) -> Outcome {
    let mut m = Machine::new(JMP);
    second(&m, code32!("nop"));
    m.set(0, descriptor);
    m.set(1, flat(READABLE | 0x20));
    let t = Tss::SECOND;
    t.set(tss32::CS, (FREE + 8) | 1);
    t.set(tss32::SS, selector);
    for field in [tss32::DS, tss32::ES, tss32::FS, tss32::GS] {
        t.set(field, 0);
    }
    m.run()
}

test!(stack, "An SS of the new task that is no good is #TS(selector).", || {
    for (what, selector, descriptor, error) in [
        ("null", 0, 0, 0),
        ("null, of RPL 1", 1, 0, 0),
        ("read-only", FREE | 1, flat(table::READ_ONLY | 0x20), FREE),
        ("code", FREE | 1, flat(READABLE | 0x20), FREE),
        ("of RPL 0", FREE, flat(WRITABLE | 0x20), FREE),
        ("of DPL 0", FREE | 1, flat(WRITABLE), FREE),
        ("beyond the GDT", 0x7f9, 0, 0x7f8),
    ] {
        with_stack(selector, descriptor).raises(TS, error, what);
    }
});

test!(stack_absent, "An SS of the new task that is absent is #SS(selector).", || {
    let absent = flat((WRITABLE | 0x20) & !PRESENT);
    with_stack(FREE | 1, absent).raises(SS, FREE, "absent");
});

test!(code, "A CS of the new task that is no good is #TS, and #NP if it is absent.", || {
    for (what, selector, descriptor, vector, error) in [
        ("null", 0, 0, TS, 0),
        ("data", DATA32, 0, TS, DATA32),
        ("beyond the GDT", 0x7f8, 0, TS, 0x7f8),
        ("of another DPL", FREE, flat(READABLE | DPL3), TS, FREE),
        ("conforming, of a DPL above its RPL", FREE, flat(CONFORMING | DPL3), TS, FREE),
        ("absent", FREE, flat(READABLE & !PRESENT), NP, FREE),
    ] {
        let (_, out) = switch(JMP, tss32::CS, selector, descriptor);
        out.raises(vector, error, what);
    }
});

test!(bad_ldt, "An LDTR of the new task that is no good is #TS, also where it is absent.", || {
    for (what, selector, descriptor, error) in [
        ("data", DATA32, 0, DATA32),
        ("a TSS", TSS_SELECTOR, 0, TSS_SELECTOR),
        ("beyond the GDT", 0x7f8, 0, 0x7f8),
        ("in the LDT itself", 8 | 4, 0, 8 | 4),
        ("absent", FREE, segment(0x2_0800, 0xff, table::AN_LDT & !PRESENT), FREE),
    ] {
        let (_, out) = switch(JMP, tss32::LDTR, selector, descriptor);
        out.raises(TS, error, what);
    }
});

// SDM volume 3, 9.3: "If an unrecoverable error occurs after the commit point, the processor completes the
// task switch (without performing additional access and segment availability checks) and generates the
// appropriate exception prior to beginning execution of the new task."
test!(
    committed,
    "A fault in a segment of the new task comes in the new task: TR, EIP and busy bits.",
    || {
        for (code, nested) in [(JMP, false), (CALL, true)] {
            let (m, out) = switch(code, tss32::DS, FREE, flat(WRITABLE & !PRESENT));
            out.raises(NP, FREE, "an absent DS");
            let r = out.regs;
            check_eq!((r.tr, r.eip), (TSS2_SELECTOR, TARGET), "TR and EIP");
            check_eq!((r.eax, r.edi), (0xa0a0_0001, 0xa0a0_0007), "EAX and EDI");
            check_eq!(m.descriptor(TSS_SELECTOR), first_tss(nested), "descriptor of the first TSS");
            check_eq!(
                m.descriptor(TSS2_SELECTOR),
                second_tss(true),
                "descriptor of the second TSS"
            );
            check_eq!(r.eflags >> 14 & 1, u32::from(nested), "NT");
            check_eq!(r.cr0 & 8, 8, "CR0.TS");
            let link = if nested { TSS_SELECTOR } else { 0x7777 };
            check_eq!(Tss::SECOND.get16(tss32::LINK), link, "the second TSS's link");
        }
    }
);

test!(eip_beyond, "An EIP of the new task beyond CS's limit is #GP(0) in the new task.", || {
    let mut m = Machine::new(JMP);
    second(&m, code32!("nop"));
    m.set(0, segment(0x3_0000, 0xfff, READABLE) | table::BIG);
    Tss::SECOND.set(tss32::CS, FREE);
    Tss::SECOND.set(tss32::EIP, 0x1000);
    let out = m.run();
    out.raises(GP, 0, "EIP beyond the limit");
    check_eq!((out.regs.cs, out.regs.eip), (FREE, 0x1000), "CS:EIP");
    check_eq!(out.regs.tr, TSS2_SELECTOR, "TR");
});
