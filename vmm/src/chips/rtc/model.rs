//! The clock against a model that counts second by second, as a chip would.

use proptest::prelude::*;

use super::tests::{advance, bench, read, write};
use super::*;
use crate::laws::Op;

#[derive(Debug)]
struct Model {
    /// Bytes of a number or an hour, in the format of this run.
    binary: bool,
    full_day: bool,
    second: u64,
    minute: u64,
    hour: u64,
    weekday: u64,
    day: u64,
    month: u64,
    year: u64,
    alarm: [u8; 3],
    a: u8,
    b: u8,
    c: u8,
    /// A time at which a second begins.
    origin: i128,
    now: i128,
}

impl Model {
    fn digits(&self, n: u64) -> u8 {
        let text = n.to_string();
        let radix = if self.binary { 10 } else { 16 };
        u8::from_str_radix(&text, radix).expect("two digits")
    }

    fn hour_digits(&self) -> u8 {
        match (self.full_day, self.hour) {
            (true, h) => self.digits(h),
            (false, 0) => self.digits(12),
            (false, h @ 1..=11) => self.digits(h),
            (false, 12) => self.digits(12) | 0x80,
            (false, h) => self.digits(h - 12) | 0x80,
        }
    }

    fn step(&mut self) {
        let leap = match (self.year % 400, self.year % 100) {
            (0, _) => true,
            (_, 0) => false,
            (_, year) => year & 3 == 0,
        };
        let february = if leap { 29 } else { 28 };
        let days = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        self.second += 1;
        if self.second == 60 {
            (self.second, self.minute) = (0, self.minute + 1);
        }
        if self.minute == 60 {
            (self.minute, self.hour) = (0, self.hour + 1);
        }
        if self.hour == 24 {
            (self.hour, self.day, self.weekday) = (0, self.day + 1, self.weekday % 7 + 1);
        }
        if self.day > days[self.month as usize - 1] {
            (self.day, self.month) = (1, self.month + 1);
        }
        if self.month == 13 {
            (self.month, self.year) = (1, (self.year + 1) % 10_000);
        }
        let is = [self.hour_digits(), self.digits(self.minute), self.digits(self.second)];
        if self.alarm.iter().zip(is).all(|(&alarm, is)| alarm >= 0xc0 || alarm == is) {
            self.c |= 0x20;
        }
        self.c |= 0x10;
    }

    fn runs(&self) -> bool {
        self.a >> 4 < 3
    }

    fn go_to(&mut self, to: i128) {
        let from = std::mem::replace(&mut self.now, to);
        if !self.runs() {
            return;
        }
        let since = |t: i128| t - self.origin;
        let hertz = [0, 256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2];
        let hertz = hertz[usize::from(self.a & 15)];
        let beats = |t| (since(t) * hertz).div_euclid(1_000_000_000);
        if beats(from) != beats(to) {
            self.c |= 0x40;
        }
        let second = |t| since(t).div_euclid(1_000_000_000);
        for _ in second(from)..second(to) {
            if self.b & 0x80 == 0 {
                self.step();
            }
        }
    }

    fn read(&mut self, index: usize) -> u8 {
        match index {
            0 => self.digits(self.second),
            2 => self.digits(self.minute),
            4 => self.hour_digits(),
            6 => self.digits(self.weekday),
            7 => self.digits(self.day),
            8 => self.digits(self.month),
            9 => self.digits(self.year % 100),
            0x32 => self.digits(self.year / 100),
            10 => {
                let part = (self.now - self.origin).rem_euclid(1_000_000_000);
                let soon = part >= 1_000_000_000 - 244_000;
                let uip = soon && self.runs() && self.b & 0x80 == 0;
                self.a | if uip { 0x80 } else { 0 }
            }
            11 => self.b,
            12 => {
                let irqf = if self.irq() { 0x80 } else { 0 };
                std::mem::take(&mut self.c) | irqf
            }
            i => self.alarm[2 - i / 2],
        }
    }

    fn irq(&self) -> bool {
        self.b & self.c & 0x70 != 0
    }
}

#[derive(Clone, Debug)]
enum Event {
    Read(usize),
    Time(u64, bool),
    Deadline,
    SetTime([u64; 7]),
    Alarm(usize, u8),
    Rate(u8),
    Enable(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let index = prop::sample::select(vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x32]);
    // Often at the end of something, so that it carries.
    let field = |low: u64, high: u64| prop_oneof![low..=high, Just(high), Just(low)];
    let hms = (field(0, 59), field(0, 59), field(0, 23));
    let ymd = (field(1, 28), field(1, 12), field(0, 9999));
    let set = (hms, ymd, 1u64..=7).prop_map(|((s, m, h), (day, month, year), w)| {
        Event::SetTime([s, m, h, w, day, month, year])
    });
    let ns = prop_oneof![0..2 * SECOND, 0..SECOND / 1000, (0..100_000u64).prop_map(|s| s * SECOND)];
    let alarm = prop_oneof![any::<u8>(), 0u8..0x13, Just(0xff)];
    prop_oneof![
        6 => index.prop_map(Event::Read),
        3 => (ns, any::<bool>()).prop_map(|(ns, told)| Event::Time(ns, told)),
        3 => Just(Event::Deadline),
        1 => set,
        2 => (0usize..3, alarm).prop_map(|(i, v)| Event::Alarm(i, v)),
        1 => prop_oneof![4 => 0x20u8..0x30, 1 => 0u8..0x80].prop_map(Event::Rate),
        2 => any::<u8>().prop_map(Event::Enable),
    ]
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(
        binary in any::<bool>(),
        full_day in any::<bool>(),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let format = if binary { B_BINARY } else { 0 } | if full_day { B_24H } else { 0 };
        let mut s = bench(0);
        write(&mut s, B, format);
        let mut model = Model {
            binary, full_day,
            second: 0, minute: 0, hour: 0, weekday: 5, day: 1, month: 1, year: 1970,
            alarm: [0; 3], a: 0x26, b: format, c: 0, origin: 0, now: 0,
        };
        let start = Event::SetTime([0, 0, 0, 5, 1, 1, 1970]);
        for event in std::iter::once(start).chain(events) {
            match event {
                Event::Read(i) => prop_assert_eq!(read(&mut s, i), model.read(i), "{}", i),
                Event::Time(ns, true) => advance(&mut s, ns),
                Event::Time(ns, false) => s.apply(&Op::Pass(ns)).expect("lawful"),
                Event::Deadline => {
                    // A deadline that is days away would take the model long.
                    if s.device.deadline().is_some_and(|d| d < s.now() + 100_000 * SECOND) {
                        s.apply(&Op::ToDeadline).expect("lawful");
                    }
                }
                Event::SetTime([second, minute, hour, weekday, day, month, year]) => {
                    model = Model { second, minute, hour, weekday, day, month, year, ..model };
                    for i in [0, 2, 4, 6, 7, 8, 9, 0x32] {
                        let byte = model.read(i);
                        write(&mut s, i, byte);
                    }
                }
                Event::Alarm(i, v) => {
                    model.alarm[i] = v;
                    write(&mut s, [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM][i], v);
                }
                Event::Rate(v) => {
                    let ran = model.runs();
                    model.a = v;
                    if !ran && model.runs() {
                        model.origin = model.now + 500_000_000;
                    }
                    write(&mut s, A, v);
                }
                Event::Enable(v) => {
                    let mut b = v & !(B_BINARY | B_24H) | format;
                    write(&mut s, B, b);
                    if b & !model.b & 0x80 != 0 {
                        b &= !0x10;
                    }
                    model.b = b;
                }
            }
            model.go_to(s.now().into());
            advance(&mut s, 0);
            prop_assert_eq!(s.device.irq(), model.irq());
        }
    }
}
