//! Running a script on a board, without KVM.
//!
//! A [`Player`] does one operation after the other and says how each ended. [`run`] plays a whole
//! script, [`check`] holds what happened against what the script expects, and [`file()`] does both
//! for a script of any length, in constant memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

pub use super::player::{Build, BuildError, End, Endless, Outcome, Player, Touch, board};
use super::{Answer, Effect, Op, Reader, Script, ScriptError, Step};
use crate::access::IoError;
use crate::device::Nanos;
use crate::exit::Stop;

/// What happened to a board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// One outcome for each step.
    pub outcomes: Vec<Outcome>,
    /// The board afterwards.
    pub end: End,
}

impl Trace {
    /// `script` with everything that happened as what is expected: a regression test.
    pub fn pin(&self, script: &Script) -> Script {
        let pin = |(step, outcome): (&Step, &Outcome)| Step {
            op: step.op.clone(),
            expect: Some(outcome.answer),
            effects: outcome.effects.clone(),
        };
        let steps = script.steps.iter().zip(&self.outcomes).map(pin).collect();
        Script { board: script.board.clone(), all_effects: true, steps }
    }
}

/// Plays a script.
///
/// # Errors
/// When its board cannot be built.
pub fn run(script: &Script, build: Build<'_>) -> Result<Trace, BuildError> {
    let mut player = Player::new(&script.board, build)?;
    let outcomes = script.steps.iter().map(|step| player.step(&step.op)).collect();
    Ok(Trace { outcomes, end: player.end() })
}

/// The first thing that is not as a script expects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{op}`: expected {expected}, got {got}")]
pub struct Difference {
    /// Index of the step.
    pub step: u64,
    /// Its operation.
    pub op: String,
    /// What was to happen.
    pub expected: String,
    /// What happened.
    pub got: String,
}

/// Holds a trace against its script.
///
/// # Errors
/// The first difference.
pub fn check(script: &Script, trace: &Trace) -> Result<(), Difference> {
    let pairs = script.steps.iter().zip(&trace.outcomes);
    for (at, (step, outcome)) in pairs.enumerate() {
        compare(at as u64, step, script.all_effects, outcome)?;
    }
    Ok(())
}

fn compare(at: u64, step: &Step, all: bool, got: &Outcome) -> Result<(), Difference> {
    let differs =
        |expected, got| Err(Difference { step: at, op: step.op.to_string(), expected, got });
    if let Some(answer) = step.expect.filter(|&answer| answer != got.answer) {
        return differs(format!("`{answer}`"), format!("`{}`", got.answer));
    }
    if step.effects == got.effects || (step.effects.is_empty() && !all) {
        return Ok(());
    }
    let same = step.effects.iter().zip(&got.effects).take_while(|(a, b)| a == b).count();
    let nth = |effects: &[Effect]| match effects.get(same) {
        Some(effect) => format!("effect `{effect}`"),
        None => "no further effect".to_owned(),
    };
    differs(nth(&step.effects), nth(&got.effects))
}

/// Why a script was not replayed, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file is not there, or may not be read.
    #[error("script {file} cannot be opened: {source}; give the path of a recorded script")]
    Open {
        /// The file.
        file: String,
        /// What the host said.
        source: io::Error,
    },
    /// It is no script.
    #[error("script {file}, {source}")]
    Script {
        /// The file.
        file: String,
        /// What is wrong.
        source: ScriptError,
    },
    /// Its board cannot be built.
    #[error("script {file}: its board cannot be built: {source}; change the script's `machine`")]
    Build {
        /// The file.
        file: String,
        /// What is wrong.
        source: BuildError,
    },
    /// The board does something else than the script expects.
    #[error(
        "script {file}, line {line}: {source}{why}; the board behaves otherwise than when this \
         was recorded"
    )]
    Differs {
        /// The file.
        file: String,
        /// The line of the operation.
        line: u64,
        /// What differs.
        source: Box<Difference>,
        /// Why the operation was refused, if it was.
        why: String,
    },
}

/// What a replay was like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Operations.
    pub steps: u64,
    /// Exits among them.
    pub exits: u64,
    /// Operations whose answer the script gave.
    pub checked: u64,
    /// Time since the board was switched on, in nanoseconds.
    pub now: Nanos,
    /// Bytes that left through each device's host port.
    pub output: BTreeMap<Cow<'static, str>, u64>,
    /// Accesses that no device took, by [`IoError`]'s place in [`IoError::ALL`].
    pub faults: [u64; IoError::ALL.len()],
    /// The first end of the VM, if it came to one.
    pub stop: Option<Stop>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { steps, exits, checked, now, .. } = self;
        let seconds = *now as f64 / 1e9;
        write!(f, "{steps} operations, {exits} of them exits, {seconds:.6} s of guest time: ")?;
        match checked {
            0 => write!(f, "no answer was expected")?,
            _ => write!(f, "all {checked} answers are as expected")?,
        }
        if let Some(stop) = self.stop {
            write!(f, "\nend: {stop}")?;
        }
        for (device, bytes) in &self.output {
            write!(f, "\noutput of {device}: {bytes} bytes")?;
        }
        for (fault, &count) in IoError::ALL.iter().zip(&self.faults).filter(|(_, n)| **n > 0) {
            write!(f, "\naccesses not taken ({fault}): {count}")?;
        }
        Ok(())
    }
}

/// Replays the script in `path` on the board that it names, up to the first difference.
///
/// # Errors
/// When it is no script, its board cannot be built, or the board answers otherwise.
pub fn file(path: &Path) -> Result<Summary, ReplayError> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => stream(&name, BufReader::new(file), &board),
        Err(source) => Err(ReplayError::Open { file: name, source }),
    }
}

/// Replays the script that `input` gives; `file` is what errors call it.
///
/// # Errors
/// As [`file()`].
pub fn stream(file: &str, input: impl BufRead, build: Build<'_>) -> Result<Summary, ReplayError> {
    let script = |source| ReplayError::Script { file: file.to_owned(), source };
    let mut reader = Reader::new(input).map_err(script)?;
    let mut player = Player::new(reader.board(), build)
        .map_err(|source| ReplayError::Build { file: file.to_owned(), source })?;
    let mut summary = Summary::default();
    while let Some((line, step)) = reader.next_step().map_err(script)? {
        let outcome = player.step(&step.op);
        compare(summary.steps, &step, reader.all_effects(), &outcome).map_err(|source| {
            let why = player.refusal().filter(|_| outcome.answer == Answer::Refused);
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            ReplayError::Differs { file: file.to_owned(), line, source: Box::new(source), why }
        })?;
        summary.count(&step, &outcome);
    }
    summary.now = player.machine().now();
    summary.faults = player.context().faults;
    Ok(summary)
}

impl Summary {
    fn count(&mut self, step: &Step, outcome: &Outcome) {
        self.steps += 1;
        self.exits += u64::from(matches!(step.op, Op::Exit { .. }));
        self.checked += u64::from(step.expect.is_some());
        if let Answer::Stop(stop) = outcome.answer {
            self.stop.get_or_insert(stop);
        }
        for effect in &outcome.effects {
            if let Effect::Output { device, .. } = effect {
                match self.output.get_mut(device) {
                    Some(bytes) => *bytes += 1,
                    None => drop(self.output.insert(device.clone(), 1)),
                }
            }
        }
    }
}
