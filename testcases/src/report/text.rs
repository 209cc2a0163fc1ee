//! The report for people: a line a case, all that is known of a bad one, and a summary.

use std::fmt::Write;
use std::time::Duration;

use super::table::table;
use super::{HostRun, Place, Runs};
use crate::case::CaseId;
use crate::runner::CaseResult;
use crate::verdict::Outcome;

/// How many cases a summary names of those that were skipped for one reason.
const NAMED: usize = 4;

/// One line on a case that ended on this host.
pub fn line(result: &CaseResult, place: &Place) -> String {
    let outcome = result.verdict.outcome;
    let mut line = format!(
        "{:<5} {}{} ({})",
        outcome.word(),
        host(place),
        result.case.id,
        seconds(result.duration)
    );
    if !result.verdict.reason.is_empty() {
        let _ = write!(line, ": {}", result.verdict.reason);
    }
    line
}

/// The host's name before an id, if it must be told.
fn host(place: &Place) -> String {
    if place.among_others { format!("{} ", place.name) } else { String::new() }
}

/// Everything that helps with a case that failed or is broken: what it shows, the reason, the end of
/// the serial log, the VMM's report, and the commands that run it alone.
pub fn details(result: &CaseResult, place: &Place) -> String {
    let (outcome, id) = (result.verdict.outcome.word(), &result.case.id);
    let mut text = format!("---- {outcome}: {}{id}", host(place));
    if let Some(emulator) = &place.emulator {
        let _ = write!(text, " (on {emulator})");
    }
    let _ = writeln!(text, "\n{}\n{}", result.case.spec.about.0, result.verdict.reason);
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
    let _ = writeln!(text, "run it alone:\n  {}", place.rerun(id));
    if !result.command.is_empty() {
        let _ = writeln!(text, "  {}", place.plain(&result.command));
    }
    text
}

/// The summary: a table by area, what was skipped and why, what was bad, and a last line of the form
/// `N passed, N failed, N skipped`, in which errors count as failed.
///
/// Skips for one reason are one entry. What else is to be said of each of them is told in the line of
/// the case, and in the other reports.
pub fn summary(runs: &Runs) -> String {
    let mut text = table(runs);
    let several = runs.hosts.len() > 1;
    for host in &runs.hosts {
        let on = if several { format!(" on {}", host.info.name) } else { String::new() };
        let skips = skips(host);
        if !skips.is_empty() {
            let _ = writeln!(text, "\nskipped{on}:");
            skips.iter().for_each(|skip| writeln!(text, "  skip  {skip}").unwrap_or_default());
        }
    }
    let bad: Vec<_> = runs.results().filter(|(_, r)| r.verdict.outcome.is_bad()).collect();
    if !bad.is_empty() {
        text.push_str("\nfailed:\n");
    }
    for (host, result) in bad {
        let (outcome, id) = (result.verdict.outcome.word(), &result.case.id);
        let _ = match several {
            true => write!(text, "  {outcome:<5} {host} {id} ({})", elsewhere(runs, host, id)),
            false => write!(text, "  {outcome:<5} {id}"),
        };
        let _ = writeln!(text, ": {}", result.verdict.reason);
    }
    let not_run: Vec<_> = runs.not_run().collect();
    if !not_run.is_empty() {
        let _ = writeln!(text, "\nnot run, because the run was stopped: {}", not_run.len());
    }
    for (host, id) in not_run {
        let _ = match several {
            true => writeln!(text, "  {host} {id}"),
            false => writeln!(text, "  {id}"),
        };
    }
    let _ = write!(text, "\n{} cases", runs.results().count());
    if several {
        let _ = write!(text, " on {} hosts", runs.hosts.len());
    }
    let _ = write!(text, " in {}", seconds(runs.duration));
    let errors = runs.count(Outcome::Error);
    if errors > 0 {
        let _ = write!(text, "; {errors} of the failed are errors: the test or its surroundings");
    }
    let _ = writeln!(text, "\n{}", last_line(runs));
    text
}

/// The skips of a host: a line a reason, in the order of the first case of each.
fn skips(host: &HostRun) -> Vec<String> {
    let mut groups: Vec<(&str, Vec<&CaseId>)> = Vec::new();
    for result in host.run.results.iter().filter(|r| r.verdict.outcome == Outcome::Skip) {
        let brief = result.skip.as_ref().map(|skip| &skip.brief);
        let (reason, id) = (&brief.unwrap_or(&result.verdict.reason)[..], &result.case.id);
        match groups.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, ids)) => ids.push(id),
            None => groups.push((reason, vec![id])),
        }
    }
    let line = |(reason, ids): (&str, Vec<&CaseId>)| match &ids[..] {
        [id] => format!("{id}: {reason}"),
        ids => {
            let named: Vec<_> = ids.iter().take(NAMED).map(|id| id.to_string()).collect();
            let more = if ids.len() > NAMED { ", ..." } else { "" };
            format!("{reason} ({} cases: {}{more})", ids.len(), named.join(", "))
        }
    };
    groups.into_iter().map(line).collect()
}

/// What came of a case on the other hosts.
fn elsewhere(runs: &Runs, not: &str, id: &CaseId) -> String {
    let others = runs.hosts.iter().filter(|host| host.info.name != not);
    let outcome = |host: &HostRun| {
        let result = host.run.results.iter().find(|result| result.case.id == *id);
        let word = result.map_or("not run", |result| result.verdict.outcome.word());
        format!("{} {word}", host.info.name)
    };
    others.map(outcome).collect::<Vec<_>>().join(", ")
}

/// `N passed, N failed, N skipped`: errors count as failed.
pub fn last_line(runs: &Runs) -> String {
    format!(
        "{} passed, {} failed, {} skipped",
        runs.count(Outcome::Pass),
        runs.count(Outcome::Fail) + runs.count(Outcome::Error),
        runs.count(Outcome::Skip)
    )
}

/// A duration in seconds with two digits.
pub fn seconds(d: Duration) -> String {
    format!("{:.2}s", d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn last_of(runs: &Runs) -> String {
        summary(runs).lines().last().expect("a summary").to_string()
    }

    #[test]
    fn the_summary_ends_with_the_counts_alone_on_a_line() {
        let runs = sample::runs();
        let text = summary(&runs);
        assert_eq!(last_of(&runs), "1 passed, 2 failed, 1 skipped");
        for part in [
            "\n4 cases in 3.00s; 1 of the failed are errors",
            "\nskipped:\n  skip  tsc/absent: needs cpuid:x2apic: no\n",
            "\nfailed:\n  fail  apic/bad: a.rs:1",
            "error tsc/broken: no report line came",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn what_was_not_run_is_listed() {
        let mut runs = sample::runs();
        let last = runs.hosts[0].run.results.pop().expect("a result");
        runs.hosts[0].run.not_run.push(last.case.id);
        let text = summary(&runs);
        assert!(text.contains("not run, because the run was stopped: 1\n  tsc/absent"), "{text}");
        assert_eq!(last_of(&runs), "1 passed, 2 failed, 0 skipped");
    }

    #[test]
    fn with_several_hosts_each_is_named_and_a_fail_tells_how_it_went_elsewhere() {
        let runs = sample::two_hosts();
        let text = summary(&runs);
        for part in [
            "\nskipped on kvm:\n  skip  tsc/absent: needs",
            "\nskipped on amd:\n  skip  apic/bad: needs",
            "fail  amd apic/good (kvm pass): not here",
            "fail  kvm apic/bad (amd skip): a.rs:1",
            "error kvm tsc/broken (amd not run): no report",
            "not run, because the run was stopped: 2\n  amd tsc/broken\n  amd tsc/absent\n",
            "\n6 cases on 2 hosts in 73.00s;",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(last_of(&runs), "1 passed, 3 failed, 2 skipped");
    }

    #[test]
    fn skips_for_one_reason_are_one_line() {
        let mut runs = sample::runs();
        let brief = "needs cpuid:x2apic: no";
        let mut results: Vec<_> = ["a", "b", "c", "d", "e", "f"]
            .map(|name| sample::result("apic", name, Outcome::Skip, brief))
            .into();
        results[1].verdict.reason = format!("{brief}; it flushes");
        results.push(sample::result("tsc", "g", Outcome::Skip, "another"));
        runs.hosts[0].run.results = results;
        let text = summary(&runs);
        let (_, list) = text.split_once("skipped:\n").expect("skips");
        let lines: Vec<_> = list.lines().take_while(|line| !line.is_empty()).collect();
        assert_eq!(
            lines,
            [
                "  skip  needs cpuid:x2apic: no (6 cases: apic/a, apic/b, apic/c, apic/d, ...)",
                "  skip  tsc/g: another",
            ]
        );
        assert_eq!(last_of(&runs), "0 passed, 0 failed, 7 skipped");
    }

    #[test]
    fn a_bad_case_shows_how_to_run_it_alone() {
        let runs = sample::runs();
        let bad = &runs.hosts[0].run.results[1];
        let text = details(bad, &Place::own());
        for part in [
            "---- fail: apic/bad\nIt works.\na.rs:1: 1 < 2 & 3\n",
            "last lines of runs/apic/bad/serial.log:\n  | <last>",
            "the VMM says:\n  | rip 0x1000",
            "  cargo xtask test --host kvm --exact apic/bad\n",
            "\n  vmm run 'a b'\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let place = Place {
            name: "amd".into(),
            emulator: Some("QEMU 10.0".into()),
            among_others: true,
            flags: vec!["--kvm-param".into(), "npt=0".into()],
        };
        let text = details(bad, &place);
        for part in [
            "---- fail: amd apic/bad (on QEMU 10.0)\nIt works.\n",
            "  cargo xtask test --host amd --kvm-param npt=0 --exact apic/bad\n",
            "  cargo xtask host run amd --kvm-param npt=0 -- vmm run 'a b'\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(line(bad, &place), "fail  amd apic/bad (1.50s): a.rs:1: 1 < 2 & 3");
    }

    #[test]
    fn a_line_has_outcome_id_time_and_reason() {
        let (runs, place) = (sample::runs(), Place::own());
        let results = &runs.hosts[0].run.results;
        assert_eq!(line(&results[0], &place), "pass  apic/good (1.50s)");
        assert_eq!(line(&results[1], &place), "fail  apic/bad (1.50s): a.rs:1: 1 < 2 & 3");
    }
}
