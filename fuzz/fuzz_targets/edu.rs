//! libFuzzer on the target `edu`.
#![no_main]
fuzz::target!("edu");
