//! libFuzzer on the target `script`.
#![no_main]
fuzz::target!("script");
