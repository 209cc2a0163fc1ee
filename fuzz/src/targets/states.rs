//! Saved states, as a snapshot's reader meets them.

use vmm::machine::MachineState;
use vmm::script::{BoardSpec, Op};
use vmm::state;

use super::{Said, Subject, Target, whole};
use crate::forms::{How, how};
use crate::{generators, rig};

pub static SNAPSHOT: Target = Target {
    name: "snapshot",
    about: "a board's saved state, with bytes of it changed",
    subject: Subject::Bytes { make: whole, check, canary: |b| b.len() > 16 && check(b).is_ok() },
    sources: &["vmm/src/state.rs"],
    beyond: &[],
    floor: 90,
    uncovered: "",
    words: &[b"com1", b"rtc", b"i8042", b"acpi-pm", b"fw-cfg", b"testdev"],
    seeds: Vec::new,
};

/// What follows the first byte is a script, after which the board is saved. In a damaged state one device's
/// is changed, by 4 bytes each; which, is what the second byte says. Whether the board takes it back.
fn check(bytes: &[u8]) -> Said {
    let (how, rest) = how(bytes);
    let (&which, rest) = rest.split_first().unwrap_or((&0, &[]));
    rig::with(BoardSpec::default, |rig| {
        let mut player = rig.take();
        let script = if how == How::Raw { &[] } else { rest };
        let generated = generators::play(script, rig.board(), &mut player);
        generated.played.unwrap_or_else(|violation| panic!("{violation}\n{}", generated.script));
        let mut saved = player.machine().save();
        let at = usize::from(which) % saved.devices.len();
        let state = &mut saved.devices[at].1;
        let changes = if how == How::Sound { &[] } else { rest };
        for change in changes.as_chunks::<4>().0.iter().take(8) {
            let [low, high, how, value] = *change;
            let at = (usize::from(low) | usize::from(high) << 8) % state.len().max(1);
            match (how % 4, state.get_mut(at)) {
                (0 | 1, Some(byte)) => *byte = value,
                (2, Some(byte)) => *byte ^= 1 << (value & 7),
                (_, _) if how & 0x80 == 0 => state.insert(at.min(state.len()), value),
                (_, _) => state.truncate(at),
            }
        }
        // Through bytes, as a file would have it.
        let encoded = state::encode(&saved);
        let saved: MachineState = state::decode("machine", &encoded).expect("what was encoded");
        let mut cx = vmm::machine::Context::new();
        if let Err(e) = player.machine().restore(&mut cx, &saved) {
            rig.give_back(player);
            return Err(e.to_string());
        }
        // What is taken is a state like any other: it is saved as it was, and goes on.
        let again = player.machine().save();
        assert_eq!(again.devices[at], saved.devices[at], "what is restored is saved again");
        for op in [Op::Timer, Op::Advance(1 << 40), Op::Timer, Op::SaveRestore, Op::Reset] {
            player.step(&op);
        }
        rig.give_back(player);
        Ok(())
    })
}
