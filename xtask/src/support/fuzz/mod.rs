//! What `cargo xtask fuzz` is made of: builds of the fuzzers, hunts, and what becomes of what they find.
//!
//! No input is run in this process, because one may take the process along: libFuzzer's binaries hunt, and
//! `fuzz-tool` (a program of the package `fuzz`) shows, judges and shortens.

pub mod build;
pub mod cover;
pub mod direct;
pub mod engine;
pub mod export;
pub mod floors;
pub mod lines;
pub mod llvm;
pub mod merge;
pub mod planted;
pub mod record;
pub mod run;
pub mod soak;
pub mod speed;
pub mod state;
pub mod status;
pub mod tool;
pub mod triage;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use fuzz::targets::{self, Target};
use testcases::nearest;
use vmm::script::Script;

use super::Failure;

/// What all of these commands share.
#[derive(Clone, Copy, Debug)]
pub struct Shop<'a> {
    /// The workspace.
    pub root: &'a Path,
    /// Becomes true when the user wants to stop.
    pub cancel: &'a AtomicBool,
}

impl Shop<'_> {
    /// Where the inputs of a target are kept.
    pub fn corpus(&self, target: &str) -> PathBuf {
        self.root.join("fuzz/corpus").join(target)
    }

    /// Where its findings go.
    pub fn artifacts(&self, target: &str) -> PathBuf {
        self.root.join("fuzz/artifacts").join(target)
    }

    /// Scripts that once broke a law.
    pub fn regressions(&self) -> PathBuf {
        self.root.join("fuzz/regressions")
    }

    /// Whether the user wants to stop.
    pub fn stopped(&self) -> bool {
        self.cancel.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// The target of this name.
///
/// # Errors
///
/// There is none; the nearest name is told.
pub fn target(name: &str) -> Result<&'static Target, Failure> {
    targets::named(name).ok_or_else(|| {
        let hint = nearest::hint(name, targets::ALL.iter().map(|target| target.name));
        Failure::input(format!(
            "there is no fuzz target `{name}`{hint}; `cargo xtask fuzz list` has them all"
        ))
    })
}

/// The targets that a name means: one, or all of them.
///
/// # Errors
///
/// There is no such target.
pub fn chosen(name: &str) -> Result<Vec<&'static Target>, Failure> {
    if name == "all" { Ok(targets::ALL.to_vec()) } else { Ok(vec![target(name)?]) }
}

/// The targets that several names mean, each once.
///
/// # Errors
///
/// One of them is no target's.
pub fn several(names: &[String]) -> Result<Vec<&'static Target>, Failure> {
    let mut all: Vec<&Target> = Vec::new();
    for name in names {
        for target in chosen(name)? {
            if all.iter().all(|other| other.name != target.name) {
                all.push(target);
            }
        }
    }
    Ok(all)
}

/// Whose input a file is: the target whose directory it lies in, or the one given.
///
/// # Errors
///
/// Neither is a target, and it is no script, which says itself what it is for.
pub fn owner(file: &Path, given: Option<&str>) -> Result<String, Failure> {
    let shown = file.display();
    let given = given.map(target).transpose()?;
    let bytes = std::fs::read(file)
        .map_err(|e| Failure::input(format!("input {shown} cannot be read: {e}")))?;
    if let Some(target) = given {
        let board = target.board().map(|board| board.spec.kind);
        let of = vmm::script::parse(&bytes).ok().map(|script| script.board.kind);
        return match (board, of) {
            // It would be played on its own board, and not on this target's.
            (Some(board), Some(of)) if board != of => Err(Failure::input(format!(
                "script {shown} is for a machine `{of}`, and target {} has a machine `{board}`; without \
                 --target it is played on its own",
                target.name
            ))),
            _ => Ok(target.name.to_owned()),
        };
    }
    let parts = file.components().rev().skip(1).filter_map(|part| part.as_os_str().to_str());
    let by_place = parts.take(2).find_map(targets::named);
    match by_place {
        // A script says itself what it is for, unless it is text for who reads scripts.
        Some(target) if !bytes.starts_with(b"# exitlab") || target.board().is_none() => {
            Ok(target.name.to_owned())
        }
        _ if bytes.starts_with(b"# ") => Ok("-".to_owned()),
        _ => Err(Failure::input(format!(
            "input {shown}: whose is it? It is no script and lies in no target's directory: give --target NAME"
        ))),
    }
}

/// The script in a file.
///
/// # Errors
///
/// It cannot be read, or is none.
pub fn script(path: &Path) -> Result<Script, Failure> {
    let text = std::fs::read(path).map_err(cannot("read the script", path))?;
    vmm::script::parse(&text).map_err(|e| Failure::input(format!("script {}: {e}", path.display())))
}

/// An error of the file system, with what was tried on what.
pub fn cannot(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let (what, path) = (what.to_owned(), path.display().to_string());
    move |e| {
        let next = match e.kind() {
            std::io::ErrorKind::StorageFull => {
                "; the disk is full: make room and run it again, nothing is lost"
            }
            _ => "",
        };
        Failure::input(format!("cannot {what} {path}: {e}{next}"))
    }
}
