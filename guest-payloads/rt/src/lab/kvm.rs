//! KVM's structures and ioctls, as far as a lab relays them.
//!
//! Linux, Documentation/virt/kvm/api.rst; the layouts are those of `struct kvm_…` of the same name.

use core::marker::PhantomData;
use payload_abi::lab::target;

/// A structure of plain numbers without padding: any bytes are one.
///
/// # Safety
/// That must be true.
pub unsafe trait Plain: Copy {
    /// One of zeroes.
    fn zeroed() -> Self {
        // SAFETY: any bytes are one.
        unsafe { core::mem::zeroed() }
    }
}

// SAFETY: bytes and words.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: an array has no padding of its own.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

macro_rules! structs {
    ($($(#[$about:meta])* $name:ident $size:literal { $($(#[$fabout:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(C)]
        #[allow(missing_docs)] // The fields are KVM's, by name.
        pub struct $name { $($(#[$fabout])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: the assertion and the fields' own sizes say that there is no padding.
        unsafe impl Plain for $name {}
        const _: () = assert!($size == 0 $(+ size_of::<$type>())*);
        impl Default for $name {
            fn default() -> Self {
                Plain::zeroed()
            }
        }
    )*};
}
structs! {
    /// General registers.
    Regs 144 {
        rax: u64, rbx: u64, rcx: u64, rdx: u64, rsi: u64, rdi: u64, rsp: u64, rbp: u64,
        r8: u64, r9: u64, r10: u64, r11: u64, r12: u64, r13: u64, r14: u64, r15: u64,
        rip: u64, rflags: u64,
    }
    /// A segment register.
    Segment 24 {
        base: u64, limit: u32, selector: u16, kind: u8, present: u8, dpl: u8, db: u8, s: u8,
        l: u8, g: u8, avl: u8, unusable: u8, padding: u8,
    }
    /// GDTR or IDTR.
    Dtable 16 { base: u64, limit: u16, padding: [u16; 3], }
    /// Special registers.
    Sregs 312 {
        cs: Segment, ds: Segment, es: Segment, fs: Segment, gs: Segment, ss: Segment,
        tr: Segment, ldt: Segment, gdt: Dtable, idt: Dtable,
        cr0: u64, cr2: u64, cr3: u64, cr4: u64, cr8: u64, efer: u64, apic_base: u64,
        interrupt_bitmap: [u64; 4],
    }
    /// Special registers, with the PDPTEs.
    Sregs2 320 {
        cs: Segment, ds: Segment, es: Segment, fs: Segment, gs: Segment, ss: Segment,
        tr: Segment, ldt: Segment, gdt: Dtable, idt: Dtable,
        cr0: u64, cr2: u64, cr3: u64, cr4: u64, cr8: u64, efer: u64, apic_base: u64,
        flags: u64, pdptrs: [u64; 4],
    }
    /// Exceptions, interrupts, NMIs and SMIs that are pending or held back.
    Events 64 {
        exception_injected: u8, exception_nr: u8, exception_has_error_code: u8,
        exception_pending: u8, exception_error_code: u32,
        interrupt_injected: u8, interrupt_nr: u8, interrupt_soft: u8, interrupt_shadow: u8,
        nmi_injected: u8, nmi_pending: u8, nmi_masked: u8, nmi_pad: u8,
        sipi_vector: u32, flags: u32,
        smi_smm: u8, smi_pending: u8, smi_inside_nmi: u8, smi_latched_init: u8,
        triple_fault_pending: u8, reserved: [u8; 26], exception_has_payload: u8,
        exception_payload: u64,
    }
    /// Debug registers.
    DebugRegs 128 { db: [u64; 4], dr6: u64, dr7: u64, flags: u64, reserved: [u64; 9], }
    /// What `KVM_SET_GUEST_DEBUG` asks for: [`debug`], and DR0 to DR7.
    GuestDebug 72 { control: u32, pad: u32, debugreg: [u64; 8], }
    /// A linear address, and what the guest's page tables make of it.
    Translation 24 {
        linear_address: u64, physical_address: u64, valid: u8, writeable: u8, usermode: u8,
        pad: [u8; 5],
    }
    /// An MSR and its value.
    Msr 16 { index: u32, reserved: u32, data: u64, }
    /// The VM's clock, in nanoseconds.
    ClockData 48 {
        clock: u64, flags: u32, pad0: u32, realtime: u64, host_tsc: u64, pad: [u32; 4],
    }
    /// The level of a GSI.
    IrqLevel 8 { gsi: u32, level: u32, }
    /// A message-signalled interrupt.
    Msi 32 {
        address_lo: u32, address_hi: u32, data: u32, flags: u32, devid: u32, pad: [u8; 12],
    }
    /// A capability to enable.
    EnableCap 104 { cap: u32, flags: u32, args: [u64; 4], pad: [u8; 64], }
    /// A machine check.
    Mce 64 {
        status: u64, addr: u64, misc: u64, mcg_status: u64, bank: u8, pad1: [u8; 7],
        pad2: [u64; 3],
    }
    /// XCRs.
    Xcrs 392 { nr_xcrs: u32, flags: u32, xcrs: [Xcr; 16], padding: [u64; 16], }
    /// One XCR.
    Xcr 16 { xcr: u32, reserved: u32, value: u64, }
    /// Memory to be mapped before it is touched; afterwards what is left.
    PreFault 64 { gpa: u64, size: u64, flags: u64, padding: [u64; 5], }
    /// Whether TPR accesses are reported.
    TprAccess 40 { enabled: u32, flags: u32, reserved: [u32; 8], }
    /// Attributes of a range of guest memory.
    MemoryAttributes 32 { address: u64, size: u64, attributes: u64, flags: u64, }
    /// One of the interrupt controllers: 0 the first PIC, 1 the second, 2 the I/O APIC.
    Irqchip 520 { chip_id: u32, pad: u32, chip: [u64; 64], }
    /// One channel of the PIT.
    PitChannel 24 {
        count: u32, latched_count: u16, count_latched: u8, status_latched: u8, status: u8,
        read_state: u8, write_state: u8, write_latch: u8, rw_mode: u8, mode: u8, bcd: u8,
        gate: u8, count_load_time: u64,
    }
    /// The PIT.
    Pit2 112 { channels: [PitChannel; 3], flags: u32, reserved: [u32; 9], }
    /// Whether the PIT makes up for ticks that nobody took.
    Reinject 32 { pit_reinject: u8, reserved: [u8; 31], }
    /// What a nested state begins with.
    NestedHeader 128 { flags: u16, format: u16, size: u32, hdr: [u64; 15], }
}

/// The registers of a local APIC, as its page has them.
pub type Lapic = [u8; 1024];
/// An XSAVE area in the standard form.
pub type Xsave = [u64; 512];
/// The x87 and SSE state.
pub type Fpu = [u64; 52];

macro_rules! kinds {
    ($($(#[$about:meta])* $name:ident<T>;)*) => {$(
        $(#[$about])*
        #[derive(Debug)]
        pub struct $name<T> {
            pub(super) target: u64,
            pub(super) number: u32,
            what: PhantomData<fn() -> T>,
        }
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<T> {}
        impl<T> $name<T> {
            const fn new(target: u64, number: u32) -> Self {
                Self { target, number, what: PhantomData }
            }
        }
    )*};
}
kinds! {
    /// An ioctl that gives a structure.
    Get<T>;
    /// An ioctl that takes a structure.
    Set<T>;
    /// An ioctl that takes a structure and changes it.
    Swap<T>;
}

/// An ioctl without a structure: it takes a number, or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub(super) target: u64,
    pub(super) number: u32,
}

const fn ioc(direction: u32, nr: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0xae << 8 | nr
}

/// The number of an `_IO` ioctl, for [`super::ioctl`].
pub const fn io(nr: u32) -> u32 {
    ioc(0, nr, 0)
}
/// The number of an `_IOW` ioctl.
pub const fn iow(nr: u32, size: usize) -> u32 {
    ioc(1, nr, size)
}
/// The number of an `_IOR` ioctl.
pub const fn ior(nr: u32, size: usize) -> u32 {
    ioc(2, nr, size)
}
/// The number of an `_IOWR` ioctl.
pub const fn iowr(nr: u32, size: usize) -> u32 {
    ioc(3, nr, size)
}

macro_rules! ioctls {
    ($($name:ident: $kind:ident<$type:ty> = $target:ident $direction:ident $nr:literal;)*) => {$(
        #[doc = concat!("`KVM_", stringify!($name), "`.")]
        pub const $name: $kind<$type> =
            $kind::new(target::$target, $direction($nr, size_of::<$type>()));
    )*};
}
ioctls! {
    GET_REGS: Get<Regs> = VCPU ior 0x81;
    SET_REGS: Set<Regs> = VCPU iow 0x82;
    GET_SREGS: Get<Sregs> = VCPU ior 0x83;
    SET_SREGS: Set<Sregs> = VCPU iow 0x84;
    GET_SREGS2: Get<Sregs2> = VCPU ior 0xcc;
    SET_SREGS2: Set<Sregs2> = VCPU iow 0xcd;
    TRANSLATE: Swap<Translation> = VCPU iowr 0x85;
    INTERRUPT: Set<u32> = VCPU iow 0x86;
    GET_FPU: Get<Fpu> = VCPU ior 0x8c;
    SET_FPU: Set<Fpu> = VCPU iow 0x8d;
    GET_LAPIC: Get<Lapic> = VCPU ior 0x8e;
    SET_LAPIC: Set<Lapic> = VCPU iow 0x8f;
    TPR_ACCESS_REPORTING: Swap<TprAccess> = VCPU iowr 0x92;
    GET_MP_STATE: Get<u32> = VCPU ior 0x98;
    SET_MP_STATE: Set<u32> = VCPU iow 0x99;
    SET_GUEST_DEBUG: Set<GuestDebug> = VCPU iow 0x9b;
    X86_SETUP_MCE: Set<u64> = VCPU iow 0x9c;
    X86_SET_MCE: Set<Mce> = VCPU iow 0x9e;
    GET_VCPU_EVENTS: Get<Events> = VCPU ior 0x9f;
    SET_VCPU_EVENTS: Set<Events> = VCPU iow 0xa0;
    GET_DEBUGREGS: Get<DebugRegs> = VCPU ior 0xa1;
    SET_DEBUGREGS: Set<DebugRegs> = VCPU iow 0xa2;
    GET_XSAVE: Get<Xsave> = VCPU ior 0xa4;
    SET_XSAVE: Set<Xsave> = VCPU iow 0xa5;
    GET_XCRS: Get<Xcrs> = VCPU ior 0xa6;
    SET_XCRS: Set<Xcrs> = VCPU iow 0xa7;
    PRE_FAULT_MEMORY: Swap<PreFault> = VCPU iowr 0xd5;
    VCPU_ENABLE_CAP: Set<EnableCap> = VCPU iow 0xa3;
    ENABLE_CAP: Set<EnableCap> = VM iow 0xa3;
    GET_CLOCK: Get<ClockData> = VM ior 0x7c;
    SET_CLOCK: Set<ClockData> = VM iow 0x7b;
    IRQ_LINE: Set<IrqLevel> = VM iow 0x61;
    IRQ_LINE_STATUS: Swap<IrqLevel> = VM iowr 0x67;
    SIGNAL_MSI: Set<Msi> = VM iow 0xa5;
    GET_IRQCHIP: Swap<Irqchip> = VM iowr 0x62;
    SET_IRQCHIP: Set<Irqchip> = VM ior 0x63;
    GET_PIT2: Get<Pit2> = VM ior 0x9f;
    SET_PIT2: Set<Pit2> = VM iow 0xa0;
    SET_IDENTITY_MAP_ADDR: Set<u64> = VM iow 0x48;
    SET_MEMORY_ATTRIBUTES: Set<MemoryAttributes> = VM iow 0xd2;
    X86_GET_MCE_CAP_SUPPORTED: Get<u64> = SYSTEM ior 0x9d;
}
/// `KVM_REINJECT_CONTROL`, whose number does not tell its structure.
pub const REINJECT_CONTROL: Set<Reinject> = Set::new(target::VM, io(0x71));

macro_rules! calls {
    ($($name:ident = $target:ident $nr:literal;)*) => {$(
        #[doc = concat!("`KVM_", stringify!($name), "`.")]
        pub const $name: Call = Call { target: target::$target, number: io($nr) };
    )*};
}
calls! {
    NMI = VCPU 0x9a;
    SMI = VCPU 0xb7;
    KVMCLOCK_CTRL = VCPU 0xad;
    SET_TSC_KHZ = VCPU 0xa2;
    GET_TSC_KHZ = VCPU 0xa3;
    VM_SET_TSC_KHZ = VM 0xa2;
    VM_GET_TSC_KHZ = VM 0xa3;
    RESET_DIRTY_RINGS = VM 0xc7;
    SET_NR_MMU_PAGES = VM 0x44;
    SET_BOOT_CPU_ID = VM 0x78;
    SET_TSS_ADDR = VM 0x47;
    CHECK_EXTENSION = SYSTEM 0x03;
    VM_CHECK_EXTENSION = VM 0x03;
}

/// Numbers of ioctls with items or data behind a header, for [`super::ioctl`].
pub mod number {
    use super::{iow, iowr};
    /// `KVM_GET_MSR_INDEX_LIST`.
    pub const GET_MSR_INDEX_LIST: u32 = iowr(0x02, 4);
    /// `KVM_GET_MSR_FEATURE_INDEX_LIST`.
    pub const GET_MSR_FEATURE_INDEX_LIST: u32 = iowr(0x0a, 4);
    /// `KVM_GET_SUPPORTED_CPUID`.
    pub const GET_SUPPORTED_CPUID: u32 = iowr(0x05, 8);
    /// `KVM_GET_EMULATED_CPUID`.
    pub const GET_EMULATED_CPUID: u32 = iowr(0x09, 8);
    /// `KVM_GET_SUPPORTED_HV_CPUID`.
    pub const GET_SUPPORTED_HV_CPUID: u32 = iowr(0xc1, 8);
    /// `KVM_GET_CPUID2`.
    pub const GET_CPUID2: u32 = iowr(0x91, 8);
    /// `KVM_SET_CPUID2`.
    pub const SET_CPUID2: u32 = iow(0x90, 8);
    /// `KVM_GET_MSRS`.
    pub const GET_MSRS: u32 = iowr(0x88, 8);
    /// `KVM_SET_MSRS`.
    pub const SET_MSRS: u32 = iow(0x89, 8);
    /// `KVM_GET_NESTED_STATE`.
    pub const GET_NESTED_STATE: u32 = iowr(0xbe, 128);
    /// `KVM_SET_NESTED_STATE`.
    pub const SET_NESTED_STATE: u32 = iow(0xbf, 128);
    /// `KVM_SET_GSI_ROUTING`.
    pub const SET_GSI_ROUTING: u32 = iow(0x6a, 8);
    /// `KVM_SET_PMU_EVENT_FILTER`.
    pub const SET_PMU_EVENT_FILTER: u32 = iow(0xb2, 32);
}

macro_rules! bits {
    ($module:ident, $about:literal: $($name:ident = $value:expr, $says:literal;)*) => {
        #[doc = $about]
        pub mod $module {
            $(#[doc = $says] pub const $name: u32 = $value;)*
        }
    };
}
bits! { debug, "What `KVM_SET_GUEST_DEBUG` is asked for (`KVM_GUESTDBG_*`).":
    ENABLE = 1, "Debug events leave the guest.";
    SINGLE_STEP = 2, "After each instruction.";
    USE_SW_BP = 1 << 16, "`int3` does, too.";
    USE_HW_BP = 1 << 17, "The breakpoints of `GuestDebug::debugreg` count, not the guest's.";
    INJECT_DB = 1 << 18, "Injects #DB.";
    INJECT_BP = 1 << 19, "Injects #BP.";
    BLOCK_IRQ = 1 << 20, "No interrupt comes while it steps.";
}
bits! { slot, "Flags of a memslot (`KVM_MEM_*`).":
    LOG_DIRTY = 1, "Written pages are logged.";
    READONLY = 2, "Writes leave the guest as MMIO.";
}
bits! { events, "Flags of [`Events`] (`KVM_VCPUEVENT_VALID_*`).":
    NMI_PENDING = 1, "`nmi_pending` counts.";
    SIPI_VECTOR = 2, "`sipi_vector` counts.";
    SHADOW = 4, "`interrupt_shadow` counts.";
    SMM = 8, "`smi_*` count.";
    PAYLOAD = 16, "The exception's payload counts, and `exception_pending`.";
    TRIPLE_FAULT = 32, "`triple_fault_pending` counts.";
}
bits! { mp_state, "States of a vCPU (`KVM_MP_STATE_*`).":
    RUNNABLE = 0, "It executes instructions.";
    UNINITIALIZED = 1, "It waits for INIT.";
    INIT_RECEIVED = 2, "It waits for SIPI.";
    HALTED = 3, "It waits for an interrupt.";
    SIPI_RECEIVED = 4, "It got a SIPI.";
}
bits! { cap, "Numbers of capabilities (`KVM_CAP_*`).":
    NR_MEMSLOTS = 10, "Memslots that a VM can have.";
    TSC_CONTROL = 60, "The rate of a vCPU's TSC can be set: the processor scales it.";
    VM_TSC_CONTROL = 214, "The rate of TSCs to come can be set.";
    NESTED_STATE = 157, "Bytes of a nested state.";
    EXCEPTION_PAYLOAD = 164, "Pending exceptions and their payload are told apart.";
    MANUAL_DIRTY_LOG_PROTECT2 = 168, "Dirty pages are cleared by hand.";
    X86_USER_SPACE_MSR = 188, "MSR accesses leave the guest.";
    X86_MSR_FILTER = 189, "MSR accesses are filtered.";
    X86_BUS_LOCK_EXIT = 193, "Bus locks leave the guest.";
    EXIT_HYPERCALL = 201, "Hypercalls leave the guest.";
    EXIT_ON_EMULATION_FAILURE = 204, "What cannot be emulated leaves the guest, at CPL 3 too.";
    XSAVE2 = 208, "Bytes of an XSAVE area.";
    X86_TRIPLE_FAULT_EVENT = 218, "A pending triple fault is part of the events.";
    X86_NOTIFY_VMEXIT = 219, "Notify exits.";
    X86_DISABLE_EXITS = 143, "Which exits can be switched off.";
    DISABLE_QUIRKS2 = 213, "Quirks that can be switched off.";
    SMM = 117, "System-management mode.";
    MULTI_ADDRESS_SPACE = 118, "Address spaces that memslots can be in.";
    READONLY_MEM = 81, "Memslots that only read.";
    SET_GUEST_DEBUG2 = 195, "What `KVM_SET_GUEST_DEBUG` takes.";
    HALT_POLL = 182, "How long a halt polls.";
    MEMORY_FAULT_INFO = 232, "Memory faults leave the guest with what they are.";
    PRE_FAULT_MEMORY = 236, "Memory can be mapped before it is touched.";
}
