//! Why a board cannot be put together.

use super::lines::GSIS;
use crate::bus::MapError;

/// Why a board cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// A device's region has no place.
    #[error("device `{device}`: {source}")]
    Map {
        /// The device.
        device: &'static str,
        /// What is wrong.
        source: MapError,
    },
    /// Two devices of one name, or on one interrupt line.
    #[error("device `{device}`: its {what} is taken by `{other}`; change one of them")]
    Taken {
        /// The device to be added.
        device: &'static str,
        /// What both claim.
        what: &'static str,
        /// The device that has it.
        other: &'static str,
    },
    /// There is no such line.
    #[error("device `{device}`: GSI {gsi} is none of the board's {GSIS}; give it another")]
    Gsi {
        /// The device.
        device: &'static str,
        /// What it was given.
        gsi: u32,
    },
    /// Bases and regions differ in number.
    #[error("device `{device}` has {regions} regions and was given {bases} places")]
    Bases {
        /// The device.
        device: &'static str,
        /// Regions that it has.
        regions: usize,
        /// Places that it was given.
        bases: usize,
    },
    /// A PCI function for a board that has no PCI bus.
    #[error("device `{0}` is a PCI function, and the board has no PCI bus; give it one first")]
    NoPci(&'static str),
    /// A PCI bus without the register that selects what is on it.
    #[error("the PCI bus: no device `{0}` with a configuration address; add that one first")]
    NoAddress(&'static str),
}
