//! A KVM virtual machine monitor whose board speaks exits.
//!
//! A vCPU leaves guest mode with an exit; the board answers with an entry. Nothing on the board's
//! side of that line knows about KVM, so the same devices are reached by a guest, a unit test, a
//! fuzzer, a benchmark and a replayed recording. From the inside out, and an arrow never points
//! outward: [`access`], [`ram`], [`device`], [`chips`], [`bus`], [`machine`], [`script`], [`boot`],
//! [`stats`], [`hv`], [`lab`], [`run`], [`host`], [`control`],
//! [`launch`].

pub mod access;
pub mod boot;
pub mod bus;
pub mod chips;
pub mod control;
pub mod cpu;
pub mod cpuid;
pub mod device;
pub mod exit;
pub mod host;
pub mod hv;
pub mod hyperv;
pub mod lab;
pub mod launch;
pub mod laws;
pub mod machine;
pub mod payload;
pub mod planted;
pub mod ram;
pub mod run;
#[cfg(feature = "sabotage")]
pub mod sabotage;
pub mod script;
pub mod state;
pub mod stats;
pub mod units;
pub mod words;
