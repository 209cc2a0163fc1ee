//! The runner against a stand-in for the VMM: every way a process can end has its outcome, within
//! its time and without growing. Needs no KVM.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testcases::case::{Case, CaseId, Spec};
use testcases::facts::{HostFacts, KvmFlavour, Processor};
use testcases::load::{Catalog, Payload};
use testcases::need::Met;
use testcases::require::Require;
use testcases::runner::{self, CaseResult, Collector, RunResult, Setup, Watch};
use testcases::verdict::Outcome;

/// Long enough for a busy machine, short enough for a test that waits for it.
const GRACE: Duration = Duration::from_secs(2);

/// A host with everything but one CPUID feature, or without KVM.
struct Host {
    kvm: bool,
    processor: Processor,
}

impl HostFacts for Host {
    fn kvm(&self) -> Result<(), String> {
        if self.kvm { Ok(()) } else { Err("no /dev/kvm".into()) }
    }
    fn cpuid(&self, feature: &str) -> Met {
        match feature {
            "x2apic" => Met::Yes,
            "pcid" => Met::No("KVM shows no pcid".into()),
            _ => Met::Unknown(format!("no such feature: {feature}")),
        }
    }
    fn kvm_cap(&self, _: &str) -> Met {
        Met::Yes
    }
    fn hyperv(&self, name: &str) -> Met {
        Met::No(format!("no {name}"))
    }
    fn module_param(&self, _: &str, _: &str) -> Option<String> {
        None
    }
    fn flavour(&self) -> KvmFlavour {
        KvmFlavour::Intel
    }
    fn processor(&self) -> Processor {
        self.processor
    }
    fn cpus(&self) -> usize {
        2
    }
    fn memory(&self) -> u64 {
        1 << 30
    }
    fn free_hugepages(&self, _: u64) -> u64 {
        0
    }
    fn userfault(&self) -> Result<(), String> {
        Err("no userfaultfd".into())
    }
    fn vfio_device(&self) -> Result<(), String> {
        Err("no vfio-pci".into())
    }
}

struct Seen<'a> {
    started: usize,
    ended: usize,
    /// Is set when a case starts.
    cancel: Option<&'a AtomicBool>,
}

impl Watch for Seen<'_> {
    fn started(&mut self, _: &Case) {
        self.started += 1;
        if let Some(cancel) = self.cancel {
            cancel.store(true, Ordering::Relaxed);
        }
    }
    fn ended(&mut self, _: &CaseResult) {
        self.ended += 1;
    }
}

/// A case that runs this test of the stand-in; `more` is further TOML.
fn case(test: &str, more: &str) -> Case {
    let timeout = if more.contains("timeout =") { "" } else { "timeout = \"100ms\"\n" };
    let text = format!("about = \"x\"\npayload = \"fake::{test}\"\n{timeout}{more}\n");
    let spec: Spec = toml::from_str(&text).expect("a case");
    let id = CaseId { area: "fake".into(), name: test.into(), variant: None };
    Case { id, file: "x.toml".into(), spec }
}

struct Options {
    kvm: bool,
    processor: Processor,
    require: &'static str,
    jobs: usize,
    fail_fast: bool,
    slowness: f64,
    vmm: PathBuf,
    cancel: AtomicBool,
    cancel_on_start: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            kvm: true,
            processor: Processor::Hardware,
            require: "",
            jobs: 4,
            fail_fast: false,
            slowness: 1.0,
            vmm: env!("CARGO_BIN_EXE_fake-vmm").into(),
            cancel: AtomicBool::new(false),
            cancel_on_start: false,
        }
    }
}

fn run(cases: &[Case], options: &Options) -> (RunResult, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut catalog = Catalog::new();
    catalog.add("fake", Payload { path: "fake.elf".into(), tests: vec![] });
    let setup = Setup {
        environment: Default::default(),
        vmm: options.vmm.clone(),
        catalog: &catalog,
        facts: &Host { kvm: options.kvm, processor: options.processor },
        jobs: options.jobs,
        grace: GRACE,
        slowness: options.slowness,
        cancel: &options.cancel,
    };
    let require = Require::parse(options.require).expect("names");
    let collector = Collector { runs: dir.path().into(), require };
    let cancel = options.cancel_on_start.then_some(&options.cancel);
    let mut seen = Seen { started: 0, ended: 0, cancel };
    let result = runner::run(cases, &setup, &collector, options.fail_fast, &mut seen);
    assert_eq!((seen.started, seen.ended), (result.results.len(), result.results.len()));
    (result, dir)
}

const KNOWN: &str = "known_bug = \"of long standing\"";
const DEVIATES: &str = "deviates.tcg = \"no RF\"";
const NOT_RUN: &str = "deviates.tcg = { because = \"it hangs\", run = false }";

#[test]
fn every_end_has_its_outcome() {
    let table = [
        ("pass", "", Outcome::Pass, ""),
        ("fail", "", Outcome::Fail, "x.rs:1: wrong"),
        ("skip", "", Outcome::Skip, "the guest: no such feature"),
        ("error", "", Outcome::Error, "trap #PF at 0x1234"),
        ("silent", "", Outcome::Error, "never began its test"),
        ("liar", "", Outcome::Error, "the report says `fail`"),
        ("garbage", "", Outcome::Error, "is no report line"),
        ("timeout", "", Outcome::Fail, "did not end in time"),
        ("timeout", "expect = \"timeout\"", Outcome::Pass, ""),
        ("segv", "", Outcome::Error, "killed by signal 11"),
        ("status_2", "", Outcome::Error, "refused its input"),
        ("status_4", "", Outcome::Fail, "triple-faulted"),
        ("status_4", "expect = \"triple-fault\"", Outcome::Pass, ""),
        ("status_6", "expect = \"triple-fault\"", Outcome::Fail, "expected triple-fault"),
        ("status_8", "", Outcome::Fail, "every vCPU halted"),
        ("status_11", "expect = \"exit:5\"", Outcome::Pass, ""),
        ("status_14", "", Outcome::Error, "the VMM failed"),
        ("status_101", "", Outcome::Error, "wrote 50 to the exit port, which means nothing"),
        ("pass", "expect = \"halted\"", Outcome::Fail, "the guest ended and passed"),
        ("pass", "needs = [\"cpuid:x2apic\"]", Outcome::Pass, ""),
        ("pass", "needs = [\"cpuid:pcid\"]", Outcome::Skip, "needs cpuid:pcid: KVM shows no pcid"),
        (
            "pass",
            "needs = [\"cpuid:pcid\"]\nbecause = \"it flushes\"",
            Outcome::Skip,
            "needs cpuid:pcid: KVM shows no pcid; it flushes",
        ),
        ("fail", KNOWN, Outcome::Skip, "a known bug: of long standing; x.rs:1: wrong"),
        ("fail", "known_bug.kvm-intel = \"x\"", Outcome::Skip, "a known bug: x; x.rs:1: wrong"),
        ("fail", "known_bug.kvm-amd = \"x\"", Outcome::Fail, "x.rs:1: wrong"),
        ("fail", DEVIATES, Outcome::Fail, "x.rs:1: wrong"),
        ("pass", NOT_RUN, Outcome::Pass, ""),
        ("pass", KNOWN, Outcome::Pass, ""),
        ("error", KNOWN, Outcome::Error, "trap #PF at 0x1234"),
        ("liar", KNOWN, Outcome::Error, "the report says `fail`"),
        ("status_4", KNOWN, Outcome::Fail, "triple-faulted"),
        ("pass", "needs = [\"cpuid:nothing\"]", Outcome::Error, "no such feature: nothing"),
    ];
    let cases: Vec<_> = table.iter().map(|(test, more, ..)| case(test, more)).collect();
    let (result, _dir) = run(&cases, &Options::default());
    assert_eq!(result.results.len(), table.len());
    for ((test, more, outcome, reason), got) in table.iter().zip(&result.results) {
        let verdict = &got.verdict;
        assert_eq!(verdict.outcome, *outcome, "{test} {more}: {}", verdict.reason);
        assert!(verdict.reason.contains(reason), "{test} {more}: {}", verdict.reason);
        assert_eq!(verdict.reason.is_empty(), reason.is_empty(), "{test}: {}", verdict.reason);
    }
    assert!(!result.is_good());
    let values: Vec<_> = result.results[0].values.iter().map(|m| (&m.key[..], m.value)).collect();
    assert_eq!(values, [("exit_ticks", 42)]);
    assert_eq!(result.results[7].report.last().expect("a report"), "rip 0x100000");
}

#[test]
fn a_deviation_of_an_emulated_processor_is_a_skip_there() {
    let is = "a deviation of TCG: no RF; ";
    let table = [
        ("pass", DEVIATES, Outcome::Pass, ""),
        ("fail", DEVIATES, Outcome::Skip, &format!("{is}x.rs:1: wrong")[..]),
        ("error", DEVIATES, Outcome::Skip, &format!("{is}trap #PF at 0x1234")),
        ("status_4", DEVIATES, Outcome::Skip, &format!("{is}the guest triple-faulted")),
        ("status_6", DEVIATES, Outcome::Skip, &format!("{is}KVM could not run the guest on")),
        ("status_8", DEVIATES, Outcome::Skip, &format!("{is}every vCPU halted")),
        ("timeout", DEVIATES, Outcome::Skip, &format!("{is}the guest did not end in time")),
        // What is no evidence about the processor is an error there, too.
        ("silent", DEVIATES, Outcome::Error, "never began its test"),
        ("liar", DEVIATES, Outcome::Error, "the report says `fail`"),
        ("garbage", DEVIATES, Outcome::Error, "is no report line"),
        ("segv", DEVIATES, Outcome::Error, "killed by signal 11"),
        ("status_14", DEVIATES, Outcome::Error, "the VMM failed"),
        ("pass", NOT_RUN, Outcome::Skip, "a deviation of TCG: it hangs; not run there"),
        ("fail", "deviates.bochs = \"x\"", Outcome::Fail, "x.rs:1: wrong"),
        ("fail", "", Outcome::Fail, "x.rs:1: wrong"),
    ];
    let cases: Vec<_> = table.iter().map(|(test, more, ..)| case(test, more)).collect();
    let options = Options { processor: Processor::Tcg, ..Options::default() };
    let (result, _dir) = run(&cases, &options);
    for ((test, more, outcome, reason), got) in table.iter().zip(&result.results) {
        let verdict = &got.verdict;
        assert_eq!(verdict.outcome, *outcome, "{test} {more}: {}", verdict.reason);
        assert!(verdict.reason.contains(reason), "{test} {more}: {}", verdict.reason);
        let brief = got.skip.as_ref().map(|skip| skip.brief.starts_with("a deviation of TCG: "));
        assert_eq!(brief, (*outcome == Outcome::Skip).then_some(true), "{test} {more}");
        assert_eq!(got.ended.is_none(), *more == NOT_RUN, "{test} {more}");
    }
    let (result, _dir) = run(&cases, &Options { require: "deviations", ..options });
    assert_eq!((result.count(Outcome::Skip), result.count(Outcome::Pass)), (0, 1));
    let reason = &result.results[1].verdict.reason;
    assert!(reason.starts_with("required, but would skip: a deviation of TCG"), "{reason}");
}

#[test]
fn a_vmm_that_hangs_is_killed() {
    let (result, _dir) = run(&[case("hang", "")], &Options::default());
    let verdict = &result.results[0].verdict;
    assert_eq!(verdict.outcome, Outcome::Error);
    assert!(verdict.reason.contains("was killed"), "{}", verdict.reason);
}

#[test]
fn a_flood_of_output_is_bounded_in_files_and_in_the_report() {
    let (result, dir) = run(&[case("flood", "timeout = \"60s\"")], &Options::default());
    let flood = &result.results[0];
    assert_eq!(flood.verdict.outcome, Outcome::Pass, "{}", flood.verdict.reason);
    assert!(flood.serial_bytes > 64 << 20);
    for log in ["serial.log", "stderr.log"] {
        let size = dir.path().join("fake/flood").join(log).metadata().expect("a log").len();
        assert!((1..512 << 10).contains(&size), "{log} has {size} bytes");
    }
    let shown: usize = flood.serial_tail.iter().chain(&flood.report).map(String::len).sum();
    assert!(shown < 64 << 10, "{shown} bytes would be shown");
}

#[test]
fn the_machine_reaches_the_vmm_and_logs_reach_the_disk() {
    let more = "expect = \"power-off\"\n[machine]\nvcpus = 2\nmemory = \"64M\"";
    let (result, dir) = run(&[case("args", more)], &Options::default());
    assert_eq!(result.results[0].verdict.outcome, Outcome::Pass);
    let logs = dir.path().join("fake/args");
    let read = |name| std::fs::read_to_string(logs.join(name)).expect(name);
    assert_eq!(
        read("stderr.log").trim(),
        "run|--payload|fake.elf|--test|args|--cpus|2|--memory|64M|--serial|stdio|--timeout|100ms"
    );
    assert_eq!(read("serial.log"), "booting\n## begin args\n");
    assert!(read("command").contains("fake-vmm run --payload fake.elf --test args"));
}

#[test]
fn a_required_skip_is_an_error() {
    let needs = "needs = [\"cpuid:pcid\"]";
    let cases = [case("skip", ""), case("pass", needs), case("fail", KNOWN)];
    for (require, outcomes) in [
        ("kvm", [Outcome::Skip, Outcome::Skip, Outcome::Skip]),
        ("guest", [Outcome::Error, Outcome::Skip, Outcome::Skip]),
        ("cpuid:pcid", [Outcome::Skip, Outcome::Error, Outcome::Skip]),
        ("known-bugs", [Outcome::Skip, Outcome::Skip, Outcome::Error]),
        ("all", [Outcome::Error, Outcome::Error, Outcome::Error]),
    ] {
        let (result, _dir) = run(&cases, &Options { require, ..Options::default() });
        let got: Vec<_> = result.results.iter().map(|r| r.verdict.outcome).collect();
        assert_eq!(got, outcomes, "{require}");
    }
}

#[test]
fn without_kvm_all_is_skipped_or_required() {
    let cases = [case("pass", "")];
    let (result, _dir) = run(&cases, &Options { kvm: false, ..Options::default() });
    assert_eq!(result.results[0].verdict.outcome, Outcome::Skip);
    assert_eq!(result.results[0].verdict.reason, "needs kvm: no /dev/kvm");
    let (result, _dir) = run(&cases, &Options { kvm: false, require: "kvm", ..Options::default() });
    assert_eq!(result.results[0].verdict.outcome, Outcome::Error);
}

#[test]
fn cases_run_side_by_side_up_to_the_jobs() {
    // Each case passes if it meets the others before its time is over, and is broken if not.
    let meeting = |jobs: usize| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let more = format!(
            "timeout = \"{}\"\n[machine]\ncmdline = \"2 {}\"",
            if jobs > 1 { "60s" } else { "500ms" },
            dir.path().display()
        );
        let cases = [case("meet", &more), case("meet", &more)];
        run(&cases, &Options { jobs, ..Options::default() }).0
    };
    assert!(meeting(2).is_good(), "two cases on two processors must run at the same time");
    let alone = meeting(1);
    assert!(!alone.is_good(), "two cases on one processor must not run at the same time");
}

#[test]
fn fail_fast_stops_and_tells_what_was_not_run() {
    let cases = [case("fail", ""), case("pass", ""), case("skip", "")];
    let (result, _dir) = run(&cases, &Options { jobs: 1, fail_fast: true, ..Options::default() });
    assert_eq!(result.results.len(), 1);
    assert_eq!(result.not_run.iter().map(|id| &id.name[..]).collect::<Vec<_>>(), ["pass", "skip"]);
    assert!(!result.is_good());
}

#[test]
fn a_run_that_is_cancelled_ends_its_cases_and_starts_nothing_more() {
    let cases = [case("hang", "timeout = \"60s\""), case("pass", "")];
    for (before, results) in [(false, 1), (true, 0)] {
        let cancel = AtomicBool::new(before);
        let options = Options { jobs: 1, cancel, cancel_on_start: true, ..Options::default() };
        let (result, _dir) = run(&cases, &options);
        assert_eq!((result.results.len(), result.not_run.len()), (results, 2 - results));
        assert_eq!(result.count(Outcome::Error), results);
        assert!(!result.is_good());
    }
}

#[test]
fn a_vmm_that_is_not_there_is_an_error() {
    let options = Options { vmm: "/no/such/vmm".into(), ..Options::default() };
    let (result, _dir) = run(&[case("pass", "")], &options);
    let verdict = &result.results[0].verdict;
    assert_eq!(verdict.outcome, Outcome::Error);
    assert!(verdict.reason.contains("/no/such/vmm"), "{}", verdict.reason);
}
