//! libFuzzer on the target `transcript`.
#![no_main]
fuzz::target!("transcript");
