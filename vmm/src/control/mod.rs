//! The control socket: a Unix socket at which a running VM answers requests, a line of JSON each.
//!
//! It has a thread of its own, which has nothing in common with vCPUs but counters that it reads. Whatever a
//! client sends or leaves unread, it costs bounded memory here and nothing elsewhere: one line is at most [`LINE`]
//! bytes, a client whose answers wait to be read is not listened to until it has read them, and there are at most
//! [`CLIENTS`] clients. The socket is the user's alone (mode 0600), and no device leads to it.
//!
//! What can be asked for is [`Commands`]' to say; this module knows of lines and clients only.

mod client;
mod session;
pub mod wire;

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::Value;

pub use client::{Client, ClientError};
use session::Session;
use wire::Refusal;

use crate::host::events::Wake;

/// The most bytes of one line of a client's.
pub const LINE: usize = 64 << 10;
/// How long nobody is accepted where the host has no descriptor left.
const RETRY: Duration = Duration::from_millis(100);
/// The most clients at once.
pub const CLIENTS: usize = 16;

/// What a VM can be asked for.
pub trait Commands: Send + Sync {
    /// Names of the commands.
    fn names(&self) -> &'static [&'static str];

    /// Does what `command` asks for, one of [`Commands::names`].
    ///
    /// # Errors
    /// When it cannot be done, or the arguments are wrong.
    fn run(&self, command: &str, arguments: &Value) -> Result<Value, Refusal>;
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Something is there.
    #[error("a control socket cannot be made at `{path}`: {what}")]
    Taken {
        /// Where.
        path: PathBuf,
        /// What is there, and what to do.
        what: &'static str,
    },
    /// The host refuses.
    #[error(
        "a control socket cannot be made at `{path}`: {source}; name a path of at most 107 bytes in a \
         folder that is there and may be written to"
    )]
    Bind {
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// A socket at a path, which is removed with it.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    /// Device and inode: another file at the path is not removed.
    identity: (u64, u64),
    listener: UnixListener,
    stop: Wake,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ControlSocket {
    /// Makes the socket. Nobody is answered before [`ControlSocket::serve`].
    ///
    /// # Errors
    /// When there is a file already, or the host refuses.
    pub fn bind(path: &Path) -> Result<ControlSocket, ControlError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => taken(path),
            _ => ControlError::Bind { path: path.to_owned(), source },
        };
        let bind = || {
            let address = SocketAddrUnix::new(path)?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // The file gets the socket's own mode: there is no moment in which others could connect.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            rustix::net::bind(&socket, &address)?;
            let made = std::fs::symlink_metadata(path)?;
            rustix::net::listen(&socket, CLIENTS as i32)?;
            Ok((UnixListener::from(socket), (made.dev(), made.ino()), Wake::new()?))
        };
        let (listener, identity, stop) = bind().map_err(failed)?;
        let thread = Mutex::new(None);
        Ok(ControlSocket { path: path.to_owned(), identity, listener, stop, thread })
    }

    /// Answers clients from now on, on a thread of its own. Once is enough.
    ///
    /// # Errors
    /// When the host has no thread or descriptor left.
    pub fn serve(&self, commands: Arc<dyn Commands>) -> io::Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let (listener, stop) = (self.listener.try_clone()?, self.stop.try_clone()?);
            let server = Server { listener, stop, commands, sessions: Vec::new() };
            let builder = std::thread::Builder::new().name("control".to_owned());
            *thread = Some(builder.spawn(move || server.run())?);
        }
        Ok(())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.get_mut().take() {
            // A panic there was reported; the VM has ended without it.
            let _ = thread.join();
        }
        let is_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == self.identity);
        if is_ours {
            // If it cannot be removed any more, the next VM says so.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What is at a path that is taken.
fn taken(path: &Path) -> ControlError {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
    let what = match UnixStream::connect(path) {
        _ if !is_socket => "a file is there already; name another path",
        Ok(_) => "another program listens there; name another path",
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            "a socket is there that nobody listens at, as a VM that was killed leaves it; remove it, or \
             name another path"
        }
        Err(_) => "a socket is there already; name another path",
    };
    ControlError::Taken { path: path.to_owned(), what }
}

/// What the thread has.
struct Server {
    listener: UnixListener,
    stop: Wake,
    commands: Arc<dyn Commands>,
    sessions: Vec<Session>,
}

impl Server {
    fn run(mut self) {
        while self.turn().is_ok_and(|goes_on| goes_on) {}
    }

    /// Waits for somebody, and does what there is to do. `false` at the end.
    fn turn(&mut self) -> io::Result<bool> {
        let stop = &self.stop;
        let mut polled =
            vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        polled.extend(self.sessions.iter().map(|session| {
            let wanted = if session.wants_to_write() { PollFlags::OUT } else { PollFlags::IN };
            PollFd::new(session.stream(), wanted)
        }));
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
        drop(polled);
        if ready.first() == Some(&true) {
            return Ok(false);
        }
        let mut of_session = ready.iter().skip(2);
        let commands = &*self.commands;
        self.sessions.retain_mut(|session| match of_session.next() {
            Some(true) => session.turn(commands),
            _ => true,
        });
        if ready.get(1) == Some(&true) {
            self.accept();
        }
        Ok(true)
    }

    /// Takes everybody who waits.
    fn accept(&mut self) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // No descriptor is left. Who waits still waits, and poll would say so at once.
                    std::thread::sleep(RETRY);
                    return;
                }
            };
            let is_full = self.sessions.len() >= CLIENTS;
            // One that has gone again, or cannot be served, is dropped.
            if let Ok(session) = Session::new(stream, is_full, &*self.commands)
                && !is_full
            {
                self.sessions.push(session);
            }
        }
    }
}

#[cfg(test)]
mod tests;
