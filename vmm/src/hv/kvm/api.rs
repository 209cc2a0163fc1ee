//! KVM's API by name: why a vCPU leaves guest mode, and the ioctls of x86.
//!
//! Names and numbers are those of Linux's `include/uapi/linux/kvm.h`, up to Linux 6.19; what each is
//! for is in its `Documentation/virt/kvm/api.rst`. Ioctls that Linux has no more (aliases, assigned
//! devices) are not listed.

use crate::hv::lab::Target;

/// Why a vCPU leaves guest mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitReason {
    /// Its number in `kvm_run.exit_reason`.
    pub number: u32,
    /// Its name, with `KVM_EXIT_`.
    pub name: &'static str,
    /// What it tells in one line; `None` if no KVM of x86 makes it.
    pub about: Option<&'static str>,
}

/// Which way an ioctl's argument goes, as its number says (`_IO`, `_IOW`, `_IOR`, `_IOWR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// There is no structure.
    None,
    /// KVM reads it.
    Write,
    /// KVM writes it.
    Read,
    /// Both.
    Both,
}

/// An ioctl of x86.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ioctl {
    /// The number of the command, bits 7:0 of the request.
    pub number: u8,
    /// Bits 31:30 of the request.
    pub direction: Direction,
    /// Its name, with `KVM_`.
    pub name: &'static str,
    /// What it is made on.
    pub on: &'static [Target],
    /// What it does in one line.
    pub about: &'static str,
}

const fn exit(number: u32, name: &'static str, about: &'static str) -> ExitReason {
    ExitReason { number, name, about: Some(about) }
}
const fn elsewhere(number: u32, name: &'static str) -> ExitReason {
    ExitReason { number, name, about: None }
}

/// Every reason, by its number.
#[rustfmt::skip]
pub const EXITS: &[ExitReason] = &[
    exit(0, "KVM_EXIT_UNKNOWN", "The processor left the guest for a reason that KVM does not know."),
    elsewhere(1, "KVM_EXIT_EXCEPTION"),
    exit(2, "KVM_EXIT_IO", "Port I/O that no device in the kernel takes."),
    exit(3, "KVM_EXIT_HYPERCALL", "A hypercall that is the VMM's to answer."),
    exit(4, "KVM_EXIT_DEBUG", "A breakpoint or a single step that the VMM asked for."),
    exit(5, "KVM_EXIT_HLT", "HLT, where the local APIC is not in the kernel."),
    exit(6, "KVM_EXIT_MMIO", "An access to guest-physical memory that no slot has."),
    exit(7, "KVM_EXIT_IRQ_WINDOW_OPEN", "The vCPU can take the interrupt that the VMM waits with."),
    exit(8, "KVM_EXIT_SHUTDOWN", "A triple fault."),
    exit(9, "KVM_EXIT_FAIL_ENTRY", "The processor refused to enter the guest."),
    exit(10, "KVM_EXIT_INTR", "A signal came."),
    exit(11, "KVM_EXIT_SET_TPR", "The guest lowered CR8, where the local APIC is not in the kernel."),
    exit(12, "KVM_EXIT_TPR_ACCESS", "An access to the TPR that the VMM wants to see."),
    elsewhere(13, "KVM_EXIT_S390_SIEIC"),
    elsewhere(14, "KVM_EXIT_S390_RESET"),
    elsewhere(15, "KVM_EXIT_DCR"),
    elsewhere(16, "KVM_EXIT_NMI"),
    exit(17, "KVM_EXIT_INTERNAL_ERROR", "KVM cannot go on, as with an instruction that it cannot emulate."),
    elsewhere(18, "KVM_EXIT_OSI"),
    elsewhere(19, "KVM_EXIT_PAPR_HCALL"),
    elsewhere(20, "KVM_EXIT_S390_UCONTROL"),
    elsewhere(21, "KVM_EXIT_WATCHDOG"),
    elsewhere(22, "KVM_EXIT_S390_TSCH"),
    elsewhere(23, "KVM_EXIT_EPR"),
    exit(24, "KVM_EXIT_SYSTEM_EVENT", "The guest asks for a reset or its end, or crashed."),
    elsewhere(25, "KVM_EXIT_S390_STSI"),
    exit(26, "KVM_EXIT_IOAPIC_EOI", "The EOI of a level-triggered interrupt, with a split irqchip."),
    exit(27, "KVM_EXIT_HYPERV", "A Hyper-V hypercall, or an MSR of its synthetic interrupts."),
    elsewhere(28, "KVM_EXIT_ARM_NISV"),
    exit(29, "KVM_EXIT_X86_RDMSR", "RDMSR that the VMM answers."),
    exit(30, "KVM_EXIT_X86_WRMSR", "WRMSR that the VMM answers."),
    exit(31, "KVM_EXIT_DIRTY_RING_FULL", "No room in the vCPU's dirty ring."),
    exit(32, "KVM_EXIT_AP_RESET_HOLD", "A CPU of an SEV-ES guest waits for its start-up."),
    exit(33, "KVM_EXIT_X86_BUS_LOCK", "The guest locked the bus."),
    exit(34, "KVM_EXIT_XEN", "A Xen hypercall."),
    elsewhere(35, "KVM_EXIT_RISCV_SBI"),
    elsewhere(36, "KVM_EXIT_RISCV_CSR"),
    exit(37, "KVM_EXIT_NOTIFY", "No event window for too long."),
    elsewhere(38, "KVM_EXIT_LOONGARCH_IOCSR"),
    exit(39, "KVM_EXIT_MEMORY_FAULT", "A fault of guest memory that the VMM must see to."),
    exit(40, "KVM_EXIT_TDX", "A request of a TDX guest."),
    elsewhere(41, "KVM_EXIT_ARM_SEA"),
];

const NONE: Direction = Direction::None;
const WRITE: Direction = Direction::Write;
const READ: Direction = Direction::Read;
const BOTH: Direction = Direction::Both;
const SYSTEM: Target = Target::System;
const VM: Target = Target::Vm;
const VCPU: Target = Target::Vcpu;

const fn ioctl(
    number: u8,
    direction: Direction,
    name: &'static str,
    on: &'static [Target],
    about: &'static str,
) -> Ioctl {
    Ioctl { number, direction, name, on, about }
}

/// The ioctls, by their number.
#[rustfmt::skip]
pub const IOCTLS: &[Ioctl] = &[
    ioctl(0x00, NONE, "KVM_GET_API_VERSION", &[SYSTEM], "The version of the API: 12."),
    ioctl(0x01, NONE, "KVM_CREATE_VM", &[SYSTEM], "Makes a VM."),
    ioctl(0x02, BOTH, "KVM_GET_MSR_INDEX_LIST", &[SYSTEM], "The MSRs that are to be saved."),
    ioctl(0x03, NONE, "KVM_CHECK_EXTENSION", &[SYSTEM, VM], "What a capability is worth."),
    ioctl(0x04, NONE, "KVM_GET_VCPU_MMAP_SIZE", &[SYSTEM], "The size of what a vCPU shares with its VMM."),
    ioctl(0x05, BOTH, "KVM_GET_SUPPORTED_CPUID", &[SYSTEM], "The CPUID leaves that KVM can show a guest."),
    ioctl(0x09, BOTH, "KVM_GET_EMULATED_CPUID", &[SYSTEM], "The CPUID features that KVM emulates."),
    ioctl(0x0a, BOTH, "KVM_GET_MSR_FEATURE_INDEX_LIST", &[SYSTEM], "The MSRs that tell what KVM offers."),
    ioctl(0x41, NONE, "KVM_CREATE_VCPU", &[VM], "Makes a vCPU."),
    ioctl(0x42, WRITE, "KVM_GET_DIRTY_LOG", &[VM], "The pages of a slot that were written."),
    ioctl(0x44, NONE, "KVM_SET_NR_MMU_PAGES", &[VM], "How many pages shadow page tables may have."),
    ioctl(0x45, NONE, "KVM_GET_NR_MMU_PAGES", &[VM], "How many pages shadow page tables may have."),
    ioctl(0x46, WRITE, "KVM_SET_USER_MEMORY_REGION", &[VM], "Makes, moves, changes or deletes a memslot."),
    ioctl(0x47, NONE, "KVM_SET_TSS_ADDR", &[VM], "Where real mode on Intel keeps three pages."),
    ioctl(0x48, WRITE, "KVM_SET_IDENTITY_MAP_ADDR", &[VM], "Where real mode on Intel keeps a page table."),
    ioctl(0x49, WRITE, "KVM_SET_USER_MEMORY_REGION2", &[VM], "A memslot with guest_memfd behind it."),
    ioctl(0x60, NONE, "KVM_CREATE_IRQCHIP", &[VM], "Makes local APICs, I/O APIC and PICs."),
    ioctl(0x61, WRITE, "KVM_IRQ_LINE", &[VM], "Sets the level of an interrupt line."),
    ioctl(0x62, BOTH, "KVM_GET_IRQCHIP", &[VM], "State of a PIC or the I/O APIC."),
    ioctl(0x63, READ, "KVM_SET_IRQCHIP", &[VM], "State of a PIC or the I/O APIC."),
    ioctl(0x64, NONE, "KVM_CREATE_PIT", &[VM], "Makes a PIT, without flags."),
    ioctl(0x65, BOTH, "KVM_GET_PIT", &[VM], "State of the PIT, without flags."),
    ioctl(0x66, READ, "KVM_SET_PIT", &[VM], "State of the PIT, without flags."),
    ioctl(0x67, BOTH, "KVM_IRQ_LINE_STATUS", &[VM], "Sets an interrupt line, and tells whether the interrupt was taken."),
    ioctl(0x67, WRITE, "KVM_REGISTER_COALESCED_MMIO", &[VM], "Writes that are collected without an exit."),
    ioctl(0x68, WRITE, "KVM_UNREGISTER_COALESCED_MMIO", &[VM], "Ends that."),
    ioctl(0x6a, WRITE, "KVM_SET_GSI_ROUTING", &[VM], "Where each GSI leads."),
    ioctl(0x71, NONE, "KVM_REINJECT_CONTROL", &[VM], "Whether lost ticks of the PIT are made up for."),
    ioctl(0x76, WRITE, "KVM_IRQFD", &[VM], "An interrupt by an eventfd."),
    ioctl(0x77, WRITE, "KVM_CREATE_PIT2", &[VM], "Makes a PIT."),
    ioctl(0x78, NONE, "KVM_SET_BOOT_CPU_ID", &[VM], "Which vCPU is the boot CPU."),
    ioctl(0x79, WRITE, "KVM_IOEVENTFD", &[VM], "An eventfd by a write of the guest."),
    ioctl(0x7a, WRITE, "KVM_XEN_HVM_CONFIG", &[VM], "Xen's hypercall page and features."),
    ioctl(0x7b, WRITE, "KVM_SET_CLOCK", &[VM], "Sets the paravirtual clock."),
    ioctl(0x7c, READ, "KVM_GET_CLOCK", &[VM], "Reads the paravirtual clock."),
    ioctl(0x80, NONE, "KVM_RUN", &[VCPU], "Runs the vCPU until it leaves guest mode."),
    ioctl(0x81, READ, "KVM_GET_REGS", &[VCPU], "General registers."),
    ioctl(0x82, WRITE, "KVM_SET_REGS", &[VCPU], "General registers."),
    ioctl(0x83, READ, "KVM_GET_SREGS", &[VCPU], "Segments, descriptor tables, control registers."),
    ioctl(0x84, WRITE, "KVM_SET_SREGS", &[VCPU], "Segments, descriptor tables, control registers."),
    ioctl(0x85, BOTH, "KVM_TRANSLATE", &[VCPU], "The guest-physical address of a linear one."),
    ioctl(0x86, WRITE, "KVM_INTERRUPT", &[VCPU], "Queues an interrupt, where the local APIC is not in the kernel."),
    ioctl(0x88, BOTH, "KVM_GET_MSRS", &[SYSTEM, VCPU], "Reads MSRs; of the system, those that tell what KVM offers."),
    ioctl(0x89, WRITE, "KVM_SET_MSRS", &[VCPU], "Writes MSRs."),
    ioctl(0x8a, WRITE, "KVM_SET_CPUID", &[VCPU], "CPUID without subleaves."),
    ioctl(0x8b, WRITE, "KVM_SET_SIGNAL_MASK", &[VCPU], "The signals that are blocked while the vCPU runs."),
    ioctl(0x8c, READ, "KVM_GET_FPU", &[VCPU], "x87 and SSE registers."),
    ioctl(0x8d, WRITE, "KVM_SET_FPU", &[VCPU], "x87 and SSE registers."),
    ioctl(0x8e, READ, "KVM_GET_LAPIC", &[VCPU], "The local APIC's registers."),
    ioctl(0x8f, WRITE, "KVM_SET_LAPIC", &[VCPU], "The local APIC's registers."),
    ioctl(0x90, WRITE, "KVM_SET_CPUID2", &[VCPU], "What CPUID tells the guest."),
    ioctl(0x91, BOTH, "KVM_GET_CPUID2", &[VCPU], "What CPUID tells the guest."),
    ioctl(0x92, BOTH, "KVM_TPR_ACCESS_REPORTING", &[VCPU], "Whether accesses to the TPR leave the guest."),
    ioctl(0x93, WRITE, "KVM_SET_VAPIC_ADDR", &[VCPU], "Where the guest has its copy of the TPR."),
    ioctl(0x98, READ, "KVM_GET_MP_STATE", &[VCPU], "Runnable, halted, waits for INIT or SIPI."),
    ioctl(0x99, WRITE, "KVM_SET_MP_STATE", &[VCPU], "Runnable, halted, waits for INIT or SIPI."),
    ioctl(0x9a, NONE, "KVM_NMI", &[VCPU], "Queues an NMI."),
    ioctl(0x9b, WRITE, "KVM_SET_GUEST_DEBUG", &[VCPU], "Single steps and breakpoints of the VMM's."),
    ioctl(0x9c, WRITE, "KVM_X86_SETUP_MCE", &[VCPU], "How many machine-check banks there are, and of what kind."),
    ioctl(0x9d, READ, "KVM_X86_GET_MCE_CAP_SUPPORTED", &[SYSTEM], "The machine-check capabilities that KVM can show."),
    ioctl(0x9e, WRITE, "KVM_X86_SET_MCE", &[VCPU], "Raises a machine check."),
    ioctl(0x9f, READ, "KVM_GET_PIT2", &[VM], "State of the PIT."),
    ioctl(0x9f, READ, "KVM_GET_VCPU_EVENTS", &[VCPU], "Pending exceptions, interrupts, NMIs and SMIs."),
    ioctl(0xa0, WRITE, "KVM_SET_PIT2", &[VM], "State of the PIT."),
    ioctl(0xa0, WRITE, "KVM_SET_VCPU_EVENTS", &[VCPU], "Pending exceptions, interrupts, NMIs and SMIs."),
    ioctl(0xa1, READ, "KVM_GET_DEBUGREGS", &[VCPU], "The guest's debug registers."),
    ioctl(0xa2, NONE, "KVM_SET_TSC_KHZ", &[VM, VCPU], "The rate of the TSC."),
    ioctl(0xa2, WRITE, "KVM_SET_DEBUGREGS", &[VCPU], "The guest's debug registers."),
    ioctl(0xa3, NONE, "KVM_GET_TSC_KHZ", &[VM, VCPU], "The rate of the TSC."),
    ioctl(0xa3, WRITE, "KVM_ENABLE_CAP", &[VM, VCPU], "Switches a capability on."),
    ioctl(0xa4, READ, "KVM_GET_XSAVE", &[VCPU], "The XSAVE area."),
    ioctl(0xa5, WRITE, "KVM_SIGNAL_MSI", &[VM], "Sends a message-signalled interrupt."),
    ioctl(0xa5, WRITE, "KVM_SET_XSAVE", &[VCPU], "The XSAVE area."),
    ioctl(0xa6, READ, "KVM_GET_XCRS", &[VCPU], "XCR0."),
    ioctl(0xa7, WRITE, "KVM_SET_XCRS", &[VCPU], "XCR0."),
    ioctl(0xab, WRITE, "KVM_GET_ONE_REG", &[VCPU], "One register by its name: an MSR, or the shadow stack pointer."),
    ioctl(0xac, WRITE, "KVM_SET_ONE_REG", &[VCPU], "One register by its name: an MSR, or the shadow stack pointer."),
    ioctl(0xad, NONE, "KVM_KVMCLOCK_CTRL", &[VCPU], "Tells the guest that it was stopped."),
    ioctl(0xb0, BOTH, "KVM_GET_REG_LIST", &[VCPU], "The registers that only those two know."),
    ioctl(0xb2, WRITE, "KVM_SET_PMU_EVENT_FILTER", &[VM], "The events that the guest may count."),
    ioctl(0xb7, NONE, "KVM_SMI", &[VCPU], "Queues an SMI."),
    ioctl(0xba, BOTH, "KVM_MEMORY_ENCRYPT_OP", &[VM, VCPU], "SEV and TDX."),
    ioctl(0xbb, READ, "KVM_MEMORY_ENCRYPT_REG_REGION", &[VM], "Memory of an SEV guest."),
    ioctl(0xbc, READ, "KVM_MEMORY_ENCRYPT_UNREG_REGION", &[VM], "Memory of an SEV guest."),
    ioctl(0xbd, WRITE, "KVM_HYPERV_EVENTFD", &[VM], "An eventfd by a Hyper-V hypercall."),
    ioctl(0xbe, BOTH, "KVM_GET_NESTED_STATE", &[VCPU], "State of the guest's own VMX or SVM."),
    ioctl(0xbf, WRITE, "KVM_SET_NESTED_STATE", &[VCPU], "State of the guest's own VMX or SVM."),
    ioctl(0xc0, BOTH, "KVM_CLEAR_DIRTY_LOG", &[VM], "Protects pages of the dirty log again."),
    ioctl(0xc1, BOTH, "KVM_GET_SUPPORTED_HV_CPUID", &[SYSTEM, VCPU], "The Hyper-V leaves of CPUID."),
    ioctl(0xc6, WRITE, "KVM_X86_SET_MSR_FILTER", &[VM], "The MSRs whose accesses KVM refuses."),
    ioctl(0xc7, NONE, "KVM_RESET_DIRTY_RINGS", &[VM], "Takes harvested entries of the dirty rings back."),
    ioctl(0xc8, BOTH, "KVM_XEN_HVM_GET_ATTR", &[VM], "Xen's attributes of the VM."),
    ioctl(0xc9, WRITE, "KVM_XEN_HVM_SET_ATTR", &[VM], "Xen's attributes of the VM."),
    ioctl(0xca, BOTH, "KVM_XEN_VCPU_GET_ATTR", &[VCPU], "Xen's attributes of a vCPU."),
    ioctl(0xcb, WRITE, "KVM_XEN_VCPU_SET_ATTR", &[VCPU], "Xen's attributes of a vCPU."),
    ioctl(0xcc, READ, "KVM_GET_SREGS2", &[VCPU], "As KVM_GET_SREGS, with the PDPTEs."),
    ioctl(0xcd, WRITE, "KVM_SET_SREGS2", &[VCPU], "As KVM_SET_SREGS, with the PDPTEs."),
    ioctl(0xce, NONE, "KVM_GET_STATS_FD", &[VM, VCPU], "Statistics as a file."),
    ioctl(0xcf, READ, "KVM_GET_XSAVE2", &[VCPU], "The XSAVE area, also where it is larger than 4096 bytes."),
    ioctl(0xd0, WRITE, "KVM_XEN_HVM_EVTCHN_SEND", &[VM], "Sends a Xen event."),
    ioctl(0xd2, WRITE, "KVM_SET_MEMORY_ATTRIBUTES", &[VM], "Which memory is private."),
    ioctl(0xd4, BOTH, "KVM_CREATE_GUEST_MEMFD", &[VM], "Makes memory that only guests reach."),
    ioctl(0xd5, BOTH, "KVM_PRE_FAULT_MEMORY", &[VCPU], "Maps guest memory before the guest touches it."),
    ioctl(0xe0, BOTH, "KVM_CREATE_DEVICE", &[VM], "Makes a device in the kernel; on x86, the one of VFIO."),
    ioctl(0xe1, WRITE, "KVM_SET_DEVICE_ATTR", &[VM, VCPU], "An attribute, such as a vCPU's TSC offset."),
    ioctl(0xe2, WRITE, "KVM_GET_DEVICE_ATTR", &[SYSTEM, VM, VCPU], "An attribute, such as a vCPU's TSC offset."),
    ioctl(0xe3, WRITE, "KVM_HAS_DEVICE_ATTR", &[SYSTEM, VM, VCPU], "Whether there is such an attribute."),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn exits_are_those_of_the_bindings() {
        use kvm_bindings::*;
        macro_rules! same {
            ($($name:ident)*) => { $(
                let found = EXITS.iter().find(|exit| exit.name == stringify!($name));
                assert_eq!(found.map(|exit| exit.number), Some($name), stringify!($name));
            )* };
        }
        same! {
            KVM_EXIT_UNKNOWN KVM_EXIT_EXCEPTION KVM_EXIT_IO KVM_EXIT_HYPERCALL KVM_EXIT_DEBUG
            KVM_EXIT_HLT KVM_EXIT_MMIO KVM_EXIT_IRQ_WINDOW_OPEN KVM_EXIT_SHUTDOWN
            KVM_EXIT_FAIL_ENTRY KVM_EXIT_INTR KVM_EXIT_SET_TPR KVM_EXIT_TPR_ACCESS
            KVM_EXIT_S390_SIEIC KVM_EXIT_S390_RESET KVM_EXIT_DCR KVM_EXIT_NMI
            KVM_EXIT_INTERNAL_ERROR KVM_EXIT_OSI KVM_EXIT_PAPR_HCALL KVM_EXIT_S390_UCONTROL
            KVM_EXIT_WATCHDOG KVM_EXIT_S390_TSCH KVM_EXIT_EPR KVM_EXIT_SYSTEM_EVENT
            KVM_EXIT_S390_STSI KVM_EXIT_IOAPIC_EOI KVM_EXIT_HYPERV KVM_EXIT_ARM_NISV
            KVM_EXIT_X86_RDMSR KVM_EXIT_X86_WRMSR KVM_EXIT_DIRTY_RING_FULL KVM_EXIT_AP_RESET_HOLD
            KVM_EXIT_X86_BUS_LOCK KVM_EXIT_XEN KVM_EXIT_RISCV_SBI KVM_EXIT_RISCV_CSR
            KVM_EXIT_NOTIFY KVM_EXIT_LOONGARCH_IOCSR KVM_EXIT_MEMORY_FAULT
        }
        let numbers: Vec<u32> = EXITS.iter().map(|exit| exit.number).collect();
        assert_eq!(numbers, (0..EXITS.len() as u32).collect::<Vec<_>>(), "no number is left out");
    }

    #[test]
    fn no_ioctl_is_there_twice() {
        assert!(IOCTLS.windows(2).all(|w| w[0].number <= w[1].number), "sorted by number");
        let names: BTreeSet<_> = IOCTLS.iter().map(|ioctl| ioctl.name).collect();
        assert_eq!(names.len(), IOCTLS.len());
        let requests: BTreeSet<_> = IOCTLS
            .iter()
            .flat_map(|i| i.on.iter().map(move |on| (*on as u8, i.direction as u8, i.number)))
            .collect();
        assert_eq!(requests.len(), IOCTLS.iter().map(|ioctl| ioctl.on.len()).sum::<usize>());
    }
}
