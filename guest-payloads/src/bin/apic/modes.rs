//! The local APIC's modes, and the ways between them, through IA32_APIC_BASE.

use crate::{PATIENCE, SETTLE};
use payload_rt::apic::{self, BASE_ENABLE, BASE_X2APIC, Mode, Register};
use payload_rt::*;

const VECTOR: u8 = 0x49;
const MODES: u64 = BASE_ENABLE | BASE_X2APIC;
/// EN = 0 and EXTD = 1: no mode.
const INVALID: u64 = BASE_X2APIC;
const X2APIC: u64 = MODES;
const XAPIC: u64 = BASE_ENABLE;
const OFF: u64 = 0;

fn base() -> u64 {
    check_ok!(reg::rdmsr(reg::APIC_BASE), "read IA32_APIC_BASE")
}

fn name(mode: u64) -> &'static str {
    match mode {
        OFF => "disabled",
        XAPIC => "xAPIC",
        X2APIC => "x2APIC",
        _ => "EN=0 EXTD=1",
    }
}

fn go(mode: u64) -> Result<(), trap::Trap> {
    reg::wrmsr(reg::APIC_BASE, base() & !MODES | mode)
}

/// By legal steps, from wherever.
fn reach(mode: u64) {
    let mode = match mode {
        OFF => Mode::Disabled,
        XAPIC => Mode::XApic,
        _ => Mode::X2Apic,
    };
    apic::set_mode(mode);
}

test!(
    transitions,
    "Each way between the APIC's modes is open or #GP, as the manual draws it.",
    || {
        // SDM volume 3, 12.12.5, figure 12-27.
        cpuid::X2APIC.require();
        for (from, to, legal) in [
            (OFF, OFF, true),
            (OFF, XAPIC, true),
            (OFF, X2APIC, false),
            (OFF, INVALID, false),
            (XAPIC, OFF, true),
            (XAPIC, XAPIC, true),
            (XAPIC, X2APIC, true),
            (XAPIC, INVALID, false),
            (X2APIC, OFF, true),
            (X2APIC, XAPIC, false),
            (X2APIC, X2APIC, true),
            (X2APIC, INVALID, false),
        ] {
            reach(from);
            let (before, result) = (base(), go(to));
            let way = (name(from), name(to));
            if legal {
                check_ok!(result, "{way:?}");
                check_eq!(base() & MODES, to, "{way:?}: mode bits");
            } else {
                let fault = check_err!(result, "{way:?}");
                check!(fault.is(trap::GP, 0), "{way:?}: {fault}");
                check_eq!(base(), before, "{way:?}: IA32_APIC_BASE after #GP");
            }
        }
        reach(XAPIC);
    }
);

test!(no_x2apic, "Without x2APIC in CPUID its mode bit is reserved, and its MSRs are #GP.", || {
    if cpuid::X2APIC.present() {
        skip!("x2APIC is in CPUID");
    }
    reach(XAPIC);
    for mode in [X2APIC, INVALID] {
        let fault = check_err!(go(mode), "{} without x2APIC", name(mode));
        check!(fault.is(trap::GP, 0), "{} without x2APIC: {fault}", name(mode));
    }
    let fault = check_err!(reg::rdmsr(Register::VERSION.msr()), "read of MSR 0x803");
    check!(fault.is(trap::GP, 0), "read of MSR 0x803: {fault}");
});

test!(base_reserved_bits, "Reserved bits of IA32_APIC_BASE are #GP.", || {
    // SDM volume 3, 12.4.4: bits 7:0 and 9, and those above the physical address' width.
    reach(XAPIC);
    let before = base();
    let above = u32::from(cpuid::physical_bits())..64;
    for bit in (0..8).chain([9]).chain(above) {
        let fault = check_err!(reg::wrmsr(reg::APIC_BASE, before | 1 << bit), "bit {bit}");
        check!(fault.is(trap::GP, 0), "bit {bit} of IA32_APIC_BASE: {fault}");
        check_eq!(base(), before, "IA32_APIC_BASE after #GP for bit {bit}");
    }
});

test!(
    bsp_flag,
    "IA32_APIC_BASE has the BSP flag and the default address on the CPU that booted.",
    || {
        check_eq!(
            base() & !MODES,
            apic::DEFAULT_BASE | apic::BASE_BSP,
            "IA32_APIC_BASE but for the mode"
        );
    }
);

test!(
    cpuid_follows,
    "CPUID announces the APIC while it is enabled, and not while it is not.",
    || {
        // SDM volume 3, 12.4.3.
        reach(XAPIC);
        check!(cpuid::APIC_BIT.present(), "no APIC in CPUID while it is enabled");
        reach(OFF);
        check!(!cpuid::APIC_BIT.present(), "the APIC is in CPUID while it is disabled");
        reach(XAPIC);
        check!(cpuid::APIC_BIT.present(), "no APIC in CPUID after it was enabled again");
    }
);

test!(
    page_is_closed_in_x2apic_mode,
    "As x2APIC and disabled, the xAPIC's page is no way to the registers.",
    || {
        // SDM volume 3, 12.12.2 and 12.4.3.
        let page = |register: Register| apic::DEFAULT_BASE + u64::from(register.0);
        if cpuid::X2APIC.present() {
            let apic = apic::set_mode(Mode::X2Apic);
            apic.enable();
            apic.set_tpr(0x30);
            check_ok!(mem::write(page(Register::TPR), 0x70_u32), "write of the page");
            check_eq!(apic.read(Register::TPR), 0x30, "TPR after a write to the xAPIC's page");
            check_eq!(reg::cr8(), 3, "CR8 after a write to the xAPIC's page");
            apic.set_tpr(0);
            irq::count_only(VECTOR);
            let command = apic::command(apic::Delivery::Fixed(VECTOR), apic::Destination::Own);
            check_ok!(mem::write(page(Register::ICR), command), "write of the page");
            irq::let_in(SETTLE);
            check_eq!(irq::count(VECTOR), 0, "self-IPIs through the xAPIC's page as x2APIC");
        }
        let apic = apic::set_mode(Mode::XApic);
        apic.enable();
        let version = apic.read(Register::VERSION);
        reach(OFF);
        let found = check_ok!(mem::read::<u32>(page(Register::VERSION)), "read of the page");
        check!(found != version, "the disabled APIC's version reads {found:#x}");
        reach(XAPIC);
    }
);

test!(page_moves, "The xAPIC's page goes where IA32_APIC_BASE puts it.", || {
    // SDM volume 3, 12.4.5.
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    apic.set_tpr(0x50);
    let version = apic.read(Register::VERSION);
    let old = base();
    // Nothing of a PC is there.
    const ELSEWHERE: u64 = 0xfed8_0000;
    let moved = old & 0xfff | ELSEWHERE;
    check_ok!(reg::wrmsr(reg::APIC_BASE, moved), "move the page to {ELSEWHERE:#x}");
    let there = apic::local();
    check_eq!(there.read(Register::VERSION), version, "version at {ELSEWHERE:#x}");
    check_eq!(there.read(Register::TPR), 0x50, "TPR at {ELSEWHERE:#x}");
    there.set_tpr(0);
    irq::count_only(VECTOR);
    there.self_ipi(VECTOR);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "no self-IPI through {ELSEWHERE:#x}");
    check_ok!(reg::wrmsr(reg::APIC_BASE, old), "move the page back");
    check_eq!(apic::local().read(Register::TPR), 0, "TPR at the old place");
});

test!(
    x2apic_keeps_xapic_state,
    "From xAPIC to x2APIC the registers stay, and LDR becomes what follows from the identifier.",
    || {
        // SDM volume 3, 12.12.5.1.
        cpuid::X2APIC.require();
        let apic = apic::set_mode(Mode::XApic);
        apic.enable();
        let id = apic.id();
        apic.set_tpr(0x60);
        apic.write(Register::LDR, 0xff00_0000);
        apic.write(Register::LVT_TIMER, apic::LVT_MASKED | 0x66);
        apic.write(Register::SVR, 0x1ef);
        let apic = apic::set_mode(Mode::X2Apic);
        for (register, wanted) in [
            (Register::ID, id),
            (Register::TPR, 0x60),
            (Register::LDR, (id >> 4) << 16 | 1 << (id & 15)),
            (Register::LVT_TIMER, apic::LVT_MASKED | 0x66),
            (Register::SVR, 0x1ef),
        ] {
            check_eq!(apic.read(register), wanted, "register {:#x} as x2APIC", register.0);
        }
        check_eq!(reg::cr8(), 6, "CR8");
    }
);
