//! Segmentation in legacy mode, compatibility mode and 64-bit mode: limits, types, privileges, gates, far
//! transfers, real mode and virtual-8086 mode.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod gates;
mod limits;
mod loads;
mod long;
mod looks;
mod real;
mod sysenter;
mod transfers;
mod v86;

use payload_rt::check_ok;
use payload_rt::mem::{self, Word};

/// Writes to low memory.
fn put<T: Word>(at: u32, value: T) {
    check_ok!(mem::write(at.into(), value));
}

/// Reads low memory.
fn get<T: Word>(at: u32) -> T {
    check_ok!(mem::read(at.into()))
}
