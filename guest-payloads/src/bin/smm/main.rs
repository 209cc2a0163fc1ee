//! System-management mode: how an SMI comes, what it finds, what RSM makes of the state-save map, and what
//! is held back meanwhile (AMD APM volume 2, chapter 10; Intel SDM volume 3, "System Management Mode").
//!
//! Sections of the SDM are those of that chapter by their titles, since their numbers move. The map is
//! that of AMD64 (APM 10.2.3), which KVM gives every guest whose CPUID has long mode.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod code;
mod cpus;
mod entry;
mod events;
mod halt;
mod host;
mod inside;
mod map;
mod msrs;
mod nested;
mod resume;
mod space;

/// How long what is due may take, in microseconds.
const PATIENCE: u64 = 10_000_000;
