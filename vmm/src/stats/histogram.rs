//! How long something took, many times over: a histogram of fixed size that one thread writes and any may read.
//!
//! Buckets are log-linear, as those of HdrHistogram: each power of two is divided into 32, so a value is known
//! to about 3 % whatever its size. It is not that crate, because its recording takes `&mut` or a
//! channel, while here the vCPU's thread stores and another one reads meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

/// Each power of two has two to this many buckets.
const SUB_BITS: u32 = 5;
/// Buckets of one power of two.
const SUB: u64 = 1 << SUB_BITS;
/// The largest power of two that is told apart: 2^41 ticks are minutes on any processor. All above are in the
/// last bucket.
const LAST_POWER: u32 = 41;
/// How many buckets there are.
pub const BUCKETS: usize = ((LAST_POWER - SUB_BITS + 2) << SUB_BITS) as usize;

/// The bucket of a value.
#[inline(always)]
pub fn index(value: u64) -> usize {
    let power = (value | (SUB - 1)).ilog2();
    let shift = (power + 1).saturating_sub(SUB_BITS + 1);
    let index = (u64::from(shift) << SUB_BITS) + (value >> shift);
    (index as usize).min(BUCKETS - 1)
}

/// The largest value of a bucket.
pub fn highest(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index >> SUB_BITS).saturating_sub(1);
    let low = (index - (shift << SUB_BITS)) << shift;
    low + ((1 << shift) - 1)
}

/// Adds to a number that this thread alone writes.
#[inline(always)]
fn add(to: &AtomicU64, by: u64) {
    to.store(to.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// How often, how long in all, the longest, and a histogram. One thread records; others read numbers that are
/// each true, and together at most one recording apart.
#[derive(Debug)]
pub struct Meter {
    count: AtomicU64,
    total: AtomicU64,
    max: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Meter {
    fn default() -> Meter {
        let zero = || AtomicU64::new(0);
        let buckets = std::array::from_fn(|_| zero());
        Meter { count: zero(), total: zero(), max: zero(), buckets }
    }
}

impl Meter {
    /// It took so many ticks once more. Only the thread that the meter belongs to may say so.
    #[inline(always)]
    pub fn record(&self, ticks: u64) {
        add(&self.count, 1);
        add(&self.total, ticks);
        if ticks > self.max.load(Ordering::Relaxed) {
            self.max.store(ticks, Ordering::Relaxed);
        }
        add(&self.buckets[index(ticks)], 1);
    }

    /// What was recorded so far; `None` if nothing was.
    pub fn read(&self) -> Option<Sample> {
        let count = self.count.load(Ordering::Relaxed);
        (count != 0).then(|| Sample {
            count,
            total: self.total.load(Ordering::Relaxed),
            max: self.max.load(Ordering::Relaxed),
            buckets: self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).collect(),
        })
    }
}

/// What a [`Meter`] held, in ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// How often.
    pub count: u64,
    /// How long in all.
    pub total: u64,
    /// The longest.
    pub max: u64,
    /// How many were in each bucket.
    pub buckets: Vec<u64>,
}

impl Default for Sample {
    fn default() -> Sample {
        Sample { count: 0, total: 0, max: 0, buckets: vec![0; BUCKETS] }
    }
}

impl Sample {
    /// Both together.
    pub fn merge(&mut self, other: &Sample) {
        self.count += other.count;
        self.total = self.total.wrapping_add(other.total);
        self.max = self.max.max(other.max);
        for (to, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *to += from;
        }
    }

    /// Buckets that are not empty: the largest value of each, and how many are in it.
    pub fn filled(&self) -> impl Iterator<Item = (u64, u64)> + Clone {
        let filled = self.buckets.iter().enumerate().filter(|(_, n)| **n != 0);
        filled.map(|(index, n)| (highest(index), *n))
    }

    /// What so many in a thousand did not exceed.
    pub fn permille(&self, permille: u64) -> u64 {
        permille_of(self.filled(), permille).map_or(0, |value| value.min(self.max))
    }
}

/// Of buckets in rising order, each with its largest value and a count: the value that so many in a thousand did
/// not exceed; `None` where there are none.
pub fn permille_of(
    buckets: impl Iterator<Item = (u64, u64)> + Clone,
    permille: u64,
) -> Option<u64> {
    let count: u128 = buckets.clone().map(|(_, n)| u128::from(n)).sum();
    let wanted = (count * u128::from(permille)).div_ceil(1000).max(1);
    let mut seen = 0;
    for (value, n) in buckets {
        seen += u128::from(n);
        if seen >= wanted {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_values_have_a_bucket_each_and_buckets_have_no_gaps() {
        for value in 0..2 * SUB {
            assert_eq!((index(value), highest(index(value))), (value as usize, value));
        }
        for at in 0..BUCKETS - 1 {
            assert_eq!(index(highest(at)), at, "bucket {at} ends in itself");
            assert_eq!(index(highest(at) + 1), at + 1, "and the next begins after it");
        }
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn a_bucket_is_a_32nd_of_its_values(value in 0u64..1 << 42) {
            let highest = highest(index(value));
            prop_assert!(highest >= value && highest - value <= value / 32);
        }

        #[test]
        fn percentiles_are_those_of_the_sorted_values(
            mut values in proptest::collection::vec(0u64..1 << 40, 1..200),
            permille in 1u64..=1000,
        ) {
            let meter = Meter::default();
            values.iter().for_each(|&value| meter.record(value));
            let sample = meter.read().expect("something was recorded");
            values.sort_unstable();
            let rank = (values.len() * permille as usize).div_ceil(1000);
            let exact = values[rank - 1];
            let told = sample.permille(permille);
            prop_assert!(told >= exact && told - exact <= exact / 32, "{told} for {exact}");
            prop_assert_eq!(sample.count, values.len() as u64);
            prop_assert_eq!(sample.total, values.iter().sum::<u64>());
            prop_assert_eq!(sample.max, *values.last().expect("not empty"));
        }
    }

    #[test]
    fn two_samples_merge_into_what_one_meter_would_hold() {
        let (a, b, both) = (Meter::default(), Meter::default(), Meter::default());
        for (meter, value) in [(&a, 7), (&a, 900), (&b, 7), (&b, 1 << 50)] {
            meter.record(value);
            both.record(value);
        }
        let mut merged = a.read().expect("recorded");
        merged.merge(&b.read().expect("recorded"));
        assert_eq!(Some(merged), both.read());
        assert_eq!(Meter::default().read(), None);
        assert_eq!(Sample::default().permille(500), 0);
    }
}
