//! The calls of the lab that tests make most, by name.

use super::kvm::{self, Plain, cap, number};
use super::{Errno, Result, abi, ask, ask_for, call_with, get, ioctl, op, physical, set, target};
use core::fmt;

/// Most MSRs in one call.
const MSRS: usize = 32;

/// General registers, as they are inside of this call.
pub fn regs() -> Result<kvm::Regs> {
    get(kvm::GET_REGS)
}

/// Special registers.
pub fn sregs() -> Result<kvm::Sregs> {
    get(kvm::GET_SREGS)
}

/// Sets special registers.
pub fn set_sregs(sregs: &kvm::Sregs) -> Result<()> {
    set(kvm::SET_SREGS, sregs)
}

/// Pending exceptions, interrupts, NMIs and SMIs.
pub fn events() -> Result<kvm::Events> {
    get(kvm::GET_VCPU_EVENTS)
}

/// Sets what is pending. What is injected arrives right behind this call.
pub fn set_events(events: &kvm::Events) -> Result<()> {
    set(kvm::SET_VCPU_EVENTS, events)
}

/// Switches debugging of this vCPU by its host on or off: `control` is of [`kvm::debug`], 0 is off.
pub fn guest_debug(control: u32, debugreg: [u64; 8]) -> Result<()> {
    set(kvm::SET_GUEST_DEBUG, &kvm::GuestDebug { control, pad: 0, debugreg })
}

/// The host reads MSRs; how many it could.
pub fn msrs(list: &mut [kvm::Msr]) -> Result<usize> {
    msrs_by(number::GET_MSRS, target::VCPU, list)
}

/// The host writes MSRs; how many it could.
pub fn set_msrs(list: &mut [kvm::Msr]) -> Result<usize> {
    msrs_by(number::SET_MSRS, target::VCPU, list)
}

/// The host reads MSRs that tell what KVM offers; how many it could.
pub fn feature_msrs(list: &mut [kvm::Msr]) -> Result<usize> {
    msrs_by(number::GET_MSRS, target::SYSTEM, list)
}

fn msrs_by(number: u32, target: u64, list: &mut [kvm::Msr]) -> Result<usize> {
    if list.len() > MSRS {
        return Err(Errno::E2BIG);
    }
    let mut all = [kvm::Msr::default(); MSRS + 1];
    // The header has the count where an entry has eight bytes before its value, and no value.
    let mut bytes = [0; 16 * (MSRS + 1)];
    bytes[..4].copy_from_slice(&(list.len() as u32).to_le_bytes());
    all[..list.len()].copy_from_slice(list);
    for (to, msr) in bytes[8..].chunks_exact_mut(16).zip(&all[..list.len()]) {
        to[..4].copy_from_slice(&msr.index.to_le_bytes());
        to[8..].copy_from_slice(&msr.data.to_le_bytes());
    }
    let done = ioctl(target, number, &mut bytes[..8 + 16 * list.len()])? as usize;
    for (from, msr) in bytes[8..].chunks_exact(16).zip(list.iter_mut()).take(done) {
        msr.data = u64::from_le_bytes(core::array::from_fn(|i| from[8 + i]));
    }
    Ok(done)
}

/// The host reads one MSR; `None` if KVM does not give it.
pub fn msr(index: u32) -> Result<Option<u64>> {
    let mut list = [kvm::Msr { index, ..Default::default() }];
    Ok((msrs(&mut list)? == 1).then_some(list[0].data))
}

/// The host writes one MSR; whether KVM takes the value.
pub fn set_msr(index: u32, data: u64) -> Result<bool> {
    Ok(set_msrs(&mut [kvm::Msr { index, reserved: 0, data }])? == 1)
}

/// The MSRs that KVM says are to be saved; how many there are. More than `list` holds is `E2BIG`.
pub fn msr_index_list(list: &mut [u32]) -> Result<usize> {
    index_list(number::GET_MSR_INDEX_LIST, list)
}

/// The MSRs that tell what KVM offers.
pub fn msr_feature_index_list(list: &mut [u32]) -> Result<usize> {
    index_list(number::GET_MSR_FEATURE_INDEX_LIST, list)
}

fn index_list(number: u32, list: &mut [u32]) -> Result<usize> {
    const MOST: usize = 1024;
    let mut all = [0u32; MOST + 1];
    let room = list.len().min(MOST);
    all[0] = room as u32;
    let len = 4 * (room + 1) as u64;
    let at = physical(&raw mut all);
    ask(op::IOCTL, &[target::SYSTEM, number.into(), at, len])?;
    // SAFETY: the array above, which the host has written to meanwhile.
    let all = unsafe { (&raw const all).read_volatile() };
    let count = (all[0] as usize).min(room);
    list[..count].copy_from_slice(&all[1..=count]);
    Ok(count)
}

/// One leaf of CPUID, as KVM has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // The fields are KVM's, by name.
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub padding: [u32; 3],
}

const _: () = assert!(size_of::<CpuidEntry>() == 40);
// SAFETY: words, without padding between them.
unsafe impl Plain for CpuidEntry {}

/// Leaves of CPUID, as an ioctl has them.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Cpuid {
    /// How many there are.
    pub count: u32,
    padding: u32,
    /// The leaves; those from `count` on mean nothing.
    pub entries: [CpuidEntry; 128],
}

// SAFETY: words and entries of words, without padding between them.
unsafe impl Plain for Cpuid {}

impl Cpuid {
    /// The leaves.
    pub fn leaves(&self) -> &[CpuidEntry] {
        &self.entries[..(self.count as usize).min(self.entries.len())]
    }

    /// The leaf of this number and subleaf.
    pub fn find(&mut self, function: u32, index: u32) -> Option<&mut CpuidEntry> {
        let count = (self.count as usize).min(self.entries.len());
        self.entries[..count].iter_mut().find(|e| (e.function, e.index) == (function, index))
    }

    /// Adds a leaf; `false` if there is no room.
    pub fn push(&mut self, entry: CpuidEntry) -> bool {
        let room = self.entries.get_mut(self.count as usize);
        let fits = room.map(|to| *to = entry).is_some();
        self.count += u32::from(fits);
        fits
    }

    /// What one of `GET_CPUID2`, `GET_SUPPORTED_CPUID` and their kin in [`number`] gives.
    pub fn get(target: u64, number: u32) -> Result<Cpuid> {
        let mut all = Cpuid { count: 128, ..Plain::zeroed() };
        let (at, len) = (physical(&raw mut all), size_of::<Cpuid>() as u64);
        ask(op::IOCTL, &[target, number.into(), at, len])?;
        // SAFETY: the value above, which the host has written to meanwhile.
        Ok(unsafe { (&raw const all).read_volatile() })
    }

    /// What this vCPU's CPUID gives.
    pub fn of_vcpu() -> Result<Cpuid> {
        Cpuid::get(target::VCPU, number::GET_CPUID2)
    }

    /// What KVM offers.
    pub fn supported() -> Result<Cpuid> {
        Cpuid::get(target::SYSTEM, number::GET_SUPPORTED_CPUID)
    }

    /// Has this vCPU show these leaves (`KVM_SET_CPUID2`).
    pub fn set(&self) -> Result<()> {
        let (at, len) = (physical(&raw const *self), size_of::<Cpuid>() as u64);
        let number = number::SET_CPUID2.into();
        ask(op::IOCTL, &[target::VCPU, number, at, len]).map(|_| ())
    }
}

/// What `KVM_CHECK_EXTENSION` says: 0 if KVM lacks the capability.
pub fn check_extension(cap: u32) -> u64 {
    call_with(kvm::CHECK_EXTENSION, cap.into()).map_or(0, |n| n as u64)
}

/// Ends the test with `skip` if KVM lacks a capability of [`cap`](mod@cap).
pub fn require_cap(cap: u32, name: &str) {
    if check_extension(cap) == 0 {
        crate::skip!("this KVM lacks KVM_CAP_{name}");
    }
}

/// Enables a capability of the VM.
pub fn enable_cap(cap: u32, argument: u64) -> Result<()> {
    let args = [argument, 0, 0, 0];
    set(kvm::ENABLE_CAP, &kvm::EnableCap { cap, args, ..Default::default() })
}

/// Enables a capability of this vCPU.
pub fn enable_vcpu_cap(cap: u32, argument: u64) -> Result<()> {
    let args = [argument, 0, 0, 0];
    set(kvm::VCPU_ENABLE_CAP, &kvm::EnableCap { cap, args, ..Default::default() })
}

/// Has MSR accesses leave the guest for these reasons: 1 invalid, 2 unknown, 4 filtered.
pub fn msr_exits(reasons: u64) -> Result<()> {
    enable_cap(cap::X86_USER_SPACE_MSR, reasons)
}

/// Sets the level of a GSI, past the board.
pub fn irq_line(gsi: u32, level: bool) -> Result<()> {
    set(kvm::IRQ_LINE, &kvm::IrqLevel { gsi, level: level.into() })
}

/// Sends a message-signalled interrupt: address and data as a device would write them. `true` if
/// some vCPU took it.
pub fn signal_msi(address: u64, data: u32) -> Result<bool> {
    let (address_lo, address_hi) = (address as u32, (address >> 32) as u32);
    let mut msi = kvm::Msi { address_lo, address_hi, data, ..Default::default() };
    let len = size_of::<kvm::Msi>() as u64;
    let number = kvm::SIGNAL_MSI.number.into();
    Ok(ask(op::IOCTL, &[target::VM, number, physical(&raw mut msi), len])?.0 > 0)
}

/// What KVM said of interrupts after the last `KVM_RUN`, which is this call's own: the vCPU is behind its OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// `ready_for_interrupt_injection`.
    pub ready: bool,
    /// `if_flag`.
    pub if_flag: bool,
    /// `cr8`.
    pub cr8: u64,
    /// `flags`: bit 0 in system-management mode, bit 2 in a guest of the guest's.
    pub flags: u64,
}

impl Window {
    /// Of the value that the lab gives.
    pub const fn of(value: u64) -> Window {
        Window {
            ready: value & 1 != 0,
            if_flag: value & 2 != 0,
            cr8: value >> 4 & 15,
            flags: value >> 16 & 0xffff,
        }
    }
}

/// What KVM says of interrupts.
pub fn window() -> Result<Window> {
    Ok(Window::of(ask(op::INTERRUPT_WINDOW, &[2])?.1))
}

/// Has the vCPU leave the guest with `KVM_EXIT_IRQ_WINDOW_OPEN` when it can take an interrupt, or no more
/// (`request_interrupt_window`).
pub fn request_window(on: bool) -> Result<Window> {
    Ok(Window::of(ask(op::INTERRUPT_WINDOW, &[on.into()])?.1))
}

/// One of the interrupt controllers: 0 the first PIC, 1 the second, 2 the I/O APIC.
pub fn irqchip(chip_id: u32) -> Result<kvm::Irqchip> {
    super::swap(kvm::GET_IRQCHIP, kvm::Irqchip { chip_id, ..Default::default() })
}

/// Fills `bytes` with the nested state; how many there are.
pub fn nested_state(bytes: &mut [u8]) -> Result<usize> {
    let len = bytes.len() as u32;
    match bytes.get_mut(4..8) {
        Some(size) => size.copy_from_slice(&len.to_le_bytes()),
        None => return Err(Errno::EINVAL),
    }
    ioctl(target::VCPU, number::GET_NESTED_STATE, bytes)?;
    Ok(u32::from_le_bytes(core::array::from_fn(|i| bytes[4 + i])) as usize)
}

/// Sets the nested state.
pub fn set_nested_state(bytes: &mut [u8]) -> Result<()> {
    ioctl(target::VCPU, number::SET_NESTED_STATE, bytes).map(|_| ())
}

/// An attribute of 64 bits of the VM or this vCPU ([`target`]).
pub fn attribute(target: u64, group: u32, attribute: u64) -> Result<u64> {
    Ok(ask(op::DEVICE_ATTR, &[target, 1, group.into(), attribute])?.1)
}

/// Whether there is such an attribute.
pub fn has_attribute(target: u64, group: u32, attribute: u64) -> bool {
    ask(op::DEVICE_ATTR, &[target, 0, group.into(), attribute]).is_ok()
}

/// Sets an attribute.
pub fn set_attribute(target: u64, group: u32, attribute: u64, value: u64) -> Result<()> {
    ask(op::DEVICE_ATTR, &[target, 2, group.into(), attribute, value]).map(|_| ())
}

/// What this vCPU's TSC is ahead of the host's, in its ticks (`KVM_VCPU_TSC_OFFSET`).
pub fn tsc_offset() -> Result<u64> {
    attribute(target::VCPU, 0, 0)
}

/// Sets what this vCPU's TSC is ahead of the host's.
pub fn set_tsc_offset(offset: u64) -> Result<()> {
    set_attribute(target::VCPU, 0, 0, offset)
}

/// A range of an MSR filter.
#[derive(Clone, Copy, Debug)]
pub struct MsrRange<'a> {
    /// 1 reads, 2 writes, 3 both.
    pub flags: u32,
    /// The first MSR.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// One bit an MSR: 1 lets the access through.
    pub bitmap: &'a [u8],
}

/// Sets the filter of MSR accesses. Those of no range are let through, or denied.
pub fn msr_filter(deny: bool, ranges: &[MsrRange]) -> Result<()> {
    let mut all = [abi::MsrRange::default(); abi::MAX_MSR_RANGES];
    if ranges.len() > all.len() {
        return Err(Errno::E2BIG);
    }
    for (to, range) in all.iter_mut().zip(ranges) {
        if range.bitmap.len() < (range.count as usize).div_ceil(8) {
            return Err(Errno::EINVAL);
        }
        let bitmap = physical(range.bitmap.as_ptr()) as u32;
        *to = abi::MsrRange { flags: range.flags, count: range.count, first: range.first, bitmap };
    }
    let len = 16 * ranges.len() as u64;
    ask(op::MSR_FILTER, &[deny.into(), physical(&raw mut all), len]).map(|_| ())
}

/// Takes dirty pages out of this vCPU's dirty ring; how many.
pub fn harvest(pages: &mut [abi::DirtyPage]) -> Result<usize> {
    let (at, len) = (physical(pages.as_mut_ptr()), 16 * pages.len() as u64);
    Ok(ask(op::HARVEST, &[at, len])?.0 as usize)
}

/// Gives the entries that were taken back to KVM; how many (`KVM_RESET_DIRTY_RINGS`).
pub fn reset_dirty_rings() -> Result<i64> {
    super::call(kvm::RESET_DIRTY_RINGS)
}

/// A transplant that failed: the guest goes on in the VM where it was.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// Why.
    pub errno: Errno,
    /// Where: one of [`super::step`].
    pub step: u64,
}

impl fmt::Debug for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        const STEPS: [&str; 9] = [
            "more vCPUs than one",
            "saving",
            "the new VM",
            "its settings",
            "interrupt controllers and PIT",
            "the vCPU's registers",
            "the nested state",
            "an MSR",
            "the clock",
        ];
        write!(f, "{} at {}", self.errno, STEPS.get(self.step as usize).unwrap_or(&"?"))
    }
}

/// Saves all state of this VM, makes another over the same memory, and goes on there. The machine
/// must have one vCPU.
pub fn transplant() -> core::result::Result<(), Rejected> {
    match ask_for(op::TRANSPLANT, &[]) {
        Ok(_) => Ok(()),
        Err((errno, step)) => Err(Rejected { errno, step }),
    }
}
