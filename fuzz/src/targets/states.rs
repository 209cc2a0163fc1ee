//! Saved states, as a snapshot's reader meets them.

use std::borrow::Cow;

use vmm::machine::{Context, MachineState};
use vmm::script::replay::Player;
use vmm::script::{Answer, BoardSpec, Op};
use vmm::state;

use super::{Said, Subject, Target, whole};
use crate::generators::{EDGES, HEADER, RECORD};
use crate::mutate::{self, Rng};
use crate::{generators, rig};

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
    beyond: &[],
    floor: 90,
    uncovered: "",
    words: &[],
    seeds: Vec::new,
};

/// Bytes that choose a board, a device and how many changes there are; the first says nothing.
const HEAD: usize = 4;
/// There is room for so many changes, of so many bytes each.
const CHANGES: usize = 4;
const CHANGE: usize = 4;
/// Where the script begins.
const SCRIPT: usize = HEAD + CHANGES * CHANGE;
/// The most operations of it.
const OPS: usize = 16;

/// The boards whose states there are.
fn boards() -> impl Iterator<Item = fn() -> BoardSpec> {
    super::ALL.iter().filter_map(|target| match target.subject {
        Subject::Board { spec, .. } => Some(spec),
        Subject::Bytes { .. } => None,
    })
}

/// A script is played on a board, mostly about one device. What was saved then must be taken back. What that
/// device saved is changed then, and may be refused, which is no refusal of the input; where it is taken,
/// it is a state like any other, and the script goes on from there. Whether it was taken, and is another
/// state.
fn changed(bytes: &[u8]) -> Result<bool, String> {
    let at = |at: usize| usize::from(bytes.get(at).copied().unwrap_or(0));
    let (board, which, many) = (at(1), at(2), 1 + at(3) % CHANGES);
    let (head, script) = bytes.split_at(bytes.len().min(SCRIPT));
    let changes = head.get(HEAD..).unwrap_or(&[]).as_chunks::<CHANGE>().0;
    let mut script = script[..script.len().min(HEADER + OPS * RECORD)].to_vec();
    let spec = boards().nth(board % boards().count()).expect("a number below theirs");
    rig::with(spec, |rig| {
        let mut player = rig.take();
        let devices = player.machine().devices().count();
        if let (Some(focus), true) = (script.get_mut(generators::FOCUS), which % 4 != 3) {
            *focus = (which % devices + devices) as u8;
        }
        let generated = rig.play(&script, &mut player);
        generated.played.unwrap_or_else(|violation| panic!("{violation}\n{}", generated.script));
        let mut saved = player.machine().save();
        let now = player.machine().now();
        rig.give_back(player);
        let mut player = rig.take();
        player.step(&Op::Advance(now));
        let at = which % saved.devices.len();
        if let Err(why) = restored(&mut player, &saved, at) {
            rig.give_back(player);
            return Err(why);
        }
        let sound = saved.devices[at].1.clone();
        for change in changes.iter().take(many) {
            damage(&mut saved.devices[at].1, *change);
        }
        let differs = saved.devices[at].1 != sound;
        let taken = differs && restored(&mut player, &saved, at).is_ok();
        if taken {
            goes_on(&mut player, &script, rig.board(), &saved.devices[at]);
        }
        rig.give_back(player);
        Ok(taken)
    })
}

/// A board that took up a state is one like any other.
fn goes_on(
    player: &mut Player<'_>,
    script: &[u8],
    board: &crate::Board<'_>,
    (name, state): &(Cow<'_, str>, Vec<u8>),
) {
    let taken = || format!("device `{name}` took up the state {state:02x?}");
    let generated = generators::go_on(script, board, player);
    if let Err(violation) = generated.played {
        panic!("{violation}\n{}\n{}", taken(), generated.script);
    }
    for op in [Op::Timer, Op::Advance(1 << 40), Op::Timer, Op::SaveRestore, Op::Reset] {
        let refused = player.step(&op).answer == Answer::Refused;
        assert!(!refused, "{}, and then refuses `{op}`: {:?}", taken(), player.refusal());
    }
}

/// Varies an input of at most `max` bytes: the script operation by operation, what comes before it byte by byte,
/// or all of it as `inner` does. Returns its new length.
pub fn vary(
    data: &mut [u8],
    size: usize,
    max: usize,
    seed: u32,
    inner: fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    let mut rng = Rng::new(seed.into());
    if max < SCRIPT + HEADER + RECORD || rng.below(8) == 0 {
        return inner(data, size, max);
    }
    let mut head = data[..size].to_vec();
    head.resize(size.max(SCRIPT), 0);
    let mut script = head.split_off(SCRIPT);
    if rng.below(2) == 0 {
        for _ in 0..1 + rng.below(4) {
            head[rng.below(SCRIPT)] = rng.byte();
        }
    } else {
        let most = (max - SCRIPT).min(HEADER + OPS * RECORD);
        mutate::mutate(&mut script, most, rng.number(), |record| {
            let len = record.len();
            inner(record, len, len);
        });
    }
    let varied = [head, script].concat();
    data[..varied.len()].copy_from_slice(&varied);
    varied.len()
}

/// Makes of `out` an input of two, at most `max` bytes: what comes before the script is of one of them.
pub fn cross(one: &[u8], other: &[u8], out: &mut Vec<u8>, max: usize, seed: u64) {
    let [(head, one), (_, other)] =
        [one, other].map(|input| input.split_at(input.len().min(SCRIPT)));
    mutate::cross(one, other, out, max, seed);
    let head: [u8; SCRIPT] = std::array::from_fn(|at| head.get(at).copied().unwrap_or(0));
    out.splice(0..0, head);
    out.truncate(max);
}

/// Changes a byte, or a number: in a saved state those of more than 8 bits have 7 in each byte, and all but
/// the last of it have bit 7 set.
fn damage(state: &mut Vec<u8>, [low, high, how, value]: [u8; CHANGE]) {
    let at = (usize::from(low) | usize::from(high) << 8) % state.len().max(1);
    // Registers come last, and first.
    let at = if how & 0x40 == 0 { at } else { state.len().saturating_sub(1 + at % 64) };
    let Some(byte) = state.get_mut(at) else { return state.push(value) };
    let number = |new: fn(u64, u8) -> u64, state: &mut Vec<u8>| {
        let more = state[at..].iter().take(9).take_while(|byte| **byte >= 0x80).count();
        let end = (at + more + 1).min(state.len());
        let digits = state[at..end].iter().enumerate();
        let old = digits.fold(0, |all, (n, byte)| all | u64::from(byte & 0x7f) << (7 * n));
        state.splice(at..end, state::encode(&new(old, value)));
    };
    match how % 16 {
        0..3 => *byte = value,
        3..5 => *byte ^= 1 << (value & 7),
        5 => *byte = byte.wrapping_add_signed(value as i8),
        6 => number(|_, n| EDGES[usize::from(n) % EDGES.len()], state),
        7 => number(|_, n| (1 << (n % 64)) - u64::from(n >> 7), state),
        8 => number(|old, n| old.wrapping_add_signed(i64::from(n as i8)), state),
        9 => number(|old, n| old ^ 1 << (n % 64), state),
        10 => number(|old, n| (old | 1) << (n % 64), state),
        11 => state.insert(at, value),
        12 => drop(state.remove(at)),
        13 => state.truncate(at),
        // Another item of a list, or one less.
        14 => {
            let end = (at + usize::from(value % 64)).min(state.len());
            let again = state[at..end].to_vec();
            state.splice(at..at, again);
        }
        _ => drop(state.drain(at..(at + usize::from(value % 64)).min(state.len()))),
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
