//! CPL 3: what it may not do, what it may be given, and the ways in and out.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "cpl/gates.rs"]
mod gates;
#[path = "cpl/memory.rs"]
mod memory;
#[path = "cpl/ports.rs"]
mod ports;
#[path = "cpl/segments.rs"]
mod segments;
#[path = "cpl/syscall.rs"]
mod syscall;

use payload_rt::reg::{self, rdmsr, wrmsr};
use payload_rt::trap::{GP, Trap, UD};
use payload_rt::user::{End, Outcome, User, code_address};
use payload_rt::{asm_code, check, check_eq, check_ok, cpuid, insn, test};

/// Checks that an excursion ended at its code's offset `at` with this trap, and gives it.
fn check_end(outcome: &Outcome, what: &str, vector: u8, code: u64, at: u64) -> Trap {
    let End::Trap(trap) = outcome.end else {
        payload_rt::fail!("{what}: {:?}, must be vector {vector}", outcome.end)
    };
    check!(trap.is(vector, code), "{what}: {trap}, must be vector {vector} with error {code:#x}");
    check_eq!(trap.rip, code_address() + at, "RIP of {trap}: {what}");
    trap
}

fn check_done(outcome: &Outcome, what: &str) {
    check_eq!(outcome.end, End::Done, "{what}");
}

// SDM volume 3, 6.9, and volume 2 for each; AMD APM volume 3.
test!(privileged, "Each privileged instruction is #GP(0) at CPL 3, and is not executed.", || {
    // Without it SYSRET is #UD.
    let efer = check_ok!(rdmsr(reg::EFER));
    check_ok!(wrmsr(reg::EFER, efer | reg::EFER_SCE));
    let before = (reg::cr0(), reg::cr3(), reg::cr4(), reg::cr8());
    for (what, code) in [
        ("hlt", asm_code!("hlt")),
        ("cli", asm_code!("cli")),
        ("sti", asm_code!("sti")),
        ("clts", asm_code!("clts")),
        ("invlpg", asm_code!("invlpg [rsp]")),
        ("rdmsr", asm_code!("rdmsr")),
        ("wrmsr", asm_code!("wrmsr")),
        ("rdpmc", asm_code!("rdpmc")),
        ("lgdt", asm_code!("lgdt [rsp]")),
        ("lidt", asm_code!("lidt [rsp]")),
        ("lldt", asm_code!("lldt ax")),
        ("ltr", asm_code!("ltr ax")),
        ("lmsw", asm_code!("lmsw ax")),
        ("mov rax, cr0", asm_code!("mov rax, cr0")),
        ("mov rax, cr2", asm_code!("mov rax, cr2")),
        ("mov rax, cr3", asm_code!("mov rax, cr3")),
        ("mov rax, cr4", asm_code!("mov rax, cr4")),
        ("mov rax, cr8", asm_code!("mov rax, cr8")),
        ("mov cr0, rax", asm_code!("mov cr0, rax")),
        ("mov cr2, rax", asm_code!("mov cr2, rax")),
        ("mov cr3, rax", asm_code!("mov cr3, rax")),
        ("mov cr4, rax", asm_code!("mov cr4, rax")),
        ("mov cr8, rax", asm_code!("mov cr8, rax")),
        ("mov rax, dr0", asm_code!("mov rax, dr0")),
        ("mov rax, dr7", asm_code!("mov rax, dr7")),
        ("mov dr6, rax", asm_code!("mov dr6, rax")),
        ("mov dr7, rax", asm_code!("mov dr7, rax")),
        ("swapgs", asm_code!("swapgs")),
        ("sysretq", asm_code!("sysretq")),
        ("sysretd", asm_code!("sysret")),
        ("in al, 0x80", asm_code!("in al, 0x80")),
        ("out 0x80, al", asm_code!("out 0x80, al")),
        ("in eax, dx", asm_code!("in eax, dx")),
        ("out dx, ax", asm_code!("out dx, ax")),
        ("insb", asm_code!("insb")),
        ("outsd", asm_code!("outsd")),
        ("rep outsb", asm_code!("rep outsb")),
    ] {
        let mut user = User::new(code);
        user.regs.rcx = 0x10;
        user.regs.rdi = user.regs.rsp - 64;
        user.regs.rsi = user.regs.rsp - 64;
        let outcome = user.run();
        check_end(&outcome, what, GP, 0, 0);
        check_eq!(outcome.regs.rax, 0, "RAX after {what}");
        let now = (reg::cr0(), reg::cr3(), reg::cr4(), reg::cr8());
        check_eq!(now, before, "CR0, CR3, CR4, CR8 after {what}");
    }
});

test!(privileged_caches, "INVD and WBINVD are #GP(0) at CPL 3.", || {
    for (what, code) in [("invd", asm_code!("invd")), ("wbinvd", asm_code!("wbinvd"))] {
        check_end(&User::new(code).run(), what, GP, 0, 0);
    }
});

// SDM volumes 2 and 3; AMD APM volume 3: these have their own check, or are not enabled.
test!(not_there, "Instructions that CPL 3 does not have at all are #UD.", || {
    for (what, code) in [
        ("stac", asm_code!("stac")),
        ("clac", asm_code!("clac")),
        ("rsm", asm_code!("rsm")),
        ("vmlaunch without CR4.VMXE", asm_code!("vmlaunch")),
        ("ud0", asm_code!(".byte 0x0f, 0xff, 0xc0")),
        ("ud1", asm_code!(".byte 0x0f, 0xb9, 0xc0")),
        ("ud2", asm_code!("ud2")),
        ("lock nop", asm_code!(".byte 0xf0, 0x90")),
    ] {
        check_end(&User::new(code).run(), what, UD, 0, 0);
    }
});

// AMD APM volume 3: #UD if EFER.SVME is 0, before the check of CPL.
test!(no_svm, "Without EFER.SVME, SVM's instructions are #UD at CPL 3.", || {
    let efer = check_ok!(rdmsr(reg::EFER));
    check_eq!(efer & 1 << 12, 0, "EFER.SVME");
    for (what, code) in [
        ("vmrun", asm_code!("vmrun")),
        ("vmload", asm_code!("vmload")),
        ("vmsave", asm_code!("vmsave")),
        ("clgi", asm_code!("clgi")),
        ("invlpga", asm_code!("invlpga rax, ecx")),
    ] {
        check_end(&User::new(code).run(), what, UD, 0, 0);
    }
});

// SDM volume 2, MONITOR and MWAIT: "#UD if current privilege level is not 0".
test!(monitor, "MONITOR and MWAIT are #UD at CPL 3.", || {
    check_end(&User::new(asm_code!("monitor")).run(), "monitor", UD, 0, 0);
    check_end(&User::new(asm_code!("mwait")).run(), "mwait", UD, 0, 0);
});

const FLAG_IOPL: u64 = 3 << 12;

// SDM volume 2, POPF: IOPL changes at CPL 0 alone, IF if CPL <= IOPL; neither raises an exception.
test!(popf, "POPF at CPL 3 changes neither IOPL nor, above IOPL, IF.", || {
    let on = 2 | reg::FLAG_IF;
    for (iopl, give, get) in [
        (0, on | FLAG_IOPL, on),
        (0, 2, on),
        (0, 2 | reg::FLAG_CF, on | reg::FLAG_CF),
        (FLAG_IOPL, 2, FLAG_IOPL | 2),
        (FLAG_IOPL, on, FLAG_IOPL | on),
        (2 << 12, 2, 2 << 12 | on),
    ] {
        let mut user = User::new(asm_code!("push rax", "popfq", "pushfq", "pop rbx", "ret"));
        user.regs.rflags = on | iopl;
        user.regs.rax = give;
        let outcome = user.run();
        check_done(&outcome, "popfq");
        check_eq!(outcome.regs.rbx, get, "RFLAGS after popfq of {give:#x} with IOPL {iopl:#x}");
    }
});

// SDM volume 2, CLI and STI.
test!(iopl, "With IOPL 3, CPL 3 turns interrupts off and on; below 3 that is #GP(0).", || {
    let code = || asm_code!("cli", "pushfq", "pop rbx", "sti", "pushfq", "pop rcx", "ret");
    for level in 0..4_u64 {
        let mut user = User::new(code());
        user.regs.rflags |= level << 12;
        let outcome = user.run();
        if level < 3 {
            check_end(&outcome, "cli below IOPL 3", GP, 0, 0);
            continue;
        }
        check_done(&outcome, "cli and sti with IOPL 3");
        check_eq!(outcome.regs.rbx & reg::FLAG_IF, 0, "IF after cli");
        check_eq!(outcome.regs.rcx & reg::FLAG_IF, reg::FLAG_IF, "IF after sti");
    }
});

// SDM volume 3, 2.5 (TSD).
test!(tsd, "With CR4.TSD, RDTSC is #GP(0) at CPL 3 and goes on at CPL 0.", || {
    let cr4 = reg::cr4();
    for on in [true, false] {
        check_ok!(reg::set_cr4(if on { cr4 | reg::CR4_TSD } else { cr4 & !reg::CR4_TSD }));
        let outcome = User::new(asm_code!("rdtsc", "ret")).run();
        if on {
            check_end(&outcome, "rdtsc", GP, 0, 0);
        } else {
            check_done(&outcome, "rdtsc without TSD");
        }
        check_ok!(insn!("rdtsc"; out("rax") _, out("rdx") _), "rdtsc at CPL 0");
        if cpuid::RDTSCP.present() {
            let outcome = User::new(asm_code!("rdtscp", "ret")).run();
            if on {
                check_end(&outcome, "rdtscp", GP, 0, 0);
            } else {
                check_done(&outcome, "rdtscp without TSD");
            }
        }
    }
});

/// Checks that these are #GP(0) at CPL 3 with CR4.UMIP, and run without it.
fn check_umip(instructions: &[(&str, &'static [u8])]) {
    cpuid::UMIP.require();
    let cr4 = reg::cr4();
    for on in [true, false] {
        check_ok!(reg::set_cr4(if on { cr4 | reg::CR4_UMIP } else { cr4 & !reg::CR4_UMIP }));
        for (what, code) in instructions {
            let outcome = User::new(code).run();
            if on {
                check_end(&outcome, what, GP, 0, 0);
            } else {
                check_done(&outcome, what);
            }
        }
        check_ok!(reg::sgdt(), "sgdt at CPL 0");
        check_ok!(reg::sidt(), "sidt at CPL 0");
        check_ok!(reg::str(), "str at CPL 0");
    }
}

// SDM volume 3, 2.5 (UMIP); AMD APM volume 2, 3.1.3.
test!(umip, "With CR4.UMIP, SGDT and its kin are #GP(0) at CPL 3 and work at CPL 0.", || {
    check_umip(&[
        ("sgdt", asm_code!("sgdt [rsp - 64]", "ret")),
        ("sidt", asm_code!("sidt [rsp - 64]", "ret")),
        ("sldt eax", asm_code!("sldt eax", "ret")),
        ("sldt [mem]", asm_code!("sldt word ptr [rsp - 64]", "ret")),
        ("str eax", asm_code!("str eax", "ret")),
        ("str [mem]", asm_code!("str word ptr [rsp - 64]", "ret")),
    ]);
});

test!(umip_smsw, "With CR4.UMIP, SMSW is #GP(0) at CPL 3.", || {
    check_umip(&[
        ("smsw eax", asm_code!("smsw eax", "ret")),
        ("smsw [mem]", asm_code!("smsw word ptr [rsp - 64]", "ret")),
    ]);
});

// SDM volume 2, RDFSBASE: #UD if CR4.FSGSBASE is 0; #GP(0) for a base that is not canonical.
test!(fsgsbase, "RDFSBASE and its kin are #UD without CR4.FSGSBASE, and work with it.", || {
    cpuid::FSGSBASE.require();
    let cr4 = reg::cr4();
    let run = |code, value| {
        let mut user = User::new(code);
        user.regs.rax = value;
        user.run()
    };
    check_ok!(reg::set_cr4(cr4 & !reg::CR4_FSGSBASE));
    for (what, code) in [
        ("rdfsbase", asm_code!("rdfsbase rax")),
        ("rdgsbase", asm_code!("rdgsbase rax")),
        ("wrfsbase", asm_code!("wrfsbase rax")),
        ("wrgsbase", asm_code!("wrgsbase rax")),
    ] {
        check_end(&run(code, 0), what, UD, 0, 0);
    }
    check_ok!(reg::set_cr4(cr4 | reg::CR4_FSGSBASE));
    let (fs, gs) = (0x1234_5678_9000_u64, 0xffff_f000_0000_1000_u64);
    let outcome = run(asm_code!("wrfsbase rax", "rdfsbase rbx", "ret"), fs);
    check_done(&outcome, "wrfsbase and rdfsbase");
    check_eq!(outcome.regs.rbx, fs, "rdfsbase");
    check_eq!(rdmsr(reg::FS_BASE), Ok(fs), "FS_BASE after wrfsbase at CPL 3");
    let outcome = run(asm_code!("wrgsbase rax", "rdgsbase rbx", "ret"), gs);
    check_done(&outcome, "wrgsbase and rdgsbase");
    check_eq!(outcome.regs.rbx, gs, "rdgsbase");
    check_eq!(rdmsr(reg::GS_BASE), Ok(gs), "GS_BASE after wrgsbase at CPL 3");
});

test!(fsgsbase_canonical, "WRFSBASE and WRGSBASE of what is not canonical are #GP(0).", || {
    cpuid::FSGSBASE.require();
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_FSGSBASE));
    for (what, code) in
        [("wrfsbase", asm_code!("wrfsbase rax")), ("wrgsbase", asm_code!("wrgsbase rax"))]
    {
        let mut user = User::new(code);
        user.regs.rax = 1 << 63;
        check_end(&user.run(), what, GP, 0, 0);
    }
});
