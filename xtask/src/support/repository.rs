//! The repository's files in memory, and what is found in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::Failure;
use super::lex::{self, Token};

/// What breaks a rule.
#[derive(Debug)]
pub struct Finding {
    /// The file and the line.
    pub place: String,
    /// What is wrong.
    pub message: String,
    /// Whether it is only worth a thought.
    pub warning: bool,
}

impl Finding {
    /// An error in a line of a file.
    pub fn new(file: &str, line: usize, message: impl Into<String>) -> Finding {
        Finding { place: format!("{file}:{line}"), message: message.into(), warning: false }
    }
}

/// The text files of the repository by path, with `/` between the parts.
#[derive(Debug, Default)]
pub struct Repository {
    /// Their texts by path; empty for what is not UTF-8.
    pub files: BTreeMap<String, String>,
}

impl Repository {
    /// Reads what git tracks, and what it would track if added.
    pub fn read(root: &Path) -> Result<Repository, Failure> {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .map_err(|e| Failure::input(format!("cannot list the files with git: {e}")))?;
        if !listed.status.success() {
            let why = String::from_utf8_lossy(&listed.stderr).into_owned();
            return Err(Failure::input(format!("git cannot list {}: {why}", root.display())));
        }
        let mut files = BTreeMap::new();
        for path in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|p| !p.is_empty()) {
            match fs::read(root.join(path)) {
                // A file that is not text is listed without its content.
                Ok(bytes) => {
                    files.insert(path.to_string(), String::from_utf8(bytes).unwrap_or_default());
                }
                // Deleted, and git was not told yet; or a link to a directory.
                Err(_) if !root.join(path).is_file() => {}
                Err(e) => return Err(Failure::input(format!("cannot read {path}: {e}"))),
            }
        }
        Ok(Repository { files })
    }

    /// The Rust files, by path, as tokens.
    pub fn rust(&self) -> impl Iterator<Item = (&str, Vec<Token>)> {
        let rust = self.files.iter().filter(|(path, _)| path.ends_with(".rs"));
        rust.map(|(path, text)| (path.as_str(), lex::tokens(text)))
    }
}
