//! A hypervisor on SVM as the guest of the hypervisor under test: what VMRUN, #VMEXIT and the rest of
//! AMD's APM volume 2, chapter 15, owe to it. L1 is this payload, L2 what it runs.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod enable;
mod events;
mod exceptions;
mod features;
mod instructions;
mod interrupts;
mod invalid;
mod l1;
mod leftovers;
mod maps;
mod modes;
mod nested_paging;
mod registers;
mod shadow_paging;
mod state;
mod third_level;
mod virtual_interrupts;

use payload_rt::svm::{Exit, Guest, exit};
use payload_rt::{check, check_eq, frames, svm};

/// Enables SVM and makes a guest of this code.
fn guest(code: &'static [u8]) -> Guest {
    svm::enable();
    Guest::new(code)
}

/// Runs a guest up to its own `vmmcall`, which must not be that of a trap's stub.
fn run_to_end(guest: &mut Guest, what: &str) {
    let exit = guest.run();
    if let Some(trap) = guest.trap() {
        payload_rt::fail!("{what}: the guest took {trap:#x?}");
    }
    check_eq!(exit.code, exit::VMMCALL, "{what}: {exit:?} at {:#x}", guest.rip());
}

/// Runs a guest up to the exit with this code.
fn run_to(guest: &mut Guest, code: u64, what: &str) -> Exit {
    let exit = guest.run();
    let trap = guest.trap();
    check!(exit.code == code, "{what}: {exit:?} {trap:#x?}, must be code {code:#x}");
    exit
}

/// A page of zeroes for a guest.
fn page() -> u64 {
    frames::alloc().address()
}
