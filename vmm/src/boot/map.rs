//! What the guest is told of physical memory: one list for PVH, multiboot and E820.

use std::fmt;

use crate::ram::{GuestRam, HOLE_END, RamRange, VGA_END, VGA_START};

/// End of conventional memory that a guest may use: the extended BIOS data area begins here.
pub const EBDA_START: u64 = 0x9_fc00;
/// Start of the system BIOS area, where a guest looks for tables.
pub const BIOS_START: u64 = 0xf_0000;
/// Start of extended memory.
pub const MIB: u64 = 0x10_0000;
/// Start of what chips and firmware decode below 4 GiB: I/O APIC, HPET, local APIC, the ROM.
pub const CHIPS_START: u64 = 0xfec0_0000;

/// What a range of physical memory is to the guest. The values are those of E820, multiboot and
/// PVH alike (ACPI 6.5, table 15.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum MemKind {
    /// RAM the guest may use.
    Usable = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables; RAM again once they were read.
    Acpi = 3,
    /// Memory that ACPI keeps through sleep states.
    AcpiNvs = 4,
}

impl fmt::Display for MemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemKind::Usable => "usable",
            MemKind::Reserved => "reserved",
            MemKind::Acpi => "ACPI tables",
            MemKind::AcpiNvs => "ACPI NVS",
        })
    }
}

/// A range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemRange {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: MemKind,
}

impl MemRange {
    /// The range from `start` up to `end`, empty when that is not above it.
    pub const fn new(start: u64, end: u64, kind: MemKind) -> MemRange {
        MemRange { start, len: end.saturating_sub(start), kind }
    }

    /// First address after the range; stays at the top when there is none.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// The runs of RAM a loader may write to, lowest first: RAM without the VGA window, which huge
/// pages make part of a region though no guest sees it.
pub(super) fn ram_runs(ram: &GuestRam) -> Vec<(u64, u64)> {
    runs(ram.ranges())
}

fn runs(ranges: impl Iterator<Item = RamRange>) -> Vec<(u64, u64)> {
    // A range's parts below and above the window; either may be empty, or be the range.
    ranges
        .flat_map(|r| {
            let end = r.start + r.len;
            [(r.start, end.min(VGA_START)), (r.start.max(VGA_END), end)]
        })
        .filter(|(start, end)| start < end)
        .collect()
}

/// The map of a board with this memory, lowest first, without overlaps. What it leaves out is
/// nobody's: the PCI windows.
pub fn memory_map(ram: &GuestRam) -> Vec<MemRange> {
    use MemKind::{Reserved, Usable};
    let mut map = vec![
        MemRange::new(0, EBDA_START, Usable),
        MemRange::new(EBDA_START, VGA_START, Reserved),
        MemRange::new(BIOS_START, MIB, Reserved),
    ];
    for (start, end) in ram_runs(ram) {
        map.push(MemRange::new(start.max(MIB), end, Usable));
    }
    map.push(MemRange::new(CHIPS_START, HOLE_END, Reserved));
    map.retain(|range| range.len > 0);
    map.sort_by_key(|range| range.start);
    map
}

/// `map` with `reserved` in place of whatever it said there; where those overlap, the last wins.
pub fn with_reserved(map: &[MemRange], reserved: &[MemRange]) -> Vec<MemRange> {
    let mut out = map.to_vec();
    for new in reserved.iter().filter(|range| range.len > 0) {
        out = out
            .iter()
            .flat_map(|old| {
                [
                    MemRange::new(old.start, old.end().min(new.start), old.kind),
                    MemRange::new(old.start.max(new.end()), old.end(), old.kind),
                ]
            })
            .filter(|range| range.len > 0)
            .collect();
        out.push(*new);
    }
    out.sort_by_key(|range| range.start);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::{Backing, HOLE_START, MIN_SIZE};

    fn map(size: u64) -> Vec<(u64, u64, MemKind)> {
        let ram = GuestRam::new(size, Backing::Auto).expect("the host has a little memory");
        memory_map(&ram).iter().map(|r| (r.start, r.end(), r.kind)).collect()
    }

    #[test]
    fn the_smallest_board_and_one_that_reaches_over_4_gib() {
        use MemKind::{Reserved, Usable};
        let low = [
            (0, EBDA_START, Usable),
            (EBDA_START, VGA_START, Reserved),
            (BIOS_START, MIB, Reserved),
        ];
        let chips = (CHIPS_START, HOLE_END, Reserved);
        assert_eq!(map(MIN_SIZE), [&low[..], &[(MIB, MIN_SIZE, Usable), chips]].concat());
        let rest = [(MIB, HOLE_START, Usable), chips, (HOLE_END, HOLE_END + (8 << 20), Usable)];
        assert_eq!(map(HOLE_START + (8 << 20)), [&low[..], &rest].concat());
    }

    #[test]
    fn the_vga_window_is_no_ram_even_where_huge_pages_hold_it() {
        let range = |start, end| RamRange { start, len: end - start };
        let small = [range(0, VGA_START), range(VGA_END, 4 * MIB), range(HOLE_END, HOLE_END + 1)];
        let huge = [range(0, 4 * MIB), range(HOLE_END, HOLE_END + 1)];
        let expected = [(0, VGA_START), (VGA_END, 4 * MIB), (HOLE_END, HOLE_END + 1)];
        assert_eq!(runs(small.into_iter()), expected);
        assert_eq!(runs(huge.into_iter()), expected);
    }

    #[test]
    fn what_the_board_reserved_replaces_usable_memory() {
        use MemKind::{Acpi, Reserved, Usable};
        let map = [MemRange::new(0, 0x1000, Usable), MemRange::new(0x2000, 0x3000, Usable)];
        let at = |start, end| with_reserved(&map, &[MemRange::new(start, end, Acpi)]);
        assert_eq!(
            at(0x800, 0x900),
            [
                MemRange::new(0, 0x800, Usable),
                MemRange::new(0x800, 0x900, Acpi),
                MemRange::new(0x900, 0x1000, Usable),
                map[1],
            ]
        );
        assert_eq!(
            at(0x800, 0x2800),
            [
                MemRange::new(0, 0x800, Usable),
                MemRange::new(0x800, 0x2800, Acpi),
                MemRange::new(0x2800, 0x3000, Usable),
            ]
        );
        assert_eq!(at(0, u64::MAX), [MemRange::new(0, u64::MAX, Acpi)]);
        assert_eq!(with_reserved(&map, &[MemRange::new(5, 5, Reserved)]), map);
    }
}
