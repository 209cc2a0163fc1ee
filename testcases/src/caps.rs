//! KVM's capabilities by name.
//!
//! The numbers are those of Linux's `include/uapi/linux/kvm.h`, which never change; the names are
//! its names without `KVM_CAP_`. Only what means something on x86 is listed.

/// The capabilities, by name.
pub const CAPS: &[(&str, u32)] = &[
    ("ADJUST_CLOCK", 39),
    ("ASYNC_PF", 59),
    ("ASYNC_PF_INT", 183),
    ("BINARY_STATS_FD", 203),
    ("CHECK_EXTENSION_VM", 105),
    ("CLOCKSOURCE", 8),
    ("COALESCED_MMIO", 15),
    ("COALESCED_PIO", 162),
    ("DEBUGREGS", 50),
    ("DEVICE_CTRL", 89),
    ("DIRTY_LOG_RING", 192),
    ("DIRTY_LOG_RING_ACQ_REL", 223),
    ("DIRTY_LOG_RING_WITH_BITMAP", 225),
    ("DISABLE_QUIRKS", 116),
    ("DISABLE_QUIRKS2", 213),
    ("ENABLE_CAP_VM", 98),
    ("ENFORCE_PV_FEATURE_CPUID", 190),
    ("EXCEPTION_PAYLOAD", 164),
    ("EXIT_HYPERCALL", 201),
    ("EXIT_ON_EMULATION_FAILURE", 204),
    ("EXT_CPUID", 7),
    ("EXT_EMUL_CPUID", 95),
    ("GET_MSR_FEATURES", 153),
    ("GET_TSC_KHZ", 61),
    ("GUEST_DEBUG_HW_BPS", 119),
    ("GUEST_DEBUG_HW_WPS", 120),
    ("GUEST_MEMFD", 234),
    ("HALT_POLL", 182),
    ("HLT", 1),
    ("HYPERV", 44),
    ("HYPERV_CPUID", 167),
    ("HYPERV_DIRECT_TLBFLUSH", 175),
    ("HYPERV_ENFORCE_CPUID", 199),
    ("HYPERV_ENLIGHTENED_VMCS", 163),
    ("HYPERV_EVENTFD", 154),
    ("HYPERV_SEND_IPI", 161),
    ("HYPERV_SPIN", 46),
    ("HYPERV_SYNIC", 123),
    ("HYPERV_SYNIC2", 148),
    ("HYPERV_TIME", 96),
    ("HYPERV_TLBFLUSH", 155),
    ("HYPERV_VAPIC", 45),
    ("HYPERV_VP_INDEX", 149),
    ("IMMEDIATE_EXIT", 136),
    ("INTR_SHADOW", 49),
    ("IOAPIC_POLARITY_IGNORED", 97),
    ("IOEVENTFD", 36),
    ("IOEVENTFD_ANY_LENGTH", 122),
    ("IOEVENTFD_NO_LENGTH", 100),
    ("IRQCHIP", 0),
    ("IRQFD", 32),
    ("IRQFD_RESAMPLE", 82),
    ("IRQ_INJECT_STATUS", 26),
    ("IRQ_ROUTING", 25),
    ("KVMCLOCK_CTRL", 76),
    ("MANUAL_DIRTY_LOG_PROTECT2", 168),
    ("MAX_VCPUS", 66),
    ("MAX_VCPU_ID", 128),
    ("MCE", 31),
    ("MEMORY_ATTRIBUTES", 233),
    ("MEMORY_FAULT_INFO", 232),
    ("MP_STATE", 14),
    ("MSR_PLATFORM_INFO", 159),
    ("MULTI_ADDRESS_SPACE", 118),
    ("NESTED_STATE", 157),
    ("NR_MEMSLOTS", 10),
    ("NR_VCPUS", 9),
    ("PIT", 11),
    ("PIT2", 33),
    ("PIT_STATE2", 35),
    ("PMU_CAPABILITY", 212),
    ("PMU_EVENT_FILTER", 173),
    ("PMU_EVENT_MASKED_EVENTS", 226),
    ("PRE_FAULT_MEMORY", 236),
    ("READONLY_MEM", 81),
    ("REINJECT_CONTROL", 24),
    ("SET_BOOT_CPU_ID", 34),
    ("SET_GUEST_DEBUG", 23),
    ("SET_GUEST_DEBUG2", 195),
    ("SET_IDENTITY_MAP_ADDR", 37),
    ("SGX_ATTRIBUTE", 196),
    ("SIGNAL_MSI", 77),
    ("SMALLER_MAXPHYADDR", 185),
    ("SPLIT_IRQCHIP", 121),
    ("SREGS2", 200),
    ("STEAL_TIME", 187),
    ("SYNC_MMU", 16),
    ("SYNC_REGS", 74),
    ("SYSTEM_EVENT_DATA", 215),
    ("SYS_HYPERV_CPUID", 191),
    ("TSC_CONTROL", 60),
    ("TSC_DEADLINE_TIMER", 72),
    ("USER_MEMORY", 3),
    ("USER_MEMORY2", 231),
    ("VCPU_ATTRIBUTES", 127),
    ("VCPU_EVENTS", 41),
    ("VM_ATTRIBUTES", 101),
    ("VM_DISABLE_NX_HUGE_PAGES", 220),
    ("VM_GPA_BITS", 207),
    ("VM_TSC_CONTROL", 214),
    ("VM_TYPES", 235),
    ("X2APIC_API", 129),
    ("X86_APIC_BUS_CYCLES_NS", 237),
    ("X86_BUS_LOCK_EXIT", 193),
    ("X86_DISABLE_EXITS", 143),
    ("X86_GUEST_MODE", 238),
    ("X86_MSR_FILTER", 189),
    ("X86_NOTIFY_VMEXIT", 219),
    ("X86_ROBUST_SINGLESTEP", 51),
    ("X86_SMM", 117),
    ("X86_TRIPLE_FAULT_EVENT", 218),
    ("X86_USER_SPACE_MSR", 188),
    ("XCRS", 56),
    ("XEN_HVM", 38),
    ("XSAVE", 55),
    ("XSAVE2", 208),
];

/// The number of a capability.
pub fn number(name: &str) -> Option<u32> {
    CAPS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_unique_and_sorted() {
        assert!(CAPS.windows(2).all(|w| w[0].0 < w[1].0), "sorted by name");
        let mut numbers: Vec<_> = CAPS.iter().map(|(_, number)| number).collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), CAPS.len());
        assert_eq!((number("IRQCHIP"), number("X86_SMM")), (Some(0), Some(117)));
        assert_eq!(number("KVM_CAP_IRQCHIP"), None);
    }
}
