//! Handlers of traps and interrupts, and how often each vector came.

use crate::trap::Frame;
use crate::{apic, cpu, reg, time};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Called with the interrupted registers, which it may change; interrupts are off.
pub type Handler = fn(&mut Frame);

static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

/// Registers `handler` for `vector`, on all CPUs. It comes before all recovery of traps, also
/// for traps from CPL 3; a handler of an APIC interrupt ends with [`apic::eoi`].
pub fn handle(vector: u8, handler: Handler) {
    HANDLERS[vector as usize].store(handler as usize, Relaxed);
}

/// Takes the handler of `vector` away again.
pub fn unhandle(vector: u8) {
    HANDLERS[vector as usize].store(0, Relaxed);
}

/// Registers a handler that acknowledges the interrupt at the local APIC and does nothing else;
/// read [`count`] to see that it came.
pub fn count_only(vector: u8) {
    handle(vector, |_| apic::eoi());
}

/// How often `vector` came on this CPU since the last [`reset`].
pub fn count(vector: u8) -> u32 {
    cpu::this().hits[vector as usize].load(Relaxed)
}

/// How often `vector` came on CPU `index`.
pub fn count_on(index: usize, vector: u8) -> u32 {
    crate::smp::block(index).hits[vector as usize].load(Relaxed)
}

/// Turns interrupts on until `vector` has come `times` times on this CPU since the last [`reset`],
/// or until about `microseconds` are over; whether it came. Turns them off again.
///
/// The way to wait for an interrupt that is due: a hypervisor that interprets CPL 0 may take an
/// interrupt only after a thousand instructions with interrupts on.
pub fn wait_for(vector: u8, times: u32, microseconds: u64) -> bool {
    reg::sti();
    let came = time::wait_until(microseconds, || count(vector) >= times);
    reg::cli();
    came
}

/// Turns interrupts on for about `microseconds`, and off again: what is due comes.
pub fn let_in(microseconds: u64) {
    reg::sti();
    time::delay(microseconds);
    reg::cli();
}

/// Sets this CPU's counts to zero.
pub fn reset() {
    for hits in &cpu::this().hits {
        hits.store(0, Relaxed);
    }
}

pub(crate) fn handler(vector: usize) -> Option<Handler> {
    let address = HANDLERS.get(vector)?.load(Relaxed);
    // SAFETY: only `handle` stores, and it stores a `Handler`.
    (address != 0).then(|| unsafe { core::mem::transmute::<usize, Handler>(address) })
}
