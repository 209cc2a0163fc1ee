//! Lab memory and the memslots that show it.

use super::{Result, ask, op, physical};
use core::sync::atomic::{AtomicU32, Ordering};
use payload_abi::lab::{advice, backing};

/// Guest-physical (and linear) addresses from here to 3 GiB are nobody's on a machine with at most 2
/// GiB of memory: the place for lab slots.
pub const AREA: u64 = 0x8000_0000;

/// What the number of a slot in the address space of system-management mode has set.
const SMM: u32 = 1 << 16;

/// Numbers of lab slots begin here: the board's are below.
static NEXT: AtomicU32 = AtomicU32::new(16);

/// What backs lab memory on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Backing {
    /// Pages of 4 KiB only.
    Small = backing::SMALL,
    /// Transparent huge pages are asked for.
    Transparent = backing::TRANSPARENT,
    /// hugetlbfs pages of 2 MiB (needs `host:hugepages-2M`).
    Huge2M = backing::HUGE_2M,
    /// hugetlbfs pages of 1 GiB (needs `host:hugepages-1G`).
    Huge1G = backing::HUGE_1G,
}

/// What the host is told of lab memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Advice {
    /// The pages are dropped and read as zero (`MADV_DONTNEED`).
    Drop = advice::DROP,
    /// `MADV_HUGEPAGE`.
    Huge = advice::HUGE,
    /// `MADV_NOHUGEPAGE`.
    Small = advice::SMALL,
    /// `MADV_COLLAPSE`.
    Collapse = advice::COLLAPSE,
}

/// What the host itself may do with pages of lab memory; KVM is held to it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Protection {
    /// Nothing.
    None = 0,
    /// Read.
    Read = 1,
    /// Read and write.
    Write = 3,
}

/// Memory of the host's that slots can show; zeroes at first, and there until the VM ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    id: u64,
}

impl Memory {
    /// Makes `size` bytes, a whole number of pages of the backing.
    pub fn new(size: u64, backing: Backing) -> Result<Memory> {
        Ok(Memory { id: ask(op::MEMORY, &[size, backing as u64])?.0 as u64 })
    }

    /// Its number, for requests of a [`super::Chain`].
    pub fn number(self) -> u64 {
        self.id
    }

    /// The host reads.
    pub fn read(self, offset: u64, to: &mut [u8]) -> Result<()> {
        let (at, len) = (physical(to.as_mut_ptr()), to.len() as u64);
        ask(op::READ, &[self.id, offset, at, len]).map(|_| ())
    }

    /// The host writes.
    pub fn write(self, offset: u64, from: &[u8]) -> Result<()> {
        let (at, len) = (physical(from.as_ptr()), from.len() as u64);
        ask(op::WRITE, &[self.id, offset, at, len]).map(|_| ())
    }

    /// The host reads a word.
    pub fn read_u64(self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The host writes a word.
    pub fn write_u64(self, offset: u64, value: u64) -> Result<()> {
        self.write(offset, &value.to_le_bytes())
    }

    /// The host fills `len` bytes, at most 64 MiB, with a word.
    pub fn fill(self, offset: u64, len: u64, word: u64) -> Result<()> {
        ask(op::FILL, &[self.id, offset, len, word]).map(|_| ())
    }

    /// The [`super::hash`] of `len` bytes, at most 64 MiB, as the host reads them.
    pub fn hash(self, offset: u64, len: u64) -> Result<u64> {
        Ok(ask(op::HASH, &[self.id, offset, len])?.1)
    }

    /// Tells the host something of a part.
    pub fn advise(self, offset: u64, len: u64, advice: Advice) -> Result<()> {
        ask(op::ADVISE, &[self.id, offset, len, advice as u64]).map(|_| ())
    }

    /// Protects a part on the host.
    pub fn protect(self, offset: u64, len: u64, protection: Protection) -> Result<()> {
        ask(op::PROTECT, &[self.id, offset, len, protection as u64]).map(|_| ())
    }

    /// From now on pages of a part that are not there yet appear when they are touched, filled by a
    /// thread of the host: each 64-bit word is `seed ^ offset in the memory` (needs
    /// `host:userfault`, and [`Backing::Small`]). Once for each memory.
    pub fn userfault(self, offset: u64, len: u64, seed: u64) -> Result<()> {
        ask(op::USERFAULT, &[self.id, offset, len, seed]).map(|_| ())
    }

    /// Pages that appeared so.
    pub fn userfaults(self) -> Result<u64> {
        Ok(ask(op::USERFAULT_COUNT, &[self.id])?.1)
    }

    /// Makes a memslot of a number of its own: `size` bytes from `offset` on appear at `gpa`, outside
    /// of system-management mode. `flags` are of [`super::kvm::slot`].
    pub fn slot(self, gpa: u64, offset: u64, size: u64, flags: u32) -> Result<Slot> {
        self.slot_in(0, gpa, offset, size, flags)
    }

    /// As [`Memory::slot`], in system-management mode and only there.
    pub fn smm_slot(self, gpa: u64, offset: u64, size: u64, flags: u32) -> Result<Slot> {
        self.slot_in(SMM, gpa, offset, size, flags)
    }

    fn slot_in(self, space: u32, gpa: u64, offset: u64, size: u64, flags: u32) -> Result<Slot> {
        let id = space | NEXT.fetch_add(1, Ordering::Relaxed);
        let slot = Slot { id, gpa, size, flags, memory: self, offset };
        slot.set()?;
        Ok(slot)
    }
}

/// A memslot over lab memory. It stays when this is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub id: u32,
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Of [`super::kvm::slot`].
    pub flags: u32,
    /// What it shows.
    pub memory: Memory,
    /// From which byte on.
    pub offset: u64,
}

impl Slot {
    /// Gives KVM the slot as the fields say: makes it anew, moves it, changes its flags.
    pub fn set(&self) -> Result<()> {
        let Slot { id, gpa, size, flags, memory, offset } = *self;
        ask(op::SLOT, &[id.into(), flags.into(), gpa, size, memory.id, offset]).map(|_| ())
    }

    /// Moves it.
    pub fn move_to(&mut self, gpa: u64) -> Result<()> {
        let moved = Slot { gpa, ..*self };
        moved.set()?;
        *self = moved;
        Ok(())
    }

    /// Changes its flags.
    pub fn set_flags(&mut self, flags: u32) -> Result<()> {
        let changed = Slot { flags, ..*self };
        changed.set()?;
        *self = changed;
        Ok(())
    }

    /// Deletes it. [`Slot::set`] makes it again.
    pub fn delete(&self) -> Result<()> {
        Slot { size: 0, ..*self }.set()
    }

    /// Fills `bitmap`, one bit a page, with the pages written since the last time.
    pub fn dirty_log(&self, bitmap: &mut [u64]) -> Result<()> {
        dirty_log(self.id, bitmap)
    }

    /// Clears the pages of `bitmap`, of which bit 0 is page `first`, a multiple of 64.
    pub fn clear_dirty_log(&self, first: u64, pages: u32, bitmap: &[u64]) -> Result<()> {
        clear_dirty_log(self.id, first, pages, bitmap)
    }
}

fn dirty_log(id: u32, bitmap: &mut [u64]) -> Result<()> {
    let (at, len) = (physical(bitmap.as_mut_ptr()), 8 * bitmap.len() as u64);
    ask(op::DIRTY_LOG, &[id.into(), at, len]).map(|_| ())
}

fn clear_dirty_log(id: u32, first: u64, pages: u32, bitmap: &[u64]) -> Result<()> {
    let (at, len) = (physical(bitmap.as_ptr()), 8 * bitmap.len() as u64);
    ask(op::CLEAR_DIRTY_LOG, &[id.into(), first, pages.into(), at, len]).map(|_| ())
}

/// One of the board's slots of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSlot {
    /// Its number.
    pub id: u32,
    /// First guest-physical address.
    pub gpa: u64,
}

impl RamSlot {
    /// The one in which `gpa` lies.
    pub fn of(gpa: u64) -> Result<RamSlot> {
        let (id, gpa) = ask(op::RAM_SLOT, &[gpa])?;
        Ok(RamSlot { id: id as u32, gpa })
    }

    /// The same RAM as system-management mode sees it.
    pub fn in_smm(self) -> RamSlot {
        RamSlot { id: self.id | SMM, ..self }
    }

    /// Changes its flags: of [`super::kvm::slot`].
    pub fn set_flags(self, flags: u32) -> Result<()> {
        ask(op::RAM_FLAGS, &[self.id.into(), flags.into()]).map(|_| ())
    }

    /// As [`Slot::dirty_log`]; 256 MiB of memory want 1024 words.
    pub fn dirty_log(self, bitmap: &mut [u64]) -> Result<()> {
        dirty_log(self.id, bitmap)
    }

    /// As [`Slot::clear_dirty_log`].
    pub fn clear_dirty_log(self, first: u64, pages: u32, bitmap: &[u64]) -> Result<()> {
        clear_dirty_log(self.id, first, pages, bitmap)
    }
}
