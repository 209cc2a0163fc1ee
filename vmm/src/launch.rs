//! From options to a guest that has ended: everything else put together.

mod backplane;
mod error;
#[cfg(feature = "sabotage")]
mod sabotage;
#[cfg(not(feature = "sabotage"))]
#[path = "launch/sound.rs"]
mod sabotage;
mod serial;
mod sleep;
mod statistics;
mod supervise;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use error::LaunchError;
pub use serial::Serial;
pub use statistics::Statistics;

use crate::boot::{self, MemKind, MemRange, Module, Protocol};
use crate::control::ControlSocket;
use crate::cpu::CpuState;
use crate::cpuid::{CpuModel, Cpuid, Topology};
use crate::device::Clock;
use crate::exit::{Entry, Exit, Stop};
use crate::host::clock::HostClock;
use crate::host::console::OutputQueue;
use crate::host::contents::Contents;
use crate::host::events::{EndSignals, Wake};
use crate::host::memory;
use crate::hv::kvm::{Bare, CurrentVm, Host, Irqchip, KvmConfig, KvmLab, KvmVcpu, Supported};
use crate::hv::{Vcpu, Vm};
use crate::lab::Relay;
use crate::machine::{Backplane, Context, IommuConfig, Machine, PcConfig, PciDevice, acpi, pc};
use crate::ram::{Backing, GuestRam};
use crate::run::report::VcpuReport;
use crate::run::{Control, Ended, Handler};
use crate::script::Recorder;
use backplane::KvmBackplane;
use sabotage::{GuestLab, Saboteur};
use serial::Console;
use statistics::KvmSide;

/// How long the last output of a guest that was ended waits for its reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// A guest to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// KVM's device node.
    pub kvm: PathBuf,
    /// The image.
    pub kernel: PathBuf,
    /// What is in it, if somebody has read it already. The first start takes it.
    pub image: Option<Arc<Contents>>,
    /// How it is entered.
    pub protocol: Protocol,
    /// Its command line.
    pub cmdline: String,
    /// Files that go with it (an initrd first), each with a command line of its own.
    pub modules: Vec<(PathBuf, String)>,
    /// Memory, in bytes.
    pub memory: u64,
    /// What backs it.
    pub backing: Backing,
    /// What CPUID says.
    pub cpu: CpuModel,
    /// How the vCPUs are arranged: as many as the VM is to have.
    pub topology: Topology,
    /// The VM.
    pub vm: KvmConfig,
    /// The first serial port's other end.
    pub serial: Serial,
    /// How long the guest may take.
    pub timeout: Option<Duration>,
    /// Where every exit is recorded.
    pub trace: Option<PathBuf>,
    /// The guest may ask for calls about itself.
    pub lab: bool,
    /// Accesses are not answered where the guest says so: see [`Bare`].
    pub bare: bool,
    /// A guest whose every vCPU is halted with interrupts off goes on: an NMI may come.
    pub keep_halted: bool,
    /// The guest finds ACPI tables, and sleeps in S3 until something wakes it. Without them, going to
    /// sleep is an end, and so it is while exits are recorded and where the guest has a lab.
    pub acpi: bool,
    /// What is on the board's PCI bus beside the host bridge; `None` if it has no such bus.
    pub pci: Option<Vec<PciDevice>>,
    /// What stands between that bus and memory.
    pub iommu: Option<IommuConfig>,
    /// Who counts exits, if somebody does.
    pub statistics: Option<Arc<Statistics>>,
    /// Where it can be asked while the guest runs; for [`Options::statistics`].
    pub control: Option<Arc<ControlSocket>>,
    /// The guest starts again: what it wrote to a file before stays there.
    pub again: bool,
}

/// A guest that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub ended: Ended,
    /// Of each vCPU, if the end was one that wants explaining.
    pub reports: Vec<VcpuReport>,
    /// Why the lab ended it, if it did.
    pub lab: Option<String>,
}

/// Everything of one VM before its first instruction.
struct Prepared {
    vm: Arc<CurrentVm>,
    lab: Option<Relay<GuestLab>>,
    saboteur: Saboteur,
    vcpus: Vec<KvmVcpu>,
    machine: Machine,
    console: Console,
    recorder: Option<Recorder>,
    wake: Wake,
}

/// The vCPUs' way to the board.
#[derive(Clone, Copy)]
struct Driver<'a> {
    machine: &'a Machine,
    recorder: Option<&'a Recorder>,
}

impl<V> Handler<V> for Driver<'_> {
    fn board(&self) -> Option<&Machine> {
        self.recorder.is_none().then_some(self.machine)
    }

    fn map(&self) -> Option<&Machine> {
        Some(self.machine)
    }

    fn handle(&self, cx: &mut Context, index: usize, _: &mut V, exit: &Exit) -> Entry {
        match self.recorder {
            None => self.machine.handle(cx, exit),
            Some(recorder) => recorder.handle(self.machine, cx, index, exit),
        }
    }
}

/// The same with a lab before the board: a handler of its own, so that a guest without one does not
/// pay for it.
struct LabDriver<'a> {
    driver: Driver<'a>,
    lab: &'a Relay<GuestLab>,
}

impl Handler<KvmVcpu> for LabDriver<'_> {
    fn map(&self) -> Option<&Machine> {
        Some(self.driver.machine)
    }

    fn handle(&self, cx: &mut Context, index: usize, vcpu: &mut KvmVcpu, exit: &Exit) -> Entry {
        match self.lab.handle(index, vcpu, exit) {
            Ok(entry) => {
                cx.log.push(exit, entry);
                cx.note_rip();
                entry
            }
            Err(exit) => self.driver.handle(cx, index, vcpu, &exit),
        }
    }
}

fn read(path: &Path, what: &'static str) -> Result<Contents, LaunchError> {
    Contents::of(path).map_err(|source| LaunchError::File { what, path: path.to_owned(), source })
}

/// The last component of a path: what a guest is told an image is called.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Runs one guest from its first instruction to its end, however it ends.
///
/// # Errors
/// When it could not be started, or the host failed it on the way; never for what a guest does.
pub fn run(options: &mut Options) -> Result<Finished, LaunchError> {
    // Before the first thread and before the terminal is changed: every thread inherits that these
    // signals do not kill, and so the terminal is put back.
    let signals = EndSignals::take().map_err(LaunchError::Events)?;
    if let (Some(control), Some(statistics)) = (&options.control, &options.statistics) {
        // Its thread, too, is none that a signal ends.
        control.serve(statistics.clone()).map_err(LaunchError::Control)?;
    }
    let end = options.timeout.map(|timeout| Instant::now() + timeout);
    let mut prepared = prepare(options)?;
    loop {
        options.timeout = end.map(|end| end.saturating_duration_since(Instant::now()));
        let Prepared { vm, lab, saboteur, vcpus, machine, console, recorder, wake } = prepared;
        let driver = Driver { machine: &machine, recorder: recorder.as_ref() };
        let running =
            Running { driver, lab: lab.as_ref(), vm: &vm, saboteur: &saboteur, console: &console };
        let (supervised, reports) = running.run(options, vcpus, &wake, &signals)?;
        // An end that somebody waits for does not wait for whoever reads the output.
        let finished = match &supervised {
            Ok(Ended { stop: Stop::Timeout | Stop::Interrupted, .. }) | Err(_) => {
                console.finish(&signals, Some(PATIENCE))
            }
            Ok(_) => console.finish(&signals, None),
        };
        let can_sleep = options.acpi && recorder.is_none() && lab.is_none();
        if let Some(recorder) = recorder {
            let stop = supervised.as_ref().ok().map(|ended| ended.stop);
            recorder.finish(stop).map_err(LaunchError::Trace)?;
        }
        let refusal = lab.as_ref().and_then(Relay::refusal).map(str::to_owned);
        drop((lab, vm));
        let mut ended = supervised?;
        finished?;
        if ended.stop == Stop::Sleep(sleep::STATE) && can_sleep {
            match sleep::until_woken(&machine, &signals, end).map_err(LaunchError::Events)? {
                sleep::Sleep::Woken => {
                    prepared = sleep::resume(options, &machine)?;
                    continue;
                }
                sleep::Sleep::ForEver => {}
                sleep::Sleep::Ended(stop) => ended.stop = stop,
            }
        }
        return Ok(Finished { ended, reports, lab: refusal });
    }
}

/// What a guest runs on.
struct Running<'a> {
    driver: Driver<'a>,
    lab: Option<&'a Relay<GuestLab>>,
    vm: &'a CurrentVm,
    saboteur: &'a Saboteur,
    console: &'a Console,
}

impl Running<'_> {
    /// Runs the vCPUs until one of them, the user or the time ends them all. How that was, and what
    /// each has to report.
    fn run(
        &self,
        options: &Options,
        vcpus: Vec<KvmVcpu>,
        wake: &Wake,
        signals: &EndSignals,
    ) -> Result<(Result<Ended, LaunchError>, Vec<VcpuReport>), LaunchError> {
        let Running { driver, lab, vm, saboteur, console } = *self;
        let waker = wake.try_clone().map_err(LaunchError::Events)?;
        let control = Control::new(vcpus.len(), Box::new(move || waker.wake()))
            .counted(options.statistics.as_ref().and_then(|statistics| statistics.counters()));
        let control = &control;
        let work = |index: usize, mut vcpu: KvmVcpu| {
            let (control, ram) = (control, driver.machine.ram());
            let mut cx = Context::new();
            // A panic in a device is this program's fault: the VM ends, and the panic goes on
            // to whoever joins the thread.
            let _guard = EndOnPanic(control, None);
            match lab {
                None if options.bare => {
                    let mut vcpu = Bare::new(vcpu);
                    control.run(index, &mut vcpu, &mut cx, &driver, ram)
                }
                None => {
                    let driver = saboteur.around(driver);
                    control.run(index, &mut vcpu, &mut cx, &driver, ram)
                }
                Some(lab) => {
                    let driver = saboteur.around(LabDriver { driver, lab });
                    control.run(index, &mut vcpu, &mut cx, &driver, ram)
                }
            }
        };
        Ok(std::thread::scope(|scope| {
            let work = &work;
            let fail = |e| {
                control.end(None, Stop::Interrupted);
                if let Some(queue) = console.queue() {
                    queue.close();
                }
                (Err(LaunchError::Thread(e)), Vec::new())
            };
            let thread = |name: String| std::thread::Builder::new().name(name);
            let supervise = || {
                // A panic on this thread, which calls devices too, must not wait for vCPUs that go on.
                let _guard = EndOnPanic(control, console.queue());
                let waits = supervise::Waits { wake, sints: vm.sints() };
                supervise::supervise(options, &driver, control, console, waits, signals)
            };
            // The first vCPU has the thread that made it: to give it to another one is most of a short start.
            let supervisor = match thread("supervisor".to_owned()).spawn_scoped(scope, supervise) {
                Ok(thread) => thread,
                Err(e) => return fail(e),
            };
            let mut vcpus = vcpus.into_iter().enumerate();
            let first = vcpus.next();
            let mut threads = Vec::with_capacity(vcpus.len());
            for (index, vcpu) in vcpus {
                let name = format!("vcpu{index}");
                match thread(name).spawn_scoped(scope, move || work(index, vcpu)) {
                    Ok(thread) => threads.push(thread),
                    Err(e) => return fail(e),
                }
            }
            let first = first.and_then(|(index, vcpu)| work(index, vcpu));
            let supervised = supervisor.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            let others = threads
                .into_iter()
                .filter_map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            let reports = first.into_iter().chain(others).collect();
            (supervised, reports)
        }))
    }
}

/// Ends the VM when the thread that holds it unwinds. The thread that empties the output queue
/// holds that too: nobody does so afterwards.
struct EndOnPanic<'a, K: crate::hv::Kick>(&'a Control<K>, Option<Arc<OutputQueue>>);

impl<K: crate::hv::Kick> Drop for EndOnPanic<'_, K> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(None, Stop::Unexpected);
            if let Some(queue) = &self.1 {
                queue.close();
            }
        }
    }
}

fn prepare(options: &mut Options) -> Result<Prepared, LaunchError> {
    if options.lab && options.trace.is_some() {
        return Err(LaunchError::LabTrace);
    }
    // The longest of KVM's calls, and one that nothing else waits for before there is a vCPU.
    let supported = Supported::ahead(&options.kvm);
    let image = match options.image.take() {
        Some(image) => image,
        None => Arc::new(read(&options.kernel, "kernel")?),
    };
    let modules = options
        .modules
        .iter()
        .map(|(path, cmdline)| Ok((file_name(path), read(path, "module")?, cmdline)))
        .collect::<Result<Vec<_>, LaunchError>>()?;
    let host = Host::open(&options.kvm)?;
    if let Some(total) = memory::total().filter(|&total| options.memory > total)
        && !memory::is_overcommitted()
    {
        let (asked, host) = (options.memory >> 20, total >> 20);
        return Err(LaunchError::TooMuchMemory { asked, host });
    }
    let ram = GuestRam::new(options.memory, options.backing)?;
    let tables = match options.acpi {
        true => Some(acpi_tables(options)?),
        false => None,
    };
    let reserved: Vec<MemRange> = tables
        .iter()
        .map(|tables| MemRange {
            start: acpi::BASE,
            len: tables.len() as u64,
            kind: MemKind::Reserved,
        })
        .collect();
    let loaded = boot::load(&boot::Request {
        protocol: options.protocol,
        cmdline: &options.cmdline,
        modules: &modules
            .iter()
            .map(|(name, bytes, cmdline)| Module { name, bytes, cmdline })
            .collect::<Vec<_>>(),
        reserved: &reserved,
        acpi_rsdp: tables.as_ref().map(|_| acpi::BASE),
        ..boot::Request::new(&image, &file_name(&options.kernel), &ram)
    })?;
    if let Some(tables) = tables {
        // There is RAM below 1 MiB, whatever its size.
        ram.write(acpi::BASE, &tables).map_err(|_| LaunchError::AcpiTables)?;
    }
    drop((image, modules));
    let clock: Arc<dyn Clock> = Arc::new(HostClock::start());
    assemble(options, host, supported, ram, clock, &loaded.start)
}

/// The tables for these vCPUs.
fn acpi_tables(options: &Options) -> Result<Vec<u8>, LaunchError> {
    let topology = &options.topology;
    let ids: Vec<u32> = (0..topology.cpus()).map(|index| topology.apic_id(index)).collect();
    let board =
        acpi::Described { apic_ids: &ids, pci: options.pci.is_some(), iommu: options.iommu };
    acpi::tables(&board).ok_or(LaunchError::AcpiTables)
}

/// A VM around memory that is filled, with a board of its own, and its first vCPU at `start`.
fn assemble(
    options: &Options,
    host: Host,
    supported: Supported,
    ram: GuestRam,
    mut clock: Arc<dyn Clock>,
    start: &CpuState,
) -> Result<Prepared, LaunchError> {
    let saboteur = Saboteur::new()?;
    let offered = match options.vm.hyperv.is_empty() {
        true => Cpuid::default(),
        false => host.hyperv_cpuid()?,
    };
    let vm_config = KvmConfig { hyperv: options.vm.hyperv.on(&offered)?, ..options.vm.clone() };
    let vm = host.create_vm(&vm_config, Some(ram.clone()))?;
    let supported = supported.of(&host)?;
    let cpus = options.vm.cpus;
    let topology = &options.topology;
    let mut vcpus = Vec::with_capacity(cpus as usize);
    for index in 0..cpus {
        let mut vcpu = vm.create_vcpu(topology.apic_id(index))?;
        let mut cpuid = options.cpu.apply(&supported, index, topology)?;
        vm_config.hyperv.apply(&offered, &mut cpuid);
        vcpu.set_cpuid(&saboteur.cpuid(cpuid))?;
        vcpus.push(vcpu);
    }
    if let Some(first) = vcpus.first_mut() {
        first.start(start)?;
    }

    let kvm_stats = options.statistics.as_ref().map(|_| KvmSide::open(&host, &vm, &vcpus));
    let wake = Wake::new().map_err(LaunchError::Events)?;
    let console = Console::open(&options.serial, options.again, &wake)?;
    let vm = Arc::new(CurrentVm::new(vm)?);
    let lab = match options.lab || saboteur.needs_lab() {
        false => None,
        true => {
            let lab = KvmLab::new(host, vm_config, ram.clone(), vm.clone())?;
            Some(saboteur.lab(lab, &mut vcpus))
        }
    };
    let lab = lab.filter(|_| options.lab).map(|lab| Relay::new(lab, ram.clone(), cpus as usize));
    let waker = wake.try_clone().map_err(LaunchError::Events)?;
    let mut behind: Arc<dyn Backplane> =
        saboteur.backplane(Arc::new(KvmBackplane::new(vm.clone(), console.queue(), waker)));
    let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let config = PcConfig {
        cpus: u16::try_from(cpus).unwrap_or(u16::MAX),
        // A host whose clock stands before 1970 has guests that start there.
        unix_time: unix_time.map_or(0, |t| t.as_secs()),
        pci: options.pci.clone(),
        ioapic: options.vm.irqchip == Irqchip::Split,
        iommu: options.iommu,
    };
    let recorder = match &options.trace {
        None => None,
        Some(path) => {
            let recorder = Recorder::create(path, &config, &ram).map_err(LaunchError::Trace)?;
            (clock, behind) = recorder.wrap(clock, behind);
            Some(recorder)
        }
    };
    let ram = match &recorder {
        None => ram,
        Some(recorder) => recorder.wrap_ram(&ram),
    };
    let machine = pc(&config, ram, clock, behind)?;
    if let (Some(statistics), Some(kvm)) = (&options.statistics, kvm_stats) {
        statistics.start(vcpus.len(), &machine, kvm);
    }
    Ok(Prepared { vm, lab, saboteur, vcpus, machine, console, recorder, wake })
}
