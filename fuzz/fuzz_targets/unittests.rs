//! libFuzzer on the target `unittests`.
#![no_main]
fuzz::target!("unittests");
