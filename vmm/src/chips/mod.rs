//! The chips of a PC, on a PCI bus or not: pure state machines over their registers.
//!
//! Each is written after its datasheet, whose sections it names, and obeys [`crate::laws`]. Where
//! a chip lies and which line it drives is the board's choice; the addresses and GSIs that PCs
//! have are constants beside each chip.

pub mod acpi_pm;
pub mod exit;
pub mod fw_cfg;
pub mod hyperv_testdev;
pub mod i8042;
pub mod ioapic;
pub mod pci;
pub mod post;
pub mod resets;
pub mod rtc;
pub mod shutdown;
pub mod testdev;
pub mod uart;
