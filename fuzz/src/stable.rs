//! A fuzzer's frame around [`Hunt`]: directories of inputs, bounds, and lines that tell how it goes.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::generators::MAX_OPS;
use crate::hunt::{Hunt, Seen};
use crate::judge;
use crate::targets::{self, Target};

/// How long one execution may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What a hunt is given.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Inputs to begin with; what is new goes there.
    pub corpus: PathBuf,
    /// Where findings go.
    pub artifacts: PathBuf,
    /// How many executions at most.
    pub runs: u64,
    /// How long at most.
    pub time: Duration,
    /// Where chance begins.
    pub seed: u64,
}

/// The name of a file by its contents.
pub fn name_of(bytes: &[u8]) -> String {
    let halves = [0u64, 1].map(|salt| {
        let mut hash = DefaultHasher::new();
        (salt, bytes).hash(&mut hash);
        hash.finish()
    });
    format!("{:016x}{:016x}", halves[0], halves[1])
}

/// Puts an input into a directory that is there, under its name. Whether it was not there yet.
///
/// # Errors
/// When it cannot be written; the path, and why.
pub fn put(dir: &Path, bytes: &[u8]) -> Result<bool, (PathBuf, io::Error)> {
    let path = dir.join(name_of(bytes));
    if path.exists() {
        return Ok(false);
    }
    match fs::write(&path, bytes) {
        Ok(()) => Ok(true),
        Err(e) => Err((path, e)),
    }
}

/// The files of a directory by their names; directories in it are left out. None if it is not there.
///
/// # Errors
/// When it, or a file in it, cannot be read.
pub fn files(dir: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut paths = fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    // Which file it is, is what helps.
    let named =
        |path: &Path, e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let read = |path: PathBuf| match fs::read(&path) {
        Ok(bytes) => Ok((path, bytes)),
        Err(e) => Err(named(&path, e)),
    };
    paths.into_iter().map(read).collect()
}

static RUNS: AtomicU64 = AtomicU64::new(0);
/// The input that is being tried.
static NOW: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Ends the process, with the input in a file, when one execution takes too long.
fn watch(artifacts: PathBuf) {
    std::thread::spawn(move || {
        let (mut before, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = RUNS.load(Ordering::Relaxed);
            if now != before {
                (before, since) = (now, Instant::now());
            } else if since.elapsed() > LIMIT {
                let input = NOW.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let path = artifacts.join(format!("timeout-{}", name_of(&input)));
                // The process ends either way; standard error has the bytes' place or the reason.
                match fs::write(&path, &input) {
                    Ok(()) => eprintln!("Test unit written to {}", path.display()),
                    Err(e) => eprintln!("{} cannot be written: {e}", path.display()),
                }
                eprintln!("stat::number_of_executed_units: {now}");
                std::process::exit(70);
            }
        }
    });
}

/// Hunts until something is found, or the plan is over; what was found. Progress goes to standard error, in
/// lines that begin as libFuzzer's do.
///
/// # Errors
/// When a file cannot be read or written.
pub fn hunt(target: &'static Target, plan: &Plan) -> io::Result<(u64, Option<PathBuf>)> {
    fs::create_dir_all(&plan.corpus)?;
    fs::create_dir_all(&plan.artifacts)?;
    watch(plan.artifacts.clone());
    targets::tell_refused();
    let start = Instant::now();
    let mut hunt = Hunt::new(target, plan.seed, MAX_OPS);
    let begin = files(&plan.corpus)?.into_iter().map(|(_, bytes)| bytes);
    begin.chain((target.seeds)()).for_each(|input| hunt.add(input));
    let mut kept = hunt.corpus().len();
    let mut told = Instant::now();
    let found = loop {
        if hunt.runs >= plan.runs || start.elapsed() >= plan.time {
            break None;
        }
        let input = hunt.input();
        NOW.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&input);
        let step = hunt.play(input);
        RUNS.store(hunt.runs, Ordering::Relaxed);
        if let Err(found) = step {
            let path = plan.artifacts.join(format!("crash-{}", name_of(&found.bytes)));
            fs::write(&path, &found.bytes)?;
            eprintln!("{}\nTest unit written to {}", found.says, path.display());
            break Some(path);
        }
        for input in &hunt.corpus()[kept..] {
            put(&plan.corpus, input).map_err(|(_, e)| e)?;
        }
        kept = hunt.corpus().len();
        if told.elapsed() > Duration::from_secs(1) {
            told = Instant::now();
            tell(&hunt, start)?;
        }
    };
    tell(&hunt, start)?;
    Ok((hunt.runs, found))
}

/// Says how it goes, as libFuzzer does; what boards answered stands for its features.
fn tell(hunt: &Hunt, start: Instant) -> io::Result<()> {
    let (runs, inputs) = (hunt.runs, hunt.corpus().len());
    let rate = runs as f64 / start.elapsed().as_secs_f64().max(0.001);
    writeln!(io::stderr(), "#{runs} ft: {} corp: {inputs} exec/s: {rate:.0}", hunt.answers())
}

/// Those of `inputs` that together do all that they all do: the short ones first.
pub fn minimal(target: &Target, mut inputs: Vec<(PathBuf, Vec<u8>)>) -> Vec<(PathBuf, Vec<u8>)> {
    inputs.sort_by_key(|(path, bytes)| (bytes.len(), path.clone()));
    let mut seen = Seen::default();
    inputs.retain(|(_, bytes)| {
        // What breaks a law is no part of a corpus.
        let sound = judge::input(target, bytes).is_none();
        sound && {
            target.run_seeing(bytes, &mut seen);
            seen.take_new()
        }
    });
    inputs
}
