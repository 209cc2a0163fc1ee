//! PCI configuration space by mechanism 1, and the registers of a header.
//!
//! PCI Local Bus Specification 3.0: the mechanism in 3.2.2.3.2, the header in 6.1, base addresses in
//! 6.2.5.1, messages in 6.8.1.

use crate::port;

/// Port of the configuration address.
pub const ADDRESS: u16 = 0xcf8;
/// First port of the configuration data.
pub const DATA: u16 = 0xcfc;
/// The configuration address's enable bit.
pub const ENABLE: u32 = 1 << 31;

/// Offset of vendor and device.
pub const ID: u8 = 0x00;
/// Offset of the command register, 16 bits.
pub const COMMAND: u8 = 0x04;
/// Offset of the status register, 16 bits.
pub const STATUS: u8 = 0x06;
/// Offset of revision and class.
pub const CLASS: u8 = 0x08;
/// Offset of the first base address.
pub const BARS: u8 = 0x10;
/// Offset of the pointer to the first capability.
pub const CAPABILITIES: u8 = 0x34;
/// Offset of the interrupt line register.
pub const LINE: u8 = 0x3c;

/// Command: ports are decoded.
pub const IO: u16 = 1 << 0;
/// Command: memory is decoded.
pub const MEMORY: u16 = 1 << 1;
/// Command: may access memory.
pub const MASTER: u16 = 1 << 2;
/// Command: does not assert its pin.
pub const INTX_DISABLE: u16 = 1 << 10;
/// Status: has an interrupt that the pin tells.
pub const INTERRUPT: u16 = 1 << 3;
/// Capability ID of message-signalled interrupts.
pub const MSI: u8 = 5;

/// A function on bus 0, by device * 8 + function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub u8);

/// Every place of bus 0.
pub fn all() -> impl Iterator<Item = Function> {
    (0..=255).map(Function)
}

/// The function with this vendor and device.
pub fn find(vendor: u16, device: u16) -> Option<Function> {
    let id = u32::from(vendor) | u32::from(device) << 16;
    all().find(|function| function.read32(ID) == id)
}

impl Function {
    /// Selects the dword that `offset` lies in; gives the port of its byte.
    fn select(self, offset: u8) -> u16 {
        let address = ENABLE | u32::from(self.0) << 8 | u32::from(offset & !3);
        port::out32(ADDRESS, address);
        DATA + u16::from(offset & 3)
    }

    /// Reads a byte of configuration space.
    pub fn read8(self, offset: u8) -> u8 {
        port::in8(self.select(offset))
    }

    /// Reads a word of configuration space.
    pub fn read16(self, offset: u8) -> u16 {
        port::in16(self.select(offset))
    }

    /// Reads a dword of configuration space.
    pub fn read32(self, offset: u8) -> u32 {
        port::in32(self.select(offset))
    }

    /// Writes a byte of configuration space.
    pub fn write8(self, offset: u8, value: u8) {
        port::out8(self.select(offset), value);
    }

    /// Writes a word of configuration space.
    pub fn write16(self, offset: u8, value: u16) {
        port::out16(self.select(offset), value);
    }

    /// Writes a dword of configuration space.
    pub fn write32(self, offset: u8, value: u32) {
        port::out32(self.select(offset), value);
    }

    /// Sets and clears bits of the command register.
    pub fn command(self, set: u16, clear: u16) {
        self.write16(COMMAND, self.read16(COMMAND) & !clear | set);
    }

    /// What base address register `n` claims: its address.
    pub fn bar(self, n: u8) -> u64 {
        let value = self.read32(BARS + 4 * n);
        u64::from(if value & 1 == 1 { value & !3 } else { value & !15 })
    }

    /// Moves what 32-bit base address register `n` claims.
    pub fn set_bar(self, n: u8, address: u32) {
        self.write32(BARS + 4 * n, address);
    }

    /// The length that 32-bit base address register `n` claims, found by writing ones; 0 if it is none.
    pub fn bar_length(self, n: u8) -> u32 {
        let before = self.read32(BARS + 4 * n);
        self.write32(BARS + 4 * n, u32::MAX);
        let kept = self.read32(BARS + 4 * n);
        self.write32(BARS + 4 * n, before);
        let address = if kept & 1 == 1 { kept & !3 } else { kept & !15 };
        if address == 0 { 0 } else { (!address).wrapping_add(1) }
    }

    /// Where the capability with this ID stands. A list that has no end is none.
    pub fn capability(self, id: u8) -> Option<u8> {
        let mut at = self.read8(CAPABILITIES) & !3;
        for _ in 0..48 {
            match at {
                0 => return None,
                _ if self.read8(at) == id => return Some(at),
                _ => at = self.read8(at + 1) & !3,
            }
        }
        None
    }
}
