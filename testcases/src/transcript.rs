//! What the guest said on its serial port, read as it arrives and in bounded memory.
//!
//! A report is well formed if it is: `begin` of the test that was asked for, any number of values of
//! that test, and one line on how it ended, each on a line of its own. Free text may stand between
//! the lines of the report. The first thing that deviates is kept as [`Report::Broken`].

use payload_abi::{ExitValue, Line, MARK};
use serde::{Deserialize, Serialize};

/// A line longer than this is not a report line. Bytes.
const MAX_LINE: usize = 4096;

/// More values than this break a report.
const MAX_VALUES: usize = 4096;

/// How far the report came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// There was no report line at all.
    Silent,
    /// The test began and said nothing on its end.
    Begun,
    /// The test ended with this word and this reason (empty after a pass).
    Ended(ExitValue, String),
    /// The lines do not make a report, because of this.
    Broken(String),
}

/// A figure that the test measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// What was measured.
    pub key: String,
    /// The figure.
    pub value: u64,
}

/// Reads a serial log and keeps the report that is in it.
#[derive(Clone, Debug)]
pub struct Transcript {
    test: String,
    report: Report,
    values: Vec<Measured>,
    line: Vec<u8>,
    overlong: bool,
}

impl Transcript {
    /// Expects the report of the test of this name.
    pub fn new(test: &str) -> Transcript {
        Transcript {
            test: test.into(),
            report: Report::Silent,
            values: Vec::new(),
            line: Vec::new(),
            overlong: false,
        }
    }

    /// Reads a whole log at once.
    pub fn of(test: &str, log: &[u8]) -> Transcript {
        let mut transcript = Transcript::new(test);
        transcript.push(log);
        transcript.finish();
        transcript
    }

    /// Takes the next bytes of the log.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.extend(&bytes[..end]);
            let line = std::mem::take(&mut self.line);
            self.take_line(&line);
            self.overlong = false;
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes);
    }

    /// Tells that the log is over. A report line without its newline was cut off.
    pub fn finish(&mut self) {
        if self.line.starts_with(MARK.as_bytes()) {
            let line = String::from_utf8_lossy(&self.line).into_owned();
            self.broken(format!("the last report line was cut off: `{}`", line.escape_debug()));
        }
    }

    /// How far the report came.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The figures of the test, in the order they were reported.
    pub fn values(&self) -> &[Measured] {
        &self.values
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = MAX_LINE - self.line.len();
        self.overlong |= bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn broken(&mut self, why: String) {
        if !matches!(self.report, Report::Broken(_)) {
            self.report = Report::Broken(why);
        }
    }

    fn take_line(&mut self, line: &[u8]) {
        if !line.starts_with(MARK.as_bytes()) {
            return;
        }
        if self.overlong {
            return self.broken(format!("a report line is longer than {MAX_LINE} bytes"));
        }
        let text = String::from_utf8_lossy(line).into_owned();
        let shown = text.trim_end().escape_debug();
        let parsed = std::str::from_utf8(line).ok().and_then(Line::parse);
        let Some(parsed) = parsed else {
            return self.broken(format!("`{shown}` is no report line"));
        };
        let (Line::Begin(name) | Line::Value { name, .. } | Line::End { name, .. }) = parsed;
        if name != self.test {
            return self.broken(format!("`{shown}` is not about the test `{}`", self.test));
        }
        match (&self.report, parsed) {
            (Report::Silent, Line::Begin(_)) => self.report = Report::Begun,
            (Report::Silent, _) => self.broken(format!("`{shown}` came before `begin`")),
            (Report::Begun, Line::Begin(_)) => self.broken("the test began twice".into()),
            (Report::Begun, Line::Value { .. }) if self.values.len() == MAX_VALUES => {
                self.broken(format!("the test reported more than {MAX_VALUES} values"));
            }
            (Report::Begun, Line::Value { key, value, .. }) => {
                self.values.push(Measured { key: key.into(), value });
            }
            (Report::Begun, Line::End { value, reason, .. }) => {
                self.report = Report::Ended(value, reason.into());
            }
            (Report::Ended(..), _) => {
                self.broken(format!("`{shown}` came after the end of the test"));
            }
            (Report::Broken(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(log: &str) -> Report {
        let whole = Transcript::of("t", log.as_bytes());
        let mut bytewise = Transcript::new("t");
        log.as_bytes().iter().for_each(|b| bytewise.push(&[*b]));
        bytewise.finish();
        assert_eq!(whole.report(), bytewise.report(), "chunks must not matter: {log}");
        assert_eq!(whole.values(), bytewise.values());
        whole.report().clone()
    }

    #[test]
    fn a_good_report_is_read() {
        assert_eq!(report(""), Report::Silent);
        assert_eq!(report("hello\n#\n##\nbegin t\n"), Report::Silent);
        assert_eq!(report("## begin t\r\nhello\n"), Report::Begun);
        assert_eq!(
            report("boot\n## begin t\n## pass t\nbye"),
            Report::Ended(ExitValue::Pass, String::new())
        );
        assert_eq!(
            report("## begin t\n## fail t: a.rs:1: no\n"),
            Report::Ended(ExitValue::Fail, "a.rs:1: no".into())
        );
    }

    #[test]
    fn values_are_kept_in_order() {
        let log = b"## begin t\n## value t a 1\n## value t b 2\n## value t a 3\n## pass t\n";
        let transcript = Transcript::of("t", log);
        let values: Vec<_> = transcript.values().iter().map(|m| (&m.key[..], m.value)).collect();
        assert_eq!(values, [("a", 1), ("b", 2), ("a", 3)]);
    }

    #[test]
    fn what_is_no_report_says_why() {
        let long = format!("## begin {}\n", "t".repeat(MAX_LINE));
        let many = format!("## begin t\n{}", "## value t k 1\n".repeat(MAX_VALUES + 1));
        for (log, says) in [
            ("## pass t\n", "came before `begin`"),
            ("## value t k 1\n", "came before `begin`"),
            ("## begin u\n", "is not about the test `t`"),
            ("## begin t\n## pass u\n", "is not about the test `t`"),
            ("## begin t\n## begin t\n", "began twice"),
            ("## begin t\n## pass t\n## pass t\n", "after the end"),
            ("## begin t\n## fail t: x\n## pass t\n", "after the end"),
            ("## begin t\n## pass t\n## value t k 1\n", "after the end"),
            ("## begin t\n## pas t\n", "is no report line"),
            ("## \n", "is no report line"),
            ("## begin t\n## value t k -1\n", "is no report line"),
            ("## begin t\n## pass t", "cut off: `## pass t`"),
            (&long, "longer than"),
            (&many, "more than 4096 values"),
        ] {
            match report(log) {
                Report::Broken(why) => assert!(why.contains(says), "{says}: {why}"),
                other => panic!("{log:.40}: {other:?}"),
            }
        }
        let transcript = Transcript::of("t", b"## begin t\n## \xff t\n");
        assert!(matches!(transcript.report(), Report::Broken(_)));
    }

    #[test]
    fn a_long_line_of_free_text_is_no_harm_and_takes_no_memory() {
        let mut transcript = Transcript::new("t");
        for _ in 0..1000 {
            transcript.push(&[b'x'; 1000]);
        }
        assert!(transcript.line.capacity() <= 2 * MAX_LINE);
        transcript.push(b"\n## begin t\n## pass t\n");
        transcript.finish();
        assert_eq!(*transcript.report(), Report::Ended(ExitValue::Pass, String::new()));
    }
}
