//! Address to device, and what an access means that no device takes.
//!
//! The map does not change while vCPUs run, so a look-up takes no lock: ports go through a table
//! of one byte a port, MMIO through a sorted list.

use crate::access::{Access, Size, Space};
use crate::device::{At, Region};
use crate::planted::{self, Flaw};

/// Index of a device on its board.
pub type DeviceId = u16;

/// Why a region could not be mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Another region lies there.
    #[error("{what} at {base:#x}, {len} bytes: overlaps {other} at {other_base:#x}; move one")]
    Overlap {
        /// The region to be mapped.
        what: &'static str,
        /// Where.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// The region that is there.
        other: &'static str,
        /// Where that one begins.
        other_base: u64,
    },
    /// The region is empty or leaves its address space.
    #[error("{what} at {base:#x}, {len} bytes: does not fit its address space; move it")]
    Range {
        /// The region.
        what: &'static str,
        /// Where.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// There are more port regions than the table has room for.
    #[error("{0}: more than 255 port regions on one board")]
    Full(&'static str),
}

/// One region in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub base: u64,
    /// What lies there.
    pub region: Region,
    /// Whose it is.
    pub device: DeviceId,
    /// Its index among the device's regions.
    pub index: u8,
}

impl Mapping {
    #[inline]
    fn contains(&self, addr: u64) -> bool {
        addr.wrapping_sub(self.base) < self.region.len
    }

    /// Whether an access begins there.
    pub fn takes(&self, access: &Access) -> bool {
        self.region.space == access.space && self.contains(access.addr)
    }
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this device, as it is.
    To(DeviceId, At),
    /// It is wider than the device takes, or reaches over the edge of a region: this much of it
    /// first, then the rest is routed anew.
    Split(Size),
    /// Nobody answers.
    Nobody,
}

/// The two address maps of a board.
#[derive(Clone, Debug)]
pub struct Bus {
    ports: Vec<Mapping>,
    /// For each port, 0 or the index of its mapping plus 1. Untouched pages of it cost nothing.
    port_table: Box<[u8]>,
    mmio: Vec<Mapping>,
}

impl Default for Bus {
    fn default() -> Self {
        Bus::new()
    }
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Bus {
        Bus { ports: Vec::new(), port_table: vec![0; 1 << 16].into_boxed_slice(), mmio: Vec::new() }
    }

    /// Takes everything off it.
    pub(crate) fn clear(&mut self) {
        for Mapping { base, region, .. } in self.ports.drain(..) {
            self.port_table[base as usize..(base + region.len) as usize].fill(0);
        }
        self.mmio.clear();
    }

    /// Maps region `index` of `device` at `base`.
    ///
    /// # Errors
    /// When it would overlap another one or leave the address space.
    pub fn map(
        &mut self,
        base: u64,
        region: Region,
        device: DeviceId,
        index: u8,
    ) -> Result<(), MapError> {
        let Region { name: what, space, len, .. } = region;
        let limit = match space {
            Space::Port => 1 << 16,
            Space::Mmio => 1 << 52,
        };
        let end = base.checked_add(len).filter(|&end| len > 0 && end <= limit);
        let end = end.ok_or(MapError::Range { what, base, len })?;
        let there = match space {
            Space::Port => &self.ports,
            Space::Mmio => &self.mmio,
        };
        if let Some(m) = there.iter().find(|m| m.base < end && base < m.base + m.region.len) {
            let (other, other_base) = (m.region.name, m.base);
            return Err(MapError::Overlap { what, base, len, other, other_base });
        }
        let mapping = Mapping { base, region, device, index };
        match space {
            Space::Port => {
                self.ports.push(mapping);
                let tag = u8::try_from(self.ports.len()).map_err(|_| MapError::Full(what))?;
                self.port_table[base as usize..end as usize].fill(tag);
            }
            Space::Mmio => {
                let at = self.mmio.partition_point(|m| m.base < base);
                self.mmio.insert(at, mapping);
            }
        }
        Ok(())
    }

    /// Every mapping: ports in the order they were made, then MMIO by address.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.ports.iter().chain(&self.mmio)
    }

    #[inline]
    fn find(&self, space: Space, addr: u64) -> Option<&Mapping> {
        match space {
            Space::Port => {
                let tag = *self.port_table.get(usize::try_from(addr).ok()?)?;
                self.ports.get(usize::from(tag).wrapping_sub(1))
            }
            Space::Mmio => {
                let after = self.mmio.partition_point(|m| m.base <= addr);
                self.mmio.get(after.wrapping_sub(1)).filter(|m| m.contains(addr))
            }
        }
    }

    /// Where `access` goes.
    #[inline]
    pub fn route(&self, access: &Access) -> Route {
        let Access { space, addr, size, .. } = *access;
        match self.find(space, addr) {
            Some(m) => {
                let offset = addr - m.base;
                if size <= m.region.widest && size.bytes() <= m.region.len - offset {
                    Route::To(m.device, At { region: m.index, offset })
                } else {
                    let left = (m.region.len - offset).min(m.region.widest.bytes());
                    let left = if planted::has(Flaw::BusSplit) { size.bytes() } else { left };
                    Route::Split(narrower(left.min(size.bytes())))
                }
            }
            None if size == Size::B1 => Route::Nobody,
            None => {
                // The tail of the access may reach a device even where its head does not.
                let tail =
                    (1..size.bytes()).any(|i| self.find(space, addr.wrapping_add(i)).is_some());
                if tail { Route::Split(Size::B1) } else { Route::Nobody }
            }
        }
    }
}

/// The widest access of at most `bytes` bytes (not 0).
fn narrower(bytes: u64) -> Size {
    match bytes {
        8.. => Size::B8,
        4.. => Size::B4,
        2.. => Size::B2,
        _ => Size::B1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn region(space: Space, len: u64, widest: Size) -> Region {
        Region { name: "r", space, len, widest }
    }

    fn bus() -> Bus {
        let mut bus = Bus::new();
        bus.map(0x3f8, region(Space::Port, 8, Size::B1), 1, 0).expect("free");
        bus.map(0xfffe, region(Space::Port, 2, Size::B2), 2, 0).expect("free");
        bus.map(0x1000, region(Space::Mmio, 0x100, Size::B4), 3, 1).expect("free");
        bus
    }

    fn route(space: Space, addr: u64, size: Size) -> Route {
        bus().route(&Access::read(space, addr, size))
    }

    #[test]
    fn an_access_finds_its_device_and_offset() {
        let at = At { region: 0, offset: 5 };
        assert_eq!(route(Space::Port, 0x3fd, Size::B1), Route::To(1, at));
        let at = At { region: 1, offset: 0xfc };
        assert_eq!(route(Space::Mmio, 0x10fc, Size::B4), Route::To(3, at));
        assert_eq!(route(Space::Mmio, 0x1100, Size::B1), Route::Nobody);
        assert_eq!(route(Space::Port, 0x10000, Size::B1), Route::Nobody);
    }

    #[test]
    fn wide_and_straddling_accesses_are_split() {
        assert_eq!(route(Space::Port, 0x3f8, Size::B4), Route::Split(Size::B1));
        assert_eq!(route(Space::Mmio, 0x1000, Size::B8), Route::Split(Size::B4));
        assert_eq!(route(Space::Mmio, 0x10fe, Size::B4), Route::Split(Size::B2));
        assert_eq!(route(Space::Mmio, 0x0ffe, Size::B4), Route::Split(Size::B1));
        assert_eq!(route(Space::Port, 0xffff, Size::B4), Route::Split(Size::B1));
        assert_eq!(route(Space::Mmio, u64::MAX, Size::B8), Route::Nobody);
    }

    #[test]
    fn overlaps_and_bad_ranges_are_refused() {
        let mut bus = bus();
        let r = region(Space::Port, 1, Size::B1);
        assert!(matches!(bus.map(0x3ff, r, 9, 0), Err(MapError::Overlap { .. })));
        assert!(matches!(bus.map(0x10000, r, 9, 0), Err(MapError::Range { .. })));
        let empty = region(Space::Mmio, 0, Size::B1);
        assert!(matches!(bus.map(0, empty, 9, 0), Err(MapError::Range { .. })));
        let wraps = region(Space::Mmio, u64::MAX, Size::B1);
        assert!(matches!(bus.map(2, wraps, 9, 0), Err(MapError::Range { .. })));
    }

    #[test]
    fn the_table_of_ports_has_an_end() {
        let mut bus = Bus::new();
        for i in 0..255 {
            bus.map(i, region(Space::Port, 1, Size::B1), 0, 0).expect("room");
        }
        let more = bus.map(255, region(Space::Port, 1, Size::B1), 0, 0);
        assert_eq!(more, Err(MapError::Full("r")));
    }
}
