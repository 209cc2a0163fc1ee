//! Exceptions at CPL 3, 64-bit and 32-bit.

use super::{check_registers, check_rf};
use payload_rt::trap::{AC, BP, BR, DB, DE, Frame, GP, NM, OF, SS, UD};
use payload_rt::user::{End, User, code_address};
use payload_rt::{asm_code, check, check_eq, check_ok, idt, reg, test};

/// A way to raise an exception.
struct Way {
    what: &'static str,
    code: &'static [u8],
    compat: bool,
    vector: u8,
    /// Where RIP is: the instruction's offset for a fault, the next one's for a trap.
    at: u64,
}

fn way(what: &'static str, code: &'static [u8], vector: u8, at: u64) -> Way {
    Way { what, code, compat: false, vector, at }
}

fn compat(what: &'static str, code: &'static [u8], vector: u8, at: u64) -> Way {
    Way { compat: true, ..way(what, code, vector, at) }
}

/// Registers to tell from each other, good as operands of the instructions below.
fn registers() -> Frame {
    let User { regs, .. } = User::at(0);
    Frame {
        rax: 0x1000_0001,
        rbx: 0x2222,
        rcx: 0,
        rdx: 0x4444,
        rsi: 0x5555,
        rdi: 0x6666,
        rbp: 0x7777,
        r8: 0x8888,
        r15: 0xffff,
        ..regs
    }
}

fn run(way: &Way) {
    let mut user = User::new(way.code);
    if way.compat {
        user = user.compat();
    }
    let start = user.regs;
    user.regs = Frame {
        rip: start.rip,
        cs: start.cs,
        rflags: start.rflags,
        rsp: start.rsp,
        ss: start.ss,
        ..registers()
    };
    let outcome = user.run();
    let what = way.what;
    let End::Trap(trap) = outcome.end else {
        payload_rt::fail!("{what}: {:?}, must be vector {}", outcome.end, way.vector)
    };
    check!(trap.is(way.vector, 0), "{what}: {trap}, must be vector {} error 0", way.vector);
    check_eq!(trap.rip, code_address() + way.at, "RIP, {what}");
    check_eq!(outcome.regs.cs, start.cs, "CS, {what}");
    check_eq!(outcome.regs.ss, start.ss, "SS, {what}");
    check_eq!(outcome.regs.rsp, start.rsp, "RSP, {what}");
    check_registers(&outcome.regs, &user.regs, what);
    if !matches!(way.vector, BP | OF | DB) {
        check_rf(outcome.regs.rflags, what);
    }
}

// SDM volume 3, 7.15 (each vector's class and error code); AMD APM volume 2, 8.2.
test!(
    user_faults,
    "Faults at CPL 3 have their vector and code, RIP at the instruction, and RF.",
    || {
        for way in [
            way("div by 0", asm_code!("div ecx"), DE, 0),
            way("idiv by 0", asm_code!("idiv rcx"), DE, 0),
            way("div of 8 bits by 0", asm_code!("div cl"), DE, 0),
            way("a quotient too large", asm_code!("nop", "div bx"), DE, 1),
            way("ud2", asm_code!("ud2"), UD, 0),
            way("ud2 behind nops", asm_code!("nop", "nop", "nop", "ud2"), UD, 3),
            way("push es in 64-bit code", asm_code!(".byte 0x06"), UD, 0),
            way("hlt", asm_code!("hlt"), GP, 0),
            way("a load of CS", asm_code!(".byte 0x8e, 0xc8"), UD, 0),
            way("lock of a register", asm_code!(".byte 0xf0, 0x01, 0xc0"), UD, 0),
            way("16 bytes", asm_code!(".rept 15", ".byte 0x66", ".endr", "nop"), GP, 0),
        ] {
            run(&way);
        }
    }
);

test!(user_into, "INTO is #UD in 64-bit code at CPL 3, too.", || {
    run(&way("into in 64-bit code", asm_code!(".byte 0xce"), UD, 0));
});

/// Checks an access to an address that is not canonical, by R14, RSI, RBP, or RSP if `by_rsp`.
fn check_canonical(what: &str, code: &'static [u8], vector: u8, by_rsp: bool) {
    let mut user = User::new(code);
    (user.regs.r14, user.regs.rbp, user.regs.rsi) = (FAR, FAR, FAR);
    if by_rsp {
        user.regs.rsp = FAR;
    }
    let outcome = user.run();
    let End::Trap(trap) = outcome.end else { payload_rt::fail!("{what}: {:?}", outcome.end) };
    check!(trap.is(vector, 0), "{what}: {trap}, must be vector {vector} error 0");
    check_eq!(trap.rip, code_address(), "RIP, {what}");
    check_eq!(outcome.regs.rsp, user.regs.rsp, "RSP, {what}");
}

/// An address that is not canonical.
const FAR: u64 = 1 << 63;

test!(user_canonical, "At CPL 3 an address that is not canonical is #GP(0).", || {
    check_canonical("read", asm_code!("mov rax, [r14]"), GP, false);
    check_canonical("write", asm_code!("mov [r14], rax"), GP, false);
    check_canonical("string", asm_code!("movsb"), GP, false);
    // The fault of a jump there is the jump's, or on AMD that of the fetch behind it.
    let mut user = User::new(asm_code!("jmp r14"));
    user.regs.r14 = FAR;
    let End::Trap(trap) = user.run().end else { payload_rt::fail!("jmp went somewhere") };
    check!(trap.is(GP, 0), "jmp: {trap}, must be #GP(0)");
    check!([code_address(), FAR].contains(&trap.rip), "RIP of {trap}, by jmp to {FAR:#x}");
});

// SDM volume 1, 3.3.7.1.
test!(user_canonical_stack, "At CPL 3 such an address by the stack is #SS(0).", || {
    check_canonical("read by RBP", asm_code!("mov rax, [rbp]"), SS, false);
    check_canonical("read by RSP", asm_code!("mov rax, [rsp]"), SS, true);
    check_canonical("push", asm_code!("push rax"), SS, true);
    check_canonical("pop", asm_code!("pop rax"), SS, true);
    check_canonical("call", asm_code!("call 2f", "2: nop"), SS, true);
});

// SDM volume 3, 7.15, #BP: a trap, through a gate of DPL 3.
test!(user_traps, "INT3 at CPL 3 is #BP, behind it.", || {
    idt::set_dpl(BP, 3);
    for way in [
        way("int3", asm_code!("int3", "nop"), BP, 1),
        way("int3 behind two nops", asm_code!("nop", "nop", "int3"), BP, 3),
    ] {
        run(&way);
    }
});

// SDM volume 2, INTO and BOUND; `int3` and `into` need gates of DPL 3, #BR does not.
test!(user_32, "In 32-bit code INTO is #OF behind it, and BOUND is #BR at it.", || {
    idt::set_dpl(BP, 3);
    idt::set_dpl(OF, 3);
    run(&compat("int3 in 32-bit code", asm_code!(".code32", "int3"), BP, 1));
    // 0x1000_0001 * 8 overflows 32 bits.
    let into = asm_code!(".code32", "push eax", "imul eax, eax, 8", "pop eax", "into");
    run(&compat("into with OF", into, OF, 6));
    let no_overflow = asm_code!(".code32", "xor ebx, ebx", "into", "ret");
    check_eq!(User::new(no_overflow).compat().run().end, End::Done, "into without OF");
    // `bound eax, [esp - 64]`: the bounds, 0 and 0, lie below the stack pointer.
    let bound = asm_code!(".code32", ".byte 0x62, 0x44, 0x24, 0xc0", "ret");
    run(&compat("bound", bound, BR, 0));
    check_eq!(User::new(bound).compat().run().end, End::Done, "bound of 0 in 0 to 0");
    run(&compat("div by 0 in 32-bit code", asm_code!(".code32", "div ecx"), DE, 0));
    run(&compat("hlt in 32-bit code", asm_code!(".code32", "nop", "hlt"), GP, 1));
    run(&compat("ud2 in 32-bit code", asm_code!(".code32", "nop", "ud2"), UD, 1));
});

// SDM volume 3, 2.5 (EM, TS, MP) and 7.15, #NM.
test!(
    user_nm,
    "With CR0.TS, x87 and SSE instructions at CPL 3 are #NM; FWAIT with MP too.",
    || {
        let cr0 = reg::cr0();
        let codes = || {
            [
                ("fninit", asm_code!("fninit", "ret")),
                ("fld1", asm_code!("fld1", "fstp st(0)", "ret")),
                ("movups", asm_code!("movups xmm0, [rsp - 64]", "ret")),
                ("xorps", asm_code!("xorps xmm1, xmm1", "ret")),
                ("fwait", asm_code!("fwait", "ret")),
            ]
        };
        check_ok!(reg::set_cr0(cr0 | reg::CR0_TS | reg::CR0_MP));
        for (what, code) in codes() {
            let outcome = User::new(code).run();
            let End::Trap(trap) = outcome.end else {
                payload_rt::fail!("{what}: {:?}", outcome.end)
            };
            check!(trap.is(NM, 0) && trap.rip == code_address(), "{what}: {trap}, must be #NM");
            check_rf(outcome.regs.rflags, what);
        }
        check_ok!(reg::set_cr0(cr0 & !reg::CR0_TS));
        for (what, code) in codes() {
            check_eq!(User::new(code).run().end, End::Done, "{what} with TS clear again");
        }
    }
);

// SDM volume 3, 7.15, #AC: CPL 3, CR0.AM and RFLAGS.AC; error code 0.
test!(user_ac, "#AC needs CPL 3, CR0.AM and RFLAGS.AC, and an access off its size.", || {
    let cr0 = reg::cr0();
    for (am, ac, offset, faults) in [
        (true, true, 1, true),
        (true, true, 4, true),
        (true, true, 8, false),
        (true, false, 1, false),
        (false, true, 1, false),
        (false, false, 1, false),
    ] {
        check_ok!(reg::set_cr0(if am { cr0 | reg::CR0_AM } else { cr0 & !reg::CR0_AM }));
        for (what, code) in [
            ("read", asm_code!("mov rbx, [rax]", "ret")),
            ("write", asm_code!("mov [rax], rbx", "ret")),
        ] {
            let mut user = User::new(code);
            user.regs.rax = (user.regs.rsp & !15) - 64 + offset;
            user.regs.rflags |= if ac { reg::FLAG_AC } else { 0 };
            let end = user.run().end;
            match end {
                End::Done => check!(!faults, "{what}, AM {am}, AC {ac}, off by {offset}: no fault"),
                End::Trap(trap) => {
                    let fits = faults && trap.is(AC, 0) && trap.rip == code_address();
                    check!(fits, "{what}, AM {am}, AC {ac}, off by {offset}: {trap}");
                }
                other => payload_rt::fail!("{what}: {other:?}"),
            }
        }
    }
    check_ok!(reg::set_cr0(cr0));
});
