//! The other end of the first serial port.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::LaunchError;
use crate::host::console::OutputQueue;
use crate::host::events::{EndSignals, Event, Wake, wait};
use crate::host::terminal::{self, RawTerminal};

/// Where the first serial port leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Serial {
    /// Standard input and output; a terminal is made raw, and Ctrl-A x ends the VM.
    #[default]
    Stdio,
    /// Nowhere.
    Null,
    /// Into a file, which is made anew.
    File(PathBuf),
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(s: &str) -> Result<Serial, String> {
        match s.split_once(':') {
            None if s == "stdio" => Ok(Serial::Stdio),
            None if s == "null" => Ok(Serial::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Serial::File(path.into())),
            _ => Err(format!("`{s}` is no serial backend: stdio, null or file:PATH")),
        }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Serial::Stdio => f.write_str("standard output"),
            Serial::Null => f.write_str("nowhere"),
            Serial::File(path) => write!(f, "file `{}`", path.display()),
        }
    }
}

/// The most bytes that are written at once: what a pipe takes without waiting once it says that it
/// takes anything (`PIPE_BUF`).
const CHUNK: usize = 4096;
/// How much is written before deadlines and signals have their turn.
const TURN: usize = 1 << 20;

/// What of the guest's output is still to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// Some; more can be written now.
    More,
    /// Some; this descriptor takes nothing now.
    Held(RawFd),
    /// Whoever read it has gone.
    Reader,
}

/// Where output goes. Whoever holds it takes bytes out of the queue.
struct Out {
    /// Unbuffered, so that a write is one write and nothing is held back.
    file: Option<File>,
    /// What a vCPU wrote by itself since the last [`Console::drain`], and how that failed.
    written: usize,
    failed: Option<io::Error>,
}

impl Out {
    /// Writes the first bytes after a silence on the vCPU's thread, if the host takes them at once: a sleeping thread
    /// that is to do so first has to be given a processor.
    fn write_now(&mut self, queue: &OutputQueue) {
        let Some(file) = &mut self.file else { return };
        let ready = wait([Some(Event::Writable(file.as_raw_fd()))], Some(Duration::ZERO));
        if self.failed.is_none() && matches!(ready, Ok([true])) {
            let mut bytes = [0; CHUNK];
            let n = queue.take(&mut bytes);
            match file.write_all(&bytes[..n]) {
                Ok(()) => self.written += n,
                Err(e) => self.failed = Some(e),
            }
        }
    }
}

/// An open backend.
pub(super) struct Console {
    serial: Serial,
    queue: Option<Arc<OutputQueue>>,
    out: Arc<Mutex<Out>>,
    input: Option<File>,
    terminal: Option<RawTerminal>,
}

impl Console {
    pub(super) fn open(serial: &Serial, again: bool, wake: &Wake) -> Result<Console, LaunchError> {
        let failed = |source| LaunchError::Serial { to: serial.to_string(), source };
        let clone = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from).map_err(failed);
        let (mut input, mut terminal) = (None, None);
        let out = match serial {
            Serial::Null => None,
            Serial::Stdio => {
                input = Some(clone(io::stdin().as_fd())?);
                terminal = RawTerminal::new().map_err(failed)?;
                Some(clone(io::stdout().as_fd())?)
            }
            Serial::File(path) if again => {
                Some(File::options().append(true).open(path).map_err(failed)?)
            }
            Serial::File(path) => Some(File::create(path).map_err(failed)?),
        };
        let is_open = out.is_some();
        let out = Arc::new(Mutex::new(Out { file: out, written: 0, failed: None }));
        let queue = match is_open {
            false => None,
            true => {
                let wake = wake.try_clone().map_err(LaunchError::Events)?;
                let out = out.clone();
                Some(Arc::new(OutputQueue::new(Box::new(move |queue| {
                    // Who holds it writes.
                    if let Ok(mut out) = out.try_lock() {
                        out.write_now(queue);
                    }
                    // For what comes next, and for a failure.
                    wake.wake();
                }))))
            }
        };
        Ok(Console { serial: serial.clone(), queue, out, input, terminal })
    }

    pub(super) fn queue(&self) -> Option<Arc<OutputQueue>> {
        self.queue.clone()
    }

    /// What is polled for input.
    pub(super) fn input_fd(&self) -> Option<RawFd> {
        self.input.as_ref().map(File::as_raw_fd)
    }

    /// Whether a person types: then Ctrl-A is an escape.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Reads at most `buf`'s length of input; 0 at its end. Unbuffered, so that nothing is held
    /// back that poll does not see.
    pub(super) fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.as_ref().map_or(Ok(0), |mut input| input.read(buf))
    }

    /// Writes out what the guest has put out, as far as the host takes it at once. Gives the
    /// number of bytes, and what is left.
    pub(super) fn drain(&self) -> Result<(usize, Left), LaunchError> {
        let Some(queue) = &self.queue else { return Ok((0, Left::Nothing)) };
        let mut out = self.out.lock().unwrap_or_else(|e| e.into_inner());
        let (mut total, mut buf) = (std::mem::take(&mut out.written), [0; CHUNK]);
        if let Some(source) = out.failed.take() {
            return self.lost(&mut out, queue, total, source);
        }
        while !queue.is_empty() {
            let Some(file) = &mut out.file else { return Ok((total, Left::Nothing)) };
            if total >= TURN {
                return Ok((total, Left::More));
            }
            let fd = file.as_raw_fd();
            let ready = wait([Some(Event::Writable(fd))], Some(Duration::ZERO));
            if ready.map_err(LaunchError::Events)? == [false] {
                return Ok((total, Left::Held(fd)));
            }
            let n = queue.take(&mut buf);
            if let Err(source) = file.write_all(&buf[..n]) {
                return self.lost(&mut out, queue, total, source);
            }
            total += n;
        }
        Ok((total, Left::Nothing))
    }

    /// Output cannot be written any more.
    fn lost(
        &self,
        out: &mut Out,
        queue: &OutputQueue,
        total: usize,
        source: io::Error,
    ) -> Result<(usize, Left), LaunchError> {
        out.file = None;
        queue.close();
        match source.kind() {
            io::ErrorKind::BrokenPipe => Ok((total, Left::Reader)),
            _ => Err(LaunchError::Output { to: self.serial.to_string(), source }),
        }
    }

    /// The last bytes, after the vCPUs have ended. What the host does not take is given up when
    /// the user asks for the end, or after `patience` without progress.
    pub(super) fn finish(
        &self,
        signals: &EndSignals,
        patience: Option<Duration>,
    ) -> Result<(), LaunchError> {
        loop {
            match self.drain()?.1 {
                Left::Nothing | Left::Reader => return Ok(()),
                Left::More => {}
                Left::Held(fd) => {
                    // So that the user's Ctrl-C is a signal again.
                    terminal::restore();
                    let since = Instant::now();
                    let events =
                        [Some(Event::Readable(signals.as_raw_fd())), Some(Event::Writable(fd))];
                    let [signal, _] = wait(events, patience).map_err(LaunchError::Events)?;
                    if signal || patience.is_some_and(|p| since.elapsed() >= p) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_read() {
        assert_eq!("stdio".parse(), Ok(Serial::Stdio));
        assert_eq!("null".parse(), Ok(Serial::Null));
        assert_eq!("file:/a:b".parse(), Ok(Serial::File("/a:b".into())));
        for bad in ["", "file", "file:", "tcp:1", "stdio:"] {
            let error = bad.parse::<Serial>().expect_err("not one");
            assert!(error.contains("stdio, null or file:PATH"), "{error}");
        }
    }
}
