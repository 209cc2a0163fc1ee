//! Gates that CPL 3 goes through, and those it may not (SDM volume 3, 7.12.1 and 6.8.3).

use super::{check_done, check_end};
use payload_rt::cpu::{self, KERNEL_CS, KERNEL_DS};
use payload_rt::idt::{self, Gate};
use payload_rt::trap::{BP, GP, NP};
use payload_rt::user::{End, User, code_address};
use payload_rt::{asm_code, check, check_eq, frames, irq, reg, test};

/// `int n` for a vector of one's choice, `ret`.
fn int(vector: u8) -> User {
    User::new(&[0xcd, vector, 0xc3])
}

/// The error code that names an IDT entry.
const fn entry(vector: u8) -> u64 {
    (vector as u64) << 3 | 2
}

test!(int_dpl, "`int n` at CPL 3 needs a gate of DPL 3: else it is #GP with the entry.", || {
    for vector in [0, 1, 2, 3, 8, 13, 14, 32, 0x7f, 0x81, 0xff] {
        for dpl in [0, 1, 2] {
            idt::set_dpl(vector, dpl);
            check_end(&int(vector).run(), "int below DPL 3", GP, entry(vector), 0);
        }
        idt::set(vector, Gate::stub(vector));
    }
});

test!(int_absent, "`int n` through a gate that is not present is #NP with the entry.", || {
    let vector = 0x90;
    idt::set(vector, Gate { dpl: 3, present: false, ..Gate::stub(vector) });
    check_end(&int(vector).run(), "int of an absent gate", NP, entry(vector), 0);
    // The privilege is checked before.
    idt::set(vector, Gate { dpl: 0, present: false, ..Gate::stub(vector) });
    check_end(&int(vector).run(), "int of an absent gate of DPL 0", GP, entry(vector), 0);
    idt::set(vector, Gate::stub(vector));
});

test!(int_arrives, "`int n` through a gate of DPL 3 arrives with RIP behind it.", || {
    for vector in [0x20, 0x80, 0xa5, 0xfe] {
        idt::set_dpl(vector, 3);
        let outcome = int(vector).run();
        check_eq!(outcome.end, End::Gate(vector));
        check_eq!(outcome.regs.rip, code_address() + 2, "RIP");
        check_eq!(outcome.regs.error_code, 0, "error code of int {vector:#x}");
        check_eq!(outcome.regs.cs, u64::from(cpu::USER_CS), "CS");
        check_eq!(outcome.regs.ss, u64::from(cpu::USER_DS), "SS");
        idt::set(vector, Gate::stub(vector));
    }
});

// An interrupt gate clears IF, a trap gate does not; neither leaves TF, NT or RF on.
test!(
    int_flags,
    "An interrupt gate turns interrupts off for its handler, a trap gate does not.",
    || {
        use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
        static INSIDE: AtomicU64 = AtomicU64::new(0);
        let vector = 0x91;
        irq::handle(vector, |_| INSIDE.store(reg::rflags(), SeqCst));
        for trap in [false, true] {
            idt::set(vector, Gate { dpl: 3, trap, ..Gate::stub(vector) });
            let mut user = int(vector);
            user.regs.rflags |= reg::FLAG_CF | 1 << 14;
            let outcome = user.run();
            check_done(&outcome, "int through a gate with a handler");
            let inside = INSIDE.load(SeqCst);
            check_eq!(inside & reg::FLAG_IF != 0, trap, "IF in the handler, trap gate: {trap}");
            check_eq!(inside & (reg::FLAG_TF | 1 << 14 | reg::FLAG_RF), 0, "TF, NT, RF inside");
            let after = outcome.regs.rflags & (reg::FLAG_IF | reg::FLAG_CF);
            check_eq!(after, reg::FLAG_IF | reg::FLAG_CF, "IF and CF behind the handler");
        }
        irq::unhandle(vector);
        idt::set(vector, Gate::stub(vector));
    }
);

test!(int3_dpl, "`int3` at CPL 3 obeys the DPL of gate 3, and arrives behind itself.", || {
    let code = asm_code!("int3", "ret");
    check_end(&User::new(code).run(), "int3 with DPL 0", GP, entry(BP), 0);
    idt::set_dpl(BP, 3);
    check_end(&User::new(code).run(), "int3 with DPL 3", BP, 0, 1);
    idt::set(BP, Gate::stub(BP));
});

// SDM volume 3, 6.8.3.1: a 64-bit call gate takes two descriptors.
test!(call_gate, "A far call through a call gate of DPL 3 goes to CPL 0 and comes back.", || {
    // Says where it is, and returns; runs on the stack for CPL 0.
    let code = asm_code!("mov ebx, cs", "mov ecx, ss", "mov rdx, [rsp + 8]", "retfq");
    let mut page = frames::alloc();
    page.bytes()[..code.len()].copy_from_slice(code);
    let at = page.address();
    let low = |dpl: u64| {
        at & 0xffff
            | u64::from(KERNEL_CS) << 16
            | (0x8c | dpl << 5) << 40
            | (at >> 16 & 0xffff) << 48
    };
    let selector = cpu::set_descriptor(0, low(3));
    cpu::set_descriptor(1, at >> 32);
    // m16:32 on the stack: offset in the low four bytes, selector above.
    let call = asm_code!("push rax", "call fword ptr [rsp]", "add rsp, 8", "ret");
    let far = |rax: u64| {
        let mut user = User::new(call);
        user.regs.rax = rax;
        user.run()
    };
    let outcome = far(u64::from(selector | 3) << 32);
    check_done(&outcome, "far call through a gate");
    check_eq!(outcome.regs.rbx, u64::from(KERNEL_CS), "CS behind the gate");
    check_eq!(outcome.regs.rcx, 0, "SS behind the gate: null");
    check_eq!(outcome.regs.rdx, u64::from(cpu::USER_CS), "CS on the stack behind the gate");
    for dpl in [0, 2] {
        cpu::set_descriptor(0, low(dpl));
        let outcome = far(u64::from(selector | 3) << 32);
        check_end(&outcome, "far call through a gate of CPL 0", GP, selector.into(), 1);
    }
    check!(reg::ss() == KERNEL_DS, "SS of the runtime is {:#x}", reg::ss());
});
