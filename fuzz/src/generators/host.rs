//! What is no guest's: host input, and time.

use vmm::script::Op;

use super::Generator;

/// The latest time that a script goes to, in nanoseconds: 146 years. What happens when 64 bits of
/// nanoseconds end is nobody's business.
const END_OF_TIME: u64 = 1 << 62;

impl Generator<'_, '_, '_> {
    /// Whether a device of this board takes input, or has.
    pub(super) fn hears(&mut self) -> bool {
        let machine = self.player.machine();
        let open = |name: &'static str| machine.input_room(name).is_some_and(|room| room > 0);
        self.heard = self.heard || machine.devices().any(open);
        self.heard
    }

    pub(super) fn input(&mut self) {
        let machine = self.player.machine();
        let open = |name: &&'static str| machine.input_room(name).is_some_and(|room| room > 0);
        // Who takes input now; or, if nobody does, anybody.
        let which = usize::from(self.record.get(self.at).copied().unwrap_or(0));
        self.at += 1;
        let (all, takers) = (machine.devices().count(), machine.devices().filter(open).count());
        let device = match takers {
            0 => machine.devices().nth(which % all.max(1)),
            n => machine.devices().filter(open).nth(which % n),
        };
        let Some(device) = device else { return self.nowhere() };
        let n = usize::from(self.byte() % 20);
        let bytes = (0..n).map(|_| self.byte()).collect();
        self.play(Op::Input { device: device.into(), bytes });
    }

    pub(super) fn by(&mut self, by: u64) {
        let now = self.player.machine().now();
        self.play(Op::Advance(by.min(END_OF_TIME.saturating_sub(now))));
    }

    /// Time goes to the next deadline, and `off` beyond it (or short of it).
    pub(super) fn at_deadline(&mut self, off: i64) {
        let machine = self.player.machine();
        let (now, next) = (machine.now(), machine.next_deadline());
        let by = next.map_or(1000, |at| at.saturating_sub(now));
        self.by(by.saturating_add_signed(off));
    }

    pub(super) fn advance(&mut self) {
        match self.byte() % 8 {
            0 => self.by(1000),
            1 => self.by(1),
            2 => self.at_deadline(0),
            3 => self.at_deadline(-1),
            4 => self.at_deadline(1),
            5 => {
                let exponent = u32::from(self.byte() % 12);
                self.by(10u64.pow(exponent));
            }
            6 => {
                let by = self.word() * 1000;
                self.by(by);
            }
            _ => {
                let bits = self.byte() % 63;
                self.by(1 << bits);
            }
        }
    }
}
