//! Why a piece of a host could not be had.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a piece of a host could not be had. Each is one paragraph that says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// What the user pointed to cannot be used.
    #[error("{0}")]
    Own(String),
    /// Neither the machine nor a Debian archive has it.
    #[error("{piece} cannot be had. Tried: {}. {instead}", Listed(.tried))]
    Unavailable {
        /// What was looked for.
        piece: String,
        /// What was tried, and why it failed.
        tried: Vec<String>,
        /// What the user can give in its place, and how.
        instead: String,
    },
    /// A program that was started to fetch or unpack did not do its work.
    #[error("`{command}`: {ended}{}", Said(.said))]
    Tool {
        /// The program and its first argument.
        command: String,
        /// How it ended.
        ended: String,
        /// The end of what it wrote, for people.
        said: Vec<String>,
    },
    /// There is not enough room on the disk.
    #[error(
        "there is no room in {}: {}. Free some, or let CARGO_TARGET_DIR name a directory on a larger \
         disk",
        dir.display(),
        Room(*.needed, *.free)
    )]
    Full {
        /// Where.
        dir: PathBuf,
        /// How many bytes it takes, if that is known.
        needed: Option<u64>,
        /// How many bytes are free, if that can be told.
        free: Option<u64>,
    },
    /// A package has not the SHA-256 sum that the archive's signed index names, twice in a row.
    #[error(
        "{} was fetched twice, and has not the SHA-256 sum that the archive's signed index names: \
         {found} instead of {expected}. The mirror or a proxy on the way to it is broken; try another \
         mirror in apt's configuration, or later",
        file.display()
    )]
    Corrupt {
        /// The package.
        file: PathBuf,
        /// The sum it should have.
        expected: String,
        /// The sum it has, or why there is none.
        found: String,
    },
    /// The user interrupted it.
    #[error("interrupted; what was fetched so far is kept")]
    Cancelled,
    /// The cache cannot be read or written.
    #[error(
        "cannot {what} {}: {source}. It is part of the cache of emulated hosts: {}",
        path.display(),
        advice(.source)
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FetchError {
    /// For `map_err`: `what` was tried on `path`.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                FetchError::full(path.parent().unwrap_or(&path), None)
            }
            _ => FetchError::Io { what, path, source },
        }
    }

    /// There is not enough room in `dir` for `needed` bytes more.
    pub(super) fn full(dir: &Path, needed: Option<u64>) -> FetchError {
        FetchError::Full { dir: dir.to_owned(), needed, free: super::cache::free(dir) }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "it seems to belong to another user; remove it as that user, or let CARGO_TARGET_DIR name \
             a directory of your own"
        }
        _ => "remove it and try again, and everything is fetched anew",
    }
}

/// Several things as one sentence, without its full stop.
struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(|part| part.trim_end_matches('.')).collect();
        f.write_str(&parts.join("; "))
    }
}

/// What a program wrote, after a colon, if it wrote anything.
struct Said<'a>(&'a [String]);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0.join(" / ")) }
    }
}

/// What there is and what is needed of a disk.
struct Room(Option<u64>, Option<u64>);

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mega = |bytes: u64| bytes.div_ceil(1_000_000);
        match self.0 {
            Some(needed) => write!(f, "it takes about {} MB", mega(needed))?,
            None => f.write_str("the disk, its inodes or a quota are used up")?,
        }
        self.1.map_or(Ok(()), |free| write!(f, ", and {} MB are free", mega(free)))
    }
}
