//! The host's time-stamp counter.

use std::time::{Duration, Instant};

use crate::hv::ticks;

/// How long the counter is compared with the clock. The error is that of reading both, well below a
/// microsecond, so 10 parts in a million.
const SPAN: Duration = Duration::from_millis(50);

/// How often both are read in a row, to find a pair that nothing came between.
const TRIES: usize = 20;

/// The counter's frequency in kHz, by comparing it with the clock for 50 ms.
pub fn frequency_khz() -> u64 {
    let (counter, clock) = read();
    std::thread::sleep(SPAN);
    let (later, now) = read();
    per_second((counter, clock), (later, now)) / 1000
}

/// The counter's frequency in Hz, from two readings: as exact as the time between them is long.
pub fn per_second((counter, clock): (u64, Instant), (later, now): (u64, Instant)) -> u64 {
    let nanos = now.duration_since(clock).as_nanos().max(1);
    let ticks = u128::from(later.wrapping_sub(counter));
    u64::try_from(ticks * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// The counter and the clock at the same time: of a few readings, the one that took least.
pub fn read() -> (u64, Instant) {
    let once = |_| {
        let before = ticks();
        let clock = Instant::now();
        let after = ticks();
        (after.wrapping_sub(before), before.wrapping_add(after.wrapping_sub(before) / 2), clock)
    };
    let best = (0..TRIES).map(once).min_by_key(|(took, ..)| *took);
    best.map_or_else(|| (ticks(), Instant::now()), |(_, counter, clock)| (counter, clock))
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_measurements_agree() {
        let (a, b) = (super::frequency_khz(), super::frequency_khz());
        assert!((100_000..20_000_000).contains(&a), "{a} kHz");
        // On a busy machine, too: only what comes between one pair of readings is an error.
        assert!(a.abs_diff(b) < a / 100, "{a} and {b} kHz");
    }
}
