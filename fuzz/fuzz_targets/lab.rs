//! libFuzzer on the decoder of a guest's lab requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzz::lab::check(bytes);
});
