//! The laws that every device obeys, and what checks them.
//!
//! A law is a plain function from a device and some operations to a verdict, so a unit test, a
//! property test ([`crate::device_laws!`]) and a fuzzer ask the same question. [`Session`] is the
//! bench that a device is put on.

mod session;
mod shortcuts;
#[cfg(test)]
mod tests;

pub use session::{Answer, LAST, Op, RawOp, Restores, Session, Step, TestClock};

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::access::Size;
use crate::device::{Device, Nanos};

/// What a device must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Law {
    /// Restoring what was saved, into a new device or a used one, changes no later answer.
    Restore,
    /// A reset device behaves as a new one.
    Reset,
    /// The same operations give the same trace.
    Repeat,
    /// `irq()`, `deadline()` and `input_room()` are functions of the saved state.
    Lines,
    /// A state that cannot be is refused and changes nothing; one that is taken obeys all laws.
    Garbage,
    /// No call asks for more actions than there is room for.
    Actions,
    /// An access beyond a region is refused. (That none panics, every check checks.)
    Bounds,
    /// Any step of time takes bounded work.
    Bounded,
    /// The line does not change by time before the deadline, and no deadline is ever over.
    Deadline,
    /// What the guest sees does not depend on how often the board tells the time.
    Late,
    /// Input is taken as far as there is room, and what waits is bounded.
    Input,
    /// `look()` and `keep()` do what `read()` and `write()` do, and those do nothing else then.
    Shortcuts,
}

impl Law {
    /// The violation of this law.
    pub fn broken(self, what: String) -> Violation {
        Violation { law: self, what }
    }
}

/// A law broken, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("law {law:?} is broken: {what}")]
pub struct Violation {
    /// Which.
    pub law: Law,
    /// How.
    pub what: String,
}

impl Violation {
    fn at(self, place: impl fmt::Display) -> Violation {
        Violation { what: format!("{place}: {}", self.what), ..self }
    }
}

/// The device to be checked: how to get a new one, and what of it a reset leaves alone.
#[derive(Debug)]
pub struct Subject<D> {
    /// Makes a new device; always the same one.
    pub make: fn() -> D,
    /// Copies from a device about to be reset to a new one what lives on (a battery's memory).
    pub keeps: fn(&D, &mut D),
}

impl<D> Clone for Subject<D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for Subject<D> {}

/// How much saved state may grow by input that the guest never reads, in bytes.
const INPUT_LIMIT: usize = 64 << 10;

impl<D: Device> Subject<D> {
    /// A device of which a reset leaves nothing.
    pub fn new(make: fn() -> D) -> Subject<D> {
        Subject { make, keeps: |_, _| {} }
    }

    fn session(&self, start: Option<&[u8]>) -> Result<Session<D>, Violation> {
        let mut device = (self.make)();
        if let Some(state) = start {
            device.restore(state).map_err(|e| {
                Law::Garbage.broken(format!("a state is taken once and refused once: {e}"))
            })?;
        }
        Ok(Session::new(device, self.make))
    }

    /// [`Law::Repeat`], and those that single operations show.
    ///
    /// # Errors
    /// The law that is broken.
    pub fn repeats(&self, start: Option<&[u8]>, ops: &[Op]) -> Result<(), Violation> {
        let mut first = self.session(start)?;
        let mut second = self.session(start)?;
        same(Law::Repeat, ops, &first.run(ops)?.trace, &second.run(ops)?.trace)?;
        if first.device.save() != second.device.save() {
            return Err(Law::Repeat.broken("the same operations leave two states".to_owned()));
        }
        Ok(())
    }

    /// [`Law::Restore`] and [`Law::Lines`]: into a new device where the operations ask for it and
    /// after each, and into the used device at operation `split`.
    ///
    /// # Errors
    /// The law that is broken.
    pub fn restores(
        &self,
        start: Option<&[u8]>,
        ops: &[Op],
        split: usize,
    ) -> Result<(), Violation> {
        let mut plain = self.session(start)?.restores(Restores::Never);
        plain.run(ops)?;
        for when in [Restores::Asked, Restores::Always] {
            let mut other = self.session(start)?.restores(when);
            same(Law::Restore, ops, &plain.trace, &other.run(ops)?.trace)?;
        }
        let (before, after) = ops.split_at(split.min(ops.len()));
        let mut session = self.session(start)?.restores(Restores::Never);
        session.run(before)?;
        let state = session.device.save();
        let mut used = session.beside((self.make)());
        session.run(after)?;
        // The used device: it has been through everything, then is taken back.
        std::mem::swap(&mut used.device, &mut session.device);
        used.device.restore(&state).map_err(|e| {
            Law::Restore.broken(format!("a used device refuses its own state: {e}"))
        })?;
        used.run(after)?;
        same(Law::Restore, after, &session.trace[before.len()..], &used.trace)
            .map_err(|v| v.at("restored into the used device"))
    }

    /// [`Law::Reset`]: after the first `split` operations, and told the time, the device is reset.
    /// Its saved state must be a new one's, but for what [`Subject::keeps`] copies.
    ///
    /// # Errors
    /// The law that is broken.
    pub fn resets(&self, start: Option<&[u8]>, ops: &[Op], split: usize) -> Result<(), Violation> {
        let (before, after) = ops.split_at(split.min(ops.len()));
        let mut old = self.session(start)?;
        old.run(before)?;
        old.run(&[Op::Advance(0)])?;
        let mut new = old.beside((self.make)());
        (self.keeps)(&old.device, &mut new.device);
        old.call(|d, env| d.reset(env))?;
        // Registers that are hard to get at would take many operations to tell apart.
        if old.device.save() != new.device.save() {
            return Err(Law::Reset.broken(format!(
                "a reset device has the state {:02x?}, a new one {:02x?}",
                old.device.save(),
                new.device.save()
            )));
        }
        let view = |d: &D| (d.irq(), d.deadline(), d.input_room());
        if view(&old.device) != view(&new.device) {
            return Err(Law::Reset.broken(format!(
                "irq, deadline, room after a reset {:?}, when new {:?}",
                view(&old.device),
                view(&new.device)
            )));
        }
        old.run(after)?;
        same(Law::Reset, after, &new.run(after)?.trace, &old.trace[before.len() + 1..])
    }

    /// [`Law::Late`]: a board that tells the time at every turn, and one that does only at last;
    /// then both must have the same state.
    ///
    /// # Errors
    /// The law that is broken.
    pub fn lateness(&self, start: Option<&[u8]>, ops: &[Op]) -> Result<(), Violation> {
        let mut eager = self.session(start)?.eager();
        let mut late = self.session(start)?;
        for (i, op) in ops.iter().enumerate() {
            let place = |v: Violation| v.at(format!("operation {i}, {op:?}"));
            let then: Nanos = eager.now();
            eager.apply(op).map_err(place)?;
            let late_op = match op {
                Op::Pass(_) | Op::Advance(_) | Op::ToDeadline => Op::Pass(eager.now() - then),
                op => op.clone(),
            };
            late.apply(&late_op).map_err(place)?;
            let (e, l) = (&eager.trace[i], &late.trace[i]);
            // What a device does by itself in time, it does late here: with the next access.
            let timed = late_op != *op || matches!(op, Op::Pass(_));
            if e.answer != l.answer || (!timed && e.ram != l.ram) {
                return Err(place(
                    Law::Late.broken(format!("told the time {e:?}, not told {l:?}")),
                ));
            }
        }
        let told = |s: &mut Session<D>| {
            s.apply(&Op::Advance(0))?;
            let actions = s.trace.iter().flat_map(|step| step.actions.clone()).collect::<Vec<_>>();
            Ok::<_, Violation>((s.device.irq(), s.device.deadline(), actions, s.device.save()))
        };
        let (e, l) = (told(&mut eager)?, told(&mut late)?);
        if e == l {
            Ok(())
        } else {
            Err(Law::Late.broken(format!("in the end: told the time {e:?}, told at last {l:?}")))
        }
    }

    /// [`Law::Garbage`]: `garbage` is restored, and a saved state with a byte of it changed, into
    /// the device after the first `split` operations; the rest follow.
    ///
    /// # Errors
    /// The law that is broken, be it any other after a state was taken.
    pub fn garbage(&self, ops: &[Op], split: usize, garbage: &[u8]) -> Result<(), Violation> {
        let (before, after) = ops.split_at(split.min(ops.len()));
        let mut session = self.session(None)?;
        session.run(before)?;
        let mut state = session.device.save();
        let mut states = vec![garbage.to_vec()];
        for change in garbage.chunks_exact(2) {
            let len = state.len();
            if len > 0 {
                state[usize::from(change[0]) * 251 % len] ^= change[1].max(1);
                states.push(state.clone());
            }
        }
        for state in states {
            let mut used = session.beside((self.make)());
            used.run(before)?;
            let was = used.device.save();
            if used.device.restore(&state).is_err() {
                if used.device.save() != was {
                    let what = format!("{state:02x?} is refused, but changes the device");
                    return Err(Law::Garbage.broken(what));
                }
                continue;
            }
            let start = Some(&state[..]);
            let place = |v: Violation| v.at(format!("from the state {state:02x?}"));
            self.repeats(start, after).map_err(place)?;
            self.restores(start, after, 1).map_err(place)?;
            self.resets(start, after, after.len() / 2).map_err(place)?;
            self.lateness(start, after).map_err(place)?;
        }
        Ok(())
    }

    /// [`Law::Bounds`] and [`Law::Actions`] at every offset and width, of the first 64 KiB of each
    /// region and beyond.
    ///
    /// # Errors
    /// The law that is broken.
    pub fn sweeps(&self) -> Result<(), Violation> {
        let mut session = self.session(None)?;
        let regions = session.device.regions();
        for (region, r) in (0u8..).zip(regions) {
            let beyond = [0, 1, 3, 7, 0x1000, u64::MAX / 2, u64::MAX - r.len];
            let offsets = (0..r.len.min(1 << 16)).chain(beyond.map(|b| r.len + b));
            for (offset, size) in offsets.flat_map(|o| Size::ALL.map(|size| (o, size))) {
                for value in [offset, 0, u64::MAX] {
                    session.perform(&Op::Read { region, offset, size })?;
                    session.perform(&Op::Write { region, offset, size, value })?;
                }
            }
        }
        session.run(&[Op::Advance(LAST), Op::SaveRestore, Op::Reset, Op::SaveRestore])?;
        Ok(())
    }

    /// [`Law::Input`]: after some operations the host sends a MiB that nobody reads.
    ///
    /// # Errors
    /// The law that is broken.
    pub fn input_is_bounded(&self, ops: &[Op]) -> Result<(), Violation> {
        let mut session = self.session(None)?;
        session.run(ops)?;
        let before = session.device.save().len();
        for i in 0..16u8 {
            session.perform(&Op::Input(vec![i; 64 << 10]))?;
        }
        let after = session.device.save().len();
        if after > before + INPUT_LIMIT {
            let what = format!("the state grew from {before} to {after} bytes by a MiB of input");
            return Err(Law::Input.broken(what));
        }
        Ok(())
    }
}

fn same(law: Law, ops: &[Op], a: &[Step], b: &[Step]) -> Result<(), Violation> {
    match a.iter().zip(b).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(i) => Err(law.broken(format!(
            "operation {i}, {:?}: one gives {:?}, the other {:?}",
            ops.get(i),
            a[i],
            b[i]
        ))),
    }
}

/// Runs a check that must end within `limit`: [`Law::Bounded`]. A panic in it goes on here.
///
/// # Errors
/// The check's own violation, or that it did not end; its thread is then left running.
pub fn within<F>(limit: Duration, check: F) -> Result<(), Violation>
where
    F: FnOnce() -> Result<(), Violation> + Send + 'static,
{
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let verdict = check();
        // The other end is gone only if the limit was over.
        let _ = done.send(());
        verdict
    });
    match wait.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => Err(Law::Bounded.broken(format!(
            "the operations did not end within {limit:?}: work grows with time or with a value"
        ))),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        }
    }
}

/// Checks a device against every [`Law`](crate::laws::Law), as property tests in a module of the
/// given name. The crate that uses it needs `proptest`.
///
/// `prologues` are operations that bring the device to where something happens; each test begins
/// with one of them or none. `keeps` says what a reset leaves alone: see
/// [`Subject::keeps`](crate::laws::Subject).
///
/// ```text
/// device_laws!(laws, || Uart::new("com1"));
/// device_laws!(laws, || Rtc::new(0), prologues: [vec![Op::write(0, Size::B1, 0x0b)]],
///     keeps: |old, new| new.cmos = old.cmos);
/// ```
#[macro_export]
macro_rules! device_laws {
    ($name:ident, $make:expr $(, prologues: [$($prologue:expr),* $(,)?])? $(, keeps: $keeps:expr)? $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            use $crate::laws::{Op, RawOp, Subject, Violation, within};

            const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

            fn subject() -> Subject<impl $crate::device::Device + 'static> {
                #[allow(unused_mut)]
                let mut subject = Subject::new($make);
                $(subject.keeps = $keeps;)?
                subject
            }

            fn ops(raw: Vec<RawOp>, which: usize) -> Vec<Op> {
                let prologues: Vec<Vec<Op>> = vec![vec![] $(, $($prologue),*)?];
                let device = (subject().make)();
                let regions = $crate::device::Device::regions(&device);
                let mut ops = prologues[which % prologues.len()].clone();
                ops.extend(raw.into_iter().map(|raw| Op::from_raw(regions, raw)));
                ops
            }

            fn verdict(
                check: impl FnOnce() -> Result<(), Violation> + Send + 'static,
            ) -> Result<(), ::proptest::test_runner::TestCaseError> {
                within(LIMIT, check)
                    .map_err(|v| ::proptest::test_runner::TestCaseError::fail(v.to_string()))
            }

            ::proptest::prop_compose! {
                fn any_ops()(
                    raw in ::proptest::collection::vec(::proptest::prelude::any::<RawOp>(), 0..96),
                    which in 0usize..16,
                    split in 0usize..96,
                ) -> (Vec<Op>, usize) {
                    (ops(raw, which), split)
                }
            }

            ::proptest::proptest! {
                #![proptest_config(::proptest::test_runner::Config {
                    max_shrink_time: 60_000,
                    ..Default::default()
                })]

                #[test]
                fn the_same_calls_give_the_same_answers((ops, _) in any_ops()) {
                    verdict(move || subject().repeats(None, &ops))?;
                }

                #[test]
                fn restoring_changes_nothing((ops, split) in any_ops()) {
                    verdict(move || subject().restores(None, &ops, split))?;
                }

                #[test]
                fn a_reset_device_is_as_new((ops, split) in any_ops()) {
                    verdict(move || subject().resets(None, &ops, split))?;
                }

                #[test]
                fn a_late_board_changes_nothing((ops, _) in any_ops()) {
                    verdict(move || subject().lateness(None, &ops))?;
                }

                #[test]
                fn garbage_is_refused_or_a_state(
                    (ops, split) in any_ops(),
                    garbage in ::proptest::collection::vec(::proptest::prelude::any::<u8>(), 0..24),
                ) {
                    verdict(move || subject().garbage(&ops, split, &garbage))?;
                }

                #[test]
                fn waiting_input_is_bounded((ops, _) in any_ops()) {
                    verdict(move || subject().input_is_bounded(&ops))?;
                }
            }

            #[test]
            fn every_offset_and_width_is_answered() {
                within(LIMIT, || subject().sweeps()).unwrap_or_else(|v| panic!("{v}"));
            }
        }
    };
}
