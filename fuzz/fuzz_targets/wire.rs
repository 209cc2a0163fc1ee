//! libFuzzer on the target `wire`.
#![no_main]
fuzz::target!("wire");
