//! How much longer one thing takes than another, on a machine whose speed changes from one moment to the next:
//! both are done in turn, a moment each, and only neighbours are held against each other.

use std::fmt;
use std::time::Duration;

/// How long one turn is to take.
const TURN: Duration = Duration::from_millis(1);
/// Pairs, and the turns of each side in one: the fastest counts, the others met somebody else's work.
const PAIRS: usize = 25;
const TURNS: usize = 3;
/// The most of one turn: what takes no time at all must come to an end, too.
const MOST: u64 = 1 << 24;

/// What the one takes divided by what the other takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// A quarter of the pairs had less.
    pub lower: f64,
    /// The middle one.
    pub median: f64,
    /// A quarter had more.
    pub upper: f64,
}

impl Ratio {
    /// Of the ratios of many pairs; `None` of none.
    pub fn of(mut ratios: Vec<f64>) -> Option<Ratio> {
        ratios.sort_by(f64::total_cmp);
        let at = |part: usize| ratios.get(ratios.len() * part / 4).copied();
        Some(Ratio { lower: at(1)?, median: at(2)?, upper: at(3)? })
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.2}  ({:.2} to {:.2})", self.median, self.lower, self.upper)
    }
}

/// Holds `ours` against `bare`, both done the same number of times.
///
/// # Errors
/// What one of them says.
pub fn paired(
    bare: &mut dyn FnMut(u64) -> Result<Duration, String>,
    ours: &mut dyn FnMut(u64) -> Result<Duration, String>,
) -> Result<Ratio, String> {
    let mut number = 1;
    while number < MOST && bare(number)?.max(ours(number)?) < TURN {
        number *= 2;
    }
    let mut ratios = Vec::with_capacity(PAIRS);
    for pair in 0..PAIRS {
        let mut fastest = [Duration::MAX; 2];
        for turn in 0..2 * TURNS {
            // Who comes first alternates: what slows down or speeds up meanwhile favours neither.
            let side = (turn + turn / 2 + pair) % 2;
            let took = if side == 0 { bare(number)? } else { ours(number)? };
            fastest[side] = fastest[side].min(took);
        }
        let [bare, ours] = fastest;
        ratios.push(ours.as_secs_f64() / bare.as_secs_f64().max(1e-9));
    }
    Ratio::of(ratios).ok_or_else(|| "no pair was measured".to_owned())
}

/// Ratios of many things, told together at the end.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<(String, Ratio)>,
    left_out: Vec<(String, String)>,
}

impl Table {
    /// One more.
    pub fn add(&mut self, name: impl Into<String>, ratio: Ratio) {
        self.rows.push((name.into(), ratio));
    }

    /// One that is not measured, and why.
    pub fn leave_out(&mut self, name: impl Into<String>, why: impl Into<String>) {
        self.left_out.push((name.into(), why.into()));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.rows.is_empty() {
            writeln!(f, "{:28} {:>6}  (half of the pairs)", "times the yardstick", "median")?;
        }
        for (name, ratio) in &self.rows {
            writeln!(f, "{name:28} {ratio}")?;
        }
        for (name, why) in &self.left_out {
            writeln!(f, "{name:28} not measured: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_twice_as_long_is_twice_whatever_else_changes() {
        // A machine that gets slower all the time, in steps that no turn sees.
        let (bare_turns, our_turns) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let speed = |turns: &std::cell::Cell<u32>| {
            turns.set(turns.get() + 1);
            1 + turns.get() / 7
        };
        let mut bare = |n: u64| Ok(Duration::from_nanos(100 * n) * speed(&bare_turns));
        let mut ours = |n: u64| Ok(Duration::from_nanos(200 * n) * speed(&our_turns));
        assert_eq!(paired(&mut bare, &mut ours).map(|ratio| ratio.median), Ok(2.0));
        let mut broken = |_| Err("it ended".to_owned());
        assert_eq!(paired(&mut bare, &mut broken), Err("it ended".to_owned()));
    }

    #[test]
    fn quarters_are_told() {
        let ratio = Ratio::of((0..100).map(f64::from).collect());
        assert_eq!(ratio, Some(Ratio { lower: 25.0, median: 50.0, upper: 75.0 }));
        assert_eq!(Ratio::of(Vec::new()), None);
        let mut table = Table::default();
        table.add("in_8", Ratio { lower: 1.0, median: 1.25, upper: 1.5 });
        table.leave_out("nested", "no VMX");
        let text = table.to_string();
        assert!(text.contains("in_8") && text.contains("1.25  (1.00 to 1.50)"), "{text}");
        assert!(text.contains("not measured: no VMX"), "{text}");
    }
}
