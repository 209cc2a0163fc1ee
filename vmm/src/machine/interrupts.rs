//! Where interrupts go from the board: lines to its own I/O APIC if it has one, messages through the
//! IOMMU if it has one, and all else to the backplane.
//!
//! A device's lock may be held when its line's is taken, that one when the I/O APIC's is, and then the
//! IOMMU's unit; never the other way round.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{BoardError, Machine};
use crate::bus::DeviceId;
use crate::chips::pci::Slot;
use crate::chips::pci::memory::Iommu;
use crate::device::{Action, Actions, Device, Env, Inputs, Told};

/// First address at which a dword that is written is an interrupt message (SDM volume 3, 12.11.1).
pub const MSI_START: u64 = 0xfee0_0000;
/// End of those addresses.
pub const MSI_END: u64 = 0xfef0_0000;

/// Lines of an I/O APIC of the board.
const PINS: u32 = 24;

/// A message: address and dword.
type Message = (u64, u32);

/// The board's I/O APIC.
pub(super) struct Controller {
    device: DeviceId,
    /// What the backplane was told to watch for, line by line.
    told: Mutex<[Option<Message>; PINS as usize]>,
}

impl Machine {
    /// Puts an I/O APIC on the board, where the lines 0 to 23 of all devices then end.
    ///
    /// # Errors
    /// As [`Machine::add`].
    pub fn add_controller(
        &mut self,
        device: Box<dyn Device>,
        bases: &[u64],
    ) -> Result<(), BoardError> {
        let device = self.add_watched(device, bases)?;
        self.controller = Some(Controller { device, told: Mutex::default() });
        Ok(())
    }

    /// Puts an IOMMU on the board. `iommu` is what it does to messages; functions have it for their
    /// memory.
    ///
    /// # Errors
    /// As [`Machine::add`].
    pub fn add_iommu(
        &mut self,
        device: Box<dyn Device>,
        bases: &[u64],
        iommu: Arc<dyn Iommu>,
    ) -> Result<(), BoardError> {
        self.add_watched(device, bases)?;
        self.iommu = Some(iommu);
        Ok(())
    }

    /// A device after each access to which is to be looked at what its controller waits for.
    fn add_watched(
        &mut self,
        device: Box<dyn Device>,
        bases: &[u64],
    ) -> Result<DeviceId, BoardError> {
        let id = self.slots.len();
        self.add(device, bases, None)?;
        let slot = &mut self.slots[id];
        slot.watched = true;
        slot.inner.get_mut().told.deadline = Told::UNKNOWN;
        Ok(id as DeviceId)
    }

    /// A line's level changed.
    pub(super) fn line_changed(&self, gsi: u32, level: bool) {
        self.backplane.set_line(gsi, level);
        if let Some(controller) = &self.controller {
            self.at_controller(controller, |inputs, env| inputs.pin(env, gsi, level));
        }
    }

    /// A level-triggered interrupt with this vector ended at a local APIC.
    pub(super) fn end_of_interrupt(&self, vector: u8) {
        if let Some(controller) = &self.controller {
            for pin in 0..PINS {
                self.at_controller(controller, |inputs, env| inputs.eoi(env, pin, vector));
            }
        }
    }

    /// Calls the I/O APIC, does what it asks for, and tells what it waits for now.
    fn at_controller(
        &self,
        controller: &Controller,
        call: impl FnOnce(&mut dyn Inputs, &mut Env<'_>),
    ) {
        let mut actions = Actions::default();
        let slot = &self.slots[usize::from(controller.device)];
        let mut inner = slot.lock();
        let Some(inputs) = inner.device.inputs() else { return };
        call(inputs, &mut Env::new(&*self.clock, &self.ram, &mut actions));
        self.tell_awaited(controller, inputs);
        for action in actions.drain() {
            if let Action::Message { address, data } = action {
                self.message(None, address, data);
            }
        }
    }

    /// After an access to a device whose lock is held: what the I/O APIC waits for may have changed by
    /// itself, or by what the IOMMU makes of it.
    pub(super) fn settle_controller(&self, id: DeviceId, device: &mut dyn Device) {
        let Some(controller) = &self.controller else { return };
        if controller.device != id {
            self.at_controller(controller, |_, _| {});
        } else if let Some(inputs) = device.inputs() {
            self.tell_awaited(controller, inputs);
        }
    }

    /// Tells the backplane which ends of interrupts are waited for, as far as that changed.
    fn tell_awaited(&self, controller: &Controller, inputs: &dyn Inputs) {
        let mut told = controller.told.lock();
        for pin in 0..PINS {
            let awaited = inputs.awaited(pin).and_then(|(address, data)| {
                self.remapped(None, address, data, &mut Actions::default(), false)
            });
            let before = &mut told[pin as usize];
            if *before != awaited {
                *before = awaited;
                self.backplane.await_end(pin, awaited);
            }
        }
    }

    /// What the IOMMU makes of a message, which asks for `actions`.
    fn remapped(
        &self,
        requester: Option<Slot>,
        address: u64,
        data: u32,
        actions: &mut Actions,
        record: bool,
    ) -> Option<Message> {
        match &self.iommu {
            None => Some((address, data)),
            Some(iommu) => {
                let mut env = Env::new(&*self.clock, &self.ram, actions);
                iommu.remap(&mut env, requester, address, data, record)
            }
        }
    }

    /// A function, or the I/O APIC (`None`), writes a message: to the local APICs, or to memory like any
    /// other dword.
    pub(super) fn message(&self, requester: Option<Slot>, address: u64, data: u32) {
        let mut actions = Actions::default();
        if (MSI_START..MSI_END).contains(&address) {
            let message = self.remapped(requester, address, data, &mut actions, true);
            if let Some((address, data)) = message {
                self.backplane.message(address, data);
            }
        } else {
            let mut env = Env::new(&*self.clock, &self.ram, &mut actions);
            let at = match (&self.iommu, requester) {
                (Some(iommu), Some(slot)) => iommu.translate(&mut env, slot, address, true),
                _ => Some((address, 4)),
            };
            // Where there is no memory, nobody takes it.
            let _ = at.map(|(at, _)| self.ram.write(at, &data.to_le_bytes()));
        }
        // What the IOMMU has to tell of it.
        for action in actions.drain() {
            if let Action::Interrupt { address, data } = action {
                self.backplane.message(address, data);
            }
        }
    }
}
