//! The keyboard controller and a keyboard, after the IBM PS/2 Hardware Interface Technical Reference,
//! sections "Keyboard and Auxiliary Device Controller" and "Keyboard".
//!
//! What is the board's own: what is written is taken at once, so that the input buffer is never full; what
//! the controller itself answers is there at once, unless its output buffer is taken; a byte of the keyboard
//! takes the time of its eleven bits; nothing is plugged into the auxiliary port; scan code set 3 is lacking;
//! key codes are translated as they come from the host.
//!
//! What is left open, and not predicted: an empty output buffer's byte, most pins of the two ports, the
//! system flag after a self-test, and set 1 codes of keys but a few.

use std::collections::VecDeque;

use vmm::device::Nanos;
use vmm::exit::Stop;
use vmm::script::{Answer, Op};

use super::{Byte, Line, Model, Seen, bits};

/// Start, eight data, parity and stop bit at 16.7 kHz.
const BYTE_TIME: Nanos = 660_000;
/// A device must begin to clock a byte in within 15 ms.
const TIMEOUT: Nanos = 15_000_000;
/// Bytes of the keyboard's buffer.
const KEYS: usize = 16;

/// Bits of the command byte.
const IRQ: u8 = 1 << 0;
const SYSTEM: u8 = 1 << 2;
const OFF: u8 = 1 << 4;
const AUX_OFF: u8 = 1 << 5;
const TRANSLATE: u8 = 1 << 6;
/// Those that are not reserved.
const COMMAND: u8 = 0x77;

/// What a byte from the controller's other side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Controller,
    Keyboard,
    Key,
    Aux,
    /// The answer in place of an auxiliary device's.
    Nobody,
}

/// Such a byte, and which of its bits are known.
#[derive(Clone, Copy, Debug)]
struct Sent {
    byte: u8,
    known: u8,
    from: From,
}

/// What the next byte at port 0x60 is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Keyboard,
    Ram(usize),
    Port,
    Loop(From),
    Aux,
}

/// The option byte that the keyboard waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// LEDs, or the typematic rate: any.
    Any,
    CodeSet,
    Keys,
}

pub(super) struct I8042 {
    line: Line,
    ram: [u8; 32],
    /// Which bits of the RAM's bytes are known.
    known: [u8; 32],
    next: Next,
    /// Port 0x64 was written last.
    is_command: bool,
    buffer: Option<Sent>,
    answer: Option<Sent>,
    a20: Option<bool>,
    quiet_until: Nanos,
    replies: VecDeque<Sent>,
    keys: VecDeque<Sent>,
    wanted: Wanted,
    scans: bool,
    set: u8,
    last: Option<Sent>,
    /// The next code in set 1 is of a released key, if that is known.
    release: Option<bool>,
}

/// Set 1 codes of some set 2 codes: A to F, digits 1 and 2, Escape, Enter, Space, F7.
const SET_1: [(u8, u8); 12] = [
    (0x1c, 0x1e),
    (0x32, 0x30),
    (0x21, 0x2e),
    (0x23, 0x20),
    (0x24, 0x12),
    (0x2b, 0x21),
    (0x16, 0x02),
    (0x1e, 0x03),
    (0x76, 0x01),
    (0x5a, 0x1c),
    (0x29, 0x39),
    (0x83, 0x41),
];

/// The set 1 code, and which of its bits are known. What is no key's code stays.
fn to_set_1(code: u8) -> (u8, u8) {
    match SET_1.iter().find(|(two, _)| *two == code) {
        Some(&(_, one)) => (one, 0xff),
        None if code > 0x84 => (code, 0xff),
        None => (0, 0),
    }
}

impl I8042 {
    pub(super) fn new(alone: bool) -> I8042 {
        let (mut ram, mut known) = ([0; 32], [0; 32]);
        // As firmware leaves it.
        (ram[0], known[0]) = (IRQ | SYSTEM | AUX_OFF | TRANSLATE, COMMAND);
        I8042 {
            line: Line::new(1, alone),
            ram,
            known,
            next: Next::Keyboard,
            is_command: true,
            buffer: None,
            answer: None,
            a20: Some(true),
            quiet_until: 0,
            replies: VecDeque::new(),
            keys: VecDeque::new(),
            wanted: Wanted::Nothing,
            scans: true,
            set: 2,
            last: None,
            release: Some(false),
        }
    }

    fn has(&self, bit: u8) -> bool {
        self.ram[0] & bit != 0
    }

    fn set(&mut self, bit: u8, on: bool) {
        self.ram[0] = if on { self.ram[0] | bit } else { self.ram[0] & !bit };
        self.known[0] |= bit;
    }

    fn is_waiting(&self) -> bool {
        let keyboard = !self.replies.is_empty() || !self.keys.is_empty();
        self.buffer.is_none() && (self.answer.is_some() || keyboard && !self.has(OFF))
    }

    /// The controller's own answers come first, then the keyboard's, then keys.
    fn arrive(&mut self, now: Nanos) {
        if !self.is_waiting() || now < self.quiet_until {
            return;
        }
        self.buffer = self.answer.take();
        if self.buffer.is_some() {
            return;
        }
        if let Some(sent) = self.replies.pop_front().or_else(|| self.keys.pop_front()) {
            self.send(sent);
        }
    }

    /// The keyboard sends a byte.
    fn send(&mut self, sent: Sent) {
        // Resend gives what was sent last but for itself.
        if sent.byte != 0xfe || sent.known != 0xff {
            self.last = Some(sent);
        }
        let (byte, known) = match sent.from {
            From::Keyboard if self.has(TRANSLATE) && sent.known == 0xff => to_set_1(sent.byte),
            _ => (sent.byte, sent.known),
        };
        self.buffer = Some(Sent { byte, known, ..sent });
    }

    fn answers(&mut self, byte: u8, known: u8, from: From) {
        let answer = Some(Sent { byte, known, from });
        if self.buffer.is_some() { self.answer = answer } else { self.buffer = answer }
    }

    fn is_high(&self) -> bool {
        let aux = |sent: Sent| matches!(sent.from, From::Aux | From::Nobody);
        self.has(IRQ) && self.buffer.is_some_and(|sent| !aux(sent))
    }

    fn status(&self, got: Option<u8>) -> Result<(), String> {
        let system = self.ram[0] & SYSTEM;
        // Not inhibited by its switch.
        let fixed = system | u8::from(self.is_command) << 3 | 1 << 4;
        // Where an empty buffer's byte came from is nobody's business.
        let known = !SYSTEM | self.known[0] & SYSTEM;
        match self.buffer.map(|sent| sent.from) {
            None => bits("status", got, fixed, known & !0x60),
            Some(From::Aux) => bits("status", got, fixed | 0x21, known),
            Some(From::Nobody) => bits("status", got, fixed | 0x61, known),
            Some(_) => bits("status", got, fixed | 1, known),
        }
    }

    fn command(&mut self, value: u8) -> Option<Stop> {
        (self.is_command, self.next) = (true, Next::Keyboard);
        match value {
            0x20..=0x3f => {
                let at = usize::from(value & 0x1f);
                self.answers(self.ram[at], self.known[at], From::Controller);
            }
            0x60..=0x7f => self.next = Next::Ram(usize::from(value & 0x1f)),
            0xa7 => self.set(AUX_OFF, true),
            0xa8 => self.set(AUX_OFF, false),
            0xa9 | 0xab => self.answers(0, 0xff, From::Controller),
            0xaa => {
                self.known[0] &= !SYSTEM;
                self.answers(0x55, 0xff, From::Controller);
            }
            0xad => self.set(OFF, true),
            0xae => self.set(OFF, false),
            // Bit 7: not inhibited.
            0xc0 => self.answers(0x80, 0x80, From::Controller),
            0xd0 => {
                let a20 = self.a20.unwrap_or(false);
                let mut known = if self.a20.is_some() { 0x03 } else { 0x01 };
                // With its interrupt off, a full buffer may show or not.
                if self.has(IRQ) {
                    known |= 0x10;
                }
                let value = 1 | u8::from(a20) << 1 | u8::from(self.is_high()) << 4;
                self.answers(value, known, From::Controller);
            }
            0xd1 => self.next = Next::Port,
            0xd2 => self.next = Next::Loop(From::Controller),
            0xd3 => self.next = Next::Loop(From::Aux),
            0xd4 => self.next = Next::Aux,
            // Not the reference's, but there.
            0xdd | 0xdf => self.a20 = None,
            0xf0..=0xff if value & 1 == 0 => return Some(Stop::Reset),
            // Nothing comes of what it lacks.
            _ => {}
        }
        None
    }

    fn data(&mut self, now: Nanos, value: u8) -> Option<Stop> {
        self.is_command = false;
        match std::mem::replace(&mut self.next, Next::Keyboard) {
            Next::Keyboard => {
                self.set(OFF, false);
                self.quiet_until = self.quiet_until.max(now.saturating_add(BYTE_TIME));
                self.keyboard(value);
            }
            Next::Ram(at) => {
                self.ram[at] = value;
                self.known[at] = if at == 0 { COMMAND } else { 0xff };
            }
            Next::Port => {
                self.a20 = Some(value & 2 != 0);
                return (value & 1 == 0).then_some(Stop::Reset);
            }
            Next::Loop(from) => self.answers(value, 0xff, from),
            Next::Aux => {
                self.known[0] &= !AUX_OFF;
                self.answer = Some(Sent { byte: 0xfe, known: 0xff, from: From::Nobody });
                self.quiet_until = self.quiet_until.max(now.saturating_add(TIMEOUT));
            }
        }
        None
    }

    /// A byte for the keyboard; what it did not say yet it does not say any more.
    fn keyboard(&mut self, byte: u8) {
        self.replies.clear();
        let wanted = std::mem::replace(&mut self.wanted, Wanted::Nothing);
        match (wanted, byte) {
            (Wanted::Nothing, _) | (_, 0xed..) => self.order(byte),
            (Wanted::Any, _) => self.says(&[0xfa]),
            (Wanted::CodeSet, 0) => self.says(&[0xfa, self.set]),
            (Wanted::CodeSet, 1 | 2) => {
                self.set = byte;
                self.says(&[0xfa]);
            }
            (Wanted::CodeSet, _) => self.says(&[0xfe]),
            (Wanted::Keys, _) => {
                self.wanted = Wanted::Keys;
                self.says(&[0xfa]);
            }
        }
    }

    fn order(&mut self, byte: u8) {
        match byte {
            0xee => return self.says(&[0xee]),
            0xfe => {
                // A key's code is a key's code once more.
                let unknown = Sent { byte: 0, known: 0, from: From::Keyboard };
                self.replies.push_back(self.last.unwrap_or(unknown));
                return;
            }
            0xed | 0xf3 => self.wanted = Wanted::Any,
            0xf0 => self.wanted = Wanted::CodeSet,
            0xfb..=0xfd => self.wanted = Wanted::Keys,
            0xf2 => return self.says(&[0xfa, 0xab, 0x83]),
            0xf4..=0xf6 | 0xff => {
                self.keys.clear();
                self.release = self.release.filter(|release| !release);
            }
            0xf7..=0xfa => {}
            _ => return self.says(&[0xfe]),
        }
        if matches!(byte, 0xf5 | 0xf6 | 0xff) {
            self.set = 2;
        }
        match byte {
            0xf4 => self.scans = true,
            0xf5 => self.scans = false,
            0xff => {
                (self.scans, self.last) = (true, None);
                return self.says(&[0xfa, 0xaa]);
            }
            _ => {}
        }
        self.says(&[0xfa]);
    }

    fn says(&mut self, bytes: &[u8]) {
        let sent = |&byte| Sent { byte, known: 0xff, from: From::Keyboard };
        self.replies.extend(bytes.iter().map(sent));
    }

    /// The host presses keys: that many bytes were taken.
    fn press(&mut self, bytes: &[u8], taken: u64) -> Result<(), String> {
        let room = if self.scans { KEYS - self.keys.len() } else { 0 };
        // A key's byte in the controller may be one of those in the keyboard.
        let least = bytes.len().min(room.saturating_sub(1)) as u64;
        let most = bytes.len().min(room) as u64;
        if !(least..=most).contains(&taken) {
            return Err(format!("{least} to {most} bytes of keys are to be taken, not {taken}"));
        }
        let is_set_1 = self.set == 1 || self.has(TRANSLATE);
        for &byte in &bytes[..taken as usize] {
            let (byte, known) = match byte {
                _ if !is_set_1 => {
                    // What becomes of half a code then is open.
                    self.release = self.release.filter(|release| !release);
                    (byte, 0xff)
                }
                0xf0 => {
                    self.release = Some(true);
                    continue;
                }
                _ => {
                    let (one, known) = to_set_1(byte);
                    match self.release.replace(false) {
                        Some(release) => (one | u8::from(release) << 7, known),
                        None => (one, known & 0x7f),
                    }
                }
            };
            self.keys.push_back(Sent { byte, known, from: From::Key });
        }
        Ok(())
    }
}

impl Model for I8042 {
    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let now = seen.now;
        self.line.hear(seen.outcome);
        self.arrive(now);
        let (mut called, mut stop) = (seen.is_told(), None);
        for (port, byte) in seen.bytes(0x60, 5).filter(|(port, _)| matches!(port, 0 | 4)) {
            called = true;
            match (port, byte) {
                (0, Byte::Read(got)) => {
                    if let Some(sent) = self.buffer.take() {
                        bits("the output buffer", got, sent.byte, sent.known)?;
                        if self.is_waiting() {
                            self.quiet_until = self.quiet_until.max(now.saturating_add(BYTE_TIME));
                        }
                    }
                }
                (_, Byte::Read(got)) => self.status(got)?,
                (0, Byte::Write(value)) => stop = self.data(now, value),
                (_, Byte::Write(value)) => stop = self.command(value),
            }
        }
        if let Some((bytes, Some(taken))) = seen.input("i8042") {
            called = true;
            self.press(bytes, taken)?;
        }
        if *seen.op == Op::Reset {
            let line = self.line;
            *self = I8042 { line, ..I8042::new(line.alone) };
        }
        // What is there now needs no time.
        if called {
            self.arrive(now);
        }
        if stop.is_some_and(|stop| seen.outcome.answer != Answer::Stop(stop)) {
            return Err("the machine is to be reset".to_owned());
        }
        if called { self.line.must(Some(self.is_high())) } else { Ok(()) }
    }
}
