//! One hunt: a fuzzer's process from its start to its end, and what it says in between.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use testcases::bounded::Bounded;
use testcases::process::{self, Ended};

use super::build::Hunter;

/// How long one execution may take. libFuzzer makes a finding of a longer one.
pub const EXECUTION: Duration = Duration::from_secs(10);

/// The most memory that a fuzzer may take, in MiB.
const MEMORY: u32 = 2048;

/// How much longer than it was asked to a fuzzer may take to end.
const GRACE: Duration = Duration::from_secs(60);

/// What is hunted, and how long.
#[derive(Clone, Debug)]
pub struct Hunt<'a> {
    /// The target.
    pub target: &'a str,
    /// Its inputs. What is new goes into the first directory.
    pub corpus: &'a [PathBuf],
    /// Where findings go.
    pub artifacts: &'a Path,
    /// Executions at most; 0 for no bound.
    pub runs: u64,
    /// Time at most.
    pub time: Duration,
    /// Where chance begins; 0 for anywhere.
    pub seed: u32,
    /// How long one execution may take.
    pub execution: Duration,
    /// A dictionary, if there is one.
    pub words: Option<&'a Path>,
    /// More of the environment.
    pub environment: &'a [(&'a str, &'a str)],
}

/// What a fuzzer says while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Executions.
    pub runs: u64,
    /// Edges of the code that were reached; 0 where nobody counts.
    pub edges: u64,
    /// What counts as new, in the fuzzer's own measure.
    pub features: u64,
    /// Inputs in its corpus.
    pub inputs: u64,
}

/// What a hunt came to.
#[derive(Clone, Debug)]
pub struct Hunted {
    /// The last that was said.
    pub stat: Stat,
    /// How long it took.
    pub took: Duration,
    /// What was found.
    pub found: Vec<PathBuf>,
    /// How the process ended.
    pub ended: Ended,
    /// The end of what it wrote.
    pub log: Vec<u8>,
}

/// Runs a fuzzer. `tell` hears what it says.
pub fn hunt(
    hunter: &Hunter,
    hunt: &Hunt<'_>,
    cancel: &AtomicBool,
    tell: &mut dyn FnMut(Stat),
) -> Hunted {
    let mut command = match hunter {
        Hunter::LibFuzzer(program) => {
            let mut command = Command::new(program);
            command.env("EXITLAB_FUZZ_TARGET", hunt.target);
            command.arg(format!("-artifact_prefix={}/", hunt.artifacts.display()));
            command.arg(format!("-timeout={}", hunt.execution.as_secs()));
            command.arg(format!("-rss_limit_mb={MEMORY}"));
            command.arg(format!("-max_total_time={}", hunt.time.as_secs()));
            command.args(["-print_final_stats=1", "-reload=5"]);
            if hunt.runs > 0 {
                command.arg(format!("-runs={}", hunt.runs));
            }
            if hunt.seed > 0 {
                command.arg(format!("-seed={}", hunt.seed));
            }
            if let Some(words) = hunt.words {
                command.arg(format!("-dict={}", words.display()));
            }
            command.args(hunt.corpus);
            command
        }
        Hunter::Stable(tool) => {
            let mut command = Command::new(tool);
            let runs = if hunt.runs == 0 { u64::MAX } else { hunt.runs };
            command.args(["hunt", hunt.target]).args(hunt.corpus.first()).arg(hunt.artifacts);
            command.args([runs, hunt.time.as_secs(), hunt.seed.into()].map(|n| n.to_string()));
            command
        }
    };
    command.envs(hunt.environment.iter().copied());
    // An input that breaks a law brings a stack along, which nobody reads here.
    command.env("RUST_BACKTRACE", "0");
    let (mut said, mut log) = (Said::default(), Bounded::new(0, 16 << 10));
    let start = Instant::now();
    let limit = hunt.time.saturating_add(GRACE);
    let ended = process::run(&mut command, limit, cancel, &mut |_, bytes| {
        log.push(bytes);
        if said.push(bytes) {
            tell(said.stat);
        }
    });
    let Said { stat, found, .. } = said;
    Hunted { stat, took: start.elapsed(), found, ended, log: log.contents() }
}

/// Understands a fuzzer's lines.
#[derive(Debug, Default)]
struct Said {
    line: Vec<u8>,
    stat: Stat,
    found: Vec<PathBuf>,
}

impl Said {
    /// Takes output; whether the figures changed.
    fn push(&mut self, bytes: &[u8]) -> bool {
        let before = self.stat;
        for &byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.line_is(&String::from_utf8_lossy(&line));
                }
                // A line longer than any that means something.
                _ if self.line.len() > 4096 => self.line.clear(),
                _ => self.line.push(byte),
            }
        }
        self.stat != before
    }

    fn line_is(&mut self, line: &str) {
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.found.push(path.trim().into());
        }
        if let Some(runs) = line.strip_prefix("stat::number_of_executed_units:") {
            self.stat.runs = runs.trim().parse().unwrap_or(self.stat.runs);
        }
        let Some(rest) = line.strip_prefix('#') else { return };
        let mut words = rest.split_whitespace();
        let Some(Ok(runs)) = words.next().map(|word| word.parse()) else { return };
        self.stat.runs = runs;
        let words: Vec<&str> = words.collect();
        for pair in words.windows(2) {
            let number = || pair[1].split('/').next().and_then(|n| n.parse().ok());
            let to = match pair[0] {
                "cov:" => &mut self.stat.edges,
                "ft:" => &mut self.stat.features,
                "corp:" => &mut self.stat.inputs,
                _ => continue,
            };
            *to = number().unwrap_or(*to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fuzzers_lines_are_understood_however_they_are_cut() {
        let text = "INFO: seed\n#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 40Mb\n\
            #70000\tREDUCE cov: 345 ft: 999 corp: 88/4Kb lim: 128 exec/s: 17500 rss: 44Mb L: 3/9 MS: 1 X-\n\
            ==1== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='a/'; Test unit written to a/crash-00ff\n\
            stat::number_of_executed_units: 70123\n";
        for cut in [1, 7, 1000] {
            let mut said = Said::default();
            for chunk in text.as_bytes().chunks(cut) {
                said.push(chunk);
            }
            let stat = Stat { runs: 70123, edges: 345, features: 999, inputs: 88 };
            assert_eq!((said.stat, &said.found[..]), (stat, &[PathBuf::from("a/crash-00ff")][..]));
        }
        let mut said = Said::default();
        assert!(said.push(b"#500 ft: 31 corp: 9 exec/s: 77\n"));
        assert_eq!(said.stat, Stat { runs: 500, edges: 0, features: 31, inputs: 9 });
        assert!(!said.push(b"# a comment\nnothing\n"));
    }
}
