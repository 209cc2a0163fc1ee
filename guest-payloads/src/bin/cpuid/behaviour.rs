//! That the CPU does what CPUID says of it: address sizes, and bits of CR4.

use payload_rt::cpuid::{self, Feature, Register, get};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::reg::{self, CR4_DE, CR4_FSGSBASE, CR4_PGE, CR4_PKE, CR4_PSE, CR4_SMAP, CR4_SMEP};
use payload_rt::trap::{GP, PF, SS};
use payload_rt::{check, check_eq, check_ok, check_trap, frames, insn, mem, report, skip, test};

fn linear_bits() -> u32 {
    get(0x8000_0008, 0).map_or(48, |words| words.eax >> 8 & 0xff)
}

test!(address_bits, "Address sizes are possible, and go with 5-level paging.", || {
    let (physical, linear) = (cpuid::physical_bits(), linear_bits());
    report::value("physical_bits", physical.into());
    check!((32..=52).contains(&physical), "{physical} bits of physical address");
    let expected = if cpuid::LA57.present() { 57 } else { 48 };
    check_eq!(linear, expected, "bits of linear address");
});

// SDM volume 3, 5.6.2 (reserved bits give error code bit 3) and 5.1.4; AMD APM volume 2, 5.3.
test!(
    physical_bits_entry,
    "An address in a page-table entry beyond the physical bits is reserved.",
    || {
        const AT: u64 = 0x1234_5678_9000;
        let bits = u32::from(cpuid::physical_bits());
        if bits > 51 {
            skip!("all 52 bits are there");
        }
        let page = frames::alloc().address();
        let leaf = paging::map(AT, page, Size::K4, Flags::RW);
        check_eq!(mem::read(AT), Ok(0_u64), "at a page without reserved bits");
        for bit in bits..52 {
            paging::set(AT, &leaf, leaf.value | 1 << bit);
            let fault =
                check_trap!(mem::read::<u64>(AT), PF, 9, "read with bit {bit} of {bits} set");
            check_eq!(fault.cr2, AT, "CR2");
            check_trap!(mem::write(AT, 0_u64), PF, 11, "write with bit {bit} of {bits} set");
        }
        // Reserved at every level.
        for level in 2..=4 {
            paging::set(AT, &leaf, leaf.value);
            let table = paging::entry(AT, level);
            for bit in [bits, 51] {
                paging::set(AT, &table, table.value | 1 << bit);
                check_trap!(
                    mem::read::<u64>(AT),
                    PF,
                    9,
                    "read with bit {bit} set at level {level}"
                );
            }
            paging::set(AT, &table, table.value);
            check_eq!(mem::read(AT), Ok(0_u64), "with level {level} put right");
        }
    }
);

// SDM volume 2, MOV to control registers: "#GP(0) if an attempt is made to write a 1 to any
// reserved bit" of CR3.
test!(physical_bits_cr3, "CR3 refuses an address beyond the physical bits.", || {
    let bits = u32::from(cpuid::physical_bits());
    let cr3 = reg::cr3();
    check!(reg::cr4() & reg::CR4_PCIDE == 0, "PCIDE is on");
    // 61 and 62 are LAM's where CPUID has it; bit 63 means something with PCIDs alone.
    let lam = if cpuid::LAM.present() { [61, 62] } else { [64, 64] };
    for bit in (bits..64).filter(|bit| !lam.contains(bit)) {
        check_trap!(reg::set_cr3(cr3 | 1 << bit), GP, 0, "set bit {bit} of CR3");
        check_eq!(reg::cr3(), cr3, "CR3 after the refused bit {bit}");
    }
});

// SDM volume 1, 3.3.7.1: #SS through RSP or RBP, #GP otherwise, for addresses not canonical.
test!(canonical_access, "Accesses to addresses that are not canonical are #GP.", || {
    let half = half();
    for at in not_canonical() {
        check_trap!(mem::read::<u64>(at), GP, 0, "read {at:#x}");
        check_trap!(mem::write(at, 0_u64), GP, 0, "write {at:#x}");
    }
    for at in [half - 8, half.wrapping_neg()] {
        let fault = check_trap!(mem::read::<u64>(at), PF, 0, "read {at:#x}");
        check_eq!(fault.cr2, at, "CR2");
    }
});

test!(canonical_stack, "By the stack, accesses to such addresses are #SS.", || {
    for at in not_canonical() {
        let read = insn!(
            "xchg rbp, {0}", "mov {1}, [rbp]", "xchg rbp, {0}"; inout(reg) at => _, out(reg) _
        );
        // The trap leaves the address in RBP, which the compiler is told nothing of.
        check_trap!(read, SS, 0, "read {at:#x} by RBP");
    }
});

/// Where the lower half of what is canonical ends.
fn half() -> u64 {
    if reg::cr4() & reg::CR4_LA57 != 0 { 1 << 56 } else { 1 << 47 }
}

fn not_canonical() -> [u64; 4] {
    [half(), half().wrapping_neg() - 8, 1 << 63, 1 << 57]
}

const UMIP: u64 = reg::CR4_UMIP;
const VMXE: u64 = 1 << 13;

/// Bits of CR4, and what CPUID must have for them (SDM volume 3, 2.5).
const CR4_BITS: [(u64, &str, Feature); 11] = [
    (reg::CR4_TSD, "TSD", cpuid::TSC_BIT),
    (CR4_DE, "DE", cpuid::DE),
    (CR4_PSE, "PSE", cpuid::PSE),
    (CR4_PGE, "PGE", cpuid::PGE),
    (CR4_FSGSBASE, "FSGSBASE", cpuid::FSGSBASE),
    (reg::CR4_PCIDE, "PCIDE", cpuid::PCID),
    (reg::CR4_OSXSAVE, "OSXSAVE", cpuid::XSAVE),
    (CR4_SMEP, "SMEP", cpuid::SMEP),
    (CR4_SMAP, "SMAP", cpuid::SMAP),
    (UMIP, "UMIP", cpuid::UMIP),
    (CR4_PKE, "PKE", cpuid::PKU),
];

test!(
    cr4_bits,
    "CR4 takes the bits whose features CPUID has, and refuses the others with #GP.",
    || {
        let cr4 = reg::cr4();
        let refuse = |bit: u64, what: &str, why: &str| {
            check_trap!(reg::set_cr4(cr4 | bit), GP, 0, "set CR4.{what}: {why}");
            check_eq!(reg::cr4(), cr4, "CR4 after the refused {what}");
        };
        for (bit, name, feature) in CR4_BITS {
            if !feature.present() {
                refuse(bit, name, "CPUID has no such feature");
                continue;
            }
            for value in [cr4 | bit, cr4 & !bit, cr4] {
                check_ok!(reg::set_cr4(value), "CR4 = {value:#x} with {}", feature.name);
                check_eq!(reg::cr4(), value, "CR4");
            }
        }
        if !cpuid::VMX.present() {
            refuse(VMXE, "VMXE", "CPUID has no VMX");
        }
        refuse(1 << 15, "bit 15", "it is reserved");
        // SDM volume 3, 2.5: PAE and LA57 cannot change in long mode.
        check_trap!(reg::set_cr4(cr4 & !reg::CR4_PAE), GP, 0, "clear CR4.PAE in long mode");
        check_trap!(reg::set_cr4(cr4 ^ reg::CR4_LA57), GP, 0, "change CR4.LA57 in long mode");
    }
);

test!(cr4_high, "CR4 refuses bits above 32.", || {
    let cr4 = reg::cr4();
    for bit in 33..64 {
        check_trap!(reg::set_cr4(cr4 | 1 << bit), GP, 0, "set bit {bit} of CR4");
        check_eq!(reg::cr4(), cr4, "CR4 after the refused bit {bit}");
    }
});

// SDM volume 2, MOV to control registers.
test!(cr0_bits, "CR0 refuses what cannot go together.", || {
    let cr0 = reg::cr0();
    for (value, what) in [
        (cr0 & !reg::CR0_PE, "PG without PE"),
        (cr0 & !reg::CR0_PG, "no PG in 64-bit mode"),
        (cr0 & !reg::CR0_CD | reg::CR0_NW, "NW without CD"),
    ] {
        check_trap!(reg::set_cr0(value), GP, 0, "CR0 = {value:#x}: {what}");
        check_eq!(reg::cr0(), cr0, "CR0 after the refused {value:#x}");
    }
    // ET is fixed to 1.
    check_ok!(reg::set_cr0(cr0 & !(1 << 4)), "clear CR0.ET");
    check_eq!(reg::cr0() & 1 << 4, 1 << 4, "CR0.ET");
});

test!(cr0_high, "CR0 refuses bits above 31.", || {
    let cr0 = reg::cr0();
    for bit in 32..64 {
        check_trap!(reg::set_cr0(cr0 | 1 << bit), GP, 0, "set bit {bit} of CR0");
        check_eq!(reg::cr0(), cr0, "CR0 after the refused bit {bit}");
    }
});

const RTM: Feature = Feature::new("rtm", 7, 0, Register::Ebx, 11);
const SSE42: Feature = Feature::new("sse4.2", 1, 0, Register::Ecx, 20);

// SDM volume 1, 13 and 14; volume 2, CPUID: what one feature needs of another.
/// What every processor with long mode has: its paging is PAE's, EFER is an MSR, and compilers for it
/// take the rest for granted (System V ABI for AMD64, 3.1.1, table of micro-architecture levels).
const OF_LONG_MODE: [Feature; 11] = [
    Feature::new("fpu", 1, 0, Register::Edx, 0),
    Feature::new("tsc", 1, 0, Register::Edx, 4),
    Feature::new("msr", 1, 0, Register::Edx, 5),
    Feature::new("pae", 1, 0, Register::Edx, 6),
    Feature::new("cx8", 1, 0, Register::Edx, 8),
    Feature::new("cmov", 1, 0, Register::Edx, 15),
    Feature::new("mmx", 1, 0, Register::Edx, 23),
    Feature::new("fxsr", 1, 0, Register::Edx, 24),
    Feature::new("sse", 1, 0, Register::Edx, 25),
    Feature::new("sse2", 1, 0, Register::Edx, 26),
    Feature::new("lm", 0x8000_0001, 0, Register::Edx, 29),
];

test!(long_mode_has, "CPUID has what every processor with long mode has.", || {
    for feature in OF_LONG_MODE {
        check!(feature.present(), "no {} in long mode", feature.name);
    }
});

test!(implied, "A feature is there with what it needs.", || {
    for (feature, needed) in [
        (cpuid::AVX, cpuid::XSAVE),
        (cpuid::OSXSAVE, cpuid::XSAVE),
        (cpuid::XSAVES, cpuid::XSAVEC),
        (cpuid::OSPKE, cpuid::PKU),
        (cpuid::X2APIC, cpuid::APIC_BIT),
        (cpuid::TSC_DEADLINE, cpuid::APIC_BIT),
        (SSE42, cpuid::POPCNT),
        (cpuid::INVPCID, cpuid::PCID),
    ] {
        let fine = !feature.present() || needed.present();
        check!(fine, "{} is there without {}", feature.name, needed.name);
    }
    check!(!RTM.present() || super::is_intel(), "rtm on a CPU that is not Intel's");
    check!(!(cpuid::VMX.present() && cpuid::SVM.present()), "both vmx and svm");
});
