//! The TSC as the host makes it: its rate (KVM_SET_TSC_KHZ), its offset (KVM_VCPU_TSC_OFFSET) and what the
//! guest's own writes do to both.
//!
//! Linux, Documentation/virt/kvm/api.rst, 4.55 and 4.56, and devices/vcpu.rst, KVM_VCPU_TSC_CTRL; Intel SDM
//! volume 3, 18.17 and 26.3; AMD APM volume 2, 13.2.4 and 15.30.5.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod offset;
mod rates;
mod scaled;
mod unscaled;

use payload_rt::clock::{self, Sample};
use payload_rt::lab::{self, Errno, kvm};
use payload_rt::time::rdtsc_ordered;
use payload_rt::*;

/// The PM timer (ACPI 6.5, 4.8.3.3).
const PM_TIMER: u16 = 0x608;
const PM_HZ: u64 = 3_579_545;
const PM_MASK: u64 = 0xff_ffff;
/// Ticks of it that a rate is measured over: 20 ms.
const INTERVAL: u64 = PM_HZ / 50;
/// By how many millionths clocks of one machine may differ.
const PPM: u64 = 1000;

const SECOND: u64 = 1_000_000_000;
/// MSR_KVM_SYSTEM_TIME_NEW (msr.rst).
const SYSTEM_TIME: u32 = 0x4b56_4d01;

fn pm_timer() -> u64 {
    port::in32(PM_TIMER).into()
}

/// The rate that KVM says this vCPU's TSC has, in kHz.
fn khz() -> u64 {
    check_ok!(lab::call(kvm::GET_TSC_KHZ), "KVM_GET_TSC_KHZ") as u64
}

/// Sets the rate of this vCPU's TSC.
fn set_khz(khz: u64) -> Result<(), Errno> {
    lab::call_with(kvm::SET_TSC_KHZ, khz).map(|_| ())
}

/// Whether KVM says that it scales TSCs. It does so by hardware alone.
fn scales() -> bool {
    lab::check_extension(kvm::cap::TSC_CONTROL) != 0
}

/// Samples of the PM timer with [`INTERVAL`] in between.
fn samples() -> (Sample, Sample) {
    let first = clock::sample(pm_timer);
    while pm_timer().wrapping_sub(first.value) & PM_MASK < INTERVAL {
        reg::pause();
    }
    (first, clock::sample(pm_timer))
}

/// Whether a TSC of `khz` fits to what the PM timer counted from one sample to the other.
fn fits((first, last): (Sample, Sample), khz: u64) -> bool {
    let passed = last.value.wrapping_sub(first.value) & PM_MASK;
    // The host may have been away for some wraps of the timer: as many as the TSC leads to expect.
    let tsc = u128::from(last.before.saturating_sub(first.before));
    let expected = (tsc * u128::from(PM_HZ) / u128::from(khz * 1000)) as u64;
    let wraps = (expected + PM_MASK / 2).saturating_sub(passed) / (PM_MASK + 1);
    let ticks = passed + wraps * (PM_MASK + 1);
    match clock::rate(&first, &last, ticks, khz * 1000) {
        Some(rate) => rate.holds(PM_HZ, PPM),
        None => false,
    }
}

/// Checks the TSC's rate against the PM timer. Whatever the host does in between makes the bounds wide, not
/// wrong; a rate is distinguished from others by half of it at most.
fn check_khz(khz: u64, what: &str) {
    let samples = samples();
    check!(fits(samples, khz), "{what}: no TSC of {khz} kHz: {samples:?}");
}

/// Where kvmclock publishes time, and the scale in there.
struct Clock {
    at: u64,
}

impl Clock {
    /// Turns this CPU's clock on, in a page of its own.
    fn on() -> Clock {
        cpuid::KVM_CLOCK.require();
        let clock = Clock { at: frames::alloc().address() };
        clock.renew();
        clock
    }

    /// Turns it on anew: KVM fills the page before the guest goes on.
    fn renew(&self) {
        check_ok!(reg::wrmsr(SYSTEM_TIME, self.at | 1), "turn kvmclock on");
    }

    /// Multiplier and shift.
    fn scale(&self) -> (u32, i8) {
        let mul = check_ok!(mem::read::<u32>(self.at + 24));
        (mul, check_ok!(mem::read::<u8>(self.at + 28)) as i8)
    }

    /// The rate of the TSC that they are for, in Hz.
    fn hz(&self) -> u64 {
        let (mul, shift) = self.scale();
        check!(mul != 0, "kvmclock's multiplier is 0");
        let hz = (u128::from(SECOND) << 32) / u128::from(mul);
        (if shift < 0 { hz << -shift } else { hz >> shift }) as u64
    }

    /// Nanoseconds.
    fn now(&self) -> u64 {
        let word = |offset| check_ok!(mem::read::<u64>(self.at + offset));
        loop {
            let version = check_ok!(mem::read::<u32>(self.at));
            let (timestamp, system, (mul, shift)) = (word(8), word(16), self.scale());
            let passed = rdtsc_ordered().wrapping_sub(timestamp);
            let passed = if shift < 0 { passed >> -shift } else { passed << shift };
            let now = system + ((u128::from(passed) * u128::from(mul)) >> 32) as u64;
            if version.is_multiple_of(2) && check_ok!(mem::read::<u32>(self.at)) == version {
                return now;
            }
        }
    }
}

/// Checks that KVM says `khz`, and kvmclock is made for it, to the thousandth.
fn check_told(wanted: u64, clock: &Clock, what: &str) {
    check_eq!(khz(), wanted, "{what}: KVM_GET_TSC_KHZ");
    clock.renew();
    let hz = clock.hz();
    check!(hz.abs_diff(wanted * 1000) <= wanted, "{what}: kvmclock is for {hz} Hz");
}
