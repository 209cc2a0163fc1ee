//! KVM's paravirtual features but for the clock: what CPUID says of them, stolen time, asynchronous
//! page faults, EOI, and hypercalls.
//!
//! Linux, Documentation/virt/kvm/x86: cpuid.rst, msr.rst, hypercalls.rst.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod calls;
mod cpus;
mod faults;
mod features;
mod hyperv;
mod steal;
mod tlb;

use payload_rt::cpuid::{Feature, Register::Eax};
use payload_rt::{check, check_err, check_ok, cpuid, frames, mem, reg, trap};

const ASYNC_PF_EN: u32 = 0x4b56_4d02;
const STEAL_TIME: u32 = 0x4b56_4d03;
const PV_EOI_EN: u32 = 0x4b56_4d04;
const POLL_CONTROL: u32 = 0x4b56_4d05;
const ASYNC_PF_INT: u32 = 0x4b56_4d06;
const ASYNC_PF_ACK: u32 = 0x4b56_4d07;
const MIGRATION_CONTROL: u32 = 0x4b56_4d08;

const fn feature(name: &'static str, bit: u8) -> Feature {
    Feature::new(name, 0x4000_0001, 0, Eax, bit)
}

/// How long an interrupt may take that must come, in microseconds.
const PATIENCE: u64 = 5_000_000;
/// How long to look for what must not come, in microseconds.
const SETTLE: u64 = 300;
const VECTOR: u8 = 0x57;

fn read(msr: u32) -> u64 {
    check_ok!(reg::rdmsr(msr), "read MSR {msr:#x}")
}

fn write(msr: u32, value: u64) {
    check_ok!(reg::wrmsr(msr, value), "write {value:#x} to MSR {msr:#x}");
}

fn refused(msr: u32, value: u64) {
    let fault = check_err!(reg::wrmsr(msr, value), "write {value:#x} to MSR {msr:#x}");
    check!(fault.is(trap::GP, 0), "write {value:#x} to MSR {msr:#x}: {fault}");
}

/// A page of zeroes, never given back: its address.
fn page() -> u64 {
    frames::alloc().address()
}

fn word<T: mem::Word>(at: u64) -> T {
    check_ok!(mem::read(at))
}

fn put<T: mem::Word>(at: u64, value: T) {
    check_ok!(mem::write(at, value));
}

/// Whether hypercalls are VMMCALL here: on AMD's processors, and those that are like them.
fn amd() -> bool {
    matches!(&cpuid::signature(0), b"AuthenticAMD" | b"HygonGenuine")
}

/// Makes a hypercall with the processor's own instruction.
fn call(number: u64, args: [u64; 4]) -> i64 {
    let result: i64;
    macro_rules! by {
        ($instruction:literal) => {
            payload_rt::insn!(
                "xchg rbx, {b}", $instruction, "xchg rbx, {b}";
                b = inout(reg) args[0] => _, inout("rax") number => result,
                in("rcx") args[1], in("rdx") args[2], in("rsi") args[3]
            )
        };
    }
    let done = if amd() { by!("vmmcall") } else { by!("vmcall") };
    check_ok!(done, "hypercall {number}");
    result
}

/// What hypercalls return for errors (hypercalls.rst and include/uapi/linux/kvm_para.h).
mod errors {
    pub const ENOSYS: i64 = -1000;
    pub const EPERM: i64 = -1;
    pub const EINVAL: i64 = -22;
    pub const EOPNOTSUPP: i64 = -95;
}
