//! What a task switch saves and loads (Intel SDM volume 3, 9.2.1, 9.3, 9.5 and 9.6; AMD APM volume 2, 12.2).

use crate::{TARGET, put, second};
use payload_rt::legacy::table::{
    self, TASK_GATE, TSS16, Tss, WRITABLE, gate, segment, tss16, tss32,
};
use payload_rt::legacy::{
    CODE, CODE16, CODE32, DATA, DATA32, FREE, LDT_SELECTOR, Machine, OUTER_STACK, TSS,
    TSS_SELECTOR, TSS2, TSS2_SELECTOR,
};
use payload_rt::trap::{GP, NM};
use payload_rt::{asm_code, check_eq, code32, test};

const JMP: &[u8] = &[0xea, 0, 0, 0, 0, 0x48, 0];
const CALL: &[u8] = &[0x9a, 0, 0, 0, 0, 0x48, 0];

test!(
    saved,
    "The TSS that is left has the registers, and EIP behind the instruction; the rest stays.",
    || {
        for (what, code) in [("jmp", JMP), ("call", CALL)] {
            let mut m = Machine::new(code);
            second(&m, code32!("nop"));
            let r = &mut m.regs;
            (r.eax, r.ecx, r.edx, r.ebx) = (0x1111_0001, 0x1111_0002, 0x1111_0003, 0x1111_0004);
            (r.ebp, r.esi, r.edi) = (0x1111_0005, 0x1111_0006, 0x1111_0007);
            r.eflags |= 0x8d5; // OF, SF, ZF, AF, PF, CF
            r.gs = 0;
            let fs = m.set(0, table::flat(WRITABLE));
            m.regs.fs = fs;
            let t = Tss::FIRST;
            t.set(tss32::CR3, 0x5555_5000);
            t.set(tss32::LDTR, 0x5550);
            t.set16(tss32::TRAP, 0);
            m.run().done(what);
            for (field, value, name) in [
                (tss32::EIP, CODE + 7, "EIP"),
                (tss32::EFLAGS, 0x8d7, "EFLAGS"),
                (tss32::EAX, 0x1111_0001, "EAX"),
                (tss32::ECX, 0x1111_0002, "ECX"),
                (tss32::EDX, 0x1111_0003, "EDX"),
                (tss32::EBX, 0x1111_0004, "EBX"),
                (tss32::ESP, m.regs.esp, "ESP"),
                (tss32::EBP, 0x1111_0005, "EBP"),
                (tss32::ESI, 0x1111_0006, "ESI"),
                (tss32::EDI, 0x1111_0007, "EDI"),
                // What a processor reads and never writes.
                (tss32::ESP0, 0x5_f000, "ESP0"),
                (tss32::SS0, DATA32, "SS0"),
                (tss32::CR3, 0x5555_5000, "CR3"),
            ] {
                check_eq!(t.get(field), value, "{name} after {what}");
            }
            for (field, value, name) in [
                (tss32::LINK, 0x6666, "the link"),
                (tss32::ES, DATA32, "ES"),
                (tss32::CS, CODE32, "CS"),
                (tss32::SS, DATA32, "SS"),
                (tss32::DS, DATA32, "DS"),
                (tss32::FS, fs, "FS"),
                (tss32::GS, 0, "GS"),
                (tss32::LDTR, 0x5550, "LDTR"),
                (tss32::MAP, 104, "the map's offset"),
            ] {
                check_eq!(t.get16(field), value, "{name} after {what}");
            }
        }
    }
);

test!(segments_loaded, "The new TSS's segments are loaded with their descriptors.", || {
    let mut m = Machine::new(JMP);
    second(&m, code32!("mov eax, [ebx]", "mov ecx, es:[ebx]"));
    let t = Tss::SECOND;
    t.set(tss32::DS, m.set(0, segment(DATA, 0xffff, WRITABLE) | table::BIG));
    t.set(tss32::ES, m.set(1, segment(DATA + 0x100, 0xffff, WRITABLE) | table::BIG));
    t.set(tss32::EBX, 0x10);
    put(DATA + 0x10, 0x0d5_0d5_u32);
    put(DATA + 0x110, 0x0e5_0e5_u32);
    let out = m.run();
    out.done("reads");
    check_eq!((out.regs.eax, out.regs.ecx), (0x0d5_0d5, 0x0e5_0e5), "read through DS and ES");
});

test!(accessed, "A task switch sets the accessed bits of the segments that it loads.", || {
    let mut m = Machine::new(JMP);
    second(&m, code32!("nop"));
    let t = Tss::SECOND;
    t.set(tss32::ES, m.set(0, table::flat(WRITABLE & !table::ACCESSED)));
    t.set(tss32::CS, m.set(1, table::flat(table::READABLE & !table::ACCESSED)));
    m.run().done("jmp");
    check_eq!(m.descriptor(FREE), table::flat(WRITABLE), "descriptor of ES");
    check_eq!(m.descriptor(FREE + 8), table::flat(table::READABLE), "descriptor of CS");
});

test!(
    null_segments,
    "Null DS, ES, FS and GS of the new task are taken, and #GP(0) when used.",
    || {
        let mut m = Machine::new(JMP);
        second(&m, code32!("nop", "mov edx, fs:[0]"));
        for (field, null) in [(tss32::DS, 0), (tss32::ES, 1), (tss32::FS, 2), (tss32::GS, 3)] {
            Tss::SECOND.set(field, null);
        }
        let out = m.run();
        out.raises(GP, 0, "a read through the null FS");
        let r = out.regs;
        check_eq!((r.ds, r.es, r.fs, r.gs), (0, 1, 2, 3), "DS, ES, FS, GS");
        check_eq!(r.eip, TARGET + 1, "EIP");
    }
);

test!(ldt, "LDTR comes from the new TSS, before the segments in it, and may be null.", || {
    let mut m = Machine::new(JMP);
    second(&m, code32!("mov eax, [ebx]", "sldt ecx"));
    // Another LDT, whose entry 1 the new DS is.
    put(OUTER_STACK + 8, segment(DATA, 0xffff, WRITABLE) | table::BIG);
    let t = Tss::SECOND;
    t.set(tss32::LDTR, m.set(0, segment(OUTER_STACK, 0xf, table::AN_LDT)));
    t.set(tss32::DS, 8 | 4);
    t.set(tss32::EBX, 0x20);
    put(DATA + 0x20, 0x1d7_1d7_u32);
    let out = m.run();
    out.done("with another LDT");
    check_eq!((out.regs.eax, out.regs.ecx), (0x1d7_1d7, FREE), "what DS reads, and LDTR");
    let mut m = Machine::new(asm_code!(
        ".code32",
        ".byte 0x9a, 0, 0, 0, 0, 0x48, 0",
        "mov ds, ecx",
        "mov edx, [0]",
        ".byte 0x8e, 0xc8"
    ));
    // And back: the first task has its own again.
    m.regs.ecx = m.set_local(1, segment(DATA, 0xffff, WRITABLE) | table::BIG);
    second(&m, asm_code!(".code32", "sldt ecx", "iretd"));
    t.set(tss32::LDTR, 0);
    put(DATA, 0x1d8_1d8_u32);
    let out = m.run();
    out.done("the first task");
    check_eq!((out.regs.edx, out.regs.ldtr), (0x1d8_1d8, LDT_SELECTOR), "DS and LDTR");
    check_eq!(t.get(tss32::ECX), 0, "LDTR in the second task");
});

test!(cr3, "With paging on CR3 comes from the new TSS, and is not saved in the old one.", || {
    let mut m = Machine::new(JMP);
    m.page();
    let other = m.second_directory();
    second(&m, code32!("mov eax, cr3"));
    Tss::SECOND.set(tss32::CR3, other);
    Tss::FIRST.set(tss32::CR3, 0x4444_4000);
    let out = m.run();
    out.done("jmp");
    check_eq!((out.regs.eax, out.regs.cr3), (other, other), "CR3");
    check_eq!(Tss::FIRST.get(tss32::CR3), 0x4444_4000, "CR3 in the first TSS");
    // And back, to another one still.
    let mut m = Machine::new(asm_code!(
        ".code32",
        ".byte 0x9a, 0, 0, 0, 0, 0x48, 0",
        "mov eax, cr3",
        ".byte 0x8e, 0xc8"
    ));
    m.page();
    let (second_cr3, back) = (m.second_directory(), m.second_directory());
    second(&m, asm_code!(".code32", "iretd"));
    Tss::SECOND.set(tss32::CR3, second_cr3);
    Tss::FIRST.set(tss32::CR3, back);
    let out = m.run();
    out.done("there and back");
    check_eq!(out.regs.eax, back, "CR3 in the first task");
});

test!(task_switched, "A task switch sets CR0.TS, so that the next x87 instruction is #NM.", || {
    let mut m = Machine::new(JMP);
    second(&m, asm_code!(".code32", "nop", "fninit"));
    let out = m.run();
    out.raises(NM, 0, "fninit");
    check_eq!(out.regs.eip, TARGET + 1, "EIP");
});

test!(flags, "EFLAGS come from the TSS whole: IOPL, AC, NT as it says, and TF steps.", || {
    let mut m = Machine::new(JMP);
    second(&m, code32!("nop"));
    let eflags = 2 | 3 << 12 | 1 << 18 | 0x8d5 | 1 << 14;
    Tss::SECOND.set(tss32::EFLAGS, eflags);
    let out = m.run();
    out.done("jmp");
    check_eq!(out.regs.eflags & !(1 << 16), eflags, "EFLAGS");
    let mut m = Machine::new(JMP);
    second(&m, code32!("nop", "nop"));
    Tss::SECOND.set(tss32::EFLAGS, 2 | 1 << 8);
    let out = m.run();
    out.raises(1, 0, "TF");
    check_eq!(out.regs.eip, TARGET + 1, "EIP: one instruction is executed");
});

/// Makes the TSS at [`TSS2`] a 16-bit one for 16-bit code at the target.
fn second_16(m: &mut Machine, code: &[u8]) {
    second(m, code);
    m.set_at(TSS2_SELECTOR, segment(TSS2, 43, TSS16));
    let t = Tss::SECOND;
    t.fill(104, 0x77);
    for (field, value) in [
        (tss16::LINK, 0x7777),
        (tss16::IP, 0x200),
        (tss16::FLAGS, 2),
        (tss16::AX, 0xb001),
        (tss16::CX, 0xb002),
        (tss16::DX, 0xb003),
        (tss16::BX, 0xb004),
        (tss16::SP, 0x900),
        (tss16::BP, 0xb005),
        (tss16::SI, 0xb006),
        (tss16::DI, 0xb007),
        (tss16::ES, DATA32),
        (tss16::CS, CODE16),
        (tss16::SS, 0x70),
        (tss16::DS, DATA32),
        (tss16::LDTR, LDT_SELECTOR),
    ] {
        t.set16(field, value);
    }
}

test!(
    tss_16,
    "A 16-bit TSS loads 16 bits of each register, and links as a 32-bit one does.",
    || {
        for (code, nested) in [(JMP, false), (CALL, true)] {
            let mut m = Machine::new(code);
            second_16(&mut m, payload_rt::code16!("nop"));
            let out = m.run();
            out.done("a 16-bit TSS");
            let r = out.regs;
            let low = |v: u32| v & 0xffff;
            check_eq!(
                (low(r.eax), low(r.ecx), low(r.edx), low(r.ebx)),
                (0xb001, 0xb002, 0xb003, 0xb004)
            );
            check_eq!(
                (low(r.esp), low(r.ebp), low(r.esi), low(r.edi)),
                (0x900, 0xb005, 0xb006, 0xb007)
            );
            check_eq!((r.cs, low(r.eip), r.ss), (CODE16, 0x201, 0x70), "CS, IP, SS");
            check_eq!((r.ds, r.tr), (DATA32, TSS2_SELECTOR), "DS and TR");
            check_eq!(r.eflags >> 14 & 1 == 1, nested, "NT");
            let link = if nested { TSS_SELECTOR } else { 0x7777 };
            check_eq!(Tss::SECOND.get16(tss16::LINK), link, "the link");
            let busy = segment(TSS2, 43, TSS16 | table::BUSY);
            check_eq!(m.descriptor(TSS2_SELECTOR), busy, "descriptor of the 16-bit TSS");
            check_eq!(r.cr0 & 8, 8, "CR0.TS");
        }
    }
);

/// Makes the first TSS a 16-bit one too.
fn first_16(m: &mut Machine) {
    m.set_at(TSS_SELECTOR, segment(TSS, 43, TSS16));
    Tss::FIRST.fill(104, 0x66);
}

test!(
    tss_16_saved,
    "A switch between 16-bit TSSs saves 16 bits of each register, and no more.",
    || {
        let mut m = Machine::new(JMP);
        second_16(&mut m, payload_rt::code16!("nop"));
        first_16(&mut m);
        m.regs.eip = 0;
        m.regs.cs = CODE16;
        m.code(asm_code!(".code16", ".byte 0xea, 0, 0, 0x48, 0"));
        (m.regs.eax, m.regs.ebx, m.regs.edi) = (0x1234, 0x5678_9abc, 0x1111_2222);
        m.regs.eflags |= 1;
        m.run().done("jmp");
        let t = Tss::FIRST;
        check_eq!((t.get16(tss16::AX), t.get16(tss16::BX)), (0x1234, 0x9abc), "AX and BX");
        check_eq!((t.get16(tss16::IP), t.get16(tss16::FLAGS)), (5, 3), "IP and FLAGS");
        check_eq!((t.get16(tss16::CS), t.get16(tss16::DI)), (CODE16, 0x2222), "CS and DI");
        check_eq!((t.get16(tss16::LINK), t.get16(tss16::SP0)), (0x6666, 0x6666), "link and SP0");
        check_eq!(t.get(44), 0x6666_6666, "what lies behind the 16-bit TSS");
    }
);

// SDM volume 3, 9.2.1: the LDT's selector is a static field, which the processor reads and does not change.
test!(tss_16_ldtr, "A switch away from a 16-bit TSS leaves its LDTR field alone.", || {
    let mut m = Machine::new(JMP);
    second_16(&mut m, payload_rt::code16!("nop"));
    first_16(&mut m);
    m.run().done("jmp");
    check_eq!(Tss::FIRST.get16(tss16::LDTR), 0x6666, "LDTR in the first TSS");
});

test!(tss_16_back, "IRET goes back from a 16-bit task to a 16-bit task.", || {
    let mut m = Machine::new(JMP);
    second_16(&mut m, asm_code!(".code16", "mov cx, 3", "iret"));
    first_16(&mut m);
    Tss::FIRST.set16(tss16::LDTR, LDT_SELECTOR);
    m.regs.eip = 0;
    m.regs.cs = CODE16;
    m.code(asm_code!(".code16", ".byte 0x9a, 0, 0, 0x48, 0", "mov dx, ax", ".byte 0x8e, 0xc8"));
    m.regs.eax = 0x4242;
    let out = m.run();
    out.done("call and iret");
    check_eq!((out.regs.edx & 0xffff, out.regs.tr), (0x4242, TSS_SELECTOR), "DX and TR");
    let t = Tss::SECOND;
    check_eq!((t.get16(tss16::CX), t.get16(tss16::IP)), (3, 0x204), "CX and IP of the second task");
});

test!(
    tss_32_to_16,
    "A switch from a 32-bit TSS to a 16-bit one saves 32 bits in the first.",
    || {
        let mut m = Machine::new(JMP);
        second_16(&mut m, payload_rt::code16!("nop"));
        m.regs.eax = 0x1234_5678;
        m.run().done("jmp");
        let t = Tss::FIRST;
        check_eq!((t.get(tss32::EAX), t.get(tss32::EIP)), (0x1234_5678, CODE + 7), "EAX and EIP");
        check_eq!((t.get16(tss32::CS), t.get16(tss32::DS)), (CODE32, DATA32), "CS and DS");
        check_eq!(t.get(tss32::SS0), DATA32, "SS0, which is not written");
    }
);

test!(
    tss_16_to_32,
    "A switch from a 16-bit TSS to a 32-bit one saves 16 bits in the first.",
    || {
        let mut m = Machine::new(JMP);
        second(&m, code32!("nop"));
        first_16(&mut m);
        m.regs.eax = 0x1234_5678;
        m.run().done("jmp");
        let t = Tss::FIRST;
        check_eq!((t.get16(tss16::AX), t.get16(tss16::IP)), (0x5678, 7), "AX and IP");
        check_eq!(t.get(44), 0x6666_6666, "what lies behind the 16-bit TSS");
    }
);

test!(tss_16_error_code, "Behind a switch to a 16-bit TSS an error code is a word.", || {
    let mut m = Machine::new(asm_code!(".code32", "mov ds, eax"));
    m.regs.eax = 0x7f8;
    second_16(&mut m, payload_rt::code16!("pop cx"));
    m.gate(GP, gate(TSS2_SELECTOR, 0, TASK_GATE, 0));
    let out = m.run();
    out.done("the handler");
    check_eq!((out.regs.ecx & 0xffff, out.regs.esp & 0xffff), (0x7f8, 0x900), "CX and SP");
});

// SDM volume 1, 20.5.2: the map of the task that runs decides.
test!(
    io_map,
    "At CPL 3 above IOPL the I/O map of the TSS decides, for each byte of an access.",
    || {
        for (what, code, ports) in [
            ("byte", asm_code!(".code32", "out dx, al", "hlt"), 1_u32),
            ("word", asm_code!(".code32", "out dx, ax", "hlt"), 2),
            ("dword", asm_code!(".code32", "out dx, eax", "hlt"), 4),
        ] {
            for allowed in 0..=ports {
                let mut m = Machine::outer(code);
                m.set_at(TSS_SELECTOR, segment(0x2_4000, 104 + 0x11, table::TSS32));
                let t = Tss::FIRST;
                for at in (104..104 + 0x14).step_by(4) {
                    t.set(at, u32::MAX);
                }
                // Ports from 0x80 on, the POST port and its neighbours.
                t.set(104 + 0x10, u32::MAX << allowed);
                m.regs.edx = 0x80;
                let out = m.run();
                out.faults(GP, 0, if allowed == ports { out.regs.eip - CODE } else { 0 }, what);
                check_eq!(out.regs.eip != CODE, allowed == ports, "{what}, {allowed} ports open");
            }
        }
        // A map whose byte lies beyond the limit, or that starts there, forbids.
        for (limit, map) in [(104 + 0xf, 104), (103, 104), (104 + 0x11, 0xfff0)] {
            let mut m = Machine::outer(asm_code!(".code32", "out dx, al", "hlt"));
            m.set_at(TSS_SELECTOR, segment(0x2_4000, limit, table::TSS32));
            Tss::FIRST.set(104 + 0x10, 0);
            Tss::FIRST.set16(tss32::MAP, map);
            m.regs.edx = 0x80;
            m.run().faults(GP, 0, 0, "beyond the limit");
        }
    }
);
