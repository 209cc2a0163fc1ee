//! libFuzzer on the target `shutdown`.
#![no_main]
fuzz::target!("shutdown");
