//! What an exit costs, in instructions: those of the VMM, stepped one by one on this machine's KVM, and
//! those of everything together, on a host whose clock counts instructions. Each beside a loop that enters
//! the guest again and does nothing else (`vmm run --bare`).

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use benches::steps;
use hosts::machine::Machine;
use hosts::plan::Params;
use payload_abi::exits::{COLD, NUMBER};
use serde::Serialize;
use testcases::nearest;
use testcases::process::Stream;
use testcases::transcript::{Report, Transcript};

use crate::support::{Failure, emulated};

/// The payload.
pub const PAYLOAD: &str = "exits";
/// How long one guest may take, as `vmm` takes it: each is done in a second.
const TIMEOUT: &str = "60s";

/// Counts of one kind of exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// The least, the median and the most.
    pub least: u64,
    /// As above.
    pub median: u64,
    /// As above.
    pub most: u64,
}

impl Spread {
    /// Of these counts; nothing of none.
    pub fn of(mut counts: Vec<u64>) -> Option<Spread> {
        counts.sort_unstable();
        let (least, most) = (*counts.first()?, *counts.last()?);
        Some(Spread { least, median: counts[counts.len() / 2], most })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.most - self.least {
            0 => f.pad(&self.median.to_string()),
            _ => f.pad(&format!("{}..{}", self.least, self.most)),
        }
    }
}

/// What one kind of exit costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The bare loop.
    pub bare: Spread,
    /// The VMM.
    pub vmm: Spread,
}

/// The kinds that the user wants; all if none is named.
///
/// # Errors
///
/// There is none of that name.
pub fn choose<'a>(all: &[&'a str], wanted: &[String]) -> Result<Vec<&'a str>, Failure> {
    if wanted.is_empty() {
        return Ok(all.to_vec());
    }
    let find = |name: &String| {
        all.iter().copied().find(|kind| kind == name).ok_or_else(|| {
            let hint = nearest::hint(name, all.iter().copied());
            Failure::input(format!(
                "there is no kind of exit `{name}`{hint}; there are {}",
                all.join(", ")
            ))
        })
    };
    wanted.iter().map(find).collect()
}

/// Who answers a guest's exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Nobody: a loop that enters the guest again.
    Bare,
    /// The board.
    Board,
    /// The board, while exits are counted (`vmm run --stats`).
    Counted,
}

/// The arguments of one guest that makes so many exits.
pub fn arguments(payload: &str, kind: &str, exits: usize, served: Served) -> Vec<String> {
    let cmdline = format!("exits={exits}{}", if served == Served::Bare { " bare=1" } else { "" });
    let words = ["run", "--payload", payload, "--test", kind, "--timeout", TIMEOUT, "--cmdline"];
    let mut words: Vec<String> = words.map(str::to_owned).to_vec();
    words.push(cmdline);
    match served {
        Served::Bare => words.push("--bare".to_owned()),
        Served::Board => {}
        Served::Counted => words.push("--stats=/dev/null".to_owned()),
    }
    words
}

/// What each of these kinds takes of the VMM's own instructions; nothing for a kind that never leaves KVM.
///
/// # Errors
///
/// The VMM cannot be run or stepped.
pub fn user(
    vmm: &Path,
    payload: &Path,
    kinds: &[&str],
    served: Served,
    cancel: &AtomicBool,
) -> Result<Vec<Option<Pair>>, Failure> {
    let pair = |kind: &&str| {
        let once = |served| stepped(vmm, payload, kind, served, cancel);
        Ok(match (once(Served::Bare)?, once(served)?) {
            (Some(bare), Some(vmm)) => Some(Pair { bare, vmm }),
            _ => None,
        })
    };
    kinds.iter().map(pair).collect()
}

/// What exits of this kind take of the VMM's own instructions, or of a bare loop's; nothing for one that never
/// leaves KVM.
///
/// # Errors
///
/// The VMM cannot be run or stepped.
pub fn stepped(
    vmm: &Path,
    payload: &Path,
    kind: &str,
    served: Served,
    cancel: &AtomicBool,
) -> Result<Option<Spread>, Failure> {
    if cancel.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Failure::stopped());
    }
    let mut command = Command::new(vmm);
    command.args(arguments(&payload.display().to_string(), kind, NUMBER, served));
    let taken = match steps::count(&command) {
        Ok(taken) => taken,
        Err(steps::StepError::Unmarked) => Vec::new(),
        Err(e) => return Err(Failure::bad(format!("stepping `{kind}`: {e}"))),
    };
    // A kind with several exits to one measurement has so many more.
    let each = taken.len() / (NUMBER + COLD);
    let counts = taken.iter().skip(COLD * each).map(|taken| taken.instructions).collect();
    Ok(Spread::of(counts))
}

/// What each of these kinds takes of all instructions, on a host that counts its time in them.
///
/// # Errors
///
/// The host does not boot, or a guest on it fails.
pub fn total(
    machine: &Machine,
    params: &Params,
    kinds: &[&str],
    served: Served,
    cancel: &AtomicBool,
) -> Result<Vec<Pair>, Failure> {
    const MARK: &str = "@@\n";
    let mut script = String::new();
    let runs = || kinds.iter().flat_map(|kind| [(*kind, Served::Bare), (*kind, served)]);
    for (kind, served) in runs() {
        let words = arguments(&format!("/payloads/{PAYLOAD}"), kind, NUMBER, served);
        let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        script += &format!("echo {}; vmm {}\n", MARK.trim_end(), words.join(" "));
    }
    let mut said = Vec::new();
    let words = ["sh", "-c", &script].map(str::to_owned);
    emulated::command(machine, params, &words, cancel, &mut |_: Stream, bytes| {
        said.extend_from_slice(bytes);
    })?;
    let said = String::from_utf8_lossy(&said);
    let mut logs = said.split(MARK).skip(1);
    let mut spreads = runs().map(|(kind, served)| {
        let log = logs.next().unwrap_or_default();
        spread(kind, log).ok_or_else(|| {
            let which = if served == Served::Bare { "the bare loop" } else { "the VMM" };
            Failure::bad(format!("`{kind}` under {which} on host amd told no figures:\n{log}"))
        })
    });
    let mut pairs = Vec::new();
    while let Some(bare) = spreads.next() {
        let Some(vmm) = spreads.next() else { break };
        pairs.push(Pair { bare: bare?, vmm: vmm? });
    }
    Ok(pairs)
}

/// The figures that a guest told.
pub fn spread(kind: &str, log: &str) -> Option<Spread> {
    let transcript = Transcript::of(kind, log.as_bytes());
    let Report::Ended(payload_abi::ExitValue::Pass, _) = transcript.report() else { return None };
    let value = |key: &str| transcript.values().iter().find(|v| v.key == key).map(|v| v.value);
    let (least, most) = (value("ticks_least")?, value("ticks_most")?);
    Some(Spread { least, median: value("ticks_median")?, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_figures_are_read_where_it_passes() {
        let log = "## begin port_read\n## value port_read ticks_least 3\n\
                   ## value port_read ticks_median 4\n## value port_read ticks_most 9\n## pass port_read\n";
        assert_eq!(spread("port_read", log), Some(Spread { least: 3, median: 4, most: 9 }));
        assert_eq!(spread("port_read", &log.replace("pass", "fail")), None);
        assert_eq!(spread("port_write", log), None);
        assert_eq!(spread("port_read", &log.replace("ticks_most", "ticks")), None);
    }

    #[test]
    fn a_spread_is_one_number_where_all_agree() {
        assert_eq!(Spread::of(vec![7, 7, 7]).expect("some").to_string(), "7");
        let spread = Spread::of(vec![9, 7, 8]).expect("some");
        assert_eq!((spread.median, spread.to_string()), (8, "7..9".to_owned()));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
