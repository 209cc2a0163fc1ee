//! The other end of the first serial port.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use super::LaunchError;
use crate::host::console::OutputQueue;
use crate::host::events::Wake;
use crate::host::terminal::RawTerminal;

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

/// An open backend.
pub(super) struct Console {
    serial: Serial,
    queue: Option<Arc<OutputQueue>>,
    out: Mutex<Option<Box<dyn Write + Send>>>,
    terminal: Option<RawTerminal>,
}

impl Console {
    pub(super) fn open(serial: &Serial, wake: &Wake) -> Result<Console, LaunchError> {
        let failed = |source| LaunchError::Serial { to: serial.to_string(), source };
        let mut terminal = None;
        let out: Option<Box<dyn Write + Send>> = match serial {
            Serial::Null => None,
            Serial::Stdio => {
                terminal = RawTerminal::new().map_err(failed)?;
                Some(Box::new(io::stdout()))
            }
            Serial::File(path) => Some(Box::new(File::create(path).map_err(failed)?)),
        };
        let queue = match out {
            None => None,
            Some(_) => {
                let wake = wake.try_clone().map_err(LaunchError::Events)?;
                Some(Arc::new(OutputQueue::new(Box::new(move || wake.wake()))))
            }
        };
        Ok(Console { serial: serial.clone(), queue, out: Mutex::new(out), terminal })
    }

    pub(super) fn queue(&self) -> Option<Arc<OutputQueue>> {
        self.queue.clone()
    }

    /// What is polled for input.
    pub(super) fn input_fd(&self) -> Option<RawFd> {
        (self.serial == Serial::Stdio).then(|| io::stdin().as_raw_fd())
    }

    /// Whether a person types: then Ctrl-A is an escape.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Reads at most `buf`'s length of input; 0 at its end.
    pub(super) fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        // Unbuffered, so that nothing is held back that poll does not see.
        let mut stdin = io::stdin().lock();
        stdin.read(buf)
    }

    /// Writes out what the guest has put out; gives the number of bytes.
    pub(super) fn drain(&self) -> Result<usize, LaunchError> {
        let Some(queue) = &self.queue else { return Ok(0) };
        let mut out = self.out.lock().unwrap_or_else(|e| e.into_inner());
        let Some(writer) = out.as_mut() else { return Ok(0) };
        let (mut total, mut buf) = (0, [0; 4096]);
        loop {
            let n = queue.take(&mut buf);
            if n == 0 {
                break;
            }
            total += n;
            if let Err(source) = writer.write_all(&buf[..n]) {
                *out = None;
                queue.close();
                return Err(LaunchError::Serial { to: self.serial.to_string(), source });
            }
            if total >= 1 << 20 {
                // Deadlines and signals have their turn too.
                break;
            }
        }
        if total > 0
            && let Err(source) = writer.flush()
        {
            *out = None;
            queue.close();
            return Err(LaunchError::Serial { to: self.serial.to_string(), source });
        }
        Ok(total)
    }

    /// The last bytes, after the vCPUs have ended.
    pub(super) fn finish(&self) -> Result<(), LaunchError> {
        while self.drain()? > 0 {}
        Ok(())
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
