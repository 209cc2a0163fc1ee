//! libFuzzer on the target `fw-cfg`.
#![no_main]
fuzz::target!("fw-cfg");
