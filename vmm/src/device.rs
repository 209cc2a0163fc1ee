//! What a device is to the board, and what the board is to a device.
//!
//! A chip owns registers and nothing else. It sees time as [`Env::now`], memory as [`Env::ram`],
//! host input as a method call, and asks the board for anything beyond itself by an [`Action`].

use std::fmt;
use std::sync::Arc;

use crate::access::{IoError, Size, Space};
use crate::ram::GuestRam;

/// Time since the board was switched on, in nanoseconds.
pub type Nanos = u64;

/// Nanoseconds of a second.
pub const SECOND: Nanos = 1_000_000_000;

/// A run of addresses that a device decodes. The board decides where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its name in traces and reports.
    pub name: &'static str,
    /// Port or MMIO.
    pub space: Space,
    /// Length in bytes.
    pub len: u64,
    /// The widest access that the device takes. The bus splits wider ones, low address first, as
    /// the bridge of an ISA bus does.
    pub widest: Size,
}

/// Where in a device an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Index into the device's [`Device::regions`].
    pub region: u8,
    /// Offset in that region, in bytes.
    pub offset: u64,
}

/// What a device asks of Hyper-V's synthetic interrupt controllers: `sint` is one of the 16 sources
/// of virtual processor `vp`, a connection is what guests send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynicCall {
    /// The source's interrupt is requested.
    Raise {
        /// The virtual processor.
        vp: u16,
        /// The source, 0 to 15.
        sint: u8,
    },
    /// Messages to a connection go to this source's slot.
    ConnectMessages {
        /// The connection.
        connection: u32,
        /// The virtual processor.
        vp: u16,
        /// The source, 0 to 15.
        sint: u8,
    },
    /// Events of a connection set this source's flag with the connection's number.
    ConnectEvents {
        /// The connection, below 2048.
        connection: u32,
        /// The virtual processor.
        vp: u16,
        /// The source, 0 to 15.
        sint: u8,
    },
    /// A connection for messages, or one for events, is no more.
    Disconnect {
        /// The connection.
        connection: u32,
        /// Whether it is one for events.
        events: bool,
    },
}

/// What a device asks of the board. At most [`Actions::MAX`] an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A byte leaves the machine through the device's host port (a UART transmits).
    Output(u8),
    /// The guest wrote this value to the exit device: the VM ends with it.
    Exit(u8),
    /// The guest asked for a reset of the whole machine.
    Reset,
    /// The guest switched the machine off (ACPI S5, or the "Shutdown" port).
    PowerOff,
    /// The guest asked for this ACPI sleep state, 1 to 4.
    Sleep(u8),
    /// The mapping of the page at this guest-physical address is dropped and made again.
    RemapPage(u64),
    /// The synthetic interrupt controllers are asked for something.
    Synic(SynicCall),
    /// A power-on self-test code on port 0x80.
    Post(u8),
    /// The A20 gate is opened or closed.
    A20(bool),
    /// A message-signalled interrupt: a dword that a PCI function or an I/O APIC writes to this bus
    /// address. An IOMMU may make something else of it.
    Message {
        /// The address; a multiple of 4.
        address: u64,
        /// The dword.
        data: u32,
    },
    /// The same of the IOMMU itself, as it arrives at the local APICs.
    Interrupt {
        /// The address; a multiple of 4.
        address: u64,
        /// The dword.
        data: u32,
    },
}

/// The actions of one access, in order. It lives with the vCPU, so none of them allocates.
#[derive(Clone, Debug, Default)]
pub struct Actions {
    len: usize,
    items: [Option<Action>; Actions::MAX],
    /// How many were lost because an access asked for more than [`Actions::MAX`]: always 0, unless
    /// a device is wrong.
    pub lost: u64,
}

impl Actions {
    /// The most actions that one access may ask for.
    pub const MAX: usize = 8;

    /// Adds one.
    #[inline]
    pub fn push(&mut self, action: Action) {
        match self.items.get_mut(self.len) {
            Some(slot) => {
                *slot = Some(action);
                self.len += 1;
            }
            None => {
                debug_assert!(false, "an access asks for more than {} actions", Actions::MAX);
                self.lost += 1;
            }
        }
    }

    /// Whether there is none: the usual case.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the actions out, first one first.
    #[inline]
    pub fn drain(&mut self) -> impl Iterator<Item = Action> {
        let len = std::mem::take(&mut self.len);
        self.items[..len].iter().copied().flatten()
    }
}

/// Where time comes from: the host's monotonic clock under KVM, a counter in tests and fuzzing.
pub trait Clock: Send + Sync {
    /// Time since the board was switched on. Never goes back.
    fn now(&self) -> Nanos;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Nanos {
        (**self).now()
    }
}

/// What a device may see and ask during one call.
pub struct Env<'a> {
    clock: &'a dyn Clock,
    now: Option<Nanos>,
    /// Guest memory.
    pub ram: &'a GuestRam,
    actions: &'a mut Actions,
}

impl<'a> Env<'a> {
    /// An environment for one call. The clock is read only if the device asks.
    #[inline]
    pub fn new(clock: &'a dyn Clock, ram: &'a GuestRam, actions: &'a mut Actions) -> Env<'a> {
        Env { clock, now: None, ram, actions }
    }

    /// Time since the board was switched on; the same however often it is asked for in one call.
    #[inline]
    pub fn now(&mut self) -> Nanos {
        match self.now {
            Some(now) => now,
            None => *self.now.insert(self.clock.now()),
        }
    }

    /// Asks the board for something.
    #[inline]
    pub fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// Why a saved state cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("state of device `{device}`: {what}; it was saved by another version, or is damaged")]
pub struct StateError {
    /// The device.
    pub device: &'static str,
    /// What does not fit.
    pub what: String,
}

/// An interrupt controller as the lines see it that end there.
pub trait Inputs {
    /// A line's level changed. Asks for one [`Action`] at most; lines that are not there are nobody's.
    fn pin(&mut self, env: &mut Env<'_>, pin: u32, level: bool);

    /// A level-triggered interrupt with this vector ended at a local APIC; what `pin` has to do with
    /// it is to be done. Asks for one [`Action`] at most.
    fn eoi(&mut self, env: &mut Env<'_>, pin: u32, vector: u8);

    /// The message of `pin` whose end matters: address and dword.
    fn awaited(&self, pin: u32) -> Option<(u64, u32)>;
}

/// What the board knows of a device's outputs: as they were when it looked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// [`Device::lines`], and above them, in bit 32, [`Device::irq`].
    levels: u64,
    /// [`Device::deadline`], or [`Told::NO_DEADLINE`].
    pub deadline: Nanos,
}

impl Told {
    /// The deadline of a device that has none.
    pub const NO_DEADLINE: Nanos = Nanos::MAX;
    /// A deadline that no device has: whatever the outputs are, they count as changed.
    pub const UNKNOWN: Nanos = Nanos::MAX - 1;

    /// All lines low.
    pub fn low(deadline: Nanos) -> Told {
        Told { levels: 0, deadline }
    }

    /// The outputs of `device` now.
    #[inline(always)]
    pub fn of<D: Device + ?Sized>(device: &D) -> Told {
        Told {
            levels: u64::from(device.lines()) | u64::from(device.irq()) << 32,
            deadline: device.deadline().unwrap_or(Told::NO_DEADLINE),
        }
    }

    /// The level of [`Device::irq`].
    pub fn irq(self) -> bool {
        self.levels >> 32 != 0
    }

    /// [`Device::lines`].
    pub fn lines(self) -> u32 {
        self.levels as u32
    }
}

/// What came of one access, small enough for two registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// What a read gives; bits above its width mean nothing. All ones if there was a fault.
    pub value: u64,
    /// 0, or the fault's place in [`IoError::ALL`] and 1; with [`Served::CHANGED`] and [`Served::ASKS`].
    notes: u32,
}

impl Served {
    /// An output is not as the board was told.
    const CHANGED: u32 = 1 << 8;
    /// It asks for something.
    const ASKS: u32 = 1 << 9;

    /// What `device` answered, and what else there is to be looked at now.
    #[inline(always)]
    fn of<D: Device + ?Sized>(
        answer: Result<u64, IoError>,
        device: &D,
        env: &Env<'_>,
        told: &Told,
    ) -> Served {
        let changed = if Told::of(device) != *told { Served::CHANGED } else { 0 };
        let notes = changed | if env.actions.is_empty() { 0 } else { Served::ASKS };
        match answer {
            Ok(value) => Served { value, notes },
            Err(fault) => Served { value: u64::MAX, notes: notes | (fault as u32 + 1) },
        }
    }

    /// Whether there is nothing to be looked at beside the value: the usual case.
    #[inline(always)]
    pub fn is_plain(self) -> bool {
        self.notes == 0
    }

    /// The fault's place in [`IoError::ALL`], if the device did not take the access.
    #[inline]
    pub fn fault(self) -> Option<usize> {
        (self.notes as usize & 0xff).checked_sub(1)
    }

    /// Whether an output is not as the board was told.
    #[inline]
    pub fn changed(self) -> bool {
        self.notes & Served::CHANGED != 0
    }
}

// Functions of their own, so that a look at a register need not make room for what these do.
#[inline(never)]
fn served_read<D: Device + ?Sized>(
    device: &mut D,
    env: &mut Env<'_>,
    at: At,
    size: Size,
    told: &Told,
) -> Served {
    let answer = device.read(env, at, size);
    Served::of(answer, device, env, told)
}

#[inline(never)]
fn served_write<D: Device + ?Sized>(
    device: &mut D,
    env: &mut Env<'_>,
    at: At,
    size: Size,
    value: u64,
    told: &Told,
) -> Served {
    let answer = device.write(env, at, size, value).map(|()| 0);
    Served::of(answer, device, env, told)
}

/// A device as the board sees it.
///
/// Laws that [`crate::device_laws!`] checks: restoring what was saved changes nothing, a reset
/// device behaves as a new one, the same calls give the same answers.
pub trait Device: Send + fmt::Debug {
    /// What it is called in reports and scripts, unique on a board: `com1`, `rtc`.
    fn name(&self) -> &'static str;

    /// The address ranges it decodes; always the same for one device. The first of a PCI function is
    /// its configuration space ([`crate::chips::pci`]).
    fn regions(&self) -> &'static [Region];

    /// The guest reads. Bits of the answer above `size` are ignored.
    ///
    /// # Errors
    /// The fault, if the device does not take the access.
    fn read(&mut self, env: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError>;

    /// The guest writes; bits of `value` above `size` are 0.
    ///
    /// # Errors
    /// The fault, if the device does not take the access.
    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError>;

    /// What a read gives that is no more than a look: it changes nothing of the device, and asks for
    /// nothing. `None` where [`Device::read`] is to be called, which may always be the answer.
    #[inline(always)]
    fn look(&self, at: At, size: Size) -> Option<u64> {
        let _ = (at, size);
        None
    }

    /// Writes what is mere storage: neither an output of the device nor the world hears of it. `false`
    /// where [`Device::write`] is to be called, and then nothing has changed.
    #[inline(always)]
    fn keep(&mut self, at: At, size: Size, value: u64) -> bool {
        let _ = (at, size, value);
        false
    }

    /// [`Device::read`], and whether an output is not as `told`: one call through a pointer, where the
    /// board would make four on the way of every exit. Nothing that a device writes itself.
    fn serve_read(&mut self, env: &mut Env<'_>, at: At, size: Size, told: &Told) -> Served {
        match self.look(at, size) {
            Some(value) => Served { value, notes: 0 },
            None => served_read(self, env, at, size, told),
        }
    }

    /// The same of [`Device::write`].
    fn serve_write(
        &mut self,
        env: &mut Env<'_>,
        at: At,
        size: Size,
        value: u64,
        told: &Told,
    ) -> Served {
        match self.keep(at, size, value) {
            true => Served { value: 0, notes: 0 },
            false => served_write(self, env, at, size, value, told),
        }
    }

    /// Level of the device's interrupt line: a function of its state and of nothing else. The
    /// board samples it after each call.
    fn irq(&self) -> bool {
        false
    }

    /// Where the region lies now, if that is for the guest to say: of a PCI function, what a base
    /// address register claims. `None` while it is not decoded. The board asks after each write to
    /// the configuration space, a reset and a restore.
    fn base(&self, region: u8) -> Option<u64> {
        let _ = region;
        None
    }

    /// The lines that end at the device, if it is an interrupt controller of the board.
    fn inputs(&mut self) -> Option<&mut dyn Inputs> {
        None
    }

    /// The PCI configuration address that the device holds, if it is the one that does.
    fn config_address(&self) -> Option<u32> {
        None
    }

    /// GSIs 0 to 31 that the device can drive past its own line, as a bit set; always the same for
    /// one device. Only the test device has any.
    fn drives(&self) -> u32 {
        0
    }

    /// The levels of [`Device::drives`], bit by bit: like [`Device::irq`] a function of state. What
    /// several devices drive is high while one of them holds it high.
    fn lines(&self) -> u32 {
        0
    }

    /// The earliest time at which [`Device::irq`] would change without an access; the board calls
    /// [`Device::advance`] then.
    fn deadline(&self) -> Option<Nanos> {
        None
    }

    /// Time has passed: bring the state up to [`Env::now`].
    fn advance(&mut self, env: &mut Env<'_>) {
        let _ = env;
    }

    /// Bytes arrive from the host at the device's port (typed keys, received characters). Returns
    /// how many were taken; the rest is offered again after the guest made room.
    fn input(&mut self, env: &mut Env<'_>, bytes: &[u8]) -> usize {
        let _ = (env, bytes);
        0
    }

    /// How many bytes [`Device::input`] would take now.
    fn input_room(&self) -> usize {
        0
    }

    /// The board's reset line: every register as after power-on. Host-side connections stay.
    fn reset(&mut self, env: &mut Env<'_>);

    /// The whole state, in a form that [`Device::restore`] takes. Destructure the struct in full
    /// here, so that a field forgotten is a compile error.
    fn save(&self) -> Vec<u8>;

    /// Takes up a saved state. Nothing changes if it is refused.
    ///
    /// # Errors
    /// When it is not a state of this device, or one that the registers cannot have.
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError>;
}
