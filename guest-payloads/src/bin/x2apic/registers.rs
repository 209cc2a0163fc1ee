//! What each register holds after reset, what it keeps, and who may read and write it.

use crate::{
    PATIENCE, SETTLE, VECTOR, bit, enabled, fresh, logical, lvt, lvt_entries, msr, read, refused,
    unreadable, write,
};
use payload_rt::apic::{self, Delivery, Destination};
use payload_rt::*;

// SDM volume 3, 12.4.7.1, for all tests of what is there after reset; 12.12.5.1 for what the change
// to x2APIC mode leaves so.
test!(reset_identity, "After reset the identifier is CPUID's, and LDR follows from it.", || {
    fresh();
    let id = read(msr::ID) as u32;
    check_eq!(id, apic::initial_id());
    check_eq!(read(msr::LDR), logical(id).into());
    let version = read(msr::VERSION);
    check!((0x10..=0x15).contains(&(version & 0xff)), "version {version:#x}");
    check!((3..=10).contains(&(version >> 16 & 0xff)), "version {version:#x}");
    check_eq!(version & !0x01ff_00ff, 0, "reserved bits of the version");
});

test!(reset_priority, "After reset the priorities are 0, SVR is 0xff, ESR and ICR are 0.", || {
    fresh();
    for (register, wanted) in
        [(msr::TPR, 0), (msr::PPR, 0), (msr::SVR, 0xff), (msr::ESR, 0), (msr::ICR, 0)]
    {
        check_eq!(read(register), wanted, "MSR {register:#x}");
    }
});

test!(reset_banks, "After reset ISR, TMR and IRR are empty.", || {
    fresh();
    for register in msr::ISR..msr::ESR {
        check_eq!(read(register), 0, "MSR {register:#x}");
    }
});

test!(reset_lvt, "After reset each LVT entry is masked, and 0 otherwise.", || {
    fresh();
    for (register, _) in lvt() {
        let value = read(register);
        // KVM's api.rst, 7.24: with KVM_X86_QUIRK_LINT0_REENABLED, which is on by default, LINT0 of
        // the CPU that boots comes up as ExtINT, as a BIOS leaves it.
        let ext_int = register == msr::LVT_LINT0 && value == 0x700;
        // A VMM may have done for LINT1 what a BIOS does, too: NMI.
        let nmi = register == msr::LVT_LINT1 && value == 0x400;
        check!(value == 0x1_0000 || ext_int || nmi, "LVT {register:#x} is {value:#x}");
    }
});

test!(reset_timer, "After reset the timer's counts and its divider are 0.", || {
    fresh();
    for register in [msr::INITIAL, msr::CURRENT, msr::DIVIDE] {
        check_eq!(read(register), 0, "MSR {register:#x}");
    }
});

// 12.12.1.2, table 12-6.
test!(read_only_identity, "ID, version, PPR and LDR are #GP to write, and stay.", || {
    enabled();
    for register in [msr::ID, msr::VERSION, msr::PPR, msr::LDR] {
        let before = read(register);
        for value in [0, before, before ^ 1, 0xffff_ffff, u64::MAX] {
            refused(register, value);
        }
        check_eq!(read(register), before, "MSR {register:#x}");
    }
});

test!(read_only_banks, "Each register of ISR, TMR and IRR is #GP to write.", || {
    enabled();
    for register in msr::ISR..msr::ESR {
        for value in [0, 1, 0xffff_ffff] {
            refused(register, value);
        }
        check_eq!(read(register), 0, "MSR {register:#x}");
    }
});

test!(read_only_count, "The timer's current count is #GP to write, and counts on.", || {
    enabled();
    write(msr::LVT_TIMER, 0x1_0000);
    write(msr::INITIAL, 0xffff_ffff);
    let first = read(msr::CURRENT);
    for value in [0, 1, 0xffff_ffff] {
        refused(msr::CURRENT, value);
    }
    let fell = time::wait_until(PATIENCE, || read(msr::CURRENT) < first);
    check!(fell, "the count stands still");
    write(msr::INITIAL, 0);
});

test!(write_only, "EOI and self-IPI are #GP to read.", || {
    enabled();
    unreadable(msr::EOI);
    unreadable(msr::SELF_IPI);
});

test!(absent_xapic_registers, "What the xAPIC has and the x2APIC has not is #GP.", || {
    enabled();
    // Arbitration priority, remote read, destination format, the ICR's high half.
    for register in [0x809, 0x80c, 0x80e, 0x831] {
        unreadable(register);
        for value in [0, 0xffff_ffff] {
            refused(register, value);
        }
    }
});

test!(absent_low, "The reserved MSRs from 0x800 to 0x83f are #GP.", || {
    enabled();
    let reserved = [0x800, 0x801].into_iter().chain(0x804..=0x807).chain(0x829..=0x82e);
    for register in reserved.chain(0x83a..=0x83d) {
        unreadable(register);
        refused(register, 0);
        refused(register, 1);
    }
});

test!(absent_high, "The MSRs from 0x840 to 0x8ff are #GP.", || {
    enabled();
    for register in 0x840..=0x8ff {
        unreadable(register);
        refused(register, 0);
    }
});

test!(cmci, "The CMCI entry is there exactly if the version counts seven entries.", || {
    enabled();
    if lvt_entries() < 7 {
        unreadable(msr::CMCI);
        refused(msr::CMCI, 0x1_0000);
    } else {
        check_eq!(read(msr::CMCI), 0x1_0000, "CMCI after reset");
        write(msr::CMCI, 0x1_04f0);
        check_eq!(read(msr::CMCI), 0x1_04f0);
    }
});

test!(task_priority, "TPR keeps each of its sixteen classes; CR8 and PPR follow.", || {
    enabled();
    for value in (0..=0xf0).step_by(16) {
        write(msr::TPR, value);
        // 12.8.3: PPR is TPR while nothing of a higher class is in service.
        check_eq!([read(msr::TPR), read(msr::PPR), reg::cr8()], [value, value, value >> 4]);
    }
    check_ok!(reg::set_cr8(9));
    check_eq!((read(msr::TPR), read(msr::PPR)), (0x90, 0x90), "TPR and PPR after CR8");
});

test!(task_priority_subclass, "TPR keeps its subclass, and PPR has it.", || {
    enabled();
    for value in (0..=0xff).step_by(7) {
        write(msr::TPR, value);
        check_eq!([read(msr::TPR), read(msr::PPR)], [value; 2]);
    }
});

test!(spurious, "SVR keeps each vector, with and without the enable bit.", || {
    fresh();
    for value in (0x10..=0xff).step_by(5).flat_map(|vector| [vector, 0x100 | vector]) {
        write(msr::SVR, value);
        check_eq!(read(msr::SVR), value);
    }
});

test!(lvt_bits, "Each LVT entry keeps each of the bits it has.", || {
    enabled();
    for (register, bits) in lvt() {
        for bit in (8..32).filter(|bit| bits & 1 << bit != 0) {
            let value = 0x1_0030 | 1 << bit;
            write(register, value);
            check_eq!(read(register), value, "LVT {register:#x}");
        }
        write(register, 0x1_0000);
    }
});

test!(lvt_vectors, "Each LVT entry keeps each vector.", || {
    enabled();
    for (register, _) in lvt() {
        for vector in (0x10..=0xff).step_by(3) {
            write(register, 0x1_0000 | vector);
            check_eq!(read(register), 0x1_0000 | vector, "LVT {register:#x}");
        }
    }
});

test!(timer_divide, "The divide configuration keeps its eight values.", || {
    enabled();
    for value in [0b0000, 0b0001, 0b0010, 0b0011, 0b1000, 0b1001, 0b1010, 0b1011] {
        write(msr::DIVIDE, value);
        check_eq!(read(msr::DIVIDE), value);
    }
});

test!(icr_is_64_bits, "ICR keeps a destination of 32 bits beside the command.", || {
    let apic = enabled();
    for destination in [0x7fff_fff0_u64, 0x8000_0001, 0x0000_ff00, 0xffff_fff0] {
        for command in [0x4031_u64, 0x0031, 0x41f0] {
            let value = destination << 32 | command;
            write(msr::ICR, value);
            check_eq!(read(msr::ICR), value);
        }
    }
    // And one that is for somebody.
    irq::count_only(VECTOR);
    apic.send(Delivery::Fixed(VECTOR), Destination::Physical(apic.id()));
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "the IPI to this CPU did not come");
});

// SDM volume 2, RDMSR: the upper halves of RAX and RDX are cleared, that of RCX is ignored.
test!(rdmsr_upper_halves, "RDMSR ignores the upper half of RCX and clears those it gives.", || {
    enabled();
    write(msr::TPR, 0x20);
    let (rax, rdx): (u64, u64);
    check_ok!(insn!(
        "mov rcx, {rcx}", "mov rax, -1", "mov rdx, -1", "rdmsr";
        rcx = in(reg) 0xdead_beef_0000_0000 | u64::from(msr::TPR),
        out("rcx") _, out("rax") rax, out("rdx") rdx
    ));
    check_eq!((rax, rdx), (0x20, 0));
});

test!(wrmsr_upper_halves, "WRMSR ignores the upper halves of RCX, RAX and RDX.", || {
    enabled();
    check_ok!(insn!(
        "mov rcx, {rcx}", "mov rax, {rax}", "mov rdx, {rdx}", "wrmsr";
        rcx = in(reg) 0xdead_beef_0000_0000 | u64::from(msr::TPR),
        rax = in(reg) 0x1234_5678_0000_0040_u64, rdx = in(reg) 0x1234_5678_0000_0000_u64,
        out("rcx") _, out("rax") _, out("rdx") _
    ));
    check_eq!(read(msr::TPR), 0x40);
});

// SDM volume 2, RDMSR and WRMSR: #GP(0) if CPL is not 0.
test!(user_mode, "RDMSR and WRMSR of the x2APIC's MSRs are #GP at CPL 3.", || {
    enabled();
    write(msr::TPR, 0x30);
    let code = [asm_code!("rdmsr", "ret"), asm_code!("wrmsr", "ret")];
    for register in [msr::ID, msr::TPR, msr::EOI, msr::ICR, msr::SELF_IPI] {
        for code in code {
            let mut user = user::User::new(code);
            user.regs.rcx = register.into();
            let user::End::Trap(fault) = user.run().end else {
                fail!("MSR {register:#x} at CPL 3: no trap");
            };
            check!(fault.is(trap::GP, 0), "MSR {register:#x} at CPL 3: {fault}");
        }
    }
    check_eq!(read(msr::TPR), 0x30);
});

// 12.12.11: the self-IPI register sends a fixed, edge-triggered interrupt.
// Below 32 a handler could not tell an interrupt from an exception, which may have an error code.
test!(self_ipi_of_every_vector, "The self-IPI register sends each vector from 32 on.", || {
    enabled();
    for vector in 32..=254 {
        irq::count_only(vector);
        write(msr::SELF_IPI, vector.into());
        check!(bit(msr::IRR, vector), "IRR does not have {vector:#x}");
        check!(!bit(msr::TMR, vector), "{vector:#x} is level-triggered");
        check!(irq::wait_for(vector, 1, PATIENCE), "vector {vector:#x} did not come");
        check!(!bit(msr::ISR, vector), "{vector:#x} is in service after its EOI");
        irq::unhandle(vector);
    }
});

test!(
    self_ipi_while_pending,
    "A vector that is sent twice before it is taken comes once, and again while in service.",
    || {
        enabled();
        irq::count_only(VECTOR);
        write(msr::SELF_IPI, VECTOR.into());
        write(msr::SELF_IPI, VECTOR.into());
        check!(irq::wait_for(VECTOR, 1, PATIENCE), "it did not come");
        irq::let_in(SETTLE);
        check_eq!(irq::count(VECTOR), 1);
        irq::handle(VECTOR, |_| {
            if irq::count(VECTOR) == 2 {
                write(msr::SELF_IPI, VECTOR.into());
            }
            write(msr::EOI, 0);
        });
        write(msr::SELF_IPI, VECTOR.into());
        check!(irq::wait_for(VECTOR, 3, PATIENCE), "what was sent in service did not come");
    }
);

// 12.8.5: with bit 24 of the version, bit 12 of SVR keeps EOIs from the I/O APICs.
test!(
    eoi_suppression,
    "SVR keeps the bit that suppresses EOI broadcasts exactly if the version has it.",
    || {
        fresh();
        let offered = read(msr::VERSION) & 1 << 24 != 0;
        let wrote = reg::wrmsr(msr::SVR, 0x11ff);
        // Where it is reserved, #GP and a bit that does not stay are both no suppression.
        check!(wrote.is_ok() || !offered, "SVR refuses a bit that the version offers: {wrote:?}");
        check_eq!(read(msr::SVR) & 1 << 12 != 0, offered);
        report::value("offered", offered.into());
    }
);

// 12.5.3: a write of ESR makes what was found since the last one readable.
test!(send_illegal_vector, "Vectors below 16 set ESR's bit 5 by ICR, self-IPI's too.", || {
    enabled();
    for (register, value) in [(msr::ICR, 0x4_4007), (msr::SELF_IPI, 7)] {
        write(msr::ESR, 0);
        write(msr::ESR, 0);
        check_eq!(read(msr::ESR), 0, "ESR before");
        // The self-IPI register may refuse such a vector instead.
        let wrote = reg::wrmsr(register, value);
        write(msr::ESR, 0);
        let sent = read(msr::ESR) & 1 << 5 != 0;
        check!(sent || wrote.is_err(), "MSR {register:#x}: ESR is {:#x}", read(msr::ESR));
        check!(!bit(msr::IRR, 7), "IRR has vector 7");
    }
});
