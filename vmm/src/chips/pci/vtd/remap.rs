//! Interrupt remapping: from a message to the interrupt that an entry describes (chapter 5; the entry in
//! 9.10).

use super::{Slot, Unit, status};
use crate::device::Env;

/// Why an interrupt is refused (7.1.3, table 25: interrupt remapping).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reason {
    RequestReserved = 0x20,
    BeyondTable = 0x21,
    NotPresent = 0x22,
    TableAccess = 0x23,
    EntryReserved = 0x24,
    Compatibility = 0x25,
    Source = 0x26,
}

/// In a message's address: remappable format, and that the data holds a number to be added.
const REMAPPABLE: u64 = 1 << 4;
const SUBHANDLE: u64 = 1 << 3;
/// In an entry's lower half: present; faults are not recorded; reserved, and the posted format.
const PRESENT: u64 = 1;
const SILENT: u64 = 1 << 1;
const RESERVED: u64 = 0xff00_f000;

/// A refusal: why, for which entry, and whether it is recorded.
type Refusal = (Reason, u64, bool);

impl Unit {
    /// The interrupt that a message is. `requester` is `None` for the I/O APIC, whose source is not
    /// verified. A fault is recorded only where `record` says so.
    pub(super) fn remap(
        &mut self,
        env: &mut Env<'_>,
        requester: Option<Slot>,
        address: u64,
        data: u32,
        record: bool,
    ) -> Option<(u64, u32)> {
        if !self.is(status::INTERRUPTS) {
            return Some((address, data));
        }
        match self.interrupt(env, requester, address, data) {
            Ok(interrupt) => Some(interrupt),
            Err((reason, index, recorded)) => {
                if record && recorded {
                    let requester = requester.map_or(0, |slot| slot.number().into());
                    self.fault(env, reason as u8, requester, index << 48, true);
                }
                None
            }
        }
    }

    fn interrupt(
        &self,
        env: &Env<'_>,
        requester: Option<Slot>,
        address: u64,
        data: u32,
    ) -> Result<(u64, u32), Refusal> {
        if address & REMAPPABLE == 0 {
            return match self.is(status::COMPATIBILITY) {
                true => Ok((address, data)),
                false => Err((Reason::Compatibility, 0, true)),
            };
        }
        // 5.1.2.2, 5.1.3.
        let handle = address >> 5 & 0x7fff | (address >> 2 & 1) << 15;
        let index = match address & SUBHANDLE {
            0 => handle,
            _ if data >> 16 != 0 => return Err((Reason::RequestReserved, handle, true)),
            _ => handle + u64::from(data & 0xffff),
        };
        let entries = 2u64 << (self.interrupts_set & 0xf);
        if index >= entries {
            return Err((Reason::BeyondTable, index & 0xffff, true));
        }
        let mut bytes = [0; 16];
        let at = (self.interrupts_set & !0xfff).saturating_add(16 * index);
        env.ram.read(at, &mut bytes).map_err(|_| (Reason::TableAccess, index, true))?;
        let entry = u128::from_le_bytes(bytes);
        let (low, high) = (entry as u64, (entry >> 64) as u64);
        let recorded = low & SILENT == 0;
        if low & PRESENT == 0 {
            return Err((Reason::NotPresent, index, recorded));
        }
        // Without extended interrupt mode a destination has 8 bits, in bits 15:8 of the field.
        let destination = low >> 32;
        if low & RESERVED != 0 || high >> 20 != 0 || destination & !0xff00 != 0 {
            return Err((Reason::EntryReserved, index, recorded));
        }
        if requester.is_some_and(|slot| !verified(high, slot.number().into())) {
            return Err((Reason::Source, index, recorded));
        }
        let (logical, hint, level) = (low >> 2 & 1, low >> 3 & 1, low >> 4 & 1);
        let (delivery, vector) = (low >> 5 & 7, low >> 16 & 0xff);
        let address = 0xfee0_0000 | (destination >> 8) << 12 | hint << 3 | logical << 2;
        // A level-triggered message says that the line is asserted.
        Ok((address, (vector | delivery << 8 | level << 14 | level << 15) as u32))
    }
}

/// Whether an entry is for this requester (9.10: SVT, SQ and SID).
fn verified(high: u64, requester: u64) -> bool {
    let source = high & 0xffff;
    match high >> 18 & 3 {
        0 => true,
        1 => {
            // Bits of the function number that are not looked at.
            let ignored = match high >> 16 & 3 {
                0 => 0,
                1 => 0b100,
                2 => 0b110,
                _ => 0b111,
            };
            (source ^ requester) & !ignored == 0
        }
        // A range of buses, first and last.
        2 => (source >> 8..=source & 0xff).contains(&(requester >> 8)),
        _ => false,
    }
}
