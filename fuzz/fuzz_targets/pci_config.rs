//! libFuzzer on the target `pci-config`.
#![no_main]
fuzz::target!("pci-config");
