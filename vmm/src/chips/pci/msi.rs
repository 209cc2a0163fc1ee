//! Message-signalled interrupts: the capability with 64-bit addresses and masks of each message.
//!
//! After the PCI Local Bus Specification 3.0, 6.8.1 (the structure) and 6.8.3 (what a function does).
//!
//! | offset | register |
//! |---|---|
//! | 0 | capability ID 5, next pointer, message control |
//! | 4, 8 | message address |
//! | 12 | message data |
//! | 16 | mask bits |
//! | 20 | pending bits |

use serde::{Deserialize, Serialize};

use crate::planted::{self, Flaw};

/// Capability ID (appendix H).
const ID: u32 = 0x05;
/// In message control: messages are used.
const ENABLE: u32 = 1 << 0;
/// Where the number of messages that software allows begins, as a logarithm.
const ALLOWED: u32 = 4;
/// 64-bit addresses, and masks.
const FIXED: u32 = 1 << 7 | 1 << 8;

/// The capability's registers. Nothing is pending while messages are not used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msi {
    enabled: bool,
    /// Logarithm of how many messages software allows.
    allowed: u8,
    address: u64,
    data: u16,
    mask: u32,
    pending: u32,
}

/// A bit for each of `2^log` messages.
fn all(log: u8) -> u32 {
    (1u32 << (1u32 << log)) - 1
}

impl Msi {
    /// The most messages that a function can have, as a logarithm: what one access may ask of the board.
    pub const MOST: u8 = 3;

    /// Whether messages are used, and not the pin.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether these can be the registers of a function with `messages`, which is a bus master or not.
    pub fn is_of(&self, messages: Option<u8>, master: bool) -> bool {
        let Msi { enabled, allowed, address, data: _, mask, pending } = self;
        match messages {
            None => *self == Msi::default(),
            Some(most) => {
                let possible = *allowed <= most && address & 3 == 0;
                // What could be sent has been.
                let sent = match (*enabled, master) {
                    (true, true) => pending & !mask == 0,
                    (true, false) => true,
                    (false, _) => *pending == 0,
                };
                possible && sent && (mask | pending) & !all(most) == 0
            }
        }
    }

    /// The dword at `offset` of the structure; 0 behind it.
    pub fn dword(&self, offset: u64, most: u8) -> u32 {
        match offset {
            0 => {
                let allowed = u32::from(self.allowed) << ALLOWED;
                let control = u32::from(self.enabled) | u32::from(most) << 1 | allowed | FIXED;
                ID | control << 16
            }
            4 => self.address as u32,
            8 => (self.address >> 32) as u32,
            12 => self.data.into(),
            16 => self.mask,
            20 => self.pending,
            _ => 0,
        }
    }

    /// Writes the dword at `offset`: `merge` gives what is written of what there was.
    pub fn write(&mut self, offset: u64, most: u8, merge: impl Fn(u32) -> u32) {
        let value = merge(self.dword(offset, most));
        match offset {
            0 => {
                let control = value >> 16;
                self.enabled = control & ENABLE != 0;
                let most = if planted::has(Flaw::MsiAllowed) { 7 } else { most };
                self.allowed = (control >> ALLOWED & 7).min(most.into()) as u8;
                if !self.enabled && !planted::has(Flaw::MsiPending) {
                    self.pending = 0;
                }
            }
            4 => self.address = self.address & !0xffff_ffff | u64::from(value & !3),
            8 => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            12 => self.data = value as u16,
            16 => self.mask = value & all(most),
            _ => {}
        }
    }

    /// Message `number` has something to tell; without [`Msi::is_enabled`] nothing happens. Numbers that
    /// software does not allow share those that it does (6.8.3.4).
    pub fn request(&mut self, number: u8) {
        if self.enabled {
            self.pending |= 1 << (number & ((1 << self.allowed) - 1));
        }
    }

    /// The next message that is to be sent, as address and data; it is no longer pending then.
    pub fn take(&mut self) -> Option<(u64, u32)> {
        let ready = self.pending & !self.mask;
        if !self.enabled || ready == 0 {
            return None;
        }
        let number = ready.trailing_zeros();
        self.pending &= !(1 << number);
        // The function changes the low bits of the data, as many as it was allowed (6.8.1.3).
        let low = (1 << self.allowed) - 1;
        Some((self.address, u32::from(self.data) & !low | number & low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msi(control: u32, data: u16) -> Msi {
        let mut msi = Msi::default();
        for (offset, value) in [(4, 0xfee0_1003), (8, 0x12), (12, data.into()), (0, control << 16)]
        {
            msi.write(offset, Msi::MOST, |_| value);
        }
        msi
    }

    #[test]
    fn a_message_is_an_address_and_data() {
        let mut msi = msi(1, 0x4041);
        msi.request(0);
        assert_eq!(msi.take(), Some((0x12_fee0_1000, 0x4041)));
        assert_eq!(msi.take(), None);
        assert_eq!(
            [0, 4, 8, 12].map(|at| msi.dword(at, 0)),
            [0x181_0005, 0xfee0_1000, 0x12, 0x4041]
        );
    }

    #[test]
    fn more_messages_change_the_low_bits_as_far_as_they_are_allowed() {
        let mut msi = msi(1 | 2 << 4, 0xff);
        for (number, data) in [(0, 0xfc), (3, 0xff), (7, 0xff)] {
            msi.request(number);
            assert_eq!(msi.take().map(|(_, data)| data), Some(data));
        }
        // More than the function has are as many as it has.
        msi.write(0, Msi::MOST, |_| (1 | 7 << 4) << 16);
        assert_eq!(msi.dword(0, Msi::MOST) >> 20 & 7, 3);
    }

    #[test]
    fn a_masked_message_is_pending_until_it_is_unmasked() {
        let mut msi = msi(1, 0x30);
        msi.write(16, 0, |_| u32::MAX);
        msi.request(0);
        assert_eq!((msi.take(), msi.dword(16, 0), msi.dword(20, 0)), (None, 1, 1));
        msi.write(16, 0, |_| 0);
        assert_eq!((msi.take(), msi.dword(20, 0)), (Some((0x12_fee0_1000, 0x30)), 0));
    }

    #[test]
    fn without_messages_there_is_none() {
        let mut msi = msi(0, 0x30);
        msi.request(0);
        assert_eq!((msi.take(), msi.dword(20, 0)), (None, 0));
    }
}
