//! Interrupts without a local APIC in the kernel, and past one (Linux,
//! Documentation/virt/kvm/api.rst, 4.16 KVM_INTERRUPT).

use crate::{PATIENCE, SETTLE, VECTOR, msr, refused, unreadable};
use payload_rt::lab::{self, Errno, Rule, kind, kvm};
use payload_rt::*;

fn interrupt(vector: u32) -> lab::Result<()> {
    lab::set(kvm::INTERRUPT, &vector)
}

test!(no_msrs_without_an_apic, "Without an APIC in the kernel its MSRs are #GP.", || {
    for register in [msr::ID, msr::VERSION, msr::TPR, msr::ICR, 0x8ff] {
        unreadable(register);
        refused(register, 0);
    }
    refused(msr::SELF_IPI, VECTOR.into());
});

test!(
    user_interrupt,
    "KVM_INTERRUPT delivers each vector at once where interrupts are on.",
    || {
        for vector in (32..=255).step_by(7) {
            irq::handle(vector, |_| {});
            reg::sti();
            let done = interrupt(vector.into());
            reg::cli();
            check_ok!(done);
            check_eq!(irq::count(vector), 1, "vector {vector:#x}");
        }
    }
);

test!(user_interrupt_bounds, "KVM_INTERRUPT refuses vectors above 255.", || {
    for vector in [256, 0x8000_0000, u32::MAX] {
        check_eq!(interrupt(vector).err(), Some(Errno::EINVAL), "vector {vector:#x}");
    }
});

test!(user_interrupt_refused, "With PIC and APIC in the kernel KVM_INTERRUPT is refused.", || {
    check_eq!(interrupt(VECTOR.into()).err(), Some(Errno::ENXIO));
});

test!(
    external_interrupt,
    "With the APIC alone in the kernel KVM_INTERRUPT is the PIC's: it waits, and one at a time.",
    || {
        let apic = apic::local();
        apic.enable();
        apic.write(apic::Register::LVT_LINT0, 0x700);
        irq::handle(VECTOR, |_| {});
        check_ok!(interrupt(VECTOR.into()));
        check_eq!(interrupt(0x55).err(), Some(Errno::EEXIST), "a second one");
        check_eq!(irq::count(VECTOR), 0, "before interrupts are on");
        check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not come");
        irq::let_in(SETTLE);
        check_eq!((irq::count(VECTOR), irq::count(0x55)), (1, 0));
        check!(!apic.bit(apic::Register::ISR, VECTOR), "an external interrupt is in service");
    }
);

test!(
    cr8_without_an_apic,
    "CR8 keeps its four bits without an APIC, as the host sees them.",
    || {
        for value in 0..16 {
            check_ok!(reg::set_cr8(value));
            check_eq!(reg::cr8(), value);
            check_eq!(check_ok!(lab::sregs()).cr8, value, "for the host");
        }
        check_ok!(reg::set_cr8(0));
    }
);

// SDM volume 2, MOV to control registers: #GP(0) if a reserved bit is to be set.
test!(cr8_reserved_without_an_apic, "Without an APIC, too, CR8's bits 63:4 are #GP.", || {
    check_ok!(reg::set_cr8(5));
    for bit in [4, 5, 7, 8, 9, 31, 32, 63] {
        let fault = check_err!(reg::set_cr8(1 << bit), "bit {bit}");
        check!(fault.is(trap::GP, 0), "bit {bit}: {fault}");
        check_eq!(reg::cr8(), 5, "CR8 after #GP for bit {bit}");
    }
});

test!(cr8_exits, "A CR8 that falls leaves the guest; one that rises does not.", || {
    let log = check_ok!(lab::record(&[Rule::on(kind::SET_TPR)]));
    for (value, exits) in [(5, 0), (9, 0), (9, 0), (2, 1), (3, 1), (0, 2)] {
        check_ok!(reg::set_cr8(value));
        check_eq!(log.count(), exits, "exits after CR8 {value}");
    }
});
