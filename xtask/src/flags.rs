//! The whole user interface: every command and every flag.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// exitlab: tests, fuzzing and measurements around a KVM virtual machine monitor.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
pub struct Xtask {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands; each one is a file of its name.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the test cases.
    Test(Test),
    /// Runs everything a change must pass, the likeliest failure first.
    Ci(Ci),
    /// Tells what this machine offers, and what to do about what is missing.
    Doctor(Doctor),
    /// Checks the rules of the house that a program can check.
    Tidy(Tidy),
    /// Builds the guest payloads and lists their tests.
    Payloads(Payloads),
}

/// Where cases run, in the order of a report's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Host {
    /// This machine's own /dev/kvm.
    Kvm,
}

/// Flags of `test`.
#[derive(Debug, Args)]
pub struct Test {
    /// Which cases: a part of an id, a pattern with * and ?, or tag:WORD. All if none is given.
    pub filters: Vec<String>,
    /// Lists the chosen cases and runs nothing.
    #[arg(long)]
    pub list: bool,
    /// Takes each filter as a whole id.
    #[arg(long, requires = "filters")]
    pub exact: bool,
    /// The hosts to run on, separated by commas.
    #[arg(long, value_name = "HOSTS", value_enum, value_delimiter = ',', default_value = "kvm")]
    pub host: Vec<Host>,
    /// Makes an error of each skip for one of these, separated by commas: needs (kvm, cpuid:x2apic
    /// ..), guest (decided by the guest), known-bugs, deviations, or all. EXITLAB_REQUIRE adds to it.
    #[arg(long, value_name = "NAMES", default_value = "", hide_default_value = true)]
    pub require: String,
    /// How many vCPUs run side by side; twice as many as there are processors if not given, since
    /// cases wait for about half of their time.
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Writes a JUnit report to this file.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Writes a JSON report to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Stops after the first fail or error.
    #[arg(long, conflicts_with = "keep_going")]
    pub fail_fast: bool,
    /// Runs all cases whatever happens; this is the default.
    #[arg(long)]
    pub keep_going: bool,
}

/// Flags of `ci`.
#[derive(Debug, Args)]
pub struct Ci {
    /// As for `test`, and for the tests of the packages.
    #[arg(long, value_name = "NAMES", default_value = "", hide_default_value = true)]
    pub require: String,
}

/// Flags of `doctor`: there are none.
#[derive(Debug, Args)]
pub struct Doctor {}

/// Flags of `tidy`: there are none.
#[derive(Debug, Args)]
pub struct Tidy {}

/// Flags of `payloads`.
#[derive(Debug, Args)]
pub struct Payloads {
    /// Only builds and checks; lists nothing.
    #[arg(long)]
    pub check: bool,
    /// Runs clippy on the payloads instead, with the flags they are built with.
    #[arg(long, conflicts_with = "check")]
    pub lint: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Xtask::command().debug_assert();
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, good) in [
            ("test", true),
            ("test apic tsc --require kvm -j 4", true),
            ("test --exact apic/ipi --fail-fast", true),
            ("test --exact", false),
            ("test --jobs 0", false),
            ("test --host kvm,kvm", true),
            ("test --host kvm,", false),
            ("test --host amd", false),
            ("test --fail-fast --keep-going", false),
            ("ci --require kvm", true),
            ("doctor", true),
            ("payloads --check", true),
            ("", false),
            ("tset", false),
        ] {
            let words = ["cargo xtask"].into_iter().chain(line.split_whitespace());
            assert_eq!(Xtask::try_parse_from(words).is_ok(), good, "{line}");
        }
    }
}
