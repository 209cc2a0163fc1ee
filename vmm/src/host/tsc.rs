//! The host's time-stamp counter.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

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
    let nanos = now.duration_since(clock).as_nanos().max(1);
    let ticks = u128::from(later.wrapping_sub(counter));
    u64::try_from(ticks * 1_000_000 / nanos).unwrap_or(u64::MAX)
}

/// The counter and the clock at the same time: of a few readings, the one that took least.
fn read() -> (u64, Instant) {
    let once = |_| {
        let before = tsc();
        let clock = Instant::now();
        let after = tsc();
        (after.wrapping_sub(before), before.wrapping_add(after.wrapping_sub(before) / 2), clock)
    };
    let best = (0..TRIES).map(once).min_by_key(|(took, ..)| *took);
    best.map_or_else(|| (tsc(), Instant::now()), |(_, counter, clock)| (counter, clock))
}

fn tsc() -> u64 {
    // SAFETY: RDTSC reads a counter that every x86-64 processor has, and Linux lets programs use it.
    unsafe { _rdtsc() }
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
