//! Every target in one binary of libFuzzer's: `EXITLAB_FUZZ_TARGET` names the one. To fuzz all of them takes
//! one link.
#![no_main]
fuzz::target!(&std::env::var("EXITLAB_FUZZ_TARGET").unwrap_or_default());
