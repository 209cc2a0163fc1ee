//! `cargo xtask fuzz`: fuzzes devices and parsers, and makes regressions of what is found.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use fuzz::targets;
use vmm::units;

use crate::flags::{self, FuzzAction};
use crate::support::fuzz::build::{self, Flavour};
use crate::support::fuzz::triage::Judges;
use crate::support::fuzz::{
    Shop, chosen, cover, direct, export, floors, merge, owner, planted, record, run, several, soak,
    speed, target, triage,
};
use crate::support::out::complain;
use crate::support::{self, Failure, Out, Outcome};

/// How long a target is fuzzed if nobody says.
const TIME: Duration = Duration::from_secs(60);

/// Runs the command.
pub fn run(flags: &flags::Fuzz, out: &mut Out) -> Outcome {
    let root = support::root();
    let cancel = support::cancel_flag()?;
    let shop = Shop { root: &root, cancel: &cancel };
    let status = |good: bool| if good { ExitCode::SUCCESS } else { ExitCode::from(1) };
    match &flags.action {
        FuzzAction::List => {
            for target in targets::ALL {
                let inputs = if target.board().is_some() { "scripts" } else { "bytes" };
                writeln!(out, "{:16} {inputs:8} {}", target.name, target.about);
            }
            writeln!(out, "{} targets", targets::ALL.len());
        }
        FuzzAction::Run { target, time, runs, jobs, no_asan, stable, seed } => {
            let targets = chosen(target)?;
            // A bound of executions is one; without any, time is.
            let time = match (time, runs) {
                (Some(text), _) => duration("--time", text)?,
                (None, Some(_)) => Duration::from_secs(24 * 3600),
                (None, None) => TIME,
            };
            let options = run::Options {
                runs: runs.unwrap_or(0),
                time,
                jobs: *jobs,
                plain: *no_asan,
                stable: *stable,
                seed: *seed,
            };
            return Ok(status(run::run(shop, &targets, &options, out)?));
        }
        FuzzAction::Repro { file, target } => return repro(shop, file, target.as_deref(), out),
        FuzzAction::Min { file, target, out: to } => {
            return min(shop, file, target.as_deref(), to.clone(), out);
        }
        FuzzAction::Play { file } => {
            if let Err(back) = fuzz::regressions::play(file) {
                writeln!(out, "{}", back.what);
                return Ok(ExitCode::from(1));
            }
        }
        FuzzAction::Cmin { target: name, stable } => {
            let targets = chosen(name)?;
            let hunter = build::hunter(shop, Flavour::Plain, "fuzz-any", *stable)?;
            for target in targets {
                let (before, after) = merge::merge(shop, target, &hunter)?;
                writeln!(out, "{}: {before} inputs, now {after}", target.name);
            }
        }
        FuzzAction::Cover { target } => cover::run(shop, &chosen(target)?, out)?,
        FuzzAction::Speed { targets } => speed::run(shop, &several(targets)?, out)?,
        FuzzAction::Record { filters, file } => record::run(shop, filters, file, out)?,
        FuzzAction::Floors { target, runs, time, jobs, seed, stable, no_seeds } => {
            let time = time.as_deref().map(|text| duration("--time", text)).transpose()?;
            let options = floors::Options {
                runs: if time.is_some() { 0 } else { *runs },
                time,
                seed: *seed,
                jobs: usize::from(*jobs),
                stable: *stable,
                seeds: !no_seeds,
            };
            return Ok(status(floors::run(shop, &chosen(target)?, &options, out)?));
        }
        FuzzAction::Direct { target, runs, seed, script, sabotage } => {
            let runs = usize::from(*runs);
            let options = direct::Options { runs, seed: *seed, sabotage: sabotage.as_deref() };
            return Ok(status(match script {
                Some(file) => direct::again(shop, file, options, out)?,
                None => direct::run(shop, &chosen(target)?, options, out)?,
            }));
        }
        FuzzAction::Triage => triage::run(shop, out)?,
        FuzzAction::Planted { names, jobs, budget, seed, stable, json } => {
            let options = planted::Options {
                names,
                jobs: usize::from(*jobs),
                budget: duration("--budget", budget)?,
                seed: *seed,
                stable: *stable,
                json: json.as_deref(),
            };
            return Ok(status(planted::run(shop, &options, out)?));
        }
        FuzzAction::Export { target, out: to, sanitizer } => {
            let to = to.clone().unwrap_or_else(|| root.join("target/fuzz-export"));
            export::run(shop, &chosen(target)?, sanitizer, &to, out)?;
        }
        FuzzAction::Soak { hours, slice, stable } => {
            let options = soak::Options {
                time: hours.map(|hours| Duration::from_secs_f64(hours.max(0.0) * 3600.0)),
                slice: duration("--slice", slice)?,
                stable: *stable,
            };
            return Ok(status(soak::soak(shop, &options, out)?));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn duration(flag: &str, text: &str) -> Result<Duration, Failure> {
    units::duration(text).map_err(|e| Failure::input(format!("{flag} {text}: {e}")))
}

/// Shortens an input as long as it breaks the same.
fn min(
    shop: Shop<'_>,
    file: &Path,
    given: Option<&str>,
    to: Option<PathBuf>,
    out: &mut Out,
) -> Outcome {
    let owner = owner(file, given)?;
    let to = to.unwrap_or_else(|| file.with_extension("min"));
    let judges = Judges::new(shop)?;
    let asan = judges.judge(&owner, file)?.is_some_and(|(_, asan)| asan);
    let Some(least) = judges.of(asan).min(&owner, file, &to)? else {
        writeln!(out, "{} breaks no law; nothing is left to shorten", file.display());
        return Ok(ExitCode::SUCCESS);
    };
    let text = std::fs::read(&to).unwrap_or_default();
    let is_script = text.starts_with(b"# exitlab");
    if is_script {
        out.bytes(&text);
    }
    let what = if is_script { "operations" } else { "bytes" };
    writeln!(out, "{}: {} {what}: {}", to.display(), least.ops, least.cause);
    Ok(ExitCode::from(1))
}

/// Shows what an input does, and where that leads.
fn repro(shop: Shop<'_>, file: &Path, given: Option<&str>, out: &mut Out) -> Outcome {
    if let Some(name) = given {
        target(name)?;
    }
    let owner = owner(file, given)?;
    let judges = Judges::new(shop)?;
    let (mut ended, mut text) = judges.of(false).show(&owner, file, out)?;
    // A fuzzer died of it, and the tool does not.
    if ended == Some(0)
        && let Some(asan) = judges.asan(file)?
    {
        writeln!(out, "\nand with AddressSanitizer:");
        (ended, text) = asan.show(&owner, file, out)?;
    }
    match ended {
        Some(0) => Ok(ExitCode::SUCCESS),
        Some(1) => Ok(ExitCode::from(1)),
        Some(2) => Err(Failure::input(text)),
        _ => {
            complain(format_args!("{text}: the last operation above is the one that does it"));
            Ok(ExitCode::from(1))
        }
    }
}
