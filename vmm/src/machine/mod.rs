//! The board: which devices where, their interrupt lines, and the answer to every exit.
//!
//! [`Machine::handle`] knows nothing of KVM. On its way an exit meets no allocation, no system
//! call and one lock, the device's own.

pub mod acpi;
mod backplane;
mod error;
mod interrupts;
mod lines;
mod log;
mod pc;
mod pci;
mod slots;
mod state;
mod synic;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use backplane::{Backplane, ManualClock, Nowhere};
pub use error::BoardError;
pub use interrupts::{MSI_END, MSI_START};
pub use log::{ExitLog, Logged};
pub use pc::{PcConfig, pc, populate};
pub use slots::{IommuConfig, PCI_GSIS, PciDevice};

use crate::access::{Access, Dir, IoError, Size};
use crate::bus::{Bus, DeviceId, Route};
use crate::chips::pci::Slot as PciSlot;
use crate::chips::pci::memory::Iommu;
use crate::device::{Action, Actions, At, Clock, Device, Env, Nanos};
use crate::exit::{Entry, Exit, Stop, SystemEvent};
use crate::planted::{self, Flaw};
use crate::ram::GuestRam;
use interrupts::Controller;
use lines::{GSIS, Lines};
use pci::Pci;
use synic::{Behind, Registers, Synic};

/// What belongs to one vCPU, or to whoever else hands exits to the board: nothing of it is shared.
#[derive(Debug, Default)]
pub struct Context {
    actions: Actions,
    /// RIP at the exit that is handed over next, if the driver knows it: for the log.
    pub rip: Option<u64>,
    /// The last exits.
    pub log: ExitLog,
    /// Accesses that no device took, by [`IoError`]'s place in [`IoError::ALL`].
    pub faults: [u64; IoError::ALL.len()],
}

impl Context {
    /// A context with nothing in it.
    pub fn new() -> Context {
        Context::default()
    }

    /// As new.
    pub fn clear(&mut self) {
        let Context { actions, rip, log, faults } = self;
        (*actions, *rip, *faults) = (Actions::default(), None, [0; IoError::ALL.len()]);
        log.clear();
    }

    /// Actions that devices asked for beyond what one access may: 0 unless a device is wrong.
    pub fn lost_actions(&self) -> u64 {
        self.actions.lost
    }
}

/// What the lock of one device guards.
struct Inner {
    device: Box<dyn Device>,
    /// The level of its line, and the levels of those that it drives beside, as the lines were
    /// told last.
    level: bool,
    lines: u32,
}

struct Slot {
    name: &'static str,
    id: DeviceId,
    gsi: Option<u32>,
    /// Its place on the PCI bus.
    function: Option<PciSlot>,
    /// Whether it drives lines beside its own, or the I/O APIC is to be looked at after an access.
    more: bool,
    inner: Mutex<Inner>,
    /// The device's deadline, `u64::MAX` for none; read without its lock.
    deadline: AtomicU64,
}

impl Slot {
    #[inline]
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A device that panicked is a bug that has been reported already; its registers are still
        // registers, so the guest may go on until the VM is torn down.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NO_DEADLINE: u64 = u64::MAX;

/// A board: devices on a bus, RAM, a clock, and the backplane behind them.
pub struct Machine {
    bus: Bus,
    slots: Vec<Slot>,
    ram: GuestRam,
    clock: Arc<dyn Clock>,
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
            clock,
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
        let deadline = AtomicU64::new(device.deadline().unwrap_or(NO_DEADLINE));
        let more = device.drives() != 0;
        let inner = Mutex::new(Inner { device, level: false, lines: 0 });
        self.slots.push(Slot { name, id, gsi, function: None, more, inner, deadline });
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

    /// Answers one exit. Whatever the guest does, this returns, and does a bounded amount of work.
    #[inline]
    pub fn handle(&self, cx: &mut Context, exit: &Exit) -> Entry {
        let entry = match exit {
            Exit::Io(access) => self.access(cx, access),
            exit => self.other(exit),
        };
        cx.log.push(exit, entry, cx.rip);
        entry
    }

    #[inline]
    fn access(&self, cx: &mut Context, access: &Access) -> Entry {
        let mut stop = None;
        let value = match self.bus.route(access) {
            Route::To(id, at) => self.call(cx, id, at, access, &mut stop),
            Route::Split(first) => self.split(cx, access, first, &mut stop),
            Route::Nobody => self.nobody(cx, access, &mut stop),
        };
        match (stop, access.dir) {
            (Some(stop), _) => Entry::Stop(stop),
            (None, Dir::Read) => Entry::Read(value),
            (None, Dir::Write(_)) => Entry::Resume,
        }
    }

    /// One access to one device; returns what a read gives.
    #[inline]
    fn call(
        &self,
        cx: &mut Context,
        id: DeviceId,
        at: At,
        access: &Access,
        stop: &mut Option<Stop>,
    ) -> u64 {
        let slot = &self.slots[usize::from(id)];
        let mut inner = slot.lock();
        let mut env = Env::new(&*self.clock, &self.ram, &mut cx.actions);
        let answer = match access.dir {
            Dir::Read => inner.device.read(&mut env, at, access.size),
            Dir::Write(v) => inner.device.write(&mut env, at, access.size, v).map(|()| 0),
        };
        self.settle(cx, slot, &mut inner, stop);
        match answer {
            Ok(value) => value & access.size.mask(),
            Err(e) => {
                cx.faults[e as usize] += 1;
                access.size.mask()
            }
        }
    }

    /// An access in pieces, low address first, as a bridge to a narrower bus makes it.
    #[cold]
    fn split(
        &self,
        cx: &mut Context,
        access: &Access,
        first: Size,
        stop: &mut Option<Stop>,
    ) -> u64 {
        let (mut value, mut done, mut size) = (0, 0, first);
        let total = access.size.bytes();
        loop {
            let dir = match access.dir {
                Dir::Read => Dir::Read,
                Dir::Write(v) => Dir::Write(v >> (8 * done) & size.mask()),
            };
            // A piece past port 0xffff meets nobody: no region reaches there. Nor where MMIO wraps.
            let addr = access.addr.wrapping_add(done);
            let piece = Access { addr, size, dir, ..*access };
            match self.bus.route(&piece) {
                Route::Split(narrower) => {
                    size = narrower;
                    continue;
                }
                Route::To(id, at) => value |= self.call(cx, id, at, &piece, stop) << (8 * done),
                Route::Nobody => value |= self.nobody(cx, &piece, stop) << (8 * done),
            }
            if planted::has(Flaw::BusLogged) {
                cx.log.push(&Exit::Io(piece), Entry::Resume, cx.rip);
            }
            done += size.bytes();
            if done >= total {
                return value;
            }
            size = if total - done >= first.bytes() { first } else { Size::B1 };
        }
    }

    /// What is on no fixed place of the board: on its PCI bus, or nowhere.
    #[inline]
    fn nobody(&self, cx: &mut Context, access: &Access, stop: &mut Option<Stop>) -> u64 {
        match &self.pci {
            Some(pci) => self.on_pci(pci, cx, access, stop),
            None => self.unclaimed(cx, access),
        }
    }

    #[inline]
    fn unclaimed(&self, cx: &mut Context, access: &Access) -> u64 {
        cx.faults[IoError::Unclaimed as usize] += 1;
        access.size.mask()
    }

    /// After each call of a device: its line, its deadline, what it asked for.
    #[inline]
    fn settle(&self, cx: &mut Context, slot: &Slot, inner: &mut Inner, stop: &mut Option<Stop>) {
        if let Some(gsi) = slot.gsi {
            let level = inner.device.irq();
            if level != inner.level {
                inner.level = level;
                self.lines.drive(gsi, level, |gsi, level| self.line_changed(gsi, level));
            }
        }
        if slot.more {
            self.settle_more(slot, inner);
        }
        let deadline = inner.device.deadline().unwrap_or(NO_DEADLINE);
        let before = slot.deadline.load(Ordering::Relaxed);
        if deadline != before {
            slot.deadline.store(deadline, Ordering::Relaxed);
            if deadline < before {
                self.backplane.deadline(deadline);
            }
        }
        if !cx.actions.is_empty() {
            for action in cx.actions.drain() {
                if let Some(s) = self.act(slot, action) {
                    stop.get_or_insert(s);
                }
            }
        }
    }

    fn act(&self, slot: &Slot, action: Action) -> Option<Stop> {
        match action {
            Action::Output(byte) => self.backplane.output(slot.name, byte),
            Action::Exit(value) => return Some(Stop::Exit(value)),
            Action::Reset => return Some(Stop::Reset),
            Action::PowerOff => return Some(Stop::PowerOff),
            Action::Sleep(state) => return Some(Stop::Sleep(state)),
            Action::RemapPage(gpa) => self.backplane.remap_page(gpa),
            Action::Synic(call) => self.synic().ask(&*self.backplane, call),
            Action::Message { address, data } => self.message(slot.function, address, data),
            Action::Interrupt { address, data } => self.backplane.message(address, data),
            // Nothing on this board hangs on either: A20 is always open, and a POST code is in
            // the log of exits.
            Action::Post(_) | Action::A20(_) => {}
        }
        None
    }

    fn synic(&self) -> MutexGuard<'_, Synic> {
        self.synic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn behind(&self) -> Behind<'_> {
        Behind { ram: &self.ram, backplane: &*self.backplane }
    }

    #[cold]
    fn other(&self, exit: &Exit) -> Entry {
        let stop = match *exit {
            Exit::Interrupted | Exit::IrqWindow | Exit::SetTpr | Exit::BusLock => {
                return Entry::Resume;
            }
            Exit::IoapicEoi(vector) => {
                self.end_of_interrupt(vector);
                return Entry::Resume;
            }
            // KVM_ENOSYS, as KVM itself answers a hypercall that it does not know (-1000).
            Exit::Hypercall { .. } => return Entry::Read(-1000i64 as u64),
            Exit::HypervCall { input, params } => {
                return Entry::Read(self.synic().call(self.behind(), input, params));
            }
            Exit::HypervSynic { vp, msr, control, events, messages } => {
                self.synic().changed(&self.ram, vp, msr, Registers { control, events, messages });
                return Entry::Resume;
            }
            // No debugger is behind it: no status.
            Exit::HypervDebug { .. } => return Entry::Read(0),
            // No MSR belongs to the board.
            Exit::Rdmsr { .. } | Exit::Wrmsr { .. } => return Entry::Fault,
            // Without an interrupt controller nothing can wake the vCPU.
            Exit::Hlt => Stop::Halted,
            Exit::Shutdown => Stop::TripleFault,
            Exit::SystemEvent(SystemEvent::Shutdown) => Stop::PowerOff,
            Exit::SystemEvent(SystemEvent::Reset) => Stop::Reset,
            Exit::SystemEvent(SystemEvent::Crash) => Stop::Crash,
            Exit::Io(_)
            | Exit::SystemEvent(SystemEvent::Other(_))
            | Exit::InternalError { .. }
            | Exit::FailEntry { .. }
            | Exit::Debug { .. }
            | Exit::MemoryFault { .. }
            | Exit::DirtyRingFull
            | Exit::Notify
            | Exit::RunError(_)
            | Exit::Unknown(_) => Stop::Unexpected,
        };
        Entry::Stop(stop)
    }

    /// The earliest time at which a device wants [`Machine::advance`]; takes no lock.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let next = self.slots.iter().map(|s| s.deadline.load(Ordering::Relaxed)).min()?;
        (next != NO_DEADLINE).then_some(next)
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
