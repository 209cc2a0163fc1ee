//! The command line.

mod host_test;
mod replay;
mod run;
mod top;
mod watching;

use std::io::Write;

use clap::{Parser, Subcommand};

/// Exit status for what was asked for wrongly, or is missing.
const USAGE: u8 = 2;

/// A KVM virtual machine monitor made for tests.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a guest until it ends.
    Run(Box<run::Run>),
    /// Run a recorded or written script of exits against the board, without KVM.
    Replay(replay::Replay),
    /// Show what a running VM's exits cost.
    Top(top::Top),
    /// Test what a VMM takes from this machine, without a guest.
    HostTest(host_test::HostTest),
    /// List the ways in which this VMM can be wrong on purpose.
    #[cfg(feature = "sabotage")]
    Flaws,
}

/// Does what the command line says; gives the exit status.
pub fn main() -> u8 {
    match Cli::try_parse() {
        Ok(Cli { command: Command::Run(run) }) => run.main(),
        Ok(Cli { command: Command::Replay(replay) }) => replay.main(),
        Ok(Cli { command: Command::Top(top) }) => top.main(),
        Ok(Cli { command: Command::HostTest(test) }) => test.main(),
        #[cfg(feature = "sabotage")]
        Ok(Cli { command: Command::Flaws }) => flaws(),
        Err(e) => {
            // Nothing is left to be done if the message itself cannot be printed.
            let _ = e.print();
            if e.use_stderr() { USAGE } else { 0 }
        }
    }
}

/// Lists the flaws: a line each of name, areas that should notice, and what is wrong, with tabs between.
#[cfg(feature = "sabotage")]
fn flaws() -> u8 {
    let mut out = std::io::stdout().lock();
    for flaw in vmm::sabotage::Flaw::ALL {
        let (name, areas, what) = (flaw.name(), flaw.areas().join(" "), flaw.what());
        if writeln!(out, "{name}\t{areas}\t{what}").is_err() {
            return USAGE;
        }
    }
    0
}

/// Prints on standard error. That nobody reads it (any more) changes no exit status.
fn say(text: impl std::fmt::Display) {
    // There is nowhere left to tell of a failure.
    let _ = write!(std::io::stderr().lock(), "{text}");
}

/// Prints an error as one paragraph.
fn complain(e: &dyn std::error::Error) {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        let inner = e.to_string();
        if !text.contains(&inner) {
            text += &format!(": {inner}");
        }
        source = e.source();
    }
    say(format_args!("vmm: {text}\n"));
}
