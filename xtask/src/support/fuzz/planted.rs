//! Whether the fuzzers find what is there to be found: each flaw of `vmm::planted` in turn, from nothing.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use serde::Serialize;
use testcases::nearest;
use testcases::process::Ended;

use super::build::{self, Flavour, Hunter};
use super::engine::{self, Hunt};
use super::tool::Tool;
use super::{Shop, cannot};
use crate::support::out::complain;
use crate::support::{Failure, Out};

/// What names the flaw in a fuzzer's environment.
const VARIABLE: &str = "EXITLAB_PLANTED";
/// How long an execution may take here: flaws that never end are among them. libFuzzer's clock does not stop
/// while others have the processor.
const EXECUTION: Duration = Duration::from_secs(5);
/// How many times as long as its budget of processor time a hunt may take on a machine that is busy.
const BUSY: u32 = 20;
/// How often the least script is played.
const AGAIN: u64 = 100;
/// How much processor time it gets each time, if it takes the process along: far more than any that is sound
/// takes.
const ENDLESS: Duration = Duration::from_secs(1);

/// A flaw, as `fuzz-tool flaws` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Flaw {
    name: String,
    target: String,
    what: String,
}

/// What came of one.
#[derive(Clone, Debug, Serialize)]
struct Hunted {
    #[serde(flatten)]
    flaw: Flaw,
    found: bool,
    seconds: f64,
    executions: u64,
    /// Operations of the least script, or bytes of the least input.
    ops: usize,
    is_script: bool,
    /// How many tries reproduced it, and how many there were.
    again: (u64, u64),
    cause: String,
}

/// How they are hunted.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Names of flaws; all if there are none.
    pub names: &'a [String],
    /// How many at once.
    pub jobs: usize,
    /// How long each.
    pub budget: Duration,
    /// Where chance begins.
    pub seed: u32,
    /// Without libFuzzer.
    pub stable: bool,
    /// Where a report for machines goes.
    pub json: Option<&'a Path>,
}

/// Hunts them, and tells; whether all were found, and found again each time.
///
/// # Errors
///
/// There is no such flaw, or something cannot be built or written.
pub fn run(shop: Shop<'_>, options: &Options<'_>, out: &mut Out) -> Result<bool, Failure> {
    let tool = Tool::new(shop, Flavour::ToolPlanted)?;
    let flaws = parse(&tool.ask(&["flaws"], Duration::from_secs(60))?);
    let flaws = choose(flaws, options.names)?;
    let hunter = build::hunter(shop, Flavour::Planted, "fuzz-any", options.stable)?;
    let width = flaws.iter().map(|flaw| flaw.name.len()).max().unwrap_or(0);
    let queue = Mutex::new(VecDeque::from(flaws));
    let done = Mutex::new(Vec::new());
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while !shop.stopped() {
                    let Some(flaw) =
                        queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
                    else {
                        return;
                    };
                    match one(shop, &tool, &hunter, flaw, options) {
                        Ok(hunted) => {
                            complain(line(&hunted, width));
                            done.lock().unwrap_or_else(PoisonError::into_inner).push(hunted);
                        }
                        Err(failure) => {
                            failed
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .get_or_insert(failure);
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Some(failure) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failure);
    }
    let mut hunted = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    hunted.sort_by(|a, b| a.flaw.target.cmp(&b.flaw.target).then(a.flaw.name.cmp(&b.flaw.name)));
    write!(out, "{}", table(&hunted, width));
    if let Some(path) = options.json {
        let text = serde_json::to_vec_pretty(&hunted).map_err(|e| Failure::bad(e.to_string()))?;
        std::fs::write(path, text).map_err(cannot("write the report", path))?;
    }
    if shop.stopped() {
        return Err(Failure::stopped());
    }
    Ok(hunted.iter().all(|h| h.found && h.again.0 == h.again.1 && h.again.1 > 0))
}

/// Hunts one flaw from nothing.
fn one(
    shop: Shop<'_>,
    tool: &Tool<'_>,
    hunter: &Hunter,
    flaw: Flaw,
    options: &Options<'_>,
) -> Result<Hunted, Failure> {
    let place = build::empty(shop.root.join("target/fuzz-planted/hunts").join(&flaw.name))?;
    let [corpus, artifacts] = ["corpus", "artifacts"].map(|name| place.join(name));
    let corpus = build::directory(corpus)?;
    let artifacts = build::directory(artifacts)?;
    let environment = [(VARIABLE, &flaw.name[..])];
    let mut hunted = Hunted {
        flaw: flaw.clone(),
        found: false,
        seconds: 0.0,
        executions: 0,
        ops: 0,
        is_script: false,
        again: (0, 0),
        cause: String::new(),
    };
    let mut seed = options.seed;
    let with_flaw =
        Tool { environment: vec![(VARIABLE.into(), flaw.name.clone())], ..tool.clone() };
    // What a busy machine makes of an execution that was slow is no finding, so the hunt goes on.
    let (file, ran) = loop {
        let left = options.budget.saturating_sub(Duration::from_secs_f64(hunted.seconds));
        let hunt = Hunt {
            target: &flaw.target,
            corpus: std::slice::from_ref(&corpus),
            artifacts: &artifacts,
            runs: 0,
            time: left.saturating_mul(BUSY),
            seed,
            ops: engine::OPS,
            cpu: Some(left),
            execution: EXECUTION,
            words: None,
            environment: &environment,
        };
        let ran = engine::hunt(hunter, &hunt, shop.cancel, &mut |_| {});
        hunted.seconds += ran.cpu.unwrap_or(ran.took).as_secs_f64();
        hunted.executions += ran.stat.runs;
        let Some(file) = ran.found.first().cloned() else { break (None, ran) };
        if with_flaw.judge(&flaw.target, &file, 1)?.is_some() {
            break (Some(file), ran);
        }
        std::fs::remove_file(&file).map_err(cannot("remove", &file))?;
        if hunted.seconds + 1.0 > options.budget.as_secs_f64() || shop.stopped() {
            break (None, ran);
        }
        seed = seed.wrapping_add(1).max(1);
    };
    let Some(file) = &file else {
        if ran.found.is_empty() && !matches!(ran.ended, Ended::Exited(0)) && !shop.stopped() {
            let log = String::from_utf8_lossy(&ran.log).into_owned();
            let end: Vec<&str> = log.lines().rev().take(5).collect();
            hunted.cause = format!("the fuzzer died: {}: {}", ran.ended, end.join(" | "));
        }
        return Ok(hunted);
    };
    hunted.found = true;
    let tool = with_flaw;
    let least = place.join("least");
    let Some(judged) = tool.min(&flaw.target, file, &least)? else {
        hunted.cause = format!("{} does not show it again", file.display());
        return Ok(hunted);
    };
    // What is wrong without the flaw, too, is a finding, but not this one.
    let sound = Tool { environment: Vec::new(), ..tool.clone() };
    if let Some(other) = sound.judge(&flaw.target, &least, 1)? {
        hunted.found = false;
        hunted.cause =
            format!("breaks a law without the flaw, too: {}: {}", least.display(), other.cause);
        return Ok(hunted);
    }
    let text = std::fs::read(&least).map_err(cannot("read", &least))?;
    hunted.is_script = text.starts_with(b"# exitlab script") && flaw.target != "script";
    (hunted.ops, hunted.cause) = (judged.ops, judged.cause.to_string());
    hunted.again = again(&tool, &flaw.target, &least)?;
    Ok(hunted)
}

/// How many tries reproduce it, and how many there were.
fn again(tool: &Tool<'_>, target: &str, least: &Path) -> Result<(u64, u64), Failure> {
    let Some(first) = tool.judge(target, least, 1)? else { return Ok((0, 1)) };
    if !first.ends_process {
        let all = tool.judge(target, least, AGAIN)?;
        return Ok((all.map_or(0, |all| all.times), AGAIN));
    }
    // Each try is a process, then. One that does not end takes all the time that it gets, and shows that in less.
    let mut good = 0;
    for _ in 0..AGAIN {
        let now = tool.judge_within(ENDLESS, target, least, 1)?;
        good += u64::from(now.is_some_and(|now| now.cause == first.cause));
    }
    Ok((good, AGAIN))
}

/// Lines of a name, a target and a sentence, with tabs between.
fn parse(text: &str) -> Vec<Flaw> {
    let flaw = |line: &str| {
        let mut parts = line.split('\t').map(str::to_owned);
        Some(Flaw { name: parts.next()?, target: parts.next()?, what: parts.next()? })
    };
    text.lines().filter_map(flaw).collect()
}

fn choose(flaws: Vec<Flaw>, names: &[String]) -> Result<Vec<Flaw>, Failure> {
    if let Some(name) = names.iter().find(|name| flaws.iter().all(|flaw| flaw.name != **name)) {
        let hint = nearest::hint(name, flaws.iter().map(|flaw| &flaw.name[..]));
        let known: Vec<&str> = flaws.iter().map(|flaw| &flaw.name[..]).collect();
        let known = known.join(", ");
        return Err(Failure::input(format!("no planted flaw `{name}`{hint}; there are {known}")));
    }
    let chosen = |flaw: &Flaw| names.is_empty() || names.contains(&flaw.name);
    Ok(flaws.into_iter().filter(chosen).collect())
}

fn line(h: &Hunted, width: usize) -> String {
    let Hunted { flaw, found, seconds, executions, ops, is_script, again, cause } = h;
    let found = if *found { "found" } else { "MISSED" };
    let least = match (ops, is_script) {
        (0, _) => String::new(),
        (ops, true) => format!("{ops} ops"),
        (ops, false) => format!("{ops} bytes"),
    };
    format!(
        "{:width$}  {:14} {found:7} {seconds:>7.1} s {executions:>10}  {least:9} {:>7}  {cause}",
        flaw.name,
        flaw.target,
        format!("{}/{}", again.0, again.1)
    )
}

/// A line for each, and what they come to.
fn table(hunted: &[Hunted], width: usize) -> String {
    let mut text = format!(
        "\n{:width$}  {:14} {:7} {:>9} {:>10}  {:9} {:>7}  cause\n",
        "flaw", "target", "", "cpu time", "executions", "least", "again"
    );
    for h in hunted {
        text += &line(h, width);
        text.push('\n');
    }
    let found = hunted.iter().filter(|h| h.found).count();
    let mut ops: Vec<usize> = hunted.iter().filter(|h| h.is_script).map(|h| h.ops).collect();
    ops.sort_unstable();
    let median =
        ops.get(ops.len() / 2).map_or_else(String::new, |m| format!("; median script {m} ops"));
    let steady = hunted.iter().filter(|h| h.again.1 > 0 && h.again.0 == h.again.1).count();
    text + &format!(
        "\n{found} of {} found{median}; {steady} of {found} came again each time\n",
        hunted.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flaws_are_chosen_by_name_and_counted() {
        let all = parse("uart-x\tuart\tIt is.\nrtc-y\trtc\tIt was.\nrubbish\n");
        assert_eq!(all.len(), 2);
        assert_eq!(choose(all.clone(), &["rtc-y".into()]).expect("one")[0].target, "rtc");
        let error = choose(all.clone(), &["rtc-z".into()]).expect_err("none").message;
        assert!(error.contains("nearest is `rtc-y`"), "{error}");
        let hunted = |flaw: &Flaw, found: bool, ops| Hunted {
            flaw: flaw.clone(),
            found,
            seconds: 1.5,
            executions: 7,
            ops,
            is_script: true,
            again: if found { (AGAIN, AGAIN) } else { (0, 0) },
            cause: String::new(),
        };
        let text = table(&[hunted(&all[0], true, 4), hunted(&all[1], false, 0)], 8);
        assert!(text.contains("uart-x    uart           found"), "{text}");
        assert!(text.contains("MISSED"), "{text}");
        assert!(text.contains("1 of 2 found"), "{text}");
    }
}
