//! SYSENTER, SYSEXIT and SYSCALL in legacy mode and in long mode (Intel SDM volume 3, 6.8.7 and 6.8.8; volume
//! 2, SYSENTER, SYSEXIT, SYSCALL; AMD APM volume 2, 6.1).

use crate::put;
use payload_rt::legacy::table::{self, DPL3, flat};
use payload_rt::legacy::{CODE, FREE, Machine, OTHER, OUTER_STACK, STACK};
use payload_rt::reg::wrmsr;
use payload_rt::trap::{GP, UD};
use payload_rt::user::{End, Outcome, User};
use payload_rt::{
    asm_code, check, check_eq, check_ok, check_trap, code16, code32, cpu, cpuid, frames, insn, mem,
    reg, test,
};

fn is_intel() -> bool {
    &cpuid::signature(0) == b"GenuineIntel"
}

/// A machine with the four segments that SYSENTER and SYSEXIT rely on, from [`FREE`] on, and the MSRs.
fn prepare(m: &mut Machine) {
    m.set(0, flat(table::READABLE));
    m.set(1, flat(table::WRITABLE));
    m.set(2, flat(table::READABLE | DPL3));
    m.set(3, flat(table::WRITABLE | DPL3));
    check_ok!(wrmsr(reg::SYSENTER_CS, FREE.into()));
    check_ok!(wrmsr(reg::SYSENTER_ESP, (OTHER + 0x800).into()));
    check_ok!(wrmsr(reg::SYSENTER_EIP, (CODE + 0x200).into()));
}

test!(sysenter, "SYSENTER at CPL 3 loads CS, SS, ESP and EIP by its MSRs, and clears IF.", || {
    let mut m = Machine::outer(asm_code!(".code32", "sysenter"));
    prepare(&mut m);
    put(CODE + 0x200, 0xc88e_u16);
    m.regs.eflags |= (reg::FLAG_IF | reg::FLAG_CF) as u32;
    let out = m.run();
    out.done("sysenter");
    let r = out.regs;
    check_eq!((r.cs, r.ss, r.esp), (FREE, FREE + 8, OTHER + 0x800), "CS, SS, ESP");
    check_eq!(r.eflags & 0x3ff, 3, "EFLAGS");
});

test!(sysenter_flat, "SYSENTER loads flat segments, whatever the descriptors say.", || {
    let mut m = Machine::outer(asm_code!(".code32", "sysenter"));
    prepare(&mut m);
    // Of the two only the selectors are used.
    m.set(1, 0);
    for (i, &byte) in code32!("mov eax, ss:[ebx]").iter().enumerate() {
        put(CODE + 0x200 + i as u32, byte);
    }
    put(STACK, 0x5e5e_5e5e_u32);
    m.regs.ebx = STACK;
    check_eq!(m.run().done("sysenter").regs.eax, 0x5e5e_5e5e, "EAX");
});

test!(sysexit, "SYSEXIT goes to CPL 3 at EDX, on the stack at ECX.", || {
    let mut m = Machine::new(asm_code!(".code32", "sysexit"));
    prepare(&mut m);
    put(CODE + 0x300, 0xf4_u8); // hlt
    (m.regs.ecx, m.regs.edx) = (OUTER_STACK + 0x600, CODE + 0x300);
    let out = m.run();
    out.faults(GP, 0, 0x300, "hlt");
    let r = out.regs;
    check_eq!((r.cs, r.ss), ((FREE + 16) | 3, (FREE + 24) | 3), "CS and SS");
    check_eq!(r.esp, OUTER_STACK + 0x600, "ESP");
});

test!(sysenter_null, "With a null SYSENTER_CS both are #GP(0); SYSEXIT at CPL 3 is, too.", || {
    check_null(0);
    let mut m = Machine::outer(asm_code!(".code32", "sysexit"));
    prepare(&mut m);
    m.run().faults(GP, 0, 0, "sysexit at CPL 3");
});

test!(sysenter_null_3, "A null SYSENTER_CS is null with RPL 3 too.", || {
    check_null(3);
});

/// Checks both with this value in SYSENTER_CS.
fn check_null(null: u64) {
    for (what, code) in [
        ("sysenter", asm_code!(".code32", "sysenter")),
        ("sysexit", asm_code!(".code32", "sysexit")),
    ] {
        let mut m = Machine::new(code);
        prepare(&mut m);
        check_ok!(wrmsr(reg::SYSENTER_CS, null));
        m.run().faults(GP, 0, 0, what);
    }
}

test!(sysenter_real, "SYSENTER and SYSEXIT in real mode are #GP.", || {
    for (what, code) in [("sysenter", code16!("sysenter")), ("sysexit", code16!("sysexit"))] {
        let mut m = Machine::real(code);
        prepare(&mut m);
        m.run().faults(GP, 0, 0, what);
    }
});

// SDM volume 2, SYSCALL: "#UD if IA32_EFER.LMA = 0"; AMD APM volume 3: EIP from STAR, IF and VM cleared.
test!(syscall_legacy, "SYSCALL in legacy mode is AMD's alone: #UD on Intel.", || {
    let mut m = Machine::outer(asm_code!(".code32", "syscall"));
    prepare(&mut m);
    let efer = check_ok!(reg::rdmsr(reg::EFER));
    check_ok!(wrmsr(reg::EFER, efer | reg::EFER_SCE));
    check_ok!(wrmsr(reg::STAR, u64::from(FREE) << 32 | u64::from(CODE + 0x200)));
    put(CODE + 0x200, 0xc88e_u16);
    m.regs.eflags |= (reg::FLAG_IF | reg::FLAG_CF) as u32;
    let out = m.run();
    if is_intel() {
        out.faults(UD, 0, 0, "syscall");
        return;
    }
    out.done("syscall");
    let r = out.regs;
    check_eq!((r.cs, r.ss, r.ecx), (FREE, FREE + 8, CODE + 2), "CS, SS and ECX");
    check_eq!(r.esp, m.regs.esp, "ESP");
    check_eq!(r.eflags & 0x3ff, 3, "EFLAGS");
});

/// Checks what SYSENTER in long mode with a null SYSENTER_CS raises.
fn check_long(user: User) {
    check_ok!(wrmsr(reg::SYSENTER_CS, 0));
    let End::Trap(trap) = user.run().end else { payload_rt::fail!("no trap") };
    let vector = if is_intel() { GP } else { UD };
    check!(trap.is(vector, 0), "{trap}, must be vector {vector}");
}

// AMD APM volume 2, 6.1.2: SYSENTER and SYSEXIT are invalid in long mode.
test!(
    sysenter_long,
    "SYSENTER in 64-bit mode with a null SYSENTER_CS is #GP(0), and #UD on AMD.",
    || {
        check_long(User::new(asm_code!("sysenter")));
    }
);

test!(
    sysenter_compat,
    "SYSENTER in compatibility mode with a null SYSENTER_CS is #GP(0), and #UD on AMD.",
    || {
        check_long(User::new(asm_code!("sysenter")).compat());
    }
);

/// Goes into long mode's SYSENTER with this code at CPL 3, which has its return address in RSI and its stack in
/// RBP; the handler comes back by this SYSEXIT. Gives what the handler saw, and the outcome.
fn round_trip(user: User, sysexit: &[u8]) -> ([u64; 3], Outcome) {
    let handler = asm_code!(
        "mov [rdi], cs",
        "mov [rdi + 2], ss",
        "mov [rdi + 8], rsp",
        "pushfq",
        "pop [rdi + 16]",
        "mov rdx, rsi",
        "mov rcx, rbp"
    );
    let (mut page, data) = (frames::alloc(), frames::alloc().address());
    page.bytes()[..handler.len()].copy_from_slice(handler);
    page.bytes()[handler.len()..handler.len() + sysexit.len()].copy_from_slice(sysexit);
    check_ok!(wrmsr(reg::SYSENTER_CS, cpu::KERNEL_CS.into()));
    check_ok!(wrmsr(reg::SYSENTER_ESP, inner_stack()));
    check_ok!(wrmsr(reg::SYSENTER_EIP, page.address()));
    let mut user = user;
    user.regs.rdi = data;
    let outcome = user.run();
    check_eq!(outcome.end, End::Done, "SYSENTER and SYSEXIT");
    (core::array::from_fn(|i| check_ok!(mem::read(data + 8 * i as u64))), outcome)
}

/// A stack for CPL 0, far below what the runtime uses of its own.
fn inner_stack() -> u64 {
    cpu::stack_range().start + 0x800
}

/// What a handler of SYSENTER must see: CS and SS, RSP, and RFLAGS without IF.
fn check_inner(seen: [u64; 3]) {
    let selectors = u64::from(cpu::KERNEL_CS) | u64::from(cpu::KERNEL_DS) << 16;
    check_eq!(seen[0] & 0xffff_ffff, selectors, "CS and SS behind SYSENTER");
    check_eq!(seen[1], inner_stack(), "RSP behind SYSENTER");
    check_eq!(seen[2] & (reg::FLAG_IF | reg::FLAG_RF), 0, "IF and RF behind SYSENTER");
}

test!(sysenter_64, "SYSENTER from 64-bit code, and SYSEXIT with REX.W back there.", || {
    let (seen, outcome) = round_trip(
        User::new(asm_code!(
            "lea rsi, [rip + 2f]",
            "mov rbp, rsp",
            "sysenter",
            "2:",
            "mov ebx, cs",
            "mov edx, ss",
            "ret"
        )),
        &[0x48, 0x0f, 0x35],
    );
    check_inner(seen);
    check_eq!(outcome.regs.rbx, u64::from(cpu::USER_CS), "CS: SYSENTER_CS + 32");
    check_eq!(outcome.regs.rdx, (u64::from(cpu::KERNEL_CS) + 40) | 3, "SS: SYSENTER_CS + 40");
});

test!(
    sysenter_from_compat,
    "SYSENTER from compatibility mode goes to 64-bit code, and SYSEXIT back.",
    || {
        let (seen, outcome) = round_trip(
            User::new(asm_code!(
                ".code32",
                "call 2f",
                "2:",
                "pop esi",
                "add esi, 8",
                "mov ebp, esp",
                "sysenter",
                "nop",
                "mov ebx, cs",
                "mov edx, ss",
                "pop eax",
                "pop ecx",
                "jmp eax"
            ))
            .compat(),
            &[0x0f, 0x35],
        );
        check_inner(seen);
        check_eq!(outcome.regs.rbx, u64::from(cpu::USER_CS32), "CS: SYSENTER_CS + 16");
        check_eq!(outcome.regs.rdx, u64::from(cpu::USER_DS), "SS: SYSENTER_CS + 24");
    }
);

// SDM volume 2, SYSEXIT: "#GP(0) if RCX or RDX contains a non-canonical address".
test!(sysexit_canonical, "SYSEXIT to a RIP or RSP that is not canonical is #GP(0).", || {
    check_ok!(wrmsr(reg::SYSENTER_CS, cpu::KERNEL_CS.into()));
    for (what, rdx, rcx) in [("RIP", 1_u64 << 63, 0), ("RSP", 0, 1_u64 << 63)] {
        let result = insn!(".byte 0x48, 0x0f, 0x35"; in("rcx") rcx, in("rdx") rdx);
        check_trap!(result, GP, 0, "sysexit with {what} not canonical");
    }
});
