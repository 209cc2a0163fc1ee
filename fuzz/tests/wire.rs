//! The decoder of an emulated host's messages, on inputs that no fuzzer chose.

mod common;

use common::input;
use fuzz::wire::{Piece, check, stream};

#[test]
fn whole_messages_are_found_whatever_surrounds_them() {
    let (mut messages, mut garbage, mut kinds) = (0, 0, [0; 5]);
    for n in 0..3000 {
        let (found, left) = check(&input(n));
        messages += found;
        garbage += left;
        for piece in stream(&input(n)).0 {
            kinds[match piece {
                Piece::Whole(_) => 0,
                Piece::Damaged(..) => 1,
                Piece::Around(_) => 2,
                Piece::Garbage(_) => 3,
                Piece::Beginning(_) => 4,
            }] += 1;
        }
    }
    // A generator that reaches nothing finds nothing, and looks well.
    assert!(messages > 1000 && garbage > 10_000, "{messages} messages, {garbage} bytes of garbage");
    assert!(kinds.iter().all(|&n| n > 1000), "{kinds:?}");
}

#[test]
fn nothing_is_a_stream() {
    assert_eq!(check(&[]), (0, 0));
}
