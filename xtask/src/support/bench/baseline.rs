//! What exits cost when somebody last said that this is right: `benches/exact.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::exact::Pair;
use crate::support::Failure;
use crate::support::git::git;

/// How many instructions a count may be off: alignment of the stack, and where a library was linked.
const TOLERANCE: u64 = 2;

const HEAD: &str = "\
# What an exit costs, in instructions: `user` are the VMM's own, `over` is what it takes beyond a loop that
# does nothing, all together, on host amd. `cargo xtask bench exact --check` holds measurements against it,
# `--accept REASON` writes what has changed, with that reason.
";

/// What one kind of exit cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Instructions of the VMM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<u64>,
    /// Instructions in all, over the bare loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over: Option<i64>,
    /// Why it is what it is.
    pub because: String,
}

/// The file.
#[derive(Clone, Debug)]
pub struct Baseline {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

/// What was measured of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    /// The kind of exit.
    pub kind: &'a str,
    /// Instructions of the VMM.
    pub user: Option<Pair>,
    /// Instructions in all.
    pub total: Option<Pair>,
}

impl Measured<'_> {
    fn user(&self) -> Option<u64> {
        self.user.map(|pair| pair.vmm.median)
    }

    /// What the VMM takes beyond the bare loop.
    pub fn over(&self) -> Option<i64> {
        self.total.map(|pair| pair.vmm.median as i64 - pair.bare.median as i64)
    }
}

impl Baseline {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is damaged.
    pub fn read(root: &Path) -> Result<Baseline, Failure> {
        let path = root.join("benches/exact.toml");
        let shown = path.display();
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Failure::input(format!("cannot read {shown}: {e}; `bench exact --accept` writes it"))
        })?;
        let entries = toml::from_str(&text)
            .map_err(|e| Failure::input(format!("{shown} is damaged: {e}")))?;
        Ok(Baseline { path, entries })
    }

    /// What differs, a line each.
    pub fn differences(&self, measured: &[Measured<'_>]) -> Vec<String> {
        let since = since(&self.path);
        let mut lines = Vec::new();
        for row in measured {
            let Some(entry) = self.entries.get(row.kind) else {
                lines.push(format!("{}: not in {}", row.kind, self.path.display()));
                continue;
            };
            let user = (row.user().map(|n| n as i64), entry.user.map(|n| n as i64));
            for (what, (now, then)) in [
                ("of the VMM's own", user),
                ("in all, over the bare loop", (row.over(), entry.over)),
            ] {
                let (Some(now), Some(then)) = (now, then) else { continue };
                if now.abs_diff(then) <= TOLERANCE {
                    continue;
                }
                let by = now.abs_diff(then);
                let which = if now > then { "more" } else { "fewer" };
                lines.push(format!(
                    "{}: {now} instructions {what}, {by} {which} than {then}{since}",
                    row.kind
                ));
            }
        }
        lines
    }

    /// Writes what has changed.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn accept(&mut self, measured: &[Measured<'_>], because: &str) -> Result<(), Failure> {
        for row in measured {
            let old = self.entries.get(row.kind);
            let entry = Entry {
                user: row.user().or(old.and_then(|entry| entry.user)),
                over: row.over().or(old.and_then(|entry| entry.over)),
                because: because.to_owned(),
            };
            let same = |old: &Entry| (old.user, old.over) == (entry.user, entry.over);
            if !old.is_some_and(same) {
                self.entries.insert(row.kind.to_owned(), entry);
            }
        }
        let text = toml::to_string(&self.entries).map_err(|e| Failure::bad(e.to_string()))?;
        std::fs::write(&self.path, format!("{HEAD}\n{text}"))
            .map_err(|e| Failure::bad(format!("cannot write {}: {e}", self.path.display())))
    }

    /// An empty one, for the first time.
    pub fn empty(root: &Path) -> Baseline {
        Baseline { path: root.join("benches/exact.toml"), entries: BTreeMap::new() }
    }
}

/// The commit that last changed the baseline, if git knows.
fn since(path: &Path) -> String {
    let dir = path.parent().unwrap_or(Path::new("."));
    match git(dir, &["log", "-1", "--format=%h", "--", &path.to_string_lossy()]) {
        Ok(commit) if !commit.is_empty() => format!(" since {commit}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::exact::Spread;
    use super::*;

    fn pair(bare: u64, vmm: u64) -> Option<Pair> {
        let spread = |n| Spread { least: n, median: n, most: n };
        Some(Pair { bare: spread(bare), vmm: spread(vmm) })
    }

    #[test]
    fn three_instructions_more_are_told_and_two_are_not() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("benches")).expect("made");
        let row = |user, over| Measured {
            kind: "port_read",
            user: pair(30, user),
            total: pair(3000, 3000u64.wrapping_add_signed(over)),
        };
        Baseline::empty(dir.path()).accept(&[row(100, 70)], "new").expect("written");
        let baseline = Baseline::read(dir.path()).expect("read back");
        for same in [row(100, 70), row(102, 68), row(98, 72)] {
            assert_eq!(baseline.differences(&[same]), Vec::<String>::new());
        }
        let told = baseline.differences(&[row(103, 70)]);
        assert_eq!(told, ["port_read: 103 instructions of the VMM's own, 3 more than 100"]);
        let told = baseline.differences(&[row(100, 60)]);
        let expected = "port_read: 60 instructions in all, over the bare loop, 10 fewer than 70";
        assert_eq!(told, [expected]);
        let unknown = Measured { kind: "hlt", ..row(1, 1) };
        assert!(baseline.differences(&[unknown])[0].contains("hlt: not in"));
    }

    #[test]
    fn a_reason_stays_where_nothing_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("benches")).expect("made");
        let row = |kind, user| Measured { kind, user: pair(30, user), total: None };
        let mut baseline = Baseline::empty(dir.path());
        baseline.accept(&[row("a", 1), row("b", 2)], "one").expect("written");
        baseline.accept(&[row("a", 1), row("b", 3)], "two").expect("written");
        let read = Baseline::read(dir.path()).expect("read back");
        assert_eq!(
            (&read.entries["a"].because[..], &read.entries["b"].because[..]),
            ("one", "two")
        );
        std::fs::write(dir.path().join("benches/exact.toml"), "[a]\nuser = no").expect("written");
        let damaged = Baseline::read(dir.path()).expect_err("damaged").message;
        assert!(damaged.contains("exact.toml is damaged"), "{damaged}");
    }
}
