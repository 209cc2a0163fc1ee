//! Scripts: reading one, and playing it.

use std::hint::black_box;

use vmm::script::replay::{self, board};
use vmm::script::{Op, parse};

use super::{Pair, Scene};
use crate::Rig;

pub(super) const SCENES: &[Scene] = &[
    Scene { group: "script", name: "parse", against: "splitting its lines", make: read },
    Scene { group: "script", name: "replay", against: "its exits alone", make: play },
];

/// Operations of the script.
const OPERATIONS: usize = 500;

/// What a guest that prints, asks for the time and looks at its devices does.
fn text() -> String {
    const LINES: [&str; 5] = [
        "out 0x3f8 1 0x41\n",
        "in 0x3fd 1\n",
        "out 0x70 1 0xd\n",
        "in 0x71 1\n",
        "write 0xff000010 4 0x12345678\n",
    ];
    let mut text = String::from("# exitlab script 1\nmachine pc memory=2M cpus=1 unix-time=0\n");
    text.extend((0..OPERATIONS).map(|i| LINES[i % LINES.len()]));
    text
}

fn read() -> Pair {
    let text = text();
    let same = text.clone();
    let ours = move || {
        let script = parse(black_box(text.as_bytes())).expect("a script");
        assert_eq!(script.steps.len(), OPERATIONS);
    };
    let bare = move || {
        let words = black_box(&same).lines().map(|line| line.split(' ').count());
        black_box(words.sum::<usize>());
    };
    Pair::new(ours, bare)
}

fn play() -> Pair {
    let script = parse(text().as_bytes()).expect("a script");
    let exits: Vec<_> = script
        .steps
        .iter()
        .filter_map(|step| match &step.op {
            Op::Exit { exit, .. } => Some(*exit),
            _ => None,
        })
        .collect();
    assert_eq!(exits.len(), OPERATIONS);
    let ours = move || {
        let trace = replay::run(black_box(&script), &board).expect("a board");
        assert_eq!(trace.outcomes.len(), OPERATIONS);
    };
    let bare = move || {
        let mut rig = Rig::new();
        for exit in &exits {
            black_box(rig.machine.handle(&mut rig.cx, black_box(exit)));
        }
    };
    Pair::new(ours, bare)
}
