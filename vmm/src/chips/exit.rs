//! The port that ends the machine: QEMU's `isa-debug-exit`, which kvm-unit-tests and bare-metal
//! guests write their verdict to.

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Region, StateError};
use crate::state::{decode, encode};

/// Where test guests expect it.
pub const BASE: u16 = 0xf4;

/// Any write ends the machine with the value's low byte; a read gives 0.
#[derive(Clone, Debug, Default)]
pub struct DebugExit;

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        "debug-exit"
    }

    fn regions(&self) -> &'static [Region] {
        &[Region { name: "debug-exit", space: Space::Port, len: 4, widest: Size::B4 }]
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, _: Size) -> Result<u64, IoError> {
        if at.offset < 4 { Ok(0) } else { Err(IoError::NoRegister) }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, _: Size, value: u64) -> Result<(), IoError> {
        if at.offset >= 4 {
            return Err(IoError::NoRegister);
        }
        env.act(Action::Exit(value as u8));
        Ok(())
    }

    fn reset(&mut self, _: &mut Env<'_>) {}

    fn save(&self) -> Vec<u8> {
        let DebugExit = self;
        encode(&())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        decode("debug-exit", state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{Answer, Op, Session};

    #[test]
    fn the_low_byte_of_any_write_is_the_verdict() {
        for (size, value) in [(Size::B1, 0x21), (Size::B2, 0x1021), (Size::B4, 0x9000_0021)] {
            let mut s = Session::new(DebugExit, || DebugExit);
            s.run(&[Op::read(0, size), Op::write(0, size, value)]).expect("lawful");
            assert_eq!(s.trace[0].answer, Answer::Read(Ok(0)));
            assert_eq!(s.trace[0].actions, []);
            assert_eq!(s.trace[1].actions, [Action::Exit(0x21)]);
        }
    }

    crate::device_laws!(laws, || DebugExit);
}
