//! `cargo xtask bench`: what exits cost.

use std::path::Path;
use std::process::ExitCode;

use benches::kinds::KINDS;
use benches::{scenes, vms};
use hosts::machine::Machine;
use hosts::name::Name;
use hosts::programs::{self, Kind};
use testcases::facts::HostFacts;
use testcases::facts_table::FactsTable;

use crate::flags::{self, BenchAction};
use crate::support::bench::baseline::{Baseline, Measured};
use crate::support::bench::counts;
use crate::support::bench::exact::{self, PAYLOAD, Pair, Served, Spread};
use crate::support::bench::{peers, start};
use crate::support::emulated::{self, Workshop};
use crate::support::out::complain;
use crate::support::perf::history::History;
use crate::support::perf::record::{self, Measurement, Metric, Run};
use crate::support::perf::tree;
use crate::support::{self, Failure, Out, Outcome};

/// Runs the command.
pub fn run(flags: &flags::Bench, out: &mut Out) -> Outcome {
    match &flags.action {
        BenchAction::Exact(flags) => count(flags, out),
        BenchAction::Counts(flags) => callgrind(flags, out),
        BenchAction::Start(flags) => start(flags, out),
        BenchAction::Peers(flags) => peers(flags, out),
        BenchAction::List => list(out),
    }
}

fn ready(why: &str) -> Result<(), Failure> {
    FactsTable::collect().kvm().map(drop).map_err(|e| {
        Failure::input(format!("{why} on this machine's KVM, which is not usable: {e}"))
    })
}

/// Takes the time of a start.
fn start(flags: &flags::Start, out: &mut Out) -> Outcome {
    ready("VMMs are started")?;
    let root = support::root();
    let cancel = support::cancel_flag()?;
    let dir = start::guests(&root)?;
    let bare = start::bare(&root, &dir)?;
    let ours = match &flags.vmm {
        Some(path) => path.clone(),
        None => tree::build_own(&root, &cancel)?,
    };
    let [bare, less] = bare;
    let subjects = [bare, less, start::ours(&ours)];
    let rows = start::in_turn(&subjects, &dir, flags.rounds.into(), &cancel)?;
    start::table(&rows, out);
    match rows.iter().find_map(|row| Some((&row.name, row.seen.as_ref().err()?))) {
        None => Ok(ExitCode::SUCCESS),
        Some((name, why)) => Err(Failure::bad(format!("{name}: {why}"))),
    }
}

/// Measures other VMMs.
fn peers(flags: &flags::Peers, out: &mut Out) -> Outcome {
    ready("VMMs are started")?;
    let root = support::root();
    let cancel = support::cancel_flag()?;
    let chosen = peers::choose(&flags.peers, &flags.peer)?;
    let dir = start::guests(&root)?;
    let [bare, _] = start::bare(&root, &dir)?;
    let ours = start::ours(&tree::build_own(&root, &cancel)?);
    let (found, missing) = peers::find(&chosen, &root, &cancel)?;
    let subjects: Vec<_> = [bare, ours].into_iter().chain(found).collect();
    let rows = start::in_turn(&subjects, &dir, flags.rounds.into(), &cancel)?;
    let counts = peers::count(&subjects, &rows, &dir, &cancel)?;
    peers::table(&rows, &counts, &missing, out);
    peers::outcome(&chosen, &rows, &counts, &missing)
}

/// Counts what runs without KVM.
fn callgrind(flags: &flags::Counts, out: &mut Out) -> Outcome {
    let cancel = support::cancel_flag()?;
    let counted = counts::count(&support::root(), &flags.names, flags.repeats, &cancel)?;
    writeln!(out, "{:28} {:>14} {:>10}", "instructions of one turn", "least", "spread");
    for scene in &counted {
        let (least, most) = scene.range();
        writeln!(out, "{:28} {least:>14.1} {:>10.1}", scene.name, most - least);
    }
    let differ = counted.iter().filter(|scene| scene.range().0 != scene.range().1).count();
    match (differ, flags.repeats) {
        (_, 1) => writeln!(out, "counted once: --repeats tells whether counts agree"),
        (0, n) => writeln!(out, "all {n} counts of each agree"),
        (differ, n) => writeln!(out, "{differ} of {} differ in {n} counts", counted.len()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists what can be measured.
fn list(out: &mut Out) -> Outcome {
    writeln!(out, "exits on this machine's KVM, beside a loop that does nothing:");
    writeln!(out, "  cargo bench -p benches --bench exits [-- exits/NAME]");
    for kind in &KINDS {
        writeln!(out, "    exits/{}", kind.name);
    }
    for (name, _) in vms::WORKS {
        writeln!(out, "    vm/{name}");
    }
    writeln!(out, "what runs without KVM, beside what has to be done in any case:");
    writeln!(out, "  cargo bench -p benches --bench plain [-- GROUP/NAME]  in time");
    writeln!(out, "  cargo xtask bench counts [NAME]                       in instructions");
    for scene in scenes::all() {
        let name = format!("{}/{}", scene.group, scene.name);
        writeln!(out, "    {name:28} beside {}", scene.against);
    }
    writeln!(
        out,
        "from exec to a guest's first byte, and memory, beside a loop in C; and other VMMs by the same:"
    );
    writeln!(out, "  cargo xtask bench start");
    writeln!(out, "  cargo xtask bench peers [--peers qemu,alioth]");
    writeln!(out, "exits to the instruction, beside a loop that does nothing:");
    writeln!(out, "  cargo xtask bench exact [KIND]");
    Ok(ExitCode::SUCCESS)
}

fn count(flags: &flags::Exact, out: &mut Out) -> Outcome {
    let root = support::root();
    let catalog = support::payloads(&root)?;
    let cancel = support::cancel_flag()?;
    let payload = catalog.get(PAYLOAD).ok_or_else(|| {
        Failure::bad(format!("there is no payload `{PAYLOAD}`; `cargo xtask payloads` lists them"))
    })?;
    let kinds: Vec<&str> = payload.tests.iter().map(|(name, _)| &name[..]).collect();
    let kinds = exact::choose(&kinds, &flags.kinds)?;
    if flags.only != Some(flags::Counted::Total) {
        FactsTable::collect().kvm().map_err(|why| {
            Failure::input(format!(
                "a VMM is stepped on this machine's KVM, which is not usable: {why}; `--only total` counts \
                 on host amd alone"
            ))
        })?;
    }
    let vmm = programs::build(&root, &support::cargo(), Kind::Measured, &cancel);
    let vmm = vmm.map_err(Failure::bad)?.vmm;
    let mut emulated_by = None;
    let served = if flags.stats { Served::Counted } else { Served::Board };
    let none = || vec![None; kinds.len()];
    let user = match flags.only {
        Some(flags::Counted::Total) => none(),
        _ => exact::user(&vmm, &payload.path, &kinds, served, &cancel)?,
    };
    let total = match flags.only {
        Some(flags::Counted::User) => none(),
        _ => {
            let make = flags::Make { deterministic: true, ..flags.make.clone() };
            let (root, catalog) = (&root, &catalog);
            let kind = Kind::Measured;
            let shop = Workshop { root, catalog, make: &make, kind, cancel: &cancel };
            let (machine, params) = emulated::machine(Name::Amd, &shop)?;
            let pairs = exact::total(&machine, &params, &kinds, served, &cancel)?;
            emulated_by = Some(emulator(&machine));
            pairs.into_iter().map(Some).collect()
        }
    };
    let rows: Vec<Measured<'_>> = kinds
        .iter()
        .zip(user.into_iter().zip(total))
        .map(|(kind, (user, total))| Measured { kind, user, total })
        .collect();
    table(&rows, out);
    if flags.save {
        save(flags, &root, &rows, emulated_by, out)?;
    }
    judge(flags, &root, &rows, out)
}

/// What tells an emulated host: instructions counted there are the same whatever it is emulated on.
fn emulator(machine: &Machine) -> record::Machine {
    record::Machine {
        cpu: "an emulated processor".to_owned(),
        kernel: machine.kernel.release.clone(),
        profile: Kind::Measured.profile().to_owned(),
        qemu: machine.emulator.program().version.clone(),
    }
}

/// Keeps what was counted: a run for each host.
fn save(
    flags: &flags::Exact,
    root: &Path,
    rows: &[Measured<'_>],
    emulated_by: Option<record::Machine>,
    out: &mut Out,
) -> Result<(), Failure> {
    let commit = tree::commit(root)?;
    let mut history = History::open(flags.db.as_deref())?;
    let one = |kind: &str, measure: &str, samples: Vec<f64>| Measurement {
        metric: Metric::instructions(format!("exits/{kind}/{measure}")),
        samples,
    };
    let user = rows.iter().filter_map(|row| {
        let Spread { least, median, most } = row.user?.vmm;
        Some(one(row.kind, "user", [least, median, most].map(|n| n as f64).to_vec()))
    });
    let over = rows.iter().filter_map(|row| Some(one(row.kind, "over", vec![row.over()? as f64])));
    let this = record::Machine::this(Kind::Measured.profile());
    let runs =
        [("kvm", Some(this), user.collect()), ("amd", emulated_by, over.collect::<Vec<_>>())];
    for (host, machine, measurements) in runs {
        if measurements.is_empty() {
            continue;
        }
        history.save(&Run {
            commit: commit.clone(),
            at: record::now(),
            host: host.to_owned(),
            tool: "bench exact".to_owned(),
            machine,
            measurements,
        })?;
    }
    writeln!(out, "kept of {commit} in {}", history.path().display());
    Ok(())
}

/// Holds what was measured against the baseline, or makes it the baseline, as the user asks.
fn judge(flags: &flags::Exact, root: &Path, rows: &[Measured<'_>], out: &mut Out) -> Outcome {
    if let Some(because) = &flags.accept {
        let mut baseline = match root.join("benches/exact.toml").exists() {
            true => Baseline::read(root)?,
            false => Baseline::empty(root),
        };
        baseline.accept(rows, because)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !flags.check {
        return Ok(ExitCode::SUCCESS);
    }
    let differences = Baseline::read(root)?.differences(rows);
    if differences.is_empty() {
        writeln!(out, "as benches/exact.toml says");
        return Ok(ExitCode::SUCCESS);
    }
    differences.iter().for_each(complain);
    Err(Failure::bad(
        "exits cost another number of instructions than benches/exact.toml says; if that is meant, \
         `cargo xtask bench exact --accept REASON` writes it there",
    ))
}

fn table(rows: &[Measured<'_>], out: &mut Out) {
    let cell = |pair: Option<Pair>, of: fn(Pair) -> exact::Spread| {
        pair.map_or_else(|| "-".to_owned(), |pair| of(pair).to_string())
    };
    writeln!(out, "{:22} {:^21}   {:^33}", "", "user space", "all, on host amd");
    writeln!(
        out,
        "{:22} {:>10} {:>10}   {:>12} {:>12} {:>7}",
        "instructions", "bare loop", "vmm", "bare loop", "vmm", "over"
    );
    for row in rows {
        let (bare, vmm) = (|pair: Pair| pair.bare, |pair: Pair| pair.vmm);
        let over = row.over().map_or_else(|| "-".to_owned(), |over| format!("{over:+}"));
        writeln!(
            out,
            "{:22} {:>10} {:>10}   {:>12} {:>12} {over:>7}",
            row.kind,
            cell(row.user, bare),
            cell(row.user, vmm),
            cell(row.total, bare),
            cell(row.total, vmm),
        );
    }
}
