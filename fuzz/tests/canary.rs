//! A board whose device has a flaw must be caught, by the law that it breaks, within a number of
//! inputs that a fuzzer goes through in a second; a board without one must not.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::input;
use fuzz::minimise::minimise;
use fuzz::oracles::{Law, Restores};
use fuzz::{Board, generators, oracles};
use vmm::access::{IoError, Size, Space};
use vmm::device::{Action, Actions, At, Device, Env, Nanos, Region, StateError};
use vmm::machine::Machine;
use vmm::script::replay::{Build, BuildError};
use vmm::script::{BoardSpec, parse};
use vmm::state;

/// What is wrong with a [`Canary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// Nothing.
    None,
    /// A register is not part of the saved state.
    Forgets,
    /// A register lives on through a reset.
    Remembers,
    /// An answer depends on the program's past.
    Wanders,
    /// A deadline that has passed stays.
    Dawdles,
    /// One value of one register.
    Panics,
    /// A value that it gave itself comes back: found by who remembers what was read.
    Echoes,
    /// A pointer to a structure in memory with a certain field.
    Follows,
    /// More actions than an access may ask for.
    Floods,
    /// The very last byte of the region.
    Overruns,
    /// An access before the deadline, when time has come within one nanosecond of it.
    Hurries,
    /// What is written is kept for ever.
    Hoards,
    /// Memory is read for ever.
    Spins,
}

/// Registers of 4 bytes: 0 is kept, 4 sets a deadline, 8 gives a number that changes with each
/// read, 12 takes a pointer; the rest is memory.
#[derive(Debug)]
struct Canary {
    flaw: Flaw,
    regs: [u32; 8],
    due: Option<Nanos>,
    pending: bool,
    kept: Vec<[u64; 8]>,
}

impl Canary {
    fn new(flaw: Flaw) -> Canary {
        Canary { flaw, regs: [0x5eed; 8], due: None, pending: false, kept: Vec::new() }
    }
}

/// A panic that the panic hook, and so the test's output, does not hear of.
fn burst() {
    std::panic::resume_unwind(Box::new("the canary bursts"));
}

static PAST: AtomicU64 = AtomicU64::new(0);

impl Device for Canary {
    fn name(&self) -> &'static str {
        "canary"
    }
    fn regions(&self) -> &'static [Region] {
        &[Region { name: "canary", space: Space::Mmio, len: 32, widest: Size::B4 }]
    }
    fn read(&mut self, env: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        let register = (at.offset / 4) as usize;
        if self.flaw == Flaw::Overruns && at.offset == 31 && size == Size::B1 {
            burst();
        }
        if self.flaw == Flaw::Hurries && self.due.is_some_and(|due| due == env.now() + 1) {
            burst();
        }
        match register {
            1 if self.flaw == Flaw::Wanders => Ok(PAST.fetch_add(1, Ordering::Relaxed)),
            2 => {
                self.regs[2] = self.regs[2].wrapping_mul(0x19_660d).wrapping_add(0x3c6e_f35f);
                Ok(self.regs[2].into())
            }
            i => Ok(self.regs[i].into()),
        }
    }
    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        if size != Size::B4 || !at.offset.is_multiple_of(4) {
            return Err(IoError::Width);
        }
        match (at.offset / 4, self.flaw) {
            (1, _) => {
                self.pending = false;
                self.due = (value > 0).then(|| env.now() + value);
            }
            (2, Flaw::Echoes) if value == u64::from(self.regs[2]) => burst(),
            (3, Flaw::Follows) if env.ram.read_u32(value).is_ok_and(|v| v == 0x8000_0000) => {
                burst();
            }
            (5, Flaw::Panics) if value == 0x100 => burst(),
            (6, Flaw::Spins) if value > 0xffff => loop {
                let _ = env.ram.read_u32(0);
            },
            (7, Flaw::Hoards) => self.kept.push([u64::MAX; 8]),
            (6, Flaw::Floods) if value > 0xffff => {
                (0..=Actions::MAX).for_each(|_| env.act(Action::Output(1)));
            }
            _ => {}
        }
        self.regs[(at.offset / 4) as usize] = value as u32;
        Ok(())
    }
    fn irq(&self) -> bool {
        self.pending
    }
    fn deadline(&self) -> Option<Nanos> {
        self.due
    }
    fn advance(&mut self, env: &mut Env<'_>) {
        if self.due.is_some_and(|due| due <= env.now()) {
            self.pending = true;
            if self.flaw != Flaw::Dawdles {
                self.due = None;
            }
        }
    }
    fn reset(&mut self, _: &mut Env<'_>) {
        let kept = self.regs[7];
        *self = Canary::new(self.flaw);
        if self.flaw == Flaw::Remembers {
            self.regs[7] = kept;
        }
    }
    fn save(&self) -> Vec<u8> {
        let Canary { flaw, mut regs, due, pending, ref kept } = *self;
        if flaw == Flaw::Forgets {
            regs[7] = 0x5eed;
        }
        state::encode(&(regs, due, pending, kept))
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        (self.regs, self.due, self.pending, self.kept) = state::decode("canary", bytes)?;
        Ok(())
    }
}

fn with<T>(flaw: Flaw, f: impl FnOnce(&Board<'_>) -> T) -> T {
    let build = move |_: &BoardSpec, machine: &mut Machine| -> Result<(), BuildError> {
        Ok(machine.add(Box::new(Canary::new(flaw)), &[0xfed0_0000], Some(3))?)
    };
    let build: Build<'_> = &build;
    let spec = BoardSpec { kind: "canary".into(), ..BoardSpec::default() };
    f(&Board { spec, build, keeps: &[], words: &[], numbers: &[] })
}

/// The law that the first of `inputs` inputs breaks, how many it took, and how many operations
/// show it.
fn hunt(flaw: Flaw, inputs: u64) -> Option<(Law, u64, usize)> {
    with(flaw, |board| {
        (0..inputs).find_map(|n| {
            let generated = generators::script(&input(n), board);
            let law = oracles::generated(&generated, board, Restores::Eight).err()?.law;
            let least = minimise(&generated.script, |script| {
                oracles::check(script, board, Restores::Eight).is_err_and(|v| v.law == law)
            });
            let read = parse(least.to_string().as_bytes()).expect("its own text");
            assert_eq!(read, least);
            Some((law, n, least.steps.len()))
        })
    })
}

#[test]
fn a_canary_without_a_flaw_lives() {
    assert_eq!(hunt(Flaw::None, 1000), None);
}

#[test]
fn every_flaw_is_caught_by_the_law_it_breaks() {
    // Beyond the debug assertion that finds it first in a debug build.
    let floods = if cfg!(debug_assertions) { Law::Panics } else { Law::Actions };
    let flaws = [
        (Flaw::Forgets, Law::Restores, 2),
        (Flaw::Remembers, Law::Resets, 1),
        (Flaw::Wanders, Law::Repeats, 1),
        (Flaw::Dawdles, Law::Deadlines, 3),
        (Flaw::Panics, Law::Panics, 1),
        (Flaw::Echoes, Law::Panics, 4),
        (Flaw::Follows, Law::Panics, 2),
        (Flaw::Floods, floods, 1),
        (Flaw::Overruns, Law::Panics, 1),
        (Flaw::Hurries, Law::Panics, 3),
        // 80 bytes each, so that 512 are soon left behind: by seven, or by six and what other registers hold.
        (Flaw::Hoards, Law::Bounds, 8),
        (Flaw::Spins, Law::Bounds, 1),
    ];
    for (flaw, law, steps) in flaws {
        let Some((found, inputs, least)) = hunt(flaw, 20_000) else {
            panic!("{flaw:?} is not found");
        };
        println!("{flaw:?}: {found:?} at input {inputs}, {least} operations");
        assert_eq!(found, law, "{flaw:?}");
        assert!(least <= steps, "{flaw:?}: {least} operations, and {steps} would do");
    }
}
