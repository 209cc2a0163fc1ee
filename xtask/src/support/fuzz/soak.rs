//! Fuzzing for days, by itself: time in slices, to the targets that still find something.
//!
//! What a soak knows is in `fuzz/soak/state.json`, written anew as a whole after each slice, and in the
//! corpora. A slice that dies (a crash, no memory, a kill) costs itself; a machine that goes down costs the
//! slice that ran. Corpora are files named for their contents, so two fuzzers that find the same write the
//! same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuzz::targets::{self, Target};
use serde::{Deserialize, Serialize};
use testcases::process::{self, Ended};

use super::build::{self, Flavour, Hunter};
use super::engine::{self, EXECUTION, Hunt, Hunted};
use super::export::replace;
use super::tool::Tool;
use super::{Shop, cannot, run, status};
use crate::support::out::complain;
use crate::support::{Failure, Out};

/// Less room on the disk than this ends a soak before a file is cut off. Bytes.
const ROOM: u64 = 256 << 20;
/// How many slices of a target come between two that merge its corpus.
const MERGE: u64 = 20;
/// Of how many slices of a target one has AddressSanitizer: it costs most of the speed.
const ASAN: u64 = 4;
/// How often old crashes are looked at again.
const RECHECK: Duration = Duration::from_secs(3600);
/// Points of a target's curve at most; then every other one goes.
const POINTS: usize = 400;
/// How long a merge may take.
const MERGING: Duration = Duration::from_secs(900);

/// One point of a target's curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Seconds of this target's own time.
    pub at: u64,
    /// Edges that were reached.
    pub edges: u64,
    /// Inputs.
    pub inputs: u64,
}

/// What is known of a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Slices that it had.
    pub slices: u64,
    /// Executions.
    pub executions: u64,
    /// Time that it had, in seconds.
    pub seconds: u64,
    /// The most edges that were reached.
    pub edges: u64,
    /// Inputs in its corpus.
    pub inputs: u64,
    /// When something new was found last, in seconds since 1970.
    pub last_find: u64,
    /// Edges a minute that it still finds: a mean that forgets.
    pub rate: f64,
    /// Its curve.
    pub curve: Vec<Point>,
    /// Slices that died otherwise than by a finding.
    pub deaths: u64,
    /// How the last of them did.
    pub last_death: String,
}

/// A finding's cause, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// The target that found it first.
    pub target: String,
    /// A file with it.
    pub file: String,
    /// How often it was found.
    pub times: u64,
    /// When first, and when last, in seconds since 1970.
    pub first: u64,
    /// See there.
    pub last: u64,
}

/// All that a soak knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// When the first soak began, in seconds since 1970.
    pub since: u64,
    /// How often one was begun.
    pub starts: u64,
    /// By target.
    pub targets: BTreeMap<String, Known>,
    /// By cause.
    pub crashes: BTreeMap<String, Crash>,
    /// Regressions that came back, as they were looked at last.
    pub back: Vec<String>,
    /// When they were.
    pub looked: u64,
}

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

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Reads the state. One that cannot be read is put aside, and said to be.
fn load(path: &Path) -> Result<State, Failure> {
    if !path.exists() {
        return Ok(State::default());
    }
    let bytes = fs::read(path).map_err(cannot("read the state of the soak", path))?;
    serde_json::from_slice(&bytes).or_else(|e| {
        let aside = path.with_extension("damaged");
        fs::rename(path, &aside).map_err(cannot("put aside", path))?;
        complain(format_args!(
            "{}: {e}; it is {} now, and counting begins anew (corpora and findings are where they were)",
            path.display(),
            aside.display()
        ));
        Ok(State::default())
    })
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

impl Known {
    /// Takes up what a slice came to.
    fn learn(&mut self, ran: &Hunted, time: u64) {
        self.slices += 1;
        self.executions += ran.stat.runs;
        let seconds = ran.took.as_secs().max(1);
        self.seconds += seconds;
        // A slice that died early has not seen its corpus.
        let reached = if ran.stat.edges > 0 { ran.stat.edges } else { ran.stat.features };
        let grown = reached.saturating_sub(self.edges);
        if grown > 0 {
            self.last_find = time;
        }
        self.edges += grown;
        self.inputs = self.inputs.max(ran.stat.inputs);
        // The first slice finds most of all there is, which tells nothing of the next.
        let rate = if self.slices == 1 { 0.0 } else { grown as f64 * 60.0 / seconds as f64 };
        self.rate = self.rate * 0.7 + rate * 0.3;
        self.curve.push(Point { at: self.seconds, edges: self.edges, inputs: self.inputs });
        if self.curve.len() > POINTS {
            let last = self.curve.len() - 1;
            let mut at = 0;
            self.curve.retain(|_| {
                at += 1;
                at % 2 == 0 || at > last
            });
        }
    }
}

/// Hunts until it is stopped, or the time is over.
///
/// # Errors
///
/// The disk is full, or something else that time does not mend.
pub fn soak(shop: Shop<'_>, options: &Options, out: &mut Out) -> Result<bool, Failure> {
    let home = build::directory(shop.root.join("fuzz/soak"))?;
    let path = home.join("state.json");
    let mut state = load(&path)?;
    state.starts += 1;
    if state.since == 0 {
        state.since = now();
    }
    room(&home)?;
    let plain = build::hunter(shop, Flavour::Plain, "fuzz-any", options.stable)?;
    let asan = match &plain {
        Hunter::LibFuzzer(_) => build::hunter(shop, Flavour::Asan, "fuzz-any", false)?,
        Hunter::Stable(_) => plain.clone(),
    };
    let tool = Tool::new(shop, Flavour::Tool)?;
    let names: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
    let start = Instant::now();
    let mut looked: Option<Instant> = None;
    let mut slice = state.targets.values().map(|k| k.slices).sum::<u64>();
    while !shop.stopped() && options.time.is_none_or(|time| start.elapsed() < time) {
        if looked.is_none_or(|then| then.elapsed() > RECHECK) {
            looked = Some(Instant::now());
            state.back = old_ones(shop, &tool)?;
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
        let (grown, died) = (known.edges, known.deaths);
        known.learn(&ran, now());
        if ran.found.is_empty() && !matches!(ran.ended, Ended::Exited(0) | Ended::Cancelled) {
            known.deaths += 1;
            let log = String::from_utf8_lossy(&ran.log).into_owned();
            known.last_death = format!("{}: {}", ran.ended, log.lines().last().unwrap_or(""));
        }
        let line = format!(
            "{:16} {:>9} executions, {} edges ({:+}), {} inputs{}{}",
            target.name,
            ran.stat.runs,
            known.edges,
            known.edges - grown,
            known.inputs,
            if with_asan { ", AddressSanitizer" } else { "" },
            if known.deaths > died { ", died" } else { "" }
        );
        let merging = known.slices.is_multiple_of(MERGE);
        complain(line);
        for file in &ran.found {
            note(&mut state, &tool, target, file)?;
        }
        if merging && !shop.stopped() {
            merge(shop, target, &plain)?;
        }
        room(&home)?;
        keep(&home, &state)?;
    }
    keep(&home, &state)?;
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
    let corpus = build::directory(shop.corpus(target.name))?;
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
fn note(state: &mut State, tool: &Tool<'_>, target: &Target, file: &Path) -> Result<(), Failure> {
    let cause = match tool.judge(target.name, file, 1)? {
        Some(judged) => judged.cause.to_string(),
        None => format!("{}: not again: the tool sees no law broken", target.name),
    };
    let time = now();
    let new = || Crash { target: target.name.into(), first: time, ..Crash::default() };
    let crash = state.crashes.entry(cause.clone()).or_insert_with(new);
    (crash.times, crash.last, crash.file) = (crash.times + 1, time, file.display().to_string());
    if crash.times == 1 {
        complain(format_args!("found: {cause}"));
    } else if crash.times > 3 {
        // More of one kind tell nothing, and would fill the disk.
        fs::remove_file(file).map_err(cannot("remove", file))?;
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

/// Makes a corpus as small as it can be without losing what it reaches. The old one is there until the new
/// one is whole.
///
/// # Errors
///
/// It cannot be read or written, or the fuzzer does not end well; the old corpus is there then.
pub fn merge(shop: Shop<'_>, target: &Target, hunter: &Hunter) -> Result<(usize, usize), Failure> {
    let corpus = build::directory(shop.corpus(target.name))?;
    let beside = |end: &str| corpus.with_file_name(format!("{}.{end}", target.name));
    let (new, old) = (beside("merging"), beside("merged"));
    for left in [&new, &old] {
        if left.exists() {
            fs::remove_dir_all(left).map_err(cannot("remove what an earlier merge left", left))?;
        }
    }
    build::directory(new.clone())?;
    let before = fuzz::stable::files(&corpus).map_err(cannot("read the corpus", &corpus))?.len();
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
    let after = fuzz::stable::files(&new).map_err(cannot("read the corpus", &new))?.len();
    if ended != Ended::Exited(0) || (after == 0 && before > 1) {
        let log = String::from_utf8_lossy(&log.contents()).into_owned();
        let last = log.lines().last().unwrap_or("").to_owned();
        return Err(Failure::bad(format!(
            "the corpus of {} cannot be merged ({ended}: {last}); it is as it was",
            target.name
        )));
    }
    fs::rename(&corpus, &old).map_err(cannot("put aside", &corpus))?;
    fs::rename(&new, &corpus).map_err(cannot("put in its place", &new))?;
    fs::remove_dir_all(&old).map_err(cannot("remove", &old))?;
    Ok((before, after))
}

/// Whether the disk has room.
fn room(home: &Path) -> Result<(), Failure> {
    let stat =
        rustix::fs::statvfs(home).map_err(|e| cannot("ask for the room of", home)(e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < ROOM {
        return Err(Failure::input(format!(
            "the disk of {} has {} MiB left, less than {}: the soak ends before a file is cut off. Make room \
             and start it again; it goes on where it was",
            home.display(),
            free >> 20,
            ROOM >> 20
        )));
    }
    Ok(())
}

/// Writes state and page, each as a whole.
fn keep(home: &Path, state: &State) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(state).map_err(|e| Failure::bad(e.to_string()))?;
    let files: [(&str, Vec<u8>); 3] = [
        ("state.json", text.clone()),
        ("status.json", text),
        ("status.html", status::page(state, now()).into_bytes()),
    ];
    for (name, bytes) in files {
        let path: PathBuf = home.join(name);
        replace(&path, &bytes).map_err(cannot("write", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::fuzz::engine::Stat;

    fn ran(edges: u64, seconds: u64) -> Hunted {
        Hunted {
            stat: Stat { runs: 100, edges, features: 0, inputs: edges / 10, ..Stat::default() },
            took: Duration::from_secs(seconds),
            cpu: None,
            found: Vec::new(),
            ended: Ended::Exited(0),
            log: Vec::new(),
        }
    }

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
    fn a_curve_stays_short_and_keeps_its_ends() {
        let mut known = Known::default();
        for edges in 0..3000 {
            known.learn(&ran(edges, 1), 1);
        }
        assert!(known.curve.len() <= POINTS + 1, "{}", known.curve.len());
        assert_eq!(known.curve.last().map(|p| p.edges), Some(2999));
        assert!(known.curve.is_sorted_by_key(|p| p.at));
    }

    #[test]
    fn a_state_that_is_damaged_is_put_aside() {
        let dir = std::env::temp_dir().join(format!("exitlab-soak-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join("state.json");
        let mut state = State { since: 5, starts: 2, ..State::default() };
        state.targets.entry("uart".into()).or_default().learn(&ran(9, 9), 9);
        keep(&dir, &state).expect("written");
        assert_eq!(load(&path).expect("read"), state);
        fs::write(&path, b"{ half of").expect("written");
        assert_eq!(load(&path).expect("put aside"), State::default());
        assert_eq!(fs::read(dir.join("state.damaged")).expect("aside"), b"{ half of");
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn a_full_disk_is_told_and_costs_nothing() {
        let full = Path::new("/dev/full");
        let Err(e) = fs::write(full, b"x") else { panic!("/dev/full took a byte") };
        let failure = cannot("write", full)(e);
        assert!(failure.message.contains("the disk is full") && failure.status == 2, "{failure:?}");
    }
}
