//! `cargo xtask ci`: everything a change must pass, the likeliest failure first.
//!
//! Each stage is a command that a person can type, so a failed one is rerun by its line.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use testcases::facts::HostFacts;
use testcases::facts_table::FactsTable;
use testcases::process::{self, Ended};
use testcases::report::text::seconds;
use testcases::require;
use testcases::runner::shell_line;

use crate::flags;
use crate::support::{self, Failure, Out, Outcome};

/// One stage.
struct Stage {
    /// What it is called in the table.
    name: &'static str,
    /// The words after `cargo`.
    words: Vec<String>,
    /// How long it may take at most; a first build of everything on two slow cores fits.
    limit: Duration,
}

/// The stages, in order. Cases run on the emulated hosts always, and on this machine's KVM if it has one
/// (`kvm`) or is required to.
fn stages(require: &str, kvm: bool) -> Vec<Stage> {
    let stage = |name, words: &str, minutes: u64| Stage {
        name,
        words: words.split_whitespace().map(str::to_string).collect(),
        limit: Duration::from_secs(minutes * 60),
    };
    let own = kvm || require.split(',').any(|name| name == "kvm");
    let hosts = if own { "all" } else { "amd,intel" };
    let mut cases = stage("cases", &format!("xtask test --host {hosts}"), 30);
    if !require.is_empty() {
        cases.words.extend(["--require".to_string(), require.to_string()]);
    }
    // What exits cost as `benches/exact.toml` says; the VMM's own part is counted on this machine's KVM.
    let counted = match own {
        true => "xtask bench exact --check",
        false => "xtask bench exact --only total --check",
    };
    let mut stages = vec![
        stage("format", "fmt --all --check", 2),
        stage("tidy", "xtask tidy", 10),
        stage("coverage", "xtask coverage-map --check", 10),
        stage("clippy", "clippy --workspace --all-targets -- -D warnings", 20),
        stage(
            "clippy wrong",
            "clippy --package vmm --package fuzz --features vmm/sabotage,fuzz/planted --all-targets -- -D warnings",
            10,
        ),
        stage("lint payloads", "xtask payloads --lint", 20),
        stage("tests", "test --workspace", 30),
        stage("exit costs", counted, 20),
        stage("fuzz", "xtask fuzz floors all --runs 150000 --jobs 2", 20),
        stage("fuzz findings", "test --package xtask -- --ignored", 20),
        stage("payloads", "xtask payloads --check", 20),
    ];
    if own {
        stages.push(stage("direct", "xtask fuzz direct --runs 2", 20));
    }
    stages.push(cases);
    stages
}

/// Runs the command.
pub fn run(flags: &flags::Ci, out: &mut Out) -> Outcome {
    let required = support::required(&flags.require)?.to_string();
    let cancel = support::cancel_flag()?;
    let mut rows: Vec<(&str, &str, Duration)> = Vec::new();
    let mut failed = None;
    let kvm = FactsTable::collect().kvm().is_ok();
    for stage in stages(&required, kvm) {
        if failed.is_some() {
            rows.push((stage.name, "not run", Duration::ZERO));
            continue;
        }
        let line = shell_line(&[&["cargo".to_string()], &stage.words[..]].concat());
        writeln!(out, "==== {}: {line}", stage.name);
        let mut command = Command::new(support::cargo());
        command.args(&stage.words).current_dir(support::root());
        command.env(require::VARIABLE, &required);
        let start = Instant::now();
        let ended = process::run_inherited(&mut command, stage.limit, &cancel);
        let took = start.elapsed();
        if ended == Ended::Exited(0) {
            writeln!(out, "==== {}: passed in {}", stage.name, seconds(took));
            rows.push((stage.name, "passed", took));
        } else {
            writeln!(out, "==== {}: failed in {}: {ended}", stage.name, seconds(took));
            rows.push((stage.name, "failed", took));
            let environment = match required.is_empty() {
                true => String::new(),
                false => format!("{}={} ", require::VARIABLE, required),
            };
            failed = Some(format!(
                "stage `{}` failed: {ended}; rerun it: {environment}{line}",
                stage.name
            ));
        }
    }
    writeln!(out, "\n{:<14} {:<8} {:>9}", "stage", "", "time");
    for (name, result, took) in &rows {
        writeln!(out, "{name:<14} {result:<8} {:>9}", seconds(*took));
    }
    let total = rows.iter().map(|(_, _, took)| *took).sum();
    writeln!(out, "{:<14} {:<8} {:>9}", "total", "", seconds(total));
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(message) => Err(Failure::bad(message)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn stages_that_are_our_own_commands_have_good_flags() {
        let mut own = 0;
        for stage in stages("kvm", true) {
            assert!(stage.limit > Duration::ZERO);
            if let Some(("xtask", rest)) = stage.words.split_first().map(|(w, r)| (w.as_str(), r)) {
                own += 1;
                let words = ["cargo xtask"].into_iter().chain(rest.iter().map(String::as_str));
                assert!(flags::Xtask::try_parse_from(words).is_ok(), "{:?}", stage.words);
            }
        }
        assert_eq!(own, 8);
        assert!(!stages("", false).iter().any(|stage| stage.name == "direct"));
        let cases =
            |require, kvm| stages(require, kvm).pop().expect("the last stage").words.join(" ");
        // A KVM that is required and missing is an error of its cases.
        assert_eq!(cases("kvm", false), "xtask test --host all --require kvm");
        assert_eq!(cases("", true), "xtask test --host all");
        assert_eq!(cases("", false), "xtask test --host amd,intel");
    }
}
