//! What a PC's PCI bus holds, and where.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{BoardError, Machine};
use crate::chips::pci::Slot;
use crate::chips::pci::bridge::{self, HostBridge};
use crate::chips::pci::config::Placement;
use crate::chips::pci::edu::{self, Edu};
use crate::chips::pci::memory::{BusMemory, Iommu};
use crate::chips::pci::testdev::{self, PciTestDevice};
use crate::device::Device;

/// GSIs of the bus's four interrupt lines. INTA# of device N is on line N modulo 4: neighbours do not
/// share one.
pub const PCI_GSIS: [u32; 4] = [10, 10, 11, 11];

/// The first slot of a device that was asked for; those before are the chipset's.
const FIRST: u8 = 3;
/// Where the ports and the memory begin that firmware gives to functions.
const PORTS: u64 = 0xc000;
const MEMORY: u64 = 0xe000_0000;

/// A device that a PC can have on its PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciDevice {
    /// The test device of kvm-unit-tests' measurements.
    TestDevice,
    /// The edu device.
    Edu,
}

/// The IOMMU of a PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IommuConfig {
    /// Whether it remaps interrupts, too.
    pub interrupts: bool,
}

impl PciDevice {
    /// All of them.
    pub const ALL: [PciDevice; 2] = [PciDevice::TestDevice, PciDevice::Edu];

    /// What it is called on the command line and in scripts.
    pub const fn name(self) -> &'static str {
        match self {
            PciDevice::TestDevice => "pci-testdev",
            PciDevice::Edu => "edu",
        }
    }

    /// The device in a slot, with its interrupt line; BARs are placed from `ports` and `memory` on.
    fn make(
        self,
        slot: Slot,
        ports: &mut u64,
        memory: &mut u64,
        iommu: Option<Arc<dyn Iommu>>,
    ) -> (Box<dyn Device>, Option<u32>) {
        let gsi = PCI_GSIS[usize::from(slot.device() % 4)];
        let mut place = |shape| Placement::assign(shape, gsi as u8, ports, memory);
        match self {
            PciDevice::TestDevice => {
                let placement = Placement { line: 0, ..place(&testdev::SHAPE) };
                (Box::new(PciTestDevice::new(placement)), None)
            }
            PciDevice::Edu => {
                let memory = BusMemory::new(slot, iommu);
                (Box::new(Edu::new(memory, place(&edu::SHAPE))), Some(gsi))
            }
        }
    }
}

impl fmt::Display for PciDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PciDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<PciDevice, String> {
        PciDevice::ALL.into_iter().find(|device| device.name() == text).ok_or_else(|| {
            let names = PciDevice::ALL.map(PciDevice::name);
            format!("`{text}` is no device that this VMM has; it has {}", names.join(" and "))
        })
    }
}

/// Gives a PC its PCI bus: the host bridge, and these devices in slots of their own.
/// Their transfers go through `iommu`.
pub(super) fn add(
    pc: &mut Machine,
    devices: &[PciDevice],
    iommu: Option<Arc<dyn Iommu>>,
) -> Result<(), BoardError> {
    pc.add_pci("reset-control")?;
    pc.add_function(Box::new(HostBridge::new()), bridge::SLOT, None)?;
    let (mut ports, mut memory) = (PORTS, MEMORY);
    for (slot, device) in (FIRST..32).zip(devices) {
        let slot = Slot::new(slot, 0);
        let (function, gsi) = device.make(slot, &mut ports, &mut memory, iommu.clone());
        pc.add_function(function, slot, gsi)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{ManualClock, Nowhere, PcConfig, pc};
    use super::*;
    use crate::ram::{Backing, GuestRam};

    fn board(pci: Option<Vec<PciDevice>>) -> Result<Machine, BoardError> {
        let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
        let config = PcConfig { cpus: 1, pci, ..PcConfig::default() };
        pc(&config, ram, Arc::new(ManualClock::default()), Arc::new(Nowhere))
    }

    #[test]
    fn each_device_has_a_slot_and_places_of_its_own() {
        let machine = board(Some(PciDevice::ALL.to_vec())).expect("a board");
        let slots: Vec<_> = machine.pci_functions().map(|(s, name)| (s.device(), name)).collect();
        assert_eq!(slots, [(0, "pci-host"), (3, "pci-testdev"), (4, "edu")]);
        let places: Vec<_> = machine.pci_mappings().iter().map(|m| m.base).collect();
        assert_eq!(places, [0xcfc, MEMORY, PORTS, MEMORY + (1 << 20)]);
        let plain = board(None).expect("a board");
        assert_eq!((plain.pci_functions().count(), plain.pci_mappings().len()), (0, 0));
    }

    #[test]
    fn devices_have_names_and_are_there_once() {
        for device in PciDevice::ALL {
            assert_eq!(device.name().parse(), Ok(device));
        }
        let error = "e1000".parse::<PciDevice>().expect_err("none");
        assert!(error.contains("it has pci-testdev and edu"), "{error}");
        let twice = board(Some(vec![PciDevice::Edu, PciDevice::Edu])).err().expect("refused");
        assert!(twice.to_string().contains("its name is taken by `edu`"), "{twice}");
    }
}
