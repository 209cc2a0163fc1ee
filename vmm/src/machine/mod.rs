//! The board: which devices where, their interrupt lines, and the answer to every exit.
//!
//! [`Machine::handle`] knows nothing of KVM. On its way an exit meets no allocation, no system
//! call, one lock, the device's own, and one call through a pointer, the device's.

pub mod acpi;
mod backplane;
mod context;
mod dispatch;
mod error;
mod interrupts;
mod lines;
mod log;
mod owner;
mod pc;
mod pci;
mod slots;
mod state;
mod synic;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use backplane::{Backplane, ManualClock, Nowhere};
pub use context::Context;
pub use error::BoardError;
pub use interrupts::{MSI_END, MSI_START};
pub use log::{ExitLog, Logged};
pub use pc::{PcConfig, pc, populate};
pub use slots::{IommuConfig, PCI_GSIS, PciDevice};

use parking_lot::{Mutex, MutexGuard};

use crate::bus::{Bus, DeviceId};
use crate::chips::pci::Slot as PciSlot;
use crate::chips::pci::memory::Iommu;
use crate::device::{Clock, Device, Env, Nanos, Told};
use crate::exit::Stop;
use crate::ram::GuestRam;
use interrupts::Controller;
use lines::{GSIS, Lines};
use pci::Pci;
use synic::{Behind, Synic};

/// What the lock of one device guards.
struct Inner {
    device: Box<dyn Device>,
    /// What the lines and the backplane were told of it last.
    told: Told,
}

/// On cache lines of its own: devices are used by several vCPUs at once.
#[repr(C, align(64))]
struct Slot {
    /// Not poisoned by a device that panicked: that is a bug that has been reported already, its
    /// registers are still registers, and the guest may go on until the VM is torn down.
    inner: Mutex<Inner>,
    name: &'static str,
    id: DeviceId,
    gsi: Option<u32>,
    /// Its place on the PCI bus.
    function: Option<PciSlot>,
    /// Lines that it drives beside its own.
    drives: u32,
    /// Whether the I/O APIC is to be looked at after an access.
    watched: bool,
    /// The device's deadline, `u64::MAX` for none; read without its lock.
    deadline: AtomicU64,
}

impl Slot {
    #[inline(always)]
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

/// A board: devices on a bus, RAM, a clock, and the backplane behind them.
pub struct Machine {
    bus: Bus,
    slots: Vec<Slot>,
    ram: GuestRam,
    /// The one that was given, boxed: the way to what is in an `Arc` of any size takes arithmetic.
    clock: Box<dyn Clock>,
    backplane: Arc<dyn Backplane>,
    lines: Lines,
    synic: Mutex<Synic>,
    pci: Option<Box<Pci>>,
    controller: Option<Controller>,
    iommu: Option<Arc<dyn Iommu>>,
}

/// The state of every device, and the time.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MachineState {
    /// Time since the board was switched on.
    pub now: Nanos,
    /// Each device's name and state.
    pub devices: Vec<(Cow<'static, str>, Vec<u8>)>,
}

impl Machine {
    /// A board without devices.
    pub fn new(ram: GuestRam, clock: Arc<dyn Clock>, backplane: Arc<dyn Backplane>) -> Machine {
        Machine {
            bus: Bus::new(),
            slots: Vec::new(),
            ram,
            clock: Box::new(clock),
            backplane,
            lines: Lines::default(),
            synic: Mutex::default(),
            pci: None,
            controller: None,
            iommu: None,
        }
    }

    /// Puts a device on the board: one base address for each of its regions, and its line's GSI.
    ///
    /// # Errors
    /// When the name, the line or an address is taken.
    pub fn add(
        &mut self,
        device: Box<dyn Device>,
        bases: &[u64],
        gsi: Option<u32>,
    ) -> Result<(), BoardError> {
        let name = device.name();
        let regions = device.regions();
        if regions.len() != bases.len() {
            let (regions, bases) = (regions.len(), bases.len());
            return Err(BoardError::Bases { device: name, regions, bases });
        }
        let sharer = self.slots.iter().find(|slot| gsi.is_some() && slot.gsi == gsi);
        if let Some(other) = sharer.map(|slot| slot.name) {
            return Err(BoardError::Taken { device: name, what: "interrupt line", other });
        }
        let id = self.insert(device, gsi)?;
        for (index, (&region, &base)) in regions.iter().zip(bases).enumerate() {
            let index = u8::try_from(index).expect("a device has fewer than 256 regions");
            self.bus
                .map(base, region, id, index)
                .map_err(|source| BoardError::Map { device: name, source })?;
        }
        Ok(())
    }

    /// A slot for a device that is on no bus yet.
    fn insert(
        &mut self,
        device: Box<dyn Device>,
        gsi: Option<u32>,
    ) -> Result<DeviceId, BoardError> {
        let name = device.name();
        if let Some(other) = self.slots.iter().map(|slot| slot.name).find(|&other| other == name) {
            return Err(BoardError::Taken { device: name, what: "name", other });
        }
        if let Some(gsi) = gsi.filter(|&gsi| gsi >= GSIS) {
            return Err(BoardError::Gsi { device: name, gsi });
        }
        let id = DeviceId::try_from(self.slots.len()).expect("a board has fewer than 2^16 devices");
        // Its lines are low until the board looks at them first.
        let deadline = device.deadline().unwrap_or(Told::NO_DEADLINE);
        let told = Told::low(deadline);
        self.slots.push(Slot {
            name,
            id,
            gsi,
            function: None,
            drives: device.drives(),
            watched: false,
            deadline: AtomicU64::new(deadline),
            inner: Mutex::new(Inner { device, told }),
        });
        Ok(id)
    }

    /// Guest memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The address maps: what a fuzzer draws accesses from.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Names of the devices, in the order they were added.
    pub fn devices(&self) -> impl Iterator<Item = &'static str> {
        self.slots.iter().map(|s| s.name)
    }

    /// Whether a device holds this interrupt line high.
    pub fn line(&self, gsi: u32) -> bool {
        self.lines.is_high(gsi)
    }

    /// Time since the board was switched on.
    pub fn now(&self) -> Nanos {
        self.clock.now()
    }

    fn synic(&self) -> MutexGuard<'_, Synic> {
        self.synic.lock()
    }

    fn behind(&self) -> Behind<'_> {
        Behind { ram: &self.ram, backplane: &*self.backplane }
    }

    /// The earliest time at which a device wants [`Machine::advance`]; takes no lock.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let next = self.slots.iter().map(|s| s.deadline.load(Ordering::Relaxed)).min()?;
        (next != Told::NO_DEADLINE).then_some(next)
    }

    /// Time has passed: brings the devices up to now whose deadline has come, and delivers messages
    /// that waited for room. A stop is what a device asked for.
    pub fn advance(&self, cx: &mut Context) -> Option<Stop> {
        let now = self.clock.now();
        let mut stop = None;
        for slot in &self.slots {
            if slot.deadline.load(Ordering::Relaxed) <= now {
                let mut inner = slot.lock();
                inner.device.advance(&mut Env::new(&*self.clock, &self.ram, &mut cx.actions));
                self.settle(cx, slot, &mut inner, &mut stop);
            }
        }
        self.synic().retry(self.behind());
        stop
    }

    fn slot(&self, name: &str) -> Option<&Slot> {
        self.slots.iter().find(|s| s.name == name)
    }

    /// Host input for the device called `name`: how many bytes it took. `None` if there is no such
    /// device.
    pub fn input(&self, cx: &mut Context, name: &str, bytes: &[u8]) -> Option<usize> {
        let slot = self.slot(name)?;
        let mut inner = slot.lock();
        let mut env = Env::new(&*self.clock, &self.ram, &mut cx.actions);
        let taken = inner.device.input(&mut env, bytes);
        let mut stop = None;
        self.settle(cx, slot, &mut inner, &mut stop);
        debug_assert_eq!(stop, None, "input alone does not end a VM");
        Some(taken)
    }

    /// How many bytes of host input the device called `name` has room for.
    pub fn input_room(&self, name: &str) -> Option<usize> {
        Some(self.slot(name)?.lock().device.input_room())
    }
}

#[cfg(test)]
mod tests;
