//! The report: lines on the serial port, an exit value, the end.

use crate::serial::Out;
use crate::{port, reg};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use payload_abi::{EXIT_PORT, ExitValue, MARK};

/// Only the first CPU that ends the test is heard.
static ENDED: AtomicBool = AtomicBool::new(false);

/// Says that the test starts.
pub(crate) fn begin(name: &str) {
    Out::with(|out| {
        for part in [MARK, "begin ", name, "\n"] {
            out.text(part);
        }
    });
}

/// Reports a figure: `key` is a word with its unit (`exit_ticks`), without spaces.
pub fn value(key: &str, value: u64) {
    let name = crate::test::name();
    Out::with(|out| {
        for part in [MARK, "value ", name, " ", key, " "] {
            out.text(part);
        }
        out.line_of(format_args!("{value}"));
        out.text("\n");
    });
}

/// The test passed.
pub fn pass() -> ! {
    end(ExitValue::Pass, None)
}

/// The subject is wrong; [`check!`](crate::check) is the usual way here.
pub fn fail(reason: fmt::Arguments) -> ! {
    end(ExitValue::Fail, Some(reason))
}

/// The test does not apply; [`skip!`](crate::skip) is the usual way here.
pub fn skip(reason: fmt::Arguments) -> ! {
    end(ExitValue::Skip, Some(reason))
}

/// The test or what it stands on is broken.
pub fn error(reason: fmt::Arguments) -> ! {
    end(ExitValue::Error, Some(reason))
}

fn end(value: ExitValue, reason: Option<fmt::Arguments>) -> ! {
    reg::cli();
    if ENDED.swap(true, Ordering::AcqRel) {
        stop();
    }
    Out::with(|out| {
        for part in [MARK, value.word(), " ", crate::test::name()] {
            out.text(part);
        }
        if let Some(reason) = reason {
            out.text(": ");
            out.line_of(reason);
        }
        out.text("\n");
    });
    exit(value)
}

/// Writes the exit value, with no line: for tests of whoever reads the report.
pub fn exit(value: ExitValue) -> ! {
    exit_raw(value as u8)
}

/// Writes an exit value that may be none of [`ExitValue`].
pub fn exit_raw(value: u8) -> ! {
    port::out32(EXIT_PORT, value.into());
    stop()
}

/// Halts for good: what is left to a CPU when there is no exit device, or another CPU ended the
/// test.
pub fn stop() -> ! {
    loop {
        reg::cli();
        reg::hlt();
    }
}

/// Ends the test with `fail` unless the condition holds. The rest is a format and its arguments.
#[macro_export]
macro_rules! check {
    ($condition:expr $(,)?) => {
        $crate::check!($condition, "{}", ::core::stringify!($condition))
    };
    ($condition:expr, $($arg:tt)+) => {
        if !$condition {
            $crate::report::fail(::core::format_args!(
                "{}:{}: {}", ::core::file!(), ::core::line!(), ::core::format_args!($($arg)+)
            ))
        }
    };
}

/// Ends the test with `fail` unless both values are equal; shows both (integers in hexadecimal
/// too). A format and arguments may follow.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr $(,)?) => {
        $crate::check_eq!($left, $right, "{}", ::core::stringify!($left))
    };
    ($left:expr, $right:expr, $($arg:tt)+) => {
        match (&$left, &$right) {
            (left, right) => if *left != *right {
                $crate::report::fail(::core::format_args!(
                    "{}:{}: {}: is {:#x?}, must be {:#x?}",
                    ::core::file!(), ::core::line!(), ::core::format_args!($($arg)+), left, right
                ))
            }
        }
    };
}

/// The value of an `Ok`; ends the test with `fail`, showing the error, on an `Err`. A format and
/// its arguments that say what was tried may follow.
#[macro_export]
macro_rules! check_ok {
    ($result:expr $(,)?) => {
        $crate::check_ok!($result, "{}", ::core::stringify!($result))
    };
    ($result:expr, $($arg:tt)+) => {
        match $result {
            Ok(value) => value,
            Err(error) => $crate::report::fail(::core::format_args!(
                "{}:{}: {}: {:?}",
                ::core::file!(), ::core::line!(), ::core::format_args!($($arg)+), error
            )),
        }
    };
}

/// The error of an `Err`, a trap say; ends the test with `fail` on an `Ok`.
#[macro_export]
macro_rules! check_err {
    ($result:expr $(,)?) => {
        $crate::check_err!($result, "{}", ::core::stringify!($result))
    };
    ($result:expr, $($arg:tt)+) => {
        match $result {
            Err(error) => error,
            Ok(value) => $crate::report::fail(::core::format_args!(
                "{}:{}: {}: no fault, the result is {:#x?}",
                ::core::file!(), ::core::line!(), ::core::format_args!($($arg)+), value
            )),
        }
    };
}

/// The trap of an `Err`, if it is of this vector and error code; ends the test with `fail` on any
/// other and on an `Ok`. A format and its arguments that say what was tried follow.
#[macro_export]
macro_rules! check_trap {
    ($result:expr, $vector:expr, $code:expr, $($arg:tt)+) => {{
        let trap: $crate::trap::Trap = $crate::check_err!($result, $($arg)+);
        $crate::check!(
            trap.is($vector, $code),
            "{}: {trap}, must be vector {} with error {:#x}",
            ::core::format_args!($($arg)+), $vector, $code
        );
        trap
    }};
}

/// Ends the test with `fail`.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)+) => {
        $crate::report::fail(::core::format_args!(
            "{}:{}: {}", ::core::file!(), ::core::line!(), ::core::format_args!($($arg)+)
        ))
    };
}

/// Ends the test with `skip` and the reason.
#[macro_export]
macro_rules! skip {
    ($($arg:tt)+) => { $crate::report::skip(::core::format_args!($($arg)+)) };
}
