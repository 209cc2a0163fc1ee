//! Getting a vCPU thread out of KVM_RUN, without a race.
//!
//! The signal's handler sets `immediate_exit` in the page that the thread's vCPU shares with KVM.
//! A signal that arrives before the thread enters the kernel thus makes the coming KVM_RUN return
//! at once, and one that arrives later interrupts it.

use std::cell::Cell;
use std::ptr;
use std::sync::Once;

use crate::hv::Kick;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs. A `const` cell without a destructor:
    /// reading it in a signal handler neither allocates nor registers anything.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks. An ordinary one: a real-time signal is queued, and refused once the user
/// has as many pending as `RLIMIT_SIGPENDING` allows, so that the kick would be lost.
const SIGNAL: libc::c_int = libc::SIGUSR1;

extern "C" fn on_kick(_: libc::c_int) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the pointer is this thread's own, set by `arm` to a byte of a mapping that stays
        // until `disarm`; the kernel reads it in this very thread.
        unsafe { flag.write_volatile(1) };
    }
}

/// Gets one thread's vCPU out of guest mode.
#[derive(Clone, Copy, Debug)]
pub struct Kicker {
    pid: libc::pid_t,
    tid: libc::pid_t,
}

/// Makes the calling thread the one whose vCPU has its `immediate_exit` at `flag`.
pub(super) fn arm(flag: *mut u8) -> Kicker {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one; the handler is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_kick as *const () as usize;
            // No SA_RESTART: KVM_RUN must return.
            libc::sigaction(SIGNAL, &action, ptr::null_mut());
        }
    });
    IMMEDIATE_EXIT.set(flag);
    // SAFETY: the set is initialised before it is used; only this thread's mask changes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, SIGNAL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
        Kicker { pid: libc::getpid(), tid: libc::gettid() }
    }
}

/// The calling thread's vCPU goes away.
pub(super) fn disarm(flag: *mut u8) {
    // A vCPU may be dropped by another thread than it ran on; that one has ended by then.
    if IMMEDIATE_EXIT.get() == flag {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        // SAFETY: no memory is involved. A thread that has ended gives ESRCH, which is fine: its
        // vCPU is not in guest mode.
        unsafe { libc::syscall(libc::SYS_tgkill, self.pid, self.tid, SIGNAL) };
    }
}
