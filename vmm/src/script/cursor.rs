//! One line of the text form, word by word.

use super::parse::ParseError;
use super::text::{HOST, LISTED, MACHINE, plain, stop_word};
use super::{Answer, BoardSpec, Effect, MAX_BYTES, Op, Step};
use crate::access::{Access, Size, Space};
use crate::exit::{Exit, Stop, SystemEvent};
use crate::machine::{IommuConfig, PciDevice};
use crate::planted::{self, Flaw};

/// How much of a wrong word an error shows, in characters.
const SHOWN: usize = 40;

/// What one line says.
pub(super) enum Line {
    Cpu(u16),
    Effect(Effect),
    Step(Step),
}

enum Token<'a> {
    Word(&'a [u8]),
    Quoted(Vec<u8>),
}

pub(super) struct Cursor<'a> {
    line: u64,
    text: &'a [u8],
    at: usize,
}

pub(super) fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "the end of the line".to_owned();
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]);
    let mut short: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    format!("`{short}`")
}

impl<'a> Cursor<'a> {
    /// At the beginning of a line, whose number is `line`.
    pub(super) fn new(line: u64, text: &'a [u8]) -> Cursor<'a> {
        Cursor { line, text, at: 0 }
    }

    pub(super) fn error(&self, column: usize, found: String, expected: String) -> ParseError {
        ParseError { line: self.line, column, found, expected }
    }

    /// An error about the word that began at `start`.
    fn wrong<T>(&self, start: usize, expected: impl Into<String>) -> Result<T, ParseError> {
        Err(self.error(start + 1, shown(&self.text[start..self.at]), expected.into()))
    }

    /// Goes to the beginning of the next word, or to the end of the line.
    fn skip(&mut self) -> usize {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        if self.text.get(self.at) == Some(&b'#') {
            self.at = self.text.len();
        }
        self.at
    }

    pub(super) fn is_blank(&mut self) -> bool {
        self.skip() == self.text.len()
    }

    fn word(&mut self) -> &'a [u8] {
        let start = self.skip();
        let rest = &self.text[start..];
        let len = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        self.at = start + len;
        &rest[..len]
    }

    fn token(&mut self) -> Result<Token<'a>, ParseError> {
        let start = self.skip();
        if self.text.get(start) != Some(&b'"') {
            return Ok(Token::Word(self.word()));
        }
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            let at = self.at;
            let rest = &self.text[at..];
            let (byte, len) = match *rest {
                [b'"', ..] => break,
                [b'\\', b'n', ..] => (b'\n', 2),
                [b'\\', b'r', ..] => (b'\r', 2),
                [b'\\', b't', ..] => (b'\t', 2),
                [b'\\', c @ (b'\\' | b'"'), ..] => (c, 2),
                [b'\\', b'x', high, low, ..] => match (hex(high), hex(low)) {
                    (Some(high), Some(low)) => (high << 4 | low, 4),
                    _ => return Err(self.error(at + 1, shown(&rest[..4]), ESCAPE.to_owned())),
                },
                [b'\\', b'x', ..] if planted::has(Flaw::ScriptEscape) => {
                    (rest[2] << 4 | rest[3], 4)
                }
                [b'\\', ..] => {
                    let found = shown(&rest[..rest.len().min(2)]);
                    return Err(self.error(at + 1, found, ESCAPE.to_owned()));
                }
                [c @ b' '..=b'~', ..] => (c, 1),
                [c, ..] => {
                    let expected = "a printable ASCII character, an escape or `\"`";
                    return Err(self.error(at + 1, shown(&[c]), expected.to_owned()));
                }
                [] => return Err(self.error(at + 1, shown(&[]), "a closing `\"`".to_owned())),
            };
            bytes.push(byte);
            self.at += len;
        }
        self.at += 1;
        Ok(Token::Quoted(bytes))
    }

    fn bytes(&mut self, what: &str) -> Result<Vec<u8>, ParseError> {
        let start = self.skip();
        let bytes = match self.token()? {
            Token::Quoted(bytes) => Some(bytes),
            Token::Word([]) => None,
            Token::Word(digits) => {
                let (pairs, odd) = digits.as_chunks::<2>();
                let bytes = pairs.iter().map(|&[h, l]| Some(hex(h)? << 4 | hex(l)?));
                if odd.is_empty() { bytes.collect() } else { None }
            }
        };
        match bytes {
            Some(bytes) if bytes.len() <= MAX_BYTES => Ok(bytes),
            Some(_) => self.wrong(start, format!("at most {MAX_BYTES} bytes of {what}")),
            None => self.wrong(start, format!("{what}: pairs of hexadecimal digits, or \"text\"")),
        }
    }

    fn name(&mut self, what: &str) -> Result<String, ParseError> {
        let start = self.skip();
        let name = match self.token()? {
            Token::Quoted(bytes) => String::from_utf8(bytes).ok(),
            Token::Word(word) if !word.is_empty() && word.iter().all(|&b| plain(b)) => {
                String::from_utf8(word.to_vec()).ok()
            }
            Token::Word(_) => None,
        };
        name.map_or_else(|| self.wrong(start, format!("the name of {what}")), Ok)
    }

    /// A number up to `max`.
    fn number(&mut self, what: &str, max: u64) -> Result<u64, ParseError> {
        let start = self.skip();
        let word = self.word();
        match number(word) {
            Some(n) if n <= max => Ok(n),
            Some(_) => self.wrong(start, format!("{what}, at most {max:#x}")),
            None => self.wrong(start, format!("{what}, a number")),
        }
    }

    fn u64(&mut self, what: &str) -> Result<u64, ParseError> {
        self.number(what, u64::MAX)
    }

    fn u32(&mut self, what: &str) -> Result<u32, ParseError> {
        Ok(self.number(what, u32::MAX.into())? as u32)
    }

    /// Nothing more on this line but a comment.
    fn end(&mut self) -> Result<(), ParseError> {
        let start = self.skip();
        if self.word().is_empty() { Ok(()) } else { self.wrong(start, "the end of the line") }
    }

    pub(super) fn board(mut self) -> Result<BoardSpec, ParseError> {
        let start = self.skip();
        if self.word() != MACHINE.as_bytes() {
            return self.wrong(start, format!("`{MACHINE} KIND`"));
        }
        let mut board =
            BoardSpec { kind: self.name("a kind of machine")?.into(), ..BoardSpec::default() };
        while !self.is_blank() {
            let start = self.skip();
            let word = self.word();
            let value = |key: &[u8]| word.strip_prefix(key);
            let done = if let Some(v) = value(b"memory=") {
                size(v).map(|v| board.memory = v)
            } else if let Some(v) = value(b"cpus=") {
                let cpus = number(v).and_then(|v| u16::try_from(v).ok()).filter(|&v| v > 0);
                cpus.map(|v| board.cpus = v)
            } else if let Some(v) = value(b"unix-time=") {
                number(v).map(|v| board.unix_time = v)
            } else if let Some(v) = value(b"pci=") {
                devices(v).map(|v| board.pci = Some(v))
            } else if word == b"ioapic=on" {
                board.ioapic = true;
                Some(())
            } else if let Some(v) = value(b"iommu=") {
                let interrupts = match v {
                    b"memory" => Some(false),
                    b"interrupts" => Some(true),
                    _ => None,
                };
                interrupts.map(|interrupts| board.iommu = Some(IommuConfig { interrupts }))
            } else {
                None
            };
            if done.is_none() {
                let keys = "`memory=BYTES`, `cpus=1` to `cpus=65535`, `unix-time=SECONDS` or \
                            `pci=host,DEVICE,...`, `ioapic=on`, `iommu=memory` or `iommu=interrupts`";
                return self.wrong(start, keys);
            }
        }
        Ok(board)
    }

    pub(super) fn listed(mut self) -> Result<bool, ParseError> {
        if self.word() != LISTED[0].as_bytes() {
            return Ok(false);
        }
        let start = self.skip();
        if self.word() != LISTED[1].as_bytes() {
            return self.wrong(start, format!("`{}`", LISTED[1]));
        }
        self.end()?;
        Ok(true)
    }

    /// A line that has a word.
    pub(super) fn line(&mut self, cpu: u16, cpus: u16) -> Result<Line, ParseError> {
        let start = self.skip();
        let line = match self.word() {
            b"cpu" => Line::Cpu(self.number("a vCPU of this machine", (cpus - 1).into())? as u16),
            b"line" => Line::Effect(Effect::Line {
                gsi: self.u32("a GSI")?,
                level: match (self.skip(), self.word()) {
                    (_, b"high") => true,
                    (_, b"low") => false,
                    (start, _) => return self.wrong(start, "`high` or `low`"),
                },
            }),
            b"output" => Line::Effect(Effect::Output {
                device: self.name("a device")?.into(),
                byte: match (self.skip(), self.bytes("output")?) {
                    (_, bytes) if bytes.len() == 1 => bytes[0],
                    (start, _) => return self.wrong(start, "one byte of output"),
                },
            }),
            b"remap" => Line::Effect(Effect::Remap(self.u64("an address")?)),
            b"sint" => Line::Effect(Effect::Sint {
                vp: self.u32("a virtual processor")?,
                sint: self.number("a source", 15)? as u8,
            }),
            b"message" => Line::Effect(Effect::Message {
                address: self.u64("an address")?,
                data: self.u32("a dword")?,
            }),
            b"await" => Line::Effect(Effect::AwaitEnd {
                pin: self.u32("a pin")?,
                message: match (self.skip(), self.at, self.word()) {
                    (_, _, b"none") => None,
                    (_, back, _) => {
                        self.at = back;
                        Some((self.u64("`none` or an address")?, self.u32("a dword")?))
                    }
                },
            }),
            b"deadline" => Line::Effect(Effect::Deadline(self.u64("nanoseconds")?)),
            word => {
                let op = self.op(start, word, cpu)?;
                return Ok(Line::Step(Step { op, expect: self.answer()?, effects: Vec::new() }));
            }
        };
        self.end()?;
        Ok(line)
    }

    fn op(&mut self, start: usize, word: &[u8], cpu: u16) -> Result<Op, ParseError> {
        Ok(match word {
            b"ram" => Op::Ram {
                addr: self.u64("an address")?,
                bytes: self.bytes("memory")?,
                after: match (self.skip(), self.at, self.word()) {
                    (_, _, b"after") => self.u32("how many reads")?,
                    (_, back, _) => {
                        self.at = back;
                        0
                    }
                },
            },
            b"input" => {
                Op::Input { device: self.name("a device")?.into(), bytes: self.bytes("input")? }
            }
            b"advance" => Op::Advance(self.u64("nanoseconds")?),
            b"timer" => Op::Timer,
            b"save-restore" => Op::SaveRestore,
            b"reset" => Op::Reset,
            word => Op::Exit { cpu, exit: self.exit(start, word)? },
        })
    }

    fn exit(&mut self, start: usize, word: &[u8]) -> Result<Exit, ParseError> {
        Ok(match word {
            b"in" => Exit::Io(self.access(Space::Port, false)?),
            b"out" => Exit::Io(self.access(Space::Port, true)?),
            b"read" => Exit::Io(self.access(Space::Mmio, false)?),
            b"write" => Exit::Io(self.access(Space::Mmio, true)?),
            b"hlt" => Exit::Hlt,
            b"shutdown" => Exit::Shutdown,
            b"event" => Exit::SystemEvent(match (self.skip(), self.word()) {
                (_, b"shutdown") => SystemEvent::Shutdown,
                (_, b"reset") => SystemEvent::Reset,
                (_, b"crash") => SystemEvent::Crash,
                (start, word) => match number(word).and_then(|n| u32::try_from(n).ok()) {
                    Some(kind) => SystemEvent::Other(kind),
                    None => return self.wrong(start, "`shutdown`, `reset`, `crash` or a number"),
                },
            }),
            b"internal-error" => Exit::InternalError { suberror: self.u32("a suberror")? },
            b"fail-entry" => {
                Exit::FailEntry { reason: self.u64("a reason")?, cpu: self.u32("a processor")? }
            }
            b"debug" => Exit::Debug {
                vector: self.u32("a vector")?,
                pc: self.u64("an address")?,
                dr6: self.u64("DR6")?,
            },
            b"hypercall" => {
                let nr = self.u64("a hypercall's number")?;
                let mut arg = || self.u64("an argument (there are three)");
                Exit::Hypercall { nr, args: [arg()?, arg()?, arg()?] }
            }
            b"hyperv-call" => {
                let input = self.u64("a hypercall's input")?;
                let mut param = || self.u64("a parameter (there are two)");
                Exit::HypervCall { input, params: [param()?, param()?] }
            }
            b"hyperv-synic" => Exit::HypervSynic {
                vp: self.number("a virtual processor", 0xffff)? as u16,
                msr: self.u32("an MSR")?,
                control: self.u64("SCONTROL")?,
                events: self.u64("SIEFP")?,
                messages: self.u64("SIMP")?,
            },
            b"hyperv-debug" => Exit::HypervDebug { msr: self.u32("an MSR")? },
            b"rdmsr" => Exit::Rdmsr { index: self.u32("an MSR")? },
            b"wrmsr" => Exit::Wrmsr { index: self.u32("an MSR")?, value: self.u64("a value")? },
            b"eoi" => Exit::IoapicEoi(self.number("a vector", 0xff)? as u8),
            b"tpr" => Exit::SetTpr,
            b"irq-window" => Exit::IrqWindow,
            b"memory-fault" => Exit::MemoryFault {
                flags: self.u64("flags")?,
                gpa: self.u64("an address")?,
                size: self.u64("a length")?,
            },
            b"dirty-ring-full" => Exit::DirtyRingFull,
            b"bus-lock" => Exit::BusLock,
            b"notify" => Exit::Notify,
            b"interrupted" => Exit::Interrupted,
            b"run-error" => Exit::RunError(self.number("an errno", i32::MAX as u64)? as i32),
            b"unknown" => Exit::Unknown(self.u32("an exit reason")?),
            _ => return self.wrong(start, "an operation (`in`, `out`, `read`, `ram`, ...)"),
        })
    }

    fn access(&mut self, space: Space, write: bool) -> Result<Access, ParseError> {
        let (what, max, widths) = match space {
            Space::Port => ("a port", 0xffff, "a width of 1, 2 or 4"),
            Space::Mmio => ("an address", u64::MAX, "a width of 1, 2, 4 or 8"),
        };
        let addr = self.number(what, max)?;
        let start = self.skip();
        let size = number(self.word()).and_then(Size::from_bytes);
        let size = match size.filter(|&size| space == Space::Mmio || size < Size::B8) {
            Some(size) => size,
            None => return self.wrong(start, widths),
        };
        Ok(if write {
            let value = self.number("a value of that width", size.mask())?;
            Access::write(space, addr, size, value)
        } else {
            Access::read(space, addr, size)
        })
    }

    fn answer(&mut self) -> Result<Option<Answer>, ParseError> {
        if self.is_blank() {
            return Ok(None);
        }
        let start = self.skip();
        if self.word() != b"->" {
            return self.wrong(start, "`->` and an answer, or the end of the line");
        }
        let start = self.skip();
        let answer = match self.word() {
            b"ok" => Answer::Ok,
            b"fault" => Answer::Fault,
            b"refused" => Answer::Refused,
            b"stop" => Answer::Stop(self.stop()?),
            word => match number(word) {
                Some(value) => Answer::Value(value),
                None => {
                    let answers = "an answer: `ok`, a value, `fault`, `refused` or `stop`";
                    return self.wrong(start, answers);
                }
            },
        };
        self.end()?;
        Ok(Some(answer))
    }

    fn stop(&mut self) -> Result<Stop, ParseError> {
        const PLAIN: [Stop; 8] = [
            Stop::PowerOff,
            Stop::Reset,
            Stop::TripleFault,
            Stop::Halted,
            Stop::Crash,
            Stop::Unexpected,
            Stop::Timeout,
            Stop::Interrupted,
        ];
        let start = self.skip();
        let word = self.word();
        Ok(match word {
            b"exit" => Stop::Exit(self.number("an exit value", 0xff)? as u8),
            b"sleep" => Stop::Sleep(self.number("a sleep state", 0xff)? as u8),
            _ => match PLAIN.into_iter().find(|&stop| stop_word(stop).as_bytes() == word) {
                Some(stop) => stop,
                None => return self.wrong(start, "a stop: `exit`, `power-off`, `reset`, ..."),
            },
        })
    }
}

const ESCAPE: &str = "an escape: `\\n`, `\\r`, `\\t`, `\\\\`, `\\\"` or `\\x` and two digits";

fn hex(digit: u8) -> Option<u8> {
    Some((digit as char).to_digit(16)? as u8)
}

fn number(word: &[u8]) -> Option<u64> {
    let word = std::str::from_utf8(word).ok()?;
    let (digits, radix) = match word.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (word, 10),
    };
    // `from_str_radix` takes a sign; a script does not.
    if digits.starts_with('+') { None } else { u64::from_str_radix(digits, radix).ok() }
}

/// What is on a PCI bus, behind the host bridge.
fn devices(word: &[u8]) -> Option<Vec<PciDevice>> {
    let mut names = std::str::from_utf8(word).ok()?.split(',');
    (names.next() == Some(HOST)).then(|| names.map(|name| name.parse().ok()).collect())?
}

fn size(word: &[u8]) -> Option<u64> {
    let (digits, shift) = match word {
        [digits @ .., b'K'] => (digits, 10),
        [digits @ .., b'M'] => (digits, 20),
        [digits @ .., b'G'] => (digits, 30),
        digits => (digits, 0),
    };
    if planted::has(Flaw::ScriptSize) {
        return Some(number(digits)? * (1 << shift));
    }
    number(digits)?.checked_mul(1 << shift)
}
