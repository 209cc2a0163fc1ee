//! Bytes out of the machine: from a vCPU thread to the thread that may wait for the host.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes that wait at most; a power of two.
const ROOM: usize = 1 << 14;

/// A queue of bytes from one producer at a time (a device under its lock) to one consumer. Neither
/// side locks, and the producer makes a system call only when the consumer has gone to sleep or
/// there is no room.
pub struct OutputQueue {
    bytes: Box<[AtomicU8]>,
    /// Bytes ever put in.
    head: AtomicUsize,
    /// Bytes ever taken out.
    tail: AtomicUsize,
    /// The consumer waits to be woken.
    asleep: AtomicBool,
    /// Nobody will take anything out any more.
    closed: AtomicBool,
    wake: Box<Wake>,
}

/// What is done when there is something to take and the consumer sleeps.
type Wake = dyn Fn(&OutputQueue) + Send + Sync;

impl OutputQueue {
    /// An empty queue; `wake` wakes the consumer. It may take something out in its place, as long as it sees to it
    /// that nobody else does so at the same time.
    pub fn new(wake: Box<Wake>) -> OutputQueue {
        OutputQueue {
            bytes: (0..ROOM).map(|_| AtomicU8::new(0)).collect(),
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            asleep: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            wake,
        }
    }

    /// Puts a byte in. With no room it waits for the consumer, as a UART whose line is held off
    /// would keep its transmitter full.
    #[inline]
    pub fn push(&self, byte: u8) {
        let head = self.head.load(Ordering::Relaxed);
        while head.wrapping_sub(self.tail.load(Ordering::Acquire)) >= ROOM {
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            self.wait_for_room();
        }
        self.bytes[head % ROOM].store(byte, Ordering::Relaxed);
        // Ordered before the look at `asleep`: the consumer sets that and then looks at `head`.
        self.head.store(head.wrapping_add(1), Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            (self.wake)(self);
        }
    }

    #[cold]
    fn wait_for_room(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            (self.wake)(self);
        }
        std::thread::sleep(Duration::from_micros(100));
    }

    /// Takes out what there is, at most as much as `buf` has room for.
    pub fn take(&self, buf: &mut [u8]) -> usize {
        let (head, tail) = (self.head.load(Ordering::SeqCst), self.tail.load(Ordering::Relaxed));
        let n = head.wrapping_sub(tail).min(buf.len());
        for (i, byte) in buf[..n].iter_mut().enumerate() {
            *byte = self.bytes[tail.wrapping_add(i) % ROOM].load(Ordering::Relaxed);
        }
        self.tail.store(tail.wrapping_add(n), Ordering::Release);
        n
    }

    /// Whether there is nothing to take. For the consumer.
    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::SeqCst) == self.tail.load(Ordering::Relaxed)
    }

    /// The consumer goes to sleep and wants to be woken. `false` if there is something to take.
    pub fn sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let empty = self.is_empty();
        if !empty {
            self.asleep.store(false, Ordering::SeqCst);
        }
        empty
    }

    /// The consumer is awake without having been woken.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// From now on a full queue swallows bytes instead of waiting.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn bytes_arrive_in_order_across_threads_and_the_edge_of_the_queue() {
        let queue = Arc::new(OutputQueue::new(Box::new(|_| {})));
        let total = 3 * ROOM + 7;
        let producer = std::thread::spawn({
            let queue = queue.clone();
            move || (0..total).for_each(|i| queue.push(i as u8))
        });
        let (mut seen, mut buf) = (0, [0; 4096]);
        while seen < total {
            let n = queue.take(&mut buf);
            for &byte in &buf[..n] {
                assert_eq!(byte, seen as u8);
                seen += 1;
            }
        }
        producer.join().expect("no panic");
        assert_eq!(queue.take(&mut buf), 0);
    }

    #[test]
    fn the_consumer_is_woken_once_a_sleep() {
        let woken = Arc::new(AtomicUsize::new(0));
        let queue = OutputQueue::new(Box::new({
            let woken = woken.clone();
            move |_: &OutputQueue| {
                woken.fetch_add(1, Ordering::Relaxed);
            }
        }));
        queue.push(1);
        queue.push(2);
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        assert!(!queue.sleep(), "there is something to take");
        let mut buf = [0; 8];
        assert_eq!(queue.take(&mut buf), 2);
        assert!(queue.sleep());
        queue.push(3);
        assert_eq!(woken.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_closed_queue_does_not_hold_its_producer() {
        let queue = OutputQueue::new(Box::new(|_| {}));
        queue.close();
        (0..ROOM + 1000).for_each(|_| queue.push(0));
    }
}
