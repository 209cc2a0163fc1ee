//! Each law against a device that breaks it and nothing else, and a device that breaks none.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use super::*;
use crate::access::{IoError, Space};
use crate::device::{Action, At, Env, Region, StateError};
use crate::state::{decode, encode};

/// How a [`Timer`] is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    SaveForgets,
    RestoreMerges,
    ResetForgets,
    Random,
    IrqUnsaved,
    IrqFlickers,
    GarbageTaken,
    GarbageHalfTaken,
    GarbagePanics,
    TooManyActions,
    TakesBeyond,
    PanicsWide,
    TickLoop,
    DeadlineOver,
    DeadlineMissing,
    LateRead,
    InputRefused,
    InputUnbounded,
    LooksOther,
    LooksAway,
    KeepsOther,
    KeepsAway,
}

/// A one-shot timer with a byte of memory and a queue of 4 bytes. Offset 0: bytes of memory; 1:
/// a write starts the timer, a read says whether it has expired and stops it; 2: the queue.
#[derive(Debug)]
struct Timer {
    flaw: Flaw,
    regs: Regs,
    unsaved: u8,
    looks: Cell<u8>,
}

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Regs {
    memory: u8,
    extra: u8,
    due: Option<Nanos>,
    expired: bool,
    queue: Vec<u8>,
}

static CHANCE: AtomicU8 = AtomicU8::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

impl Timer {
    fn new(flaw: Flaw) -> Timer {
        Timer { flaw, regs: Regs::default(), unsaved: 0, looks: Cell::new(0) }
    }

    fn sync(&mut self, env: &mut Env<'_>) {
        if let Some(due) = self.regs.due {
            let now = env.now();
            if self.flaw == Flaw::TickLoop {
                for tick in 0..now {
                    if STOP.load(Ordering::Relaxed) {
                        break;
                    }
                    self.regs.expired |= tick >= due;
                }
            }
            if now >= due {
                self.regs.expired = true;
                if self.flaw != Flaw::DeadlineOver {
                    self.regs.due = None;
                }
            }
        }
    }
}

impl Device for Timer {
    fn name(&self) -> &'static str {
        "timer"
    }

    fn regions(&self) -> &'static [Region] {
        &[Region { name: "timer", space: Space::Port, len: 3, widest: Size::B1 }]
    }

    fn look(&self, at: At, _: Size) -> Option<u64> {
        match at.offset {
            0 if self.regs.due.is_some() || self.flaw == Flaw::Random => None,
            0 if self.flaw == Flaw::LooksOther => Some(0x5a),
            0 => Some(u64::from(self.regs.memory ^ self.regs.extra)),
            // To read it is to clear it.
            1 if self.flaw == Flaw::LooksAway => Some(u64::from(self.regs.expired)),
            _ => None,
        }
    }

    fn keep(&mut self, at: At, _: Size, value: u64) -> bool {
        let quiet = matches!(self.flaw, Flaw::None | Flaw::KeepsOther) && self.regs.due.is_none();
        match at.offset {
            0 if quiet => self.regs.memory = value as u8 ^ u8::from(self.flaw == Flaw::KeepsOther),
            // To write it is to start the timer.
            1 if self.flaw == Flaw::KeepsAway => {}
            _ => return false,
        }
        true
    }

    fn read(&mut self, env: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        if self.flaw == Flaw::PanicsWide {
            assert!(size != Size::B8, "who reads 8 bytes of me?");
        }
        if self.flaw != Flaw::LateRead {
            self.sync(env);
        }
        match at.offset {
            0 if self.flaw == Flaw::Random => Ok(u64::from(CHANCE.fetch_add(1, Ordering::Relaxed))),
            0 => Ok(u64::from(self.regs.memory ^ self.regs.extra)),
            1 => Ok(u64::from(std::mem::take(&mut self.regs.expired))),
            2 if self.regs.queue.is_empty() => Err(IoError::Disabled),
            2 => Ok(u64::from(self.regs.queue.remove(0))),
            3 if self.flaw == Flaw::TakesBeyond => Ok(0),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, _: Size, value: u64) -> Result<(), IoError> {
        self.sync(env);
        match at.offset {
            0 => {
                self.regs.memory = value as u8;
                if self.flaw == Flaw::SaveForgets || self.flaw == Flaw::RestoreMerges {
                    self.regs.extra = 1;
                }
                if self.flaw == Flaw::IrqUnsaved {
                    self.unsaved = 1;
                }
                if self.flaw == Flaw::TooManyActions {
                    (0..9).for_each(|i| env.act(Action::Post(i)));
                }
            }
            1 => self.regs.due = Some(env.now().saturating_add(1000)),
            2 => return Err(IoError::ReadOnly),
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }

    fn irq(&self) -> bool {
        if self.flaw == Flaw::IrqFlickers {
            self.looks.set(self.looks.get().wrapping_add(1));
            return self.looks.get().is_multiple_of(3);
        }
        self.regs.expired || self.unsaved != 0
    }

    fn deadline(&self) -> Option<Nanos> {
        match self.flaw {
            Flaw::DeadlineMissing => None,
            Flaw::DeadlineOver => self.regs.due,
            _ if self.regs.expired => None,
            _ => self.regs.due,
        }
    }

    fn advance(&mut self, env: &mut Env<'_>) {
        self.sync(env);
    }

    fn input(&mut self, _: &mut Env<'_>, bytes: &[u8]) -> usize {
        let took = bytes.len().min(self.input_room());
        let took = if self.flaw == Flaw::InputRefused { took.min(1) } else { took };
        self.regs.queue.extend(&bytes[..took]);
        took
    }

    fn input_room(&self) -> usize {
        match self.flaw {
            Flaw::InputUnbounded => usize::MAX - self.regs.queue.len(),
            _ => 4usize.checked_sub(self.regs.queue.len()).expect("queue overflow"),
        }
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        let memory = self.regs.memory;
        self.regs = Regs::default();
        self.unsaved = 0;
        if self.flaw == Flaw::ResetForgets {
            self.regs.memory = memory;
        }
    }

    fn save(&self) -> Vec<u8> {
        let mut regs = self.regs.clone();
        if self.flaw == Flaw::SaveForgets {
            regs.extra = 0;
        }
        encode(&regs)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let error = |what: &str| StateError { device: "timer", what: what.to_owned() };
        if self.flaw == Flaw::GarbagePanics {
            assert!(!state.is_empty(), "no state");
        }
        if self.flaw == Flaw::GarbageHalfTaken {
            self.regs.memory = state.first().copied().unwrap_or(0x5a);
        }
        let mut regs: Regs = decode("timer", state)?;
        let most = if self.flaw == Flaw::InputUnbounded { usize::MAX } else { 4 };
        if regs.queue.len() > most && self.flaw != Flaw::GarbageTaken {
            return Err(error("queue too long"));
        }
        if self.flaw == Flaw::RestoreMerges {
            regs.extra |= self.regs.extra;
        }
        self.regs = regs;
        Ok(())
    }
}

/// The first law that checking finds broken; a panic counts as none of its own.
fn verdict(make: fn() -> Timer) -> Result<(), Violation> {
    let subject = Subject::new(make);
    let start = Op::write(1, Size::B1, 1);
    let ops = [
        Op::read(0, Size::B1),
        Op::write(0, Size::B1, 0x42),
        Op::read(0, Size::B1),
        Op::Input(vec![1, 2, 3]),
        start.clone(),
        Op::Pass(1500),
        Op::read(1, Size::B1),
        start.clone(),
        Op::ToDeadline,
        Op::SaveRestore,
        Op::read(2, Size::B1),
        Op::read(1, Size::B1),
        start,
        Op::Advance(1 << 62),
        Op::read(1, Size::B1),
    ];
    within(Duration::from_secs(5), move || {
        subject.sweeps()?;
        subject.repeats(None, &ops)?;
        for split in 0..ops.len() {
            subject.restores(None, &ops, split)?;
            subject.resets(None, &ops, split)?;
        }
        subject.lateness(None, &ops)?;
        subject.input_is_bounded(&ops[..4])?;
        // memory, extra, due, expired, queue: one that is well-formed but too long.
        subject.garbage(&ops, 5, &[0, 0, 0, 0, 6, 1, 1, 1, 1, 1, 1])?;
        subject.garbage(&ops, 5, &[])
    })
}

macro_rules! caught {
    ($($test:ident: $flaw:ident => $law:pat,)*) => {
        $(
            #[test]
            fn $test() {
                let found = verdict(|| Timer::new(Flaw::$flaw)).map_err(|v| v.law);
                assert!(matches!(found, $law), "{found:?}");
            }
        )*
    };
}

caught! {
    a_sound_device_passes: None => Ok(()),
    a_field_not_saved_is_caught: SaveForgets => Err(Law::Restore),
    a_restore_that_keeps_old_state_is_caught: RestoreMerges => Err(Law::Restore),
    a_reset_that_forgets_a_register_is_caught: ResetForgets => Err(Law::Reset),
    chance_is_caught: Random => Err(Law::Repeat),
    a_line_beside_the_state_is_caught: IrqUnsaved => Err(Law::Lines | Law::Restore),
    a_line_that_flickers_is_caught: IrqFlickers => Err(Law::Lines | Law::Deadline),
    a_state_half_taken_is_caught: GarbageHalfTaken => Err(Law::Garbage),
    an_access_beyond_the_region_is_caught: TakesBeyond => Err(Law::Bounds),
    a_deadline_that_is_over_is_caught: DeadlineOver => Err(Law::Deadline),
    a_deadline_not_told_is_caught: DeadlineMissing => Err(Law::Deadline),
    an_answer_that_depends_on_the_board_is_caught: LateRead => Err(Law::Late),
    input_refused_is_caught: InputRefused => Err(Law::Input),
    input_without_end_is_caught: InputUnbounded => Err(Law::Input),
    a_look_at_something_else_is_caught: LooksOther => Err(Law::Shortcuts),
    a_look_at_what_a_read_changes_is_caught: LooksAway => Err(Law::Shortcuts),
    a_write_kept_as_something_else_is_caught: KeepsOther => Err(Law::Shortcuts),
    a_write_that_is_more_than_kept_is_caught: KeepsAway => Err(Law::Shortcuts),
}

#[test]
#[should_panic(expected = "who reads 8 bytes of me?")]
fn a_panic_in_an_access_goes_on() {
    let _ = verdict(|| Timer::new(Flaw::PanicsWide));
}

#[test]
#[should_panic(expected = "no state")]
fn a_panic_in_a_restore_goes_on() {
    let _ = verdict(|| Timer::new(Flaw::GarbagePanics));
}

#[test]
#[should_panic(expected = "queue overflow")]
fn a_state_that_cannot_be_is_caught_by_what_it_does() {
    let _ = verdict(|| Timer::new(Flaw::GarbageTaken));
}

// `Actions::push` itself panics in a debug build.
#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "more than 8 actions"))]
fn too_many_actions_are_caught() {
    let found = verdict(|| Timer::new(Flaw::TooManyActions)).map_err(|v| v.law);
    assert_eq!(found, Err(Law::Actions));
}

#[test]
fn work_that_grows_with_time_is_caught() {
    let found = verdict(|| Timer::new(Flaw::TickLoop)).map_err(|v| v.law);
    STOP.store(true, Ordering::Relaxed);
    assert_eq!(found, Err(Law::Bounded));
}

#[test]
fn raw_operations_reach_every_kind_of_access() {
    let regions = Timer::new(Flaw::None).regions();
    let mut seen = std::collections::BTreeSet::new();
    for (kind, pick) in (0..=255u8).flat_map(|kind| (0..64).map(move |pick| (kind, pick))) {
        let op = Op::from_raw(regions, (kind, pick, 5, 3));
        seen.insert(match op {
            Op::Read { offset, size, .. } => format!("read {} {size}", offset < 3),
            Op::Write { offset, size, .. } => format!("write {} {size}", offset < 3),
            op => format!("{op:?}").split(['(', ' ']).next().expect("a name").to_owned(),
        });
    }
    // Inside and beyond the region at all widths, both ways, and the seven that are no access.
    assert_eq!(seen.len(), 2 * 2 * 4 + 7, "{seen:?}");
    assert_eq!(Op::from_raw(&[], (0, 0, 0, 9)), Op::Advance(9));
    assert_eq!(Op::from_bytes(regions, &[0; 30]).len(), 2);
}

crate::device_laws!(
    macro_on_a_sound_device,
    || Timer::new(Flaw::None),
    prologues: [vec![Op::write(1, Size::B1, 0)]],
);
// What the macro's `keeps` is for: this reset leaves the memory alone.
crate::device_laws!(
    macro_on_a_device_with_a_battery,
    || Timer::new(Flaw::ResetForgets),
    keeps: |old, new| new.regs.memory = old.regs.memory,
);
