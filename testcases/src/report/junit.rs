//! The JUnit report: a suite for each area on each host, named `HOST.AREA`; a test case a case.

use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite};

use super::{HostInfo, Runs};
use crate::case::CaseId;
use crate::runner::{CaseResult, shell_line};
use crate::verdict::Outcome;

/// Writes the report of a run. Cases that were not run are errors in it, so that no reader takes the
/// run for whole.
///
/// # Errors
///
/// The serialiser's.
pub fn write(runs: &Runs) -> Result<String, quick_junit::SerializeError> {
    let mut report = Report::new("exitlab");
    report.set_time(runs.duration);
    for host in &runs.hosts {
        let mut suites: Vec<TestSuite> = Vec::new();
        let mut add = |id: &CaseId, case: TestCase| {
            let name = format!("{}.{}", host.info.name, id.area);
            let at = suites.iter().position(|suite| suite.name.as_str() == name);
            let at = at.unwrap_or_else(|| {
                suites.push(suite(&name, &host.info));
                suites.len() - 1
            });
            suites[at].add_test_case(case);
        };
        for result in &host.run.results {
            let mut case = case(result);
            case.set_classname(format!("{}.{}", host.info.name, result.case.spec.subject));
            add(&result.case.id, case);
        }
        for id in &host.run.not_run {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            status.set_message("not run: the run was stopped before");
            add(id, TestCase::new(id.to_string(), status));
        }
        report.add_test_suites(suites);
    }
    report.to_string()
}

/// An empty suite of this host.
fn suite(name: &str, host: &HostInfo) -> TestSuite {
    let mut suite = TestSuite::new(name);
    for (key, value) in [("kernel", &host.kernel), ("cpu", &host.cpu), ("kvm", &host.kvm)] {
        suite.add_property(Property::new(key, value.as_str()));
    }
    if let Some(emulator) = &host.emulator {
        suite.add_property(Property::new("emulator", emulator.as_str()));
    }
    suite
}

fn case(result: &CaseResult) -> TestCase {
    let mut status = match result.verdict.outcome {
        Outcome::Pass => return filled(result, TestCaseStatus::success()),
        Outcome::Skip => TestCaseStatus::skipped(),
        Outcome::Fail => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Outcome::Error => TestCaseStatus::non_success(NonSuccessKind::Error),
    };
    status.set_message(result.verdict.reason.as_str());
    filled(result, status)
}

fn filled(result: &CaseResult, status: TestCaseStatus) -> TestCase {
    let mut case = TestCase::new(result.case.id.to_string(), status);
    case.set_time(result.duration);
    case.add_property(Property::new("about", result.case.spec.about.0.as_str()));
    if !result.command.is_empty() {
        case.add_property(Property::new("command", shell_line(&result.command)));
    }
    for value in &result.values {
        case.add_property(Property::new(value.key.as_str(), value.value.to_string()));
    }
    if result.verdict.outcome.is_bad() {
        case.set_system_out(result.serial_tail.join("\n"));
        case.set_system_err(result.report.join("\n"));
    }
    case
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn each_outcome_has_its_element_and_text_is_escaped() {
        let mut runs = sample::runs();
        let late = CaseId { area: "tsc".into(), name: "late".into(), variant: None };
        runs.hosts[0].run.not_run.push(late);
        let xml = write(&runs).expect("a report");
        let read = Report::deserialize_from_str(&xml).expect("it reads back");
        assert_eq!((read.tests, read.failures, read.errors), (5, 1, 2), "{xml}");
        let names: Vec<_> = read.test_suites.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["kvm.apic", "kvm.tsc"]);
        for part in [
            r#"<failure message="a.rs:1: 1 &lt; 2 &amp; 3"/>"#,
            r#"<skipped message="needs cpuid:x2apic: no"/>"#,
            r#"<error message="no report line came"/>"#,
            r#"<error message="not run"#,
            r#"<property name="exit_ticks" value="42"/>"#,
            "&lt;last&gt; &amp;",
            "rip 0x1000",
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
    }

    #[test]
    fn each_host_has_suites_of_its_own() {
        let xml = write(&sample::two_hosts()).expect("a report");
        let read = Report::deserialize_from_str(&xml).expect("it reads back");
        let names: Vec<_> = read.test_suites.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["kvm.apic", "kvm.tsc", "amd.apic", "amd.tsc"]);
        let amd = &read.test_suites[2];
        let class = amd.test_cases[0].classname.as_ref().map(|name| name.as_str());
        assert_eq!(class, Some("amd.apic::ipi"));
        let property = |s: &TestSuite| s.properties.iter().any(|p| p.name.as_str() == "emulator");
        assert!(property(amd) && !property(&read.test_suites[0]), "{xml}");
    }
}
