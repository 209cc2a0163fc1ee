//! Flags of `perf`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Flags of `perf`.
#[derive(Debug, Args)]
pub struct Perf {
    /// What to do.
    #[command(subcommand)]
    pub action: PerfAction,
}

/// What `perf` does.
#[derive(Debug, Subcommand)]
pub enum PerfAction {
    /// Compares the VMM of this tree with that of a revision, run in turn, or with a history. Its status is 1
    /// if something is worse.
    Compare(Compare),
    /// Measures the VMM of this tree, and keeps that in the history.
    Measure {
        /// What is measured, and how.
        #[command(flatten)]
        plan: Measured,
        /// Where the history is.
        #[command(flatten)]
        db: Db,
    },
    /// Keeps what `cargo bench` measured in the history.
    Import {
        /// Criterion's directory; target/criterion if not given.
        dir: Option<PathBuf>,
        /// Where the history is.
        #[command(flatten)]
        db: Db,
    },
    /// Writes the history as one HTML page, and for services that watch such figures.
    Report(Report),
}

/// Where the history is.
#[derive(Clone, Debug, Default, Args)]
pub struct Db {
    /// The file of the history; target/perf/history.db if not given.
    #[arg(long, value_name = "FILE")]
    pub db: Option<PathBuf>,
}

/// What kind of figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Figures {
    /// Instructions, which repeat.
    Exact,
    /// Times, which do not.
    Noisy,
}

/// What is measured, and how.
#[derive(Clone, Debug, Args)]
pub struct Measured {
    /// Only exits of this kind, which is a test of the payload `exits`; may be given more than once.
    #[arg(long, value_name = "KIND")]
    pub kind: Vec<String>,
    /// Only figures of this kind.
    #[arg(long, value_name = "FIGURES")]
    pub only: Option<Figures>,
    /// Of how many rounds times are taken; two of each program are one.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub rounds: u16,
}

/// Flags of `perf compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// A commit, branch or tag.
    #[arg(required_unless_present_any = ["against", "vmm", "peer"], conflicts_with = "against")]
    pub rev: Option<String>,
    /// Compares with this history: counts with its newest, times with those of its last runs.
    #[arg(long, value_name = "DB")]
    pub against: Option<PathBuf>,
    /// Compares with other VMMs, separated by commas: qemu, kvmtool, alioth; by the guests of `bench peers`.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["rev", "against", "kind", "even_if_equal", "no_save", "db"])]
    pub vmm: Vec<String>,
    /// As of `bench peers`.
    #[arg(long, value_name = "NAME=PATH")]
    #[arg(conflicts_with_all = ["rev", "against", "kind", "even_if_equal", "no_save", "db"])]
    pub peer: Vec<String>,
    /// What is measured, and how.
    #[command(flatten)]
    pub plan: Measured,
    /// How many instructions a count may be off.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub tolerance: u32,
    /// Calls no time better or worse for fewer per cent.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = percent)]
    pub effect: f64,
    /// Measures two programs that are equal byte by byte, too.
    #[arg(long, conflicts_with = "against")]
    pub even_if_equal: bool,
    /// Keeps nothing in the history.
    #[arg(long, conflicts_with = "db")]
    pub no_save: bool,
    /// Where the history is.
    #[command(flatten)]
    pub db: Db,
}

/// Flags of `perf report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Where the page goes; target/perf/report.html if not given.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Writes each metric's newest figure in the Bencher Metric Format to this file.
    #[arg(long, value_name = "FILE")]
    pub bencher: Option<PathBuf>,
    /// Writes them for github-action-benchmark (customSmallerIsBetter) to this file.
    #[arg(long, value_name = "FILE")]
    pub github: Option<PathBuf>,
    /// Where the history is.
    #[command(flatten)]
    pub db: Db,
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|e| format!("{e}"))?;
    match (0.0..=1000.0).contains(&number) {
        true => Ok(number),
        false => Err("it is from 0 to 1000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::flags::Xtask;

    #[test]
    fn wrong_flags_are_refused() {
        for (line, good) in [
            ("perf compare HEAD~1", true),
            ("perf compare main --only exact --kind port_read --kind hlt --tolerance 0", true),
            ("perf compare v1 --rounds 7 --effect 2.5 --even-if-equal --db x", true),
            ("perf compare --against x.db --db y.db", true),
            ("perf compare --against x.db --no-save", true),
            ("perf compare", false),
            ("perf compare HEAD --against x.db", false),
            ("perf compare --against x.db --even-if-equal", false),
            ("perf compare HEAD --no-save --db x", false),
            ("perf compare HEAD --rounds 0", false),
            ("perf compare HEAD --effect -1", false),
            ("perf compare HEAD --effect nan", false),
            ("perf compare HEAD --vmm qemu", false),
            ("perf compare --vmm qemu,alioth --only exact --rounds 3 --effect 1", true),
            ("perf compare --peer kvmtool=x --peer y=z", true),
            ("perf compare --vmm qemu --against x.db", false),
            ("perf compare --vmm qemu --kind hlt", false),
            ("perf compare --vmm qemu --no-save", false),
            ("perf measure --only noisy --db x", true),
            ("perf import", true),
            ("perf import d --db x", true),
            ("perf report --out p --bencher b --github g --db x", true),
            ("perf", false),
            ("bench exact --save --db x", true),
            ("bench exact --db x", false),
            ("bench start --rounds 3 --vmm x", true),
            ("bench start --rounds 0", false),
            ("bench peers", true),
            ("bench peers --peers qemu,alioth --peer x=y --rounds 1", true),
            ("bench peers --peers", false),
        ] {
            let words = ["cargo xtask"].into_iter().chain(line.split_whitespace());
            assert_eq!(Xtask::try_parse_from(words).is_ok(), good, "{line}");
        }
    }
}
