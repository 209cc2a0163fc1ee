//! Runs cases: one `vmm` process each, side by side, every end accounted for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use payload_abi::ExitValue;
use vmm::units;

use crate::bounded::{Bounded, excerpt};
use crate::case::{Case, CaseId};
use crate::facts::HostFacts;
use crate::load::Catalog;
use crate::need::{Met, Need};
use crate::process::{self, Ended, Stream};
use crate::require::Require;
use crate::schedule::Schedule;
use crate::transcript::{Measured, Transcript};
use crate::verdict::{Outcome, Verdict, verdict};

/// How much longer than the guest's time the VMM's process may take: to set up, to notice the timeout
/// itself and to write its report; for [`Setup::grace`].
pub const GRACE: Duration = Duration::from_secs(5);

/// What is kept of a serial log or a standard error: so much of its beginning and of its end. Bytes.
const KEEP: (usize, usize) = (256 << 10, 64 << 10);

/// The last lines of the serial log that a result carries along.
const SERIAL_SHOWN: usize = 15;

/// The first and last lines of the VMM's report that a result carries along: the reason with the
/// first vCPU's registers, and the last exits.
const REPORT_SHOWN: (usize, usize) = (50, 70);

/// What a run works with.
pub struct Setup<'a> {
    /// The `vmm` program.
    pub vmm: PathBuf,
    /// The directory that gets a directory for each case, with its logs.
    pub runs: PathBuf,
    /// The payloads.
    pub catalog: &'a Catalog,
    /// The host.
    pub facts: &'a dyn HostFacts,
    /// The skips that are errors.
    pub require: Require,
    /// How many vCPUs may run side by side; 1 at least.
    pub jobs: usize,
    /// How much longer than the guest's time a process may take; [`GRACE`] as a rule.
    pub grace: Duration,
    /// Whether the first fail or error stops the run.
    pub fail_fast: bool,
    /// Becomes true when the run is to stop at once.
    pub cancel: &'a AtomicBool,
}

/// Told about the course of a run.
pub trait Watch {
    /// The case starts now.
    fn started(&mut self, case: &Case);
    /// The case ended, or was skipped.
    fn ended(&mut self, result: &CaseResult);
}

/// What came out of one case.
#[derive(Clone, Debug)]
pub struct CaseResult {
    /// The case.
    pub case: Case,
    /// The outcome and its reason.
    pub verdict: Verdict,
    /// The need that was not met, after a skip (or an error because it was required).
    pub unmet: Option<Need>,
    /// How long the process ran.
    pub duration: Duration,
    /// How the process ended; `None` if none was started.
    pub ended: Option<Ended>,
    /// The figures the guest measured.
    pub values: Vec<Measured>,
    /// The command that ran, program first; empty if none was.
    pub command: Vec<String>,
    /// Where the logs are.
    pub logs: PathBuf,
    /// Bytes the guest wrote to its serial port, kept or not.
    pub serial_bytes: u64,
    /// The last lines of the serial log.
    pub serial_tail: Vec<String>,
    /// What the VMM wrote to its standard error: its beginning and its end.
    pub report: Vec<String>,
}

/// What came out of a run.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// When it started.
    pub started: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// The results, in the order of the cases.
    pub results: Vec<CaseResult>,
    /// Cases that were chosen and not run, because the run was stopped.
    pub not_run: Vec<CaseId>,
}

impl RunResult {
    /// How many cases had this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.results.iter().filter(|r| r.verdict.outcome == outcome).count()
    }

    /// Whether the run as a whole is good: nothing failed, and nothing was left out.
    pub fn is_good(&self) -> bool {
        self.not_run.is_empty() && !self.results.iter().any(|r| r.verdict.outcome.is_bad())
    }
}

/// Runs the cases and returns what came out of each.
pub fn run(cases: &[Case], setup: &Setup<'_>, watch: &mut dyn Watch) -> RunResult {
    let (started, start) = (SystemTime::now(), Instant::now());
    let loads = cases.iter().map(|case| load(case, setup.facts.cpus()));
    let mut schedule = Schedule::new(setup.jobs, loads);
    let mut results: Vec<Option<CaseResult>> = cases.iter().map(|_| None).collect();
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        while !schedule.is_finished() {
            while let Some((index, weight)) = schedule.start() {
                let case = &cases[index];
                watch.started(case);
                let sender = sender.clone();
                scope.spawn(move || {
                    // The receiver outlives every sender: it is dropped after the last result.
                    let _ = sender.send((index, weight, run_case(case, setup)));
                });
            }
            let Ok((index, weight, result)) = receiver.recv() else {
                break;
            };
            schedule.done(weight);
            watch.ended(&result);
            let stop = setup.fail_fast && result.verdict.outcome.is_bad()
                || setup.cancel.load(std::sync::atomic::Ordering::Relaxed);
            results[index] = Some(result);
            if stop {
                schedule.abandon();
            }
        }
    });
    let not_run = cases.iter().zip(&results).filter(|(_, r)| r.is_none());
    RunResult {
        started,
        duration: start.elapsed(),
        not_run: not_run.map(|(case, _)| case.id.clone()).collect(),
        results: results.into_iter().flatten().collect(),
    }
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

/// The command that runs a case, program first.
pub fn command(case: &Case, vmm: &Path, payload: &Path) -> Vec<String> {
    let mut words = vec![vmm.display().to_string(), "run".into()];
    words.extend(["--payload".into(), payload.display().to_string()]);
    words.extend(["--test".into(), case.spec.payload.test.clone()]);
    words.extend(case.spec.machine.arguments(case.dir()));
    words.extend(["--serial".into(), "stdio".into()]);
    words.extend(["--timeout".into(), units::show_duration(case.spec.timeout.0)]);
    words
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

/// Runs one case, unless a need is not met.
fn run_case(case: &Case, setup: &Setup<'_>) -> CaseResult {
    let mut result = CaseResult {
        case: case.clone(),
        verdict: Verdict::new(Outcome::Pass, ""),
        unmet: None,
        duration: Duration::ZERO,
        ended: None,
        values: Vec::new(),
        command: Vec::new(),
        logs: logs_of(&setup.runs, &case.id),
        serial_bytes: 0,
        serial_tail: Vec::new(),
        report: Vec::new(),
    };
    for need in [&Need::Kvm].into_iter().chain(&case.spec.needs) {
        match need.check(setup.facts) {
            Met::Yes => {}
            Met::No(why) => {
                let because = case.spec.because.as_ref().filter(|_| *need != Need::Kvm);
                let because = because.map_or(String::new(), |b| format!("; {}", b.0));
                let reason = format!("needs {need}: {why}{because}");
                result.verdict = skip(setup, Some(need), &reason);
                result.unmet = Some(need.clone());
                return result;
            }
            Met::Unknown(why) => {
                result.verdict = Verdict::new(Outcome::Error, format!("need {need}: {why}"));
                return result;
            }
        }
    }
    let Some(payload) = setup.catalog.get(&case.spec.payload.payload) else {
        let reason = format!("no payload `{}` is built", case.spec.payload.payload);
        result.verdict = Verdict::new(Outcome::Error, reason);
        return result;
    };
    result.command = command(case, &setup.vmm, &payload.path);
    execute(case, setup, &mut result);
    if result.verdict.outcome == Outcome::Skip {
        result.verdict = skip(setup, None, &format!("the guest: {}", result.verdict.reason));
    }
    // Only what the guest itself reports is the bug that is known; a guest that dies is another.
    let said_fail = result.ended == Some(Ended::Exited(ExitValue::Fail.status()));
    if let Some(bug) = &case.spec.known_bug
        && result.verdict.outcome == Outcome::Fail
        && said_fail
    {
        let reason = format!("a known bug: {}; {}", bug.0, result.verdict.reason);
        result.verdict = skip(setup, None, &reason);
    }
    result
}

/// A skip, or an error if such a skip is not accepted.
fn skip(setup: &Setup<'_>, need: Option<&Need>, reason: &str) -> Verdict {
    if setup.require.forbids(need) {
        Verdict::new(Outcome::Error, format!("required, but would skip: {reason}"))
    } else {
        Verdict::new(Outcome::Skip, reason)
    }
}

/// Runs the command of `result` and fills in the rest.
fn execute(case: &Case, setup: &Setup<'_>, result: &mut CaseResult) {
    let mut transcript = Transcript::new(&case.spec.payload.test);
    let mut serial = Bounded::new(KEEP.0, KEEP.1);
    let mut stderr = Bounded::new(KEEP.0, KEEP.1);
    let start = Instant::now();
    let ended = process::run(
        Command::new(&result.command[0]).args(&result.command[1..]),
        case.spec.timeout.0 + setup.grace,
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
    result.duration = start.elapsed();
    result.verdict = verdict(&ended, transcript.report(), case.spec.expect);
    result.values = transcript.values().to_vec();
    result.serial_bytes = serial.total();
    let (serial, stderr) = (serial.contents(), stderr.contents());
    result.serial_tail = excerpt(&serial, 0, SERIAL_SHOWN);
    result.report = excerpt(&stderr, REPORT_SHOWN.0, REPORT_SHOWN.1);
    result.ended = Some(ended);
    if let Err(e) = write_logs(result, &serial, &stderr) {
        let reason = format!("cannot write the logs below {}: {e}", result.logs.display());
        // A lost log is no reason to hide a worse one.
        if !result.verdict.outcome.is_bad() {
            result.verdict = Verdict::new(Outcome::Error, reason);
        }
    }
}

fn write_logs(result: &CaseResult, serial: &[u8], stderr: &[u8]) -> io::Result<()> {
    fs::create_dir_all(&result.logs)?;
    fs::write(result.logs.join("command"), format!("{}\n", shell_line(&result.command)))?;
    fs::write(result.logs.join("serial.log"), serial)?;
    fs::write(result.logs.join("stderr.log"), stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_the_machine_and_reads_back_in_a_shell() {
        let spec = toml::from_str(
            "about = \"x\"\npayload = \"a::t\"\ntimeout = \"5s\"\n\
             [machine]\nvcpus = 2\ncmdline = \"x='1' y\"\n",
        )
        .expect("a case");
        let id = CaseId { area: "a".into(), name: "n".into(), variant: None };
        let case = Case { id, file: "n.toml".into(), spec };
        let words = command(&case, Path::new("/x/vmm"), Path::new("/x/a b"));
        let line = shell_line(&words);
        assert_eq!(
            line,
            "/x/vmm run --payload '/x/a b' --test t --cpus 2 --cmdline 'x='\\''1'\\'' y' \
             --serial stdio --timeout 5s"
        );
        let script = format!("printf '%s\\n' {line}");
        let out = Command::new("sh").args(["-c", &script]).output().expect("a shell");
        let read: Vec<_> = std::str::from_utf8(&out.stdout).expect("text").lines().collect();
        assert_eq!(read, words);
        assert_eq!(shell_line(&[String::new()]), "''");
    }
}
