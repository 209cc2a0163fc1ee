//! One hunt: a fuzzer's process from its start to its end, and what it says in between.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use fuzz::generators::{HEADER, RECORD};
use fuzz::targets::Subject;
use testcases::bounded::Bounded;
use testcases::process::{self, Ended};

use super::Shop;
use super::build::Hunter;
use crate::support::Failure;

/// How long one execution may take. libFuzzer makes a finding of a longer one.
pub const EXECUTION: Duration = Duration::from_secs(10);

/// What AddressSanitizer is told where the user tells it nothing: it keeps freed memory from use for a while,
/// and 256 MiB of it, as it likes best, would be new pages for each input.
const ASAN_OPTIONS: (&str, &str) = ("ASAN_OPTIONS", "quarantine_size_mb=16:malloc_context_size=8");

/// The most memory that a fuzzer may take. MiB.
const MEMORY: u32 = 2048;

/// How much longer than it was asked to a fuzzer may take to end.
const GRACE: Duration = Duration::from_secs(60);

/// The most operations of a script that libFuzzer makes. What takes more in a row takes little in a short
/// script, as a burst or a repetition, and the time of an execution goes with their number.
pub const OPS: usize = 64;

/// The most bytes of an input of this target.
fn longest(target: &str, ops: usize) -> usize {
    match fuzz::targets::named(target).map(|target| target.subject) {
        Some(Subject::Board { .. }) => HEADER + ops * RECORD,
        _ => 4096,
    }
}

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
    /// Operations of an input at most, where it is a script.
    pub ops: usize,
    /// Processor time at most, however many processes share the machine; `time` bounds what passes then.
    pub cpu: Option<Duration>,
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
    /// How many inputs were refused by what reads them, and of how many.
    pub refused: (u64, u64),
}

impl Stat {
    /// How many percent of the inputs were refused, if that is more than a target may refuse: then most
    /// of its time goes into errors.
    pub fn refuses_too_much(&self) -> Option<f64> {
        let (refused, read) = self.refused;
        (refused * 10 > read).then(|| refused as f64 * 100.0 / read as f64)
    }
}

/// What a hunt came to.
#[derive(Clone, Debug)]
pub struct Hunted {
    /// The last that was said.
    pub stat: Stat,
    /// How long it took.
    pub took: Duration,
    /// How much processor time, where that was bounded.
    pub cpu: Option<Duration>,
    /// What was found.
    pub found: Vec<PathBuf>,
    /// How the process ended.
    pub ended: Ended,
    /// The end of what it wrote.
    pub log: Vec<u8>,
}

/// A hunt that reached so many edges in so much time.
#[cfg(test)]
pub fn ran(edges: u64, seconds: u64) -> Hunted {
    Hunted {
        stat: Stat { runs: 100, edges, features: 0, inputs: edges / 10, ..Stat::default() },
        took: Duration::from_secs(seconds),
        cpu: None,
        found: Vec::new(),
        ended: Ended::Exited(0),
        log: Vec::new(),
    }
}

impl Hunted {
    /// Nothing more, if the hunt of this target came to its end and found nothing: what a measurement takes.
    ///
    /// # Errors
    ///
    /// It found something, or died, or was stopped.
    pub fn undisturbed(&self, shop: Shop<'_>, target: &str) -> Result<(), Failure> {
        match (&self.found[..], &self.ended) {
            (_, Ended::Cancelled) => Err(Failure::stopped()),
            ([], Ended::Exited(0)) => Ok(()),
            ([], ended) => {
                let log = String::from_utf8_lossy(&self.log).into_owned();
                Err(Failure::bad(format!("the fuzzer of {target} died: {ended}\n{}", log.trim())))
            }
            ([found, ..], _) => {
                let shown = found.strip_prefix(shop.root).unwrap_or(found).display();
                Err(Failure::bad(format!(
                    "{target}: {shown} was found, so what was measured says little; cargo xtask fuzz repro {shown}"
                )))
            }
        }
    }
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
            let mut command = start(program, hunt.cpu, None);
            command.env("EXITLAB_FUZZ_TARGET", hunt.target);
            command.arg(format!("-artifact_prefix={}/", hunt.artifacts.display()));
            command.arg(format!("-timeout={}", hunt.execution.as_secs()));
            command.arg(format!("-rss_limit_mb={MEMORY}"));
            command.arg(format!("-max_total_time={}", hunt.time.as_secs()));
            command.args(["-print_final_stats=1", "-reload=5"]);
            command.arg(format!("-max_len={}", longest(hunt.target, hunt.ops)));
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
            let mut command = start(tool, hunt.cpu, Some(MEMORY));
            let runs = if hunt.runs == 0 { u64::MAX } else { hunt.runs };
            command.args(["hunt", hunt.target]).args(hunt.corpus.first()).arg(hunt.artifacts);
            command.args([runs, hunt.time.as_secs(), hunt.seed.into()].map(|n| n.to_string()));
            command
        }
    };
    command.envs(hunt.environment.iter().copied());
    if std::env::var_os(ASAN_OPTIONS.0).is_none() {
        command.env(ASAN_OPTIONS.0, ASAN_OPTIONS.1);
    }
    // An input that breaks a law brings a stack along, which nobody reads here.
    command.env("RUST_BACKTRACE", "0");
    let (mut said, mut log) = (Said::default(), Bounded::new(0, 16 << 10));
    let started = Instant::now();
    let limit = hunt.time.saturating_add(GRACE);
    let ended = process::run(&mut command, limit, cancel, &mut |_, bytes| {
        log.push(bytes);
        if said.push(bytes) {
            tell(said.stat);
        }
    });
    let Said { stat, found, cpu, .. } = said;
    // Its processor time is up: the shell's word for that signal.
    let ended = if ended == Ended::Exited(128 + XCPU) { Ended::Exited(0) } else { ended };
    let cpu = cpu.filter(|_| hunt.cpu.is_some());
    Hunted { stat, took: started.elapsed(), cpu, found, ended, log: log.contents() }
}

/// SIGXCPU.
const XCPU: u8 = 24;

/// A program that gets so much processor time and then SIGXCPU, whose time is told at its end, and that gets
/// so many MiB of addresses. A shell can do that, and nothing here needs to be unsafe for it.
pub fn start(program: &Path, cpu: Option<Duration>, memory: Option<u32>) -> Command {
    let mut script = "ulimit -c 0; ".to_owned();
    if let Some(cpu) = cpu {
        script += &format!("ulimit -S -t {}; ", cpu.as_secs().max(1));
    }
    if let Some(memory) = memory {
        script += &format!("ulimit -v {}; ", u64::from(memory) << 10);
    }
    script += match (cpu, memory) {
        (None, None) => return Command::new(program),
        (None, Some(_)) => "exec \"$0\" \"$@\"",
        (Some(_), _) => "\"$0\" \"$@\"; s=$?; times >&2; exit $s",
    };
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(program);
    command
}

/// Whether a program that [`start`] began ended because its processor time was up.
pub fn is_up(ended: &Ended) -> bool {
    *ended == Ended::Exited(128 + XCPU)
}

/// Whether a line is the shell's word on the time that a program of [`start`] took.
pub fn is_times(line: &str) -> bool {
    line.split_once(' ')
        .is_some_and(|(user, system)| shells(user).is_some() && shells(system.trim()).is_some())
}

/// A time as the shell's `times` writes it: 1m2.345s.
fn shells(word: &str) -> Option<Duration> {
    let (minutes, seconds) = word.strip_suffix('s')?.split_once('m')?;
    let (minutes, seconds) = (minutes.parse::<u64>().ok()?, seconds.parse::<f64>().ok()?);
    let seconds = Duration::try_from_secs_f64(seconds).ok()?;
    Some(Duration::from_secs(minutes.saturating_mul(60)) + seconds)
}

/// Understands a fuzzer's lines.
#[derive(Debug, Default)]
struct Said {
    line: Vec<u8>,
    stat: Stat,
    found: Vec<PathBuf>,
    cpu: Option<Duration>,
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
        if let Some(rest) = line.strip_prefix("stat::refused: ")
            && let Some((refused, read)) = rest.split_once(" of ")
            && let (Ok(refused), Ok(read)) = (refused.parse(), read.trim().parse())
        {
            self.stat.refused = (refused, read);
        }
        if let Some((user, system)) = line.split_once(' ')
            && let (Some(user), Some(system)) = (shells(user), shells(system))
        {
            self.cpu = Some(user + system);
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
            stat::refused: 7 of 64\nstat::number_of_executed_units: 70123\n";
        for cut in [1, 7, 1000] {
            let mut said = Said::default();
            for chunk in text.as_bytes().chunks(cut) {
                said.push(chunk);
            }
            let stat =
                Stat { runs: 70123, edges: 345, features: 999, inputs: 88, refused: (7, 64) };
            assert_eq!((said.stat, &said.found[..]), (stat, &[PathBuf::from("a/crash-00ff")][..]));
        }
        let mut said = Said::default();
        assert!(said.push(b"#500 ft: 31 corp: 9 exec/s: 77\n"));
        assert_eq!(
            said.stat,
            Stat { runs: 500, edges: 0, features: 31, inputs: 9, ..Stat::default() }
        );
        assert!(!said.push(b"# a comment\nnothing\n"));
        assert!(is_times("0m0.001s 0m0.002s") && !is_times("0m of 1s"));
        said.push(b"0m0.001s 0m0.002s\n1m4.500s 0m0.250s\n");
        assert_eq!(said.cpu, Some(Duration::from_millis(64_750)));
    }

    #[test]
    fn one_refused_input_in_ten_is_the_most() {
        let stat = |refused| Stat { refused, ..Stat::default() };
        assert_eq!(stat((0, 0)).refuses_too_much(), None);
        assert_eq!(stat((100, 1000)).refuses_too_much(), None);
        assert_eq!(stat((250, 1000)).refuses_too_much(), Some(25.0));
    }

    #[test]
    fn processor_time_is_bounded() {
        let mut command = start(Path::new("sh"), Some(Duration::from_secs(1)), None);
        command.args(["-c", "while :; do :; done"]);
        let (limit, cancel) = (Duration::from_secs(300), AtomicBool::new(false));
        let ended = process::run(&mut command, limit, &cancel, &mut |_, _| {});
        assert!(is_up(&ended), "{ended}");
    }
}
