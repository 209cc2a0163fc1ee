//! What git knows.

use std::path::Path;
use std::process::Command;

use super::Failure;

/// What git answers in `dir`, without the end of its last line.
///
/// # Errors
///
/// There is no git, or it refuses.
pub fn git(dir: &Path, words: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new("git");
    // Where a hook runs this, its repository is not meant.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        command.env_remove(variable);
    }
    let line = || format!("`git {}` in {}", words.join(" "), dir.display());
    let said = command.arg("-C").arg(dir).args(words).output().map_err(|e| {
        Failure::input(format!("cannot run {}: {e}; revisions are told by git", line()))
    })?;
    match said.status.success() {
        true => Ok(String::from_utf8_lossy(&said.stdout).trim_end().to_owned()),
        false => {
            let why = String::from_utf8_lossy(&said.stderr).trim_end().to_owned();
            Err(Failure::input(format!("{} failed: {why}", line())))
        }
    }
}
