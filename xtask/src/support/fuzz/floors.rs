//! Holds each target to its floor: what a hunt of so many executions reaches, with a corpus of its own.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use fuzz::targets::Target;

use super::build::{self, Flavour, Hunter};
use super::cover::{self, Counted};
use super::engine::{self, EXECUTION, Hunt, Stat};
use super::lines::Source;
use super::{Shop, run};
use crate::support::{Failure, Out};

/// How long a hunt may take, whatever it was asked for.
const LIMIT: Duration = Duration::from_secs(1200);

/// What a hunt reached.
struct Reached {
    stat: Stat,
    took: Duration,
    sources: Vec<(Source, String)>,
}

impl Reached {
    fn lines(&self) -> (usize, usize) {
        let all = self.sources.iter().map(|(source, _)| (source.covered(), source.counts.len()));
        all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    fn percent(&self) -> f64 {
        let (covered, all) = self.lines();
        covered as f64 * 100.0 / all.max(1) as f64
    }
}

/// How a target is hunted on.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Executions; 0 for no bound.
    pub runs: u64,
    /// Processor time, if that bounds it.
    pub time: Option<Duration>,
    /// Where chance begins.
    pub seed: u32,
    /// Targets side by side.
    pub jobs: usize,
    /// Without libFuzzer.
    pub stable: bool,
    /// A corpus begins with the target's seeds, and not with nothing.
    pub seeds: bool,
}

/// Hunts on each target from its seeds alone, and tells what of its sources that reached. Returns whether
/// no target is below its floor.
///
/// # Errors
///
/// There are no tools that read the counters, or something cannot be built, run or written.
pub fn run(
    shop: Shop<'_>,
    targets: &[&'static Target],
    options: &Options,
    out: &mut Out,
) -> Result<bool, Failure> {
    let hunter = build::hunter(shop, Flavour::Plain, "fuzz-any", options.stable)?;
    let tool = build::build(shop, Flavour::Cover, "fuzz-tool")?;
    let next = AtomicUsize::new(0);
    let (send, receive) = mpsc::channel();
    let work = |send: mpsc::Sender<(&Target, Result<Reached, Failure>)>| {
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let reached = one(shop, target, &hunter, &tool, options);
            let stop = reached.is_err();
            // Whoever hears no more has failed already.
            if send.send((target, reached)).is_err() || stop {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            let (send, work) = (send.clone(), &work);
            scope.spawn(move || work(send));
        }
        drop(send);
        let mut good = true;
        for (target, reached) in receive {
            good &= tell(target, &reached?, options, out);
        }
        Ok(good)
    })
}

fn one(
    shop: Shop<'_>,
    target: &'static Target,
    hunter: &Hunter,
    tool: &Path,
    options: &Options,
) -> Result<Reached, Failure> {
    let work = cover::work(shop, target)?;
    let corpus = build::directory(work.join("corpus"))?;
    let artifacts = build::directory(shop.artifacts(target.name))?;
    if options.seeds {
        run::sow(&corpus, target)?;
    }
    let words = run::words(shop, target)?;
    let hunt = Hunt {
        target: target.name,
        corpus: std::slice::from_ref(&corpus),
        artifacts: &artifacts,
        runs: options.runs,
        time: LIMIT,
        seed: options.seed,
        ops: engine::OPS,
        cpu: options.time,
        execution: EXECUTION,
        words: words.as_deref(),
        environment: &[],
    };
    let hunted = engine::hunt(hunter, &hunt, shop.cancel, &mut |_| {});
    hunted.undisturbed(shop, target.name)?;
    let sources = Counted::new(shop, target, tool, &work, &[corpus])?.lines()?;
    Ok(Reached { stat: hunted.stat, took: hunted.took, sources })
}

/// Tells what was reached, and what was not where that is too little or was begun from nothing; whether it is
/// enough.
fn tell(target: &Target, reached: &Reached, options: &Options, out: &mut Out) -> bool {
    let (covered, all) = reached.lines();
    let (percent, floor) = (reached.percent(), target.floor);
    let good = percent >= f64::from(floor);
    let (refused, read) = reached.stat.refused;
    let share = match read {
        0 => String::new(),
        read => format!(", {:.1} % refused", refused as f64 * 100.0 / read as f64),
    };
    writeln!(
        out,
        "{:16} {percent:>5.1} % ({covered} of {all} lines), floor {floor} %, after {} executions in {:.1} s{share}{}",
        target.name,
        reached.stat.runs,
        reached.took.as_secs_f64(),
        if good { "" } else { ": too little" }
    );
    if !good || !options.seeds {
        cover::tell_missed(target, &reached.sources, out);
    }
    run::tell_refused(&reached.stat, out) && good
}
