//! What each of those who hand exits to the board has of its own.

use super::ExitLog;
use crate::access::{Access, Dir, IoError, Size, Space};
use crate::bus::Hint;
use crate::device::Actions;
use crate::exit::{Entry, Exit, Stop};

/// What belongs to one vCPU, or to whoever else hands exits to the board: nothing of it is shared.
#[derive(Debug, Default)]
pub struct Context {
    pub(super) actions: Actions,
    /// RIP at the exit that is handed over next, if the driver knows it: for the log.
    pub rip: Option<u64>,
    /// The last exits.
    pub log: ExitLog,
    /// Accesses that no device took, by [`IoError`]'s place in [`IoError::ALL`].
    pub faults: [u64; IoError::ALL.len()],
    /// Where the last MMIO access went on the bus.
    pub(super) hint: Hint,
    pub(super) stop: Option<Stop>,
}

/// An access that nobody takes: what a read of it gives.
#[inline(always)]
pub(super) fn unclaimed(cx: &mut Context) -> u64 {
    cx.faults[IoError::Unclaimed as usize] += 1;
    u64::MAX
}

impl Context {
    /// A context with nothing in it.
    pub fn new() -> Context {
        Context::default()
    }

    /// As new.
    pub fn clear(&mut self) {
        let Context { actions, rip, log, faults, hint, stop } = self;
        (*actions, *rip, *faults) = (Actions::default(), None, [0; IoError::ALL.len()]);
        (*hint, *stop) = (Hint::default(), None);
        log.clear();
    }

    pub(super) fn answer(&mut self, value: u64, stop: Option<Stop>) -> Option<u64> {
        if stop.is_none() {
            return Some(value);
        }
        self.stop = stop;
        None
    }

    /// Logs an access that was not a plain one.
    #[inline(never)]
    pub(super) fn note(
        &mut self,
        space: Space,
        addr: u64,
        size: Size,
        dir: Dir,
        value: Option<u64>,
    ) -> Option<u64> {
        match value {
            Some(value) => self.log.access(space, addr, size, dir, value),
            None => {
                let stop = Entry::Stop(self.stop.unwrap_or(Stop::Unexpected));
                self.log.push(&Exit::Io(Access { space, addr, size, dir }), stop);
            }
        }
        value
    }

    /// The exit that was logged last was at [`Context::rip`], if that is known.
    #[inline]
    pub(crate) fn note_rip(&mut self) {
        if let Some(rip) = self.rip {
            self.log.note_rip(rip);
        }
    }

    /// Actions that devices asked for beyond what one access may: 0 unless a device is wrong.
    pub fn lost_actions(&self) -> u64 {
        self.actions.lost
    }
}
