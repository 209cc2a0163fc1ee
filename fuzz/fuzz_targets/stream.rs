//! libFuzzer on the decoder of what emulated hosts report.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::reports(bytes));
