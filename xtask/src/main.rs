//! Every command a person types: `cargo xtask COMMAND`. The flags are in [`flags`]; each command is a
//! file of its name.

mod ci;
mod doctor;
mod flags;
mod payloads;
mod support;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let outcome = match flags::Xtask::parse().command {
        flags::Command::Test(flags) => test::run(&flags),
        flags::Command::Ci(flags) => ci::run(&flags),
        flags::Command::Doctor(flags) => doctor::run(&flags),
        flags::Command::Tidy(flags) => tidy::run(&flags),
        flags::Command::Payloads(flags) => payloads::run(&flags),
    };
    outcome.unwrap_or_else(|failure| {
        eprintln!("error: {}", failure.message);
        ExitCode::from(failure.status)
    })
}
