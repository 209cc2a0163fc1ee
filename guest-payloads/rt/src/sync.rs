//! What CPUs share: a lock and a barrier.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A lock that is waited for in a loop. An interrupt handler must not take one that the code it
/// interrupts may hold.
pub struct SpinLock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: one holder at a time reaches the value.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        SpinLock { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock.
    pub fn lock(&self) -> Guard<'_, T> {
        loop {
            if let Some(guard) = self.lock_within(u32::MAX) {
                return guard;
            }
        }
    }

    /// Waits for the lock for at most `tries` rounds.
    pub fn lock_within(&self, tries: u32) -> Option<Guard<'_, T>> {
        for _ in 0..tries {
            if !self.held.swap(true, Ordering::Acquire) {
                return Some(Guard(self));
            }
            core::hint::spin_loop();
        }
        None
    }
}

/// Holds a [`SpinLock`].
pub struct Guard<'a, T>(&'a SpinLock<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard is the only way to the value while it lives.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::Release);
    }
}

/// A point all of a number of CPUs reach before any goes on. Can be used again and again.
pub struct Barrier {
    arrived: AtomicUsize,
    round: AtomicUsize,
}

impl Barrier {
    /// A barrier nobody has arrived at.
    #[allow(clippy::new_without_default)] // Made for statics, which cannot call `default`.
    pub const fn new() -> Self {
        Barrier { arrived: AtomicUsize::new(0), round: AtomicUsize::new(0) }
    }

    /// Waits until `cpus` CPUs are here.
    pub fn wait(&self, cpus: usize) {
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == cpus {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
        } else {
            while self.round.load(Ordering::Acquire) == round {
                core::hint::spin_loop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_not_given_away() {
        let lock = SpinLock::new(1);
        let mut guard = lock.lock();
        assert!(lock.lock_within(3).is_none());
        *guard += 1;
        drop(guard);
        assert_eq!(*lock.lock(), 2);
    }

    #[test]
    fn a_barrier_lets_all_go_on_together_twice() {
        extern crate std;
        static BARRIER: Barrier = Barrier::new();
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        let other = std::thread::spawn(|| {
            SEEN.fetch_add(1, Ordering::SeqCst);
            BARRIER.wait(2);
            BARRIER.wait(2);
            SEEN.fetch_add(1, Ordering::SeqCst);
        });
        BARRIER.wait(2);
        assert_eq!(SEEN.load(Ordering::SeqCst), 1);
        BARRIER.wait(2);
        other.join().unwrap();
        assert_eq!(SEEN.load(Ordering::SeqCst), 2);
    }
}
