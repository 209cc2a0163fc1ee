//! Queued invalidation (section 6.5.2).

use super::{Unit, faults, status};
use crate::device::Env;
use crate::planted::{self, Flaw};

/// The bits of head and tail: descriptors have 16 bytes, and there are 32768 at most.
pub(super) const INDEX: u64 = 0x7_fff0;

/// Types of descriptors.
const CONTEXT: u64 = 1;
const IOTLB: u64 = 2;
const INTERRUPT_ENTRIES: u64 = 4;
const WAIT: u64 = 5;

/// In a wait descriptor: an interrupt follows; a dword is written.
const WAIT_INTERRUPT: u64 = 1 << 4;
const WAIT_WRITE: u64 = 1 << 5;

impl Unit {
    /// Does what is in the queue, up to its tail or to a descriptor that is wrong.
    pub(super) fn run_queue(&mut self, env: &mut Env<'_>) {
        // As many as the queue has room for, so a tail that is never reached ends it, too.
        let bytes = 4096u64 << (self.queue & 7);
        let most = if planted::has(Flaw::VtdQueue) { u64::MAX } else { bytes / 16 };
        for _ in 0..most {
            let stopped = !self.is(status::QUEUE) || self.faults & faults::QUEUE != 0;
            if stopped || self.queue_head == self.queue_tail {
                return;
            }
            if !self.descriptor(env, self.queue_head) {
                let before = self.fault_status();
                self.faults |= faults::QUEUE;
                if before == 0 {
                    self.fault_event.raise(env);
                }
                return;
            }
            self.queue_head = (self.queue_head + 16) % bytes;
        }
    }

    /// Does one; whether it is right.
    fn descriptor(&mut self, env: &mut Env<'_>, at: u64) -> bool {
        let mut bytes = [0; 16];
        if env.ram.read((self.queue & !0xfff).saturating_add(at), &mut bytes).is_err() {
            return false;
        }
        let descriptor = u128::from_le_bytes(bytes);
        let (low, high) = (descriptor as u64, (descriptor >> 64) as u64);
        match low & 0xf {
            // Nothing is cached.
            CONTEXT | IOTLB | INTERRUPT_ENTRIES => true,
            WAIT => {
                if low & WAIT_WRITE != 0 {
                    let data = ((low >> 32) as u32).to_le_bytes();
                    // Where no memory is, nobody waits.
                    let early = if planted::has(Flaw::VtdStatus) { 4 } else { 0 };
                    let _ = env.ram.write((high & !3).wrapping_sub(early), &data);
                }
                if low & WAIT_INTERRUPT != 0 && !self.completed {
                    self.completed = true;
                    self.completion_event.raise(env);
                }
                true
            }
            _ => planted::has(Flaw::VtdQueue),
        }
    }
}
