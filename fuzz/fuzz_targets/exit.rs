//! libFuzzer on the target `exit`.
#![no_main]
fuzz::target!("exit");
