//! What touches the host: clocks, descriptors, terminals, signals.

pub mod clock;
pub mod console;
pub mod events;
pub mod memory;
pub mod terminal;
