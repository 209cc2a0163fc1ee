//! Scripts: what happens to a board, written down, and what the board answered.
//!
//! A crash that a fuzzer found, a recorded boot, a regression test and a benchmark are all files
//! in one language. [`text`] describes its form, [`replay`] runs it on a board without KVM,
//! [`record`] writes it while a guest runs.

mod cursor;
mod parse;
mod player;
pub mod record;
pub mod replay;
pub mod text;

pub use parse::{ParseError, Reader, ScriptError, parse};
pub use record::{RecordError, Recorder};

use std::borrow::Cow;

use crate::access::Access;
use crate::device::Nanos;
use crate::exit::{Entry, Exit, Stop};
use crate::machine::{IommuConfig, PciDevice};
use crate::ram::MIN_SIZE;

/// Version of the text form that this VMM writes and reads.
pub const VERSION: u32 = 1;

/// The most bytes that one `ram` or `input` operation carries.
pub const MAX_BYTES: usize = 64 << 10;

/// Which board a script is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoardSpec {
    /// The kind of machine; `pc` is the one that the `vmm` program builds.
    pub kind: Cow<'static, str>,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Number of vCPUs, at least 1.
    pub cpus: u16,
    /// Wall-clock time at power-on, in seconds since 1970.
    pub unix_time: u64,
    /// What is on its PCI bus beside the host bridge; `None` if it has no such bus.
    pub pci: Option<Vec<PciDevice>>,
    /// Whether it has an I/O APIC of its own.
    pub ioapic: bool,
    /// What stands between its PCI bus and memory.
    pub iommu: Option<IommuConfig>,
}

impl Default for BoardSpec {
    /// The least PC, switched on in 1970.
    fn default() -> Self {
        BoardSpec {
            kind: "pc".into(),
            memory: MIN_SIZE,
            cpus: 1,
            unix_time: 0,
            pci: None,
            ioapic: false,
            iommu: None,
        }
    }
}

/// One thing that happens to a board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A vCPU leaves guest mode.
    Exit {
        /// The vCPU. It has no influence on the answer; reports name it.
        cpu: u16,
        /// With what.
        exit: Exit,
    },
    /// Guest memory gets these bytes, as if the guest had written them.
    Ram {
        /// Guest-physical address of the first.
        addr: u64,
        /// At most [`MAX_BYTES`].
        bytes: Vec<u8>,
        /// 0: before the next operation. N: during it, once devices have read or written memory
        /// N times and read it again (another vCPU changed what a device was reading).
        after: u32,
    },
    /// Bytes arrive from the host at a device's port.
    Input {
        /// The device.
        device: Cow<'static, str>,
        /// At most [`MAX_BYTES`].
        bytes: Vec<u8>,
    },
    /// Time passes; nobody tells the devices. In nanoseconds.
    Advance(Nanos),
    /// The board's timer fires: devices whose deadline has come are told.
    Timer,
    /// The state of every device is saved and restored on a board that is as new.
    SaveRestore,
    /// Every device is reset.
    Reset,
}

impl Op {
    /// An access by vCPU 0.
    pub const fn io(access: Access) -> Op {
        Op::Exit { cpu: 0, exit: Exit::Io(access) }
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done; there is nothing to say about it.
    Ok,
    /// A read got this value, or this many bytes of input were taken.
    Value(u64),
    /// The guest's instruction raises #GP.
    Fault,
    /// The VM ends.
    Stop(Stop),
    /// The operation does not suit the board: no RAM there, no such device, or a device does not
    /// take back its own state.
    Refused,
}

impl From<Entry> for Answer {
    fn from(entry: Entry) -> Answer {
        match entry {
            Entry::Resume => Answer::Ok,
            Entry::Read(value) => Answer::Value(value),
            Entry::Fault => Answer::Fault,
            Entry::Stop(stop) => Answer::Stop(stop),
        }
    }
}

/// What reached the board's backplane during an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An interrupt line got this level.
    Line {
        /// The GSI.
        gsi: u32,
        /// High or low.
        level: bool,
    },
    /// A byte left through a device's host port.
    Output {
        /// The device.
        device: Cow<'static, str>,
        /// The byte.
        byte: u8,
    },
    /// The mapping of the page at this address was dropped and made again.
    Remap(u64),
    /// The interrupt of a synthetic interrupt source was requested.
    Sint {
        /// The virtual processor.
        vp: u32,
        /// The source.
        sint: u8,
    },
    /// A message-signalled interrupt went to the local APICs.
    Message {
        /// The bus address.
        address: u64,
        /// The dword.
        data: u32,
    },
    /// The end of this message's interrupt matters to a pin of the I/O APIC, or none's does.
    AwaitEnd {
        /// The pin.
        pin: u32,
        /// Bus address and dword.
        message: Option<(u64, u32)>,
    },
    /// A device asked to be told when this time has come.
    Deadline(Nanos),
}

/// An operation, and what is expected of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What happens.
    pub op: Op,
    /// How it must end, if the script says.
    pub expect: Option<Answer>,
    /// The effects it must have; see [`Script::all_effects`] for what none means.
    pub effects: Vec<Effect>,
}

impl Step {
    /// A step of which nothing is expected.
    pub const fn new(op: Op) -> Step {
        Step { op, expect: None, effects: Vec::new() }
    }
}

/// A board, and what happens to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The board.
    pub board: BoardSpec,
    /// Whether a step that lists no effect must have none. Otherwise the effects of such a step
    /// are nobody's business; a step that lists one must have exactly those listed either way.
    pub all_effects: bool,
    /// What happens, first one first.
    pub steps: Vec<Step>,
}

impl Script {
    /// A script that expects nothing.
    pub fn new(board: BoardSpec, ops: impl IntoIterator<Item = Op>) -> Script {
        let steps = ops.into_iter().map(Step::new).collect();
        Script { board, all_effects: false, steps }
    }
}

#[cfg(test)]
mod tests;
