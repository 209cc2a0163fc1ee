//! The keyboard at the end of the wire: its commands, its answers and its buffer of key codes, as
//! the keyboard section of the IBM PS/2 Hardware Interface Technical Reference has them.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::planted::{self, Flaw};

/// Bytes of key codes that the keyboard holds while the system does not take them.
pub const KEY_BUFFER: usize = 16;
/// The most bytes that one command is answered with: acknowledge, and two of identification.
const MAX_REPLIES: usize = 3;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const ECHO: u8 = 0xee;
const TEST_PASSED: u8 = 0xaa;
const IDENTITY: [u8; 2] = [0xab, 0x83];
/// Typematic rate and delay after power-on: 10.9 characters a second after 500 ms.
const DEFAULT_TYPEMATIC: u8 = 0x2b;
/// The first byte value that is a command even where an option byte is due.
const FIRST_COMMAND: u8 = 0xed;

/// The option byte that a command still waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Awaited {
    None,
    Leds,
    CodeSet,
    Typematic,
    /// Key numbers, until a command ends the list.
    Keys,
}

/// What a byte is that the keyboard sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of an answer.
    Answer,
    /// Of a key code, from the buffer.
    Key,
    /// Of a key code that was sent before: the answer to Resend.
    KeyAgain,
}

/// A keyboard. It sends scan code set 2 or 1; set 3 it does not have, and says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyboard {
    /// Answers to the last command; sent before key codes.
    replies: VecDeque<u8>,
    keys: VecDeque<u8>,
    option: Awaited,
    scanning: bool,
    /// Scan code set, 1 or 2.
    set: u8,
    leds: u8,
    typematic: u8,
    last_sent: u8,
    /// That was of a key code.
    last_was_key: bool,
    /// The answer that waits is [`Kind::KeyAgain`].
    again: bool,
}

impl Keyboard {
    /// A keyboard that has passed its power-on test and scans.
    pub fn new() -> Keyboard {
        Keyboard {
            replies: VecDeque::with_capacity(MAX_REPLIES),
            keys: VecDeque::with_capacity(KEY_BUFFER),
            option: Awaited::None,
            scanning: true,
            set: 2,
            leds: 0,
            typematic: DEFAULT_TYPEMATIC,
            last_sent: TEST_PASSED,
            last_was_key: false,
            again: false,
        }
    }

    /// Whether it has a byte to send.
    pub fn has_byte(&self) -> bool {
        !self.replies.is_empty() || !self.keys.is_empty()
    }

    /// The byte that it sends next, which is then gone, and what it is.
    pub fn send(&mut self) -> Option<(u8, Kind)> {
        let answer = match planted::has(Flaw::KbdOrder) && !self.keys.is_empty() {
            true => None,
            false => self.replies.pop_front(),
        };
        let (byte, kind) = match answer {
            Some(byte) if std::mem::take(&mut self.again) => (byte, Kind::KeyAgain),
            Some(byte) => (byte, Kind::Answer),
            None => (self.keys.pop_front()?, Kind::Key),
        };
        if byte != RESEND {
            (self.last_sent, self.last_was_key) = (byte, kind != Kind::Answer);
        }
        Some((byte, kind))
    }

    /// Bytes of key codes that fit now: none while the keyboard does not scan.
    pub fn room(&self) -> usize {
        if self.scanning { KEY_BUFFER - self.keys.len() } else { 0 }
    }

    /// A key sends a byte of its code; the caller has looked at [`Keyboard::room`].
    pub fn press(&mut self, byte: u8) {
        self.keys.push_back(byte);
    }

    /// Whether it was told to send scan code set 1.
    pub fn speaks_set_1(&self) -> bool {
        self.set == 1
    }

    /// A byte from the system arrives.
    pub fn receive(&mut self, byte: u8) {
        // An unsent answer to an older command is void.
        self.replies.clear();
        self.again = false;
        match std::mem::replace(&mut self.option, Awaited::None) {
            Awaited::None => self.command(byte),
            _ if byte >= FIRST_COMMAND => self.command(byte),
            Awaited::Leds => {
                self.leds = byte & 7;
                self.reply(&[ACK]);
            }
            Awaited::CodeSet => match byte {
                0 => self.reply(&[ACK, self.set]),
                1 | 2 => {
                    self.set = byte;
                    self.reply(&[ACK]);
                }
                _ => self.reply(&[RESEND]),
            },
            Awaited::Typematic => {
                self.typematic = byte & 0x7f;
                self.reply(&[ACK]);
            }
            Awaited::Keys => {
                // Per-key types exist in set 3 only; the numbers are taken and mean nothing.
                self.option = Awaited::Keys;
                self.reply(&[ACK]);
            }
        }
    }

    fn command(&mut self, byte: u8) {
        match byte {
            0xed => self.await_option(Awaited::Leds),
            0xee => self.reply(&[ECHO]),
            0xf0 => self.await_option(Awaited::CodeSet),
            0xf2 if planted::has(Flaw::KbdIdentity) => {
                self.reply(&[ACK, IDENTITY[1], IDENTITY[0]]);
            }
            0xf3 if planted::has(Flaw::KbdTypematic) => self.reply(&[ACK]),
            0xf2 => self.reply(&[ACK, IDENTITY[0], IDENTITY[1]]),
            0xf3 => self.await_option(Awaited::Typematic),
            0xf4 => {
                self.keys.clear();
                self.scanning = true;
                self.reply(&[ACK]);
            }
            0xf5 => {
                self.set_defaults();
                self.scanning = false;
                self.reply(&[ACK]);
            }
            0xf6 => {
                self.set_defaults();
                self.reply(&[ACK]);
            }
            // Types of all keys: accepted with any set, and of effect on set 3 only.
            0xf7..=0xfa => self.reply(&[ACK]),
            0xfb..=0xfd => self.await_option(Awaited::Keys),
            0xfe => {
                self.again = self.last_was_key;
                self.reply(&[self.last_sent]);
            }
            0xff => {
                *self = Keyboard::new();
                self.reply(&[ACK, TEST_PASSED]);
            }
            _ => self.reply(&[RESEND]),
        }
    }

    fn await_option(&mut self, option: Awaited) {
        self.option = option;
        self.reply(&[ACK]);
    }

    fn reply(&mut self, bytes: &[u8]) {
        self.replies.extend(bytes);
    }

    /// Defaults leave the LEDs alone, as the reference says.
    fn set_defaults(&mut self) {
        self.keys.clear();
        (self.set, self.typematic) = (2, DEFAULT_TYPEMATIC);
    }

    /// Why this cannot be a keyboard's state, if it cannot.
    pub fn fault(&self) -> Option<&'static str> {
        match self {
            k if k.replies.len() > MAX_REPLIES => Some("too many answers of the keyboard"),
            k if k.again && k.replies.len() != 1 => Some("a repeated key code that is none"),
            k if k.keys.len() > KEY_BUFFER => Some("too many key codes"),
            k if k.set != 1 && k.set != 2 => Some("no such scan code set"),
            k if k.leds > 7 => Some("no such LED"),
            k if k.typematic > 0x7f => Some("no such typematic rate"),
            _ => None,
        }
    }
}

/// The prefix in set 2 of the code of a released key.
pub const RELEASE: u8 = 0xf0;

/// The set 1 code of a set 2 code, by the translation of the keyboard controller (which a keyboard
/// told to speak set 1 has built in). Codes from 0x85 on, answers of the keyboard among them, stay
/// as they are.
pub fn to_set_1(code: u8) -> u8 {
    match code {
        0x83 => 0x41,
        0x84 => 0x54,
        _ => SET_1.get(usize::from(code)).copied().unwrap_or(code),
    }
}

/// Set 1 code of each set 2 code below 0x80: the translation table of the keyboard controller.
#[rustfmt::skip]
const SET_1: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn said(k: &mut Keyboard) -> Vec<u8> {
        std::iter::from_fn(|| k.send()).map(|(byte, _)| byte).collect()
    }

    fn ask(k: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        for &byte in bytes {
            k.receive(byte);
            all.extend(said(k));
        }
        all
    }

    #[test]
    fn commands_are_answered_as_the_reference_says() {
        let mut k = Keyboard::new();
        assert_eq!(ask(&mut k, &[0xff]), [0xfa, 0xaa]);
        assert_eq!(ask(&mut k, &[0xf2]), [0xfa, 0xab, 0x83]);
        assert_eq!(ask(&mut k, &[0xed, 0x02]), [0xfa, 0xfa]);
        assert_eq!(k.leds, 2);
        assert_eq!(ask(&mut k, &[0xee]), [0xee]);
        assert_eq!(ask(&mut k, &[0xf3, 0x00]), [0xfa, 0xfa]);
        assert_eq!(k.typematic, 0);
        assert_eq!(ask(&mut k, &[0xf0, 0x00]), [0xfa, 0xfa, 0x02]);
        assert_eq!(ask(&mut k, &[0xf0, 0x01, 0xf0, 0x00]), [0xfa, 0xfa, 0xfa, 0xfa, 0x01]);
        assert_eq!(ask(&mut k, &[0xf0, 0x03]), [0xfa, 0xfe], "there is no set 3");
        assert_eq!(ask(&mut k, &[0xf6]), [0xfa]);
        assert_eq!((k.set, k.typematic, k.leds), (2, DEFAULT_TYPEMATIC, 2));
        assert_eq!(ask(&mut k, &[0xfc, 0x1c, 0x1d, 0xee]), [0xfa, 0xfa, 0xfa, 0xee]);
        assert_eq!(ask(&mut k, &[0x00]), [0xfe]);
        assert_eq!(ask(&mut k, &[0xef]), [0xfe]);
    }

    #[test]
    fn a_command_in_an_option_s_place_is_a_command() {
        let mut k = Keyboard::new();
        assert_eq!(ask(&mut k, &[0xed, 0xf2]), [0xfa, 0xfa, 0xab, 0x83]);
        assert_eq!(k.leds, 0);
    }

    #[test]
    fn resend_gives_the_last_byte_that_was_no_resend() {
        let mut k = Keyboard::new();
        ask(&mut k, &[0xf2]);
        assert_eq!(ask(&mut k, &[0xfe]), [0x83]);
        ask(&mut k, &[0x00]);
        assert_eq!(ask(&mut k, &[0xfe]), [0x83]);
    }

    #[test]
    fn answers_overtake_keys_and_the_buffer_is_bounded() {
        let mut k = Keyboard::new();
        while k.room() > 0 {
            k.press(0x1c);
        }
        k.receive(0xee);
        assert_eq!(k.send(), Some((0xee, Kind::Answer)));
        assert_eq!(said(&mut k), [0x1c; KEY_BUFFER]);
    }

    #[test]
    fn a_disabled_keyboard_has_no_room_and_forgets_its_keys() {
        let mut k = Keyboard::new();
        k.press(0x1c);
        assert_eq!(ask(&mut k, &[0xf5]), [0xfa]);
        assert_eq!(k.room(), 0);
        ask(&mut k, &[0xf4]);
        assert_eq!(k.room(), KEY_BUFFER);
    }

    #[test]
    fn translation_is_one_to_one_on_keys() {
        let mut seen = [false; 256];
        for code in 1..=0x7f {
            let one = to_set_1(code);
            assert!(!std::mem::replace(&mut seen[usize::from(one)], true), "{code:#x}");
            assert!(one < 0x80);
        }
        assert_eq!(to_set_1(0x83), 0x41, "F7");
        assert_eq!(to_set_1(0xfa), 0xfa, "answers stay");
    }
}
