//! The PC board: the chips a payload, a kernel and kvm-unit-tests expect, where they expect them.

use std::sync::Arc;

use super::{Backplane, BoardError, IommuConfig, Machine, PciDevice, slots};
use crate::chips::acpi_pm::{self, AcpiPm, TimerWidth};
use crate::chips::exit::{self, DebugExit};
use crate::chips::fw_cfg::{self, FwCfg, Standard};
use crate::chips::hyperv_testdev::{self, HypervTestDevice};
use crate::chips::i8042::{self, I8042};
use crate::chips::ioapic::{self, IoApic};
use crate::chips::pci::memory::Iommu;
use crate::chips::pci::vtd::{self, Vtd};
use crate::chips::post::{self, PostPort};
use crate::chips::resets::{self, Port92, ResetControl};
use crate::chips::rtc::{self, Rtc};
use crate::chips::shutdown::{self, ShutdownPort};
use crate::chips::testdev::{self, TestDevice};
use crate::chips::uart::{self, Uart};
use crate::device::Clock;
use crate::ram::GuestRam;

/// What differs from one PC to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PcConfig {
    /// Number of vCPUs, for fw_cfg.
    pub cpus: u16,
    /// Wall-clock time at power-on, in seconds since 1970, for the RTC.
    pub unix_time: u64,
    /// What is on its PCI bus beside the host bridge, each device at most once; `None` if it has no
    /// such bus.
    pub pci: Option<Vec<PciDevice>>,
    /// Whether the board has an I/O APIC of its own, because the backplane has none.
    pub ioapic: bool,
    /// What stands between the PCI bus and memory; nothing if there is no such bus.
    pub iommu: Option<IommuConfig>,
}

/// A PC.
///
/// # Errors
/// When two of its devices claim one place: an error in the table below.
pub fn pc(
    config: &PcConfig,
    ram: GuestRam,
    clock: Arc<dyn Clock>,
    backplane: Arc<dyn Backplane>,
) -> Result<Machine, BoardError> {
    let mut pc = Machine::new(ram, clock, backplane);
    populate(&mut pc, config)?;
    Ok(pc)
}

/// Makes a PC of a board without devices.
///
/// # Errors
/// As [`pc`].
pub fn populate(pc: &mut Machine, config: &PcConfig) -> Result<(), BoardError> {
    let ram_size = pc.ram().size();
    let firmware = FwCfg::new(&Standard {
        ram_size,
        cpus: config.cpus,
        max_cpus: config.cpus,
        display: false,
        uuid: None,
    });
    let mut clock_chip = Rtc::new(config.unix_time);
    clock_chip.set_memory(ram_size);
    let pm = acpi_pm::PM_BASE;
    let at = |(port, gsi): (u16, u32)| ([u64::from(port)], Some(gsi));

    let (com1, gsi) = at(uart::COM1);
    pc.add(Box::new(Uart::new("com1")), &com1, gsi)?;
    let rtc_places = [u64::from(rtc::BASE)];
    pc.add(Box::new(clock_chip), &rtc_places, Some(rtc::GSI))?;
    let keyboard = [i8042::DATA_PORT, i8042::COMMAND_PORT];
    pc.add(Box::new(I8042::new()), &keyboard, Some(i8042::GSI))?;
    let places = [pm, pm + 4, pm + 8, acpi_pm::SMI_PORT];
    pc.add(Box::new(AcpiPm::new(TimerWidth::Bits24)), &places, Some(acpi_pm::GSI))?;
    pc.add(Box::new(firmware), &[fw_cfg::SELECTOR_PORT, fw_cfg::DMA_PORT], None)?;
    let port = |port: u16| [u64::from(port)];
    pc.add(Box::new(PostPort::default()), &port(post::BASE), None)?;
    pc.add(Box::new(Port92::new()), &port(resets::PORT92), None)?;
    pc.add(Box::new(ResetControl::default()), &port(resets::RESET_CONTROL), None)?;
    pc.add(Box::new(DebugExit), &port(exit::BASE), None)?;
    pc.add(Box::new(ShutdownPort::default()), &port(shutdown::BASE), None)?;
    let hyperv = HypervTestDevice::default();
    pc.add(Box::new(hyperv), &port(hyperv_testdev::BASE), None)?;
    pc.add(Box::new(TestDevice::new()), &testdev::BASES, None)?;
    let iommu = config.iommu.filter(|_| config.pci.is_some());
    let iommu = iommu.map(|iommu| Vtd::new(iommu.interrupts));
    if let Some(iommu) = &iommu {
        pc.add_iommu(Box::new(iommu.clone()), &[vtd::BASE], Arc::new(iommu.clone()))?;
    }
    if config.ioapic {
        pc.add_controller(Box::new(IoApic::new()), &[ioapic::BASE])?;
    }
    if let Some(devices) = &config.pci {
        slots::add(pc, devices, iommu.map(|iommu| Arc::new(iommu) as Arc<dyn Iommu>))?;
    }
    Ok(())
}
