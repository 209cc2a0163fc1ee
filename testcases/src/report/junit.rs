//! The JUnit report: a suite an area, a test case a case.

use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite};

use super::HostInfo;
use crate::runner::{CaseResult, RunResult, shell_line};
use crate::verdict::Outcome;

/// Writes the report of a run. Cases that were not run are errors in it, so that no reader takes the
/// run for whole.
///
/// # Errors
///
/// The serialiser's.
pub fn write(run: &RunResult, host: &HostInfo) -> Result<String, quick_junit::SerializeError> {
    let mut report = Report::new("exitlab");
    report.set_time(run.duration);
    let mut suites: Vec<TestSuite> = Vec::new();
    let mut add = |area: &str, case: TestCase| {
        match suites.iter_mut().find(|suite| suite.name.as_str() == area) {
            Some(suite) => suite.add_test_case(case),
            None => {
                let mut suite = TestSuite::new(area);
                for (key, value) in
                    [("kernel", &host.kernel), ("cpu", &host.cpu), ("kvm", &host.kvm)]
                {
                    suite.add_property(Property::new(key, value.as_str()));
                }
                suite.add_test_case(case);
                suites.push(suite);
                suites.last_mut().expect("just pushed")
            }
        };
    };
    for result in &run.results {
        add(&result.case.id.area, case(result));
    }
    for id in &run.not_run {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message("not run: the run was stopped before");
        add(&id.area, TestCase::new(id.to_string(), status));
    }
    report.add_test_suites(suites);
    report.to_string()
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
    case.set_classname(result.case.spec.payload.to_string()).set_time(result.duration);
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
    use crate::case::CaseId;

    #[test]
    fn each_outcome_has_its_element_and_text_is_escaped() {
        let mut run = sample::run();
        run.not_run.push(CaseId { area: "tsc".into(), name: "late".into(), variant: None });
        let xml = write(&run, &sample::host()).expect("a report");
        let read = Report::deserialize_from_str(&xml).expect("it reads back");
        assert_eq!((read.tests, read.failures, read.errors), (5, 1, 2), "{xml}");
        let names: Vec<_> = read.test_suites.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["apic", "tsc"]);
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
}
