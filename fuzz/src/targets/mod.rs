//! What there is to fuzz: one list, which everything else asks.
//!
//! A target is a line in [`ALL`] and a file of a few lines in `fuzz_targets` (libFuzzer's binary of
//! the same name, which [`target!`](crate::target) writes). A test holds the two and `Cargo.toml`
//! against each other. Those about a chip are in [`chips`]: a board that holds nothing but the chip,
//! where a PC has it, so that a script is short and quick, and any address leads somewhere.

pub mod chips;
mod loaders;
mod pins;
mod states;
mod texts;

use std::sync::atomic::{AtomicBool, Ordering};

use vmm::machine::{BoardError, Machine};
use vmm::script::replay::{self, BuildError, Outcome};
use vmm::script::{BoardSpec, Op};

pub use loaders::ram as loader_ram;

use crate::hunt::Seen;
use crate::{Board, lab, rig, wire};

/// Something to fuzz.
#[derive(Debug)]
pub struct Target {
    /// Its name, which is that of its binary and of its corpus: lower-case letters, digits and `-`.
    pub name: &'static str,
    /// What it is about, in a line.
    pub about: &'static str,
    /// What its inputs are.
    pub subject: Subject,
    /// The source files that it is to cover, from the workspace's root.
    pub sources: &'static [&'static str],
    /// How many percent of their lines a fuzzer covers in a minute, from nothing. What stays out is
    /// told in [`Target::uncovered`].
    pub floor: u8,
    /// Why it is not all of them; empty if it is.
    pub uncovered: &'static str,
    /// Words that matter in its inputs: libFuzzer's dictionary, and what the mutator inserts.
    pub words: &'static [&'static [u8]],
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// What the bytes of a target are.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    /// A script for a board.
    Board {
        /// The board; its kind is `pc`, or the target's name.
        spec: fn() -> BoardSpec,
        /// What is put on a board of that kind.
        put: Put,
        /// Numbers that matter to its registers: addresses, commands, lengths.
        numbers: &'static [u64],
        /// What must happen on it sooner or later: see [`arm`].
        canary: fn(&Op, &Outcome) -> bool,
    },
    /// Bytes that something reads.
    Bytes {
        /// Reads them, and panics if something is wrong with how they are read.
        check: fn(&[u8]) -> Said,
        /// What must be among inputs sooner or later: see [`arm`].
        canary: fn(&[u8]) -> bool,
    },
}

/// What a reader says of some bytes: that it takes them, or why not.
pub type Said = Result<(), String>;

/// Puts devices on a board.
pub type Put = fn(&mut Machine) -> Result<(), BoardError>;

/// Every target. A new device is one more line.
pub static ALL: &[&Target] = &[
    &chips::BOARD,
    &chips::PCI,
    &chips::UART,
    &chips::RTC,
    &chips::I8042,
    &chips::ACPI_PM,
    &chips::FW_CFG,
    &chips::POST,
    &chips::RESETS,
    &chips::EXIT,
    &chips::SHUTDOWN,
    &chips::HYPERV_TESTDEV,
    &chips::TESTDEV,
    &chips::IOAPIC,
    &chips::VTD,
    &chips::PCI_CONFIG,
    &chips::PCI_TESTDEV,
    &chips::EDU,
    &LAB,
    &WIRE,
    &loaders::LOADER,
    &loaders::PAYLOAD,
    &loaders::ACPI,
    &texts::SCRIPT,
    &texts::OPTIONS,
    &texts::CASE,
    &texts::UNITTESTS,
    &texts::TRANSCRIPT,
    &states::SNAPSHOT,
];

static LAB: Target = Target {
    name: "lab",
    about: "the decoder of a guest's lab requests",
    subject: Subject::Bytes {
        check: |b| lab::check(b).then_some(()).ok_or_else(String::new),
        canary: |b| b.get(4) == Some(&9) && lab::check(b),
    },
    sources: &["vmm/src/lab/request.rs"],
    floor: 90,
    uncovered: "",
    words: &[],
    seeds: Vec::new,
};

static WIRE: Target = Target {
    name: "wire",
    about: "the decoder of an emulated host's messages",
    subject: Subject::Bytes {
        check: |b| {
            let (found, garbage) = wire::check(b);
            (found > 0).then_some(()).ok_or_else(|| format!("{} garbage", garbage.min(3)))
        },
        canary: |b| wire::check(b).0 >= 3,
    },
    sources: &["testcases/src/wire.rs"],
    floor: 70,
    uncovered: "what writes frames to a port, and the messages of a runner's own results",
    words: &[],
    seeds: Vec::new,
};

/// The target of this name.
pub fn named(name: &str) -> Option<&'static Target> {
    ALL.iter().copied().find(|target| target.name == name)
}

/// Builds the boards that targets are about: a [`Build`](replay::Build).
///
/// # Errors
/// When there is no such kind of board, or it cannot be put together.
pub fn build(spec: &BoardSpec, machine: &mut Machine) -> Result<(), BuildError> {
    match named(&spec.kind).map(|target| target.subject) {
        Some(Subject::Board { put, .. }) => Ok(put(machine)?),
        _ => replay::board(spec, machine),
    }
}

/// Words of the whole PC.
const BOARD_WORDS: &[&[u8]] = &[b"Shutdown"];

/// The board that a script names in its second line, as the fuzzer builds it.
pub fn board(spec: BoardSpec) -> Board<'static> {
    let (words, numbers) = match named(&spec.kind) {
        Some(Target { words, subject: Subject::Board { numbers, .. }, .. }) => (*words, *numbers),
        _ => (BOARD_WORDS, &[][..]),
    };
    Board { spec, build: &build, keeps: &["rtc"], words, numbers }
}

impl Target {
    /// The board of a target whose inputs are scripts.
    pub fn board(&self) -> Option<Board<'static>> {
        match self.subject {
            Subject::Board { spec, .. } => Some(board(spec())),
            Subject::Bytes { .. } => None,
        }
    }

    /// What its binary does with an input: whether it was taken.
    ///
    /// # Panics
    /// When something is wrong; the message says what, and holds the script if there is one.
    pub fn run(&self, bytes: &[u8]) -> bool {
        self.tried(bytes, None)
    }

    /// The same, and notes what came of it.
    ///
    /// # Panics
    /// As [`Target::run`].
    pub fn run_seeing(&self, bytes: &[u8], seen: &mut Seen) -> bool {
        self.tried(bytes, Some(seen))
    }

    fn tried(&self, bytes: &[u8], seen: Option<&mut Seen>) -> bool {
        match self.subject {
            Subject::Board { spec, canary, .. } => {
                rig::with(spec, |rig| crate::obeys(bytes, rig, canary, seen));
                true
            }
            Subject::Bytes { check, canary } => {
                assert!(!(armed() && canary(bytes)), "the canary is dead");
                let said = check(bytes);
                if let Some(seen) = seen {
                    seen.said(bytes, &said);
                }
                said.is_ok()
            }
        }
    }
}

static ARMED: AtomicBool = AtomicBool::new(false);

/// From now on every target has a bug, so that it can be told from one that looks nowhere: it panics
/// at what its canary says. Binaries of libFuzzer are armed by the environment variable
/// `EXITLAB_FUZZ_CANARY`.
pub fn arm() {
    ARMED.store(true, Ordering::Relaxed);
}

/// Whether targets have their bugs.
pub fn armed() -> bool {
    ARMED.load(Ordering::Relaxed)
}

/// What a binary of libFuzzer does first: its target.
///
/// # Panics
/// When there is no target of that name.
pub fn start(name: &str) -> &'static Target {
    if std::env::var_os("EXITLAB_FUZZ_CANARY").is_some() {
        arm();
    }
    named(name).expect("a file of fuzz_targets has the name of a target")
}

/// Varies an input of the target in place, as libFuzzer's custom mutator: returns its new length.
/// `size` bytes of `data` are the input, and it may grow to `max`; `inner` varies bytes as libFuzzer
/// itself does.
pub fn mutate(
    target: &Target,
    data: &mut [u8],
    size: usize,
    max: usize,
    seed: u32,
    inner: fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    if matches!(target.subject, Subject::Bytes { .. }) {
        return inner(data, size, max);
    }
    let mut input = data[..size].to_vec();
    crate::mutate::mutate(&mut input, max, seed.into(), |record| {
        let len = record.len();
        inner(record, len, len);
    });
    data[..input.len()].copy_from_slice(&input);
    input.len()
}

/// Crosses two inputs of the target into `out`, as libFuzzer's custom crossover: returns how much of it
/// that took.
pub fn cross(target: &Target, one: &[u8], other: &[u8], out: &mut [u8], seed: u32) -> usize {
    let child = match target.subject {
        Subject::Board { .. } => crate::mutate::cross(one, other, out.len(), seed.into()),
        Subject::Bytes { .. } => {
            let mut rng = crate::mutate::Rng::new(seed.into());
            let (to, from) = (rng.below(one.len() + 1), rng.below(other.len() + 1));
            let mut child = [&one[..to], &other[from..]].concat();
            child.truncate(out.len());
            child
        }
    };
    out[..child.len()].copy_from_slice(&child);
    child.len()
}

/// Writes libFuzzer's binary for the target of a name.
#[macro_export]
macro_rules! target {
    ($name:expr) => {
        static TARGET: std::sync::LazyLock<&$crate::targets::Target> =
            std::sync::LazyLock::new(|| $crate::targets::start($name));
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            TARGET.run(bytes);
        });
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max: usize, seed: u32| {
            $crate::targets::mutate(&TARGET, data, size, max, seed, libfuzzer_sys::fuzzer_mutate)
        });
        libfuzzer_sys::fuzz_crossover!(|one: &[u8], other: &[u8], out: &mut [u8], seed: u32| {
            $crate::targets::cross(&TARGET, one, other, out, seed)
        });
    };
}
