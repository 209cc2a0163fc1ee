//! Five levels of paging: 57-bit linear addresses (Intel SDM volume 3, 5.1.1 and 5.5; AMD APM volume 2,
//! 5.3.1).
//!
//! A CPU comes up with four levels. CR4.LA57 cannot change in long mode, so the way between the two leads
//! through protected mode without paging. [`crate::paging`] goes by CR4 and serves both.

use crate::paging::{ADDRESS, Flags};
use crate::{cpuid, frames, reg};

/// The first address beyond the lower half of 57 bits.
pub const LOWER_END: u64 = 1 << 56;
/// The first address of the upper half of 57 bits.
pub const UPPER: u64 = 0xff00_0000_0000_0000;

unsafe extern "C" {
    fn rt_set_levels(cr3: u64, cr4: u64);
}

#[cfg(feature = "bare-metal")]
core::arch::global_asm!(include_str!("../asm/levels.s"), options(att_syntax));

/// Switches this CPU to five levels: the tables in use become those of the first 256 TiB. Gives the top
/// table's address. Ends the test with `skip` if CPUID has no LA57.
pub fn five() -> u64 {
    cpuid::LA57.require();
    let root = top_over(reg::cr3() & ADDRESS);
    switch(root, true);
    root
}

/// A top table of five levels whose first entry leads to `table`, a top table of four.
pub fn top_over(table: u64) -> u64 {
    frames::with_word(table | Flags::RWU.0)
}

/// Leaves long mode and enters it again on this CPU with the top table at `root`, of five levels or of four.
///
/// CR4 keeps its other bits; CR4.PCIDE must be clear. The tables map the first 4 GiB to themselves. Where
/// CPUID has no LA57, five levels are a fault that nobody can catch.
pub fn switch(root: u64, five: bool) {
    let cr4 = reg::cr4();
    assert!(cr4 & reg::CR4_PCIDE == 0, "leaving long mode needs CR4.PCIDE clear");
    assert!(root < 1 << 32, "CR3 has 32 bits outside of long mode: {root:#x}");
    let cr4 = if five { cr4 | reg::CR4_LA57 } else { cr4 & !reg::CR4_LA57 };
    // SAFETY: the assembly keeps all registers that the ABI wants kept, and comes back in long mode with the
    // same stack and descriptor tables, which are mapped as before by what the caller vouches for.
    unsafe { rt_set_levels(root, cr4) }
}
