//! The runtime of bare-metal payloads.
//!
//! A payload is a program for the bare machine, at CPL 0 in 64-bit mode, with one job: to run the
//! test that its command line names (`test=NAME`), say on the first serial port how it went, and
//! end the machine. Everything a test needs `unsafe` for is in here; a payload itself has none.
//!
//! ```ignore
//! //! guest-payloads/src/bin/example.rs
//! #![no_std]
//! #![no_main]
//! #![forbid(unsafe_code)]
//!
//! use payload_rt::apic::{self, Delivery, Destination};
//! use payload_rt::*;
//!
//! test!(tr_beyond_gdt, "A selector beyond the GDT is #GP in LTR, and TR stays as it was.", || {
//!     let before = reg::str();
//!     let fault = check_err!(reg::ltr(0xfff8));
//!     check!(fault.is(trap::GP, 0xfff8), "{fault}");
//!     check_eq!(reg::str(), before);
//! });
//!
//! test!(ipi_to_each_cpu, "A fixed IPI arrives once at each other CPU.", || {
//!     const VECTOR: u8 = 0x40;
//!     irq::count_only(VECTOR);
//!     for cpu in 1..smp::start() {
//!         let id = smp::apic_id(cpu);
//!         apic::local().send(Delivery::Fixed(VECTOR), Destination::Physical(id));
//!         let arrived = time::wait_until(1_000_000, || irq::count_on(cpu, VECTOR) == 1);
//!         check!(arrived, "vector {VECTOR:#x} did not arrive at cpu {cpu}");
//!     }
//! });
//!
//! test!(cpl3_cannot_halt, "`hlt` at CPL 3 is #GP.", || {
//!     let outcome = user::User::new(asm_code!("hlt", "ret")).run();
//!     let user::End::Trap(fault) = outcome.end else { fail!("{:?}", outcome.end) };
//!     check!(fault.is(trap::GP, 0), "{fault}");
//! });
//! ```
//!
//! # What a test finds
//!
//! - One CPU runs ([`smp::start`] brings the others), interrupts are off, the local APIC is as the
//!   firmware or the reset left it ([`apic::Apic::enable`]).
//! - The first 4 GiB are mapped to themselves, writable, executable, for CPL 0 ([`paging`]).
//! - A fault in an accessor of the runtime is an `Err` with the [`trap::Trap`]; instructions that
//!   it does not wrap go through [`insn!`]; a closure that may trap anywhere through
//!   [`trap::catch`]. Any other trap ends the test with `error`. So does a panic.
//! - [`irq::handle`] takes a handler for any vector, [`irq::count`] says how often each came.
//! - The test ends with `pass` when its body ends; [`check!`] and its kin end it with `fail`,
//!   [`skip!`] with `skip`.
//!
//! # What the machine must not be asked for
//!
//! Payloads are compiled without SSE, since some hypervisors interpret CPL 0 and do not know such
//! instructions; the payload build refuses one that holds a vector or x87 instruction outside of
//! a function made by [`simd_fn!`]. On such hosts other instructions fail as well (`int n` in long
//! mode at CPL 0, for one): a test that needs them says so in its case.
//!
//! Exits to the hypervisor are expensive and instructions may be, so a test should print little
//! and not fill memory byte by byte.
#![cfg_attr(not(test), no_std)]
// A build for the host has no entry point, so nothing calls what only the entry leads to.
#![cfg_attr(not(feature = "bare-metal"), allow(dead_code))]
// That a payload can give any instruction to `insn!` is what the macro is for.
#![allow(clippy::macro_metavars_in_unsafe)]

pub mod apic;
pub mod boot;
pub mod clock;
pub mod cpu;
pub mod cpuid;
#[cfg(feature = "bare-metal")]
mod entry;
pub mod frames;
pub mod idt;
pub mod ioapic;
pub mod irq;
pub mod lab;
pub mod legacy;
pub mod levels;
pub mod line;
pub mod mem;
pub mod paging;
pub mod pci;
pub mod pic;
pub mod port;
pub mod reg;
pub mod report;
pub mod serial;
pub mod smp;
pub mod svm;
pub mod sync;
pub mod test;
pub mod testdev;
pub mod time;
pub mod trap;
pub mod user;
pub mod vmx;

pub use payload_abi::{exits, replay, rounds};

/// Defines functions that may hold SSE, AVX or x87 instructions (through [`insn!`]): puts them
/// into the section where the payload build allows those. Each is called like any function.
///
/// ```ignore
/// simd_fn! {
///     /// Whether `addps` runs.
///     fn add_packed() -> Result<(), trap::Trap> {
///         insn!("addps xmm0, xmm1")
///     }
/// }
/// ```
#[macro_export]
macro_rules! simd_fn {
    ($($(#[$attribute:meta])* $visibility:vis $(extern $abi:literal)? fn $name:ident($($arguments:tt)*) $(-> $output:ty)? $body:block)+) => {$(
        $(#[$attribute])*
        #[inline(never)]
        // SAFETY: the section is linked with the rest of the code.
        #[unsafe(link_section = ".text.sse")]
        $visibility $(extern $abi)? fn $name($($arguments)*) $(-> $output)? $body
    )+};
}
