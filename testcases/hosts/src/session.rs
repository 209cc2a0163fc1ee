//! One boot of an emulated host, from its start to its end: takes what it reports, and notices when it
//! hangs.
//!
//! How long a host may be silent follows from how fast it is: its agent tells every second of the
//! host's own time that it lives, and the session compares that clock with this machine's.

use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testcases::bounded::{Bounded, excerpt};
use testcases::process::{self, Ended, Stream};
use testcases::wire::{Decoder, Envelope, Message};

/// The longest that any session may take.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// How many times the time between two signs of life the silence may last before the host counts as
/// hung.
const SILENCE: u32 = 30;

/// How often the watchdog looks.
const TICK: Duration = Duration::from_millis(20);

/// What is kept of what the emulator prints: its beginning and its end. Bytes.
const KEEP: (usize, usize) = (4 << 10, 4 << 10);

/// How many of the agent's troubles are kept.
const MAX_TROUBLES: usize = 20;

/// The last lines of the console that are shown.
const CONSOLE_SHOWN: usize = 25;

/// How long a host may be silent, by this machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until its agent reports for the first time.
    pub boot: Duration,
    /// After that, at least: a host that is slow has more.
    pub silence: Duration,
    /// Once it told that it is done, until it ends by itself; then it is killed.
    pub leave: Duration,
}

impl Default for Patience {
    /// An ordinary machine boots in 2 to 10 s; this is also for one that is very busy, or very slow.
    fn default() -> Patience {
        Patience {
            boot: Duration::from_secs(240),
            silence: Duration::from_secs(30),
            leave: Duration::from_secs(10),
        }
    }
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The agent said that it is done, with this status.
    Done(u8),
    /// The host went away before.
    Died(String),
    /// The host was silent for too long, or the caller gave up on it, and was killed.
    Hung(String),
    /// The user wants to stop.
    Cancelled,
}

/// As a predicate about the host.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Done(0) => f.write_str("ended as it should"),
            Ending::Done(status) => write!(f, "gave up, with status {status}"),
            Ending::Died(how) => write!(f, "died: {how}"),
            Ending::Hung(how) => write!(f, "was stopped: {how}"),
            Ending::Cancelled => f.write_str("was cancelled"),
        }
    }
}

/// What is left to tell of a session.
#[derive(Clone, Debug)]
pub struct Session {
    /// How it ended.
    pub ending: Ending,
    /// What the agent said did not work.
    pub troubles: Vec<String>,
    /// The end of the console, what the emulator said, and what was garbage: for people.
    pub story: Vec<String>,
}

/// What the watchdog knows.
struct Heard {
    patience: Patience,
    /// When, and the host's clock then in ns.
    first: Option<(Instant, u64)>,
    last: Instant,
    last_at: u64,
    bye: Option<(Instant, u8)>,
    given_up: Option<String>,
    stop: Option<Ending>,
}

impl Heard {
    /// How long the host may be silent.
    fn allowed(&self) -> Duration {
        let Some((first, first_at)) = self.first else { return self.patience.boot };
        let host = Duration::from_nanos(self.last_at.saturating_sub(first_at));
        if host < testcases::wire::ALIVE {
            return self.patience.boot;
        }
        let ratio = (self.last - first).as_secs_f64() / host.as_secs_f64();
        let between = testcases::wire::ALIVE.mul_f64(ratio.clamp(0.001, 1000.0));
        (between * SILENCE).max(self.patience.silence)
    }

    /// Why the session is to be stopped now.
    fn verdict(&self, now: Instant, cancel: &[&AtomicBool]) -> Option<Ending> {
        if cancel.iter().any(|flag| flag.load(Ordering::Relaxed)) {
            return Some(Ending::Cancelled);
        }
        if let Some(why) = &self.given_up {
            return Some(Ending::Hung(why.clone()));
        }
        match self.bye {
            Some((at, status)) => (now - at > self.patience.leave).then_some(Ending::Done(status)),
            None => {
                let (silent, allowed) = (now - self.last, self.allowed());
                let what = match self.first {
                    None => "it did not finish booting",
                    Some(_) => "it hangs: its agent gave no sign of life",
                };
                (silent > allowed)
                    .then(|| Ending::Hung(format!("{what} within {} s", allowed.as_secs())))
            }
        }
    }
}

/// Runs a machine to its end. `each` gets the messages as they come; if it breaks, the machine is
/// stopped for that reason, as it is when one of `cancel` becomes true. `console` and `log` are files
/// that the machine writes; their ends become part of the story.
pub fn run(
    command: &mut Command,
    console: &Path,
    log: &Path,
    patience: Patience,
    cancel: &[&AtomicBool],
    each: &mut dyn FnMut(Envelope) -> ControlFlow<String>,
) -> Session {
    let start = Instant::now();
    let heard = Mutex::new(Heard {
        patience,
        first: None,
        last: start,
        last_at: 0,
        bye: None,
        given_up: None,
        stop: None,
    });
    let lock = || heard.lock().unwrap_or_else(|e| e.into_inner());
    let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut decoder = Decoder::default();
    let mut said = Bounded::new(KEEP.0, KEEP.1);
    let mut troubles = Vec::new();
    let mut take = |envelope: Envelope| {
        let mut heard = lock();
        heard.last = Instant::now();
        heard.last_at = envelope.at;
        if heard.first.is_none() {
            heard.first = Some((heard.last, envelope.at));
        }
        if let Message::Trouble(text) = &envelope.message
            && troubles.len() < MAX_TROUBLES
        {
            troubles.push(text.clone());
        }
        if let Message::Bye { status } = envelope.message {
            heard.bye = Some((heard.last, status));
        }
        drop(heard);
        if let ControlFlow::Break(why) = each(envelope) {
            lock().given_up.get_or_insert(why);
        }
    };
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let mut heard = lock();
                if let Some(ending) = heard.verdict(Instant::now(), cancel) {
                    heard.stop = Some(ending);
                    stop.store(true, Ordering::Relaxed);
                    return;
                }
                drop(heard);
                thread::sleep(TICK);
            }
        });
        let ended = process::run(command, LIMIT, &stop, &mut |stream, bytes| match stream {
            Stream::Out => decoder.push(bytes).into_iter().for_each(&mut take),
            Stream::Err => said.push(bytes),
        });
        over.store(true, Ordering::Relaxed);
        ended
    });
    decoder.finish().into_iter().for_each(&mut take);
    let heard = heard.into_inner().unwrap_or_else(|e| e.into_inner());
    let ending = match (heard.stop, heard.bye, ended) {
        // Whatever its emulator's status: Bochs ends with 1 when the machine is switched off.
        (_, Some((_, status)), _) => Ending::Done(status),
        (Some(ending), None, _) => ending,
        (None, None, Ended::NotStarted(why)) => {
            Ending::Died(format!("its emulator cannot be started: {why}"))
        }
        (None, None, ended) => Ending::Died(format!(
            "it went away {}: {ended}",
            if heard.first.is_some() { "before it was done" } else { "before it had booted" }
        )),
    };
    let mut story = Vec::new();
    // A host that said that all is done may still owe cases.
    if ending != Ending::Cancelled {
        let file = |path: &Path| fs::read(path).unwrap_or_default();
        add(&mut story, "its agent says", troubles.join("\n").as_bytes());
        add(&mut story, "the end of its console", &file(console));
        add(&mut story, "its emulator's log", &file(log));
        add(&mut story, "its emulator says", &said.contents());
        add(&mut story, "between its messages", &decoder.garbage());
    }
    Session { ending, troubles, story }
}

/// Adds the last lines of a text, under a title.
fn add(story: &mut Vec<String>, title: &str, text: &[u8]) {
    let lines = excerpt(text, 0, CONSOLE_SHOWN);
    if !lines.is_empty() {
        story.push(format!("{title}:"));
        story.extend(lines.iter().map(|line| format!("  | {line}")));
    }
}
