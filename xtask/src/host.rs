//! `cargo xtask host`: emulated hosts for people: sets them up, lists them, gives a shell, runs a
//! command.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use hosts::machine::Machine;
use hosts::name::Name;
use hosts::plan::Params;
use hosts::programs::Kind;
use testcases::facts::HostFacts;
use testcases::job::Task;
use testcases::process::Stream;
use testcases::wire::Message;
use vmm::host::child::die_with_parent;

use crate::flags::{self, HostAction};
use crate::support::emulated::{self, Workshop};
use crate::support::out::complain;
use crate::support::ready::failure;
use crate::support::{self, Failure, Out, Outcome};

/// Runs the command.
pub fn run(flags: &flags::HostCommand, out: &mut Out) -> Outcome {
    match &flags.action {
        HostAction::Setup { names, make } => {
            let mut names: Vec<Name> = names.iter().map(|&name| name.into()).collect();
            if names.is_empty() {
                names = Name::ALL.to_vec();
            }
            with(make, |shop| {
                for &name in &names {
                    let (machine, params) = emulated::machine(name, shop)?;
                    let facts = machine.facts(&params, &[shop.cancel]).map_err(failure)?;
                    tell(&machine, out);
                    writeln!(out, "  ready: {}, Linux {}", facts.flavour(), facts.kernel);
                }
                Ok(ExitCode::SUCCESS)
            })
        }
        HostAction::List { make } => list(make, out),
        HostAction::Shell { name, make } => with(make, |shop| {
            let (machine, params) = emulated::machine((*name).into(), shop)?;
            shell(&machine, &params)
        }),
        HostAction::Run { name, make, command } => with(make, |shop| {
            let (machine, params) = emulated::machine((*name).into(), shop)?;
            command_on(&machine, &params, command, shop, out)
        }),
    }
}

/// Does something that takes the payloads and can be cancelled.
fn with(make: &flags::Make, work: impl FnOnce(&Workshop<'_>) -> Outcome) -> Outcome {
    let root = support::root();
    let catalog = support::payloads(&root)?;
    let cancel = support::cancel_flag()?;
    work(&Workshop { root: &root, catalog: &catalog, make, kind: Kind::Cases, cancel: &cancel })
}

/// What a machine is made of.
fn tell(machine: &Machine, out: &mut Out) {
    let program = machine.emulator.program();
    writeln!(out, "{}: {}", machine.name, machine.name.about());
    writeln!(
        out,
        "  {} {}: {}, {}",
        machine.emulator.name(),
        program.version,
        program.origin,
        program.path.display()
    );
    let kernel = &machine.kernel;
    writeln!(out, "  kernel {}: {}, {}", kernel.release, kernel.origin, kernel.image.display());
    writeln!(out, "  image {}", machine.image.display());
    let (cpus, memory) = (machine.cpus, machine.memory);
    writeln!(out, "  {cpus} processors, {memory} MiB of memory");
}

/// Lists the hosts that there are.
fn list(make: &flags::Make, out: &mut Out) -> Outcome {
    let own = testcases::facts_table::FactsTable::collect();
    match own.kvm() {
        Ok(()) => writeln!(out, "kvm: this machine's own /dev/kvm\n  {}", own.flavour()),
        Err(why) => writeln!(out, "kvm: not usable here: {why}"),
    }
    with(make, |shop| {
        for name in Name::ALL {
            let missing = emulated::missing(name, make);
            if let Some(why) = missing {
                writeln!(out, "{name}: {}\n  not set up: {why}", name.about());
                writeln!(out, "  `cargo xtask host setup {name}` does it");
                continue;
            }
            let (machine, params) = emulated::machine(name, shop)?;
            tell(&machine, out);
            match machine.known_facts(&params).map_err(failure)? {
                Some(facts) => {
                    let params: Vec<String> = facts.params.iter().flat_map(shown).collect();
                    writeln!(out, "  {} on {}", facts.flavour(), facts.cpu);
                    writeln!(out, "  module parameters: {}", params.join(" "));
                }
                None => writeln!(out, "  not booted yet"),
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A module's parameters as `module.name=value`.
fn shown((module, params): (&String, &std::collections::BTreeMap<String, String>)) -> Vec<String> {
    params.iter().map(|(name, value)| format!("{module}.{name}={value}")).collect()
}

/// Boots a host with a shell on its console, which is this terminal.
fn shell(machine: &Machine, params: &Params) -> Outcome {
    let terminal = support::terminal::Kept::take();
    let device = terminal.as_ref().map(|kept| kept.path.clone());
    if device.is_none() && machine.name == Name::Intel {
        return Err(Failure::input(
            "`host shell intel` wants a terminal as its standard input; `cargo xtask host run intel \
             -- COMMAND` runs a command without one",
        ));
    }
    let device = device.unwrap_or_default();
    let mut prepared = machine.prepare(Task::Shell, params, Some(&device)).map_err(failure)?;
    complain(format_args!(
        "host {}: {}; `exit` switches it off. vmm, /payloads and busybox's programs are there.",
        machine.name,
        machine.name.about()
    ));
    let dir = prepared.dir.path().to_path_buf();
    let said = |name: &str| {
        let path = dir.join(name);
        std::fs::File::create(&path)
            .map_err(|e| Failure::input(format!("cannot write {}: {e}", path.display())))
    };
    if machine.name == Name::Intel {
        // The console is the terminal; what Bochs prints would come in between.
        prepared.command.stdout(said("results")?).stderr(said("stderr")?);
    }
    die_with_parent(&mut prepared.command);
    let status = prepared.command.status();
    drop(terminal);
    status.map_err(|e| Failure::bad(format!("the emulator cannot be started: {e}")))?;
    let told = std::fs::read(dir.join("results")).unwrap_or_default();
    ended(&told, machine, &dir)
}

/// What the agent told of the end of a shell.
fn ended(told: &[u8], machine: &Machine, dir: &Path) -> Outcome {
    let mut decoder = testcases::wire::Decoder::default();
    let mut messages = decoder.push(told);
    messages.extend(decoder.finish());
    let mut status = None;
    for envelope in messages {
        match envelope.message {
            Message::Trouble(text) => complain(text),
            Message::Bye { status: said } => status = Some(said),
            _ => {}
        }
    }
    match status {
        Some(status) => Ok(ExitCode::from(status)),
        None => {
            let stderr = std::fs::read_to_string(dir.join("stderr")).unwrap_or_default();
            Err(Failure::bad(format!(
                "host {} went away before its shell ended\n{stderr}",
                machine.name
            )))
        }
    }
}

/// Runs a command on a host.
fn command_on(
    machine: &Machine,
    params: &Params,
    words: &[String],
    shop: &Workshop<'_>,
    out: &mut Out,
) -> Outcome {
    let status = emulated::command(machine, params, words, shop.cancel, &mut |stream, bytes| {
        match stream {
            Stream::Out => out.bytes(bytes),
            // A closed standard error is no reason to fail.
            Stream::Err => drop(std::io::stderr().write_all(bytes)),
        }
    })?;
    Ok(ExitCode::from(status))
}
