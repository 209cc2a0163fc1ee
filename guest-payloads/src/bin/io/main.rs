//! Port I/O and MMIO by every width, alignment and instruction form, against the PC test device:
//! what KVM's exit decoding and its instruction emulator must get right.
//!
//! The device: ports 0xe0 to 0xe3 are a 32-bit latch of any width, 0xe8 to 0xeb the same latch by
//! byte, and 64 KiB of MMIO at 0xff000000 behave as RAM (QEMU calls it `pc-testdev`).
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod area;
mod forms;
mod mmio;
mod ports;
mod strings;

/// The latch.
const LATCH: u16 = 0xe0;
/// The latch once more, by byte.
const LATCH_BYTES: u16 = 0xe8;
/// The MMIO window that behaves as RAM.
const WINDOW: u64 = 0xff00_0000;
/// Bytes of it.
const WINDOW_LEN: u64 = 0x1_0000;
