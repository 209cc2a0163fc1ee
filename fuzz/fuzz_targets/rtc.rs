//! libFuzzer on the target `rtc`.
#![no_main]
fuzz::target!("rtc");
