//! libFuzzer on the target `uart`.
#![no_main]
fuzz::target!("uart");
