//! Corpora made small: the new one stands in the place of the old one only when it is whole.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fuzz::targets::Target;
use testcases::process::{self, Ended};

use super::build::{self, Hunter};
use super::{Shop, cannot};
use crate::support::Failure;

/// How long a merge may take.
const MERGING: Duration = Duration::from_secs(900);
/// The most that libFuzzer reads of an input if it is not told otherwise. Bytes.
const LONGEST: usize = 1 << 20;

/// Makes a corpus as small as it can be without losing what it reaches. The old one is there until the new
/// one is whole.
///
/// # Errors
///
/// It cannot be read or written, or the fuzzer does not end well; the old corpus is there then.
pub fn merge(shop: Shop<'_>, target: &Target, hunter: &Hunter) -> Result<(usize, usize), Failure> {
    let corpus = corpus(shop, target)?;
    let (new, old) = (beside(&corpus, "merging"), beside(&corpus, "merged"));
    build::empty(new.clone())?;
    let inputs = fuzz::stable::files(&corpus).map_err(cannot("read the corpus", &corpus))?;
    let before = inputs.len();
    let mut command = match hunter {
        Hunter::LibFuzzer(program) => {
            let mut command = Command::new(program);
            let artifacts = build::directory(shop.artifacts(target.name))?;
            command.env("EXITLAB_FUZZ_TARGET", target.name).arg("-merge=1").arg("-timeout=10");
            command.arg(format!("-artifact_prefix={}/", artifacts.display()));
            command.arg(&new).arg(&corpus);
            command
        }
        Hunter::Stable(tool) => {
            let mut command = Command::new(tool);
            command.args(["cmin", target.name]).arg(&corpus).arg(&new);
            command
        }
    };
    command.env("RUST_BACKTRACE", "0");
    let mut log = testcases::bounded::Bounded::new(0, 8 << 10);
    let ended = process::run(&mut command, MERGING, shop.cancel, &mut |_, bytes| log.push(bytes));
    let merged = fuzz::stable::files(&new).map_err(cannot("read the corpus", &new))?;
    let after = merged.len();
    let log = String::from_utf8_lossy(&log.contents()).into_owned();
    let why = match &ended {
        _ if shop.stopped() => return Err(Failure::stopped()),
        Ended::Exited(0) => wrong(&inputs, &merged, &log),
        ended => Some(format!("{ended}: {}", log.lines().last().unwrap_or(""))),
    };
    if let Some(why) = why {
        // It takes room, and a merge begins anew.
        let _ = fs::remove_dir_all(&new);
        return Err(Failure::bad(format!(
            "the corpus of {} cannot be merged ({why}); it is as it was",
            target.name
        )));
    }
    fs::rename(&corpus, &old).map_err(cannot("put aside", &corpus))?;
    fs::rename(&new, &corpus).map_err(cannot("put in its place", &new))?;
    fs::remove_dir_all(&old).map_err(cannot("remove", &old))?;
    Ok((before, after))
}

/// A file and what is in it.
type Input = (PathBuf, Vec<u8>);

/// What is wrong with a merged corpus, if something is. libFuzzer looks at no error of the disk: what it could
/// not write is short, or not there.
fn wrong(before: &[Input], merged: &[Input], log: &str) -> Option<String> {
    let known: BTreeSet<&[u8]> = before.iter().map(|(_, bytes)| &bytes[..]).collect();
    // An input of a directory in the corpus is not among these, and of one that is too long the beginning is.
    let is_cut = |bytes: &[u8]| {
        let mut whole = before.iter().filter(|(_, input)| input.len() <= LONGEST);
        !known.contains(bytes) && whole.any(|(_, input)| input.starts_with(bytes))
    };
    if let Some((path, _)) = merged.iter().find(|(_, bytes)| is_cut(bytes)) {
        return Some(format!("{} is cut off: is the disk full?", path.display()));
    }
    // "MERGE-OUTER: 37 new files with 301 new features added".
    let told = log.lines().rev().find_map(|line| line.split_once(" new files with "));
    let told = told.and_then(|(start, _)| start.rsplit(' ').next()?.parse::<usize>().ok());
    if told.is_some_and(|told| told > merged.len()) {
        return Some(format!("only {} inputs were written: is the disk full?", merged.len()));
    }
    (merged.is_empty() && before.len() > 1).then(|| "nothing is left of it".to_owned())
}

fn beside(corpus: &Path, end: &str) -> PathBuf {
    let name = corpus.file_name().unwrap_or_default().to_string_lossy().into_owned();
    corpus.with_file_name(format!("{name}.{end}"))
}

/// The directory of a target's corpus. What a merge that was killed had put aside is there again.
///
/// # Errors
///
/// It cannot be made, or the inputs cannot be put back.
pub fn corpus(shop: Shop<'_>, target: &Target) -> Result<PathBuf, Failure> {
    let corpus = build::directory(shop.corpus(target.name))?;
    let old = beside(&corpus, "merged");
    if old.exists() {
        for entry in fs::read_dir(&old).map_err(cannot("read", &old))? {
            let from = entry.map_err(cannot("read", &old))?.path();
            let to = corpus.join(from.file_name().unwrap_or_default());
            fs::rename(&from, &to).map_err(cannot("put back into the corpus", &from))?;
        }
        fs::remove_dir(&old).map_err(cannot("remove", &old))?;
    }
    Ok(corpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_merge_that_lost_something_is_not_taken() {
        let input = |name: &str, bytes: &[u8]| (PathBuf::from(name), bytes.to_vec());
        let before = [input("a", b"one"), input("b", b"three")];
        let log =
            "MERGE-OUTER: 2 files\nMERGE-OUTER: 1 new files with 9 new features added; 3 new\n";
        assert_eq!(wrong(&before, &before[..1], log), None);
        assert_eq!(wrong(&before, &[input("of-a-directory", b"two")], log), None);
        let cut = wrong(&before, &[input("c", b"thr")], log).expect("cut off");
        assert!(cut.contains("c is cut off"), "{cut}");
        let fewer = log.replace("1 new files", "2 new files");
        assert!(wrong(&before, &before[..1], &fewer).is_some_and(|why| why.contains("only 1")));
        assert!(wrong(&before, &[], "").is_some(), "nothing is no merged corpus");
    }

    #[test]
    fn what_a_killed_merge_put_aside_comes_back() {
        let (dir, cancel) = (tempfile::tempdir().expect("a directory"), AtomicBool::new(false));
        let shop = Shop { root: dir.path(), cancel: &cancel };
        let target = crate::support::fuzz::target("uart").expect("a target");
        let aside = beside(&shop.corpus("uart"), "merged");
        for (place, name) in [(&aside, "old"), (&aside, "both"), (&shop.corpus("uart"), "both")] {
            fs::create_dir_all(place).expect("made");
            fs::write(place.join(name), name).expect("written");
        }
        let corpus = corpus(shop, target).expect("put back");
        assert_eq!(fuzz::stable::files(&corpus).expect("read").len(), 2);
        assert!(!aside.exists());
    }
}
