//! MONITOR and MWAIT: whether they are there, by CPUID, by IA32_MISC_ENABLE and by KVM's quirks (Intel SDM
//! volume 2, MONITOR and MWAIT; Linux, Documentation/virt/kvm/api.rst, KVM_CAP_DISABLE_QUIRKS2).
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::lab::{self, kvm};
use payload_rt::reg::{MISC_ENABLE, rdmsr, wrmsr};
use payload_rt::trap::{Trap, UD};
use payload_rt::*;

/// KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT: IA32_MISC_ENABLE does not change CPUID.
const NO_MWAIT: u64 = 1 << 4;
/// KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS.
const NEVER_UD: u64 = 1 << 6;
/// IA32_MISC_ENABLE: MONITOR and MWAIT are enabled (SDM volume 4, 2.1).
const ENABLE_MONITOR: u64 = 1 << 18;

static WATCHED: AtomicU64 = AtomicU64::new(0);

fn monitor(ecx: u32) -> Result<(), Trap> {
    insn!("monitor"; in("rax") WATCHED.as_ptr(), in("ecx") ecx, in("edx") 0)
}

fn mwait() -> Result<(), Trap> {
    insn!("mwait"; in("eax") 0, in("ecx") 0)
}

/// Whether CPUID says that they are there.
fn shown() -> bool {
    cpuid::leaf(1, 0).ecx & 1 << 3 != 0
}

/// Switches quirks off.
fn without_quirks(quirks: u64) {
    lab::require_cap(kvm::cap::DISABLE_QUIRKS2, "DISABLE_QUIRKS2");
    let can = lab::check_extension(kvm::cap::DISABLE_QUIRKS2);
    if can & quirks != quirks {
        skip!("this KVM can switch off the quirks {can:#x}, {quirks:#x} are wanted");
    }
    check_ok!(lab::enable_cap(kvm::cap::DISABLE_QUIRKS2, quirks));
}

/// Sets or clears the bit of IA32_MISC_ENABLE.
fn enable(on: bool) {
    let old = check_ok!(rdmsr(MISC_ENABLE));
    let new = if on { old | ENABLE_MONITOR } else { old & !ENABLE_MONITOR };
    check_ok!(wrmsr(MISC_ENABLE, new), "IA32_MISC_ENABLE");
    check_eq!(check_ok!(rdmsr(MISC_ENABLE)) & ENABLE_MONITOR, new & ENABLE_MONITOR, "what was set");
}

test!(
    never_ud,
    "By KVM's quirk MONITOR and MWAIT do nothing where CPUID does not show them.",
    || {
        check!(!shown(), "CPUID shows MONITOR");
        check_ok!(monitor(0), "MONITOR");
        check_ok!(mwait(), "MWAIT");
    }
);

test!(without_quirk, "Without that quirk they are #UD where CPUID does not show them.", || {
    without_quirks(NEVER_UD);
    check!(!shown(), "CPUID shows MONITOR");
    check_trap!(monitor(0), UD, 0, "MONITOR");
    check_trap!(mwait(), UD, 0, "MWAIT");
});

// SDM volume 4, IA32_MISC_ENABLE: clearing the bit clears CPUID's, and the instructions are #UD.
test!(
    misc_enable,
    "IA32_MISC_ENABLE shows MONITOR in CPUID and hides it, and they run or are #UD by that.",
    || {
        without_quirks(NO_MWAIT | NEVER_UD);
        for on in [true, false, true] {
            enable(on);
            check_eq!(shown(), on, "CPUID");
            match on {
                true => {
                    check_ok!(monitor(0), "MONITOR");
                    WATCHED.fetch_add(1, SeqCst);
                    check_ok!(mwait(), "MWAIT");
                }
                false => {
                    check_trap!(monitor(0), UD, 0, "MONITOR");
                    check_trap!(mwait(), UD, 0, "MWAIT");
                }
            }
        }
    }
);

test!(
    misc_enable_alone,
    "By KVM's quirk IA32_MISC_ENABLE does not change CPUID, nor what MONITOR does.",
    || {
        without_quirks(NEVER_UD);
        for on in [true, false] {
            enable(on);
            check_eq!(shown(), false, "CPUID");
            check_trap!(monitor(0), UD, 0, "MONITOR");
        }
    }
);

test!(invalid_extensions, "MONITOR with ECX that is not 0 is #GP.", || {
    without_quirks(NO_MWAIT | NEVER_UD);
    enable(true);
    check!(shown(), "CPUID does not show MONITOR");
    check_trap!(monitor(1), trap::GP, 0, "MONITOR with an extension that there is not");
});

test!(loop_ends, "A loop of MONITOR and MWAIT ends by another CPU's store.", || {
    smp::start();
    smp::on_all(|_| ());
    let job = smp::spawn(
        1,
        |_| {
            let mut seen = 0;
            while WATCHED.load(SeqCst) < 100 {
                check_ok!(monitor(0), "MONITOR");
                let now = WATCHED.load(SeqCst);
                if now == seen {
                    check_ok!(mwait(), "MWAIT");
                }
                seen = now;
            }
            seen
        },
        0,
    );
    for _ in 0..100 {
        WATCHED.fetch_add(1, SeqCst);
        time::delay(10);
    }
    check!(job.wait() <= 100, "what it saw last");
});

// KVM_CAP_X86_DISABLE_EXITS: MWAIT (1), HLT (2), PAUSE (4), CSTATE (8), APERFMPERF (16).
test!(exits, "KVM offers exits to switch off, and refuses what are none.", || {
    let offered = lab::check_extension(kvm::cap::X86_DISABLE_EXITS);
    check!(offered != 0, "KVM_CAP_X86_DISABLE_EXITS");
    check_eq!(offered & !0x1f, 0, "what is offered");
    for bit in [8, 31, 40, 63] {
        let set = lab::enable_cap(kvm::cap::X86_DISABLE_EXITS, 1 << bit);
        check_eq!(set, Err(lab::Errno::EINVAL), "bit {bit}");
    }
});
