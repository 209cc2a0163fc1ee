//! What the case files name is there: payloads, tests, files, needs.

use std::collections::BTreeSet;
use std::path::Path;

use vmm::host::test::HostTest;

use super::{Catalog, Problems, SELFTEST};
use crate::case::{Case, Subject, TestRef};
use crate::facts::HostFacts;
use crate::nearest;
use crate::need::Met;

/// Checks the cases against the payloads and the names this host knows: each case's test exists,
/// its modules do, each need can be asked, and each test of the host and of each payload but [`SELFTEST`] is used by
/// some case.
///
/// # Errors
///
/// Everything that does not fit, with the nearest name that would.
pub fn check(
    dir: &Path,
    cases: &[Case],
    catalog: &Catalog,
    facts: &dyn HostFacts,
) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let mut used = BTreeSet::new();
    for case in cases {
        used.insert((case.spec.subject.payload(), case.spec.subject.test()));
        // A test of the host is known, or the case would not have been read.
        if let Subject::Guest(test) = &case.spec.subject
            && let Err(message) = catalog.find(test)
        {
            problems.add(&case.file, message);
        }
        for module in &case.spec.machine.modules {
            if !case.dir().join(module).is_file() {
                let message = format!("module {}: there is no such file", module.display());
                problems.add(&case.file, message);
            }
        }
        if case.spec.because.is_some() && case.spec.needs.is_empty() {
            problems.add(&case.file, "`because` without `needs`: it says why those are".to_owned());
        }
        for need in &case.spec.needs {
            if let Met::Unknown(why) = need.check(facts) {
                problems.add(&case.file, format!("need `{need}`: {why}"));
            }
        }
    }
    for (name, payload) in catalog.iter().filter(|(name, _)| *name != SELFTEST) {
        for (test, _) in payload.tests.iter().filter(|(test, _)| !used.contains(&(name, test))) {
            let file = dir.join(name).join(format!("{test}.toml"));
            let message =
                format!("missing: no case runs `{name}::{test}`; write one here or elsewhere");
            problems.add(&file, message);
        }
    }
    for test in HostTest::ALL.map(HostTest::name) {
        if !used.contains(&("host", test)) {
            let file = dir.join("host").join(format!("{test}.toml"));
            problems
                .add(&file, format!("missing: no case runs host-test `{test}`; write one here"));
        }
    }
    // A variant repeats what is wrong with its base.
    let mut told = BTreeSet::new();
    problems.0.retain(|p| told.insert((p.file.clone(), p.message.clone())));
    problems.or(())
}

impl Catalog {
    /// Looks a test up.
    ///
    /// # Errors
    ///
    /// There is none of that name; the nearest one is named.
    fn find(&self, test: &TestRef) -> Result<(), String> {
        let Some(payload) = self.get(&test.payload) else {
            let hint = nearest::hint(&test.payload, self.iter().map(|(name, _)| name));
            return Err(format!("`{test}`: no payload `{}` is built{hint}", test.payload));
        };
        let names = || payload.tests.iter().map(|(name, _)| name.as_str());
        if names().any(|name| name == test.test) {
            return Ok(());
        }
        let hint = nearest::hint(&test.test, names());
        Err(format!("`{test}`: payload `{}` has no test `{}`{hint}", test.payload, test.test))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Payload;
    use super::super::tests::{SMALL, load_files};
    use super::*;
    use crate::facts::fake::FakeFacts;

    fn catalog() -> Catalog {
        let mut catalog = Catalog::new();
        let test = |name: &str| (name.to_string(), String::new());
        let payload = |tests| Payload { path: "p".into(), tests };
        catalog.add("apic", payload(vec![test("self_ipi"), test("x2apic_msr")]));
        catalog.add(SELFTEST, payload(vec![test("hang")]));
        catalog
    }

    fn check_files(files: &[(&str, &str)]) -> Result<(), Problems> {
        let files =
            [files, &[("host/vfio.toml", "about = \"x\"\nhost-test = \"vfio\"\n")]].concat();
        let cases = load_files(&files).expect("cases");
        let facts = FakeFacts { cpuid: vec![("x2apic", false)], ..FakeFacts::default() };
        check(Path::new("cases"), &cases, &catalog(), &facts)
    }

    const OTHER: (&str, &str) = ("a/o.toml", "about = \"x\"\npayload = \"apic::x2apic_msr\"\n");

    #[test]
    fn cases_that_use_every_test_are_in_order() {
        let with_need = format!("{SMALL}needs = [\"cpuid:x2apic\"]\n");
        assert_eq!(check_files(&[("a/b.toml", &with_need), OTHER]), Ok(()));
    }

    #[test]
    fn a_test_of_the_host_without_a_case_is_told() {
        let cases = load_files(&[("a/b.toml", SMALL), OTHER]).expect("cases");
        let problems = check(Path::new("cases"), &cases, &catalog(), &FakeFacts::default());
        let problems = problems.unwrap_err().to_string();
        assert_eq!(
            problems,
            "cases/host/vfio.toml: missing: no case runs host-test `vfio`; write one here"
        );
    }

    #[test]
    fn a_missing_payload_or_test_is_told_with_the_nearest() {
        for (reference, says) in [
            ("apci::self_ipi", "no payload `apci` is built; the nearest is `apic`"),
            ("apic::self_api", "payload `apic` has no test `self_api`; the nearest is `self_ipi`"),
        ] {
            let text = format!("about = \"x\"\npayload = \"{reference}\"\n");
            let files = [("a/b.toml", SMALL), ("a/c.toml", &text), OTHER];
            let problems = check_files(&files).unwrap_err();
            assert_eq!(problems.0.len(), 1, "{problems}");
            assert!(problems.0[0].message.contains(reference), "{problems}");
            assert!(problems.0[0].message.contains(says), "{problems}");
        }
    }

    #[test]
    fn an_unknown_need_and_a_forgotten_test_are_told() {
        let text = format!("{SMALL}needs = [\"cpuid:x3apic\"]\nmachine.modules = [\"none\"]\n");
        let problems = check_files(&[("a/b.toml", &text)]).unwrap_err().to_string();
        assert!(problems.contains("module none: there is no such file"), "{problems}");
        assert!(problems.contains("need `cpuid:x3apic`: unknown x3apic"), "{problems}");
        assert!(problems.contains("no case runs `apic::x2apic_msr`"), "{problems}");
        let text = format!("{SMALL}because = \"it must\"\n");
        let reason = check_files(&[("a/b.toml", &text), OTHER]).unwrap_err().to_string();
        assert!(reason.contains("`because` without `needs`"), "{reason}");
        assert!(!problems.contains("selftest"), "{problems}");
    }
}
