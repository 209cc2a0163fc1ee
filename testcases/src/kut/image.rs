//! What an image of kvm-unit-tests did: a verdict from how its process ended and what it printed.
//!
//! An image writes its result to the exit port, and prints on the serial port how it came to it: a
//! line `PASS: …`, `FAIL: …` or `SKIP: …` a check, and `SUMMARY: …` at the end, which only some leave
//! out (lib/report.c of its sources). So the exit status decides, and the lines are the reason.

use std::fs;
use std::path::PathBuf;

use payload_abi::ExitValue;

use crate::facts::Processor;
use crate::process::Ended;
use crate::status::VmmEnd;
use crate::transcript::Measured;
use crate::verdict::{Outcome, Verdict, story};

/// Images after which TCG is not what it was: `debug` leaves a breakpoint armed in it, which others
/// stop at.
const LEAVE_TCG_CHANGED: [&str; 1] = ["debug"];

/// How many checks that failed are told by their names.
const NAMED: usize = 3;

/// How much of a line is told. Characters.
const TOLD: usize = 160;

/// An image, as one of its configurations has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its file.
    pub path: PathBuf,
    /// The configuration's name.
    pub config: String,
    /// Why it is not run; empty if it is.
    pub why_not: String,
    /// Files of the host and what each must hold for the configuration to apply.
    pub checks: Vec<(PathBuf, String)>,
}

impl Image {
    /// The image's name: that of its file, without `.flat` or another ending.
    pub fn name(&self) -> &str {
        self.path.file_stem().and_then(|name| name.to_str()).unwrap_or("image")
    }

    /// Whether a host on this processor is of no use to others behind it.
    pub fn leaves_changed(&self, processor: Processor) -> bool {
        processor == Processor::Tcg && LEAVE_TCG_CHANGED.contains(&self.name())
    }

    /// Why this is not run on the machine that this process runs on, if it is not.
    pub fn why_not(&self) -> Option<String> {
        if !self.why_not.is_empty() {
            return Some(self.why_not.clone());
        }
        self.checks.iter().find_map(|(path, value)| match fs::read_to_string(path) {
            Ok(text) if text.trim_end() == value => None,
            Ok(text) => {
                let text: String = text.trim_end().chars().take(40).collect();
                Some(format!("it wants {} to hold `{value}`, not `{text}`", path.display()))
            }
            Err(e) => Some(format!("it wants {} to hold `{value}`: {e}", path.display())),
        })
    }
}

/// Judges what an image did, by how the VMM's process ended and what was printed.
pub fn verdict(ended: &Ended, printed: &[u8]) -> Verdict {
    let printed = String::from_utf8_lossy(printed);
    let status = match ended {
        Ended::Exited(status) => *status,
        other => return Verdict::new(Outcome::Error, other.to_string()),
    };
    if let Some(value) = ExitValue::from_status(status) {
        let reason = match value {
            ExitValue::Pass => String::new(),
            ExitValue::Fail => failed(&printed),
            ExitValue::Skip => first(&printed, "SKIP: ").unwrap_or("it skips itself").to_owned(),
            ExitValue::Error => format!("it gave up: {}", last(&printed)),
        };
        return Verdict::new(value.into(), cut(&reason));
    }
    let what = match VmmEnd::from_status(status) {
        // Its last way out is to switch the machine off, without a result.
        Some(VmmEnd::PowerOff) => "it switched the machine off without a result".into(),
        Some(end) if !end.is_guests_doing() || printed.trim().is_empty() => {
            return Verdict::new(Outcome::Error, story(status));
        }
        _ => story(status),
    };
    Verdict::new(Outcome::Fail, format!("{what}; the last line is {}", cut(last(&printed))))
}

/// The figures of the summary: `SUMMARY: 12 tests, 1 unexpected failures, 2 skipped`.
pub fn values(printed: &[u8]) -> Vec<Measured> {
    let printed = String::from_utf8_lossy(printed);
    let Some(line) = printed.lines().rev().find_map(|line| line.strip_prefix("SUMMARY: ")) else {
        return Vec::new();
    };
    line.split(',')
        .filter_map(|part| {
            let (value, key) = part.trim().split_once(' ')?;
            Some(Measured { key: key.trim().to_owned(), value: value.parse().ok()? })
        })
        .collect()
}

/// Which checks failed.
fn failed(printed: &str) -> String {
    let names: Vec<&str> =
        printed.lines().filter_map(|line| line.trim().strip_prefix("FAIL: ")).collect();
    match &names[..] {
        [] => format!("it says that it failed; the last line is {}", last(printed)),
        [first, rest @ ..] => {
            let more = names.len().saturating_sub(NAMED);
            let mut text = (*first).to_owned();
            for name in rest.iter().take(NAMED - 1) {
                text = format!("{text}; {name}");
            }
            if more > 0 { format!("{text}; and {more} more") } else { text }
        }
    }
}

/// What follows `start` in the first line that begins with it.
fn first<'a>(printed: &'a str, start: &str) -> Option<&'a str> {
    printed.lines().find_map(|line| line.trim().strip_prefix(start))
}

/// The last line that is not empty.
fn last(printed: &str) -> &str {
    printed.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("missing")
}

/// A line as a reason can hold it.
fn cut(line: &str) -> String {
    let mut text: String =
        line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TOLD).collect();
    if line.chars().nth(TOLD).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u8, printed: &str) -> (Outcome, String) {
        let Verdict { outcome, reason } = verdict(&Ended::Exited(status), printed.as_bytes());
        (outcome, reason)
    }

    #[test]
    fn the_status_decides_and_the_lines_are_the_reason() {
        let lines = "PASS: a\nFAIL: b\nFAIL: c\nFAIL: d\nFAIL: e\nSUMMARY: 5 tests, 4 unexpected failures\n";
        for (status, printed, outcome, reason) in [
            (1, "SUMMARY: 1 tests\n", Outcome::Pass, ""),
            (1, "", Outcome::Pass, ""),
            (3, lines, Outcome::Fail, "b; c; d; and 1 more"),
            (3, "FAIL: b\n", Outcome::Fail, "b"),
            (3, "hm\n\n", Outcome::Fail, "it says that it failed; the last line is hm"),
            (77, "SKIP: no pku\nSUMMARY: 1 tests, 1 skipped\n", Outcome::Skip, "no pku"),
            (77, "", Outcome::Skip, "it skips itself"),
            (127, "Unhandled exception 6\n", Outcome::Error, "it gave up: Unhandled exception 6"),
            (
                0,
                "x\n",
                Outcome::Fail,
                "it switched the machine off without a result; the last line is x",
            ),
            (
                4,
                "x\n",
                Outcome::Fail,
                "the guest triple-faulted (exit status 4); the last line is x",
            ),
            (4, "", Outcome::Error, "the guest triple-faulted (exit status 4)"),
            (
                124,
                "a\nb\n",
                Outcome::Fail,
                "the guest did not end in time (exit status 124); the last line is b",
            ),
            (
                2,
                "x",
                Outcome::Error,
                "the VMM refused its input or lacks something of the host (exit status 2)",
            ),
            (
                11,
                "x",
                Outcome::Fail,
                "the guest wrote 5 to the exit port, which means nothing; the last line is x",
            ),
        ] {
            assert_eq!(of(status, printed), (outcome, reason.to_string()), "{status} {printed:?}");
        }
        let killed = verdict(&Ended::Signalled(9), b"PASS: a\n");
        assert_eq!(killed.outcome, Outcome::Error);
    }

    #[test]
    fn a_line_may_be_anything() {
        let (_, reason) = of(3, &format!("FAIL: \x1b[31m{}\n", "é".repeat(1000)));
        assert!(reason.starts_with(" [31mé") && reason.ends_with("é…"), "{reason}");
        assert!(!reason.contains(char::is_control));
        assert_eq!(verdict(&Ended::Exited(3), b"FAIL: \xff\n").reason, "\u{fffd}");
    }

    #[test]
    fn the_summarys_figures_are_read() {
        let values =
            values(b"PASS: a\nSUMMARY: 12 tests, 1 unexpected failures, 2 skipped\r\nrest\n");
        let values: Vec<_> = values.into_iter().map(|m| (m.key, m.value)).collect();
        let expected = [("tests", 12), ("unexpected failures", 1), ("skipped", 2)];
        assert_eq!(values, expected.map(|(key, value)| (key.to_string(), value)));
        assert!(super::values(b"SUMMARY: none\n").is_empty());
    }

    #[test]
    fn a_file_of_the_host_decides_where_it_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("x");
        fs::write(&file, "Y\n").expect("a file");
        let image = |why_not: &str, value: &str, path: &PathBuf| Image {
            path: "/x/a.b.flat".into(),
            config: "a".into(),
            why_not: why_not.into(),
            checks: vec![(path.clone(), value.into())],
        };
        assert_eq!(image("", "Y", &file).why_not(), None);
        assert_eq!(image("", "Y", &file).name(), "a.b");
        assert!(image("", "N", &file).why_not().is_some_and(|why| why.contains("not `Y`")));
        let absent = image("", "N", &dir.path().join("absent")).why_not();
        assert!(absent.is_some_and(|why| why.contains("No such file")));
        assert_eq!(image("so", "Y", &file).why_not().as_deref(), Some("so"));
    }
}
