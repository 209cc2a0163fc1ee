//! Segments and their privilege checks (SDM volume 3, 6.5 to 6.8 and volume 2, MOV, LAR, RETF).

use super::{check_done, check_end};
use payload_rt::cpu::{self, FREE_SELECTOR, KERNEL_CS, KERNEL_DS, TSS_SELECTOR, USER_CS, USER_DS};
use payload_rt::trap::{GP, NP, SS};
use payload_rt::user::User;
use payload_rt::{asm_code, check_eq, test};

/// A flat writable data segment of DPL 3.
const DATA: u64 = 0x00cf_f300_0000_ffff;
const PRESENT: u64 = 1 << 47;

fn with_rax(code: &[u8], rax: u64) -> User {
    let mut user = User::new(code);
    user.regs.rax = rax;
    user
}

test!(loads, "Segment registers at CPL 3 take what they may, and fault with the selector.", || {
    let absent = cpu::set_descriptor(0, DATA & !PRESENT) | 3;
    let user = cpu::set_descriptor(1, DATA) | 3;
    let code = cpu::set_descriptor(2, 0x00cf_f900_0000_ffff) | 3; // execute-only
    let beyond = (FREE_SELECTOR + 8 * cpu::GDT_FREE_SLOTS as u16) | 3;
    let loads = [
        ("ds", asm_code!("mov ds, eax", "ret")),
        ("es", asm_code!("mov es, eax", "ret")),
        ("fs", asm_code!("mov fs, eax", "ret")),
        ("gs", asm_code!("mov gs, eax", "ret")),
    ];
    for (name, load) in loads {
        for good in [0, 3, USER_DS, user, user & !3, USER_CS] {
            check_done(&with_rax(load, good.into()).run(), name);
        }
        for (bad, vector) in [
            (KERNEL_DS, GP),
            (KERNEL_DS | 3, GP),
            (TSS_SELECTOR, GP),
            (code, GP),
            (beyond, GP),
            (0xfffc, GP),
            (absent, NP),
        ] {
            let outcome = with_rax(load, bad.into()).run();
            // The error code has the table indicator and no RPL.
            check_end(&outcome, name, vector, u64::from(bad & !3), 0);
        }
    }
    let load = asm_code!("mov ss, eax", "ret");
    for good in [USER_DS, user] {
        check_done(&with_rax(load, good.into()).run(), "ss");
    }
    for (bad, vector) in [
        (0, GP),
        (3, GP),
        (KERNEL_DS, GP),
        (USER_DS & !3, GP),
        (USER_CS, GP),
        (beyond, GP),
        (absent, SS),
    ] {
        let outcome = with_rax(load, bad.into()).run();
        check_end(&outcome, "ss", vector, u64::from(bad & !3), 0);
    }
});

test!(looks, "LAR, LSL, VERR and VERW at CPL 3 tell only of segments that it may use.", || {
    for (selector, lar, lsl, verr, verw) in [
        (USER_DS, true, true, true, true),
        (USER_CS, true, true, true, false),
        (KERNEL_DS, false, false, false, false),
        (KERNEL_CS, false, false, false, false),
        (TSS_SELECTOR, false, false, false, false),
        (0, false, false, false, false),
        (0xfff8, false, false, false, false),
    ] {
        let looks = [
            ("lar", lar, asm_code!("lar ebx, eax", "setz cl", "ret")),
            ("lsl", lsl, asm_code!("lsl ebx, eax", "setz cl", "ret")),
            ("verr", verr, asm_code!("verr ax", "setz cl", "ret")),
            ("verw", verw, asm_code!("verw ax", "setz cl", "ret")),
        ];
        for (name, visible, code) in looks {
            let outcome = with_rax(code, selector.into()).run();
            check_done(&outcome, name);
            check_eq!(outcome.regs.rcx, u64::from(visible), "{name} of selector {selector:#x}");
            match (visible, name) {
                (true, "lar") => {
                    let dpl = outcome.regs.rbx >> 13 & 3;
                    check_eq!(dpl, 3, "DPL by lar of {selector:#x}");
                }
                (true, "lsl") => {
                    check_eq!(outcome.regs.rbx, 0xffff_ffff, "lsl of selector {selector:#x}");
                }
                _ => check_eq!(outcome.regs.rbx, 0, "RBX after {name} of {selector:#x}"),
            }
        }
    }
});

test!(inward, "CPL 3 cannot return to CPL 0, by RETF or IRET.", || {
    let far = asm_code!("push rax", "push rsp", "retfq");
    let outcome = with_rax(far, KERNEL_CS.into()).run();
    check_end(&outcome, "retfq to CPL 0", GP, KERNEL_CS.into(), 2);
    let interrupt = asm_code!("push 0x23", "push rsp", "pushfq", "push rax", "push rbx", "iretq");
    let outcome = with_rax(interrupt, KERNEL_CS.into()).run();
    check_end(&outcome, "iretq to CPL 0", GP, KERNEL_CS.into(), 6);
    let null = with_rax(interrupt, 0).run();
    check_end(&null, "iretq to a null selector", GP, 0, 6);
    let same = with_rax(asm_code!("pop rbx", "push rax", "push rbx", "retfq"), USER_CS.into());
    check_done(&same.run(), "retfq to CPL 3");
});
