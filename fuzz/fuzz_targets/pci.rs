//! libFuzzer on the target `pci`.
#![no_main]
fuzz::target!("pci");
