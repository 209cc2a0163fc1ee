//! The capability MSRs (SDM volume 3, appendix "VMX Capability Reporting Facility").

use payload_rt::trap::GP;
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::fields::{ALL, Area};
use payload_rt::vmx::{self, Field, Refusal};
use payload_rt::{check, check_eq, check_trap, cpuid, reg, test};

/// The default1 class of each set of controls ("Basic VMX Information" and following).
const PIN_DEFAULT1: u64 = 0x16;
const CPU_DEFAULT1: u64 = 0x0401_e172;
const EXIT_DEFAULT1: u64 = 0x3_6dff;
const ENTRY_DEFAULT1: u64 = 0x11ff;

test!(
    caps_basic,
    "IA32_VMX_BASIC: revision, region size, memory type, and no reserved bit.",
    || {
        cpuid::VMX.require();
        let basic = caps::read(BASIC);
        check_eq!(basic & 1 << 31, 0, "bit 31 of {basic:#x}");
        let size = basic >> 32 & 0x1fff;
        check!(size > 0 && size <= 4096, "a region has {size} bytes");
        check_eq!(basic & 1 << 48, 0, "physical addresses limited to 32 bits on a 64-bit CPU");
        let kind = basic >> 50 & 0xf;
        check!(kind == 0 || kind == 6, "memory type {kind}");
        check_eq!(basic >> 45 & 7, 0, "bits 47:45 of {basic:#x}");
    }
);

test!(caps_read_only, "The capability MSRs are read-only.", || {
    cpuid::VMX.require();
    for msr in BASIC..=VMCS_ENUM {
        let value = caps::read(msr);
        check_trap!(reg::wrmsr(msr, value), GP, 0, "WRMSR of MSR {msr:#x}");
    }
});

test!(
    caps_controls,
    "What a control must be it may be; default1 controls must be 1, and TRUE_ MSRs only take that back.",
    || {
        cpuid::VMX.require();
        let with_true = caps::read(BASIC) & 1 << 55 != 0;
        for (msr, exact, default1, what) in [
            (PINBASED_CTLS, TRUE_PINBASED_CTLS, PIN_DEFAULT1, "pin-based"),
            (PROCBASED_CTLS, TRUE_PROCBASED_CTLS, CPU_DEFAULT1, "processor-based"),
            (EXIT_CTLS, TRUE_EXIT_CTLS, EXIT_DEFAULT1, "VM-exit"),
            (ENTRY_CTLS, TRUE_ENTRY_CTLS, ENTRY_DEFAULT1, "VM-entry"),
        ] {
            let plain = Allowed::of(msr);
            check_eq!(plain.must & !plain.may, 0, "must but may not, {what}");
            check_eq!(plain.must & default1, default1, "default1 controls that must be 1, {what}");
            if !with_true {
                continue;
            }
            let exact = Allowed::of(exact);
            check_eq!(exact.may, plain.may, "TRUE_ controls that may be 1, {what}");
            check_eq!(exact.must & !plain.must, 0, "only TRUE_ controls that must be 1, {what}");
            check_eq!((plain.must ^ exact.must) & !default1, 0, "differences, {what}");
        }
    }
);

test!(
    caps_primary_offered,
    "The primary controls that KVM can carry out without a feature of the processor are all offered.",
    || {
        // SDM volume 3, appendix A.3.2, leaves it to the processor. What has been there since the
        // first one with VMX, and what KVM adds in nested_vmx_setup_cpubased_ctls
        // (arch/x86/kvm/vmx/nested.c), must not get lost: a hypervisor that worked would not load.
        const OFFERED: u64 = CPU_INTERRUPT_WINDOW
            | CPU_NMI_WINDOW
            | CPU_TSC_OFFSET
            | CPU_HLT
            | CPU_INVLPG
            | CPU_MWAIT
            | CPU_RDPMC
            | CPU_RDTSC
            | CPU_CR3_LOAD
            | CPU_CR3_STORE
            | CPU_CR8_LOAD
            | CPU_CR8_STORE
            | CPU_MOV_DR
            | CPU_IO
            | CPU_IO_BITMAPS
            | CPU_MONITOR_TRAP
            | CPU_MSR_BITMAPS
            | CPU_MONITOR
            | CPU_PAUSE;
        cpuid::VMX.require();
        check_eq!(caps::cpu().may & OFFERED, OFFERED, "primary controls that may be 1");
    }
);

test!(
    caps_secondary,
    "Secondary controls may all be 0, and what they build on is offered with them.",
    || {
        cpuid::VMX.require();
        if caps::cpu().may & CPU_SECONDARY == 0 {
            payload_rt::skip!("no secondary controls");
        }
        let secondary = Allowed::of(PROCBASED_CTLS2);
        check_eq!(secondary.must, 0, "secondary controls that must be 1");
        for (control, base, what) in [
            (CPU2_UNRESTRICTED, CPU2_EPT, "unrestricted guest and EPT"),
            (CPU2_PML, CPU2_EPT, "PML and EPT"),
            (CPU2_INTERRUPTS, CPU2_APIC_REGISTERS, "interrupt delivery and APIC registers"),
        ] {
            if secondary.may & control != 0 {
                check!(secondary.may & base != 0, "{what}: {:#x}", secondary.may);
            }
        }
        for (control, feature) in [
            (CPU2_RDTSCP, cpuid::RDTSCP),
            (CPU2_INVPCID, cpuid::INVPCID),
            (CPU2_RDRAND, cpuid::RDRAND),
            (CPU2_RDSEED, cpuid::RDSEED),
            (CPU2_XSAVES, cpuid::XSAVES),
        ] {
            let offered = secondary.may & control != 0;
            check!(
                !offered || feature.present(),
                "a control for {}, which CPUID lacks",
                feature.name
            );
        }
    }
);

test!(
    caps_fixed_bits,
    "CR0 and CR4 bits fixed to 1 are allowed to be; what CPUID announces is not fixed to 0.",
    || {
        cpuid::VMX.require();
        for (zero, one, what) in [(CR0_FIXED0, CR0_FIXED1, "CR0"), (CR4_FIXED0, CR4_FIXED1, "CR4")]
        {
            let (zero, one) = (caps::read(zero), caps::read(one));
            check_eq!(zero & !one, 0, "bits of {what} that are fixed to both");
        }
        let cr0 = caps::read(CR0_FIXED0);
        let needed = reg::CR0_PE | reg::CR0_NE | reg::CR0_PG;
        check_eq!(cr0 & needed, needed, "PE, NE, PG in CR0's fixed bits");
        check_eq!(caps::read(CR0_FIXED1), 0xffff_ffff, "CR0 bits that may be 1");
        check_eq!(caps::read(CR4_FIXED0), vmx::CR4_VMXE, "CR4 bits that must be 1");
        let cr4 = caps::read(CR4_FIXED1);
        for (bit, feature) in [
            (reg::CR4_DE, cpuid::DE),
            (reg::CR4_PSE, cpuid::PSE),
            (reg::CR4_PGE, cpuid::PGE),
            (reg::CR4_UMIP, cpuid::UMIP),
            (reg::CR4_FSGSBASE, cpuid::FSGSBASE),
            (reg::CR4_PCIDE, cpuid::PCID),
            (reg::CR4_OSXSAVE, cpuid::XSAVE),
            (reg::CR4_SMEP, cpuid::SMEP),
            (reg::CR4_SMAP, cpuid::SMAP),
            (reg::CR4_PKE, cpuid::PKU),
            (reg::CR4_LA57, cpuid::LA57),
        ] {
            let allowed = cr4 & bit != 0;
            check_eq!(allowed, feature.present(), "CR4 bit {bit:#x} and {} in CPUID", feature.name);
        }
    }
);

test!(caps_misc, "IA32_VMX_MISC: no reserved bit; unrestricted guests store EFER.LMA.", || {
    cpuid::VMX.require();
    let misc = caps::read(MISC);
    check_eq!(misc & (0x1f << 9 | 1 << 31), 0, "bits 13:9 and 31 of {misc:#x}");
    if caps::cpu2().may & CPU2_UNRESTRICTED != 0 {
        check!(misc & 1 << 5 != 0, "unrestricted guest without bit 5: {misc:#x}");
    }
    check!(misc >> 16 & 0x1ff <= 256, "CR3-target values: {}", misc >> 16 & 0x1ff);
});

test!(
    caps_ept_vpid,
    "IA32_VMX_EPT_VPID_CAP: no reserved bit; each invalidation comes with its instruction.",
    || {
        cpuid::VMX.require();
        if caps::cpu2().may & (CPU2_EPT | CPU2_VPID) == 0 {
            payload_rt::skip!("neither EPT nor VPID");
        }
        let word = caps::read(EPT_VPID_CAP);
        let named =
            1 | 3 << 6 | 1 << 8 | 1 << 14 | 3 << 16 | 0xf << 20 | 3 << 25 | 1 << 32 | 0xf << 40;
        check_eq!(word & !(named | 0x3f << 48), 0, "reserved bits of {word:#x}");
        if caps::cpu2().may & CPU2_EPT != 0 {
            check!(word & EPT_WALK4 != 0, "EPT without page walks of length 4: {word:#x}");
            check!(word & (EPT_UC | EPT_WB) != 0, "EPT without a memory type: {word:#x}");
            let types = word & (EPT_INVEPT_SINGLE | EPT_INVEPT_ALL) != 0;
            check_eq!(types, word & EPT_INVEPT != 0, "INVEPT and its types: {word:#x}");
        }
        if caps::cpu2().may & CPU2_VPID != 0 {
            check_eq!(
                word >> 40 & 0xf != 0,
                word & VPID_INVVPID != 0,
                "INVVPID and its types: {word:#x}"
            );
        }
    }
);

test!(caps_enum, "IA32_VMX_VMCS_ENUM covers the index of every field that there is.", || {
    cpuid::VMX.require();
    vmx::enable();
    let _vm = vmx::Vm::new();
    let value = caps::read(VMCS_ENUM);
    check_eq!(value & !0x3fe, 0, "reserved bits of {value:#x}");
    let highest = ALL
        .iter()
        .filter(|(field, _)| vmx::vmread(*field) != Err(Refusal::Valid(12)))
        .map(|(field, _)| field.index())
        .max()
        .unwrap_or(0);
    check!(value >> 1 & 0x1ff >= highest, "{value:#x}, and there is a field of index {highest:#x}");
});

test!(caps_fields, "Each control that is offered brings the fields that it needs.", || {
    cpuid::VMX.require();
    vmx::enable();
    let _vm = vmx::Vm::new();
    let (pin, cpu, second) = (caps::pin().may, caps::cpu().may, caps::cpu2().may);
    for (there, field) in [
        (pin & PIN_TIMER != 0, Field::PREEMPTION_TIMER),
        (cpu & CPU_MSR_BITMAPS != 0, Field::MSR_BITMAP),
        (cpu & CPU_TPR_SHADOW != 0, Field::VIRTUAL_APIC),
        (cpu & CPU_TPR_SHADOW != 0, Field::TPR_THRESHOLD),
        (cpu & CPU_SECONDARY != 0, Field::CPU_CONTROLS2),
        (second & CPU2_APIC_ACCESSES != 0, Field::APIC_ACCESS),
        (second & CPU2_EPT != 0, Field::EPTP),
        (second & CPU2_EPT != 0, Field::GUEST_PHYSICAL),
        (second & CPU2_EPT != 0, Field::GUEST_PDPTE0),
        (second & CPU2_VPID != 0, Field::VPID),
        (second & CPU2_SHADOW != 0, Field::VMREAD_BITMAP),
        (second & CPU2_PML != 0, Field::PML_INDEX),
        (caps::entry().may & ENTRY_LOAD_PAT != 0, Field::GUEST_PAT),
        (caps::exit().may & EXIT_LOAD_EFER != 0, Field::HOST_EFER),
    ] {
        let read = vmx::vmread(field);
        check!(!there || read.is_ok(), "{field} is missing: {read:?}");
        check_eq!(field.area() == Area::ExitInfo, field == Field::GUEST_PHYSICAL, "{field}");
    }
});
