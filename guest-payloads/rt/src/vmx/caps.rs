//! What the processor's VMX can do: the capability MSRs (Intel SDM volume 3, appendix "VMX Capability
//! Reporting Facility"), and the bits of the controls.

use crate::{reg, skip};

macro_rules! msrs {
    ($($name:ident = $index:literal;)*) => {
        $(#[doc = concat!("IA32_VMX_", stringify!($name), ".")] pub const $name: u32 = $index;)*
    };
}
msrs! {
    BASIC = 0x480;
    PINBASED_CTLS = 0x481;
    PROCBASED_CTLS = 0x482;
    EXIT_CTLS = 0x483;
    ENTRY_CTLS = 0x484;
    MISC = 0x485;
    CR0_FIXED0 = 0x486;
    CR0_FIXED1 = 0x487;
    CR4_FIXED0 = 0x488;
    CR4_FIXED1 = 0x489;
    VMCS_ENUM = 0x48a;
    PROCBASED_CTLS2 = 0x48b;
    EPT_VPID_CAP = 0x48c;
    TRUE_PINBASED_CTLS = 0x48d;
    TRUE_PROCBASED_CTLS = 0x48e;
    TRUE_EXIT_CTLS = 0x48f;
    TRUE_ENTRY_CTLS = 0x490;
    VMFUNC = 0x491;
}

macro_rules! bits {
    ($($name:ident = $bit:literal, $about:literal;)*) => {
        $(#[doc = $about] pub const $name: u64 = 1 << $bit;)*
    };
}
bits! {
    PIN_EXTERNAL = 0, "Pin-based: external-interrupt exiting.";
    PIN_NMI = 3, "Pin-based: NMI exiting.";
    PIN_VIRTUAL_NMIS = 5, "Pin-based: virtual NMIs.";
    PIN_TIMER = 6, "Pin-based: activate VMX-preemption timer.";
    PIN_POSTED = 7, "Pin-based: process posted interrupts.";
    CPU_INTERRUPT_WINDOW = 2, "Processor-based: interrupt-window exiting.";
    CPU_TSC_OFFSET = 3, "Processor-based: use TSC offsetting.";
    CPU_HLT = 7, "Processor-based: HLT exiting.";
    CPU_INVLPG = 9, "Processor-based: INVLPG exiting.";
    CPU_MWAIT = 10, "Processor-based: MWAIT exiting.";
    CPU_RDPMC = 11, "Processor-based: RDPMC exiting.";
    CPU_RDTSC = 12, "Processor-based: RDTSC exiting.";
    CPU_CR3_LOAD = 15, "Processor-based: CR3-load exiting.";
    CPU_CR3_STORE = 16, "Processor-based: CR3-store exiting.";
    CPU_CR8_LOAD = 19, "Processor-based: CR8-load exiting.";
    CPU_CR8_STORE = 20, "Processor-based: CR8-store exiting.";
    CPU_TPR_SHADOW = 21, "Processor-based: use TPR shadow.";
    CPU_NMI_WINDOW = 22, "Processor-based: NMI-window exiting.";
    CPU_MOV_DR = 23, "Processor-based: MOV-DR exiting.";
    CPU_IO = 24, "Processor-based: unconditional I/O exiting.";
    CPU_IO_BITMAPS = 25, "Processor-based: use I/O bitmaps.";
    CPU_MONITOR_TRAP = 27, "Processor-based: monitor trap flag.";
    CPU_MSR_BITMAPS = 28, "Processor-based: use MSR bitmaps.";
    CPU_MONITOR = 29, "Processor-based: MONITOR exiting.";
    CPU_PAUSE = 30, "Processor-based: PAUSE exiting.";
    CPU_SECONDARY = 31, "Processor-based: activate secondary controls.";
    CPU2_APIC_ACCESSES = 0, "Secondary: virtualize APIC accesses.";
    CPU2_EPT = 1, "Secondary: enable EPT.";
    CPU2_DESCRIPTOR = 2, "Secondary: descriptor-table exiting.";
    CPU2_RDTSCP = 3, "Secondary: enable RDTSCP.";
    CPU2_X2APIC = 4, "Secondary: virtualize x2APIC mode.";
    CPU2_VPID = 5, "Secondary: enable VPID.";
    CPU2_WBINVD = 6, "Secondary: WBINVD exiting.";
    CPU2_UNRESTRICTED = 7, "Secondary: unrestricted guest.";
    CPU2_APIC_REGISTERS = 8, "Secondary: APIC-register virtualization.";
    CPU2_INTERRUPTS = 9, "Secondary: virtual-interrupt delivery.";
    CPU2_RDRAND = 11, "Secondary: RDRAND exiting.";
    CPU2_INVPCID = 12, "Secondary: enable INVPCID.";
    CPU2_VMFUNC = 13, "Secondary: enable VM functions.";
    CPU2_SHADOW = 14, "Secondary: VMCS shadowing.";
    CPU2_ENCLS = 15, "Secondary: enable ENCLS exiting.";
    CPU2_RDSEED = 16, "Secondary: RDSEED exiting.";
    CPU2_PML = 17, "Secondary: enable PML.";
    CPU2_XSAVES = 20, "Secondary: enable XSAVES and XRSTORS.";
    CPU2_TSC_SCALING = 25, "Secondary: use TSC scaling.";
    EXIT_SAVE_DEBUG = 2, "VM-exit: save debug controls.";
    EXIT_HOST64 = 9, "VM-exit: host address-space size.";
    EXIT_ACKNOWLEDGE = 15, "VM-exit: acknowledge interrupt on exit.";
    EXIT_SAVE_PAT = 18, "VM-exit: save IA32_PAT.";
    EXIT_LOAD_PAT = 19, "VM-exit: load IA32_PAT.";
    EXIT_SAVE_EFER = 20, "VM-exit: save IA32_EFER.";
    EXIT_LOAD_EFER = 21, "VM-exit: load IA32_EFER.";
    EXIT_SAVE_TIMER = 22, "VM-exit: save VMX-preemption timer value.";
    ENTRY_LOAD_DEBUG = 2, "VM-entry: load debug controls.";
    ENTRY_GUEST64 = 9, "VM-entry: IA-32e mode guest.";
    ENTRY_SMM = 10, "VM-entry: entry to SMM.";
    ENTRY_DUAL_MONITOR = 11, "VM-entry: deactivate dual-monitor treatment.";
    ENTRY_LOAD_PAT = 14, "VM-entry: load IA32_PAT.";
    ENTRY_LOAD_EFER = 15, "VM-entry: load IA32_EFER.";
    EPT_EXECUTE_ONLY = 0, "IA32_VMX_EPT_VPID_CAP: execute-only translations.";
    EPT_WALK4 = 6, "IA32_VMX_EPT_VPID_CAP: a page walk of length 4.";
    EPT_UC = 8, "IA32_VMX_EPT_VPID_CAP: paging structures may be uncacheable.";
    EPT_WB = 14, "IA32_VMX_EPT_VPID_CAP: paging structures may be write-back.";
    EPT_2M = 16, "IA32_VMX_EPT_VPID_CAP: 2 MiB pages.";
    EPT_1G = 17, "IA32_VMX_EPT_VPID_CAP: 1 GiB pages.";
    EPT_INVEPT = 20, "IA32_VMX_EPT_VPID_CAP: INVEPT.";
    EPT_ACCESSED_DIRTY = 21, "IA32_VMX_EPT_VPID_CAP: accessed and dirty flags.";
    EPT_INVEPT_SINGLE = 25, "IA32_VMX_EPT_VPID_CAP: single-context INVEPT.";
    EPT_INVEPT_ALL = 26, "IA32_VMX_EPT_VPID_CAP: all-context INVEPT.";
    VPID_INVVPID = 32, "IA32_VMX_EPT_VPID_CAP: INVVPID.";
    VPID_ADDRESS = 40, "IA32_VMX_EPT_VPID_CAP: individual-address INVVPID.";
    VPID_SINGLE = 41, "IA32_VMX_EPT_VPID_CAP: single-context INVVPID.";
    VPID_ALL = 42, "IA32_VMX_EPT_VPID_CAP: all-context INVVPID.";
    VPID_SINGLE_NON_GLOBAL = 43, "IA32_VMX_EPT_VPID_CAP: single-context INVVPID that keeps globals.";
}

/// Reads a capability MSR. Ends the test with an error if it is not there.
pub fn read(msr: u32) -> u64 {
    match reg::rdmsr(msr) {
        Ok(value) => value,
        Err(trap) => panic!("read the VMX capability MSR {msr:#x}: {trap}"),
    }
}

/// The VMCS revision identifier.
pub fn revision() -> u32 {
    read(BASIC) as u32 & 0x7fff_ffff
}

/// A set of controls: which bits must be 1, which may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// These must be 1 (the allowed 0-settings).
    pub must: u64,
    /// These may be 1 (the allowed 1-settings).
    pub may: u64,
}

impl Allowed {
    /// What an MSR of the controls says.
    pub fn of(msr: u32) -> Allowed {
        let value = read(msr);
        Allowed { must: value & 0xffff_ffff, may: value >> 32 }
    }

    /// `wanted` and what must be 1. Ends the test with `skip` if some of it may not be 1.
    pub fn with(self, wanted: u64, what: &str) -> u64 {
        let missing = wanted & !self.may;
        if missing != 0 {
            skip!("no VMX control {missing:#x} of the {what} controls");
        }
        wanted | self.must
    }
}

/// Whether IA32_VMX_BASIC says that there are the TRUE_ MSRs.
fn has_true() -> bool {
    read(BASIC) & 1 << 55 != 0
}

/// The pin-based controls.
pub fn pin() -> Allowed {
    Allowed::of(if has_true() { TRUE_PINBASED_CTLS } else { PINBASED_CTLS })
}

/// The primary processor-based controls.
pub fn cpu() -> Allowed {
    Allowed::of(if has_true() { TRUE_PROCBASED_CTLS } else { PROCBASED_CTLS })
}

/// The secondary processor-based controls; none if there are none.
pub fn cpu2() -> Allowed {
    if cpu().may & CPU_SECONDARY == 0 {
        return Allowed { must: 0, may: 0 };
    }
    Allowed::of(PROCBASED_CTLS2)
}

/// The VM-exit controls.
pub fn exit() -> Allowed {
    Allowed::of(if has_true() { TRUE_EXIT_CTLS } else { EXIT_CTLS })
}

/// The VM-entry controls.
pub fn entry() -> Allowed {
    Allowed::of(if has_true() { TRUE_ENTRY_CTLS } else { ENTRY_CTLS })
}

/// IA32_VMX_EPT_VPID_CAP; 0 if there is neither EPT nor VPID.
pub fn ept_vpid() -> u64 {
    if cpu2().may & (CPU2_EPT | CPU2_VPID) == 0 { 0 } else { read(EPT_VPID_CAP) }
}

/// Ends the test with `skip` unless IA32_VMX_EPT_VPID_CAP has all `bits`.
pub fn require_ept_vpid(bits: u64, what: &str) {
    if ept_vpid() & bits != bits {
        skip!("no {what} in IA32_VMX_EPT_VPID_CAP");
    }
}
