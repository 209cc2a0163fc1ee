//! Emulated hosts: machines with real kvm-amd and kvm-intel, anywhere.
//!
//! QEMU's TCG emulates an AMD machine with SVM, Bochs an Intel machine with VMX. On either boots a
//! distribution's own kernel with an initramfs made here, whose first process runs cases with the
//! same runner as everywhere, and reports through the debug console port 0xE9.

pub mod bochs;
mod boots;
pub mod compression;
pub mod cpio;
pub mod device;
mod durations;
pub mod fetch;
pub mod image;
pub mod kernel;
pub mod machine;
pub mod modules;
pub mod name;
pub mod pieces;
pub mod plan;
pub mod programs;
pub mod qemu;
pub mod run;
pub mod session;
mod whole;
