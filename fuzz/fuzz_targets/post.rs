//! libFuzzer on the target `post`.
#![no_main]
fuzz::target!("post");
