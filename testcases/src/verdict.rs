//! The verdict on one run: from how the process ended, what the guest said, and what was expected.
//!
//! There are four outcomes. **Fail** means that the subject (KVM, the VMM's devices, the processor)
//! is wrong; **error** means that the test or what it stands on is broken; a **skip** has its reason;
//! a **pass** needs two witnesses that agree, the exit value and the report on the serial port.
//!
//! How a guest's unexpected end (a triple fault, a timeout, all vCPUs halted) is counted depends on
//! how far it came. After `begin` the guest was running the test: what killed it is evidence about
//! the subject, so it is a fail. Before `begin` it died on the way there (loader, boot code), which
//! says nothing about the subject of this test: an error. A trap that the payload catches itself
//! it reports as an error in its own words.

use payload_abi::ExitValue;
use serde::{Deserialize, Serialize};

use crate::case::Expect;
use crate::process::Ended;
use crate::status::VmmEnd;
use crate::transcript::Report;

/// The four outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// What was to be shown holds.
    Pass,
    /// The subject is wrong.
    Fail,
    /// The test or its surroundings are broken.
    Error,
    /// The test does not apply here.
    Skip,
}

impl Outcome {
    /// The word for it in reports.
    pub const fn word(self) -> &'static str {
        match self {
            Outcome::Pass => "pass",
            Outcome::Fail => "fail",
            Outcome::Error => "error",
            Outcome::Skip => "skip",
        }
    }

    /// Whether it makes a run red.
    pub const fn is_bad(self) -> bool {
        matches!(self, Outcome::Fail | Outcome::Error)
    }
}

impl From<ExitValue> for Outcome {
    fn from(value: ExitValue) -> Outcome {
        match value {
            ExitValue::Pass => Outcome::Pass,
            ExitValue::Fail => Outcome::Fail,
            ExitValue::Skip => Outcome::Skip,
            ExitValue::Error => Outcome::Error,
        }
    }
}

/// An outcome and its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The outcome.
    pub outcome: Outcome,
    /// Why; empty for a plain pass.
    pub reason: String,
}

impl Verdict {
    /// An outcome with its reason.
    pub fn new(outcome: Outcome, reason: impl Into<String>) -> Verdict {
        Verdict { outcome, reason: reason.into() }
    }
}

/// Judges one run.
pub fn verdict(ended: &Ended, report: &Report, expect: Expect) -> Verdict {
    let error = |reason: String| Verdict::new(Outcome::Error, reason);
    let status = match ended {
        Ended::Exited(status) => *status,
        other => return error(format!("{other}; {}", said(report))),
    };
    // The VMM speaks of itself or of the host: nothing the guest said outweighs that.
    if let Some(end) = VmmEnd::from_status(status).filter(|end| !end.is_guests_doing()) {
        return error(format!("{} (exit status {status}); {}", end.story(), said(report)));
    }
    if let Report::Broken(why) = report {
        return error(format!("the report is broken: {why}; {}", story(status)));
    }
    match ExitValue::from_status(status) {
        Some(value) => guests_word(value, report, expect),
        None => other_end(status, report, expect),
    }
}

/// What the guest itself said of its end, if it did and both witnesses agree on it.
pub fn word(ended: &Ended, report: &Report) -> Option<ExitValue> {
    match (ended, report) {
        (Ended::Exited(status), Report::Ended(value, _)) if value.status() == *status => {
            Some(*value)
        }
        _ => None,
    }
}

/// The guest wrote one of the protocol's values to the exit port.
fn guests_word(value: ExitValue, report: &Report, expect: Expect) -> Verdict {
    let Report::Ended(said_value, reason) = report else {
        return Verdict::new(
            Outcome::Error,
            format!("the exit value says `{}`, but {}", value.word(), said(report)),
        );
    };
    if *said_value != value {
        return Verdict::new(
            Outcome::Error,
            format!("the exit value says `{}`, but {}", value.word(), said(report)),
        );
    }
    match (value, expect) {
        // A case that expects another end cannot pass because the guest thinks all is well.
        (ExitValue::Pass, Expect::Exit(_) | Expect::Vmm(_)) => Verdict::new(
            Outcome::Fail,
            format!("expected {expect}, but the guest ended and passed"),
        ),
        _ => Verdict::new(value.into(), reason.clone()),
    }
}

/// Anything else: the VMM's word on how the guest ended, or a value the protocol does not know.
fn other_end(status: u8, report: &Report, expect: Expect) -> Verdict {
    let expected = match expect {
        Expect::Pass => None,
        Expect::Exit(value) => Some(payload_abi::exit_status(value)),
        Expect::Vmm(end) => Some(end.status()),
    };
    let wanted = if expected.is_some() { format!("expected {expect}, but ") } else { "".into() };
    match report {
        Report::Begun if expected == Some(status) => Verdict::new(Outcome::Pass, ""),
        // A value that means nothing is the payload's own mistake, not the subject's.
        Report::Begun if VmmEnd::from_status(status).is_some() => {
            Verdict::new(Outcome::Fail, format!("{wanted}{} after the test began", story(status)))
        }
        Report::Begun => Verdict::new(Outcome::Error, format!("{wanted}{}", story(status))),
        _ => Verdict::new(Outcome::Error, format!("{}, but {}", story(status), said(report))),
    }
}

/// What a status says, in words.
pub fn story(status: u8) -> String {
    match (VmmEnd::from_status(status), ExitValue::from_status(status)) {
        (Some(end), _) => format!("{} (exit status {status})", end.story()),
        (_, Some(value)) => format!("the exit value says `{}`", value.word()),
        (None, None) if status % 2 == 1 => {
            format!("the guest wrote {} to the exit port, which means nothing", status >> 1)
        }
        (None, None) => format!("the VMM ended with status {status}, which means nothing"),
    }
}

/// What the guest said, in words.
fn said(report: &Report) -> String {
    match report {
        Report::Silent => "the guest never began its test: no report line came".into(),
        Report::Begun => "the guest began its test and never said how it ended".into(),
        Report::Ended(value, reason) if reason.is_empty() => {
            format!("the report says `{}`", value.word())
        }
        Report::Ended(value, reason) => format!("the report says `{}`: {reason}", value.word()),
        Report::Broken(why) => format!("the report is broken: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [ExitValue; 4] =
        [ExitValue::Pass, ExitValue::Fail, ExitValue::Skip, ExitValue::Error];

    fn reports() -> Vec<Report> {
        let mut all = vec![Report::Silent, Report::Begun, Report::Broken("torn".into())];
        all.extend(WORDS.map(|w| Report::Ended(w, "because".into())));
        all
    }

    fn expectations() -> Vec<Expect> {
        let mut all = vec![Expect::Pass, Expect::Exit(5)];
        all.extend(VmmEnd::ALL.into_iter().filter(|e| e.is_guests_doing()).map(Expect::Vmm));
        all
    }

    fn ends() -> Vec<Ended> {
        let mut all: Vec<_> = (0..=255).map(Ended::Exited).collect();
        all.extend([
            Ended::Signalled(11),
            Ended::Killed { reaped: true },
            Ended::Killed { reaped: false },
            Ended::Cancelled,
            Ended::NotStarted("no such file".into()),
        ]);
        all
    }

    /// Says for each combination what must come out, written the other way round: outcome first.
    fn must(ended: &Ended, report: &Report, expect: Expect) -> Outcome {
        let Ended::Exited(status) = *ended else {
            return Outcome::Error;
        };
        let agreed = |word: ExitValue| {
            status == word.status() && matches!(report, Report::Ended(said, _) if *said == word)
        };
        let begun = *report == Report::Begun;
        let guests = [0, 4, 6, 8, 10, 12, 124];
        let expected = match expect {
            Expect::Pass => None,
            Expect::Exit(value) => Some(value * 2 + 1),
            Expect::Vmm(end) => Some(end.status()),
        };
        if expect == Expect::Pass && agreed(ExitValue::Pass) || begun && expected == Some(status) {
            Outcome::Pass
        } else if agreed(ExitValue::Skip) {
            Outcome::Skip
        } else if agreed(ExitValue::Fail)
            || agreed(ExitValue::Pass)
            || begun && guests.contains(&status)
        {
            Outcome::Fail
        } else {
            Outcome::Error
        }
    }

    #[test]
    fn every_combination_has_its_outcome_and_a_reason() {
        let mut passes = 0;
        for ended in ends() {
            for report in reports() {
                for expect in expectations() {
                    let got = verdict(&ended, &report, expect);
                    let place = format!("{ended:?} {report:?} {expect}");
                    assert_eq!(got.outcome, must(&ended, &report, expect), "{place}");
                    if got.outcome == Outcome::Pass {
                        passes += 1;
                    } else {
                        assert!(!got.reason.is_empty(), "{place} needs a reason");
                    }
                }
            }
        }
        assert_eq!(passes, expectations().len(), "one way to pass for each expectation");
    }

    fn reason(status: u8, report: Report, expect: Expect) -> String {
        verdict(&Ended::Exited(status), &report, expect).reason
    }

    #[test]
    fn reasons_tell_what_happened() {
        let ended = |word, why: &str| Report::Ended(word, why.into());
        let triple = Expect::Vmm(VmmEnd::TripleFault);
        for (reason, says) in [
            (reason(1, Report::Silent, Expect::Pass), "never began"),
            (reason(1, Report::Begun, Expect::Pass), "never said how it ended"),
            (reason(1, ended(ExitValue::Fail, "x"), Expect::Pass), "the report says `fail`: x"),
            (reason(3, ended(ExitValue::Fail, "x.rs:1: no"), Expect::Pass), "x.rs:1: no"),
            (reason(4, Report::Begun, Expect::Pass), "triple-faulted (exit status 4) after"),
            (reason(4, Report::Silent, Expect::Pass), "triple-faulted (exit status 4), but the"),
            (reason(8, Report::Begun, triple), "expected triple-fault, but every vCPU halted"),
            (reason(1, ended(ExitValue::Pass, ""), triple), "ended and passed"),
            (reason(11, Report::Begun, Expect::Pass), "wrote 5 to the exit port"),
            (reason(16, Report::Begun, Expect::Pass), "status 16, which means nothing"),
            (reason(1, Report::Broken("torn".into()), Expect::Pass), "torn"),
            (reason(2, Report::Silent, Expect::Pass), "refused its input"),
        ] {
            assert!(reason.contains(says), "{says}: {reason}");
        }
    }
}
