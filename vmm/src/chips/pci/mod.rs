//! PCI functions: chips that a configuration space describes, and that the guest places itself.
//!
//! After the PCI Local Bus Specification 3.0. A function's first region is its [configuration
//! space](config), which the board reaches by configuration mechanism 1 (section 3.2.2.3.2); the
//! regions behind it are what its base address registers claim, in their order. Where those lie, the
//! function says ([`Device::base`](crate::device::Device::base)), and the board's dispatch follows.
//!
//! No firmware runs before our guests, so a function is switched on as firmware leaves it: with its
//! base addresses assigned, its decoders on and its interrupt line told ([`config::Placement`]).

pub mod bridge;
pub mod config;
pub mod edu;
pub mod memory;
pub mod msi;
pub mod testdev;
pub mod vtd;

use crate::access::Size;
use crate::device::Region;

/// Bytes of a configuration space.
pub const CONFIG_BYTES: u64 = 256;
/// Index of a function's configuration space among its regions.
pub const CONFIG: u8 = 0;

/// First port of the data register of configuration mechanism 1.
pub const DATA_PORT: u64 = 0xcfc;
/// Ports of the data register.
pub const DATA_PORTS: u64 = 4;

/// A configuration space as a region.
pub const fn config_region(name: &'static str) -> Region {
    let space = crate::access::Space::Mmio;
    Region { name, space, len: CONFIG_BYTES, widest: Size::B4 }
}

/// Where a function is: on bus 0, device `device` (0 to 31), function `function` (0 to 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// Function `function` of device `device`; both are cut to their 3 and 5 bits.
    pub const fn new(device: u8, function: u8) -> Slot {
        Slot(device << 3 | function & 7)
    }

    /// The device, 0 to 31.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// Device and function as they stand in a configuration address and in a requester's ID.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// What a configuration address (the dword at port 0xcf8) selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected {
    /// The bus.
    pub bus: u8,
    /// Device and function on it.
    pub slot: Slot,
    /// Offset of the dword in the function's configuration space.
    pub offset: u64,
}

impl Selected {
    /// What `address` selects; `None` without the enable bit, when the data register is an ordinary
    /// port (section 3.2.2.3.2).
    pub const fn by(address: u32) -> Option<Selected> {
        if address >> 31 == 0 {
            return None;
        }
        let [offset, slot, bus, _] = address.to_le_bytes();
        Some(Selected { bus, slot: Slot(slot), offset: (offset & !3) as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_selects_a_dword_of_a_function() {
        let selected = Selected::by(0x8012_3c7b).expect("enabled");
        assert_eq!((selected.bus, selected.offset), (0x12, 0x78));
        assert_eq!((selected.slot, selected.slot.device()), (Slot::new(7, 4), 7));
        assert_eq!(selected.slot.number(), 0x3c);
        assert_eq!(Selected::by(0x7fff_ffff), None);
    }
}
