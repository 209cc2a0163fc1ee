//! libFuzzer on the decoder of an emulated host's messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzz::wire::check(bytes);
});
