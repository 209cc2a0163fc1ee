//! libFuzzer on the target `snapshot`.
#![no_main]
fuzz::target!("snapshot");
