//! libFuzzer on the target `hyperv-testdev`.
#![no_main]
fuzz::target!("hyperv-testdev");
