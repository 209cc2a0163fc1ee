//! The PCI test device: places to write to, whose cost a guest measures.
//!
//! After QEMU's description of `pci-testdev` (docs/specs/pci-testdev.rst). BAR 0 is memory, BAR 1 are
//! ports. Each begins with a header:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | the test; writing it starts that test |
//! | 1 | 1 | width of the test's access; 0 if there is no such test |
//! | 4 | 4 | where in the BAR the test's access goes |
//! | 8 | 4 | what it writes |
//! | 12 | 4 | how many such writes there were since the test was started |
//! | 16 | | the test's name, ending in 0 |
//!
//! Tests 0 to 2 are those that QEMU has: a plain register, one of which every write is counted, and one
//! that counts writes of one value. There the last two are served by KVM without an exit (`KVM_IOEVENTFD`);
//! here each write is an exit of its own, and what the guest sees is the same.

use serde::{Deserialize, Serialize};

use super::config::{Bar, Config, Placement, Registers, Shape};
use super::{CONFIG, config_region};
use crate::access::{IoError, Size, Space};
use crate::device::{At, Device, Env, Region, StateError};
use crate::planted::{self, Flaw};
use crate::state::{decode, encode};

const NAME: &str = "pci-testdev";
const MEMORY: Bar = Bar::Memory32(4096);
const PORTS: Bar = Bar::Io(256);

/// What it is on the bus.
pub static SHAPE: Shape = Shape {
    name: NAME,
    id: (0x1b36, 0x0005),
    revision: 0,
    class: 0xff_0000,
    bars: &[(0, MEMORY), (1, PORTS)],
    interrupt: false,
    master: false,
    messages: None,
};

const REGIONS: &[Region] = &[
    config_region("pci-testdev-config"),
    Region { name: "pci-testdev-memory", space: Space::Mmio, len: MEMORY.len(), widest: Size::B4 },
    Region { name: "pci-testdev-ports", space: Space::Port, len: PORTS.len(), widest: Size::B4 },
];

/// What a test writes.
const DATA: u32 = 0xfa;
/// Names of the tests, behind that of the address space.
const TESTS: [&str; 3] = ["no-eventfd", "wildcard-eventfd", "datamatch-eventfd"];
/// The test that counts writes of [`DATA`] only.
const MATCHING: u8 = 2;
const SPACES: [&str; 2] = ["mmio-", "portio-"];

/// Of one BAR: the test that was started, and its count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Running {
    test: Option<u8>,
    count: u32,
}

/// The device.
#[derive(Clone, Debug)]
pub struct PciTestDevice {
    config: Config,
    running: [Running; 2],
}

impl PciTestDevice {
    /// The device after power-on, as firmware leaves it.
    pub fn new(placement: Placement) -> PciTestDevice {
        PciTestDevice { config: Config::new(&SHAPE, placement), running: Default::default() }
    }
}

/// Where a test's access goes: behind the half of the BAR that the header is in.
fn place(bar: usize, test: u8) -> u64 {
    REGIONS[bar + 1].len / 2 + u64::from(test)
}

/// A byte of the header.
fn header(bar: usize, running: &Running, at: u64) -> u8 {
    let Some(test) = running.test else { return 0 };
    let field = |value: u32, from: u64| value.to_le_bytes()[(at - from) as usize];
    match at {
        0 => test,
        1 => 1,
        4..8 => field(place(bar, test) as u32, 4),
        8..12 => field(DATA, 8),
        12..16 => field(running.count, 12),
        16.. => {
            let name = SPACES[bar].bytes().chain(TESTS[usize::from(test)].bytes());
            name.chain([0]).nth((at - 16) as usize).unwrap_or(0)
        }
        _ => 0,
    }
}

impl Device for PciTestDevice {
    fn name(&self) -> &'static str {
        NAME
    }

    fn regions(&self) -> &'static [Region] {
        REGIONS
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        if at.region == CONFIG {
            return self.config.read(at.offset, size, false);
        }
        let bar = usize::from(at.region) - 1;
        let region = REGIONS.get(bar + 1).ok_or(IoError::NoRegister)?;
        let last = at.offset.checked_add(size.bytes() - 1).filter(|&last| last < region.len / 2);
        let last = last.ok_or(IoError::NoRegister)?;
        let bytes = (at.offset..=last).rev().map(|i| header(bar, &self.running[bar], i));
        Ok(bytes.fold(0, |value, byte| value << 8 | u64::from(byte)))
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        if at.region == CONFIG {
            return self.config.write(env, at.offset, size, value);
        }
        let bar = usize::from(at.region) - 1;
        let running = self.running.get_mut(bar).ok_or(IoError::NoRegister)?;
        match (at.offset, size, running.test) {
            (0, Size::B1, _) => {
                let test = value as u8;
                let last = TESTS.len() + usize::from(planted::has(Flaw::PciTestName));
                let known = usize::from(test) < last;
                *running = Running { test: known.then_some(test), count: 0 };
            }
            (0, _, _) => return Err(IoError::Width),
            (1..16, _, _) => return Err(IoError::ReadOnly),
            (offset, Size::B1, Some(test)) if offset == place(bar, test) => {
                if test != MATCHING || value == u64::from(DATA) {
                    running.count = running.count.wrapping_add(1);
                }
            }
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }

    fn base(&self, region: u8) -> Option<u64> {
        self.config.base(usize::from(region.checked_sub(1)?))
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        let PciTestDevice { config, running } = self;
        config.reset();
        *running = Default::default();
    }

    fn save(&self) -> Vec<u8> {
        let PciTestDevice { config, running } = self;
        encode(&(config.registers(), running))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let (config, running): (Registers, [Running; 2]) = decode(NAME, state)?;
        self.config.check(&config)?;
        let possible = |running: &Running| match running.test {
            Some(test) => usize::from(test) < TESTS.len(),
            None => running.count == 0,
        };
        if !running.iter().all(possible) {
            let what = format!("there are no such tests: {running:?}");
            return Err(StateError { device: NAME, what });
        }
        self.config.set_registers(config);
        self.running = running;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{Answer, Op, Session};

    fn new() -> PciTestDevice {
        let placement = Placement { bases: vec![0xe000_0000, 0xc000], line: 0 };
        PciTestDevice::new(placement)
    }

    fn read(s: &mut Session<PciTestDevice>, region: u8, offset: u64, size: Size) -> Answer {
        s.apply(&Op::Read { region, offset, size }).expect("lawful");
        s.trace.last().expect("a step").answer
    }

    fn write(s: &mut Session<PciTestDevice>, region: u8, offset: u64, value: u64) -> Answer {
        s.apply(&Op::Write { region, offset, size: Size::B1, value }).expect("lawful");
        s.trace.last().expect("a step").answer
    }

    #[test]
    fn tests_are_found_by_counting_up() {
        for (region, space, first) in [(1, "mmio", 2048), (2, "portio", 128)] {
            let mut s = Session::new(new(), new);
            assert_eq!(read(&mut s, region, 1, Size::B1), Answer::Read(Ok(0)), "none is started");
            for (test, name) in (0..).zip(["no", "wildcard", "datamatch"]) {
                write(&mut s, region, 0, test);
                assert_eq!(read(&mut s, region, 0, Size::B2), Answer::Read(Ok(0x100 | test)));
                assert_eq!(read(&mut s, region, 4, Size::B4), Answer::Read(Ok(first + test)));
                assert_eq!(read(&mut s, region, 8, Size::B4), Answer::Read(Ok(0xfa)));
                let name = format!("{space}-{name}-eventfd\0\0");
                for (at, byte) in (16..).zip(name.bytes()) {
                    assert_eq!(read(&mut s, region, at, Size::B1), Answer::Read(Ok(byte.into())));
                }
            }
            write(&mut s, region, 0, 3);
            assert_eq!(read(&mut s, region, 1, Size::B1), Answer::Read(Ok(0)), "there is no more");
        }
    }

    #[test]
    fn a_test_counts_the_writes_it_is_about() {
        let mut s = Session::new(new(), new);
        for (test, counted) in [(0, 3), (1, 3), (2, 2)] {
            write(&mut s, 1, 0, test);
            for value in [0xfa, 0xce, 0xfa] {
                assert_eq!(write(&mut s, 1, 2048 + test, value), Answer::Wrote(Ok(())));
            }
            let elsewhere = Answer::Wrote(Err(IoError::NoRegister));
            assert_eq!(write(&mut s, 1, 2049 + test, 0xfa), elsewhere);
            assert_eq!(read(&mut s, 1, 12, Size::B4), Answer::Read(Ok(counted)));
            assert_eq!(read(&mut s, 2, 12, Size::B4), Answer::Read(Ok(0)), "the other BAR");
        }
    }

    crate::device_laws!(laws, new, prologues: [
        vec![Op::Write { region: 1, offset: 0, size: Size::B1, value: 2 }],
    ]);
}
