//! Decides which case starts next: as many side by side as the processors carry.

use std::cmp::Reverse;
use std::collections::VecDeque;

/// Cases waiting for processors. A case weighs as many as it has vCPUs, the whole machine at most.
///
/// The slow ones start first: they sleep most of their time, and nobody waits for them at the end.
/// Then the heavy ones: they cannot be starved by light ones, and the light ones fill the gaps.
#[derive(Clone, Debug)]
pub struct Schedule {
    capacity: usize,
    free: usize,
    /// Index and weight: the slow ones, then heaviest first, by index within a weight.
    waiting: VecDeque<(usize, usize)>,
}

impl Schedule {
    /// Takes the weights of all cases, and which of them are slow; `capacity` is at least 1.
    pub fn new(capacity: usize, cases: impl IntoIterator<Item = (usize, bool)>) -> Schedule {
        let capacity = capacity.max(1);
        let mut waiting: Vec<_> = cases
            .into_iter()
            .enumerate()
            .map(|(index, (weight, slow))| (!slow, Reverse(weight.clamp(1, capacity)), index))
            .collect();
        waiting.sort();
        let waiting = waiting.into_iter().map(|(_, Reverse(weight), index)| (index, weight));
        Schedule { capacity, free: capacity, waiting: waiting.collect() }
    }

    /// The next case that fits now and its weight; it holds its weight until [`Schedule::done`].
    pub fn start(&mut self) -> Option<(usize, usize)> {
        // If the heaviest does not fit because others run, lighter ones do not overtake it: it would
        // wait for ever. With equal weights this never leaves room unused.
        let (index, weight) = *self.waiting.front()?;
        if weight > self.free {
            return None;
        }
        self.waiting.pop_front();
        self.free -= weight;
        Some((index, weight))
    }

    /// Gives a weight back.
    pub fn done(&mut self, weight: usize) {
        self.free += weight;
        debug_assert!(self.free <= self.capacity);
    }

    /// Drops what waits and returns it.
    pub fn abandon(&mut self) -> Vec<usize> {
        self.waiting.drain(..).map(|(index, _)| index).collect()
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_finished(&self) -> bool {
        self.waiting.is_empty() && self.free == self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs everything; each step ends the case that started first. Returns the order of starts and
    /// the largest weight that ran at once.
    fn simulate(capacity: usize, weights: &[usize]) -> (Vec<usize>, usize) {
        let mut schedule = Schedule::new(capacity, weights.iter().map(|&w| (w, false)));
        let (mut order, mut running, mut peak) = (Vec::new(), VecDeque::new(), 0);
        while !schedule.is_finished() {
            while let Some((index, weight)) = schedule.start() {
                order.push(index);
                running.push_back(weight);
            }
            peak = peak.max(running.iter().sum());
            schedule.done(running.pop_front().expect("something must run, or it hangs"));
        }
        (order, peak)
    }

    #[test]
    fn everything_runs_once_and_never_too_much() {
        for capacity in 0..6 {
            for weights in [vec![], vec![1], vec![1, 2, 3, 9, 1], vec![2; 7], vec![0, 5, 1]] {
                let (mut order, peak) = simulate(capacity, &weights);
                assert!(peak <= capacity.max(1), "{capacity} {weights:?}");
                order.sort();
                assert_eq!(order, (0..weights.len()).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn heavy_ones_start_first_and_all_room_is_used() {
        assert_eq!(simulate(2, &[1, 2, 1]), (vec![1, 0, 2], 2));
        assert_eq!(simulate(4, &[1, 1, 1, 1, 1]).1, 4);
    }

    #[test]
    fn slow_ones_start_before_heavy_ones() {
        let mut schedule = Schedule::new(4, [(1, false), (4, false), (1, true)]);
        assert_eq!(schedule.start(), Some((2, 1)));
        assert_eq!(schedule.start(), None);
        schedule.done(1);
        assert_eq!(schedule.start(), Some((1, 4)));
    }

    #[test]
    fn what_is_abandoned_does_not_start() {
        let mut schedule = Schedule::new(1, [(1, false); 3]);
        assert_eq!(schedule.start(), Some((0, 1)));
        assert_eq!(schedule.abandon(), [1, 2]);
        assert_eq!(schedule.start(), None);
        assert!(!schedule.is_finished());
        schedule.done(1);
        assert!(schedule.is_finished());
    }
}
