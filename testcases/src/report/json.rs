//! The JSON report.
//!
//! Its `schema` is [`SCHEMA`]; that number changes when a field changes its meaning or goes away, not
//! when one is added. Times are in milliseconds, `started` is seconds since 1970 in UTC.
//!
//! ```json
//! {
//!   "schema": 2,
//!   "started": 1000000000,
//!   "duration_ms": 3000,
//!   "counts": {"pass": 1, "fail": 0, "error": 0, "skip": 0, "not_run": 1},
//!   "hosts": [{
//!     "name": "amd", "emulator": "QEMU 10.0.13 (..)", "kernel": "..", "cpu": "..",
//!     "kvm": "kvm-amd", "cpus": 2, "memory_mib": 1024, "duration_ms": 2900,
//!     "counts": {"pass": 1, "fail": 0, "error": 0, "skip": 0, "not_run": 1}
//!   }],
//!   "cases": [{
//!     "host": "amd", "id": "apic/ipi@smp2", "area": "apic", "name": "ipi", "variant": "smp2",
//!     "about": "..", "payload": "apic", "test": "ipi", "expect": "pass", "tags": [],
//!     "outcome": "pass", "reason": "", "skip": null, "need": null, "status": 1, "duration_ms": 12,
//!     "values": [{"key": "exit_ticks", "value": 42}],
//!     "command": ["vmm", "run"], "logs": "target/test-runs/amd/..", "serial_bytes": 7
//!   }],
//!   "not_run": [{"host": "amd", "id": "apic/ipi"}]
//! }
//! ```
//!
//! `emulator` is null for the machine's own KVM. The outer `counts` are the sums over `hosts`. A case
//! is there once for each host. `skip` is what made it a skip, or made an error of one that is not
//! accepted: `need` (and the other key says which), `guest`, `known-bug` or `deviation`. `status` is
//! the VMM's exit status, or null if it had none.
//!
//! Schema 1 knew one host: its `host` had no name, and neither cases nor what was not run told theirs.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{HostInfo, HostRun, Runs};
use crate::process::Ended;
use crate::runner::{CaseResult, RunResult};
use crate::verdict::Outcome;

/// The version of the report's layout.
pub const SCHEMA: u32 = 2;

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    started: u64,
    duration_ms: u64,
    counts: Counts,
    hosts: Vec<HostReport<'a>>,
    cases: Vec<CaseReport<'a>>,
    not_run: Vec<NotRun<'a>>,
}

#[derive(Serialize)]
struct HostReport<'a> {
    #[serde(flatten)]
    info: &'a HostInfo,
    duration_ms: u64,
    counts: Counts,
}

#[derive(Serialize)]
struct NotRun<'a> {
    host: &'a str,
    id: String,
}

#[derive(Default, Serialize)]
struct Counts {
    pass: usize,
    fail: usize,
    error: usize,
    skip: usize,
    not_run: usize,
}

#[derive(Serialize)]
struct CaseReport<'a> {
    host: &'a str,
    id: String,
    area: &'a str,
    name: &'a str,
    variant: Option<&'a str>,
    about: &'a str,
    payload: &'a str,
    test: &'a str,
    expect: String,
    tags: Vec<&'a str>,
    outcome: &'static str,
    reason: &'a str,
    skip: Option<&'static str>,
    need: Option<String>,
    status: Option<u8>,
    duration_ms: u64,
    values: Vec<Value<'a>>,
    command: &'a [String],
    logs: String,
    serial_bytes: u64,
}

#[derive(Serialize)]
struct Value<'a> {
    key: &'a str,
    value: u64,
}

/// Writes the report of a run, indented, with a newline at its end.
///
/// # Errors
///
/// None is known; the serialiser's error is passed on.
pub fn write(runs: &Runs) -> Result<String, serde_json::Error> {
    let report = Report {
        schema: SCHEMA,
        started: runs.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        duration_ms: millis(runs.duration),
        counts: counts(runs.hosts.iter().map(|host| &host.run)),
        hosts: runs.hosts.iter().map(host).collect(),
        cases: runs.results().map(case).collect(),
        not_run: runs.not_run().map(|(host, id)| NotRun { host, id: id.to_string() }).collect(),
    };
    serde_json::to_string_pretty(&report).map(|text| text + "\n")
}

fn host(host: &HostRun) -> HostReport<'_> {
    HostReport {
        info: &host.info,
        duration_ms: millis(host.run.duration),
        counts: counts([&host.run]),
    }
}

fn counts<'a>(runs: impl IntoIterator<Item = &'a RunResult>) -> Counts {
    runs.into_iter().fold(Counts::default(), |sum, run| Counts {
        pass: sum.pass + run.count(Outcome::Pass),
        fail: sum.fail + run.count(Outcome::Fail),
        error: sum.error + run.count(Outcome::Error),
        skip: sum.skip + run.count(Outcome::Skip),
        not_run: sum.not_run + run.not_run.len(),
    })
}

fn case<'a>((host, result): (&'a str, &'a CaseResult)) -> CaseReport<'a> {
    let (id, spec) = (&result.case.id, &result.case.spec);
    CaseReport {
        host,
        id: id.to_string(),
        area: &id.area,
        name: &id.name,
        variant: id.variant.as_deref(),
        about: &spec.about.0,
        payload: spec.subject.payload(),
        test: spec.subject.test(),
        expect: spec.expect.to_string(),
        tags: spec.tags.iter().map(|tag| &tag.0[..]).collect(),
        outcome: result.verdict.outcome.word(),
        reason: &result.verdict.reason,
        skip: result.skip.as_ref().map(|skip| skip.cause.word()),
        need: result.skip.as_ref().and_then(|skip| skip.cause.need()).map(ToString::to_string),
        status: match result.ended {
            Some(Ended::Exited(status)) => Some(status),
            _ => None,
        },
        duration_ms: millis(result.duration),
        values: result.values.iter().map(|m| Value { key: &m.key, value: m.value }).collect(),
        command: &result.command,
        logs: result.logs.display().to_string(),
        serial_bytes: result.serial_bytes,
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_report_reads_back() {
        let text = write(&sample::runs()).expect("a report");
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(report["schema"], SCHEMA);
        assert_eq!(report["started"], 1_000_000_000_u64);
        assert_eq!(
            report["counts"],
            serde_json::json!({"pass": 1, "fail": 1, "error": 1, "skip": 1, "not_run": 0})
        );
        let outcomes: Vec<_> =
            report["cases"].as_array().expect("cases").iter().map(|c| &c["outcome"]).collect();
        assert_eq!(outcomes, ["pass", "fail", "error", "skip"]);
        let bad = &report["cases"][1];
        assert_eq!(bad["id"], "apic/bad");
        assert_eq!(bad["reason"], "a.rs:1: 1 < 2 & 3");
        assert_eq!(bad["values"][0], serde_json::json!({"key": "exit_ticks", "value": 42}));
        assert_eq!(bad["status"], 1);
        assert_eq!(report["cases"][3]["need"], "cpuid:x2apic");
        assert_eq!(report["cases"][3]["skip"], "need");
        assert_eq!(report["cases"][1]["skip"], serde_json::Value::Null);
        assert_eq!(report["cases"][3]["status"], serde_json::Value::Null);
        assert_eq!(report["hosts"][0]["emulator"], serde_json::Value::Null);
    }

    #[test]
    fn each_host_and_each_of_its_cases_has_the_name() {
        let text = write(&sample::two_hosts()).expect("a report");
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let sums = serde_json::json!({"pass": 1, "fail": 2, "error": 1, "skip": 2, "not_run": 2});
        assert_eq!(report["counts"], sums);
        let amd = &report["hosts"][1];
        assert_eq!((&amd["name"], &amd["emulator"]), (&"amd".into(), &"QEMU 10.0".into()));
        assert_eq!(amd["duration_ms"], 70_000);
        let counts = serde_json::json!({"pass": 0, "fail": 1, "error": 0, "skip": 1, "not_run": 2});
        assert_eq!(amd["counts"], counts);
        let hosts: Vec<_> =
            report["cases"].as_array().expect("cases").iter().map(|c| &c["host"]).collect();
        assert_eq!(hosts, ["kvm", "kvm", "kvm", "kvm", "amd", "amd"]);
        assert_eq!(report["not_run"][0], serde_json::json!({"host": "amd", "id": "tsc/broken"}));
    }
}
