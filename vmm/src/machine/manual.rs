//! What stands in for the world where there is none: a clock that is moved, a backplane to nowhere.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Backplane;
use crate::device::{Clock, Nanos};

/// A backplane that leads nowhere: for boards in benches and tests that look at answers only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Backplane for Nowhere {
    fn set_line(&self, _: u32, _: bool) {}
    fn output(&self, _: &'static str, _: u8) {}
    fn remap_page(&self, _: u64) {}
    fn message(&self, _: u64, _: u32) {}
    fn await_end(&self, _: u32, _: Option<(u64, u32)>) {}
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
