//! A guest that makes one kind of exit over and over, as often as it is told, and who serves it: the VMM's
//! own parts, or nobody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use payload_abi::rounds;
use testcases::transcript::{Report, Transcript};
use vmm::access::{Access, Dir, Space};
use vmm::boot;
use vmm::cpuid::{CpuModel, Topology};
use vmm::device::Nanos;
use vmm::exit::{Entry, Exit, Stop};
use vmm::host::clock::HostClock;
use vmm::hv::kvm::{Host, KvmVcpu, KvmVm, Served, Yardstick, discard};
use vmm::hv::{HvError, Kick, Vcpu, Vm};
use vmm::machine::{Backplane, Context, Machine, PcConfig, pc};
use vmm::ram::{Backing, GuestRam, PAGE, RamRange};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kinds::{Event, Kind};

/// Memory of a guest, in bytes.
const MEMORY: u64 = 64 << 20;
/// The port of POST codes, whose writes ask for an interrupt window where the kind is about those.
const POST: u16 = 0x80;
/// The first port of the test device's lines.
const LINES: u16 = 0x2000;

/// What stands behind the board: KVM's lines, and what the guest said.
struct Behind {
    vm: Arc<KvmVm>,
    said: Mutex<Vec<u8>>,
}

impl Backplane for Behind {
    fn set_line(&self, gsi: u32, level: bool) {
        // A guest's doing never ends the VM.
        let _ = self.vm.set_line(gsi, level);
    }
    fn output(&self, _: &'static str, byte: u8) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).push(byte);
    }
    fn remap_page(&self, gpa: u64) {
        let _ = self.vm.remap_page(gpa);
    }
    fn message(&self, address: u64, data: u32) {
        let _ = self.vm.message(address, data);
    }
    fn await_end(&self, _: u32, _: Option<(u64, u32)>) {}
    fn raise_sint(&self, _: u32, _: u8) {}
    fn watch_sint(&self, _: u32, _: u8) {}
    fn deadline(&self, _: Nanos) {}
}

/// Who serves the first vCPU.
enum Side {
    Vmm(KvmVcpu),
    Bare(Yardstick),
    /// Between the two.
    Nobody,
}

/// A guest.
pub struct Guest {
    name: &'static str,
    test: &'static str,
    windows: bool,
    side: Side,
    cx: Context,
    entry: Entry,
    // The other vCPUs end before the VM does.
    _others: Vec<Other>,
    machine: Arc<Machine>,
    behind: Arc<Behind>,
    ram: GuestRam,
    /// What is taken away from the guest before each round.
    absent: Option<RamRange>,
    event: Option<(Event, EventFd)>,
}

impl Guest {
    /// Starts the payload `image` and lets it come to where it waits for the first round. `bare` says that nobody
    /// is to serve it from then on.
    ///
    /// # Errors
    /// The VM cannot be made, or the guest ends before.
    pub fn start(image: &[u8], kind: &Kind, bare: bool) -> Result<Guest, String> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", kind.name);
        let ram = GuestRam::new(MEMORY, Backing::Small).map_err(|e| failed(&e))?;
        let cmdline = format!(
            "{}={} {}={} {}=1 {}={}",
            payload_abi::CMDLINE_TEST,
            kind.test,
            payload_abi::CMDLINE_CPUS,
            kind.cpus,
            rounds::CMDLINE,
            rounds::CMDLINE_PULSE,
            u8::from(kind.event == Some(Event::Line))
        );
        let request =
            boot::Request { cmdline: &cmdline, ..boot::Request::new(image, "trips", &ram) };
        let loaded = boot::load(&request).map_err(|e| failed(&e))?;
        let host = Host::open(std::path::Path::new(vmm::hv::kvm::DEV_KVM));
        let host = host.map_err(|e| failed(&e))?;
        let vm = host.create_vm(&kind.config(), Some(ram.clone())).map_err(|e| failed(&e))?;
        let vm = Arc::new(vm);
        let event = attach(&vm, kind.event).map_err(|e| failed(&e))?;
        let supported = host.supported_cpuid().map_err(|e| failed(&e))?;
        let topology = Topology::flat(kind.cpus);
        let mut vcpus = Vec::new();
        for index in 0..kind.cpus {
            let cpuid = CpuModel::default().apply(&supported, index, &topology);
            let cpuid = cpuid.map_err(|e| failed(&e))?;
            let mut vcpu = vm.create_vcpu(index).map_err(|e| failed(&e))?;
            vcpu.set_cpuid(&cpuid).map_err(|e| failed(&e))?;
            vcpus.push(vcpu);
        }
        let mut vcpus = vcpus.into_iter();
        let mut first = vcpus.next().ok_or_else(|| failed(&"it has no vCPU"))?;
        first.start(&loaded.start).map_err(|e| failed(&e))?;
        first.bind();
        let behind = Arc::new(Behind { vm, said: Mutex::default() });
        let config = PcConfig { cpus: kind.cpus as u16, ..PcConfig::default() };
        let clock = Arc::new(HostClock::start());
        let machine = pc(&config, ram.clone(), clock, behind.clone()).map_err(|e| failed(&e))?;
        let machine = Arc::new(machine);
        let others = vcpus.map(|vcpu| Other::start(vcpu, machine.clone())).collect();
        let mut guest = Guest {
            name: kind.name,
            test: kind.test,
            windows: kind.windows,
            side: Side::Nobody,
            cx: Context::new(),
            entry: Entry::Resume,
            _others: others,
            machine,
            behind,
            ram,
            absent: None,
            event,
        };
        guest.serve(&mut first)?;
        guest.side = match bare {
            false => Side::Vmm(first),
            true => {
                let vm = guest.behind.vm.clone();
                let line = u32::from(rounds::GSI);
                let served = match (kind.windows, kind.test) {
                    (true, _) => Served::Windows(POST),
                    (_, "line") => Served::Writes(
                        LINES + u16::from(rounds::GSI),
                        Box::new(move |level| drop(vm.set_line(line, level != 0))),
                    ),
                    _ => Served::Nothing,
                };
                Side::Bare(Yardstick::new(first, rounds::PORT, served).map_err(|e| failed(&e))?)
            }
        };
        Ok(guest)
    }

    /// Serves the vCPU until it waits for a round.
    fn serve(&mut self, vcpu: &mut KvmVcpu) -> Result<(), String> {
        loop {
            let exit = vcpu.run(self.entry);
            self.entry = match &exit {
                // No device of the board is there.
                Exit::Io(Access { addr, space: Space::Port, dir, .. })
                    if *addr == u64::from(rounds::PORT) =>
                {
                    match dir {
                        Dir::Read => return Ok(()),
                        Dir::Write(start) => {
                            let len = u64::from(rounds::PAGES) * PAGE;
                            self.absent = Some(RamRange { start: *start, len });
                            Entry::Resume
                        }
                    }
                }
                exit => self.machine.handle(&mut self.cx, exit),
            };
            if let Entry::Stop(stop) = self.entry {
                return Err(self.told(stop));
            }
        }
    }

    /// As `serve`, where the VMM wants to know when the guest can take an interrupt.
    fn serve_windows(&mut self, vcpu: &mut KvmVcpu) -> Result<(), String> {
        loop {
            let exit = vcpu.run(self.entry);
            match &exit {
                Exit::Io(access) if access.addr == u64::from(rounds::PORT) => return Ok(()),
                Exit::Io(access) if access.addr == u64::from(POST) => vcpu.want_window(true),
                Exit::IrqWindow => vcpu.want_window(false),
                _ => {}
            }
            self.entry = self.machine.handle(&mut self.cx, &exit);
            if let Entry::Stop(stop) = self.entry {
                return Err(self.told(stop));
            }
        }
    }

    /// Why a guest ended.
    fn told(&self, stop: Stop) -> String {
        let said = self.behind.said.lock().unwrap_or_else(PoisonError::into_inner);
        let report = Transcript::of(self.test, &said).report().clone();
        format!("{}: the guest ended ({stop}), and reports {report:?}", self.name)
    }

    /// Lets the guest do so many, and says how long it took.
    ///
    /// # Errors
    /// The guest ended.
    pub fn round(&mut self, number: u64) -> Result<Duration, String> {
        let most = match self.absent {
            Some(_) => rounds::PAGES,
            None => u32::MAX,
        };
        let (mut left, mut took) = (number, Duration::ZERO);
        while left != 0 {
            let now = u32::try_from(left).unwrap_or(u32::MAX).min(most);
            if let Some(range) = self.absent {
                discard(&self.ram, range).map_err(|e| e.to_string())?;
            }
            let start = Instant::now();
            self.enter(now)?;
            took += start.elapsed();
            left -= u64::from(now);
        }
        Ok(took)
    }

    fn enter(&mut self, number: u32) -> Result<(), String> {
        match std::mem::replace(&mut self.side, Side::Nobody) {
            Side::Bare(mut yardstick) => {
                let done = yardstick.round(number);
                self.side = Side::Bare(yardstick);
                done.map_err(|exit| format!("{}: nobody can go on after {exit}", self.name))
            }
            Side::Vmm(mut vcpu) => {
                self.entry = Entry::Read(number.into());
                let done = match self.windows {
                    false => self.serve(&mut vcpu),
                    true => self.serve_windows(&mut vcpu),
                };
                self.side = Side::Vmm(vcpu);
                done
            }
            Side::Nobody => Err(format!("{}: it has ended", self.name)),
        }
    }

    /// Lets a guest that is served come to its end, which must be a pass: its exits did what they should.
    ///
    /// # Errors
    /// It is none.
    pub fn finish(mut self) -> Result<(), String> {
        if matches!(self.side, Side::Bare(_)) {
            return Ok(());
        }
        if let Some((Event::Write(_) | Event::Value(..), fd)) = &self.event {
            // The board has seen nothing of it, as it should be; so the guest would not pass.
            let told = |e| format!("{}: the eventfd was not signalled: {e}", self.name);
            return fd.read().map(drop).map_err(told);
        }
        match self.enter(0) {
            Ok(()) => Err(format!("{}: it wants rounds after its last", self.name)),
            Err(why) => {
                let said = self.behind.said.lock().unwrap_or_else(PoisonError::into_inner);
                match Transcript::of(self.test, &said).report() {
                    Report::Ended(payload_abi::ExitValue::Pass, _) => Ok(()),
                    _ => Err(why),
                }
            }
        }
    }
}

/// Has KVM do this in the place of an exit.
fn attach(vm: &KvmVm, event: Option<Event>) -> Result<Option<(Event, EventFd)>, HvError> {
    let Some(event) = event else { return Ok(None) };
    let refused = |source| HvError::Call { what: "eventfd".to_owned(), source };
    let fd = EventFd::new(EFD_NONBLOCK).map_err(refused)?;
    match event {
        Event::Write(port) => vm.signal_writes(port, None, &fd)?,
        Event::Value(port, value) => vm.signal_writes(port, Some(value), &fd)?,
        Event::Line => {
            vm.pulse_by(rounds::GSI.into(), &fd)?;
            vm.signal_byte(LINES + u16::from(rounds::GSI), 1, &fd)?;
        }
    }
    Ok(Some((event, fd)))
}

/// A vCPU beside the first, on a thread of its own, served by the board.
struct Other {
    ends: Arc<AtomicBool>,
    kicker: vmm::hv::kvm::Kicker,
    thread: Option<JoinHandle<()>>,
}

impl Other {
    fn start(mut vcpu: KvmVcpu, machine: Arc<Machine>) -> Other {
        let ends = Arc::new(AtomicBool::new(false));
        let (send, kicker) = mpsc::channel();
        let thread = {
            let ends = ends.clone();
            std::thread::spawn(move || {
                let (mut cx, mut entry) = (Context::new(), Entry::Resume);
                // Whoever started it waits for this.
                let _ = send.send(vcpu.bind());
                while !ends.load(Ordering::SeqCst) {
                    entry = match vcpu.run(entry) {
                        Exit::Interrupted => Entry::Resume,
                        exit => machine.handle(&mut cx, &exit),
                    };
                    if matches!(entry, Entry::Stop(_)) {
                        return;
                    }
                }
            })
        };
        let kicker = kicker.recv().expect("the thread binds its vCPU first");
        Other { ends, kicker, thread: Some(thread) }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        self.kicker.kick();
        if let Some(thread) = self.thread.take() {
            // What it panicked with was told.
            let _ = thread.join();
        }
    }
}
