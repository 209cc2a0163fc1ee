//! The local APIC in both its modes, the I/O APIC and the PICs, from one CPU.
//!
//! Intel SDM volume 3, chapter 12; AMD APM volume 2, chapter 16; Intel 82093AA and 8259A
//! datasheets.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "apic/ioapic.rs"]
mod lines;
#[path = "apic/modes.rs"]
mod modes;
#[path = "apic/pic.rs"]
mod pics;
#[path = "apic/priority.rs"]
mod priority;
#[path = "apic/registers.rs"]
mod registers;
#[path = "apic/timer.rs"]
mod timer;

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use payload_rt::apic::{self, Apic, Mode};
use payload_rt::{check_eq, cpuid, reg, time, trap::Frame};

/// How long to look for an interrupt that must not come, in microseconds.
const SETTLE: u64 = 300;
/// How long an interrupt may take that must come, in microseconds.
const PATIENCE: u64 = 5_000_000;

/// Brings the local APIC into each mode there is, enabled, one after the other.
fn modes() -> impl Iterator<Item = Apic> {
    let x2apic = cpuid::X2APIC.present().then_some(Mode::X2Apic);
    [Some(Mode::XApic), x2apic].into_iter().flatten().map(|mode| {
        let apic = apic::set_mode(mode);
        apic.enable();
        apic.set_tpr(0);
        apic
    })
}

/// Vectors in the order in which their handlers began.
static TAKEN: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];
static HOW_MANY: AtomicUsize = AtomicUsize::new(0);

/// As a handler: notes the vector. The handler's own business is the EOI.
fn note(frame: &mut Frame) {
    let at = HOW_MANY.fetch_add(1, SeqCst);
    TAKEN[at % TAKEN.len()].store(frame.vector as u8, SeqCst);
}

/// As a handler: notes the vector and ends the interrupt.
fn note_and_eoi(frame: &mut Frame) {
    note(frame);
    apic::eoi();
}

/// Turns interrupts on until `count` handlers have begun since the last [`taken`], and a moment longer,
/// for one that should not.
fn let_in(count: usize) {
    let_in_for(PATIENCE, count);
}

/// [`let_in`], for so many microseconds at most.
fn let_in_for(patience: u64, count: usize) {
    reg::sti();
    time::wait_until(patience, || HOW_MANY.load(SeqCst) >= count);
    time::delay(SETTLE);
    reg::cli();
}

/// Lets interrupts in, and checks that `wanted` are the vectors that come, in that order.
fn check_taken(wanted: &[u8], what: &str) {
    check_taken_within(PATIENCE, wanted, what);
}

/// [`check_taken`], for interrupts that must come within so many microseconds, if at all.
fn check_taken_within(patience: u64, wanted: &[u8], what: &str) {
    let_in_for(patience, wanted.len());
    let mut list = [0; 32];
    let mut n = 0;
    for (place, vector) in list.iter_mut().zip(taken()) {
        *place = vector;
        n += 1;
    }
    check_eq!(&list[..n], wanted, "{what}: vectors taken, in order");
}

/// What was noted since the last call.
fn taken() -> impl Iterator<Item = u8> {
    let count = HOW_MANY.swap(0, SeqCst).min(TAKEN.len());
    (0..count).map(|i| TAKEN[i].load(SeqCst))
}
