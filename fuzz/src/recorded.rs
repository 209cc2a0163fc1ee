//! Recorded runs as inputs: what a guest did to the devices of a target's board.
//!
//! A recording is of the whole PC, and mostly of its serial port. Of it a target takes what goes to its
//! own devices, and what the world did meanwhile; a place that is something else on its board is left out.

use std::collections::BTreeSet;

use vmm::bus::Mapping;
use vmm::exit::Exit;
use vmm::script::replay::Player;
use vmm::script::{Op, Script, Step};

use crate::generators;
use crate::targets::Target;

/// The least accesses of an input that is worth keeping.
const LEAST: usize = 3;
/// Of the same access in a row, as many as this.
const ALIKE: usize = 4;

/// Inputs for a target, each of at most `ops` operations; none if nothing in the recording is for it, or
/// the target takes no scripts.
///
/// # Panics
/// When the target's board cannot be built.
pub fn inputs(script: &Script, target: &Target, ops: usize) -> Vec<Vec<u8>> {
    let Some(board) = target.board() else { return Vec::new() };
    let player = Player::new(&board.spec, board.build).expect("a target's board");
    let machine = player.machine();
    let mappings: Vec<Mapping> = machine.mappings().collect();
    let devices: Vec<&str> = machine.devices().collect();
    let is_here = |op: &Op| match op {
        Op::Exit { exit: Exit::Io(access), .. } => mappings.iter().any(|m| m.takes(access)),
        Op::Input { device, .. } => devices.contains(&&device[..]),
        Op::Ram { addr, bytes, after } => {
            *after == 0 && addr.saturating_add(bytes.len() as u64) <= board.spec.memory
        }
        Op::Exit { .. } => false,
        Op::Advance(_) | Op::Timer | Op::SaveRestore | Op::Reset => true,
    };
    let mut kept: Vec<Step> = Vec::new();
    for step in script.steps.iter().filter(|step| is_here(&step.op)) {
        // A guest that waits asks the same over and over.
        let before = kept.len().saturating_sub(2 * ALIKE);
        let alike = kept[before..].iter().filter(|other| other.op == step.op).count();
        if alike < ALIKE {
            kept.push(Step::new(step.op.clone()));
        }
    }
    let accesses =
        |steps: &[Step]| steps.iter().filter(|step| matches!(step.op, Op::Exit { .. })).count();
    let all: BTreeSet<Vec<u8>> = kept
        .chunks(ops)
        .filter(|steps| accesses(steps) >= LEAST)
        .map(|steps| {
            let script = Script::new(board.spec.clone(), steps.iter().map(|step| step.op.clone()));
            generators::encode(&script, &devices)
        })
        .collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets;
    use vmm::access::{Access, Size, Space};

    #[test]
    fn a_target_takes_what_is_for_its_devices() {
        let out = |port, value| Op::io(Access::write(Space::Port, port, Size::B1, value));
        let read = |port| Op::io(Access::read(Space::Port, port, Size::B1));
        let mut ops = vec![out(0x70, 4), Op::Advance(5), read(0x71), out(0x70, 2), read(0x71)];
        ops.extend((0..20).map(|i| out(0x3f8, i)));
        ops.extend((0..50).map(|_| read(0x71)));
        let script = Script::new(vmm::script::BoardSpec::default(), ops);
        let of = |name| targets::named(name).expect("a target");
        let rtc = inputs(&script, of("rtc"), 64);
        assert_eq!(rtc.len(), 1);
        let board = of("rtc").board().expect("a board");
        let played = generators::script(&rtc[0], &board);
        let shown = played.script.to_string();
        assert!(shown.contains("out 0x70 1 0x4") && !shown.contains("0x3f8"), "{shown}");
        assert!(played.script.steps.len() < 12, "what is alike goes: {shown}");
        // Of 20 bytes of output, eight at a time.
        assert_eq!(inputs(&script, of("uart"), 8).len(), 3);
        assert!(inputs(&script, of("post"), 8).is_empty());
        assert!(inputs(&script, of("options"), 8).is_empty());
    }
}
