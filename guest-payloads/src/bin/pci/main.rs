//! The PCI bus: configuration mechanism 1, base addresses that move, interrupts by pin and by message,
//! and the devices on it.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use payload_rt::pci::Function;
use payload_rt::*;

mod bars;
mod configuration;
mod devices;
mod interrupts;
mod iommu;

/// edu: vendor and device (QEMU's docs/specs/edu.rst).
const EDU: (u16, u16) = (0x1234, 0x11e8);
/// pci-testdev (QEMU's docs/specs/pci-testdev.rst).
const TESTDEV: (u16, u16) = (0x1b36, 0x0005);

/// edu's registers.
mod edu {
    pub const ID: u64 = 0x00;
    pub const ALIVE: u64 = 0x04;
    pub const FACTORIAL: u64 = 0x08;
    pub const STATUS: u64 = 0x20;
    pub const CAUSES: u64 = 0x24;
    pub const RAISE: u64 = 0x60;
    pub const ACKNOWLEDGE: u64 = 0x64;
    pub const SOURCE: u64 = 0x80;
    pub const DESTINATION: u64 = 0x88;
    pub const LENGTH: u64 = 0x90;
    pub const COMMAND: u64 = 0x98;
    pub const BUFFER: u64 = 0x4_0000;
    /// What ID reads as: version 1.0.
    pub const IDENTITY: u32 = 0x0100_00ed;
}

/// The function with this vendor and device. The case asked for it, so it must be there.
fn function((vendor, device): (u16, u16)) -> Function {
    match pci::find(vendor, device) {
        Some(function) => function,
        None => fail!("no PCI function {vendor:04x}:{device:04x} on bus 0"),
    }
}

fn read(address: u64) -> u32 {
    check_ok!(mem::read(address))
}

fn write(address: u64, value: u32) {
    check_ok!(mem::write(address, value));
}
