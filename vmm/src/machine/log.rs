//! The last exits of a vCPU: what a report of an unexpected end shows.

use crate::exit::{Entry, Exit};

/// How many exits are kept.
const KEPT: usize = 64;

/// One exit and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The exit.
    pub exit: Exit,
    /// What the board answered.
    pub entry: Entry,
    /// RIP at the exit, where it is known.
    pub rip: Option<u64>,
}

/// A ring of the last 64 exits.
#[derive(Clone, Debug)]
pub struct ExitLog {
    ring: Box<[Logged; KEPT]>,
    count: u64,
}

impl Default for ExitLog {
    fn default() -> Self {
        let empty = Logged { exit: Exit::Interrupted, entry: Entry::Resume, rip: None };
        ExitLog { ring: Box::new([empty; KEPT]), count: 0 }
    }
}

impl ExitLog {
    #[inline]
    pub(crate) fn push(&mut self, exit: &Exit, entry: Entry, rip: Option<u64>) {
        self.ring[self.count as usize % KEPT] = Logged { exit: *exit, entry, rip };
        self.count += 1;
    }

    /// Forgets them.
    pub(crate) fn clear(&mut self) {
        self.count = 0;
    }

    /// Exits since the start.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last exits with their running numbers (the first exit is 1), oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Logged)> {
        let first = self.count.saturating_sub(KEPT as u64);
        (first..self.count).map(|n| (n + 1, &self.ring[n as usize % KEPT]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_64_are_kept_in_order() {
        let mut log = ExitLog::default();
        assert_eq!(log.iter().count(), 0);
        for i in 0..100 {
            log.push(&Exit::Unknown(i), Entry::Resume, None);
        }
        let kept: Vec<_> = log.iter().map(|(n, l)| (n, l.exit)).collect();
        assert_eq!(kept.len(), 64);
        assert_eq!(kept[0], (37, Exit::Unknown(36)));
        assert_eq!(kept[63], (100, Exit::Unknown(99)));
    }
}
