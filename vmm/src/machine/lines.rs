//! Interrupt lines that several devices may drive: high while one of them holds it high.

use parking_lot::Mutex;

/// Lines that a board has: KVM's routing table begins with as many.
pub(super) const GSIS: u32 = 64;

/// How many devices hold each line high.
pub(super) struct Lines([Mutex<u32>; GSIS as usize]);

impl Default for Lines {
    fn default() -> Lines {
        Lines([const { Mutex::new(0) }; GSIS as usize])
    }
}

impl Lines {
    /// Nobody holds any.
    pub(super) fn clear(&mut self) {
        *self = Lines::default();
    }

    /// One driver of `gsi` changed its level. `tell` hears of it if the line did. A line's
    /// lock is taken by nobody else's accesses, only by changes of the same line, and it is held
    /// while `tell` is called, so that two changes are told in their order.
    pub(super) fn drive(&self, gsi: u32, level: bool, tell: impl FnOnce(u32, bool)) {
        let Some(line) = self.0.get(gsi as usize) else { return };
        let mut holders = line.lock();
        let before = *holders;
        *holders = if level { before + 1 } else { before.saturating_sub(1) };
        if (before == 0) != (*holders == 0) {
            tell(gsi, level);
        }
    }

    /// Whether somebody holds `gsi` high.
    pub(super) fn is_high(&self, gsi: u32) -> bool {
        let line = self.0.get(gsi as usize);
        line.is_some_and(|line| *line.lock() != 0)
    }

    /// One driver changed its levels of GSIs 0 to 31 from `before` to `after`.
    pub(super) fn drive_many(&self, before: u32, after: u32, tell: impl Fn(u32, bool)) {
        let mut changed = before ^ after;
        while changed != 0 {
            let gsi = changed.trailing_zeros();
            changed &= changed - 1;
            self.drive(gsi, after >> gsi & 1 == 1, &tell);
        }
    }
}
