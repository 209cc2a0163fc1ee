//! The report for people: a line a case, all that is known of a bad one, and a summary.

use std::fmt::Write;
use std::time::Duration;

use super::table::table;
use super::{HostRun, Place, Runs};
use crate::case::CaseId;
use crate::case::Subject;
use crate::runner::CaseResult;
use crate::verdict::Outcome;

/// How many cases a summary names of many that have something in common.
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
    // An image is on an emulated host only while its case runs there.
    let gone = place.emulator.is_some() && matches!(result.case.spec.subject, Subject::Image(_));
    if !result.command.is_empty() && !gone {
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
    let bad: Vec<_> = runs.hosts.iter().flat_map(|host| bad(runs, host)).collect();
    if !bad.is_empty() {
        text.push_str("\nfailed:\n");
        bad.iter().for_each(|line| writeln!(text, "  {line}").unwrap_or_default());
    }
    for host in runs.hosts.iter().filter(|host| !host.run.not_run.is_empty()) {
        let on = if several { format!(" on {}", host.info.name) } else { String::new() };
        let ids: Vec<_> = host.run.not_run.iter().collect();
        let _ = writeln!(text, "\nnot run{on}, because the run was stopped: {}", named(&ids));
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
    let skips = host.run.results.iter().filter(|r| r.verdict.outcome == Outcome::Skip);
    let reasons = skips.map(|result| {
        let brief = result.skip.as_ref().map(|skip| &skip.brief);
        (&brief.unwrap_or(&result.verdict.reason)[..], result)
    });
    let line = |(reason, results): (&str, Vec<&CaseResult>)| match &results[..] {
        [one] => format!("{}: {reason}", one.case.id),
        results => {
            format!("{reason} ({})", named(&results.iter().map(|r| &r.case.id).collect::<Vec<_>>()))
        }
    };
    groups(reasons).into_iter().map(line).collect()
}

/// The fails and errors of a host: a line a case; one for many with one reason, as when a host died.
fn bad(runs: &Runs, host: &HostRun) -> Vec<String> {
    let several = runs.hosts.len() > 1;
    let name = if several { format!("{} ", host.info.name) } else { String::new() };
    let mut lines = Vec::new();
    let bad = host.run.results.iter().filter(|r| r.verdict.outcome.is_bad());
    let reasons = bad.map(|r| ((r.verdict.outcome.word(), &r.verdict.reason[..]), r));
    for ((outcome, reason), results) in groups(reasons) {
        if results.len() > NAMED {
            let ids: Vec<_> = results.iter().map(|r| &r.case.id).collect();
            lines.push(format!("{outcome:<5} {name}{}: {reason}", named(&ids)));
            continue;
        }
        for id in results.iter().map(|r| &r.case.id) {
            let others = elsewhere(runs, &host.info.name, id);
            let others = if several { format!(" ({others})") } else { String::new() };
            lines.push(format!("{outcome:<5} {name}{id}{others}: {reason}"));
        }
    }
    lines
}

/// What has the same key together, in the order of the first of each.
fn groups<K: PartialEq, T>(things: impl Iterator<Item = (K, T)>) -> Vec<(K, Vec<T>)> {
    let mut groups: Vec<(K, Vec<T>)> = Vec::new();
    for (key, thing) in things {
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push(thing),
            None => groups.push((key, vec![thing])),
        }
    }
    groups
}

/// How many cases these are, and which: the first few.
fn named(ids: &[&CaseId]) -> String {
    let first: Vec<_> = ids.iter().take(NAMED).map(|id| id.to_string()).collect();
    let more = if ids.len() > NAMED { ", ..." } else { "" };
    let noun = if ids.len() == 1 { "case" } else { "cases" };
    format!("{} {noun}: {}{more}", ids.len(), first.join(", "))
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
        assert!(
            text.contains("\nnot run, because the run was stopped: 1 case: tsc/absent\n"),
            "{text}"
        );
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
            "\nnot run on amd, because the run was stopped: 2 cases: tsc/broken, tsc/absent\n",
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
    fn a_host_that_died_is_not_told_with_each_of_its_cases() {
        let mut runs = sample::two_hosts();
        let died = |name| sample::result("io", name, Outcome::Error, "host amd died");
        runs.hosts[1].run.results.extend(["a", "b", "c", "d", "e"].map(died));
        let text = summary(&runs);
        let line = "error amd 5 cases: io/a, io/b, io/c, io/d, ...: host amd died\n";
        assert!(text.contains(line), "{text}");
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
            command: vec!["test".into()],
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
