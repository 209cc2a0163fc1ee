//! What comes out of cases: the part that travels from the machine that ran them, and what the one
//! that collects makes of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{logs_of, shell_line};
use crate::bounded::{Bounded, excerpt};
use crate::case::{Case, CaseId};
use crate::process::Ended;
use crate::require::Require;
use crate::skip::{Cause, Skip};
use crate::transcript::Measured;
use crate::verdict::{Outcome, Verdict};

/// The last lines of the serial log that a result carries along.
const SERIAL_SHOWN: usize = 15;

/// The first and last lines of the VMM's report that a result carries along: the reason with the
/// first vCPU's registers, and the last exits.
const REPORT_SHOWN: (usize, usize) = (50, 70);

/// What came out of one case, on the machine that ran it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseReport {
    /// The outcome and its reason.
    pub verdict: Verdict,
    /// What made it a skip, if it is one.
    pub skip: Option<Skip>,
    /// How long the process ran.
    pub duration: Duration,
    /// How the process ended; `None` if none was started.
    pub ended: Option<Ended>,
    /// The figures the guest measured.
    pub values: Vec<Measured>,
    /// The command that ran, program first; empty if none was.
    pub command: Vec<String>,
    /// What the guest wrote to its serial port.
    pub serial: Log,
    /// What the VMM wrote to its standard error.
    pub stderr: Log,
}

/// An output of a process, as far as it was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Bytes that were written, kept or not.
    pub total: u64,
    /// The beginning and the end of them, with a line in the place of what was not kept.
    pub kept: Vec<u8>,
}

impl From<&Bounded> for Log {
    fn from(log: &Bounded) -> Log {
        Log { total: log.total(), kept: log.contents() }
    }
}

/// What came out of one case.
#[derive(Clone, Debug)]
pub struct CaseResult {
    /// The case.
    pub case: Case,
    /// The outcome and its reason.
    pub verdict: Verdict,
    /// What made it a skip, if it is one (or an error, because this skip is not accepted).
    pub skip: Option<Skip>,
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

impl CaseReport {
    /// Of a case that is skipped before its process is started; `more` is what is told of this case
    /// besides the cause.
    pub fn skipped(cause: Cause, brief: String, more: Option<&str>) -> CaseReport {
        let mut report = CaseReport::unrun(Verdict::new(Outcome::Pass, ""));
        report.skip(cause, brief, more);
        report
    }

    /// Makes a skip of it.
    pub(super) fn skip(&mut self, cause: Cause, brief: String, more: Option<&str>) {
        let reason = more.map_or_else(|| brief.clone(), |more| format!("{brief}; {more}"));
        self.verdict = Verdict::new(Outcome::Skip, reason);
        self.skip = Some(Skip { cause, brief });
    }

    /// Of a case whose process was not started.
    pub fn unrun(verdict: Verdict) -> CaseReport {
        CaseReport {
            verdict,
            skip: None,
            duration: Duration::ZERO,
            ended: None,
            values: Vec::new(),
            command: Vec::new(),
            serial: Log::default(),
            stderr: Log::default(),
        }
    }
}

/// Makes results of reports: keeps the logs, and knows which skips are errors.
#[derive(Clone, Debug)]
pub struct Collector {
    /// The directory that gets a directory for each case, with its logs.
    pub runs: PathBuf,
    /// The skips that are errors.
    pub require: Require,
}

impl Collector {
    /// The result of a case, from what was reported of it. Writes its logs if it was run.
    pub fn collect(&self, case: &Case, report: CaseReport) -> CaseResult {
        let CaseReport { verdict, skip, duration, ended, values, command, serial, stderr } = report;
        let mut result = CaseResult {
            case: case.clone(),
            verdict,
            skip,
            duration,
            ended,
            values,
            command,
            logs: logs_of(&self.runs, &case.id),
            serial_bytes: serial.total,
            serial_tail: excerpt(&serial.kept, 0, SERIAL_SHOWN),
            report: excerpt(&stderr.kept, REPORT_SHOWN.0, REPORT_SHOWN.1),
        };
        if result.skip.as_ref().is_some_and(|skip| self.require.forbids(&skip.cause)) {
            let reason = format!("required, but would skip: {}", result.verdict.reason);
            result.verdict = Verdict::new(Outcome::Error, reason);
        }
        if result.ended.is_some()
            && let Err(e) = write_logs(&result.logs, &result.command, &serial, &stderr)
        {
            let reason = format!("cannot write the logs below {}: {e}", result.logs.display());
            // A lost log is no reason to hide a worse one.
            if !result.verdict.outcome.is_bad() {
                result.verdict = Verdict::new(Outcome::Error, reason);
            }
        }
        result
    }
}

fn write_logs(logs: &Path, command: &[String], serial: &Log, stderr: &Log) -> io::Result<()> {
    fs::create_dir_all(logs)?;
    fs::write(logs.join("command"), format!("{}\n", shell_line(command)))?;
    fs::write(logs.join("serial.log"), &serial.kept)?;
    fs::write(logs.join("stderr.log"), &stderr.kept)
}
