//! libFuzzer on the target `vtd`.
#![no_main]
fuzz::target!("vtd");
