//! Inputs for the tests that run without a fuzzer.

/// Input number `n`: always the same bytes, of various lengths (xorshift64).
pub fn input(n: u64) -> Vec<u8> {
    let mut state = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let len = usize::from(next()) * 6;
    // Half of the inputs leave no kind of operation out.
    let swarm = if n.is_multiple_of(2) { 2 } else { 0 };
    (0..len).map(|i| if i < swarm { 0 } else { next() }).collect()
}
