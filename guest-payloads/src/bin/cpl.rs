//! x
#![no_std]
#![no_main]
#![forbid(unsafe_code)]
use payload_rt as _;
