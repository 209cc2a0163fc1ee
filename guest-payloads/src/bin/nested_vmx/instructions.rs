//! The VMX instructions' own rules (SDM volume 3, chapter "VMX Instruction Reference", one section an
//! instruction; "VM Instruction Error Numbers").

use super::vm;
use payload_rt::trap::{GP, PF, UD};
use payload_rt::user::{End, User};
use payload_rt::vmx::{self, Entry, FEATURE_CONTROL, Field, Refusal, caps};
use payload_rt::{
    asm_code, check, check_eq, check_err, check_ok, check_trap, cpuid, frames, insn, mem, reg, test,
};

/// VM-instruction errors.
const VMCLEAR_ADDRESS: u64 = 2;
const VMCLEAR_VMXON: u64 = 3;
const LAUNCH_NOT_CLEAR: u64 = 4;
const RESUME_NOT_LAUNCHED: u64 = 5;
const VMPTRLD_ADDRESS: u64 = 9;
const VMPTRLD_VMXON: u64 = 10;
const VMPTRLD_REVISION: u64 = 11;
const NO_SUCH_FIELD: u64 = 12;
const READ_ONLY_FIELD: u64 = 13;
const VMXON_IN_ROOT: u64 = 15;

/// Addresses that no VMCS or VMXON region can have: not aligned, and beyond the physical width.
fn bad_addresses(good: u64) -> [u64; 4] {
    let width = cpuid::physical_bits();
    [good + 1, good + 0x800, 1 << width, 1 << 63]
}

fn check_trapped(done: vmx::Done, vector: u8, what: &str) {
    let refusal = check_err!(done, "{what}");
    check!(refusal.is_trap(vector), "{what}: {refusal:?}, must be vector {vector} with error 0");
}

// SDM volume 3, "VMXON - Enter VMX Operation": #UD if CR4.VMXE = 0.
test!(vmxon_needs_vmxe, "VMXON with CR4.VMXE clear is #UD.", || {
    vmx::allow();
    let region = vmx::region();
    check_ok!(reg::set_cr4(reg::cr4() & !vmx::CR4_VMXE));
    check_trapped(vmx::vmxon(region), UD, "VMXON without CR4.VMXE");
    check_ok!(reg::set_cr4(reg::cr4() | vmx::CR4_VMXE));
    check_eq!(vmx::vmxon(region), Ok(()), "VMXON with CR4.VMXE");
});

// SDM volume 3, "Enabling and Entering VMX Operation": VMXON is #GP while IA32_FEATURE_CONTROL is not
// locked, or does not allow it outside of SMX operation; a write to the locked MSR is #GP.
test!(
    feature_control,
    "VMXON is #GP until IA32_FEATURE_CONTROL is locked with bit 2, and then the MSR is read-only.",
    || {
        cpuid::VMX.require();
        let control = check_ok!(reg::rdmsr(FEATURE_CONTROL));
        if control & vmx::FEATURE_LOCK != 0 {
            check_trap!(reg::wrmsr(FEATURE_CONTROL, control), GP, 0, "write of the locked MSR");
            return;
        }
        check_ok!(reg::set_cr0(reg::cr0() | reg::CR0_NE));
        check_ok!(reg::set_cr4(reg::cr4() | vmx::CR4_VMXE));
        let region = vmx::region();
        for value in [0, vmx::FEATURE_VMXON] {
            check_ok!(reg::wrmsr(FEATURE_CONTROL, value));
            check_eq!(reg::rdmsr(FEATURE_CONTROL), Ok(value), "the MSR");
            check_trapped(vmx::vmxon(region), GP, "VMXON under an unlocked IA32_FEATURE_CONTROL");
        }
        let locked = vmx::FEATURE_VMXON | vmx::FEATURE_LOCK;
        check_ok!(reg::wrmsr(FEATURE_CONTROL, locked));
        for value in [0, locked, vmx::FEATURE_VMXON] {
            check_trap!(reg::wrmsr(FEATURE_CONTROL, value), GP, 0, "write of the locked MSR");
        }
        check_eq!(reg::rdmsr(FEATURE_CONTROL), Ok(locked), "the locked MSR");
        check_eq!(vmx::vmxon(region), Ok(()), "VMXON under the locked MSR");
    }
);

test!(
    feature_control_forbids,
    "VMXON is #GP when IA32_FEATURE_CONTROL is locked without bit 2.",
    || {
        cpuid::VMX.require();
        if check_ok!(reg::rdmsr(FEATURE_CONTROL)) & vmx::FEATURE_LOCK != 0 {
            payload_rt::skip!("IA32_FEATURE_CONTROL is locked already");
        }
        check_ok!(reg::wrmsr(FEATURE_CONTROL, vmx::FEATURE_LOCK));
        check_ok!(reg::set_cr0(reg::cr0() | reg::CR0_NE));
        check_ok!(reg::set_cr4(reg::cr4() | vmx::CR4_VMXE));
        check_trapped(vmx::vmxon(vmx::region()), GP, "VMXON under the MSR locked at 1");
    }
);

test!(vmxon_fixed_bits, "VMXON with a CR0 that IA32_VMX_CR0_FIXED0 forbids is #GP.", || {
    vmx::allow();
    let region = vmx::region();
    check!(
        caps::read(caps::CR0_FIXED0) & reg::CR0_NE != 0,
        "CR0.NE need not be 1 in VMX operation"
    );
    check_ok!(reg::set_cr0(reg::cr0() & !reg::CR0_NE));
    check_trapped(vmx::vmxon(region), GP, "VMXON with CR0.NE clear");
    check_ok!(reg::set_cr0(reg::cr0() | reg::CR0_NE));
    check_eq!(vmx::vmxon(region), Ok(()), "VMXON with CR0.NE");
});

test!(
    vmxon_bad_region,
    "VMXON of an address that is not aligned or too wide, or of another revision, is VMfailInvalid.",
    || {
        vmx::allow();
        let region = vmx::region();
        for address in bad_addresses(region) {
            check_eq!(vmx::vmxon(address), Err(Refusal::Invalid), "VMXON of {address:#x}");
        }
        let revision = caps::revision();
        for word in [revision + 1, revision ^ 0x4000_0000, revision | 1 << 31] {
            check_ok!(mem::write(region, word));
            check_eq!(vmx::vmxon(region), Err(Refusal::Invalid), "VMXON, revision {word:#x}");
        }
        check_ok!(mem::write(region, revision));
        check_eq!(vmx::vmxon(region), Ok(()), "VMXON of a good region");
    }
);

test!(
    vmxon_in_root,
    "VMXON in VMX operation is VMfailInvalid without a current VMCS, and error 15 with one.",
    || {
        let region = vmx::enable();
        check_eq!(vmx::vmxon(region), Err(Refusal::Invalid), "VMXON without a current VMCS");
        let guest = vmx::Vm::new();
        check_eq!(vmx::vmxon(region), Err(Refusal::Valid(VMXON_IN_ROOT)), "VMXON with one");
        check_eq!(vmx::vmxon(1), Err(Refusal::Valid(VMXON_IN_ROOT)), "VMXON of nothing");
        check_eq!(vmx::vmptrst(), Ok(guest.vmcs()), "the current VMCS");
    }
);

// Each of the instructions' sections: #UD outside of VMX operation (VMXON aside).
test!(outside, "All VMX instructions but VMXON are #UD outside of VMX operation.", || {
    vmx::allow();
    let region = vmx::region();
    all_are_ud("before VMXON", region);
    check_eq!(vmx::vmxon(region), Ok(()), "VMXON");
    check_eq!(vmx::vmxoff(), Ok(()), "VMXOFF");
    all_are_ud("behind VMXOFF", region);
    // INVEPT and INVVPID of a wrong type: the mode is checked first.
    check_trapped(vmx::invept(99, [0; 2]), UD, "INVEPT");
    check_trapped(vmx::invvpid(99, [0; 2]), UD, "INVVPID");
});

fn all_are_ud(when: &str, region: u64) {
    for (name, done) in [
        ("VMCLEAR", vmx::vmclear(region)),
        ("VMPTRLD", vmx::vmptrld(region)),
        ("VMPTRST", vmx::vmptrst().map(drop)),
        ("VMREAD", vmx::vmread(Field::GUEST_RIP).map(drop)),
        ("VMWRITE", vmx::vmwrite(Field::GUEST_RIP, 0)),
        ("VMLAUNCH", vmx::vmlaunch()),
        ("VMRESUME", vmx::vmresume()),
        ("VMXOFF", vmx::vmxoff()),
    ] {
        let refusal = check_err!(done, "{name} {when}");
        check!(refusal.is_trap(UD), "{name} {when}: {refusal:?}, must be #UD");
    }
}

test!(at_cpl3, "VMX instructions at CPL 3 are #GP in VMX root operation.", || {
    let _vm = vm();
    for (name, code) in [
        ("VMXON", asm_code!("vmxon [rsp]", "ret")),
        ("VMXOFF", asm_code!("vmxoff", "ret")),
        ("VMCLEAR", asm_code!("vmclear [rsp]", "ret")),
        ("VMPTRLD", asm_code!("vmptrld [rsp]", "ret")),
        ("VMPTRST", asm_code!("vmptrst [rsp]", "ret")),
        ("VMREAD", asm_code!("vmread rax, rbx", "ret")),
        ("VMWRITE", asm_code!("vmwrite rax, rbx", "ret")),
        ("VMLAUNCH", asm_code!("vmlaunch", "ret")),
        ("VMRESUME", asm_code!("vmresume", "ret")),
        ("INVEPT", asm_code!("invept rax, [rsp]", "ret")),
        ("INVVPID", asm_code!("invvpid rax, [rsp]", "ret")),
    ] {
        let End::Trap(trap) = User::new(code).run().end else {
            payload_rt::fail!("{name} at CPL 3 did not trap");
        };
        check!(trap.is(GP, 0), "{name} at CPL 3: {trap}");
    }
});

// "Restrictions on VMX Operation": VMXE and the fixed bits cannot be cleared meanwhile.
test!(cr_bits_stay, "In VMX operation MOV to CR0 and CR4 that clears a fixed bit is #GP.", || {
    vmx::enable();
    let (cr0, cr4) = (reg::cr0(), reg::cr4());
    check_trap!(reg::set_cr4(cr4 & !vmx::CR4_VMXE), GP, 0, "clear CR4.VMXE");
    check_trap!(reg::set_cr0(cr0 & !reg::CR0_NE), GP, 0, "clear CR0.NE");
    check_eq!((reg::cr0(), reg::cr4()), (cr0, cr4), "CR0 and CR4");
    check_eq!(vmx::vmxoff(), Ok(()), "VMXOFF");
    check_ok!(reg::set_cr4(cr4 & !vmx::CR4_VMXE), "clear CR4.VMXE behind VMXOFF");
});

test!(
    vmclear_errors,
    "VMCLEAR of a bad address is error 2, of the VMXON region error 3, of any other page fine.",
    || {
        let region = vmx::enable();
        let vmcs = vmx::region();
        for address in bad_addresses(vmcs) {
            check_eq!(vmx::vmclear(address), Err(Refusal::Invalid), "VMCLEAR of {address:#x}");
        }
        let vm = vmx::Vm::new();
        for address in bad_addresses(vmcs) {
            let refused = Err(Refusal::Valid(VMCLEAR_ADDRESS));
            check_eq!(vmx::vmclear(address), refused, "VMCLEAR of {address:#x}");
        }
        check_eq!(vmx::vmclear(region), Err(Refusal::Valid(VMCLEAR_VMXON)), "VMCLEAR of VMXON's");
        // The revision identifier is not looked at.
        check_ok!(mem::write(vmcs, 0x1234_5678u32));
        check_eq!(vmx::vmclear(vmcs), Ok(()), "VMCLEAR of another revision");
        check_eq!(vmx::vmptrst(), Ok(vm.vmcs()), "the current VMCS, behind VMCLEAR of another");
        check_eq!(vmx::vmclear(vm.vmcs()), Ok(()), "VMCLEAR of the current VMCS");
        check_eq!(vmx::vmptrst(), Ok(u64::MAX), "the current VMCS, behind its VMCLEAR");
    }
);

test!(
    vmptrld_errors,
    "VMPTRLD of a bad address is error 9, of the VMXON region 10, of another revision 11.",
    || {
        let region = vmx::enable();
        let vmcs = vmx::region();
        check_eq!(vmx::vmclear(vmcs), Ok(()), "VMCLEAR");
        let vm = vmx::Vm::new();
        for address in bad_addresses(vmcs) {
            let refused = Err(Refusal::Valid(VMPTRLD_ADDRESS));
            check_eq!(vmx::vmptrld(address), refused, "VMPTRLD of {address:#x}");
        }
        check_eq!(vmx::vmptrld(region), Err(Refusal::Valid(VMPTRLD_VMXON)), "VMPTRLD of VMXON's");
        let revision = caps::revision();
        for word in [revision + 1, revision ^ 0x100] {
            check_ok!(mem::write(vmcs, word));
            let refused = Err(Refusal::Valid(VMPTRLD_REVISION));
            check_eq!(vmx::vmptrld(vmcs), refused, "VMPTRLD of revision {word:#x}");
        }
        check_eq!(vmx::vmptrst(), Ok(vm.vmcs()), "the current VMCS, behind failed VMPTRLDs");
        check_ok!(mem::write(vmcs, revision));
        check_eq!(vmx::vmptrld(vmcs), Ok(()), "VMPTRLD of a good VMCS");
        check_eq!(vmx::vmptrst(), Ok(vmcs), "the current VMCS");
    }
);

// "VMPTRLD": error 11 also for a shadow VMCS where VMCS shadowing is not offered.
test!(
    vmptrld_shadow_bit,
    "VMPTRLD of a VMCS with bit 31 of its revision set needs VMCS shadowing: else it is error 11.",
    || {
        let _vm = vm();
        let vmcs = vmx::region();
        check_eq!(vmx::vmclear(vmcs), Ok(()), "VMCLEAR");
        check_ok!(mem::write(vmcs, caps::revision() | 1 << 31));
        let expected = match caps::cpu2().may & caps::CPU2_SHADOW {
            0 => Err(Refusal::Valid(VMPTRLD_REVISION)),
            _ => Ok(()),
        };
        check_eq!(vmx::vmptrld(vmcs), expected, "VMPTRLD of a shadow VMCS");
    }
);

test!(
    no_vmcs,
    "Without a current VMCS its pointer is all ones and what uses one is VMfailInvalid.",
    || {
        vmx::enable();
        for when in ["behind VMXON", "behind VMXOFF and VMXON"] {
            check_eq!(vmx::vmptrst(), Ok(u64::MAX), "VMPTRST {when}");
            check_eq!(vmx::vmread(Field::GUEST_RIP), Err(Refusal::Invalid), "VMREAD {when}");
            check_eq!(vmx::vmwrite(Field::GUEST_RIP, 1), Err(Refusal::Invalid), "VMWRITE {when}");
            check_eq!(vmx::vmlaunch(), Err(Refusal::Invalid), "VMLAUNCH {when}");
            check_eq!(vmx::vmresume(), Err(Refusal::Invalid), "VMRESUME {when}");
            check_eq!(
                vmx::vmread(Field(0xfffe)),
                Err(Refusal::Invalid),
                "VMREAD of nothing {when}"
            );
            let _vm = vmx::Vm::new();
            check_eq!(vmx::vmxoff(), Ok(()), "VMXOFF");
            vmx::enable();
        }
    }
);

// "VMREAD", "VMWRITE", and appendix "Field Encoding in VMCS": reserved encodings.
test!(unknown_fields, "VMREAD and VMWRITE of a field that there is not are error 12.", || {
    let _vm = vm();
    let refused = Refusal::Valid(NO_SUCH_FIELD);
    for encoding in [
        0x0ffe,
        0x1000,
        0x2fff,
        0x23fe,
        0x45fe,
        0x5000,
        0x6bfe,
        0x8000,
        0x1_0000,
        0x4001,
        0x6001,
        0x0801,
        1 << 32,
        1 << 63,
        u64::MAX,
    ] {
        let field = Field(encoding);
        check_eq!(vmx::vmread(field), Err(refused), "VMREAD of {encoding:#x}");
        check_eq!(vmx::vmwrite(field, 0), Err(refused), "VMWRITE of {encoding:#x}");
    }
});

test!(
    read_only_fields,
    "VMWRITE of an exit-information field is error 13, unless IA32_VMX_MISC bit 29 allows it.",
    || {
        let _vm = vm();
        let writable = caps::read(caps::MISC) & 1 << 29 != 0;
        for (field, name) in vmx::fields::ALL {
            if field.area() != vmx::fields::Area::ExitInfo {
                continue;
            }
            let expected = if writable { Ok(()) } else { Err(Refusal::Valid(READ_ONLY_FIELD)) };
            check_eq!(vmx::vmwrite(*field, 0), expected, "VMWRITE of {name}");
        }
    }
);

test!(
    field_widths,
    "Each field keeps what it is wide: 16, 32 or 64 bits; a 64-bit field has a high half.",
    || {
        let _vm = vm();
        for (field, name) in vmx::fields::ALL {
            if field.area() == vmx::fields::Area::ExitInfo {
                continue;
            }
            let value = 0x8123_4567_89ab_cdefu64;
            if vmx::vmwrite(*field, value) == Err(Refusal::Valid(NO_SUCH_FIELD)) {
                // Not offered here; then VMREAD must not know it, either.
                let read = vmx::vmread(*field);
                check_eq!(read, Err(Refusal::Valid(NO_SUCH_FIELD)), "VMREAD of {name}");
                continue;
            }
            let kept = value & (u64::MAX >> (64 - field.bits()));
            let seen = check_ok!(vmx::vmread(*field), "VMREAD of {name}");
            // Reserved bits of access rights may be dropped (SDM, "VMWRITE": not checked).
            let rights = name.ends_with("_RIGHTS");
            let mask = if rights { 0x1_f0ff } else { u64::MAX };
            check_eq!(seen & mask, kept & mask, "{name}");
            if field.bits() == 64 && field.0 >> 13 == 1 {
                check_eq!(vmx::vmread(field.high()), Ok(value >> 32), "high half of {name}");
                check_eq!(vmx::vmwrite(field.high(), 0x1_7654_3210), Ok(()), "write it");
                let both = 0x7654_3210 << 32 | value & 0xffff_ffff;
                check_eq!(vmx::vmread(*field), Ok(both), "{name} behind a write of its high half");
            }
        }
    }
);

test!(
    operands_in_memory,
    "VMREAD and VMWRITE take memory operands, and a fault there is a #PF that changes nothing.",
    || {
        let _vm = vm();
        vmx::set(Field::GUEST_RSP, 0x1234_5678_9abc);
        let mut seen = 0u64;
        check_ok!(insn!("vmread [{at}], {field}";
            at = in(reg) &raw mut seen, field = in(reg) Field::GUEST_RSP.0));
        check_eq!(seen, 0x1234_5678_9abc, "VMREAD to memory");
        let value = 0x7777u64;
        check_ok!(insn!("vmwrite {field}, [{at}]";
            at = in(reg) &raw const value, field = in(reg) Field::GUEST_RSP.0));
        check_eq!(vmx::get(Field::GUEST_RSP), 0x7777, "VMWRITE from memory");
        let page = frames::alloc().address();
        payload_rt::paging::reach(page, 1);
        payload_rt::paging::unmap(page);
        let absent = page;
        let read = insn!("vmread [{at}], {field}";
            at = in(reg) absent, field = in(reg) Field::GUEST_RSP.0);
        let trap = check_trap!(read, PF, 2, "VMREAD to an absent page");
        check_eq!(trap.cr2, absent, "CR2");
        let write = insn!("vmwrite {field}, [{at}]";
            at = in(reg) absent, field = in(reg) Field::GUEST_RSP.0);
        check_trap!(write, PF, 0, "VMWRITE from an absent page");
        check_trap!(insn!("vmptrst [{}]"; in(reg) absent), PF, 2, "VMPTRST to an absent page");
        check_trap!(insn!("vmclear [{}]"; in(reg) absent), PF, 0, "VMCLEAR by an absent page");
        check_trap!(insn!("vmptrld [{}]"; in(reg) absent), PF, 0, "VMPTRLD by an absent page");
        check_eq!(vmx::get(Field::GUEST_RSP), 0x7777, "the field, behind the faults");
    }
);

test!(
    launch_state,
    "VMRESUME of a clear VMCS is error 5, VMLAUNCH of a launched one error 4, and VMCLEAR clears it.",
    || {
        let mut vm = vm();
        vm.start(&[]);
        check_eq!(vm.enter_by(true), refused(RESUME_NOT_LAUNCHED), "VMRESUME of a clear VMCS");
        vm.run();
        vm.start(&[]);
        check_eq!(vm.enter_by(false), refused(LAUNCH_NOT_CLEAR), "VMLAUNCH of a launched VMCS");
        vm.run();
        vm.clear();
        vm.load();
        vm.start(&[]);
        check_eq!(vm.enter_by(true), refused(RESUME_NOT_LAUNCHED), "VMRESUME behind VMCLEAR");
        check_eq!(vmx::get(Field::INSTRUCTION_ERROR), RESUME_NOT_LAUNCHED, "the error field");
        vm.run();
    }
);

// "VM Entries", basic checks: error 26 under blocking by MOV SS.
test!(
    entry_in_mov_ss_shadow,
    "VMLAUNCH and VMRESUME right behind MOV SS are error 26; they do not enter.",
    || {
        let mut vm = vm();
        vm.start(&[]);
        let ss = u32::from(reg::ss());
        let flags: u64;
        check_ok!(insn!("mov ss, {ss:e}", "vmlaunch", "pushfq", "pop {flags}";
            ss = in(reg) ss, flags = lateout(reg) flags));
        check!(flags & 0x41 == 0x40, "RFLAGS behind VMLAUNCH are {flags:#x}, must have ZF");
        check_eq!(vmx::get(Field::INSTRUCTION_ERROR), 26, "the error");
        vm.run();
    }
);

test!(
    vmcs_outlives,
    "What VMWRITE wrote is there again after VMPTRLD of another VMCS, VMCLEAR, VMXOFF and VMXON.",
    || {
        let region = vmx::enable();
        let (a, b) = (vmx::Vm::new(), vmx::Vm::new());
        let write = |n: u64| {
            vmx::set(Field::GUEST_RSP, n);
            vmx::set(Field::VPID, n & 0xffff);
            vmx::set(Field::TSC_OFFSET, !n);
        };
        let check = |n: u64, when: &str| {
            let seen = [Field::GUEST_RSP, Field::VPID, Field::TSC_OFFSET].map(vmx::get);
            check_eq!(seen, [n, n & 0xffff, !n], "fields {when}");
        };
        a.load();
        write(0x1111_2222);
        b.load();
        write(0x3333_4444);
        a.load();
        check(0x1111_2222, "behind VMPTRLD of another");
        b.load();
        check(0x3333_4444, "of the other");
        for vmcs in [a.vmcs(), b.vmcs()] {
            check_eq!(vmx::vmclear(vmcs), Ok(()), "VMCLEAR");
        }
        check_eq!(vmx::vmxoff(), Ok(()), "VMXOFF");
        check_eq!(vmx::vmxon(region), Ok(()), "VMXON");
        a.load();
        check(0x1111_2222, "behind VMCLEAR, VMXOFF and VMXON");
        b.load();
        check(0x3333_4444, "of the other, too");
    }
);

fn refused(error: u64) -> Entry {
    Entry::Refused(Refusal::Valid(error))
}
