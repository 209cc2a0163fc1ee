//! Bare-metal guest payloads, one binary an area under `src/bin`. What they share is in
//! `payload-rt`; this library is empty.
#![no_std]
