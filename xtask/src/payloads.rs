//! `cargo xtask payloads`: builds the guest payloads and lists their tests.

use std::process::ExitCode;

use crate::flags;
use crate::support::{self, Outcome};

/// Runs the command.
pub fn run(flags: &flags::Payloads) -> Outcome {
    let catalog = support::payloads::catalog(&support::root())?;
    let (mut payloads, mut tests) = (0, 0);
    for (name, payload) in catalog.iter() {
        payloads += 1;
        tests += payload.tests.len();
        if flags.check {
            continue;
        }
        println!("{name}: {}", payload.path.display());
        for (test, about) in &payload.tests {
            println!("  {name}::{test}: {about}");
        }
    }
    println!("{payloads} payloads, {tests} tests");
    Ok(ExitCode::SUCCESS)
}
