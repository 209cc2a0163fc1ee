//! What leaves the guest, or has KVM do something, one kind a test: made a few times, and held against what
//! must come of it. With `rounds=1` it is made as often as the host says, which takes the time
//! (`cargo bench -p benches --bench exits`).
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod accesses;
mod instructions;
mod interrupts;
mod nested;

use payload_rt::{boot, port, rounds};

/// How often it is made where no host says.
const FEW: u32 = 5;

/// Makes `trip` as often as the host says, again and again; gives how often in all.
#[inline(always)]
fn rounds(mut trip: impl FnMut()) -> u32 {
    if boot::number(rounds::CMDLINE).is_none() {
        for _ in 0..FEW {
            trip();
        }
        return FEW;
    }
    let mut all = 0u32;
    loop {
        let round = port::in32(rounds::PORT);
        if round == 0 {
            return all;
        }
        for _ in 0..round {
            trip();
        }
        all = all.wrapping_add(round);
    }
}
