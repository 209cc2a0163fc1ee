//! What an agent can be asked for.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::process::{ioctl_tiocsctty, setsid};
use testcases::case::{Case, CaseId};
use testcases::facts_table::FactsTable;
use testcases::job::IMAGES;
use testcases::kut::Suite;
use testcases::load::{self, Catalog, SELFTEST};
use testcases::process::{self, Ended};
use testcases::runner::{GRACE, Setup, Step, run_each};
use testcases::verdict::Outcome;
use testcases::wire::{Message, Speed};

use crate::report::Reporter;

/// The VMM, in the image.
const VMM: &str = "/bin/vmm";
/// The payloads.
const PAYLOADS: &str = "/payloads";
/// The cases.
const CASES: &str = "/cases";
/// The programs of a shell, if the image has them.
const BUSYBOX: &str = "/bin/busybox";
/// Names the terminals behind the console; the last one is what is written to /dev/console.
const CONSOLE: &str = "/sys/class/tty/console/active";
/// Where programs are looked for.
const PATH: &str = "/bin";

/// The least guest, as what a case says.
const LEAST: &str =
    r#"{"about": "A guest starts and ends.", "payload": "selftest::pass", "timeout": "10m"}"#;

/// A time that no command takes.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86400);

/// Runs cases, and reports each one's start and end.
pub fn cases(
    wanted: &[(u32, String)],
    jobs: usize,
    environment: &BTreeMap<String, String>,
    facts: &FactsTable,
    reporter: &Reporter,
) -> Result<u8, String> {
    let ids: Vec<&str> = wanted.iter().map(|(_, id)| &id[..]).collect();
    let cases = load::load_named(Path::new(CASES), &ids).map_err(|e| e.to_string())?;
    run(&cases, wanted, jobs, environment, facts, reporter)
}

/// Runs configurations of kvm-unit-tests in the same way.
pub fn images(
    wanted: &[(u32, String)],
    jobs: usize,
    facts: &FactsTable,
    reporter: &Reporter,
) -> Result<u8, String> {
    let suite = Suite::open(Path::new(IMAGES)).map_err(|e| e.to_string())?;
    // Whoever sent the job has chosen.
    let all = suite.cases(true);
    let named = |(_, id): &(u32, String)| {
        let case = all.iter().find(|case| case.id.to_string() == *id);
        case.cloned().ok_or_else(|| format!("{IMAGES} has no configuration `{id}`"))
    };
    let cases = wanted.iter().map(named).collect::<Result<Vec<_>, _>>()?;
    run(&cases, wanted, jobs, &BTreeMap::new(), facts, reporter)
}

/// Runs cases, each of which results name by the index beside it in `wanted`.
fn run(
    cases: &[Case],
    wanted: &[(u32, String)],
    jobs: usize,
    environment: &BTreeMap<String, String>,
    facts: &FactsTable,
    reporter: &Reporter,
) -> Result<u8, String> {
    let catalog = Catalog::of_dir(Path::new(PAYLOADS)).map_err(|e| e.to_string())?;
    let cancel = AtomicBool::new(false);
    let mut setup = Setup {
        vmm: VMM.into(),
        // The least guest is a measure: it runs without.
        environment: BTreeMap::new(),
        catalog: &catalog,
        facts,
        jobs,
        grace: GRACE,
        slowness: 1.0,
        cancel: &cancel,
    };
    if let Some(speed) = speed(&setup, reporter)? {
        setup.slowness = speed.slowness();
        reporter.send(Message::Speed(speed));
    }
    setup.environment = environment.clone();
    run_each(cases, &setup, &mut |step| {
        reporter.send(match step {
            Step::Started(at) => Message::Started { index: wanted[at].0 },
            Step::Ended(at, report) => Message::Ended { index: wanted[at].0, report },
        });
        ControlFlow::Continue(())
    });
    Ok(0)
}

/// Measures how fast guests run. `None` if none does: then every case tells why.
fn speed(setup: &Setup<'_>, reporter: &Reporter) -> Result<Option<Speed>, String> {
    let id = CaseId { area: SELFTEST.into(), name: "pass".into(), variant: None };
    let spec = serde_json::from_str(LEAST).map_err(|e| format!("the least guest: {e}"))?;
    let cases = [Case { id, file: "/".into(), spec }];
    let mut least = None;
    // The first one finds nothing of the program in memory.
    for _ in 0..2 {
        run_each(&cases, setup, &mut |step| {
            if let Step::Ended(_, report) = step {
                least = Some(report);
            }
            ControlFlow::Continue(())
        });
    }
    let Some(least) = least else { return Ok(None) };
    if least.verdict.outcome != Outcome::Pass {
        let why = format!("the least guest does not run: {}", least.verdict.reason);
        reporter.send(Message::Trouble(why));
        return Ok(None);
    }
    Ok(Some(Speed { least: least.duration }))
}

/// Runs a command, and reports what it writes.
pub fn command(words: &[String], reporter: &Reporter) -> Result<u8, String> {
    let (program, args) = words.split_first().ok_or("the job has a command without a program")?;
    install()?;
    let ended = process::run(
        Command::new(program).args(args).env("PATH", PATH),
        FOR_EVER,
        &AtomicBool::new(false),
        &mut |stream, bytes| reporter.send(Message::Output { stream, bytes: bytes.to_vec() }),
    );
    match ended {
        Ended::Exited(status) => Ok(status),
        // As a shell tells it.
        Ended::Signalled(signal) => Ok(128_u8.wrapping_add(signal as u8)),
        other => Err(other.to_string()),
    }
}

/// Is a shell on the console, until it ends.
pub fn shell() -> Result<u8, String> {
    if !Path::new(BUSYBOX).exists() {
        return Err(format!("the image has no shell: {BUSYBOX} is not there"));
    }
    install()?;
    // /dev/console cannot be what a session is controlled by; the terminal behind it can.
    let active = fs::read_to_string(CONSOLE).map_err(|e| format!("cannot read {CONSOLE}: {e}"))?;
    let name = active.split_whitespace().last().ok_or("the kernel has no console")?;
    let path = format!("/dev/{name}");
    let terminal = File::options().read(true).write(true).open(&path);
    let terminal = terminal.map_err(|e| format!("cannot open the console {path}: {e}"))?;
    let refused = |e| format!("cannot make {path} the terminal of this session: {e}");
    setsid().map_err(refused)?;
    ioctl_tiocsctty(&terminal).map_err(refused)?;
    let stdio = || terminal.try_clone().map_err(|e| format!("cannot share {path}: {e}"));
    let status = Command::new(BUSYBOX)
        .arg0("sh")
        .env("PATH", PATH)
        .stdin(stdio()?)
        .stdout(stdio()?)
        .stderr(stdio()?)
        .status()
        .map_err(|e| format!("cannot start {BUSYBOX}: {e}"))?;
    let signalled = || 128_u8.wrapping_add(status.signal().unwrap_or(0) as u8);
    Ok(status.code().map_or_else(signalled, |code| code as u8))
}

/// Puts the programs of busybox into place, if it is there.
fn install() -> Result<(), String> {
    if !Path::new(BUSYBOX).exists() {
        return Ok(());
    }
    let status = Command::new(BUSYBOX).args(["--install", "-s", PATH]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{BUSYBOX} --install: {status}")),
        Err(e) => Err(format!("cannot start {BUSYBOX}: {e}")),
    }
}
