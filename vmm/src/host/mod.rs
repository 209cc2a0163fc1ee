//! What touches the host: clocks, descriptors, terminals, signals, child processes, the debug console.

pub mod child;
pub mod clock;
pub mod console;
pub mod debug_console;
pub mod events;
pub mod memory;
pub mod terminal;
pub mod tsc;
