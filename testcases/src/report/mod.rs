//! What a run is told in: text for people, JUnit XML for CI systems, JSON for programs.

pub mod json;
pub mod junit;
mod table;
pub mod text;

use std::time::{Duration, SystemTime};

use crate::case::CaseId;
use crate::facts_table::FactsTable;
use crate::runner::{CaseResult, RunResult, shell_line};
use crate::verdict::Outcome;

/// What came out of a run: the same cases on one host or several.
#[derive(Clone, Debug)]
pub struct Runs {
    /// When it started.
    pub started: SystemTime,
    /// How long it took, with all hosts.
    pub duration: Duration,
    /// Each host with its results, in the order of the columns; at least one.
    pub hosts: Vec<HostRun>,
}

/// What came out of a run on one host.
#[derive(Clone, Debug)]
pub struct HostRun {
    /// The host.
    pub info: HostInfo,
    /// Its results.
    pub run: RunResult,
}

impl Runs {
    /// How many cases had this outcome, on all hosts together.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.hosts.iter().map(|host| host.run.count(outcome)).sum()
    }

    /// Whether nothing failed anywhere, and nothing was left out.
    pub fn is_good(&self) -> bool {
        self.hosts.iter().all(|host| host.run.is_good())
    }

    /// Every result with the name of its host, host by host.
    pub fn results(&self) -> impl Iterator<Item = (&str, &CaseResult)> {
        self.hosts.iter().flat_map(|host| host.run.results.iter().map(|r| (&host.info.name[..], r)))
    }

    /// Every case that was not run with the name of its host, host by host.
    pub fn not_run(&self) -> impl Iterator<Item = (&str, &CaseId)> {
        self.hosts
            .iter()
            .flat_map(|host| host.run.not_run.iter().map(|id| (&host.info.name[..], id)))
    }
}

/// The machine a run took place on, as reports describe it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HostInfo {
    /// What `--host` calls it: `kvm`, `amd` or `intel`.
    pub name: String,
    /// What emulates it, such as `QEMU 10.0.13 (package qemu-system-x86)`; `None` for the machine's
    /// own KVM.
    pub emulator: Option<String>,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// The KVM module: `kvm-intel`, `kvm-amd` or `kvm-pvm`.
    pub kvm: String,
    /// Processors the run could use.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl HostInfo {
    /// Describes the host at this place by its facts.
    pub fn new(place: &Place, facts: &FactsTable) -> HostInfo {
        HostInfo {
            name: place.name.clone(),
            emulator: place.emulator.clone(),
            kernel: facts.kernel.clone(),
            cpu: facts.cpu.clone(),
            kvm: facts.flavour.to_string(),
            cpus: facts.cpus,
            memory_mib: facts.memory >> 20,
        }
    }
}

/// A host that cases run on, as what is told of one of its cases names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What `--host` calls it.
    pub name: String,
    /// What emulates it; `None` for the machine's own KVM.
    pub emulator: Option<String>,
    /// The command that runs such cases, after `cargo xtask`, such as `test`.
    pub command: Vec<String>,
    /// Whether cases run on other hosts, too, so that a line must name this one.
    pub among_others: bool,
    /// The flags besides `--host` that this command and `cargo xtask host run` need to bring
    /// about such a host again.
    pub flags: Vec<String>,
}

impl Place {
    /// The machine's own `/dev/kvm`, as the only host of a run.
    pub fn own() -> Place {
        let command = vec!["test".into()];
        Place { name: "kvm".into(), emulator: None, command, among_others: false, flags: vec![] }
    }

    /// The command that runs this case alone, through the runner.
    pub fn rerun(&self, id: &CaseId) -> String {
        let first = ["cargo", "xtask"].into_iter().chain(self.command.iter().map(String::as_str));
        let first: Vec<_> = first.chain(["--host", &self.name]).collect();
        let mut words = self.words(&first);
        words.extend(["--exact".to_string(), id.to_string()]);
        shell_line(&words)
    }

    /// The command that runs this command of the runner's on the host.
    pub fn plain(&self, command: &[String]) -> String {
        let mut words = Vec::new();
        if self.emulator.is_some() {
            words = self.words(&["cargo", "xtask", "host", "run", &self.name]);
            words.push("--".to_string());
        }
        words.extend_from_slice(command);
        shell_line(&words)
    }

    fn words(&self, first: &[&str]) -> Vec<String> {
        first.iter().map(|word| word.to_string()).chain(self.flags.iter().cloned()).collect()
    }
}

/// Results to test the reports with: one of each outcome, with characters that need escaping.
#[cfg(test)]
pub(crate) mod sample {
    use std::time::{Duration, SystemTime};

    use super::{HostInfo, HostRun, Runs};
    use crate::case::{Case, CaseId};
    use crate::need::Need;
    use crate::process::Ended;
    use crate::runner::{CaseResult, RunResult};
    use crate::skip::{Cause, Skip};
    use crate::transcript::Measured;
    use crate::verdict::{Outcome, Verdict};

    pub(crate) fn host() -> HostInfo {
        HostInfo {
            name: "kvm".into(),
            emulator: None,
            kernel: "6.1".into(),
            cpu: "a CPU".into(),
            kvm: "kvm-intel".into(),
            cpus: 2,
            memory_mib: 1024,
        }
    }

    pub(crate) fn result(area: &str, name: &str, outcome: Outcome, reason: &str) -> CaseResult {
        let spec = toml::from_str("about = \"It works.\"\npayload = \"apic::ipi\"\n");
        let id = CaseId { area: area.into(), name: name.into(), variant: None };
        let skipped = outcome == Outcome::Skip;
        CaseResult {
            case: Case { id, file: "x.toml".into(), spec: spec.expect("a case") },
            verdict: Verdict::new(outcome, reason),
            skip: skipped.then(|| Skip {
                cause: Cause::Need(Need::Cpuid("x2apic".into())),
                brief: reason.into(),
            }),
            duration: Duration::from_millis(1500),
            ended: (!skipped).then_some(Ended::Exited(1)),
            values: vec![Measured { key: "exit_ticks".into(), value: 42 }],
            command: vec!["vmm".into(), "run".into(), "a b".into()],
            logs: format!("runs/{area}/{name}").into(),
            serial_bytes: 7,
            serial_tail: vec!["<last> & \"line\"".into()],
            report: vec!["rip 0x1000".into()],
        }
    }

    /// A run on one host.
    pub(crate) fn runs() -> Runs {
        let run = run();
        let (started, duration) = (run.started, run.duration);
        Runs { started, duration, hosts: vec![HostRun { info: host(), run }] }
    }

    /// The same on a second host, an emulated one, where `apic/good` fails, `apic/bad` is skipped
    /// and the rest was not run.
    pub(crate) fn two_hosts() -> Runs {
        let mut runs = runs();
        let mut run = run();
        run.not_run = run.results.drain(2..).map(|result| result.case.id).collect();
        run.results[0].verdict = Verdict::new(Outcome::Fail, "not here");
        run.results[1] = result("apic", "bad", Outcome::Skip, "needs cpuid:x2apic: no");
        run.duration = Duration::from_secs(70);
        let emulator = Some("QEMU 10.0".into());
        runs.hosts.push(HostRun { info: HostInfo { name: "amd".into(), emulator, ..host() }, run });
        runs.duration = Duration::from_secs(73);
        runs
    }

    fn run() -> RunResult {
        RunResult {
            started: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            duration: Duration::from_secs(3),
            results: vec![
                result("apic", "good", Outcome::Pass, ""),
                result("apic", "bad", Outcome::Fail, "a.rs:1: 1 < 2 & 3"),
                result("tsc", "broken", Outcome::Error, "no report line came"),
                result("tsc", "absent", Outcome::Skip, "needs cpuid:x2apic: no"),
            ],
            not_run: vec![],
        }
    }
}
