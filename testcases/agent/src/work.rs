//! The second process: reads its job, loads modules, tells the facts and does what is asked for.

use std::fs;
use std::process::ExitCode;

use testcases::facts::Files;
use testcases::facts_table::FactsTable;
use testcases::job::{self, Job, Task};
use testcases::wire::{Hello, Message, PROTOCOL};

use crate::report::{self, Reporter};
use crate::{modules, tasks};

/// Runs as the second process. Success means that whatever came of the job was reported.
pub fn main() -> ExitCode {
    let reporter = match Reporter::start() {
        Ok(reporter) => reporter,
        Err(why) => {
            report::print(&why);
            return ExitCode::FAILURE;
        }
    };
    let hook = reporter.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.to_string();
        report::print(&format!("the agent panicked: {text}"));
        hook.panicked(&text);
    }));
    let status = work(&reporter).unwrap_or_else(|trouble| {
        reporter.send(Message::Trouble(trouble));
        1
    });
    reporter.send(Message::Bye { status });
    reporter.flush();
    ExitCode::SUCCESS
}

/// Does the job; the status that it ended with.
///
/// # Errors
/// Why it cannot be done.
fn work(reporter: &Reporter) -> Result<u8, String> {
    let files = Files::default();
    reporter.send(Message::Hello(Hello {
        protocol: PROTOCOL,
        kernel: files.kernel(),
        cmdline: files.cmdline(),
    }));
    let text = fs::read(job::PATH).map_err(|e| format!("cannot read {}: {e}", job::PATH))?;
    let job: Job = serde_json::from_slice(&text)
        .map_err(|e| format!("{} is no job: {e}; is the image of another build?", job::PATH))?;
    let troubles = modules::load(&job.modules);
    modules::spare_recovery_threads();
    let mut facts = FactsTable::collect();
    if let Err(why) = &mut facts.kvm
        && !troubles.is_empty()
    {
        *why = troubles.join("; ");
    }
    for trouble in troubles {
        reporter.send(Message::Trouble(trouble));
    }
    reporter.send(Message::Facts(Box::new(facts.clone())));
    match job.task {
        Task::Facts => Ok(0),
        Task::Cases { cases, jobs } => {
            tasks::cases(&cases, jobs, &job.environment, &facts, reporter)
        }
        Task::Images { cases, jobs } => tasks::images(&cases, jobs, &facts, reporter),
        Task::Command(words) => tasks::command(&words, reporter),
        Task::Shell => tasks::shell(),
    }
}
