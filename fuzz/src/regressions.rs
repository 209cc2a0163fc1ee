//! What once went wrong, as files: `fuzz/regressions/DEVICE/WHAT.script`, and `TARGET/WHAT.input` for a
//! target whose inputs are no scripts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use testcases::process::{self, Ended, Stream};

use vmm::script::parse;
use vmm::script::replay::check;

use crate::judge;
use crate::oracles::{self, Restores};
use crate::targets;

/// A regression that has come back, or cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {what}")]
pub struct Back {
    /// The file.
    pub file: String,
    /// What is wrong.
    pub what: String,
}

/// The regressions in `dir` and in the directories in it, in the order of their names.
///
/// # Errors
/// When a directory cannot be read.
pub fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let ends = |end: &str| path.extension().is_some_and(|extension| extension == end);
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if ends("script") || ends("input") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Plays one: against every law, with a save after each operation, and against what it expects itself.
///
/// # Errors
/// What is wrong, if something is.
pub fn play(path: &Path) -> Result<(), Back> {
    let back = |what: String| Back { file: path.display().to_string(), what };
    let bytes = fs::read(path).map_err(|e| back(format!("cannot be read: {e}")))?;
    if path.extension().is_some_and(|extension| extension == "input") {
        let owner = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let target = owner.and_then(targets::named).ok_or_else(|| {
            back("lies in no target's directory; move it to fuzz/regressions/TARGET".to_owned())
        })?;
        let found = judge::input(target, &bytes);
        return found.map_or(Ok(()), |found| Err(back(found.message)));
    }
    let script = parse(&bytes).map_err(|e| back(e.to_string()))?;
    let board = targets::board(script.board.clone());
    let trace = oracles::check(&script, &board, Restores::Each).map_err(|v| back(v.to_string()))?;
    check(&script, &trace).map_err(|d| back(format!("operation {}: {d}", d.step + 1)))
}

/// How long one may take: it has no end, then.
const LIMIT: Duration = Duration::from_secs(60);
/// How many KiB of addresses it may take.
const MEMORY: u32 = 4 << 20;

/// Plays all in `dir`; how many there are, and which are back. Each is played by a process of its own, `player`
/// with these words and the file: what once had no end, or took the process along, may do so again. The
/// player ends with status 0, or with 1 and what is wrong on standard output.
///
/// # Errors
/// When a directory cannot be read.
pub fn play_all(
    dir: &Path,
    (player, words): (&Path, &[&str]),
    cancel: &AtomicBool,
) -> std::io::Result<(usize, Vec<Back>)> {
    let files = files(dir)?;
    let mut all = Vec::new();
    for file in &files {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -c 0; ulimit -v {MEMORY}; exec \"$0\" \"$@\"")]);
        command.arg(player).args(words).arg(file);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let ended = process::run(&mut command, LIMIT, cancel, &mut |stream, bytes| {
            let to = if stream == Stream::Out { &mut out } else { &mut err };
            to.extend_from_slice(bytes);
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let what = match ended {
            Ended::Exited(0) => continue,
            Ended::Cancelled => break,
            Ended::Exited(1) if !out.is_empty() => text(&out),
            ended => format!("{ended}\n{}", text(&err)).trim().to_owned(),
        };
        all.push(Back { file: file.display().to_string(), what });
    }
    Ok((files.len(), all))
}
