//! The TSC at CPL 3, and what writes to it and to TSC_ADJUST do.

use crate::{PM_HZ, check_rate, pm_ticks, pm_timer, two_samples};
use payload_rt::clock::{self, Sample};
use payload_rt::time::{rdtsc_ordered, tsc_hz};
use payload_rt::user::{End, User};
use payload_rt::*;

/// IA32_TSC_ADJUST (SDM volume 3, 18.17.3).
const TSC_ADJUST: u32 = 0x3b;
/// CPUID.7.0:EBX bit 1.
const HAS_TSC_ADJUST: cpuid::Feature =
    cpuid::Feature::new("tsc_adjust", 7, 0, cpuid::Register::Ebx, 1);

/// What `rdtsc` at CPL 3 gives.
fn cpl3_tsc() -> Result<u64, End> {
    let outcome = User::new(asm_code!("rdtsc", "ret")).run();
    match outcome.end {
        End::Done => Ok(outcome.regs.rax | outcome.regs.rdx << 32),
        other => Err(other),
    }
}

fn check_cpl3(when: &str) {
    let before = rdtsc_ordered();
    let user = match cpl3_tsc() {
        Ok(user) => user,
        Err(end) => fail!("rdtsc at CPL 3 {when}: {end:?}"),
    };
    let after = rdtsc_ordered();
    check!(
        (before..=after).contains(&user),
        "{when}: {user:#x} at CPL 3, between {before:#x} and {after:#x} at CPL 0"
    );
}

test!(tsc_at_cpl3, "`rdtsc` at CPL 3 reads the clock that it reads at CPL 0.", || {
    for _ in 0..20 {
        check_cpl3("as the CPU came up");
    }
});

// SDM volume 2, RDTSC; CR4.TSD in volume 3, 2.5.
test!(
    tsc_disabled_at_cpl3,
    "With CR4.TSD, `rdtsc` at CPL 3 is #GP(0), and works at CPL 0.",
    || {
        let cr4 = reg::cr4();
        check_ok!(reg::set_cr4(cr4 | reg::CR4_TSD));
        let end = cpl3_tsc();
        let Err(End::Trap(fault)) = end else { fail!("rdtsc at CPL 3 under CR4.TSD: {end:x?}") };
        check!(fault.is(trap::GP, 0), "{fault}");
        check_ok!(insn!("rdtsc"; out("eax") _, out("edx") _), "rdtsc at CPL 0 under CR4.TSD");
        check_ok!(reg::set_cr4(cr4));
        check_cpl3("after CR4.TSD was cleared");
    }
);

/// Moves the TSC by what `write` says, and checks that without that it is the clock it was.
fn check_moved(what: &str, write: impl FnOnce() -> i64) {
    let hz = tsc_hz();
    let pm = clock::sample(pm_timer);
    let delta = write();
    let (first, last) = two_samples(pm_timer);
    check_rate(what, (first, last), pm_ticks(&first, &last), PM_HZ, hz);
    // Within a second of the PM timer from where it was, taken back by what it was moved.
    let back = |tsc: u64| tsc.wrapping_sub_signed(delta);
    let passed = back(last.before).wrapping_sub(pm.before);
    check!(passed < hz, "{what}: the TSC went from {:#x} to {:#x}", pm.before, last.before);
    let last = Sample { before: back(last.before), after: back(last.after), ..last };
    check_rate(what, (pm, last), pm_ticks(&pm, &last), PM_HZ, hz);
}

// SDM volume 3, 18.17.3: writing the TSC changes TSC_ADJUST by as much.
test!(
    tsc_write,
    "A write to the TSC takes effect at once and in full, in either direction.",
    || {
        for value in [1 << 44, 1 << 33, 1 << 52] {
            let adjust = || HAS_TSC_ADJUST.present().then(|| check_ok!(reg::rdmsr(TSC_ADJUST)));
            let before = (rdtsc_ordered(), adjust());
            check_ok!(reg::wrmsr(reg::TSC, value), "write {value:#x} to the TSC");
            let after = rdtsc_ordered();
            check!(after >= value, "TSC {after:#x} after {value:#x} was written");
            check!(
                after - value < tsc_hz(),
                "TSC {after:#x} a second after {value:#x} was written"
            );
            let by_msr = check_ok!(reg::rdmsr(reg::TSC));
            let last = rdtsc_ordered();
            check!(
                (after..=last).contains(&by_msr),
                "{by_msr:#x} by rdmsr: {after:#x} to {last:#x}"
            );
            if let (old, Some(adjust_before)) = before
                && let Some(adjust_after) = adjust()
            {
                // It was written when the old TSC was at most a second further than it was read.
                let moved = adjust_after.wrapping_sub(adjust_before);
                let missing = value.wrapping_sub(old).wrapping_sub(moved);
                check!(
                    missing < tsc_hz(),
                    "TSC_ADJUST moved by {moved:#x}: TSC {old:#x} to {value:#x}"
                );
            }
        }
    }
);

test!(
    tsc_write_at_cpl3,
    "After a write to the TSC, CPL 3 reads the clock that CPL 0 reads.",
    || {
        for value in [1 << 44, 1 << 33] {
            check_ok!(reg::wrmsr(reg::TSC, value), "write {value:#x} to the TSC");
            check_cpl3("after a write to the TSC");
        }
    }
);

test!(
    tsc_adjust,
    "TSC_ADJUST starts at 0, reads as written, and moves the TSC by just as much.",
    || {
        HAS_TSC_ADJUST.require();
        check_eq!(check_ok!(reg::rdmsr(TSC_ADJUST)), 0, "TSC_ADJUST after reset");
        let mut adjust = 0_i64;
        for value in [1 << 40, -(1 << 20), 1 << 50, 0] {
            check_moved("TSC_ADJUST", || {
                check_ok!(reg::wrmsr(TSC_ADJUST, value as u64), "write TSC_ADJUST {value:#x}");
                value - adjust
            });
            check_eq!(check_ok!(reg::rdmsr(TSC_ADJUST)), value as u64, "TSC_ADJUST");
            adjust = value;
        }
    }
);

test!(
    tsc_adjust_is_local,
    "TSC_ADJUST on one CPU leaves the other CPUs' TSC and TSC_ADJUST alone.",
    || {
        const DELTA: u64 = 1 << 45;
        HAS_TSC_ADJUST.require();
        if smp::start() < 2 {
            skip!("one CPU");
        }
        check_ok!(reg::wrmsr(TSC_ADJUST, DELTA));
        let own = || rdtsc_ordered().wrapping_sub(DELTA);
        let before = own();
        let (theirs, adjust) = smp::run_on(1, || (rdtsc_ordered(), reg::rdmsr(TSC_ADJUST)));
        let after = own();
        check_eq!(check_ok!(adjust), 0, "TSC_ADJUST of cpu 1");
        check!(
            (before..=after).contains(&theirs),
            "the TSC of cpu 1 is {theirs:#x}, must be from {before:#x} to {after:#x}"
        );
    }
);

// SDM volume 2, RDTSCP: ECX is the low half of IA32_TSC_AUX. At CPL 3, where each host runs it.
test!(tsc_aux, "`rdtscp` and `rdpid` at CPL 3 give the TSC_AUX that CPL 0 wrote.", || {
    if !cpuid::RDTSCP.present() && !cpuid::RDPID.present() {
        skip!("neither rdtscp nor rdpid in CPUID");
    }
    for value in [0, 0x1234_5678, 0xffff_fffe] {
        check_ok!(reg::wrmsr(reg::TSC_AUX, value), "write TSC_AUX");
        check_eq!(check_ok!(reg::rdmsr(reg::TSC_AUX)), value, "TSC_AUX by rdmsr");
        if cpuid::RDTSCP.present() {
            let outcome = User::new(asm_code!("rdtscp", "ret")).run();
            check_eq!(outcome.end, End::Done, "rdtscp at CPL 3");
            check_eq!(outcome.regs.rcx, value, "rcx of rdtscp at CPL 3");
        }
        if cpuid::RDPID.present() {
            let outcome = User::new(asm_code!("rdpid rcx", "ret")).run();
            check_eq!(outcome.end, End::Done, "rdpid at CPL 3");
            check_eq!(outcome.regs.rcx, value, "rdpid at CPL 3");
        }
    }
});
