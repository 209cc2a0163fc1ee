//! The local APIC's registers: what they hold, and what they refuse.

use crate::{PATIENCE, SETTLE, modes};
use payload_rt::apic::{self, Apic, Mode, Register};
use payload_rt::*;

const VECTOR: u8 = 0x48;

/// The entries of the local vector table, with the bits that software can set: vector, and mask,
/// then delivery mode, polarity and trigger mode, timer mode (SDM volume 3, 12.5.1).
const LVT: [(Register, u32); 6] = [
    (Register::LVT_TIMER, 0x3_00ff),
    (Register::LVT_THERMAL, 0x1_07ff),
    (Register::LVT_PERF, 0x1_07ff),
    (Register::LVT_LINT0, 0x1_a7ff),
    (Register::LVT_LINT1, 0x1_a7ff),
    (Register::LVT_ERROR, 0x1_00ff),
];

/// Those entries that the APIC has; the version register says how many there are.
fn lvt(apic: Apic) -> impl Iterator<Item = (Register, u32)> {
    let entries = (apic.read(Register::VERSION) >> 16 & 0xff) + 1;
    LVT.into_iter().filter(move |(register, _)| match *register {
        Register::LVT_PERF => entries >= 5,
        Register::LVT_THERMAL => entries >= 6,
        _ => true,
    })
}

/// The initial identifier of CPUID leaf 1, 8 bits.
fn id_of_leaf_1() -> u32 {
    cpuid::leaf(1, 0).ebx >> 24
}

test!(
    identity,
    "Identifier and version are those of an integrated APIC, and agree with CPUID.",
    || {
        for apic in modes() {
            let version = apic.read(Register::VERSION);
            let (mode, number, last) = (apic.mode(), version & 0xff, version >> 16 & 0xff);
            check!(
                (0x10..=0x15).contains(&number),
                "{mode:?}: version {version:#x} is no integrated APIC's"
            );
            check!(
                (3..=10).contains(&last),
                "{mode:?}: version {version:#x}: last LVT entry {last}"
            );
            check_eq!(
                apic.id() & 0xff,
                id_of_leaf_1(),
                "{mode:?}: identifier against CPUID leaf 1"
            );
            check_eq!(apic.id(), apic::initial_id(), "{mode:?}: identifier against CPUID leaf 0xb");
        }
    }
);

test!(
    lvt_bits,
    "Each LVT entry keeps the bits it has, and no reserved or read-only one (xAPIC).",
    || {
        let apic = apic::set_mode(Mode::XApic);
        apic.enable();
        for (register, bits) in lvt(apic) {
            for value in
                [bits, apic::LVT_MASKED, bits & 0x0_a5a5 | apic::LVT_MASKED, apic::LVT_MASKED]
            {
                apic.write(register, value);
                check_eq!(apic.read(register), value, "LVT {:#x} after {value:#x}", register.0);
            }
            // What is reserved stays 0. Delivery status (12) and remote IRR (14) are read-only, but KVM
            // keeps them as they are written, and nothing hangs on them there: left out. The timer's mode bits are at 17
            // and 18; the second is there with TSC-deadline only.
            apic.write(register, 0xffff_ffff);
            let deadline = register == Register::LVT_TIMER && cpuid::TSC_DEADLINE.present();
            let wanted = bits | u32::from(deadline) << 18;
            check_eq!(
                apic.read(register) & !0x5000,
                wanted,
                "LVT {:#x} after all ones",
                register.0
            );
            apic.write(register, apic::LVT_MASKED);
        }
    }
);

test!(ldr_dfr_bits, "LDR keeps its high byte; DFR reads ones below its four bits (xAPIC).", || {
    // SDM volume 3, 12.6.2.2.
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    for (register, value, wanted) in [
        (Register::LDR, 0xffff_ffff, 0xff00_0000),
        (Register::LDR, 0xa500_0000, 0xa500_0000),
        (Register::LDR, 0x0012_3456, 0),
        (Register::DFR, 0x0000_0000, 0x0fff_ffff),
        (Register::DFR, 0xffff_ffff, 0xffff_ffff),
    ] {
        apic.write(register, value);
        check_eq!(apic.read(register), wanted, "register {:#x} after {value:#x}", register.0);
    }
});

test!(
    software_disable,
    "Software-disabled, the APIC masks its LVT and keeps it masked; it keeps the rest.",
    || {
        // SDM volume 3, 12.4.7.2.
        for apic in modes() {
            for (register, _) in lvt(apic) {
                apic.write(register, 0x77);
            }
            apic.set_tpr(0x20);
            apic.disable();
            for (register, _) in lvt(apic) {
                let what = register.0;
                let value = apic.read(register);
                check!(value & apic::LVT_MASKED != 0, "LVT {what:#x} is {value:#x} when disabled");
                check_eq!(value & 0xff, 0x77, "vector of LVT {what:#x} when disabled");
                apic.write(register, 0x78);
                let value = apic.read(register);
                check!(value & apic::LVT_MASKED != 0, "LVT {what:#x} was unmasked when disabled");
            }
            check_eq!(apic.read(Register::TPR), 0x20, "TPR when disabled");
            apic.enable();
            for (register, _) in lvt(apic) {
                let value = apic.read(register);
                let what = register.0;
                check!(
                    value & apic::LVT_MASKED != 0,
                    "enabling unmasked LVT {what:#x}: {value:#x}"
                );
            }
        }
    }
);

test!(spurious_vector, "SVR keeps the whole vector and the enable bit.", || {
    for apic in modes() {
        for value in [0x1ff, 0x0ff, 0x1ef, 0x1f0, 0x120, 0x1ff] {
            apic.write(Register::SVR, value);
            check_eq!(apic.read(Register::SVR) & 0x1ff, value, "SVR as {:?}", apic.mode());
        }
    }
});

test!(
    illegal_vectors,
    "A vector below 16 that is sent to oneself is never taken: it is an error, not an exception.",
    || {
        // SDM volume 3, 12.5.3 and 12.8.
        for apic in modes() {
            for vector in 0..16 {
                let command = apic::command(apic::Delivery::Fixed(vector), apic::Destination::Own);
                let before = irq::count(vector);
                apic.send_raw(0, command);
                irq::let_in(SETTLE);
                check_eq!(irq::count(vector), before, "exceptions {vector} after such an IPI");
            }
            // And the way for ordinary vectors is free.
            irq::count_only(VECTOR);
            let before = irq::count(VECTOR);
            apic.self_ipi(VECTOR);
            let came = irq::wait_for(VECTOR, before + 1, PATIENCE);
            check!(came, "vector {VECTOR:#x} did not come behind illegal ones");
        }
    }
);

test!(
    illegal_vector_is_recorded,
    "An IPI with a vector below 16 sets ESR's send-illegal-vector bit and raises the error interrupt.",
    || {
        // SDM volume 3, 12.5.3: a write to ESR latches what was detected since the last one.
        irq::count_only(VECTOR);
        for apic in modes() {
            irq::reset();
            apic.write(Register::LVT_ERROR, VECTOR.into());
            (0..2).for_each(|_| apic.write(Register::ESR, 0));
            check_eq!(apic.read(Register::ESR), 0, "ESR before the error");
            apic.send_raw(0, apic::command(apic::Delivery::Fixed(5), apic::Destination::Own));
            apic.write(Register::ESR, 0);
            check_eq!(apic.read(Register::ESR) & 1 << 5, 1 << 5, "ESR, send illegal vector");
            check!(irq::wait_for(VECTOR, 1, PATIENCE), "no error interrupt");
        }
    }
);

test!(
    lvt_read_only_bits,
    "Delivery status and remote IRR of an LVT entry cannot be written (xAPIC).",
    || {
        // SDM volume 3, 12.5.1.
        const DELIVERY_STATUS: u32 = 1 << 12;
        const REMOTE_IRR: u32 = 1 << 14;
        let apic = apic::set_mode(Mode::XApic);
        apic.enable();
        for (register, _) in lvt(apic) {
            apic.write(register, apic::LVT_MASKED | DELIVERY_STATUS | REMOTE_IRR);
            check_eq!(apic.read(register), apic::LVT_MASKED, "LVT {:#x}", register.0);
        }
    }
);

/// What may be done to an MSR of the x2APIC.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    ReadWrite,
    ReadOnly,
    WriteOnly,
    None,
}

/// SDM volume 3, table 12-6, for the MSRs 0x800 to 0x83f.
fn way(msr: u32, lvts: u32) -> Way {
    match msr {
        0x802 | 0x803 | 0x80a | 0x80d | 0x810..=0x827 | 0x839 => Way::ReadOnly,
        0x80b | 0x83f => Way::WriteOnly,
        // CMCI is the seventh entry of the LVT.
        0x82f if lvts < 7 => Way::None,
        0x808 | 0x80f | 0x828 | 0x82f | 0x830 | 0x832..=0x838 | 0x83e => Way::ReadWrite,
        _ => Way::None,
    }
}

fn x2apic() -> (Apic, u32) {
    let apic = apic::set_mode(Mode::X2Apic);
    apic.enable();
    (apic, (apic.read(Register::VERSION) >> 16 & 0xff) + 1)
}

test!(
    x2apic_reads,
    "x2APIC MSRs that are reserved or write-only are #GP to read, all others not.",
    || {
        let (_, lvts) = x2apic();
        for msr in 0x800..0x900 {
            let result = reg::rdmsr(msr);
            match way(msr, lvts) {
                Way::ReadWrite | Way::ReadOnly => {
                    let value = check_ok!(result, "read of MSR {msr:#x}");
                    check!(value >> 32 == 0 || msr == 0x830, "MSR {msr:#x} is {value:#x}: 64 bits");
                }
                way => {
                    let fault = check_err!(result, "read of MSR {msr:#x}, {way:?}");
                    check!(fault.is(trap::GP, 0), "read of MSR {msr:#x}: {fault}");
                }
            }
        }
    }
);

test!(
    x2apic_writes,
    "x2APIC MSRs that are reserved or read-only are #GP to write, all others not.",
    || {
        let (apic, lvts) = x2apic();
        for msr in 0x800..0x900 {
            // What is there is written back; to what is not, 0.
            let value = reg::rdmsr(msr).unwrap_or(0);
            match way(msr, lvts) {
                // The ICR would send.
                Way::ReadWrite if msr == 0x830 => {}
                Way::ReadWrite if msr == 0x828 => check_ok!(reg::wrmsr(msr, 0), "write of ESR"),
                Way::ReadWrite => check_ok!(reg::wrmsr(msr, value), "write of MSR {msr:#x}"),
                Way::WriteOnly if msr == 0x80b => check_ok!(reg::wrmsr(msr, 0), "write of EOI"),
                Way::WriteOnly => {
                    irq::count_only(VECTOR);
                    check_ok!(reg::wrmsr(msr, VECTOR.into()), "write of MSR {msr:#x}");
                    irq::let_in(SETTLE);
                }
                way => {
                    let fault =
                        check_err!(reg::wrmsr(msr, value), "write of MSR {msr:#x}, {way:?}");
                    check!(fault.is(trap::GP, 0), "write of MSR {msr:#x}: {fault}");
                }
            }
        }
        check_eq!(apic.mode(), Mode::X2Apic);
    }
);

test!(
    x2apic_high_half,
    "Bits 63:32 of every x2APIC MSR but ICR are reserved: #GP, nothing written.",
    || {
        // SDM volume 3, 12.12.1.3.
        let (_, lvts) = x2apic();
        for msr in (0x800..0x840).filter(|&msr| way(msr, lvts) == Way::ReadWrite && msr != 0x830) {
            let before = check_ok!(reg::rdmsr(msr), "read of MSR {msr:#x}");
            for bit in [32, 47, 63] {
                let fault = check_err!(
                    reg::wrmsr(msr, before ^ 1 | 1 << bit),
                    "write to MSR {msr:#x} with bit {bit}"
                );
                check!(fault.is(trap::GP, 0), "write to MSR {msr:#x} with bit {bit}: {fault}");
                check_eq!(reg::rdmsr(msr), Ok(before), "MSR {msr:#x} after a refused write");
            }
        }
    }
);

test!(x2apic_esr, "A write to the x2APIC's ESR of anything but 0 is #GP.", || {
    x2apic();
    check_ok!(reg::wrmsr(0x828, 0), "write of 0 to ESR");
    for value in [1, 0x80, 0xffff_ffff] {
        let fault = check_err!(reg::wrmsr(0x828, value), "write of {value:#x} to ESR");
        check!(fault.is(trap::GP, 0), "write of {value:#x} to ESR: {fault}");
    }
});

test!(x2apic_icr, "The x2APIC's ICR is one 64-bit register that reads back what was sent.", || {
    // SDM volume 3, 12.12.9: no delivery status; the destination is 32 bits wide.
    let (apic, _) = x2apic();
    irq::count_only(VECTOR);
    let own = u64::from(apic.id()) << 32 | 0x4000 | u64::from(VECTOR);
    // To nobody: identifiers that no CPU has here.
    for value in [own, 0xfffe_0000_0000_4000 | u64::from(VECTOR), 0x7fff_fffe_0000_4032] {
        check_ok!(reg::wrmsr(0x830, value), "write of {value:#x} to ICR");
        check_eq!(reg::rdmsr(0x830), Ok(value), "ICR");
    }
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "the IPI to this CPU did not come");
    irq::let_in(SETTLE);
    check_eq!(irq::count(VECTOR), 1, "the one of three that was for this CPU");
});

test!(no_x2apic_msrs_in_xapic_mode, "As xAPIC the MSRs of the x2APIC are #GP.", || {
    // SDM volume 3, 12.12.1.2.
    apic::set_mode(Mode::XApic).enable();
    for msr in [0x802, 0x803, 0x808, 0x80b, 0x80f, 0x830, 0x83f, 0x8ff] {
        let fault = check_err!(reg::rdmsr(msr), "read of MSR {msr:#x} as xAPIC");
        check!(fault.is(trap::GP, 0), "read of MSR {msr:#x} as xAPIC: {fault}");
        let fault = check_err!(reg::wrmsr(msr, 0), "write of MSR {msr:#x} as xAPIC");
        check!(fault.is(trap::GP, 0), "write of MSR {msr:#x} as xAPIC: {fault}");
    }
});
