//! A board that operations are played on, one after the other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Answer, BoardSpec, Effect, Op};
use crate::access::IoError;
use crate::device::Nanos;
use crate::machine::{
    Backplane, BoardError, Context, Machine, MachineState, ManualClock, PcConfig, populate,
};
use crate::ram::{Backing, GuestRam, OutOfRam, PAGE, RamError, RamTap};
use crate::state;

/// Builds a board: puts what it has on one without devices.
pub type Build<'a> = &'a dyn Fn(&BoardSpec, &mut Machine) -> Result<(), BuildError>;

/// The most memory of a script's board. The pages that are dirty are kept track of, one bit each,
/// so that a script alone could ask for any amount of the host's memory.
const MAX_MEMORY: u64 = 1 << 40;

/// Why a script's board cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// This VMM has no such kind of machine.
    #[error("this VMM has no machine of kind `{0}`; it has `pc`")]
    Kind(String),
    /// More memory than a replay keeps track of.
    #[error(
        "the script's board has {0} bytes of memory, more than {MAX_MEMORY}; record it with less"
    )]
    Memory(u64),
    /// The host gives no such memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The board cannot be put together.
    #[error(transparent)]
    Board(#[from] BoardError),
}

/// The boards that the `vmm` program has: a [`Build`].
///
/// # Errors
/// When there is no such kind, or the board cannot be put together.
pub fn board(spec: &BoardSpec, machine: &mut Machine) -> Result<(), BuildError> {
    match &*spec.kind {
        "pc" => {
            let config = PcConfig {
                cpus: spec.cpus,
                unix_time: spec.unix_time,
                pci: spec.pci.clone(),
                ioapic: spec.ioapic,
                iommu: spec.iommu,
            };
            Ok(populate(machine, &config)?)
        }
        kind => Err(BuildError::Kind(kind.to_owned())),
    }
}

/// How one operation ended, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The answer.
    pub answer: Answer,
    /// What reached the backplane, in order.
    pub effects: Vec<Effect>,
}

/// The board after the last operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// State of every device, and the time.
    pub state: MachineState,
    /// Each page that devices or `ram` operations wrote, and a hash of what it holds.
    pub ram: Vec<(u64, u64)>,
    /// Accesses that no device took, by [`IoError`]'s place in [`IoError::ALL`].
    pub faults: [u64; IoError::ALL.len()],
    /// Actions that devices asked for beyond what one access may.
    pub lost_actions: u64,
}

/// The most accesses to memory, and the most effects, that one operation may have: far more than any sound
/// board comes to, and few enough to be kept.
const MOST: usize = 1 << 20;

/// What a [`Player`] panics with when an operation goes on and on: no board ends it otherwise, and what it
/// leads to is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("one operation has devices {0} more than {MOST} times")]
pub struct Endless(&'static str);

/// Keeps one more, if there is room for it.
fn keep<T>(all: &mut Vec<T>, one: T, what: &'static str) {
    if all.len() == MOST {
        // The device that does it is to be left, and it hears of nothing else.
        std::panic::panic_any(Endless(what));
    }
    all.push(one);
}

/// An access of a device to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Guest-physical address of the first byte.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether it was written.
    pub is_write: bool,
}

/// Memory that changes while a device reads it, as a script has it.
#[derive(Debug)]
struct LateRam {
    ram: GuestRam,
    late: Mutex<Late>,
    /// Something is touched, or to be changed: most operations do neither, and take no lock then.
    used: AtomicBool,
}

#[derive(Debug, Default)]
struct Late {
    /// Reads and writes by devices since the operation began.
    accesses: u32,
    /// What changes after how many of them.
    changes: Vec<(u32, u64, Vec<u8>)>,
    /// Where they went.
    touched: Vec<Touch>,
    /// Whether memory may have been written since its dirty pages were asked for, which allocates.
    wrote: bool,
}

impl LateRam {
    fn lock(&self) -> MutexGuard<'_, Late> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operation begins: its changes are those that stood before it.
    fn begin(&self, changes: Vec<(u32, u64, Vec<u8>)>) {
        if !self.used.load(Ordering::Relaxed) && changes.is_empty() {
            return;
        }
        self.used.store(!changes.is_empty(), Ordering::Relaxed);
        let mut late = self.lock();
        (late.accesses, late.changes) = (0, changes);
        late.touched.clear();
    }

    fn touch(&self, late: &mut Late, touch: Touch) {
        self.used.store(true, Ordering::Relaxed);
        late.accesses = late.accesses.saturating_add(1);
        keep(&mut late.touched, touch, "access memory");
    }

    /// Memory is written otherwise.
    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), OutOfRam> {
        self.lock().wrote = true;
        self.ram.write(addr, bytes)
    }

    /// Calls `f` with each page that was written since this was last asked.
    fn take_dirty(&self, f: impl FnMut(u64)) {
        if std::mem::take(&mut self.lock().wrote) {
            self.ram.take_dirty(f);
        }
    }

    /// Makes the changes that are due; whether there was one.
    fn make(&self, late: &mut Late) -> bool {
        let before = late.changes.len();
        let now = late.accesses;
        late.changes.retain(|(after, addr, bytes)| {
            if *after > now {
                return true;
            }
            // Whether it lies in RAM was looked at when the operation was read.
            let _ = self.ram.write(*addr, bytes);
            false
        });
        let made = late.changes.len() != before;
        late.wrote |= made;
        made
    }
}

impl RamTap for LateRam {
    fn read(&self, addr: u64, bytes: &mut [u8]) {
        let mut late = self.lock();
        if !late.changes.is_empty() && self.make(&mut late) {
            // The range was RAM a moment ago, and RAM does not go away.
            let _ = self.ram.read(addr, bytes);
        }
        self.touch(&mut late, Touch { addr, len: bytes.len() as u64, is_write: false });
    }

    fn wrote(&self, addr: u64, bytes: &[u8]) {
        let mut late = self.lock();
        late.wrote = true;
        self.touch(&mut late, Touch { addr, len: bytes.len() as u64, is_write: true });
    }
}

/// Keeps what reaches the backplane.
#[derive(Debug, Default)]
struct Sink(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    effects: Vec<Effect>,
    levels: BTreeMap<u32, bool>,
    awaited: BTreeMap<u32, (u64, u32)>,
    /// A board that is as new takes up a state: it tells levels and deadlines that are known.
    restoring: bool,
}

impl Kept {
    fn effect(&mut self, effect: Effect) {
        keep(&mut self.effects, effect, "tell the host something");
    }
}

impl Sink {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backplane for Sink {
    fn set_line(&self, gsi: u32, level: bool) {
        let mut kept = self.lock();
        let before = kept.levels.insert(gsi, level).unwrap_or(false);
        if !kept.restoring || before != level {
            kept.effect(Effect::Line { gsi, level });
        }
    }

    fn output(&self, device: &'static str, byte: u8) {
        self.lock().effect(Effect::Output { device: device.into(), byte });
    }

    fn remap_page(&self, gpa: u64) {
        self.lock().effect(Effect::Remap(gpa));
    }

    fn raise_sint(&self, vp: u32, sint: u8) {
        self.lock().effect(Effect::Sint { vp, sint });
    }

    fn watch_sint(&self, _: u32, _: u8) {}

    fn message(&self, address: u64, data: u32) {
        self.lock().effect(Effect::Message { address, data });
    }

    fn await_end(&self, pin: u32, message: Option<(u64, u32)>) {
        let mut kept = self.lock();
        let before = match message {
            Some(message) => kept.awaited.insert(pin, message),
            None => kept.awaited.remove(&pin),
        };
        if !kept.restoring || before != message {
            kept.effect(Effect::AwaitEnd { pin, message });
        }
    }

    fn deadline(&self, at: Nanos) {
        let mut kept = self.lock();
        if !kept.restoring {
            kept.effect(Effect::Deadline(at));
        }
    }
}

/// A number that another page has hardly ever: word by word, as a fuzzer asks for it often.
fn hash(page: &[u8; PAGE as usize]) -> u64 {
    let words = page.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    words.fold(0, |all: u64, word| {
        (all.rotate_left(23) ^ word ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xd6e8_feb8_6659_fd93)
    })
}

/// A board that operations are played on.
pub struct Player<'a> {
    build: Build<'a>,
    spec: BoardSpec,
    machine: Machine,
    /// What becomes the board when this one is saved.
    spare: Machine,
    cx: Context,
    /// Without the tap.
    ram: GuestRam,
    late: Arc<LateRam>,
    clock: Arc<ManualClock>,
    sink: Arc<Sink>,
    changes: Vec<(u32, u64, Vec<u8>)>,
    refusal: Option<String>,
    /// Pages that were told, and may hold something.
    told: Vec<u64>,
}

impl<'a> Player<'a> {
    /// A board as `spec` has it, just switched on.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn new(spec: &BoardSpec, build: Build<'a>) -> Result<Player<'a>, BuildError> {
        if spec.memory > MAX_MEMORY {
            return Err(BuildError::Memory(spec.memory));
        }
        let ram = GuestRam::new(spec.memory, Backing::Auto)?;
        let late = Arc::new(LateRam {
            ram: ram.clone(),
            late: Mutex::default(),
            used: AtomicBool::new(false),
        });
        let (clock, sink) = (Arc::new(ManualClock::default()), Arc::new(Sink::default()));
        let empty = || Machine::new(ram.with_tap(late.clone()), clock.clone(), sink.clone());
        let (mut machine, spare) = (empty(), empty());
        build(spec, &mut machine)?;
        let (spec, cx, told) = (spec.clone(), Context::new(), Vec::new());
        let (changes, refusal) = (Vec::new(), None);
        Ok(Player {
            build,
            spec,
            machine,
            spare,
            cx,
            ram,
            late,
            clock,
            sink,
            changes,
            refusal,
            told,
        })
    }

    /// The same board once more, just switched on: every device is a new one, memory is all zeros.
    /// Costs much less than a player.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn renew(&mut self) -> Result<(), BuildError> {
        let Player { ram, told, late, .. } = self;
        late.take_dirty(|addr| told.push(addr));
        if !told.is_empty() {
            for addr in told.drain(..) {
                // A page that was written is RAM.
                let _ = ram.write(addr, &[0; PAGE as usize]);
            }
            ram.take_dirty(|_| {});
        }
        self.clock.set(0);
        self.cx.clear();
        self.changes.clear();
        self.refusal = None;
        self.late.begin(Vec::new());
        *self.sink.lock() = Kept::default();
        self.machine.clear();
        (self.build)(&self.spec, &mut self.machine)
    }

    /// The board.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What it was built from.
    pub fn spec(&self) -> &BoardSpec {
        &self.spec
    }

    /// What the exits were handed over with.
    pub fn context(&self) -> &Context {
        &self.cx
    }

    /// Why the last operation that was answered [`Answer::Refused`] was.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Asks `f` about what devices read and wrote in memory during the last operation that was no `ram`,
    /// first one first. A device must not be called from within `f`.
    pub fn touched<T>(&self, f: impl FnOnce(&[Touch]) -> T) -> T {
        match self.late.used.load(Ordering::Relaxed) {
            true => f(&self.late.lock().touched),
            false => f(&[]),
        }
    }

    /// Does one operation.
    pub fn step(&mut self, op: &Op) -> Outcome {
        if !matches!(op, Op::Ram { .. }) {
            self.late.begin(std::mem::take(&mut self.changes));
        }
        let answer = self.answer(op).unwrap_or_else(|refusal| {
            self.refusal = Some(refusal);
            Answer::Refused
        });
        let effects = std::mem::take(&mut self.sink.lock().effects);
        Outcome { answer, effects }
    }

    fn answer(&mut self, op: &Op) -> Result<Answer, String> {
        match op {
            Op::Exit { exit, .. } => return Ok(self.machine.handle(&mut self.cx, exit).into()),
            Op::Ram { addr, bytes, after: 0 } => {
                self.late.write(*addr, bytes).map_err(|e| e.to_string())?;
            }
            Op::Ram { addr, bytes, after } => {
                if !self.ram.contains(*addr, bytes.len() as u64) {
                    return Err(format!("guest-physical {addr:#x} is not RAM"));
                }
                self.changes.push((*after, *addr, bytes.clone()));
            }
            Op::Input { device, bytes } => {
                let taken = self.machine.input(&mut self.cx, device, bytes);
                let taken = taken.ok_or_else(|| format!("this board has no device `{device}`"))?;
                return Ok(Answer::Value(taken as u64));
            }
            Op::Advance(by) => self.clock.advance(*by),
            Op::Timer => {
                let stop = self.machine.advance(&mut self.cx);
                return Ok(stop.map_or(Answer::Ok, Answer::Stop));
            }
            Op::SaveRestore => self.save_restore()?,
            Op::Reset => self.machine.reset(&mut self.cx),
        }
        Ok(Answer::Ok)
    }

    fn save_restore(&mut self) -> Result<(), String> {
        // Through bytes, as a snapshot goes.
        let bytes = state::encode(&self.machine.save());
        let state: MachineState = state::decode("machine", &bytes).map_err(|e| e.to_string())?;
        self.spare.clear();
        (self.build)(&self.spec, &mut self.spare).map_err(|e| e.to_string())?;
        self.sink.lock().restoring = true;
        let restored = self.spare.restore(&mut self.cx, &state);
        self.sink.lock().restoring = false;
        restored.map_err(|e| e.to_string())?;
        let again = self.spare.save();
        std::mem::swap(&mut self.machine, &mut self.spare);
        match state.devices.iter().zip(&again.devices).find(|(old, new)| old != new) {
            Some(((name, _), _)) => Err(format!("device `{name}` saves another state than it had")),
            None => Ok(()),
        }
    }

    /// The board as it is now; pages that were written are told once.
    pub fn end(&mut self) -> End {
        let mut ram = Vec::new();
        let mut page = [0; PAGE as usize];
        let Player { ram: memory, told, late, .. } = self;
        late.take_dirty(|addr| {
            told.push(addr);
            // A page that was written is RAM.
            let _ = memory.read(addr, &mut page);
            ram.push((addr, hash(&page)));
        });
        End {
            state: self.machine.save(),
            ram,
            faults: self.cx.faults,
            lost_actions: self.cx.lost_actions(),
        }
    }
}
