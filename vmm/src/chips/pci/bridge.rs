//! The host bridge: device 0 of bus 0, by which a guest knows that there is a PCI bus.
//!
//! It has the identity of Intel's 82441FX (8086:1237, class 0600). Nothing of that chip's memory
//! control is here: registers behind the header read 0.

use super::config::{Config, Placement, Registers, Shape};
use super::{CONFIG, Slot, config_region};
use crate::access::{IoError, Size};
use crate::device::{At, Device, Env, Region, StateError};
use crate::state::{decode, encode};

/// Where it is.
pub const SLOT: Slot = Slot::new(0, 0);

const NAME: &str = "pci-host";

static SHAPE: Shape = Shape {
    name: NAME,
    id: (0x8086, 0x1237),
    revision: 2,
    class: 0x06_0000,
    bars: &[],
    interrupt: false,
    master: false,
    messages: None,
};

/// The bridge.
#[derive(Clone, Debug)]
pub struct HostBridge {
    config: Config,
}

impl HostBridge {
    /// The bridge after power-on.
    pub fn new() -> HostBridge {
        HostBridge { config: Config::new(&SHAPE, Placement::default()) }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        HostBridge::new()
    }
}

impl Device for HostBridge {
    fn name(&self) -> &'static str {
        NAME
    }

    fn regions(&self) -> &'static [Region] {
        const { &[config_region("pci-host-config")] }
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match at.region {
            CONFIG => self.config.read(at.offset, size, false),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match at.region {
            CONFIG => self.config.write(env, at.offset, size, value),
            _ => Err(IoError::NoRegister),
        }
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        let HostBridge { config } = self;
        config.reset();
    }

    fn save(&self) -> Vec<u8> {
        let HostBridge { config } = self;
        encode(config.registers())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let regs: Registers = decode(NAME, state)?;
        self.config.check(&regs)?;
        self.config.set_registers(regs);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{Answer, Op, Session};

    #[test]
    fn it_says_what_it_is_and_takes_no_other_word() {
        let mut s = Session::new(HostBridge::new(), HostBridge::new);
        let wipe = (0..64).map(|i| Op::write(4 * i, Size::B4, 0xffff_ffff));
        let reads = [0, 4, 8, 0xc].map(|at| Op::read(at, Size::B4));
        s.run(&wipe.chain(reads).collect::<Vec<_>>()).expect("lawful");
        let read: Vec<_> = s.trace[64..].iter().map(|step| step.answer).collect();
        let expected = [0x1237_8086, 0, 0x0600_0002, 0].map(|v| Answer::Read(Ok(v)));
        assert_eq!(read, expected);
    }

    crate::device_laws!(laws, HostBridge::new);
}
