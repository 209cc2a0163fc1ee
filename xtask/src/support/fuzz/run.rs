//! Hunts on targets for a while, with a line that lives.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fuzz::targets::Target;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use testcases::process::Ended;

use super::build::{self, Flavour, Hunter};
use super::engine::{self, EXECUTION, Hunt, Hunted, Stat};
use super::{Shop, cannot};
use crate::support::out::complain;
use crate::support::{Failure, Out};

/// How long, how often, how.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Executions at most, of each process; 0 for no bound.
    pub runs: u64,
    /// Time at most, of each target.
    pub time: Duration,
    /// Processes side by side.
    pub jobs: u16,
    /// Without AddressSanitizer.
    pub plain: bool,
    /// Without libFuzzer.
    pub stable: bool,
    /// Where chance begins.
    pub seed: u32,
}

/// Puts the words of a target, as libFuzzer reads them, into a file.
///
/// # Errors
///
/// It cannot be written.
pub fn words(shop: Shop<'_>, target: &Target) -> Result<Option<PathBuf>, Failure> {
    if target.words.is_empty() {
        return Ok(None);
    }
    let path = build::directory(shop.root.join("target/fuzz-words"))?.join(target.name);
    std::fs::write(&path, dictionary(target)).map_err(cannot("write the dictionary", &path))?;
    Ok(Some(path))
}

/// The words of a target in libFuzzer's form.
pub fn dictionary(target: &Target) -> String {
    let mut words: Vec<&[u8]> = target.words.iter().copied().filter(|w| !w.is_empty()).collect();
    words.sort_unstable();
    words.dedup();
    let mut text = String::new();
    for word in words {
        text.push('"');
        for &byte in word {
            match byte {
                b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
                b' '..=b'~' => text.push(char::from(byte)),
                _ => text += &format!("\\x{byte:02x}"),
            }
        }
        text.push_str("\"\n");
    }
    text
}

/// Puts an input into a directory, under its name. Whether it is new there.
///
/// # Errors
///
/// It cannot be written.
pub fn put(dir: &Path, input: &[u8]) -> Result<bool, Failure> {
    fuzz::stable::put(dir, input).map_err(|(path, e)| cannot("write the input", &path)(e))
}

/// Puts a target's seeds into its corpus, if that is empty.
///
/// # Errors
///
/// They cannot be written.
pub fn sow(corpus: &Path, target: &Target) -> Result<(), Failure> {
    let inputs = fuzz::stable::files(corpus).map_err(cannot("read the corpus", corpus))?;
    if inputs.is_empty() {
        for seed in (target.seeds)() {
            put(corpus, &seed)?;
        }
    }
    Ok(())
}

/// Hunts on each target in turn. Returns whether nothing was found.
///
/// # Errors
///
/// A fuzzer cannot be built, or died otherwise than by a finding.
pub fn run(
    shop: Shop<'_>,
    targets: &[&'static Target],
    options: &Options,
    out: &mut Out,
) -> Result<bool, Failure> {
    let flavour = if options.plain { Flavour::Plain } else { Flavour::Asan };
    // One binary for all is one link; one of its own is a few percent faster.
    let program = match targets {
        [one] => one.name,
        _ => "fuzz-any",
    };
    let hunter = build::hunter(shop, flavour, program, options.stable)?;
    let mut good = true;
    for target in targets {
        if shop.stopped() {
            return Err(Failure::stopped());
        }
        good &= one(shop, target, &hunter, options, out)?;
    }
    Ok(good)
}

fn one(
    shop: Shop<'_>,
    target: &'static Target,
    hunter: &Hunter,
    options: &Options,
    out: &mut Out,
) -> Result<bool, Failure> {
    let corpus = build::directory(shop.corpus(target.name))?;
    let artifacts = build::directory(shop.artifacts(target.name))?;
    sow(&corpus, target)?;
    let words = words(shop, target)?;
    let live = Live::new(target.name, options.jobs);
    let hunt = |job: u16| {
        let hunt = Hunt {
            target: target.name,
            corpus: std::slice::from_ref(&corpus),
            artifacts: &artifacts,
            runs: options.runs,
            time: options.time,
            seed: if options.seed == 0 { 0 } else { options.seed + u32::from(job) },
            ops: engine::OPS,
            cpu: None,
            execution: EXECUTION,
            words: words.as_deref(),
            environment: &[],
        };
        engine::hunt(hunter, &hunt, shop.cancel, &mut |stat| live.tell(job, stat))
    };
    let ran: Vec<Hunted> = std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..options.jobs).map(|job| scope.spawn(move || hunt(job))).collect();
        jobs.into_iter().filter_map(|job| job.join().ok()).collect()
    });
    live.bar.finish_and_clear();
    let took = ran.iter().map(|h| h.took).max().unwrap_or_default().as_secs_f64();
    let runs: u64 = ran.iter().map(|h| h.stat.runs).sum();
    let most = |of: fn(&Stat) -> u64| ran.iter().map(|h| of(&h.stat)).max().unwrap_or(0);
    writeln!(
        out,
        "{:16} {runs:>10} executions in {took:>5.1} s, {:>8.0} a second; {} edges, {} features, {} inputs",
        target.name,
        runs as f64 / took.max(0.001),
        most(|s| s.edges),
        most(|s| s.features),
        most(|s| s.inputs)
    );
    let mut good = true;
    for hunted in &ran {
        good &= tell_refused(&hunted.stat, out);
        for file in &hunted.found {
            good = false;
            let shown = file.strip_prefix(shop.root).unwrap_or(file).display();
            writeln!(out, "  found: {shown}; cargo xtask fuzz repro {shown}");
        }
        let died = !matches!(hunted.ended, Ended::Exited(0) | Ended::Cancelled);
        if died && hunted.found.is_empty() {
            let log = String::from_utf8_lossy(&hunted.log).into_owned();
            let full = log.contains("No space left");
            let next = if full { "; the disk is full: make room and run it again" } else { "" };
            return Err(Failure::bad(format!(
                "the fuzzer of {} found nothing and died: {}{next}\n{}",
                target.name,
                hunted.ended,
                log.lines()
                    .rev()
                    .take(12)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect::<Vec<_>>()
                    .join("\n")
            )));
        }
    }
    Ok(good)
}

/// Tells if a target refuses too many inputs; whether it does not.
pub fn tell_refused(stat: &Stat, out: &mut Out) -> bool {
    if let Some(percent) = stat.refuses_too_much() {
        writeln!(
            out,
            "  {percent:.0} % of the inputs were refused, and 10 % may be: the corpus holds what is not the \
             target's own, or what its inputs are made of (fuzz/src/targets) is no longer what its reader takes"
        );
        return false;
    }
    true
}

/// One line for all processes of a target.
struct Live {
    name: &'static str,
    bar: ProgressBar,
    hidden: bool,
    state: Mutex<(Vec<Stat>, Instant)>,
    start: Instant,
}

impl Live {
    fn new(name: &'static str, jobs: u16) -> Live {
        let target = ProgressDrawTarget::stderr();
        let hidden = target.is_hidden();
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("[{elapsed}] {wide_msg}");
        bar.set_style(style.expect("the template is constant and right"));
        let stats = vec![Stat::default(); usize::from(jobs)];
        let state = Mutex::new((stats, Instant::now()));
        Live { name, bar, hidden, state, start: Instant::now() }
    }

    fn tell(&self, job: u16, stat: Stat) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (stats, told) = &mut *state;
        stats[usize::from(job)] = stat;
        let runs: u64 = stats.iter().map(|s| s.runs).sum();
        let most = |of: fn(&Stat) -> u64| stats.iter().map(of).max().unwrap_or(0);
        let rate = runs as f64 / self.start.elapsed().as_secs_f64().max(0.001);
        let (edges, features) = (most(|s| s.edges), most(|s| s.features));
        let line = format!(
            "{}: {runs} executions, {rate:.0} a second, {edges} edges, {features} features, {} inputs",
            self.name,
            most(|s| s.inputs)
        );
        if !self.hidden {
            self.bar.set_message(line);
            self.bar.tick();
        } else if told.elapsed() > Duration::from_secs(30) {
            *told = Instant::now();
            complain(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_written_as_libfuzzer_reads_them() {
        let script = fuzz::targets::named("script").expect("a target");
        let text = dictionary(script);
        assert!(text.lines().all(|line| line.starts_with('"') && line.ends_with('"')), "{text}");
        assert!(
            text.contains("\"# exitlab script 1\\x0a\"") && text.contains("\"\\\"\""),
            "{text}"
        );
    }
}
