//! Saving and restoring a board.

use std::hint::black_box;

use vmm::machine::{IommuConfig, MachineState, PciDevice};
use vmm::ram::{Backing, GuestRam, MIN_SIZE};
use vmm::state::{decode, encode};

use super::{Pair, Scene};
use crate::Rig;

const COPY: &str = "a copy of as many bytes";

pub(super) const SCENES: &[Scene] = &[
    Scene { group: "state", name: "save", against: COPY, make: save },
    Scene { group: "state", name: "restore", against: COPY, make: restore },
    Scene { group: "state", name: "new_board", against: "its memory alone", make: new },
];

fn full() -> Rig {
    Rig::with(Some(PciDevice::ALL.to_vec()), Some(IommuConfig { interrupts: true }))
}

fn copy(bytes: Vec<u8>) -> impl FnMut() {
    move || drop(black_box(black_box(&bytes).clone()))
}

/// The state of a board with all that it can have, as bytes.
fn save() -> Pair {
    let rig = full();
    let bytes = encode(&rig.machine.save());
    assert_eq!(encode(&rig.machine.save()), bytes, "saving twice gives the same");
    Pair::new(move || drop(black_box(encode(&rig.machine.save()))), copy(bytes))
}

/// That state, put back on the same board.
fn restore() -> Pair {
    let mut rig = full();
    let bytes = encode(&rig.machine.save());
    let from = bytes.clone();
    let ours = move || {
        let state: MachineState = decode("machine", black_box(&from)).expect("a state");
        rig.machine.restore(&mut rig.cx, &state).expect("its own state");
    };
    Pair::new(ours, copy(bytes))
}

/// A board, and its end; with 2 MiB of memory that nobody touches.
fn new() -> Pair {
    let memory = || drop(black_box(GuestRam::new(MIN_SIZE, Backing::Auto)));
    Pair::new(|| drop(black_box(full())), memory)
}
