//! libFuzzer on the target `testdev`.
#![no_main]
fuzz::target!("testdev");
