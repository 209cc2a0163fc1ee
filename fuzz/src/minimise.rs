//! The least script that still shows something.

use vmm::script::Script;

/// How often a script may be tried, so that a large one ends.
const TRIES: usize = 4000;

/// Removes steps from `script`, in runs that get shorter, as long as `shows` holds for what is
/// left. If it does not hold for the script itself, that is what is returned.
pub fn minimise(script: &Script, shows: impl Fn(&Script) -> bool) -> Script {
    let mut least = script.clone();
    let mut tries = 0;
    let mut run = least.steps.len().div_ceil(2);
    while run > 0 {
        let (mut at, mut shorter) = (0, false);
        while at < least.steps.len() && tries < TRIES {
            let mut tried = least.clone();
            tried.steps.drain(at..(at + run).min(least.steps.len()));
            tries += 1;
            if shows(&tried) {
                (least, shorter) = (tried, true);
            } else {
                at += run;
            }
        }
        // Single steps are gone over until none can go.
        if run > 1 || !shorter || tries >= TRIES {
            run /= 2;
        }
    }
    least
}
