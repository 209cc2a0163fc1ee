//! libFuzzer on the target `kvm-stats`.
#![no_main]
fuzz::target!("kvm-stats");
