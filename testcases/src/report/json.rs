//! The JSON report.
//!
//! Its `schema` is [`SCHEMA`]; that number changes when a field changes its meaning or goes away, not
//! when one is added. Times are in milliseconds, `started` is seconds since 1970 in UTC.
//!
//! ```json
//! {
//!   "schema": 1,
//!   "host": {"kernel": "..", "cpu": "..", "kvm": "kvm-intel", "cpus": 2, "memory_mib": 1024},
//!   "started": 1000000000,
//!   "duration_ms": 3000,
//!   "counts": {"pass": 1, "fail": 0, "error": 0, "skip": 0, "not_run": 0},
//!   "cases": [{
//!     "id": "apic/ipi@smp2", "area": "apic", "name": "ipi", "variant": "smp2",
//!     "about": "..", "payload": "apic", "test": "ipi", "expect": "pass", "tags": [],
//!     "outcome": "pass", "reason": "", "need": null, "status": 1, "duration_ms": 12,
//!     "values": [{"key": "exit_ticks", "value": 42}],
//!     "command": ["vmm", "run"], "logs": "target/test-runs/..", "serial_bytes": 7
//!   }],
//!   "not_run": []
//! }
//! ```
//!
//! `need` is the unmet need after a skip, `status` the VMM's exit status or null if it had none.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::HostInfo;
use crate::process::Ended;
use crate::runner::{CaseResult, RunResult};
use crate::verdict::Outcome;

/// The version of the report's layout.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    host: &'a HostInfo,
    started: u64,
    duration_ms: u64,
    counts: Counts,
    cases: Vec<CaseReport<'a>>,
    not_run: Vec<String>,
}

#[derive(Serialize)]
struct Counts {
    pass: usize,
    fail: usize,
    error: usize,
    skip: usize,
    not_run: usize,
}

#[derive(Serialize)]
struct CaseReport<'a> {
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
pub fn write(run: &RunResult, host: &HostInfo) -> Result<String, serde_json::Error> {
    let report = Report {
        schema: SCHEMA,
        host,
        started: run.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        duration_ms: millis(run.duration),
        counts: Counts {
            pass: run.count(Outcome::Pass),
            fail: run.count(Outcome::Fail),
            error: run.count(Outcome::Error),
            skip: run.count(Outcome::Skip),
            not_run: run.not_run.len(),
        },
        cases: run.results.iter().map(case).collect(),
        not_run: run.not_run.iter().map(ToString::to_string).collect(),
    };
    serde_json::to_string_pretty(&report).map(|text| text + "\n")
}

fn case(result: &CaseResult) -> CaseReport<'_> {
    let (id, spec) = (&result.case.id, &result.case.spec);
    CaseReport {
        id: id.to_string(),
        area: &id.area,
        name: &id.name,
        variant: id.variant.as_deref(),
        about: &spec.about.0,
        payload: &spec.payload.payload,
        test: &spec.payload.test,
        expect: spec.expect.to_string(),
        tags: spec.tags.iter().map(|tag| &tag.0[..]).collect(),
        outcome: result.verdict.outcome.word(),
        reason: &result.verdict.reason,
        need: result.unmet.as_ref().map(ToString::to_string),
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
        let text = write(&sample::run(), &sample::host()).expect("a report");
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
        assert_eq!(report["cases"][3]["status"], serde_json::Value::Null);
    }
}
