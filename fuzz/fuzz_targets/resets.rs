//! libFuzzer on the target `resets`.
#![no_main]
fuzz::target!("resets");
