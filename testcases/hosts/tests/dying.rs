//! How hosts die, against a stand-in for QEMU: what was reported counts, what was running is an error,
//! the rest gets one more boot, and nothing is left running. Needs neither an emulator nor a kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hosts::device::Devices;
use hosts::machine::{Emulator, Machine};
use hosts::modules::Module;
use hosts::name::Name;
use hosts::pieces::{Kernel, Program};
use hosts::plan::Params;
use hosts::run::{self, Setup};
use hosts::session::Patience;
use testcases::case::{Case, CaseId};
use testcases::require::Require;
use testcases::runner::{CaseResult, Collector, RunResult, Watch};
use testcases::verdict::Outcome::{self, Error, Fail, Pass};

/// For a host that is to be found out: longer than what a busy machine does at once.
const SHORT: Duration = Duration::from_secs(1);

/// A machine with its directory.
struct World {
    dir: PathBuf,
    machine: Machine,
    /// What goes away at the end.
    _temporary: Option<tempfile::TempDir>,
}

/// A machine that plays these acts; see the stand-in.
fn world(acts: &str) -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let world = world_in(dir.path(), acts);
    World { _temporary: Some(dir), ..world }
}

fn world_in(dir: &Path, acts: &str) -> World {
    fs::create_dir_all(dir.join("log")).expect("a directory");
    fs::write(dir.join("image"), "").expect("a file");
    fs::write(dir.join("vmlinuz"), "kernel").expect("a file");
    let fake = Program {
        path: env!("CARGO_BIN_EXE_fake-qemu").into(),
        loader: None,
        env: vec![
            ("FAKE_ACTS".into(), acts.into()),
            ("FAKE_LOG".into(), dir.join("log").into_os_string()),
        ],
        data: vec![],
        version: "0".into(),
        origin: "a test".into(),
    };
    let kvm = Module { name: "kvm".into(), depends: vec![], parameters: vec![], elf: Some(vec![]) };
    let machine = Machine {
        name: Name::Amd,
        emulator: Emulator::Qemu(fake),
        kernel: Kernel {
            image: dir.join("vmlinuz"),
            modules: dir.join("modules"),
            release: "6.1".into(),
            origin: "a test".into(),
        },
        image: dir.join("image"),
        digest: "0".into(),
        modules: vec![kvm],
        cache: dir.join("cache"),
        memory: 64,
        cpus: 1,
        jobs: 1,
        deterministic: false,
        environment: Default::default(),
        devices: Devices::NONE,
        command_line: vec![],
        patience: Patience::default(),
    };
    World { dir: dir.to_path_buf(), machine, _temporary: None }
}

/// What is done while a run goes on.
struct Seen<'a> {
    /// Is set once this many cases have started.
    cancel: Option<(usize, &'a AtomicBool)>,
    started: usize,
    ended: Vec<String>,
}

impl Watch for Seen<'_> {
    fn started(&mut self, _: &Case) {
        self.started += 1;
        if let Some((count, cancel)) = self.cancel
            && self.started == count
        {
            cancel.store(true, Ordering::Relaxed);
        }
    }
    fn ended(&mut self, result: &CaseResult) {
        self.ended.push(result.case.id.to_string());
    }
}

impl World {
    fn run(&self, cases: &[Case]) -> RunResult {
        self.run_with(cases, false, None)
    }

    /// Runs cases; stops once `cancel` of them have started.
    fn run_with(&self, cases: &[Case], fail_fast: bool, cancel: Option<usize>) -> RunResult {
        let collector = Collector { runs: self.dir.join("runs"), require: Require::default() };
        let flag = AtomicBool::new(false);
        let params = Params::default();
        let setup = Setup {
            suite: None,
            params: &params,
            with_device: Err("not in this test".into()),
            machines: 1,
            collector: &collector,
            fail_fast,
            cancel: &flag,
        };
        let cancel = cancel.map(|count| (count, &flag));
        let mut seen = Seen { cancel, started: 0, ended: vec![] };
        let result = run::run(&self.machine, cases, &setup, &mut seen);
        let told = seen.ended.len();
        seen.ended.sort();
        seen.ended.dedup();
        assert_eq!((told, seen.ended.len()), (result.results.len(), told), "each is told once");
        for (boot, text) in self.boots("") {
            let pid = text.split(' ').next().expect("a process id");
            assert!(!Path::new("/proc").join(pid).exists(), "{boot} left process {pid} running");
        }
        result
    }

    /// What boots of one kind left behind them, by name.
    fn boots(&self, kind: &str) -> Vec<(String, String)> {
        let entries = fs::read_dir(self.dir.join("log")).expect("a directory");
        let names = entries.map(|e| e.expect("an entry").file_name().into_string().expect("text"));
        let mut names: Vec<_> = names.filter(|name| name.starts_with(kind)).collect();
        names.sort();
        let read = |name: &String| fs::read_to_string(self.dir.join("log").join(name));
        names.into_iter().map(|name| (name.clone(), read(&name).expect("a file"))).collect()
    }

    /// How many boots asked for facts, and how many ran cases.
    fn count(&self) -> (usize, usize) {
        (self.boots("facts").len(), self.boots("cases").len())
    }

    /// The directories of boots that are there still.
    fn left(&self) -> usize {
        fs::read_dir(self.dir.join("cache/boots")).expect("a directory").count()
    }
}

fn case(name: &str, needs: &[&str]) -> Case {
    let text = format!("about = \"x\"\npayload = \"fake::test\"\nneeds = {needs:?}\n");
    let id = CaseId { area: "a".into(), name: name.into(), variant: None };
    Case { id, file: "x.toml".into(), spec: toml::from_str(&text).expect("a case") }
}

fn cases(names: &[&str]) -> Vec<Case> {
    names.iter().map(|name| case(name, &[])).collect()
}

/// Five cases.
fn five() -> Vec<Case> {
    cases(&["v", "w", "x", "y", "z"])
}

fn outcomes(run: &RunResult) -> Vec<Outcome> {
    run.results.iter().map(|result| result.verdict.outcome).collect()
}

/// Checks what is told of a case: each of these is in its reason or in what is shown with it.
#[track_caller]
fn says(result: &CaseResult, reason: &[&str], report: &[&str]) {
    let said = &result.verdict.reason;
    reason.iter().for_each(|part| assert!(said.contains(part), "`{part}` in {said}"));
    let shown = result.report.join("\n");
    report.iter().for_each(|part| assert!(shown.contains(part), "`{part}` in {shown}"));
}

#[test]
fn a_host_is_asked_once_what_it_offers() {
    let world = world("well");
    let run = world.run(&cases(&["x", "y", "fail"]));
    assert_eq!((outcomes(&run), world.count()), (vec![Pass, Pass, Fail], (1, 1)));
    let run = world.run(&five());
    assert_eq!((outcomes(&run), world.count()), (vec![Pass; 5], (1, 2)));
    assert_eq!(world.left(), 0);
}

#[test]
fn a_host_that_is_killed_keeps_what_it_reported_and_the_rest_gets_another_one() {
    let world = world("kill:2;well");
    let run = world.run(&five());
    assert_eq!(outcomes(&run), [Pass, Pass, Error, Pass, Pass]);
    assert_eq!(world.count(), (1, 2));
    let reason = ["while the case ran, host amd died", "signal 9"];
    says(&run.results[2], &reason, &["this is the fake's console", "its files are kept in"]);
    assert_eq!(world.left(), 1, "what the dead one wrote is kept");
}

#[test]
fn there_is_no_third_boot() {
    let world = world("kill:1;kill:1;well");
    let run = world.run(&five());
    assert_eq!(outcomes(&run), [Pass, Error, Pass, Error, Error]);
    assert_eq!(world.count(), (1, 2));
    says(&run.results[3], &["while the case ran"], &["the fake's console"]);
    says(&run.results[4], &["before the case began, for the second time", "signal 9"], &[]);
}

#[test]
fn a_panic_shows_the_end_of_the_console() {
    let world = world("panic:0;well");
    let run = world.run(&five());
    assert_eq!(outcomes(&run), [Error, Pass, Pass, Pass, Pass]);
    says(&run.results[0], &["went away before it was done"], &["| Kernel panic - not syncing"]);
}

#[test]
fn half_a_report_is_none() {
    let world = world("half:1;well");
    let run = world.run(&five());
    assert_eq!(outcomes(&run), [Pass, Error, Pass, Pass, Pass]);
    says(&run.results[1], &["while the case ran"], &["between its messages", "XL"]);
}

#[test]
fn a_host_that_hangs_is_killed() {
    let mut world = world("hang:1;well");
    world.machine.facts(&Params::default(), &[]).expect("facts");
    world.machine.patience = Patience { silence: SHORT, ..Patience::default() };
    let run = world.run(&five());
    assert_eq!(outcomes(&run), [Pass, Error, Pass, Pass, Pass]);
    assert_eq!(world.count(), (1, 2));
    says(&run.results[1], &["it hangs: its agent gave no sign of life"], &["the fake's console"]);
}

#[test]
fn garbage_without_end_is_no_sign_of_life() {
    let mut world = world("flood:1;well");
    world.machine.patience = Patience { silence: SHORT, ..Patience::default() };
    let run = world.run(&five());
    assert_eq!(outcomes(&run), [Pass, Error, Pass, Pass, Pass]);
    says(&run.results[1], &["it hangs"], &["between its messages"]);
}

#[test]
fn a_host_that_never_reports_is_given_up_after_two_tries() {
    let mut world = world("silent");
    world.machine.facts(&Params::default(), &[]).expect("facts");
    world.machine.patience = Patience { boot: SHORT, ..Patience::default() };
    let run = world.run(&cases(&["x", "y"]));
    assert_eq!((outcomes(&run), world.count()), (vec![Error; 2], (1, 2)));
    let reason = "before the case began, for the second time, host amd was stopped: it did not \
                  finish booting within 1 s";
    says(&run.results[0], &[reason], &["the fake's console"]);
}

#[test]
fn an_emulator_that_gives_up_is_quoted() {
    let world = world("gone");
    let run = world.run(&cases(&["x", "y"]));
    assert_eq!((outcomes(&run), world.count()), (vec![Error; 2], (1, 2)));
    let reason = ["it went away before it had booted", "status 3"];
    says(&run.results[0], &reason, &["its emulator says", "| the fake gives up at once"]);
    let mut world = world_in(&world.dir.join("other"), "well");
    let Emulator::Qemu(fake) = &mut world.machine.emulator else { panic!("QEMU") };
    fake.path = "/no/such/qemu".into();
    let run = world.run(&cases(&["x"]));
    says(&run.results[0], &["its emulator cannot be started: /no/such/qemu"], &[]);
}

#[test]
fn what_stands_between_messages_and_what_is_said_twice_does_no_harm() {
    for act in ["garbage", "twice", "stranger"] {
        let world = world(act);
        let run = world.run(&five());
        assert_eq!((outcomes(&run), world.count()), (vec![Pass; 5], (1, 1)), "{act}");
    }
}

#[test]
fn a_host_that_is_done_too_early_owes_its_cases() {
    let world = world("unfinished:1");
    let run = world.run(&five());
    assert_eq!(outcomes(&run), [Pass, Error, Error, Error, Error]);
    assert_eq!(world.count(), (1, 1), "it would do the same again");
    says(&run.results[1], &["while the case ran, host amd ended as it should"], &["console"]);
    says(&run.results[2], &["before the case began, host amd ended as it should"], &[]);
}

#[test]
fn what_the_agent_complains_of_is_the_reason() {
    let world = world("trouble:1;trouble");
    let run = world.run(&cases(&["x", "y"]));
    assert_eq!((outcomes(&run), world.count()), (vec![Pass, Error], (1, 2)));
    says(&run.results[1], &["gave up, with status 1: the fake has no payloads"], &["its agent"]);
}

#[test]
fn an_agent_of_another_build_is_told_apart() {
    let world = world("protocol");
    let run = world.run(&cases(&["x"]));
    assert_eq!(outcomes(&run), [Error]);
    says(&run.results[0], &["speaks protocol", "`cargo xtask host setup` makes a new image"], &[]);
}

#[test]
fn a_host_that_is_done_and_does_not_end_is_killed() {
    let mut world = world("stay");
    world.machine.patience = Patience { leave: SHORT, ..Patience::default() };
    let run = world.run(&five());
    assert_eq!((outcomes(&run), world.count()), (vec![Pass; 5], (1, 1)));
}

#[test]
fn cases_with_other_parameters_have_a_boot_of_their_own() {
    let world = world("well");
    let chosen = [
        case("p", &["module:kvm.ignore_msrs=Y"]),
        case("q", &[]),
        case("r", &["module:kvm.forced=Y"]),
        case("s", &["module:kvm.ignore_msrs=Y"]),
        case("t", &["module:kvm.ignore_msrs=N"]),
    ];
    let run = world.run(&chosen);
    assert_eq!((outcomes(&run), world.count()), (vec![Pass; 5], (3, 3)));
    let boots = world.boots("cases");
    let with = |words: &str| boots.iter().filter(|(_, text)| text.contains(words)).count();
    assert_eq!([with("ignore_msrs=Y"), with("forced=Y"), with("{\"kvm\": \"\"}")], [1, 1, 1]);
}

#[test]
fn parameters_that_break_a_host_cost_only_the_cases_that_need_them() {
    let world = world("well");
    let chosen =
        [case("p", &["module:kvm.broken=Y"]), case("q", &[]), case("r", &["module:kvm.forced=Y"])];
    let run = world.run(&chosen);
    assert_eq!((outcomes(&run), world.count()), (vec![Error, Pass, Pass], (3, 2)));
    says(&run.results[0], &["host amd has no usable KVM: kvm is broken"], &["the fake's console"]);
}

#[test]
fn a_cancelled_run_ends_and_leaves_nothing() {
    let world = world("hang:2");
    let run = world.run_with(&five(), false, Some(3));
    assert_eq!((outcomes(&run), run.not_run.len()), (vec![Pass; 2], 3));
    assert_eq!((world.count(), world.left()), ((1, 1), 0));
}

#[test]
fn the_first_fail_stops_a_host_that_would_go_on() {
    let world = world("hang:1");
    let run = world.run_with(&cases(&["fail", "x", "y"]), true, None);
    assert_eq!((outcomes(&run), run.not_run.len()), (vec![Fail], 2));
    assert_eq!((world.count(), world.left()), ((1, 1), 0));
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error_of_every_case() {
    let world = world("well");
    world.machine.facts(&Params::default(), &[]).expect("facts");
    fs::remove_dir(world.dir.join("cache/boots")).expect("an empty directory");
    fs::write(world.dir.join("cache/boots"), "").expect("a file");
    let run = world.run(&five());
    assert_eq!((outcomes(&run), world.count()), (vec![Error; 5], (1, 0)));
    says(&run.results[0], &["cannot make the directory", "/boots", "is the disk full"], &[]);
}

#[test]
fn an_emulator_does_not_outlive_a_run_that_is_killed() {
    // The test itself, started again, is the run.
    const MARK: &str = "EXITLAB_TEST_RUN";
    if let Some(dir) = std::env::var_os(MARK) {
        world_in(Path::new(&dir), "hang").run(&five());
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut run = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "an_emulator_does_not_outlive_a_run_that_is_killed"])
        .env(MARK, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("this program again");
    // Whether this comes to be within so many hundredths of a second.
    let soon = |condition: &dyn Fn() -> bool| {
        (0..6000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            condition()
        })
    };
    let text = || fs::read_to_string(dir.path().join("log/cases-0")).unwrap_or_default();
    assert!(soon(&|| text().contains('{')), "no host was booted: {:?}", run.try_wait());
    let pid = text().split(' ').next().expect("a process id").to_string();
    let lives = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    };
    assert!(lives());
    run.kill().expect("it runs");
    run.wait().expect("a status");
    assert!(soon(&|| !lives()), "process {pid} outlived the run");
}
