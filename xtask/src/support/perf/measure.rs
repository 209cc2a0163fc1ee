//! Measures VMMs side by side: each program runs the same guests, in turn, so that what the machine does
//! meanwhile falls on all of them.
//!
//! Guests are tests of the payload `exits` of this workspace, whichever revision the VMM is of: so what differs
//! is the VMM.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use payload_abi::exits;
use testcases::process::{self, Ended, Stream};

use super::judge::Sides;
use super::record::{Measurement, Metric};
use crate::support::Failure;
use crate::support::bench::exact::{self, Served};

/// Two programs in turn, and the other way about in every other round: a machine that becomes slower as time goes
/// on is as unfair to one as to the other.
const IN_TURN: &[&[usize]] = &[&[0, 1, 1, 0], &[1, 0, 0, 1]];
/// One alone, as often as each of two.
const ALONE: &[&[usize]] = &[&[0, 0]];
/// The kind of exit that is none: what it takes is the VMM's start and end.
const NOTHING: &str = "nothing";
/// A guest takes a small part of a second.
const LIMIT: Duration = Duration::from_secs(90);

/// What is measured.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// The payload `exits`.
    pub payload: &'a Path,
    /// Its tests.
    pub kinds: &'a [&'a str],
    /// Whether instructions are counted.
    pub exact: bool,
    /// Of how many rounds times are taken.
    pub rounds: usize,
    /// Becomes true when the user wants to stop.
    pub cancel: &'a AtomicBool,
}

/// Metrics, and of each what every program showed.
type Seen = Vec<(Metric, Vec<Vec<f64>>)>;

/// Takes one sample, if there is one, of a program and a kind.
type Sample<'a> = dyn FnMut(usize, &str) -> Result<Option<f64>, Failure> + 'a;

/// Measures two programs in turn.
///
/// # Errors
///
/// One of them cannot be run or stepped.
pub fn both(base: &Path, new: &Path, plan: &Plan<'_>) -> Result<Vec<Sides>, Failure> {
    let sides = |(metric, seen): (Metric, Vec<Vec<f64>>)| {
        let [base, new] = <[Vec<f64>; 2]>::try_from(seen).unwrap_or_default();
        Sides { metric, base, new }
    };
    Ok(measure(&[base, new], IN_TURN, plan)?.into_iter().map(sides).collect())
}

/// Measures one program.
///
/// # Errors
///
/// It cannot be run or stepped.
pub fn alone(program: &Path, plan: &Plan<'_>) -> Result<Vec<Measurement>, Failure> {
    let one =
        |(metric, seen): (Metric, Vec<Vec<f64>>)| Measurement { metric, samples: seen.concat() };
    Ok(measure(&[program], ALONE, plan)?.into_iter().map(one).collect())
}

fn measure(programs: &[&Path], orders: &[&[usize]], plan: &Plan<'_>) -> Result<Seen, Failure> {
    let steps = plan.kinds.len() * orders[0].len() * (usize::from(plan.exact) + plan.rounds);
    let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("[{elapsed}] {pos}/{len} {wide_msg}");
    bar.set_style(style.expect("the template is constant and right"));
    let mut all = Seen::new();
    if plan.exact {
        let counts = in_turn(programs.len(), orders, 1, plan.kinds, &mut |side, kind| {
            bar.set_message(format!("counting {kind}"));
            bar.inc(1);
            let (vmm, payload) = (programs[side], plan.payload);
            let spread = exact::stepped(vmm, payload, kind, Served::Board, plan.cancel)?;
            Ok(spread.map(|spread| spread.median as f64))
        })?;
        let metric = |kind: &str| Metric::instructions(format!("exits/{kind}/user"));
        all.extend(plan.kinds.iter().map(|kind| metric(kind)).zip(counts));
    }
    let times = in_turn(programs.len(), orders, plan.rounds, plan.kinds, &mut |side, kind| {
        bar.set_message(format!("timing {kind}"));
        bar.inc(1);
        timed(programs[side], kind, plan)
    })?;
    bar.finish_and_clear();
    let metric = |kind: &str| match kind {
        NOTHING => Metric::time("run/nothing/time", "ns"),
        _ => Metric::time(format!("exits/{kind}/latency"), "TSC ticks"),
    };
    all.extend(plan.kinds.iter().map(|kind| metric(kind)).zip(times));
    // Some exits never leave KVM, and some are none here.
    all.retain(|(_, seen)| seen.iter().any(|samples| !samples.is_empty()));
    Ok(all)
}

/// Takes samples of each kind and program, in these orders of programs, round by round; by kind, then program.
fn in_turn(
    programs: usize,
    orders: &[&[usize]],
    rounds: usize,
    kinds: &[&str],
    sample: &mut Sample<'_>,
) -> Result<Vec<Vec<Vec<f64>>>, Failure> {
    let mut seen = vec![vec![Vec::new(); programs]; kinds.len()];
    for order in orders.iter().cycle().take(rounds) {
        for (kind, seen) in kinds.iter().zip(&mut seen) {
            for &side in *order {
                seen[side].extend(sample(side, kind)?);
            }
        }
    }
    Ok(seen)
}

/// One run of a guest: the ticks that its middle exit took; of the one without exits, the time from its start to
/// its end, in nanoseconds.
fn timed(vmm: &Path, kind: &str, plan: &Plan<'_>) -> Result<Option<f64>, Failure> {
    // A sample is the middle one of as many as there can be.
    let exits = if kind == NOTHING { 1 } else { exits::MOST };
    let mut command = Command::new(vmm);
    command.args(exact::arguments(&plan.payload.display().to_string(), kind, exits, Served::Board));
    let mut said = Vec::new();
    let start = Instant::now();
    let ended = process::run(&mut command, LIMIT, plan.cancel, &mut |stream, bytes| {
        if stream == Stream::Out {
            said.extend_from_slice(bytes);
        }
    });
    let took = start.elapsed();
    if plan.cancel.load(Ordering::Relaxed) {
        return Err(Failure::stopped());
    }
    if let Ended::NotStarted(_) | Ended::Killed { .. } = ended {
        return Err(Failure::bad(format!("timing `{kind}` with {}: {ended}", vmm.display())));
    }
    let spread = exact::spread(kind, &String::from_utf8_lossy(&said));
    Ok(match kind {
        NOTHING => spread.map(|_| took.as_nanos() as f64),
        _ => spread.map(|spread| spread.median as f64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_take_turns_and_nothing_is_lost() {
        let mut order = String::new();
        let mut times = 0.0;
        let seen = in_turn(2, IN_TURN, 2, &["x", "y"], &mut |side, kind| {
            order += &format!("{kind}{} ", ["A", "B"][side]);
            times += 1.0;
            Ok(Some(times))
        });
        let seen = seen.expect("samples");
        assert_eq!(order, "xA xB xB xA yA yB yB yA xB xA xA xB yB yA yA yB ");
        assert_eq!(seen[0], [vec![1.0, 4.0, 10.0, 11.0], vec![2.0, 3.0, 9.0, 12.0]]);
        assert_eq!(seen[1], [vec![5.0, 8.0, 14.0, 15.0], vec![6.0, 7.0, 13.0, 16.0]]);
    }

    #[test]
    fn a_guest_that_tells_nothing_is_no_sample_and_a_vmm_that_is_none_an_error() {
        let cancel = AtomicBool::new(false);
        let payload = Path::new("/payload");
        let plan =
            Plan { payload, kinds: &["port_read"], exact: false, rounds: 1, cancel: &cancel };
        assert_eq!(both(Path::new("true"), Path::new("true"), &plan).expect("ran"), []);
        let why = alone(Path::new("/no/such/vmm"), &plan).expect_err("no program").message;
        assert!(why.contains("timing `port_read` with /no/such/vmm"), "{why}");
        cancel.store(true, Ordering::Relaxed);
        assert_eq!(alone(Path::new("true"), &plan).expect_err("stopped").status, 130);
    }
}
