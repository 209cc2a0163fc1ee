//! libFuzzer on the target `loader`.
#![no_main]
fuzz::target!("loader");
