//! No target is blind: each has a bug that it must find from nothing, by the means that a stable compiler
//! has, within a number of inputs that takes seconds. A fuzzer with coverage needs fewer.

use fuzz::hunt::Hunt;
use fuzz::targets::{ALL, arm};

/// The most inputs.
const RUNS: u64 = 150_000;

#[test]
fn every_target_finds_its_canary_from_nothing() {
    arm();
    // What each canary says when it dies is told below, once.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut lines = Vec::new();
    let mut blind = Vec::new();
    for target in ALL {
        let mut hunt = Hunt::new(target, 1, 24);
        let found = (0..RUNS).find_map(|_| hunt.step().err());
        match found {
            Some(found) if found.says.starts_with("the canary is dead") => {
                lines.push(format!(
                    "{}: {} inputs, {} kept",
                    target.name,
                    hunt.runs,
                    hunt.corpus().len()
                ));
            }
            Some(found) => {
                blind.push(format!("{} finds something else: {}", target.name, found.says))
            }
            None => blind.push(format!("{} is blind: {} kept", target.name, hunt.corpus().len())),
        }
    }
    std::panic::set_hook(hook);
    println!("{}", lines.join("\n"));
    assert!(blind.is_empty(), "{}", blind.join("\n"));
}
