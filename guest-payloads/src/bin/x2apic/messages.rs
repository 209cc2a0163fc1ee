//! Message-signalled interrupts to x2APICs (SDM volume 3, 12.11; Linux,
//! Documentation/virt/kvm/api.rst, 4.71 KVM_SIGNAL_MSI and 7.1 KVM_CAP_X2APIC_API).

use crate::{PATIENCE, VECTOR, bit, enabled, expect_at, msr, start_all, write};
use payload_rt::lab::{self, Errno, kvm};
use payload_rt::*;

const CPUS: usize = 4;
/// Address bits: redirection hint, logical destination.
const HINT: u64 = 1 << 3;
const LOGICAL: u64 = 1 << 2;
/// `KVM_CAP_X2APIC_API`, and its flags.
const X2APIC_API: u32 = 129;
const USE_32BIT_IDS: u64 = 1;
const NO_BROADCAST_QUIRK: u64 = 2;

/// The address that reaches `id`: its low byte in bits 19:12, the rest, for KVM, in the high half.
pub(crate) fn address(id: u32) -> u64 {
    u64::from(id & !0xff) << 32 | 0xfee0_0000 | u64::from(id & 0xff) << 12
}

pub(crate) fn send(address: u64, data: u32) -> impl Fn() + Send {
    move || {
        check_ok!(lab::signal_msi(address, data), "MSI to {address:#x}");
    }
}

fn start() -> usize {
    irq::count_only(VECTOR);
    start_all(CPUS)
}

test!(message_to_each, "An MSI to an identifier comes to that x2APIC.", || {
    let cpus = start();
    for to in 0..cpus {
        let send = send(address(smp::apic_id(to)), VECTOR.into());
        expect_at(cpus, 0, VECTOR, "MSI", send, |cpu| cpu == to);
    }
});

test!(message_to_nobody, "An MSI to an identifier that is not there reaches nobody.", || {
    let cpus = start();
    expect_at(cpus, 0, VECTOR, "MSI to nobody", send(address(0x77), VECTOR.into()), |_| false);
    check_eq!(lab::signal_msi(address(0x77), VECTOR.into()), Ok(false));
    check_eq!(lab::signal_msi(address(smp::apic_id(1)), VECTOR.into()), Ok(true));
});

test!(logical_messages, "A logical MSI comes to the x2APICs of cluster 0 that it names.", || {
    let cpus = start();
    for mask in [1_u32, 2, 8, 0xa, 0xf] {
        let send = send(address(mask) | LOGICAL, VECTOR.into());
        expect_at(cpus, 0, VECTOR, "logical MSI", send, |cpu| mask & 1 << cpu != 0);
    }
});

test!(lowest_priority_message, "A lowest-priority MSI comes to one of those it names.", || {
    let cpus = start();
    let total = || (1..cpus).map(|cpu| irq::count_on(cpu, VECTOR)).sum::<u32>();
    for round in 1..=6 {
        send(address(0xe) | LOGICAL | HINT, u32::from(VECTOR) | 1 << 8)();
        check!(time::wait_until(PATIENCE, || total() >= round), "nobody took MSI {round}");
        time::delay(crate::SETTLE);
        check_eq!(total(), round);
    }
    check_eq!(irq::count(VECTOR), 0, "MSIs at cpu 0");
});

test!(nmi_message, "An MSI of delivery mode NMI is an NMI.", || {
    irq::handle(trap::NMI, |_| {});
    let cpus = start();
    for to in 0..cpus {
        let send = send(address(smp::apic_id(to)), 4 << 8);
        expect_at(cpus, 0, trap::NMI, "MSI", send, |cpu| cpu == to);
    }
});

test!(message_of_each_vector, "MSIs come on their vectors.", || {
    let apic = enabled();
    for vector in (32..=254).step_by(6) {
        irq::count_only(vector);
        check_eq!(lab::signal_msi(address(apic.id()), vector.into()), Ok(true));
        check!(bit(msr::IRR, vector), "IRR does not have {vector:#x}");
        check!(!bit(msr::TMR, vector), "{vector:#x} is level-triggered");
        check!(irq::wait_for(vector, 1, PATIENCE), "{vector:#x} does not come");
    }
});

test!(message_waits, "An MSI waits for a lower task priority, and two are one.", || {
    let apic = enabled();
    irq::count_only(VECTOR);
    write(msr::TPR, 0xf0);
    for _ in 0..3 {
        check_ok!(lab::signal_msi(address(apic.id()), VECTOR.into()));
    }
    irq::let_in(crate::SETTLE);
    check_eq!(irq::count(VECTOR), 0, "MSIs below the task priority");
    write(msr::TPR, 0);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not come");
    irq::let_in(crate::SETTLE);
    check_eq!(irq::count(VECTOR), 1);
});

test!(
    message_to_a_disabled_apic,
    "An APIC that software has disabled takes no MSI, and none later.",
    || {
        // SDM volume 3, 12.4.7.2.
        let apic = enabled();
        irq::count_only(VECTOR);
        apic.disable();
        check_ok!(lab::signal_msi(address(apic.id()), VECTOR.into()));
        irq::let_in(crate::SETTLE);
        apic.enable();
        irq::let_in(crate::SETTLE);
        check_eq!(irq::count(VECTOR), 0);
    }
);

test!(
    messages_with_32_bit_ids,
    "With KVM_CAP_X2APIC_API the high half of an MSI's address is part of the identifier.",
    || {
        lab::require_cap(X2APIC_API, "X2APIC_API");
        let cpus = start();
        check_ok!(lab::enable_cap(X2APIC_API, USE_32BIT_IDS));
        for to in 0..cpus {
            let send = send(address(smp::apic_id(to)), VECTOR.into());
            expect_at(cpus, 0, VECTOR, "MSI", send, |cpu| cpu == to);
        }
        for id in [0x101, 0x1_0002, 0xff00_0003] {
            let send = send(address(id), VECTOR.into());
            expect_at(cpus, 0, VECTOR, "MSI to nobody", send, |_| false);
        }
        // 7.1: bits 7:0 of the high half must be zero.
        let wrong = lab::signal_msi(address(1) | 1 << 32, VECTOR.into());
        check_eq!(wrong.err(), Some(Errno::EINVAL));
    }
);

test!(
    message_to_255,
    "An MSI to 255 is a broadcast; without that quirk it is for identifier 255.",
    || {
        // 7.1: KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.
        lab::require_cap(X2APIC_API, "X2APIC_API");
        let cpus = start();
        let to_all = send(address(0xff), VECTOR.into());
        expect_at(cpus, 0, VECTOR, "MSI to 255 with the quirk", to_all, |_| true);
        check_ok!(lab::enable_cap(X2APIC_API, USE_32BIT_IDS | NO_BROADCAST_QUIRK));
        let to_255 = send(address(0xff), VECTOR.into());
        expect_at(cpus, 0, VECTOR, "MSI to 255", to_255, |_| false);
        let to_all = send(address(u32::MAX), VECTOR.into());
        expect_at(cpus, 0, VECTOR, "MSI to all ones", to_all, |_| true);
    }
);

/// A pin of the I/O APIC that nothing else uses.
const PIN: u8 = 20;

/// Raises the pin's line twice, with an entry for this x2APIC of this trigger mode, and looks at it
/// while it is pending and after its EOI.
fn pin(trigger: u64) {
    let apic = enabled();
    irq::handle(VECTOR, |_| {
        check_ok!(lab::irq_line(PIN.into(), false));
        write(msr::EOI, 0);
    });
    ioapic::set_entry(PIN, u64::from(VECTOR) | ioapic::destination(apic.id() as u8) | trigger);
    for round in 1..=2 {
        check_ok!(lab::irq_line(PIN.into(), true));
        check!(bit(msr::IRR, VECTOR), "IRR does not have it");
        check_eq!(bit(msr::TMR, VECTOR), trigger != 0, "TMR");
        let remote = ioapic::entry(PIN) & ioapic::REMOTE_IRR != 0;
        check_eq!(remote, trigger != 0, "remote IRR while it is pending");
        check!(irq::wait_for(VECTOR, round, PATIENCE), "it does not come");
        check_eq!(ioapic::entry(PIN) & ioapic::REMOTE_IRR, 0, "remote IRR after EOI");
    }
    let chip = check_ok!(lab::irqchip(2));
    check_ok!(lab::set(kvm::SET_IRQCHIP, &chip), "the I/O APIC's own state");
}

test!(io_apic_by_edge, "A pin of the I/O APIC reaches an x2APIC by edge.", || pin(0));

test!(io_apic_by_level, "A pin of the I/O APIC reaches an x2APIC by level, until its EOI.", || {
    pin(ioapic::LEVEL)
});
