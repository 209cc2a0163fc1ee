//! The APIC as the host has it: `KVM_GET_LAPIC` and `KVM_SET_LAPIC` (Linux,
//! Documentation/virt/kvm/api.rst, 4.57 and 4.58; 7.1 for identifiers of 32 bits).

use crate::{
    PATIENCE, VECTOR, bit, enabled, fresh, logical, lvt, msr, offset, read, register, unreadable,
    write,
};
use payload_rt::apic::{self, Apic, BASE_ENABLE, BASE_X2APIC, Mode, Register};
use payload_rt::lab::{self, Errno, Rule, kind, kvm};
use payload_rt::*;

const MODES: u64 = BASE_ENABLE | BASE_X2APIC;
/// `KVM_CAP_X2APIC_API`, and its flags.
const X2APIC_API: u32 = 129;
const USE_32BIT_IDS: u64 = 1;

pub(crate) fn lapic() -> kvm::Lapic {
    check_ok!(lab::get(kvm::GET_LAPIC))
}

pub(crate) fn word(page: &kvm::Lapic, at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

fn put(page: &mut kvm::Lapic, at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Gives the registers values that are told apart, with nothing that is sent.
fn fill(apic: Apic) {
    apic.set_tpr(0x70);
    apic.write(Register::SVR, 0x1e7);
    for (n, (msr, _)) in (0..).zip(crate::LVT) {
        // An APIC without that entry refuses or ignores it.
        let _ = apic.try_write(register(msr), 0x1_0050 + n);
    }
    apic.write(Register::TIMER_DIVIDE, 0b1001);
    apic.self_ipi(VECTOR);
    apic.self_ipi(0x66);
}

/// The registers that are the same in both modes, but for ID, LDR and the ICR.
fn common() -> impl Iterator<Item = u32> {
    let plain = [msr::VERSION, msr::TPR, msr::PPR, msr::SVR, msr::ESR, msr::INITIAL, msr::DIVIDE];
    plain.into_iter().chain(msr::ISR..msr::ESR).chain(crate::LVT.map(|(msr, _)| msr))
}

fn check_page(apic: Apic, page: &kvm::Lapic) {
    for msr in common() {
        if let Ok(value) = apic.try_read(register(msr)) {
            check_eq!(word(page, offset(msr)), value, "offset {:#x}", offset(msr));
        }
    }
}

test!(page_as_xapic, "KVM_GET_LAPIC of an xAPIC is what the guest reads from its page.", || {
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    apic.write(Register::LDR, 0x4200_0000);
    apic.write(Register::ICR_HIGH, 0x5500_0000);
    fill(apic);
    let page = lapic();
    check_page(apic, &page);
    for at in [Register::ID, Register::LDR, Register::DFR, Register::ICR, Register::ICR_HIGH] {
        check_eq!(word(&page, at.0.into()), apic.read(at), "offset {:#x}", at.0);
    }
});

test!(page_as_x2apic, "KVM_GET_LAPIC of an x2APIC is what the guest reads from its MSRs.", || {
    let apic = enabled();
    fill(apic);
    write(msr::ICR, 0x1234_5678_0000_4044);
    let page = lapic();
    check_page(apic, &page);
    // 4.57: without the capability the identifier is where the xAPIC has it.
    check_eq!(word(&page, 0x20), apic.id() << 24, "ID");
    check_eq!(word(&page, 0xd0), logical(apic.id()), "LDR");
    check_eq!((word(&page, 0x300), word(&page, 0x310)), (0x4044, 0x1234_5678), "ICR");
});

test!(
    page_with_32_bit_ids,
    "With KVM_CAP_X2APIC_API the identifier of an x2APIC has 32 bits.",
    || {
        lab::require_cap(X2APIC_API, "X2APIC_API");
        let apic = enabled();
        check_ok!(lab::enable_cap(X2APIC_API, USE_32BIT_IDS));
        let page = lapic();
        check_eq!(word(&page, 0x20), apic.id());
        check_ok!(lab::set(kvm::SET_LAPIC, &page));
        check_eq!(read(msr::ID), apic.id().into());
        let apic = apic::set_mode(Mode::XApic);
        check_eq!(word(&lapic(), 0x20), apic.id() << 24, "as xAPIC");
        let wrong = lab::enable_cap(X2APIC_API, 1 << 20);
        check_eq!(wrong.err(), Some(Errno::EINVAL), "a flag that there is not");
    }
);

/// Whether all stays as it is if the host sets what it got.
fn round_trip(apic: Apic) {
    fill(apic);
    let mut before = [None; 64];
    let all = || common().chain([msr::ID, msr::LDR, msr::ICR]);
    let value = |msr| apic.try_read(register(msr)).ok();
    before.iter_mut().zip(all()).for_each(|(to, msr)| *to = value(msr));
    let page = lapic();
    check_ok!(lab::set(kvm::SET_LAPIC, &page));
    for (msr, before) in all().zip(before) {
        check_eq!(value(msr), before, "register {:#x}", offset(msr));
    }
    check_eq!(lapic(), page, "the page");
    irq::count_only(VECTOR);
    irq::count_only(0x66);
    apic.set_tpr(0);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "what was pending is lost");
    check!(irq::wait_for(0x66, 1, PATIENCE), "what was pending is lost");
}

test!(round_trip_as_xapic, "KVM_SET_LAPIC of what an xAPIC has changes nothing.", || {
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    round_trip(apic);
});

test!(round_trip_as_x2apic, "KVM_SET_LAPIC of what an x2APIC has changes nothing.", || {
    round_trip(enabled());
});

test!(host_sets_registers, "The guest reads what the host sets.", || {
    enabled();
    let mut page = lapic();
    put(&mut page, 0x80, 0xa0);
    put(&mut page, 0xf0, 0x1c3);
    put(&mut page, 0x300, 0x4077);
    put(&mut page, 0x310, 0x89ab_cdef);
    for (msr, _) in lvt() {
        put(&mut page, offset(msr), 0x1_0099);
    }
    check_ok!(lab::set(kvm::SET_LAPIC, &page));
    check_eq!((read(msr::TPR), reg::cr8(), read(msr::SVR)), (0xa0, 10, 0x1c3));
    check_eq!(read(msr::PPR), 0xa0);
    check_eq!(read(msr::ICR), 0x89ab_cdef_0000_4077);
    for (msr, _) in lvt() {
        check_eq!(read(msr), 0x1_0099, "LVT {msr:#x}");
    }
});

test!(host_requests, "What the host sets in IRR is taken, in order of priority.", || {
    enabled();
    irq::count_only(0x45);
    irq::handle(0x85, |_| {
        check_eq!(irq::count(0x45), 0, "the lower one came first");
        write(msr::EOI, 0);
    });
    let mut page = lapic();
    for vector in [0x45, 0x85] {
        let at = 0x200 + vector / 32 * 0x10;
        let bits = word(&page, at) | 1 << (vector % 32);
        put(&mut page, at, bits);
    }
    check_ok!(lab::set(kvm::SET_LAPIC, &page));
    check!(bit(msr::IRR, 0x45) && bit(msr::IRR, 0x85), "IRR");
    check!(irq::wait_for(0x85, 1, PATIENCE), "0x85 does not come");
    check!(irq::wait_for(0x45, 1, PATIENCE), "0x45 does not come");
});

test!(host_serves, "What the host sets in ISR holds back its class until EOI.", || {
    enabled();
    irq::count_only(0x62);
    let mut page = lapic();
    put(&mut page, 0x100 + 3 * 0x10, 1 << 5);
    check_ok!(lab::set(kvm::SET_LAPIC, &page));
    check_eq!(read(msr::PPR), 0x60);
    write(msr::SELF_IPI, 0x62);
    irq::let_in(crate::SETTLE);
    check_eq!(irq::count(0x62), 0, "an interrupt of the class in service");
    write(msr::EOI, 0);
    check!(irq::wait_for(0x62, 1, PATIENCE), "it does not come after EOI");
});

test!(host_changes_tpr_by_cr8, "KVM_SET_SREGS' CR8 is the TPR.", || {
    enabled();
    write(msr::TPR, 0x30);
    let sregs = check_ok!(lab::sregs());
    check_eq!(sregs.cr8, 3);
    check_ok!(lab::set_sregs(&kvm::Sregs { cr8: 12, ..sregs }));
    check_eq!((read(msr::TPR), reg::cr8()), (0xc0, 12));
});

test!(foreign_identifier, "KVM_SET_LAPIC does not give an x2APIC another identifier.", || {
    enabled();
    let mut page = lapic();
    put(&mut page, 0x20, 0x7700_0000);
    // Taken or refused, it is not the APIC's.
    let _ = lab::set(kvm::SET_LAPIC, &page);
    check_eq!(read(msr::ID), apic::initial_id().into());
    lab::require_cap(X2APIC_API, "X2APIC_API");
    check_ok!(lab::enable_cap(X2APIC_API, USE_32BIT_IDS));
    check_eq!(lab::set(kvm::SET_LAPIC, &page).err(), Some(Errno::EINVAL), "of 32 bits");
    check_eq!(read(msr::ID), apic::initial_id().into());
});

// KVM lets its host change modes past the guest's rules, but into no mode that does not exist.
test!(
    host_changes_modes,
    "The host may go from x2APIC to xAPIC, but not to EXTD without EN.",
    || {
        fresh();
        let base = read(reg::APIC_BASE);
        check_eq!(lab::msr(reg::APIC_BASE), Ok(Some(base)));
        check_eq!(lab::set_msr(reg::APIC_BASE, base & !MODES | BASE_X2APIC), Ok(false));
        check_eq!(lab::set_msr(reg::APIC_BASE, base & !MODES | BASE_ENABLE), Ok(true));
        check_eq!(apic::local().mode(), Mode::XApic);
        unreadable(msr::VERSION);
        check_eq!(lab::set_msr(reg::APIC_BASE, base), Ok(true));
        check_eq!(read(msr::ID), apic::initial_id().into());
        let sregs = check_ok!(lab::sregs());
        check_eq!(sregs.apic_base, base);
        let wrong = kvm::Sregs { apic_base: base & !MODES | BASE_X2APIC, ..sregs };
        check_eq!(lab::set_sregs(&wrong).err(), Some(Errno::EINVAL));
    }
);

// 4.97: "x2APIC MSR accesses cannot be filtered (KVM silently ignores filters that cover any x2APIC
// MSRs)".
test!(filters_leave_it_alone, "No MSR filter takes the x2APIC's MSRs away.", || {
    lab::require_cap(kvm::cap::X86_MSR_FILTER, "X86_MSR_FILTER");
    enabled();
    check_ok!(lab::msr_exits(4));
    let none = [0; 32];
    let range = lab::MsrRange { flags: 3, first: 0x800, count: 256, bitmap: &none };
    check_ok!(lab::msr_filter(false, &[range]));
    let log = check_ok!(lab::record(&[Rule::on(kind::RDMSR | kind::WRMSR).value(0x55)]));
    write(msr::TPR, 0x20);
    check_eq!((read(msr::TPR), read(msr::ID)), (0x20, apic::initial_id().into()));
    check_eq!(log.count(), 0, "exits");
});

test!(moves_to_another_vm, "An x2APIC goes on in another VM: mode, registers, requests.", || {
    let apic = enabled();
    fill(apic);
    check_ok!(lab::transplant());
    check_eq!(apic::local().mode(), Mode::X2Apic);
    check_eq!((read(msr::ID), read(msr::TPR)), (apic::initial_id().into(), 0x70));
    check_eq!((read(msr::SVR), read(msr::LVT_ERROR)), (0x1e7, 0x1_0055));
    irq::count_only(VECTOR);
    irq::count_only(0x66);
    write(msr::TPR, 0);
    check!(irq::wait_for(0x66, 1, PATIENCE), "0x66 is lost");
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "{VECTOR:#x} is lost");
});

test!(moves_in_service, "What is in service gets its EOI in another VM.", || {
    enabled();
    irq::handle(VECTOR, |_| {
        check_ok!(lab::transplant());
        check!(bit(msr::ISR, VECTOR), "ISR has lost it");
        write(msr::EOI, 0);
        check!(!bit(msr::ISR, VECTOR), "EOI has not ended it");
    });
    write(msr::SELF_IPI, VECTOR.into());
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not come");
});
