//! libFuzzer on the target `case`.
#![no_main]
fuzz::target!("case");
