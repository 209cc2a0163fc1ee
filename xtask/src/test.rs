//! `cargo xtask test`: builds what cases need, runs them, and tells what came out.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use testcases::case::Case;
use testcases::facts::HostFacts;
use testcases::facts_table::FactsTable;
use testcases::load;
use testcases::program;
use testcases::report::{HostInfo, json, junit, text};
use testcases::runner::{self, CaseResult, Collector, RunResult, Setup, Watch};
use testcases::select::select;

use crate::flags;
use crate::support::out::complain;
use crate::support::{self, Failure, Out, Outcome};

/// Runs the command.
pub fn run(flags: &flags::Test, out: &mut Out) -> Outcome {
    let flags::Host::Kvm = flags.host;
    let require = support::required(&flags.require)?;
    let root = support::root();
    let dir = root.join("testcases/cases");
    let facts = FactsTable::collect();
    let cases = load::load(&dir).map_err(|e| Failure::input(format!("bad cases:\n{e}")))?;
    // A wrong filter is told before anything is built.
    let chosen = select(&cases, &flags.filters, flags.exact).map_err(Failure::input)?;
    let catalog = support::payloads(&root)?;
    load::check(&dir, &cases, &catalog, &facts)
        .map_err(|e| Failure::input(format!("bad cases:\n{e}")))?;
    if flags.list {
        chosen.iter().for_each(|case| writeln!(out, "{}: {}", case.id, case.spec.about.0));
        writeln!(out, "{} cases", chosen.len());
        return Ok(ExitCode::SUCCESS);
    }
    if let Err(why) = facts.kvm() {
        complain(format_args!(
            "\nwarning: NO GUEST WILL RUN: {why}\n`cargo xtask doctor` tells what to do\n"
        ));
    }
    let cancel = support::cancel_flag()?;
    let vmm = program::build_vmm(&root, &support::cargo(), &cancel).map_err(Failure::bad)?;
    let setup = Setup {
        vmm,
        catalog: &catalog,
        facts: &facts,
        // A case waits for about as long as it computes: for its timers, and for KVM to take a VM apart.
        jobs: flags.jobs.map_or_else(|| 2 * facts.cpus(), usize::from),
        grace: runner::GRACE,
        slowness: 1.0,
        cancel: &cancel,
    };
    let collector = Collector { runs: root.join("target/test-runs"), require };
    let mut progress = Progress::new(chosen.len(), out);
    let result = runner::run(&chosen, &setup, &collector, flags.fail_fast, &mut progress);
    progress.bar.finish_and_clear();
    let host = HostInfo::from(&facts);
    // The summary first: a report that cannot be written must not cost what came of the run.
    write!(out, "\n{}", text::summary(&result));
    write_reports(flags, &result, &host)?;
    Ok(if result.is_good() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn write_reports(flags: &flags::Test, run: &RunResult, host: &HostInfo) -> Result<(), Failure> {
    let write = |path: &Path, report: Result<String, String>| {
        let tell = |e: String| format!("cannot write the report {}: {e}", path.display());
        let text = report.map_err(|e| Failure::input(tell(e)))?;
        fs::write(path, text).map_err(|e| Failure::input(tell(e.to_string())))
    };
    if let Some(path) = &flags.junit {
        write(path, junit::write(run, host).map_err(|e| e.to_string()))?;
    }
    if let Some(path) = &flags.json {
        write(path, json::write(run, host).map_err(|e| e.to_string()))?;
    }
    Ok(())
}

/// Tells the course of a run: a line a case, and on a terminal a bar below that names what runs now.
struct Progress<'a> {
    out: &'a mut Out,
    bar: ProgressBar,
    running: Vec<String>,
}

impl Progress<'_> {
    fn new(cases: usize, out: &mut Out) -> Progress<'_> {
        // Where standard error is no terminal, the bar draws nothing.
        let bar = ProgressBar::with_draw_target(Some(cases as u64), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("[{elapsed}] {pos}/{len} {wide_msg}");
        bar.set_style(style.expect("the template is constant and right"));
        bar.enable_steady_tick(Duration::from_millis(500));
        Progress { out, bar, running: Vec::new() }
    }

    fn tell(&mut self) {
        self.bar.set_message(self.running.join(" "));
    }
}

impl Watch for Progress<'_> {
    fn started(&mut self, case: &Case) {
        self.running.push(case.id.to_string());
        self.tell();
    }

    fn ended(&mut self, result: &CaseResult) {
        let id = result.case.id.to_string();
        self.running.retain(|running| *running != id);
        self.bar.suspend(|| {
            writeln!(self.out, "{}", text::line(result));
            if result.verdict.outcome.is_bad() {
                writeln!(self.out, "{}", text::details(result));
            }
        });
        self.bar.inc(1);
        self.tell();
    }
}
