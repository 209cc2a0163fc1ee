//! What there is to fuzz: one list, which everything else asks.
//!
//! A target is a line in [`ALL`] and a file of a few lines in `fuzz_targets` (libFuzzer's binary of
//! the same name, which [`target!`](crate::target) writes). A test holds the two and `Cargo.toml`
//! against each other. Those about a chip are in [`chips`]: a board that holds nothing but the chip,
//! where a PC has it, so that a script is short and quick, and any address leads somewhere.

pub mod chips;
mod grammars;
mod loaders;
mod metrics;
mod pins;
mod seeds;
mod states;
mod texts;

use std::cell::RefCell;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vmm::machine::{BoardError, Machine};
use vmm::script::replay::{self, BuildError, Outcome};
use vmm::script::{BoardSpec, Op};

pub use loaders::ram as loader_ram;

use crate::forms::{How, RAW, how, remake};
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
    /// What in them no input reaches; it does not count.
    pub beyond: &'static [&'static [Beyond]],
    /// How many percent of the other lines a fuzzer covers from nothing, at least. What stays out is told
    /// in [`Target::uncovered`]. `cargo xtask fuzz floors` checks it.
    pub floor: u8,
    /// Why it is not all of them; empty if it is.
    pub uncovered: &'static str,
    /// Words that matter in its inputs: libFuzzer's dictionary, and what the mutator inserts.
    pub words: &'static [&'static [u8]],
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Code that no input of a target reaches. Should an input reach it, it counts all the same.
#[derive(Clone, Copy, Debug)]
pub struct Beyond {
    /// The function; any if this is empty.
    pub function: &'static str,
    /// What its lines say; all of its lines if this is empty.
    pub text: &'static str,
    /// Why.
    pub why: &'static str,
}

const fn beyond(function: &'static str, text: &'static str, why: &'static str) -> Beyond {
    Beyond { function, text, why }
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
        /// Source files beside its own that show how far an input came: of what must be done before its
        /// chip is called.
        guides: &'static [&'static str],
        /// What must happen on it sooner or later: see [`arm`].
        canary: fn(&Op, &Outcome) -> bool,
    },
    /// Bytes that something reads.
    Bytes {
        /// What is read: made of the input's bytes as [`forms`](crate::forms) says, or those themselves if what reads them
        /// does so.
        make: fn(&[u8]) -> Vec<u8>,
        /// Reads it, and panics if something is wrong with how it is read.
        check: fn(&[u8]) -> Said,
        /// What must be read sooner or later: see [`arm`].
        canary: fn(&[u8]) -> bool,
    },
}

/// The input itself.
fn whole(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
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
    &metrics::KVM_STATS,
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
        make: lab::made,
        check: |b| lab::check(b).then_some(()).ok_or_else(String::new),
        canary: |b| b.get(4) == Some(&9) && lab::check(b),
    },
    sources: &["vmm/src/lab/request.rs"],
    beyond: &[],
    floor: 85,
    uncovered: "values of arguments that no hunt of seconds draws",
    words: &[],
    seeds: Vec::new,
};

static WIRE: Target = Target {
    name: "wire",
    about: "the decoder of an emulated host's messages",
    subject: Subject::Bytes {
        make: whole,
        check: |b| {
            let (how, rest) = how(b);
            let (found, garbage) = wire::check_with(rest, how == How::Sound);
            (found > 0).then_some(()).ok_or_else(|| format!("{} garbage", garbage.min(3)))
        },
        canary: |b| wire::check(how(b).1).0 >= 3,
    },
    sources: &["testcases/src/wire.rs"],
    beyond: &[&[
        beyond("slowness", "", "for who sets time limits"),
        beyond("frame", "", "the other end writes these frames; what it does is in `fuzz::wire`"),
        beyond("garbage", "", "for who shows a console"),
    ]],
    floor: 90,
    uncovered: "a decoder that is asked for a frame in the midst of a header",
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
            Subject::Bytes { make, check, canary } => {
                let made = make(bytes);
                assert!(!(armed() && canary(&made)), "the canary is dead");
                let said = check(&made);
                if let Some(seen) = seen {
                    seen.said(&made, &said);
                }
                SHARE.count(said.is_ok());
                said.is_ok()
            }
        }
    }

    /// What the target reads for these bytes; none if they are a script for a board.
    pub fn made(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        match self.subject {
            Subject::Board { .. } => None,
            Subject::Bytes { make, .. } => Some(make(bytes)),
        }
    }
}

impl Target {
    /// An input that makes the same as this one by being it, behind this many bytes; none if there is none.
    /// It stays what it is when other bytes come to make something else.
    pub fn verbatim(&self, bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
        let made = self.made(bytes)?;
        // Images have two bytes more that choose; some readers choose themselves what they read.
        [&[RAW][..], &[RAW, 0, 0], &[]].into_iter().find_map(|before| {
            let input = [before, &made[..]].concat();
            (self.made(&input).as_ref() == Some(&made)).then_some((before.len(), input))
        })
    }
}

/// How many inputs were read, and how many of them refused, after the first [`Share::WARM`].
#[derive(Debug)]
struct Share {
    tells: AtomicBool,
    read: AtomicU64,
    refused: AtomicU64,
}

static SHARE: Share =
    Share { tells: AtomicBool::new(false), read: AtomicU64::new(0), refused: AtomicU64::new(0) };

impl Share {
    /// A corpus may be anything; what is made of it is the target's own.
    const WARM: u64 = 1000;

    fn count(&self, taken: bool) {
        if !self.tells.load(Ordering::Relaxed) {
            return;
        }
        let read = self.read.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(read) = read.checked_sub(Share::WARM).filter(|&read| read > 0) else { return };
        let refused = u64::from(!taken);
        let refused = self.refused.fetch_add(refused, Ordering::Relaxed) + refused;
        if read >= Share::WARM && read.is_power_of_two() {
            // Whoever does not listen does not want to know.
            let _ = writeln!(std::io::stderr(), "stat::refused: {refused} of {read}");
        }
    }
}

/// From now on, how many inputs are refused goes to standard error now and then.
pub fn tell_refused() {
    SHARE.tells.store(true, Ordering::Relaxed);
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
    tell_refused();
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
        let size = match std::ptr::eq(target, &states::SNAPSHOT) {
            true => states::vary(data, size, max, seed, inner),
            false => inner(data, size, max),
        };
        // Not inherited; see `forms`.
        remake(&mut data[..size], (seed >> 16) as u8);
        return size;
    }
    SCRATCH.with_borrow_mut(|input| {
        input.clear();
        input.extend_from_slice(&data[..size]);
        crate::mutate::mutate(input, max, seed.into(), |record| {
            let len = record.len();
            inner(record, len, len);
        });
        data[..input.len()].copy_from_slice(input);
        input.len()
    })
}

thread_local! {
    /// Where inputs are varied: to allocate takes a good part of a short execution with AddressSanitizer.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Crosses two inputs of the target into `out`, as libFuzzer's custom crossover: returns how much of it
/// that took.
pub fn cross(target: &Target, one: &[u8], other: &[u8], out: &mut [u8], seed: u32) -> usize {
    SCRATCH.with_borrow_mut(|child| {
        match target.subject {
            Subject::Board { .. } => {
                crate::mutate::cross(one, other, child, out.len(), seed.into());
            }
            Subject::Bytes { .. } => {
                let mut rng = crate::mutate::Rng::new(seed.into());
                let (to, from) = (rng.below(one.len() + 1), rng.below(other.len() + 1));
                child.clear();
                if std::ptr::eq(target, &states::SNAPSHOT) {
                    states::cross(one, other, child, out.len(), seed.into());
                } else {
                    child.extend_from_slice(&one[..to]);
                    child.extend_from_slice(&other[from..]);
                }
                child.truncate(out.len());
                remake(child, rng.byte());
            }
        }
        out[..child.len()].copy_from_slice(child);
        child.len()
    })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::mutate::Rng;

    #[test]
    fn what_is_made_can_be_said_verbatim() {
        let mut rng = Rng::new(2);
        for target in ALL.iter().filter(|target| target.board().is_none()) {
            for n in 0..50 {
                let bytes: Vec<u8> = (0..n).map(|_| rng.byte()).collect();
                let (before, input) = target.verbatim(&bytes).expect("every reader takes it");
                assert_eq!(Some(input[before..].to_vec()), target.made(&bytes), "{}", target.name);
            }
        }
    }

    #[test]
    fn what_is_made_sound_is_taken() {
        let mut rng = Rng::new(1);
        for target in ALL {
            let Subject::Bytes { make, check, .. } = target.subject else { continue };
            let mut refused: BTreeMap<String, usize> = BTreeMap::new();
            for n in 0..2000 {
                let mut bytes: Vec<u8> = (0..n % 120).map(|_| rng.byte()).collect();
                remake(&mut bytes, 0);
                if let Err(why) = check(&make(&bytes)) {
                    let why: String = why.chars().filter(|c| !c.is_ascii_digit()).collect();
                    *refused.entry(why).or_default() += 1;
                }
            }
            // What two choices make of each other may be wrong once in a while.
            let all: usize = refused.values().sum();
            assert!(all <= 60, "{}: {all} of 2000: {refused:#?}", target.name);
        }
    }
}
