//! Fuzzing in one process with a stable compiler: without coverage, and so with less to go by.
//!
//! What an input is kept for is what the board said: which register answered in which way, and what came
//! of it. An input after which something is new is one to vary later. What coverage would add is the way
//! that a device took inside. For targets that read bytes there is less still: what they are refused for.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use vmm::access::{Access, Dir};
use vmm::exit::Exit;
use vmm::script::replay::Outcome;
use vmm::script::{Answer, Effect, Op, Step};

use crate::forms::remake;
use crate::generators::{HEADER, RECORD, words};
use crate::mutate::{Rng, cross, mutate};
use crate::targets::{Subject, Target};

/// What boards have said so far: a set of hashes, in which two may fall together.
#[derive(Debug)]
pub struct Seen {
    bits: Vec<u64>,
    new: bool,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { bits: vec![0; 1 << 10], new: false }
    }
}

impl Seen {
    fn note(&mut self, what: impl Hash) {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let hash = hasher.finish() as usize % (self.bits.len() * 64);
        let (word, bit) = (&mut self.bits[hash / 64], 1 << (hash % 64));
        self.new |= *word & bit == 0;
        *word |= bit;
    }

    /// Whether there was anything new since this was last asked.
    pub fn take_new(&mut self) -> bool {
        std::mem::take(&mut self.new)
    }

    /// How much there was, as far as its hashes tell.
    pub fn count(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Notes what a script did.
    pub fn trace(&mut self, steps: &[Step], outcomes: &[Outcome]) {
        let mut before = 0;
        for (step, outcome) in steps.iter().zip(outcomes) {
            let place = match &step.op {
                Op::Exit { exit: Exit::Io(Access { space, addr, size, dir }), .. } => (
                    space.to_owned() as u8,
                    *addr,
                    size.bytes() as u8 | u8::from(*dir != Dir::Read) << 4,
                ),
                Op::Exit { .. } => (2, 0, 0),
                Op::Ram { .. } => (3, 0, 0),
                Op::Input { .. } => (4, 0, 0),
                Op::Advance(_) => (5, 0, 0),
                Op::Timer => (6, 0, 0),
                Op::SaveRestore => (7, 0, 0),
                Op::Reset => (8, 0, 0),
            };
            let answer = match outcome.answer {
                Answer::Ok => 0,
                Answer::Value(value) => 4 + value.leading_zeros(),
                Answer::Fault => 1,
                Answer::Stop(_) => 2,
                Answer::Refused => 3,
            };
            let effects = outcome.effects.iter().fold(0u32, |all, effect| {
                all << 4
                    | match effect {
                        Effect::Line { level, .. } => 1 + u32::from(*level),
                        Effect::Output { .. } => 3,
                        Effect::Remap(_) => 4,
                        Effect::Sint { .. } => 5,
                        Effect::Message { .. } => 6,
                        Effect::AwaitEnd { .. } => 7,
                        Effect::Deadline(_) => 8,
                    }
            });
            // All ones are what an empty place says.
            let empty = matches!((&step.op, outcome.answer), (Op::Exit { exit: Exit::Io(access), .. },
                Answer::Value(value)) if value == access.size.mask());
            if !empty {
                self.note((place, answer));
            }
            if effects != 0 {
                self.note((place, effects));
                self.note((effects, before));
                before = effects;
            }
        }
    }

    /// Notes what a reader said of some bytes: in which words, and how far it came.
    pub fn said(&mut self, bytes: &[u8], said: &Result<(), String>) {
        match said {
            Ok(()) => self.note(bytes.len().checked_ilog2()),
            Err(words) => {
                let number = |after: &str| {
                    let digits =
                        words.split_once(after)?.1.split(|c: char| !c.is_ascii_digit()).next();
                    digits?.parse::<u32>().ok()?.checked_ilog2()
                };
                match number("line ") {
                    Some(line) => self.note((line, number("column "))),
                    // Its end is what was expected; what was found comes before, and is the input's own.
                    None => {
                        let bare = words.chars().rev().filter(char::is_ascii_alphabetic);
                        self.note(bare.take(24).collect::<String>());
                    }
                }
            }
        }
    }
}

/// An input at which a target panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The input.
    pub bytes: Vec<u8>,
    /// What the panic said.
    pub says: String,
}

/// A hunt. The same seed hunts the same way.
#[derive(Debug)]
pub struct Hunt {
    target: &'static Target,
    rng: Rng,
    seen: Seen,
    corpus: Vec<Vec<u8>>,
    /// How many inputs there were.
    pub runs: u64,
    /// How many of them were taken.
    pub taken: u64,
    max: usize,
}

impl Hunt {
    /// From an empty corpus; scripts have at most `ops` operations, other inputs as many bytes as that
    /// would take.
    pub fn new(target: &'static Target, seed: u64, ops: usize) -> Hunt {
        let max = HEADER + ops * RECORD;
        let (rng, seen) = (Rng::new(seed), Seen::default());
        Hunt { target, rng, seen, corpus: vec![Vec::new()], runs: 0, taken: 0, max }
    }

    /// One input to begin with.
    pub fn add(&mut self, input: Vec<u8>) {
        self.corpus.push(input);
    }

    /// How many different things boards or readers have said.
    pub fn answers(&self) -> u64 {
        self.seen.count()
    }

    /// The inputs that are worth varying.
    pub fn corpus(&self) -> &[Vec<u8>] {
        &self.corpus
    }

    /// Makes the next input, and tries it.
    ///
    /// # Errors
    /// What was found.
    pub fn step(&mut self) -> Result<(), Box<Found>> {
        let input = self.input();
        self.play(input)
    }

    /// Tries an input.
    ///
    /// # Errors
    /// What was found.
    pub fn play(&mut self, input: Vec<u8>) -> Result<(), Box<Found>> {
        let seen = &mut self.seen;
        let taken = catch_unwind(AssertUnwindSafe(|| self.target.run_seeing(&input, seen)));
        self.runs += 1;
        match taken {
            Ok(taken) => self.taken += u64::from(taken),
            Err(panic) => return Err(Box::new(Found { bytes: input, says: words(&*panic) })),
        }
        if self.seen.take_new() {
            self.corpus.push(input);
        }
        Ok(())
    }

    /// Makes the next input.
    pub fn input(&mut self) -> Vec<u8> {
        // Mostly what was new lately.
        let n = self.corpus.len();
        let back = self.rng.below(n).min(self.rng.below(n));
        let mut input = self.corpus[n - 1 - back].clone();
        let seed = self.rng.number();
        match self.target.subject {
            Subject::Board { .. } => {
                if self.rng.below(8) == 0 {
                    let other = &self.corpus[self.rng.below(n)];
                    let one = std::mem::take(&mut input);
                    cross(&one, other, &mut input, self.max, seed);
                }
                mutate(&mut input, self.max, seed, |_| {});
            }
            Subject::Bytes { .. } => self.vary(&mut input),
        }
        input
    }

    /// Bytes and words are put in, taken out and changed.
    fn vary(&mut self, input: &mut Vec<u8>) {
        let rng = &mut self.rng;
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(input.len() + 1);
            match rng.below(10) {
                0..=5 if !self.target.words.is_empty() => {
                    let word = self.target.words[rng.below(self.target.words.len())];
                    // Mostly at the end, where a text goes on.
                    let at = if rng.below(3) == 0 { at } else { input.len() };
                    input.splice(at..at, word.iter().copied());
                }
                6 if at < input.len() => input[at] = (rng.number() >> 40) as u8,
                7 if at < input.len() => input[at] ^= 1 << rng.below(8),
                8 => {
                    let end = (at + 1 + rng.below(8)).min(input.len());
                    input.drain(at..end);
                }
                _ => {
                    let bytes: Vec<u8> =
                        (0..1 + rng.below(4)).map(|_| (rng.number() >> 40) as u8).collect();
                    input.splice(at..at, bytes);
                }
            }
        }
        input.truncate(self.max);
        // Not inherited; see `forms`.
        remake(input, rng.byte());
    }
}
