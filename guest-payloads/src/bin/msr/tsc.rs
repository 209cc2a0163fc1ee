//! The time-stamp counter's MSRs (SDM volume 3, 19.17; AMD APM volume 2, 13.2.4).

use payload_rt::reg::{TSC, TSC_AUX, rdmsr, wrmsr};
use payload_rt::time::rdtsc_ordered as now;
use payload_rt::trap::GP;
use payload_rt::user::{End, User};
use payload_rt::{asm_code, check, check_eq, check_ok, check_trap, cpuid, smp, test};

const TSC_ADJUST: u32 = 0x3b;
/// More ticks than any test takes, fewer than any change made here.
const SLACK: u64 = 1 << 42;

fn follows(what: &str, from: u64, value: u64) {
    let passed = value.wrapping_sub(from);
    check!(passed < SLACK, "{what} is {value:#x}, must be at or soon after {from:#x}");
}

test!(tsc_read, "RDMSR of the TSC and RDTSC count together.", || {
    let mut last = now();
    for _ in 0..8 {
        let msr = check_ok!(rdmsr(TSC));
        check!(msr >= last, "the MSR reads {msr:#x} after RDTSC gave {last:#x}");
        last = now();
        check!(last >= msr, "RDTSC gives {last:#x} after the MSR read {msr:#x}");
        follows("RDTSC", msr, last);
    }
});

test!(tsc_write, "The TSC counts on from what is written to it, forwards and backwards.", || {
    for value in [1 << 50, 0x1234, u64::MAX >> 2, 0, 1 << 44] {
        check_ok!(wrmsr(TSC, value), "write {value:#x} to the TSC");
        follows("RDTSC", value, now());
        follows("the TSC's MSR", value, check_ok!(rdmsr(TSC)));
    }
});

test!(tsc_adjust, "TSC_ADJUST moves the TSC, and follows a write to the TSC.", || {
    cpuid::TSC_ADJUST.require();
    let adjust = || check_ok!(rdmsr(TSC_ADJUST));
    // What the TSC would be had nobody ever touched it.
    let untouched = || now().wrapping_sub(adjust());
    let start = untouched();
    for value in [1_u64 << 48, 1 << 45, (1_u64 << 45).wrapping_neg(), 0] {
        let before = now().wrapping_sub(adjust());
        check_ok!(wrmsr(TSC_ADJUST, value), "write {value:#x} to TSC_ADJUST");
        check_eq!(adjust(), value, "TSC_ADJUST");
        follows("RDTSC less TSC_ADJUST", before, untouched());
    }
    for value in [1 << 50, 0x1234, 1 << 46] {
        check_ok!(wrmsr(TSC, value), "write {value:#x} to the TSC");
        follows("RDTSC less TSC_ADJUST", start, untouched());
    }
});

// SDM volume 3, 19.17.2: bits 63:32 are reserved. AMD's ignores them.
test!(
    tsc_aux,
    "TSC_AUX keeps 32 bits, and RDTSCP and RDPID give them at CPL 3, on each CPU.",
    || {
        if !cpuid::RDTSCP.present() && !cpuid::RDPID.present() {
            payload_rt::skip!("neither rdtscp nor rdpid in CPUID");
        }
        for cpu in 0..smp::start() {
            smp::run_on(cpu, || {
                let values = [0x8765_4321_u64, 0, 0x1234_5600 + cpu as u64];
                for value in values {
                    check_ok!(wrmsr(TSC_AUX, value), "write {value:#x} on cpu {cpu}");
                    check_eq!(rdmsr(TSC_AUX), Ok(value), "on cpu {cpu}");
                    if cpuid::RDTSCP.present() {
                        let outcome = User::new(asm_code!("rdtscp", "ret")).run();
                        check_eq!(outcome.end, End::Done, "rdtscp on cpu {cpu}");
                        check_eq!(outcome.regs.rcx, value, "RCX of rdtscp on cpu {cpu}");
                    }
                    if cpuid::RDPID.present() {
                        let outcome = User::new(asm_code!("rdpid rax", "ret")).run();
                        check_eq!(outcome.end, End::Done, "rdpid on cpu {cpu}");
                        check_eq!(outcome.regs.rax, value, "rdpid on cpu {cpu}");
                    }
                }
                if super::is_intel() {
                    check_trap!(wrmsr(TSC_AUX, 1 << 32), GP, 0, "write 1 << 32 on cpu {cpu}");
                }
            });
        }
    }
);
