//! What touches the host: clocks, descriptors, terminals, signals, child processes, the debug console,
//! assigned devices; and tests of these without a guest.

pub mod child;
pub mod clock;
pub mod console;
pub mod contents;
pub mod debug_console;
pub mod events;
pub mod memory;
pub mod terminal;
pub mod test;
pub mod tsc;
pub mod vfio;
