//! What a run is told in: text for people, JUnit XML for CI systems, JSON for programs.

pub mod json;
pub mod junit;
pub mod text;

use crate::facts_table::FactsTable;

/// The machine a run took place on, as reports name it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HostInfo {
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

impl From<&FactsTable> for HostInfo {
    fn from(facts: &FactsTable) -> HostInfo {
        HostInfo {
            kernel: facts.kernel.clone(),
            cpu: facts.cpu.clone(),
            kvm: facts.flavour.to_string(),
            cpus: facts.cpus,
            memory_mib: facts.memory >> 20,
        }
    }
}

/// Results to test the reports with: one of each outcome, with characters that need escaping.
#[cfg(test)]
pub(crate) mod sample {
    use std::time::{Duration, SystemTime};

    use super::HostInfo;
    use crate::case::{Case, CaseId};
    use crate::need::Need;
    use crate::process::Ended;
    use crate::runner::{CaseResult, RunResult};
    use crate::transcript::Measured;
    use crate::verdict::{Outcome, Verdict};

    pub(crate) fn host() -> HostInfo {
        HostInfo {
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
            unmet: skipped.then(|| Need::Cpuid("x2apic".into())),
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

    pub(crate) fn run() -> RunResult {
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
