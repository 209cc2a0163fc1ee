//! One device on its own: its RAM, its clock, and a trace of all that can be seen of it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use super::shortcuts::Shortcut;
use super::{Law, Violation};
use crate::access::{IoError, Size};
use crate::device::{Action, Actions, At, Clock, Device, Env, Nanos, Region};
use crate::ram::{Backing, GuestRam, MIN_SIZE, PAGE};

/// The latest time that a session goes to: 292 years, so that a deadline beyond it can be told.
pub const LAST: Nanos = 1 << 63;

/// A clock that stands still until it is set.
#[derive(Debug, Default)]
pub struct TestClock(AtomicU64);

impl TestClock {
    /// Sets the time.
    pub fn set(&self, now: Nanos) {
        self.0.store(now, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Nanos {
        self.0.load(Ordering::Relaxed)
    }
}

/// One thing that happens to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The guest reads.
    Read {
        /// Index of the region.
        region: u8,
        /// Offset in it; may be beyond its end.
        offset: u64,
        /// Width.
        size: Size,
    },
    /// The guest writes.
    Write {
        /// Index of the region.
        region: u8,
        /// Offset in it; may be beyond its end.
        offset: u64,
        /// Width.
        size: Size,
        /// What; cut to the width.
        value: u64,
    },
    /// The host has bytes for the device's port.
    Input(Vec<u8>),
    /// The guest writes to its memory. Nothing happens where there is no RAM.
    Ram {
        /// Guest-physical address.
        addr: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Time passes and the device is not told: the board is late.
    Pass(Nanos),
    /// Time passes and the device is told.
    Advance(Nanos),
    /// Time goes on to the device's deadline, if it has one, and the device is told.
    ToDeadline,
    /// The device is saved, and a new one restored in its place.
    SaveRestore,
    /// The board's reset line.
    Reset,
}

/// An operation in the making: what a property test or a fuzzer draws, whatever the device.
pub type RawOp = (u8, u8, u16, u64);

impl Op {
    /// A read of region 0.
    pub const fn read(offset: u64, size: Size) -> Op {
        Op::Read { region: 0, offset, size }
    }

    /// A write to region 0.
    pub const fn write(offset: u64, size: Size, value: u64) -> Op {
        Op::Write { region: 0, offset, size, value }
    }

    /// Makes an operation that suits a device with these regions from any numbers. Most are
    /// accesses that a bus would let through; some have any width, or an offset beyond the region.
    pub fn from_raw(regions: &[Region], (kind, pick, offset, value): RawOp) -> Op {
        let value = match pick >> 6 {
            0 | 1 => value,
            2 => value & 0xff,
            _ => 1 << (value % 64),
        };
        let odd = kind >> 4;
        let access = |write: bool| {
            let Some(region) =
                (!regions.is_empty()).then(|| usize::from(pick & 15) % regions.len())
            else {
                return Op::Advance(value);
            };
            let Region { len, widest, .. } = regions[region];
            let region = region as u8;
            let any = Size::ALL[usize::from(pick >> 4 & 3)];
            let offset = u64::from(offset);
            let (offset, size) = match odd {
                // Aligned, and as wide as fits.
                0..=6 => {
                    let offset = offset % len;
                    (offset, Size::widest(offset, len - offset).min(widest))
                }
                7..=10 => (offset % len, Size::B1),
                11 | 12 => (offset % len, any),
                13 => (len - 1 - offset % len, any),
                14 => (len.saturating_add(offset), any),
                _ => (u64::MAX - offset, any),
            };
            if write {
                Op::Write { region, offset, size, value: value & size.mask() }
            } else {
                Op::Read { region, offset, size }
            }
        };
        let bytes = &value.to_le_bytes()[..1 + usize::from(odd & 7)];
        // Times of all magnitudes, from a nanosecond to centuries.
        let time = value >> (offset % 64);
        match kind & 15 {
            0..=4 => access(false),
            5..=9 => access(true),
            10 => Op::Input(bytes.repeat(1 + usize::from(offset & 7))),
            11 => Op::Advance(time),
            12 => Op::ToDeadline,
            13 => Op::Pass(time),
            14 => Op::Ram { addr: u64::from(offset) << (pick & 7), bytes: bytes.to_vec() },
            _ if odd < 10 => Op::SaveRestore,
            _ => Op::Reset,
        }
    }

    /// Operations from the bytes of a fuzzer's input, 12 to an operation; a rest is dropped.
    pub fn from_bytes(regions: &[Region], bytes: &[u8]) -> Vec<Op> {
        let raw = |b: &[u8; 12]| {
            let &[kind, pick, o0, o1, v0, v1, v2, v3, v4, v5, v6, v7] = b;
            let value = u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]);
            Op::from_raw(regions, (kind, pick, u16::from_le_bytes([o0, o1]), value))
        };
        bytes.as_chunks().0.iter().map(raw).collect()
    }
}

/// What an operation gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A read's value, cut to its width.
    Read(Result<u64, IoError>),
    /// Whether a write was taken.
    Wrote(Result<(), IoError>),
    /// How many bytes of input were taken.
    Took(usize),
    /// Nothing to give.
    Done,
}

/// All that the board can see of a device after an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The operation's own result.
    pub answer: Answer,
    /// What the device asked for.
    pub actions: Vec<Action>,
    /// Its interrupt line.
    pub irq: bool,
    /// Its deadline.
    pub deadline: Option<Nanos>,
    /// How much input it would take.
    pub room: usize,
    /// Pages of RAM that were written, each with a digest of its contents.
    pub ram: Vec<(u64, u64)>,
}

/// When a session puts a restored copy in the device's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restores {
    /// Never: [`Op::SaveRestore`] does nothing.
    Never,
    /// At each [`Op::SaveRestore`].
    Asked,
    /// After every operation.
    Always,
}

/// A device alone with its RAM and a clock, and the trace of what was done to it.
///
/// Laws that concern one operation are checked as it is applied: see [`Session::apply`].
#[derive(Debug)]
pub struct Session<D> {
    /// The device.
    pub device: D,
    /// One step for each operation.
    pub trace: Vec<Step>,
    make: fn() -> D,
    restores: Restores,
    /// Tell the device the time before each operation.
    eager: bool,
    now: Nanos,
    clock: TestClock,
    ram: GuestRam,
    /// Every page that was written, with its contents when last looked at.
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl<D: Device> Session<D> {
    /// A session of `device` at time 0; `make` gives new devices to restore into.
    pub fn new(device: D, make: fn() -> D) -> Session<D> {
        Session {
            device,
            trace: Vec::new(),
            make,
            restores: Restores::Asked,
            eager: false,
            now: 0,
            clock: TestClock::default(),
            ram: GuestRam::new(MIN_SIZE, Backing::Auto).expect("the host has 2 MiB"),
            pages: BTreeMap::new(),
        }
    }

    /// When a restored copy takes the device's place; [`Restores::Asked`] if nothing is said.
    pub fn restores(mut self, when: Restores) -> Session<D> {
        self.restores = when;
        self
    }

    /// Tells the device the time before each operation, as a board that is never late.
    pub fn eager(mut self) -> Session<D> {
        self.eager = true;
        self
    }

    /// Another device, where this session's device is now: the same time and memory.
    pub fn beside(&self, device: D) -> Session<D> {
        let mut other = Session::new(device, self.make);
        other.restores = self.restores;
        other.eager = self.eager;
        other.go_to(self.now);
        for (&page, bytes) in &self.pages {
            other.ram.write(page, bytes).expect("both have the same RAM");
        }
        other.look_at_ram();
        other
    }

    /// The time.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn go_to(&mut self, time: Nanos) {
        self.now = time.min(LAST);
        self.clock.set(self.now);
    }

    fn look_at_ram(&mut self) -> Vec<(u64, u64)> {
        let (ram, pages) = (&self.ram, &mut self.pages);
        let mut seen = Vec::new();
        ram.take_dirty(|page| {
            let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
            ram.read(page, &mut bytes).expect("a dirty page is RAM");
            let mut digest = DefaultHasher::new();
            bytes.hash(&mut digest);
            seen.push((page, digest.finish()));
            pages.insert(page, bytes);
        });
        seen
    }

    /// Calls `f` with the device and what it may see.
    pub fn call<T>(
        &mut self,
        f: impl FnOnce(&mut D, &mut Env<'_>) -> T,
    ) -> Result<(T, Vec<Action>), Violation> {
        let mut actions = Actions::default();
        let value = f(&mut self.device, &mut Env::new(&self.clock, &self.ram, &mut actions));
        if actions.lost > 0 {
            return Err(Law::Actions.broken(format!(
                "{} actions lost: more than {} in one call",
                actions.lost,
                Actions::MAX
            )));
        }
        Ok((value, actions.drain().collect()))
    }

    fn advance(&mut self) -> Result<Vec<Action>, Violation> {
        let (before, due) = (self.device.irq(), self.device.deadline());
        let ((), actions) = self.call(|d, env| d.advance(env))?;
        let (after, now) = (self.device.irq(), self.now);
        if before != after && due.is_none_or(|due| due > now) {
            return Err(Law::Deadline.broken(format!(
                "irq() went from {before} to {after} at {now} ns, but deadline() said {due:?}"
            )));
        }
        match self.device.deadline() {
            Some(next) if next <= now && now < LAST => Err(Law::Deadline
                .broken(format!("told that it is {now} ns, the device still waits for {next} ns"))),
            _ => Ok(actions),
        }
    }

    fn round_trip(&mut self) -> Result<(), Violation> {
        let state = self.device.save();
        let mut copy = (self.make)();
        copy.restore(&state).map_err(|e| {
            Law::Restore.broken(format!("what the device saved is refused by a new one: {e}"))
        })?;
        let view = |d: &D| (d.irq(), d.deadline(), d.input_room());
        if view(&copy) != view(&self.device) {
            return Err(Law::Lines.broken(format!(
                "irq, deadline, room of a restored device {:?}; of the one that was saved {:?}",
                view(&copy),
                view(&self.device)
            )));
        }
        if copy.save() != state {
            return Err(Law::Restore.broken(format!(
                "a restored device saves {:02x?}, it was given {state:02x?}",
                copy.save()
            )));
        }
        self.device = copy;
        Ok(())
    }

    /// Applies one operation and records its step.
    ///
    /// # Errors
    /// When the device breaks a law that one operation shows: it loses actions, takes an access
    /// beyond its region, takes other than [`Device::input_room`] bytes of input, changes its
    /// interrupt line before its deadline or without a call, keeps a deadline that is over, or is
    /// not what it was after being restored.
    pub fn apply(&mut self, op: &Op) -> Result<(), Violation> {
        let mut actions = Vec::new();
        if self.eager {
            actions = self.advance()?;
        }
        let shortcut = Shortcut::of(&self.device, self.make, op);
        let (answer, more) = self.perform(op)?;
        shortcut.check(&self.device, &answer, &more)?;
        actions.extend(more);
        match self.restores {
            Restores::Always => self.round_trip()?,
            Restores::Asked if *op == Op::SaveRestore => self.round_trip()?,
            _ => {}
        }
        let (irq, deadline) = (self.device.irq(), self.device.deadline());
        if (irq, deadline) != (self.device.irq(), self.device.deadline()) {
            let what = "irq() or deadline() differs from one look to the next".to_owned();
            return Err(Law::Lines.broken(what));
        }
        let (room, ram) = (self.device.input_room(), self.look_at_ram());
        self.trace.push(Step { answer, actions, irq, deadline, room, ram });
        Ok(())
    }

    /// Applies one operation without looking at what else can be seen of the device.
    pub(super) fn perform(&mut self, op: &Op) -> Result<(Answer, Vec<Action>), Violation> {
        let beyond = |region: u8, offset: u64| {
            let region = self.device.regions().get(usize::from(region));
            region.is_none_or(|region| offset >= region.len)
        };
        match *op {
            Op::Read { region, offset, size } => {
                let beyond = beyond(region, offset);
                let (r, actions) = self.call(|d, env| d.read(env, At { region, offset }, size))?;
                if beyond && r.is_ok() {
                    return Err(Law::Bounds.broken(format!("{op:?} beyond the region: {r:?}")));
                }
                Ok((Answer::Read(r.map(|value| value & size.mask())), actions))
            }
            Op::Write { region, offset, size, value } => {
                let beyond = beyond(region, offset);
                let value = value & size.mask();
                let (r, actions) =
                    self.call(|d, env| d.write(env, At { region, offset }, size, value))?;
                if beyond && r.is_ok() {
                    return Err(Law::Bounds.broken(format!("{op:?} beyond the region is taken")));
                }
                Ok((Answer::Wrote(r), actions))
            }
            Op::Input(ref bytes) => {
                let room = self.device.input_room();
                let (took, actions) = self.call(|d, env| d.input(env, bytes))?;
                if took != room.min(bytes.len()) {
                    let len = bytes.len();
                    return Err(Law::Input.broken(format!(
                        "input_room() said {room}, but of {len} bytes {took} were taken"
                    )));
                }
                Ok((Answer::Took(took), actions))
            }
            Op::Ram { addr, ref bytes } => {
                // A guest's write where there is no RAM is not this device's business.
                let _ = self.ram.write(addr, bytes);
                Ok((Answer::Done, Vec::new()))
            }
            Op::Pass(ns) => {
                let irq = self.device.irq();
                self.go_to(self.now.saturating_add(ns));
                if self.device.irq() != irq {
                    let what = format!("irq() left {irq} by itself as time passed");
                    return Err(Law::Lines.broken(what));
                }
                let actions = if self.eager { self.advance()? } else { Vec::new() };
                Ok((Answer::Done, actions))
            }
            Op::Advance(ns) => {
                self.go_to(self.now.saturating_add(ns));
                Ok((Answer::Done, self.advance()?))
            }
            Op::ToDeadline => {
                self.go_to(self.device.deadline().unwrap_or(0).max(self.now));
                Ok((Answer::Done, self.advance()?))
            }
            Op::SaveRestore => Ok((Answer::Done, Vec::new())),
            Op::Reset => Ok((Answer::Done, self.call(|d, env| d.reset(env))?.1)),
        }
    }

    /// Applies operations, one after the other.
    ///
    /// # Errors
    /// As [`Session::apply`]; the violation tells which operation it was.
    pub fn run(&mut self, ops: &[Op]) -> Result<&mut Session<D>, Violation> {
        for (i, op) in ops.iter().enumerate() {
            self.apply(op).map_err(|v| v.at(format!("operation {i}, {op:?}")))?;
        }
        Ok(self)
    }
}
