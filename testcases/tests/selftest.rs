//! The whole way, with a real guest: the payload `selftest` ends in every way there is, and the runner
//! must judge each one rightly. Needs /dev/kvm; without it this says so and, if EXITLAB_REQUIRE
//! names kvm, fails.

mod real;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use testcases::build::{Options, build_payloads};
use testcases::case::{Case, CaseId};
use testcases::facts::HostFacts;
use testcases::facts_table::FactsTable;
use testcases::load::SELFTEST;
use testcases::report::{Place, text};
use testcases::require::Require;
use testcases::runner::{self, Collector, Setup};
use testcases::verdict::Outcome;

use Outcome::{Error, Fail, Pass, Skip};

/// Test, more of its case, the right outcome, a part of the reason.
const TABLE: &[(&str, &str, Outcome, &str)] = &[
    ("pass", "", Pass, ""),
    ("fail", "", Fail, "two and two"),
    ("skip", "", Skip, "the guest: nothing to see here"),
    ("error", "", Error, "on purpose"),
    ("interrupted", "", Error, "0x55"),
    ("reports_values", "", Pass, ""),
    ("prints_much", "", Pass, ""),
    ("long_reason", "", Fail, "first line"),
    ("hang", "timeout = \"500ms\"", Fail, "did not end in time"),
    ("hang", "timeout = \"500ms\"\nexpect = \"timeout\"", Pass, ""),
    ("halt_forever", "", Fail, "every vCPU halted for ever"),
    ("halt_forever", "expect = \"halted\"", Pass, ""),
    ("triple_fault", "", Fail, "the guest triple-faulted"),
    ("triple_fault", "expect = \"triple-fault\"", Pass, ""),
    ("triple_fault", "expect = \"halted\"", Fail, "expected halted, but the guest triple-faulted"),
    ("silent", "", Error, "never said how it ended"),
    ("unknown_exit", "", Error, "wrote 21 to the exit port"),
    ("unknown_exit", "expect = \"exit:21\"", Pass, ""),
    ("wrong_end", "", Error, "the exit value says `fail`, but the report says `pass`"),
    ("wrong_name", "", Error, "is not about the test `wrong_name`"),
    ("ends_twice", "", Error, "came after the end of the test"),
    ("garbage", "", Error, "is no report line"),
    ("half_a_line", "", Error, "was cut off"),
    ("fails_on_another_cpu", "[machine]\nvcpus = 2", Fail, "index of the CPU"),
    ("fails_on_another_cpu", "", Skip, "the guest: one CPU"),
    ("touches_nothing", "", Pass, ""),
    ("pass", "expect = \"triple-fault\"", Fail, "expected triple-fault, but the guest ended"),
];

#[test]
fn every_end_of_a_real_guest_has_its_outcome() {
    let facts = FactsTable::collect();
    let Some(vmm) = real::vmm(&facts, "selftest runs no guest here") else { return };
    let root = real::workspace();
    let cancel = AtomicBool::new(false);
    let built = build_payloads(root, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let catalog = built.catalog;
    let runs = tempfile::tempdir().expect("a temporary directory");

    let payload = catalog.get(SELFTEST).expect("the payload");
    let listed: BTreeSet<_> = payload.tests.iter().map(|(name, _)| &name[..]).collect();
    let judged: BTreeSet<_> = TABLE.iter().map(|(test, ..)| *test).collect();
    assert_eq!(listed, judged, "each test of the payload has its line in the table");

    let case = |(number, (test, more, ..)): (usize, &(&str, &str, Outcome, &str))| {
        let text = format!("about = \"x\"\npayload = \"{SELFTEST}::{test}\"\n{more}\n");
        let variant = Some(number.to_string());
        let id = CaseId { area: SELFTEST.into(), name: test.to_string(), variant };
        Case { id, file: "x.toml".into(), spec: toml::from_str(&text).expect("a case") }
    };
    let cases: Vec<Case> = TABLE.iter().enumerate().map(case).collect();
    let setup = Setup {
        environment: Default::default(),
        vmm,
        catalog: &catalog,
        facts: &facts,
        jobs: facts.cpus(),
        grace: runner::GRACE,
        slowness: 1.0,
        cancel: &cancel,
    };
    let collector = Collector { runs: runs.path().into(), require: Require::default() };
    let run = runner::run(&cases, &setup, &collector, false, &mut ());
    let mut wrong = Vec::new();
    for ((test, more, outcome, reason), got) in TABLE.iter().zip(&run.results) {
        let fits = got.verdict.outcome == *outcome && got.verdict.reason.contains(reason);
        if !fits || reason.is_empty() != got.verdict.reason.is_empty() {
            wrong.push(format!(
                "{test} {more:?} must be {outcome:?} because {reason:?}:\n{}",
                text::details(got, &Place::own())
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let values = &run.results[5].values;
    let values: Vec<_> = values.iter().map(|m| (&m.key[..], m.value)).collect();
    assert_eq!(values, [("zero", 0), ("largest", u64::MAX)]);
    let much = &run.results[6];
    assert!(much.serial_tail.iter().any(|line| line.starts_with("line 99 ")));
}
