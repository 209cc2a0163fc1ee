//! The table of a summary: rows are areas; columns are outcomes, for each host if there are several.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::text::seconds;
use super::{HostRun, Runs};
use crate::runner::RunResult;
use crate::verdict::Outcome;

const OUTCOMES: [Outcome; 4] = [Outcome::Pass, Outcome::Fail, Outcome::Error, Outcome::Skip];

/// What came out of an area on a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    /// How many cases had each of [`OUTCOMES`].
    counts: [usize; 4],
    /// How long they took together.
    time: Duration,
}

impl Cell {
    fn of<'a>(results: impl IntoIterator<Item = &'a crate::runner::CaseResult>) -> Cell {
        let mut cell = Cell::default();
        for result in results {
            let column = OUTCOMES.iter().position(|o| *o == result.verdict.outcome);
            cell.counts[column.expect("all outcomes are listed")] += 1;
            cell.time += result.duration;
        }
        cell
    }

    /// Passes, fails with errors, and skips, as in the last line of a summary.
    fn short(self) -> [usize; 3] {
        let [pass, fail, error, skip] = self.counts;
        [pass, fail + error, skip]
    }
}

/// The areas of a run with what came out of each.
fn areas(run: &RunResult) -> BTreeMap<&str, Cell> {
    let mut areas: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for result in &run.results {
        areas.entry(&result.case.id.area).or_default().push(result);
    }
    areas.into_iter().map(|(area, results)| (area, Cell::of(results))).collect()
}

/// The table, each line with its newline.
pub(super) fn table(runs: &Runs) -> String {
    match &runs.hosts[..] {
        [host] => one(&host.run),
        hosts => several(hosts),
    }
}

/// One host: a column for each outcome, and the time.
fn one(run: &RunResult) -> String {
    let areas = areas(run);
    let width = width(areas.keys());
    let mut text = format!("{:<width$}", "area");
    for outcome in OUTCOMES {
        let _ = write!(text, " {:>6}", outcome.word());
    }
    let _ = writeln!(text, " {:>8}", "time");
    for (area, cell) in areas {
        let _ = write!(text, "{area:<width$}");
        for count in cell.counts {
            let _ = write!(text, " {count:>6}");
        }
        let _ = writeln!(text, " {:>8}", seconds(cell.time));
    }
    text
}

/// Several hosts: three narrow columns for each. A cell is empty where a host ran none of the area.
fn several(hosts: &[HostRun]) -> String {
    let columns: Vec<_> = hosts.iter().map(|host| areas(&host.run)).collect();
    let mut names: Vec<&str> = columns.iter().flat_map(|areas| areas.keys().copied()).collect();
    names.sort_unstable();
    names.dedup();
    let width = width(&names);
    let mut text = format!("{:<width$}", "");
    for host in hosts {
        let _ = write!(text, "  {:>16}", host.info.name);
    }
    let _ = write!(text, "\n{:<width$}", "area");
    for _ in hosts {
        let _ = write!(text, "  {:>6}{:>5}{:>5}", "pass", "fail", "skip");
    }
    let mut row = |name: &str, cells: &[Option<Cell>]| {
        let _ = write!(text, "\n{name:<width$}");
        for cell in cells {
            let _ = match cell.map(Cell::short) {
                Some([pass, fail, skip]) => write!(text, "  {pass:>6}{fail:>5}{skip:>5}"),
                None => write!(text, "  {:>6}{:>5}{:>5}", "-", "-", "-"),
            };
        }
    };
    for name in &names {
        row(name, &columns.iter().map(|areas| areas.get(name).copied()).collect::<Vec<_>>());
    }
    row("total", &hosts.iter().map(|h| Some(Cell::of(&h.run.results))).collect::<Vec<_>>());
    let _ = write!(text, "\n{:<width$}", "time");
    for host in hosts {
        let _ = write!(text, "  {:>16}", seconds(host.run.duration));
    }
    text.push('\n');
    text
}

/// The width of the first column.
fn width(names: impl IntoIterator<Item = impl AsRef<str>>) -> usize {
    names.into_iter().map(|name| name.as_ref().len()).fold("total".len(), usize::max)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn rows(runs: &Runs) -> Vec<Vec<String>> {
        let text = table(runs);
        assert!(text.ends_with('\n'), "{text:?}");
        let words = |line: &str| line.split_whitespace().map(str::to_string).collect();
        text.lines().map(words).collect()
    }

    #[test]
    fn one_host_has_a_column_for_each_outcome() {
        let rows = rows(&sample::runs());
        assert_eq!(rows[0], ["area", "pass", "fail", "error", "skip", "time"]);
        assert_eq!(rows[1], ["apic", "1", "1", "0", "0", "3.00s"]);
        assert_eq!(rows[2], ["tsc", "0", "0", "1", "1", "3.00s"]);
        assert_eq!(rows.len(), 3);
    }

    #[test]
    fn several_hosts_stand_side_by_side_with_totals_and_times() {
        let runs = sample::two_hosts();
        let rows = rows(&runs);
        assert_eq!(rows[0], ["kvm", "amd"]);
        assert_eq!(rows[1], ["area", "pass", "fail", "skip", "pass", "fail", "skip"]);
        assert_eq!(rows[2], ["apic", "1", "1", "0", "0", "1", "1"]);
        assert_eq!(rows[3], ["tsc", "0", "1", "1", "-", "-", "-"]);
        assert_eq!(rows[4], ["total", "1", "2", "1", "0", "1", "1"]);
        assert_eq!(rows[5], ["time", "3.00s", "70.00s"]);
        let text = table(&runs);
        let widths: Vec<_> = text.lines().map(str::len).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "columns line up: {text}");
    }
}
