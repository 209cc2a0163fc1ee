//! Runs cases on hosts and tells what came out: what `cargo xtask test` and `cargo xtask kut` share.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use testcases::case::Case;
use testcases::facts::HostFacts;
use testcases::facts_table::FactsTable;
use testcases::kut::Suite;
use testcases::load::Catalog;
use testcases::report::{HostRun, Place, Runs, json, junit, text};
use testcases::require::Require;
use testcases::runner::{CaseResult, Watch};

use super::out::complain;
use super::ready::{Common, Ready};
use super::sabotage;
use super::{Failure, Out, Outcome};
use crate::flags;
use crate::support;

/// What is to be run.
pub struct Chosen<'a> {
    /// The command that runs it, after `cargo xtask`: what its reports say to type.
    pub command: Vec<String>,
    /// The directory of logs, below the workspace.
    pub runs: &'a str,
    /// The cases.
    pub cases: &'a [Case],
    /// Where images of cases come from.
    pub suite: Option<&'a Suite>,
    /// The ways in which the VMM is to be wrong, if it is; all of them if none is named.
    pub sabotage: Option<&'a [String]>,
    /// The payloads.
    pub catalog: &'a Catalog,
    /// This machine.
    pub facts: &'a FactsTable,
}

/// What is checked before anything is built: a run that cannot be costs nothing.
pub struct Plan {
    hosts: Vec<flags::Host>,
    require: Require,
    reports: Reports,
}

impl Plan {
    /// Checks the flags, and creates the files of the reports.
    ///
    /// # Errors
    ///
    /// Flags that mean nothing here, or a file that cannot be created.
    pub fn new(flags: &flags::Running, facts: &FactsTable) -> Result<Plan, Failure> {
        let require = support::required(&flags.require)?;
        let hosts = hosts(flags, facts)?;
        let reports = if flags.list { Reports::default() } else { Reports::create(flags)? };
        Ok(Plan { hosts, require, reports })
    }

    /// Runs the cases on each host, and tells what came out.
    ///
    /// # Errors
    ///
    /// A host cannot be made ready, or a report cannot be written.
    pub fn run(self, flags: &flags::Running, chosen: &Chosen<'_>, out: &mut Out) -> Outcome {
        let Plan { hosts, require, reports } = self;
        let cancel = support::cancel_flag()?;
        let common = Common {
            root: &support::root(),
            chosen,
            require,
            make: &flags.make,
            jobs: flags.jobs.map(usize::from),
            fail_fast: flags.fail_fast,
            cancel: &cancel,
        };
        if let Some(names) = chosen.sabotage {
            return sabotage::run(names, &hosts, &common, reports.json, out);
        }
        let ready = hosts.iter().map(|host| Ready::new(*host, hosts.len() > 1, &common));
        let runs = run_all(ready.collect::<Result<Vec<_>, _>>()?, chosen.cases, &common, out);
        // The summary first: a report that cannot be written must not cost what came of the run.
        write!(out, "\n{}", text::summary(&runs));
        reports.write(&runs)?;
        Ok(if runs.is_good() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

/// The hosts to run on, each once, in the order of the report's columns.
///
/// # Errors
///
/// Flags that mean nothing on these hosts.
fn hosts(flags: &flags::Running, facts: &FactsTable) -> Result<Vec<flags::Host>, Failure> {
    use flags::Host;
    let mut hosts = flags.host.clone();
    if hosts.contains(&Host::All) {
        hosts = vec![Host::Kvm, Host::Amd, Host::Intel];
    }
    if let (true, Err(why)) = (hosts.is_empty(), facts.kvm()) {
        complain(format_args!(
            "/dev/kvm cannot be used ({why}), so cases run on the emulated host amd; --host chooses"
        ));
        hosts.push(Host::Amd);
    }
    if hosts.is_empty() {
        hosts.push(Host::Kvm);
    }
    hosts.sort_unstable();
    hosts.dedup();
    if flags.make.deterministic && hosts != [Host::Amd] {
        return Err(Failure::input(
            "--deterministic is for host amd alone: give it with --host amd",
        ));
    }
    if let (Some(device), true) = (flags.make.device.first(), hosts != [Host::Amd]) {
        return Err(Failure::input(format!(
            "--device {device} is for host amd alone: give it with --host amd"
        )));
    }
    if let (true, Some(param)) = (hosts.contains(&Host::Kvm), flags.make.kvm_param.first()) {
        return Err(Failure::input(format!(
            "--kvm-param {param} is for emulated hosts: add --host amd or intel. The modules of this \
             machine's own KVM are yours to load: modprobe -r them, and modprobe them with {param}"
        )));
    }
    Ok(hosts)
}

/// Runs the cases on each host in turn.
fn run_all(hosts: Vec<Ready<'_>>, cases: &[Case], common: &Common<'_>, out: &mut Out) -> Runs {
    let (started, start) = (SystemTime::now(), Instant::now());
    let mut progress = Progress::new(hosts.len() * cases.len(), out);
    let mut done: Vec<HostRun> = Vec::new();
    for host in hosts {
        let cancelled = common.cancel.load(Ordering::Relaxed);
        let failed = common.fail_fast && done.iter().any(|host| !host.run.is_good());
        done.push(if cancelled || failed {
            host.leave_out(cases)
        } else {
            let place = host.place.clone();
            host.run(cases, &mut progress.on(&place))
        });
    }
    progress.bar.finish_and_clear();
    Runs { started, duration: start.elapsed(), hosts: done }
}

/// The report files, created before the run: a path that is no good must not cost one.
#[derive(Default)]
struct Reports {
    junit: Option<(PathBuf, File)>,
    json: Option<(PathBuf, File)>,
}

impl Reports {
    fn create(flags: &flags::Running) -> Result<Reports, Failure> {
        if flags.junit.is_some() && flags.junit == flags.json {
            return Err(Failure::input("--junit and --json name one file; give each its own"));
        }
        let create = |path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => match File::create(path) {
                Ok(file) => Ok(Some((path.clone(), file))),
                Err(e) => Err(cannot_write(path, e)),
            },
        };
        Ok(Reports { junit: create(&flags.junit)?, json: create(&flags.json)? })
    }

    fn write(self, runs: &Runs) -> Result<(), Failure> {
        if let Some((path, mut file)) = self.junit {
            let text = junit::write(runs).map_err(|e| cannot_write(&path, e))?;
            file.write_all(text.as_bytes()).map_err(|e| cannot_write(&path, e))?;
        }
        if let Some((path, mut file)) = self.json {
            let text = json::write(runs).map_err(|e| cannot_write(&path, e))?;
            file.write_all(text.as_bytes()).map_err(|e| cannot_write(&path, e))?;
        }
        Ok(())
    }
}

fn cannot_write(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::input(format!("cannot write the report {}: {why}", path.display()))
}

/// Tells the course of a run: a line a case, and on a terminal a bar below that names what runs now.
struct Progress<'a> {
    out: &'a mut Out,
    bar: ProgressBar,
    running: Vec<String>,
}

impl<'a> Progress<'a> {
    fn new(cases: usize, out: &'a mut Out) -> Progress<'a> {
        // Where standard error is no terminal, the bar draws nothing.
        let bar = ProgressBar::with_draw_target(Some(cases as u64), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("[{elapsed}] {pos}/{len} {wide_msg}");
        bar.set_style(style.expect("the template is constant and right"));
        bar.enable_steady_tick(Duration::from_millis(500));
        Progress { out, bar, running: Vec::new() }
    }

    /// Watches the cases of this host.
    fn on<'b>(&'b mut self, place: &'b Place) -> OnHost<'b, 'a> {
        OnHost { progress: self, place }
    }

    fn tell(&mut self) {
        self.bar.set_message(self.running.join(" "));
    }
}

/// The progress of one host.
struct OnHost<'b, 'a> {
    progress: &'b mut Progress<'a>,
    place: &'b Place,
}

impl Watch for OnHost<'_, '_> {
    fn started(&mut self, case: &Case) {
        self.progress.running.push(case.id.to_string());
        self.progress.tell();
    }

    fn ended(&mut self, result: &CaseResult) {
        let Progress { out, bar, running } = &mut *self.progress;
        let id = result.case.id.to_string();
        running.retain(|running| *running != id);
        bar.suspend(|| {
            writeln!(out, "{}", text::line(result, self.place));
            if result.verdict.outcome.is_bad() {
                writeln!(out, "{}", text::details(result, self.place));
            }
        });
        bar.inc(1);
        self.progress.tell();
    }
}
