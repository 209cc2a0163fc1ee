//! DMA remapping: from a requester and its address to memory (chapter 3; entries in chapter 9).

use super::{ADDRESS_WIDTH, Slot, Unit, status};
use crate::device::Env;
use crate::planted::{self, Flaw};

/// Why a request is refused (7.1.3, table 25: legacy mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reason {
    RootNotPresent = 0x1,
    ContextNotPresent = 0x2,
    ContextInvalid = 0x3,
    BeyondWidth = 0x4,
    Write = 0x5,
    Read = 0x6,
    TableAccess = 0x7,
    RootAccess = 0x8,
    ContextAccess = 0x9,
    RootReserved = 0xa,
    ContextReserved = 0xb,
    EntryReserved = 0xc,
}

/// The address in an entry.
const ADDRESS: u64 = !0xfff & ((1 << 52) - 1);
/// In the lower half of root and context entries.
const PRESENT: u64 = 1;
/// In a context entry's lower half: faults are not recorded.
const SILENT: u64 = 1 << 1;
/// In a table's entry.
const READABLE: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const PAGE: u64 = 1 << 7;

/// A refusal, and whether it is recorded.
type Refusal = (Reason, bool);

fn qword(env: &Env<'_>, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    env.ram.read(address, &mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn pair(env: &Env<'_>, address: u64) -> Option<[u64; 2]> {
    Some([qword(env, address)?, qword(env, address + 8)?])
}

impl Unit {
    pub(super) fn translate(
        &mut self,
        env: &mut Env<'_>,
        requester: Slot,
        address: u64,
        write: bool,
    ) -> Option<(u64, u64)> {
        if !self.is(status::TRANSLATION) {
            return Some((address, u64::MAX - address));
        }
        // Addresses of interrupts are not translated (3.14), and no memory is there.
        if (0xfee0_0000..0xfef0_0000).contains(&address) {
            return None;
        }
        match self.walk(env, requester, address, write) {
            Ok(run) => Some(run),
            Err((reason, recorded)) => {
                if recorded {
                    let requester = requester.number().into();
                    self.fault(env, reason as u8, requester, address & !0xfff, write);
                }
                None
            }
        }
    }

    fn walk(
        &self,
        env: &Env<'_>,
        requester: Slot,
        address: u64,
        write: bool,
    ) -> Result<(u64, u64), Refusal> {
        // Bus 0: the first entry (9.1).
        let root = pair(env, self.root_set).ok_or((Reason::RootAccess, true))?;
        match root {
            [low, _] if low & PRESENT == 0 => return Err((Reason::RootNotPresent, true)),
            [low, high] if low & 0xffe != 0 || high != 0 => {
                return Err((Reason::RootReserved, true));
            }
            _ => {}
        }
        let at = (root[0] & ADDRESS) + 16 * u64::from(requester.number());
        let [low, high] = pair(env, at).ok_or((Reason::ContextAccess, true))?;
        if low & PRESENT == 0 {
            return Err((Reason::ContextNotPresent, low & SILENT == 0));
        }
        let recorded = low & SILENT == 0;
        if low & 0xff0 != 0 || high & !0xff_ff7f != 0 {
            return Err((Reason::ContextReserved, recorded));
        }
        // Address width and translation type (9.3).
        let levels = match (high & 7, low >> 2 & 3) {
            (1, 0) => 3,
            (2, 0) => 4,
            (width, 0) if planted::has(Flaw::VtdLevels) => width + 2,
            (1 | 2, 2) => return Ok((address, u64::MAX - address)),
            _ => return Err((Reason::ContextInvalid, recorded)),
        };
        if address >> (12 + 9 * levels) != 0 || address >> ADDRESS_WIDTH != 0 {
            return Err((Reason::BeyondWidth, recorded));
        }
        let mut table = low & ADDRESS;
        for level in (1..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let at = table + 8 * (address >> shift & 0x1ff);
            let entry = qword(env, at).ok_or((Reason::TableAccess, recorded))?;
            let (bit, reason) =
                if write { (WRITABLE, Reason::Write) } else { (READABLE, Reason::Read) };
            let bit = if planted::has(Flaw::VtdWritable) { bit | READABLE } else { bit };
            if entry & bit == 0 {
                return Err((reason, recorded));
            }
            let leaf = level == 1 || entry & PAGE != 0;
            let bytes = 1u64 << shift;
            // There are no leaves at level 4, and a large page lies at a multiple of its length (9.8).
            let reserved = if level > 3 { PAGE } else { 0 };
            let unaligned = if leaf { (bytes - 1) & !0xfff } else { 0 };
            if entry & (reserved | unaligned) != 0 {
                return Err((Reason::EntryReserved, recorded));
            }
            if leaf {
                let offset = address & (bytes - 1);
                return Ok(((entry & ADDRESS) + offset, bytes - offset));
            }
            table = entry & ADDRESS;
        }
        Err((Reason::TableAccess, recorded))
    }
}
