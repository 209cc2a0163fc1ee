//! Lab memory: mappings of the host's own, which memslots show and the host looks at.

use std::collections::BTreeMap;
use std::io;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::userfault::Userfault;
use crate::hv::lab::{Advice, Errno, Part, Protection};
use crate::ram::{Backing, PAGE};

/// The most mappings.
const MOST: usize = 64;
/// The most bytes of all of them.
const MOST_BYTES: u64 = 64 << 30;
/// The most pages that one call protects.
const MOST_PROTECTED: u64 = 4096;
/// Mappings begin at a multiple of this, so that transparent huge pages fit.
const ALIGN: u64 = 2 << 20;

/// The last call's error.
pub(super) fn errno() -> Errno {
    Errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// All lab memory of a VM, by number.
#[derive(Debug, Default)]
pub(in crate::hv::kvm) struct Memories(Mutex<Vec<Memory>>);

/// One mapping.
#[derive(Debug)]
struct Memory {
    /// What was mapped, the alignment's excess included.
    mapping: (*mut libc::c_void, usize),
    base: u64,
    len: u64,
    backing: Backing,
    /// Pages that the host may not write or read, by offset.
    protected: BTreeMap<u64, Protection>,
    // Ends before the mapping goes.
    userfault: Option<Userfault>,
}

// SAFETY: the mapping belongs to this value alone, and moves with it.
unsafe impl Send for Memory {}

impl Memory {
    fn map(len: u64, backing: Backing) -> Result<Memory, Errno> {
        if len == 0 || !len.is_multiple_of(backing.granule()) {
            return Err(Errno(libc::EINVAL));
        }
        let (excess, huge) = match backing {
            Backing::Huge2M => (0, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB),
            Backing::Huge1G => (0, libc::MAP_HUGETLB | libc::MAP_HUGE_1GB),
            // What is not touched costs nothing.
            _ => (ALIGN, libc::MAP_NORESERVE),
        };
        let size = usize::try_from(len + excess).map_err(|_| Errno(libc::ENOMEM))?;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | huge;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), size, rights, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(errno());
        }
        let base = match excess {
            0 => at as u64,
            _ => (at as u64).next_multiple_of(ALIGN),
        };
        let mapping = (at, size);
        let protected = BTreeMap::new();
        let memory = Memory { mapping, base, len, backing, protected, userfault: None };
        let advice = match backing {
            Backing::Small => Some(libc::MADV_NOHUGEPAGE),
            Backing::Transparent => Some(libc::MADV_HUGEPAGE),
            _ => None,
        };
        if let Some(advice) = advice {
            match memory.madvise(0, len, advice) {
                // A kernel without transparent huge pages has small ones in any case.
                Err(Errno(libc::EINVAL)) if backing == Backing::Small => {}
                other => other?,
            }
        }
        Ok(memory)
    }

    /// The host's address of a part.
    fn address(&self, offset: u64, len: u64) -> Result<u64, Errno> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.base + offset),
            _ => Err(Errno(libc::EFAULT)),
        }
    }

    fn madvise(&self, offset: u64, len: u64, advice: libc::c_int) -> Result<(), Errno> {
        let at = self.address(offset, len)?;
        // SAFETY: the range is lab memory, to which no reference points; the advice changes at
        // most what is in it.
        match unsafe { libc::madvise(at as *mut _, len as usize, advice) } {
            0 => Ok(()),
            _ => Err(errno()),
        }
    }

    /// The host's address of a part that it may use in this way.
    fn usable(&self, offset: u64, len: u64, write: bool) -> Result<*mut u8, Errno> {
        let at = self.address(offset, len)?;
        let first = offset & !(PAGE - 1);
        let mut pages = self.protected.range(first..offset.saturating_add(len));
        match pages.any(|(_, p)| write || *p == Protection::None) {
            true => Err(Errno(libc::EACCES)),
            false => Ok(at as *mut u8),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.userfault = None;
        // SAFETY: the mapping that `map` made; memslots that show it are gone or never run again.
        unsafe { libc::munmap(self.mapping.0, self.mapping.1) };
    }
}

impl Memories {
    fn lock(&self) -> MutexGuard<'_, Vec<Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `f` with the memory of this number.
    fn with<T>(
        &self,
        number: u32,
        f: impl FnOnce(&mut Memory) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        f(self.lock().get_mut(number as usize).ok_or(Errno(libc::EFAULT))?)
    }

    /// Makes one more; gives its number.
    pub(super) fn add(&self, len: u64, backing: Backing) -> Result<u32, Errno> {
        let mut all = self.lock();
        let sum = all.iter().try_fold(len, |sum, m| sum.checked_add(m.len));
        if all.len() == MOST || sum.is_none_or(|sum| sum > MOST_BYTES) {
            return Err(Errno(libc::ENOMEM));
        }
        all.push(Memory::map(len, backing)?);
        Ok(all.len() as u32 - 1)
    }

    /// The host's address of a part: what a memslot is made of.
    pub(super) fn address(&self, part: Part) -> Result<u64, Errno> {
        self.with(part.memory, |m| m.address(part.offset, part.len))
    }

    pub(super) fn read(&self, number: u32, offset: u64, to: &mut [u8]) -> Result<(), Errno> {
        self.with(number, |m| {
            let from = m.usable(offset, to.len() as u64, false)?;
            // SAFETY: the source is mapped and may be read; the guest may write it meanwhile, and
            // the bytes are then one or the other. The target is another allocation.
            unsafe { ptr::copy(from, to.as_mut_ptr(), to.len()) };
            Ok(())
        })
    }

    pub(super) fn write(&self, number: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.with(number, |m| {
            let to = m.usable(offset, from.len() as u64, true)?;
            // SAFETY: as for `read`, the other way round.
            unsafe { ptr::copy(from.as_ptr(), to, from.len()) };
            Ok(())
        })
    }

    pub(super) fn advise(&self, part: Part, advice: Advice) -> Result<(), Errno> {
        let advice = match advice {
            Advice::Drop => libc::MADV_DONTNEED,
            Advice::Huge => libc::MADV_HUGEPAGE,
            Advice::Small => libc::MADV_NOHUGEPAGE,
            Advice::Collapse => libc::MADV_COLLAPSE,
        };
        self.with(part.memory, |m| m.madvise(part.offset, part.len, advice))
    }

    pub(super) fn protect(&self, part: Part, protection: Protection) -> Result<(), Errno> {
        let Part { offset, len, .. } = part;
        if !offset.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
            return Err(Errno(libc::EINVAL));
        }
        if len / PAGE > MOST_PROTECTED {
            return Err(Errno(libc::E2BIG));
        }
        let rights = match protection {
            Protection::None => libc::PROT_NONE,
            Protection::Read => libc::PROT_READ,
            Protection::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        self.with(part.memory, |m| {
            let at = m.address(offset, len)?;
            // SAFETY: the range is lab memory, to which no reference points.
            if unsafe { libc::mprotect(at as *mut _, len as usize, rights) } != 0 {
                return Err(errno());
            }
            for page in (offset..offset + len).step_by(PAGE as usize) {
                match protection {
                    Protection::Write => m.protected.remove(&page),
                    _ => m.protected.insert(page, protection),
                };
            }
            Ok(())
        })
    }

    pub(super) fn userfault(&self, part: Part, seed: u64) -> Result<(), Errno> {
        self.with(part.memory, |m| {
            if m.userfault.is_some() {
                return Err(Errno(libc::EBUSY));
            }
            if m.backing != Backing::Small || !part.offset.is_multiple_of(PAGE) {
                return Err(Errno(libc::EINVAL));
            }
            m.address(part.offset, part.len)?;
            m.userfault = Some(Userfault::start(m.base, part.offset, part.len, seed)?);
            Ok(())
        })
    }

    pub(super) fn userfaults(&self, number: u32) -> Result<u64, Errno> {
        self.with(number, |m| Ok(m.userfault.as_ref().map_or(0, Userfault::count)))
    }
}
