//! SYSCALL, SYSRET and SWAPGS (SDM volume 2; AMD APM volume 2, 6.1.1).

use super::{check_done, check_end};
use payload_rt::cpu::{KERNEL_CS, KERNEL_DS, USER_CS, USER_CS32, USER_DS};
use payload_rt::reg::{self, rdmsr, wrmsr};
use payload_rt::trap::{GP, UD};
use payload_rt::user::{User, code_address};
use payload_rt::{asm_code, check_eq, check_ok, check_trap, cpuid, frames, insn, skip, test};

const FLAG_NT: u64 = 1 << 14;

/// Lets `syscall` arrive at `code`, in a page of its own, with `mask` in FMASK.
fn arrive(code: &[u8], mask: u64) {
    let mut page = frames::alloc();
    page.bytes()[..code.len()].copy_from_slice(code);
    let star = u64::from(KERNEL_CS) << 32 | u64::from(USER_CS32) << 48;
    for (msr, value) in [
        (reg::STAR, star),
        (reg::LSTAR, page.address()),
        (reg::CSTAR, page.address()),
        (reg::FMASK, mask),
    ] {
        check_ok!(wrmsr(msr, value), "write MSR {msr:#x}");
    }
    let efer = check_ok!(rdmsr(reg::EFER));
    check_ok!(wrmsr(reg::EFER, efer | reg::EFER_SCE));
}

test!(syscall_off, "Without EFER.SCE, SYSCALL and SYSRET are #UD.", || {
    let efer = check_ok!(rdmsr(reg::EFER));
    check_ok!(wrmsr(reg::EFER, efer & !reg::EFER_SCE));
    check_end(&User::new(asm_code!("syscall")).run(), "syscall", UD, 0, 0);
    check_trap!(insn!("sysretq"), UD, 0, "sysretq");
});

/// Notes selectors and flags as the handler finds them, and goes back.
fn noting() -> &'static [u8] {
    asm_code!("mov r8d, cs", "mov r9d, ss", "mov r10, rsp", "pushfq", "pop r12", "sysretq")
}

/// Checks SYSCALL and SYSRET with these flags set besides what CPL 3 has, under several masks.
fn check_there_and_back(flags: u64) {
    for mask in [0, reg::FLAG_IF, reg::FLAG_IF | reg::FLAG_DF | reg::FLAG_CF | FLAG_NT, 0xffff_fffd]
    {
        arrive(noting(), mask | reg::FLAG_IF | reg::FLAG_TF);
        let mask = mask | reg::FLAG_IF | reg::FLAG_TF;
        let mut user = User::new(asm_code!("syscall", "mov r13d, cs", "mov r14d, ss", "ret"));
        let flags = user.regs.rflags | flags;
        user.regs.rflags = flags;
        let outcome = user.run();
        let regs = outcome.regs;
        check_done(&outcome, "syscall and sysretq");
        check_eq!(regs.r8, u64::from(KERNEL_CS), "CS behind syscall");
        check_eq!(regs.r9, u64::from(KERNEL_DS), "SS behind syscall");
        check_eq!(regs.r10, user.regs.rsp, "RSP behind syscall: as it was");
        check_eq!(regs.r12, flags & !mask | 2, "RFLAGS behind syscall with FMASK {mask:#x}");
        check_eq!(regs.rcx, code_address() + 2, "RCX");
        check_eq!(regs.r11, flags, "R11");
        check_eq!(regs.r13, u64::from(USER_CS), "CS behind sysretq");
        check_eq!(regs.r14, u64::from(USER_DS), "SS behind sysretq");
        check_eq!(regs.rflags & !reg::FLAG_RF, flags, "RFLAGS behind sysretq");
    }
}

test!(
    syscall,
    "SYSCALL enters CPL 0 with RCX, R11, CS, SS and masked flags; SYSRET undoes it.",
    || check_there_and_back(FLAG_NT)
);

test!(syscall_flags, "SYSCALL keeps arithmetic flags and DF that FMASK does not have.", || {
    check_there_and_back(reg::FLAG_CF | reg::FLAG_DF);
});

test!(sysret_compat, "SYSRET without REX.W returns to 32-bit code.", || {
    arrive(asm_code!("sysret"), reg::FLAG_IF);
    // 64-bit code up to the return, 32-bit code (`inc eax` twice) behind it.
    let outcome = User::new(asm_code!("syscall", ".byte 0x40, 0x40", "mov ebx, cs", "ret")).run();
    check_done(&outcome, "syscall and a 32-bit sysret");
    check_eq!(outcome.regs.rax, 2, "EAX after two `inc eax`");
    check_eq!(outcome.regs.rbx, u64::from(USER_CS32), "CS behind the 32-bit sysret");
});

// A VMM that lets a guest do this at CPL 0 with a user's stack has CVE-2012-0217.
test!(
    sysret_noncanonical,
    "SYSRET to an address that is not canonical is #GP(0) at CPL 0.",
    || {
        if &cpuid::signature(0) != b"GenuineIntel" {
            skip!("an AMD CPU faults at CPL 3 instead");
        }
        arrive(noting(), reg::FLAG_IF);
        for at in [0x8000_0000_0000_0000_u64, 1 << 60] {
            let fault = insn!("sysretq"; in("rcx") at, in("r11") 2_u64);
            check_trap!(fault, GP, 0, "sysretq to {at:#x}");
        }
    }
);

// SDM volume 2, SYSCALL: #UD outside of 64-bit mode on Intel; AMD's takes CSTAR.
test!(
    syscall_compat,
    "SYSCALL from 32-bit code is #UD on Intel, and arrives at CSTAR on AMD.",
    || {
        arrive(asm_code!("sysret"), reg::FLAG_IF);
        let outcome = User::new(asm_code!(".code32", "syscall", "ret")).compat().run();
        match &cpuid::signature(0) {
            b"GenuineIntel" => drop(check_end(&outcome, "syscall of 32-bit code", UD, 0, 0)),
            b"AuthenticAMD" => check_done(&outcome, "syscall of 32-bit code"),
            _ => skip!("a maker this test does not know"),
        }
    }
);

test!(swapgs, "SWAPGS exchanges GS_BASE and KERNEL_GS_BASE, and memory at GS follows.", || {
    let (mut one, mut two) = (frames::alloc(), frames::alloc());
    one.bytes()[0] = 0x11;
    two.bytes()[0] = 0x22;
    check_ok!(wrmsr(reg::GS_BASE, one.address()));
    check_ok!(wrmsr(reg::KERNEL_GS_BASE, two.address()));
    for (gs, other, byte) in [(&two, &one, 0x22_u64), (&one, &two, 0x11)] {
        let seen: u64;
        check_ok!(insn!("swapgs", "movzx {0:e}, byte ptr gs:[0]"; out(reg) seen));
        check_eq!(seen, byte, "byte at GS:0");
        check_eq!(rdmsr(reg::GS_BASE), Ok(gs.address()), "GS_BASE");
        check_eq!(rdmsr(reg::KERNEL_GS_BASE), Ok(other.address()), "KERNEL_GS_BASE");
    }
});

test!(
    swapgs_syscall,
    "SWAPGS behind SYSCALL finds the kernel's base, and gives the user's back.",
    || {
        let mut kernel = frames::alloc();
        kernel.bytes()[8..16].copy_from_slice(&0x6e72_656b_u64.to_le_bytes());
        arrive(
            asm_code!("swapgs", "mov r8, gs:[8]", "swapgs", "mov r9, gs:[8]", "sysretq"),
            reg::FLAG_IF,
        );
        let code = asm_code!("mov gs:[8], rax", "syscall", "mov r10, gs:[8]", "ret");
        let mut user = User::new(code);
        user.regs.rax = 0x7265_7375;
        check_ok!(wrmsr(reg::KERNEL_GS_BASE, kernel.address()));
        // In CPL 3's own stack.
        check_ok!(wrmsr(reg::GS_BASE, user.regs.rsp - 64));
        let outcome = user.run();
        check_done(&outcome, "syscall with swapgs");
        check_eq!(outcome.regs.r8, 0x6e72_656b, "word at GS between the swaps");
        check_eq!(outcome.regs.r9, 0x7265_7375, "word at GS after the second swap");
        check_eq!(outcome.regs.r10, 0x7265_7375, "word at GS back at CPL 3");
    }
);
