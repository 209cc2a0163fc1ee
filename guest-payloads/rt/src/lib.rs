//! The runtime of bare-metal payloads.
#![no_std]
