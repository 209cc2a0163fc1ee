//! Clocks: the reference counter, the reference TSC page, frequencies (TLFS, Timers).

use crate::*;
use payload_rt::apic::{Register, Timer};
use payload_rt::time::{rdtsc_ordered, tsc_hz};
use payload_rt::{check_eq, clock, fail, smp, test, time};

/// By how many millionths clocks of one machine may differ.
const PPM: u64 = 1000;
/// How long rates are measured, in microseconds.
const INTERVAL: u64 = 20_000;

/// What the page and the MSR may differ by, in units of 100 ns: roundings of either.
const ROUNDING: i64 = 2;

test!(counter_rate, "The reference counter goes on by 10 MHz.", || {
    let hz = tsc_hz();
    let first = clock::sample(now);
    time::delay(INTERVAL);
    let last = clock::sample(now);
    check!(last.value > first.value, "from {} to {}", first.value, last.value);
    let Some(rate) = clock::rate(&first, &last, last.value - first.value, hz) else {
        fail!("the samples overlap");
    };
    check!(rate.holds(SECOND, PPM), "{rate}");
});

test!(counter_monotonic, "The reference counter never goes back, on no processor.", || {
    let cpus = smp::start();
    let mut last = now();
    for round in 0..100 {
        for cpu in 0..cpus {
            let next = smp::run_on(cpu, now);
            check!(next >= last, "at cpu {cpu}, round {round}: {next} after {last}");
            last = next;
        }
    }
});

test!(counter_is_fixed, "The reference counter cannot be written.", || {
    refused(TIME_REF_COUNT, 0);
    refused(TIME_REF_COUNT, now() + SECOND);
});

/// The reference TSC page.
struct Page(u64);

impl Page {
    fn start() -> Page {
        let at = page();
        write(REFERENCE_TSC, at | 1);
        check_eq!(read(REFERENCE_TSC), at | 1);
        Page(at)
    }

    /// The sequence; ends the test if the page tells to use the MSR.
    fn sequence(&self) -> u32 {
        match word(self.0) {
            0 => {
                payload_rt::skip!("the host's clock is no TSC: the page says so by its sequence 0")
            }
            sequence => sequence,
        }
    }

    /// The time by the page.
    fn now(&self) -> i64 {
        loop {
            let sequence = self.sequence();
            let (scale, offset): (u64, u64) = (word(self.0 + 8), word(self.0 + 16));
            let tsc = rdtsc_ordered();
            if word::<u32>(self.0) == sequence {
                return ((u128::from(tsc) * u128::from(scale)) >> 64) as i64 + offset as i64;
            }
        }
    }

    /// Checks that the page and the MSR agree on this processor.
    fn agrees(&self) {
        for _ in 0..100 {
            let before = self.now();
            let counter = now() as i64;
            let after = self.now();
            check!(
                before - ROUNDING <= counter && counter <= after + ROUNDING,
                "the counter is {counter}, and the page {before} before it and {after} after it"
            );
        }
    }
}

test!(tsc_page_agrees, "The reference TSC page tells the time of the counter.", || {
    let page = Page::start();
    check!(page.sequence() != u32::MAX, "the sequence is all ones");
    page.agrees();
});

test!(tsc_page_everywhere, "The reference TSC page holds on every processor.", || {
    let page = Page::start();
    page.sequence();
    let cpus = smp::start();
    check!(cpus >= 2, "{cpus} CPUs: the case must give the machine two");
    for cpu in 1..cpus {
        smp::run_on(cpu, || page.agrees());
    }
    let mut last = page.now();
    for cpu in (0..cpus).cycle().take(50) {
        let next = smp::run_on(cpu, || page.now());
        check!(next >= last, "at cpu {cpu}: {next} after {last}");
        last = next;
    }
});

test!(tsc_page_scale, "The scale of the reference TSC page is that of the TSC.", || {
    let page = Page::start();
    page.sequence();
    // scale / 2^64 units of 100 ns for each tick.
    let scale: u64 = word(page.0 + 8);
    check!(scale != 0, "the scale is 0");
    let hz = ((u128::from(SECOND) << 64) / u128::from(scale)) as u64;
    let expected = tsc_hz();
    let off = hz.abs_diff(expected) * 1_000_000 / expected;
    check!(off <= PPM, "{hz} Hz by the page, {expected} measured");
});

test!(tsc_page_off, "The reference TSC page can be switched off and put elsewhere.", || {
    let first = Page::start();
    write(REFERENCE_TSC, 0);
    check_eq!(read(REFERENCE_TSC), 0);
    let second = Page::start();
    check!(first.0 != second.0, "one page");
    second.agrees();
});

test!(frequency_of_tsc, "TSC_FREQUENCY is the TSC's rate, and cannot be written.", || {
    let (told, measured) = (read(TSC_FREQUENCY), tsc_hz());
    let off = told.abs_diff(measured) * 1_000_000 / measured;
    check!(off <= PPM, "{told} Hz, and {measured} measured");
    refused(TSC_FREQUENCY, told);
});

test!(frequency_of_apic, "APIC_FREQUENCY is the APIC timer's rate, and cannot be written.", || {
    let apic = apic::local();
    apic.enable();
    apic.set_timer(Timer::OneShot, 0x50);
    apic.start_timer(u32::MAX);
    let left = || u64::from(u32::MAX - apic.read(Register::TIMER_CURRENT));
    let first = clock::sample(left);
    time::delay(INTERVAL);
    let last = clock::sample(left);
    let Some(rate) = clock::rate(&first, &last, last.value - first.value, tsc_hz()) else {
        fail!("the samples overlap");
    };
    let told = read(APIC_FREQUENCY);
    check!(rate.holds(told, PPM), "{told} Hz, and {rate} measured");
    refused(APIC_FREQUENCY, told);
});

// Re-enlightenment: what a guest is told after it was moved to another TSC.
test!(reenlightenment, "Re-enlightenment and TSC emulation are off, and can be set up.", || {
    for msr in [REENLIGHTENMENT_CONTROL, TSC_EMULATION_CONTROL, TSC_EMULATION_STATUS] {
        check_eq!(read(msr), 0, "MSR {msr:#x} after a reset");
    }
    // A vector and the enable bit; a target processor.
    write(REENLIGHTENMENT_CONTROL, 1 << 16 | 0x51);
    check_eq!(read(REENLIGHTENMENT_CONTROL), 1 << 16 | 0x51);
    write(TSC_EMULATION_CONTROL, 1);
    check_eq!(read(TSC_EMULATION_CONTROL), 1);
    // Only the hypervisor sets what is emulated.
    refused(TSC_EMULATION_STATUS, 1);
    write(TSC_EMULATION_STATUS, 0);
});
