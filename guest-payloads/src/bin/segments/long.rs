//! Segments in long mode: 64-bit mode, which ignores most of them, and compatibility mode, which does not
//! (Intel SDM volume 3, 3.2.4, 3.4.4, 6.2.1, 6.3.1; AMD APM volume 2, 4.5.3, 4.8, 4.12).

use payload_rt::cpu::{self, FREE_SELECTOR, KERNEL_DS};
use payload_rt::legacy::table::{self, BIG, DPL3, segment};
use payload_rt::reg::{self, wrmsr};
use payload_rt::trap::{GP, NP, SS, Trap, catch};
use payload_rt::user::{End, User};
use payload_rt::{
    asm_code, check, check_eq, check_ok, check_trap, frames, insn, insn_raw, mem, test,
};

test!(long_ignored, "64-bit mode ignores base, limit and read-only type of DS, ES and SS.", || {
    let page = frames::alloc();
    check_ok!(mem::write(page.address() + 0x100, 0x1122_3344_u32));
    let small = cpu::set_descriptor(0, segment(0x5000, 0, table::READ_ONLY) | BIG);
    let stack = cpu::set_descriptor(1, segment(0x5000, 0, table::WRITABLE));
    let (first, second, third): (u32, u32, u64);
    let result = insn!(
        "mov ds, {small:x}", "mov es, {small:x}", "mov ss, {stack:x}",
        "mov {first:e}, [{at}]", "mov {second:e}, es:[{at}]",
        "mov [{at}], {second:e}", "push {at}", "pop {third}",
        "mov ss, {ds:x}", "mov ds, {ds:x}", "mov es, {ds:x}";
        small = in(reg) small, stack = in(reg) stack, ds = in(reg) KERNEL_DS,
        at = in(reg) page.address() + 0x100,
        first = out(reg) first, second = out(reg) second, third = out(reg) third
    );
    check_ok!(result, "accesses in 64-bit mode");
    check_eq!((first, second), (0x1122_3344, 0x1122_3344), "what was read");
    check_eq!(third, page.address() + 0x100, "what was pushed");
});

test!(long_null, "64-bit mode reads and writes through null DS, ES, FS and GS.", || {
    let page = frames::alloc();
    check_ok!(wrmsr(reg::FS_BASE, 0));
    check_ok!(wrmsr(reg::GS_BASE, 0));
    let result = insn!(
        "mov ds, {zero:x}", "mov es, {zero:x}",
        "mov [{at}], {at}", "mov es:[{at}], {at}", "mov fs:[{at}], {at}", "mov gs:[{at}], {at}",
        "mov ds, {ds:x}", "mov es, {ds:x}";
        zero = in(reg) 0, ds = in(reg) KERNEL_DS, at = in(reg) page.address()
    );
    check_ok!(result, "accesses through null selectors");
    check_eq!(mem::read(page.address()), Ok(page.address()), "what was written");
});

test!(
    long_bases,
    "64-bit mode adds the bases of FS and GS, which a load takes from the GDT, and no limit.",
    || {
        let page = frames::alloc();
        let at = page.address();
        check_ok!(mem::write(at + 0x40, 0x6060_7070_u32));
        let selector = cpu::set_descriptor(0, segment(at as u32, 0, table::WRITABLE) | BIG);
        let (by_fs, by_gs): (u32, u32);
        check_ok!(insn!(
            "mov fs, {s:x}", "mov gs, {s:x}", "mov {a:e}, fs:[{offset}]", "mov {b:e}, gs:[{offset}]";
            s = in(reg) selector, offset = in(reg) 0x40_u64, a = out(reg) by_fs, b = out(reg) by_gs
        ));
        check_eq!((by_fs, by_gs), (0x6060_7070, 0x6060_7070), "what was read");
        check_eq!(reg::rdmsr(reg::FS_BASE), Ok(at), "FS_BASE after the load");
        check_eq!(reg::rdmsr(reg::GS_BASE), Ok(at), "GS_BASE after the load");
        // The MSR has all 64 bits, and base plus offset wraps.
        check_ok!(wrmsr(reg::FS_BASE, at.wrapping_sub(0x1_0000_0000)));
        check_ok!(
            insn!("mov {a:e}, fs:[{offset}]"; offset = in(reg) 0x1_0000_0040_u64, a = out(reg) _)
        );
        check_ok!(wrmsr(reg::FS_BASE, 0xffff_ffff_ffff_0000));
        let value: u32;
        check_ok!(
            insn!("mov {a:e}, fs:[{offset}]"; offset = in(reg) at + 0x1_0040, a = out(reg) value)
        );
        check_eq!(value, 0x6060_7070, "read around the end of the address space");
        // A load zeroes the upper half.
        check_ok!(reg::set_fs(selector));
        check_eq!(reg::rdmsr(reg::FS_BASE), Ok(at), "FS_BASE after another load");
    }
);

test!(long_canonical, "Base plus offset that is not canonical is #GP(0) with FS and GS.", || {
    check_ok!(wrmsr(reg::FS_BASE, 0x7fff_ffff_f000));
    check_ok!(wrmsr(reg::GS_BASE, 0xffff_8000_0000_0000));
    let high: u64 = if reg::cr4() & reg::CR4_LA57 != 0 { 1 << 60 } else { 0x1000 };
    check_trap!(insn!("mov rax, fs:[{}]"; in(reg) high, out("rax") _), GP, 0, "fs, one page on");
    check_trap!(
        insn!("mov rax, gs:[{}]"; in(reg) -8_i64, out("rax") _),
        GP,
        0,
        "gs, below its base"
    );
});

test!(long_ldt, "LLDT in 64-bit mode takes a descriptor of 16 bytes; TI leads there.", || {
    let page = frames::alloc();
    let at = page.address();
    check_ok!(mem::write(at + 8, segment(0x4000, 0xfff, table::WRITABLE) | BIG));
    let low = segment(at as u32, 15, table::AN_LDT);
    let selector = cpu::set_descriptor(0, low);
    cpu::set_descriptor(1, at >> 32);
    let lldt = |selector: u16| insn!("lldt {:x}"; in(reg) selector);
    check_ok!(lldt(selector));
    let stored: u16;
    check_ok!(insn!("sldt {:x}"; out(reg) stored));
    check_eq!(stored, selector, "SLDT");
    check_ok!(reg::set_fs(8 | 4), "a selector in the LDT");
    check_eq!(reg::rdmsr(reg::FS_BASE), Ok(0x4000), "FS_BASE");
    check_trap!(reg::set_fs(16 | 4), GP, 16 | 4, "a selector beyond the LDT");
    check_ok!(reg::set_fs(0));
    check_ok!(lldt(0));
    check_trap!(reg::set_fs(8 | 4), GP, 8 | 4, "a selector in no LDT");
});

/// Runs 32-bit code in compatibility mode at CPL 0, on this stack; it ends at its last instruction, which
/// returns to 64-bit code. RBX is given to it and comes back as what it made of it.
fn compat(code: &[u8], rbx: u64) -> Result<u64, Trap> {
    let mut page = frames::alloc();
    page.bytes()[..code.len()].copy_from_slice(code);
    let at = page.address();
    catch(|| {
        let value: u64;
        insn_raw!(
            // For RETF in 32-bit code: CS and EIP as two dwords.
            "push rbx", "lea rax, [rip + 2f]", "sub rsp, 8", "mov [rsp], eax", "mov dword ptr [rsp + 4], 8",
            "push 0x30", "push {at}", "mov rbx, {value}", "retfq", "2:", "mov {value}, rbx", "pop rbx";
            at = in(reg) at, value = inout(reg) rbx => value, out("rax") _, out("rcx") _, out("rdx") _
        );
        value
    })
}

test!(compat_and_back, "A far return goes to compatibility mode, and another comes back.", || {
    // `dec eax` there is a REX prefix here; and results are 32 bits.
    let code = asm_code!(".code32", "mov eax, 7", ".byte 0x48", "mov ebx, eax", "retf");
    check_eq!(compat(code, 0xffff_ffff), Ok(6), "EBX in compatibility mode");
});

test!(compat_limits, "Compatibility mode keeps to limits, types and null selectors.", || {
    let page = frames::alloc();
    let at = page.address() as u32;
    let small = u64::from(cpu::set_descriptor(0, segment(at, 0xff, table::WRITABLE) | BIG));
    let read_only = u64::from(cpu::set_descriptor(1, segment(at, 0xffff, table::READ_ONLY) | BIG));
    let down = u64::from(cpu::set_descriptor(2, segment(at, 0xff, table::EXPAND_DOWN) | BIG));
    let good = asm_code!(".code32", "mov es, ebx", "mov ebx, es:[0xfc]", "retf");
    check_ok!(mem::write(page.address() + 0xfc, 0x600d_u32));
    check_eq!(compat(good, small), Ok(0x600d), "the last dword");
    let over = asm_code!(".code32", "mov es, ebx", "mov ebx, es:[0xfd]", "retf");
    check_trap!(compat(over, small), GP, 0, "over the limit");
    check_trap!(compat(good, down), GP, 0, "up to the limit of an expand-down segment");
    check_trap!(compat(good, 0), GP, 0, "through a null selector");
    let write = asm_code!(".code32", "mov es, ebx", "mov es:[0], ebx", "retf");
    check_trap!(compat(write, read_only), GP, 0, "a write to read-only data");
    check_ok!(reg::set_es(KERNEL_DS));
});

test!(
    compat_stack,
    "Compatibility mode takes no null SS: #GP(0), and absent ones are #SS.",
    || {
        let load = asm_code!(".code32", "mov ss, ebx", "retf");
        check_trap!(compat(load, 0), GP, 0, "a null SS");
        let absent = cpu::set_descriptor(0, segment(0, 0xffff, 0x13));
        check_trap!(compat(load, absent.into()), SS, u64::from(absent), "an absent SS");
        let load = asm_code!(".code32", "mov fs, ebx", "retf");
        check_trap!(compat(load, absent.into()), NP, u64::from(absent), "an absent FS");
        check_eq!(
            compat(asm_code!(".code32", "mov ebx, ss", "retf"), 0),
            Ok(KERNEL_DS.into()),
            "SS"
        );
    }
);

test!(
    compat_outer,
    "At CPL 3 in compatibility mode SS's limit holds, and in 64-bit mode it does not.",
    || {
        let stack = cpu::set_descriptor(0, segment(0, 0xfff, table::WRITABLE | DPL3) | BIG) | 3;
        let mut user = User::new(asm_code!("push rax", "pop rax", "ret")).compat();
        user.regs.ss = stack.into();
        let End::Trap(trap) = user.run().end else { payload_rt::fail!("no trap") };
        check!(trap.is(SS, 0), "push beyond the limit: {trap}");
        let mut user = User::new(asm_code!("push rax", "pop rax", "ret"));
        user.regs.ss = stack.into();
        check_eq!(user.run().end, End::Done, "the same in 64-bit mode");
    }
);

/// A far JMP through memory to the next instruction in this code segment, and what came of it.
fn far_jmp(selector: u16) -> Result<(), Trap> {
    let page = frames::alloc();
    check_ok!(mem::write(page.address() + 4, selector));
    catch(|| {
        insn_raw!(
            "lea rax, [rip + 2f]", "mov [{at}], eax", "jmp fword ptr [{at}]", "2:";
            at = in(reg) page.address(), out("rax") _
        )
    })
}

test!(long_far, "Far JMP through memory in 64-bit mode; null, data and absent code fault.", || {
    check_ok!(far_jmp(cpu::KERNEL_CS), "to the 64-bit code segment");
    let absent = cpu::set_descriptor(0, 0x00af_1b00_0000_ffff);
    for (what, bad, vector) in [
        ("null", 0, GP),
        ("data", KERNEL_DS, GP),
        ("absent code", absent, NP),
        ("code of DPL 3", cpu::USER_CS & !3, GP),
        ("beyond the GDT", FREE_SELECTOR + 8 * cpu::GDT_FREE_SLOTS as u16, GP),
    ] {
        check_trap!(far_jmp(bad), vector, u64::from(bad), "jmp to {what}");
    }
});

test!(long_far_system, "A far JMP in 64-bit mode to the TSS is #GP(selector).", || {
    check_trap!(far_jmp(cpu::TSS_SELECTOR), GP, u64::from(cpu::TSS_SELECTOR), "jmp to the TSS");
});

// SDM volume 3, 3.4.5: with L set, D must be clear.
test!(long_far_both, "A far JMP to a code segment with both L and D is #GP(selector).", || {
    let both = cpu::set_descriptor(0, 0x00ef_9b00_0000_ffff);
    check_trap!(far_jmp(both), GP, u64::from(both), "jmp to code with L and D");
});

// SDM volume 2, JMP, CALL, PUSH and POP: "invalid in 64-bit mode".
test!(
    long_invalid,
    "64-bit mode has no direct far JMP and CALL, and no PUSH and POP of CS, SS, DS, ES.",
    || {
        for (what, code) in [
            ("jmp ptr16:32", asm_code!(".byte 0xea, 0, 0, 0, 0, 0x2b, 0")),
            ("call ptr16:32", asm_code!(".byte 0x9a, 0, 0, 0, 0, 0x2b, 0")),
            ("push ds", asm_code!(".byte 0x1e")),
            ("push cs", asm_code!(".byte 0x0e")),
            ("push ss", asm_code!(".byte 0x16")),
            ("pop ds", asm_code!(".byte 0x1f")),
            ("pop es", asm_code!(".byte 0x07")),
        ] {
            let End::Trap(trap) = User::new(code).run().end else {
                payload_rt::fail!("{what}: no trap")
            };
            check!(trap.is(payload_rt::trap::UD, 0), "{what}: {trap}");
        }
    }
);
