//! What can be said of measurements that are never twice the same.
//!
//! All of it works on ranks and medians: a neighbour on the machine makes single times ten times as long, and
//! a mean would tell of that alone. Chance has a fixed seed, so the same samples are always judged alike.

/// How often a test shuffles where it cannot try all.
const SHUFFLES: u32 = 20_000;
/// So many signs are all tried.
const ALL_SIGNS: usize = 14;
/// With fewer values there is no fence.
pub const FENCE_AT_LEAST: usize = 5;

/// The middle value; between two, the middle of them. Nothing of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value below which a part of the values lies, from 0 to 1, linear between two of them.
pub fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = part.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

/// Where values are expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fence {
    /// The least that is.
    pub low: f64,
    /// The most.
    pub high: f64,
}

impl Fence {
    /// Tukey's inner fences: one and a half of the distance between the quartiles beyond each of them.
    /// Nothing of fewer than [`FENCE_AT_LEAST`] values.
    pub fn of(values: &[f64]) -> Option<Fence> {
        if values.len() < FENCE_AT_LEAST {
            return None;
        }
        let (low, high) = (quantile(values, 0.25)?, quantile(values, 0.75)?);
        let beyond = 1.5 * (high - low);
        Some(Fence { low: low - beyond, high: high + beyond })
    }

    /// Whether a value is where values are expected.
    pub fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// How likely differences of pairs lie this far to one side if the two of a pair could as well be exchanged:
/// a permutation test of signs, of Wilcoxon's signed ranks. Two-sided.
pub fn paired(differences: &[f64]) -> f64 {
    let sizes: Vec<f64> = differences.iter().map(|d| d.abs()).collect();
    // What does not differ speaks for neither side.
    let weights: Vec<f64> = ranks(&sizes)
        .into_iter()
        .zip(differences)
        .map(|(rank, d)| if *d == 0.0 { 0.0 } else { rank.copysign(*d) })
        .collect();
    let seen = weights.iter().sum::<f64>().abs();
    let hits = |draws: &mut dyn FnMut() -> u64, times: u32| {
        let mut sum_of = || -> f64 {
            let signed = weights.chunks(64).map(|chunk| {
                let bits = draws();
                let signs = chunk.iter().enumerate();
                signs.map(|(i, w)| if bits >> i & 1 == 1 { *w } else { -w }).sum::<f64>()
            });
            signed.sum()
        };
        (0..times).filter(|_| sum_of().abs() >= seen - 1e-9).count() as f64
    };
    if weights.len() <= ALL_SIGNS {
        let all = 1 << weights.len();
        let mut signs = 0..;
        return hits(&mut || signs.next().unwrap_or(0), all) / f64::from(all);
    }
    let mut chance = Chance::new();
    (hits(&mut || chance.next(), SHUFFLES) + 1.0) / (f64::from(SHUFFLES) + 1.0)
}

/// How likely two groups lie this far apart if each value could as well be of the other: a permutation test of
/// the sum of ranks. Two-sided; 1 if a group is empty.
pub fn unpaired(one: &[f64], other: &[f64]) -> f64 {
    if one.is_empty() || other.is_empty() {
        return 1.0;
    }
    let mut ranks = ranks(&[one, other].concat());
    let expected = one.len() as f64 * (ranks.len() as f64 + 1.0) / 2.0;
    let off = |ranks: &[f64]| (ranks[..one.len()].iter().sum::<f64>() - expected).abs();
    let seen = off(&ranks);
    let mut chance = Chance::new();
    let mut hits = 0u32;
    for _ in 0..SHUFFLES {
        for at in 0..one.len() {
            let with = at + chance.below(ranks.len() - at);
            ranks.swap(at, with);
        }
        hits += u32::from(off(&ranks) >= seen - 1e-9);
    }
    (f64::from(hits) + 1.0) / (f64::from(SHUFFLES) + 1.0)
}

/// Holm's correction: probabilities of several tests, raised so that a limit holds for all together.
pub fn holm(probabilities: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]));
    let mut raised = vec![1.0; probabilities.len()];
    let mut least: f64 = 0.0;
    for (done, at) in order.into_iter().enumerate() {
        let tests = (probabilities.len() - done) as f64;
        least = least.max(probabilities[at] * tests).min(1.0);
        raised[at] = least;
    }
    raised
}

/// Each value's place from 1 on; equal values share the middle of their places.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        // The places before are those of smaller values.
        let before = values.iter().filter(|v| **v < values[equal[0]]).count() as f64;
        let rank = before + (equal.len() as f64 + 1.0) / 2.0;
        equal.iter().for_each(|at| ranks[*at] = rank);
    }
    ranks
}

/// SplitMix64, always from one seed.
struct Chance(u64);

impl Chance {
    fn new() -> Chance {
        Chance(0x0e71_71ab)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of so many.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles_are_between_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
        let five = [5.0, 1.0, 4.0, 2.0, 3.0];
        let parts = [0.0, 0.25, 0.9, 1.0].map(|part| quantile(&five, part).expect("some"));
        assert_eq!(parts, [1.0, 2.0, 4.6, 5.0]);
    }

    #[test]
    fn a_fence_is_tukeys_and_wants_five() {
        assert_eq!(Fence::of(&[1.0; 4]), None);
        let fence = Fence::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).expect("five");
        assert_eq!(fence, Fence { low: -1.0, high: 7.0 });
        assert!(fence.holds(7.0) && !fence.holds(7.01) && !fence.holds(-1.01));
        // One that is far off does not move it far.
        let fence = Fence::of(&[10.0, 10.0, 11.0, 11.0, 12.0, 900.0]).expect("six");
        assert!(!fence.holds(20.0), "{fence:?}");
    }

    /// From the tables of Wilcoxon's signed ranks: of n pairs that all differ to one side, p is 2 of 2^n; of
    /// five with the smallest to the other side (W = 1), 4 of 32.
    #[test]
    fn signed_ranks_are_those_of_the_tables() {
        assert_eq!(paired(&[1.0, 2.0, 3.0, 4.0, 5.0]), 2.0 / 32.0);
        assert_eq!(paired(&[-1.0, 2.0, 3.0, 4.0, 5.0]), 4.0 / 32.0);
        assert_eq!(paired(&[0.1; 10]), 2.0 / 1024.0);
        assert_eq!(paired(&[0.0; 10]), 1.0);
        assert_eq!(paired(&[]), 1.0);
        assert_eq!(paired(&[1.0, -1.0]), 1.0);
        // Where signs are drawn: 20 to one side are 2 of 2^20, and nothing is told below 1 of the draws.
        let p = paired(&[0.1; 20]);
        assert!(p < 1e-4, "{p}");
        let mixed: Vec<f64> = (1..=20).map(|n| f64::from(n) * f64::from(1 - n % 2 * 2)).collect();
        assert!(paired(&mixed) > 0.5, "{}", paired(&mixed));
    }

    /// Two groups of four that do not overlap: 2 of the 70 ways to divide eight.
    #[test]
    fn sums_of_ranks_are_those_of_the_tables() {
        let p = unpaired(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]);
        assert!((p - 2.0 / 70.0).abs() < 0.004, "{p}");
        assert_eq!(unpaired(&[3.0; 6], &[3.0; 6]), 1.0);
        assert_eq!(unpaired(&[], &[1.0]), 1.0);
    }

    #[test]
    fn several_tests_are_held_to_one_limit() {
        let raised = holm(&[0.04, 0.01, 0.03]);
        let expected = [0.06, 0.03, 0.06];
        assert!(raised.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{raised:?}");
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
        assert_eq!(holm(&[]), Vec::<f64>::new());
    }

    /// How often a test says that something differs where nothing does must not exceed its limit by much.
    #[test]
    fn chance_alone_is_seldom_called_a_difference() {
        let mut chance = Chance(7);
        let mut noise = || (chance.next() >> 40) as f64;
        let (mut pairs, mut groups) = (0, 0);
        for _ in 0..200 {
            let differences: Vec<f64> = (0..10).map(|_| noise() - noise()).collect();
            pairs += usize::from(paired(&differences) < 0.05);
        }
        for _ in 0..40 {
            let mut group = || (0..8).map(|_| noise()).collect::<Vec<f64>>();
            groups += usize::from(unpaired(&group(), &group()) < 0.05);
        }
        assert!(pairs <= 20 && groups <= 6, "{pairs} of 200, {groups} of 40");
    }
}
