//! What every board obeys, whatever happens to it.
//!
//! Each law is asked of a whole script. [`vmm::laws`] asks more of a single device; what is here
//! is true of devices together, on a bus, through the same code that answers a guest.

mod memory;

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use vmm::chips::pci::edu;
use vmm::chips::testdev;
use vmm::device::Actions;
use vmm::machine::MachineState;
use vmm::script::replay::{Endless, Outcome, Player, Touch, Trace};
use vmm::script::{Answer, Op, Script, Step, parse};

use crate::Board;
use crate::generators::{Generated, words};
use crate::models::Models;
use crate::rig::Rig;

/// What a board must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// Nothing panics.
    Panics,
    /// The same script has the same trace.
    Repeats,
    /// Saving every device and restoring it on a new board, after each operation, changes nothing.
    Restores,
    /// After a reset, a board is as a new one that is reset at that time.
    Resets,
    /// No access asks for more actions than there is room for.
    Actions,
    /// An operation reaches memory, the backplane and the log a bounded number of times, and no device keeps
    /// more than it has room for.
    Bounds,
    /// Once the board's timer has fired, every deadline lies ahead.
    Deadlines,
    /// A script's text says what the script says.
    Text,
    /// A device does what its model says.
    Model,
}

/// A law that a board broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the board breaks the law `{law}`{}: {what}", at(.step))]
pub struct Violation {
    /// The law.
    pub law: Law,
    /// The operation at which it showed, if it was one; the first is 1.
    pub step: Option<usize>,
    /// What happened.
    pub what: String,
}

fn at(step: &Option<usize>) -> String {
    step.map_or_else(String::new, |step| format!(" at operation {step}"))
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Law::Panics => "nothing panics",
            Law::Repeats => "the same script has the same trace",
            Law::Restores => "saving and restoring changes nothing",
            Law::Resets => "a reset board is as a new one",
            Law::Actions => "no action is lost",
            Law::Bounds => "what is done and kept is bounded",
            Law::Deadlines => "a deadline lies ahead",
            Law::Text => "a script survives its text",
            Law::Model => "a device does what its model says",
        })
    }
}

impl Law {
    fn broken(self, step: Option<usize>, what: String) -> Violation {
        Violation { law: self, step, what }
    }
}

/// The most effects of one operation: an access has at most eight pieces; a reset and the timer
/// go to each device once.
fn most_effects(devices: usize) -> usize {
    devices.max(8) * (Actions::MAX + 2)
}

/// The most bytes that a device's state may come to, whatever a guest does: by default what registers and
/// FIFOs come to. A device that keeps more has a line here that says what.
fn most_kept(device: &str) -> usize {
    match device {
        // Its buffer, and registers.
        "edu" => edu::BUFFER_BYTES + 512,
        // Its memory in pieces of 32 bytes, each with its place, and registers.
        "testdev" => testdev::MEMORY / 32 * 35 + 64,
        // Of each of 256 processors, which of its sources lead somewhere.
        "hyperv-testdev" => 256 * 5 + 8,
        // Three registers of each of 4096 processors; a message and its place of each of 256 connections,
        // which is what the test device can make.
        "synic" => 4096 * 33 + 256 * 272,
        _ => 512,
    }
}

/// No device keeps more than it has room for.
fn kept(state: &MachineState) -> Result<(), Violation> {
    let large = |(name, bytes): &&(Cow<'_, str>, Vec<u8>)| bytes.len() > most_kept(name);
    match state.devices.iter().find(large) {
        Some((name, bytes)) => {
            let (len, most) = (bytes.len(), most_kept(name));
            let what = format!("device `{name}` keeps {len} bytes, above {most}");
            Err(Law::Bounds.broken(None, what))
        }
        None => Ok(()),
    }
}

/// After how many operations of a script a board is saved and restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restores {
    /// After each.
    Each,
    /// After eight of them, the last among them: a new board costs more than most operations.
    Eight,
}

impl Restores {
    /// Whether it is done after operation `at` of `steps`.
    fn after(self, at: usize, steps: usize) -> bool {
        match self {
            Restores::Each => true,
            Restores::Eight => (steps - 1 - at).is_multiple_of(steps.div_ceil(8)),
        }
    }
}

/// Laws that take the script to be played again. An input asks for some of them, so that most inputs
/// are quick and each is asked all the same questions whenever it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Laws(u8);

impl Laws {
    /// None.
    pub const NONE: Laws = Laws(0);
    /// Those about the text form.
    pub const TEXT: Laws = Laws(1);
    /// The same script once more.
    pub const REPEATS: Laws = Laws(2);
    /// Saving and restoring in between.
    pub const RESTORES: Laws = Laws(4);
    /// A reset at the end.
    pub const RESETS: Laws = Laws(8);
    /// All of them.
    pub const ALL: Laws = Laws(15);

    /// What a byte of an input asks for: of 64 values four reset the board, which plays nothing again, two save
    /// and restore, one plays it again. None asks for the text form, which takes longer than all else and is the same code for
    /// every target: it is the business of the target `script`.
    pub const fn asked(byte: u8) -> Laws {
        match byte % 64 {
            2 => Laws::REPEATS,
            3 | 35 => Laws::RESTORES,
            4 | 20 | 36 | 52 => Laws::RESETS,
            _ => Laws::NONE,
        }
    }

    /// Whether it holds `other`.
    pub const fn has(self, other: Laws) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a panic breaks, after so many operations if it is known. The player's own is no device's.
pub(crate) fn panicked(steps: Option<usize>, panic: &(dyn Any + Send)) -> Violation {
    let law = if panic.is::<Endless>() { Law::Bounds } else { Law::Panics };
    law.broken(steps, words(panic))
}

/// Holds a board against every law, with a script that [`crate::generators::script`] made.
///
/// # Errors
/// The first law that is broken.
pub fn generated(
    generated: &Generated,
    board: &Board<'_>,
    restores: Restores,
) -> Result<(), Violation> {
    match &generated.played {
        Ok(_) => check(&generated.script, board, restores).map(drop),
        Err(violation) => Err(violation.clone()),
    }
}

/// Holds a board against every law. Returns what the script does.
///
/// # Errors
/// The first law that is broken.
pub fn check(script: &Script, board: &Board<'_>, restores: Restores) -> Result<Trace, Violation> {
    let mut rig = Rig::new(board.clone());
    let mut run = Run { models: Models::of(&board.spec), ..Run::new(script, &mut rig) };
    run.play(|_| false)?;
    let trace = run.trace();
    run.end(&mut rig);
    against(script, &trace, &mut rig, Laws::ALL, restores)?;
    Ok(trace)
}

/// Some laws, with what the script did once already. A reset is asked for by [`resets`], where the script is
/// not played again.
///
/// # Errors
/// The first law that is broken.
pub fn against(
    script: &Script,
    trace: &Trace,
    rig: &mut Rig<'_>,
    laws: Laws,
    restores: Restores,
) -> Result<(), Violation> {
    kept(&trace.end.state)?;
    if laws.has(Laws::TEXT) {
        text(script)?;
    }
    if laws.has(Laws::REPEATS) {
        let mut again = Run::new(script, rig);
        again.play(|_| false)?;
        same(Law::Repeats, trace, &again.trace(), script)?;
        if laws.has(Laws::RESETS) {
            resets(script.steps.len(), &mut again.player, rig)?;
        }
        again.end(rig);
    }
    if laws.has(Laws::RESTORES) {
        let mut restored = Run::new(script, rig);
        restored.play(|at| restores.after(at, script.steps.len()))?;
        same(Law::Restores, trace, &restored.trace(), script)?;
        restored.end(rig);
    }
    Ok(())
}

fn text(script: &Script) -> Result<(), Violation> {
    let read = parse(script.to_string().as_bytes());
    match read {
        Ok(read) if read == *script => Ok(()),
        Ok(_) => Err(Law::Text.broken(None, "another script is read from it".to_owned())),
        Err(e) => Err(Law::Text.broken(None, e.to_string())),
    }
}

/// The laws that one operation alone can break, `at` being the first 0.
///
/// # Errors
/// The law.
pub fn after(
    at: usize,
    op: &Op,
    outcome: &Outcome,
    player: &Player<'_>,
    models: &mut Models,
) -> Result<(), Violation> {
    let broken = |law: Law, what: String| Err(law.broken(Some(at + 1), what));
    if *op == Op::SaveRestore && outcome.answer != Answer::Ok {
        let why = player.refusal().unwrap_or("it is refused");
        return broken(Law::Restores, why.to_owned());
    }
    let lost = player.context().lost_actions();
    if lost > 0 {
        return broken(Law::Actions, format!("`{op}` loses {lost}"));
    }
    let machine = player.machine();
    let (effects, most) = (outcome.effects.len(), most_effects(machine.devices().count()));
    if effects > most {
        return broken(Law::Bounds, format!("`{op}` has {effects} effects, above {most}"));
    }
    let bounded = player.touched(|touched| {
        memory::bounded(op, effects, during(op, touched), player.spec(), machine)
    });
    if let Err(what) = bounded {
        return broken(Law::Bounds, what);
    }
    // A script has at most one exit an operation, so that is one record each since it began.
    let (records, most) = (player.context().log.count(), at as u64 + 1);
    if records > most {
        let what = format!("after `{op}` the log has {records} records, above {most}");
        return broken(Law::Bounds, what);
    }
    if *op == Op::Timer
        && let Some(due) = machine.next_deadline().filter(|&due| due <= machine.now())
    {
        let now = machine.now();
        return broken(Law::Deadlines, format!("at {now} ns one is still {due} ns"));
    }
    player.touched(|touched| models.after(at, op, outcome, machine, during(op, touched)))
}

/// What was done to memory during an operation: nothing by devices, if it changes memory itself.
fn during<'t>(op: &Op, touched: &'t [Touch]) -> &'t [Touch] {
    if matches!(op, Op::Ram { .. }) { &[] } else { touched }
}

/// One script on one board.
struct Run<'s, 'a> {
    script: &'s Script,
    player: Player<'a>,
    outcomes: Vec<Outcome>,
    models: Models,
}

impl<'s, 'a> Run<'s, 'a> {
    fn new(script: &'s Script, rig: &mut Rig<'a>) -> Run<'s, 'a> {
        let player = rig.take();
        let outcomes = Vec::with_capacity(script.steps.len());
        // Other laws are asked of what models were asked about before.
        Run { script, player, outcomes, models: Models::none() }
    }

    /// The board is used again.
    fn end(self, rig: &mut Rig<'a>) {
        rig.give_back(self.player);
    }

    /// Plays the script; saves and restores after the operations of which `restore` says so.
    fn play(&mut self, restore: impl Fn(usize) -> bool) -> Result<(), Violation> {
        let played = catch_unwind(AssertUnwindSafe(|| {
            for (at, Step { op, .. }) in self.script.steps.iter().enumerate() {
                let outcome = self.step(at, op)?;
                self.outcomes.push(outcome);
                // What changes memory amid an operation must stand right before it.
                if matches!(op, Op::Ram { .. }) || !restore(at) {
                    continue;
                }
                let Outcome { effects, .. } = self.step(at, &Op::SaveRestore)?;
                if !effects.is_empty() {
                    let what = format!("saved and restored after `{op}`, it has {effects:?}");
                    return Err(Law::Restores.broken(Some(at + 1), what));
                }
            }
            Ok(())
        }));
        played.unwrap_or_else(|panic| Err(panicked(Some(self.outcomes.len() + 1), &*panic)))
    }

    fn step(&mut self, at: usize, op: &Op) -> Result<Outcome, Violation> {
        self.models.before(op, self.player.machine());
        let outcome = self.player.step(op);
        after(at, op, &outcome, &self.player, &mut self.models).map(|()| outcome)
    }

    fn trace(&mut self) -> Trace {
        Trace { outcomes: self.outcomes.clone(), end: self.player.end() }
    }
}

/// Resets a board that `at` operations were played on, and one that is new at this time.
///
/// # Errors
/// The law that is broken: [`Law::Resets`], or one that a reset can break.
pub fn resets<'a>(at: usize, used: &mut Player<'a>, rig: &mut Rig<'a>) -> Result<(), Violation> {
    let mut new = rig.take();
    let now = Op::Advance(used.machine().now());
    let step = |player: &mut Player<'a>, op: &Op| {
        let outcome = player.step(op);
        after(at, op, &outcome, player, &mut Models::none())
    };
    let reset = catch_unwind(AssertUnwindSafe(|| {
        step(&mut new, &now)?;
        step(&mut new, &Op::Reset)?;
        step(used, &Op::Reset)
    }));
    reset.unwrap_or_else(|panic| Err(panicked(None, &*panic)))?;
    let (was, fresh) = (used.machine().save(), new.machine().save());
    rig.give_back(new);
    match differing(&was, &fresh).find(|name| !rig.board().keeps.contains(name)) {
        Some(name) => {
            Err(Law::Resets.broken(None, format!("device `{name}` remembers what it was")))
        }
        None => Ok(()),
    }
}

/// Names of the devices whose states differ.
fn differing<'a>(one: &'a MachineState, other: &'a MachineState) -> impl Iterator<Item = &'a str> {
    let pairs = one.devices.iter().zip(&other.devices);
    pairs.filter(|(a, b)| a != b).map(|((name, _), _)| &**name)
}

fn same(law: Law, one: &Trace, other: &Trace, script: &Script) -> Result<(), Violation> {
    let outcomes = one.outcomes.iter().zip(&other.outcomes);
    for (at, (step, (one, other))) in script.steps.iter().zip(outcomes).enumerate() {
        if one != other {
            let what = format!("`{}`: {one:?}, and then {other:?}", step.op);
            return Err(law.broken(Some(at + 1), what));
        }
    }
    if one.end == other.end {
        return Ok(());
    }
    let names: Vec<_> = differing(&one.end.state, &other.end.state).collect();
    let what = if names.is_empty() {
        "memory or the counters of faults end differently".to_owned()
    } else {
        format!("the state of {} ends differently", names.join(", "))
    };
    Err(law.broken(None, what))
}
