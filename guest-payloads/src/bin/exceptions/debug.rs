//! #DB: single steps, breakpoints in code and on data, ICEBP, and the debug registers
//! (SDM volume 3, 18.2 and 18.3; AMD APM volume 2, 13.1).

use payload_rt::sync::SpinLock;
use payload_rt::trap::{DB, Frame, GP, UD};
use payload_rt::user::{End, User, code_address};
use payload_rt::{
    asm_code, check, check_eq, check_ok, check_trap, frames, idt, insn, irq, reg, test,
};

const B0: u64 = 1;
const BD: u64 = 1 << 13;
const BS: u64 = 1 << 14;
/// The bits of DR6 that say what happened.
const CAUSES: u64 = 0xf | BD | BS;
/// DR6 with none of them (SDM volume 3, table 10-1).
const DR6_CLEAR: u64 = 0xffff_0ff0;
const GD: u64 = 1 << 13;

/// One #DB: where, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hit {
    rip: u64,
    causes: u64,
}

const MAX: usize = 16;

struct Log {
    count: usize,
    hits: [Hit; MAX],
}

static LOG: SpinLock<Log> = SpinLock::new(Log { count: 0, hits: [Hit { rip: 0, causes: 0 }; MAX] });

/// Notes each #DB from now on, and goes on; a breakpoint in code does not hit twice.
fn record() {
    LOG.lock().count = 0;
    clear();
    irq::handle(DB, |frame: &mut Frame| {
        let causes = check_ok!(reg::dr(6)) & CAUSES;
        clear();
        let mut log = LOG.lock();
        let at = log.count.min(MAX - 1);
        log.hits[at] = Hit { rip: frame.rip, causes };
        log.count += 1;
        // As a debugger does; a step or a data breakpoint does not mind.
        frame.rflags |= reg::FLAG_RF;
        if log.count >= 64 {
            frame.rflags &= !reg::FLAG_TF;
        }
    });
}

fn clear() {
    check_ok!(reg::set_dr(6, DR6_CLEAR));
}

/// Checks what was noted: offsets from `base`, all of one cause.
fn check_hits(what: &str, base: u64, offsets: &[u64], causes: u64) {
    let log = LOG.lock();
    for (i, (hit, offset)) in log.hits.iter().zip(offsets).enumerate().take(log.count) {
        let seen = (hit.rip.wrapping_sub(base), hit.causes);
        check_eq!(seen, (*offset, causes), "#DB {i}, {what}: offset of RIP, and DR6");
    }
    check_eq!(log.count, offsets.len(), "number of #DB, {what}");
}

/// Runs code at CPL 3 to its end, single-stepping or not.
fn run(code: &[u8], rax: u64, step: bool) {
    let mut user = User::new(code);
    user.regs.rax = rax;
    user.regs.rcx = 3;
    user.regs.rflags |= if step { reg::FLAG_TF } else { 0 };
    check_eq!(user.run().end, End::Done, "the end of the code");
}

test!(step, "With RFLAGS.TF at CPL 3 there is a #DB behind each instruction, with DR6.BS.", || {
    record();
    let end = 0xff8; // where `ret` leads
    for (what, code, offsets) in [
        ("nops", asm_code!("nop", "nop", "nop", "ret"), &[1, 2, 3, end][..]),
        ("a jump", asm_code!("jmp 2f", "nop", "2: nop", "ret"), &[3, 4, end]),
        ("a push and a pop", asm_code!("push rax", "pop rbx", "ret"), &[1, 2, end]),
    ] {
        LOG.lock().count = 0;
        run(code, 0, true);
        check_hits(what, code_address(), offsets, BS);
    }
});

test!(step_string, "A string instruction has a #DB an iteration, the last one behind it.", || {
    record();
    run(asm_code!("lea rdi, [rsp - 64]", "rep stosb", "ret"), 0, true);
    check_hits("a string", code_address(), &[5, 5, 5, 7, 0xff8], BS);
});

test!(
    step_off,
    "POPF that clears TF is itself still followed by a #DB, and the next is not.",
    || {
        record();
        let code =
            asm_code!("pushfq", "and dword ptr [rsp], 0xfffffeff", "popfq", "nop", "nop", "ret");
        run(code, 0, true);
        check_hits("popfq that clears TF", code_address(), &[1, 8, 9], BS);
    }
);

test!(step_on, "POPF that sets TF is followed by a #DB behind the next instruction.", || {
    record();
    let code = asm_code!(
        "pushfq",
        "or dword ptr [rsp], 0x100",
        "popfq",
        "nop",
        "nop",
        "pushfq",
        "and dword ptr [rsp], 0xfffffeff",
        "popfq",
        "nop",
        "ret"
    );
    run(code, 0, false);
    check_hits("popfq that sets TF", code_address(), &[10, 11, 12, 19, 20], BS);
});

/// Instructions between a POPF that sets TF and one that clears it, at CPL 0.
macro_rules! stepped {
    ($($insn:literal),+ $(; $($operands:tt)*)?) => {{
        let at: u64;
        let done = insn!(
            "lea {at_}, [rip + 2f]", "pushfq", "or dword ptr [rsp], 0x100", "popfq",
            "2:", $($insn,)+ "pushfq", "and dword ptr [rsp], 0xfffffeff", "popfq";
            at_ = out(reg) at, $($($operands)*)?
        );
        check_ok!(done, "code that is stepped through");
        at
    }};
}

test!(step_kernel, "Single steps at CPL 0: a #DB behind each instruction.", || {
    record();
    let at = stepped!("nop", "nop", "mov eax, 5"; out("eax") _);
    check_hits("three instructions", at, &[1, 2, 7, 8, 15, 16], BS);
    // An instruction that leaves the guest is no exception.
    LOG.lock().count = 0;
    let at =
        stepped!("cpuid", "nop"; inout("eax") 0 => _, out("ecx") _, out("edx") _, lateout("r8") _);
    check_hits("cpuid", at, &[2, 3, 4, 11, 12], BS);
    LOG.lock().count = 0;
    let at = stepped!("in al, 0x61", "nop"; out("al") _);
    check_hits("in", at, &[2, 3, 4, 11, 12], BS);
});

// SDM volume 3, 7.8.3: MOV SS holds off debug exceptions until behind the next instruction.
test!(step_mov_ss, "A single step does not stop between MOV SS and the next instruction.", || {
    record();
    let at = stepped!("mov ss, ecx", "nop", "nop"; in("ecx") 0x10);
    check_hits("mov ss", at, &[3, 4, 5, 12, 13], BS);
});

// SDM volume 2, INT1; volume 3, 18.3.1.4: no bit of DR6 tells of it, and DPL does not matter.
test!(icebp, "INT1 is a #DB behind itself, whatever the gate's DPL, with no cause in DR6.", || {
    record();
    for dpl in [0, 3] {
        idt::set_dpl(DB, dpl);
        LOG.lock().count = 0;
        run(asm_code!("nop", ".byte 0xf1", "nop", "ret"), 0, false);
        check_hits("int1", code_address(), &[2], 0);
    }
});

/// DR7 with breakpoint `n`, in code or on data (`kind`: 0 code, 1 write, 3 read or write) of a
/// length (0 to 3: 1, 2, 8, 4 bytes).
const fn dr7(n: u32, kind: u64, len: u64) -> u64 {
    0x400 | 2 << (2 * n) | (kind | len << 2) << (16 + 4 * n)
}

test!(
    code_breakpoints,
    "Breakpoints in code at CPL 3 stop before the instruction, once, with RF.",
    || {
        record();
        let code = asm_code!("nop", "nop", "nop", "nop", "ret");
        for n in 0..4 {
            LOG.lock().count = 0;
            check_ok!(reg::set_dr(n, code_address() + 2));
            check_ok!(reg::set_dr(7, dr7(n.into(), 0, 0)));
            run(code, 0, false);
            check_ok!(reg::set_dr(7, 0x400));
            // DR6 may tell of one that is not enabled but fits.
            check_ok!(reg::set_dr(n, 0));
            check_hits("a breakpoint", code_address(), &[2], B0 << n);
        }
        LOG.lock().count = 0;
        run(code, 0, false);
        check_hits("none enabled", code_address(), &[], 0);
    }
);

test!(
    code_breakpoint_kernel,
    "A breakpoint in code at CPL 0 stops before the instruction, once.",
    || {
        record();
        let at: u64;
        // The second nop: set up within the same piece of code, which knows where it is.
        let done = insn!(
            "lea {0}, [rip + 2f]", "mov dr0, {0}", "mov {1}, dr7", "or {1}, 2", "mov dr7, {1}",
            "nop", "2: nop", "nop", "and {1}, -3", "mov dr7, {1}";
            out(reg) at, out(reg) _
        );
        check_ok!(done);
        check_hits("a breakpoint", at, &[0], B0);
    }
);

test!(
    data_breakpoints,
    "Data breakpoints hit accesses of their kind within their length, behind them.",
    || {
        record();
        // Behind the code, in its own page.
        let word = code_address() + 0x800;
        let read = asm_code!("mov bl, [rax]", "nop", "ret");
        let write = asm_code!("mov [rax], bl", "nop", "ret");
        let wide = asm_code!("mov [rax], rbx", "nop", "ret");
        for (kind, len, offset, code, hits, what) in [
            (1, 0, 0, write, true, "a write of the byte"),
            (1, 0, 1, write, false, "a write of the byte behind it"),
            (1, 0, -1, write, false, "a write of the byte before it"),
            (1, 0, 0, read, false, "a read, for writes"),
            (3, 0, 0, read, true, "a read, for reads and writes"),
            (3, 0, 0, write, true, "a write, for reads and writes"),
            (1, 1, 1, write, true, "the second of two bytes"),
            (1, 1, 2, write, false, "behind two bytes"),
            (1, 3, 3, write, true, "the last of four bytes"),
            (1, 3, 4, write, false, "behind four bytes"),
            (1, 2, 7, write, true, "the last of eight bytes"),
            (1, 2, 8, write, false, "behind eight bytes"),
            (1, 0, -7, wide, true, "the last byte of a wide write"),
            (1, 0, -8, wide, false, "behind a wide write"),
        ] {
            for n in 0..4 {
                LOG.lock().count = 0;
                check_ok!(reg::set_dr(n, word));
                check_ok!(reg::set_dr(7, dr7(n.into(), kind, len)));
                run(code, word.wrapping_add_signed(offset), false);
                check_ok!(reg::set_dr(7, 0x400));
                check_ok!(reg::set_dr(n, 0));
                let behind = if code.len() == 5 { 3 } else { 2 };
                let expected = [behind];
                check_hits(what, code_address(), &expected[..hits.into()], B0 << n);
            }
        }
    }
);

test!(data_breakpoint_kernel, "A data breakpoint hits a write at CPL 0, behind it.", || {
    record();
    let page = frames::alloc();
    check_ok!(reg::set_dr(1, page.address() + 16));
    check_ok!(reg::set_dr(7, dr7(1, 1, 2)));
    let at: u64;
    let done = insn!(
        "lea {1}, [rip + 2f]", "mov dword ptr [{0} + 20], 5", "2: nop";
        in(reg) page.address(), out(reg) at
    );
    check_ok!(reg::set_dr(7, 0x400));
    check_ok!(done);
    check_hits("a write", at, &[0], B0 << 1);
});

// SDM volume 3, 18.2.4: GD is cleared on the way into the handler.
test!(
    general_detect,
    "With DR7.GD an access to a debug register is #DB at it, with DR6.BD.",
    || {
        clear();
        for n in [0, 3, 6, 7] {
            for write in [false, true] {
                check_ok!(reg::set_dr(7, 0x400 | GD));
                let result = if write { reg::set_dr(n, 0) } else { reg::dr(n).map(drop) };
                let what = format_args!("access to DR{n}, a write: {write}");
                check_trap!(result, DB, 0, "{what}");
                check_eq!(check_ok!(reg::dr(7)), 0x400, "DR7 in the handler, {what}");
                check_eq!(check_ok!(reg::dr(6)) & CAUSES, BD, "DR6, {what}");
                clear();
            }
        }
    }
);

// SDM volume 3, 18.2.3 to 18.2.6.
test!(
    registers,
    "Debug registers keep what they have bits for; DR6 and DR7 refuse upper halves.",
    || {
        for n in 0..4 {
            for value in [u64::MAX, 0x1234_5678_9abc_def0, 0] {
                check_ok!(reg::set_dr(n, value), "DR{n} = {value:#x}");
                check_eq!(reg::dr(n), Ok(value), "DR{n}");
            }
        }
        // Bit 16 (RTM) and bit 11 (bus locks) read as zero only where the CPU has them.
        let fixed = 0xfffe_07f0;
        for value in [0, CAUSES, 0xffff_ffff] {
            check_ok!(reg::set_dr(6, value), "DR6 = {value:#x}");
            let seen = check_ok!(reg::dr(6));
            check_eq!(seen & fixed, fixed, "fixed ones of DR6 after {value:#x}");
            check_eq!(seen & CAUSES, value & CAUSES, "causes in DR6 after {value:#x}");
        }
        clear();
        for value in [0, 0x155, 0xf0f0_0000] {
            check_ok!(reg::set_dr(7, value), "DR7 = {value:#x}");
            check_eq!(reg::dr(7), Ok(value | 0x400), "DR7");
        }
        check_ok!(reg::set_dr(7, 0x400));
        for bit in [32, 47, 63] {
            for n in [6, 7] {
                let before = reg::dr(n);
                check_trap!(reg::set_dr(n, 0x400 | 1 << bit), GP, 0, "set bit {bit} of DR{n}");
                check_eq!(reg::dr(n), before, "DR{n} after the refused bit {bit}");
            }
        }
    }
);

// SDM volume 3, 18.2.3.
test!(dr6_zeroes, "Bit 12 and the upper half of DR6 stay zero.", || {
    for value in [0, CAUSES, 0xffff_ffff] {
        check_ok!(reg::set_dr(6, value), "DR6 = {value:#x}");
        let seen = check_ok!(reg::dr(6));
        check_eq!(seen >> 32 | seen & 1 << 12, 0, "fixed zeroes of DR6 after {value:#x}");
    }
    clear();
});

// SDM volume 3, 18.2.2.
test!(aliases, "DR4 and DR5 are DR6 and DR7 without CR4.DE, and #UD with it.", || {
    let cr4 = reg::cr4();
    check_ok!(reg::set_cr4(cr4 & !reg::CR4_DE));
    check_ok!(reg::set_dr(0, 0));
    check_ok!(reg::set_dr(5, 0x0010_0400), "DR5 without DE");
    check_eq!(reg::dr(7), Ok(0x0010_0400), "DR7 after DR5 was written");
    check_ok!(reg::set_dr(7, 0x400));
    check_eq!(reg::dr(5), Ok(0x400), "DR5 after DR7 was written");
    check_eq!(reg::dr(4), reg::dr(6), "DR4");
    check_ok!(reg::set_cr4(cr4 | reg::CR4_DE));
    for n in [4, 5] {
        check_trap!(reg::dr(n), UD, 0, "read DR{n} with DE");
        check_trap!(reg::set_dr(n, 0x400), UD, 0, "write DR{n} with DE");
    }
    check_ok!(reg::set_cr4(cr4));
    check!(reg::dr(7) == Ok(0x400), "DR7 is {:?}", reg::dr(7));
});
