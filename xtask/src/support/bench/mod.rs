//! What `cargo xtask bench` is made of: exact counts, and what they are held against.

pub mod baseline;
pub mod counts;
pub mod exact;
pub mod flags;
pub mod peers;
pub mod start;
