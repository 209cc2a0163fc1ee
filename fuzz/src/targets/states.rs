//! Saved states, as a snapshot's reader meets them.

use vmm::machine::{Context, MachineState};
use vmm::script::replay::Player;
use vmm::script::{BoardSpec, Op};
use vmm::state;

use super::{Said, Subject, Target, beyond, whole};
use crate::generators::{HEADER, RECORD};
use crate::rig;

pub static SNAPSHOT: Target = Target {
    name: "snapshot",
    about: "a board's saved state, with bytes of it changed",
    subject: Subject::Bytes {
        make: whole,
        check: |b| changed(b).map(drop),
        // A state that no device saved is taken.
        canary: |b| changed(b) == Ok(true),
    },
    sources: &["vmm/src/state.rs"],
    beyond: &[&[
        beyond("used", "", "for the edu device's buffer, which is not on this board"),
        beyond("decode", "begins with 255", "a flaw that only the feature `planted` has"),
    ]],
    floor: 90,
    uncovered: "",
    words: &[b"com1", b"rtc", b"i8042", b"acpi-pm", b"fw-cfg", b"testdev"],
    seeds: Vec::new,
};

/// The most operations before a board is saved.
const OPS: usize = 16;

/// One byte that says nothing, bytes about a device and a number of operations, so many operations, and then
/// changes of 4 bytes each to what that device saved. What was saved must be taken back; what was changed
/// then may be refused, and that is no refusal of the input. Whether it was taken, and is another state.
fn changed(bytes: &[u8]) -> Result<bool, String> {
    let mut rest = bytes.get(1..).unwrap_or(&[]);
    let mut byte = || {
        let (&first, left) = rest.split_first().unwrap_or((&0, &[]));
        rest = left;
        usize::from(first)
    };
    let (which, ops) = (byte(), byte() % (OPS + 1));
    let header = if ops == 0 { 0 } else { HEADER };
    let (script, changes) = rest.split_at(rest.len().min(header + ops * RECORD));
    rig::with(BoardSpec::default, |rig| {
        let mut player = rig.take();
        let generated = rig.play(script, &mut player);
        generated.played.unwrap_or_else(|violation| panic!("{violation}\n{}", generated.script));
        let mut saved = player.machine().save();
        let at = which % saved.devices.len();
        if let Err(why) = restored(&mut player, &saved, at) {
            rig.give_back(player);
            return Err(why);
        }
        let sound = saved.devices[at].1.clone();
        for change in changes.as_chunks::<4>().0.iter().take(8) {
            damage(&mut saved.devices[at].1, *change);
        }
        let differs = saved.devices[at].1 != sound;
        let taken = differs && restored(&mut player, &saved, at).is_ok();
        if taken {
            // What is taken is a state like any other, and goes on.
            for op in [Op::Timer, Op::Advance(1 << 40), Op::Timer, Op::SaveRestore, Op::Reset] {
                player.step(&op);
            }
        }
        rig.give_back(player);
        Ok(taken)
    })
}

fn damage(state: &mut Vec<u8>, [low, high, how, value]: [u8; 4]) {
    let at = (usize::from(low) | usize::from(high) << 8) % state.len().max(1);
    match (how % 4, state.get_mut(at)) {
        (0 | 1, Some(byte)) => *byte = value,
        (2, Some(byte)) => *byte ^= 1 << (value & 7),
        (_, _) if how & 0x80 == 0 => state.insert(at.min(state.len()), value),
        (_, _) => state.truncate(at),
    }
}

/// Restores a board; or why it refuses.
fn restored(player: &mut Player<'_>, saved: &MachineState, at: usize) -> Said {
    // Through bytes, as a file would have it.
    let encoded = state::encode(saved);
    let saved: MachineState = state::decode("machine", &encoded).expect("what was encoded");
    let mut cx = Context::new();
    player.machine().restore(&mut cx, &saved).map_err(|e| e.to_string())?;
    let again = player.machine().save();
    assert_eq!(again.devices[at], saved.devices[at], "what is restored is saved again");
    Ok(())
}
