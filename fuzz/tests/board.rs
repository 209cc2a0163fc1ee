//! The PC board obeys the laws: on inputs that no fuzzer chose.

mod common;

use common::input;
use fuzz::oracles::Restores;
use fuzz::{Board, generators, oracles};
use vmm::access::{Access, Dir};
use vmm::bus::Mapping;
use vmm::exit::Exit;
use vmm::script::replay::Player;
use vmm::script::{Answer, Effect, Op};

#[test]
fn the_pc_obeys_the_laws() {
    for board in [Board::pc(), Board::pci()] {
        for n in 0..300 {
            let generated = generators::script(&input(n), &board);
            if let Err(violation) = oracles::generated(&generated, &board, Restores::Each) {
                panic!("input {n}: {violation}\n{}", generated.script);
            }
        }
    }
}

#[test]
fn an_empty_input_is_one_read() {
    let board = Board::pc();
    let generated = generators::script(&[], &board);
    assert!(matches!(&generated.script.steps[..], [step] if matches!(step.op, Op::Exit { .. })));
    oracles::generated(&generated, &board, Restores::Each).expect("a boring script");
}

/// A generator that reaches nothing finds nothing, and looks well.
#[test]
fn the_inputs_reach_what_there_is() {
    for board in [Board::pc(), Board::pci()] {
        reach(&board);
    }
}

fn reach(board: &Board<'_>) {
    let player = Player::new(&board.spec, board.build).expect("a PC");
    let mappings: Vec<_> = player.machine().mappings().collect();
    let mut met = vec![[0; 2]; mappings.len()];
    let mut seen = [0; 6];
    for n in 0..400 {
        let generated = generators::script(&input(n), board);
        let outcomes = generated.played.expect("no law broken");
        for (step, outcome) in generated.script.steps.iter().zip(&outcomes) {
            if let Op::Exit { exit: Exit::Io(Access { space, addr, dir, .. }), .. } = step.op {
                let here = |m: &Mapping| {
                    m.region.space == space && addr.wrapping_sub(m.base) < m.region.len
                };
                if let Some(at) = mappings.iter().position(here) {
                    met[at][usize::from(dir != Dir::Read)] += 1;
                }
            }
            seen[0] += usize::from(matches!(outcome.answer, Answer::Stop(_)));
            for effect in &outcome.effects {
                match effect {
                    Effect::Line { .. } => seen[1] += 1,
                    Effect::Output { .. } => seen[2] += 1,
                    Effect::Deadline(_) => seen[3] += 1,
                    Effect::Remap(_) => seen[4] += 1,
                    Effect::Sint { .. } => seen[5] += 1,
                    // It takes more luck than there is here.
                    Effect::Message { .. } | Effect::AwaitEnd { .. } => {}
                }
            }
        }
    }
    for (mapping, met) in mappings.iter().zip(&met) {
        let (name, base) = (mapping.region.name, mapping.base);
        assert!(met.iter().all(|&n| n >= 20), "{name} at {base:#x}: {met:?} reads and writes");
    }
    assert!(
        seen.iter().all(|&n| n >= 20),
        "stops, lines, output, deadlines, remaps, sints: {seen:?}"
    );
}
