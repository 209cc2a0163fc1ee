//! Reserved bits: WRMSR raises #GP for each (SDM volume 3, 12.12.1.3), and writes nothing.

use crate::{LVT, enabled, lvt, msr, read, refused, write};
use payload_rt::*;

/// Each bit of `bits`, alone beside `value`, is refused, and the register stays.
fn bits_are_refused(register: u32, value: u64, bits: u64) {
    let before = read(register);
    for bit in (0..64).filter(|bit| bits & 1 << bit != 0) {
        refused(register, value | 1 << bit);
        check_eq!(read(register), before, "MSR {register:#x} after #GP for bit {bit}");
    }
}

test!(high_halves, "Bits 63:32 of each writable register but ICR are refused, one by one.", || {
    enabled();
    for register in [msr::TPR, msr::SVR, msr::LVT_TIMER, msr::LVT_ERROR, msr::INITIAL, msr::DIVIDE]
    {
        bits_are_refused(register, read(register), 0xffff_ffff_0000_0000);
    }
});

test!(high_halves_write_only, "Bits 63:32 of EOI, ESR and self-IPI are refused.", || {
    enabled();
    irq::count_only(crate::VECTOR);
    for bit in 32..64 {
        refused(msr::EOI, 1 << bit);
        refused(msr::ESR, 1 << bit);
        refused(msr::SELF_IPI, 1 << bit | u64::from(crate::VECTOR));
    }
    irq::let_in(crate::SETTLE);
    check_eq!(irq::count(crate::VECTOR), 0, "self-IPIs that were refused");
});

test!(esr_reserved, "Each bit of ESR is refused; 0 is not.", || {
    enabled();
    write(msr::ESR, 0);
    bits_are_refused(msr::ESR, 0, 0xffff_ffff);
});

// Figure 12-28: bits 13, 17:16 and 31:20. Of bit 12 Intel and AMD do not think alike.
test!(icr_reserved, "The reserved bits of ICR's command are refused, and nothing is sent.", || {
    let apic = enabled();
    irq::count_only(crate::VECTOR);
    let own = u64::from(apic.id()) << 32 | 0x4000 | u64::from(crate::VECTOR);
    bits_are_refused(msr::ICR, own, 0xfff3_2000);
    irq::let_in(crate::SETTLE);
    check_eq!(irq::count(crate::VECTOR), 0, "IPIs that were refused");
});

// Figure 12-31: bits 31:8.
test!(self_ipi_reserved, "The reserved bits of self-IPI are refused, and nothing is sent.", || {
    enabled();
    irq::count_only(crate::VECTOR);
    for bit in 8..32 {
        refused(msr::SELF_IPI, 1 << bit | u64::from(crate::VECTOR));
    }
    irq::let_in(crate::SETTLE);
    check_eq!(irq::count(crate::VECTOR), 0, "self-IPIs that were refused");
});

test!(tpr_reserved, "Bits 31:8 of TPR are refused.", || {
    enabled();
    bits_are_refused(msr::TPR, 0x20, 0xffff_ff00);
});

// Table 12-6: "WRMSR of a non-zero value causes #GP(0)".
test!(eoi_reserved, "EOI takes 0 and nothing else.", || {
    enabled();
    write(msr::EOI, 0);
    for bit in 0..32 {
        refused(msr::EOI, 1 << bit);
    }
});

// Figure 12-23: bits 31:13, 11:10; 9 and 12 are there on some.
test!(svr_reserved, "The reserved bits of SVR are refused.", || {
    enabled();
    bits_are_refused(msr::SVR, 0x1ff, 0xffff_ec00);
});

test!(lvt_reserved, "The reserved bits of each LVT entry are refused.", || {
    enabled();
    for (register, bits) in lvt() {
        // Delivery status and remote IRR are read-only, bit 18 is the timer's with TSC-deadline.
        let known = bits | 0x5000 | u32::from(register == msr::LVT_TIMER) << 18;
        bits_are_refused(register, 0x1_0000, u64::from(!known));
    }
});

test!(divide_reserved, "The reserved bits of the divide configuration are refused.", || {
    enabled();
    bits_are_refused(msr::DIVIDE, 0b1011, 0xffff_fff4);
});

test!(
    reserved_bits_do_not_stay,
    "Where reserved bits are taken instead of refused, they do not stay.",
    || {
        enabled();
        let plain = [(msr::TPR, 0xff), (msr::DIVIDE, 0b1011), (msr::SVR, 0x13ff)];
        let entries = LVT.into_iter().filter(|e| lvt().any(|there| there == *e));
        for (register, bits) in plain.into_iter().chain(entries) {
            // Whether it is refused is other tests' business. The mask keeps the entry quiet. Bits
            // 12 and 14 of an entry, which software cannot write either, are those of
            // `apic::lvt_read_only_bits`.
            let _ = reg::wrmsr(register, 0xffff_afff);
            let deadline = u32::from(register == msr::LVT_TIMER) << 18;
            check_eq!(read(register) as u32 & !(bits | deadline), 0, "MSR {register:#x}");
        }
    }
);
