//! The hypercall's ABI (hypercalls.rst), and those that are about no other CPU.

use crate::{amd, call, errors, page, word};
use payload_rt::lab::{self, Rule, kind, kvm};
use payload_rt::*;

/// KVM_HC_VAPIC_POLL_IRQ, which does nothing.
const NOTHING: u64 = 1;
const CLOCK_PAIRING: u64 = 9;
const SCHED_YIELD: u64 = 11;
const MAP_GPA_RANGE: u64 = 12;

test!(unknown_number, "A hypercall that there is not is -KVM_ENOSYS.", || {
    for number in [0, 2, 3, 4, 6, 7, 8, 13, 99, 0x8000_0000, 1 << 32 | NOTHING, u64::MAX] {
        check_eq!(call(number, [0; 4]), errors::ENOSYS, "hypercall {number:#x}");
    }
});

test!(known_number, "A hypercall that does nothing is 0, whatever its arguments.", || {
    check_eq!(call(NOTHING, [0; 4]), 0);
    check_eq!(call(NOTHING, [u64::MAX; 4]), 0);
});

test!(registers, "A hypercall changes RAX, and no other register.", || {
    let mut r = [0u64; 12];
    macro_rules! by {
        ($instruction:literal) => {
            check_ok!(insn!(
                "push rbx", "push rbp",
                "mov rcx, 0x101", "mov rdx, 0x102", "mov rsi, 0x103", "mov rdi, {r}",
                "mov rbx, 0x104", "mov r8, 0x108", "mov r9, 0x109", "mov r10, 0x10a",
                "mov r11, 0x10b", "mov r12, 0x10c", "mov rax, 99",
                $instruction,
                "mov [rdi], rcx", "mov [rdi + 8], rdx", "mov [rdi + 16], rsi",
                "mov [rdi + 24], rbx", "mov [rdi + 32], r8", "mov [rdi + 40], r9",
                "mov [rdi + 48], r10", "mov [rdi + 56], r11", "mov [rdi + 64], r12",
                "mov [rdi + 72], rax",
                "pop rbp", "pop rbx";
                r = in(reg) &raw mut r, out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _,
                out("rdi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _
            ))
        };
    }
    if amd() {
        by!("vmmcall")
    } else {
        by!("vmcall")
    };
    let wanted = [0x101, 0x102, 0x103, 0x104, 0x108, 0x109, 0x10a, 0x10b, 0x10c];
    check_eq!(r[..9], wanted);
    check_eq!(r[9] as i64, errors::ENOSYS);
});

// Only CPL 0 may make them.
test!(user_mode, "At CPL 3 each hypercall is -KVM_EPERM.", || {
    let code = if amd() { asm_code!("vmmcall", "ret") } else { asm_code!("vmcall", "ret") };
    for number in [NOTHING, 99, SCHED_YIELD] {
        let mut user = user::User::new(code);
        user.regs.rax = number;
        let outcome = user.run();
        check_eq!(outcome.end, user::End::Done, "hypercall {number} at CPL 3");
        check_eq!(outcome.regs.rax as i64, errors::EPERM, "hypercall {number} at CPL 3");
    }
});

// The way back is a far return behind itself: five bytes, with the addition.
test!(compatibility_mode, "In 32-bit code a hypercall has registers of 32 bits.", || {
    macro_rules! by {
        ($instruction:literal, $number:literal) => {{
            let result: u64;
            check_ok!(insn!(
                "push 0x30", "lea rcx, [rip + 2f]", "push rcx",
                concat!("mov rax, ", $number),
                "retfq",
                ".code32",
                "2:", $instruction,
                "push 0x08", "call 3f", "3:", "add dword ptr [esp], 5", "retf",
                ".code64",
                "4:";
                out("rax") result, out("rcx") _
            ));
            result
        }};
    }
    // All 64 bits of this number are no hypercall's; the low ones are.
    let results = if amd() {
        (by!("vmmcall", "0x500000001"), by!("vmmcall", "99"))
    } else {
        (by!("vmcall", "0x500000001"), by!("vmcall", "99"))
    };
    check_eq!(results, (0, u64::from(errors::ENOSYS as u32)));
});

const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

/// Makes a function of the instruction in a page of its own: `mov eax, 99; INSTRUCTION; ret`.
fn function(instruction: [u8; 3]) -> u64 {
    let at = page();
    check_ok!(mem::write_bytes(at, &[0xb8, 99, 0, 0, 0]));
    check_ok!(mem::write_bytes(at + 5, &instruction));
    check_ok!(mem::write_bytes(at + 8, &[0xc3]));
    at
}

fn instruction(at: u64) -> [u8; 3] {
    let mut bytes = [0; 3];
    check_ok!(mem::read_bytes(at + 5, &mut bytes));
    bytes
}

test!(own_instruction, "The processor's own instruction stays as it is.", || {
    let own = if amd() { VMMCALL } else { VMCALL };
    let at = function(own);
    check_eq!(mem::call(at), Ok(errors::ENOSYS as u64));
    check_eq!(instruction(at), own);
});

test!(foreign_instruction, "The other vendor's instruction is patched, and carried out.", || {
    let (own, other) = if amd() { (VMMCALL, VMCALL) } else { (VMCALL, VMMCALL) };
    let at = function(other);
    check_eq!(mem::call(at), Ok(errors::ENOSYS as u64));
    check_eq!(instruction(at), own, "the instruction afterwards");
    check_eq!(mem::call(at), Ok(errors::ENOSYS as u64));
});

// api.rst, 7.31: with KVM_X86_QUIRK_FIX_HYPERCALL_INSN off KVM does not patch.
test!(
    foreign_instruction_alone,
    "Without that quirk the other vendor's instruction is #UD.",
    || {
        lab::require_cap(kvm::cap::DISABLE_QUIRKS2, "DISABLE_QUIRKS2");
        const FIX_HYPERCALL: u64 = 1 << 5;
        check_ok!(lab::enable_cap(kvm::cap::DISABLE_QUIRKS2, FIX_HYPERCALL));
        let other = if amd() { VMCALL } else { VMMCALL };
        let at = function(other);
        let fault = check_err!(mem::call(at));
        check!(fault.is(trap::UD, 0), "{fault}");
        check_eq!(instruction(at), other);
    }
);

test!(clock_pairing, "Clock pairing gives the host's time and a TSC of that moment.", || {
    let at = page();
    let before = time::rdtsc_ordered();
    let result = call(CLOCK_PAIRING, [at, 0, 0, 0]);
    let after = time::rdtsc_ordered();
    if result == errors::EOPNOTSUPP || result == errors::ENOSYS {
        skip!("this host has no clock pairing ({result}): its clock is no TSC");
    }
    check_eq!(result, 0);
    let (seconds, nanos, tsc): (u64, u64, u64) = (word(at), word(at + 8), word(at + 16));
    check!(seconds > 1_500_000_000 && nanos < 1_000_000_000, "{seconds} s and {nanos} ns");
    check!((before..=after).contains(&tsc), "{before:#x}, {tsc:#x}, {after:#x}");
    check_eq!(word::<u32>(at + 24), 0, "flags");
});

test!(clock_pairing_of_another_clock, "Clock pairing knows the wall clock and no other.", || {
    for clock in [1, 2, u64::MAX] {
        let result = call(CLOCK_PAIRING, [page(), clock, 0, 0]);
        check!(matches!(result, errors::EOPNOTSUPP | errors::ENOSYS), "clock {clock}: {result}");
    }
});

test!(yields, "A yield to any CPU, there or not, is 0.", || {
    crate::feature("kvm-pv-sched-yield", 13).require();
    for id in [0, 1, 200, u64::MAX] {
        check_eq!(call(SCHED_YIELD, [id, 0, 0, 0]), 0, "yield to {id:#x}");
    }
});

test!(map_range_without_user_space, "KVM_HC_MAP_GPA_RANGE is -KVM_ENOSYS by itself.", || {
    check_eq!(call(MAP_GPA_RANGE, [0, 1, 0, 0]), errors::ENOSYS);
});

// api.rst, 7.25 KVM_CAP_EXIT_HYPERCALL.
test!(map_range, "KVM_HC_MAP_GPA_RANGE goes to user space, whose answer is the guest's.", || {
    lab::require_cap(kvm::cap::EXIT_HYPERCALL, "EXIT_HYPERCALL");
    check_ok!(lab::enable_cap(kvm::cap::EXIT_HYPERCALL, 1 << MAP_GPA_RANGE));
    let rule = Rule::on(kind::HYPERCALL).value(0x77);
    let log = check_ok!(lab::record(&[rule]));
    check_eq!(call(MAP_GPA_RANGE, [0x12_3000, 5, 0x10, 0]), 0x77);
    let exit = log.get(0).map(|e| [e.words[0], e.words[1], e.words[2], e.words[3]]);
    check_eq!(exit, Some([MAP_GPA_RANGE, 0x12_3000, 5, 0x10]));
    // An address inside of a page, no pages, and a range around the end of memory.
    for (at, pages) in [(0x12_3001, 1), (0x12_3000, 0), (0x1000, u64::MAX)] {
        check_eq!(call(MAP_GPA_RANGE, [at, pages, 0, 0]), errors::EINVAL, "{at:#x}, {pages}");
    }
    check_eq!(log.count(), 1, "exits");
});
