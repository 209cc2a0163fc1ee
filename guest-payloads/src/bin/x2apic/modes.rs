//! The ways between the modes, and what each keeps (SDM volume 3, 12.12.5).

use crate::{
    PATIENCE, SETTLE, VECTOR, bit, enabled, fresh, logical, msr, read, refused, unreadable, write,
};
use payload_rt::apic::{self, BASE_ENABLE, BASE_X2APIC, Mode, Register, Timer};
use payload_rt::*;

const MODES: u64 = BASE_ENABLE | BASE_X2APIC;

fn base() -> u64 {
    read(reg::APIC_BASE)
}

/// Writes EN and EXTD.
fn go(mode: u64) -> Result<(), trap::Trap> {
    reg::wrmsr(reg::APIC_BASE, base() & !MODES | mode)
}

fn opens(mode: u64) {
    check_ok!(go(mode), "IA32_APIC_BASE with mode bits {mode:#x}");
    check_eq!(base() & MODES, mode);
}

fn is_closed(mode: u64) {
    let before = base();
    let fault = check_err!(go(mode), "IA32_APIC_BASE with mode bits {mode:#x}");
    check!(fault.is(trap::GP, 0), "mode bits {mode:#x}: {fault}");
    check_eq!(base(), before, "IA32_APIC_BASE after #GP");
}

// Figure 12-27, way by way.
test!(from_disabled, "From disabled there is a way to xAPIC only.", || {
    fresh();
    apic::set_mode(Mode::Disabled);
    is_closed(BASE_X2APIC);
    is_closed(MODES);
    opens(0);
    opens(BASE_ENABLE);
});

test!(from_xapic, "From xAPIC there are ways to x2APIC and to disabled.", || {
    fresh();
    apic::set_mode(Mode::XApic);
    is_closed(BASE_X2APIC);
    opens(BASE_ENABLE);
    opens(MODES);
    apic::set_mode(Mode::XApic);
    opens(0);
});

test!(from_x2apic, "From x2APIC there is a way to disabled only.", || {
    fresh();
    is_closed(BASE_ENABLE);
    is_closed(BASE_X2APIC);
    opens(MODES);
    opens(0);
});

test!(closed_ways_change_nothing, "A refused change of mode leaves the registers alone.", || {
    enabled();
    write(msr::TPR, 0x40);
    write(msr::LVT_ERROR, 0x1_0055);
    write(msr::SELF_IPI, VECTOR.into());
    is_closed(BASE_ENABLE);
    is_closed(BASE_X2APIC);
    check_eq!((read(msr::TPR), read(msr::LVT_ERROR)), (0x40, 0x1_0055));
    check!(bit(msr::IRR, VECTOR), "what was pending is gone");
    irq::count_only(VECTOR);
    write(msr::TPR, 0);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "what was pending does not come");
});

test!(msrs_of_a_disabled_apic, "The MSRs are #GP while the APIC is disabled.", || {
    fresh();
    apic::set_mode(Mode::Disabled);
    for register in [msr::ID, msr::VERSION, msr::TPR, msr::SVR, msr::ISR, msr::ICR] {
        unreadable(register);
        refused(register, 0);
    }
    for register in [msr::EOI, msr::SELF_IPI] {
        refused(register, 0);
    }
});

test!(identifier_through_modes, "Whatever the modes before, the identifier is CPUID's.", || {
    let id = apic::initial_id();
    for modes in [
        [Mode::XApic, Mode::X2Apic],
        [Mode::Disabled, Mode::X2Apic],
        [Mode::X2Apic, Mode::Disabled],
        [Mode::X2Apic, Mode::XApic],
    ] {
        fresh();
        for mode in modes {
            apic::set_mode(mode);
        }
        if apic::local().mode() == Mode::XApic {
            check_eq!(apic::local().id(), id & 0xff, "as xAPIC");
        }
        fresh();
        check_eq!(read(msr::ID), id.into(), "as x2APIC after {modes:?}");
        check_eq!(read(msr::LDR), logical(id).into(), "LDR after {modes:?}");
    }
});

// 12.12.5.1: of what xAPIC software has set up, only LDR and the ICR's high half do not stay.
test!(pending_stays, "What is pending as xAPIC is taken as x2APIC.", || {
    cpuid::X2APIC.require();
    irq::count_only(VECTOR);
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    apic.self_ipi(VECTOR);
    fresh();
    check!(bit(msr::IRR, VECTOR), "IRR has lost the vector");
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not come");
});

test!(in_service_stays, "What is in service as xAPIC gets its EOI as x2APIC.", || {
    cpuid::X2APIC.require();
    irq::handle(VECTOR, |_| {
        fresh();
        check!(bit(msr::ISR, VECTOR), "ISR has lost the vector");
        check_eq!(read(msr::PPR), u64::from(VECTOR) & 0xf0);
        write(msr::EOI, 0);
        check!(!bit(msr::ISR, VECTOR), "EOI has not ended it");
    });
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    apic.self_ipi(VECTOR);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not come");
    check_eq!(apic::local().mode(), Mode::X2Apic);
});

test!(timer_runs_on, "A timer that was started as xAPIC fires as x2APIC.", || {
    cpuid::X2APIC.require();
    irq::count_only(VECTOR);
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    apic.set_timer(Timer::OneShot, VECTOR);
    apic.start_timer(1_000_000);
    fresh();
    check_eq!((read(msr::INITIAL), read(msr::DIVIDE)), (1_000_000, 0b1011));
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not fire");
});

test!(icr_high_is_lost, "The high half of the xAPIC's ICR does not become a destination.", || {
    cpuid::X2APIC.require();
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    apic.write(Register::ICR_HIGH, 0xfe00_0000);
    fresh();
    let icr = read(msr::ICR);
    check!(icr >> 32 == 0 || icr >> 32 == 0xfe00_0000, "ICR {icr:#x}: neither lost nor kept");
    // Whatever is left there, the next command is whole.
    write(msr::ICR, 0x4_4000 | u64::from(VECTOR));
    check_eq!(read(msr::ICR), 0x4_4000 | u64::from(VECTOR));
});

// 12.12.2: the xAPIC's page is no way to an x2APIC.
test!(page_writes_do_nothing, "Writes to the xAPIC's page change no register.", || {
    let apic = enabled();
    let id = apic.id();
    for (register, value) in [
        (Register::ID, 0x5500_0000),
        (Register::TPR, 0x70),
        (Register::LDR, 0xff00_0000),
        (Register::SVR, 0x1f0),
        (Register::LVT_ERROR, 0x33),
        (Register::TIMER_INITIAL, 0xffff),
    ] {
        check_ok!(mem::write::<u32>(apic::DEFAULT_BASE + u64::from(register.0), value));
    }
    let registers = [msr::ID, msr::TPR, msr::LDR, msr::SVR, msr::LVT_ERROR, msr::INITIAL];
    let wanted = [id.into(), 0, logical(id).into(), 0x1ff, 0x1_0000, 0];
    check_eq!(registers.map(read), wanted);
    irq::let_in(SETTLE);
});

test!(base_stays_in_x2apic_mode, "The BSP flag stays through all modes.", || {
    let bsp = base() & apic::BASE_BSP;
    check_eq!(bsp, apic::BASE_BSP, "this CPU booted");
    fresh();
    check_eq!(base() & 0xfff, MODES | bsp);
    for bit in (0..8).chain([9]).chain([u32::from(cpuid::physical_bits()), 63]) {
        let value = base() | 1 << bit;
        let fault = check_err!(reg::wrmsr(reg::APIC_BASE, value), "bit {bit}");
        check!(fault.is(trap::GP, 0), "bit {bit}: {fault}");
    }
});
