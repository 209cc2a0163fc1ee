//! The test device of a PC (QEMU's `pc-testdev`): interrupt lines to drive, and more.

use crate::{mem, port};

/// Port of the first of 24 bytes that are the levels of the GSIs.
const LINES: u16 = 0x2000;
/// Port that takes the address of a page whose mapping the VMM is to drop and make anew.
const REMAP: u16 = 0xe4;
/// Memory of the device that answers by MMIO.
pub const MEMORY: u64 = 0xff00_0000;

/// Ends the test with `skip` if there is no such device: its memory does not keep what is written.
pub fn require() {
    let keeps = |value: u32| {
        mem::write(MEMORY + 0xff8, value).is_ok() && mem::read(MEMORY + 0xff8) == Ok(value)
    };
    if !keeps(0x5aa5_1234) || !keeps(0xa55a_4321) {
        crate::skip!("no test device (pc-testdev) that drives interrupt lines");
    }
}

/// Sets the level of a GSI.
pub fn set_line(gsi: u8, high: bool) {
    port::out8(LINES + u16::from(gsi), high.into());
}

/// Raises a GSI and lowers it again.
pub fn pulse(gsi: u8) {
    set_line(gsi, true);
    set_line(gsi, false);
}

/// Has the VMM drop the mapping of the page at the physical `address` and make it anew; what is in
/// the page stays.
pub fn remap_page(address: u32) {
    port::out32(REMAP, address);
}
