//! Exits that are counted: what the payload `exits` and those who count them agree on.

/// The port of POST codes. A write to it fences the exits that are measured.
pub const FENCE: u16 = 0x80;
/// What is written there before them.
pub const BEGIN: u8 = 0xb5;
/// What is written there after them.
pub const END: u8 = 0xe5;

/// The command line's key for how many are measured: `exits=N`, 1 to [`MOST`].
pub const CMDLINE: &str = "exits";
/// How many are measured where nothing is said.
pub const NUMBER: usize = 32;
/// Exits before them, inside of the fence, which nobody counts: a cold one costs more.
pub const COLD: usize = 8;
/// The most that can be measured.
pub const MOST: usize = 504;
