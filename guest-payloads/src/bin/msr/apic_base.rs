//! IA32_APIC_BASE: the modes of the local APIC, and the ways between them.

use payload_rt::apic::{self, BASE_ENABLE, BASE_X2APIC, Mode};
use payload_rt::reg::{APIC_BASE, rdmsr, wrmsr};
use payload_rt::trap::GP;
use payload_rt::{check_eq, check_ok, check_trap, cpuid, skip, test};

const MODES: u64 = BASE_ENABLE | BASE_X2APIC;
const NONSENSE: u64 = BASE_X2APIC;

// SDM volume 3, 12.12.5 and figure 12-27; AMD APM volume 2, 16.9.
test!(
    transitions,
    "The APIC changes between its modes along the ways there are, and no other.",
    || {
        cpuid::X2APIC.require();
        let ways = [
            (Mode::XApic, BASE_ENABLE, true),
            (Mode::XApic, MODES, true),
            (Mode::XApic, 0, true),
            (Mode::XApic, NONSENSE, false),
            (Mode::X2Apic, MODES, true),
            (Mode::X2Apic, 0, true),
            (Mode::X2Apic, BASE_ENABLE, false),
            (Mode::X2Apic, NONSENSE, false),
            (Mode::Disabled, 0, true),
            (Mode::Disabled, BASE_ENABLE, true),
            (Mode::Disabled, MODES, false),
            (Mode::Disabled, NONSENSE, false),
        ];
        for (from, to, allowed) in ways {
            apic::set_mode(from);
            let base = check_ok!(rdmsr(APIC_BASE));
            let what = format_args!("IA32_APIC_BASE in {from:?} mode");
            super::write(what, APIC_BASE, base & !MODES | to, allowed);
        }
        apic::set_mode(Mode::XApic);
    }
);

test!(no_x2apic, "Without x2APIC in CPUID, its bit of IA32_APIC_BASE is reserved.", || {
    if cpuid::X2APIC.present() {
        skip!("the CPU has x2APIC");
    }
    let base = check_ok!(rdmsr(APIC_BASE));
    super::write(format_args!("IA32_APIC_BASE"), APIC_BASE, base | BASE_X2APIC, false);
});

// SDM volume 3, 12.4.4 and figure 12-5.
test!(apic_base_reserved, "Setting a reserved bit of IA32_APIC_BASE is #GP.", || {
    let base = check_ok!(rdmsr(APIC_BASE));
    for bit in (0..8).chain([9]).chain(u32::from(cpuid::physical_bits())..64) {
        check_trap!(wrmsr(APIC_BASE, base | 1 << bit), GP, 0, "set bit {bit}");
        check_eq!(rdmsr(APIC_BASE), Ok(base), "IA32_APIC_BASE after the refused bit {bit}");
    }
});

// SDM volume 3, 12.12.2: x2APIC's MSRs are #GP in any other mode; and in it, reserved ones are,
// as are writes to what is read-only and reads of what is write-only.
test!(
    x2apic_msrs,
    "x2APIC's MSRs are there in x2APIC mode alone, and only the ones there are.",
    || {
        cpuid::X2APIC.require();
        const ID: u32 = 0x802;
        const VERSION: u32 = 0x803;
        const EOI: u32 = 0x80b;
        for mode in [Mode::XApic, Mode::Disabled] {
            apic::set_mode(mode);
            for msr in [0x800, ID, VERSION, 0x808, 0x80f, 0x828, 0x830, 0x83f, 0x8ff] {
                check_trap!(rdmsr(msr), GP, 0, "read MSR {msr:#x} in {mode:?} mode");
                check_trap!(wrmsr(msr, 0), GP, 0, "write MSR {msr:#x} in {mode:?} mode");
            }
        }
        apic::set_mode(Mode::X2Apic);
        check_ok!(rdmsr(ID), "read the identifier");
        for msr in [ID, VERSION, 0x80a, 0x80d, 0x810, 0x839] {
            check_trap!(wrmsr(msr, 0), GP, 0, "write the read-only MSR {msr:#x}");
        }
        for msr in [EOI, 0x83f] {
            check_trap!(rdmsr(msr), GP, 0, "read the write-only MSR {msr:#x}");
        }
        for msr in [0x800, 0x804, 0x80e, 0x831, 0x840, 0x8ff] {
            check_trap!(rdmsr(msr), GP, 0, "read the reserved MSR {msr:#x}");
        }
        check_ok!(wrmsr(EOI, 0), "write 0 to EOI");
        apic::set_mode(Mode::XApic);
    }
);
