//! How long VMMs take to their guest's first byte, and what they have in memory: one after the other, in turn with
//! a loop in C that does the least.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use benches::ratio::Ratio;
use benches::start::{self, Memory, StartError, Subject};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::support::perf::stats::median;
use crate::support::{Failure, Out};

/// Where guests and the bare loop are made, below the workspace.
const PLACE: &str = "target/bench";
/// What others are held against.
const SOURCE: &str = "benches/bare/bare.c";
/// Their names.
pub const BARE: &str = "bare loop";
pub const NO_CPUID: &str = "no CPUID";
/// The name of this project's VMM.
pub const OURS: &str = "vmm";
/// The slowest of peers takes two seconds on a machine that does nothing else.
pub const LIMIT: Duration = Duration::from_secs(30);

/// How often memory is looked at.
const LOOKS: usize = 3;

/// What was seen of one VMM.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What was seen, or why nothing was.
    pub seen: Result<Seen, String>,
}

/// What was seen of a VMM that runs the guest.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Milliseconds from exec to the first byte, in the order of rounds, two of each.
    pub times: Vec<f64>,
    /// What it has in memory, several times.
    pub memory: Vec<Memory>,
    /// How many times what the first of all takes; nothing for that itself.
    pub ratio: Option<Ratio>,
}

/// Writes the guests, and tells where.
///
/// # Errors
///
/// They cannot be written.
pub fn guests(root: &Path) -> Result<PathBuf, Failure> {
    let dir = root.join(PLACE);
    let cannot = |e| Failure::input(format!("cannot write guests into {}: {e}", dir.display()));
    start::write_guests(&dir).map_err(cannot)?;
    Ok(dir)
}

/// The bare loop, compiled: as others are held against it, and without CPUID.
///
/// # Errors
///
/// There is no C compiler.
pub fn bare(root: &Path, dir: &Path) -> Result<[Subject; 2], Failure> {
    let program = dir.join("bare");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    start::compile_bare(&root.join(SOURCE), &compiler, &program).map_err(Failure::input)?;
    let less = subject(NO_CPUID, program.clone(), &["{flat}", "no-cpuid"]);
    Ok([subject(BARE, program, &["{flat}"]), less])
}

/// The VMM of this project.
pub fn ours(program: &Path) -> Subject {
    subject(OURS, program.to_owned(), &["run", "--kernel", "{elf}", "--keep-halted"])
}

/// A VMM with these arguments.
pub fn subject(name: &str, program: PathBuf, arguments: &[&str]) -> Subject {
    let arguments = arguments.iter().map(Into::into).collect();
    Subject { name: name.to_owned(), program, arguments, env: Vec::new(), terminal: false }
}

/// Starts all of them in turn, and the other way about in every other round. One that does not come to its first
/// byte the first time is left out, with the reason.
///
/// # Errors
///
/// The user wants to stop.
pub fn in_turn(
    subjects: &[Subject],
    dir: &Path,
    rounds: usize,
    cancel: &AtomicBool,
) -> Result<Vec<Row>, Failure> {
    let bar = ProgressBar::with_draw_target(
        Some((subjects.len() * (2 * rounds + LOOKS)) as u64),
        ProgressDrawTarget::stderr(),
    );
    let style = ProgressStyle::with_template("[{elapsed}] {pos}/{len} starting {wide_msg}");
    bar.set_style(style.expect("the template is constant and right"));
    let tried = |subject: &Subject| {
        bar.set_message(subject.name.clone());
        bar.inc(1);
        start::first_byte(subject, dir, LIMIT, cancel)
    };
    let mut rows = Vec::new();
    for subject in subjects {
        // The first one brings the program into memory, and is no sample.
        let looks = (0..LOOKS).map(|_| tried(subject).and_then(|started| started.memory()));
        let memory = looks.collect::<Result<Vec<_>, _>>();
        let seen = |memory| Seen { times: Vec::new(), memory, ratio: None };
        rows.push(Row { name: subject.name.clone(), seen: told(memory.map(seen))? });
    }
    for round in 0..rounds {
        for index in order(subjects.len(), round) {
            let Ok(seen) = &mut rows[index].seen else { continue };
            match told(tried(&subjects[index]))? {
                Ok(started) => seen.times.push(started.took.as_secs_f64() * 1e3),
                Err(why) => rows[index].seen = Err(format!("in round {}: {why}", round + 1)),
            }
        }
    }
    bar.finish_and_clear();
    let first = rows.first().and_then(|row| row.seen.as_ref().ok()).map(|seen| seen.times.clone());
    for row in rows.iter_mut().skip(1) {
        if let (Ok(seen), Some(first)) = (&mut row.seen, &first) {
            seen.ratio = ratio(first, &seen.times);
        }
    }
    Ok(rows)
}

/// A failure of the VMM's is told of it; that the user wants to stop ends all.
fn told<T>(seen: Result<T, StartError>) -> Result<Result<T, String>, Failure> {
    match seen {
        Err(StartError::Stopped) => Err(Failure::stopped()),
        seen => Ok(seen.map_err(|e| e.to_string())),
    }
}

/// Who starts when in a round: each twice, and the last one first in every other.
fn order(count: usize, round: usize) -> Vec<usize> {
    let there: Vec<usize> = (0..count).collect();
    let back: Vec<usize> = (0..count).rev().collect();
    if round.is_multiple_of(2) { [there, back] } else { [back, there] }.concat()
}

/// Round by round, the better of two against the better of two.
fn ratio(base: &[f64], new: &[f64]) -> Option<Ratio> {
    let best = |two: &[f64]| two[0].min(two[1]);
    let rounds = base.chunks_exact(2).zip(new.chunks_exact(2));
    Ratio::of(rounds.map(|(base, new)| best(new) / best(base)).collect())
}

/// The middle one of these, in MiB.
fn mib(looks: &[Memory], part: fn(&Memory) -> u64) -> String {
    let all: Vec<f64> = looks.iter().map(|memory| part(memory) as f64).collect();
    format!("{:.2}", median(&all).unwrap_or(f64::NAN) / f64::from(1 << 20))
}

/// What was seen, a line each.
pub fn table(rows: &[Row], out: &mut Out) {
    writeln!(
        out,
        "{:12} {:^17}   {:^26}   {:^15}",
        "", "exec to byte, ms", "times the bare loop", "memory, MiB"
    );
    writeln!(
        out,
        "{:12} {:>8} {:>8}   {:>26}   {:>7} {:>7}",
        "", "median", "least", "median (half of rounds)", "RSS", "PSS"
    );
    for row in rows {
        let Ok(seen) = &row.seen else { continue };
        let least = seen.times.iter().copied().fold(f64::INFINITY, f64::min);
        let ratio = seen.ratio.map_or_else(String::new, |ratio| ratio.to_string());
        writeln!(
            out,
            "{:12} {:>8.2} {least:>8.2}   {ratio:>26}   {:>7} {:>7}",
            row.name,
            median(&seen.times).unwrap_or(f64::NAN),
            mib(&seen.memory, |memory| memory.rss),
            mib(&seen.memory, |memory| memory.pss),
        );
    }
    writeln!(
        out,
        "memory is without the guest's: Rss and Pss of /proc/PID/smaps_rollup, half a second after the byte"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_starts_as_often_and_as_early() {
        assert_eq!(order(3, 0), [0, 1, 2, 2, 1, 0]);
        assert_eq!(order(3, 1), [2, 1, 0, 0, 1, 2]);
    }

    #[test]
    fn the_better_of_two_stands_for_a_round() {
        let ratio = ratio(&[1.0, 9.0, 4.0, 2.0], &[3.0, 2.0, 4.0, 8.0]).expect("two rounds");
        assert_eq!((ratio.lower, ratio.upper), (2.0, 2.0));
        assert!(super::ratio(&[], &[]).is_none());
    }

    #[test]
    fn who_does_not_run_is_told_and_the_others_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        start::write_guests(dir.path()).expect("written");
        let shell = |name, script| subject(name, "/bin/sh".into(), &["-c", script]);
        let all = [
            shell("good", "printf '\\247'; sleep 60"),
            shell("bad", "echo cannot >&2"),
            subject("gone", "/no/such/vmm".into(), &[]),
        ];
        let cancel = AtomicBool::new(false);
        let rows = in_turn(&all, dir.path(), 2, &cancel).expect("measured");
        assert_eq!(rows[0].seen.as_ref().expect("it runs").times.len(), 4);
        let why = rows[1].seen.as_ref().expect_err("it does not").clone();
        assert!(why.ends_with("it said: cannot"), "{why}");
        assert!(rows[2].seen.as_ref().expect_err("none").contains("/no/such/vmm"));
        cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        let waits = [shell("waits", "sleep 60")];
        assert_eq!(in_turn(&waits, dir.path(), 1, &cancel).expect_err("stopped").status, 130);
    }
}
