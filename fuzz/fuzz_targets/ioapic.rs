//! libFuzzer on the target `ioapic`.
#![no_main]
fuzz::target!("ioapic");
