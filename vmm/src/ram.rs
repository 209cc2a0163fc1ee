//! Guest memory: RAM laid out as a PC has it, with the pages that were written kept track of.
//!
//! ```text
//! 0            0xa0000      0xc0000            3 GiB             4 GiB
//! | RAM        | VGA window | RAM (BIOS area)  | PCI and chips   | RAM ...
//! ```
//!
//! The windows are no memory: an access there leaves the guest as an MMIO exit.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, VolatileMemory,
};

/// Bytes of a page, the unit of dirty tracking.
pub const PAGE: u64 = 4096;
/// Start of the window of the VGA frame buffer, where RAM has its first hole.
pub const VGA_START: u64 = 0xa_0000;
/// End of that window.
pub const VGA_END: u64 = 0xc_0000;
/// Start of the hole below 4 GiB, for PCI, I/O APIC, HPET, local APIC and firmware.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of that hole: RAM goes on here.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// The least memory that a board has, in bytes.
pub const MIN_SIZE: u64 = 2 << 20;

/// The most memory that a board has, in bytes: it must fit a process's address space.
pub const MAX_SIZE: u64 = 1 << 46;

/// What backs guest memory on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous pages of 4 KiB; transparent huge pages are refused, so that page sizes are known.
    Small,
    /// Anonymous memory as the host's policy has it.
    #[default]
    Auto,
    /// Transparent huge pages are asked for (`MADV_HUGEPAGE`).
    Transparent,
    /// hugetlbfs pages of 2 MiB, reserved on the host beforehand.
    Huge2M,
    /// hugetlbfs pages of 1 GiB, reserved on the host beforehand.
    Huge1G,
}

impl Backing {
    /// Page size that sizes and addresses of the memory must be a multiple of, in bytes.
    pub const fn granule(self) -> u64 {
        match self {
            Backing::Huge2M => 2 << 20,
            Backing::Huge1G => 1 << 30,
            _ => PAGE,
        }
    }

    fn mmap_flags(self) -> i32 {
        let base = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        match self {
            Backing::Small | Backing::Auto | Backing::Transparent => base | libc::MAP_NORESERVE,
            Backing::Huge2M => base | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            Backing::Huge1G => base | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
        }
    }
}

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The size is not one that a board can have.
    #[error(
        "guest memory of {size} bytes: must be a multiple of {granule} bytes, at least {MIN_SIZE} \
         and at most {MAX_SIZE}; ask for another size"
    )]
    Size {
        /// What was asked for.
        size: u64,
        /// What it must be a multiple of.
        granule: u64,
    },
    /// The host refused the mapping.
    #[error(
        "the host has no {size} bytes for guest memory ({source}); ask for less, or free some{hint}"
    )]
    Map {
        /// What was asked for.
        size: u64,
        /// A way out that depends on the backing.
        hint: &'static str,
        /// What the host said.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The regions do not make up a memory.
    #[error("guest memory of {size} bytes cannot be laid out: {source}")]
    Layout {
        /// What was asked for.
        size: u64,
        /// Why.
        source: vm_memory::GuestRegionCollectionError,
    },
}

/// An access that is not wholly inside RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest-physical {addr:#x}, {len} bytes: not wholly inside RAM")]
pub struct OutOfRam {
    /// First byte.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One run of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Who is told of the memory that devices read and write: a recorder, or a replay.
pub trait RamTap: Send + Sync + fmt::Debug {
    /// `bytes` were read at `addr`. What the tap leaves in them is what the reader gets.
    fn read(&self, addr: u64, bytes: &mut [u8]);

    /// `bytes` were written at `addr`.
    fn wrote(&self, addr: u64, bytes: &[u8]);
}

/// The memory of one guest. Clones share it.
#[derive(Clone, Debug)]
pub struct GuestRam {
    mem: Arc<GuestMemoryMmap<AtomicBitmap>>,
    tap: Option<Arc<dyn RamTap>>,
    size: u64,
    backing: Backing,
}

impl GuestRam {
    /// Maps `size` bytes of zeroed guest memory.
    ///
    /// # Errors
    /// When `size` does not suit the board or the backing, or the host has no such memory.
    pub fn new(size: u64, backing: Backing) -> Result<GuestRam, RamError> {
        let granule = backing.granule();
        if size < MIN_SIZE || !size.is_multiple_of(granule) || size > MAX_SIZE {
            return Err(RamError::Size { size, granule });
        }
        let map = |range: RamRange| {
            let region = MmapRegionBuilder::new_with_bitmap(
                range.len as usize,
                AtomicBitmap::new(range.len as usize, PAGE_NONZERO),
            )
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(backing.mmap_flags())
            .build()
            .map_err(|source| {
                let hint = match backing {
                    Backing::Huge2M | Backing::Huge1G => {
                        "; huge pages are reserved through /sys/kernel/mm/hugepages/*/nr_hugepages"
                    }
                    _ => "",
                };
                RamError::Map { size, hint, source }
            })?;
            Ok(GuestRegionMmap::new(region, GuestAddress(range.start))
                .expect("a board's ranges end below 2^47"))
        };
        let regions =
            layout(size, backing).into_iter().map(map).collect::<Result<Vec<_>, RamError>>()?;
        let mem = GuestMemoryMmap::from_regions(regions)
            .map_err(|source| RamError::Layout { size, source })?;
        Ok(GuestRam { mem: Arc::new(mem), tap: None, size, backing })
    }

    /// The same memory, with `tap` told of what [`GuestRam::read`] and [`GuestRam::write`] do
    /// through this handle and its clones. Other handles, and [`GuestRam::memory`], go past it.
    pub fn with_tap(&self, tap: Arc<dyn RamTap>) -> GuestRam {
        GuestRam { tap: Some(tap), ..self.clone() }
    }

    /// Memory offered to the guest, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What backs it.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The runs of RAM, lowest first.
    pub fn ranges(&self) -> impl Iterator<Item = RamRange> + '_ {
        self.mem.iter().map(|r| RamRange { start: r.start_addr().0, len: r.len() })
    }

    /// The memory as vm-memory's type, for what is built on that crate.
    pub fn memory(&self) -> &GuestMemoryMmap<AtomicBitmap> {
        &self.mem
    }

    /// Whether `len` bytes at `addr` are all RAM.
    pub fn contains(&self, addr: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.mem.check_range(GuestAddress(addr), len))
    }

    /// Fills `buf` from guest memory.
    ///
    /// # Errors
    /// When a byte of it is not RAM; `buf`'s contents are then unspecified.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRam> {
        self.peek(addr, buf)?;
        if let Some(tap) = &self.tap {
            tap.read(addr, buf);
        }
        Ok(())
    }

    /// Reads `buf.len()` bytes as [`GuestRam::read`] does, but tells nobody: for who looks on, and is no
    /// device.
    ///
    /// # Errors
    /// When a byte of it is not RAM.
    pub fn peek(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRam> {
        let len = buf.len() as u64;
        self.mem.read_slice(buf, GuestAddress(addr)).map_err(|_| OutOfRam { addr, len })
    }

    /// Writes `buf` into guest memory and marks its pages dirty. Writes all of it or nothing.
    ///
    /// # Errors
    /// When a byte of it is not RAM.
    pub fn write(&self, addr: u64, buf: &[u8]) -> Result<(), OutOfRam> {
        let len = buf.len() as u64;
        if !self.contains(addr, len) {
            return Err(OutOfRam { addr, len });
        }
        self.mem.write_slice(buf, GuestAddress(addr)).map_err(|_| OutOfRam { addr, len })?;
        if let Some(tap) = &self.tap {
            tap.wrote(addr, buf);
        }
        Ok(())
    }

    /// Sets bit `bit`, 0 to 7, of the byte at `addr` in one step, whatever vCPUs do with the other
    /// bits meanwhile, and marks its page dirty. Whether it was set before.
    ///
    /// # Errors
    /// When the byte is not RAM.
    pub fn set_bit(&self, addr: u64, bit: u8) -> Result<bool, OutOfRam> {
        let mask = 1 << (bit & 7);
        if self.tap.is_some() {
            // A recording has one access after the other, and no two of them in one.
            let mut byte = [0];
            self.read(addr, &mut byte)?;
            self.write(addr, &[byte[0] | mask])?;
            return Ok(byte[0] & mask != 0);
        }
        let out = OutOfRam { addr, len: 1 };
        let slice = self.mem.get_slice(GuestAddress(addr), 1).map_err(|_| out)?;
        let byte = slice.get_atomic_ref::<AtomicU8>(0).map_err(|_| out)?;
        let before = byte.fetch_or(mask, Ordering::SeqCst);
        slice.bitmap().mark_dirty(0, 1);
        Ok(before & mask != 0)
    }

    /// Reads a little-endian u32.
    ///
    /// # Errors
    /// When a byte of it is not RAM.
    pub fn read_u32(&self, addr: u64) -> Result<u32, OutOfRam> {
        let mut b = [0; 4];
        self.read(addr, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    /// Calls `f` with the address of each page that the VMM wrote since this was last asked, and
    /// forgets them. Pages that the guest's processors wrote are KVM's to tell.
    pub fn take_dirty(&self, mut f: impl FnMut(u64)) {
        for region in self.mem.iter() {
            // The region's own `bitmap`, not the view that the memory-region trait gives.
            let words = vm_memory::MmapRegion::bitmap(region).get_and_reset();
            for (i, word) in words.into_iter().enumerate().filter(|&(_, word)| word != 0) {
                for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                    f(region.start_addr().0 + (i as u64 * 64 + bit) * PAGE);
                }
            }
        }
    }

    /// Host virtual address of a run of RAM: what a memslot is made from.
    ///
    /// # Errors
    /// When the run is not one region's.
    pub fn host_address(&self, range: RamRange) -> Result<u64, OutOfRam> {
        let out = OutOfRam { addr: range.start, len: range.len };
        let (region, at) = self.mem.to_region_addr(GuestAddress(range.start)).ok_or(out)?;
        if region.len() - at.0 < range.len {
            return Err(out);
        }
        region.get_host_address(MemoryRegionAddress(at.0)).map(|p| p as u64).map_err(|_| out)
    }
}

const PAGE_NONZERO: std::num::NonZeroUsize =
    std::num::NonZeroUsize::new(PAGE as usize).expect("a page is not empty");

/// The runs of RAM of a board with `size` bytes. With huge pages the VGA window is RAM too, as a
/// region must be a whole number of them; the memslots still leave the window out.
fn layout(size: u64, backing: Backing) -> Vec<RamRange> {
    let low = size.min(HOLE_START);
    let mut ranges = if backing.granule() > PAGE {
        vec![RamRange { start: 0, len: low }]
    } else {
        vec![RamRange { start: 0, len: VGA_START }, RamRange { start: VGA_END, len: low - VGA_END }]
    };
    if size > low {
        ranges.push(RamRange { start: HOLE_END, len: size - low });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(size: u64) -> GuestRam {
        GuestRam::new(size, Backing::Auto).expect("the host has a little memory")
    }

    #[test]
    fn the_holes_of_a_pc_are_no_memory() {
        let ram = ram(HOLE_START + (4 << 20));
        assert!(ram.contains(0, VGA_START));
        assert!(!ram.contains(VGA_START, 1));
        assert!(!ram.contains(VGA_END - 1, 1));
        assert!(ram.contains(VGA_END, 1));
        assert!(!ram.contains(HOLE_START - 1, 2));
        assert!(ram.contains(HOLE_END, 4 << 20));
        assert!(!ram.contains(HOLE_END, (4 << 20) + 1));
        assert!(!ram.contains(u64::MAX, 2));
    }

    #[test]
    fn a_write_over_the_edge_writes_nothing() {
        let ram = ram(MIN_SIZE);
        assert!(ram.write(VGA_START - 2, &[1, 2, 3]).is_err());
        let mut b = [9; 2];
        ram.read(VGA_START - 2, &mut b).expect("RAM");
        assert_eq!(b, [0, 0]);
    }

    #[test]
    fn a_bit_is_set_once_and_its_page_is_told() {
        let ram = ram(MIN_SIZE);
        assert_eq!([ram.set_bit(0x3005, 6), ram.set_bit(0x3005, 6)], [Ok(false), Ok(true)]);
        let mut byte = [0];
        ram.read(0x3005, &mut byte).expect("RAM");
        assert_eq!(byte, [0x40]);
        let mut pages = Vec::new();
        ram.take_dirty(|p| pages.push(p));
        assert_eq!(pages, [0x3000]);
        assert!(ram.set_bit(VGA_START, 0).is_err());
    }

    #[test]
    fn written_pages_are_told_once() {
        let ram = ram(MIN_SIZE);
        ram.write(0x1fff, &[1, 2]).expect("RAM");
        let mut pages = Vec::new();
        ram.take_dirty(|p| pages.push(p));
        assert_eq!(pages, [0x1000, 0x2000]);
        ram.take_dirty(|p| panic!("{p:#x} told twice"));
    }

    #[test]
    fn sizes_that_no_board_has_are_refused() {
        for size in [0, PAGE, MIN_SIZE + 1, u64::MAX] {
            assert!(matches!(GuestRam::new(size, Backing::Auto), Err(RamError::Size { .. })));
        }
        assert!(matches!(
            GuestRam::new(3 << 20, Backing::Huge2M),
            Err(RamError::Size { granule: 0x20_0000, .. })
        ));
    }
}
