//! The chip against a model of it.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::tests::{apply, bench, input, last, read, write};
use super::*;
use crate::laws::Op;

/// What the receiver, the transmitter and their interrupts are, said another way: a queue, a list
/// of events, no ring, no flags kept up to date.
#[derive(Debug, Default)]
struct Model {
    lcr: u8,
    mcr: u8,
    ier: u8,
    fcr: u8,
    queue: VecDeque<u8>,
    overrun: bool,
    thre: bool,
    quiet: Nanos,
    timed_out: bool,
    divisor: u64,
    told: u8,
}

impl Model {
    fn patience(&self) -> Nanos {
        let bits = [(7.0, 7.5), (8.0, 9.0), (9.0, 10.0), (10.0, 11.0)][usize::from(self.lcr & 3)];
        let bits = if self.lcr & 4 == 0 { bits.0 } else { bits.1 };
        let bits = bits + f64::from(self.lcr >> 3 & 1);
        (4.0 * bits * self.divisor.max(1) as f64 * 1e9 / 115_200.0) as Nanos
    }

    fn tick(&mut self, now: Nanos) {
        if self.fcr & 1 == 1 && !self.queue.is_empty() && now >= self.quiet + self.patience() {
            self.timed_out = true;
        }
    }

    fn lines(&self) -> [bool; 4] {
        let bit = |n: u8| self.mcr >> n & 1 == 1;
        if bit(4) { [bit(1), bit(0), bit(2), bit(3)] } else { [true, true, false, true] }
    }

    fn receive(&mut self, now: Nanos, byte: u8) {
        match (self.fcr & 1 == 1, self.queue.len()) {
            (true, 16) => self.overrun = true,
            (false, 1) => {
                self.overrun = true;
                self.queue[0] = byte;
            }
            _ => {
                self.queue.push_back(byte);
                self.quiet = now;
            }
        }
    }

    fn causes(&self) -> Vec<u8> {
        let fifo = self.fcr & 1 == 1;
        let level = if fifo { [1, 4, 8, 14][usize::from(self.fcr >> 6)] } else { 1 };
        let all = [
            (6, 4, self.overrun),
            (4, 1, self.queue.len() >= level),
            (0xc, 1, self.timed_out),
            (2, 2, self.thre),
            (0, 8, self.told != 0),
        ];
        let on = all.into_iter().filter(|&(_, ier, on)| on && self.ier & ier != 0);
        on.map(|(cause, ..)| cause).collect()
    }

    fn read(&mut self, now: Nanos, offset: u64) -> u8 {
        match offset {
            0 if self.lcr >= 0x80 => self.divisor as u8,
            1 if self.lcr >= 0x80 => (self.divisor >> 8) as u8,
            0 => match self.queue.pop_front() {
                Some(byte) => {
                    self.timed_out = false;
                    self.quiet = now;
                    byte
                }
                None => 0,
            },
            1 => self.ier,
            2 => {
                let cause = self.causes().first().copied().unwrap_or(1);
                self.thre &= cause != 2;
                cause + if self.fcr & 1 == 1 { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let overrun = std::mem::take(&mut self.overrun);
                0x60 + u8::from(!self.queue.is_empty()) + 2 * u8::from(overrun)
            }
            _ => {
                let lines = self.lines().into_iter().rev().fold(0, |m, l| m << 1 | u8::from(l));
                lines << 4 | std::mem::take(&mut self.told)
            }
        }
    }

    /// What leaves the machine.
    fn write(&mut self, now: Nanos, offset: u64, value: u8) -> Option<u8> {
        match offset {
            0 if self.lcr >= 0x80 => self.divisor = self.divisor & 0xff00 | u64::from(value),
            1 if self.lcr >= 0x80 => self.divisor = self.divisor & 0xff | u64::from(value) << 8,
            0 => {
                self.thre = true;
                if self.mcr & 0x10 != 0 {
                    self.receive(now, value);
                } else if self.lcr & 0x40 == 0 {
                    return Some(value);
                }
            }
            1 => {
                self.thre |= self.ier & 2 == 0 && value & 2 != 0;
                self.ier = value & 15;
            }
            2 => {
                if value & 1 != self.fcr & 1 || value & 3 == 3 {
                    self.queue.clear();
                    self.timed_out = false;
                }
                self.fcr = if value & 1 == 1 { value } else { 0 };
            }
            3 => self.lcr = value,
            _ => {
                let before = self.lines();
                self.mcr = value & 0x1f;
                for (i, (was, is)) in before.into_iter().zip(self.lines()).enumerate() {
                    let edge = if i == 2 { was && !is } else { was != is };
                    self.told |= u8::from(edge) << i;
                }
            }
        }
        None
    }
}

#[derive(Clone, Debug)]
enum Event {
    Read(u64),
    Write(u64, u8),
    Input(Vec<u8>),
    /// Time passes; whether the board tells.
    Time(Nanos, bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u64..7).prop_map(Event::Read),
        2 => (0u64..5, any::<u8>()).prop_map(|(r, v)| Event::Write(r, v)),
        // What drivers write, so that interrupts happen.
        4 => prop::sample::select(vec![(1, 0xf), (2, 0xc1), (2, 0x81), (3, 3), (3, 7), (4, 0xb)])
            .prop_map(|(r, v)| Event::Write(r, v)),
        2 => prop::collection::vec(any::<u8>(), 0..20).prop_map(Event::Input),
        2 => (0u64..8_000_000, any::<bool>()).prop_map(|(ns, told)| Event::Time(ns, told)),
    ]
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(events in prop::collection::vec(event(), 0..200)) {
        let mut s = bench();
        let mut model = Model { divisor: 12, ..Model::default() };
        for event in events {
            let now = s.now();
            model.tick(now);
            match event {
                Event::Read(r) => prop_assert_eq!(read(&mut s, r), model.read(now, r), "{}", r),
                Event::Write(r, v) => {
                    write(&mut s, r, v);
                    let left = model.write(now, r, v).map(Action::Output);
                    prop_assert_eq!(&last(&s).actions, &Vec::from_iter(left));
                }
                Event::Input(bytes) => {
                    let room = if model.fcr & 1 == 1 { 16 } else { 1 } - model.queue.len();
                    let room = if model.mcr & 0x10 == 0 { room.min(bytes.len()) } else { 0 };
                    bytes[..room].iter().for_each(|&b| model.receive(now, b));
                    prop_assert_eq!(input(&mut s, &bytes), room);
                }
                Event::Time(ns, false) => {
                    apply(&mut s, Op::Pass(ns));
                    continue;
                }
                Event::Time(ns, true) => {
                    apply(&mut s, Op::Advance(ns));
                    model.tick(s.now());
                    let gate = model.mcr & 0x18 == 8;
                    prop_assert_eq!(s.device.irq(), gate && !model.causes().is_empty());
                }
            }
        }
    }
}
