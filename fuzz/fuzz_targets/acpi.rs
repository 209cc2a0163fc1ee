//! libFuzzer on the target `acpi`.
#![no_main]
fuzz::target!("acpi");
