//! Writing down what happens to a board while a guest runs.
//!
//! A [`Recorder`] stands between the run loop and the board: whoever would call
//! [`Machine::handle`], [`Machine::advance`], [`Machine::input`] or [`Machine::reset`] calls the
//! recorder instead. It lets one call through at a time, so that the order in the file is the
//! order in which the board saw them, whichever vCPU made them. The board is built with the
//! recorder's clock, backplane and memory ([`Recorder::wrap`], [`Recorder::wrap_ram`]), so that the file also holds what
//! devices saw of time and memory, and what they did.
//!
//! Memory is compared with what a replay would hold there: only what the guest has changed since
//! a device last saw it is written down, before the operation that reads it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::text::{Printer, header};
use super::{Answer, BoardSpec, Effect, MAX_BYTES, Op, Step};
use crate::device::{Clock, Nanos};
use crate::exit::{Entry, Exit, Stop};
use crate::machine::{Backplane, Context, Machine, PcConfig};
use crate::ram::{GuestRam, PAGE, RamTap};

/// Why a recording is not complete.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be made.
    #[error("recording {file} cannot be created: {source}; choose another place for it")]
    Create {
        /// The file.
        file: String,
        /// What the host said.
        source: io::Error,
    },
    /// The file did not take everything.
    #[error(
        "recording {file} broke off after {steps} operations: {source}; make room, or choose \
         another place for it"
    )]
    Write {
        /// The file.
        file: String,
        /// Operations that were written before.
        steps: u64,
        /// What the host said.
        source: io::Error,
    },
    /// The board was driven by somebody else too.
    #[error(
        "recording {file} will not replay: {effects} effects came of calls that did not go \
         through the recorder; let it make every call of the board"
    )]
    Past {
        /// The file.
        file: String,
        /// How many reached the backplane.
        effects: u64,
    },
}

/// What the wrappers note while a call of the board is under way.
#[derive(Debug, Default)]
struct Call {
    active: bool,
    /// What the clock showed in this call.
    now: Option<Nanos>,
    /// `ram` operations that must precede it.
    ram: Vec<Op>,
    effects: Vec<Effect>,
    /// What devices have read and written in this call.
    touched: Vec<Range<u64>>,
    /// What a replay's memory holds, where that is known not to be zero.
    shadow: HashMap<u64, Box<[u8; PAGE as usize]>>,
    /// Effects outside any call.
    past: u64,
}

impl Call {
    fn effect(&mut self, effect: Effect) {
        if self.active {
            self.effects.push(effect);
        } else {
            self.past += 1;
        }
    }

    /// A device has read `bytes`, which lie in one page.
    fn read(&mut self, addr: u64, bytes: &[u8]) {
        let at = (addr % PAGE) as usize;
        let page = addr - at as u64;
        let known = self.shadow.get(&page).map_or(&ZEROES, |page| &**page);
        let known = &known[at..at + bytes.len()];
        let differs = |i: &usize| known[*i] != bytes[*i];
        let Some(first) = (0..bytes.len()).find(differs) else { return };
        let last = (0..bytes.len()).rfind(differs).unwrap_or(first);
        let run = addr + first as u64..addr + last as u64 + 1;
        let changed = &bytes[first..=last];
        // What this call has touched already has changed under its hands.
        let raced = self.touched.iter().any(|t| t.start < run.end && run.start < t.end);
        let after = if raced { u32::try_from(self.touched.len()).unwrap_or(u32::MAX) } else { 0 };
        self.ram.push(Op::Ram { addr: run.start, bytes: changed.to_vec(), after });
        self.page(page)[at + first..=at + last].copy_from_slice(changed);
    }

    fn page(&mut self, page: u64) -> &mut [u8; PAGE as usize] {
        self.shadow.entry(page).or_insert_with(|| Box::new(ZEROES))
    }
}

static ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];

/// The parts of `len` bytes at `addr` that lie in one page each: offsets.
fn pages(addr: u64, len: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let room = (PAGE - (addr + start as u64) % PAGE) as usize;
        let end = len.min(start + room);
        let part = start..end;
        start = end;
        (!part.is_empty()).then_some(part)
    })
}

#[derive(Debug, Default)]
struct Session(Mutex<Call>);

impl Session {
    fn lock(&self) -> MutexGuard<'_, Call> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RamTap for Session {
    fn read(&self, addr: u64, bytes: &mut [u8]) {
        let mut call = self.lock();
        if call.active {
            for part in pages(addr, bytes.len()) {
                call.read(addr + part.start as u64, &bytes[part]);
            }
            call.touched.push(addr..addr + bytes.len() as u64);
        }
    }

    fn wrote(&self, addr: u64, bytes: &[u8]) {
        let mut call = self.lock();
        if call.active {
            for part in pages(addr, bytes.len()) {
                let first = addr + part.start as u64;
                let at = (first % PAGE) as usize;
                call.page(first - at as u64)[at..at + part.len()].copy_from_slice(&bytes[part]);
            }
            call.touched.push(addr..addr + bytes.len() as u64);
        }
    }
}

/// A clock that shows one time throughout a call of the board, and notes it.
struct RecordingClock {
    inner: Arc<dyn Clock>,
    session: Arc<Session>,
}

impl Clock for RecordingClock {
    fn now(&self) -> Nanos {
        // Under the lock, so that a time read before a call cannot be taken for the call's.
        let mut call = self.session.lock();
        match call.now {
            Some(now) => now,
            None if call.active => *call.now.insert(self.inner.now()),
            None => self.inner.now(),
        }
    }
}

/// A backplane that notes what reaches the one behind it.
struct RecordingBackplane {
    inner: Arc<dyn Backplane>,
    session: Arc<Session>,
}

impl Backplane for RecordingBackplane {
    fn set_line(&self, gsi: u32, level: bool) {
        self.session.lock().effect(Effect::Line { gsi, level });
        self.inner.set_line(gsi, level);
    }

    fn output(&self, device: &'static str, byte: u8) {
        self.session.lock().effect(Effect::Output { device: device.into(), byte });
        self.inner.output(device, byte);
    }

    fn remap_page(&self, gpa: u64) {
        self.session.lock().effect(Effect::Remap(gpa));
        self.inner.remap_page(gpa);
    }

    fn raise_sint(&self, vp: u32, sint: u8) {
        self.session.lock().effect(Effect::Sint { vp, sint });
        self.inner.raise_sint(vp, sint);
    }

    // It tells of nothing that a guest could see.
    fn watch_sint(&self, vp: u32, sint: u8) {
        self.inner.watch_sint(vp, sint);
    }

    fn message(&self, address: u64, data: u32) {
        self.session.lock().effect(Effect::Message { address, data });
        self.inner.message(address, data);
    }

    fn await_end(&self, pin: u32, message: Option<(u64, u32)>) {
        self.session.lock().effect(Effect::AwaitEnd { pin, message });
        self.inner.await_end(pin, message);
    }

    fn deadline(&self, at: Nanos) {
        self.session.lock().effect(Effect::Deadline(at));
        self.inner.deadline(at);
    }
}

/// Where the script goes.
struct Out {
    writer: Box<dyn Write + Send>,
    error: Option<io::Error>,
    printer: Printer,
    text: String,
    /// What a replay's clock shows.
    now: Nanos,
    steps: u64,
}

impl Out {
    fn write(&mut self, step: &Step) {
        self.text.clear();
        self.printer.step(step, &mut self.text);
        self.flush_text();
        self.steps += u64::from(self.error.is_none());
    }

    /// After the first error nothing is written: what follows would not replay.
    fn flush_text(&mut self) {
        if self.error.is_none() {
            self.error = self.writer.write_all(self.text.as_bytes()).err();
        }
    }
}

/// Records what happens to one board. Shared by reference among the threads that drive it.
pub struct Recorder {
    file: String,
    session: Arc<Session>,
    out: Mutex<Out>,
}

impl Recorder {
    /// Records a PC with this configuration and memory into a file at `path`, which is
    /// overwritten.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path, config: &PcConfig, ram: &GuestRam) -> Result<Recorder, RecordError> {
        let name = path.display().to_string();
        let PcConfig { cpus, unix_time, pci, ioapic, iommu } = config.clone();
        let (kind, memory) = ("pc".into(), ram.size());
        let board = BoardSpec { kind, memory, cpus, unix_time, pci, ioapic, iommu };
        match File::create(path) {
            Ok(file) => Ok(Recorder::new(name, Box::new(BufWriter::new(file)), &board)),
            Err(source) => Err(RecordError::Create { file: name, source }),
        }
    }

    /// Records into `writer`; `file` is what errors call it. An error of the writer comes up in
    /// [`Recorder::finish`].
    pub fn new(file: String, writer: Box<dyn Write + Send>, board: &BoardSpec) -> Recorder {
        let (printer, text) = (Printer::default(), header(board, true));
        let mut out = Out { writer, error: None, printer, text, now: 0, steps: 0 };
        out.flush_text();
        Recorder { file, session: Arc::default(), out: Mutex::new(out) }
    }

    /// The clock and the backplane that the board must be built with, in place of these.
    pub fn wrap(
        &self,
        clock: Arc<dyn Clock>,
        backplane: Arc<dyn Backplane>,
    ) -> (Arc<dyn Clock>, Arc<dyn Backplane>) {
        let session = || self.session.clone();
        (
            Arc::new(RecordingClock { inner: clock, session: session() }),
            Arc::new(RecordingBackplane { inner: backplane, session: session() }),
        )
    }

    /// The memory that the board must be built with, in place of this. Boot code may keep writing
    /// through the handle that it has.
    pub fn wrap_ram(&self, ram: &GuestRam) -> GuestRam {
        ram.with_tap(self.session.clone())
    }

    /// [`Machine::handle`], written down as `vcpu`'s.
    pub fn handle(&self, machine: &Machine, cx: &mut Context, vcpu: usize, exit: &Exit) -> Entry {
        // The number of vCPUs is a u16 too.
        let op = Op::Exit { cpu: vcpu as u16, exit: *exit };
        self.call(op, || machine.handle(cx, exit), |&entry| entry.into())
    }

    /// [`Machine::advance`], written down.
    pub fn advance(&self, machine: &Machine, cx: &mut Context) -> Option<Stop> {
        let answer = |stop: &Option<Stop>| stop.map_or(Answer::Ok, Answer::Stop);
        self.call(Op::Timer, || machine.advance(cx), answer)
    }

    /// [`Machine::input`], written down. At most [`MAX_BYTES`] are offered at once.
    pub fn input(
        &self,
        machine: &Machine,
        cx: &mut Context,
        device: &str,
        bytes: &[u8],
    ) -> Option<usize> {
        let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
        let op = Op::Input { device: device.to_owned().into(), bytes: bytes.to_vec() };
        let answer =
            |taken: &Option<usize>| taken.map_or(Answer::Refused, |n| Answer::Value(n as u64));
        self.call(op, || machine.input(cx, device, bytes), answer)
    }

    /// [`Machine::reset`], written down.
    pub fn reset(&self, machine: &Machine, cx: &mut Context) {
        self.call(Op::Reset, || machine.reset(cx), |()| Answer::Ok);
    }

    /// Makes one call of the board, and writes what came before it, it, and what came of it.
    fn call<T>(&self, op: Op, call: impl FnOnce() -> T, answer: impl FnOnce(&T) -> Answer) -> T {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut call = self.session.lock();
            // A call that panicked has left its notes.
            let (shadow, past) = (std::mem::take(&mut call.shadow), call.past);
            *call = Call { active: true, shadow, past, ..Call::default() };
        }
        let result = call();
        let (now, ram, effects) = {
            let mut call = self.session.lock();
            call.active = false;
            (call.now.take(), std::mem::take(&mut call.ram), std::mem::take(&mut call.effects))
        };
        let passed = now.and_then(|now| now.checked_sub(out.now)).filter(|&by| by > 0);
        if let Some(by) = passed {
            out.now += by;
            out.write(&Step::new(Op::Advance(by)));
        }
        for op in ram {
            out.write(&Step::new(op));
        }
        out.write(&Step { op, expect: Some(answer(&result)), effects });
        result
    }

    /// Notes how the VM ended, which the board need not know of, and writes what is still
    /// buffered. Returns how many operations were recorded.
    ///
    /// # Errors
    /// When the recording is not complete.
    pub fn finish(&self, end: Option<Stop>) -> Result<u64, RecordError> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stop) = end {
            out.text = format!("# end: {stop}\n");
            out.flush_text();
        }
        let file = self.file.clone();
        let steps = out.steps;
        if out.error.is_none() {
            out.error = out.writer.flush().err();
        }
        if let Some(e) = &out.error {
            // A copy: the error stays, so that nothing is written after the gap.
            let source = io::Error::new(e.kind(), e.to_string());
            return Err(RecordError::Write { file, steps, source });
        }
        match self.session.lock().past {
            0 => Ok(steps),
            effects => Err(RecordError::Past { file, effects }),
        }
    }
}
