//! One client of a control socket, on the VM's side.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde_json::Value;

use super::wire::{About, Greeting, Outcome, PROTOCOL, Refusal, RefusalKind, Request, Response};
use super::{CLIENTS, Commands, LINE};

/// How much is read from a client before others have their turn.
const TURN: usize = 64 << 10;

/// A client.
pub(super) struct Session {
    stream: UnixStream,
    /// What it sent and nobody looked at yet: no whole line, or answers still wait to be read.
    input: Vec<u8>,
    /// Answers, and how much of them is written.
    output: Vec<u8>,
    written: usize,
    /// It sends no more: the connection ends when all is answered.
    is_last: bool,
}

impl Session {
    /// Greets a client, or refuses it where there are too many.
    pub(super) fn new(
        stream: UnixStream,
        is_full: bool,
        commands: &dyn Commands,
    ) -> io::Result<Session> {
        stream.set_nonblocking(true)?;
        let (input, output) = (Vec::new(), Vec::new());
        let mut session = Session { stream, input, output, written: 0, is_last: is_full };
        match is_full {
            true => {
                let why = format!("{CLIENTS} clients are connected, and there may not be more");
                session.refuse(Refusal::new(RefusalKind::Busy, why));
            }
            false => {
                let exitlab = About {
                    protocol: PROTOCOL,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    pid: std::process::id(),
                    commands: commands.names().iter().map(|&name| name.to_owned()).collect(),
                };
                session.say(&Greeting { exitlab });
            }
        }
        session.write()?;
        Ok(session)
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether answers wait to be read: then nothing else is read from it.
    pub(super) fn wants_to_write(&self) -> bool {
        self.written < self.output.len()
    }

    /// Reads, answers and writes what there is. `false` if the client has gone, or is to go.
    pub(super) fn turn(&mut self, commands: &dyn Commands) -> bool {
        self.try_turn(commands).unwrap_or(false)
    }

    fn try_turn(&mut self, commands: &dyn Commands) -> io::Result<bool> {
        self.write()?;
        if !self.wants_to_write() && !self.is_last {
            self.read()?;
        }
        while !self.wants_to_write()
            && let Some(line) = self.line()
        {
            self.answer(&line, commands);
            self.write()?;
        }
        if !self.wants_to_write() && self.input.len() > LINE {
            let why = format!("a line has more than {LINE} bytes");
            self.refuse(Refusal::new(RefusalKind::BadRequest, why));
            (self.is_last, self.input) = (true, Vec::new());
            self.write()?;
        }
        Ok(self.wants_to_write() || !self.is_last)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut part = [0; 4096];
        let mut total = 0;
        while total < TURN && self.input.len() <= LINE {
            match self.stream.read(&mut part) {
                Ok(0) => {
                    self.is_last = true;
                    return Ok(());
                }
                Ok(n) => {
                    self.input.extend_from_slice(&part[..n]);
                    total += n;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The next whole line; the last one may have no end.
    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.input.iter().position(|&byte| byte == b'\n');
        let line: Vec<u8> = match end {
            Some(end) if end <= LINE => self.input.drain(..=end).collect(),
            None if self.is_last && !self.input.is_empty() && self.input.len() <= LINE => {
                std::mem::take(&mut self.input)
            }
            _ => return None,
        };
        Some(line)
    }

    /// Answers a line; an empty one needs no answer.
    fn answer(&mut self, line: &[u8], commands: &dyn Commands) {
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        let request: Request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(e) => {
                let why = format!(
                    "the line is no request ({e}); send an object like {{\"command\": \"stats\"}}"
                );
                return self.refuse(Refusal::new(RefusalKind::BadRequest, why));
            }
        };
        let Request { id, command, arguments } = request;
        let done = match commands.names().contains(&command.as_str()) {
            true => commands.run(&command, &arguments),
            false => {
                let names = commands.names().join(", ");
                let why = format!("there is no command `{command}`; there are {names}");
                Err(Refusal::new(RefusalKind::UnknownCommand, why))
            }
        };
        let outcome = done.map_or_else(Outcome::Error, Outcome::Return);
        self.say(&Response { id, outcome });
    }

    fn refuse(&mut self, why: Refusal) {
        self.say(&Response { id: Value::Null, outcome: Outcome::Error(why) });
    }

    fn say(&mut self, what: &impl Serialize) {
        // These are plain data, which always have a form in JSON.
        if let Ok(line) = serde_json::to_vec(what) {
            self.output.extend_from_slice(&line);
            self.output.push(b'\n');
        }
    }

    /// Writes what the client takes now.
    fn write(&mut self) -> io::Result<()> {
        while self.wants_to_write() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }
}
