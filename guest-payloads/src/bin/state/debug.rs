//! KVM_SET_GUEST_DEBUG: the host steps through the guest, and sets breakpoints of its own.

use payload_rt::lab::{self, Log, Rule, kind, kvm};
use payload_rt::trap::{self, DB, UD};
use payload_rt::{
    apic, asm_code, check, check_eq, check_ok, check_trap, frames, irq, mem, reg, test,
};

const PAGE: u64 = crate::PAGE;
const ENABLE: u32 = kvm::debug::ENABLE;
const STEP: u32 = ENABLE | kvm::debug::SINGLE_STEP;
const BREAK: u32 = ENABLE | kvm::debug::USE_HW_BP;
/// DR6: a single step.
const BS: u64 = 1 << 14;

/// Code in a page of its own.
fn place(code: &[u8]) -> u64 {
    let page = frames::alloc().address();
    check_ok!(mem::write_bytes(page, code));
    page
}

fn off() {
    check_ok!(lab::guest_debug(0, [0; 8]));
}

/// Checks where in a page the guest left for the host: offsets in their order.
fn check_exits(log: &Log, page: u64, offsets: &[u64], what: &str) {
    let inside = || log.entries().filter(|e| (page..page + PAGE).contains(&e.words[0]));
    for (i, (entry, offset)) in inside().zip(offsets).enumerate() {
        check_eq!(entry.words[0] - page, *offset, "{what}: exit {i}");
    }
    check_eq!(inside().count(), offsets.len(), "{what}: exits");
}

/// Steps through code that ends with `ret`, and checks the address of each stop.
fn check_steps(code: &[u8], offsets: &[u64], what: &str) {
    let page = place(code);
    let log = check_ok!(lab::record(&[Rule::on(kind::DEBUG)]));
    check_ok!(lab::guest_debug(STEP, [0; 8]));
    let ran = mem::call(page);
    off();
    check_ok!(log.stop());
    check_ok!(ran, "{what}");
    check_exits(&log, page, offsets, what);
    let bs = log.entries().all(|e| e.words[1] & BS != 0);
    check!(bs, "{what}: a step without DR6.BS");
}

// SDM volume 3, 18.3.1.4: a trap behind each instruction; the first one is behind the call.
test!(step_plain, "The host steps through moves, jumps, pushes and a port.", || {
    check_steps(asm_code!("nop", "mov eax, 5", "jmp 2f", "nop", "2: ret"), &[0, 1, 6, 9], "a jump");
    check_steps(asm_code!("push rax", "pop rax", "ret"), &[0, 1, 2], "the stack");
    check_steps(asm_code!("in al, 0x61", "nop", "ret"), &[0, 2, 3], "a port");
});

test!(step_exits, "The host steps over instructions that KVM carries out.", || {
    let cpuid = asm_code!("mov r8, rbx", "xor eax, eax", "cpuid", "mov rbx, r8", "ret");
    check_steps(cpuid, &[0, 3, 5, 7, 10], "CPUID");
    let msr = asm_code!("mov ecx, 0x1b", "rdmsr", "wrmsr", "ret");
    check_steps(msr, &[0, 5, 7, 9], "RDMSR and WRMSR");
    let cr = asm_code!("mov rax, cr0", "mov cr0, rax", "mov rax, cr8", "mov cr8, rax", "ret");
    check_steps(cr, &[0, 3, 6, 10, 14], "control registers");
});

test!(step_string, "The host steps through each iteration of a string instruction.", || {
    let code = asm_code!("mov ecx, 3", "lea rdi, [rsp - 64]", "rep stosb", "ret");
    check_steps(code, &[0, 5, 10, 10, 10, 12], "REP STOSB");
});

// The image that IRET loads has TF, or the steps would end with it.
test!(step_iret, "The host steps over IRET.", || {
    let code = asm_code!(
        "mov rax, rsp",
        "push 0x10",
        "push rax",
        "push 0x102",
        "push 8",
        "lea rcx, [rip + 2f]",
        "push rcx",
        "iretq",
        "2: nop",
        "ret"
    );
    check_steps(code, &[0, 3, 5, 6, 11, 13, 20, 21, 23, 24], "IRETQ");
});

// SDM volume 3, 7.8.3: MOV SS holds the trap off until behind the next instruction.
test!(
    step_mov_ss,
    "The host's step does not stop between MOV SS and the next instruction.",
    || {
        let code = asm_code!("mov eax, ss", "mov ss, eax", "nop", "nop", "ret");
        check_steps(code, &[0, 2, 5, 6], "MOV SS");
    }
);

test!(step_fault, "An instruction that faults under the host's step has its fault, once.", || {
    let page = place(asm_code!("nop", "ud2"));
    let log = check_ok!(lab::record(&[Rule::on(kind::DEBUG)]));
    check_ok!(lab::guest_debug(STEP, [0; 8]));
    let ran = mem::call(page);
    off();
    check_ok!(log.stop());
    let fault = check_trap!(ran, UD, 0, "ud2");
    check_eq!(fault.rip, page + 1, "RIP");
    check_exits(&log, page, &[0, 1], "a fault");
});

test!(guest_registers, "The guest reads its own debug registers, not the host's.", || {
    for n in 0..4 {
        check_ok!(reg::set_dr(n, 0x1000 * u64::from(n)));
    }
    check_ok!(reg::set_dr(6, 0xffff_0ff0));
    check_ok!(lab::guest_debug(BREAK, [0x7000, 0x7100, 0x7200, 0x7300, 0, 0, 0, 0x4ff]));
    let seen = [0, 1, 2, 3, 6, 7].map(reg::dr);
    off();
    check_eq!(seen, [0, 0x1000, 0x2000, 0x3000, 0xffff_0ff0, 0x400].map(Ok));
});

test!(dr6_stays, "The host's steps leave no trace in the guest's DR6.", || {
    check_ok!(reg::set_dr(6, 0xffff_0ff0));
    check_steps(asm_code!("nop", "nop", "ret"), &[0, 1, 2], "nops");
    check_eq!(reg::dr(6), Ok(0xffff_0ff0), "DR6");
});

test!(execute, "Each of the host's four breakpoints stops before its instruction.", || {
    let page = place(asm_code!("nop", "nop", "nop", "nop", "ret"));
    let mut chain = lab::Chain::new();
    chain.set(kvm::SET_GUEST_DEBUG, kvm::GuestDebug::default());
    for n in 0..4usize {
        let log = check_ok!(lab::record(&[Rule::on(kind::DEBUG).then(&chain)]));
        let mut registers = [0; 8];
        registers[n] = page + 2;
        registers[7] = 0x400 | 2 << (2 * n);
        check_ok!(lab::guest_debug(BREAK, registers));
        check_ok!(mem::call(page));
        check_ok!(log.stop());
        check_ok!(chain.all_ok());
        check_exits(&log, page, &[2], "a breakpoint");
        check_eq!(log.get(0).map(|e| e.words[1] & 0xf), Some(1 << n), "DR6 of breakpoint {n}");
    }
});

// RF is the host's to set, as for a debugger of the guest's own (SDM volume 3, 18.3.1.1).
test!(execute_rf, "With RF the guest goes on past a breakpoint of the host's.", || {
    let page = place(asm_code!("nop", "nop", "nop", "nop", "ret"));
    let mut chain = lab::Chain::new();
    chain.set(kvm::SET_GUEST_DEBUG, kvm::GuestDebug::default());
    // If it stops again, the second rule gets it out.
    let rule = Rule::on(kind::DEBUG);
    let log = check_ok!(lab::record(&[rule.past_breakpoint().limit(1), rule.then(&chain)]));
    check_ok!(lab::guest_debug(BREAK, [page + 2, 0, 0, 0, 0, 0, 0, 0x402]));
    check_ok!(mem::call(page));
    off();
    check_ok!(log.stop());
    check_exits(&log, page, &[2], "a breakpoint");
});

/// Exits of one access under a breakpoint of the host's: kind 1 writes, 3 reads and writes.
fn data_exits(code: &[u8], kind_of: u64, len: u64) -> (u64, Option<u64>) {
    let page = place(code);
    let at = page + 0x800;
    let log = check_ok!(lab::record(&[Rule::on(kind::DEBUG)]));
    let dr7 = 0x402 | (kind_of | len << 2) << 16;
    check_ok!(lab::guest_debug(BREAK, [at, 0, 0, 0, 0, 0, 0, dr7]));
    let ran = mem::call(page);
    off();
    check_ok!(log.stop());
    check_ok!(ran);
    (log.count(), log.get(0).map(|e| e.words[0] - page))
}

// SDM volume 3, 18.2.4 and 18.2.5: the trap is behind the access.
test!(data, "The host's data breakpoints stop behind accesses of their kind and length.", || {
    let write = |offset: u8| {
        [0xc6, 0x05, 0xf9, 0x07, 0, 0, 1, 0x90, 0xc3].map(|b: u8| {
            // `mov byte ptr [page + 0x800 + offset], 1`, whose displacement counts from byte 7.
            if b == 0xf9 { 0xf9 + offset } else { b }
        })
    };
    let read = asm_code!("movzx eax, byte ptr [rip + 0x7f9]", "nop", "ret");
    check_eq!(data_exits(&write(0), 1, 0), (1, Some(7)), "a write of the byte");
    check_eq!(data_exits(&write(1), 1, 0), (0, None), "a write behind the byte");
    check_eq!(data_exits(&write(1), 1, 1), (1, Some(7)), "the second of two bytes");
    check_eq!(data_exits(&write(2), 1, 1), (0, None), "behind two bytes");
    check_eq!(data_exits(&write(3), 1, 3), (1, Some(7)), "the last of four bytes");
    check_eq!(data_exits(&write(6), 1, 2), (1, Some(7)), "one of eight bytes");
    check_eq!(data_exits(read, 1, 0), (0, None), "a read, for writes");
    check_eq!(data_exits(read, 3, 0), (1, Some(7)), "a read, for reads and writes");
});

test!(inject, "KVM_GUESTDBG_INJECT_DB brings the guest a #DB.", || {
    let control = ENABLE | kvm::debug::INJECT_DB;
    let done = trap::catch(|| lab::guest_debug(control, [0; 8]));
    check_ok!(lab::guest_debug(0, [0; 8]));
    check_trap!(done, DB, 0, "#DB of the host's");
});

// KVM_CAP_SET_GUEST_DEBUG2: KVM_GUESTDBG_BLOCKIRQ.
test!(block_irq, "With KVM_GUESTDBG_BLOCKIRQ no interrupt comes while the host steps.", || {
    const VECTOR: u8 = 0x54;
    let can = lab::check_extension(kvm::cap::SET_GUEST_DEBUG2);
    if can & u64::from(kvm::debug::BLOCK_IRQ) == 0 {
        payload_rt::skip!("KVM_CAP_SET_GUEST_DEBUG2 is {can:#x}: without KVM_GUESTDBG_BLOCKIRQ");
    }
    irq::count_only(VECTOR);
    let apic = apic::local();
    apic.enable();
    apic.self_ipi(VECTOR);
    let page = place(asm_code!("sti", "nop", "nop", "nop", "nop", "cli", "ret"));
    let log = check_ok!(lab::record(&[Rule::on(kind::DEBUG)]));
    check_ok!(lab::guest_debug(STEP | kvm::debug::BLOCK_IRQ, [0; 8]));
    let ran = mem::call(page);
    let count = irq::count(VECTOR);
    off();
    check_ok!(log.stop());
    check_ok!(ran);
    check_eq!(count, 0, "interrupts");
    check!(log.count() > 6, "{} steps", log.count());
    check!(irq::wait_for(VECTOR, 1, crate::PATIENCE), "it did not arrive afterwards");
});
