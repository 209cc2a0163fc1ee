//! libFuzzer on the target `options`.
#![no_main]
fuzz::target!("options");
