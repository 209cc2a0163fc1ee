//! What an exit costs.
//!
//! `cargo bench -p benches` takes the time of exits on this machine's KVM (`exits`), and of what runs without it
//! (`plain`); each beside a yardstick. `cargo xtask bench counts` counts instructions of the latter.

pub mod guest;
pub mod kinds;
pub mod peers;
pub mod ratio;
pub mod scenes;
pub mod start;
pub mod steps;
pub mod vms;

use std::sync::Arc;
use std::time::Duration;

use vmm::access::{Access, Size, Space};
use vmm::exit::{Entry, Exit};
use vmm::machine::{Context, IommuConfig, Machine, ManualClock, Nowhere, PcConfig, PciDevice, pc};
use vmm::ram::{Backing, GuestRam, MIN_SIZE};

/// What does a thing so many times, and says how long it took; or why it cannot.
pub type Timed<'a> = Box<dyn FnMut(u64) -> Result<Duration, String> + 'a>;

/// A kind of exit, and the answer that shows that the board did what is measured.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name in reports.
    pub name: &'static str,
    /// The exit.
    pub exit: Exit,
    /// Its answer.
    pub entry: Entry,
}

const fn read(name: &'static str, space: Space, addr: u64, size: Size, value: u64) -> Workload {
    Workload { name, exit: Exit::Io(Access::read(space, addr, size)), entry: Entry::Read(value) }
}

const fn write(name: &'static str, space: Space, addr: u64, size: Size) -> Workload {
    Workload { name, exit: Exit::Io(Access::write(space, addr, size, 0)), entry: Entry::Resume }
}

/// What is measured. The claimed port is the scratch register of the first serial port, which
/// does nothing; the MMIO address is the memory of the test device.
pub const WORKLOADS: [Workload; 7] = [
    read("port-read", Space::Port, 0x3ff, Size::B1, 0),
    write("port-write", Space::Port, 0x3ff, Size::B1),
    read("mmio-read", Space::Mmio, 0xff00_0000, Size::B4, 0),
    write("mmio-write", Space::Mmio, 0xff00_0000, Size::B4),
    read("unclaimed-port-read", Space::Port, 0x1, Size::B1, 0xff),
    read("unclaimed-mmio-read", Space::Mmio, 0xfee0_0000, Size::B4, 0xffff_ffff),
    // The last register of the serial port, and three ports that are nobody's.
    read("split-port-read", Space::Port, 0x3ff, Size::B4, 0xffff_ff00),
];

/// A PC and one vCPU's way to it.
pub struct Rig {
    /// The board.
    pub machine: Machine,
    /// The vCPU's part of it.
    pub cx: Context,
}

impl Rig {
    /// A PC just switched on.
    ///
    /// # Panics
    /// When the host has no memory for it.
    pub fn new() -> Rig {
        Rig::with(None, None)
    }

    /// The same, with these devices on a PCI bus, and an IOMMU before it.
    ///
    /// # Panics
    /// When the host has no memory for it.
    pub fn with(devices: Option<Vec<PciDevice>>, iommu: Option<IommuConfig>) -> Rig {
        let ram = GuestRam::new(MIN_SIZE, Backing::Auto).expect("the host has 2 MiB");
        let config = PcConfig { cpus: 1, pci: devices, iommu, ..PcConfig::default() };
        let clock = Arc::new(ManualClock::default());
        let machine = pc(&config, ram, clock, Arc::new(Nowhere)).expect("a PC");
        Rig { machine, cx: Context::new() }
    }
}

impl Default for Rig {
    fn default() -> Self {
        Rig::new()
    }
}
