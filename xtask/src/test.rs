//! `cargo xtask test`: builds what cases need, runs them, and tells what came out.

use std::path::Path;
use std::process::ExitCode;

use testcases::facts_table::FactsTable;
use testcases::load;
use testcases::select::select;

use crate::flags;
use crate::support::running::{Chosen, Plan};
use crate::support::{self, Failure, Out, Outcome};

/// Runs the command.
pub fn run(flags: &flags::Test, out: &mut Out) -> Outcome {
    let sabotage = flags.sabotage.as_deref();
    let flags = &flags.running;
    let root = support::root();
    let dir = root.join("testcases/cases");
    let facts = FactsTable::collect();
    let cases = load::load(&dir).map_err(|e| Failure::input(format!("bad cases:\n{e}")))?;
    // What is wrong with the command line is told before anything is built.
    let command = vec!["test".to_string()];
    let chosen = select(&cases, &flags.filters, flags.exact, &command).map_err(Failure::input)?;
    let plan = Plan::new(flags, &facts)?;
    let catalog = support::payloads(&root)?;
    load::check(&dir, &cases, &catalog, &facts)
        .map_err(|e| Failure::input(format!("bad cases:\n{e}")))?;
    if flags.list {
        chosen.iter().for_each(|case| writeln!(out, "{}: {}", case.id, case.spec.about.0));
        writeln!(out, "{} cases", chosen.len());
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = Chosen {
        command,
        runs: "target/test-runs",
        cases: &chosen,
        suite: None,
        sabotage,
        catalog: &catalog,
        facts: &facts,
    };
    let status = plan.run(flags, &chosen, out)?;
    // A run of some cases, or of a VMM that is wrong on purpose, is not about them.
    if !chosen.cases.is_empty() && flags.filters.is_empty() && sabotage.is_none() {
        return regressions(&root, status, out);
    }
    Ok(status)
}

/// Plays what the fuzzers once found, which takes no KVM.
fn regressions(root: &Path, status: ExitCode, out: &mut Out) -> Outcome {
    let dir = root.join("fuzz/regressions");
    let own = std::env::current_exe()
        .map_err(|e| Failure::bad(format!("cannot tell which program this is: {e}")))?;
    let cancel = support::cancel_flag()?;
    let (played, back) = fuzz::regressions::play_all(&dir, (&own, &["fuzz", "play"]), &cancel)
        .map_err(|e| Failure::input(format!("cannot read {}: {e}", dir.display())))?;
    for back in &back {
        writeln!(out, "{back}");
    }
    writeln!(out, "{played} regressions of the fuzzers played, {} back", back.len());
    Ok(if back.is_empty() { status } else { ExitCode::from(1) })
}
