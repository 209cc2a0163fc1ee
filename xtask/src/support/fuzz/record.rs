//! Inputs from real runs: what guests do to devices, recorded under KVM.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fuzz::recorded;
use fuzz::targets;
use testcases::case::Case;
use testcases::facts_table::FactsTable;
use testcases::process;
use testcases::select::select;
use testcases::{load, program, runner};

use super::engine::OPS;
use super::{Shop, build, cannot, run};
use crate::support::out::complain;
use crate::support::{self, Failure, Out};

/// The longest that one case may take.
const LIMIT: Duration = Duration::from_secs(20);
/// The longest recording that is read.
const LONGEST: u64 = 8 << 20;

/// Runs cases with a recording and puts what it holds into the corpora; or does the latter with
/// recordings that are there.
///
/// # Errors
///
/// There is no such case or file, no KVM, or a file cannot be read or written.
pub fn run(
    shop: Shop<'_>,
    filters: &[String],
    files: &[PathBuf],
    out: &mut Out,
) -> Result<(), Failure> {
    let mut new = BTreeMap::new();
    let mut used = 0;
    for file in files {
        sow(shop, &super::script(file)?, &mut new)?;
        used += 1;
    }
    let mut unused = 0;
    if files.is_empty() {
        let all = load::load(&shop.root.join("testcases/cases")).map_err(Failure::input)?;
        let command = ["test".to_owned()];
        let chosen = select(&all, filters, false, &command).map_err(Failure::input)?;
        let (runnable, _) = runner::sort_out(&chosen, &FactsTable::collect());
        if runnable.is_empty() {
            return Err(Failure::input(
                "this host can run none of these cases; recordings of another host are taken by --file",
            ));
        }
        let cases: Vec<&Case> = runnable.iter().map(|&index| &chosen[index]).collect();
        let payloads = support::payloads(shop.root)?;
        let vmm = program::build_vmm(shop.root, &support::cargo(), false, shop.cancel)
            .map_err(Failure::bad)?;
        let place = build::directory(shop.root.join("target/fuzz-recordings"))?;
        for case in cases {
            let Ok(words) = runner::command(case, &vmm, &payloads, LIMIT) else { continue };
            // The lab's vCPUs are nobody's board.
            if words.get(1).map(String::as_str) != Some("run") || case.spec.machine.lab {
                continue;
            }
            let file = place.join("run.script");
            match record(shop, &words, &file)? {
                Some(script) => {
                    used += 1;
                    sow(shop, &script, &mut new)?;
                }
                None => unused += 1,
            }
        }
    }
    for (target, count) in new.iter().filter(|(_, count)| **count > 0) {
        writeln!(out, "{target:16} {count:>6} new inputs");
    }
    writeln!(out, "{} new inputs of {used} recordings", new.values().sum::<usize>());
    if unused > 0 {
        complain(format_args!("{unused} cases did not end well, or recorded more than is read"));
    }
    Ok(())
}

/// The recording of a run that ended well.
fn record(
    shop: Shop<'_>,
    words: &[String],
    file: &Path,
) -> Result<Option<vmm::script::Script>, Failure> {
    // What the last one left must not be taken for this one's.
    if file.exists() {
        std::fs::remove_file(file).map_err(cannot("remove", file))?;
    }
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg("--trace").arg(file);
    let ended = process::run(&mut command, LIMIT, shop.cancel, &mut |_, _| {});
    if shop.stopped() {
        return Err(Failure::stopped());
    }
    let is_short = std::fs::metadata(file).is_ok_and(|data| data.len() <= LONGEST);
    // A payload that passes writes 0 to the exit port, which makes a status of 1.
    if !matches!(ended, process::Ended::Exited(0 | 1)) || !is_short {
        return Ok(None);
    }
    super::script(file).map(Some)
}

/// Puts what is for each target into its corpus, and counts what is new.
fn sow(
    shop: Shop<'_>,
    script: &vmm::script::Script,
    new: &mut BTreeMap<&'static str, usize>,
) -> Result<(), Failure> {
    for target in targets::ALL {
        let inputs = recorded::inputs(script, target, OPS);
        if inputs.is_empty() {
            continue;
        }
        let corpus = build::directory(shop.corpus(target.name))?;
        for input in inputs {
            *new.entry(target.name).or_default() += usize::from(run::put(&corpus, &input)?);
        }
    }
    Ok(())
}
