//! VM exits by exceptions (SDM volume 3, "Exception Bitmap", "Information for VM Exits Due to Vectored
//! Events", table "Exit Qualification for Debug Exceptions").

use super::{L1, check_l1, vm};
use payload_rt::reg::{CR0_TS, FLAG_TF};
use payload_rt::trap::{BP, DB, DE, GP, MF, NM, NP, PF, SS, UD};
use payload_rt::vmx::exit::{EVENT_ERROR, Kind, event};
use payload_rt::vmx::{Exit, Field, Reason, Vm, get, set};
use payload_rt::{asm_code, check, check_eq, check_ok, cpu, mem, test};

/// An address that no page table maps.
const ABSENT: u64 = 0x7000_0000_0000;

/// Runs one instruction that raises `vector` under a bitmap with that vector alone, and checks the
/// exit: the event with its error code, RIP, registers, and L1.
fn raises(vm: &mut Vm, code: &[u8], vector: u8, kind: Kind, error: Option<u64>, rip: u64) -> Exit {
    set(Field::EXCEPTION_BITMAP, 1 << vector);
    let at = vm.start(code);
    let (regs, l1) = (vm.regs, L1::now());
    let exit = vm.run_until(Reason::EXCEPTION, "an exception");
    let with = if error.is_some() { EVENT_ERROR } else { 0 };
    check_eq!(exit.event, event(kind, vector) | with, "event: {exit}");
    if let Some(error) = error {
        check_eq!(get(Field::EXIT_EVENT_ERROR), error, "error code: {exit}");
    }
    check_eq!(exit.rip, at + rip, "RIP: {exit}");
    check_eq!(vm.regs, regs, "registers: {exit}");
    check_l1(&exit, l1, "an exception");
    exit
}

test!(exception_ud, "#UD in L2 exits by its bit of the exception bitmap.", || {
    raises(&mut vm(), asm_code!("ud2"), UD, Kind::Hardware, None, 0);
});

test!(exception_de, "#DE in L2 exits by its bit of the exception bitmap.", || {
    let mut vm = vm();
    raises(
        &mut vm,
        asm_code!("div dword ptr [rip + 2f]", "2: .long 0"),
        DE,
        Kind::Hardware,
        None,
        0,
    );
});

test!(exception_gp, "#GP in L2 exits with its error code.", || {
    let mut vm = vm();
    raises(&mut vm, asm_code!("mov rax, [rbx]"), GP, Kind::Hardware, Some(0), 0);
    raises(&mut vm, asm_code!("mov ds, ecx"), GP, Kind::Hardware, Some(0xa0), 0);
});

test!(exception_np_ss, "#NP and #SS in L2 exit with the selector as error code.", || {
    let mut vm = vm();
    let selector = cpu::FREE_SELECTOR;
    let slot = get(Field::GDTR_BASE) + u64::from(selector);
    // A data segment that is not present.
    check_ok!(mem::write(slot, 0x00cf_1300_0000_ffffu64));
    let code = asm_code!("mov ds, [rip + 2f]", "2: .short 0x48");
    raises(&mut vm, code, NP, Kind::Hardware, Some(selector.into()), 0);
    let code = asm_code!("mov ss, [rip + 2f]", "2: .short 0x48");
    raises(&mut vm, code, SS, Kind::Hardware, Some(selector.into()), 0);
});

test!(exception_nm, "#NM in L2 exits by its bit of the exception bitmap.", || {
    let mut vm = vm();
    set(Field::GUEST_CR0, get(Field::GUEST_CR0) | CR0_TS);
    raises(&mut vm, asm_code!("fnop"), NM, Kind::Hardware, None, 0);
});

test!(exception_mf, "#MF in L2 exits at the waiting instruction.", || {
    let mut vm = vm();
    // Zero divide unmasked, and done; the FWAIT is 2 + 8 + 4 + 2 + 2 + 2 bytes on.
    let code = asm_code!(
        "fninit",
        "mov word ptr [rsp - 8], 0x37b",
        "fldcw [rsp - 8]",
        "fld1",
        "fldz",
        "fdivp",
        "fwait"
    );
    raises(&mut vm, code, MF, Kind::Hardware, None, code.len() as u64 - 1);
});

// Type 6 is a software exception, and the instruction length is valid.
test!(
    exception_bp,
    "INT3 in L2 exits as a software exception, at itself, with its length.",
    || {
        let exit = raises(&mut vm(), asm_code!("int3"), BP, Kind::SoftwareException, None, 0);
        check_eq!(exit.length, 1, "instruction length");
    }
);

test!(exception_icebp, "INT1 in L2 exits as a privileged software exception, at itself.", || {
    let exit = raises(&mut vm(), asm_code!(".byte 0xf1"), DB, Kind::PrivilegedSoftware, None, 0);
    check_eq!(exit.length, 1, "instruction length");
});

test!(
    exception_step,
    "A single step in L2 exits with BS in the qualification, and DR6 as it was.",
    || {
        let mut vm = vm();
        set(Field::EXCEPTION_BITMAP, 1 << DB);
        let at = vm.start(asm_code!("nop", "nop"));
        check_ok!(payload_rt::reg::set_dr(6, 0xffff_0ff0));
        set(Field::GUEST_RFLAGS, 2 | FLAG_TF);
        let exit = vm.run_until(Reason::EXCEPTION, "a single step");
        check_eq!(exit.event, event(Kind::Hardware, DB), "event");
        check_eq!(exit.qualification, 1 << 14, "qualification: {exit}");
        check_eq!(exit.rip, at + 1, "RIP");
        check_eq!(get(Field::GUEST_RFLAGS) & FLAG_TF, FLAG_TF, "TF");
        check_eq!(payload_rt::reg::dr(6), Ok(0xffff_0ff0), "DR6");
    }
);

test!(
    exception_breakpoint,
    "A data breakpoint of L2 exits with its number in the qualification.",
    || {
        let mut vm = vm();
        vm.add(Field::ENTRY_CONTROLS, payload_rt::vmx::caps::ENTRY_LOAD_DEBUG);
        set(Field::EXCEPTION_BITMAP, 1 << DB);
        let at = vm.start(asm_code!("mov qword ptr [rsp - 8], 0", "nop"));
        check_ok!(payload_rt::reg::set_dr(2, vm.stack_top() - 8));
        // DR2, writes, 8 bytes.
        set(Field::GUEST_DR7, 0x400 | 1 << 5 | 0b1001 << 24);
        let exit = vm.run_until(Reason::EXCEPTION, "a data breakpoint");
        check_eq!(exit.event, event(Kind::Hardware, DB), "event");
        check_eq!(exit.qualification & 0xf, 1 << 2, "qualification: {exit}");
        check_eq!(exit.rip, at + 9, "RIP");
    }
);

test!(
    exception_pf,
    "#PF in L2 exits with the address as qualification, and leaves CR2 alone.",
    || {
        let mut vm = vm();
        check_ok!(payload_rt::reg::set_cr2(0x1234));
        for (code, error, rip) in
            [(asm_code!("mov rax, [r8]"), 0, 0), (asm_code!("mov [r8], rax"), 2, 0)]
        {
            set(Field::EXCEPTION_BITMAP, 1 << PF);
            let at = vm.start(code);
            vm.regs.r8 = ABSENT + 0x123;
            let exit = vm.run_until(Reason::EXCEPTION, "a page fault");
            check_eq!(exit.event, event(Kind::Hardware, PF) | EVENT_ERROR, "event: {exit}");
            check_eq!(get(Field::EXIT_EVENT_ERROR), error, "error code");
            check_eq!(exit.qualification, ABSENT + 0x123, "qualification");
            check_eq!(exit.rip, at + rip, "RIP");
            check_eq!(payload_rt::reg::cr2(), 0x1234, "CR2");
        }
    }
);

/// Reads (0) or writes (2) an absent page; 1 if that was a #PF.
extern "C" fn touch(error: u64) -> u64 {
    let done = match error {
        0 => mem::read::<u64>(ABSENT).map(drop),
        _ => mem::write(ABSENT, 0u64),
    };
    done.is_err_and(|trap| trap.is(PF, error) && trap.cr2 == ABSENT).into()
}

test!(
    page_fault_mask,
    "#PF exits if (error code AND mask) = match, with bit 14 of the bitmap, and if not, without it.",
    || {
        let mut vm = vm();
        for bitmap in [0, 1 << PF] {
            for (mask, wanted) in
                [(0, 0), (2, 0), (2, 2), (0, 2), (0x1f, 2), (4, 4), (0xffff_ffff, 0)]
            {
                set(Field::EXCEPTION_BITMAP, bitmap);
                set(Field::PF_MASK, mask);
                set(Field::PF_MATCH, wanted);
                for error in [0, 2] {
                    let exits = (error & mask == wanted) == (bitmap != 0);
                    vm.call(touch, error);
                    let exit = vm.run();
                    let what = (bitmap, mask, wanted, error);
                    if exits {
                        check_eq!(
                            exit.reason,
                            Reason::EXCEPTION,
                            "bitmap, mask, match, error {what:x?}"
                        );
                        check_eq!(exit.qualification, ABSENT, "qualification, {what:x?}");
                    } else {
                        check_eq!(vm.value(&exit), 1, "L2's own #PF, {what:x?}");
                    }
                }
            }
        }
    }
);

/// Raises one exception after the other; a bit for each that L2's handler saw.
extern "C" fn raise_all(_: u64) -> u64 {
    let seen = |done: Result<(), payload_rt::trap::Trap>, vector: u8| match done {
        Err(trap) if trap.vector == vector => 1u64 << vector,
        _ => 0,
    };
    seen(payload_rt::insn!("ud2"), UD)
        | seen(payload_rt::insn!("int3"), BP)
        | seen(payload_rt::insn!(".byte 0xf1"), DB)
        | seen(mem::read::<u64>(1 << 63).map(drop), GP)
        | seen(mem::read::<u64>(ABSENT).map(drop), PF)
        | seen(payload_rt::insn!("div {0:e}"; inout(reg) 0u32 => _, out("eax") _, out("edx") _), DE)
}

test!(
    exceptions_of_l2,
    "Exceptions that are not in the bitmap arrive through L2's IDT, whichever others are.",
    || {
        let mut vm = vm();
        let raised = [UD, BP, DB, GP, PF, DE].iter().fold(0, |all, vector| all | 1 << vector);
        set(Field::EXCEPTION_BITMAP, 0xffff_ffff & !raised);
        let l1 = L1::now();
        check_eq!(vm.run_to_end(raise_all, 0), raised, "vectors that L2 saw");
        check_eq!(L1::now(), l1, "L1");
    }
);

test!(
    triple_fault,
    "A triple fault of L2 is an exit, not the end of L1; L2 can be started again.",
    || {
        let mut vm = vm();
        let limit = get(Field::IDTR_LIMIT);
        for _ in 0..3 {
            set(Field::IDTR_LIMIT, 0);
            vm.start(asm_code!("ud2"));
            let l1 = L1::now();
            let exit = vm.run_until(Reason::TRIPLE_FAULT, "a triple fault");
            check_eq!(exit.qualification, 0, "qualification");
            check_l1(&exit, l1, "a triple fault");
            set(Field::IDTR_LIMIT, limit);
            check_eq!(vm.run_to_end(raise_all, 0) & 1 << UD, 1 << UD, "L2 behind a triple fault");
        }
    }
);

test!(double_fault, "A double fault of L2 exits by its bit, as no event during another.", || {
    let mut vm = vm();
    set(Field::EXCEPTION_BITMAP, 1 << 8);
    set(Field::IDTR_LIMIT, 8 * 16 + 15);
    // Vector 13 is beyond the limit: #GP in the delivery of #GP.
    vm.start(asm_code!("mov rax, [rbx]"));
    let exit = vm.run_until(Reason::EXCEPTION, "a double fault");
    check_eq!(exit.event, event(Kind::Hardware, 8) | EVENT_ERROR, "event: {exit}");
    check_eq!(get(Field::EXIT_EVENT_ERROR), 0, "error code");
    check!(exit.vectoring >> 31 == 0, "it says that it came during an event: {exit}");
});
