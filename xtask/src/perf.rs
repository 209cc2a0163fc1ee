//! `cargo xtask perf`: keeps what was measured, compares, and reports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hosts::programs::Kind as Build;
use testcases::facts::HostFacts;
use testcases::facts_table::FactsTable;

use crate::flags::{self, PerfAction};
use crate::support::bench::exact::{self, PAYLOAD};
use crate::support::bench::{peers, start};
use crate::support::out::complain;
use crate::support::perf::flags::{Figures, Measured, Report};
use crate::support::perf::history::{Comparison, History, Series};
use crate::support::perf::judge::{self, Judged, Past, Rules, Verdict, figure};
use crate::support::perf::measure::{self, Plan};
use crate::support::perf::record::{self, Commit, Machine, Measurement, Metric, Run};
use crate::support::perf::stats::{Fence, median};
use crate::support::perf::{criterion, export, page, tree, versus};
use crate::support::{self, Failure, Out, Outcome};

/// Where guests run.
const HOST: &str = "kvm";
/// So many of the last runs make a fence.
const LAST: usize = 20;

/// Runs the command.
pub fn run(flags: &flags::Perf, out: &mut Out) -> Outcome {
    let root = support::root();
    match &flags.action {
        PerfAction::Compare(flags) if !flags.vmm.is_empty() || !flags.peer.is_empty() => {
            versus(flags, &root, out)
        }
        PerfAction::Compare(flags) => match (&flags.rev, &flags.against) {
            (Some(revision), _) => compare(revision, flags, &root, out),
            (None, Some(db)) => against(db, flags, &root, out),
            (None, None) => {
                Err(Failure::input("compare with what? Give a revision or --against DB"))
            }
        },
        PerfAction::Measure { plan, db } => {
            let commit = tree::commit(&root)?;
            let mut history = History::open(db.db.as_deref())?;
            let measurements = with_plan(plan, &root, |plan| {
                let vmm = tree::build_own(&root, plan.cancel)?;
                measure::alone(&vmm, plan)
            })?;
            told(&measurements, out);
            history.save(&kept(commit, "perf measure", measurements))?;
            writeln!(out, "kept in {}", history.path().display());
            Ok(ExitCode::SUCCESS)
        }
        PerfAction::Import { dir, db } => {
            let commit = tree::commit(&root)?;
            let dir = dir.clone().unwrap_or_else(|| root.join("target/criterion"));
            let measurements = criterion::read(&dir)?;
            told(&measurements, out);
            let mut history = History::open(db.db.as_deref())?;
            // What cargo bench builds is of the profile `bench`, which is `release`.
            let run = Run { host: "none".to_owned(), ..kept(commit, "criterion", measurements) };
            history.save(&run)?;
            writeln!(out, "kept of {} in {}", run.commit, history.path().display());
            Ok(ExitCode::SUCCESS)
        }
        PerfAction::Report(flags) => report(flags, &root, out),
    }
}

fn kept(commit: Commit, tool: &str, measurements: Vec<Measurement>) -> Run {
    let machine = Some(Machine::this(Build::Measured.profile()));
    let (host, tool) = (HOST.to_owned(), tool.to_owned());
    Run { commit, at: record::now(), host, tool, machine, measurements }
}

/// Builds the payload, and does something with what is to be measured.
fn with_plan<T>(
    flags: &Measured,
    root: &Path,
    act: impl FnOnce(&Plan<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    FactsTable::collect().kvm().map_err(|why| {
        Failure::input(format!(
            "VMMs are measured on this machine's KVM, which is not usable: {why}"
        ))
    })?;
    let cancel = support::cancel_flag()?;
    let catalog = support::payloads(root)?;
    let payload = catalog.get(PAYLOAD).ok_or_else(|| {
        Failure::bad(format!("there is no payload `{PAYLOAD}`; `cargo xtask payloads` lists them"))
    })?;
    let kinds: Vec<&str> = payload.tests.iter().map(|(name, _)| &name[..]).collect();
    let kinds = exact::choose(&kinds, &flags.kind)?;
    let exact = flags.only != Some(Figures::Noisy);
    let rounds = if flags.only == Some(Figures::Exact) { 0 } else { usize::from(flags.rounds) };
    act(&Plan { payload: &payload.path, kinds: &kinds, exact, rounds, cancel: &cancel })
}

fn rules(flags: &flags::Compare) -> Rules {
    let (tolerance, effect) = (f64::from(flags.tolerance), flags.effect / 100.0);
    Rules { tolerance, effect, ..Rules::default() }
}

/// Compares this tree with a revision.
fn compare(revision: &str, flags: &flags::Compare, root: &Path, out: &mut Out) -> Outcome {
    let (base, new) = (tree::resolve(root, revision)?, tree::commit(root)?);
    let mut history = match flags.no_save {
        true => None,
        false => Some(History::open(flags.db.db.as_deref())?),
    };
    let seen = with_plan(&flags.plan, root, |plan| {
        let tree = tree::Tree::take(root)?;
        complain(format_args!("building {revision} ({base}), then this tree ({new})"));
        let old_vmm = tree.build(&base, revision, plan.cancel)?;
        let new_vmm = tree::build_own(root, plan.cancel)?;
        if !flags.even_if_equal && equal(&old_vmm, &new_vmm)? {
            return Ok(None);
        }
        Ok(Some(measure::both(&old_vmm, &new_vmm, plan)?))
    })?;
    let Some(seen) = seen else {
        writeln!(
            out,
            "the VMMs of {revision} ({base}) and of this tree ({new}) are equal byte by byte: all is the same"
        );
        return Ok(ExitCode::SUCCESS);
    };
    let machine = Machine::this(Build::Measured.profile());
    let mut trouble = None;
    let judged = judge::sides(&seen, &rules(flags), |metric| {
        let changes = history.as_ref()?.changes_without_cause(metric, &machine);
        changes.map_err(|e| trouble = Some(e)).ok().and_then(|changes| Fence::of(&changes))
    });
    if let Some(failure) = trouble {
        return Err(failure);
    }
    verdicts(&judged, ["before", "now"], out);
    if let Some(history) = &mut history {
        let side = |base: bool| {
            let one = |sides: &judge::Sides| Measurement {
                metric: sides.metric.clone(),
                samples: if base { sides.base.clone() } else { sides.new.clone() },
            };
            seen.iter().map(one).filter(|m| !m.samples.is_empty()).collect()
        };
        history.save(&kept(base.clone(), "perf compare", side(true)))?;
        history.save(&kept(new.clone(), "perf compare", side(false)))?;
        keep(history, base.to_string(), &new, machine, &judged)?;
    }
    Ok(status(&judged, &format!("{revision} ({base})"), out))
}

/// Whether two programs are one.
fn equal(one: &Path, other: &Path) -> Result<bool, Failure> {
    let read = |path: &Path| {
        fs::read(path).map_err(|e| Failure::bad(format!("cannot read {}: {e}", path.display())))
    };
    Ok(read(one)? == read(other)?)
}

/// Compares this tree with what a history says.
fn against(db: &Path, flags: &flags::Compare, root: &Path, out: &mut Out) -> Outcome {
    let past = History::existing(Some(db))?;
    let series = past.series()?;
    let machine = Machine::this(Build::Measured.profile());
    let new = tree::commit(root)?;
    let of_here = series.iter().flat_map(|series| usable(series, &machine));
    let newest = of_here.max_by_key(|point| point.at).ok_or_else(|| {
        Failure::input(format!(
            "{} has no run to compare with: none of a clean tree on this machine ({machine}); `cargo xtask \
             perf measure --db {}` adds one",
            db.display(),
            db.display()
        ))
    })?;
    let base = format!("{} of {}", newest.commit, db.display());
    let now = with_plan(&flags.plan, root, |plan| {
        let vmm = tree::build_own(root, plan.cancel)?;
        measure::alone(&vmm, plan)
    })?;
    let pasts: Vec<Past> = now.iter().map(|now| past_of(&series, &now.metric, &machine)).collect();
    let judged = judge::against(&now, &pasts, &rules(flags));
    verdicts(&judged, ["before", "now"], out);
    if !flags.no_save {
        let mut history = match &flags.db.db {
            // The one that is open.
            None => past,
            Some(db) => History::open(Some(db))?,
        };
        history.save(&kept(new.clone(), "perf compare", now))?;
        keep(&mut history, base.clone(), &new, machine, &judged)?;
    }
    Ok(status(&judged, &base, out))
}

/// Compares this tree with other VMMs. Nothing is kept: what they show is no commit's.
fn versus(flags: &flags::Compare, root: &Path, out: &mut Out) -> Outcome {
    FactsTable::collect().kvm().map_err(|why| {
        Failure::input(format!(
            "VMMs are measured on this machine's KVM, which is not usable: {why}"
        ))
    })?;
    let cancel = support::cancel_flag()?;
    let chosen = peers::choose(&flags.vmm, &flags.peer)?;
    let dir = start::guests(root)?;
    let ours = start::ours(&tree::build_own(root, &cancel)?);
    let (found, missing) = peers::find(&chosen, root, &cancel)?;
    let subjects: Vec<_> = std::iter::once(ours).chain(found).collect();
    let only = flags.plan.only;
    let rounds = if only == Some(Figures::Exact) { 0 } else { flags.plan.rounds.into() };
    let rows = start::in_turn(&subjects, &dir, rounds, &cancel)?;
    let counts = match only {
        Some(Figures::Noisy) => peers::uncounted(&rows),
        _ => peers::count(&subjects, &rows, &dir, &cancel)?,
    };
    let seen: Vec<_> =
        (1..rows.len()).flat_map(|peer| versus::sides(&rows, &counts, 0, peer)).collect();
    let judged = judge::sides(&seen, &rules(flags), |_| None);
    verdicts(&judged, ["peer", "vmm"], out);
    let told = peers::failures(&rows, &counts, &missing);
    for (name, why) in &told {
        writeln!(out, "unknown {name}: {why}");
    }
    let names: Vec<&str> = rows[1..].iter().map(|row| &row.name[..]).collect();
    let sum = status(&judged, &names.join(", "), out);
    let unmeasured = missing.len() + rows.iter().filter(|row| row.seen.is_err()).count();
    Ok(if unmeasured > 0 { ExitCode::from(1) } else { sum })
}

/// Runs that something may be compared with: of a commit, and on this machine.
fn usable<'a>(
    series: &'a Series,
    machine: &'a Machine,
) -> impl Iterator<Item = &'a crate::support::perf::history::Point> {
    let here = series.host == HOST;
    series
        .points
        .iter()
        .filter(move |point| here && !point.commit.dirty && point.machine.as_ref() == Some(machine))
}

/// What the last runs of a metric showed.
fn past_of(series: &[Series], metric: &Metric, machine: &Machine) -> Past {
    let of_it = series.iter().filter(|series| series.metric == *metric);
    let mut points: Vec<_> = of_it.flat_map(|series| usable(series, machine)).collect();
    points.sort_by_key(|point| point.at);
    let last = &points[points.len().saturating_sub(LAST)..];
    let runs: Vec<f64> = last.iter().filter_map(|point| median(&point.samples)).collect();
    Past { newest: runs.last().copied(), runs }
}

fn keep(
    history: &mut History,
    base: String,
    new: &Commit,
    machine: Machine,
    judged: &[Judged],
) -> Result<(), Failure> {
    let (at, new, verdicts) = (record::now(), new.to_string(), judged.to_vec());
    history.save_comparison(&Comparison { at, base, new, machine, verdicts })
}

/// What came of a comparison: a line a metric, what is worse at the end, where it is seen.
fn verdicts(judged: &[Judged], [base, new]: [&str; 2], out: &mut Out) {
    let value = |value: Option<f64>| value.map_or("-".to_owned(), figure);
    writeln!(out, "{:7} {:34} {base:>10} {new:>10} {:>8}", "", "", "change");
    let mut sorted: Vec<&Judged> = judged.iter().collect();
    sorted.sort_by_key(|judged| std::cmp::Reverse(judged.verdict));
    for Judged { metric, verdict, before, after, change, why } in sorted {
        let change = change.map_or("-".to_owned(), |change| format!("{:+.1}%", change * 100.0));
        writeln!(
            out,
            "{:7} {:34} {:>10} {:>10} {change:>8}  {why}",
            verdict.word(),
            metric.name,
            value(*before),
            value(*after)
        );
    }
}

/// The sum of it.
fn status(judged: &[Judged], base: &str, out: &mut Out) -> ExitCode {
    let count = |verdict| judged.iter().filter(|judged| judged.verdict == verdict).count();
    let [worse, better, unknown, same] =
        [Verdict::Worse, Verdict::Better, Verdict::Unknown, Verdict::Same].map(count);
    writeln!(
        out,
        "{} metrics against {base}: {worse} worse, {better} better, {same} the same, {unknown} unknown",
        judged.len()
    );
    if worse > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

/// What was measured, a line each.
fn told(measurements: &[Measurement], out: &mut Out) {
    for Measurement { metric, samples } in measurements {
        let middle = median(samples).map_or("-".to_owned(), figure);
        let count = samples.len();
        writeln!(out, "{:40} {middle:>12} {} ({count} samples)", metric.name, metric.unit);
    }
}

fn report(flags: &Report, root: &Path, out: &mut Out) -> Outcome {
    let history = History::existing(flags.db.db.as_deref())?;
    let series = history.series()?;
    let write = |path: &PathBuf, text: String| {
        fs::write(path, text)
            .map_err(|e| Failure::input(format!("cannot write {}: {e}", path.display())))
    };
    if let Some(path) = &flags.bencher {
        write(path, export::bencher(&series))?;
    }
    if let Some(path) = &flags.github {
        let (text, left_out) = export::github(&series);
        write(path, text)?;
        for name in left_out {
            complain(format_args!("{name} is not in {}: more of it is better", path.display()));
        }
    }
    let path = match &flags.out {
        Some(path) => path.clone(),
        None => {
            let dir = root.join("target/perf");
            fs::create_dir_all(&dir)
                .map_err(|e| Failure::input(format!("cannot create {}: {e}", dir.display())))?;
            dir.join("report.html")
        }
    };
    let comparison = history.last_comparison()?;
    let date = |at| history.date(at);
    write(&path, page::page(&series, comparison.as_ref(), record::now(), &date))?;
    writeln!(out, "{} metrics are in {}", series.len(), path.display());
    Ok(ExitCode::SUCCESS)
}
