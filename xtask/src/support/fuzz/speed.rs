//! How many executions a fuzzer makes in a second of processor time, as it fuzzes: with libFuzzer's own
//! work, on inputs that it makes itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fuzz::targets::Target;

use super::Shop;
use super::build::{self, Flavour, Hunter};
use super::engine::{self, EXECUTION, Hunt, Hunted};
use crate::support::{Failure, Out};

/// Operations of an input at most.
const OPS: usize = 16;
/// Executions that fill the corpus, and are not counted.
const FIRST: u64 = 50_000;
/// Executions of a run that is.
const RUNS: u64 = 100_000;
/// Such runs of each build, by turns.
const TURNS: usize = 5;
/// The longest that a run may take.
const LIMIT: Duration = Duration::from_secs(600);

/// A build, and what it is called.
struct Built {
    name: &'static str,
    hunter: Hunter,
    rates: Vec<f64>,
}

/// Measures targets, and writes a line for each build of each.
///
/// # Errors
///
/// There is no nightly compiler, a target finds something, or a directory cannot be made.
pub fn run(shop: Shop<'_>, targets: &[&'static Target], out: &mut Out) -> Result<(), Failure> {
    let mut built = Vec::new();
    for (name, flavour) in [("ASan", Flavour::Asan), ("plain", Flavour::Plain)] {
        let program = build::build(shop, flavour, "fuzz-any")?;
        built.push(Built { name, hunter: Hunter::LibFuzzer(program), rates: Vec::new() });
    }
    writeln!(
        out,
        "executions per second of processor time, median of {TURNS} runs of {RUNS} by turns, inputs of at \
         most {OPS} operations"
    );
    for target in targets {
        let place = shop.root.join("target/fuzz-speed").join(target.name);
        let artifacts = build::directory(place.join("artifacts"))?;
        let corpus = build::empty(place.join("corpus"))?;
        let plain = &built[1].hunter;
        once(shop, target, plain, std::slice::from_ref(&corpus), &artifacts, (FIRST, 1))?;
        for seed in 2..2 + TURNS as u32 {
            for build in &mut built {
                // What is new is lost again: each run begins with the same.
                let new = build::empty(place.join("new"))?;
                let dirs = [new, corpus.clone()];
                let ran = once(shop, target, &build.hunter, &dirs, &artifacts, (RUNS, seed))?;
                let cpu = ran.cpu.unwrap_or(ran.took);
                build.rates.push(ran.stat.runs as f64 / cpu.as_secs_f64());
            }
        }
        for build in &mut built {
            let mut rates = std::mem::take(&mut build.rates);
            rates.sort_by(f64::total_cmp);
            let (least, most) = (rates[0], rates[TURNS - 1]);
            let median = rates[TURNS / 2];
            writeln!(
                out,
                "{:16} {:6} {median:>9.0}/s  ({least:.0} to {most:.0})",
                target.name, build.name
            );
        }
    }
    Ok(())
}

fn once(
    shop: Shop<'_>,
    target: &'static Target,
    hunter: &Hunter,
    corpus: &[PathBuf],
    artifacts: &Path,
    (runs, seed): (u64, u32),
) -> Result<Hunted, Failure> {
    let hunt = Hunt {
        target: target.name,
        corpus,
        artifacts,
        runs,
        time: LIMIT,
        seed,
        ops: OPS,
        cpu: Some(LIMIT),
        execution: EXECUTION,
        words: None,
        environment: &[],
    };
    let ran = engine::hunt(hunter, &hunt, shop.cancel, &mut |_| {});
    ran.undisturbed(shop, target.name)?;
    Ok(ran)
}
