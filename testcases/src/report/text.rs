//! The report for people: a line a case, all that is known of a bad one, and a summary.

use std::fmt::Write;
use std::time::Duration;

use crate::runner::{CaseResult, RunResult, shell_line};
use crate::verdict::Outcome;

/// One line on a case that ended.
pub fn line(result: &CaseResult) -> String {
    let outcome = result.verdict.outcome;
    let mut line =
        format!("{:<5} {} ({})", outcome.word(), result.case.id, seconds(result.duration));
    if !result.verdict.reason.is_empty() {
        let _ = write!(line, ": {}", result.verdict.reason);
    }
    line
}

/// Everything that helps with a case that failed or is broken: what it shows, the reason, the end of
/// the serial log, the VMM's report, and the commands that run it alone.
pub fn details(result: &CaseResult) -> String {
    let spec = &result.case.spec;
    let mut text = format!(
        "---- {}: {}\n{}\n{}\n",
        result.verdict.outcome.word(),
        result.case.id,
        spec.about.0,
        result.verdict.reason
    );
    let mut block = |title: &str, lines: &[String]| {
        if !lines.is_empty() {
            let _ = writeln!(text, "{title}:");
            for line in lines {
                let _ = writeln!(text, "  | {line}");
            }
        }
    };
    let log = format!("last lines of {}", result.logs.join("serial.log").display());
    block(&log, &result.serial_tail);
    block("the VMM says", &result.report);
    if result.serial_tail.is_empty() && !result.command.is_empty() {
        text.push_str("the serial log is empty\n");
    }
    let _ = writeln!(text, "run it alone:\n  {}", rerun(result));
    if !result.command.is_empty() {
        let _ = writeln!(text, "  {}", shell_line(&result.command));
    }
    text
}

/// The command that runs this case alone.
fn rerun(result: &CaseResult) -> String {
    let words = ["cargo", "xtask", "test", "--exact", &result.case.id.to_string()];
    shell_line(&words.map(str::to_string))
}

/// The summary: a table by area, what was bad, what was skipped and why, and a last line of the form
/// `N passed, N failed, N skipped`, in which errors count as failed.
pub fn summary(run: &RunResult) -> String {
    let mut text = table(run);
    let mut list = |title: &str, wanted: &dyn Fn(Outcome) -> bool| {
        let bad: Vec<_> = run.results.iter().filter(|r| wanted(r.verdict.outcome)).collect();
        if !bad.is_empty() {
            let _ = writeln!(text, "\n{title}:");
            for r in bad {
                let word = r.verdict.outcome.word();
                let _ = writeln!(text, "  {word:<5} {}: {}", r.case.id, r.verdict.reason);
            }
        }
    };
    list("skipped", &|outcome| outcome == Outcome::Skip);
    list("failed", &Outcome::is_bad);
    if !run.not_run.is_empty() {
        let _ = writeln!(text, "\nnot run, because the run was stopped: {}", run.not_run.len());
        for id in &run.not_run {
            let _ = writeln!(text, "  {id}");
        }
    }
    let errors = run.count(Outcome::Error);
    let _ = write!(text, "\n{} cases in {}", run.results.len(), seconds(run.duration));
    if errors > 0 {
        let _ = write!(text, "; {errors} of the failed are errors: the test or its surroundings");
    }
    let _ = writeln!(text, "\n{}", last_line(run));
    text
}

/// `N passed, N failed, N skipped`: errors count as failed.
pub fn last_line(run: &RunResult) -> String {
    format!(
        "{} passed, {} failed, {} skipped",
        run.count(Outcome::Pass),
        run.count(Outcome::Fail) + run.count(Outcome::Error),
        run.count(Outcome::Skip)
    )
}

const OUTCOMES: [Outcome; 4] = [Outcome::Pass, Outcome::Fail, Outcome::Error, Outcome::Skip];

fn table(run: &RunResult) -> String {
    let mut rows: Vec<(&str, [usize; 4], Duration)> = Vec::new();
    for result in &run.results {
        let area = &result.case.id.area[..];
        if rows.last().is_none_or(|(last, ..)| *last != area) {
            rows.push((area, [0; 4], Duration::ZERO));
        }
        let (_, counts, time) = rows.last_mut().expect("just pushed");
        let column = OUTCOMES.iter().position(|o| *o == result.verdict.outcome);
        counts[column.expect("all outcomes are listed")] += 1;
        *time += result.duration;
    }
    let width = rows.iter().map(|(area, ..)| area.len()).max().unwrap_or(0).max("area".len());
    let mut text = format!("{:<width$}", "area");
    for outcome in OUTCOMES {
        let _ = write!(text, " {:>6}", outcome.word());
    }
    let _ = writeln!(text, " {:>8}", "time");
    for (area, counts, time) in rows {
        let _ = write!(text, "{area:<width$}");
        for count in counts {
            let _ = write!(text, " {count:>6}");
        }
        let _ = writeln!(text, " {:>8}", seconds(time));
    }
    text
}

/// A duration in seconds with two digits.
pub fn seconds(d: Duration) -> String {
    format!("{:.2}s", d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_summary_ends_with_the_counts_alone_on_a_line() {
        let text = summary(&sample::run());
        assert_eq!(text.lines().last(), Some("1 passed, 2 failed, 1 skipped"));
        assert!(text.contains("1 of the failed are errors"), "{text}");
        assert!(text.contains("skip  tsc/absent: needs cpuid:x2apic: no"), "{text}");
        assert!(text.contains("fail  apic/bad: a.rs:1"), "{text}");
        assert!(text.contains("error tsc/broken: no report line came"), "{text}");
        let rows: Vec<Vec<&str>> =
            text.lines().take(3).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["area", "pass", "fail", "error", "skip", "time"]);
        assert_eq!(rows[1], ["apic", "1", "1", "0", "0", "3.00s"]);
        assert_eq!(rows[2], ["tsc", "0", "0", "1", "1", "3.00s"]);
    }

    #[test]
    fn what_was_not_run_is_listed() {
        let mut run = sample::run();
        let last = run.results.pop().expect("a result");
        run.not_run.push(last.case.id);
        let text = summary(&run);
        assert!(text.contains("not run, because the run was stopped: 1\n  tsc/absent"), "{text}");
        assert_eq!(text.lines().last(), Some("1 passed, 2 failed, 0 skipped"));
    }

    #[test]
    fn a_bad_case_shows_how_to_run_it_alone() {
        let text = details(&sample::run().results[1]);
        for part in [
            "---- fail: apic/bad\nIt works.\na.rs:1: 1 < 2 & 3\n",
            "last lines of runs/apic/bad/serial.log:\n  | <last>",
            "the VMM says:\n  | rip 0x1000",
            "  cargo xtask test --exact apic/bad\n",
            "  vmm run 'a b'\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_line_has_outcome_id_time_and_reason() {
        let run = sample::run();
        assert_eq!(line(&run.results[0]), "pass  apic/good (1.50s)");
        assert_eq!(line(&run.results[1]), "fail  apic/bad (1.50s): a.rs:1: 1 < 2 & 3");
    }
}
