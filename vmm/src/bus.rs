//! Address to device, and what an access means that no device takes.
//!
//! The map does not change while vCPUs run, so a look-up takes no lock. [`Bus::decode`] is the one of every
//! exit: one load and one test from a table that says of each port what it is and which widths fit there,
//! or one comparison with the stretch of addresses that the last MMIO access went to. What needs a second
//! look it leaves to [`Bus::route`].

use std::sync::atomic::{AtomicU64, Ordering};

use crate::access::{Access, Size, Space};
use crate::device::{At, Region};
use crate::planted::{self, Flaw};

/// How far below a region an access may begin that reaches it.
const REACH: u64 = Size::B8.bytes() - 1;

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

/// Where a whole access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// To the device of that number, as it is; [`Decoded::NOBODY`] is no device's.
    At(usize, At),
    /// [`Bus::route`] knows.
    Unsure,
}

impl Decoded {
    /// The number of no device.
    pub const NOBODY: usize = usize::MAX;
}

/// What one port is, as a word of the table: 0 where nobody is and no access of any width reaches somebody.
/// Bits 7:0 are the widths, in bytes, that do not end where they begin; bits 15:8 the region; bits 31:16
/// the device's number and 1; bits 47:32 the offset in the region.
#[derive(Clone, Copy)]
struct Port(u64);

impl Port {
    const ALL_WIDTHS: u64 = 1 | 2 | 4 | 8;

    /// Writes into `ports`, as many as the region is long, what they are. A board is built once for each script of
    /// a fuzzer, so nothing is worked out for each port that is the same for all.
    fn fill(ports: &mut [u64], mapping: &Mapping) {
        let m = mapping;
        let device = u64::from(m.device) + 1;
        let first = Port::beyond(m.region.widest.bytes()) | u64::from(m.index) << 8 | device << 16;
        for (offset, port) in ports.iter_mut().enumerate() {
            *port = first | (offset as u64) << 32;
        }
        // The last ports have less than the widest access before them.
        for (left, port) in (1..=REACH).zip(ports.iter_mut().rev()) {
            *port |= Port::beyond(left);
        }
    }

    /// Those widths that are more than so many bytes.
    fn beyond(bytes: u64) -> u64 {
        Port::ALL_WIDTHS & !((bytes + 1).next_power_of_two() - 1)
    }

    #[inline(always)]
    fn decode(self, size: Size) -> Decoded {
        if self.0 & size.bytes() != 0 {
            return Decoded::Unsure;
        }
        let at = At { region: (self.0 >> 8) as u8, offset: self.0 >> 32 };
        Decoded::At(((self.0 >> 16) as u16 as usize).wrapping_sub(1), at)
    }
}

/// A stretch of MMIO addresses: one region, or all between two.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    base: u64,
    /// By a width in bytes: how many of its offsets an access may begin at and be whole.
    whole: [u64; 9],
    /// Whose it is, or [`Decoded::NOBODY`].
    device: usize,
    region: u8,
}

impl Span {
    /// From `base` to `last`.
    fn new(base: u64, last: u64, widest: Size) -> Span {
        let mut whole = [0; 9];
        for size in Size::ALL.into_iter().filter(|size| *size <= widest) {
            // As many as there are bytes, less those that would reach over the end.
            let offsets = (last - base).saturating_add(2).saturating_sub(size.bytes());
            whole[size as usize] = offsets;
        }
        Span { base, whole, device: Decoded::NOBODY, region: 0 }
    }

    /// Whether an access at `addr` is whole in it.
    #[inline(always)]
    fn holds(&self, addr: u64, size: Size) -> bool {
        addr.wrapping_sub(self.base) < self.whole[size as usize]
    }
}

/// Where the last MMIO access of a vCPU went: its own, and of any value.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint {
    /// [`Bus::edition`] of the bus that it is of; 0 is none's.
    edition: u64,
    span: Span,
}

/// The two address maps of a board.
#[derive(Debug)]
pub struct Bus {
    /// Unlike that of any other bus, and of this one before its map changed.
    edition: u64,
    ports: Vec<Mapping>,
    /// A [`Port`] of each. Untouched pages of it cost nothing.
    port_table: Box<[u64; 1 << 16]>,
    mmio: Vec<Mapping>,
    /// All MMIO addresses, in order: first what is below the first region, last what is above the last.
    spans: Vec<Span>,
}

impl Default for Bus {
    fn default() -> Self {
        Bus::new()
    }
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Bus {
        let table = vec![0; 1 << 16].into_boxed_slice();
        let port_table = table.try_into().expect("as many as there are ports");
        let spans = vec![Span::new(0, u64::MAX, Size::B8)];
        Bus { edition: edition(), ports: Vec::new(), port_table, mmio: Vec::new(), spans }
    }

    /// Takes everything off it.
    pub(crate) fn clear(&mut self) {
        for Mapping { base, region, .. } in self.ports.drain(..) {
            let first = base.saturating_sub(REACH);
            self.port_table[first as usize..(base + region.len) as usize].fill(0);
        }
        self.mmio.clear();
        self.lay_out();
    }

    /// Makes the spans of the MMIO regions.
    fn lay_out(&mut self) {
        self.edition = edition();
        self.spans.clear();
        let mut next = 0;
        for m in &self.mmio {
            if next < m.base {
                self.spans.push(Span::new(next, m.base - 1, Size::B8));
            }
            let span = Span::new(m.base, m.base + (m.region.len - 1), m.region.widest);
            let (device, region) = (usize::from(m.device), m.index);
            self.spans.push(Span { device, region, ..span });
            next = m.base + m.region.len;
        }
        self.spans.push(Span::new(next, u64::MAX, Size::B8));
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
                Port::fill(&mut self.port_table[base as usize..end as usize], &mapping);
                // A wide access to nobody's ports below may reach it.
                for (below, port) in
                    (1..=REACH).zip(self.port_table[..base as usize].iter_mut().rev())
                {
                    *port |= Port::beyond(below);
                }
            }
            Space::Mmio => {
                let at = self.mmio.partition_point(|m| m.base < base);
                self.mmio.insert(at, mapping);
                self.lay_out();
            }
        }
        Ok(())
    }

    /// Every mapping: ports in the order they were made, then MMIO by address.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.ports.iter().chain(&self.mmio)
    }

    fn find(&self, space: Space, addr: u64) -> Option<&Mapping> {
        match space {
            Space::Port => {
                let port = *self.port_table.get(usize::try_from(addr).ok()?)?;
                self.ports.iter().find(|m| port >> 16 != 0 && m.contains(addr))
            }
            Space::Mmio => {
                let after = self.mmio.partition_point(|m| m.base <= addr);
                self.mmio.get(after.wrapping_sub(1)).filter(|m| m.contains(addr))
            }
        }
    }

    /// Whose a byte is.
    pub(crate) fn owner(&self, space: Space, addr: u64) -> Option<DeviceId> {
        self.find(space, addr).map(|mapping| mapping.device)
    }

    /// Where an access goes that begins and ends in one place, which nearly all do.
    #[inline(always)]
    pub fn decode(&self, hint: &mut Hint, space: Space, addr: u64, size: Size) -> Decoded {
        match space {
            Space::Port => match self.port_table.get(addr as usize) {
                Some(&port) => Port(port).decode(size),
                None => Decoded::Unsure,
            },
            Space::Mmio => {
                if (hint.edition != self.edition || !hint.span.holds(addr, size))
                    && !self.find_span(hint, addr, size)
                {
                    return Decoded::Unsure;
                }
                let at = At { region: hint.span.region, offset: addr.wrapping_sub(hint.span.base) };
                Decoded::At(hint.span.device, at)
            }
        }
    }

    /// Finds the span that `addr` is in; whether the whole access is.
    #[inline(never)]
    fn find_span(&self, hint: &mut Hint, addr: u64, size: Size) -> bool {
        let at = self.spans.partition_point(|span| span.base <= addr) - 1;
        *hint = Hint { edition: self.edition, span: self.spans[at] };
        hint.span.holds(addr, size)
    }

    /// Where `access` goes.
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

/// A number that no bus had before.
fn edition() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
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

    /// The quick look-up says what the slow one says, or nothing, around every edge.
    #[test]
    fn what_is_decoded_at_once_is_what_is_routed() {
        let mut bus = bus();
        bus.map(0x400, region(Space::Port, 2, Size::B4), 4, 0).expect("free");
        bus.map(0x1104, region(Space::Mmio, 3, Size::B8), 5, 0).expect("free");
        bus.map(0xf_ffff_ffff_f000, region(Space::Mmio, 0x1000, Size::B8), 6, 0).expect("free");
        let edges = [0, 0x3f8, 0x400, 0x402, 0x1000, 0x1100, 0x1107, 0xfffe, 0x1_0000, 1 << 52];
        let (mut hint, mut sure) = (Hint::default(), 0);
        for bus in [&bus, &Bus::new()] {
            for addr in edges.iter().flat_map(|&edge: &u64| {
                (0..20u64).map(move |i| edge.wrapping_add(i).wrapping_sub(10))
            }) {
                for (space, size) in
                    [Space::Port, Space::Mmio].into_iter().flat_map(|s| Size::ALL.map(|z| (s, z)))
                {
                    let slow = bus.route(&Access::read(space, addr, size));
                    let quick = bus.decode(&mut hint, space, addr, size);
                    sure += u32::from(quick != Decoded::Unsure);
                    match quick {
                        Decoded::At(Decoded::NOBODY, _) => assert_eq!(slow, Route::Nobody),
                        Decoded::At(device, at) => {
                            assert_eq!(slow, Route::To(device as DeviceId, at));
                        }
                        Decoded::Unsure => assert!(
                            !matches!(slow, Route::To(..)) || addr > u64::MAX - 16,
                            "{space:?} {addr:#x} {size:?} is {slow:?}, and that is not seen at once"
                        ),
                    }
                }
            }
        }
        assert!(sure > 1000, "{sure} of all are decoded at once");
    }

    #[test]
    fn a_bus_that_was_cleared_is_as_new() {
        let nobody = |decoded| matches!(decoded, Decoded::At(Decoded::NOBODY, _));
        let (mut bus, mut hint) = (bus(), Hint::default());
        assert!(!nobody(bus.decode(&mut hint, Space::Mmio, 0x1000, Size::B4)));
        bus.clear();
        for addr in (0x3f0..0x410).chain(0xfff0..0x1_0000) {
            assert!(nobody(bus.decode(&mut hint, Space::Port, addr, Size::B1)));
        }
        assert!(nobody(bus.decode(&mut hint, Space::Mmio, 0x1000, Size::B4)));
    }
}
