//! An IOMMU in legacy mode, after Intel's Virtualization Technology for Directed I/O specification, revision
//! 3.3: its registers (chapter 11), faults (7.2, 7.3) and the invalidation queue (6.5.2). Where addresses and
//! messages go is in [`walk`].
//!
//! What is the board's own: registers take 4 bytes, and 8 where they are that wide, the low dword first; an
//! invalidation is done as soon as it is asked for; there is one fault recording register; of the queue's
//! descriptors fields that are reserved are not looked at.
//!
//! What is not predicted: what comes of a queue whose head or tail lies beyond its end or which is enabled with
//! something in it, of types of descriptors that legacy mode has not, and of memory that changes meanwhile.

mod walk;

use std::cell::RefCell;
use std::rc::Rc;

use vmm::access::{Access, Dir, Size, Space};
use vmm::script::replay::Touch;
use vmm::script::{Effect, Op};

use super::{Model, Seen};
pub(super) use walk::{Remapped, Walk};

const BASE: u64 = 0xfed9_0000;
/// Global status: translation, queue, interrupts; a root and an interrupt table were set; compatibility.
const TRANSLATES: u32 = 1 << 31;
const ROOT: u32 = 1 << 30;
const QUEUES: u32 = 1 << 26;
const REMAPS: u32 = 1 << 25;
const TABLE: u32 = 1 << 24;
const COMPATIBLE: u32 = 1 << 23;
/// Masked, and pending, of an event.
const MASKED: u32 = 1 << 31;
const PENDING: u32 = 1 << 30;

/// An event: its control, data and address register.
#[derive(Clone, Copy, Debug)]
struct Event {
    control: u32,
    data: u32,
    address: u32,
}

impl Event {
    const fn new() -> Event {
        Event { control: MASKED, data: 0, address: 0 }
    }

    fn raise(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.control |= PENDING;
        self.send(seen)
    }

    /// What is pending is sent unless it is masked.
    fn send(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        if self.control & (MASKED | PENDING) != PENDING {
            return Ok(());
        }
        self.control = 0;
        sent(seen, self.address.into(), self.data)
    }

    fn write(&mut self, seen: &Seen<'_>, register: u64, value: u32) -> Result<(), String> {
        match register {
            0 => {
                self.control = self.control & PENDING | value & MASKED;
                return self.send(seen);
            }
            4 => self.data = value & 0xffff,
            _ => self.address = value & !3,
        }
        Ok(())
    }

    fn read(&self, register: u64) -> u32 {
        match register {
            0 => self.control,
            4 => self.data,
            _ => self.address,
        }
    }
}

/// This message was sent.
pub(super) fn sent(seen: &Seen<'_>, address: u64, data: u32) -> Result<(), String> {
    match seen.outcome.effects.contains(&Effect::Message { address, data }) {
        true => Ok(()),
        false => Err(format!("it is to send {data:#x} to {address:#x}")),
    }
}

/// A fault that was recorded. What is not known of it is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// The page, or the number of an interrupt's entry in the upper 16 bits.
    pub(super) info: u64,
    pub(super) requester: u16,
    pub(super) reason: Option<u8>,
    /// Of an interrupt nothing is said.
    pub(super) is_read: Option<bool>,
}

/// A unit that the models of the board's devices share.
pub(super) type Unit = Rc<RefCell<Vtd>>;

pub(super) struct Vtd {
    remaps: bool,
    status: u32,
    root: u64,
    root_set: u64,
    interrupts: u64,
    interrupts_set: u64,
    /// What the version and the capabilities were read as.
    constant: [Option<u32>; 5],
    overflow: bool,
    queue_error: bool,
    fault: Option<Fault>,
    fault_event: Event,
    completed: bool,
    completion: Event,
    head: u64,
    tail: u64,
    queue: u64,
    /// Something that is left open happened: of faults and of the queue nothing is known.
    is_lost: bool,
    /// The operation had the queue worked off, and what that wrote to memory was looked at.
    ran: bool,
}

impl Vtd {
    pub(super) fn new(remaps: bool) -> Vtd {
        Vtd {
            remaps,
            status: 0,
            root: 0,
            root_set: 0,
            interrupts: 0,
            interrupts_set: 0,
            constant: [None; 5],
            overflow: false,
            queue_error: false,
            fault: None,
            fault_event: Event::new(),
            completed: false,
            completion: Event::new(),
            head: 0,
            tail: 0,
            queue: 0,
            is_lost: false,
            ran: false,
        }
    }

    /// Something is left open that faults may have come of.
    pub(super) fn lose(&mut self) {
        self.is_lost = true;
    }

    fn is(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    /// 11.4.7.1: an overflow; a fault is recorded; the queue stopped.
    fn fault_status(&self) -> u32 {
        let recorded = self.fault.is_some();
        u32::from(self.overflow) | u32::from(recorded) << 1 | u32::from(self.queue_error) << 4
    }

    /// 7.2.1: after an overflow none is recorded; told is one before which nothing was to be looked at.
    pub(super) fn record(&mut self, seen: &Seen<'_>, fault: Fault) -> Result<(), String> {
        if self.is_lost || self.overflow {
            return Ok(());
        }
        let before = self.fault_status();
        match self.fault {
            Some(_) => self.overflow = true,
            None => self.fault = Some(fault),
        }
        if before == 0 { self.fault_event.raise(seen) } else { Ok(()) }
    }

    /// 7.3: an event that was not told goes with the last of what it tells.
    fn settle(&mut self) {
        if self.fault_status() == 0 {
            self.fault_event.control &= !PENDING;
        }
    }

    /// What a dword of the registers reads as, and in which bits.
    fn dword(&self, at: u64) -> Option<(u32, u32)> {
        let low = |wide: u64| wide as u32;
        let high = |wide: u64| (wide >> 32) as u32;
        let all = |value| Some((value, !0));
        let known = |value| (!self.is_lost).then_some((value, !0));
        match at {
            0x18 => all(0),
            0x1c => all(self.status),
            0x20 => Some((low(self.root), !0xfff)),
            0x24 => Some((high(self.root), 0xf_ffff)),
            // Done as soon as they are asked for.
            0x2c | 0xfc => Some((0, 1 << 31)),
            0x34 => known(self.fault_status()),
            0x38 | 0xa0 if self.is_lost => None,
            0x38 | 0x3c | 0x40 => all(self.fault_event.read(at - 0x38)),
            0x80 => known(low(self.head)),
            0x88 => all(low(self.tail)),
            0x90 => Some((low(self.queue), 0xffff_f007)),
            0x94 => Some((high(self.queue), 0xf_ffff)),
            0x9c => known(self.completed.into()),
            0xa0 | 0xa4 | 0xa8 => all(self.completion.read(at - 0xa0)),
            0xb8 if self.remaps => Some((low(self.interrupts), 0xffff_f00f)),
            0xbc if self.remaps => Some((high(self.interrupts), 0xf_ffff)),
            0x220..0x230 if !self.is_lost => self.fault_dword(at - 0x220),
            _ => None,
        }
    }

    /// 11.4.7.6: page, requester, reason, whether it was a read, and that it is a fault.
    fn fault_dword(&self, at: u64) -> Option<(u32, u32)> {
        let Some(fault) = self.fault else { return (at == 12).then_some((0, 1 << 31)) };
        match at {
            0 => Some((fault.info as u32, 0xffff_f000)),
            4 => Some(((fault.info >> 32) as u32, !0)),
            8 => Some((fault.requester.into(), 0xffff)),
            _ => {
                let read = fault.is_read.map_or((0, 0), |read| (u32::from(read) << 30, 1 << 30));
                let reason = fault.reason.map_or((0, 0), |reason| (u32::from(reason), 0xff));
                Some((1 << 31 | read.0 | reason.0, 1 << 31 | read.1 | reason.1))
            }
        }
    }

    fn read(&mut self, at: u64, got: u32) -> Result<(), String> {
        if let Some(place) = [0, 8, 0xc, 0x10, 0x14].iter().position(|&constant| constant == at) {
            self.capability(at, got)?;
            let before = *self.constant[place].get_or_insert(got);
            return match before == got {
                true => Ok(()),
                false => Err(format!("register {at:#x} is {got:#x}, and was {before:#x}")),
            };
        }
        match self.dword(at) {
            Some((is, mask)) if (is ^ got) & mask != 0 => {
                Err(format!("register {at:#x} is {is:#x} in {mask:#x}, not {got:#x}"))
            }
            _ => Ok(()),
        }
    }

    /// What follows from what the unit does: 39 and 48 bits, pages of 2 MiB and 1 GiB, one fault record at
    /// 0x220 (11.4.2); a queue, interrupts, pass-through, IOTLB registers at 0xf0 (11.4.3).
    fn capability(&self, at: u64, got: u32) -> Result<(), String> {
        let (is, mask) = match at {
            8 => (0b00110 << 8 | 0x22 << 24, 0x1f << 8 | 0xff << 24),
            0xc => (0b0011 << 2, 0x3 | 0xf << 2 | 0xff << 8),
            0x10 => (
                1 << 1 | u32::from(self.remaps) << 3 | 1 << 6 | 0xf << 8,
                1 << 1 | 1 << 3 | 1 << 6 | 0x3ff << 8,
            ),
            _ => return Ok(()),
        };
        match (is ^ got) & mask {
            0 => Ok(()),
            _ => Err(format!("register {at:#x} is {is:#x} in {mask:#x}, not {got:#x}")),
        }
    }

    fn write(&mut self, seen: &Seen<'_>, at: u64, value: u32) -> Result<(), String> {
        let half = |old: u64| {
            let shift = 8 * (at & 4);
            old & !(0xffff_ffff << shift) | u64::from(value) << shift
        };
        match at {
            0x18 => self.command(value),
            0x20 | 0x24 => self.root = half(self.root),
            0x34 => {
                self.overflow &= value & 1 == 0;
                self.queue_error &= value & 1 << 4 == 0;
                self.settle();
                return self.run(seen);
            }
            // What is pending in them is not known.
            0x38 | 0xa0 if self.is_lost => {}
            0x38 | 0x3c | 0x40 => return self.fault_event.write(seen, at - 0x38, value),
            0x88 => {
                self.tail = u64::from(value) & 0x7_fff0;
                return self.run(seen);
            }
            0x90 | 0x94 => self.queue = half(self.queue),
            0x9c => {
                self.completed &= value & 1 == 0;
                if !self.completed {
                    self.completion.control &= !PENDING;
                }
            }
            0xa0 | 0xa4 | 0xa8 => return self.completion.write(seen, at - 0xa0, value),
            0xb8 | 0xbc => self.interrupts = half(self.interrupts),
            0x22c if value >> 31 == 1 => {
                self.fault = None;
                self.settle();
            }
            _ => {}
        }
        Ok(())
    }

    /// 11.4.4: what is on while the command has it, and tables that are set once.
    fn command(&mut self, value: u32) {
        let remapping = if self.remaps { REMAPS | COMPATIBLE } else { 0 };
        let levels = TRANSLATES | QUEUES | remapping;
        self.status = self.status & !levels | value & levels;
        if value & ROOT != 0 {
            self.root_set = self.root & !0xfff;
            self.status |= ROOT;
        }
        if value & TABLE != 0 && self.remaps {
            self.interrupts_set = self.interrupts;
            self.status |= TABLE;
        }
        if !self.is(QUEUES) {
            self.head = 0;
        }
        // Enabled with something in it.
        self.is_lost |= self.is(QUEUES) && self.head != self.tail && !self.queue_error;
    }

    /// 6.5.2: the queue is worked off, up to its tail or to a descriptor that is wrong.
    fn run(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.ran = true;
        let len = 4096u64 << (self.queue & 7);
        let base = self.queue & !0xfff;
        let works = self.is(QUEUES) && !self.queue_error && self.head != self.tail;
        let writes = seen.touched.iter().filter(|touch| touch.is_write);
        let over = |touch: &Touch| {
            touch.addr.wrapping_sub(base) < len || base.wrapping_sub(touch.addr) < touch.len
        };
        // What was written over a descriptor cannot be seen any more.
        self.is_lost |= works
            && (seen.is_racing || self.head.max(self.tail) >= len || writes.clone().any(over));
        if self.is_lost {
            return Ok(());
        }
        let mut writes = writes.peekable();
        while self.is(QUEUES) && !self.queue_error && self.head != self.tail {
            let mut bytes = [0; 16];
            let there = seen.machine.ram().peek(base.saturating_add(self.head), &mut bytes).is_ok();
            let descriptor = u128::from_le_bytes(bytes);
            match (there, descriptor as u64 & 0xf) {
                (true, 1 | 2 | 4) => {}
                (true, 5) => self.wait(seen, descriptor, &mut writes)?,
                (true, 3 | 6..=9) => {
                    self.is_lost = true;
                    return Ok(());
                }
                _ => {
                    let before = self.fault_status();
                    self.queue_error = true;
                    if before == 0 {
                        self.fault_event.raise(seen)?;
                    }
                    break;
                }
            }
            self.head = (self.head + 16) % len;
        }
        match writes.next() {
            Some(Touch { addr, len, .. }) => {
                Err(format!("it writes {len} bytes to {addr:#x}, and no descriptor says so"))
            }
            None => Ok(()),
        }
    }

    /// 6.5.2.8: a dword is written, an interrupt sent.
    fn wait<'t>(
        &mut self,
        seen: &Seen<'_>,
        descriptor: u128,
        writes: &mut impl Iterator<Item = &'t Touch>,
    ) -> Result<(), String> {
        let (low, at) = (descriptor as u64, (descriptor >> 64) as u64 & !3);
        if low & 1 << 5 != 0 && seen.machine.ram().contains(at, 4) {
            match writes.next() {
                Some(touch) if touch.addr == at && touch.len == 4 => {}
                other => return Err(format!("a status is written to {at:#x}, not {other:?}")),
            }
        }
        if low & 1 << 4 != 0 && !self.completed {
            self.completed = true;
            return self.completion.raise(seen);
        }
        Ok(())
    }

    fn access(&mut self, seen: &Seen<'_>, access: &Access) -> Result<(), String> {
        let Access { space, addr, size, dir } = *access;
        let start = addr.wrapping_sub(BASE);
        let is_its = space == Space::Mmio && start < 0x1000;
        if !is_its || !matches!(size, Size::B4 | Size::B8) || start % size.bytes() != 0 {
            return Ok(());
        }
        for dword in 0..size.bytes() / 4 {
            let (at, part) = (start + 4 * dword, |value: u64| (value >> (32 * dword)) as u32);
            match dir {
                Dir::Write(value) => self.write(seen, at, part(value))?,
                Dir::Read => seen.value.map_or(Ok(()), |value| self.read(at, part(value)))?,
            }
        }
        Ok(())
    }
}

impl Model for Unit {
    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let mut unit = self.borrow_mut();
        unit.ran = false;
        match (seen.op, &seen.access) {
            (Op::Reset, _) => *unit = Vtd { constant: unit.constant, ..Vtd::new(unit.remaps) },
            (_, Some(access)) => unit.access(seen, access)?,
            _ => {}
        }
        Ok(())
    }

    fn offers(&self, _: &Touch) -> bool {
        // They were looked at one by one, unless what they are is left open.
        self.borrow().ran
    }
}
