//! Memory that appears while the guest waits: page faults resolved by a thread (userfaultfd).
//!
//! Linux, Documentation/admin-guide/mm/userfaultfd.rst and include/uapi/linux/userfaultfd.h.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::memory::errno;
use crate::hv::lab::Errno;
use crate::ram::PAGE;

/// `UFFD_API`, the version, and the ioctl that agrees on it.
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
/// Faults on pages that are missing.
const REGISTER_MODE_MISSING: u64 = 1;
/// `UFFD_EVENT_PAGEFAULT`.
const EVENT_PAGEFAULT: u8 = 0x12;

/// The thread that fills one range.
#[derive(Debug)]
pub(super) struct Userfault {
    count: Arc<AtomicU64>,
    /// Its other end ends the thread when it closes.
    end: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// Opens a userfaultfd that also takes faults of the kernel, which KVM's are.
fn open() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes flags and gives a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: a new descriptor, owned from here on.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = [UFFD_API, 0, 0];
    // SAFETY: `struct uffdio_api` is three 64-bit words.
    match unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) } {
        0 => Ok(fd),
        _ => Err(errno()),
    }
}

/// Whether this host has page faults that a process resolves.
///
/// # Errors
/// Why not, and what to do.
pub fn userfaults() -> Result<(), String> {
    open().map(drop).map_err(|Errno(errno)| {
        let why = io::Error::from_raw_os_error(errno);
        format!(
            "userfaultfd cannot be had ({why}): it needs a kernel with CONFIG_USERFAULTFD, and root \
             or vm.unprivileged_userfaultfd = 1"
        )
    })
}

impl Userfault {
    /// For `len` bytes at `offset` of the mapping at `base`.
    pub(super) fn start(base: u64, offset: u64, len: u64, seed: u64) -> Result<Userfault, Errno> {
        let fd = open()?;
        // struct uffdio_register: start, length, mode, ioctls.
        let mut register = [base + offset, len, REGISTER_MODE_MISSING, 0];
        // SAFETY: the structure is four 64-bit words, and the range is lab memory.
        if unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) } != 0 {
            return Err(errno());
        }
        let failed = |e: io::Error| Errno(e.raw_os_error().unwrap_or(libc::EIO));
        let (ended, end) = io::pipe().map_err(failed)?;
        let count = Arc::new(AtomicU64::new(0));
        let (faults, counter) = (File::from(fd), count.clone());
        let body = move || serve(&faults, &ended, base, seed, &counter);
        let thread =
            std::thread::Builder::new().name("userfault".to_owned()).spawn(body).map_err(failed)?;
        Ok(Userfault { count, end: Some(end), thread: Some(thread) })
    }

    /// Faults resolved so far.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

/// Fills pages until the other end of `ended` closes.
fn serve(mut faults: &File, ended: &io::PipeReader, base: u64, seed: u64, count: &AtomicU64) {
    let poll = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        let mut fds = [poll(faults.as_raw_fd()), poll(ended.as_raw_fd())];
        // SAFETY: two structures, which live through the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        if fds[1].revents != 0 || ready < 0 && errno() != Errno(libc::EINTR) {
            return;
        }
        // struct uffd_msg: the event's number first; of a page fault, the address at 16.
        let mut message = [0; 32];
        if !matches!(faults.read(&mut message), Ok(32)) || message[0] != EVENT_PAGEFAULT {
            continue;
        }
        let address = u64::from_le_bytes(std::array::from_fn(|i| message[16 + i]));
        let page = address & !(PAGE - 1);
        let words = PAGE / 8;
        let pattern: Vec<u64> = (0..words).map(|i| seed ^ (page - base + i * 8)).collect();
        // Counted before the guest goes on, which may ask at once.
        count.fetch_add(1, Ordering::SeqCst);
        // struct uffdio_copy: target, source, length, mode, what was copied.
        let mut copy = [page, pattern.as_ptr() as u64, PAGE, 0, 0];
        // SAFETY: the structure is five 64-bit words; the kernel reads a page of the pattern and
        // fills one that is missing in the range that was registered.
        let copied = unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_COPY, copy.as_mut_ptr()) };
        if copied != 0 {
            // Another fault on this page was resolved first.
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Userfault {
    fn drop(&mut self) {
        if let Some(mut end) = self.end.take() {
            // Closing it is enough where nothing can be written.
            let _ = end.write(&[0]);
        }
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, there is nobody left to tell.
            let _ = thread.join();
        }
    }
}
