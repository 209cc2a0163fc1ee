//! Where Hyper-V's synthetic interrupt controllers may write: the pages that the guest gave them (Top Level
//! Functional Specification, 11.8.2 and 11.8.3), and nowhere else.

use vmm::exit::Exit;
use vmm::script::Op;
use vmm::script::replay::Touch;

use super::{Model, Seen};

/// The pages of a virtual processor: event flags and messages.
type Pages = [Option<u64>; 2];

#[derive(Default)]
pub(super) struct Synic {
    /// By their processors; most scripts have none.
    processors: Vec<(u16, Pages)>,
    is_called: bool,
}

/// The page of a register, if bit 0 says that it is enabled. One is made zeroes when it is, whether or not the
/// controller is enabled yet.
fn page(register: u64) -> Option<u64> {
    (register & 1 == 1).then_some(register & !0xfff)
}

impl Model for Synic {
    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        self.is_called = true;
        match *seen.op {
            Op::Exit { exit: Exit::HypervCall { .. }, .. } | Op::Timer => {}
            Op::Exit { exit: Exit::HypervSynic { vp, events, messages, .. }, .. } => {
                let pages = [page(events), page(messages)];
                match self.processors.iter_mut().find(|(of, _)| *of == vp) {
                    Some((_, there)) => *there = pages,
                    None => self.processors.push((vp, pages)),
                }
            }
            _ => self.is_called = false,
        }
        if *seen.op == Op::Reset {
            self.processors.clear();
        }
        Ok(())
    }

    fn offers(&self, touch: &Touch) -> bool {
        let inside = |page: &u64| {
            touch.addr >= *page && touch.len <= 4096 && touch.addr - page <= 4096 - touch.len
        };
        self.is_called
            && self.processors.iter().any(|(_, pages)| pages.iter().flatten().any(inside))
    }
}
