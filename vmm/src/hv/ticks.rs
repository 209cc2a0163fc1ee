//! The processor's time-stamp counter.

use std::arch::x86_64::_rdtsc;

/// The time-stamp counter: one instruction, no system call, and of one rate whatever the processor's own is (on
/// every x86-64 processor that has VMX or SVM and is not very old).
#[inline(always)]
pub fn ticks() -> u64 {
    // SAFETY: RDTSC reads a counter that every x86-64 processor has, and Linux lets programs use it.
    unsafe { _rdtsc() }
}
