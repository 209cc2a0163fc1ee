//! A vCPU's dirty ring: pages that it wrote, in the order in which it did first.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::VcpuFd;

use crate::hv::HvError;
use crate::hv::lab::DirtyPage;
use crate::ram::PAGE;

/// Bytes of an entry.
pub(super) const ENTRY: u32 = size_of::<kvm_dirty_gfn>() as u32;

/// `KVM_DIRTY_GFN_F_DIRTY`: KVM has filled the entry.
const DIRTY: u32 = 1 << 0;
/// `KVM_DIRTY_GFN_F_RESET`: it has been taken, and KVM may have it back.
const RESET: u32 = 1 << 1;

/// The ring, mapped from the vCPU's descriptor.
#[derive(Debug)]
pub(super) struct DirtyRing {
    entries: *mut kvm_dirty_gfn,
    count: u32,
    /// The entry to be taken next; counts on, the place is modulo `count`.
    next: u32,
}

// SAFETY: the mapping belongs to this value alone, and moves with it.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// # Errors
    /// When the host has no room for the mapping.
    pub(super) fn map(fd: &VcpuFd, count: u32) -> Result<DirtyRing, HvError> {
        let len = count as usize * ENTRY as usize;
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE as i64;
        let (rights, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at =
            unsafe { libc::mmap(ptr::null_mut(), len, rights, shared, fd.as_raw_fd(), offset) };
        if at == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            return Err(HvError::Call { what: "mmap of a vCPU's dirty ring".to_owned(), source });
        }
        Ok(DirtyRing { entries: at.cast(), count, next: 0 })
    }

    /// Takes at most `most` entries out. They are free again after `KVM_RESET_DIRTY_RINGS`.
    pub(super) fn take(&mut self, most: usize) -> Vec<DirtyPage> {
        let mut pages = Vec::new();
        while pages.len() < most.min(self.count as usize) {
            // SAFETY: the place is inside the mapping, which is aligned to a page. The flags are
            // shared with KVM; the rest of the entry is the reader's while they say so.
            unsafe {
                let entry = self.entries.add((self.next % self.count) as usize);
                let flags = AtomicU32::from_ptr(&raw mut (*entry).flags);
                if flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
                    break;
                }
                pages.push(DirtyPage { slot: (*entry).slot, page: (*entry).offset });
                flags.store(RESET, Ordering::Release);
            }
            self.next = self.next.wrapping_add(1);
        }
        pages
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, of this length; nothing points into it any more.
        unsafe { libc::munmap(self.entries.cast(), self.count as usize * ENTRY as usize) };
    }
}
