//! How the agent reports: frames through the debug console, written whole by one thread.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use testcases::runner::CaseReport;
use testcases::verdict::{Outcome, Verdict};
use testcases::wire::{ALIVE, Envelope, FrameError, Message};
use vmm::host::debug_console::{DebugConsole, DebugConsoleError};

/// How many frames may wait for the thread that writes them; with more, whoever reports waits.
const WAITING: usize = 64;

/// How long the last frames may take to be written, by the host's clock.
const FLUSH: Duration = Duration::from_secs(60);

/// Sends messages; any number of threads may have one.
#[derive(Clone, Debug)]
pub struct Reporter {
    queue: SyncSender<Item>,
}

#[derive(Debug)]
enum Item {
    Frame(Vec<u8>),
    /// Answered once all that came before is written.
    Flush(SyncSender<()>),
}

impl Reporter {
    /// Takes the debug console, and sends from now on that the agent is alive.
    ///
    /// # Errors
    /// When there is no debug console, or a thread cannot be started.
    pub fn start() -> Result<Reporter, String> {
        let (queue, items) = sync_channel(WAITING);
        let (ready, is_ready) = sync_channel(1);
        spawn("report", move || write(&items, &ready))?;
        match is_ready.recv() {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(e.to_string()),
            Err(_) => return Err("the thread that writes to the debug console ended".into()),
        }
        let reporter = Reporter { queue };
        let alive = reporter.clone();
        spawn("alive", move || {
            loop {
                thread::sleep(ALIVE);
                alive.send(Message::Alive);
            }
        })?;
        Ok(reporter)
    }

    /// Sends a message. It is written soon; see [`Reporter::flush`].
    pub fn send(&self, message: Message) {
        let at = now();
        let frame = match (Envelope { at, message: message.clone() }).frame() {
            Ok(frame) => frame,
            Err(e) => {
                let message = shortened(message, &e);
                // What is short has a frame.
                (Envelope { at, message }).frame().unwrap_or_default()
            }
        };
        // It fails only when the thread that writes is gone: then nobody hears.
        let _ = self.queue.send(Item::Frame(frame));
    }

    /// Waits until all that was sent is written, or too long has passed.
    pub fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.queue.send(Item::Flush(done)).is_ok() {
            // Whatever comes of it, there is no more to do.
            let _ = is_done.recv_timeout(FLUSH);
        }
    }

    /// Sends what a panic says, from the hook: without waiting for a thread that may be the one that
    /// panics.
    pub fn panicked(&self, text: &str) {
        let trouble = Message::Trouble(format!("the agent panicked: {text}"));
        if let Ok(frame) = (Envelope { at: now(), message: trouble }).frame() {
            let (done, is_done) = sync_channel(1);
            if self.queue.try_send(Item::Frame(frame)).is_ok()
                && self.queue.try_send(Item::Flush(done)).is_ok()
            {
                let _ = is_done.recv_timeout(Duration::from_secs(5));
            }
        }
    }
}

/// The thread that has the debug console.
fn write(items: &Receiver<Item>, ready: &SyncSender<Result<(), DebugConsoleError>>) {
    let taken = DebugConsole::take();
    let (mut console, result) = match taken {
        Ok(console) => (Some(console), Ok(())),
        Err(e) => (None, Err(e)),
    };
    if ready.send(result).is_err() {
        return;
    }
    let Some(console) = &mut console else { return };
    while let Ok(item) = items.recv() {
        match item {
            Item::Frame(frame) => console.write(&frame),
            // Whoever asked may have given up.
            Item::Flush(done) => drop(done.try_send(())),
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map(drop).map_err(|e| format!("cannot start the thread `{name}`: {e}"))
}

/// What is sent instead of a message that has no frame.
fn shortened(message: Message, error: &FrameError) -> Message {
    match message {
        Message::Ended { index, report } => {
            let CaseReport { verdict, duration, ended, command, .. } = *report;
            let reason = format!(
                "what came of this case is lost: {error}; it was {}",
                verdict.outcome.word()
            );
            let lost = CaseReport::unrun(Verdict::new(Outcome::Error, reason));
            let report = Box::new(CaseReport { duration, ended, command, ..lost });
            Message::Ended { index, report }
        }
        _ => Message::Trouble(format!("a message is lost: {error}")),
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // It starts at 0 with the machine, and 2^64 ns are 584 years.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Writes a line to the machine's console, and waits until it is out: the machine may be about to be
/// switched off.
pub fn print(text: &str) {
    eprintln!("agent: {text}");
    // The console may be no terminal.
    let _ = rustix::termios::tcdrain(rustix::stdio::stderr());
}

#[cfg(test)]
mod tests {
    use testcases::runner::Log;
    use testcases::wire::MAX_PAYLOAD;

    use super::*;

    #[test]
    fn a_result_that_is_too_long_is_an_error_and_not_nothing() {
        let pass = CaseReport::unrun(Verdict::new(Outcome::Pass, ""));
        let serial = Log { total: 0, kept: vec![0; MAX_PAYLOAD] };
        let report = Box::new(CaseReport { serial, ..pass });
        let message = Message::Ended { index: 7, report };
        let error = (Envelope { at: 0, message: message.clone() }).frame().unwrap_err();
        let Message::Ended { index: 7, report } = shortened(message, &error) else {
            panic!("another message");
        };
        assert_eq!(report.verdict.outcome, Outcome::Error);
        assert!(report.verdict.reason.contains("it was pass"), "{}", report.verdict.reason);
        assert!((Envelope { at: 0, message: Message::Ended { index: 7, report } }).frame().is_ok());
    }

    #[test]
    fn the_clock_goes_on() {
        let before = now();
        assert!(before > 0 && now() >= before);
    }
}
