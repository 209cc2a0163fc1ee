//! A lab on KVM: the calls that a guest asks for about itself.

mod memory;
mod table;
mod transplant;
mod userfault;
#[cfg(feature = "sabotage")]
mod wrong;

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::*;

pub(super) use memory::Memories;
pub use userfault::userfaults;
#[cfg(feature = "sabotage")]
pub use wrong::WrongLab;

use super::vcpu::KvmVcpu;
use super::vm::{CurrentVm, KvmVm, SPACE_SHIFT, ram_slots};
use super::{Host, KvmConfig};
use crate::exit::{Entry, Exit};
use crate::hv::lab::{
    Advice, AttrCall, DirtyPage, Errno, Lab, MsrRange, Part, Protection, Slot, Target,
};
use crate::hv::{HvError, Vcpu};
use crate::ram::{Backing, GuestRam, PAGE};
use memory::errno;

/// `KVM_SET_USER_MEMORY_REGION`, `KVM_GET_DIRTY_LOG`, `KVM_CLEAR_DIRTY_LOG`,
/// `KVM_X86_SET_MSR_FILTER`, and the three of device attributes.
const SET_USER_MEMORY_REGION: u32 = table::iow(0x46, 32);
const GET_DIRTY_LOG: u32 = table::iow(0x42, 16);
const CLEAR_DIRTY_LOG: u32 = table::iowr(0xc0, 24);
const SET_MSR_FILTER: u32 = table::iow(0xc6, 392);
const SET_DEVICE_ATTR: u32 = table::iow(0xe1, 24);
const GET_DEVICE_ATTR: u32 = table::iow(0xe2, 24);
const HAS_DEVICE_ATTR: u32 = table::iow(0xe3, 24);

/// The lab of one guest.
#[derive(Debug)]
pub struct KvmLab {
    host: Host,
    config: KvmConfig,
    ram: GuestRam,
    current: Arc<CurrentVm>,
    state: Mutex<State>,
}

/// What a new VM gets again.
#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<u32, kvm_userspace_memory_region>,
    board: Board,
    settings: Vec<Setting>,
    filter: Option<(u32, Vec<MsrRange>)>,
}

/// Which memslots are the board's.
#[derive(Clone, Copy, Debug, Default)]
struct Board {
    /// How many there are in each address space, from 0 on.
    slots: u32,
    /// How many address spaces have them.
    spaces: u32,
}

impl Board {
    fn has(self, slot: u32) -> bool {
        slot >> SPACE_SHIFT < self.spaces && slot & ((1 << SPACE_SHIFT) - 1) < self.slots
    }
}

/// An ioctl that set something up.
#[derive(Clone, Debug)]
struct Setting {
    target: Target,
    number: u32,
    bytes: Vec<u8>,
    value: u64,
}

/// Makes an ioctl with a pointer to `bytes`, or with `value` if there are none.
///
/// # Safety
/// `fd` is a descriptor of KVM's, and `bytes` are what the ioctl's argument points to: long enough
/// for all that it reads or writes there, and pointers in them lead to what the ioctl expects.
unsafe fn raw(fd: i32, number: u32, bytes: &mut [u8], value: u64) -> Result<i64, Errno> {
    let argument = if bytes.is_empty() { value } else { bytes.as_mut_ptr() as u64 };
    // SAFETY: the caller's promise.
    match unsafe { libc::ioctl(fd, number.into(), argument) } {
        -1 => Err(errno()),
        result => Ok(result.into()),
    }
}

/// The bytes of one of KVM's structures.
fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    let at = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: the types that this is called with are plain numbers and have no padding.
    unsafe { std::slice::from_raw_parts(at, size_of::<T>()) }.to_vec()
}

impl KvmLab {
    /// For the guest in `current`, which was made from the other arguments.
    ///
    /// # Errors
    /// When the memory cannot be made memslots of.
    pub fn new(
        host: Host,
        config: KvmConfig,
        ram: GuestRam,
        current: Arc<CurrentVm>,
    ) -> Result<KvmLab, HvError> {
        let spaces = host.address_spaces(config.smm);
        let slots = ram_slots(&ram, spaces)?;
        let board = Board { slots: slots.len() as u32 / spaces, spaces };
        let slots = slots.into_iter().map(|r| (r.slot, r)).collect();
        let state = Mutex::new(State { slots, board, ..State::default() });
        Ok(KvmLab { host, config, ram, current, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of an XSAVE area; 4096 where KVM does not say.
    fn xsave_size(&self) -> usize {
        usize::try_from(self.host.check_extension(KVM_CAP_XSAVE2)).unwrap_or(0).max(4096)
    }

    /// Sets a memslot, and remembers it.
    fn set_slot(
        &self,
        vm: &KvmVm,
        state: &mut State,
        region: kvm_userspace_memory_region,
    ) -> Result<(), Errno> {
        set_region(vm, &region)?;
        match region.memory_size {
            0 => state.slots.remove(&region.slot),
            _ => state.slots.insert(region.slot, region),
        };
        Ok(())
    }
}

/// `KVM_SET_USER_MEMORY_REGION`.
fn set_region(vm: &KvmVm, region: &kvm_userspace_memory_region) -> Result<(), Errno> {
    // SAFETY: the structure; its address is that of guest RAM or lab memory, which outlive the VM.
    unsafe { raw(vm.fd.as_raw_fd(), SET_USER_MEMORY_REGION, &mut bytes_of(region), 0) }.map(|_| ())
}

/// `KVM_X86_SET_MSR_FILTER`.
fn set_filter(vm: &KvmVm, flags: u32, ranges: &[MsrRange]) -> Result<(), Errno> {
    let mut filter = kvm_msr_filter { flags, ..Default::default() };
    if ranges.len() > filter.ranges.len() {
        return Err(Errno(libc::E2BIG));
    }
    for (to, range) in filter.ranges.iter_mut().zip(ranges) {
        if (range.bitmap.len() as u64) < u64::from(range.count).div_ceil(8) {
            return Err(Errno(libc::EINVAL));
        }
        to.flags = range.flags;
        to.nmsrs = range.count;
        to.base = range.first;
        // KVM only reads it.
        to.bitmap = range.bitmap.as_ptr().cast_mut();
    }
    // SAFETY: the structure, whose bitmaps live through the call and are as long as they must be.
    match unsafe { libc::ioctl(vm.fd.as_raw_fd(), SET_MSR_FILTER.into(), &raw const filter) } {
        -1 => Err(errno()),
        _ => Ok(()),
    }
}

/// One of the calls on an attribute of 64 bits.
fn device_attr(fd: i32, group: u32, attr: u64, call: AttrCall) -> Result<u64, Errno> {
    let (number, mut value) = match call {
        AttrCall::Has => (HAS_DEVICE_ATTR, 0),
        AttrCall::Get => (GET_DEVICE_ATTR, 0),
        AttrCall::Set(value) => (SET_DEVICE_ATTR, value),
    };
    let addr = &raw mut value as u64;
    let attr = kvm_device_attr { flags: 0, group, attr, addr };
    // SAFETY: the structure, whose address is that of a 64-bit word: so long is every attribute
    // that a VM or vCPU of x86 has.
    unsafe { raw(fd, number, &mut bytes_of(&attr), 0) }?;
    Ok(value)
}

impl Lab for KvmLab {
    type Vcpu = KvmVcpu;

    fn settle(&self, vcpu: &mut KvmVcpu, entry: Entry) -> Exit {
        vcpu.settle(entry)
    }

    fn nudge(&self, vcpu: &mut KvmVcpu) {
        vcpu.nudge();
    }

    fn registers(&self, vcpu: &KvmVcpu) -> Result<(u64, u64), Errno> {
        let state = vcpu.state().map_err(|_| Errno(libc::EIO))?;
        Ok((state.rip, state.rflags))
    }

    fn set_registers(&self, vcpu: &mut KvmVcpu, rip: u64, rflags: u64) -> Result<(), Errno> {
        let mut regs = kvm_regs::default();
        let at = (&raw mut regs).cast::<u8>();
        // SAFETY: the bytes of a structure of plain numbers.
        let bytes = unsafe { std::slice::from_raw_parts_mut(at, size_of::<kvm_regs>()) };
        // SAFETY: the ioctl fills this structure.
        unsafe { raw(vcpu.raw, table::GET_REGS, bytes, 0) }?;
        (regs.rip, regs.rflags) = (rip, rflags);
        // SAFETY: the ioctl reads this structure.
        unsafe { raw(vcpu.raw, table::SET_REGS, &mut bytes_of(&regs), 0) }.map(|_| ())
    }

    fn ioctl(
        &self,
        vcpu: &mut KvmVcpu,
        target: Target,
        number: u32,
        bytes: &mut Vec<u8>,
        value: u64,
    ) -> Result<i64, Errno> {
        let allowed = table::find(target, number, bytes)?;
        let room = allowed.shape.room(bytes, value, self.xsave_size())?;
        bytes.resize(room, 0);
        let vm = self.current.get();
        let fd = match target {
            Target::System => self.host.kvm.as_raw_fd(),
            Target::Vm => vm.fd.as_raw_fd(),
            Target::Vcpu => vcpu.raw,
        };
        let setting = allowed.kept.then(|| Setting { target, number, bytes: bytes.clone(), value });
        // SAFETY: the ioctl is one that the table allows, whose argument holds no address; the
        // bytes are as many as its shape has.
        let result = unsafe { raw(fd, number, bytes, value) }?;
        if let Some(setting) = setting {
            let mut state = self.state();
            // Capabilities are many; of the others the last one counts.
            if number != table::ENABLE_CAP {
                state.settings.retain(|s| (s.target, s.number) != (target, number));
            }
            if state.settings.len() < 256 {
                state.settings.push(setting);
            }
        }
        Ok(result)
    }

    fn attribute(
        &self,
        vcpu: &mut KvmVcpu,
        target: Target,
        group: u32,
        attribute: u64,
        call: AttrCall,
    ) -> Result<u64, Errno> {
        match target {
            Target::System => Err(Errno(libc::EPERM)),
            Target::Vm => device_attr(self.current.get().fd.as_raw_fd(), group, attribute, call),
            Target::Vcpu => device_attr(vcpu.raw, group, attribute, call),
        }
    }

    fn msr_filter(&self, flags: u32, ranges: &[MsrRange]) -> Result<(), Errno> {
        let vm = self.current.get();
        let mut state = self.state();
        set_filter(&vm, flags, ranges)?;
        state.filter = Some((flags, ranges.to_vec()));
        Ok(())
    }

    fn memory(&self, size: u64, backing: Backing) -> Result<u32, Errno> {
        self.current.memories.add(size, backing)
    }

    fn slot(&self, slot: Slot) -> Result<(), Errno> {
        let vm = self.current.get();
        let mut state = self.state();
        if state.board.has(slot.slot) {
            return Err(Errno(libc::EPERM));
        }
        let part = Part { memory: slot.memory, offset: slot.offset, len: slot.size };
        let userspace_addr = match slot.size {
            0 => 0,
            _ => self.current.memories.address(part)?,
        };
        let region = kvm_userspace_memory_region {
            slot: slot.slot,
            flags: slot.flags,
            guest_phys_addr: slot.gpa,
            memory_size: slot.size,
            userspace_addr,
        };
        self.set_slot(&vm, &mut state, region)
    }

    fn ram_slot(&self, gpa: u64) -> Result<(u32, u64), Errno> {
        let state = self.state();
        let holds = |r: &&kvm_userspace_memory_region| {
            gpa.checked_sub(r.guest_phys_addr).is_some_and(|at| at < r.memory_size)
        };
        let region = state.slots.range(..state.board.slots).map(|(_, r)| r).find(holds);
        region.map(|r| (r.slot, r.guest_phys_addr)).ok_or(Errno(libc::ENOENT))
    }

    fn ram_flags(&self, slot: u32, flags: u32) -> Result<(), Errno> {
        let vm = self.current.get();
        let mut state = self.state();
        if !state.board.has(slot) {
            return Err(Errno(libc::ENOENT));
        }
        let region = *state.slots.get(&slot).ok_or(Errno(libc::ENOENT))?;
        self.set_slot(&vm, &mut state, kvm_userspace_memory_region { flags, ..region })
    }

    fn read(&self, memory: u32, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.current.memories.read(memory, offset, bytes)
    }

    fn write(&self, memory: u32, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.current.memories.write(memory, offset, bytes)
    }

    fn advise(&self, part: Part, advice: Advice) -> Result<(), Errno> {
        self.current.memories.advise(part, advice)
    }

    fn protect(&self, part: Part, protection: Protection) -> Result<(), Errno> {
        self.current.memories.protect(part, protection)
    }

    fn dirty_log(&self, slot: u32, most: u64) -> Result<Vec<u8>, Errno> {
        let vm = self.current.get();
        let state = self.state();
        let region = state.slots.get(&slot).ok_or(Errno(libc::ENOENT))?;
        let mut bitmap = vec![0u64; (region.memory_size / PAGE).div_ceil(64) as usize];
        if bitmap.len() as u64 * 8 > most {
            return Err(Errno(libc::E2BIG));
        }
        let mut log = kvm_dirty_log { slot, ..Default::default() };
        log.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
        // SAFETY: the structure, whose bitmap has a bit for each page of the slot, in whole words.
        match unsafe { libc::ioctl(vm.fd.as_raw_fd(), GET_DIRTY_LOG.into(), &raw mut log) } {
            -1 => Err(errno()),
            _ => Ok(bitmap.into_iter().flat_map(u64::to_le_bytes).collect()),
        }
    }

    fn clear_dirty_log(
        &self,
        slot: u32,
        first: u64,
        pages: u32,
        bitmap: Vec<u8>,
    ) -> Result<(), Errno> {
        let vm = self.current.get();
        let words = u64::from(pages).div_ceil(64);
        if (bitmap.len() as u64) < words * 8 {
            return Err(Errno(libc::EINVAL));
        }
        let (chunks, _) = bitmap.as_chunks::<8>();
        let mut bitmap: Vec<u64> = chunks.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let mut log =
            kvm_clear_dirty_log { slot, num_pages: pages, first_page: first, ..Default::default() };
        log.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
        // SAFETY: as for `dirty_log`; the bitmap has a bit for each of `pages`.
        match unsafe { libc::ioctl(vm.fd.as_raw_fd(), CLEAR_DIRTY_LOG.into(), &raw mut log) } {
            -1 => Err(errno()),
            _ => Ok(()),
        }
    }

    fn harvest(&self, vcpu: &mut KvmVcpu, most: usize) -> Result<Vec<DirtyPage>, Errno> {
        Ok(vcpu.ring.as_mut().ok_or(Errno(libc::ENOENT))?.take(most))
    }

    fn transplant(&self, vcpu: &mut KvmVcpu) -> Result<(), (Errno, u64)> {
        transplant::transplant(self, vcpu)
    }

    fn userfault(&self, part: Part, seed: u64) -> Result<(), Errno> {
        self.current.memories.userfault(part, seed)
    }

    fn userfaults(&self, memory: u32) -> Result<u64, Errno> {
        self.current.memories.userfaults(memory)
    }

    fn interrupt_window(&self, vcpu: &mut KvmVcpu, request: Option<bool>) -> u64 {
        vcpu.interrupt_window(request)
    }
}

#[cfg(test)]
mod tests;
