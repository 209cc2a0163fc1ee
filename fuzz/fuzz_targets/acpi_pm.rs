//! libFuzzer on the target `acpi-pm`.
#![no_main]
fuzz::target!("acpi-pm");
