//! What a lab needs of a hypervisor: calls that a guest asks for about itself.

use super::Vcpu;
use crate::exit::{Entry, Exit};
use crate::ram::Backing;

/// An error number of Linux, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What an ioctl is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The hypervisor itself.
    System,
    /// The VM.
    Vm,
    /// The vCPU that asks.
    Vcpu,
}

/// What is done with an attribute of a VM or vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrCall {
    /// Asks whether it is there.
    Has,
    /// Reads it.
    Get,
    /// Sets it.
    Set(u64),
}

/// A memslot over lab memory, as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number; bits 31:16 are its address space, of which 1 is that of system-management mode.
    pub slot: u32,
    /// `KVM_MEM_*`.
    pub flags: u32,
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes; 0 deletes it.
    pub size: u64,
    /// The lab memory it shows.
    pub memory: u32,
    /// Offset of its first byte there.
    pub offset: u64,
}

/// Bytes of lab memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The number of the memory.
    pub memory: u32,
    /// Offset of the first byte.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

/// What the host is told of lab memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The pages are dropped and read as zero.
    Drop,
    /// Large pages are wanted.
    Huge,
    /// Large pages are not wanted.
    Small,
    /// The pages are made one large page now.
    Collapse,
}

/// What the host itself may do with pages of lab memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Nothing.
    None,
    /// Read them.
    Read,
    /// Read and write them.
    Write,
}

/// One range of an MSR filter: a bitmap with one bit an MSR, 1 lets the access through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrRange {
    /// `KVM_MSR_FILTER_*`.
    pub flags: u32,
    /// MSRs that it is about, from 1 to 8 times the bitmap's length.
    pub count: u32,
    /// The first.
    pub first: u32,
    /// The bitmap.
    pub bitmap: Vec<u8>,
}

/// A page that a dirty ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyPage {
    /// The slot.
    pub slot: u32,
    /// The page in it.
    pub page: u64,
}

/// The calls of a lab. Each is made on the thread of the vCPU that it is given, which is outside
/// of guest mode. Whatever the arguments, a call gives an error number at worst.
pub trait Lab: Send + Sync {
    /// Its vCPUs.
    type Vcpu: Vcpu;

    /// Completes the last exit without executing another instruction: [`Exit::Interrupted`], or
    /// the exit that completing it leads to.
    fn settle(&self, vcpu: &mut Self::Vcpu, entry: Entry) -> Exit;

    /// Makes the vCPU's next run end with [`Exit::Interrupted`], as a kick would that came while
    /// the lab was busy.
    fn nudge(&self, vcpu: &mut Self::Vcpu);

    /// RIP and RFLAGS, an instruction that is under way not completed.
    ///
    /// # Errors
    /// When the host refuses.
    fn registers(&self, vcpu: &Self::Vcpu) -> Result<(u64, u64), Errno>;

    /// Sets RIP and RFLAGS.
    ///
    /// # Errors
    /// When the host refuses.
    fn set_registers(&self, vcpu: &mut Self::Vcpu, rip: u64, rflags: u64) -> Result<(), Errno>;

    /// Makes an ioctl that is on the list of allowed ones. `bytes` is what its argument points to,
    /// before and after; `value` is the argument of one that takes a number.
    ///
    /// # Errors
    /// `EPERM` for one that is not allowed, `EINVAL` if `bytes` has not the length that the ioctl
    /// has, else the ioctl's own.
    fn ioctl(
        &self,
        vcpu: &mut Self::Vcpu,
        target: Target,
        number: u32,
        bytes: &mut Vec<u8>,
        value: u64,
    ) -> Result<i64, Errno>;

    /// An attribute of 64 bits; gives its value.
    ///
    /// # Errors
    /// The host's own.
    fn attribute(
        &self,
        vcpu: &mut Self::Vcpu,
        target: Target,
        group: u32,
        attribute: u64,
        call: AttrCall,
    ) -> Result<u64, Errno>;

    /// Sets the filter of MSR accesses.
    ///
    /// # Errors
    /// `EINVAL` if a bitmap is too short, else the host's own.
    fn msr_filter(&self, flags: u32, ranges: &[MsrRange]) -> Result<(), Errno>;

    /// Makes lab memory; gives its number.
    ///
    /// # Errors
    /// `EINVAL` for a size that does not suit the backing, `ENOMEM` if there is not so much.
    fn memory(&self, size: u64, backing: Backing) -> Result<u32, Errno>;

    /// Makes, moves, changes or deletes a memslot over lab memory.
    ///
    /// # Errors
    /// `EPERM` for a slot of the board, `EFAULT` if the lab memory has not these bytes, else the
    /// host's own.
    fn slot(&self, slot: Slot) -> Result<(), Errno>;

    /// The board's slot that holds a guest-physical address: its number in address space 0 and its
    /// first address.
    ///
    /// # Errors
    /// `ENOENT` if there is none.
    fn ram_slot(&self, gpa: u64) -> Result<(u32, u64), Errno>;

    /// Changes the flags of one of the board's slots.
    ///
    /// # Errors
    /// `ENOENT` if the board has no such slot, else the host's own.
    fn ram_flags(&self, slot: u32, flags: u32) -> Result<(), Errno>;

    /// Reads lab memory from the host's side.
    ///
    /// # Errors
    /// `EFAULT` if it has not these bytes, `EACCES` if a page is protected.
    fn read(&self, memory: u32, offset: u64, bytes: &mut [u8]) -> Result<(), Errno>;

    /// Writes lab memory from the host's side.
    ///
    /// # Errors
    /// As [`Lab::read`].
    fn write(&self, memory: u32, offset: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Tells the host something of lab memory.
    ///
    /// # Errors
    /// `EFAULT` if it has not these bytes, else the host's own.
    fn advise(&self, part: Part, advice: Advice) -> Result<(), Errno>;

    /// Protects lab memory on the host.
    ///
    /// # Errors
    /// As [`Lab::advise`].
    fn protect(&self, part: Part, protection: Protection) -> Result<(), Errno>;

    /// The bitmap of a slot's dirty pages, which are clean from now on unless they are to be
    /// cleared by hand.
    ///
    /// # Errors
    /// `ENOENT` if there is no such slot, `E2BIG` if the bitmap has more bytes than `most`, else the
    /// host's own.
    fn dirty_log(&self, slot: u32, most: u64) -> Result<Vec<u8>, Errno>;

    /// Clears dirty pages by hand: those in `bitmap`, of `pages` from `first`.
    ///
    /// # Errors
    /// As [`Lab::dirty_log`]; `EINVAL` if the bitmap is too short.
    fn clear_dirty_log(
        &self,
        slot: u32,
        first: u64,
        pages: u32,
        bitmap: Vec<u8>,
    ) -> Result<(), Errno>;

    /// Takes at most `most` entries out of the vCPU's dirty ring.
    ///
    /// # Errors
    /// `ENOENT` if it has none.
    fn harvest(&self, vcpu: &mut Self::Vcpu, most: usize) -> Result<Vec<DirtyPage>, Errno>;

    /// Saves all state of the VM, makes another, and puts the state there: the vCPU is then that
    /// one's.
    ///
    /// # Errors
    /// The host's own, and the step that failed, by its number in `payload_abi::lab::step`. The
    /// guest then goes on where it was.
    fn transplant(&self, vcpu: &mut Self::Vcpu) -> Result<(), (Errno, u64)>;

    /// Registers lab memory for page faults that the host resolves with a pattern: each word is
    /// `seed` exclusive-or its offset in the memory.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` if this host has no such thing, else the host's own.
    fn userfault(&self, part: Part, seed: u64) -> Result<(), Errno>;

    /// How many faults were resolved in a memory.
    ///
    /// # Errors
    /// `EFAULT` if there is no such memory.
    fn userfaults(&self, memory: u32) -> Result<u64, Errno>;

    /// Has the vCPU leave the guest when it can take an interrupt, or no more, where `request` says so.
    /// Gives what the hypervisor said of that after the last run, as
    /// `payload_abi::lab::op::INTERRUPT_WINDOW` has it.
    fn interrupt_window(&self, vcpu: &mut Self::Vcpu, request: Option<bool>) -> u64;
}
