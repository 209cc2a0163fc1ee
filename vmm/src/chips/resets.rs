//! The chipset's two ways to reset the machine: port 0x92 and the reset control register 0xcf9.
//!
//! After Intel's ICH9 datasheet, 13.7.3 (INIT/PORT 92h "fast init") and 13.7.5 (RST_CNT).

use serde::{Deserialize, Serialize};

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Region, StateError};
use crate::state::{decode, encode};

/// Port of [`Port92`].
pub const PORT92: u16 = 0x92;
/// First port of [`ResetControl`]: that of the PCI configuration address. The reset control register
/// is the byte at 0xcf9.
pub const RESET_CONTROL: u16 = 0xcf8;

/// A byte register at offset 0.
fn byte(at: At, size: Size) -> Result<(), IoError> {
    match (at.offset, size) {
        (0, Size::B1) => Ok(()),
        (0, _) => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}

/// System control port A: bit 0 resets as it goes from 0 to 1, bit 1 opens the A20 gate. The gate
/// is open after power-on, as firmware leaves it; the other bits read 0.
#[derive(Clone, Debug)]
pub struct Port92 {
    value: u8,
}

const FAST_RESET: u8 = 1;
const A20: u8 = 2;

impl Port92 {
    /// The port after power-on.
    pub fn new() -> Port92 {
        Port92 { value: A20 }
    }
}

impl Default for Port92 {
    fn default() -> Self {
        Port92::new()
    }
}

impl Device for Port92 {
    fn name(&self) -> &'static str {
        "port92"
    }

    fn regions(&self) -> &'static [Region] {
        &[Region { name: "port92", space: Space::Port, len: 1, widest: Size::B1 }]
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        byte(at, size)?;
        Ok(self.value.into())
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        byte(at, size)?;
        let value = value as u8 & (FAST_RESET | A20);
        let risen = value & !self.value;
        if (value ^ self.value) & A20 != 0 {
            env.act(Action::A20(value & A20 != 0));
        }
        self.value = value;
        if risen & FAST_RESET != 0 {
            env.act(Action::Reset);
        }
        Ok(())
    }

    fn reset(&mut self, env: &mut Env<'_>) {
        if self.value & A20 == 0 {
            env.act(Action::A20(true));
        }
        *self = Port92::new();
    }

    fn save(&self) -> Vec<u8> {
        let Port92 { value } = self;
        encode(value)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let value: u8 = decode("port92", state)?;
        if value & !(FAST_RESET | A20) != 0 {
            let what = format!("value {value:#x} has bits that do not exist");
            return Err(StateError { device: "port92", what });
        }
        self.value = value;
        Ok(())
    }
}

/// The PCI configuration address, which takes only dwords, and in the second of its bytes the reset
/// control register, which takes only that byte.
///
/// The machine is reset as bit 2 of that register goes from 0 to 1. What kind of reset bits 1 and 3 ask
/// for makes no difference here; they read as written. The address (PCI Local Bus 3.0, 3.2.2.3.2)
/// reads as written, too, but for the bits that are 0. What it selects is at the data port, if the
/// board has a PCI bus.
#[derive(Clone, Debug, Default)]
pub struct ResetControl {
    regs: Regs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Regs {
    control: u8,
    address: u32,
}

/// Where the reset control register is.
const CONTROL: u64 = 1;
const RESET_CPU: u8 = 1 << 2;
const RESET_BITS: u8 = 0b1110;
/// Bits of the configuration address: enable, bus, device, function, register.
const ADDRESS_BITS: u32 = 0x80ff_fffc;

impl Device for ResetControl {
    fn name(&self) -> &'static str {
        "reset-control"
    }

    fn regions(&self) -> &'static [Region] {
        &[Region { name: "reset-control", space: Space::Port, len: 4, widest: Size::B4 }]
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match (at.offset, size) {
            (CONTROL, Size::B1) => Ok(self.regs.control.into()),
            (0, Size::B4) => Ok(self.regs.address.into()),
            (0..4, _) => Err(IoError::Width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match (at.offset, size) {
            (CONTROL, Size::B1) => {
                let value = value as u8 & RESET_BITS;
                if value & !self.regs.control & RESET_CPU != 0 {
                    env.act(Action::Reset);
                }
                self.regs.control = value;
            }
            (0, Size::B4) => self.regs.address = value as u32 & ADDRESS_BITS,
            (0..4, _) => return Err(IoError::Width),
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }

    fn config_address(&self) -> Option<u32> {
        Some(self.regs.address)
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        let ResetControl { regs } = self;
        *regs = Regs::default();
    }

    fn save(&self) -> Vec<u8> {
        let ResetControl { regs } = self;
        encode(regs)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let regs: Regs = decode("reset-control", state)?;
        if regs.control & !RESET_BITS != 0 || regs.address & !ADDRESS_BITS != 0 {
            let what = format!("{regs:x?} has bits that do not exist");
            return Err(StateError { device: "reset-control", what });
        }
        self.regs = regs;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{Answer, Op, Session, Step};

    fn steps<D: Device>(make: fn() -> D, ops: &[Op]) -> Vec<Step> {
        let mut s = Session::new(make(), make);
        s.run(ops).expect("lawful");
        s.trace
    }

    fn written<D: Device>(make: fn() -> D, offset: u64, values: &[u8]) -> Vec<Vec<Action>> {
        let ops: Vec<_> = values.iter().map(|&v| Op::write(offset, Size::B1, v.into())).collect();
        steps(make, &ops).into_iter().map(|step| step.actions).collect()
    }

    #[test]
    fn port_92_resets_on_the_rising_edge_only() {
        let [reset, none] = [vec![Action::Reset], vec![]];
        let expected = [reset.clone(), none.clone(), none, reset];
        assert_eq!(written(Port92::new, 0, &[3, 3, 2, 3]), expected);
    }

    #[test]
    fn port_92_moves_the_a20_gate() {
        let [shut, open] = [false, true].map(|on| vec![Action::A20(on)]);
        assert_eq!(written(Port92::new, 0, &[0, 0, 2, 2]), [shut, vec![], open, vec![]]);
        let both = vec![Action::A20(false), Action::Reset];
        assert_eq!(written(Port92::new, 0, &[1]), [both]);
        let after = steps(Port92::new, &[Op::write(0, Size::B1, 0), Op::Reset]);
        assert_eq!(after[1].actions, [Action::A20(true)]);
    }

    #[test]
    fn bits_that_do_not_exist_read_0_and_are_refused() {
        let ops = [Op::write(0, Size::B1, 0xf2), Op::read(0, Size::B1)];
        assert_eq!(steps(Port92::new, &ops)[1].answer, Answer::Read(Ok(2)));
        assert!(Port92::new().restore(&encode(&4u8)).is_err());
        let ops = [Op::write(CONTROL, Size::B1, 0xfb), Op::read(CONTROL, Size::B1)];
        assert_eq!(steps(ResetControl::default, &ops)[1].answer, Answer::Read(Ok(0xa)));
        for regs in [Regs { control: 1, address: 0 }, Regs { control: 0, address: 1 }] {
            assert!(ResetControl::default().restore(&encode(&regs)).is_err());
        }
    }

    #[test]
    fn reset_control_resets_on_the_rising_edge_of_bit_2() {
        let [reset, none] = [vec![Action::Reset], vec![]];
        let expected = [none.clone(), reset.clone(), none.clone(), none, reset];
        assert_eq!(written(ResetControl::default, CONTROL, &[2, 6, 0xe, 2, 4]), expected);
    }

    #[test]
    fn a_dword_is_the_configuration_address_and_resets_nothing() {
        let (write, read) = (Op::write(0, Size::B4, 0xffff_ffff), Op::read(0, Size::B4));
        let steps = steps(ResetControl::default, &[write, read, Op::write(0, Size::B2, 0x400)]);
        assert_eq!(steps[1].answer, Answer::Read(Ok(0x80ff_fffc)));
        assert_eq!(steps[2].answer, Answer::Wrote(Err(IoError::Width)));
        assert!(steps.iter().all(|step| step.actions.is_empty()));
    }

    crate::device_laws!(port92_laws, Port92::new);
    crate::device_laws!(reset_control_laws, ResetControl::default);
}
