//! Generators of scripts, oracles over the board, and the libFuzzer targets.
//!
//! What there is to fuzz is [one list](targets::ALL): the PC board, a board for each chip, and readers of
//! bytes (loaders, texts, saved states). For a board, bytes become a [script](vmm::script)
//! ([`generators`]), which is varied [operation by operation](mutate) and held against what every board
//! must obey ([`oracles`]) and what [`models`] of its devices say. All of it is plain functions, so seeds
//! and regressions run under `cargo test -p fuzz` with a stable compiler, and [`hunt`] fuzzes with one.
//!
//! Most inputs are played once. What takes the script to be played again is asked of one input in
//! sixteen, by a byte of the input, so that an input does the same whenever it is tried. Boards are
//! [used again](rig) with new devices, so that a steady execution makes no system call.
//!
//! `cargo xtask fuzz` builds the targets with libFuzzer's instrumentation, which is a handful of compiler
//! flags (they are in `xtask/src/support/fuzz/build.rs`) and needs a nightly compiler, and runs them.
//! AddressSanitizer has little to find where there is no unsafe code, and takes most of the speed:
//! `--no-asan` leaves it out.
//!
//! What it finds becomes a file: `cargo xtask fuzz triage` writes the least script that still breaks the
//! law into [`fuzz/regressions`](regressions).

pub mod direct;
pub mod forms;
pub mod generators;
pub mod hunt;
pub mod images;
pub mod judge;
pub mod lab;
pub mod minimise;
pub mod models;
pub mod mutate;
pub mod oracles;
pub mod recorded;
pub mod registers;
pub mod regressions;
pub mod rig;
pub mod stable;
pub mod targets;
pub mod watch;
pub mod wire;

use oracles::{Laws, Restores};
use vmm::machine::{IommuConfig, PciDevice};
use vmm::script::replay::{self, Build, Outcome, Trace};
use vmm::script::{BoardSpec, Op};

/// A board to be fuzzed.
#[derive(Clone)]
pub struct Board<'a> {
    /// Its configuration.
    pub spec: BoardSpec,
    /// What builds it.
    pub build: Build<'a>,
    /// Devices whose state, or some of it, lives on through a reset: a battery's memory.
    pub keeps: &'a [&'a str],
    /// Words that matter to one of its registers, byte by byte.
    pub words: &'a [&'a [u8]],
    /// Numbers that matter to its registers, beside those that matter to any.
    pub numbers: &'a [u64],
}

impl Board<'static> {
    /// The PC that the `vmm` program has, with the least memory.
    pub fn pc() -> Board<'static> {
        Board {
            spec: BoardSpec::default(),
            build: &replay::board,
            keeps: &["rtc"],
            words: &[b"Shutdown"],
            numbers: &[],
        }
    }
}

impl Board<'static> {
    /// The same with an I/O APIC, an IOMMU, a PCI bus and every device that goes there.
    pub fn pci() -> Board<'static> {
        // What the I/O APIC waits for is then a function of its registers alone.
        let iommu = Some(IommuConfig { interrupts: false });
        let pci = Some(PciDevice::ALL.to_vec());
        let spec = BoardSpec { pci, ioapic: true, iommu, ..BoardSpec::default() };
        Board { spec, ..Board::pc() }
    }
}

/// What a target does with an input that is a script, on a board of the rig.
///
/// # Panics
/// When a law is broken; the message holds the script.
fn obeys(
    bytes: &[u8],
    rig: &mut rig::Rig<'_>,
    canary: fn(&Op, &Outcome) -> bool,
    seen: Option<&mut hunt::Seen>,
) {
    let mut player = rig.take();
    let generators::Generated { script, played, laws } = rig.play(bytes, &mut player);
    let mut outcomes = played.unwrap_or_else(|violation| panic!("{violation}\n{script}"));
    if let Some(seen) = seen {
        seen.trace(&script.steps, &outcomes);
    }
    if targets::armed() {
        let mut steps = script.steps.iter().zip(&outcomes);
        let dead = steps.any(|(step, outcome)| canary(&step.op, outcome));
        assert!(!dead, "the canary is dead\n{script}");
    }
    if laws == Laws::RESETS {
        let reset = oracles::resets(script.steps.len(), &mut player, rig);
        reset.unwrap_or_else(|violation| panic!("{violation}\n{script}"));
    } else if laws != Laws::NONE {
        let trace = Trace { outcomes, end: player.end() };
        if let Err(violation) = oracles::against(&script, &trace, rig, laws, Restores::Eight) {
            panic!("{violation}\n{script}");
        }
        outcomes = trace.outcomes;
    }
    rig.give_back(player);
    rig.give_back_script(script, outcomes);
}
