//! What the edu device does to memory: transfers and messages, behind an IOMMU where there is one.

use std::cell::Cell;
use std::ops::Range;

use vmm::machine::Machine;
use vmm::script::replay::Touch;

use super::{BUFFER, BUSY, Dma, Edu};
use crate::models::Seen;
use crate::models::vtd::{self, Fault, Remapped, Walk};

/// How a transfer ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// All of it was moved, or there was no memory.
    Done,
    /// The IOMMU refuses this address.
    Refused(Fault, bool),
    Open,
}

/// A transfer that an operation starts.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    /// Of the buffer.
    range: Range<usize>,
    /// Where its parts are in memory, and how long: it lies on two pages at most.
    parts: [(u64, usize); 2],
    is_write: bool,
    end: End,
}

impl Edu {
    /// The transfer that the registers describe. None if it moves nothing.
    pub(super) fn planned(&self, dma: &Dma, machine: &Machine) -> Option<Transfer> {
        let is_write = dma.command & 2 != 0;
        let (inside, outside) = match is_write {
            false => (dma.destination, dma.source),
            true => (dma.source, dma.destination),
        };
        let start = inside.checked_sub(BUFFER)?;
        let end = start.checked_add(dma.count).filter(|&end| end <= 4096)?;
        if self.command & 4 == 0 {
            return None;
        }
        let range = start as usize..end as usize;
        let mut transfer = Transfer { range, parts: [(0, 0); 2], is_write, end: End::Done };
        let (mut done, mut part) = (0, 0);
        while done < transfer.range.len() {
            // Addresses have 28 bits.
            let address = (outside & 0xfff_ffff) + done as u64;
            let left = transfer.range.len() - done;
            let (at, len) = match self.walk(address, &transfer, machine) {
                Walk::To(at, run) => (at, left.min(usize::try_from(run).unwrap_or(left))),
                Walk::Refused(reason, recorded) => {
                    let (info, requester) = (address & !0xfff, self.requester());
                    let fault = Fault { info, requester, reason, is_read: Some(!is_write) };
                    transfer.end = End::Refused(fault, recorded);
                    break;
                }
                Walk::Open => {
                    transfer.end = End::Open;
                    break;
                }
            };
            if !machine.ram().contains(at, len as u64) {
                break;
            }
            transfer.parts[part] = (at, len);
            (done, part) = (done + len, part + 1);
        }
        Some(transfer)
    }

    /// Where an address of a transfer goes. What the transfer has written before may be a table.
    fn walk(&self, address: u64, transfer: &Transfer, machine: &Machine) -> Walk {
        let Some(unit) = &self.unit else { return Walk::To(address, u64::MAX - address) };
        let (over, len) = if transfer.is_write { transfer.parts[0] } else { (0, 0) };
        let read = |at: u64| {
            let mut bytes = [0; 8];
            machine.ram().peek(at, &mut bytes).ok()?;
            for (byte, at) in bytes.iter_mut().zip(at..) {
                if at.wrapping_sub(over) < len as u64 {
                    *byte = self.inside(transfer.range.start + (at - over) as usize);
                }
            }
            Some(u64::from_le_bytes(bytes))
        };
        unit.borrow().walk(self.requester(), address, transfer.is_write, &read)
    }

    /// A byte of the buffer.
    fn inside(&self, place: usize) -> u8 {
        self.buffer.get(place).copied().unwrap_or(0)
    }

    pub(super) fn start(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.done = seen.now.saturating_add(BUSY);
        let Some(transfer) = self.transfer.take() else { return Ok(()) };
        let mut place = transfer.range.start;
        // A message that leaves in the same operation may lie over it.
        let is_alone = !seen.is_racing && self.messages[0].is_none();
        for (part, &(at, len)) in transfer.parts.iter().enumerate() {
            if transfer.is_write {
                self.offered[part] = (at, len as u64);
                if is_alone && self.is_known {
                    self.arrived(seen, at, place..place + len)?;
                }
            } else {
                self.is_known &= is_alone;
                self.buffer.resize(self.buffer.len().max(place + len), 0);
                // It is RAM.
                let _ = seen.machine.ram().peek(at, &mut self.buffer[place..place + len]);
            }
            place += len;
        }
        // The second of its pages may be found by what it wrote to the first.
        let is_open = self.unit.is_some()
            && (seen.is_racing || transfer.is_write && !self.is_known && transfer.range.len() > 1);
        match transfer.end {
            _ if is_open => self.lose(),
            End::Open => self.lose(),
            End::Refused(fault, true) => self.record(seen, fault)?,
            End::Refused(_, false) | End::Done => {}
        }
        Ok(())
    }

    /// Whether a part of the buffer is in memory.
    fn arrived(&self, seen: &Seen<'_>, at: u64, places: Range<usize>) -> Result<(), String> {
        let mut got = [0; 4096];
        let got = &mut got[..places.len()];
        let _ = seen.machine.ram().peek(at, got);
        match got.iter().zip(places).position(|(got, place)| *got != self.inside(place)) {
            Some(byte) => {
                Err(format!("byte {byte} of the transfer to {at:#x} is {:#x}", got[byte]))
            }
            None => Ok(()),
        }
    }

    /// What a transfer did is left open.
    pub(super) fn lose(&mut self) {
        self.is_known = false;
        self.is_open = true;
        self.unit.iter().for_each(|unit| unit.borrow_mut().lose());
    }

    fn record(&self, seen: &Seen<'_>, fault: Fault) -> Result<(), String> {
        self.unit.iter().try_for_each(|unit| unit.borrow_mut().record(seen, fault))
    }

    /// Messages arrive, after all else that the operation does: at a local APIC, or in memory.
    pub(super) fn arrive(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for (place, message) in (2..).zip(self.messages) {
            let Some((address, data)) = message else { break };
            // A walk reads what the message itself, or the next one, may have been written over.
            let is_hidden = Cell::new(seen.is_racing);
            let read = |at: u64| {
                let over = |touch: &Touch| {
                    touch.is_write
                        && touch.len == 4
                        && touch.addr.wrapping_sub(at).wrapping_add(3) < 11
                };
                if seen.touched.iter().any(over) {
                    is_hidden.set(true);
                }
                let mut bytes = [0; 8];
                seen.machine.ram().peek(at, &mut bytes).ok()?;
                Some(u64::from_le_bytes(bytes))
            };
            let requester = self.requester();
            if address >> 20 == 0xfee {
                let unit = self.unit.as_ref().map(|unit| unit.borrow());
                let to = unit.map_or(Remapped::To(address, data), |unit| {
                    unit.remapped(requester, (address, data), &read)
                });
                match to {
                    _ if is_hidden.get() => self.lose(),
                    Remapped::To(address, data) => vtd::sent(seen, address, data)?,
                    Remapped::Refused(reason, index, true) => {
                        let (info, reason) = (index << 48, Some(reason));
                        self.record(seen, Fault { info, requester, reason, is_read: None })?;
                    }
                    Remapped::Refused(..) => {}
                }
                continue;
            }
            let unit = self.unit.as_ref().map(|unit| unit.borrow());
            let walk = unit
                .map_or(Walk::To(address, 4), |unit| unit.walk(requester, address, true, &read));
            match walk {
                _ if is_hidden.get() => self.lose(),
                Walk::To(at, _) => {
                    self.offered[place] = (at, 4);
                    let mut got = [0; 4];
                    let there = seen.machine.ram().peek(at, &mut got).is_ok() && !seen.is_racing;
                    // Of two messages the last is seen.
                    let is_last = place == 3 || self.messages[1].is_none();
                    if there && is_last && u32::from_le_bytes(got) != data {
                        return Err(format!("its message at {at:#x} is {got:x?}, not {data:#x}"));
                    }
                }
                Walk::Refused(reason, true) => {
                    let info = address & !0xfff;
                    self.record(seen, Fault { info, requester, reason, is_read: Some(false) })?;
                }
                Walk::Refused(_, false) => {}
                Walk::Open => self.lose(),
            }
        }
        Ok(())
    }
}
