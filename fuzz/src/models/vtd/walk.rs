//! Where an address or a message goes: DMA remapping (VT-d 3.4, 3.7; entries in 9.1, 9.3, 9.8) and interrupt
//! remapping (5.1; the entry in 9.10), with the reasons of faults (7.1.3).
//!
//! Not predicted: addresses of 39 bits and more in tables, as how many a platform has is its own.

use super::{COMPATIBLE, REMAPS, TRANSLATES, Vtd};

/// What comes of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Walk {
    /// It is this one in memory, and so many bytes belong together.
    To(u64, u64),
    /// A fault, and whether it is recorded. The reason is none if there is more than one.
    Refused(Option<u8>, bool),
    /// Anything.
    Open,
}

/// What comes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Remapped {
    /// It is this one: address and data.
    To(u64, u32),
    /// A fault of an entry's number: why, and whether it is recorded.
    Refused(u8, u64, bool),
}

/// Address bits of which nothing is known.
const HIGH: u64 = !0 << 39;
/// Those of an entry of a table, with the bit that needs device TLBs.
const ENTRY_HIGH: u64 = HIGH & ((1 << 52) - 1) | 1 << 62;

impl Vtd {
    /// Where an access by `requester` goes; `qword` reads memory.
    pub(in super::super) fn walk(
        &self,
        requester: u16,
        address: u64,
        is_write: bool,
        qword: &dyn Fn(u64) -> Option<u64>,
    ) -> Walk {
        use Walk::{Open, Refused, To};
        if !self.is(TRANSLATES) {
            return To(address, u64::MAX - address);
        }
        if self.root_set & HIGH != 0 || address >> 20 == 0xfee {
            return Open;
        }
        let pair = |at: u64| Some([qword(at)?, qword(at + 8)?]);
        let Some([low, high]) = pair(self.root_set) else { return Refused(Some(8), true) };
        match low {
            low if low & 1 == 0 => return Refused(Some(1), true),
            low if low & 0xffe != 0 || high != 0 => return Refused(Some(0xa), true),
            low if low & HIGH != 0 => return Open,
            _ => {}
        }
        let context = (low & !0xfff) + 16 * u64::from(requester);
        let Some([low, high]) = pair(context) else { return Refused(Some(9), true) };
        let recorded = low & 2 == 0;
        if low & 1 == 0 {
            return Refused(Some(2), recorded);
        }
        // Bits 11:4, 71 and 127:88.
        let is_reserved = low & 0xff0 != 0 || high >> 24 != 0 || high & 0x80 != 0;
        let levels = match (low >> 2 & 3, high & 7) {
            (0, 1) => 3,
            (0 | 2, 2) => 4,
            // Pass-through has the largest width (9.3).
            (2, 1) => return Open,
            _ if is_reserved => return Refused(None, recorded),
            _ => return Refused(Some(3), recorded),
        };
        if is_reserved {
            return Refused(Some(0xb), recorded);
        }
        if low >> 2 & 3 == 2 {
            return if address & !0 << 47 == 0 { To(address, u64::MAX - address) } else { Open };
        }
        if low & HIGH != 0 {
            return Open;
        }
        if address >> (12 + 9 * levels) != 0 {
            return Refused(Some(4), recorded);
        }
        let mut table = low & !0xfff;
        for level in (1..=levels).rev() {
            let bytes = 1u64 << (12 + 9 * (level - 1));
            let Some(entry) = qword(table + 8 * (address / bytes % 512)) else {
                return Refused(Some(7), recorded);
            };
            let reason = if is_write { 5 } else { 6 };
            if entry & 3 == 0 {
                return Refused(Some(reason), recorded);
            }
            let is_leaf = level == 1 || entry & 0x80 != 0;
            let is_reserved = match level {
                1 => false,
                4 => is_leaf,
                _ => is_leaf && entry & (bytes - 1) & !0xfff != 0,
            };
            let is_allowed = entry & if is_write { 2 } else { 1 } != 0;
            match (is_allowed, is_reserved) {
                _ if entry & ENTRY_HIGH != 0 => return Open,
                (false, true) => return Refused(None, recorded),
                (false, false) => return Refused(Some(reason), recorded),
                (true, true) => return Refused(Some(0xc), recorded),
                (true, false) => {}
            }
            let at = entry & ((1 << 52) - 1) & !0xfff;
            if is_leaf {
                return To(at + address % bytes, bytes - address % bytes);
            }
            table = at;
        }
        Open
    }

    /// What becomes of a message of `requester`; `qword` reads memory.
    pub(in super::super) fn remapped(
        &self,
        requester: u16,
        (address, data): (u64, u32),
        qword: &dyn Fn(u64) -> Option<u64>,
    ) -> Remapped {
        use Remapped::{Refused, To};
        if !self.is(REMAPS) {
            return To(address, data);
        }
        // 5.1.2.1, 5.1.2.2: compatibility format; a handle, and what is added to it.
        if address & 1 << 4 == 0 {
            return if self.is(COMPATIBLE) { To(address, data) } else { Refused(0x25, 0, true) };
        }
        let handle = address >> 5 & 0x7fff | (address >> 2 & 1) << 15;
        let adds = address & 1 << 3 != 0;
        if adds && data >> 16 != 0 {
            return Refused(0x20, handle, true);
        }
        let index = handle + if adds { u64::from(data) } else { 0 };
        if index >= 2 << (self.interrupts_set & 0xf) {
            return Refused(0x21, index & 0xffff, true);
        }
        let at = (self.interrupts_set & !0xfff).saturating_add(16 * index);
        let (Some(low), Some(high)) = (qword(at), qword(at.saturating_add(8))) else {
            return Refused(0x23, index, true);
        };
        let recorded = low & 2 == 0;
        if low & 1 == 0 {
            return Refused(0x22, index, recorded);
        }
        // Bits 14:12, the posted format, 31:24, a destination beyond 8 bits, and 127:84.
        if low & 0xffff_00ff_ff00_f000 != 0 || high >> 20 != 0 {
            return Refused(0x24, index, recorded);
        }
        let source = high as u16;
        let is_verified = match high >> 18 & 3 {
            0 => true,
            1 => {
                let ignored = [0, 0b100, 0b110, 0b111][(high >> 16 & 3) as usize];
                (source ^ requester) & !ignored == 0
            }
            2 => (source >> 8..=source & 0xff).contains(&(requester >> 8)),
            _ => false,
        };
        if !is_verified {
            return Refused(0x26, index, recorded);
        }
        let (logical, hint, level) = (low >> 2 & 1, low >> 3 & 1, low >> 4 & 1);
        let (delivery, vector) = (low >> 5 & 7, low >> 16 & 0xff);
        let address = 0xfee0_0000 | (low >> 40 & 0xff) << 12 | hint << 3 | logical << 2;
        To(address, (vector | delivery << 8 | level << 14 | level << 15) as u32)
    }
}
