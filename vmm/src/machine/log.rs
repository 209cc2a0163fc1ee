//! The last exits of a vCPU: what a report of an unexpected end shows.
//!
//! It is written at every exit, so an access, which nearly all of them are, takes four stores of it.

use crate::access::{Access, Dir, Size, Space};
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

/// What is kept of an access that the guest went on from.
#[derive(Clone, Copy, Debug)]
struct Short {
    addr: u64,
    /// What was written, or what the read got; bits above its width mean nothing.
    value: u64,
    size: Size,
    space: Space,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Read,
    Write,
    /// Not an access, or one that ended the VM, or one whose RIP is known: it is in `others`.
    Other,
}

/// A ring of the last 64 exits.
#[derive(Clone, Debug)]
pub struct ExitLog {
    ring: Box<[Short; KEPT]>,
    others: Box<[Logged; KEPT]>,
    count: u64,
}

impl Default for ExitLog {
    fn default() -> Self {
        let other = Logged { exit: Exit::Interrupted, entry: Entry::Resume, rip: None };
        let short =
            Short { addr: 0, value: 0, space: Space::Port, size: Size::B1, kind: Kind::Other };
        ExitLog { ring: Box::new([short; KEPT]), others: Box::new([other; KEPT]), count: 0 }
    }
}

impl ExitLog {
    /// An access that the guest goes on from, whose read gets `value`.
    #[inline(always)]
    pub(crate) fn access(&mut self, space: Space, addr: u64, size: Size, dir: Dir, value: u64) {
        let (kind, value) = match dir {
            Dir::Read => (Kind::Read, value),
            Dir::Write(written) => (Kind::Write, written),
        };
        let at = self.count as usize % KEPT;
        self.count += 1;
        self.ring[at] = Short { addr, value, space, size, kind };
    }

    /// Any exit.
    #[inline(never)]
    pub(crate) fn push(&mut self, exit: &Exit, entry: Entry) {
        let at = self.count as usize % KEPT;
        self.others[at] = Logged { exit: *exit, entry, rip: None };
        self.ring[at].kind = Kind::Other;
        self.count += 1;
    }

    /// The guest was there at the last of them.
    pub(super) fn note_rip(&mut self, rip: u64) {
        if let Some(last) = self.count.checked_sub(1) {
            let at = last as usize % KEPT;
            self.others[at] = Logged { rip: Some(rip), ..self.at(at) };
            self.ring[at].kind = Kind::Other;
        }
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
    pub fn iter(&self) -> impl Iterator<Item = (u64, Logged)> {
        let first = self.count.saturating_sub(KEPT as u64);
        (first..self.count).map(|n| (n + 1, self.at(n as usize % KEPT)))
    }

    fn at(&self, at: usize) -> Logged {
        let Short { addr, value, space, size, kind } = self.ring[at];
        let value = value & size.mask();
        let (dir, entry) = match kind {
            Kind::Read => (Dir::Read, Entry::Read(value)),
            Kind::Write => (Dir::Write(value), Entry::Resume),
            Kind::Other => return self.others[at],
        };
        Logged { exit: Exit::Io(Access { space, addr, size, dir }), entry, rip: None }
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
            log.push(&Exit::Unknown(i), Entry::Resume);
        }
        let kept: Vec<_> = log.iter().map(|(n, l)| (n, l.exit)).collect();
        assert_eq!(kept.len(), 64);
        assert_eq!(kept[0], (37, Exit::Unknown(36)));
        assert_eq!(kept[63], (100, Exit::Unknown(99)));
    }

    #[test]
    fn an_access_is_kept_as_any_other_exit() {
        let read = Access::read(Space::Mmio, 0xfee0_0000, Size::B4);
        let write = Access::write(Space::Port, 0x80, Size::B1, 7);
        let mut log = ExitLog::default();
        for _ in 0..40 {
            log.access(read.space, read.addr, read.size, read.dir, u64::MAX);
            log.push(&Exit::Hlt, Entry::Resume);
            log.note_rip(0x1000);
            log.access(write.space, write.addr, write.size, write.dir, 0);
        }
        let kept: Vec<_> = log.iter().map(|(_, logged)| logged).collect();
        let plain = |exit, entry| Logged { exit, entry, rip: None };
        assert_eq!(
            kept[61..],
            [
                plain(Exit::Io(read), Entry::Read(0xffff_ffff)),
                Logged { exit: Exit::Hlt, entry: Entry::Resume, rip: Some(0x1000) },
                plain(Exit::Io(write), Entry::Resume),
            ]
        );
    }
}
