//! Runs the programs of the machine that fetch and unpack.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use testcases::bounded::{Bounded, excerpt};
use testcases::process::{self, Ended, Stream};

use super::FetchError;

/// How much a program may write: apt's description of a hundred packages is about 200 KiB.
const OUTPUT: usize = 16 << 20;

/// What programs say when a disk is full or a quota is used up, in the C locale.
const FULL: [&str; 3] =
    ["No space left on device", "Disk quota exceeded", "You don't have enough free space"];

/// The programs of a machine.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    /// The directories to look in, as in PATH.
    pub path: OsString,
}

impl Tools {
    /// Where a program is, if the machine has it.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let files = std::env::split_paths(&self.path).map(|dir| dir.join(name));
        // A relative entry means another file wherever one stands.
        files.filter(|file| file.is_absolute()).find(|file| is_executable(file))
    }

    /// A command that runs a program with messages in English.
    pub fn command(&self, name: &str) -> Command {
        // Not found, it is left to the operating system to say so.
        let mut command = Command::new(self.find(name).unwrap_or_else(|| name.into()));
        command.env("PATH", &self.path).env("LC_ALL", "C.UTF-8").env("LANGUAGE", "C");
        command
    }
}

/// Whether a file is there and may be executed.
pub(super) fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Runs a command to its end, and gives what it wrote to its standard output. `dir` is where it
/// writes files.
///
/// # Errors
///
/// It was not started, ended with another status than 0 or ran past `limit`; the disk is full; the
/// user interrupted it.
pub(super) fn run(
    command: &mut Command,
    limit: Duration,
    cancel: &AtomicBool,
    dir: &Path,
) -> Result<String, FetchError> {
    Ok(run_both(command, limit, cancel, dir)?.0)
}

/// As [`run`], and gives what it wrote to its standard error as well.
pub(super) fn run_both(
    command: &mut Command,
    limit: Duration,
    cancel: &AtomicBool,
    dir: &Path,
) -> Result<(String, String), FetchError> {
    let (mut out, mut err) = (Bounded::new(OUTPUT, 0), Bounded::new(0, 16 << 10));
    let ended = process::run(command, limit, cancel, &mut |stream, bytes| match stream {
        Stream::Out => out.push(bytes),
        Stream::Err => err.push(bytes),
    });
    let text = |log: &Bounded| String::from_utf8_lossy(&log.contents()).into_owned();
    match ended {
        Ended::Exited(0) => Ok((text(&out), text(&err))),
        Ended::Cancelled => Err(FetchError::Cancelled),
        ended => {
            let mut said = excerpt(&err.contents(), 0, 6);
            if said.iter().any(|line| FULL.iter().any(|full| line.contains(full))) {
                return Err(FetchError::full(dir, None));
            }
            // apt marks what counts, and its last words only count what it said before.
            let errors = said.iter().filter_map(|line| line.strip_prefix("E: "));
            let errors = errors.filter(|line| !line.starts_with("Some index files failed"));
            let errors: Vec<String> = errors.map(str::to_owned).collect();
            if !errors.is_empty() {
                said = errors;
            }
            Err(FetchError::Tool { command: name(command), ended: ended.to_string(), said })
        }
    }
}

/// The program and the first argument that is no option: `apt-get update`.
fn name(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let mut args = command.get_args().map(OsStr::to_string_lossy);
    let mut name = program.to_string_lossy().into_owned();
    if let Some(arg) = args.find(|arg| arg.starts_with(|c: char| c.is_ascii_lowercase())) {
        name.push(' ');
        name.push_str(&arg);
    }
    name
}
