//! libFuzzer on the target `board`.
#![no_main]
fuzz::target!("board");
