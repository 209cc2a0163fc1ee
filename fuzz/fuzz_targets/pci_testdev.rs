//! libFuzzer on the target `pci-testdev`.
#![no_main]
fuzz::target!("pci-testdev");
