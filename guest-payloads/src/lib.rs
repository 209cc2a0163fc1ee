//! Bare-metal guest payloads.
#![no_std]
