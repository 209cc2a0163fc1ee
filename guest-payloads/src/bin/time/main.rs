//! The clocks of a PC against each other: TSC, ACPI PM timer, PIT, local APIC timer.
//!
//! Rates are compared by bounds ([`clock`]): a sample knows between which values of the TSC it was
//! taken, so what an exit costs and how busy the host is cannot make a right clock look wrong. On
//! top come [`PPM`] millionths: a host's clocks are disciplined by up to 500 against each other.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod tsc;

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::apic::{self, Register, Timer};
use payload_rt::clock::{self, Sample};
use payload_rt::line::{self, Through, Trigger};
use payload_rt::time::{rdtsc_ordered, tsc_hz};
use payload_rt::*;

/// The PM timer (ACPI 6.5, 4.8.3.3).
const PM_TIMER: u16 = 0x608;
const PM_HZ: u64 = 3_579_545;
const PM_MASK: u64 = 0xff_ffff;
/// PM1 status, enable and control (ACPI 6.5, 4.8.3.1 and 4.8.3.2).
const PM1_STATUS: u16 = 0x600;
const PM1_ENABLE: u16 = 0x602;
const PM1_CONTROL: u16 = 0x604;
/// Ticks a second of the PIT (Intel 8254).
const PIT_HZ: u64 = 1_193_182;
/// By how many millionths clocks of one machine may differ.
const PPM: u64 = 1000;
/// How long rates are measured, in microseconds.
const INTERVAL: u64 = 20_000;

fn pm_timer() -> u64 {
    port::in32(PM_TIMER).into()
}

/// Ticks from one sample to the next of a counter that wraps after `mask`: the number nearest to
/// what the TSC leads to expect, as the host may have had other things to do for some wraps.
fn ticks(first: &Sample, last: &Sample, mask: u64, hz: u64) -> u64 {
    let passed = last.value.wrapping_sub(first.value) & mask;
    let tsc = u128::from(last.before.saturating_sub(first.before));
    let expected = (tsc * u128::from(hz) / u128::from(tsc_hz())) as u64;
    let wraps = (expected + mask / 2).saturating_sub(passed) / (mask + 1);
    passed + wraps * (mask + 1)
}

/// Ticks of the PM timer from one sample to the next.
fn pm_ticks(first: &Sample, last: &Sample) -> u64 {
    ticks(first, last, PM_MASK, PM_HZ)
}

/// Two samples of a clock, [`INTERVAL`] apart.
fn two_samples(read: fn() -> u64) -> (Sample, Sample) {
    let first = clock::sample(read);
    time::delay(INTERVAL);
    (first, clock::sample(read))
}

/// Read `i` of a counter must be behind the one before it, by no more than the TSC allows.
fn check_forward(what: &str, i: usize, (last, now): (&Sample, &Sample), (mask, hz): (u64, u64)) {
    let passed = now.value.wrapping_sub(last.value) & mask;
    let tsc = u128::from(now.after - last.before);
    let most = (tsc * u128::from(hz) / u128::from(tsc_hz())) as u64;
    let most = most + most * PPM / 1_000_000 + 2;
    check!(passed <= most, "read {i} of {what}: {passed} ticks on, at most {most} by the TSC");
}

/// The clock's rate must be `hz`; TSC ticks are taken to be `tsc` a second.
fn check_rate(what: &str, (first, last): (Sample, Sample), ticks: u64, hz: u64, tsc: u64) {
    let Some(rate) = clock::rate(&first, &last, ticks, tsc) else {
        fail!("{what}: samples {first:?} and {last:?} overlap")
    };
    check!(rate.holds(hz, PPM), "{what}: {rate} by a TSC of {tsc} Hz, must be {hz} Hz");
}

test!(tsc_rate, "The TSC's rate, as the guest is told it, is its rate by the PM timer.", || {
    let hz = tsc_hz();
    let (first, last) = two_samples(pm_timer);
    check_rate("PM timer", (first, last), pm_ticks(&first, &last), PM_HZ, hz);
    report::value("tsc_hz", hz);
});

// SDM volume 2, CPUID leaf 0x15; leaf 0x40000010 is the one that VMware defined and others took:
// kHz of the TSC and of the local APIC timer's clock.
test!(cpuid_rates, "CPUID leaves that tell the TSC's rate agree with the PM timer.", || {
    let crystal = cpuid::get(0x15, 0).and_then(|words| {
        let [divider, factor, hz] = [words.eax, words.ebx, words.ecx].map(u64::from);
        (divider != 0 && factor != 0 && hz != 0).then(|| hz * factor / divider)
    });
    let timing = cpuid::get(0x4000_0010, 0).map(|words| u64::from(words.eax) * 1000);
    let samples = two_samples(pm_timer);
    let mut told = 0;
    for (what, hz) in [("leaf 0x15", crystal), ("leaf 0x40000010", timing)] {
        let Some(hz) = hz.filter(|&hz| hz != 0) else { continue };
        check_rate(what, samples, pm_ticks(&samples.0, &samples.1), PM_HZ, hz);
        told += 1;
    }
    if told == 0 {
        skip!("CPUID has neither leaf 0x15 with a crystal's rate nor leaf 0x40000010");
    }
});

// The PIT's channel 0, mode 2: the count goes down by one a tick and starts over at 65536.
fn pit_count() -> u64 {
    port::out8(0x43, 0); // latch the count of channel 0
    let low = port::in8(0x40);
    u64::from(low) | u64::from(port::in8(0x40)) << 8
}

test!(pit_channel_0, "The PIT's channel 0 counts 1.193182 MHz by the TSC.", || {
    port::out8(0x43, 0b0011_0100); // channel 0, both bytes, mode 2
    port::out8(0x40, 0);
    port::out8(0x40, 0);
    // As a clock that goes up.
    let up = || 0x1_0000 - pit_count();
    let first = clock::sample(up);
    time::delay(INTERVAL);
    let last = clock::sample(up);
    let passed = ticks(&first, &last, 0xffff, PIT_HZ);
    check_rate("PIT channel 0", (first, last), passed, PIT_HZ, tsc_hz());
    let mut last = last;
    for i in 0..100 {
        let before = rdtsc_ordered();
        let value = up();
        let now = Sample { value, before, after: rdtsc_ordered() };
        check_forward("the PIT's channel 0", i, (&last, &now), (0xffff, PIT_HZ));
        last = now;
    }
});

test!(
    pit_channel_2,
    "A one-shot of the PIT's channel 2 lasts as long by PM timer and TSC as its count says.",
    || {
        const COUNT: u64 = 0x5000;
        let gate = port::in8(0x61) & !3;
        let least = COUNT * PM_HZ / PIT_HZ * (1_000_000 - PPM) / 1_000_000;
        let mut tries = 0..100;
        let (pm, before) = loop {
            check!(
                tries.next().is_some(),
                "the host is away for {least} ticks in each of 100 tries"
            );
            port::out8(0x61, gate);
            port::out8(0x43, 0b1011_0000); // channel 2, both bytes, mode 0
            port::out8(0x42, COUNT as u8);
            // It starts between these two, and ends between the last low and the first high. By the
            // datasheet the gate starts it; KVM's PIT begins to count when the count is there.
            let pm = pm_timer();
            let before = rdtsc_ordered();
            port::out8(0x42, (COUNT >> 8) as u8);
            let output = port::in8(0x61) & 0x20;
            // So on a busy host it may be over by now.
            if output == 0 || pm_timer().wrapping_sub(pm) & PM_MASK < least {
                check_eq!(output, 0, "the output of channel 2 before the gate opens");
                break (pm, before);
            }
        };
        port::out8(0x61, gate | 1);
        let started = rdtsc_ordered();
        let (mut low, mut high) = (rdtsc_ordered(), 0);
        let ended = time::wait_until(1_000_000, || {
            let asked = rdtsc_ordered();
            if port::in8(0x61) & 0x20 == 0 {
                low = asked;
                return false;
            }
            high = rdtsc_ordered();
            true
        });
        check!(ended, "the output of channel 2 is low a second after a count of {COUNT}");
        let pm = pm_timer().wrapping_sub(pm) & PM_MASK;
        port::out8(0x61, gate);
        let start = Sample { value: 0, before, after: started };
        let end = Sample { value: COUNT, before: low, after: high };
        check_rate("PIT channel 2", (start, end), COUNT, PIT_HZ, tsc_hz());
        check!(pm + 2 >= least, "{pm} ticks of the PM timer around a one-shot of at least {least}");
    }
);

/// What the local APIC timer's clock runs at, if anybody says so: CPUID leaf 0x40000010, or KVM,
/// whose bus cycle takes a nanosecond unless KVM_CAP_X86_APIC_BUS_CYCLES_NS says otherwise (KVM's
/// API documentation), and a VMM that changes it tells by that leaf.
fn apic_hz() -> Option<u64> {
    let told = cpuid::get(0x4000_0010, 0).map(|words| u64::from(words.ebx) * 1000);
    let kvm = &cpuid::signature(0x4000_0000) == b"KVMKVMKVM\0\0\0";
    told.filter(|&hz| hz != 0).or(kvm.then_some(1_000_000_000))
}

// SDM volume 3, 12.5.4: divide configuration, initial and current count.
test!(
    apic_timer_rate,
    "The local APIC timer counts at one rate by the TSC, whatever it is divided by.",
    || {
        fn current() -> u64 {
            apic::local().read(Register::TIMER_CURRENT).into()
        }
        let apic = apic::local();
        apic.enable();
        apic.set_timer(Timer::OneShot, 0x40);
        apic.write(Register::LVT_TIMER, apic::LVT_MASKED | 0x40);
        let mut known = apic_hz();
        for (code, divider) in [
            (0b1011, 1_u64),
            (0b0000, 2),
            (0b0001, 4),
            (0b0010, 8),
            (0b0011, 16),
            (0b1000, 32),
            (0b1001, 64),
            (0b1010, 128),
        ] {
            apic.write(Register::TIMER_DIVIDE, code);
            apic.start_timer(u32::MAX);
            let first = clock::sample(current);
            time::delay(INTERVAL / 4);
            let last = clock::sample(current);
            let ticks = first.value.wrapping_sub(last.value);
            let Some(rate) = clock::rate(&first, &last, ticks, tsc_hz()) else {
                fail!("divided by {divider}: samples {first:?} and {last:?} overlap")
            };
            match known {
                Some(hz) => check!(
                    rate.holds(hz / divider, PPM),
                    "divided by {divider}: {rate}, must be {} Hz",
                    hz / divider
                ),
                None => known = Some((rate.low + rate.high) / 2 * divider),
            }
        }
        apic.start_timer(0);
        report::value("apic_hz", known.unwrap_or(0));
    }
);

test!(tsc_monotonic, "The TSC never goes backwards, ordered or not, and always goes on.", || {
    let start = time::rdtsc();
    let mut last = start;
    for i in 0..5000 {
        let now = if i % 2 == 0 { time::rdtsc() } else { rdtsc_ordered() };
        check!(now >= last, "read {i}: {now:#x} after {last:#x}");
        last = now;
    }
    check!(last > start, "the TSC stands at {start:#x}");
});

test!(
    pm_timer_monotonic,
    "The PM timer goes forward by what the TSC allows, within its 24 bits.",
    || {
        let mut last = clock::sample(pm_timer);
        for i in 0..300 {
            let before = rdtsc_ordered();
            let value = pm_timer();
            let now = Sample { value, before, after: rdtsc_ordered() };
            check_eq!(value & !PM_MASK, 0, "bits of a 24-bit timer above its 24");
            check_forward("the PM timer", i, (&last, &now), (PM_MASK, PM_HZ));
            last = now;
        }
    }
);

test!(pm_timer_read_only, "Writes leave the PM timer as it is.", || {
    let first = clock::sample(pm_timer);
    for value in [0, 0x5a_5a5a, u32::MAX] {
        port::out32(PM_TIMER, value);
    }
    time::delay(INTERVAL / 10);
    let last = clock::sample(pm_timer);
    check_rate("PM timer", (first, last), pm_ticks(&first, &last), PM_HZ, tsc_hz());
});

static SCI_STATUS: AtomicU64 = AtomicU64::new(0);

// ACPI 6.5, 4.8.3.3 and table 4.11: TMR_STS is set whenever the most significant bit changes, which
// is every 2.3 s, and raises the SCI if TMR_EN is set.
test!(
    pm_timer_carry,
    "When the PM timer's top bit changes, TMR_STS is set and the SCI comes.",
    || {
        const SCI: u8 = 9;
        const VECTOR: u8 = 0x50;
        const TOP: u64 = 1 << 23;
        irq::handle(VECTOR, |_| {
            // Some hosts send a level twice: the second finds what the first has cleared.
            SCI_STATUS.fetch_or(port::in16(PM1_STATUS).into(), SeqCst);
            port::out16(PM1_STATUS, 1);
            apic::eoi();
        });
        port::out8(0xb2, 2); // ACPI_ENABLE
        port::out16(PM1_CONTROL, port::in16(PM1_CONTROL) | 1); // SCI_EN
        port::out16(PM1_STATUS, 1);
        let now = pm_timer();
        let left = TOP - now % TOP;
        // Close to the change the status could be that of a change just now.
        check!(left > PM_HZ / 100, "the PM timer's top bit changes while the test starts");
        port::out16(PM1_ENABLE, 1);
        line::connect(SCI, VECTOR, Trigger::Level, Through::IoApic);
        time::sleep((left - PM_HZ / 200) * 1_000_000 / PM_HZ);
        let status = port::in16(PM1_STATUS);
        if pm_timer() & TOP == now & TOP {
            check_eq!(status & 1, 0, "TMR_STS before the top bit changes");
        }
        check!(irq::wait_for(VECTOR, 1, 1_000_000), "no SCI within a second of the change");
        check_eq!(SCI_STATUS.load(SeqCst) & 1, 1, "TMR_STS in the SCI's handler");
        check!(pm_timer() & TOP != now & TOP, "the SCI came before the top bit changed");
        check_eq!(port::in16(PM1_STATUS) & 1, 0, "TMR_STS after 1 was written to it");
    }
);

static LATEST: AtomicU64 = AtomicU64::new(0);
/// By how much a CPU saw the TSC behind what another had published, at most; the CPU; the rounds
/// in which another CPU's value was the latest.
static BEHIND: AtomicU64 = AtomicU64::new(0);
static FOREIGN: AtomicU64 = AtomicU64::new(0);

// A value that a CPU has read and published is a lower bound for what any CPU reads afterwards, if
// their TSCs agree (SDM volume 3, 18.17: with invariant TSCs software takes them for one clock).
test!(
    tsc_across_cpus,
    "A TSC read after another CPU's value was seen is not below that value.",
    || {
        const ROUNDS: usize = 3000;
        static BARRIER: sync::Barrier = sync::Barrier::new();
        let count = smp::start();
        if count < 2 {
            skip!("one CPU");
        }
        smp::on_all(|_| {
            let mut own = 0;
            BARRIER.wait(count);
            for _ in 0..ROUNDS {
                let seen = LATEST.load(SeqCst);
                let now = rdtsc_ordered();
                if seen != own {
                    FOREIGN.fetch_add(1, SeqCst);
                    BEHIND.fetch_max(seen.saturating_sub(now), SeqCst);
                }
                own = now;
                LATEST.fetch_max(now, SeqCst);
            }
        });
        let behind = BEHIND.load(SeqCst);
        check_eq!(behind, 0, "ticks by which a CPU's TSC is behind another's");
        check!(FOREIGN.load(SeqCst) > 0, "no CPU ever saw another's value");
        report::value("exchanges", FOREIGN.load(SeqCst));
    }
);

test!(
    tsc_hand_to_hand,
    "A TSC that is read between two readings on another CPU lies between them.",
    || {
        // SDM volume 3, 18.17: of CPUs that are reset together, all TSCs are the same. One after the
        // other, so that it holds where one processor of the host runs all of them, too.
        let count = smp::start();
        if count < 2 {
            skip!("one CPU");
        }
        for round in 0..20 {
            for cpu in 1..count {
                let before = rdtsc_ordered();
                let there = smp::run_on(cpu, rdtsc_ordered);
                let after = rdtsc_ordered();
                check!(
                    (before..=after).contains(&there),
                    "round {round}: {there} on cpu {cpu}, {before} before it and {after} after it on cpu 0"
                );
            }
        }
    }
);

test!(tsc_in_halt, "The TSC goes on while the CPU is halted.", || {
    let first = clock::sample(pm_timer);
    time::sleep(INTERVAL);
    let last = clock::sample(pm_timer);
    check_rate("PM timer", (first, last), pm_ticks(&first, &last), PM_HZ, tsc_hz());
});
