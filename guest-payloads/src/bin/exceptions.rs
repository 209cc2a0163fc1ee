//! Exceptions: every vector that a guest can raise, with what the CPU says of it.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "exceptions/debug.rs"]
mod debug;
#[path = "exceptions/delivery.rs"]
mod delivery;
#[path = "exceptions/fpu.rs"]
mod fpu;
#[path = "exceptions/kernel.rs"]
mod kernel;
#[path = "exceptions/nmi.rs"]
mod nmi;
#[path = "exceptions/page_fault.rs"]
mod page_fault;
#[path = "exceptions/user.rs"]
mod user;

use payload_rt::reg;
use payload_rt::trap::Frame;
use payload_rt::{check, check_eq};

/// Checks that a fault saved RFLAGS with RF set, so that the instruction's own breakpoint does
/// not hit again (SDM volume 3, 18.3.1.1; AMD APM volume 2, 8.2).
fn check_rf(rflags: u64, what: &str) {
    check!(rflags & reg::FLAG_RF != 0, "{what}: RFLAGS {rflags:#x} was saved without RF");
}

/// Checks the general registers of a trap's frame against others, but for RSP, RIP and flags.
fn check_registers(seen: &Frame, expected: &Frame, what: &str) {
    let words = |f: &Frame| {
        [
            f.rax, f.rbx, f.rcx, f.rdx, f.rsi, f.rdi, f.rbp, f.r8, f.r9, f.r10, f.r11, f.r12,
            f.r13, f.r14, f.r15,
        ]
    };
    check_eq!(words(seen), words(expected), "registers, {what}");
}
