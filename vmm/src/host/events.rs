//! What the supervising thread waits for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A descriptor that wakes whoever polls it.
#[derive(Debug)]
pub struct Wake(EventFd);

impl Wake {
    /// A new one, asleep.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<Wake> {
        EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Wake)
    }

    /// Another handle to the same one.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Wake> {
        self.0.try_clone().map(Wake)
    }

    /// Wakes. From any thread, any number of times.
    pub fn wake(&self) {
        // It fails only when its 64-bit counter is full, and then it is awake already.
        let _ = self.0.write(1);
    }

    /// Asleep again.
    pub fn clear(&self) {
        // It fails only when nobody woke it.
        let _ = self.0.read();
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the eventfd that is borrowed with it.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Signals that ask a program to end, as a descriptor.
#[derive(Debug)]
pub struct EndSignals(OwnedFd);

impl EndSignals {
    /// Takes SIGINT, SIGTERM, SIGHUP and SIGQUIT away from their default action. To be called before any
    /// other thread exists, so that all inherit it.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn take() -> io::Result<EndSignals> {
        // SAFETY: the set is initialised before use; only this thread's mask changes.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
                libc::sigaddset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(EndSignals(OwnedFd::from_raw_fd(fd))),
            }
        }
    }
}

impl AsRawFd for EndSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The descriptor can be read, or has ended.
    Readable(RawFd),
    /// The descriptor takes output, or never will again.
    Writable(RawFd),
    /// Whoever was at the other end has gone: of a terminal, the terminal.
    Gone(RawFd),
}

/// Waits for one of `events`, for at most `timeout`. Says for each whether it has come; after an
/// interruption none has.
///
/// # Errors
/// When the host refuses to wait.
pub fn wait<const N: usize>(
    events: [Option<Event>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = events.map(|event| {
        let (fd, events) = match event {
            Some(Event::Readable(fd)) => (fd, libc::POLLIN),
            Some(Event::Writable(fd)) => (fd, libc::POLLOUT),
            // That is told in any case.
            Some(Event::Gone(fd)) => (fd, 0),
            None => (-1, 0),
        };
        libc::pollfd { fd, events, revents: 0 }
    });
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: t.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the time live through the call; no signal mask is given.
    let n = unsafe { libc::ppoll(polled.as_mut_ptr(), N as _, timeout, std::ptr::null()) };
    match n {
        -1 => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
            e => Err(e),
        },
        _ => Ok(polled.map(|p| p.fd >= 0 && p.revents != 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_is_seen_until_it_is_cleared() {
        let (a, b) = (Wake::new().expect("fd"), Wake::new().expect("fd"));
        let readable = |wake: &Wake| Some(Event::Readable(wake.as_raw_fd()));
        let fds = [readable(&a), None, readable(&b)];
        let none = wait(fds, Some(Duration::ZERO)).expect("poll");
        assert_eq!(none, [false; 3]);
        b.try_clone().expect("fd").wake();
        assert_eq!(wait(fds, None).expect("poll"), [false, false, true]);
        b.clear();
        assert_eq!(wait(fds, Some(Duration::from_millis(1))).expect("poll"), [false; 3]);
    }
}
