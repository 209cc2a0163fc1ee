//! How inputs that are scripts are varied: operation by operation.
//!
//! An input is a [header](HEADER) and [records](RECORD) that mean what they mean wherever they stand. So
//! they are put in, taken out, doubled, moved and changed one by one, and two inputs are crossed between
//! operations. All of it is a function of its arguments.

use crate::generators::{HEADER, LAWS, RECORD};

/// Numbers that look random (xorshift64*).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed; any will do.
    pub fn new(seed: u64) -> Rng {
        let mixed = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Rng((mixed ^ mixed >> 29) | 1)
    }

    /// 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.number() >> 32) as usize) % n
    }

    /// 8 bits.
    pub fn byte(&mut self) -> u8 {
        (self.number() >> 56) as u8
    }

    /// A record: often with zeros at its end, so that what a byte chooses is the common thing; one in four is
    /// full, for operations that take many values.
    fn record(&mut self) -> [u8; RECORD] {
        let used = if self.below(4) == 0 { RECORD } else { 1 + self.below(RECORD) };
        std::array::from_fn(|i| if i < used { self.byte() } else { 0 })
    }
}

/// Varies an input, to at most `max` bytes. `inner` varies the bytes of one operation in place, beside
/// the ways that there are here: libFuzzer's own mutator, which knows what was compared with what.
pub fn mutate(input: &mut Vec<u8>, max: usize, seed: u64, mut inner: impl FnMut(&mut [u8])) {
    let mut rng = Rng::new(seed);
    if max < HEADER + RECORD {
        input.truncate(max);
        return;
    }
    input.resize(input.len().max(HEADER), 0);
    let body = input.len() - HEADER;
    input.resize(HEADER + body.next_multiple_of(RECORD), 0);
    let most = (max - HEADER) / RECORD;
    for _ in 0..1 + rng.below(4) {
        let n = (input.len() - HEADER) / RECORD;
        let place = |at: usize| HEADER + at * RECORD;
        // A few operations in a row.
        let from = rng.below(n.max(1));
        let run = (1 + rng.below(4)).min(n - from.min(n));
        match rng.below(16) {
            0..=2 => {
                let at = place(rng.below(n + 1));
                input.splice(at..at, rng.record());
            }
            3 | 4 if n > 1 => drop(input.drain(place(from)..place(from + run))),
            5 | 6 if n > 0 => {
                let at = place(rng.below(n + 1));
                input.extend_from_within(place(from)..place(from + run));
                input[at..].rotate_right(run * RECORD);
            }
            7 if n > 1 => {
                // Where it stands when it was taken out.
                match rng.below(n - run + 1) {
                    to if to < from => {
                        input[place(to)..place(from + run)].rotate_right(run * RECORD);
                    }
                    to => input[place(from)..place(to + run)].rotate_left(run * RECORD),
                }
            }
            8..=11 if n > 0 => {
                let byte = &mut input[place(from) + rng.below(RECORD)];
                match rng.below(4) {
                    0 => *byte ^= 1 << rng.below(8),
                    1 => *byte = byte.wrapping_add(1),
                    2 => *byte = byte.wrapping_sub(1),
                    _ => *byte = rng.byte(),
                }
            }
            12 if n > 0 => inner(&mut input[place(from)..place(from + 1)]),
            13 if n > 0 => {
                // Another value for the same operation, or another operation with the same value.
                let cut = 1 + rng.below(RECORD - 1);
                let other = rng.record();
                let record = &mut input[place(from)..place(from + 1)];
                match rng.below(2) {
                    0 => record[cut..].copy_from_slice(&other[cut..]),
                    _ => record[..cut].copy_from_slice(&other[..cut]),
                }
            }
            14 | 15 => match rng.below(4) {
                // All kinds of operation, any, one more, one less; another device.
                0 => input[..2].fill(0),
                1 => input[rng.below(2)] = rng.byte(),
                2 => input[rng.below(2)] ^= 1 << rng.below(8),
                _ => input[2] = rng.byte(),
            },
            _ => {}
        }
    }
    // Not inherited: what asks for costly laws is quickly kept for what it then covers, and all its
    // offspring would be as slow.
    input[LAWS] = rng.byte();
    input.truncate(HEADER + most * RECORD);
}

/// Makes of `out` an input of operations of both, at most `max` bytes: the beginning of one and the end of
/// the other, or by turns.
pub fn cross(one: &[u8], other: &[u8], out: &mut Vec<u8>, max: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let records = |input| <[u8]>::get(input, HEADER..).unwrap_or(&[]).as_chunks::<RECORD>().0;
    let (left, right) = (records(one), records(other));
    let header = if rng.below(2) == 0 { one } else { other };
    out.clear();
    out.extend((0..HEADER).map(|i| header.get(i).copied().unwrap_or(0)));
    if rng.below(2) == 0 {
        out.extend(left[..rng.below(left.len() + 1)].as_flattened());
        out.extend(right[rng.below(right.len() + 1)..].as_flattened());
    } else {
        let (mut left, mut right) = (left, right);
        while !left.is_empty() {
            let (now, later) = left.split_at((1 + rng.below(4)).min(left.len()));
            out.extend(now.as_flattened());
            (left, right) = (right, later);
        }
        out.extend(right.as_flattened());
    }
    // Not inherited: see `mutate`.
    out[LAWS] = rng.byte();
    out.truncate(max);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_stay_whole_and_within_their_bounds() {
        let mut input = Vec::new();
        let mut lens = [0; 9];
        for seed in 0..20_000 {
            let mut inner = |record: &mut [u8]| assert_eq!(record.len(), RECORD);
            mutate(&mut input, 140, seed, &mut inner);
            assert_eq!((input.len() - HEADER) % RECORD, 0);
            lens[(input.len() - HEADER) / RECORD] += 1;
            if seed % 64 == 0 {
                let parent = input.clone();
                cross(&parent, &[7; 100], &mut input, 140, seed);
                assert!(input.len() <= 140);
            }
            if seed % 1000 == 0 {
                input.clear();
            }
        }
        assert!(lens[1..].iter().all(|&n| n > 100), "{lens:?}");
        let mut twice = [input.clone(), input];
        twice.iter_mut().for_each(|input| mutate(input, 1000, 5, |_| {}));
        assert_eq!(twice[0], twice[1]);
        let mut small = vec![1; 19];
        mutate(&mut small, 10, 1, |_| {});
        assert_eq!(small.len(), 10);
    }

    #[test]
    fn crossing_takes_whole_operations_of_both() {
        let (a, b) = (vec![1; HEADER + 5 * RECORD], vec![2; HEADER + 5 * RECORD]);
        let (mut mixed, mut child) = (0, Vec::new());
        for seed in 0..200 {
            cross(&a, &b, &mut child, 1000, seed);
            for record in child[HEADER..].chunks(RECORD) {
                assert!(record == [1; RECORD] || record == [2; RECORD]);
            }
            mixed += usize::from(child[HEADER..].contains(&1) && child[HEADER..].contains(&2));
        }
        assert!(mixed > 100, "{mixed}");
        cross(&[], &[], &mut child, 100, 1);
        assert_eq!(child.len(), HEADER);
    }
}
