//! The keyboard controller at ports 0x60 and 0x64, with a keyboard and no mouse.
//!
//! Registers and commands follow the "Keyboard and Auxiliary Device Controller" section of the IBM
//! PS/2 Hardware Interface Technical Reference; the interface is that of Intel's 8042.
//!
//! A byte from a device takes the time of its eleven bits on the wire ([`BYTE_TIME`]), so the
//! interrupt line falls between two bytes and an edge-triggered input sees both. What the
//! controller itself answers is there at once, unless its output buffer is taken.
//!
//! Key codes are translated to set 1, if the command byte says so, as they come from the host.
//!
//! The auxiliary port exists and tests good, but nothing is plugged in: a byte sent there comes
//! back, after [`AUX_TIMEOUT`], as 0xfe with the status bits of a transmission that timed out.
//! IRQ 12 is not wired: the auxiliary port is polled.

use serde::{Deserialize, Serialize};

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Nanos, Region, StateError};
use crate::planted::{self, Flaw};
use crate::state;

mod keyboard;

use keyboard::{Keyboard, Kind, RELEASE, to_set_1};

/// Where PCs have the data port.
pub const DATA_PORT: u64 = 0x60;
/// Where PCs have the command port.
pub const COMMAND_PORT: u64 = 0x64;
/// The GSI of the line in PCs.
pub const GSI: u32 = 1;
/// Time of one byte on the keyboard's wire: 11 bits at 16.7 kHz, the fastest clock allowed.
pub const BYTE_TIME: Nanos = 660_000;
/// Time that a device has to begin clocking in a byte: 15 ms.
pub const AUX_TIMEOUT: Nanos = 15_000_000;

/// Bits of the status register.
mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const COMMAND: u8 = 1 << 3;
    pub const NOT_LOCKED: u8 = 1 << 4;
    pub const AUX_FULL: u8 = 1 << 5;
    pub const TIMEOUT: u8 = 1 << 6;
}

/// Bits of the command byte.
mod command {
    pub const KEYBOARD_IRQ: u8 = 1 << 0;
    pub const AUX_IRQ: u8 = 1 << 1;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_OFF: u8 = 1 << 4;
    pub const AUX_OFF: u8 = 1 << 5;
    pub const TRANSLATE: u8 = 1 << 6;
}

/// Bits of the output port.
mod port {
    /// Low resets the machine.
    pub const RESET: u8 = 1 << 0;
    pub const A20: u8 = 1 << 1;
    pub const KEYBOARD_IRQ: u8 = 1 << 4;
    pub const AUX_IRQ: u8 = 1 << 5;
    /// The clock and data lines of both devices, idle.
    pub const IDLE: u8 = 0xcc;
}

/// Where the byte in the output buffer came from, in the bits that the status register shows.
const FLAGS: u8 = status::OUTPUT_FULL | status::AUX_FULL | status::TIMEOUT;
/// The command byte that firmware leaves: set 1 to the guest, IRQ 1 on, auxiliary port off.
const POWER_ON_COMMAND: u8 =
    command::KEYBOARD_IRQ | command::SYSTEM | command::AUX_OFF | command::TRANSLATE;
/// Input port: keyboard not locked, no manufacturing jumper, both data lines idle.
const INPUT_PORT: u8 = 0xa3;
/// Answer of the controller's self-test.
const SELF_TEST_PASSED: u8 = 0x55;
/// Byte that stands for a device that did not answer.
const NO_ANSWER: u8 = 0xfe;

/// What the next byte at port 0x60 is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Next {
    Keyboard,
    /// A byte of the controller's RAM, 0 to 31.
    Ram(u8),
    OutputPort,
    KeyboardLoop,
    AuxLoop,
    Aux,
}

/// A byte on its way to the output buffer, with its [`FLAGS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reply {
    byte: u8,
    flags: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Regs {
    /// The controller's RAM; byte 0 is the command byte.
    ram: [u8; 32],
    next: Next,
    /// Whether the last write went to port 0x64.
    was_command: bool,
    /// The output buffer: keeps its byte after it was read.
    data: u8,
    flags: u8,
    /// The output buffer holds a byte of a key code. It counts as one of the keyboard's buffer, so
    /// that the room left there does not depend on when the byte got here.
    key: bool,
    /// The controller's own answer, while the output buffer is taken.
    reply: Option<Reply>,
    output_port: u8,
    keyboard: Keyboard,
    /// The last byte from the host was [`RELEASE`], which becomes bit 7 of the next in set 1.
    release: bool,
    /// Until then no further byte gets into the output buffer.
    busy_until: Nanos,
}

impl Regs {
    fn new() -> Regs {
        let mut ram = [0; 32];
        ram[0] = POWER_ON_COMMAND;
        Regs {
            ram,
            next: Next::Keyboard,
            was_command: true,
            data: 0,
            flags: 0,
            key: false,
            reply: None,
            output_port: port::IDLE | port::A20 | port::RESET,
            keyboard: Keyboard::new(),
            release: false,
            busy_until: 0,
        }
    }

    fn enabled(&self, bit: u8) -> bool {
        self.ram[0] & bit != 0
    }

    fn full(&self) -> bool {
        self.flags & status::OUTPUT_FULL != 0
    }

    /// Whether a byte waits to get into the empty output buffer.
    fn waiting(&self) -> bool {
        let keys = self.keyboard.has_byte() && !self.enabled(command::KEYBOARD_OFF);
        !self.full() && (self.reply.is_some() || keys)
    }

    /// Fills the output buffer if a byte has arrived by now.
    fn settle(&mut self, env: &mut Env<'_>) {
        if !self.waiting() || env.now() < self.busy_until {
            return;
        }
        if let Some(Reply { byte, flags }) = self.reply.take() {
            (self.data, self.flags) = (byte, flags);
            return;
        }
        if let Some((byte, kind)) = self.keyboard.send() {
            // A key's code was translated when it came from the host.
            let translate = kind == Kind::Answer && self.enabled(command::TRANSLATE);
            self.data = if translate { to_set_1(byte) } else { byte };
            (self.flags, self.key) = (status::OUTPUT_FULL, kind == Kind::Key);
        }
    }

    /// Bytes of key codes that the host may send now.
    fn room(&self) -> usize {
        self.keyboard.room().saturating_sub(self.key.into())
    }

    /// The host sends bytes of scan code set 2; returns how many were taken.
    fn press(&mut self, bytes: &[u8]) -> usize {
        let room = if planted::has(Flaw::KbdRoom) { usize::MAX } else { self.room() };
        let taken = bytes.len().min(room);
        let set_1 = self.keyboard.speaks_set_1() || self.enabled(command::TRANSLATE);
        for &byte in &bytes[..taken] {
            if !set_1 {
                self.keyboard.press(byte);
            } else if byte == RELEASE {
                self.release = true;
            } else {
                let released = u8::from(std::mem::take(&mut self.release)) << 7;
                self.keyboard.press(to_set_1(byte) | released);
            }
        }
        taken
    }

    /// The controller answers; an older answer that was never taken is lost.
    fn reply(&mut self, byte: u8, flags: u8) {
        if self.full() {
            self.reply = Some(Reply { byte, flags });
        } else {
            (self.data, self.flags) = (byte, flags);
        }
    }

    /// Nothing is sent for `time` from now on.
    fn busy(&mut self, env: &mut Env<'_>, time: Nanos) {
        self.busy_until = self.busy_until.max(env.now().saturating_add(time));
    }

    fn status(&self) -> u8 {
        let mut bits = status::NOT_LOCKED | self.flags;
        if self.enabled(command::SYSTEM) {
            bits |= status::SYSTEM;
        }
        if self.was_command {
            bits |= status::COMMAND;
        }
        bits
    }

    fn irq(&self, enable: u8, aux: bool) -> bool {
        self.full() && self.enabled(enable) && (self.flags & status::AUX_FULL != 0) == aux
    }

    fn read_output_port(&self) -> u8 {
        let mut value = self.output_port;
        if self.irq(command::KEYBOARD_IRQ, false) {
            value |= port::KEYBOARD_IRQ;
        }
        if self.irq(command::AUX_IRQ, true) {
            value |= port::AUX_IRQ;
        }
        value
    }

    fn write_output_port(&mut self, env: &mut Env<'_>, value: u8) {
        let a20 = value & port::A20;
        if a20 != self.output_port & port::A20 {
            env.act(Action::A20(a20 != 0));
        }
        if value & port::RESET == 0 {
            env.act(Action::Reset);
        }
        self.output_port = port::IDLE | port::RESET | a20;
    }

    fn read_data(&mut self, env: &mut Env<'_>) -> u8 {
        if self.full() {
            self.flags &= !(status::OUTPUT_FULL | status::AUX_FULL);
            self.key = false;
            if self.waiting() {
                self.busy(env, BYTE_TIME);
            }
        }
        self.data
    }

    fn write_command(&mut self, env: &mut Env<'_>, value: u8) {
        self.was_command = true;
        self.next = Next::Keyboard;
        let answer = status::OUTPUT_FULL;
        match value {
            0x20..=0x3f => self.reply(self.ram[usize::from(value & 0x1f)], answer),
            0x60..=0x7f => self.next = Next::Ram(value & 0x1f),
            0xa7 => self.ram[0] |= command::AUX_OFF,
            0xa8 => self.ram[0] &= !command::AUX_OFF,
            // Both interface tests look at the lines only, and those are good.
            0xa9 | 0xab => self.reply(0, answer),
            0xaa => {
                self.ram[0] |= command::SYSTEM;
                self.reply(SELF_TEST_PASSED, answer);
            }
            0xad => self.ram[0] |= command::KEYBOARD_OFF,
            0xae => self.ram[0] &= !command::KEYBOARD_OFF,
            0xc0 => self.reply(INPUT_PORT, answer),
            0xd0 => self.reply(self.read_output_port(), answer),
            0xd1 => self.next = Next::OutputPort,
            0xd2 => self.next = Next::KeyboardLoop,
            0xd3 => self.next = Next::AuxLoop,
            0xd4 => self.next = Next::Aux,
            // The A20 pair that later controllers have.
            0xdd => self.write_output_port(env, self.output_port & !port::A20),
            0xdf => self.write_output_port(env, self.output_port | port::A20),
            // A 0 among the low bits pulses that line; bit 0 is the reset line.
            0xf0..=0xff if value & port::RESET == 0 => env.act(Action::Reset),
            _ => {}
        }
    }

    fn write_data(&mut self, env: &mut Env<'_>, value: u8) {
        self.was_command = false;
        match std::mem::replace(&mut self.next, Next::Keyboard) {
            Next::Keyboard => {
                // Sending to the keyboard turns its interface on.
                self.ram[0] &= !command::KEYBOARD_OFF;
                self.keyboard.receive(value);
                self.busy(env, BYTE_TIME);
            }
            Next::Ram(at) => {
                let first = usize::from(planted::has(Flaw::KbdRam));
                self.ram[first + usize::from(at)] = value;
            }
            Next::OutputPort => self.write_output_port(env, value),
            Next::KeyboardLoop if planted::has(Flaw::KbdLoop) => {
                self.reply(value, status::OUTPUT_FULL | status::AUX_FULL);
            }
            Next::KeyboardLoop => self.reply(value, status::OUTPUT_FULL),
            Next::AuxLoop => self.reply(value, status::OUTPUT_FULL | status::AUX_FULL),
            Next::Aux => {
                self.ram[0] &= !command::AUX_OFF;
                self.reply = Some(Reply { byte: NO_ANSWER, flags: FLAGS });
                self.busy(env, AUX_TIMEOUT);
            }
        }
    }

    /// Why the registers cannot be so, if they cannot.
    fn fault(&self) -> Option<&'static str> {
        let flags = |flags: u8| flags & !FLAGS != 0;
        let fixed = port::IDLE | port::RESET;
        match self {
            r if flags(r.flags) => Some("no such status"),
            r if r.reply.is_some_and(|r| flags(r.flags) || r.flags & status::OUTPUT_FULL == 0) => {
                Some("no such status of an answer")
            }
            r if !r.full() && r.flags & status::AUX_FULL != 0 => {
                Some("an auxiliary byte in an empty buffer")
            }
            r if r.key && r.flags != status::OUTPUT_FULL => Some("a key code that is none"),
            r if matches!(r.next, Next::Ram(32..)) => Some("no such byte of the controller's RAM"),
            r if r.output_port & !port::A20 != fixed => Some("no such state of the output port"),
            r => r.keyboard.fault(),
        }
    }
}

/// The keyboard controller and its keyboard. Its line is IRQ 1; host input is bytes of scan code
/// set 2, as a keyboard sends them.
#[derive(Clone, Debug)]
pub struct I8042 {
    regs: Regs,
}

impl I8042 {
    /// Its regions: the data port and the command port.
    pub const REGIONS: [Region; 2] = [
        Region { name: "i8042-data", space: Space::Port, len: 1, widest: Size::B1 },
        Region { name: "i8042-command", space: Space::Port, len: 1, widest: Size::B1 },
    ];

    /// A controller as firmware leaves it: translation and IRQ 1 on, A20 open, keyboard scanning.
    pub fn new() -> I8042 {
        I8042 { regs: Regs::new() }
    }
}

impl Default for I8042 {
    fn default() -> Self {
        I8042::new()
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn regions(&self) -> &'static [Region] {
        &I8042::REGIONS
    }

    fn read(&mut self, env: &mut Env<'_>, at: At, _size: Size) -> Result<u64, IoError> {
        if at.offset != 0 {
            return Err(IoError::NoRegister);
        }
        self.regs.settle(env);
        match at.region {
            0 => Ok(self.regs.read_data(env).into()),
            1 => Ok(self.regs.status().into()),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, _: Size, value: u64) -> Result<(), IoError> {
        if at.offset != 0 {
            return Err(IoError::NoRegister);
        }
        self.regs.settle(env);
        match at.region {
            0 => self.regs.write_data(env, value as u8),
            1 => self.regs.write_command(env, value as u8),
            _ => return Err(IoError::NoRegister),
        }
        // An interface just enabled may have had a byte ready.
        self.regs.settle(env);
        Ok(())
    }

    fn irq(&self) -> bool {
        self.regs.irq(command::KEYBOARD_IRQ, false)
    }

    fn deadline(&self) -> Option<Nanos> {
        // An auxiliary byte would not raise the line.
        let aux = self.regs.reply.is_some_and(|r| r.flags & status::AUX_FULL != 0);
        let rises = self.regs.waiting() && self.regs.enabled(command::KEYBOARD_IRQ) && !aux;
        rises.then_some(self.regs.busy_until)
    }

    fn advance(&mut self, env: &mut Env<'_>) {
        self.regs.settle(env);
    }

    fn input(&mut self, env: &mut Env<'_>, bytes: &[u8]) -> usize {
        self.regs.settle(env);
        let taken = self.regs.press(bytes);
        self.regs.settle(env);
        taken
    }

    fn input_room(&self) -> usize {
        self.regs.room()
    }

    fn reset(&mut self, _env: &mut Env<'_>) {
        let I8042 { regs } = self;
        let release = regs.release && planted::has(Flaw::KbdRelease);
        *regs = Regs { release, ..Regs::new() };
    }

    fn save(&self) -> Vec<u8> {
        let I8042 { regs } = self;
        state::encode(regs)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let regs: Regs = state::decode("i8042", bytes)?;
        match regs.fault() {
            Some(what) => Err(StateError { device: "i8042", what: what.into() }),
            None => {
                self.regs = regs;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
