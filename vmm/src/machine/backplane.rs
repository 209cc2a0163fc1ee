//! What is behind a board: whoever drives it, or nobody; and a clock for boards that nobody does.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{Clock, Nanos};

/// What the board needs of whoever drives it: KVM and the host, a recorder, a fuzzer.
pub trait Backplane: Send + Sync {
    /// The level of an interrupt line changed.
    fn set_line(&self, gsi: u32, level: bool);

    /// A byte leaves the machine through the host port of the device called `device`.
    fn output(&self, device: &'static str, byte: u8);

    /// The mapping of the page at `gpa` is to be dropped and made again.
    fn remap_page(&self, gpa: u64);

    /// A message-signalled interrupt arrives at the local APICs: a dword that is written to an address
    /// from [`MSI_START`](super::MSI_START) to [`MSI_END`](super::MSI_END).
    fn message(&self, address: u64, data: u32);

    /// Of the level-triggered interrupts that leave the board's I/O APIC for `pin`, this message's is
    /// the one whose end is to be told ([`IoapicEoi`](crate::exit::Exit::IoapicEoi)); `None` if none is.
    fn await_end(&self, pin: u32, message: Option<(u64, u32)>);

    /// The interrupt of source `sint` of virtual processor `vp`'s synthetic interrupt controller is
    /// requested.
    fn raise_sint(&self, vp: u32, sint: u8);

    /// [`super::Machine::advance`] is to be called whenever the guest is done with a message or an
    /// interrupt of this source.
    fn watch_sint(&self, vp: u32, sint: u8);

    /// A device wants [`super::Machine::advance`] to be called at this time, earlier than any it named
    /// before.
    fn deadline(&self, at: Nanos);
}

/// A backplane that leads nowhere: for boards in benches and tests that look at answers only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Backplane for Nowhere {
    fn set_line(&self, _: u32, _: bool) {}
    fn output(&self, _: &'static str, _: u8) {}
    fn remap_page(&self, _: u64) {}
    fn message(&self, _: u64, _: u32) {}
    fn await_end(&self, _: u32, _: Option<(u64, u32)>) {}
    fn raise_sint(&self, _: u32, _: u8) {}
    fn watch_sint(&self, _: u32, _: u8) {}
    fn deadline(&self, _: Nanos) {}
}

/// A clock that stands still until it is moved: for tests, fuzzing and replay.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Moves time forward, or nowhere if it would pass the end of time.
    pub fn advance(&self, by: Nanos) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now.saturating_add(by), Ordering::Relaxed);
    }

    /// Sets the time; only a restored state makes it go back.
    pub fn set(&self, to: Nanos) {
        self.0.store(to, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Nanos {
        self.0.load(Ordering::Relaxed)
    }
}
