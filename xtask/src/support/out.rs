//! Standard output, whose reader may go away at any time.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use super::Failure;

/// Standard output for a command; `write!` and `writeln!` write to it.
///
/// A reader that goes away (`cargo xtask doctor | head`) ends the output, not the command: its status
/// tells the same to whoever does not read on. Any other error is kept for [`Out::end`].
pub struct Out {
    to: Box<dyn Write>,
    error: Option<io::Error>,
}

impl Out {
    /// The process's own standard output.
    pub fn stdout() -> Out {
        Out { to: Box::new(io::stdout()), error: None }
    }

    /// Output that nobody reads.
    #[cfg(test)]
    pub fn nowhere() -> Out {
        Out { to: Box::new(io::sink()), error: None }
    }

    /// What `write!` and `writeln!` call. Nothing is written after the first error.
    pub fn write_fmt(&mut self, text: fmt::Arguments<'_>) {
        if self.error.is_none() {
            self.error = self.to.write_fmt(text).err();
        }
    }

    /// Writes bytes as they are, and sees to it that they are seen.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if self.error.is_none() {
            self.error = self.to.write_all(bytes).and_then(|()| self.to.flush()).err();
        }
    }

    /// The end of the output.
    ///
    /// # Errors
    ///
    /// Output was lost, and not because nobody reads it: a full disk, for example.
    pub fn end(self) -> Result<(), Failure> {
        match self.error {
            Some(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::input(format!(
                "cannot write standard output: {e}; the rest of it is lost"
            ))),
            _ => Ok(()),
        }
    }
}

/// Prints on standard error. That nobody reads it (any more) changes no status.
pub fn complain(text: impl fmt::Display) {
    // There is nowhere left to tell of a failure.
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses once with this error, if there is one, and takes everything then.
    struct Fails(Option<ErrorKind>);

    impl Write for Fails {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.take() {
                Some(kind) => Err(kind.into()),
                None => Ok(bytes.len()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_reader_that_is_gone_is_no_failure() {
        for (kind, good) in [
            (None, true),
            (Some(ErrorKind::BrokenPipe), true),
            (Some(ErrorKind::StorageFull), false),
        ] {
            let mut out = Out { to: Box::new(Fails(kind)), error: None };
            writeln!(out, "a line");
            writeln!(out, "and another, which the writer would take again");
            assert_eq!(out.end().is_ok(), good, "{kind:?}");
        }
    }
}
