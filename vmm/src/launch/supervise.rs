//! The thread that waits for the host while the vCPUs run: output, input, deadlines, the user.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::serial::{Console, Left};
use super::{Driver, LaunchError, Options};
use crate::exit::Stop;
use crate::host::events::{EndSignals, Event, Wake, wait};
use crate::host::memory;
use crate::hv::Kick;
use crate::hv::kvm::Sints;
use crate::machine::Context;
use crate::run::{Control, Ended};

/// The device that input goes to.
const COM1: &str = "com1";
/// While output flows, how often it is looked for: the vCPU then need not wake anybody.
const OUTPUT_POLL: Duration = Duration::from_millis(1);
/// How many looks without output before the producer is asked to wake the thread again.
const OUTPUT_QUIET: u32 = 20;
/// How long a UART without room is left alone before input is offered again.
const INPUT_RETRY: Duration = Duration::from_millis(2);
/// How long without an exit before the vCPUs are asked whether anything could wake them.
const PROBE_FIRST: Duration = Duration::from_millis(100);
/// The longest time between two such questions.
const PROBE_LAST: Duration = Duration::from_secs(2);
/// How long a start takes at most. A guest that ends before leaves nothing behind in any case.
const START: Duration = Duration::from_millis(100);
/// Ctrl-A, the escape on a terminal.
const ESCAPE: u8 = 1;

/// Who wakes the thread.
#[derive(Clone, Copy)]
pub(super) struct Waits<'a> {
    /// vCPUs and devices.
    pub(super) wake: &'a Wake,
    /// The guest, done with a message.
    pub(super) sints: &'a Sints,
}

/// Runs until the VM ends, and says how.
pub(super) fn supervise<K: Kick>(
    options: &Options,
    driver: &Driver<'_>,
    control: &Control<K>,
    console: &Console,
    waits: Waits<'_>,
    signals: &EndSignals,
) -> Result<Ended, LaunchError> {
    let result = Supervisor {
        driver,
        control,
        console,
        cx: Context::new(),
        signals,
        deadline: options.timeout.map(|t| Instant::now() + t),
        keep_halted: options.keep_halted,
        probe: Probe::new(),
        settles: Some(Instant::now() + START),
        quiet: OUTPUT_QUIET,
        left: Left::Nothing,
        input: Input { open: true, waiting: Vec::new(), escaped: false },
    }
    .run(waits);
    if result.is_err() {
        // Whatever failed here must not leave the vCPUs running.
        control.end(None, Stop::Interrupted);
    }
    // What there is goes out before the queue swallows what it has no room for; the vCPUs are on
    // their way out and wait for nobody.
    let drained = console.drain();
    if let Some(queue) = console.queue() {
        queue.close();
    }
    result.and_then(|ended| drained.map(|_| ended))
}

struct Supervisor<'a, K> {
    driver: &'a Driver<'a>,
    control: &'a Control<K>,
    console: &'a Console,
    cx: Context,
    signals: &'a EndSignals,
    deadline: Option<Instant>,
    keep_halted: bool,
    probe: Probe,
    /// When what only the start needed is given back.
    settles: Option<Instant>,
    /// Looks for output in a row that found none.
    quiet: u32,
    /// What output is still to be written. While there is some, the queue may be full and a vCPU
    /// wait for room with its device's lock held: then nothing here may want a device.
    left: Left,
    input: Input,
}

struct Input {
    open: bool,
    /// Read from the host and not yet taken by the UART.
    waiting: Vec<u8>,
    escaped: bool,
}

impl<K: Kick> Supervisor<'_, K> {
    fn run(mut self, waits: Waits<'_>) -> Result<Ended, LaunchError> {
        let Waits { wake, sints } = waits;
        loop {
            wake.clear();
            if let Some(ended) = self.control.ended() {
                return Ok(ended);
            }
            let sleep = self.output()?;
            let mut input = None;
            if self.left == Left::Nothing {
                self.advance_due();
                input = self.feed();
            }
            if self.deadline.is_some_and(|d| d <= Instant::now()) {
                self.control.end(None, Stop::Timeout);
                continue;
            }
            if !self.keep_halted && self.probe.look(self.control) {
                self.control.end(None, Stop::Halted);
                continue;
            }
            let wants_input = self.input.open && self.input.waiting.is_empty();
            let typed = self.console.input_fd().filter(|_| wants_input);
            let settles = self.until_settled();
            let events = [
                Some(Event::Readable(wake.as_raw_fd())),
                Some(Event::Readable(self.signals.as_raw_fd())),
                // Word from a guest is for a board that is looked at.
                (self.left == Left::Nothing).then_some(Event::Readable(sints.done_fd())),
                typed.map(Event::Readable),
                match self.left {
                    Left::Held(fd) => Some(Event::Writable(fd)),
                    _ => None,
                },
            ];
            let timeout = [
                sleep,
                input,
                self.until_deadline(),
                (!self.keep_halted).then(|| self.probe.wait()),
                settles,
            ];
            let timeout = timeout.into_iter().flatten().min();
            let [_, signal, done, readable, _] =
                wait(events, timeout).map_err(LaunchError::Events)?;
            if signal {
                self.control.end(None, Stop::Interrupted);
            }
            if done {
                sints.clear_done();
                self.advance();
            }
            if readable {
                self.read();
            }
        }
    }

    /// Gives back what only the start needed, once; the time until then.
    fn until_settled(&mut self) -> Option<Duration> {
        let left = self.settles?.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        self.settles = None;
        memory::forget_program();
        None
    }

    /// Brings devices up to now whose deadline has come.
    fn advance_due(&mut self) {
        let machine = self.driver.machine;
        if machine.next_deadline().is_some_and(|at| at <= machine.now()) {
            self.advance();
        }
    }

    fn advance(&mut self) {
        let machine = self.driver.machine;
        let stop = match self.driver.recorder {
            None => machine.advance(&mut self.cx),
            Some(recorder) => recorder.advance(machine, &mut self.cx),
        };
        if let Some(stop) = stop {
            self.control.end(None, stop);
        }
    }

    /// Time until a device's deadline or the guest's own.
    fn until_deadline(&self) -> Option<Duration> {
        let machine = self.driver.machine;
        let device = machine.next_deadline().filter(|_| self.left == Left::Nothing);
        let device = device.map(|at| Duration::from_nanos(at.saturating_sub(machine.now())));
        let guest = self.deadline.map(|d| d.saturating_duration_since(Instant::now()));
        [device, guest].into_iter().flatten().min()
    }

    /// Writes output; says how soon to look again, `None` if the producer will wake us.
    fn output(&mut self) -> Result<Option<Duration>, LaunchError> {
        let Some(queue) = self.console.queue() else { return Ok(None) };
        queue.awake();
        let (written, left) = self.console.drain()?;
        self.left = left;
        match left {
            Left::Nothing => {}
            Left::More => return Ok(Some(Duration::ZERO)),
            Left::Held(_) => return Ok(None),
            // That is an end that the user asked for.
            Left::Reader => {
                self.left = Left::Nothing;
                self.control.end(None, Stop::Interrupted);
            }
        }
        self.quiet = if written == 0 { self.quiet.saturating_add(1) } else { 0 };
        match self.quiet >= OUTPUT_QUIET && queue.sleep() {
            true => Ok(None),
            false => Ok(Some(OUTPUT_POLL)),
        }
    }

    fn read(&mut self) {
        let mut buf = [0; 256];
        match self.console.read(&mut buf) {
            Ok(0) | Err(_) => self.input.open = false,
            Ok(n) => {
                for &byte in &buf[..n] {
                    self.typed(byte);
                }
            }
        }
    }

    /// One byte from the user. On a terminal, Ctrl-A x ends the VM and Ctrl-A Ctrl-A is Ctrl-A.
    fn typed(&mut self, byte: u8) {
        let escaped = std::mem::take(&mut self.input.escaped);
        match (self.console.is_terminal(), escaped, byte) {
            (true, false, ESCAPE) => self.input.escaped = true,
            (true, true, b'x') => self.control.end(None, Stop::Interrupted),
            _ => self.input.waiting.push(byte),
        }
    }

    /// Offers input to the UART; says how soon to try again if it has no room.
    fn feed(&mut self) -> Option<Duration> {
        if self.input.waiting.is_empty() {
            return None;
        }
        let (machine, waiting) = (self.driver.machine, &self.input.waiting);
        let taken = match self.driver.recorder {
            None => machine.input(&mut self.cx, COM1, waiting),
            Some(recorder) => recorder.input(machine, &mut self.cx, COM1, waiting),
        };
        // A board without this port swallows what is typed.
        let taken = taken.unwrap_or(waiting.len());
        self.input.waiting.drain(..taken);
        (!self.input.waiting.is_empty()).then_some(INPUT_RETRY)
    }
}

/// Finds a guest whose every vCPU is halted for ever: asks twice, with no exit in between.
struct Probe {
    exits: u64,
    next: Instant,
    interval: Duration,
    asked: bool,
    /// Probes in a row that found every vCPU dead.
    dead: u32,
}

impl Probe {
    /// How soon an answer is looked for after a question.
    const ANSWER: Duration = Duration::from_millis(2);

    fn new() -> Probe {
        let interval = PROBE_FIRST;
        Probe { exits: 0, next: Instant::now() + interval, interval, asked: false, dead: 0 }
    }

    /// `true` once the guest is known to be dead.
    fn look<K: Kick>(&mut self, control: &Control<K>) -> bool {
        if Instant::now() < self.next {
            return false;
        }
        let exits = control.exits();
        if exits != self.exits {
            *self = Probe { exits, ..Probe::new() };
            return false;
        }
        if !self.asked {
            control.start_probe();
            self.asked = true;
            self.next = Instant::now() + Self::ANSWER;
            return false;
        }
        match control.all_dead() {
            None => self.next = Instant::now() + Self::ANSWER,
            Some(true) => {
                self.dead += 1;
                (self.asked, self.next) = (false, Instant::now() + Self::ANSWER);
            }
            Some(false) => {
                self.interval = (self.interval * 2).min(PROBE_LAST);
                (self.asked, self.dead) = (false, 0);
                self.next = Instant::now() + self.interval;
            }
        }
        self.dead >= 2
    }

    fn wait(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }
}
