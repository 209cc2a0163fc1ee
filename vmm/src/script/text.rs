//! The text form of a script.
//!
//! One operation a line. Words are separated by blanks; `#` begins a comment where a word could
//! begin; empty lines mean nothing. Numbers are decimal, or hexadecimal after `0x`.
//!
//! ```text
//! # exitlab script 1
//! machine pc memory=2M cpus=1 unix-time=0
//! effects listed
//! advance 1500
//! out 0x3f8 1 0x41 -> ok
//!   output com1 "A"
//! in 0x3fd 1 -> 0x60
//! ```
//!
//! The first line names the form and its version. `machine` gives the kind of machine and its
//! configuration: `memory` (bytes, or with K, M or G), `cpus`, `unix-time` in seconds since 1970, and
//! `pci=host,DEVICE,...`, `ioapic=on`, `iommu=memory` or `iommu=interrupts`; what is left out is the
//! least: 2M, 1, 0, no PCI bus, no I/O APIC of the board's, no IOMMU. `effects listed` is there if every effect of
//! every operation is listed, so that an operation that lists none must have none.
//!
//! | operation | what happens |
//! |---|---|
//! | `in PORT WIDTH`, `out PORT WIDTH VALUE` | an access to an I/O port, 1, 2 or 4 bytes wide |
//! | `read ADDR WIDTH`, `write ADDR WIDTH VALUE` | MMIO, 1 to 8 bytes wide |
//! | `ram ADDR HEX` | guest memory gets these bytes |
//! | `ram ADDR HEX after N` | so, but amid the next operation, once devices have accessed memory N times |
//! | `input DEVICE "BYTES"` | host input for a device; the answer is how many bytes it took |
//! | `advance NS` | time passes, and nobody tells the devices |
//! | `timer` | devices whose deadline has come are told |
//! | `save-restore` | every device is saved, and restored on a board that is as new |
//! | `reset` | every device is reset |
//! | `cpu N` | the exits that follow are this vCPU's; at first they are vCPU 0's |
//! | `hlt`, `shutdown`, `tpr`, `irq-window`, `dirty-ring-full`, `bus-lock`, `notify`, `interrupted` | an exit without details |
//! | `rdmsr INDEX`, `wrmsr INDEX VALUE`, `hypercall NR A B C`, `eoi VECTOR` | other exits |
//! | `hyperv-call INPUT A B`, `hyperv-synic VP MSR CONTROL EVENTS MESSAGES`, `hyperv-debug MSR` | exits of Hyper-V's interfaces |
//! | `event shutdown`, `event reset`, `event crash`, `event TYPE` | a system event |
//! | `internal-error SUBERROR`, `fail-entry REASON CPU`, `debug VECTOR PC DR6` | |
//! | `memory-fault FLAGS GPA SIZE`, `run-error ERRNO`, `unknown REASON` | |
//!
//! After an operation may stand the answer that is expected of it: `-> ok`, `-> VALUE`,
//! `-> fault` (#GP), `-> refused`, or `-> stop` with `exit VALUE`, `power-off`, `reset`,
//! `sleep STATE`, `triple-fault`, `halted`, `crash`, `unexpected`, `timeout` or `interrupted`.
//! On the lines after it stand its effects: `line GSI high`, `line GSI low`,
//! `output DEVICE "BYTE"`, `remap ADDR`, `message ADDR DWORD`, `await PIN ADDR DWORD`,
//! `await PIN none`, `sint VP SOURCE`, `deadline NS`.
//!
//! Between quotes stand printable ASCII characters and `\n`, `\r`, `\t`, `\\`, `\"`, `\xNN`. A
//! device's name that is no plain word is quoted. No bytes at all are written `""`.

use std::fmt::{self, Display, Formatter, Write as _};

use super::{Answer, BoardSpec, Effect, Op, Script, Step, VERSION};
use crate::access::{Access, Dir, Space};
use crate::exit::{Exit, Stop, SystemEvent};
use crate::machine::IommuConfig;

/// The word that begins the line of a script's machine.
pub(super) const MACHINE: &str = "machine";
/// The first word of what is on the PCI bus.
pub(super) const HOST: &str = "host";
/// The line that says that every effect is listed.
pub(super) const LISTED: [&str; 2] = ["effects", "listed"];

/// The first lines of a script: its form, its machine, and whether every effect is listed.
pub fn header(board: &BoardSpec, all_effects: bool) -> String {
    let BoardSpec { kind, memory, cpus, unix_time, pci, ioapic, iommu } = board;
    let kind = Name(kind);
    let memory = Bytes(*memory);
    let mut text = format!(
        "# exitlab script {VERSION}\n\
         {MACHINE} {kind} memory={memory} cpus={cpus} unix-time={unix_time}"
    );
    if let Some(devices) = pci {
        let names = [HOST].into_iter().chain(devices.iter().map(|device| device.name()));
        text += &format!(" pci={}", names.collect::<Vec<_>>().join(","));
    }
    if *ioapic {
        text += " ioapic=on";
    }
    if let Some(IommuConfig { interrupts }) = iommu {
        text += if *interrupts { " iommu=interrupts" } else { " iommu=memory" };
    }
    text += "\n";
    if all_effects {
        text += &format!("{}\n", LISTED.join(" "));
    }
    text
}

/// Prints steps, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Printer {
    cpu: u16,
}

impl Printer {
    /// Adds the lines of `step` to `out`.
    pub fn step(&mut self, step: &Step, out: &mut String) {
        if let Op::Exit { cpu, .. } = step.op
            && cpu != self.cpu
        {
            self.cpu = cpu;
            line(out, format_args!("cpu {cpu}"));
        }
        match step.expect {
            Some(answer) => line(out, format_args!("{} -> {answer}", step.op)),
            None => line(out, format_args!("{}", step.op)),
        }
        for effect in &step.effects {
            line(out, format_args!("  {effect}"));
        }
    }
}

fn line(out: &mut String, args: fmt::Arguments<'_>) {
    writeln!(out, "{args}").expect("a string takes whatever is written to it");
}

impl Display for Script {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&header(&self.board, self.all_effects))?;
        let (mut printer, mut text) = (Printer::default(), String::new());
        for step in &self.steps {
            text.clear();
            printer.step(step, &mut text);
            f.write_str(&text)?;
        }
        Ok(())
    }
}

/// A size with the largest unit that it is a whole number of.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let unit = [(30, "G"), (20, "M"), (10, "K")];
        match unit.iter().find(|(shift, _)| self.0 != 0 && self.0.is_multiple_of(1 << shift)) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A name, quoted if it is no plain word.
struct Name<'a>(&'a str);

/// Whether `byte` may stand in a word.
pub(super) fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

impl Display for Name<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.bytes().all(plain) {
            f.write_str(self.0)
        } else {
            Quoted(self.0.as_bytes()).fmt(f)
        }
    }
}

/// Bytes between quotes.
struct Quoted<'a>(&'a [u8]);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for &byte in self.0 {
            match byte {
                b'\n' => f.write_str("\\n")?,
                b'\r' => f.write_str("\\r")?,
                b'\t' => f.write_str("\\t")?,
                b'"' | b'\\' => write!(f, "\\{}", byte as char)?,
                b' '..=b'~' => f.write_char(byte as char)?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        f.write_char('"')
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Op::Exit { exit, .. } => write_exit(f, exit),
            Op::Ram { addr, bytes, after } => {
                write!(f, "ram {addr:#x} ")?;
                if bytes.is_empty() {
                    f.write_str("\"\"")?;
                }
                for byte in bytes {
                    write!(f, "{byte:02x}")?;
                }
                if *after > 0 { write!(f, " after {after}") } else { Ok(()) }
            }
            Op::Input { device, bytes } => write!(f, "input {} {}", Name(device), Quoted(bytes)),
            Op::Advance(ns) => write!(f, "advance {ns}"),
            Op::Timer => f.write_str("timer"),
            Op::SaveRestore => f.write_str("save-restore"),
            Op::Reset => f.write_str("reset"),
        }
    }
}

fn write_exit(f: &mut Formatter<'_>, exit: &Exit) -> fmt::Result {
    match *exit {
        Exit::Io(Access { space, addr, size, dir }) => {
            let word = match (space, dir) {
                (Space::Port, Dir::Read) => "in",
                (Space::Port, Dir::Write(_)) => "out",
                (Space::Mmio, Dir::Read) => "read",
                (Space::Mmio, Dir::Write(_)) => "write",
            };
            write!(f, "{word} {addr:#x} {size}")?;
            if let Dir::Write(value) = dir { write!(f, " {value:#x}") } else { Ok(()) }
        }
        Exit::Hlt => f.write_str("hlt"),
        Exit::Shutdown => f.write_str("shutdown"),
        Exit::SystemEvent(SystemEvent::Shutdown) => f.write_str("event shutdown"),
        Exit::SystemEvent(SystemEvent::Reset) => f.write_str("event reset"),
        Exit::SystemEvent(SystemEvent::Crash) => f.write_str("event crash"),
        Exit::SystemEvent(SystemEvent::Other(kind)) => write!(f, "event {kind}"),
        Exit::InternalError { suberror } => write!(f, "internal-error {suberror}"),
        Exit::FailEntry { reason, cpu } => write!(f, "fail-entry {reason:#x} {cpu}"),
        Exit::Debug { vector, pc, dr6 } => write!(f, "debug {vector} {pc:#x} {dr6:#x}"),
        Exit::Hypercall { nr, args: [a, b, c] } => {
            write!(f, "hypercall {nr:#x} {a:#x} {b:#x} {c:#x}")
        }
        Exit::HypervCall { input, params: [a, b] } => {
            write!(f, "hyperv-call {input:#x} {a:#x} {b:#x}")
        }
        Exit::HypervSynic { vp, msr, control, events, messages } => {
            write!(f, "hyperv-synic {vp} {msr:#x} {control:#x} {events:#x} {messages:#x}")
        }
        Exit::HypervDebug { msr } => write!(f, "hyperv-debug {msr:#x}"),
        Exit::Rdmsr { index } => write!(f, "rdmsr {index:#x}"),
        Exit::Wrmsr { index, value } => write!(f, "wrmsr {index:#x} {value:#x}"),
        Exit::IoapicEoi(vector) => write!(f, "eoi {vector:#x}"),
        Exit::SetTpr => f.write_str("tpr"),
        Exit::IrqWindow => f.write_str("irq-window"),
        Exit::MemoryFault { flags, gpa, size } => {
            write!(f, "memory-fault {flags:#x} {gpa:#x} {size:#x}")
        }
        Exit::DirtyRingFull => f.write_str("dirty-ring-full"),
        Exit::BusLock => f.write_str("bus-lock"),
        Exit::Notify => f.write_str("notify"),
        Exit::Interrupted => f.write_str("interrupted"),
        Exit::RunError(errno) => write!(f, "run-error {errno}"),
        Exit::Unknown(reason) => write!(f, "unknown {reason}"),
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Ok => f.write_str("ok"),
            Answer::Value(value) => write!(f, "{value:#x}"),
            Answer::Fault => f.write_str("fault"),
            Answer::Refused => f.write_str("refused"),
            Answer::Stop(Stop::Exit(value)) => write!(f, "stop exit {value:#x}"),
            Answer::Stop(Stop::Sleep(state)) => write!(f, "stop sleep {state}"),
            Answer::Stop(stop) => write!(f, "stop {}", stop_word(*stop)),
        }
    }
}

/// The word that stands for a stop.
pub(super) fn stop_word(stop: Stop) -> &'static str {
    match stop {
        Stop::Exit(_) => "exit",
        Stop::PowerOff => "power-off",
        Stop::Reset => "reset",
        Stop::Sleep(_) => "sleep",
        Stop::TripleFault => "triple-fault",
        Stop::Halted => "halted",
        Stop::Crash => "crash",
        Stop::Unexpected => "unexpected",
        Stop::Timeout => "timeout",
        Stop::Interrupted => "interrupted",
    }
}

impl Display for Effect {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Effect::Line { gsi, level } => {
                write!(f, "line {gsi} {}", if *level { "high" } else { "low" })
            }
            Effect::Output { device, byte } => {
                write!(f, "output {} {}", Name(device), Quoted(&[*byte]))
            }
            Effect::Remap(gpa) => write!(f, "remap {gpa:#x}"),
            Effect::Sint { vp, sint } => write!(f, "sint {vp} {sint}"),
            Effect::Message { address, data } => write!(f, "message {address:#x} {data:#x}"),
            Effect::AwaitEnd { pin, message: None } => write!(f, "await {pin} none"),
            Effect::AwaitEnd { pin, message: Some((address, data)) } => {
                write!(f, "await {pin} {address:#x} {data:#x}")
            }
            Effect::Deadline(at) => write!(f, "deadline {at}"),
        }
    }
}
