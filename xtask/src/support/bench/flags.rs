//! Flags of `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::flags::Make;

/// Flags of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// What to do.
    #[command(subcommand)]
    pub action: BenchAction,
}

/// What `bench` does.
#[derive(Debug, Subcommand)]
pub enum BenchAction {
    /// Counts the instructions of each kind of exit: the VMM's own, stepped one by one on this machine's
    /// KVM, and all of them on host amd; each beside a loop that does nothing.
    Exact(Exact),
    /// Counts the instructions of what runs without KVM, by Callgrind: the board's answers, saving and
    /// restoring, scripts, images.
    Counts(Counts),
    /// Lists what can be measured, and how.
    List,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Counted {
    /// The VMM's own instructions.
    User,
    /// All instructions.
    Total,
}

/// Flags of `bench exact`.
#[derive(Debug, Args)]
pub struct Exact {
    /// Kinds of exit, which are the tests of the payload `exits`; all if none is named.
    #[arg(value_name = "KIND")]
    pub kinds: Vec<String>,
    /// Counts these alone.
    #[arg(long, value_name = "WHAT")]
    pub only: Option<Counted>,
    /// Fails where a count is more than two instructions off benches/exact.toml.
    #[arg(long, conflicts_with = "accept")]
    pub check: bool,
    /// Writes what has changed to benches/exact.toml, with this reason.
    #[arg(long, value_name = "REASON")]
    pub accept: Option<String>,
    /// Counts a VMM that counts exits itself (`vmm run --stats`): what that costs.
    #[arg(long, conflicts_with_all = ["check", "accept", "save"])]
    pub stats: bool,
    /// Keeps what was counted in the history of `cargo xtask perf`.
    #[arg(long)]
    pub save: bool,
    /// The file of the history; target/perf/history.db if not given.
    #[arg(long, value_name = "FILE", requires = "save")]
    pub db: Option<PathBuf>,
    /// How host amd is made.
    #[command(flatten)]
    pub make: Make,
}

/// Flags of `bench counts`.
#[derive(Debug, Args)]
pub struct Counts {
    /// Parts of the names of what is counted, as `bench list` shows them; all if none is given.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// How often all is counted: the counts must agree.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
}
