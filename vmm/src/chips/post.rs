//! The port that firmware tells its progress on: the "POST card" of a PC.

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Region, StateError};
use crate::state::{decode, encode};

/// Its port. (Linux also writes it to pass a microsecond.)
pub const BASE: u16 = 0x80;

/// Each byte written is told to the board; a read gives the last one.
#[derive(Clone, Debug, Default)]
pub struct PostPort {
    code: u8,
}

impl Device for PostPort {
    fn name(&self) -> &'static str {
        "post"
    }

    fn regions(&self) -> &'static [Region] {
        &[Region { name: "post", space: Space::Port, len: 1, widest: Size::B1 }]
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match (at.offset, size) {
            (0, Size::B1) => Ok(self.code.into()),
            (0, _) => Err(IoError::Width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match (at.offset, size) {
            (0, Size::B1) => {
                self.code = value as u8;
                env.act(Action::Post(self.code));
                Ok(())
            }
            (0, _) => Err(IoError::Width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        self.code = 0;
    }

    fn save(&self) -> Vec<u8> {
        let PostPort { code } = self;
        encode(code)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.code = decode("post", state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{Answer, Op, Session};

    #[test]
    fn a_code_is_told_and_kept() {
        let mut s = Session::new(PostPort::default(), PostPort::default);
        s.run(&[Op::write(0, Size::B1, 0xa5), Op::read(0, Size::B1)]).expect("lawful");
        assert_eq!(s.trace[0].actions, [Action::Post(0xa5)]);
        assert_eq!(s.trace[1].answer, Answer::Read(Ok(0xa5)));
    }

    crate::device_laws!(laws, PostPort::default);
}
