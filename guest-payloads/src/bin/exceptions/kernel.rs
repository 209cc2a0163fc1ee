//! Exceptions at CPL 0.

use super::check_rf;
use payload_rt::cpu::{self, FREE_SELECTOR, KERNEL_CS, KERNEL_DS, TSS_SELECTOR, USER_DS};
use payload_rt::trap::{BP, DB, DE, GP, NM, NP, OF, SS, Trap, UD, catch};
use payload_rt::{
    check, check_eq, check_ok, check_trap, frames, idt, insn, insn_raw, reg, simd_fn, test,
};

/// Runs instructions: the address of the first one, and what came of them.
macro_rules! at {
    ($($insn:literal),+ $(; $($operands:tt)*)?) => {{
        let at: u64;
        let result = insn!("lea {at_}, [rip]", $($insn),+; at_ = out(reg) at, $($($operands)*)?);
        (at, result)
    }};
}

fn fault((at, result): (u64, Result<(), Trap>), what: &str, vector: u8, code: u64) {
    let trap = check_trap!(result, vector, code, "{what}");
    check_eq!(trap.rip, at, "RIP, {what}");
    check_rf(trap.rflags, what);
}

// SDM volume 3, 7.15; AMD APM volume 2, 8.2.
test!(
    faults,
    "Faults at CPL 0 have their vector and code, RIP at the instruction, and RF.",
    || {
        let divide = at!("div ecx"; inout("eax") 1 => _, inout("edx") 0 => _, in("ecx") 0);
        fault(divide, "div by 0", DE, 0);
        let divide = at!(
            "idiv rcx"; inout("rax") 0_u64 => _, inout("rdx") 1_u64 << 63 => _, in("rcx") -1_i64
        );
        fault(divide, "idiv that overflows", DE, 0);
        fault(at!("ud2"), "ud2", UD, 0);
        fault(at!(".byte 0x06"), "push es in 64-bit code", UD, 0);
        fault(at!(".byte 0xf0, 0x01, 0xc0"), "lock of a register", UD, 0);
        fault(at!(".byte 0x8e, 0xc8"), "a load of CS", UD, 0);
        fault(at!("mov rax, [rcx]"; out("rax") _, in("rcx") 1_u64 << 63), "read", GP, 0);
        fault(at!("mov [rcx], rax"; in("rax") 0_u64, in("rcx") 1_u64 << 63), "write", GP, 0);
        // RIP is the jump's, or on AMD where it leads, so nothing is said of it.
        let jump = catch(|| insn_raw!("jmp {}"; in(reg) 1_u64 << 63));
        check_trap!(jump, GP, 0, "jump");
        fault(at!("lgdt [rcx]"; in("rcx") 1_u64 << 63), "lgdt", GP, 0);
        fault(at!("wrmsr"; in("ecx") 0x4000_00aa_u32, in("eax") 0, in("edx") 0), "wrmsr", GP, 0);
    }
);

// SDM volume 2, INT n/INTO/INT3/INT1.
test!(into, "INTO is #UD in 64-bit code.", || {
    fault(at!(".byte 0xce"), "into in 64-bit code", UD, 0);
});

test!(length, "An instruction of 15 bytes runs, and one of 16 is #GP(0).", || {
    check_ok!(insn!(
        ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90"
    ));
    fault(
        at!(
            ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90"
        ),
        "15 prefixes and a nop",
        GP,
        0,
    );
});

/// A flat writable data segment, accessed.
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// An accessed 64-bit code segment.
const CODE: u64 = 0x00af_9b00_0000_ffff;
const PRESENT: u64 = 1 << 47;

// SDM volume 2, MOV: "loading while segment is not present": #NP, and #SS for SS.
test!(segments, "Loading a bad selector at CPL 0 is #GP, #NP or #SS with the selector.", || {
    check_ok!(insn!("lldt {:x}"; in(reg) 0_u16), "lldt of a null selector");
    let absent = cpu::set_descriptor(0, DATA & !PRESENT);
    // The privilege is checked before the presence, so this one is for RPL 3 too.
    let absent_3 = cpu::set_descriptor(3, DATA & !PRESENT | 3 << 45);
    let execute_only = cpu::set_descriptor(1, 0x00af_9900_0000_ffff);
    let read_only = cpu::set_descriptor(2, 0x00cf_9100_0000_ffff);
    let beyond = FREE_SELECTOR + 8 * cpu::GDT_FREE_SLOTS as u16;
    for (bad, vector) in [
        (absent_3, NP),
        (execute_only, GP),
        (TSS_SELECTOR, GP),
        (beyond, GP),
        (0xfff8, GP),
        (0x000c, GP), // in the LDT, of which there is none
    ] {
        for (name, load) in [
            ("ds", reg::set_ds as fn(u16) -> Result<(), Trap>),
            ("es", reg::set_es),
            ("fs", reg::set_fs),
            ("gs", reg::set_gs),
        ] {
            // The error code has the table indicator and no RPL.
            for rpl in [0, 3] {
                let trap = check_trap!(
                    load(bad | rpl),
                    vector,
                    u64::from(bad),
                    "load {bad:#x}, RPL {rpl}, into {name}"
                );
                check_rf(trap.rflags, name);
            }
        }
    }
    for (bad, vector) in [
        (absent, SS),
        (read_only, GP),
        (KERNEL_CS, GP),
        (USER_DS & !3, GP),
        (KERNEL_DS | 3, GP),
        (beyond, GP),
    ] {
        check_trap!(reg::set_ss(bad), vector, u64::from(bad & !3), "load {bad:#x} into ss");
        check_eq!(reg::ss(), KERNEL_DS, "SS after the refused {bad:#x}");
    }
    // A null SS is fine in 64-bit mode at CPL 0, with RPL 0.
    check_ok!(reg::set_ss(0));
    check_ok!(reg::set_ss(KERNEL_DS));
    check_ok!(reg::set_ds(read_only), "a read-only segment into ds");
});

// SDM volume 2, MOV: "IF segment selector is NULL ... IF CPL = 3 or SS's RPL is not CPL: #GP(0)".
test!(null_ss, "Loading a null selector of RPL 3 into SS at CPL 0 is #GP(0).", || {
    check_trap!(reg::set_ss(3), GP, 0, "load 3 into ss");
    check_eq!(reg::ss(), KERNEL_DS, "SS after the refused 3");
});

// SDM volume 2, LTR and LLDT.
test!(ltr_null, "LTR of a null selector is #GP(0).", || {
    check_trap!(reg::ltr(0), GP, 0, "ltr of a null selector");
    check_eq!(reg::str(), Ok(TSS_SELECTOR), "the task register");
});

test!(
    system_segments,
    "LTR and LLDT refuse what is no free TSS or LDT, with the selector.",
    || {
        let absent = cpu::set_descriptor(0, 0x0000_0900_0000_0067);
        cpu::set_descriptor(1, 0);
        let data = cpu::set_descriptor(2, DATA);
        let beyond = FREE_SELECTOR + 8 * cpu::GDT_FREE_SLOTS as u16;
        // Loaded already, so it is busy.
        check_trap!(reg::ltr(TSS_SELECTOR), GP, u64::from(TSS_SELECTOR), "ltr of a busy TSS");
        check_trap!(reg::ltr(data), GP, u64::from(data), "ltr of a data segment");
        check_trap!(reg::ltr(beyond), GP, u64::from(beyond), "ltr beyond the table");
        check_trap!(reg::ltr(absent), NP, u64::from(absent), "ltr of an absent TSS");
        check_eq!(reg::str(), Ok(TSS_SELECTOR), "the task register");
        let lldt = |selector: u16| insn!("lldt {:x}"; in(reg) selector);
        check_ok!(lldt(0), "lldt of a null selector");
        check_trap!(lldt(data), GP, u64::from(data), "lldt of a data segment");
        check_trap!(lldt(TSS_SELECTOR), GP, u64::from(TSS_SELECTOR), "lldt of a TSS");
        let absent = cpu::set_descriptor(0, 0x0000_0200_0000_0067);
        check_trap!(lldt(absent), NP, u64::from(absent), "lldt of an absent LDT");
    }
);

/// Nothing is mapped there.
const NOWHERE: u64 = 0x6abc_d000_0000;

/// Checks that a far return and an interrupt return to this code segment fault with its selector.
fn check_return(bad: u16, vector: u8) {
    // What is left on the stack goes with the frame that `catch` abandons.
    let far = catch(
        || insn_raw!("push {0}", "push {1}", "retfq"; in(reg) u64::from(bad), in(reg) NOWHERE),
    );
    check_trap!(far, vector, u64::from(bad), "retfq to selector {bad:#x}");
    let interrupt = catch(|| {
        insn_raw!(
            "push 0x10", "push rsp", "push 2", "push {0}", "push {1}", "iretq";
            in(reg) u64::from(bad), in(reg) NOWHERE
        )
    });
    check_trap!(interrupt, vector, u64::from(bad), "iretq to selector {bad:#x}");
}

// SDM volume 2, RET and IRET.
test!(returns, "RETF and IRET to a bad code segment are #GP or #NP with the selector.", || {
    let absent = cpu::set_descriptor(0, CODE & !PRESENT);
    for (bad, vector) in [
        (0, GP),
        (KERNEL_DS, GP),
        (TSS_SELECTOR, GP),
        (FREE_SELECTOR + 8 * cpu::GDT_FREE_SLOTS as u16, GP),
        (absent, NP),
    ] {
        check_return(bad, vector);
    }
    // NT means a task switch, which 64-bit mode does not have.
    let nested = catch(|| insn_raw!("pushfq", "or dword ptr [rsp], 0x4000", "popfq", "iretq"));
    check_trap!(nested, GP, 0, "iretq with NT set");
});

// SDM volume 3, 3.4.5: with L set, D must be clear.
test!(return_to_both, "RETF and IRET to a code segment with both L and D are #GP.", || {
    check_return(cpu::set_descriptor(0, CODE | 1 << 54), GP);
});

simd_fn! {
    /// The traps of an x87 and an SSE instruction.
    fn x87_and_sse() -> [Result<(), Trap>; 2] {
        let memory = [0_u128; 1];
        [insn!("fninit"), insn!("movups xmm0, [{}]"; in(reg) memory.as_ptr())]
    }
}

// SDM volume 3, 2.5 and 7.15, #NM.
test!(
    device_not_available,
    "With CR0.TS x87 and SSE are #NM at CPL 0, and CLTS ends that.",
    || {
        let cr0 = reg::cr0();
        check_ok!(reg::set_cr0(cr0 | reg::CR0_TS));
        for (result, what) in x87_and_sse().into_iter().zip(["fninit", "movups"]) {
            check_rf(check_trap!(result, NM, 0, "{what} with TS").rflags, what);
        }
        check_ok!(insn!("clts"));
        check_eq!(reg::cr0(), cr0 & !reg::CR0_TS, "CR0 after clts");
        for (result, what) in x87_and_sse().into_iter().zip(["fninit", "movups"]) {
            check_ok!(result, "{what} after clts");
        }
    }
);

// SDM volume 2, INT n/INTO/INT3/INT1; volume 3, 7.4: these are traps, at the next instruction.
test!(software, "INT3 and INT n at CPL 0 arrive behind themselves, without RF.", || {
    for (what, vector, (at, result), len) in [
        ("int3", BP, at!("int3"), 1),
        ("int 3", BP, at!(".byte 0xcd, 3"), 2),
        ("int 4", OF, at!("int 4"), 2),
        ("int 1", DB, at!(".byte 0xcd, 1"), 2),
    ] {
        let trap = check_trap!(result, vector, 0, "{what}");
        check_eq!(trap.rip, at + len, "RIP, {what}");
        check_eq!(trap.rflags & reg::FLAG_RF, 0, "RF in RFLAGS saved by {what}");
    }
    // DPL does not matter at CPL 0; a gate's absence does.
    idt::set(0x90, idt::Gate { present: false, ..idt::Gate::stub(0x90) });
    fault(at!("int 0x90"), "int through an absent gate", NP, 0x90 << 3 | 2);
    idt::set(0x90, idt::Gate::stub(0x90));
});

test!(alignment, "CPL 0 has no alignment checks, whatever CR0.AM and RFLAGS.AC say.", || {
    let cr0 = reg::cr0();
    let page = frames::alloc();
    check_ok!(reg::set_cr0(cr0 | reg::CR0_AM));
    let read = insn!(
        "pushfq", "or dword ptr [rsp], 0x40000", "popfq", "mov {1}, [{0} + 1]",
        "pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq";
        in(reg) page.address(), out(reg) _
    );
    check_ok!(read, "read off its size with AM and AC at CPL 0");
    check!(reg::rflags() & reg::FLAG_AC == 0, "AC stayed on");
    check_ok!(reg::set_cr0(cr0));
});
