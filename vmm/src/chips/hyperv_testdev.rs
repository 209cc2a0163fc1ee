//! The test device of Hyper-V's synthetic interrupt controllers: what kvm-unit-tests' x86 images expect
//! at port 0x3000.
//!
//! One register, written as a dword:
//!
//! | bits | meaning |
//! |---|---|
//! | 7:0 | a synthetic interrupt source (SINT), 0 to 15 |
//! | 15:8 | a virtual processor |
//! | 23:16 | the command |
//! | 31:24 | a connection |
//!
//! | command | what it does |
//! |---|---|
//! | 1, 2 | makes and destroys a route to a source |
//! | 3 | requests the interrupt of a source that has a route |
//! | 4, 5 | makes a connection for messages to a source; destroys one, whatever source is named |
//! | 6, 7 | the same for events |

use std::collections::BTreeMap;

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Region, StateError, SynicCall};
use crate::planted::{self, Flaw};
use crate::state::{decode, encode};

/// Its port.
pub const BASE: u16 = 0x3000;

/// Sources of a processor.
const SOURCES: u8 = 16;

/// The device.
#[derive(Clone, Debug, Default)]
pub struct HypervTestDevice {
    /// Sources of each processor that have a route, as a bit set; never an empty one.
    routes: BTreeMap<u8, u16>,
}

impl HypervTestDevice {
    fn command(&mut self, env: &mut Env<'_>, word: u32) {
        let [sint, processor, command, connection] = word.to_le_bytes();
        let (vp, connection) = (u16::from(processor), u32::from(connection));
        let bit = 1 << (sint % SOURCES);
        let call = match command {
            5 => SynicCall::Disconnect { connection, events: false },
            7 => SynicCall::Disconnect { connection, events: true },
            // There is no such source.
            _ if sint >= SOURCES => return,
            1 => {
                *self.routes.entry(processor).or_default() |= bit;
                return;
            }
            2 => {
                if let Some(routes) = self.routes.get_mut(&processor) {
                    *routes &= !bit;
                }
                let empty = planted::has(Flaw::SynicRoutes);
                self.routes.retain(|_, routes| *routes != 0 || empty);
                return;
            }
            3 if self.routes.get(&processor).is_some_and(|routes| routes & bit != 0) => {
                SynicCall::Raise { vp, sint }
            }
            4 => SynicCall::ConnectMessages { connection, vp, sint },
            6 => SynicCall::ConnectEvents { connection, vp, sint },
            _ => return,
        };
        env.act(Action::Synic(call));
    }
}

impl Device for HypervTestDevice {
    fn name(&self) -> &'static str {
        "hyperv-testdev"
    }

    fn regions(&self) -> &'static [Region] {
        &[Region { name: "hyperv-testdev", space: Space::Port, len: 4, widest: Size::B4 }]
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, _: Size) -> Result<u64, IoError> {
        if at.offset < 4 { Err(IoError::WriteOnly) } else { Err(IoError::NoRegister) }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match (at.offset, size) {
            (0, Size::B4) => {
                self.command(env, value as u32);
                Ok(())
            }
            (0..4, _) => Err(IoError::Width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        self.routes.clear();
    }

    fn save(&self) -> Vec<u8> {
        let HypervTestDevice { routes } = self;
        encode(routes)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let routes: BTreeMap<u8, u16> = decode(self.name(), state)?;
        if routes.values().any(|routes| *routes == 0) {
            let what = "a processor without routes among those that have some".to_owned();
            return Err(StateError { device: self.name(), what });
        }
        self.routes = routes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{Answer, Op, Session};

    fn bench() -> Session<HypervTestDevice> {
        Session::new(HypervTestDevice::default(), HypervTestDevice::default)
    }

    /// What a command asks of the controllers.
    fn asks(s: &mut Session<HypervTestDevice>, word: u64) -> Vec<SynicCall> {
        s.apply(&Op::write(0, Size::B4, word)).expect("lawful");
        let step = s.trace.last().expect("a step");
        assert_eq!(step.answer, Answer::Wrote(Ok(())));
        let call = |action: &Action| match action {
            Action::Synic(call) => *call,
            other => panic!("{other:?}"),
        };
        step.actions.iter().map(call).collect()
    }

    #[test]
    fn a_source_is_raised_while_it_has_a_route() {
        let mut s = bench();
        let raise = SynicCall::Raise { vp: 2, sint: 9 };
        assert_eq!(asks(&mut s, 0x03_0209), []);
        assert_eq!(asks(&mut s, 0x01_0209), []);
        assert_eq!(asks(&mut s, 0x03_0209), [raise]);
        assert_eq!([asks(&mut s, 0x03_0208), asks(&mut s, 0x03_0109)], [[], []]);
        assert_eq!(asks(&mut s, 0x02_0209), []);
        assert_eq!(asks(&mut s, 0x03_0209), []);
    }

    #[test]
    fn connections_are_the_controllers_business() {
        let mut s = bench();
        let (connection, vp, sint) = (0x21, 1, 8);
        for (word, call) in [
            (0x2104_0108, SynicCall::ConnectMessages { connection, vp, sint }),
            (0x2106_0108, SynicCall::ConnectEvents { connection, vp, sint }),
            (0x2105_0000, SynicCall::Disconnect { connection, events: false }),
            (0x2107_ffff, SynicCall::Disconnect { connection, events: true }),
        ] {
            assert_eq!(asks(&mut s, word), [call], "{word:#x}");
        }
    }

    #[test]
    fn what_is_no_command_does_nothing() {
        let mut s = bench();
        for word in [0, 0x08_0000, 0xff_0000, 0x04_0010, 0x06_00ff] {
            assert_eq!(asks(&mut s, word), [], "{word:#x}");
        }
        s.run(&[Op::write(0, Size::B2, 1), Op::read(0, Size::B4)]).expect("lawful");
        let answers: Vec<_> = s.trace.iter().rev().take(2).map(|step| step.answer).collect();
        let refused = [Answer::Read(Err(IoError::WriteOnly)), Answer::Wrote(Err(IoError::Width))];
        assert_eq!(answers, refused);
    }

    crate::device_laws!(laws, HypervTestDevice::default);
}
