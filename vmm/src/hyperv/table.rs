//! The enlightenments: names, bits of CPUID, and what each needs.

use super::{ADVICE, FEATURES};
use crate::cpuid::Reg::{self, Eax, Ebx, Edx};

/// One enlightenment.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Its bits: leaf, register, bit (TLFS, Feature and Interface Discovery).
    pub(super) bits: &'static [(u32, Reg, u8)],
    /// Others that there must be.
    pub(super) needs: &'static [&'static str],
}

const fn row(
    name: &'static str,
    bits: &'static [(u32, Reg, u8)],
    needs: &'static [&'static str],
) -> Row {
    Row { name, bits, needs }
}

/// AccessHypercallMsrs: whoever has anything of Hyper-V's tells who it is.
pub(super) const HYPERCALL_MSRS: u32 = 1 << 5;
/// PostMessages and SignalEvents.
pub(super) const CONNECTIONS: u32 = 1 << 4 | 1 << 5;

/// All of them.
pub(super) const ROWS: &[Row] = &[
    row("relaxed", &[(ADVICE, Eax, 5)], &[]),
    row("vapic", &[(FEATURES, Eax, 4), (ADVICE, Eax, 3)], &[]),
    // Whoever offers it says after how many tries.
    row("spinlocks", &[(ADVICE, Ebx, 0)], &[]),
    row("vpindex", &[(FEATURES, Eax, 6)], &[]),
    row("runtime", &[(FEATURES, Eax, 0)], &[]),
    row("crash", &[(FEATURES, Edx, 10)], &[]),
    row("time", &[(FEATURES, Eax, 1), (FEATURES, Eax, 9)], &[]),
    row("synic", &[(FEATURES, Eax, 2)], &["vpindex"]),
    row("stimer", &[(FEATURES, Eax, 3)], &["synic", "time"]),
    row("stimer-direct", &[(FEATURES, Edx, 19)], &["stimer"]),
    row("tlbflush", &[(ADVICE, Eax, 2), (ADVICE, Eax, 11)], &["vpindex"]),
    row("tlbflush-ext", &[(FEATURES, Edx, 14)], &["tlbflush"]),
    row("ipi", &[(ADVICE, Eax, 10), (ADVICE, Eax, 11)], &["vpindex"]),
    row("reset", &[(FEATURES, Eax, 7)], &[]),
    row("frequencies", &[(FEATURES, Eax, 11), (FEATURES, Edx, 8)], &[]),
    row("reenlightenment", &[(FEATURES, Eax, 13)], &[]),
    row("xmm-input", &[(FEATURES, Edx, 4)], &[]),
];
