//! A payload's file: its ELF, with every offset checked, and its table of tests, an ELF section of
//! [`TestDesc`](payload_abi::TestDesc) entries whose pointers lead through the program headers.

mod elf;
#[cfg(test)]
mod synthetic;
mod table;

use std::path::{Path, PathBuf};

pub use elf::{ElfError, Image, Section, Symbol};
pub use table::{TestInfo, list_tests};

/// Why a payload's tests cannot be told, or one cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The file cannot be read.
    #[error(
        "payload `{path}` cannot be read: {source}; build payloads with `cargo xtask payloads`"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// It is no payload, or a damaged one.
    #[error("payload `{path}`: {source}; an image without a table of tests is run with --kernel")]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ElfError,
    },
    /// The test is not in its table.
    #[error("payload `{path}` has no test `{test}`; it has: {known}")]
    NoTest {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        test: String,
        /// What there is.
        known: String,
    },
    /// No test was named.
    #[error("name one of the tests of payload `{path}` with --test: {known}")]
    NoName {
        /// The file.
        path: PathBuf,
        /// What there is.
        known: String,
    },
}

/// Checks that the payload whose file, `path`, holds `image` has the test called `test`, before a guest
/// is started for it.
///
/// # Errors
/// When it has not, none was named, or the file is no payload.
pub fn check(path: &Path, image: &[u8], test: Option<&str>) -> Result<(), PayloadError> {
    let tests = list_tests(image)
        .map_err(|source| PayloadError::Table { path: path.to_owned(), source })?;
    let known = || tests.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
    let path = path.to_owned();
    match test {
        None => Err(PayloadError::NoName { path, known: known() }),
        Some(test) if tests.iter().any(|t| t.name == test) => Ok(()),
        Some(test) => Err(PayloadError::NoTest { path, test: test.to_owned(), known: known() }),
    }
}
