//! The host's monotonic clock.

use std::time::{Duration, Instant};

use crate::device::{Clock, Nanos};

/// Time since the board was switched on, by the host's monotonic clock (read without a system
/// call wherever the vDSO can).
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    start: Instant,
}

impl HostClock {
    /// Switched on now.
    pub fn start() -> HostClock {
        HostClock { start: Instant::now() }
    }

    /// Switched on so long ago; now, if the host's clock does not reach back that far.
    pub fn start_at(ago: Nanos) -> HostClock {
        let now = Instant::now();
        HostClock { start: now.checked_sub(Duration::from_nanos(ago)).unwrap_or(now) }
    }
}

impl Clock for HostClock {
    fn now(&self) -> Nanos {
        // 2^64 ns are 584 years.
        self.start.elapsed().as_nanos() as Nanos
    }
}
