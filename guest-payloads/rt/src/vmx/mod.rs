//! VMX: a hypervisor small enough for a test (Intel SDM volume 3, part on virtual-machine
//! extensions; volume 3, chapter "VMX Instruction Reference").
//!
//! [`enable`] brings the CPU to where VMXON is allowed, [`vmxon`] and its kin are the instructions,
//! [`caps`] what the capability MSRs say. [`Vm`] is a guest: a VMCS that passes all checks, for code in
//! 64-bit mode in the same memory, on a stack of its own. A test changes what it is about and runs it.

pub mod caps;
pub mod ept;
pub mod exit;
pub mod fields;
mod guest;

pub use exit::{Exit, Reason};
pub use fields::Field;
pub use guest::{Entry, Regs, Vm, host_rip};

use crate::trap::Trap;
use crate::{cpuid, frames, insn, mem, reg};

/// CR4: VMX operation is allowed.
pub const CR4_VMXE: u64 = 1 << 13;
/// IA32_FEATURE_CONTROL.
pub const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_FEATURE_CONTROL: no write until the next reset.
pub const FEATURE_LOCK: u64 = 1;
/// IA32_FEATURE_CONTROL: VMXON outside of SMX operation.
pub const FEATURE_VMXON: u64 = 1 << 2;

/// Why a VMX instruction did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// VMfailInvalid: there is no current VMCS to hold a reason.
    Invalid,
    /// VMfailValid, with the VM-instruction error number.
    Valid(u64),
    /// An exception.
    Trap(Trap),
    /// Flags that mean none of the above (both CF and ZF, or one of those that must be clear).
    Flags(u64),
}

/// Outcome of a VMX instruction.
pub type Done<T = ()> = Result<T, Refusal>;

impl Refusal {
    /// Whether it is this exception, error code 0.
    pub const fn is_trap(&self, vector: u8) -> bool {
        matches!(self, Refusal::Trap(trap) if trap.is(vector, 0))
    }
}

/// RFLAGS that a VMX instruction sets or clears: CF, PF, AF, ZF, SF, OF.
const FLAGS: u64 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11;
const FLAG_ZF: u64 = 1 << 6;

/// What the flags behind a VMX instruction mean (SDM volume 3, "Conventions" of the instruction
/// reference).
fn outcome(trapped: Result<(), Trap>, flags: u64) -> Done {
    trapped.map_err(Refusal::Trap)?;
    match flags & FLAGS {
        0 => Ok(()),
        reg::FLAG_CF => Err(Refusal::Invalid),
        FLAG_ZF => Err(Refusal::Valid(get(Field::INSTRUCTION_ERROR))),
        _ => Err(Refusal::Flags(flags)),
    }
}

// The flags are set the wrong way before, so that an instruction that leaves them is noticed.
macro_rules! vmx_insn {
    ($instruction:literal; $($operands:tt)*) => {{
        let flags: u64;
        let trapped = insn!(
            "pushfq", "or qword ptr [rsp], 0x8d5", "popfq",
            $instruction,
            "pushfq", "pop {flags}";
            flags = lateout(reg) flags, $($operands)*
        );
        outcome(trapped, flags)
    }};
}

/// VMXON with the region at a physical address.
pub fn vmxon(region: u64) -> Done {
    vmx_insn!("vmxon [{at}]"; at = in(reg) &raw const region)
}

/// VMXOFF.
pub fn vmxoff() -> Done {
    vmx_insn!("vmxoff";)
}

/// VMCLEAR of the VMCS at a physical address.
pub fn vmclear(vmcs: u64) -> Done {
    vmx_insn!("vmclear [{at}]"; at = in(reg) &raw const vmcs)
}

/// VMPTRLD of the VMCS at a physical address.
pub fn vmptrld(vmcs: u64) -> Done {
    vmx_insn!("vmptrld [{at}]"; at = in(reg) &raw const vmcs)
}

/// VMPTRST: the physical address of the current VMCS.
pub fn vmptrst() -> Done<u64> {
    let mut vmcs = 0x5555_5555_5555_5555u64;
    vmx_insn!("vmptrst [{at}]"; at = in(reg) &raw mut vmcs)?;
    Ok(vmcs)
}

/// VMREAD.
pub fn vmread(field: Field) -> Done<u64> {
    let value: u64;
    // Not `late`: the field must not share the value's register.
    vmx_insn!("vmread {value}, {field}"; value = out(reg) value, field = in(reg) field.0)?;
    Ok(value)
}

/// VMWRITE.
pub fn vmwrite(field: Field, value: u64) -> Done {
    vmx_insn!("vmwrite {field}, {value}"; value = in(reg) value, field = in(reg) field.0)
}

/// VMLAUNCH of whatever is current, which must fail: there is nothing to come back to.
pub fn vmlaunch() -> Done {
    vmx_insn!("vmlaunch";)
}

/// VMRESUME of whatever is current, which must fail.
pub fn vmresume() -> Done {
    vmx_insn!("vmresume";)
}

/// INVEPT, with a type and the two words of its descriptor.
pub fn invept(kind: u64, descriptor: [u64; 2]) -> Done {
    vmx_insn!("invept {kind}, [{at}]"; kind = in(reg) kind, at = in(reg) &raw const descriptor)
}

/// INVVPID, with a type and the two words of its descriptor.
pub fn invvpid(kind: u64, descriptor: [u64; 2]) -> Done {
    vmx_insn!("invvpid {kind}, [{at}]"; kind = in(reg) kind, at = in(reg) &raw const descriptor)
}

/// VMREAD of a field that is there. Ends the test with an error if it is not.
pub fn get(field: Field) -> u64 {
    let value: u64;
    let flags: u8;
    let trapped = insn!("vmread {value}, {field}", "setbe {flags}";
        value = out(reg) value, field = in(reg) field.0, flags = lateout(reg_byte) flags);
    if let (Ok(()), 0) = (trapped, flags) {
        return value;
    }
    panic!("VMREAD of {field}: {trapped:?}, CF or ZF {flags}")
}

/// VMWRITE of a field that is there. Ends the test with an error if it is not.
pub fn set(field: Field, value: u64) {
    if let Err(refusal) = vmwrite(field, value) {
        panic!("VMWRITE of {value:#x} to {field}: {refusal:?}");
    }
}

/// Brings the CPU to where VMXON is allowed: IA32_FEATURE_CONTROL, CR0.NE, CR4.VMXE (SDM volume 3,
/// "Enabling and Entering VMX Operation"). Ends the test with `skip` where there is no VMX.
pub fn allow() {
    cpuid::VMX.require();
    let control = match reg::rdmsr(FEATURE_CONTROL) {
        Ok(control) => control,
        Err(trap) => panic!("read IA32_FEATURE_CONTROL: {trap}"),
    };
    if control & FEATURE_LOCK == 0 {
        let on = control | FEATURE_LOCK | FEATURE_VMXON;
        sure(reg::wrmsr(FEATURE_CONTROL, on), "write IA32_FEATURE_CONTROL");
    } else if control & FEATURE_VMXON == 0 {
        crate::skip!("IA32_FEATURE_CONTROL is locked without VMXON: {control:#x}");
    }
    sure(reg::set_cr0(reg::cr0() | reg::CR0_NE), "set CR0.NE");
    sure(reg::set_cr4(reg::cr4() | CR4_VMXE), "set CR4.VMXE");
}

/// Enters VMX operation: [`allow`], then VMXON with a region of its own, whose address it gives.
pub fn enable() -> u64 {
    allow();
    let region = region();
    if let Err(refusal) = vmxon(region) {
        panic!("VMXON: {refusal:?}");
    }
    region
}

/// A page with the VMCS revision identifier: a VMXON region, or a VMCS before its VMCLEAR.
pub fn region() -> u64 {
    let page = frames::alloc().address();
    if let Err(trap) = mem::write(page, caps::revision()) {
        panic!("write the revision identifier: {trap}");
    }
    page
}

fn sure(result: Result<(), Trap>, what: &str) {
    if let Err(trap) = result {
        panic!("{what}: {trap}");
    }
}
