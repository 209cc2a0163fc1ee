//! Messages of a function with one, after the PCI Local Bus Specification 3.0, 6.8.1 and 6.8.3.
//!
//! What is the board's own: where the capability is, that it has 64 bits of address and a mask, and that a
//! message which may not be sent because the function is no bus master waits until it is one.

/// Where the capability is in configuration space.
const BASE: u32 = 0x40;

/// The capability's registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Msi {
    pub(super) is_enabled: bool,
    address: u64,
    data: u32,
    is_masked: bool,
    is_pending: bool,
}

impl Msi {
    /// A byte is written to configuration space.
    pub(super) fn write(&mut self, offset: u32, value: u8) {
        let byte = |old: u64, at: u32| old & !(0xff << (8 * at)) | u64::from(value) << (8 * at);
        match offset.wrapping_sub(BASE) {
            2 => {
                self.is_enabled = value & 1 != 0;
                self.is_pending &= self.is_enabled;
            }
            at @ 4..12 => self.address = byte(self.address, at - 4) & !3,
            at @ 12..14 => self.data = byte(self.data.into(), at - 12) as u32,
            16 => self.is_masked = value & 1 != 0,
            _ => {}
        }
    }

    /// The function has something to tell.
    pub(super) fn request(&mut self) {
        self.is_pending |= self.is_enabled;
    }

    /// The message that leaves now, if there is one: address and data.
    pub(super) fn take(&mut self, is_master: bool) -> Option<(u64, u32)> {
        let leaves = self.is_pending && !self.is_masked && is_master;
        self.is_pending &= !leaves;
        leaves.then_some((self.address, self.data))
    }
}
