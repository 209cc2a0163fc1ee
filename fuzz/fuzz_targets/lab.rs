//! libFuzzer on the target `lab`.
#![no_main]
fuzz::target!("lab");
