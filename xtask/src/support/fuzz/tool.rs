//! Asks `fuzz-tool` about inputs: what they break, and the least that breaks it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuzz::minimise;
use fuzz::targets;
use testcases::bounded::Bounded;
use testcases::process::{self, Ended, Stream};
use vmm::script::parse;

use super::build::{self, Flavour};
use super::{Shop, cannot, engine};
use crate::support::{Failure, Out};

/// How long the tool may take to judge one input once.
const JUDGE: Duration = Duration::from_secs(3);
/// How long it may take to find the least one by itself.
const SHORTEN: Duration = Duration::from_secs(60);
/// How many times as long as its processor time a process may take on a machine that is busy.
const BUSY: u32 = 20;
/// How long an input may take to be shown.
const SHOW: Duration = Duration::from_secs(20);
/// The most memory that an input may take in the tool, in MiB: more than any takes that is sound, and little
/// enough to be filled before the time is up.
const MEMORY: u32 = 1024;
/// What AddressSanitizer is told: it is to end a process that takes too much, and not to ask for stacks, which
/// take a program that is rarely there.
const ASAN_OPTIONS: &str = "hard_rss_limit_mb=1024:quarantine_size_mb=16:symbolize=0:exitcode=99";
/// How often an input that does not end is tried, a process each time; others that take the process along are
/// tried ten times as often.
const TRIES: usize = 80;

/// Why an input is a finding; the tool's, or that it takes the process along.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause {
    /// The device, or the file that panics.
    pub device: String,
    /// The law.
    pub law: String,
    /// What it looks like.
    pub what: String,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.device, self.law, self.what)
    }
}

/// What an input breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Why.
    pub cause: Cause,
    /// Operations of its script; bytes, if it is none.
    pub ops: usize,
    /// In how many of the tries.
    pub times: u64,
    /// It took the process along, so that there was one try whatever was asked for.
    pub ends_process: bool,
}

/// The tool, and the environment that it runs in.
#[derive(Clone, Debug)]
pub struct Tool<'a> {
    /// The program.
    pub program: PathBuf,
    /// The commands' own.
    pub shop: Shop<'a>,
    /// What names the flaw, if it has one.
    pub environment: Vec<(String, String)>,
    /// The most memory that an input may take, in MiB, where the program's addresses can be bounded.
    pub memory: Option<u32>,
}

impl<'a> Tool<'a> {
    /// Builds the tool, in one of its flavours.
    ///
    /// # Errors
    ///
    /// It does not build.
    pub fn new(shop: Shop<'a>, flavour: Flavour) -> Result<Tool<'a>, Failure> {
        let program = build::build(shop, flavour, "fuzz-tool")?;
        // AddressSanitizer takes most of all addresses for itself, and counts pages instead.
        let (environment, memory) = match flavour {
            Flavour::ToolAsan => (vec![("ASAN_OPTIONS".into(), ASAN_OPTIONS.into())], None),
            _ => (Vec::new(), Some(MEMORY)),
        };
        Ok(Tool { program, shop, environment, memory })
    }

    /// Runs it, with so much processor time; what it said on standard output and on standard error.
    fn run(&self, args: &[&std::ffi::OsStr], limit: Duration) -> (Ended, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        // Processor time, so that a machine that is busy gives the same answer; and some time in all.
        let mut command = engine::start(&self.program, Some(limit), self.memory);
        let limit = limit.saturating_mul(BUSY);
        command.args(args).envs(self.environment.iter().map(|(k, v)| (k, v)));
        let ended = process::run(&mut command, limit, self.shop.cancel, &mut |stream, bytes| {
            let to = if stream == Stream::Out { &mut out } else { &mut err };
            // What is more is no answer.
            if to.len() < 64 << 20 {
                to.extend_from_slice(bytes);
            }
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let err: Vec<String> =
            text(&err).lines().filter(|line| !engine::is_times(line)).map(str::to_owned).collect();
        (ended, text(&out), err.join("\n"))
    }

    /// Runs a command that says something on standard output.
    ///
    /// # Errors
    ///
    /// It did not end well; what it said about it.
    pub fn ask(&self, words: &[&str], limit: Duration) -> Result<String, Failure> {
        let words: Vec<_> = words.iter().map(std::ffi::OsStr::new).collect();
        match self.run(&words, limit) {
            (Ended::Exited(0), out, _) => Ok(out),
            (Ended::Cancelled, ..) => Err(Failure::stopped()),
            (Ended::Exited(2), _, err) => {
                let err = err.trim();
                Err(Failure::input(err.strip_prefix("fuzz-tool: ").unwrap_or(err)))
            }
            (ended, _, err) => Err(Failure::bad(format!("fuzz-tool: {ended}: {}", err.trim()))),
        }
    }

    /// Shows an input as it is played. Returns the tool's status, or nothing if it did not end by itself; and
    /// what it said of that.
    ///
    /// # Errors
    ///
    /// The user wants to stop.
    pub fn show(
        &self,
        target: &str,
        file: &Path,
        out: &mut Out,
    ) -> Result<(Option<u8>, String), Failure> {
        let mut command = engine::start(&self.program, None, self.memory);
        command.arg("show").arg(target).arg(file);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        let mut said = Bounded::new(4 << 10, 4 << 10);
        let ended =
            process::run(&mut command, SHOW, self.shop.cancel, &mut |stream, bytes| match stream {
                Stream::Out => out.bytes(bytes),
                Stream::Err => said.push(bytes),
            });
        let said = String::from_utf8_lossy(&said.contents()).trim().to_owned();
        let said = said.strip_prefix("fuzz-tool: ").unwrap_or(&said).to_owned();
        match ended {
            Ended::Cancelled => Err(Failure::stopped()),
            Ended::Exited(status @ 0..=2) => Ok((Some(status), said)),
            ended => {
                let why = died_of(&said).map(|(law, what)| format!("{law}: {what}: "));
                Ok((None, format!("{}{ended}", why.unwrap_or_default())))
            }
        }
    }

    /// What an input of `target` breaks, asked so many times; nothing, if it obeys every law.
    ///
    /// # Errors
    ///
    /// It is no input, or cannot be read.
    pub fn judge(&self, target: &str, file: &Path, times: u64) -> Result<Option<Judged>, Failure> {
        self.judge_within(JUDGE, target, file, times)
    }

    /// As [`Tool::judge`], with so much processor time for each try.
    ///
    /// # Errors
    ///
    /// As [`Tool::judge`].
    pub fn judge_within(
        &self,
        each: Duration,
        target: &str,
        file: &Path,
        times: u64,
    ) -> Result<Option<Judged>, Failure> {
        let limit = each.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX).max(1));
        let times_word = times.to_string();
        let words: [&std::ffi::OsStr; 4] =
            ["check".as_ref(), target.as_ref(), times_word.as_ref(), file.as_ref()];
        let died = |law: &str, what: String| {
            let cause = Cause { device: owner_of(target, file), law: law.into(), what };
            Ok(Some(Judged { cause, ops: ops_of(file), times: 1, ends_process: true }))
        };
        let ran = self.run(&words, limit);
        if let Some((law, what)) = died_of(&ran.2).filter(|_| ran.0 != Ended::Exited(0)) {
            return died(law, what);
        }
        match ran {
            (Ended::Exited(0), out, _) => Ok(judged(&out)),
            (Ended::Cancelled, ..) => Err(Failure::stopped()),
            (ended, ..) if engine::is_up(&ended) || matches!(ended, Ended::Killed { .. }) => {
                died("bounds", format!("no end in {} s", JUDGE.as_secs()))
            }
            // The shell's word for a signal.
            (Ended::Exited(status @ 129..), ..) => {
                died("panic", format!("signal {}", status - 128))
            }
            (Ended::Exited(2), _, err) => {
                let err = err.trim();
                Err(Failure::input(err.strip_prefix("fuzz-tool: ").unwrap_or(err)))
            }
            (ended, _, err) => Err(Failure::bad(format!("fuzz-tool: {ended}: {}", err.trim()))),
        }
    }

    /// Writes the least input with the same cause to `out`. `None` if this input breaks no law.
    ///
    /// # Errors
    ///
    /// It is no input, or something cannot be read or written.
    pub fn min(&self, target: &str, file: &Path, out: &Path) -> Result<Option<Judged>, Failure> {
        let Some(first) = self.judge(target, file, 1)? else { return Ok(None) };
        let most = "20000";
        let words: [&std::ffi::OsStr; 5] =
            ["min".as_ref(), target.as_ref(), file.as_ref(), out.as_ref(), most.as_ref()];
        match self.run(&words, SHORTEN) {
            (Ended::Exited(0), said, _) => Ok(judged(&said).or(Some(first))),
            (Ended::Cancelled, ..) => Err(Failure::stopped()),
            // It takes the process along: from outside, then.
            _ => self.min_outside(target, file, out, first).map(Some),
        }
    }

    /// As [`Tool::min`], with a process for every try.
    fn min_outside(
        &self,
        target: &str,
        file: &Path,
        out: &Path,
        first: Judged,
    ) -> Result<Judged, Failure> {
        let bytes = fs::read(file).map_err(cannot("read", file))?;
        if bytes.starts_with(b"# exitlab script") {
            fs::write(out, &bytes).map_err(cannot("write", out))?;
        } else {
            let words: [&std::ffi::OsStr; 4] =
                ["script".as_ref(), target.as_ref(), file.as_ref(), out.as_ref()];
            // It ends as the input makes it end, and has written down what it did until then.
            self.run(&words, JUDGE);
        }
        let tried = out.with_extension("tried");
        // One that does not end costs all the time it gets.
        let tries = if first.cause.what.starts_with("no end") { TRIES } else { TRIES * 10 };
        let shows = |bytes: &[u8]| {
            fs::write(&tried, bytes).is_ok()
                // Twice as long, so that what stays does not end just in time for the next one who asks.
                && matches!(self.judge_within(JUDGE * 2, target, &tried, 1),
                    Ok(Some(j)) if j.cause == first.cause)
        };
        // Where inputs are no scripts, nothing was written.
        let text = fs::read(out).unwrap_or_default();
        let least = match parse(&text) {
            Ok(script) if shows(&text) => {
                let shows = |script: &_| shows(format!("{script}").as_bytes());
                minimise::simplify(&script, tries, shows).to_string().into_bytes()
            }
            _ => match targets::named(target) {
                Some(target) => minimise::input(target, &bytes, tries, shows),
                None => minimise::bytes(&bytes, tries, shows),
            },
        };
        fs::write(out, least).map_err(cannot("write", out))?;
        // A leftover costs nobody anything.
        let _ = fs::remove_file(&tried);
        Ok(Judged { ops: ops_of(out), ..first })
    }
}

/// The device of what takes the process along: the board's name is the best that is known.
fn owner_of(target: &str, file: &Path) -> String {
    if target != "-" {
        return target.to_owned();
    }
    let script = parse(&fs::read(file).unwrap_or_default());
    let kind = script.ok().map(|script| script.board.kind);
    let named = kind.filter(|kind| targets::named(kind).is_some());
    named.map_or_else(|| "board".to_owned(), |kind| kind.to_string())
}

/// What a process that died said of it: the law, and what it looks like.
fn died_of(err: &str) -> Option<(&'static str, String)> {
    if err.contains("overflowed its stack") || err.contains("AddressSanitizer: stack-overflow") {
        return Some(("panic", "stack overflow".to_owned()));
    }
    let no_memory =
        ["memory allocation of", "hard rss limit exhausted", "AddressSanitizer: out of memory"];
    if no_memory.iter().any(|words| err.contains(words)) {
        return Some(("bounds", format!("takes more than {} MiB of memory", MEMORY)));
    }
    if err.contains("LeakSanitizer: detected memory leaks") {
        return Some(("memory", "leak".to_owned()));
    }
    let kind = err.split_once("ERROR: AddressSanitizer: ")?.1.split_whitespace().next()?;
    Some(("memory", kind.to_owned()))
}

/// Operations of a script; bytes of what is none.
pub fn ops_of(file: &Path) -> usize {
    let bytes = fs::read(file).unwrap_or_default();
    parse(&bytes).map_or(bytes.len(), |script| script.steps.len())
}

/// The last line of `check`.
fn judged(out: &str) -> Option<Judged> {
    let parts: Vec<&str> = out.lines().last()?.split('\t').collect();
    let [_, device, law, what, _, ops, times] = parts[..] else { return None };
    let [device, law, what] = [device, law, what].map(str::to_owned);
    let cause = Cause { device, law, what };
    let (ops, times) = (ops.parse().ok()?, times.parse().ok()?);
    Some(Judged { cause, ops, times, ends_process: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_died_is_understood() {
        let of = |err| died_of(err).map(|(law, what)| format!("{law}: {what}"));
        assert_eq!(of("0m0.1s 0m0.0s\n"), None);
        let deep = "\nthread 'main' has overflowed its stack\nfatal runtime error";
        assert_eq!(of(deep).as_deref(), Some("panic: stack overflow"));
        let much = Some("bounds: takes more than 1024 MiB of memory");
        assert_eq!(of("memory allocation of 1048576 bytes failed\n").as_deref(), much);
        assert_eq!(of("==7==AddressSanitizer: hard rss limit exhausted (1024Mb)").as_deref(), much);
        let freed = "==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x1";
        assert_eq!(of(freed).as_deref(), Some("memory: heap-use-after-free"));
    }

    #[test]
    fn the_tools_lines_are_read() {
        assert_eq!(judged("a/b\tok\n"), None);
        let line = "a/b\tuart\tpanic\tindex N (vmm/chips/uart.rs:7)\t3\t5\t100\n";
        let found = judged(line).expect("a finding");
        assert_eq!((found.ops, found.times), (5, 100));
        assert_eq!(found.cause.to_string(), "uart: panic: index N (vmm/chips/uart.rs:7)");
        assert_eq!(judged(""), None);
    }
}
