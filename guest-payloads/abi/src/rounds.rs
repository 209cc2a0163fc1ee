//! Rounds: a payload does the same thing as often as its host says, and again, so that the host can take
//! the time (`benches`).
//!
//! With `rounds=1` on its command line a test reads a number from [`PORT`], does what it does so many times
//! and reads the next, up to 0. The host takes the time between two reads.

/// The port of four bytes that numbers are read from. What is written there is the address of the
/// memory that a test uses, for its host to take away before each round.
pub const PORT: u16 = 0x1ad0;

/// The command line's key that asks for rounds: `rounds=1`.
pub const CMDLINE: &str = "rounds";

/// Pages of the memory of a test that wants them taken away: the most of one round.
pub const PAGES: u32 = 256;

/// The line whose interrupt a test waits for.
pub const GSI: u8 = 11;

/// The command line's key that says that the host makes a pulse of each write of 1 to that line: `pulse=1`.
pub const CMDLINE_PULSE: &str = "pulse";
