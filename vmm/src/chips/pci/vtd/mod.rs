//! An Intel IOMMU: DMA remapping with second-level tables, interrupt remapping, queued invalidation.
//!
//! After Intel's Virtualization Technology for Directed I/O specification, revision 3.3 (order number
//! D51397): registers in chapter 11, DMA remapping in chapter 3, interrupt remapping in chapter 5,
//! invalidation in chapter 6, faults in chapter 7, table entries in chapter 9.
//!
//! It is a unit of legacy mode: root and context entries, 3 and 4 levels, pages of 4 KiB, 2 MiB and 1 GiB,
//! pass-through, one fault recording register. Nothing is cached, so an invalidation is complete as soon as
//! it is asked for. Device TLBs, extended interrupt mode, posted interrupts, advanced fault logging and
//! protected memory are absent, and the capability registers say so.
//!
//! Registers take 4 bytes, and 8 where they are that wide.

mod queue;
mod remap;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Slot;
use super::memory::Iommu;
use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Region, StateError};
use crate::planted::{self, Flaw};
use crate::state::{decode, encode};

/// Where a PC's is.
pub const BASE: u64 = 0xfed9_0000;
/// Guest addresses that it translates have as many bits at most.
pub const ADDRESS_WIDTH: u8 = 48;

const NAME: &str = "intel-iommu";
const REGIONS: &[Region] =
    &[Region { name: NAME, space: Space::Mmio, len: 0x1000, widest: Size::B8 }];

/// Registers (section 11.4).
pub mod reg {
    /// Version.
    pub const VERSION: u64 = 0x00;
    /// Capabilities.
    pub const CAPABILITY: u64 = 0x08;
    /// Extended capabilities.
    pub const EXTENDED: u64 = 0x10;
    /// Global command.
    pub const COMMAND: u64 = 0x18;
    /// Global status.
    pub const STATUS: u64 = 0x1c;
    /// Root table address.
    pub const ROOT: u64 = 0x20;
    /// Context command.
    pub const CONTEXT: u64 = 0x28;
    /// Fault status.
    pub const FAULTS: u64 = 0x34;
    /// Fault event: control, data, address.
    pub const FAULT_EVENT: u64 = 0x38;
    /// Invalidation queue: head, tail, address.
    pub const QUEUE_HEAD: u64 = 0x80;
    /// The tail.
    pub const QUEUE_TAIL: u64 = 0x88;
    /// The address.
    pub const QUEUE: u64 = 0x90;
    /// Invalidation completion status.
    pub const COMPLETION: u64 = 0x9c;
    /// Invalidation event: control, data, address.
    pub const COMPLETION_EVENT: u64 = 0xa0;
    /// Interrupt remapping table address.
    pub const INTERRUPTS: u64 = 0xb8;
    /// IOTLB: invalidate address, then the command.
    pub const IOTLB: u64 = 0xf0;
    /// The fault recording register.
    pub const RECORD: u64 = 0x220;
}

/// Bits of the global command and status registers (11.4.4).
pub mod status {
    /// DMA is remapped.
    pub const TRANSLATION: u32 = 1 << 31;
    /// A root table was set.
    pub const ROOT: u32 = 1 << 30;
    /// The invalidation queue is enabled.
    pub const QUEUE: u32 = 1 << 26;
    /// Interrupts are remapped.
    pub const INTERRUPTS: u32 = 1 << 25;
    /// An interrupt remapping table was set.
    pub const TABLE: u32 = 1 << 24;
    /// Interrupts of compatibility format pass.
    pub const COMPATIBILITY: u32 = 1 << 23;
    pub(super) const ALL: u32 = TRANSLATION | ROOT | QUEUE | INTERRUPTS | TABLE | COMPATIBILITY;
    /// Those that are on as long as the command has them.
    pub(super) const LEVELS: u32 = TRANSLATION | QUEUE | INTERRUPTS | COMPATIBILITY;
}

/// Bits of the fault status register (11.4.7.1).
pub mod faults {
    /// A fault was not recorded.
    pub const OVERFLOW: u32 = 1 << 0;
    /// A fault is recorded.
    pub const PENDING: u32 = 1 << 1;
    /// A descriptor of the invalidation queue is wrong.
    pub const QUEUE: u32 = 1 << 4;
}

/// Version 1.0.
const VERSION: u32 = 0x10;
/// 64 Ki domains; 39 and 48 bits; 48 bits at most; zero-length reads; pages of 2 MiB and 1 GiB; by page;
/// one fault record at 0x220; drains.
const CAPABILITY: u64 = 6
    | 0b0_0110 << 8
    | (ADDRESS_WIDTH as u64 - 1) << 16
    | 1 << 22
    | (reg::RECORD / 16) << 24
    | 0b0011 << 34
    | 1 << 39
    | 18 << 48
    | 0b11 << 54;
/// Coherent, queued invalidation, pass-through, snoop control, IOTLB registers at 0xf0.
const EXTENDED: u64 = 1 | 1 << 1 | 1 << 6 | 1 << 7 | (reg::IOTLB / 16) << 8 | 15 << 20;
/// Interrupt remapping.
const EXTENDED_INTERRUPTS: u64 = 1 << 3;

/// In an event's control: masked, and pending.
const MASKED: u32 = 1 << 31;
const PENDING: u32 = 1 << 30;
/// In the fault record's upper half: a fault, and that it was a read.
const FAULT: u64 = 1 << 63;
const READ: u64 = 1 << 62;
/// In the context and IOTLB commands: to be done.
const INVALIDATE: u64 = 1 << 63;

/// An interrupt of the unit's own (11.4.7.2 to 11.4.7.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Event {
    control: u32,
    data: u32,
    address: u32,
}

impl Event {
    fn new() -> Event {
        Event { control: MASKED, data: 0, address: 0 }
    }

    fn register(&mut self, at: u64) -> Option<&mut u32> {
        match at {
            0 => Some(&mut self.control),
            4 => Some(&mut self.data),
            8 => Some(&mut self.address),
            _ => None,
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: u64, value: u32) {
        match at {
            0 => {
                self.control = self.control & PENDING | value & MASKED;
                self.send(env);
            }
            4 => self.data = value & 0xffff,
            8 => self.address = value & !3,
            _ => {}
        }
    }

    fn raise(&mut self, env: &mut Env<'_>) {
        self.control |= PENDING;
        self.send(env);
    }

    fn send(&mut self, env: &mut Env<'_>) {
        if self.control & (MASKED | PENDING) == PENDING {
            self.control &= !PENDING;
            // The unit's own interrupts are not remapped (5.1.5.3).
            env.act(Action::Interrupt { address: self.address.into(), data: self.data });
        }
    }

    fn is_possible(&self) -> bool {
        let Event { control, data, address } = self;
        control & !(MASKED | PENDING) == 0
            && *control != PENDING
            && data & !0xffff == 0
            && address & 3 == 0
    }
}

/// The unit's registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Unit {
    status: u32,
    /// The registers that set tables, and the tables that were set by them.
    root: u64,
    root_set: u64,
    interrupts: u64,
    interrupts_set: u64,
    context: u64,
    iotlb: u64,
    faults: u32,
    fault_event: Event,
    record: [u64; 2],
    queue_head: u64,
    queue_tail: u64,
    queue: u64,
    completed: bool,
    completion_event: Event,
}

impl Unit {
    fn new() -> Unit {
        Unit {
            status: 0,
            root: 0,
            root_set: 0,
            interrupts: 0,
            interrupts_set: 0,
            context: 0,
            iotlb: 0,
            faults: 0,
            fault_event: Event::new(),
            record: [0; 2],
            queue_head: 0,
            queue_tail: 0,
            queue: 0,
            completed: false,
            completion_event: Event::new(),
        }
    }

    fn is_possible(&self) -> bool {
        let Unit { status, root, root_set, interrupts, interrupts_set, context, .. } = self;
        let Unit { iotlb, faults, record, queue_head, queue_tail, queue, completed, .. } = self;
        let recorded = record[1] & FAULT != 0;
        status & !status::ALL == 0
            && (root | root_set) & 0xfff == 0
            && (interrupts | interrupts_set) & 0xff0 == 0
            && (context | iotlb) & INVALIDATE == 0
            && faults & !(faults::OVERFLOW | faults::QUEUE) == 0
            && (recorded || *record == [0; 2])
            && (queue_head | queue_tail) & !queue::INDEX == 0
            && queue & 0xff8 == 0
            && self.fault_event.is_possible()
            && self.completion_event.is_possible()
            && (*faults != 0 || recorded || self.fault_event.control & PENDING == 0)
            && (*completed || self.completion_event.control & PENDING == 0)
    }

    fn is(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    /// The fault status as it reads: whether one is recorded follows from the record.
    fn fault_status(&self) -> u32 {
        let pending = if self.record[1] & FAULT != 0 { faults::PENDING } else { 0 };
        self.faults | pending
    }

    /// A fault: recorded if there is room and none was lost (7.2.1), and told if none was to be looked at (7.3).
    fn fault(&mut self, env: &mut Env<'_>, reason: u8, requester: u16, info: u64, write: bool) {
        let before = self.fault_status();
        if before & faults::OVERFLOW != 0 && !planted::has(Flaw::VtdLost) {
            return;
        }
        if before & faults::PENDING != 0 {
            self.faults |= faults::OVERFLOW;
        } else {
            let kind = if write { 0 } else { READ };
            self.record = [info, FAULT | kind | u64::from(reason) << 32 | u64::from(requester)];
        }
        if before == 0 {
            self.fault_event.raise(env);
        }
    }

    /// What is pending in the fault event goes with the last of its causes.
    fn settle_faults(&mut self) {
        if self.fault_status() == 0 {
            self.fault_event.control &= !PENDING;
        }
    }

    fn dword(&mut self, remaps: bool, at: u64) -> u32 {
        let extended = EXTENDED | if remaps { EXTENDED_INTERRUPTS } else { 0 };
        let wide = match at & !7 {
            reg::CAPABILITY => CAPABILITY,
            reg::EXTENDED => extended,
            reg::ROOT => self.root,
            reg::CONTEXT => self.context,
            reg::QUEUE_HEAD => self.queue_head,
            reg::QUEUE_TAIL => self.queue_tail,
            reg::QUEUE => self.queue,
            reg::INTERRUPTS if remaps => self.interrupts,
            0xf8 => self.iotlb,
            0x220 => self.record[0],
            0x228 => self.record[1],
            _ => {
                return match at {
                    reg::VERSION => VERSION,
                    reg::STATUS => self.status,
                    reg::FAULTS => self.fault_status(),
                    reg::COMPLETION => self.completed.into(),
                    0x38..0x44 => self.fault_event.register(at - 0x38).map_or(0, |r| *r),
                    0xa0..0xac => self.completion_event.register(at - 0xa0).map_or(0, |r| *r),
                    _ => 0,
                };
            }
        };
        (wide >> (8 * (at & 4))) as u32
    }

    fn set_dword(&mut self, env: &mut Env<'_>, remaps: bool, at: u64, value: u32) {
        let half = |old: u64| {
            let shift = 8 * (at & 4);
            old & !(0xffff_ffff << shift) | u64::from(value) << shift
        };
        match at {
            reg::COMMAND => self.command(remaps, value),
            0x20 | 0x24 => self.root = half(self.root) & !0xfff,
            0x28 | 0x2c => self.context = half(self.context),
            reg::FAULTS => {
                self.faults &= !(value & (faults::OVERFLOW | faults::QUEUE));
                self.settle_faults();
                self.run_queue(env);
            }
            0x38..0x44 => self.fault_event.write(env, at - 0x38, value),
            reg::QUEUE_TAIL => {
                let index = if planted::has(Flaw::VtdTail) { u64::MAX } else { queue::INDEX };
                self.queue_tail = u64::from(value) & index;
                self.run_queue(env);
            }
            0x90 | 0x94 => self.queue = half(self.queue) & !0xff8,
            reg::COMPLETION => {
                self.completed &= value & 1 == 0;
                if !self.completed {
                    self.completion_event.control &= !PENDING;
                }
            }
            0xa0..0xac => self.completion_event.write(env, at - 0xa0, value),
            0xb8 | 0xbc if remaps => self.interrupts = half(self.interrupts) & !0xff0,
            0xf8 | 0xfc => self.iotlb = half(self.iotlb),
            0x22c if value >> 31 == 1 => {
                self.record = [0; 2];
                self.settle_faults();
            }
            _ => {}
        }
        // Nothing is cached: what is asked for is done, and as finely as it was asked for.
        if self.context & INVALIDATE != 0 && !planted::has(Flaw::VtdStuck) {
            let asked = self.context >> 61 & 3;
            self.context = self.context & !INVALIDATE & !(3 << 59) | asked << 59;
        }
        if self.iotlb & INVALIDATE != 0 {
            let asked = self.iotlb >> 60 & 3;
            self.iotlb = self.iotlb & !INVALIDATE & !(3 << 57) | asked << 57;
        }
    }

    /// The global command register (11.4.4.1).
    fn command(&mut self, remaps: bool, value: u32) {
        if value & status::ROOT != 0 {
            self.root_set = self.root;
            self.status |= status::ROOT;
        }
        if value & status::TABLE != 0 && remaps {
            self.interrupts_set = self.interrupts;
            self.status |= status::TABLE;
        }
        let there = if remaps { !0 } else { !(status::INTERRUPTS | status::COMPATIBILITY) };
        let levels = value & status::LEVELS & there;
        if levels & status::QUEUE == 0 {
            self.queue_head = 0;
        }
        self.status = self.status & !status::LEVELS | levels;
    }
}

/// The IOMMU. Clones are one unit: the device on the board, and what stands before memory.
#[derive(Clone, Debug)]
pub struct Vtd {
    remaps: bool,
    unit: Arc<Mutex<Unit>>,
}

impl Vtd {
    /// A unit after power-on; `remaps` says whether it remaps interrupts.
    pub fn new(remaps: bool) -> Vtd {
        Vtd { remaps, unit: Arc::new(Mutex::new(Unit::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, Unit> {
        // Registers are registers, whoever panicked.
        self.unit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The dwords of an access.
fn dwords(at: At, size: Size) -> Result<(), IoError> {
    match (at.offset, size) {
        (offset, _) if at.region != 0 || offset >= REGIONS[0].len => Err(IoError::NoRegister),
        (offset, Size::B4) if offset % 4 == 0 => Ok(()),
        (offset, Size::B8) if offset % 8 == 0 => Ok(()),
        _ => Err(IoError::Width),
    }
}

impl Device for Vtd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn regions(&self) -> &'static [Region] {
        REGIONS
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        dwords(at, size)?;
        let mut unit = self.lock();
        let low = unit.dword(self.remaps, at.offset).into();
        match size {
            Size::B8 => Ok(low | u64::from(unit.dword(self.remaps, at.offset + 4)) << 32),
            _ => Ok(low),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        dwords(at, size)?;
        let mut unit = self.lock();
        unit.set_dword(env, self.remaps, at.offset, value as u32);
        if size == Size::B8 {
            unit.set_dword(env, self.remaps, at.offset + 4, (value >> 32) as u32);
        }
        Ok(())
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        let mut unit = self.lock();
        let completed = unit.completed && planted::has(Flaw::VtdCompleted);
        *unit = Unit { completed, ..Unit::new() };
    }

    fn save(&self) -> Vec<u8> {
        encode(&*self.lock())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let unit: Unit = decode(NAME, state)?;
        if !unit.is_possible() {
            let what = "registers with bits that do not exist".to_owned();
            return Err(StateError { device: NAME, what });
        }
        *self.lock() = unit;
        Ok(())
    }
}

impl Iommu for Vtd {
    fn translate(
        &self,
        env: &mut Env<'_>,
        requester: Slot,
        address: u64,
        write: bool,
    ) -> Option<(u64, u64)> {
        self.lock().translate(env, requester, address, write)
    }

    fn remap(
        &self,
        env: &mut Env<'_>,
        requester: Option<Slot>,
        address: u64,
        data: u32,
        record: bool,
    ) -> Option<(u64, u32)> {
        self.lock().remap(env, requester, address, data, record)
    }
}
