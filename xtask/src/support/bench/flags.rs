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
    /// Takes the time from exec to a guest's first byte on the serial line, and what the VMM has in memory
    /// beside its guest's, in turn with a loop in C that does the least a VMM can do.
    Start(Start),
    /// Measures other VMMs by the same guests: user-space instructions of an exit, start, memory; beside this
    /// one and the bare loop. Its status is 1 if one that was asked for cannot be measured.
    Peers(Peers),
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

/// Flags of `bench start`.
#[derive(Debug, Args)]
pub struct Start {
    /// Of how many rounds times are taken; two starts of each program are one.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub rounds: u16,
    /// Measures this VMM in the place of this tree's.
    #[arg(long, value_name = "PATH")]
    pub vmm: Option<PathBuf>,
}

/// Flags of `bench peers`.
#[derive(Debug, Args)]
pub struct Peers {
    /// Which, separated by commas: qemu, kvmtool, alioth. What can be had is fetched or built. Without it, those
    /// that are there.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Where one of these is (NAME=PATH); or another one and how it is told to run a guest, {elf} or {flat}
    /// ('NAME=PATH OPTIONS {elf}'). May be given more than once.
    #[arg(long, value_name = "NAME=PATH")]
    pub peer: Vec<String>,
    /// As of `bench start`.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub rounds: u16,
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
