//! libFuzzer on the PC board with a PCI bus.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::pci(bytes));
