//! The port of Bochs' BIOS that switches the machine off when "Shutdown" is written to it, which
//! kvm-unit-tests falls back to.

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Region, StateError};
use crate::state::{decode, encode};

/// Its port.
pub const BASE: u16 = 0x8900;

const WORD: &[u8; 8] = b"Shutdown";

/// Waits for the word, letter by letter.
#[derive(Clone, Debug, Default)]
pub struct ShutdownPort {
    /// How many letters were right so far.
    matched: u8,
}

impl Device for ShutdownPort {
    fn name(&self) -> &'static str {
        "shutdown"
    }

    fn regions(&self) -> &'static [Region] {
        &[Region { name: "shutdown", space: Space::Port, len: 1, widest: Size::B1 }]
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, _: Size) -> Result<u64, IoError> {
        Err(if at.offset == 0 { IoError::WriteOnly } else { IoError::NoRegister })
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match (at.offset, size) {
            (0, Size::B1) => {}
            (0, _) => return Err(IoError::Width),
            _ => return Err(IoError::NoRegister),
        }
        let letter = value as u8;
        self.matched = if letter == WORD[usize::from(self.matched)] {
            self.matched + 1
        } else {
            // The first letter comes but once in the word, so nothing else can go on matching.
            u8::from(letter == WORD[0])
        };
        if usize::from(self.matched) == WORD.len() {
            self.matched = 0;
            env.act(Action::PowerOff);
        }
        Ok(())
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        self.matched = 0;
    }

    fn save(&self) -> Vec<u8> {
        let ShutdownPort { matched } = self;
        encode(matched)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let matched = decode("shutdown", state)?;
        if usize::from(matched) >= WORD.len() {
            let what = format!("{matched} letters of 8 matched");
            return Err(StateError { device: "shutdown", what });
        }
        self.matched = matched;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{Op, Session};

    fn written(bytes: &[u8]) -> Vec<Action> {
        let mut s = Session::new(ShutdownPort::default(), ShutdownPort::default);
        for &byte in bytes {
            s.apply(&Op::write(0, Size::B1, byte.into())).expect("lawful");
        }
        s.trace.into_iter().flat_map(|step| step.actions).collect()
    }

    #[test]
    fn the_word_and_nothing_else_switches_off() {
        for (bytes, times) in [
            (&b"Shutdown"[..], 1),
            (b"ShShutdown", 1),
            (b"SShutdownShutdown", 2),
            (b"Shutdow", 0),
            (b"shutdown", 0),
            (b"Shut down", 0),
        ] {
            assert_eq!(written(bytes), vec![Action::PowerOff; times]);
        }
    }

    #[test]
    fn a_place_beyond_the_word_is_refused() {
        let mut port = ShutdownPort::default();
        assert!(port.restore(&encode(&8u8)).is_err());
        port.restore(&encode(&7u8)).expect("a place in the word");
    }

    crate::device_laws!(
        laws,
        ShutdownPort::default,
        prologues: [b"Shutdow".iter().map(|&b| Op::write(0, Size::B1, b.into())).collect()],
    );
}
