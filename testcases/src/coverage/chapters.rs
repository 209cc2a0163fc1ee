//! The chapters of the manuals that cases are after.
//!
//! Intel's are named by their titles, since their numbers move with each edition; AMD's by their
//! numbers, which stay.

/// A chapter of Intel's Software Developer's Manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SdmChapter {
    /// The volume that it is in.
    pub volume: u8,
    /// Its title.
    pub title: &'static str,
}

/// A chapter of AMD's Architecture Programmer's Manual, or a section of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApmChapter {
    /// The volume and where it is in there, such as `2.15.20`.
    pub number: &'static str,
    /// Its title.
    pub title: &'static str,
}

const fn sdm(volume: u8, title: &'static str) -> SdmChapter {
    SdmChapter { volume, title }
}

const fn apm(number: &'static str, title: &'static str) -> ApmChapter {
    ApmChapter { number, title }
}

/// All chapters of volume 3 that rule what a processor does, with those appendices that do; before
/// them the chapters of volume 1 and behind them that of volume 4 which rule what a hypervisor must
/// keep to. Instructions (volume 2) have a row each only where they are a feature of CPUID.
pub const SDM: &[SdmChapter] = &[
    sdm(1, "Input/Output"),
    sdm(1, "Managing State Using the XSAVE Feature Set"),
    sdm(1, "Control-Flow Enforcement Technology (CET)"),
    sdm(1, "Processor Identification and Feature Determination"),
    sdm(3, "System Architecture Overview"),
    sdm(3, "Protected-Mode Memory Management"),
    sdm(3, "Linear-Address Pre-Processing"),
    sdm(3, "Paging"),
    sdm(3, "Protection"),
    sdm(3, "Interrupt and Exception Handling"),
    sdm(3, "User Interrupts"),
    sdm(3, "Task Management"),
    sdm(3, "Multiple-Processor Management"),
    sdm(3, "Processor Management and Initialization"),
    sdm(3, "Advanced Programmable Interrupt Controller (APIC)"),
    sdm(3, "Memory Cache Control"),
    sdm(3, "Intel MMX Technology System Programming"),
    sdm(3, "System Programming for Instruction Set Extensions and Processor Extended States"),
    sdm(3, "Power and Thermal Management"),
    sdm(3, "Machine-Check Architecture"),
    sdm(3, "Interpreting Machine Check Error Codes"),
    sdm(
        3,
        "Debug, Branch Profile, TSC, and Intel Resource Director Technology (Intel RDT) Features",
    ),
    sdm(3, "Last Branch Records"),
    sdm(3, "Performance Monitoring"),
    sdm(3, "8086 Emulation"),
    sdm(3, "Mixing 16-Bit and 32-Bit Code"),
    sdm(3, "IA-32 Architecture Compatibility"),
    sdm(3, "Introduction to Virtual Machine Extensions"),
    sdm(3, "Virtual Machine Control Structures"),
    sdm(3, "VMX Non-Root Operation"),
    sdm(3, "VM Entries"),
    sdm(3, "VM Exits"),
    sdm(3, "VMX Support for Address Translation"),
    sdm(3, "APIC Virtualization and Virtual Interrupts"),
    sdm(3, "VMX Instruction Reference"),
    sdm(3, "System Management Mode"),
    sdm(3, "Intel Processor Trace"),
    sdm(3, "Introduction to Intel Software Guard Extensions"),
    sdm(3, "Enclave Access Control and Data Structures"),
    sdm(3, "Enclave Operation"),
    sdm(3, "Enclave Exiting Events"),
    sdm(3, "Intel SGX Instruction References"),
    sdm(3, "Intel SGX Interactions With IA-32 and Intel 64 Architecture"),
    sdm(3, "Enclave Code Debug and Profiling"),
    sdm(3, "VMX Capability Reporting Facility"),
    sdm(3, "Field Encoding in VMCS"),
    sdm(3, "VMX Basic Exit Reasons"),
    sdm(4, "Model-Specific Registers (MSRs)"),
];

/// All chapters of volume 2, the one on SVM section by section, and what volume 3 says of CPUID.
pub const APM: &[ApmChapter] = &[
    apm("2.1", "System-Programming Overview"),
    apm("2.2", "x86 and AMD64 Architecture Differences"),
    apm("2.3", "System Resources"),
    apm("2.4", "Segmented Virtual Memory"),
    apm("2.5", "Page Translation and Protection"),
    apm("2.6", "System Instructions"),
    apm("2.7", "Memory System"),
    apm("2.8", "Exceptions and Interrupts"),
    apm("2.9", "Machine Check Architecture"),
    apm("2.10", "System-Management Mode"),
    apm("2.11", "SSE, MMX, and x87 Programming"),
    apm("2.12", "Task Management"),
    apm("2.13", "Software Debug and Performance Resources"),
    apm("2.14", "Processor Initialization and Long Mode Activation"),
    apm("2.15.1", "The Virtual Machine Monitor"),
    apm("2.15.2", "SVM Hardware Overview"),
    apm("2.15.3", "SVM Processor and Platform Extensions"),
    apm("2.15.4", "Enabling SVM"),
    apm("2.15.5", "VMRUN Instruction"),
    apm("2.15.6", "#VMEXIT"),
    apm("2.15.7", "Intercept Operation"),
    apm("2.15.8", "Decode Assists"),
    apm("2.15.9", "Instruction Intercepts"),
    apm("2.15.10", "IOIO Intercepts"),
    apm("2.15.11", "MSR Intercepts"),
    apm("2.15.12", "Exception Intercepts"),
    apm("2.15.13", "Interrupt Intercepts"),
    apm("2.15.14", "Miscellaneous Intercepts"),
    apm("2.15.15", "VMCB State Caching"),
    apm("2.15.16", "TLB Control"),
    apm("2.15.17", "Global Interrupt Flag, STGI and CLGI Instructions"),
    apm("2.15.18", "VMMCALL Instruction"),
    apm("2.15.19", "Paged Real Mode"),
    apm("2.15.20", "Event Injection"),
    apm("2.15.21", "Interrupt and Local APIC Support"),
    apm("2.15.22", "SMM Support"),
    apm("2.15.23", "Last Branch Record Virtualization"),
    apm("2.15.24", "External Access Protection"),
    apm("2.15.25", "Nested Paging"),
    apm("2.15.26", "Security"),
    apm("2.15.27", "Secure Startup with SKINIT"),
    apm("2.15.28", "Security Exception (#SX)"),
    apm("2.15.29", "Advanced Virtual Interrupt Controller"),
    apm("2.15.30", "SVM Related MSRs"),
    apm("2.15.31", "SVM-Lock"),
    apm("2.15.32", "SMM-Lock"),
    apm("2.15.33", "Nested Virtualization"),
    apm("2.15.34", "Secure Encrypted Virtualization"),
    apm("2.15.35", "Encrypted State (SEV-ES)"),
    apm("2.15.36", "Secure Nested Paging (SEV-SNP)"),
    apm("2.15.37", "Speculation Control Virtualization"),
    apm("2.16", "Advanced Programmable Interrupt Controller (APIC)"),
    apm("2.17", "Hardware Performance Monitoring and Control"),
    apm("2.18", "Shadow Stacks"),
    apm("3.E", "Obtaining Processor Information Via the CPUID Instruction"),
];
