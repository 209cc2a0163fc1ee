//! What RSM makes of the map (APM 10.3.6 and 10.2; SDM "Exiting from SMM").

use crate::code::{self, SMBASE, poke, poking, saved};
use crate::map::{self, CR0, CR3, CR4, DR7, EFER, RFLAGS, RIP, SMBASE_FIELD};
use payload_rt::lab::{self, Chain, Plain, kvm};
use payload_rt::trap::{GP, UD};
use payload_rt::user::{End, User};
use payload_rt::{
    asm_code, check, check_eq, check_err, check_ok, check_trap, frames, insn, levels, mem, paging,
    reg, test,
};

test!(keeps_registers, "The general registers are those from before the SMI.", || {
    let after = map::with_registers(&[asm_code!(
        ".code16",
        "mov ebx, 1",
        "mov ecx, 2",
        "mov ebp, 3",
        "mov edi, 4",
        "mov edx, 5",
        "mov eax, 6",
    )]);
    check_eq!(after[2], lab::PORT.into(), "RDX");
    for (n, after) in after.into_iter().enumerate() {
        check_eq!(after, filled_or_saved(n), "register {n}");
    }
});

fn filled_or_saved(n: usize) -> u64 {
    map::filled(n).unwrap_or_else(|| map::saved_register(n))
}

test!(
    takes_registers,
    "General registers that SMM code changes in the map are changed by RSM.",
    || {
        const CHANGE: u64 = 0x5a5a_5a5a_a5a5_a5a5;
        let after = map::with_registers(&[asm_code!(
            ".code16",
            "mov edi, 0x3ff80",
            "mov ecx, 16",
            "2: xor dword ptr [edi], 0xa5a5a5a5",
            "xor dword ptr [edi + 4], 0x5a5a5a5a",
            "add edi, 8",
            "dec ecx",
            "jnz 2b",
            // Not RSP.
            "mov edi, 0x3ffd8",
            "xor dword ptr [edi], 0xa5a5a5a5",
            "xor dword ptr [edi + 4], 0x5a5a5a5a",
        )]);
        for (n, after) in after.into_iter().enumerate() {
            check_eq!(after, map::saved_register(n), "register {n}");
            if let Some(before) = map::filled(n) {
                check_eq!(after, before ^ CHANGE, "register {n}");
            }
        }
    }
);

test!(keeps_all, "Segments, tables, control and debug registers are as before the SMI.", || {
    code::install(&[asm_code!(
        ".code16",
        "mov eax, 0x30",
        "mov cr4, eax",
        "mov eax, cr0",
        "xor eax, 0x10002", // WP and MP
        "mov cr0, eax",
        "mov eax, 0x5000",
        "mov cr3, eax",
        "mov eax, 0x707",
        "mov dr7, eax",
        "mov eax, 0xffff0ff0",
        "mov dr6, eax",
        "lgdt [esi]",
        "lidt [esi]",
        "mov ax, 0x1234",
        "mov ds, ax",
        "mov es, ax",
        "mov fs, ax",
        "mov gs, ax",
        "mov ss, ax",
    )]);
    check_ok!(reg::set_dr(0, 0x1111));
    check_ok!(reg::set_dr(7, 0x1_0402));
    check_ok!(reg::set_dr(6, 0xffff_4ff1));
    check_ok!(reg::wrmsr(reg::FS_BASE, 0xffff_8000_1234_5000));
    let mut before = Chain::new();
    let (regs, sregs) = (before.get(kvm::GET_REGS), before.get(kvm::GET_SREGS));
    let debug = before.get(kvm::GET_DEBUGREGS);
    before.call(kvm::SMI, 0);
    let mut after = Chain::new();
    let (regs2, sregs2) = (after.get(kvm::GET_REGS), after.get(kvm::GET_SREGS));
    let debug2 = after.get(kvm::GET_DEBUGREGS);
    check_ok!(insn!(
        "out dx, eax", "mov eax, ecx", "out dx, eax";
        in("dx") lab::PORT, inout("eax") before.address() => _, in("ecx") after.address()
    ));
    check_eq!(code::count(), 1, "SMIs taken");
    check_eq!(meaning(sregs2.read()), meaning(sregs.read()), "special registers");
    check_eq!(debug2.read(), debug.read(), "debug registers");
    let (old, new) = (regs.read(), regs2.read());
    // MOV of 2 bytes, and OUT of 1.
    check_eq!(new, kvm::Regs { rip: old.rip + 3, rax: old.rcx, ..old }, "general registers");
});

/// Without what means nothing: the attributes of a segment that is not there.
fn meaning(mut s: kvm::Sregs) -> kvm::Sregs {
    let all = [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss, &mut s.ldt];
    for segment in all.into_iter().filter(|segment| segment.unusable != 0) {
        *segment = kvm::Segment {
            base: segment.base,
            selector: segment.selector,
            ..kvm::Segment::zeroed()
        };
    }
    s
}

test!(takes_rip, "RIP that SMM code changes in the map is where RSM goes on.", || {
    code::install(&[poking()]);
    let chain = code::smi_chain();
    poke(RIP, 0, 0);
    let (rip, skipped): (u64, u64);
    // The word that is added is that of the label behind what is skipped.
    check_ok!(insn!(
        "lea {rip}, [rip + 3f]", "mov dword ptr [0x36058], {rip:e}",
        "out dx, eax", "inc rcx", "3: nop";
        rip = out(reg) rip, inout("rcx") 0_u64 => skipped, in("dx") lab::PORT, in("eax") chain.address()
    ));
    check_eq!(code::count(), 1, "SMIs taken");
    check_eq!(skipped, 0, "times the instruction behind OUT ran");
    check_eq!(saved::<u64>(RIP), rip, "RIP in the map");
});

test!(takes_flags, "RFLAGS that SMM code changes in the map is what RSM sets.", || {
    code::install(&[poking()]);
    poke(RFLAGS, u32::MAX, 1 << 21 | 0x41);
    let chain = code::smi_chain();
    let flags: u64;
    check_ok!(insn!(
        "xor ecx, ecx", "inc ecx", "out dx, eax", "pushfq", "pop {}";
        out(reg) flags, out("ecx") _, in("dx") lab::PORT, in("eax") chain.address()
    ));
    check_eq!(flags & (1 << 21 | 0x41), 1 << 21 | 0x41, "ID, ZF and CF of {flags:#x}");
});

test!(takes_cr0_cr4, "CR0 and CR4 that SMM code changes in the map are what RSM sets.", || {
    for (field, read, bit) in [
        (CR0, reg::cr0 as fn() -> u64, reg::CR0_WP),
        (CR0, reg::cr0, reg::CR0_TS),
        (CR4, reg::cr4, reg::CR4_TSD),
        (CR4, reg::cr4, reg::CR4_DE),
    ] {
        code::install(&[poking()]);
        let before = read();
        let (keep, add) = match before & bit {
            0 => (u32::MAX, bit as u32),
            _ => (!(bit as u32), 0),
        };
        poke(field, keep, add);
        code::smi();
        check_eq!(read(), before ^ bit, "the register at {field:#x}");
        code::install(&[]);
        code::smi();
        check_eq!(read(), before ^ bit, "the register at {field:#x} after another SMI");
    }
});

test!(takes_efer, "EFER that SMM code changes in the map is what RSM sets.", || {
    code::install(&[poking()]);
    let before = check_ok!(reg::rdmsr(reg::EFER));
    check_ok!(reg::wrmsr(reg::EFER, before & !reg::EFER_SCE));
    poke(EFER, u32::MAX, reg::EFER_SCE as u32);
    code::smi();
    check_eq!(reg::rdmsr(reg::EFER), Ok(before | reg::EFER_SCE), "EFER");
});

test!(takes_cr3, "CR3 that SMM code changes in the map translates from RSM on.", || {
    const AT: u64 = 0x6000_0000;
    let (old, new) = (frames::alloc().address(), frames::alloc().address());
    check_ok!(mem::write(old, 0x1_u64));
    check_ok!(mem::write(new, 0x2_u64));
    paging::map(AT, old, paging::Size::K4, paging::Flags::RW);
    check_eq!(mem::read(AT), Ok(1_u64), "in the old tables");
    // The new tables are a copy of the old, down to the one that maps this page.
    let top = copied(reg::cr3() & !0xfff);
    let third = copied_below(top, AT >> 39 & 511);
    let second = copied_below(third, AT >> 30 & 511);
    let first = copied_below(second, AT >> 21 & 511);
    check_ok!(mem::write(first + 8 * (AT >> 12 & 511), new | 3));
    code::install(&[poking()]);
    poke(CR3, 0, top as u32);
    code::smi();
    check_eq!(reg::cr3(), top, "CR3");
    check_eq!(mem::read(AT), Ok(2_u64), "in the new tables");
});

fn copied(table: u64) -> u64 {
    let copy = frames::alloc().address();
    for at in (0..4096).step_by(8) {
        check_ok!(mem::write(copy + at, check_ok!(mem::read::<u64>(table + at))));
    }
    copy
}

/// Has entry `index` of a table lead to a copy of what it led to.
fn copied_below(table: u64, index: u64) -> u64 {
    let entry: u64 = check_ok!(mem::read(table + 8 * index));
    let copy = copied(entry & 0x000f_ffff_ffff_f000);
    check_ok!(mem::write(table + 8 * index, copy | entry & 0xfff));
    copy
}

test!(takes_dr7, "DR7 that SMM code changes in the map arms a breakpoint.", || {
    code::install(&[poking()]);
    poke(DR7, 0, 0x400 | 2 | 0xd << 16);
    check_ok!(reg::set_dr(0, 0x3_6044));
    code::smi();
    check_trap!(mem::write(0x3_6044, 0_u32), payload_rt::trap::DB, 0, "a write to what DR0 names");
    check_ok!(reg::set_dr(7, 0x400));
});

// SDM volume 2, RSM; APM volume 3, RSM.
test!(outside, "RSM outside of SMM is #UD, at CPL 0 and CPL 3.", || {
    check_trap!(insn!("rsm"), UD, 0, "RSM at CPL 0");
    let outcome = User::new(asm_code!("rsm", "ret")).run();
    let End::Trap(trap) = outcome.end else { payload_rt::fail!("{:?}", outcome.end) };
    check!(trap.is(UD, 0), "RSM at CPL 3: {trap}");
    code::install(&[]);
    code::smi();
    check_trap!(insn!("rsm"), UD, 0, "RSM after an SMI");
});

// APM 10.2.9; SDM "SMBASE Relocation": RSM takes SMBASE from the map.
test!(relocation, "SMBASE that SMM code changes in the map is where the next SMI goes.", || {
    // Processors since the Pentium want no alignment; the last one is beyond real mode's reach.
    for base in [0x4_0000, 0x4_1230, frames::alloc_range(16, 0x1_0000)] {
        relocate(base);
        // And back, so that the next round starts from there.
        poke_at(base);
        code::smi();
        code::install(&[]);
        code::smi();
        check_eq!(u64::from(saved::<u32>(SMBASE_FIELD)), SMBASE, "SMBASE after the way back");
    }
});

/// Has the code at `base` change SMBASE in its own map to what it is at first.
fn poke_at(base: u64) {
    code::install_at(base, &[poking()]);
    poke(base - SMBASE + SMBASE_FIELD, 0, SMBASE as u32);
}

/// Moves SMBASE, and checks that the next SMI is taken there.
pub fn relocate(base: u64) {
    code::install(&[poking()]);
    poke(SMBASE_FIELD, 0, base as u32);
    code::smi();
    // What is left at the old place would not resume.
    check_ok!(mem::write(SMBASE + code::ENTRY, 0x0b0f_u16));
    let mut chain = Chain::new();
    let sregs = chain.get(kvm::GET_SREGS);
    code::install_at(base, &[]);
    code::ask(&chain);
    code::smi();
    let cs = sregs.read().cs;
    check_eq!((cs.base, cs.selector), (base, (base >> 4) as u16), "CS");
    check_eq!(mem::read(base + SMBASE_FIELD), Ok(base as u32), "SMBASE in the map");
}

/// Values of the map that RSM shuts down for (SDM "Exiting from SMM"; APM 10.3.6).
const INVALID: [(u64, u32, u32, &str); 5] = [
    (CR4, u32::MAX, 1 << 31, "a reserved bit of CR4"),
    (CR0, !1, 0, "CR0.PG without PE"),
    (CR0, !(1 << 30), 1 << 29, "CR0.NW without CD"),
    (CR0 + 4, u32::MAX, 1, "bit 32 of CR0"),
    (CR4, !(1 << 5), 0, "EFER.LMA without CR4.PAE"),
];

test!(invalid, "RSM to a state that cannot be shuts down.", || {
    for (field, keep, add, what) in INVALID {
        code::install(&[poking()]);
        poke(field, keep, add);
        let exit =
            check_err!(lab::until_exit(lab::kind::SHUTDOWN, || lab::call(kvm::SMI)), "{what}");
        check_eq!(exit.kind, lab::kind::SHUTDOWN, "{what}");
        check_eq!(code::count(), 1, "SMIs taken with {what}");
    }
});

test!(shutdown, "A guest that shuts down in RSM ends as one with a triple fault.", || {
    code::install(&[poking()]);
    poke(CR4, u32::MAX, 1 << 31);
    check_ok!(lab::call(kvm::SMI));
});

// SMM begins with CR4 of 0; the map has CR4.LA57, and RSM goes back to what it stands for.
test!(keeps_five_levels, "A guest with five levels of paging has them again behind RSM.", || {
    const AT: u64 = 0xff12_3456_789a_b000;
    let root = levels::five();
    let frame = frames::alloc().address();
    paging::map(AT, frame, paging::Size::K4, paging::Flags::RW);
    code::install(&[asm_code!(".code16", "nop")]);
    for round in 0..4_u64 {
        check_ok!(mem::write(AT, round));
        code::smi();
        check_eq!(saved::<u64>(CR4) & reg::CR4_LA57, reg::CR4_LA57, "CR4.LA57 in the map");
        check_eq!(saved::<u64>(CR3), root, "CR3 in the map");
        check_eq!((reg::cr3(), reg::cr4() & reg::CR4_LA57), (root, reg::CR4_LA57), "CR3, LA57");
        check_eq!(mem::read::<u64>(AT), Ok(round), "memory at a 57-bit address");
        check_trap!(mem::read::<u64>(1 << 56), GP, 0, "an address of 58 bits");
    }
});
