//! Runs cases: one `vmm` process each, side by side, every end accounted for.
//!
//! [`run`] runs cases here and collects what comes of them. Cases of another machine take the same
//! steps one by one: [`sort_out`] asks what that machine can run, [`run_each`] runs it there, and a
//! [`Collector`] here makes the results.

mod result;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use payload_abi::ExitValue;
use vmm::units;

use crate::bounded::Bounded;
use crate::case::{Case, CaseId, Subject};
use crate::facts::HostFacts;
use crate::kut::{image, timed};
use crate::load::Catalog;
use crate::need::{Met, Need};
use crate::process::{self, Stream};
use crate::schedule::Schedule;
use crate::skip::Cause;
use crate::transcript::Transcript;
use crate::verdict::{Outcome, Verdict, verdict, word};

pub use result::{CaseReport, CaseResult, Collector, Log, RunResult};

/// How much longer than the guest's time the VMM's process may take: to set up, to notice the timeout
/// itself and to write its report; for [`Setup::grace`].
pub const GRACE: Duration = Duration::from_secs(5);

/// What is kept of a serial log or a standard error: so much of its beginning and of its end. Bytes.
const KEEP: (usize, usize) = (256 << 10, 64 << 10);

/// What running takes.
#[derive(Clone)]
pub struct Setup<'a> {
    /// The `vmm` program.
    pub vmm: PathBuf,
    /// Variables of its environment, beside this process's own.
    pub environment: BTreeMap<String, String>,
    /// The payloads.
    pub catalog: &'a Catalog,
    /// The host.
    pub facts: &'a dyn HostFacts,
    /// How many vCPUs may run side by side; 1 at least.
    pub jobs: usize,
    /// How much longer than the guest's time a process may take; [`GRACE`] as a rule.
    pub grace: Duration,
    /// How many times slower than an ordinary machine this one is: the time that each guest may
    /// take, and the grace, are so much longer. Less than 1 counts as 1.
    pub slowness: f64,
    /// Becomes true when the run is to stop at once.
    pub cancel: &'a AtomicBool,
}

impl Setup<'_> {
    /// A time of an ordinary machine, on this one; a day at most.
    fn slowed(&self, time: Duration) -> Duration {
        let seconds = time.as_secs_f64() * self.slowness.max(1.0);
        Duration::from_secs_f64(seconds.min(86400.0))
    }
}

/// Told about the course of a run.
pub trait Watch {
    /// The case starts now.
    fn started(&mut self, case: &Case);
    /// The case ended, or was skipped.
    fn ended(&mut self, result: &CaseResult);
}

/// Hears nothing: for who only wants the results.
impl Watch for () {
    fn started(&mut self, _: &Case) {}
    fn ended(&mut self, _: &CaseResult) {}
}

/// A step in the course of a run; the case is told by its index.
#[derive(Debug)]
pub enum Step {
    /// The case starts now.
    Started(usize),
    /// The case ended, or was skipped.
    Ended(usize, Box<CaseReport>),
}

/// Runs the cases and returns what came out of each. With `fail_fast` the first fail or error stops
/// the run.
pub fn run(
    cases: &[Case],
    setup: &Setup<'_>,
    collector: &Collector,
    fail_fast: bool,
    watch: &mut dyn Watch,
) -> RunResult {
    let (started, start) = (SystemTime::now(), Instant::now());
    let mut results: Vec<Option<CaseResult>> = cases.iter().map(|_| None).collect();
    run_each(cases, setup, &mut |step| {
        let (index, report) = match step {
            Step::Started(index) => {
                watch.started(&cases[index]);
                return ControlFlow::Continue(());
            }
            Step::Ended(index, report) => (index, report),
        };
        let result = collector.collect(&cases[index], *report);
        watch.ended(&result);
        let stop = fail_fast && result.verdict.outcome.is_bad();
        results[index] = Some(result);
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let not_run = cases.iter().zip(&results).filter(|(_, r)| r.is_none());
    RunResult {
        started,
        duration: start.elapsed(),
        not_run: not_run.map(|(case, _)| case.id.clone()).collect(),
        results: results.into_iter().flatten().collect(),
    }
}

/// Runs the cases, slow and heavy ones first, and hands over what came out of each as it comes. Once
/// `each` breaks or the run is cancelled, no further one is started.
pub fn run_each(cases: &[Case], setup: &Setup<'_>, each: &mut dyn FnMut(Step) -> ControlFlow<()>) {
    let loads = cases.iter().map(|case| load(case, setup.facts.cpus()));
    let mut schedule = Schedule::new(setup.jobs, loads);
    // It may have been cancelled on another host.
    if setup.cancel.load(Ordering::Relaxed) {
        schedule.abandon();
    }
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        while !schedule.is_finished() {
            while let Some((index, weight)) = schedule.start() {
                if each(Step::Started(index)).is_break() {
                    schedule.abandon();
                }
                let (case, sender) = (&cases[index], sender.clone());
                scope.spawn(move || {
                    // The receiver outlives every sender: it is dropped after the last result.
                    let _ = sender.send((index, weight, Box::new(run_case(case, setup))));
                });
            }
            let Ok((index, weight, report)) = receiver.recv() else {
                break;
            };
            schedule.done(weight);
            let stop = each(Step::Ended(index, report)).is_break();
            if stop || setup.cancel.load(Ordering::Relaxed) {
                schedule.abandon();
            }
        }
    });
}

/// Separates the cases that a host can run from those that it cannot: the indexes of the first, and
/// what is to be reported of the others.
pub fn sort_out(cases: &[Case], facts: &dyn HostFacts) -> (Vec<usize>, Vec<(usize, CaseReport)>) {
    let (mut runnable, mut others) = (Vec::new(), Vec::new());
    for (index, case) in cases.iter().enumerate() {
        match check_needs(case, facts) {
            Ok(()) => runnable.push(index),
            Err(report) => others.push((index, *report)),
        }
    }
    (runnable, others)
}

/// What a case takes of the machine: a processor for each vCPU, as far as there are any.
/// And whether it is slow, which it says with a tag.
fn load(case: &Case, cpus: usize) -> (usize, bool) {
    let slow = case.spec.tags.iter().any(|tag| tag.0 == "slow");
    (usize::from(case.spec.machine.vcpus.0).min(cpus), slow)
}

/// Where the logs of a case go: `RUNS/AREA/NAME@VARIANT`.
pub fn logs_of(runs: &Path, id: &CaseId) -> PathBuf {
    runs.join(id.to_string())
}

/// The command that runs a case for so long at most, program first.
///
/// # Errors
///
/// Its payload is not built.
pub fn command(
    case: &Case,
    vmm: &Path,
    catalog: &Catalog,
    timeout: Duration,
) -> Result<Vec<String>, String> {
    let vmm = vmm.display().to_string();
    let machine = |words: &mut Vec<String>| {
        words.extend(case.spec.machine.arguments(case.dir()));
        words.extend(["--serial".into(), "stdio".into()]);
        words.extend(["--timeout".into(), units::show_duration(timeout)]);
    };
    let test = match &case.spec.subject {
        Subject::Guest(test) => test,
        Subject::Image(image) => {
            let mut words = vec![vmm, "run".into()];
            words.extend(["--kernel".into(), image.path.display().to_string()]);
            machine(&mut words);
            return Ok(words.iter().map(|word| timed(word)).collect());
        }
        // The runner itself sees to it that it ends.
        Subject::Host(test) => return Ok(vec![vmm, "host-test".into(), test.name().into()]),
    };
    let payload = catalog.get(&test.payload);
    let payload = payload.ok_or_else(|| format!("no payload `{}` is built", test.payload))?;
    let mut words = vec![vmm, "run".into()];
    words.extend(["--payload".into(), payload.path.display().to_string()]);
    words.extend(["--test".into(), test.test.clone()]);
    machine(&mut words);
    Ok(words)
}

/// Writes a command so that a shell reads the same words.
pub fn shell_line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let quote = |word: &String| match word.is_empty() || !word.chars().all(plain) {
        true => format!("'{}'", word.replace('\'', "'\\''")),
        false => word.clone(),
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// Compares what a case needs with the host.
///
/// # Errors
/// What is to be reported of a case that the host cannot run, or that is wrong.
fn check_needs(case: &Case, facts: &dyn HostFacts) -> Result<(), Box<CaseReport>> {
    let kvm = (!matches!(case.spec.subject, Subject::Host(_))).then_some(&Need::Kvm);
    // What can be told without the host comes first.
    if let Subject::Image(image) = &case.spec.subject
        && !image.why_not.is_empty()
    {
        let why = image.why_not.clone();
        return Err(Box::new(CaseReport::skipped(Cause::Configuration, why, None)));
    }
    for need in kvm.into_iter().chain(&case.spec.needs) {
        let report = match need.check(facts) {
            Met::Yes => continue,
            Met::No(why) => {
                let because = case.spec.because.as_ref().filter(|_| *need != Need::Kvm);
                let brief = format!("needs {need}: {why}");
                CaseReport::skipped(Cause::Need(need.clone()), brief, because.map(|b| &b.0[..]))
            }
            Met::Unknown(why) => {
                let reason = format!("need {need}: {why}");
                CaseReport::unrun(Verdict::new(Outcome::Error, reason))
            }
        };
        return Err(Box::new(report));
    }
    match case.spec.deviates.on(facts.processor()) {
        Some((who, deviation)) if !deviation.run => {
            let brief = format!("a deviation of {who}: {}", deviation.because.0);
            let report = CaseReport::skipped(Cause::Deviation, brief, Some("not run there"));
            Err(Box::new(report))
        }
        _ => Ok(()),
    }
}

/// Runs one case, unless a need is not met.
fn run_case(case: &Case, setup: &Setup<'_>) -> CaseReport {
    if let Err(report) = check_needs(case, setup.facts) {
        return *report;
    }
    if let Subject::Image(image) = &case.spec.subject
        && let Some(why) = image.why_not()
    {
        return CaseReport::skipped(Cause::Configuration, why, None);
    }
    let timeout = setup.slowed(case.spec.timeout.0);
    let command = match command(case, &setup.vmm, setup.catalog, timeout) {
        Ok(command) => command,
        Err(why) => return CaseReport::unrun(Verdict::new(Outcome::Error, why)),
    };
    let (mut report, word) = execute(case, setup, command, timeout);
    let (outcome, reason) = (report.verdict.outcome, report.verdict.reason.clone());
    if outcome == Outcome::Skip {
        let who = match case.spec.subject {
            Subject::Guest(_) => "guest",
            Subject::Image(_) => "image",
            Subject::Host(_) => "host",
        };
        report.skip(Cause::Guest, format!("the {who}: {reason}"), None);
        return report;
    }
    // Only what the guest itself reports is the bug that is known; a guest that dies is another.
    if word == Some(ExitValue::Fail)
        && let Some(bug) = &case.spec.known_bug
        && let Some(bug) = bug.of(setup.facts.flavour())
    {
        report.skip(Cause::KnownBug, format!("a known bug: {bug}"), Some(&reason));
        return report;
    }
    // Where a processor does something else than a real one, a test may end in any way. An error that
    // is not the guest's own word is one of the VMM or of what carries the report, all the same.
    if (outcome == Outcome::Fail || word == Some(ExitValue::Error))
        && let Some((who, deviation)) = case.spec.deviates.on(setup.facts.processor())
    {
        let brief = format!("a deviation of {who}: {}", deviation.because.0);
        report.skip(Cause::Deviation, brief, Some(&reason));
    }
    report
}

/// Runs the command of a case and judges it. Also returns what the guest itself said of its end.
fn execute(
    case: &Case,
    setup: &Setup<'_>,
    command: Vec<String>,
    timeout: Duration,
) -> (CaseReport, Option<ExitValue>) {
    let mut transcript = Transcript::new(case.spec.subject.test());
    let mut serial = Bounded::new(KEEP.0, KEEP.1);
    let mut stderr = Bounded::new(KEEP.0, KEEP.1);
    let start = Instant::now();
    let ended = process::run(
        Command::new(&command[0]).args(&command[1..]).envs(&setup.environment),
        timeout + setup.slowed(setup.grace),
        setup.cancel,
        &mut |stream, bytes| match stream {
            Stream::Out => {
                transcript.push(bytes);
                serial.push(bytes);
            }
            Stream::Err => stderr.push(bytes),
        },
    );
    transcript.finish();
    let word = word(&ended, transcript.report());
    let (verdict, values) = match &case.spec.subject {
        Subject::Image(_) => {
            let printed = serial.contents();
            (image::verdict(&ended, &printed), image::values(&printed))
        }
        _ => {
            let report = transcript.report();
            (verdict(&ended, report, case.spec.expect), transcript.values().to_vec())
        }
    };
    let report = CaseReport {
        verdict,
        skip: None,
        duration: start.elapsed(),
        ended: Some(ended),
        values,
        command,
        serial: Log::from(&serial),
        stderr: Log::from(&stderr),
    };
    (report, word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Payload;

    #[test]
    fn a_test_of_the_host_is_a_command_without_a_machine() {
        let spec = toml::from_str("about = \"x\"\nhost-test = \"vfio\"\n").expect("a case");
        let id = CaseId { area: "host".into(), name: "vfio".into(), variant: None };
        let case = Case { id, file: "vfio.toml".into(), spec };
        let words = command(&case, Path::new("/x/vmm"), &Catalog::new(), Duration::from_secs(1));
        assert_eq!(words.expect("a command"), ["/x/vmm", "host-test", "vfio"]);
    }

    #[test]
    fn a_command_names_the_machine_and_reads_back_in_a_shell() {
        let spec = toml::from_str(
            "about = \"x\"\npayload = \"a::t\"\ntimeout = \"5s\"\n\
             [machine]\nvcpus = 2\ncmdline = \"x='1' y\"\n",
        )
        .expect("a case");
        let id = CaseId { area: "a".into(), name: "n".into(), variant: None };
        let case = Case { id, file: "n.toml".into(), spec };
        let mut catalog = Catalog::new();
        let time = Duration::from_millis(5500);
        let missing = command(&case, Path::new("/x/vmm"), &catalog, time);
        assert_eq!(missing, Err("no payload `a` is built".to_string()));
        catalog.add("a", Payload { path: "/x/a b".into(), tests: vec![] });
        let words = command(&case, Path::new("/x/vmm"), &catalog, time).expect("a command");
        let line = shell_line(&words);
        assert_eq!(
            line,
            "/x/vmm run --payload '/x/a b' --test t --cpus 2 --cmdline 'x='\\''1'\\'' y' \
             --serial stdio --timeout 5500ms"
        );
        let script = format!("printf '%s\\n' {line}");
        let out = Command::new("sh").args(["-c", &script]).output().expect("a shell");
        let read: Vec<_> = std::str::from_utf8(&out.stdout).expect("text").lines().collect();
        assert_eq!(read, words);
        assert_eq!(shell_line(&[String::new()]), "''");
    }
}
