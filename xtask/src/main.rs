//! Every command a person types: `cargo xtask COMMAND`. The flags are in [`flags`]; each command is a
//! file of its name.

mod bench;
mod ci;
mod coverage_map;
mod doctor;
mod flags;
mod fuzz;
mod host;
mod kut;
mod payloads;
mod perf;
mod support;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::Parser;

use support::out::{Out, complain};

fn main() -> ExitCode {
    let mut out = Out::stdout();
    let outcome = match flags::Xtask::parse().command {
        flags::Command::Test(flags) => test::run(&flags, &mut out),
        flags::Command::Kut(flags) => kut::run(&flags, &mut out),
        flags::Command::Ci(flags) => ci::run(&flags, &mut out),
        flags::Command::Doctor(flags) => doctor::run(&flags, &mut out),
        flags::Command::Tidy(flags) => tidy::run(&flags, &mut out),
        flags::Command::Payloads(flags) => payloads::run(&flags, &mut out),
        flags::Command::CoverageMap(flags) => coverage_map::run(&flags, &mut out),
        flags::Command::Host(flags) => host::run(&flags, &mut out),
        flags::Command::Fuzz(flags) => fuzz::run(&flags, &mut out),
        flags::Command::Bench(flags) => bench::run(&flags, &mut out),
        flags::Command::Perf(flags) => perf::run(&flags, &mut out),
    };
    // What the command itself has to tell comes before what became of its output.
    outcome.and_then(|status| out.end().map(|()| status)).unwrap_or_else(|failure| {
        complain(format_args!("error: {}", failure.message));
        ExitCode::from(failure.status)
    })
}
