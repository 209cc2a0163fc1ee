//! Machine checks that the host injects (KVM_X86_SETUP_MCE, KVM_X86_SET_MCE): what the banks hold, when
//! there is a #MC, when the CPU shuts down, and corrected-error interrupts (Intel SDM volume 3,
//! "Machine-Check Architecture", by the titles of its sections; AMD APM volume 2, chapter 9).
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use payload_rt::lab::{self, Errno, kvm};
use payload_rt::reg::{rdmsr, wrmsr};
use payload_rt::trap::{self, GP, MC};
use payload_rt::*;

const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MCG_CTL: u32 = 0x17b;
/// IA32_MC0_CTL; STATUS, ADDR and MISC follow, and then the next bank.
const BANK_0: u32 = 0x400;
const CTL: u32 = 0;
const STATUS: u32 = 1;
const ADDR: u32 = 2;
const MISC: u32 = 3;
/// IA32_MC0_CTL2, and its bit that lets corrected errors interrupt.
const CTL2_0: u32 = 0x280;
const CMCI_EN: u64 = 1 << 30;
/// The local APIC's entry for that interrupt.
const LVT_CMCI: apic::Register = apic::Register(0x2f0);
const VECTOR: u8 = 0x51;

// IA32_MCG_CAP: IA32_MCG_CTL is there, CMCI is, software error recovery is.
const CTL_P: u64 = 1 << 8;
const CMCI_P: u64 = 1 << 10;
const SER_P: u64 = 1 << 24;
// IA32_MCG_STATUS: restart IP is valid, a machine check is in progress.
const RIPV: u64 = 1;
const MCIP: u64 = 4;
// IA32_MCi_STATUS.
const VAL: u64 = 1 << 63;
const OVER: u64 = 1 << 62;
const UC: u64 = 1 << 61;
const EN: u64 = 1 << 60;
const MISCV: u64 = 1 << 59;
const ADDRV: u64 = 1 << 58;
const PCC: u64 = 1 << 57;
const S: u64 = 1 << 56;
const AR: u64 = 1 << 55;

const CR4_MCE: u64 = 1 << 6;
const BANKS: u32 = 4;

fn bank(n: u32, register: u32) -> u32 {
    BANK_0 + 4 * n + register
}

/// Four banks, with what of these capabilities KVM has; what it has.
fn set_up(wanted: u64) -> u64 {
    cpuid::MCA.require();
    let supported = check_ok!(lab::get(kvm::X86_GET_MCE_CAP_SUPPORTED));
    let cap = supported & wanted | u64::from(BANKS);
    check_ok!(lab::set(kvm::X86_SETUP_MCE, &cap), "KVM_X86_SETUP_MCE of {cap:#x}");
    check_ok!(reg::set_cr4(reg::cr4() | CR4_MCE));
    supported
}

/// An error in bank 1, with these bits beside those that every one here has.
fn error(bits: u64, addr: u64) -> kvm::Mce {
    let status = VAL | EN | MISCV | ADDRV | bits;
    kvm::Mce { status, addr, misc: 0x8c, bank: 1, ..Default::default() }
}

/// An uncorrected one that is a #MC.
fn uncorrected(addr: u64) -> kvm::Mce {
    kvm::Mce { mcg_status: MCIP | RIPV, ..error(UC | PCC | 0x134, addr) }
}

/// One that was corrected.
fn corrected(addr: u64) -> kvm::Mce {
    error(0x9f, addr)
}

/// Injects one that is no #MC.
fn inject(mce: &kvm::Mce) {
    check_ok!(trap::catch(|| lab::set(kvm::X86_SET_MCE, mce)), "no #MC").unwrap_or_else(|e| {
        fail!("KVM_X86_SET_MCE: {e}");
    });
}

/// Injects one that is a #MC.
fn check_mc(mce: &kvm::Mce, what: &str) {
    check_trap!(trap::catch(|| lab::set(kvm::X86_SET_MCE, mce)), MC, 0, "{what}");
}

/// Checks status and address of bank 1.
fn check_bank(status: u64, addr: u64, what: &str) {
    check_eq!(rdmsr(bank(1, STATUS)), Ok(status), "status, {what}");
    check_eq!(rdmsr(bank(1, ADDR)), Ok(addr), "address, {what}");
}

test!(set_up_refused, "No bank, more than 32, and what KVM does not offer are EINVAL.", || {
    let supported = set_up(CTL_P);
    let refused = |cap: u64, what: &str| {
        check_eq!(lab::set(kvm::X86_SETUP_MCE, &cap), Err(Errno::EINVAL), "{what}");
    };
    refused(0, "no bank");
    refused(33, "33 banks");
    for bit in (8..16).chain(24..64).filter(|bit| supported & 1 << bit == 0) {
        refused(1 | 1 << bit, "a capability that is not offered");
    }
    check_eq!(check_ok!(rdmsr(MCG_CAP)) & 0xff, BANKS.into(), "banks afterwards");
});

test!(
    reset_values,
    "Control registers of the banks are all ones at first, the rest is zero.",
    || {
        let supported = set_up(CTL_P);
        if supported & CTL_P != 0 {
            check_eq!(rdmsr(MCG_CTL), Ok(u64::MAX), "IA32_MCG_CTL");
        }
        check_eq!(rdmsr(MCG_STATUS), Ok(0), "IA32_MCG_STATUS");
        for n in 0..BANKS {
            check_eq!(rdmsr(bank(n, CTL)), Ok(u64::MAX), "IA32_MC{n}_CTL");
            for register in [STATUS, ADDR, MISC] {
                check_eq!(rdmsr(bank(n, register)), Ok(0), "IA32_MC{n}_CTL + {register}");
            }
        }
        check_trap!(rdmsr(bank(BANKS, CTL)), GP, 0, "a bank that is not there");
    }
);

// "IA32_MCi_STATUS MSRS"; APM 9.3.2.2.
test!(corrected_is_logged, "A corrected error is in its bank, and is no #MC.", || {
    set_up(0);
    inject(&corrected(0x1000));
    check_bank(corrected(0).status, 0x1000, "after one error");
    check_eq!(rdmsr(bank(1, MISC)), Ok(0x8c), "MISC");
    check_eq!(rdmsr(MCG_STATUS), Ok(0), "IA32_MCG_STATUS");
    for n in [0, 2, 3] {
        check_eq!(rdmsr(bank(n, STATUS)), Ok(0), "status of bank {n}");
    }
    check_ok!(wrmsr(bank(1, STATUS), 0));
    check_eq!(rdmsr(bank(1, STATUS)), Ok(0), "status, cleared");
    inject(&corrected(0x2000));
    check_bank(corrected(0).status, 0x2000, "after the next one");
});

test!(corrected_overflow, "A second corrected error sets OVER.", || {
    set_up(0);
    inject(&corrected(0x1000));
    inject(&corrected(0x2000));
    check_eq!(rdmsr(bank(1, STATUS)), Ok(corrected(0).status | OVER), "status");
});

// "IA32_MCi_STATUS MSRS", OVER: "uncorrected errors are written over corrected errors".
test!(
    uncorrected_over_corrected,
    "An uncorrected error is written over a corrected one, and sets OVER.",
    || {
        set_up(0);
        inject(&corrected(0x1000));
        check_mc(&uncorrected(0x2000), "the uncorrected error");
        check_bank(uncorrected(0).status | OVER, 0x2000, "afterwards");
    }
);

test!(
    corrected_after_uncorrected,
    "A corrected error is not written over an uncorrected one, and sets OVER.",
    || {
        set_up(0);
        check_mc(&uncorrected(0x1000), "the uncorrected error");
        check_ok!(wrmsr(MCG_STATUS, 0));
        inject(&corrected(0x2000));
        check_bank(uncorrected(0).status | OVER, 0x1000, "afterwards");
    }
);

// The same: "Uncorrected errors are not written over previous valid uncorrected errors."
test!(
    uncorrected_twice,
    "An uncorrected error is not written over another one, and sets OVER.",
    || {
        set_up(0);
        check_mc(&uncorrected(0x1000), "the first error");
        check_ok!(wrmsr(MCG_STATUS, 0));
        check_mc(&uncorrected(0x2000), "the second error");
        check_bank(uncorrected(0).status | OVER, 0x1000, "afterwards");
    }
);

test!(status_of_cpu, "A #MC has the host's IA32_MCG_STATUS, which software clears.", || {
    set_up(0);
    for status in [MCIP, MCIP | RIPV, MCIP | 2] {
        check_mc(&kvm::Mce { mcg_status: status, ..uncorrected(0x1000) }, "the error");
        check_eq!(rdmsr(MCG_STATUS), Ok(status), "IA32_MCG_STATUS");
        check_ok!(wrmsr(MCG_STATUS, 0), "clearing it");
        check_eq!(rdmsr(MCG_STATUS), Ok(0), "IA32_MCG_STATUS, cleared");
        check_ok!(wrmsr(bank(1, STATUS), 0));
    }
});

// "Recovery of Uncorrected Recoverable (UCR) Errors".
test!(recoverable, "Errors that software can recover from are a #MC with their S and AR.", || {
    if set_up(SER_P) & SER_P == 0 {
        skip!("this KVM has no software error recovery (MCG_SER_P)");
    }
    for bits in [UC | S, UC | S | AR] {
        let mce = kvm::Mce { mcg_status: MCIP | RIPV, ..error(bits | 0xc0, 0x3000) };
        check_mc(&mce, "the error");
        check_bank(mce.status, 0x3000, "after it");
        check_ok!(wrmsr(MCG_STATUS, 0));
        check_ok!(wrmsr(bank(1, STATUS), 0));
    }
});

/// Checks that an uncorrected error shuts the CPU down.
fn check_shutdown(what: &str) {
    let set = || lab::set(kvm::X86_SET_MCE, &uncorrected(0x2000));
    let exit = check_err!(lab::until_exit(lab::kind::SHUTDOWN, set), "{what}");
    check_eq!(exit.kind, lab::kind::SHUTDOWN, "{what}");
}

// "IA32_MCG_STATUS MSR", MCIP: "a second machine-check event while this bit is set will cause the processor
// to enter a shutdown state".
test!(in_progress, "An uncorrected error while MCIP is set shuts down.", || {
    set_up(0);
    check_mc(&uncorrected(0x1000), "the first error");
    check_eq!(check_ok!(rdmsr(MCG_STATUS)) & MCIP, MCIP, "MCIP");
    check_shutdown("the second error");
});

// SDM volume 3, "Control Registers", CR4.MCE; APM 9.3.1.
test!(
    disabled,
    "An uncorrected error while CR4.MCE is clear shuts down; a corrected one does not.",
    || {
        set_up(0);
        check_ok!(reg::set_cr4(reg::cr4() & !CR4_MCE));
        inject(&corrected(0x1000));
        check_shutdown("an uncorrected error");
    }
);

// "IA32_MCi_CTL MSRs" and "IA32_MCG_CTL MSR": a clear bit disables signaling of its errors.
test!(
    signaling_off,
    "With its bank's or all signaling off, an uncorrected error is no #MC.",
    || {
        let supported = set_up(CTL_P);
        check_ok!(wrmsr(bank(1, CTL), 0));
        inject(&uncorrected(0x1000));
        check_eq!(rdmsr(MCG_STATUS), Ok(0), "IA32_MCG_STATUS, the bank off");
        check_ok!(wrmsr(bank(1, CTL), u64::MAX));
        if supported & CTL_P != 0 {
            check_ok!(wrmsr(MCG_CTL, 0));
            inject(&uncorrected(0x1000));
            check_eq!(rdmsr(MCG_STATUS), Ok(0), "IA32_MCG_STATUS, all off");
            check_ok!(wrmsr(MCG_CTL, u64::MAX));
        }
        check_mc(&uncorrected(0x1000), "with both on");
    }
);

// "IA32_MCi_STATUS MSRS" and "IA32_MCi_ADDR MSRs".
test!(
    status_write,
    "IA32_MCi_STATUS can be cleared; writing ones is #GP, but for AMD's under HWCR.",
    || {
        set_up(0);
        inject(&corrected(0x1000));
        for value in [1, VAL, u64::MAX] {
            check_trap!(wrmsr(bank(1, STATUS), value), GP, 0, "{value:#x} to IA32_MC1_STATUS");
        }
        check_bank(corrected(0).status, 0x1000, "after refused writes");
        check_ok!(wrmsr(bank(1, STATUS), 0));
        check_eq!(rdmsr(bank(1, STATUS)), Ok(0), "status, cleared");
    }
);

// "IA32_MCi_ADDR MSRs" and "IA32_MCi_MISC MSRs": "writing 1s to them will cause a general-protection exception".
test!(address_write, "Writing ones to IA32_MCi_ADDR and IA32_MCi_MISC is #GP.", || {
    set_up(0);
    inject(&corrected(0x1000));
    for register in [ADDR, MISC] {
        check_trap!(wrmsr(bank(1, register), 1), GP, 0, "1 to IA32_MC1_CTL + {register}");
        check_ok!(wrmsr(bank(1, register), 0), "0 to IA32_MC1_CTL + {register}");
    }
});

/// An uncorrected error that needs no action, which is signaled as corrected ones are.
fn no_action(addr: u64) -> kvm::Mce {
    error(UC | 0x9f, addr)
}

/// Four banks with CMCI, of which bank 1 interrupts on [`VECTOR`].
fn with_cmci() -> apic::Apic {
    let supported = set_up(CMCI_P | SER_P);
    check!(supported & CMCI_P != 0, "MCG_CMCI_P");
    let apic = apic::set_mode(apic::Mode::XApic);
    apic.enable();
    irq::count_only(VECTOR);
    apic.write(LVT_CMCI, VECTOR.into());
    check_ok!(wrmsr(CTL2_0 + 1, CMCI_EN | 1));
    apic
}

// "Corrected Machine Check Error Interrupt" and "Detection of Software Error Recovery Support" (UCNA).
test!(
    interrupt,
    "An uncorrected error that needs no action interrupts by LVT CMCI, and is no #MC.",
    || {
        with_cmci();
        inject(&no_action(0x1000));
        check_bank(no_action(0).status, 0x1000, "after the error");
        check!(irq::wait_for(VECTOR, 1, 10_000_000), "no interrupt");
        irq::let_in(100);
        check_eq!(irq::count(VECTOR), 1, "interrupts");
        check_eq!(rdmsr(MCG_STATUS), Ok(0), "IA32_MCG_STATUS");
    }
);

test!(
    interrupt_off,
    "CMCI does not come from a bank that it is off in, nor through a masked LVT.",
    || {
        let apic = with_cmci();
        check_ok!(wrmsr(CTL2_0 + 1, 1));
        inject(&no_action(0x1000));
        irq::let_in(1_000);
        check_eq!(irq::count(VECTOR), 0, "interrupts of a bank that it is off in");
        check_ok!(wrmsr(CTL2_0 + 1, CMCI_EN | 1));
        apic.write(LVT_CMCI, apic::LVT_MASKED | u32::from(VECTOR));
        inject(&no_action(0x2000));
        irq::let_in(1_000);
        check_eq!(irq::count(VECTOR), 0, "interrupts through a masked LVT");
        apic.write(LVT_CMCI, VECTOR.into());
        inject(&no_action(0x3000));
        check!(irq::wait_for(VECTOR, 1, 10_000_000), "no interrupt with both on");
    }
);

// "IA32_MCi_CTL2 MSRs": bits 63:31 and 29:15 are reserved; SDM volume 4: there with MCG_CMCI_P.
test!(control_2, "IA32_MCi_CTL2 keeps threshold and CMCI_EN, and refuses reserved bits.", || {
    with_cmci();
    for n in 0..BANKS {
        check_ok!(wrmsr(CTL2_0 + n, CMCI_EN | 0x7fff));
        check_eq!(rdmsr(CTL2_0 + n), Ok(CMCI_EN | 0x7fff), "IA32_MC{n}_CTL2");
        for bit in [15, 29, 31, 32, 63] {
            check_trap!(wrmsr(CTL2_0 + n, 1 << bit), GP, 0, "bit {bit} of IA32_MC{n}_CTL2");
        }
    }
    set_up(0);
    check_trap!(rdmsr(CTL2_0), GP, 0, "IA32_MC0_CTL2 without MCG_CMCI_P");
    check_trap!(wrmsr(CTL2_0, 0), GP, 0, "a write without MCG_CMCI_P");
});
