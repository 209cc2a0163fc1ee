//! Nested VMX: this payload is a hypervisor (L1) with guests of its own (L2), and checks what the one
//! below it (L0) makes of its VMX instructions, VM entries and VM exits (SDM volume 3, part on
//! virtual-machine extensions).
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "nested_vmx/aborts.rs"]
mod aborts;
#[path = "nested_vmx/apic.rs"]
mod apic;
#[path = "nested_vmx/arrivals.rs"]
mod arrivals;
#[path = "nested_vmx/capabilities.rs"]
mod capabilities;
#[path = "nested_vmx/checks.rs"]
mod checks;
#[path = "nested_vmx/controls.rs"]
mod controls;
#[path = "nested_vmx/delivery.rs"]
mod delivery;
#[path = "nested_vmx/events.rs"]
mod events;
#[path = "nested_vmx/exceptions.rs"]
mod exceptions;
#[path = "nested_vmx/exits.rs"]
mod exits;
#[path = "nested_vmx/functions.rs"]
mod functions;
#[path = "nested_vmx/guest_segments.rs"]
mod guest_segments;
#[path = "nested_vmx/guest_state.rs"]
mod guest_state;
#[path = "nested_vmx/host_state.rs"]
mod host_state;
#[path = "nested_vmx/instructions.rs"]
mod instructions;
#[path = "nested_vmx/io_msr.rs"]
mod io_msr;
#[path = "nested_vmx/modes.rs"]
mod modes;
#[path = "nested_vmx/nested_ept.rs"]
mod nested_ept;
#[path = "nested_vmx/registers.rs"]
mod registers;
#[path = "nested_vmx/scaling.rs"]
mod scaling;
#[path = "nested_vmx/signals.rs"]
mod signals;
#[path = "nested_vmx/state.rs"]
mod state;
#[path = "nested_vmx/third_level.rs"]
mod third_level;
#[path = "nested_vmx/vpid.rs"]
mod vpid;

use payload_rt::vmx::exit::EVENT_VALID;
use payload_rt::vmx::{self, Exit, Field, Reason, Regs, Vm, get};
use payload_rt::{check, check_eq, cpu, reg};

/// VMX operation, and a guest.
fn vm() -> Vm {
    vmx::enable();
    Vm::new()
}

/// What of L1 a VM exit must bring back, and what it must not touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct L1 {
    controls: [u64; 4],
    selectors: [u16; 7],
    tables: [u64; 2],
    tss: u64,
    dr7: u64,
    msrs: [u64; 11],
}

impl L1 {
    /// Expects this of LSTAR.
    fn set_lstar(&mut self, value: u64) {
        self.msrs[6] = value;
    }

    fn now() -> L1 {
        let msr = |index| match reg::rdmsr(index) {
            Ok(value) => value,
            Err(trap) => panic!("read MSR {index:#x}: {trap}"),
        };
        let sure = |value: Result<u64, payload_rt::trap::Trap>| match value {
            Ok(value) => value,
            Err(trap) => panic!("read L1's state: {trap}"),
        };
        L1 {
            controls: [reg::cr0(), reg::cr3(), reg::cr4(), reg::cr8()],
            selectors: [
                reg::cs(),
                reg::ss(),
                reg::ds(),
                reg::es(),
                reg::fs(),
                reg::gs(),
                sure(reg::str().map(u64::from)) as u16,
            ],
            tables: [sure(reg::sgdt().map(|t| t.base)), sure(reg::sidt().map(|t| t.base))],
            tss: cpu::tss_address(),
            dr7: sure(reg::dr(7)),
            msrs: [
                reg::EFER,
                reg::PAT,
                reg::FS_BASE,
                reg::GS_BASE,
                reg::KERNEL_GS_BASE,
                reg::STAR,
                reg::LSTAR,
                reg::SYSENTER_CS,
                reg::SYSENTER_ESP,
                reg::SYSENTER_EIP,
                reg::APIC_BASE,
            ]
            .map(msr),
        }
    }
}

/// Starts the guest with one instruction, and checks the VM exit that it causes: reason,
/// qualification, instruction length, RIP at the instruction, no event, general registers, RSP and
/// RFLAGS as they were; and L1 as it was.
fn exits(vm: &mut Vm, code: &[u8], reason: Reason, qualification: u64, what: &str) -> Exit {
    exits_with(vm, code, reason, qualification, what, |_| ())
}

/// As [`exits`], with registers that `prepare` sets.
fn exits_with(
    vm: &mut Vm,
    code: &[u8],
    reason: Reason,
    qualification: u64,
    what: &str,
    prepare: fn(&mut Regs),
) -> Exit {
    let exit = exits_somehow(vm, code, reason, what, prepare);
    check_eq!(exit.qualification, qualification, "qualification, {what}: {exit}");
    exit
}

/// As [`exits_with`], whatever the qualification.
fn exits_somehow(
    vm: &mut Vm,
    code: &[u8],
    reason: Reason,
    what: &str,
    prepare: fn(&mut Regs),
) -> Exit {
    let at = vm.start(code);
    prepare(&mut vm.regs);
    let (regs, l1) = (vm.regs, L1::now());
    let exit = vm.run_until(reason, what);
    check_eq!(exit.full_reason, u64::from(reason.0), "exit reason, {what}");
    check_eq!(exit.rip, at, "RIP, {what}");
    check_eq!(exit.length, code.len() as u64, "instruction length, {what}");
    check_eq!(exit.event & EVENT_VALID, 0, "event, {what}: {exit}");
    check_eq!(exit.vectoring & EVENT_VALID, 0, "vectoring event, {what}: {exit}");
    check_eq!(vm.regs, regs, "registers, {what}");
    check_eq!(get(Field::GUEST_RSP), vm.stack_top(), "RSP, {what}");
    check_eq!(get(Field::GUEST_RFLAGS), 2, "RFLAGS, {what}");
    check_l1(&exit, l1, what);
    exit
}

/// Checks that L1 is as it was before an exit.
fn check_l1(exit: &Exit, before: L1, what: &str) {
    check_eq!(exit.host_rflags, 2, "RFLAGS of L1 behind the exit, {what}");
    check_eq!(L1::now(), before, "L1 behind the exit, {what}");
}

/// Checks that code which exits under a control does not without it: it runs to its VMCALL.
fn passes(vm: &mut Vm, code: &[u8], what: &str) {
    let at = vm.start(code);
    let exit = vm.run_until(Reason::VMCALL, what);
    check!(exit.rip == at + code.len() as u64, "{what}: {exit}, the code is at {at:#x}");
}
