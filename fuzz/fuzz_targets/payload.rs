//! libFuzzer on the target `payload`.
#![no_main]
fuzz::target!("payload");
