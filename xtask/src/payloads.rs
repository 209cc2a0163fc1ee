//! `cargo xtask payloads`: builds the guest payloads and lists their tests.

use std::process::ExitCode;

use testcases::build;

use crate::flags;
use crate::support::{self, Failure, Out, Outcome};

/// Runs the command.
pub fn run(flags: &flags::Payloads, out: &mut Out) -> Outcome {
    let root = support::root();
    if flags.lint {
        build::lint_payloads(&root, &build::Options::default()).map_err(Failure::bad)?;
        writeln!(out, "clippy has nothing to say on the payloads");
        return Ok(ExitCode::SUCCESS);
    }
    let catalog = support::payloads(&root)?;
    let (mut payloads, mut tests) = (0, 0);
    for (name, payload) in catalog.iter() {
        payloads += 1;
        tests += payload.tests.len();
        if flags.check {
            continue;
        }
        writeln!(out, "{name}: {}", payload.path.display());
        for (test, about) in &payload.tests {
            writeln!(out, "  {name}::{test}: {about}");
        }
    }
    writeln!(
        out,
        "{payloads} payloads, {tests} tests; loaders take each, and none holds a vector instruction \
         it did not ask for"
    );
    Ok(ExitCode::SUCCESS)
}
