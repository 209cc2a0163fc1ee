//! The sources that are measured: those of the workspace, and those of a revision in a work tree of their own.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use hosts::programs::{self, Kind};

use super::record::Commit;
use crate::support::git::git;
use crate::support::{Failure, cargo};

/// Where revisions are checked out and their builds are logged, below the workspace.
const PLACE: &str = "target/perf";
/// So many last lines of a log are shown.
const SHOWN: usize = 12;

/// The commit that the workspace is at.
///
/// # Errors
///
/// The workspace is in no git repository, or there is no commit.
pub fn commit(root: &Path) -> Result<Commit, Failure> {
    let of = resolve(root, "HEAD")?;
    let changes = git(root, &["status", "--porcelain", "--untracked-files=no"])?;
    Ok(Commit { dirty: !changes.is_empty(), ..of })
}

/// The commit that a revision names.
///
/// # Errors
///
/// There is no such revision, or no repository.
pub fn resolve(root: &Path, revision: &str) -> Result<Commit, Failure> {
    let named = format!("{revision}^{{commit}}");
    // Something like --all is no revision.
    let words = ["rev-parse", "--verify", "--quiet", "--end-of-options", &named];
    let id = git(root, &words).map_err(|failure| match git(root, &["rev-parse", "--git-dir"]) {
        Ok(_) => Failure::input(format!(
            "git knows no revision `{revision}` in {}; `git log --oneline` lists some{}",
            root.display(),
            if root.join(".git").exists() && root.join(".git/shallow").exists() {
                ", and `git fetch --unshallow` brings older ones"
            } else {
                ""
            }
        )),
        Err(_) => failure,
    })?;
    let committed = git(root, &["show", "--no-patch", "--format=%ct", &id])?.parse().ok();
    Ok(Commit { id, dirty: false, committed })
}

/// Builds the VMM of the workspace.
///
/// # Errors
///
/// It does not build.
pub fn build_own(root: &Path, cancel: &AtomicBool) -> Result<PathBuf, Failure> {
    let built = programs::build(root, &cargo(), Kind::Measured, cancel);
    built.map(|programs| programs.vmm).map_err(|why| match cancel.load(Ordering::Relaxed) {
        true => Failure::stopped(),
        false => Failure::bad(why),
    })
}

/// The work tree for revisions; nobody else uses it as long as this lives.
pub struct Tree {
    root: PathBuf,
    place: PathBuf,
    path: PathBuf,
    _lock: File,
}

impl Tree {
    /// Takes it.
    ///
    /// # Errors
    ///
    /// Another command has it, or its directory cannot be written.
    pub fn take(root: &Path) -> Result<Tree, Failure> {
        let place = root.join(PLACE);
        let cannot = |what: &Path, e: &dyn std::fmt::Display| {
            Failure::input(format!("cannot use {}: {e}", what.display()))
        };
        fs::create_dir_all(&place).map_err(|e| cannot(&place, &e))?;
        let path = place.join("lock");
        let lock = File::create(&path).map_err(|e| cannot(&path, &e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::input(format!(
                    "another `cargo xtask perf compare` builds in {}; wait for its end",
                    place.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(cannot(&path, &e)),
        }
        Ok(Tree { root: root.to_owned(), path: place.join("tree"), place, _lock: lock })
    }

    /// Puts a commit into the work tree. What was built there stays, so that the next build is short.
    ///
    /// # Errors
    ///
    /// Git cannot.
    pub fn check_out(&self, commit: &Commit) -> Result<&Path, Failure> {
        let shown = self.path.display().to_string();
        if self.is_work_tree() {
            git(&self.path, &["checkout", "--quiet", "--detach", "--force", &commit.id])?;
            git(&self.path, &["clean", "-d", "--force", "--quiet"])?;
            return Ok(&self.path);
        }
        // A directory that git knows nothing of any more, or one that it knows and that is gone.
        if self.path.exists() {
            fs::remove_dir_all(&self.path)
                .map_err(|e| Failure::input(format!("cannot remove {shown}: {e}")))?;
        }
        git(&self.root, &["worktree", "prune"])?;
        git(&self.root, &["worktree", "add", "--quiet", "--detach", &shown, &commit.id])?;
        Ok(&self.path)
    }

    fn is_work_tree(&self) -> bool {
        let top = git(&self.path, &["rev-parse", "--show-toplevel"]).ok().map(PathBuf::from);
        let same = |top: PathBuf| top.canonicalize().ok() == self.path.canonicalize().ok();
        self.path.exists() && top.is_some_and(same)
    }

    /// Builds the VMM of a commit.
    ///
    /// # Errors
    ///
    /// It does not build: with what it was named, the log, and its end.
    pub fn build(
        &self,
        commit: &Commit,
        named: &str,
        cancel: &AtomicBool,
    ) -> Result<PathBuf, Failure> {
        let tree = self.check_out(commit)?;
        let path = self.place.join("build.log");
        let mut log = File::create(&path)
            .map_err(|e| Failure::input(format!("cannot write {}: {e}", path.display())))?;
        let built = programs::build_telling(tree, &cargo(), Kind::Measured, cancel, &mut log);
        built.map(|programs| programs.vmm).map_err(|why| {
            if cancel.load(Ordering::Relaxed) {
                return Failure::stopped();
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            Failure::input(format!(
                "revision {named} ({commit}) does not build, so there is nothing to compare with: {why}\n{}\nthe \
                 whole log is {}, the sources are in {}",
                end(&text),
                path.display(),
                tree.display()
            ))
        })
    }
}

/// The end of a log, each line set off.
fn end(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(SHOWN)..].iter();
    last.map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository with two commits: `file` says one, then two.
    fn repository() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let git = |words: &[&str]| git(dir.path(), words).expect("git");
        git(&["init", "--quiet"]);
        fs::write(dir.path().join(".gitignore"), "/target/\n").expect("written");
        for text in ["one", "two"] {
            fs::write(dir.path().join("file"), text).expect("written");
            git(&["add", "--all"]);
            let who = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"];
            let commit = ["-c", "commit.gpgsign=false", "commit", "--quiet", "-m", text];
            git(&[&who[..], &commit[..]].concat());
        }
        dir
    }

    fn read(tree: &Path) -> String {
        fs::read_to_string(tree.join("file")).expect("there")
    }

    #[test]
    fn a_tree_with_changes_is_told() {
        let dir = repository();
        let clean = commit(dir.path()).expect("a commit");
        assert!(!clean.dirty && clean.id.len() == 40 && clean.committed.is_some(), "{clean:?}");
        assert_eq!(resolve(dir.path(), "HEAD").expect("a commit"), clean);
        fs::write(dir.path().join("new"), "").expect("written");
        assert!(!commit(dir.path()).expect("a commit").dirty, "no commit would have it");
        fs::write(dir.path().join("file"), "three").expect("written");
        let dirty = commit(dir.path()).expect("a commit");
        assert!(dirty.dirty && dirty.to_string().ends_with(" with changes"), "{dirty}");
    }

    #[test]
    fn an_unknown_revision_is_named() {
        let dir = repository();
        for unknown in ["nonsense", "HEAD~9", "--all", "HEAD:file", ""] {
            let failure = resolve(dir.path(), unknown).expect_err("unknown");
            let named = format!("no revision `{unknown}`");
            assert!(failure.message.contains(&named), "{}", failure.message);
            assert_eq!(failure.status, 2);
        }
        let none = tempfile::tempdir().expect("a directory");
        let why = commit(none.path()).expect_err("no repository").message;
        assert!(why.contains("not a git repository"), "{why}");
    }

    #[test]
    fn revisions_take_turns_in_one_tree_that_keeps_what_was_built() {
        let dir = repository();
        let [old, new] = ["HEAD~1", "HEAD"].map(|r| resolve(dir.path(), r).expect("a commit"));
        let tree = Tree::take(dir.path()).expect("the tree");
        let path = tree.check_out(&old).expect("checked out").to_owned();
        assert_eq!(read(&path), "one");
        fs::create_dir(path.join("target")).expect("made");
        fs::write(path.join("target/built"), "").expect("written");
        fs::write(path.join("file"), "changed by a build").expect("written");
        fs::write(path.join("stray"), "").expect("written");
        assert_eq!(read(tree.check_out(&new).expect("checked out")), "two");
        assert!(path.join("target/built").exists() && !path.join("stray").exists());
        // The workspace is as it was.
        assert_eq!(
            (read(dir.path()), commit(dir.path()).expect("one").dirty),
            ("two".into(), false)
        );

        let taken = Tree::take(dir.path()).err().expect("taken").message;
        assert!(taken.contains("another `cargo xtask perf compare`"), "{taken}");
        // Somebody removed it, or removed what git knows of it.
        fs::remove_dir_all(&path).expect("removed");
        assert_eq!(read(tree.check_out(&old).expect("again")), "one");
        fs::remove_dir_all(dir.path().join(".git/worktrees")).expect("removed");
        assert_eq!(read(tree.check_out(&new).expect("again")), "two");
        drop(tree);
        assert!(Tree::take(dir.path()).is_ok());
    }

    #[test]
    fn a_revision_that_does_not_build_is_named_with_its_log() {
        let dir = repository();
        let old = resolve(dir.path(), "HEAD~1").expect("a commit");
        let tree = Tree::take(dir.path()).expect("the tree");
        let cancel = AtomicBool::new(false);
        let failure = tree.build(&old, "HEAD~1", &cancel).expect_err("no workspace");
        let told = &failure.message;
        assert!(told.starts_with(&format!("revision HEAD~1 ({old}) does not build")), "{told}");
        assert!(told.contains("  | error: ") && told.contains("target/perf/build.log"), "{told}");
        assert_eq!(failure.status, 2);
    }

    #[test]
    fn the_end_of_a_log_is_its_last_lines() {
        let log: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        let shown = end(&log);
        assert!(shown.starts_with("  | line 19\n") && shown.ends_with("  | line 30"), "{shown}");
        assert_eq!(end(""), "");
    }
}
