//! This tree's VMM against others, by the guests of `bench peers`: what the judge is given.

use benches::peers::Guest;
use benches::start::Memory;

use super::judge::Sides;
use super::record::{Better, Kind, Metric};
use crate::support::bench::exact::Spread;
use crate::support::bench::peers::Counts;
use crate::support::bench::start::Row;

/// What both showed, for one after the other: the row of this tree's VMM is `ours`, and of its peer `peer`. Of what
/// one of them does not show there is no metric.
pub fn sides(rows: &[Row], counts: &Counts, ours: usize, peer: usize) -> Vec<Sides> {
    let (Ok(our), Ok(their)) = (&rows[ours].seen, &rows[peer].seen) else { return Vec::new() };
    let name = |measure: &str| format!("{}/{measure}", rows[peer].name);
    let mut all = Vec::new();
    for (index, guest) in Guest::EXITS.into_iter().enumerate() {
        if let (Ok(new), Ok(base)) = (&counts[ours][index], &counts[peer][index]) {
            let values = |spread: &Spread| {
                [spread.least, spread.median, spread.most].map(|count| count as f64).to_vec()
            };
            let metric = Metric::instructions(name(&format!("{}/user", guest.name())));
            all.push(Sides { metric, base: values(base), new: values(new) });
        }
    }
    if !our.times.is_empty() {
        let metric = Metric::time(name("start/time"), "ms");
        all.push(Sides { metric, base: their.times.clone(), new: our.times.clone() });
    }
    let kib = |looks: &[Memory]| looks.iter().map(|memory| (memory.rss >> 10) as f64).collect();
    let metric = Metric {
        name: name("memory/rss"),
        unit: "KiB".to_owned(),
        better: Better::Lower,
        kind: Kind::Exact,
    };
    all.push(Sides { metric, base: kib(&their.memory), new: kib(&our.memory) });
    all
}

#[cfg(test)]
mod tests {
    use super::super::judge::{self, Rules, Verdict};
    use super::*;
    use crate::support::bench::start::Seen;

    #[test]
    fn a_peer_that_is_slower_larger_and_at_times_shorter_is_told_so() {
        let seen = |time: f64, rss: u64| {
            let times = (0..40).map(|n| time * (1.0 + f64::from(n % 5) / 100.0)).collect();
            let memory = vec![Memory { rss, pss: rss, guest: 0 }; 3];
            Ok(Seen { times, memory, ratio: None })
        };
        let row = |name: &str, seen| Row { name: name.into(), seen };
        let rows = [row("vmm", seen(2.0, 1 << 20)), row("other", seen(4.0, 3 << 20))];
        let of = |count: u64| Ok(Spread::of(vec![count]).expect("one"));
        let counts = vec![[of(100), of(58), of(49)], [of(454), of(50), Err("it ended".into())]];
        let judged = judge::sides(&sides(&rows, &counts, 0, 1), &Rules::default(), |_| None);
        let verdicts: Vec<_> = judged.iter().map(|j| (&j.metric.name[..], j.verdict)).collect();
        assert_eq!(
            verdicts,
            [
                ("other/claimed/user", Verdict::Better),
                ("other/unclaimed/user", Verdict::Worse),
                ("other/start/time", Verdict::Better),
                ("other/memory/rss", Verdict::Better),
            ]
        );
        let gone = [row("vmm", seen(2.0, 1)), row("other", Err("no".into()))];
        assert!(sides(&gone, &counts, 0, 1).is_empty());
    }
}
