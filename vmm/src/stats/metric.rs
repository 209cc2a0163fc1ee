//! A number, or a histogram, that somebody else counts: what the hypervisor says of itself.

use serde::{Deserialize, Serialize};

/// How values are to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It only grows.
    Cumulative,
    /// What is the case now.
    Instant,
    /// The most so far.
    Peak,
    /// Counts by value: bucket `i` holds values from `i * bucket_size`, the last all that are larger.
    Linear,
    /// Counts by value: 0, 1, 2 to 3, 4 to 7 and so on; the last bucket holds all that are larger.
    Log,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Things.
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Clock cycles.
    Cycles,
    /// 0 or 1.
    Boolean,
}

/// One statistic. A value counts `base` to the power of `exponent` units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// How values are to be understood.
    pub kind: Kind,
    /// What is counted.
    pub unit: Unit,
    /// 2 or 10.
    pub base: u8,
    /// The power of it.
    pub exponent: i16,
    /// The width of a bucket of a linear histogram.
    pub bucket_size: u32,
    /// One value, or those of all buckets.
    pub values: Vec<u64>,
}

impl Metric {
    /// Whether it is a histogram.
    pub fn is_histogram(&self) -> bool {
        matches!(self.kind, Kind::Linear | Kind::Log)
    }

    /// The same of two vCPUs in one: the larger peak, the sum of anything else.
    pub fn merge(&mut self, other: &Metric) {
        for (to, from) in self.values.iter_mut().zip(&other.values) {
            *to = match self.kind {
                Kind::Peak => (*to).max(*from),
                _ => to.saturating_add(*from),
            };
        }
    }
}

/// The metrics of several vCPUs in one list, in the order of the first.
pub fn merged<'a>(lists: impl Iterator<Item = &'a [Metric]>) -> Vec<Metric> {
    let mut all: Vec<Metric> = Vec::new();
    for list in lists {
        for metric in list {
            match all.iter_mut().find(|m| m.name == metric.name) {
                Some(m) => m.merge(metric),
                None => all.push(metric.clone()),
            }
        }
    }
    all
}
