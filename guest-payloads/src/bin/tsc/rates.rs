//! Rates that each KVM takes, and what it refuses (api.rst, 4.55 KVM_SET_TSC_KHZ).

use crate::{Clock, check_khz, check_told, khz, scales, set_khz};
use payload_rt::lab::{self, Errno, kvm};
use payload_rt::*;

// KVM takes what is within its module's tsc_tolerance_ppm, 250 by itself, for the host's own rate.
test!(
    tolerance,
    "A rate within 250 millionths of the host's is taken without a change of the TSC.",
    || {
        let host = khz();
        let clock = Clock::on();
        let scale = clock.scale();
        for ppm in [-240_i64, -100, 100, 240] {
            let near = host.wrapping_add_signed(host as i64 * ppm / 1_000_000);
            check_ok!(set_khz(near), "{near} kHz");
            check_eq!(khz(), near, "KVM_GET_TSC_KHZ");
            clock.renew();
            check_eq!(clock.scale(), scale, "kvmclock's scale under {near} kHz");
            check_khz(host, "a TSC that is near enough");
        }
        check_ok!(set_khz(host));
        check_told(host, &clock, "the host's own");
    }
);

test!(zero, "A rate of 0 is the host's own.", || {
    let host = khz();
    let clock = Clock::on();
    check_ok!(set_khz(0), "0 kHz");
    check_told(host, &clock, "0 kHz");
    check_khz(host, "0 kHz");
});

/// Rates that no KVM takes: the parameter has 32 bits.
const ABSURD: [u64; 2] = [0x7fff_ffff, 0xffff_ffff];

test!(
    refused,
    "A rate beyond what the processor can scale to is EINVAL, and the TSC goes on.",
    || {
        if !scales() {
            skip!("this KVM scales no TSC: it takes each rate above the host's");
        }
        let host = khz();
        let clock = Clock::on();
        for wrong in ABSURD {
            check_eq!(set_khz(wrong), Err(Errno::EINVAL), "{wrong} kHz");
            clock.renew();
            check!(clock.hz().abs_diff(host * 1000) <= host, "kvmclock is for {} Hz", clock.hz());
            check_khz(host, "after a refused rate");
        }
    }
);

test!(refused_keeps, "What is refused does not show in KVM_GET_TSC_KHZ.", || {
    let host = khz();
    let wrong = if scales() { ABSURD[1] } else { host / 2 };
    check_eq!(set_khz(wrong), Err(Errno::EINVAL), "{wrong} kHz");
    check_eq!(khz(), host, "KVM_GET_TSC_KHZ after {wrong} kHz");
});

// 4.55: as a VM ioctl it sets the rate of vCPUs that are still to come; newer kernels refuse it once there are
// vCPUs.
test!(of_the_vm, "KVM_SET_TSC_KHZ of the VM leaves vCPUs that there are as they are.", || {
    lab::require_cap(kvm::cap::VM_TSC_CONTROL, "VM_TSC_CONTROL");
    let host = khz();
    let of_vm = || check_ok!(lab::call(kvm::VM_GET_TSC_KHZ), "KVM_GET_TSC_KHZ of the VM") as u64;
    check_eq!(of_vm(), host, "the VM's");
    match lab::call_with(kvm::VM_SET_TSC_KHZ, host / 2) {
        Ok(_) => check_eq!(of_vm(), host / 2, "the VM's, afterwards"),
        Err(e) => {
            check_eq!(e, Errno::EINVAL, "once there are vCPUs");
            check_eq!(of_vm(), host, "the VM's, refused");
        }
    }
    check_eq!(khz(), host, "the vCPU's");
    check_khz(host, "the vCPU's TSC");
});

// CPUID is what KVM_SET_CPUID2 gave; who sets the rate has to say so there.
test!(cpuid_stays, "KVM_SET_TSC_KHZ changes no leaf of CPUID.", || {
    let host = khz();
    let leaves = [0x15, 0x16, 0x4000_0001, 0x4000_0010, 0x8000_0007];
    let before = leaves.map(|leaf| cpuid::leaf(leaf, 0));
    // Within the tolerance, which each KVM takes; and beyond it, where it can.
    check_ok!(set_khz(host - host / 10_000));
    check_eq!(leaves.map(|leaf| cpuid::leaf(leaf, 0)), before, "within the tolerance");
    if scales() {
        check_ok!(set_khz(host / 2));
        check_eq!(leaves.map(|leaf| cpuid::leaf(leaf, 0)), before, "at half the rate");
    }
});

// APM volume 2, 15.30.5: only where CPUID has TscRateMsr is there the MSR.
test!(ratio_hidden, "Without TSCRATEMSR in CPUID its MSR is #GP.", || {
    const TSC_RATIO: u32 = 0xc000_0104;
    if cpuid::get(0x8000_000a, 0).is_some_and(|words| words.edx & 1 << 4 != 0) {
        skip!("CPUID has TSCRATEMSR");
    }
    check_trap!(reg::rdmsr(TSC_RATIO), trap::GP, 0, "read");
    check_trap!(reg::wrmsr(TSC_RATIO, 1 << 32), trap::GP, 0, "write");
});
