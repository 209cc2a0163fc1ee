//! VM exits by instructions (SDM volume 3, "Instructions That Cause VM Exits" and "Information for VM
//! Exits Due to Instruction Execution").

use super::{exits, exits_somehow, exits_with, passes, vm};
use payload_rt::trap::UD;
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::exit::{EVENT_VALID, Kind, event};
use payload_rt::vmx::{Field, Reason, get, set};
use payload_rt::{asm_code, check, check_eq, cpuid, skip, test};

/// With the primary control the instruction exits, and without it does not.
fn by_control(control: u64, code: &[u8], reason: Reason, what: &str) {
    let mut vm = vm();
    vm.remove(Field::CPU_CONTROLS, control);
    passes(&mut vm, code, what);
    vm.add(Field::CPU_CONTROLS, control);
    let exit = exits(&mut vm, code, reason, 0, what);
    vm.skip(&exit);
    vm.run_until(Reason::VMCALL, what);
}

test!(exit_cpuid, "CPUID always exits.", || {
    exits(&mut vm(), asm_code!("cpuid"), Reason::CPUID, 0, "CPUID");
});

test!(exit_invd, "INVD always exits.", || {
    exits(&mut vm(), asm_code!("invd"), Reason::INVD, 0, "INVD");
});

test!(exit_vmcall, "VMCALL always exits, at CPL 0 to 3, whatever its registers hold.", || {
    let mut vm = vm();
    exits(&mut vm, asm_code!("vmcall"), Reason::VMCALL, 0, "VMCALL");
    exits_with(&mut vm, asm_code!("vmcall"), Reason::VMCALL, 0, "VMCALL of KVM's", |regs| {
        // KVM's own hypercall KVM_HC_VAPIC_POLL_IRQ, which L1 gets all the same.
        regs.rax = 1;
    });
});

test!(exit_xsetbv, "XSETBV always exits, before its operands are looked at.", || {
    cpuid::XSAVE.require();
    let mut vm = vm();
    set(Field::GUEST_CR4, get(Field::GUEST_CR4) | payload_rt::reg::CR4_OSXSAVE);
    exits(&mut vm, asm_code!("xsetbv"), Reason::XSETBV, 0, "XSETBV");
});

// "Relative Priority of Faults and VM Exits": #UD goes before.
test!(
    ud_before_exit,
    "GETSEC without SMX, RSM outside of SMM and XSETBV without OSXSAVE are #UD in L2, and do not exit by themselves.",
    || {
        let mut vm = vm();
        set(Field::EXCEPTION_BITMAP, 1 << UD);
        for (name, code) in [
            ("GETSEC", asm_code!("getsec")),
            ("RSM", asm_code!("rsm")),
            ("XSETBV", asm_code!("xsetbv")),
        ] {
            let at = vm.start(code);
            let exit = vm.run_until(Reason::EXCEPTION, name);
            check_eq!(exit.event, event(Kind::Hardware, UD), "event, {name}");
            check_eq!(exit.rip, at, "RIP, {name}");
        }
    }
);

test!(exit_hlt, "HLT exits under HLT exiting; L2 goes on behind it when L1 skips it.", || {
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS, CPU_HLT);
    let exit = exits(&mut vm, asm_code!("hlt"), Reason::HLT, 0, "HLT");
    vm.skip(&exit);
    vm.run_until(Reason::VMCALL, "behind HLT");
    check_eq!(get(Field::ACTIVITY), 0, "activity state behind the exit");
});

test!(exit_invlpg, "INVLPG exits under its control, with the linear address.", || {
    let mut vm = vm();
    passes(&mut vm, asm_code!("invlpg [rsp]"), "INVLPG without the control");
    vm.add(Field::CPU_CONTROLS, CPU_INVLPG);
    let address = 0x4d41_524b_0001_00a4 + 0x123;
    let code = asm_code!("invlpg [rbx + 0x123]");
    exits(&mut vm, code, Reason::INVLPG, address, "INVLPG of an address that is not canonical");
    exits_with(&mut vm, asm_code!("invlpg [rbx]"), Reason::INVLPG, 0x1234_5678, "INVLPG", |regs| {
        regs.rbx = 0x1234_5678;
    });
});

test!(exit_rdpmc, "RDPMC exits under its control, whatever counter it names.", || {
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS, CPU_RDPMC);
    exits(&mut vm, asm_code!("rdpmc"), Reason::RDPMC, 0, "RDPMC");
});

test!(exit_rdtsc, "RDTSC exits under its control only.", || {
    by_control(CPU_RDTSC, asm_code!("rdtsc"), Reason::RDTSC, "RDTSC");
});

test!(
    exit_rdtscp,
    "RDTSCP exits under RDTSC exiting once it is enabled, and is #UD until then.",
    || {
        cpuid::RDTSCP.require();
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS, CPU_RDTSC);
        set(Field::EXCEPTION_BITMAP, 1 << UD);
        vm.start(asm_code!("rdtscp"));
        let exit = vm.run_until(Reason::EXCEPTION, "RDTSCP without its control");
        check_eq!(exit.event, event(Kind::Hardware, UD), "event of RDTSCP without its control");
        vm.add(Field::CPU_CONTROLS2, CPU2_RDTSCP);
        exits(&mut vm, asm_code!("rdtscp"), Reason::RDTSCP, 0, "RDTSCP");
        vm.remove(Field::CPU_CONTROLS, CPU_RDTSC);
        passes(&mut vm, asm_code!("rdtscp"), "RDTSCP without RDTSC exiting");
    }
);

test!(exit_mwait, "MWAIT exits under its control.", || {
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS, CPU_MWAIT);
    // Qualification: whether the monitor was armed, which it was not.
    exits(&mut vm, asm_code!("mwait"), Reason::MWAIT, 0, "MWAIT");
});

test!(exit_monitor, "MONITOR exits under its control.", || {
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS, CPU_MONITOR);
    exits_with(&mut vm, asm_code!("monitor"), Reason::MONITOR, 0, "MONITOR", |regs| {
        regs.rax = 0x1000;
        regs.rcx = 0;
    });
});

test!(exit_pause, "PAUSE exits under its control only.", || {
    by_control(CPU_PAUSE, asm_code!("pause"), Reason::PAUSE, "PAUSE");
});

test!(exit_wbinvd, "WBINVD exits under its control only.", || {
    by_control2(CPU2_WBINVD, asm_code!("wbinvd"), Reason::WBINVD, "WBINVD");
});

/// [`by_control`] of a secondary control.
fn by_control2(control: u64, code: &[u8], reason: Reason, what: &str) {
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS2, control);
    let exit = exits(&mut vm, code, reason, 0, what);
    vm.skip(&exit);
    vm.run_until(Reason::VMCALL, what);
    vm.remove(Field::CPU_CONTROLS2, control);
    passes(&mut vm, code, what);
}

// "Format of the VM-Exit Instruction-Information Field as Used for RDRAND, RDSEED": destination in
// bits 6:3, operand size in bits 12:11.
test!(exit_rdrand, "RDRAND exits under its control, with destination and operand size.", || {
    cpuid::RDRAND.require();
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS2, CPU2_RDRAND);
    for (code, register, size) in
        [(asm_code!("rdrand rbx"), 3, 2), (asm_code!("rdrand r13d"), 13, 1)]
    {
        exits(&mut vm, code, Reason::RDRAND, 0, "RDRAND");
        let info = get(Field::INSTRUCTION_INFO) & 0x1878;
        check_eq!(info, register << 3 | size << 11, "instruction information of RDRAND");
    }
    vm.remove(Field::CPU_CONTROLS2, CPU2_RDRAND);
    passes(&mut vm, asm_code!("rdrand rbx"), "RDRAND without the control");
});

test!(exit_rdseed, "RDSEED exits under its control, with destination and operand size.", || {
    cpuid::RDSEED.require();
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS2, CPU2_RDSEED);
    for (code, register, size) in [(asm_code!("rdseed rdx"), 2, 2), (asm_code!("rdseed r9d"), 9, 1)]
    {
        exits(&mut vm, code, Reason::RDSEED, 0, "RDSEED");
        let info = get(Field::INSTRUCTION_INFO) & 0x1878;
        check_eq!(info, register << 3 | size << 11, "instruction information of RDSEED");
    }
});

test!(exit_rdrand_16, "RDRAND and RDSEED of a 16-bit register say that operand size.", || {
    cpuid::RDRAND.require();
    cpuid::RDSEED.require();
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS2, CPU2_RDRAND | CPU2_RDSEED);
    for (code, reason, register) in
        [(asm_code!("rdrand cx"), Reason::RDRAND, 1), (asm_code!("rdseed r9w"), Reason::RDSEED, 9)]
    {
        exits(&mut vm, code, reason, 0, "a 16-bit register");
        let info = get(Field::INSTRUCTION_INFO) & 0x1878;
        check_eq!(info, register << 3, "instruction information, {reason}");
    }
});

// "Exit Qualification": zero if the instruction has no displacement, as with a register operand.
test!(
    no_displacement,
    "The qualification of VMREAD, VMWRITE, SLDT and their kin with a register operand is 0.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS2, CPU2_DESCRIPTOR);
        for (code, reason) in [
            (asm_code!("vmread rbx, r14"), Reason::VMREAD),
            (asm_code!("vmwrite rcx, rdi"), Reason::VMWRITE),
            (asm_code!("sldt ecx"), Reason::LDTR_TR),
            (asm_code!("ltr cx"), Reason::LDTR_TR),
        ] {
            exits(&mut vm, code, reason, 0, "a register operand");
        }
    }
);

/// Instruction information of an operand in memory: scaling, address size (64), segment, index, base.
/// `None` for no index.
const fn operand(scaling: u64, segment: u64, index: Option<u64>, base: u64) -> u64 {
    let index = match index {
        Some(index) => index << 18,
        None => 1 << 22,
    };
    scaling | 2 << 7 | segment << 15 | index | base << 23
}

/// Bits of the instruction information that are defined for an operand in memory, but those of an
/// index that is not there.
fn defined(info: u64, expected: u64) -> u64 {
    let index = if expected & 1 << 22 != 0 { 0 } else { 0x3c_0003 };
    info & (0x380 | 0x3_8000 | 1 << 22 | 0x780_0000 | 1 << 27 | index)
}

const SS: u64 = 2;
const DS: u64 = 3;
const GS: u64 = 5;

// Table "Format of the VM-Exit Instruction-Information Field as Used for VMCLEAR, VMPTRLD, VMPTRST,
// VMXON, XRSTORS, and XSAVES".
test!(
    exit_vmx_memory,
    "VMCLEAR, VMPTRLD, VMPTRST and VMXON in L2 exit, with displacement and operand.",
    || {
        let mut vm = vm();
        for (code, reason, displacement, info) in [
            (asm_code!("vmclear [rbx]"), Reason::VMCLEAR, 0, operand(0, DS, None, 3)),
            (
                asm_code!("vmclear [rbx + rcx*4 + 0x10]"),
                Reason::VMCLEAR,
                0x10,
                operand(2, DS, Some(1), 3),
            ),
            (asm_code!("vmptrld [rsp - 8]"), Reason::VMPTRLD, -8, operand(0, SS, None, 4)),
            (
                asm_code!("vmptrst gs:[r12 + r9*8 + 0x12345678]"),
                Reason::VMPTRST,
                0x1234_5678,
                operand(3, GS, Some(9), 12),
            ),
            (asm_code!("vmxon [rbp + 1]"), Reason::VMXON, 1, operand(0, SS, None, 5)),
        ] {
            exits(&mut vm, code, reason, displacement as i64 as u64, "a VMX instruction");
            let seen = get(Field::INSTRUCTION_INFO);
            check_eq!(defined(seen, info), info, "instruction information of {reason}");
        }
    }
);

test!(exit_vmx_plain, "VMLAUNCH, VMRESUME and VMXOFF in L2 exit.", || {
    let mut vm = vm();
    for (code, reason) in [
        (asm_code!("vmlaunch"), Reason::VMLAUNCH),
        (asm_code!("vmresume"), Reason::VMRESUME),
        (asm_code!("vmxoff"), Reason::VMXOFF),
    ] {
        exits(&mut vm, code, reason, 0, "a VMX instruction");
    }
});

// Table "... as Used for VMREAD and VMWRITE": bit 10 a register operand, in bits 6:3; the field's
// register in bits 31:28.
test!(exit_vmread_vmwrite, "VMREAD and VMWRITE in L2 exit, with both operands.", || {
    let mut vm = vm();
    let registers = |one: u64, field: u64| 1 << 10 | one << 3 | field << 28;
    const BOTH: u64 = 0xf000_0478;
    for (code, reason, info) in [
        (asm_code!("vmread rbx, r14"), Reason::VMREAD, registers(3, 14)),
        (asm_code!("vmwrite rcx, rdi"), Reason::VMWRITE, registers(7, 1)),
    ] {
        exits_somehow(&mut vm, code, reason, "registers", |_| ());
        check_eq!(get(Field::INSTRUCTION_INFO) & BOTH, info, "instruction information of {reason}");
    }
    for (code, reason, field) in [
        (asm_code!("vmread [rbx + 0x40], r8"), Reason::VMREAD, 8),
        (asm_code!("vmwrite rdx, [rbx + 0x40]"), Reason::VMWRITE, 2),
    ] {
        exits(&mut vm, code, reason, 0x40, "memory");
        let (seen, info) = (get(Field::INSTRUCTION_INFO), operand(0, DS, None, 3));
        check_eq!(defined(seen, info), info, "operand of {reason}");
        check_eq!(seen >> 28, field, "register of the field, {reason}");
        check!(seen & 1 << 10 == 0, "{reason} of memory: {seen:#x} speaks of a register");
    }
});

// Table "... as Used for INVEPT, INVPCID, and INVVPID": the type's register in bits 31:28.
test!(exit_invept_invvpid, "INVEPT and INVVPID in L2 exit, with both operands.", || {
    let mut vm = vm();
    for (code, reason, kind) in [
        (asm_code!("invept rsi, [rbx + 0x40]"), Reason::INVEPT, 6),
        (asm_code!("invvpid r10, [rbx + 0x40]"), Reason::INVVPID, 10),
    ] {
        exits(&mut vm, code, reason, 0x40, "an invalidation");
        let (seen, info) = (get(Field::INSTRUCTION_INFO), operand(0, DS, None, 3));
        check_eq!(defined(seen, info), info, "operand of {reason}");
        check_eq!(seen >> 28, kind, "register of the type, {reason}");
    }
});

test!(
    exit_invpcid,
    "INVPCID exits under INVLPG exiting once it is enabled, with both operands, and is #UD until then.",
    || {
        cpuid::INVPCID.require();
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS, CPU_INVLPG);
        let code = asm_code!("invpcid rdi, [rbx + 0x40]");
        set(Field::EXCEPTION_BITMAP, 1 << UD);
        vm.start(code);
        let exit = vm.run_until(Reason::EXCEPTION, "INVPCID without its control");
        check_eq!(exit.event, event(Kind::Hardware, UD), "event of INVPCID without its control");
        vm.add(Field::CPU_CONTROLS2, CPU2_INVPCID);
        exits(&mut vm, code, Reason::INVPCID, 0x40, "INVPCID");
        let (seen, info) = (get(Field::INSTRUCTION_INFO), operand(0, DS, None, 3));
        check_eq!(defined(seen, info), info, "operand of INVPCID");
        check_eq!(seen >> 28, 7, "register of the type");
    }
);

// Tables "... as Used for LIDT, LGDT, SIDT, or SGDT" (instruction in bits 29:28) and "... LLDT, LTR,
// SLDT, and STR" (operand a register if bit 10, in bits 6:3).
test!(
    exit_descriptor_tables,
    "LGDT, LIDT, LLDT, LTR, SGDT, SIDT, SLDT and STR exit under descriptor-table exiting, and say which.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS2, CPU2_DESCRIPTOR);
        for (code, which) in [
            (asm_code!("sgdt [rbx + 8]"), 0),
            (asm_code!("sidt [rbx + 8]"), 1),
            (asm_code!("lgdt [rbx + 8]"), 2),
            (asm_code!("lidt [rbx + 8]"), 3),
        ] {
            exits(&mut vm, code, Reason::GDTR_IDTR, 8, "GDTR and IDTR");
            let (seen, info) = (get(Field::INSTRUCTION_INFO), operand(0, DS, None, 3));
            check_eq!(defined(seen, info), info, "operand of instruction {which}");
            check_eq!(seen >> 28 & 3, which, "which instruction");
        }
        for (code, which) in [
            (asm_code!("sldt ecx"), 0),
            (asm_code!("str ecx"), 1),
            (asm_code!("lldt cx"), 2),
            (asm_code!("ltr cx"), 3),
        ] {
            exits_somehow(&mut vm, code, Reason::LDTR_TR, "LDTR and TR", |_| ());
            let seen = get(Field::INSTRUCTION_INFO);
            check_eq!(seen & 0x478, 1 << 10 | 1 << 3, "register of instruction {which}");
            check_eq!(seen >> 28 & 3, which, "which instruction");
        }
        exits(&mut vm, asm_code!("sldt [rbx + 6]"), Reason::LDTR_TR, 6, "SLDT to memory");
        vm.remove(Field::CPU_CONTROLS2, CPU2_DESCRIPTOR);
        passes(&mut vm, asm_code!("sldt ecx"), "SLDT without the control");
    }
);

test!(exit_encls, "ENCLS exits under its bitmap.", || {
    if caps::cpu2().may & CPU2_ENCLS == 0 {
        skip!("no ENCLS exiting");
    }
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS2, CPU2_ENCLS);
    set(Field::ENCLS_BITMAP, u64::MAX);
    exits_with(&mut vm, asm_code!("encls"), Reason::ENCLS, 0, "ENCLS", |regs| regs.rax = 0);
});

test!(exit_prefixes, "The instruction length counts prefixes.", || {
    let mut vm = vm();
    for code in [
        asm_code!(".byte 0x66, 0x0f, 0xa2"),
        asm_code!(".byte 0x2e, 0x3e, 0x48, 0x0f, 0xa2"),
        asm_code!(
            ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x48, 0x0f, 0xa2"
        ),
    ] {
        let exit = exits(&mut vm, code, Reason::CPUID, 0, "CPUID with prefixes");
        vm.skip(&exit);
        vm.run_until(Reason::VMCALL, "behind it");
    }
});

// "Monitor Trap Flag": the exit is pending behind the first instruction.
test!(
    monitor_trap_flag,
    "Under the monitor trap flag L2 exits behind each instruction, and RFLAGS.TF stays clear.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS, CPU_MONITOR_TRAP);
        let at =
            vm.start(asm_code!("nop", "inc rax", "pushfq", "pop rbx", "jmp 2f", "nop", "2: nop"));
        for (rip, what) in
            [(1, "NOP"), (4, "INC"), (5, "PUSHFQ"), (6, "POP"), (9, "JMP"), (10, "NOP")]
        {
            let exit = vm.run_until(Reason::MONITOR_TRAP, what);
            check_eq!(exit.rip - at, rip, "RIP behind {what}");
            check_eq!(exit.event & EVENT_VALID, 0, "event behind {what}");
        }
        check_eq!(vm.regs.rbx & payload_rt::reg::FLAG_TF, 0, "TF that L2 saw");
        vm.remove(Field::CPU_CONTROLS, CPU_MONITOR_TRAP);
        vm.run_until(Reason::VMCALL, "without the flag");
    }
);
