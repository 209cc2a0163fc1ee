//! The ioctls that a guest may have made: their numbers, and what their argument is.
//!
//! The numbers and structures are those of Linux's `include/uapi/linux/kvm.h` and
//! `arch/x86/include/uapi/asm/kvm.h`, which do not change. An ioctl is in here if nothing that its
//! argument holds is an address or a descriptor of the host's, or makes such.

use crate::hv::lab::{Errno, Target};

/// What an ioctl's argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nothing: 0.
    Nothing,
    /// A number.
    Number,
    /// A structure of so many bytes.
    Bytes(u32),
    /// A structure of `header` bytes that holds, at `count`, how many items of `item` bytes follow.
    Items { header: u32, count: u32, item: u32 },
    /// A structure that holds its own length at offset 4.
    Sized,
    /// An XSAVE area: 4096 bytes at least, and as many as KVM_CAP_XSAVE2 says.
    Xsave,
}

/// One ioctl that is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    pub target: Target,
    pub number: u32,
    pub shape: Shape,
    /// It sets up something that no state holds: a new VM gets it again.
    pub kept: bool,
}

/// `_IO`, `_IOW`, `_IOR` and `_IOWR` of `KVMIO`.
const fn ioc(direction: u32, nr: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | 0xae << 8 | nr
}
pub(super) const fn io(nr: u32) -> u32 {
    ioc(0, nr, 0)
}
pub(super) const fn iow(nr: u32, size: u32) -> u32 {
    ioc(1, nr, size)
}
pub(super) const fn ior(nr: u32, size: u32) -> u32 {
    ioc(2, nr, size)
}
pub(super) const fn iowr(nr: u32, size: u32) -> u32 {
    ioc(3, nr, size)
}

pub(super) const CHECK_EXTENSION: u32 = io(0x03);
pub(super) const ENABLE_CAP: u32 = iow(0xa3, 104);
pub(super) const GET_MSR_INDEX_LIST: u32 = iowr(0x02, 4);
pub(super) const GET_CLOCK: u32 = ior(0x7c, 48);
pub(super) const SET_CLOCK: u32 = iow(0x7b, 48);
pub(super) const GET_IRQCHIP: u32 = iowr(0x62, 520);
pub(super) const SET_IRQCHIP: u32 = ior(0x63, 520);
pub(super) const GET_PIT2: u32 = ior(0x9f, 112);
pub(super) const SET_PIT2: u32 = iow(0xa0, 112);
pub(super) const GET_REGS: u32 = ior(0x81, 144);
pub(super) const SET_REGS: u32 = iow(0x82, 144);
pub(super) const GET_SREGS: u32 = ior(0x83, 312);
pub(super) const SET_SREGS: u32 = iow(0x84, 312);
pub(super) const GET_SREGS2: u32 = ior(0xcc, 320);
pub(super) const SET_SREGS2: u32 = iow(0xcd, 320);
pub(super) const GET_MSRS: u32 = iowr(0x88, 8);
pub(super) const SET_MSRS: u32 = iow(0x89, 8);
pub(super) const GET_CPUID2: u32 = iowr(0x91, 8);
pub(super) const SET_CPUID2: u32 = iow(0x90, 8);
pub(super) const GET_LAPIC: u32 = ior(0x8e, 1024);
pub(super) const SET_LAPIC: u32 = iow(0x8f, 1024);
pub(super) const GET_MP_STATE: u32 = ior(0x98, 4);
pub(super) const SET_MP_STATE: u32 = iow(0x99, 4);
pub(super) const GET_EVENTS: u32 = ior(0x9f, 64);
pub(super) const SET_EVENTS: u32 = iow(0xa0, 64);
pub(super) const GET_DEBUGREGS: u32 = ior(0xa1, 128);
pub(super) const SET_DEBUGREGS: u32 = iow(0xa2, 128);
pub(super) const GET_XSAVE: u32 = ior(0xa4, 4096);
pub(super) const GET_XSAVE2: u32 = ior(0xcf, 4096);
pub(super) const SET_XSAVE: u32 = iow(0xa5, 4096);
pub(super) const GET_XCRS: u32 = ior(0xa6, 392);
pub(super) const SET_XCRS: u32 = iow(0xa7, 392);
pub(super) const SET_TSC_KHZ: u32 = io(0xa2);
pub(super) const GET_TSC_KHZ: u32 = io(0xa3);
pub(super) const GET_NESTED_STATE: u32 = iowr(0xbe, 128);
pub(super) const SET_NESTED_STATE: u32 = iow(0xbf, 128);
pub(super) const SET_GUEST_DEBUG: u32 = iow(0x9b, 72);

pub(super) const CPUID2: Shape = Shape::Items { header: 8, count: 0, item: 40 };
pub(super) const MSRS: Shape = Shape::Items { header: 8, count: 0, item: 16 };
const MSR_LIST: Shape = Shape::Items { header: 4, count: 0, item: 4 };

const fn allow(target: Target, number: u32, shape: Shape) -> Allowed {
    Allowed { target, number, shape, kept: false }
}
/// Of a structure whose length is in the number.
const fn plain(target: Target, number: u32) -> Allowed {
    allow(target, number, Shape::Bytes(number >> 16 & 0x3fff))
}
const fn keep(allowed: Allowed) -> Allowed {
    Allowed { kept: true, ..allowed }
}

const SYSTEM: Target = Target::System;
const VM: Target = Target::Vm;
const VCPU: Target = Target::Vcpu;

/// All of them.
pub(super) const TABLE: &[Allowed] = &[
    // KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE.
    allow(SYSTEM, io(0x00), Shape::Nothing),
    allow(SYSTEM, io(0x04), Shape::Nothing),
    allow(SYSTEM, CHECK_EXTENSION, Shape::Number),
    allow(SYSTEM, GET_MSR_INDEX_LIST, MSR_LIST),
    // KVM_GET_MSR_FEATURE_INDEX_LIST, and the values.
    allow(SYSTEM, iowr(0x0a, 4), MSR_LIST),
    allow(SYSTEM, GET_MSRS, MSRS),
    // KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID, KVM_GET_SUPPORTED_HV_CPUID.
    allow(SYSTEM, iowr(0x05, 8), CPUID2),
    allow(SYSTEM, iowr(0x09, 8), CPUID2),
    allow(SYSTEM, iowr(0xc1, 8), CPUID2),
    // KVM_X86_GET_MCE_CAP_SUPPORTED.
    plain(SYSTEM, ior(0x9d, 8)),
    allow(VM, CHECK_EXTENSION, Shape::Number),
    keep(plain(VM, ENABLE_CAP)),
    plain(VM, GET_CLOCK),
    plain(VM, SET_CLOCK),
    // KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS, KVM_SIGNAL_MSI.
    plain(VM, iow(0x61, 8)),
    plain(VM, iowr(0x67, 8)),
    plain(VM, iow(0xa5, 32)),
    plain(VM, GET_IRQCHIP),
    plain(VM, SET_IRQCHIP),
    plain(VM, GET_PIT2),
    plain(VM, SET_PIT2),
    // KVM_SET_GSI_ROUTING.
    keep(allow(VM, iow(0x6a, 8), Shape::Items { header: 8, count: 0, item: 48 })),
    // KVM_REINJECT_CONTROL, whose number does not tell its structure.
    keep(allow(VM, io(0x71), Shape::Bytes(32))),
    // KVM_SET_BOOT_CPU_ID, KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR: refused once vCPUs are
    // there, or harmless.
    allow(VM, io(0x78), Shape::Number),
    plain(VM, iow(0x48, 8)),
    allow(VM, io(0x47), Shape::Number),
    // KVM_SET_NR_MMU_PAGES, KVM_GET_NR_MMU_PAGES.
    keep(allow(VM, io(0x44), Shape::Number)),
    allow(VM, io(0x45), Shape::Nothing),
    // KVM_SET_MEMORY_ATTRIBUTES.
    plain(VM, iow(0xd2, 32)),
    // KVM_SET_PMU_EVENT_FILTER.
    keep(allow(VM, iow(0xb2, 32), Shape::Items { header: 32, count: 4, item: 8 })),
    // KVM_RESET_DIRTY_RINGS.
    allow(VM, io(0xc7), Shape::Nothing),
    allow(VM, SET_TSC_KHZ, Shape::Number),
    allow(VM, GET_TSC_KHZ, Shape::Nothing),
    keep(plain(VCPU, ENABLE_CAP)),
    plain(VCPU, GET_REGS),
    plain(VCPU, SET_REGS),
    plain(VCPU, GET_SREGS),
    plain(VCPU, SET_SREGS),
    plain(VCPU, GET_SREGS2),
    plain(VCPU, SET_SREGS2),
    // KVM_TRANSLATE, KVM_INTERRUPT, KVM_NMI, KVM_SMI.
    plain(VCPU, iowr(0x85, 24)),
    plain(VCPU, iow(0x86, 4)),
    allow(VCPU, io(0x9a), Shape::Nothing),
    allow(VCPU, io(0xb7), Shape::Nothing),
    allow(VCPU, GET_MSRS, MSRS),
    allow(VCPU, SET_MSRS, MSRS),
    allow(VCPU, GET_CPUID2, CPUID2),
    allow(VCPU, SET_CPUID2, CPUID2),
    allow(VCPU, iowr(0xc1, 8), CPUID2),
    // KVM_GET_FPU, KVM_SET_FPU.
    plain(VCPU, ior(0x8c, 416)),
    plain(VCPU, iow(0x8d, 416)),
    plain(VCPU, GET_LAPIC),
    plain(VCPU, SET_LAPIC),
    // KVM_TPR_ACCESS_REPORTING.
    keep(plain(VCPU, iowr(0x92, 40))),
    plain(VCPU, GET_MP_STATE),
    plain(VCPU, SET_MP_STATE),
    keep(plain(VCPU, SET_GUEST_DEBUG)),
    // KVM_X86_SETUP_MCE, KVM_X86_SET_MCE.
    keep(plain(VCPU, iow(0x9c, 8))),
    plain(VCPU, iow(0x9e, 64)),
    plain(VCPU, GET_EVENTS),
    plain(VCPU, SET_EVENTS),
    plain(VCPU, GET_DEBUGREGS),
    plain(VCPU, SET_DEBUGREGS),
    allow(VCPU, GET_XSAVE, Shape::Xsave),
    allow(VCPU, GET_XSAVE2, Shape::Xsave),
    allow(VCPU, SET_XSAVE, Shape::Xsave),
    plain(VCPU, GET_XCRS),
    plain(VCPU, SET_XCRS),
    allow(VCPU, SET_TSC_KHZ, Shape::Number),
    allow(VCPU, GET_TSC_KHZ, Shape::Nothing),
    // KVM_KVMCLOCK_CTRL.
    allow(VCPU, io(0xad), Shape::Nothing),
    allow(VCPU, GET_NESTED_STATE, Shape::Sized),
    allow(VCPU, SET_NESTED_STATE, Shape::Sized),
    // KVM_PRE_FAULT_MEMORY.
    plain(VCPU, iowr(0xd5, 64)),
];

/// The capabilities that may be enabled, by number: no argument of theirs is an address or a
/// descriptor of the host's.
#[rustfmt::skip]
const CAPS: &[u32] = &[
    // Of a VM: MAX_VCPU_ID, DISABLE_QUIRKS, X2APIC_API, X86_DISABLE_EXITS, MSR_PLATFORM_INFO,
    // EXCEPTION_PAYLOAD, MANUAL_DIRTY_LOG_PROTECT2, HALT_POLL, X86_USER_SPACE_MSR,
    // X86_BUS_LOCK_EXIT, EXIT_HYPERCALL, EXIT_ON_EMULATION_FAILURE, PMU_CAPABILITY,
    // DISABLE_QUIRKS2, X86_TRIPLE_FAULT_EVENT, X86_NOTIFY_VMEXIT, VM_DISABLE_NX_HUGE_PAGES,
    // DIRTY_LOG_RING_WITH_BITMAP, X86_APIC_BUS_CYCLES_NS.
    128, 116, 129, 143, 159, 164, 168, 182, 188, 193, 201, 204, 212, 213, 218, 219, 220, 225, 237,
    // Of a vCPU: HYPERV_SYNIC, HYPERV_SYNIC2, HYPERV_DIRECT_TLBFLUSH, ENFORCE_PV_FEATURE_CPUID,
    // HYPERV_ENFORCE_CPUID.
    123, 148, 175, 190, 199,
];

/// The entry of an ioctl.
///
/// # Errors
/// `EPERM` if there is none, or if it would enable a capability that is not on the list.
pub(super) fn find(target: Target, number: u32, bytes: &[u8]) -> Result<Allowed, Errno> {
    let same = |a: &&Allowed| a.target == target && a.number == number;
    let allowed = TABLE.iter().find(same).ok_or(Errno(libc::EPERM))?;
    if number == ENABLE_CAP && word(bytes, 0).is_some_and(|cap| !CAPS.contains(&cap)) {
        return Err(Errno(libc::EPERM));
    }
    Ok(*allowed)
}

impl Shape {
    /// How many bytes the host's copy must have, if `bytes` are what the guest gave.
    ///
    /// # Errors
    /// `EINVAL` if these are not as many as the shape has, `E2BIG` if they promise more than there
    /// are.
    pub(super) fn room(self, bytes: &[u8], value: u64, xsave: usize) -> Result<usize, Errno> {
        let wrong = Err(Errno(libc::EINVAL));
        let len = bytes.len();
        match self {
            Shape::Nothing if len != 0 || value != 0 => wrong,
            Shape::Number if len != 0 => wrong,
            Shape::Nothing | Shape::Number => Ok(0),
            _ if value != 0 => wrong,
            Shape::Bytes(size) if size as usize != len => wrong,
            Shape::Bytes(size) => Ok(size as usize),
            Shape::Items { header, count, item } => {
                let Some(n) = word(bytes, count as usize) else { return wrong };
                let all = u64::from(n) * u64::from(item) + u64::from(header);
                if len < header as usize {
                    return wrong;
                }
                if all > len as u64 { Err(Errno(libc::E2BIG)) } else { Ok(len) }
            }
            Shape::Sized if len < 128 => wrong,
            Shape::Sized => match word(bytes, 4) {
                Some(size) if size as usize <= len => Ok(len),
                _ => Err(Errno(libc::E2BIG)),
            },
            Shape::Xsave if len < 4096 => wrong,
            Shape::Xsave => Ok(len.max(xsave)),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
