//! Small models of devices: what a specification says that a device answers.
//!
//! A model sees what guest and host do to a board, and what came of it. It is written from the
//! specification that it names, not from the device, and knows no device's code. Of what a specification
//! leaves open it takes what the device's documentation says that this board does, or says nothing.
//!
//! A device shows its interrupt line when it is called. What time alone does to it shows on the line once
//! the board's timer has fired; until then a model asks nothing of the line.

mod acpi_pm;
mod edu;
mod fw_cfg;
mod i8042;
mod ioapic;
mod msi;
mod rtc;
mod synic;
#[cfg(test)]
mod tests;
mod uart;
mod vtd;

use vmm::access::{Access, Dir, Space};
use vmm::device::Nanos;
use vmm::exit::Exit;
use vmm::machine::{Machine, PciDevice};
use vmm::script::replay::{Outcome, Touch};
use vmm::script::{Answer, BoardSpec, Effect, Op};

use crate::oracles::{Law, Violation};

/// What is the same for all models: an operation, and what came of it.
struct Seen<'a> {
    op: &'a Op,
    outcome: &'a Outcome,
    /// The access that it is, and what a read gave.
    access: Option<Access>,
    value: Option<u64>,
    now: Nanos,
    machine: &'a Machine,
    /// What devices did to memory.
    touched: &'a [Touch],
    /// Memory changes while devices read it.
    is_racing: bool,
}

/// What a device is to do.
trait Model {
    /// The operation is about to be done.
    fn before(&mut self, op: &Op, machine: &Machine) {
        let _ = (op, machine);
    }

    /// Whether that is what the device is to do, as far as the model knows; if not, what is.
    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String>;

    /// Whether the guest offered this memory for the device to write, in the operation that was done.
    fn offers(&self, touch: &Touch) -> bool {
        let _ = touch;
        false
    }
}

/// The models of a board's devices.
pub struct Models {
    models: Vec<(&'static str, Box<dyn Model>)>,
    /// Every device that writes to memory has its model, so no other write may be.
    writes: bool,
    /// Memory changes during the next operation.
    is_racing: bool,
}

/// The boards but the PC of which no device writes to memory but those that have a model.
const CLOSED: &[&str] = &[
    "uart",
    "rtc",
    "i8042",
    "acpi-pm",
    "fw-cfg",
    "post",
    "resets",
    "exit",
    "shutdown",
    "hyperv-testdev",
    "testdev",
    "ioapic",
    "pci-testdev",
    "pci-config",
    "edu",
    "vtd",
];

impl Models {
    /// Of no device: nothing is asked.
    pub const fn none() -> Models {
        Models { models: Vec::new(), writes: false, is_racing: false }
    }

    /// Those that there are for the devices of this board, which was just switched on.
    pub fn of(spec: &BoardSpec) -> Models {
        let time = spec.unix_time;
        let mut models: Vec<(_, Box<dyn Model>)> = match &spec.kind[..] {
            "uart" => vec![("com1", Box::new(uart::Uart::new(true)))],
            "rtc" => vec![("rtc", Box::new(rtc::Rtc::new(0, true)))],
            "i8042" => vec![("i8042", Box::new(i8042::I8042::new(true)))],
            "acpi-pm" => vec![("acpi-pm", Box::new(acpi_pm::AcpiPm::new(true)))],
            "ioapic" => vec![("ioapic", Box::new(ioapic::IoApic::new(true)))],
            "edu" => vec![("edu", Box::new(edu::Edu::new(3, 11, true, None)))],
            "pci-config" => vec![("edu", Box::new(edu::Edu::new(4, 10, true, None)))],
            "fw-cfg" => vec![("fw-cfg", Box::new(fw_cfg::FwCfg::new(spec)))],
            "vtd" => {
                let unit = vtd::Unit::new(vtd::Vtd::new(true).into());
                let edu = edu::Edu::new(3, 11, true, Some(unit.clone()));
                vec![("intel-iommu", Box::new(unit)), ("edu", Box::new(edu))]
            }
            // Others drive lines there, too.
            "pc" => vec![
                ("com1", Box::new(uart::Uart::new(false))),
                ("rtc", Box::new(rtc::Rtc::new(time, false))),
                ("i8042", Box::new(i8042::I8042::new(false))),
                ("acpi-pm", Box::new(acpi_pm::AcpiPm::new(false))),
                ("fw-cfg", Box::new(fw_cfg::FwCfg::new(spec))),
            ],
            _ => Vec::new(),
        };
        let is_whole = spec.kind == "pc" && Models::add_pci(spec, &mut models);
        let writes = is_whole || CLOSED.contains(&&spec.kind[..]);
        if writes {
            // Every board answers Hyper-V's calls.
            models.push(("synic", Box::<synic::Synic>::default()));
        }
        Models { models, writes, is_racing: false }
    }

    /// What a PC may have beside its fixed chips. False if something there has no model.
    fn add_pci(spec: &BoardSpec, models: &mut Vec<(&'static str, Box<dyn Model>)>) -> bool {
        let iommu = spec.iommu.filter(|_| spec.pci.is_some());
        // What the I/O APIC sends and waits for is then what tables in memory make of it.
        let is_remapped = spec.ioapic && iommu.is_some_and(|iommu| iommu.interrupts);
        if spec.ioapic && !is_remapped {
            models.push(("ioapic", Box::new(ioapic::IoApic::new(false))));
        }
        if is_remapped {
            return false;
        }
        let unit = iommu.map(|iommu| vtd::Unit::new(vtd::Vtd::new(iommu.interrupts).into()));
        if let Some(unit) = &unit {
            models.push(("intel-iommu", Box::new(unit.clone())));
        }
        let devices = spec.pci.iter().flatten();
        if let Some((slot, _)) = (3..).zip(devices).find(|(_, device)| **device == PciDevice::Edu) {
            // A slot's pin is routed by its number.
            let gsi = [10, 10, 11, 11][slot % 4];
            models.push(("edu", Box::new(edu::Edu::new(slot as u64, gsi, false, unit))));
        }
        true
    }

    /// An operation is about to be done.
    pub fn before(&mut self, op: &Op, machine: &Machine) {
        self.models.iter_mut().for_each(|(_, model)| model.before(op, machine));
    }

    /// What came of operation `at` (the first is 0), held against what the models say; `touched` is what
    /// devices did to memory.
    ///
    /// # Errors
    /// When a device does something else.
    pub fn after(
        &mut self,
        at: usize,
        op: &Op,
        outcome: &Outcome,
        machine: &Machine,
        touched: &[Touch],
    ) -> Result<(), Violation> {
        if self.models.is_empty() {
            return Ok(());
        }
        let value = match outcome.answer {
            Answer::Value(value) => Some(value),
            _ => None,
        };
        let (access, now, is_racing) = (access(op), machine.now(), self.is_racing);
        let seen = Seen { op, outcome, access, value, now, machine, touched, is_racing };
        self.is_racing = match op {
            Op::Ram { after, .. } => is_racing || *after > 0,
            _ => false,
        };
        let broken = |what| Violation { law: Law::Model, step: Some(at + 1), what };
        self.models.iter_mut().try_for_each(|(name, model)| {
            let wrong = |what| broken(format!("device `{name}` at `{op}`: {what}"));
            model.step(&seen).map_err(wrong)
        })?;
        let offered = |touch: &&Touch| self.models.iter().any(|(_, model)| model.offers(touch));
        let mut writes = touched.iter().filter(|touch| touch.is_write && self.writes);
        match writes.find(|touch| !offered(touch)) {
            Some(Touch { addr, len, .. }) => Err(broken(format!(
                "`{op}` has {len} bytes written at {addr:#x}, which the guest offered to no device"
            ))),
            None => Ok(()),
        }
    }
}

/// The access that an operation is.
fn access(op: &Op) -> Option<Access> {
    match op {
        Op::Exit { exit: Exit::Io(access), .. } => Some(*access),
        _ => None,
    }
}

/// What a device with registers of a byte sees of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Byte {
    /// A read; what the guest got, if it got anything.
    Read(Option<u8>),
    /// A write.
    Write(u8),
}

impl Seen<'_> {
    /// The bytes of an access that fall on `len` ports from `base`, by their places there: a bridge to
    /// a bus of bytes makes one access of each, the low one first.
    #[inline]
    fn bytes(&self, base: u64, len: u64) -> Bytes {
        match self.access {
            Some(Access { space: Space::Port, addr, size, dir }) => {
                let (offset, left) = (addr.wrapping_sub(base), size.bytes());
                let value = match dir {
                    Dir::Read => self.value,
                    Dir::Write(value) => Some(value),
                };
                Bytes { offset, left, len, value, is_write: dir != Dir::Read }
            }
            _ => Bytes { offset: 0, left: 0, len, value: None, is_write: false },
        }
    }

    /// How many bytes a device took of the host's, and which; if it was offered any.
    fn input(&self, device: &str) -> Option<(&[u8], Option<u64>)> {
        match self.op {
            Op::Input { device: name, bytes } if name == device => Some((bytes, self.value)),
            _ => None,
        }
    }

    /// Whether every device has been told the time by this.
    fn is_told(&self) -> bool {
        matches!(self.op, Op::Timer | Op::Reset)
    }
}

/// What [`Seen::bytes`] gives.
struct Bytes {
    /// Of the next byte; below `len` if it falls on the ports.
    offset: u64,
    left: u64,
    len: u64,
    /// The next byte is the lowest.
    value: Option<u64>,
    is_write: bool,
}

impl Iterator for Bytes {
    type Item = (u64, Byte);

    #[inline]
    fn next(&mut self) -> Option<(u64, Byte)> {
        while self.left > 0 {
            let (offset, value) = (self.offset, self.value);
            self.offset = offset.wrapping_add(1);
            self.left -= 1;
            self.value = value.map(|value| value >> 8);
            if offset < self.len {
                let byte = value.map(|value| value as u8);
                let write = byte.filter(|_| self.is_write).map(Byte::Write);
                return Some((offset, write.unwrap_or(Byte::Read(byte))));
            }
        }
        None
    }
}

/// Bits of what was read that must be as expected.
fn bits(what: &str, got: Option<u8>, expected: u8, mask: u8) -> Result<(), String> {
    match got {
        Some(got) if (got ^ expected) & mask != 0 => {
            let of = if mask == 0xff { String::new() } else { format!(" in {mask:#x}") };
            Err(format!("{what} is {expected:#x}{of}, not {got:#x}"))
        }
        _ => Ok(()),
    }
}

/// What was read must be this.
fn same(what: &str, got: Option<u8>, expected: u8) -> Result<(), String> {
    bits(what, got, expected, 0xff)
}

/// An interrupt line.
#[derive(Clone, Copy, Debug)]
struct Line {
    gsi: u32,
    high: bool,
    /// Nobody else drives it.
    alone: bool,
    /// Time may have changed the level, and the board was not told.
    late: bool,
}

impl Line {
    const fn new(gsi: u32, alone: bool) -> Line {
        Line { gsi, high: false, alone, late: false }
    }

    /// Notes what the line did.
    fn hear(&mut self, outcome: &Outcome) {
        for effect in &outcome.effects {
            if let Effect::Line { gsi, level } = effect
                && *gsi == self.gsi
            {
                self.high = *level;
            }
        }
    }

    /// The device was called, and its line is to be at this level (`None`: any).
    fn must(&self, level: Option<bool>) -> Result<(), String> {
        let wrong = match level {
            Some(true) => !self.high,
            Some(false) => self.high && self.alone,
            None => false,
        };
        if wrong && !self.late {
            let level = if self.high { "low" } else { "high" };
            return Err(format!("its interrupt line {} is to be {level}", self.gsi));
        }
        Ok(())
    }
}
