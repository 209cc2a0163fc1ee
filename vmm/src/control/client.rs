//! The other side of a control socket: who asks a running VM.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::wire::{About, Greeting, Outcome, PROTOCOL, Request, Response};

/// How long a VM may take to answer: the thread that does waits for nobody.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes of an answer.
const LINE: u64 = 64 << 20;

/// Why a VM could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody can be reached.
    #[error("no VM can be reached at `{path}`: {source}; {hint}")]
    Connect {
        /// Where.
        path: PathBuf,
        /// A way out.
        hint: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The VM has ended, or hung up.
    #[error("the VM at `{path}` has ended")]
    Ended {
        /// Where.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("the VM at `{path}` does not answer: {source}; is it stopped?")]
    Broken {
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It speaks otherwise.
    #[error("what answers at `{path}` is no VM of this version: {what}")]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What it said.
        what: String,
    },
    /// It refuses.
    #[error("the VM at `{path}` refuses: {message}")]
    Refused {
        /// Where.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// A connection to a VM.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    about: About,
    next: u64,
}

impl Client {
    /// Connects to the VM whose control socket is at `path`.
    ///
    /// # Errors
    /// When nobody answers there, or somebody else does.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = connect().map_err(|source: io::Error| ClientError::Connect {
            path: path.to_owned(),
            hint: match source.kind() {
                io::ErrorKind::ConnectionRefused => {
                    "a socket is there that nobody listens at: its VM has ended"
                }
                _ => "start one with `vmm run --control PATH`, and name that path",
            },
            source,
        })?;
        let about =
            About { protocol: PROTOCOL, version: String::new(), pid: 0, commands: Vec::new() };
        let mut client =
            Client { path: path.to_owned(), stream: BufReader::new(stream), about, next: 1 };
        let line = client.line()?;
        match serde_json::from_slice::<Greeting>(&line) {
            Ok(Greeting { exitlab }) if exitlab.protocol == PROTOCOL => {
                client.about = exitlab;
                Ok(client)
            }
            Ok(Greeting { exitlab: About { protocol, version, .. } }) => {
                Err(client.foreign(format!(
                    "it speaks protocol {protocol} (version {version}), and this program {PROTOCOL}"
                )))
            }
            Err(_) => Err(client.refused(&line)),
        }
    }

    /// Who answers.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When the VM has ended, refuses, or answers something else.
    pub fn ask<T: DeserializeOwned>(&mut self, command: &str) -> Result<T, ClientError> {
        let id = Value::from(self.next);
        self.next += 1;
        let request =
            Request { id: id.clone(), command: command.to_owned(), arguments: Value::Null };
        let mut line = serde_json::to_vec(&request).map_err(|e| self.foreign(e.to_string()))?;
        line.push(b'\n');
        let sent = self.stream.get_mut().write_all(&line);
        sent.map_err(|e| self.broken(e))?;
        loop {
            let line = self.line()?;
            let Ok(response) = serde_json::from_slice::<Response>(&line) else {
                // An event, or something of a later version.
                continue;
            };
            match response.outcome {
                _ if response.id != id => continue,
                Outcome::Error(_) => return Err(self.refused(&line)),
                Outcome::Return(value) => {
                    return serde_json::from_value(value)
                        .map_err(|e| self.foreign(format!("its answer to `{command}`: {e}")));
                }
            }
        }
    }

    fn line(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut line = Vec::new();
        let read = self.stream.by_ref().take(LINE).read_until(b'\n', &mut line);
        read.map_err(|e| self.broken(e))?;
        match line.last() {
            Some(b'\n') => Ok(line),
            None | Some(_) if (line.len() as u64) < LINE => {
                Err(ClientError::Ended { path: self.path.clone() })
            }
            _ => Err(self.foreign(format!("it sends lines of more than {LINE} bytes"))),
        }
    }

    fn broken(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                ClientError::Ended { path }
            }
            _ => ClientError::Broken { path, source },
        }
    }

    fn foreign(&self, what: String) -> ClientError {
        ClientError::Foreign { path: self.path.clone(), what }
    }

    /// A line that is none of what was expected: a refusal, or nothing of ours.
    fn refused(&self, line: &[u8]) -> ClientError {
        match serde_json::from_slice(line) {
            Ok(Response { outcome: Outcome::Error(why), .. }) => {
                ClientError::Refused { path: self.path.clone(), message: why.message }
            }
            _ => {
                let start: String = String::from_utf8_lossy(line).chars().take(60).collect();
                self.foreign(format!("it says {start:?}"))
            }
        }
    }
}
