//! The board's PCI bus: configuration mechanism 1, base addresses that move, and messages.
//!
//! A device on a fixed place of the board answers before any PCI function, and nothing here is on its
//! path. Where functions claim one address, the one in the lowest slot answers, and of one function
//! the lowest base address register: hardware leaves it open, and the board needs one answer.
//!
//! Base addresses are read without a lock, by the one who looks an address up, and written under the
//! lock of the function that they belong to.

use std::sync::atomic::{AtomicU64, Ordering};

use super::context::unclaimed;
use super::{BoardError, Context, Machine};
use crate::access::{Access, Dir, Size, Space};
use crate::bus::{DeviceId, Mapping, Route};
use crate::chips::pci::{CONFIG, DATA_PORT, DATA_PORTS, Selected, Slot};
use crate::device::{At, Device, Region};
use crate::planted::{self, Flaw};

/// The base of a window that is not decoded: no register can hold it.
const NOWHERE: u64 = u64::MAX;

/// One base address register.
struct Window {
    slot: Slot,
    device: DeviceId,
    index: u8,
    region: Region,
    base: AtomicU64,
}

/// The bus.
pub(super) struct Pci {
    /// The device with the configuration address.
    address: DeviceId,
    functions: Vec<(Slot, DeviceId)>,
    /// In the order in which they are asked.
    windows: Vec<Window>,
}

impl Pci {
    /// Where an access goes that is on no fixed place.
    fn route(&self, access: &Access) -> Route {
        let Access { space, addr, size, .. } = *access;
        let find = |addr: u64| {
            self.windows.iter().filter(|w| w.region.space == space).find_map(|w| {
                let base = w.base.load(Ordering::Relaxed);
                let offset = addr.wrapping_sub(base);
                (base != NOWHERE && offset < w.region.len).then_some((w, offset))
            })
        };
        let bytes = 0..size.bytes();
        match find(addr) {
            Some((w, offset)) if w.region.len - offset < size.bytes() => Route::Split(Size::B1),
            Some((w, _)) if w.region.widest < size => Route::Split(w.region.widest),
            Some((w, offset)) => Route::To(w.device, At { region: w.index, offset }),
            // The tail may reach what the head does not.
            None if bytes.clone().any(|i| data_port(space, addr.wrapping_add(i)).is_some()) => {
                Route::Split(Size::B1)
            }
            None if bytes.skip(1).any(|i| find(addr.wrapping_add(i)).is_some()) => {
                Route::Split(Size::B1)
            }
            None => Route::Nobody,
        }
    }

    fn function(&self, slot: Slot) -> Option<DeviceId> {
        self.functions.iter().find(|(s, _)| *s == slot).map(|(_, id)| *id)
    }
}

/// The byte of the data register at this address.
fn data_port(space: Space, addr: u64) -> Option<u64> {
    (space == Space::Port).then(|| addr.wrapping_sub(DATA_PORT)).filter(|&byte| byte < DATA_PORTS)
}

impl Machine {
    /// Gives the board a PCI bus, without a function on it. The device called `address` holds the
    /// configuration address.
    ///
    /// # Errors
    /// When there is no such device, or a device where the data register comes.
    pub fn add_pci(&mut self, address: &'static str) -> Result<(), BoardError> {
        let at = self.slots.iter().position(|slot| slot.name == address);
        let holds = |&at: &usize| self.slots[at].lock().device.config_address().is_some();
        let Some(at) = at.filter(holds) else { return Err(BoardError::NoAddress(address)) };
        let taken = |m: &&Mapping| {
            let end = m.base + m.region.len;
            m.region.space == Space::Port && m.base < DATA_PORT + DATA_PORTS && DATA_PORT < end
        };
        if let Some(other) = self.bus.mappings().find(taken) {
            let (device, other) = ("pci", other.region.name);
            return Err(BoardError::Taken { device, what: "data register", other });
        }
        let address = at as DeviceId;
        self.pci = Some(Box::new(Pci { address, functions: Vec::new(), windows: Vec::new() }));
        Ok(())
    }

    /// Puts a function on the PCI bus. Functions may share the line of a GSI.
    ///
    /// # Errors
    /// When the board has no such bus, or the name or the slot is taken.
    pub fn add_function(
        &mut self,
        device: Box<dyn Device>,
        slot: Slot,
        gsi: Option<u32>,
    ) -> Result<(), BoardError> {
        let (name, regions) = (device.name(), device.regions());
        let Some(pci) = &self.pci else { return Err(BoardError::NoPci(name)) };
        if let Some(there) = pci.function(slot) {
            let other = self.slots[usize::from(there)].name;
            return Err(BoardError::Taken { device: name, what: "PCI slot", other });
        }
        let id = self.insert(device, gsi)?;
        self.slots[usize::from(id)].function = Some(slot);
        if let Some(pci) = &mut self.pci {
            pci.functions.push((slot, id));
            for (index, &region) in (0u8..).zip(regions).filter(|(index, _)| *index != CONFIG) {
                let base = AtomicU64::new(NOWHERE);
                pci.windows.push(Window { slot, device: id, index, region, base });
            }
            pci.windows.sort_by_key(|w| (w.slot, w.index));
        }
        self.follow(id, &*self.slots[usize::from(id)].lock().device);
        Ok(())
    }

    /// Where everything is now: what the board's map holds, and what is placed on PCI.
    pub fn mappings(&self) -> impl Iterator<Item = Mapping> {
        self.bus().mappings().copied().chain(self.pci_mappings())
    }

    /// Where things are that a guest or PCI places: the data register of configuration mechanism 1,
    /// and what base address registers claim now.
    pub fn pci_mappings(&self) -> Vec<Mapping> {
        let Some(pci) = &self.pci else { return Vec::new() };
        let region =
            Region { name: "pci-data", space: Space::Port, len: DATA_PORTS, widest: Size::B4 };
        let data = Mapping { base: DATA_PORT, region, device: pci.address, index: 0 };
        let windows = pci.windows.iter().filter_map(|w| {
            let base = w.base.load(Ordering::Relaxed);
            let mapping = Mapping { base, region: w.region, device: w.device, index: w.index };
            (base != NOWHERE).then_some(mapping)
        });
        [data].into_iter().chain(windows).collect()
    }

    /// Slots of the PCI bus that have a function, each with its name.
    pub fn pci_functions(&self) -> impl Iterator<Item = (Slot, &'static str)> {
        let functions = self.pci.iter().flat_map(|pci| &pci.functions);
        functions.map(|&(slot, id)| (slot, self.slots[usize::from(id)].name))
    }

    /// The function that a byte outside of the board's fixed places belongs to.
    pub(super) fn pci_owner(&self, pci: &Pci, space: Space, addr: u64) -> Option<DeviceId> {
        if data_port(space, addr).is_some() {
            return self.selected(pci).and_then(|selected| pci.function(selected.slot));
        }
        match pci.route(&Access::read(space, addr, Size::B1)) {
            Route::To(id, _) => Some(id),
            Route::Split(_) | Route::Nobody => None,
        }
    }

    /// What the configuration address selects.
    fn selected(&self, pci: &Pci) -> Option<Selected> {
        let address = self.slots[usize::from(pci.address)].lock().device.config_address();
        address.and_then(Selected::by).filter(|selected| selected.bus == 0)
    }

    /// The dispatch follows the base addresses of a device.
    pub(super) fn follow(&self, id: DeviceId, device: &dyn Device) {
        let windows = self.pci.iter().flat_map(|pci| &pci.windows);
        for window in windows.filter(|w| w.device == id) {
            window.base.store(device.base(window.index).unwrap_or(NOWHERE), Ordering::Relaxed);
        }
    }

    /// An access that is on no fixed place; returns what a read gives.
    #[inline(never)]
    pub(super) fn on_pci(&self, pci: &Pci, cx: &mut Context, access: &Access) -> Option<u64> {
        let byte = data_port(access.space, access.addr);
        if let Some(byte) = byte.filter(|byte| byte + access.size.bytes() <= DATA_PORTS) {
            return self.configuration(pci, cx, access, byte);
        }
        match pci.route(access) {
            Route::To(id, at) => self.call(cx, id, at, access.size, access.dir),
            Route::Split(first) => self.split(cx, access, first),
            Route::Nobody => Some(unclaimed(cx)),
        }
    }

    /// An access to bytes of the data register: a configuration cycle to what the address selects. A
    /// function that is not there is a master abort (section 6.1): all ones, and a write is lost.
    fn configuration(
        &self,
        pci: &Pci,
        cx: &mut Context,
        access: &Access,
        byte: u64,
    ) -> Option<u64> {
        let selected = self.selected(pci);
        if planted::has(Flaw::SlotIndex)
            && let Some(selected) = selected
        {
            std::hint::black_box([0u8; 64][usize::from(selected.slot.number())]);
        }
        let function = selected.and_then(|s| Some((pci.function(s.slot)?, s.offset)));
        let Some((id, offset)) = function else { return Some(unclaimed(cx)) };
        let at = At { region: CONFIG, offset: offset + byte };
        let answer = self.call(cx, id, at, access.size, access.dir);
        let half = access.size == Size::B2 && planted::has(Flaw::BarStale);
        if access.dir != Dir::Read && !half {
            self.follow(id, &*self.slots[usize::from(id)].lock().device);
        }
        answer
    }
}

#[cfg(test)]
mod tests;
