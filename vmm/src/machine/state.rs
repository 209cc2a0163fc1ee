//! The board as a whole: emptied, reset, saved and restored.

use parking_lot::Mutex;

use super::synic::{self, Synic};
use super::{Machine, MachineState, Slot};
use crate::bus::DeviceId;
use crate::device::{Env, StateError};
use crate::machine::Context;

impl Machine {
    /// Takes every device off the board, which is then as [`Machine::new`] made it: memory, clock and
    /// backplane stay. A fuzzer goes through boards faster than through a host's memory.
    pub fn clear(&mut self) {
        let Machine {
            bus,
            slots,
            ram: _,
            clock: _,
            backplane: _,
            lines,
            synic,
            pci,
            controller,
            iommu,
        } = self;
        bus.clear();
        slots.clear();
        lines.clear();
        *synic = Mutex::default();
        (*pci, *controller, *iommu) = (None, None, None);
    }

    /// Resets every device. RAM keeps its contents, as under a PC's reset line.
    pub fn reset(&self, cx: &mut Context) {
        for (id, slot) in self.slots.iter().enumerate() {
            let mut inner = slot.lock();
            inner.device.reset(&mut Env::new(&*self.clock, &self.ram, &mut cx.actions));
            self.settle(cx, slot, &mut inner, &mut None);
            self.follow(id as DeviceId, &*inner.device);
        }
        *self.synic() = Synic::default();
    }

    /// The state of every device. The vCPUs must not run.
    pub fn save(&self) -> MachineState {
        let device = |s: &Slot| (s.name.into(), s.lock().device.save());
        let synic = (synic::NAME.into(), self.synic().save());
        let devices = self.slots.iter().map(device).chain([synic]).collect();
        MachineState { now: self.clock.now(), devices }
    }

    /// Takes up a saved state; the caller has set the clock to its time. The vCPUs must not run.
    ///
    /// # Errors
    /// When a device refuses its state, or the boards differ; devices before it are changed.
    pub fn restore(&self, cx: &mut Context, state: &MachineState) -> Result<(), StateError> {
        let of = |device: &'static str| {
            let found = state.devices.iter().find(|(name, _)| name == device);
            let missing = || StateError { device, what: "is missing".to_owned() };
            found.map(|(_, bytes)| bytes).ok_or_else(missing)
        };
        for (id, slot) in self.slots.iter().enumerate() {
            let bytes = of(slot.name)?;
            let mut inner = slot.lock();
            inner.device.restore(bytes)?;
            self.settle(cx, slot, &mut inner, &mut None);
            self.follow(id as DeviceId, &*inner.device);
        }
        *self.synic() = Synic::restored(of(synic::NAME)?, &*self.backplane)?;
        Ok(())
    }
}
