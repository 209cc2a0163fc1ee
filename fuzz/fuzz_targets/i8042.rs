//! libFuzzer on the target `i8042`.
#![no_main]
fuzz::target!("i8042");
