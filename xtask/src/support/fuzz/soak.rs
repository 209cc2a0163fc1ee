//! Fuzzing for days, by itself: time in slices, to the targets that still find something.
//!
//! What a soak knows is in `fuzz/soak/state.json`, written anew as a whole after each slice, and in the
//! corpora. A slice that dies (a crash, no memory, a kill) costs itself; a machine that goes down costs the
//! slice that ran. Corpora are files named for their contents, so two fuzzers that find the same write the
//! same.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuzz::targets::{self, Target};
use testcases::process::Ended;

use super::build::{self, Flavour, Hunter};
use super::engine::{self, EXECUTION, Hunt, Hunted};
use super::merge::{corpus, merge};
use super::state::{self, Crash, State, now};
use super::tool::Tool;
use super::triage::Judges;
use super::{Shop, cannot, run};
use crate::support::out::complain;
use crate::support::{Failure, Out};

/// With less room on the disk than this, or an eighth of a small one, a soak waits. Bytes.
const ROOM: u64 = 256 << 20;
/// How many slices of a target come between two that merge its corpus.
const MERGE: u64 = 20;
/// Of how many slices of a target one has AddressSanitizer: it costs most of the speed.
const ASAN: u64 = 4;
/// Findings of one cause that are kept.
const MOST: u64 = 3;
/// How often old crashes are looked at again.
const RECHECK: Duration = Duration::from_secs(3600);

/// How long, and in what pieces.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// In all; `None` for until it is stopped.
    pub time: Option<Duration>,
    /// Of one slice.
    pub slice: Duration,
    /// Without libFuzzer.
    pub stable: bool,
}

/// The target that gets the next slice. Every other slice goes round, to whoever had the least; the others
/// go to who finds the most a minute for the time it had.
fn choose<'a>(state: &State, names: &[&'a str], slice: u64) -> &'a str {
    let known = |name: &str| state.targets.get(name).cloned().unwrap_or_default();
    let least = || names.iter().min_by_key(|name| known(name).seconds);
    let best = || names.iter().max_by(|a, b| known(a).rate.total_cmp(&known(b).rate));
    let fresh = names.iter().find(|name| known(name).slices == 0);
    fresh
        .or_else(|| if slice.is_multiple_of(2) { least() } else { best() })
        .copied()
        .unwrap_or("board")
}

/// Hunts until it is stopped, or the time is over.
///
/// # Errors
///
/// The disk is full, or something else that time does not mend.
pub fn soak(shop: Shop<'_>, options: &Options, out: &mut Out) -> Result<bool, Failure> {
    let home = build::directory(shop.root.join("fuzz/soak"))?;
    let path = home.join("state.json");
    let mut state = state::load(&path)?;
    state.starts += 1;
    if state.since == 0 {
        state.since = now();
    }
    let places = places(shop, &home)?;
    let begun = Instant::now();
    let in_time = |since: Instant| options.time.is_none_or(|time| since.elapsed() < time);
    wait(shop, &places, || in_time(begun))?;
    let plain = build::hunter(shop, Flavour::Plain, "fuzz-any", options.stable)?;
    let asan = match &plain {
        Hunter::LibFuzzer(_) => build::hunter(shop, Flavour::Asan, "fuzz-any", false)?,
        Hunter::Stable(_) => plain.clone(),
    };
    let judges = Judges::new(shop)?;
    let names: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
    // What is built takes none of the time.
    let start = Instant::now();
    let mut looked: Option<Instant> = None;
    let mut slice = state.targets.values().map(|k| k.slices).sum::<u64>();
    while !shop.stopped() && in_time(start) {
        if looked.is_none_or(|then| then.elapsed() > RECHECK) {
            looked = Some(Instant::now());
            state.back = old_ones(shop, judges.of(false))?;
            state.looked = now();
            for back in &state.back {
                complain(format_args!("an old crash is back: {back}"));
            }
        }
        let target = super::target(choose(&state, &names, slice))?;
        slice += 1;
        let known = state.targets.entry(target.name.to_owned()).or_default();
        let with_asan = known.slices % ASAN == ASAN - 1;
        let hunter = if with_asan { &asan } else { &plain };
        let left = options.time.map_or(options.slice, |time| time.saturating_sub(start.elapsed()));
        let time = options.slice.min(left).max(Duration::from_secs(1));
        let ran = one(shop, target, hunter, time)?;
        let (grown, died) = (known.reached(), known.deaths);
        known.learn(&ran, now());
        if ran.found.is_empty() && !matches!(ran.ended, Ended::Exited(0) | Ended::Cancelled) {
            known.deaths += 1;
            let log = String::from_utf8_lossy(&ran.log).into_owned();
            known.last_death = format!("{}: {}", ran.ended, log.lines().last().unwrap_or(""));
        }
        let line = format!(
            "{:16} {:>9} executions, {} {} ({:+}), {} inputs{}{}",
            target.name,
            ran.stat.runs,
            known.reached(),
            if known.edges > 0 { "edges" } else { "answers" },
            known.reached().saturating_sub(grown),
            known.inputs,
            if with_asan { ", AddressSanitizer" } else { "" },
            if known.deaths > died { ", died" } else { "" }
        );
        let merging = known.slices.is_multiple_of(MERGE);
        complain(line);
        for file in &ran.found {
            note(shop, &mut state, &judges, target, file)?;
        }
        // What goes wrong here is no reason to end: the corpus is as it was.
        if merging
            && !shop.stopped()
            && let Err(failure) = merge(shop, target, &plain)
        {
            complain(failure.message);
        }
        state.look(now());
        while let Err(failure) = state::keep(&home, &state) {
            if full(&places)?.is_none() || shop.stopped() || !in_time(start) {
                return Err(failure);
            }
            wait(shop, &places, || in_time(start))?;
        }
        wait(shop, &places, || in_time(start))?;
    }
    state::keep(&home, &state)?;
    let page = home.join("status.html");
    writeln!(
        out,
        "{slice} slices, {} causes, {} old crashes back; {}",
        state.crashes.len(),
        state.back.len(),
        page.strip_prefix(shop.root).unwrap_or(&page).display()
    );
    Ok(state.crashes.is_empty() && state.back.is_empty())
}

/// One slice.
fn one(
    shop: Shop<'_>,
    target: &'static Target,
    hunter: &Hunter,
    time: Duration,
) -> Result<Hunted, Failure> {
    let corpus = corpus(shop, target)?;
    let artifacts = build::directory(shop.artifacts(target.name))?;
    run::sow(&corpus, target)?;
    let words = run::words(shop, target)?;
    let hunt = Hunt {
        target: target.name,
        corpus: std::slice::from_ref(&corpus),
        artifacts: &artifacts,
        runs: 0,
        time,
        seed: 0,
        ops: engine::OPS,
        cpu: None,
        execution: EXECUTION,
        words: words.as_deref(),
        environment: &[],
    };
    Ok(engine::hunt(hunter, &hunt, shop.cancel, &mut |_| {}))
}

/// Writes down a finding by its cause.
fn note(
    shop: Shop<'_>,
    state: &mut State,
    judges: &Judges<'_>,
    target: &Target,
    file: &Path,
) -> Result<(), Failure> {
    let cause = match judges.judge(target.name, file) {
        _ if shop.stopped() => return Ok(()),
        Ok(Some((judged, _))) => judged.cause.to_string(),
        Ok(None) => format!("{}: not again: the tool sees no law broken", target.name),
        // The disk was full when it was written, or somebody has moved it.
        Err(failure) => format!("{}: cannot be judged: {}", target.name, failure.message),
    };
    uproot(&shop.corpus(target.name), file)?;
    let time = now();
    let new = || Crash { target: target.name.into(), first: time, ..Crash::default() };
    let crash = state.crashes.entry(cause.clone()).or_insert_with(new);
    (crash.times, crash.last) = (crash.times + 1, time);
    if crash.times > MOST && file.exists() {
        // More of one kind tell nothing, and would fill the disk.
        fs::remove_file(file).map_err(cannot("remove", file))?;
    } else {
        let shown = file.strip_prefix(shop.root).unwrap_or(file);
        crash.file = shown.display().to_string();
    }
    if crash.times == 1 {
        complain(format_args!("found: {cause}"));
    }
    Ok(())
}

/// Takes a finding out of its corpus: a fuzzer begins with that, and would find nothing else.
fn uproot(corpus: &Path, finding: &Path) -> Result<(), Failure> {
    // Whoever has taken it away has taken it away.
    let Ok(bytes) = fs::read(finding) else { return Ok(()) };
    let inputs = fuzz::stable::files(corpus).map_err(cannot("read the corpus", corpus))?;
    for (path, _) in inputs.iter().filter(|(_, input)| *input == bytes) {
        fs::remove_file(path).map_err(cannot("remove from the corpus", path))?;
    }
    Ok(())
}

/// The regressions that have come back.
fn old_ones(shop: Shop<'_>, tool: &Tool<'_>) -> Result<Vec<String>, Failure> {
    let dir = shop.regressions();
    let files = fuzz::regressions::files(&dir).map_err(cannot("read the regressions in", &dir))?;
    let mut back = Vec::new();
    for file in files {
        let owner = super::owner(&file, None)?;
        if let Some(judged) = tool.judge(&owner, &file, 1)? {
            let shown = file.strip_prefix(shop.root).unwrap_or(&file).display();
            back.push(format!("{shown}: {}", judged.cause));
        }
    }
    Ok(back)
}

/// Where a soak writes.
fn places(shop: Shop<'_>, home: &Path) -> Result<[PathBuf; 3], Failure> {
    let [corpora, artifacts] = ["fuzz/corpus", "fuzz/artifacts"].map(|place| shop.root.join(place));
    Ok([home.to_owned(), build::directory(corpora)?, build::directory(artifacts)?])
}

/// The first of the places whose disk has little room, and what to do.
fn full(places: &[PathBuf]) -> Result<Option<String>, Failure> {
    for place in places {
        let stat = rustix::fs::statvfs(place)
            .map_err(|e| cannot("ask for the room of", place)(e.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        let (free, least) = (bytes(stat.f_bavail), ROOM.min(bytes(stat.f_blocks) / 8));
        if free < least {
            return Ok(Some(format!(
                "the disk of {} has {} KiB left, less than {}: the soak waits, before a file is cut off. Make \
                 room, and it goes on by itself; nothing is lost",
                place.display(),
                free >> 10,
                least >> 10
            )));
        }
    }
    Ok(None)
}

/// Waits until there is room, as long as there is time.
fn wait(
    shop: Shop<'_>,
    places: &[PathBuf],
    mut goes_on: impl FnMut() -> bool,
) -> Result<(), Failure> {
    let Some(why) = full(places)? else { return Ok(()) };
    complain(why);
    while !shop.stopped() && goes_on() {
        std::thread::sleep(Duration::from_secs(2));
        if full(places)?.is_none() {
            complain("there is room again: the soak goes on");
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::fuzz::engine::ran;

    #[test]
    fn time_goes_to_who_still_finds_something() {
        let names = ["done", "fruitful", "new"];
        let mut state = State::default();
        let learn = |state: &mut State, name: &str, edges| {
            state.targets.entry(name.to_owned()).or_default().learn(&ran(edges, 60), 1);
        };
        for _ in 0..3 {
            learn(&mut state, "done", 500);
        }
        for edges in [100, 120, 150, 190] {
            learn(&mut state, "fruitful", edges);
        }
        assert_eq!(choose(&state, &names, 0), "new", "who never had a slice is first");
        learn(&mut state, "new", 70);
        assert_eq!(choose(&state, &names, 1), "fruitful");
        assert_eq!(choose(&state, &names, 2), "new", "every other one goes to who had the least");
        let known = &state.targets["fruitful"];
        assert_eq!((known.executions, known.seconds, known.edges), (400, 240, 190));
    }

    #[test]
    fn a_finding_leaves_the_corpus() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, bytes) in [("a", "dies"), ("b", "lives"), ("crash-x", "dies")] {
            fs::write(dir.path().join(name), bytes).expect("written");
        }
        let corpus = build::directory(dir.path().join("corpus")).expect("made");
        for name in ["a", "b"] {
            fs::rename(dir.path().join(name), corpus.join(name)).expect("moved");
        }
        uproot(&corpus, &dir.path().join("crash-x")).expect("removed");
        assert_eq!(fuzz::stable::files(&corpus).expect("read").len(), 1);
        uproot(&corpus, &dir.path().join("gone")).expect("nothing to do");
    }

    #[test]
    fn a_full_disk_is_told_and_costs_nothing() {
        let full = Path::new("/dev/full");
        let Err(e) = fs::write(full, b"x") else { panic!("/dev/full took a byte") };
        let failure = cannot("write", full)(e);
        assert!(failure.message.contains("the disk is full") && failure.status == 2, "{failure:?}");
    }
}
