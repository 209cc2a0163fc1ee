//! Clocks against the TSC, with bounds instead of hopes.
//!
//! A read of a clock takes a while, and longer if the host has something else to do in between. So
//! each [`Sample`] keeps the TSC from before and after, between which the clock had the value. Two
//! samples bound the rate from both sides; a busy host makes the bounds wider, never wrong.

use crate::time::rdtsc_ordered;
use core::fmt;

/// What a clock showed at some moment between two values of the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The clock's value.
    pub value: u64,
    /// The TSC before it was read.
    pub before: u64,
    /// The TSC after it was read.
    pub after: u64,
}

/// Reads a clock eight times and keeps the sample that is known best.
pub fn sample(mut read: impl FnMut() -> u64) -> Sample {
    let mut one = || {
        let before = rdtsc_ordered();
        let value = read();
        Sample { value, before, after: rdtsc_ordered() }
    };
    let mut best = one();
    for _ in 1..8 {
        let next = one();
        if next.after - next.before < best.after - best.before {
            best = next;
        }
    }
    best
}

/// Bounds of a rate, in ticks a second.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// It is not lower.
    pub low: u64,
    /// It is not higher.
    pub high: u64,
}

/// The rate at which a clock went on by `ticks` from sample `first` to sample `last`, on a CPU
/// whose TSC counts `tsc_hz` a second. One tick more or less is the clock's own step. `None` if
/// the samples overlap.
pub fn rate(first: &Sample, last: &Sample, ticks: u64, tsc_hz: u64) -> Option<Rate> {
    let longest = last.after.checked_sub(first.before)?;
    let shortest = last.before.checked_sub(first.after).filter(|&ticks| ticks > 0)?;
    let hz =
        |ticks: u64, tsc: u64| (u128::from(ticks) * u128::from(tsc_hz) / u128::from(tsc)) as u64;
    Some(Rate { low: hz(ticks.saturating_sub(1), longest), high: hz(ticks + 1, shortest) })
}

impl Rate {
    /// Whether `hz` lies within the bounds, or off them by at most `ppm` millionths.
    pub fn holds(&self, hz: u64, ppm: u64) -> bool {
        let slack = |hz: u64| (u128::from(hz) * u128::from(ppm) / 1_000_000) as u64;
        hz + slack(hz) >= self.low && hz.saturating_sub(slack(hz)) <= self.high
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} to {} Hz", self.low, self.high)
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(value: u64, before: u64, after: u64) -> Sample {
        Sample { value, before, after }
    }

    #[test]
    fn bounds_hold_the_rate() {
        // 1000 ticks in 1 to 1.2 ms.
        let rate = rate(&at(0, 0, 100), &at(1000, 1100, 1200), 1000, 1_000_000).unwrap();
        assert_eq!(rate, Rate { low: 832_500, high: 1_001_000 });
        assert!(rate.holds(900_000, 0) && rate.holds(1_001_500, 1000));
        assert!(!rate.holds(1_003_000, 1000) && !rate.holds(830_000, 1000));
        assert!(!rate.holds(u64::MAX >> 1, 10));
    }

    #[test]
    fn samples_that_overlap_bound_nothing() {
        assert_eq!(rate(&at(0, 0, 100), &at(1, 90, 200), 1, 1), None);
    }
}
