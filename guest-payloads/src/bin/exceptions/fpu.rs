//! Floating-point exceptions at CPL 3: #MF, #XM, and #UD and #NM in their place.

use payload_rt::trap::{GP, MF, NM, UD, XM};
use payload_rt::user::{End, User, code_address};
use payload_rt::{asm_code, check, check_eq, check_ok, reg, test};

/// Where an excursion trapped: its vector and the offset in its code.
fn trapped(code: &[u8], rax: u64) -> Option<(u8, u64)> {
    let mut user = User::new(code);
    user.regs.rax = rax;
    match user.run().end {
        End::Done => None,
        End::Trap(trap) => {
            check_eq!(trap.error_code, 0, "error code of {trap}");
            Some((trap.vector, trap.rip - code_address()))
        }
        other => payload_rt::fail!("{other:?}"),
    }
}

// SDM volume 1, 8.6 and 8.7: an unmasked exception is pending until the next waiting instruction.
test!(user_mf, "An unmasked x87 exception is #MF at the next waiting x87 instruction.", || {
    // The control word from the stack; all masked but zero divide (bit 2).
    let divide = asm_code!(
        "push rax",
        "fninit",
        "fldcw [rsp]",
        "pop rax",
        "fld1",
        "fldz",
        "fdivp st(1), st",
        "nop",
        "fwait",
        "fninit",
        "ret"
    );
    let wait = divide.iter().position(|&byte| byte == 0x9b).unwrap_or(0) as u64;
    check!(wait > 8, "fwait is at {wait}");
    check_eq!(trapped(divide, 0x37b), Some((MF, wait)), "1 / 0 with zero divide unmasked");
    check_eq!(trapped(divide, 0x37f), None, "1 / 0 with all masked");
    // Not waiting: no trap.
    let cleared = asm_code!(
        "push rax",
        "fninit",
        "fldcw [rsp]",
        "pop rax",
        "fld1",
        "fldz",
        "fdivp st(1), st",
        "fnclex",
        "fwait",
        "fninit",
        "ret"
    );
    check_eq!(trapped(cleared, 0x37b), None, "1 / 0, cleared before it was waited for");
});

/// 1 / 0 with MXCSR from RAX.
fn divide() -> &'static [u8] {
    asm_code!(
        "push rax",
        "ldmxcsr [rsp]",
        "pop rax",
        "xorps xmm1, xmm1",
        "mov ecx, 0x3f800000",
        "movd xmm0, ecx",
        "divss xmm0, xmm1",
        "ret"
    )
}

/// Where it divides.
fn division() -> u64 {
    divide().len() as u64 - 5
}

// SDM volume 1, 11.5.2 and 11.5.3; volume 3, 7.15, #XM.
test!(user_xm, "An unmasked SSE exception is #XM at its instruction.", || {
    check_eq!(trapped(divide(), 0x1f80), None, "1 / 0 with all masked");
    check_eq!(trapped(divide(), 0x1d80), Some((XM, division())), "with zero divide unmasked");
});

// SDM volume 1, 10.2.3.
test!(user_mxcsr, "LDMXCSR of a reserved bit is #GP(0).", || {
    let load = asm_code!("push rax", "ldmxcsr [rsp]", "pop rax", "ret");
    check_eq!(trapped(load, 1 << 31), Some((GP, 1)), "ldmxcsr of bit 31");
    check_eq!(trapped(load, 0x1f80), None, "ldmxcsr of what a reset leaves");
});

// SDM volume 3, 2.5 (OSXMMEXCPT).
test!(user_no_xm, "Without CR4.OSXMMEXCPT an unmasked SSE exception is #UD.", || {
    let cr4 = reg::cr4();
    check_ok!(reg::set_cr4(cr4 & !reg::CR4_OSXMMEXCPT));
    check_eq!(trapped(divide(), 0x1d80), Some((UD, division())), "zero divide unmasked");
    check_eq!(trapped(divide(), 0x1f80), None, "1 / 0 with all masked");
    check_ok!(reg::set_cr4(cr4));
});

// SDM volume 3, 2.5: EM makes x87 instructions #NM and SSE ones #UD; so does a clear OSFXSR.
test!(user_em, "With CR0.EM x87 is #NM and SSE #UD at CPL 3; SSE is #UD without OSFXSR.", || {
    let (cr0, cr4) = (reg::cr0(), reg::cr4());
    let x87 = asm_code!("fninit", "ret");
    let sse = asm_code!("xorps xmm1, xmm1", "ret");
    check_ok!(reg::set_cr0(cr0 | reg::CR0_EM));
    check_eq!(trapped(x87, 0), Some((NM, 0)), "x87 with EM");
    check_eq!(trapped(sse, 0), Some((UD, 0)), "SSE with EM");
    check_ok!(reg::set_cr0(cr0));
    check_ok!(reg::set_cr4(cr4 & !reg::CR4_OSFXSR));
    check_eq!(trapped(sse, 0), Some((UD, 0)), "SSE without OSFXSR");
    check_eq!(trapped(x87, 0), None, "x87 without OSFXSR");
    check_ok!(reg::set_cr4(cr4));
    check_eq!(trapped(sse, 0), None, "SSE with both right again");
});
