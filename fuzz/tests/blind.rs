//! No target is blind: each has a bug that it must find from nothing, by the means that a stable compiler
//! has, within a number of inputs that takes seconds. A fuzzer with coverage needs fewer. A hunt may get lost,
//! so another may begin from nothing, twice.

use fuzz::hunt::Hunt;
use fuzz::targets::{ALL, arm};

/// The most inputs of a hunt.
const RUNS: u64 = 150_000;
/// What the hunts draw from, one after the other.
const SEEDS: [u64; 3] = [1, 2, 3];

#[test]
fn every_target_finds_its_canary_from_nothing() {
    arm();
    // What each canary says when it dies is told below, once.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut lines = Vec::new();
    let mut blind = Vec::new();
    for target in ALL {
        let found = SEEDS.into_iter().enumerate().find_map(|(n, seed)| {
            let mut hunt = Hunt::new(target, seed, 24);
            let found = (0..RUNS).find_map(|_| hunt.step().err())?;
            Some((found, n as u64 * RUNS + hunt.runs))
        });
        match found {
            Some((found, runs)) if found.says.starts_with("the canary is dead") => {
                lines.push(format!("{}: {runs} inputs", target.name));
            }
            Some((found, _)) => {
                blind.push(format!("{} finds something else: {}", target.name, found.says))
            }
            None => blind.push(format!("{} is blind", target.name)),
        }
    }
    std::panic::set_hook(hook);
    println!("{}", lines.join("\n"));
    assert!(blind.is_empty(), "{}", blind.join("\n"));
}
