//! Hosts that are ready to run cases: the machine's own KVM, and emulated ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use hosts::machine::{HostError, Machine};
use hosts::name::Name;
use hosts::plan::{self, Params};
use hosts::programs;
use hosts::run;
use testcases::case::Case;
use testcases::facts::HostFacts;
use testcases::kut::Suite;
use testcases::program;
use testcases::report::{HostInfo, HostRun, Place};
use testcases::require::Require;
use testcases::runner::{self, Collector, RunResult, Setup, Watch};

use super::emulated::{self, Workshop};
use super::out::complain;
use super::running::Chosen;
use super::{Failure, cargo};
use crate::flags;

/// The device that a host gets for cases that need one for vfio-pci.
const DEVICE: &str = "e1000e:vfio";

/// What the hosts of a run have in common.
pub struct Common<'a> {
    /// The workspace.
    pub root: &'a Path,
    /// What will be run.
    pub chosen: &'a Chosen<'a>,
    /// The skips that are errors.
    pub require: Require,
    /// What emulated hosts are made of.
    pub make: &'a flags::Make,
    /// How many vCPUs run side by side, if the user says.
    pub jobs: Option<usize>,
    /// Whether the first fail or error stops a run.
    pub fail_fast: bool,
    /// Becomes true when the run is to stop at once.
    pub cancel: &'a AtomicBool,
}

/// An emulated host.
struct Emulated<'a> {
    machine: Machine,
    params: Params,
    /// The same with a device for vfio-pci, if a case needs that; or why it cannot be had.
    with_device: Result<Machine, String>,
    suite: Option<&'a Suite>,
    cancel: &'a AtomicBool,
}

/// A host with all that it takes to run cases there: nothing is built or fetched any more.
pub struct Ready<'a> {
    /// How reports name it.
    pub place: Place,
    info: HostInfo,
    collector: Collector,
    fail_fast: bool,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Own(Setup<'a>),
    Emulated(Box<Emulated<'a>>),
}

impl<'a> Ready<'a> {
    /// Makes a host ready. `among_others`: whether the run has several.
    ///
    /// # Errors
    ///
    /// Something cannot be built or had. That the machine's own KVM cannot be used is only a
    /// warning: its cases tell.
    pub fn new(
        host: flags::Host,
        among_others: bool,
        common: &Common<'a>,
    ) -> Result<Ready<'a>, Failure> {
        let (place, info, kind) = match host {
            flags::Host::Kvm | flags::Host::All => {
                let command = common.chosen.command.clone();
                let place = Place { among_others, command, ..Place::own() };
                let info = HostInfo::new(&place, common.chosen.facts);
                (place, info, Kind::Own(own_kvm(common)?))
            }
            flags::Host::Amd => emulated(Name::Amd, among_others, common)?,
            flags::Host::Intel => emulated(Name::Intel, among_others, common)?,
        };
        let runs = common.root.join(common.chosen.runs).join(&place.name);
        let collector = Collector { runs, require: common.require.clone() };
        Ok(Ready { place, info, collector, fail_fast: common.fail_fast, kind })
    }

    /// Sets what the VMM finds in its environment, and keeps logs elsewhere.
    pub fn set(&mut self, environment: BTreeMap<String, String>, runs: PathBuf, fail_fast: bool) {
        match &mut self.kind {
            Kind::Own(setup) => setup.environment = environment,
            Kind::Emulated(host) => host.machine.environment = environment,
        }
        self.collector.runs = runs;
        self.fail_fast = fail_fast;
    }

    /// Runs the cases. What the host owes when it cannot be booted is an error of each case.
    pub fn run(&self, cases: &[Case], watch: &mut dyn Watch) -> HostRun {
        let run = match &self.kind {
            Kind::Own(setup) => runner::run(cases, setup, &self.collector, self.fail_fast, watch),
            Kind::Emulated(host) => {
                let Emulated { machine, params, with_device, suite, cancel } = &**host;
                let setup = run::Setup {
                    params,
                    with_device: with_device.as_ref().map_err(String::clone),
                    suite: *suite,
                    machines: emulated::side_by_side(machine),
                    collector: &self.collector,
                    fail_fast: self.fail_fast,
                    cancel,
                };
                run::run(machine, cases, &setup, watch)
            }
        };
        HostRun { info: self.info.clone(), run }
    }

    /// Runs nothing, because the run was stopped before.
    pub fn leave_out(self, cases: &[Case]) -> HostRun {
        let run = RunResult {
            started: SystemTime::now(),
            duration: Duration::ZERO,
            results: vec![],
            not_run: cases.iter().map(|case| case.id.clone()).collect(),
        };
        HostRun { info: self.info, run }
    }
}

/// What a host's error is to the user.
pub fn failure(error: HostError) -> Failure {
    match error {
        HostError::Cancelled(_) => Failure { status: 130, message: error.to_string() },
        error => Failure::bad(error),
    }
}

/// The machine's own `/dev/kvm`.
fn own_kvm<'a>(common: &Common<'a>) -> Result<Setup<'a>, Failure> {
    let facts = common.chosen.facts;
    if let Err(why) = facts.kvm() {
        complain(format_args!(
            "\nwarning: NO GUEST WILL RUN: {why}\n`cargo xtask doctor` tells what to do\n"
        ));
    }
    let vmm =
        program::build_vmm(common.root, &cargo(), common.chosen.sabotage.is_some(), common.cancel);
    Ok(Setup {
        vmm: vmm.map_err(Failure::bad)?,
        environment: BTreeMap::new(),
        catalog: common.chosen.catalog,
        facts,
        // A case waits for about as long as it computes: for its timers, and for KVM to take a VM apart.
        jobs: common.jobs.unwrap_or_else(|| 2 * facts.cpus()),
        grace: runner::GRACE,
        slowness: 1.0,
        cancel: common.cancel,
    })
}

/// An emulated host. The first time, it is booted to ask what it offers.
fn emulated<'a>(
    name: Name,
    among_others: bool,
    common: &Common<'a>,
) -> Result<(Place, HostInfo, Kind<'a>), Failure> {
    let Common { root, chosen, make, cancel, .. } = *common;
    let (catalog, sabotage) = (chosen.catalog, chosen.sabotage.is_some());
    let made = |make| {
        let kind = if sabotage { programs::Kind::Sabotage } else { programs::Kind::Cases };
        let shop = Workshop { root, catalog, make, kind, cancel };
        let (machine, params) = emulated::machine(name, &shop)?;
        let jobs = common.jobs.unwrap_or(machine.jobs);
        Ok((Machine { jobs, ..machine }, params))
    };
    let (machine, params) = made(make)?;
    let program = machine.emulator.program();
    let emulator = format!("{} {} ({})", machine.emulator.name(), program.version, program.origin);
    let place = Place {
        name: name.to_string(),
        emulator: Some(emulator),
        among_others,
        command: chosen.command.clone(),
        flags: again(make),
    };
    let facts = machine.facts(&params, &[cancel]).map_err(failure)?;
    let info = HostInfo::new(&place, &facts);
    let with_device = if !chosen.cases.iter().any(|case| plan::lacks_device(case, &facts)) {
        Err("no case needs one".to_string())
    } else if name != Name::Amd {
        Err(format!("host {name} has no IOMMU; host amd has one: --host amd"))
    } else if !machine.devices.is_empty() {
        // What the user chose is not overruled.
        let devices = &machine.devices;
        let why = facts.vfio_device.as_ref().err().map_or("", String::as_str);
        Err(format!("with --device {devices}, {why}; `--device {DEVICE}` gives it one"))
    } else {
        let device = vec![DEVICE.to_string()];
        let made = made(&flags::Make { device, ..make.clone() });
        made.map(|(machine, _)| machine).map_err(|e: Failure| e.message)
    };
    let host = Emulated { machine, params, with_device, suite: chosen.suite, cancel };
    Ok((place, info, Kind::Emulated(Box::new(host))))
}

/// The flags that make such a host again.
fn again(make: &flags::Make) -> Vec<String> {
    let mut words = Vec::new();
    for param in &make.kvm_param {
        words.extend(["--kvm-param".to_string(), param.clone()]);
    }
    if let Some(line) = &make.host_cmdline {
        words.extend(["--host-cmdline".to_string(), line.clone()]);
    }
    for device in &make.device {
        words.extend(["--device".to_string(), device.clone()]);
    }
    if make.deterministic {
        words.push("--deterministic".into());
    }
    let paths =
        [("--host-kernel", &make.host_kernel), ("--qemu", &make.qemu), ("--bochs", &make.bochs)];
    for (flag, path) in paths {
        if let Some(path) = path {
            words.extend([flag.to_string(), path.display().to_string()]);
        }
    }
    words
}
