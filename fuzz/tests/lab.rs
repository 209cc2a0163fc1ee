//! The decoder of lab requests, on inputs that no fuzzer chose.

mod common;

use common::input;
use fuzz::lab::check;

#[test]
fn requests_are_bounded_or_refused() {
    let (mut good, mut bad) = (0, 0);
    for n in 0..20_000 {
        let mut bytes = input(n);
        bytes.resize(96, 0);
        bytes[4] %= 24;
        // Mostly small numbers, as a guest's arguments are.
        for (i, arg) in bytes[32..].chunks_exact_mut(8).enumerate() {
            let keep = if n >> i & 1 == 0 { 0 } else { 1 + n as usize % 3 };
            arg[keep..].fill(0);
        }
        *if check(&bytes) { &mut good } else { &mut bad } += 1;
    }
    // A generator that reaches nothing finds nothing, and looks well.
    assert!(good > 1000 && bad > 1000, "{good} requests, {bad} refused");
}

#[test]
fn nothing_is_no_request() {
    assert!(!check(&[]));
}
