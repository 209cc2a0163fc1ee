//! `cargo xtask kut`: runs the images of kvm-unit-tests as their `unittests.cfg` says.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use testcases::case::Subject;
use testcases::facts_table::FactsTable;
use testcases::kut::Suite;
use testcases::load::Catalog;
use testcases::select::select;

use crate::flags;
use crate::support::running::{Chosen, Plan};
use crate::support::{self, Failure, Out, Outcome};

/// Runs the command.
pub fn run(flags: &flags::Kut, out: &mut Out) -> Outcome {
    let flags::Kut { images, all, running: flags } = flags;
    let suite = Suite::open(&absolute(images)?).map_err(Failure::input)?;
    let cases = suite.cases(*all);
    let mut command = vec!["kut".into(), "--images".into(), images.display().to_string()];
    if *all {
        command.push("--all".into());
    }
    let chosen = select(&cases, &flags.filters, flags.exact, &command).map_err(Failure::input)?;
    let facts = FactsTable::collect();
    let plan = Plan::new(flags, &facts)?;
    if flags.list {
        for case in &chosen {
            match &case.spec.subject {
                Subject::Image(image) if !image.why_not.is_empty() => {
                    writeln!(out, "{}: not run here: {}", case.id, image.why_not);
                }
                _ => writeln!(out, "{}: {}", case.id, case.spec.about.0),
            }
        }
        writeln!(out, "{} cases", chosen.len());
        return Ok(ExitCode::SUCCESS);
    }
    // Emulated hosts measure with a payload how fast their guests are.
    let emulated = flags.host.iter().any(|host| *host != flags::Host::Kvm) || flags.host.is_empty();
    let catalog = if emulated { support::payloads(&support::root())? } else { Catalog::new() };
    let chosen = Chosen {
        command,
        runs: "target/kut-runs",
        cases: &chosen,
        sabotage: None,
        suite: Some(&suite),
        catalog: &catalog,
        facts: &facts,
    };
    plan.run(flags, &chosen, out)
}

/// The directory from wherever the VMM is started.
fn absolute(dir: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(dir).map_err(|e| Failure::input(format!("--images {}: {e}", dir.display())))
}
