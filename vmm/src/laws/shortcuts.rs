//! [`Device::look`] and [`Device::keep`] are short ways to what [`Device::read`] and [`Device::write`] do: the
//! board takes them, so all that is known of a device holds only if they come to the same.

use super::{Answer, Law, Op, Violation};
use crate::device::{Action, At, Device, Told};

/// What can be seen of a device, and its state.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    told: Told,
    room: usize,
    state: Vec<u8>,
}

impl Seen {
    fn of<D: Device>(device: &D) -> Seen {
        Seen { told: Told::of(device), room: device.input_room(), state: device.save() }
    }
}

/// What a short way gave before an operation, and how the device was; if there was one.
pub(super) enum Shortcut {
    None,
    /// What a look at a register gave.
    Looked(u64, Seen),
    /// What a copy is after it kept what is written.
    Kept(Seen, Seen),
}

impl Shortcut {
    pub(super) fn of<D: Device>(device: &D, make: fn() -> D, op: &Op) -> Shortcut {
        match *op {
            Op::Read { region, offset, size } => match device.look(At { region, offset }, size) {
                Some(value) => Shortcut::Looked(value & size.mask(), Seen::of(device)),
                None => Shortcut::None,
            },
            Op::Write { region, offset, size, value } => {
                let (before, mut copy) = (Seen::of(device), make());
                // Whether it takes its own state is another law.
                let kept = copy.restore(&before.state).is_ok()
                    && copy.keep(At { region, offset }, size, value & size.mask());
                if kept { Shortcut::Kept(before, Seen::of(&copy)) } else { Shortcut::None }
            }
            _ => Shortcut::None,
        }
    }

    /// The operation did the same, and what can be seen of the device beside is as before.
    pub(super) fn check<D: Device>(
        self,
        device: &D,
        answer: &Answer,
        actions: &[Action],
    ) -> Result<(), Violation> {
        let after = Seen::of(device);
        let (before, expected, same) = match self {
            Shortcut::None => return Ok(()),
            Shortcut::Looked(value, before) => {
                let same = *answer == Answer::Read(Ok(value)) && after == before;
                (before, format!("look() gives {value:#x}"), same)
            }
            Shortcut::Kept(before, kept) => {
                let quiet = (after.told, after.room) == (before.told, before.room);
                let same = *answer == Answer::Wrote(Ok(())) && after == kept && quiet;
                (before, format!("keep() leaves {kept:x?}"), same)
            }
        };
        if same && actions.is_empty() {
            return Ok(());
        }
        Err(Law::Shortcuts.broken(format!(
            "{expected}, but the access itself gives {answer:x?}, asks for {actions:?}, and makes {after:x?} of \
             {before:x?}"
        )))
    }
}
