//! Better, the same or worse.
//!
//! An exact figure is worse beyond a tolerance. A noisy one is worse only where three witnesses agree: a
//! permutation test over all that was seen, held to one limit for all metrics together; a least effect; and a
//! fence, which is what the history says the metric does by itself. A lone time is never a witness.

use super::record::{Better, Kind, Measurement, Metric};
use super::stats::{self, Fence, median};

/// What something came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Worse than before.
    Worse,
    /// Better.
    Better,
    /// Nothing to compare with, or too little.
    Unknown,
    /// Neither, as far as can be told.
    Same,
}

impl Verdict {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Worse => "worse",
            Verdict::Better => "better",
            Verdict::Unknown => "unknown",
            Verdict::Same => "same",
        }
    }

    /// The verdict of a word.
    pub fn of(word: &str) -> Option<Verdict> {
        use Verdict::{Better, Same, Unknown, Worse};
        [Worse, Better, Unknown, Same].into_iter().find(|verdict| verdict.word() == word)
    }
}

/// What is called a difference.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How far exact figures may be apart, in their unit.
    pub tolerance: f64,
    /// How far noisy ones may: a part of what was before.
    pub effect: f64,
    /// How likely one difference at least may be called so by chance, of all metrics.
    pub chance: f64,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { tolerance: 2.0, effect: 0.05, chance: 0.01 }
    }
}

/// What two programs showed of a metric, in turn: of each round two of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Sides {
    /// The metric.
    pub metric: Metric,
    /// What was seen before.
    pub base: Vec<f64>,
    /// What is seen now.
    pub new: Vec<f64>,
}

/// What the history says of a metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// The newest run's figure.
    pub newest: Option<f64>,
    /// Each run's figure.
    pub runs: Vec<f64>,
}

/// A verdict and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The metric.
    pub metric: Metric,
    /// The verdict.
    pub verdict: Verdict,
    /// What it was.
    pub before: Option<f64>,
    /// What it is.
    pub after: Option<f64>,
    /// By which part of what was before it grew.
    pub change: Option<f64>,
    /// In words.
    pub why: String,
}

impl Judged {
    fn unknown(metric: &Metric, before: Option<f64>, after: Option<f64>, why: &str) -> Judged {
        let (metric, why) = (metric.clone(), why.to_owned());
        Judged { metric, verdict: Verdict::Unknown, before, after, change: None, why }
    }
}

/// Judges what two programs showed in turn. `fence` is what comparisons showed of a metric where nothing
/// differed, as parts.
pub fn sides(
    all: &[Sides],
    rules: &Rules,
    mut fence: impl FnMut(&Metric) -> Option<Fence>,
) -> Vec<Judged> {
    let noisy = all.iter().filter(|sides| sides.metric.kind == Kind::Noisy);
    let tests: Vec<f64> = noisy.map(|sides| stats::paired(&ratios(sides))).collect();
    let mut tests = stats::holm(&tests).into_iter();
    let judge = |sides: &Sides| match sides.metric.kind {
        Kind::Exact => exact(&sides.metric, &sides.base, &sides.new, rules),
        Kind::Noisy => {
            let chance = tests.next().unwrap_or(1.0);
            let (before, after) = (median(&sides.base), median(&sides.new));
            if sides.base.len() != sides.new.len() {
                // What follows would not be pairs.
                let why = format!("{} guests before and {} now", sides.base.len(), sides.new.len());
                return Judged::unknown(&sides.metric, before, after, &why);
            }
            let Some(change) = median(&ratios(sides)).map(|ratio| ratio.exp() - 1.0) else {
                return Judged::unknown(&sides.metric, before, after, "nothing was seen of it");
            };
            let fence = fence(&sides.metric);
            let doubt = match fence {
                Some(fence) if fence.holds(change) => Some(format!(
                    "inside the fence of {:+.1} to {:+.1} %",
                    fence.low * 100.0,
                    fence.high * 100.0
                )),
                _ => None,
            };
            noise(&sides.metric, (before, after), change, chance, doubt, rules)
        }
    };
    all.iter().map(judge).collect()
}

/// How the sides of each round differ, as logarithms of their ratios. The better of a side's two stands for it:
/// what a neighbour took from one run says nothing of the program.
fn ratios(sides: &Sides) -> Vec<f64> {
    let best = |two: &[f64]| match sides.metric.better {
        Better::Lower => two[0].min(two[1]),
        Better::Higher => two[0].max(two[1]),
    };
    let rounds = sides.base.chunks_exact(2).zip(sides.new.chunks_exact(2));
    let ratio = |(base, new)| f64::ln(best(new) / best(base));
    rounds.map(ratio).filter(|ratio| ratio.is_finite()).collect()
}

/// Judges what was measured now by what was measured before.
pub fn against(now: &[Measurement], past: &[Past], rules: &Rules) -> Vec<Judged> {
    let noisy = now.iter().zip(past).filter(|(now, _)| now.metric.kind == Kind::Noisy);
    let tests: Vec<f64> =
        noisy.map(|(now, past)| stats::unpaired(&past.runs, &now.samples)).collect();
    let mut tests = stats::holm(&tests).into_iter();
    let judge = |(now, past): (&Measurement, &Past)| {
        let metric = &now.metric;
        let chance = if metric.kind == Kind::Noisy { tests.next() } else { None };
        let after = median(&now.samples);
        let Some(newest) = past.newest else {
            return Judged::unknown(metric, None, after, "no run of it on this machine");
        };
        let Some(chance) = chance else {
            return exact(metric, &[newest], &now.samples, rules);
        };
        let before = median(&past.runs);
        let (Some(fence), Some(was), Some(is)) = (Fence::of(&past.runs), before, after) else {
            let few = format!(
                "{} runs on this machine, and {} make a fence",
                past.runs.len(),
                stats::FENCE_AT_LEAST
            );
            return Judged::unknown(metric, before, after, &few);
        };
        let doubt = fence.holds(is).then(|| {
            format!("inside the fence of {} to {}", figure(fence.low), figure(fence.high))
        });
        noise(metric, (before, after), is / was - 1.0, chance, doubt, rules)
    };
    now.iter().zip(past).map(judge).collect()
}

/// Whether growth is worse.
fn direction(metric: &Metric, grows: bool) -> Verdict {
    match grows == (metric.better == Better::Lower) {
        true => Verdict::Worse,
        false => Verdict::Better,
    }
}

fn exact(metric: &Metric, base: &[f64], new: &[f64], rules: &Rules) -> Judged {
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (before, after) = (median(base), median(new));
    let (Some(was), Some(is)) = (before, after) else {
        return Judged::unknown(metric, before, after, "one side does not make this exit");
    };
    // What one side showed itself is no difference.
    let (grows, shrinks) = (least(new) - most(base), least(base) - most(new));
    let verdict = if grows > rules.tolerance {
        direction(metric, true)
    } else if shrinks > rules.tolerance {
        direction(metric, false)
    } else {
        Verdict::Same
    };
    let by = (is - was).abs();
    let mut why = match is - was {
        0.0 => "equal".to_owned(),
        d => format!("{} {} {}", figure(by), metric.unit, if d > 0.0 { "more" } else { "fewer" }),
    };
    for (side, values) in [("before", base), ("now", new)] {
        if most(values) - least(values) > rules.tolerance {
            why += &format!(", {side} {} to {}", figure(least(values)), figure(most(values)));
        }
    }
    let change = (was != 0.0).then(|| (is - was) / was.abs());
    Judged { metric: metric.clone(), verdict, before, after, change, why }
}

fn noise(
    metric: &Metric,
    (before, after): (Option<f64>, Option<f64>),
    change: f64,
    chance: f64,
    doubt: Option<String>,
    rules: &Rules,
) -> Judged {
    let mut why = match chance < 0.0001 {
        true => "p < 0.0001".to_owned(),
        false => format!("p {chance:.4}"),
    };
    let verdict = if chance > rules.chance {
        Verdict::Same
    } else if change.abs() < rules.effect {
        why += &format!(", below {} %", figure(rules.effect * 100.0));
        Verdict::Same
    } else if let Some(doubt) = doubt {
        why += &format!(", {doubt}");
        Verdict::Same
    } else {
        direction(metric, change > 0.0)
    };
    Judged { metric: metric.clone(), verdict, before, after, change: Some(change), why }
}

/// A figure as it is told: whole where it is large.
pub fn figure(value: f64) -> String {
    match value.abs() {
        v if v.fract() == 0.0 || v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise as this machine's is: mostly small, at times several times as long.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) as f64 / (1u64 << 31) as f64
        }

        fn time(&mut self, usual: f64) -> f64 {
            let stolen = if self.next() < 0.1 { 1.0 + 4.0 * self.next() } else { 1.0 };
            usual * (0.9 + 0.3 * self.next()) * stolen
        }
    }

    /// Rounds in which `new` takes so many times as long, while the machine becomes slower and faster.
    fn rounds(seed: u64, times: f64, rounds: usize) -> Sides {
        let mut noise = Noise(seed);
        let mut sides = Sides { metric: Metric::time("t", "ns"), base: vec![], new: vec![] };
        for round in 0..rounds {
            let usual = 1000.0 * (1.0 + 0.3 * (round as f64 / 3.0).sin());
            sides.base.extend([noise.time(usual), noise.time(usual)]);
            sides.new.extend([noise.time(usual * times), noise.time(usual * times)]);
        }
        sides
    }

    fn judge(all: &[Sides]) -> Vec<Verdict> {
        let judged = sides(all, &Rules::default(), |_| None);
        judged.into_iter().map(|judged| judged.verdict).collect()
    }

    #[test]
    fn words_lead_back() {
        for verdict in [Verdict::Worse, Verdict::Better, Verdict::Unknown, Verdict::Same] {
            assert_eq!(Verdict::of(verdict.word()), Some(verdict));
        }
        assert_eq!(Verdict::of("so so"), None);
    }

    #[test]
    fn exact_figures_are_held_to_their_tolerance() {
        let metric = Metric::instructions("exits/port_read/user");
        let judged = |base: &[f64], new: &[f64]| {
            let sides = Sides { metric: metric.clone(), base: base.to_vec(), new: new.to_vec() };
            let judged = super::sides(&[sides], &Rules::default(), |_| None).remove(0);
            (judged.verdict, judged.why)
        };
        let is = |verdict, why: &str| (verdict, why.to_owned());
        assert_eq!(judged(&[95.0, 95.0], &[95.0, 95.0]), is(Verdict::Same, "equal"));
        assert_eq!(judged(&[95.0, 95.0], &[97.0, 97.0]), is(Verdict::Same, "2 instructions more"));
        assert_eq!(judged(&[95.0, 95.0], &[98.0, 98.0]), is(Verdict::Worse, "3 instructions more"));
        assert_eq!(
            judged(&[95.0, 95.0], &[85.0, 86.0]),
            is(Verdict::Better, "9.5 instructions fewer")
        );
        // One that does not repeat says nothing below what it does by itself, and that is told.
        let (verdict, why) = judged(&[95.0, 120.0], &[121.0, 130.0]);
        assert_eq!(verdict, Verdict::Same);
        assert!(why.ends_with("more, before 95 to 120, now 121 to 130"), "{why}");
        assert_eq!(judged(&[95.0], &[]).0, Verdict::Unknown);
        let higher = Metric { better: Better::Higher, ..metric.clone() };
        assert_eq!(exact(&higher, &[95.0], &[99.0], &Rules::default()).verdict, Verdict::Better);
    }

    #[test]
    fn equal_samples_are_never_worse() {
        let base: Vec<f64> = rounds(3, 1.0, 20).base;
        let equal = Sides { metric: Metric::time("t", "ns"), base: base.clone(), new: base };
        let judged = sides(&[equal], &Rules::default(), |_| None).remove(0);
        assert_eq!((judged.verdict, judged.change), (Verdict::Same, Some(0.0)));
        assert_eq!(judged.why, "p 1.0000");
    }

    #[test]
    fn twenty_runs_of_the_same_code_flag_nothing() {
        for seed in 0..20 {
            let twelve: Vec<Sides> = (0..12).map(|m| rounds(seed * 100 + m, 1.0, 20)).collect();
            assert_eq!(judge(&twelve), [Verdict::Same; 12], "run {seed}");
        }
    }

    #[test]
    fn a_real_shift_is_found_among_metrics_without_one() {
        for seed in 0..10 {
            let mut all: Vec<Sides> = (0..12).map(|m| rounds(seed * 100 + m, 1.0, 20)).collect();
            all[4] = rounds(seed * 100 + 50, 1.35, 20);
            all[7] = rounds(seed * 100 + 51, 0.7, 20);
            let mut expected = [Verdict::Same; 12];
            (expected[4], expected[7]) = (Verdict::Worse, Verdict::Better);
            assert_eq!(judge(&all), expected, "run {seed}");
        }
    }

    #[test]
    fn a_small_effect_a_fence_or_a_lone_time_is_no_regression() {
        let shifted = |by: f64| {
            let base: Vec<f64> = (0..40).map(|n| 1000.0 + f64::from(n % 7)).collect();
            let new = base.iter().map(|time| time * by).collect();
            Sides { metric: Metric::time("t", "ns"), base, new }
        };
        let small = sides(&[shifted(1.03)], &Rules::default(), |_| None).remove(0);
        assert_eq!(small.verdict, Verdict::Same);
        assert_eq!(small.why, "p < 0.0001, below 5 %");
        let wide = Fence { low: -0.1, high: 0.2 };
        let fenced = sides(&[shifted(1.15)], &Rules::default(), |_| Some(wide)).remove(0);
        assert_eq!(fenced.verdict, Verdict::Same);
        assert!(fenced.why.ends_with("inside the fence of -10.0 to +20.0 %"), "{}", fenced.why);
        let beyond = sides(&[shifted(1.25)], &Rules::default(), |_| Some(wide)).remove(0);
        assert_eq!(beyond.verdict, Verdict::Worse);
        let uneven = Sides { new: vec![9.0; 38], ..shifted(1.0) };
        assert_eq!(judge(&[uneven]), [Verdict::Unknown]);
        let lone = Sides { base: vec![1.0; 2], new: vec![9.0; 2], ..shifted(1.0) };
        assert_eq!(judge(&[lone]), [Verdict::Same]);
    }

    #[test]
    fn figures_are_as_long_as_they_must_be() {
        let told = [95.0, 9.5, 0.0314, 12.345, 1234.56, -2.0].map(figure);
        assert_eq!(told, ["95", "9.5", "0.031", "12.3", "1235", "-2"]);
    }

    #[test]
    fn a_history_judges_by_its_newest_count_and_by_the_fence_of_its_times() {
        let mut noise = Noise(11);
        let count = |now: f64| Measurement {
            metric: Metric::instructions("exits/port_read/user"),
            samples: vec![now; 2],
        };
        let newest = Past { newest: Some(95.0), runs: vec![60.0, 95.0] };
        let verdict = |now, past: &Past| {
            let judged = against(&[now], std::slice::from_ref(past), &Rules::default()).remove(0);
            (judged.verdict, judged.why)
        };
        assert_eq!(verdict(count(96.0), &newest).0, Verdict::Same);
        assert_eq!(verdict(count(105.0), &newest).1, "10 instructions more");
        assert_eq!(verdict(count(105.0), &newest).0, Verdict::Worse);
        assert_eq!(verdict(count(105.0), &Past::default()).0, Verdict::Unknown);

        let runs: Vec<f64> = (0..8).map(|_| 1000.0 + 50.0 * noise.next()).collect();
        let mut time = |usual: f64| Measurement {
            metric: Metric::time("t", "ns"),
            samples: (0..20).map(|_| usual + 50.0 * noise.next()).collect(),
        };
        let past = Past { newest: Some(1010.0), runs };
        assert_eq!(verdict(time(1000.0), &past).0, Verdict::Same);
        let (slower, why) = verdict(time(1300.0), &past);
        assert_eq!(slower, Verdict::Worse, "{why}");
        assert_eq!(verdict(time(700.0), &past).0, Verdict::Better);
        let few = Past { runs: past.runs[..4].to_vec(), ..past };
        let (verdict, why) = verdict(time(1300.0), &few);
        assert_eq!(verdict, Verdict::Unknown);
        assert!(why.starts_with("4 runs on this machine"), "{why}");
    }
}
