//! Runs cases on an emulated host: in as few boots as their needs allow, side by side, with a second
//! try for those that a dying host left over.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use testcases::case::Case;
use testcases::job::{IMAGES, Task};
use testcases::kut::Suite;
use testcases::runner::{self, CaseReport, CaseResult, Collector, Log, RunResult, Watch};
use testcases::verdict::{Outcome, Verdict};
use testcases::wire::Message;

use crate::durations::Durations;
use crate::machine::{Errand, HostError, Machine};
use crate::plan::{self, Load, Params, Wanted};
use crate::session::{Ending, Session};

/// A boot is not made for less work than this, in the host's time: booting has a price, too.
const LEAST: Duration = Duration::from_secs(20);

/// How a run goes.
pub struct Setup<'a> {
    /// The user's module parameters.
    pub params: &'a Params,
    /// The host with a device for vfio-pci, for cases that need one where it has none by itself; or
    /// why it cannot be had.
    pub with_device: Result<&'a Machine, String>,
    /// Where the images of the cases come from, if they have any.
    pub suite: Option<&'a Suite>,
    /// How many machines run side by side; 1 at least.
    pub machines: usize,
    /// Makes results of reports.
    pub collector: &'a Collector,
    /// Whether the first fail or error stops the run.
    pub fail_fast: bool,
    /// Becomes true when the run is to stop at once.
    pub cancel: &'a AtomicBool,
}

/// A boot that is to be.
#[derive(Clone, Debug)]
struct Boot<'a> {
    machine: &'a Machine,
    params: Params,
    /// The cases, by index.
    cases: Vec<usize>,
    /// Whether it is for what an earlier one left over.
    again: bool,
}

/// What happens in a boot, told to the thread that collects.
enum Event<'a> {
    Started(usize),
    Ended(usize, Box<CaseReport>),
    /// A machine began its first case, after this time by its own clock.
    Booted(&'a Machine, Duration),
    Over(Box<Left<'a>>),
}

/// What a boot left over.
struct Left<'a> {
    boot: Boot<'a>,
    /// Cases that were running when it ended.
    running: Vec<usize>,
    /// Cases that were not started.
    waiting: Vec<usize>,
    end: Result<Session, HostError>,
}

/// Runs the cases on the machine, and returns what came out of each. Those for which the host cannot
/// be booted, or dies, are errors.
pub fn run(
    machine: &Machine,
    cases: &[Case],
    setup: &Setup<'_>,
    watch: &mut dyn Watch,
) -> RunResult {
    let (started, start) = (SystemTime::now(), Instant::now());
    let mut results: Vec<Option<CaseResult>> = cases.iter().map(|_| None).collect();
    let ended = run_into(&mut results, machine, cases, setup, watch);
    if let Err(error) = &ended
        && !matches!(error, HostError::Cancelled(_))
    {
        let owed = (0..cases.len()).filter(|&index| results[index].is_none());
        for (index, report) in unbootable(error, owed.collect()) {
            let made = setup.collector.collect(&cases[index], report);
            watch.ended(&made);
            results[index] = Some(made);
        }
    }
    let not_run = cases.iter().zip(&results).filter(|(_, result)| result.is_none());
    RunResult {
        started,
        duration: start.elapsed(),
        not_run: not_run.map(|(case, _)| case.id.clone()).collect(),
        results: results.into_iter().flatten().collect(),
    }
}

/// Runs the cases, and puts what came out of each into its place.
fn run_into(
    results: &mut [Option<CaseResult>],
    machine: &Machine,
    cases: &[Case],
    setup: &Setup<'_>,
    watch: &mut dyn Watch,
) -> Result<(), HostError> {
    let facts = machine.facts(setup.params, &[setup.cancel])?;
    let mut durations = Durations::read(machine);
    let (mut loads, mut kinds) = (Vec::new(), Vec::new());
    let mut stop_now = false;
    for (Wanted { device, params, .. }, group) in plan::groups(cases, setup.params, &facts) {
        let (machine, lacks) = match (device, &setup.with_device) {
            (false, _) => (machine, None),
            (true, Ok(machine)) => (*machine, None),
            (true, Err(why)) => (machine, Some(why)),
        };
        let chosen: Vec<Case> = group.iter().map(|&index| cases[index].clone()).collect();
        let (runnable, others) = match machine.facts(&params, &[setup.cancel]) {
            Ok(mut facts) => {
                if let Some(why) = lacks {
                    facts.vfio_device = Err(why.clone());
                }
                runner::sort_out(&chosen, &facts)
            }
            Err(error @ HostError::Cancelled(_)) => return Err(error),
            // That it does not come up with these parameters says nothing of other ones.
            Err(error) => (vec![], unbootable(&error, (0..chosen.len()).collect())),
        };
        for (at, report) in others {
            let result = setup.collector.collect(&cases[group[at]], report);
            watch.ended(&result);
            stop_now |= setup.fail_fast && result.verdict.outcome.is_bad();
            results[group[at]] = Some(result);
        }
        let cases = runnable.iter().map(|&at| durations.of(&chosen[at])).collect();
        loads.push(Load { cases, boot: durations.of_boot(machine) });
        kinds.push((machine, params, runnable.iter().map(|&at| group[at]).collect::<Vec<_>>()));
    }
    let divided = plan::divide(&loads, setup.machines, LEAST.as_millis() as u64);
    let mut boots: VecDeque<_> = divided
        .into_iter()
        .map(|(kind, part)| {
            let (machine, params, cases) = &kinds[kind];
            let cases = part.iter().map(|&at| cases[at]).collect();
            Boot { machine, params: params.clone(), cases, again: false }
        })
        .collect();
    let stop = AtomicBool::new(stop_now);
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let (mut going, mut broken) = (0, None);
        loop {
            let stopped = stop.load(Ordering::Relaxed) || setup.cancel.load(Ordering::Relaxed);
            while going < setup.machines.max(1) && !stopped {
                let Some(boot) = boots.pop_front() else { break };
                going += 1;
                let (sender, stop, suite) = (sender.clone(), &stop, setup.suite);
                scope.spawn(move || {
                    let left = run_boot(cases, boot, suite, &[setup.cancel, stop], &sender);
                    // The receiver outlives every sender.
                    let _ = sender.send(Event::Over(Box::new(left)));
                });
            }
            if going == 0 {
                break;
            }
            let mut collect = |index: usize, report: CaseReport| {
                durations.learn(&cases[index], report.duration);
                let result = setup.collector.collect(&cases[index], report);
                watch.ended(&result);
                if setup.fail_fast && result.verdict.outcome.is_bad() {
                    stop.store(true, Ordering::Relaxed);
                }
                results[index] = Some(result);
            };
            match receiver.recv() {
                Err(_) => break,
                Ok(Event::Booted(machine, took)) => durations.learn_boot(machine, took),
                Ok(Event::Started(index)) => watch.started(&cases[index]),
                Ok(Event::Ended(index, report)) => collect(index, *report),
                Ok(Event::Over(left)) => {
                    going -= 1;
                    match settle(*left) {
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            broken.get_or_insert(error);
                        }
                        Ok((reports, again)) => {
                            reports.into_iter().for_each(|(index, report)| collect(index, report));
                            boots.extend(again);
                        }
                    }
                }
            }
        }
        match broken {
            Some(error) => Err(error),
            None => Ok(()),
        }
    })?;
    // Without them the next run divides its boots less well, and nothing else.
    let _ = durations.keep();
    Ok(())
}

/// The reports of cases, by number, whose host could not be booted: its console is told once.
fn unbootable(error: &HostError, cases: Vec<usize>) -> Vec<(usize, CaseReport)> {
    let text = error.to_string();
    let (reason, story) = text.split_once('\n').unwrap_or((&text, ""));
    let mut story = story.to_string();
    let report = |index| (index, broken(reason, std::mem::take(&mut story)));
    cases.into_iter().map(report).collect()
}

/// What is to be reported of a case that its host did not let run, with the host's console or none.
fn broken(reason: &str, story: String) -> CaseReport {
    let story = story.into_bytes();
    CaseReport {
        stderr: Log { total: story.len() as u64, kept: story },
        ..CaseReport::unrun(Verdict::new(Outcome::Error, reason))
    }
}

/// Boots a machine with some of the cases, and tells what comes of them.
fn run_boot<'a>(
    cases: &[Case],
    boot: Boot<'a>,
    suite: Option<&Suite>,
    cancel: &[&AtomicBool],
    sender: &Sender<Event<'a>>,
) -> Left<'a> {
    // The index that the machine knows a case by, and ours.
    let named = boot.cases.iter().map(|&index| (index as u32, cases[index].id.to_string()));
    let (named, jobs) = (named.collect(), boot.machine.jobs);
    let errand = match suite {
        None => Task::Cases { cases: named, jobs }.into(),
        Some(suite) => {
            let files = suite.files(boot.cases.iter().map(|&index| &cases[index])).into_iter();
            let files = files.map(|(name, path)| (format!("{IMAGES}/{name}"), path)).collect();
            Errand { task: Task::Images { cases: named, jobs }, files }
        }
    };
    let mut waiting = boot.cases.clone();
    let mut running: Vec<usize> = Vec::new();
    let end = boot.machine.boot(errand, &boot.params, cancel, &mut |envelope| {
        // The receiver outlives every sender.
        match envelope.message {
            Message::Started { index } => {
                let index = index as usize;
                if let Some(at) = waiting.iter().position(|&i| i == index) {
                    if waiting.len() == boot.cases.len() {
                        let took = Duration::from_nanos(envelope.at);
                        let _ = sender.send(Event::Booted(boot.machine, took));
                    }
                    waiting.remove(at);
                    running.push(index);
                    let _ = sender.send(Event::Started(index));
                }
            }
            Message::Ended { index, report } => {
                let index = index as usize;
                let known = running.iter().position(|&i| i == index).map(|at| running.remove(at));
                // Whether its start was told or lost: what came of it counts.
                let lost = waiting.iter().position(|&i| i == index).map(|at| waiting.remove(at));
                if known.or(lost).is_some() {
                    let _ = sender.send(Event::Ended(index, report));
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    Left { boot, running, waiting, end }
}

/// What becomes of the cases that a boot left over: an error for those that were running, a second
/// boot for the others; but only one.
type Settled<'a> = (Vec<(usize, CaseReport)>, Option<Boot<'a>>);

fn settle(left: Left<'_>) -> Result<Settled<'_>, HostError> {
    let Left { boot, running, waiting, end } = left;
    let Session { ending, troubles, story } = end?;
    if ending == Ending::Cancelled || running.is_empty() && waiting.is_empty() {
        return Ok((vec![], None));
    }
    let mut what = ending.to_string();
    if let Some(first) = troubles.first().and_then(|text| text.lines().next()) {
        what = format!("{what}: {first}");
    }
    // The story of one host is told once.
    let mut story = story.join("\n");
    let mut error = |when: &str| {
        broken(&format!("{when} host {} {what}", boot.machine.name), std::mem::take(&mut story))
    };
    let mut reports: Vec<_> =
        running.iter().map(|&index| (index, error("while the case ran,"))).collect();
    if boot.again || ending == Ending::Done(0) {
        let when = if boot.again {
            "before the case began, for the second time,"
        } else {
            "before the case began,"
        };
        reports.extend(waiting.iter().map(|&index| (index, error(when))));
        return Ok((reports, None));
    }
    let again = (!waiting.is_empty()).then_some(Boot { cases: waiting, again: true, ..boot });
    Ok((reports, again))
}
