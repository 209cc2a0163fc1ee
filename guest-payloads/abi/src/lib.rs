//! What a guest payload and its host agree on.
//!
//! A payload is an ordinary ELF that any VMM can start. It is told which test to run on its
//! command line (`test=NAME`), says what it finds on the first serial port in lines that begin
//! with [`MARK`], and ends by writing an exit value to [`EXIT_PORT`]. Nothing here depends on
//! exitlab's own VMM.
#![no_std]

pub mod exits;
pub mod lab;
pub mod replay;
pub mod rounds;

/// I/O port of the exit device (`isa-debug-exit` in QEMU's terms).
pub const EXIT_PORT: u16 = 0xf4;

/// First serial port, a 16550: where the report lines go.
pub const SERIAL_PORT: u16 = 0x3f8;

/// Every line of the report begins with this; any other line is free text for people.
pub const MARK: &str = "## ";

/// Name of the ELF section that holds the table of [`TestDesc`].
pub const TEST_SECTION: &str = ".exitlab.tests";

/// Value of [`TestDesc::magic`]; also the version of the table's layout.
pub const TEST_MAGIC: u32 = 0x4c58_0001;

/// The command line's key that names the test to run: `test=NAME`.
pub const CMDLINE_TEST: &str = "test";

/// The command line's key that says how many CPUs the machine has: `cpus=N`. Without it a payload
/// that wants the others waits until no more come.
pub const CMDLINE_CPUS: &str = "cpus";

/// What a payload writes to [`EXIT_PORT`]. The values are those of kvm-unit-tests, so a payload
/// and its images end alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitValue {
    /// The subject did what it must.
    Pass = 0,
    /// The subject is wrong.
    Fail = 1,
    /// The test does not apply here; the reason is on the serial port.
    Skip = 38,
    /// The test itself is broken, or what it stands on is (an unexpected trap, no such test).
    Error = 63,
}

impl ExitValue {
    /// The exit status a VMM process has after a guest wrote `self`: `(value << 1) | 1`.
    pub const fn status(self) -> u8 {
        exit_status(self as u8)
    }

    /// The value behind a process's exit status, if it is one of ours.
    pub const fn from_status(status: u8) -> Option<ExitValue> {
        match status {
            1 => Some(ExitValue::Pass),
            3 => Some(ExitValue::Fail),
            77 => Some(ExitValue::Skip),
            127 => Some(ExitValue::Error),
            _ => None,
        }
    }

    /// The word that stands for this value in a report line.
    pub const fn word(self) -> &'static str {
        match self {
            ExitValue::Pass => "pass",
            ExitValue::Fail => "fail",
            ExitValue::Skip => "skip",
            ExitValue::Error => "error",
        }
    }
}

/// The exit status that an exit value written by a guest becomes. Always odd, so that it never
/// meets the even ones by which a VMM speaks of itself.
pub const fn exit_status(value: u8) -> u8 {
    (value << 1) | 1
}

/// One line of a payload's report.
///
/// ```text
/// ## begin NAME
/// ## value NAME KEY NUMBER
/// ## pass NAME
/// ## fail NAME: src/bin/apic.rs:42: vector 0x21 did not arrive
/// ## skip NAME: no x2apic
/// ## error NAME: trap #PF at 0x1234
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// The named test starts.
    Begin(&'a str),
    /// A figure that the test measured.
    Value {
        /// The test.
        name: &'a str,
        /// What was measured, a word with its unit (`exit_ticks`).
        key: &'a str,
        /// The figure.
        value: u64,
    },
    /// The test ended.
    End {
        /// How.
        value: ExitValue,
        /// The test.
        name: &'a str,
        /// Why; empty after a pass.
        reason: &'a str,
    },
}

impl<'a> Line<'a> {
    /// Reads one line of serial output (without its newline). `None` if it is not a report line
    /// or is not well formed.
    pub fn parse(line: &'a str) -> Option<Line<'a>> {
        let rest = line.trim_end_matches('\r').strip_prefix(MARK)?;
        let (word, rest) = rest.split_once(' ')?;
        let end = |value| {
            let (name, reason) = rest.split_once(": ").unwrap_or((rest, ""));
            (!name.is_empty()).then_some(Line::End { value, name, reason })
        };
        match word {
            "begin" => (!rest.is_empty()).then_some(Line::Begin(rest)),
            "value" => {
                let mut words = rest.split(' ');
                let (name, key, value) = (words.next()?, words.next()?, words.next()?);
                match words.next() {
                    None => Some(Line::Value { name, key, value: value.parse().ok()? }),
                    Some(_) => None,
                }
            }
            "pass" => end(ExitValue::Pass),
            "fail" => end(ExitValue::Fail),
            "skip" => end(ExitValue::Skip),
            "error" => end(ExitValue::Error),
            _ => None,
        }
    }
}

/// One entry of the table in [`TEST_SECTION`]: what the host lists, and what the payload runs.
///
/// A payload is linked at fixed addresses, so the host reads names through the program headers.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TestDesc {
    /// [`TEST_MAGIC`].
    pub magic: u32,
    /// No flag is defined yet: 0.
    pub flags: u32,
    /// Guest virtual address of the name's bytes (UTF-8, not terminated).
    pub name: *const u8,
    /// Length of the name in bytes.
    pub name_len: u64,
    /// Guest virtual address of one sentence on what the test shows.
    pub about: *const u8,
    /// Length of that sentence in bytes.
    pub about_len: u64,
    /// The test's function.
    pub run: fn() -> (),
}

// SAFETY: the pointers lead to immutable string literals of the payload.
unsafe impl Sync for TestDesc {}

/// Size of a [`TestDesc`] as it lies in the section, in bytes.
pub const TEST_DESC_SIZE: usize = 48;
const _: () = assert!(core::mem::size_of::<TestDesc>() == TEST_DESC_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_value_survives_the_way_through_an_exit_status() {
        for v in [ExitValue::Pass, ExitValue::Fail, ExitValue::Skip, ExitValue::Error] {
            assert_eq!(ExitValue::from_status(v.status()), Some(v));
        }
        assert_eq!(ExitValue::from_status(0), None);
        assert_eq!(ExitValue::from_status(2), None);
    }

    #[test]
    fn lines_are_read_and_garbage_is_not() {
        assert_eq!(Line::parse("## begin a"), Some(Line::Begin("a")));
        assert_eq!(
            Line::parse("## fail a: f.rs:1: no: really\r"),
            Some(Line::End { value: ExitValue::Fail, name: "a", reason: "f.rs:1: no: really" })
        );
        assert_eq!(
            Line::parse("## value a ticks 12"),
            Some(Line::Value { name: "a", key: "ticks", value: 12 })
        );
        for bad in ["", "## ", "## begin ", "##pass a", "## value a b", "## value a b -1", "x"] {
            assert_eq!(Line::parse(bad), None, "{bad:?}");
        }
    }
}
