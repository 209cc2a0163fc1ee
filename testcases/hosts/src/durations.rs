//! How long cases and boots took on a host: what boots are divided by.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use testcases::case::Case;

use crate::machine::Machine;
use crate::whole;

/// What a case is taken to last if it never ran: a case that says it is slow, and another one.
const UNKNOWN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_millis(500));

/// What a boot is taken to last until one was seen.
const UNKNOWN_BOOT: Duration = Duration::from_secs(5);

/// How long cases took on this host when they last ran: what boots are divided by.
pub struct Durations {
    path: PathBuf,
    /// Milliseconds of the host's time: of a case by its id, of a boot by [`boot`].
    known: BTreeMap<String, u64>,
}

impl Durations {
    /// Reads what is known; nothing, if that cannot be read, or if runs are to be equal.
    pub fn read(machine: &Machine) -> Durations {
        let kind = if machine.deterministic { "-deterministic" } else { "" };
        let path = machine.cache.join(format!("durations-{}{kind}.json", machine.name));
        let text = if machine.deterministic { vec![] } else { fs::read(&path).unwrap_or_default() };
        Durations { path, known: serde_json::from_slice(&text).unwrap_or_default() }
    }

    /// What the case weighs: milliseconds of the host's time, while [`Machine::jobs`] run side by side.
    pub fn of(&self, case: &Case) -> u64 {
        let slow = case.spec.tags.iter().any(|tag| tag.0 == "slow");
        let guess = if slow { UNKNOWN.0 } else { UNKNOWN.1 };
        let known = self.known.get(&case.id.to_string()).copied();
        known.unwrap_or(guess.as_millis() as u64).max(1)
    }

    /// What a boot weighs beside its cases: it holds up all jobs.
    pub fn of_boot(&self, machine: &Machine) -> u64 {
        let known = self.known.get(&boot(machine)).copied();
        known.unwrap_or(UNKNOWN_BOOT.as_millis() as u64) * machine.jobs as u64
    }

    /// Takes note of how long a case took; those that did not run tell nothing.
    pub fn learn(&mut self, case: &Case, took: Duration) {
        if !took.is_zero() {
            self.insert(case.id.to_string(), took);
        }
    }

    /// Takes note of how long a machine took until it began its first case.
    pub fn learn_boot(&mut self, machine: &Machine, took: Duration) {
        self.insert(boot(machine), took);
    }

    fn insert(&mut self, what: String, took: Duration) {
        self.known.insert(what, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }

    /// Keeps what is known for the next run.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn keep(&self) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&self.known).unwrap_or_default();
        whole::write(&self.path, &text)
    }
}

/// The word for a boot, which no case has as its id.
fn boot(machine: &Machine) -> String {
    match machine.devices.is_empty() {
        true => "(boot)".to_string(),
        false => format!("(boot with {})", machine.devices),
    }
}
