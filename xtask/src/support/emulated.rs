//! Makes emulated hosts ready: finds or fetches, builds, and boots nothing yet.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use hosts::device::Devices;
use hosts::fetch::{FetchError, Fetcher, Flavour, Own};
use hosts::image::{self, Contents};
use hosts::machine::{Emulator, Machine};
use hosts::modules::{self, Modules};
use hosts::name::Name;
use hosts::pieces::Kernel;
use hosts::plan::Params;
use hosts::programs::{self, Kind};
use hosts::session::{Ending, Patience};
use testcases::job::Task;
use testcases::load::Catalog;
use testcases::process::Stream;
use testcases::wire::Message;

use super::fetching::Bar;
use super::out::complain;
use super::ready::failure;
use super::{Failure, cargo, root};
use crate::flags;

/// Where everything that emulated hosts need is kept, below the workspace.
pub const CACHE: &str = "target/hosts";

/// RAM of an emulated host. MiB. Bochs has no more; the largest guests ask for more than either has,
/// and use little of it.
const MEMORY: u32 = 2048;

/// What all hosts of a command have in common.
pub struct Workshop<'a> {
    /// The workspace.
    pub root: &'a Path,
    /// The payloads.
    pub catalog: &'a Catalog,
    /// The user's wishes.
    pub make: &'a flags::Make,
    /// What the programs are for.
    pub kind: Kind,
    /// Becomes true when the user wants to stop.
    pub cancel: &'a AtomicBool,
}

impl From<flags::Emulated> for Name {
    fn from(name: flags::Emulated) -> Name {
        match name {
            flags::Emulated::Amd => Name::Amd,
            flags::Emulated::Intel => Name::Intel,
        }
    }
}

/// Makes a host ready, with the parameters that its modules are loaded with.
///
/// # Errors
///
/// Something is neither on the machine nor to be had, or cannot be built; a parameter is unknown.
pub fn machine(name: Name, shop: &Workshop<'_>) -> Result<(Machine, Params), Failure> {
    if shop.make.deterministic && name != Name::Amd {
        return Err(Failure::input(format!(
            "--deterministic is for host amd: host {name} cannot count its time in instructions"
        )));
    }
    let devices = devices(shop.make)?;
    if !devices.is_empty() && name != Name::Amd {
        return Err(Failure::input(format!(
            "--device {devices} is for host amd: Bochs, which emulates host {name}, has no such devices"
        )));
    }
    let make = shop.make;
    let cache = shop.root.join(CACHE);
    let bad = |e: &dyn std::error::Error| Failure::bad(format!("host {name}: {e}"));
    let mut bar = Bar::default();
    let mut fetcher = fetcher(shop.root, make, shop.cancel, &mut bar);
    let pieces = pieces(name, &devices, &mut fetcher).map_err(|e| bad(&e))?;
    let Pieces { emulator, kernel, busybox } = pieces;
    let modules = Modules::open(&kernel).map_err(|e| bad(&e))?;
    let mut wanted = vec!["kvm", name.module()];
    wanted.extend(devices.modules());
    let modules = modules.closure(&wanted).map_err(|e| bad(&e))?;
    let mut params = name.params();
    for text in &make.kvm_param {
        let (parameter, value) = modules::assign(&modules, text)
            .map_err(|e| Failure::input(format!("--kvm-param {text}, host {name}: {e}")))?;
        params.0.insert(parameter, value);
    }
    let programs = programs::build(shop.root, &cargo(), shop.kind, shop.cancel);
    let programs = programs.map_err(Failure::bad)?;
    let contents = Contents {
        programs: &programs,
        busybox: Some(&busybox),
        payloads: shop.catalog,
        cases: &shop.root.join("testcases/cases"),
        modules: &modules,
    };
    let image = image::build(&contents, &cache.join("images")).map_err(|e| bad(&e))?;
    // A guest that waits leaves the processor to another one; Bochs has no time to spare.
    let jobs = match name {
        Name::Amd if !make.deterministic => 2,
        Name::Amd | Name::Intel => 1,
    };
    let machine = Machine {
        name,
        emulator,
        kernel,
        image: image.path,
        digest: image.digest,
        modules,
        cache,
        memory: MEMORY,
        // QEMU's machines run side by side better than its processors do, and Bochs's do not at all.
        cpus: 1,
        jobs,
        deterministic: make.deterministic,
        devices,
        command_line: make.host_cmdline.iter().cloned().collect(),
        patience: Patience::default(),
        environment: BTreeMap::new(),
    };
    Ok((machine, params))
}

/// Runs a command on a host, and hands over what it writes. Its status.
///
/// # Errors
///
/// The host does not boot, or goes away before the command ends.
pub fn command(
    machine: &Machine,
    params: &Params,
    words: &[String],
    cancel: &AtomicBool,
    take: &mut dyn FnMut(Stream, &[u8]),
) -> Result<u8, Failure> {
    let task = Task::Command(words.to_vec());
    let session = machine.boot(task, params, &[cancel], &mut |envelope| {
        if let Message::Output { stream, bytes } = envelope.message {
            take(stream, &bytes);
        }
        ControlFlow::Continue(())
    });
    let session = session.map_err(failure)?;
    match session.ending {
        Ending::Done(status) => {
            session.troubles.iter().for_each(complain);
            Ok(status)
        }
        ref ending => Err(failure(machine.failed(ending, &session))),
    }
}

/// Why a host is not set up, if it is not: what of it would have to be fetched first.
pub fn missing(name: Name, make: &flags::Make) -> Option<String> {
    let (mut bar, cancel) = (Bar::default(), AtomicBool::new(false));
    let mut fetcher = fetcher(&root(), make, &cancel, &mut bar).offline();
    // Names that are wrong are told when the host is made.
    let devices = devices(make).unwrap_or_default();
    pieces(name, &devices, &mut fetcher).err().map(|e| e.to_string())
}

/// The devices that the user asks for.
fn devices(make: &flags::Make) -> Result<Devices, Failure> {
    Devices::new(&make.device).map_err(|e| Failure::input(format!("--device: {e}")))
}

fn fetcher<'a>(
    root: &Path,
    make: &flags::Make,
    cancel: &'a AtomicBool,
    bar: &'a mut Bar,
) -> Fetcher<'a> {
    let make = make.clone();
    let own = Own { qemu: make.qemu, bochs: make.bochs, kernel: make.host_kernel };
    let own = own.or_environment(|name| std::env::var_os(name));
    Fetcher::new(&root.join(CACHE), own, cancel, bar)
}

/// What a host takes that is not made here.
struct Pieces {
    emulator: Emulator,
    kernel: Kernel,
    busybox: PathBuf,
}

fn pieces(name: Name, devices: &Devices, fetcher: &mut Fetcher<'_>) -> Result<Pieces, FetchError> {
    // The kernel for virtual machines has no drivers for what other machines have.
    let flavour = if devices.is_empty() { Flavour::Cloud } else { Flavour::Full };
    let emulator = match name {
        Name::Amd => Emulator::Qemu(fetcher.qemu()?),
        Name::Intel => {
            let (bochs, firmware) = fetcher.bochs()?;
            Emulator::Bochs(bochs, firmware)
        }
    };
    Ok(Pieces { emulator, kernel: fetcher.kernel(flavour)?, busybox: fetcher.busybox()? })
}

/// How many machines run side by side: one on each processor that is here.
pub fn side_by_side(machine: &Machine) -> usize {
    match machine.deterministic {
        true => 1,
        false => std::thread::available_parallelism().map_or(1, usize::from),
    }
}
