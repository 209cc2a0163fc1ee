//! KVM's paravirtual time: kvmclock, the wall clock, stolen time; and its kin among the MSRs,
//! paravirtual EOI and asynchronous page faults.
//!
//! After the kernel's Documentation/virt/kvm/x86/msr.rst and cpuid.rst.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod host;
mod others;
mod pairs;
mod place;
mod slots;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use payload_rt::clock;
use payload_rt::cpuid::{Feature, Register::Eax};
use payload_rt::time::rdtsc_ordered;
use payload_rt::*;

const WALL_CLOCK: u32 = 0x11;
const SYSTEM_TIME: u32 = 0x12;
const WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
const SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;

const fn feature(name: &'static str, bit: u8) -> Feature {
    Feature::new(name, 0x4000_0001, 0, Eax, bit)
}
const CLOCKSOURCE: Feature = feature("kvmclock (old MSRs)", 0);
const CLOCKSOURCE_NEW: Feature = cpuid::KVM_CLOCK;

const SECOND: u64 = 1_000_000_000;
const PM_HZ: u64 = 3_579_545;
/// By how many millionths clocks of one machine may differ.
const PPM: u64 = 1000;

/// Where time is published: a page of RAM, with `offset` of the structure in it.
#[derive(Clone, Copy)]
struct Shared {
    at: u64,
}

/// What `pvclock_vcpu_time_info` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Info {
    version: u32,
    tsc_timestamp: u64,
    system_time: u64,
    mul: u32,
    shift: i8,
    flags: u8,
}

impl Shared {
    /// In a page of its own, filled with `byte`.
    fn new(offset: u64, byte: u8) -> Shared {
        let mut page = frames::alloc();
        page.bytes().fill(byte);
        Shared { at: page.address() + offset }
    }

    fn get<T: mem::Word>(self, offset: u64) -> T {
        check_ok!(mem::read(self.at + offset))
    }

    /// What is there, by the protocol: the version is even, and the same before and after.
    fn info(self) -> Info {
        for _ in 0..1000 {
            let version = self.get(0);
            let info = Info {
                version,
                tsc_timestamp: self.get(8),
                system_time: self.get(16),
                mul: self.get(24),
                shift: self.get::<u8>(28) as i8,
                flags: self.get(29),
            };
            if version.is_multiple_of(2) && self.get::<u32>(0) == version {
                return info;
            }
        }
        fail!("the version at {:#x} is odd or changes a thousand times", self.at);
    }

    /// Nanoseconds since the machine was started, by kvmclock.
    fn now(self) -> u64 {
        loop {
            let info = self.info();
            let tsc = rdtsc_ordered();
            if self.get::<u32>(0) == info.version {
                return info.at(tsc);
            }
        }
    }

    /// Checks that all bytes of the page but `len` from here still hold `byte`.
    fn check_around(self, len: u64, byte: u8) {
        let page = self.at & !(frames::PAGE - 1);
        for at in (page..page + frames::PAGE).step_by(4) {
            let word: u32 = check_ok!(mem::read(at));
            let inside = (self.at..self.at + len).contains(&at);
            check!(
                inside || word == u32::from_ne_bytes([byte; 4]),
                "{word:#x} was written at {at:#x}, outside of the {len} bytes at {:#x}",
                self.at
            );
        }
    }
}

impl Info {
    /// The system time when the TSC was `tsc`.
    fn at(&self, tsc: u64) -> u64 {
        let delta = u128::from(tsc.wrapping_sub(self.tsc_timestamp));
        let shifted = if self.shift < 0 { delta >> -self.shift } else { delta << self.shift };
        self.system_time.wrapping_add(((shifted * u128::from(self.mul)) >> 32) as u64)
    }
}

fn write(msr: u32, value: u64) {
    check_ok!(reg::wrmsr(msr, value), "write {value:#x} to MSR {msr:#x}");
}

fn read(msr: u32) -> u64 {
    check_ok!(reg::rdmsr(msr), "read MSR {msr:#x}")
}

/// Turns this CPU's kvmclock on, in a page of its own; skips the test without one.
fn clock() -> Shared {
    CLOCKSOURCE_NEW.require();
    let shared = Shared::new(0x40, 0);
    write(SYSTEM_TIME_NEW, shared.at | 1);
    shared
}

/// The MSR pairs: what CPUID calls them, wall clock, system time.
const PAIRS: [(Feature, u32, u32); 2] =
    [(CLOCKSOURCE, WALL_CLOCK, SYSTEM_TIME), (CLOCKSOURCE_NEW, WALL_CLOCK_NEW, SYSTEM_TIME_NEW)];

test!(
    enable_and_disable,
    "Each pair of MSRs turns kvmclock on, with valid contents at once, and off again.",
    || {
        let mut tried = 0;
        for (feature, _, msr) in PAIRS {
            if !feature.present() {
                continue;
            }
            tried += 1;
            check_eq!(read(msr), 0, "MSR {msr:#x} before it was written");
            // Garbage with an odd version must not stay.
            let shared = Shared::new(0x3e0, 0xff);
            write(msr, shared.at | 1);
            check_eq!(read(msr), shared.at | 1, "MSR {msr:#x}");
            let info = shared.info();
            check!(info.mul != 0 && (-31..=31).contains(&info.shift), "{info:x?}");
            check!(info.tsc_timestamp <= rdtsc_ordered(), "{info:x?}: a TSC of the future");
            shared.check_around(32, 0xff);
            write(msr, 0);
            check_eq!(read(msr), 0, "MSR {msr:#x} after 0 was written");
            let last = shared.get::<u64>(16);
            // What turned off is told nothing more, also when another place is.
            let other = Shared::new(0, 0);
            write(msr, other.at | 1);
            check!(other.info().mul != 0, "the second place at {:#x} was not filled", other.at);
            check_eq!(shared.get::<u64>(16), last, "system time at the place turned off");
            write(msr, 0);
        }
        if tried == 0 {
            skip!("no kvmclock in CPUID");
        }
    }
);

test!(pairs_are_one, "Old and new MSRs publish the same clock.", || {
    if !(CLOCKSOURCE.present() && CLOCKSOURCE_NEW.present()) {
        skip!("CPUID does not have both pairs");
    }
    let (old, new) = (Shared::new(0, 0), Shared::new(0, 0));
    write(SYSTEM_TIME, old.at | 1);
    let first = old.now();
    write(SYSTEM_TIME, 0);
    write(SYSTEM_TIME_NEW, new.at | 1);
    let second = new.now();
    // A new registration may take the clock's base anew, by less than a microsecond.
    check!(second + 1000 >= first, "{second} ns by the new MSR after {first} ns by the old");
    check!(second - first < SECOND, "{second} ns by the new MSR, {first} ns by the old");
});

test!(
    version,
    "Each registration publishes a new, even version; contents hold while it stays.",
    || {
        let shared = clock();
        let mut last = shared.get::<u32>(0);
        check_eq!(last % 2, 0, "the version while the CPU runs");
        for _ in 0..20 {
            write(SYSTEM_TIME_NEW, 0);
            write(SYSTEM_TIME_NEW, shared.at | 1);
            let info = shared.info();
            check_eq!(shared.get::<u32>(0) % 2, 0, "the version while the CPU runs");
            check!(info.version != last, "the version is {last} before and after a registration");
            last = info.version;
        }
        let mut seen = shared.info();
        for _ in 0..200 {
            let info = shared.info();
            if info.version == seen.version {
                check_eq!(info, seen, "contents under one version");
            }
            seen = info;
        }
    }
);

test!(
    flags,
    "Flags are those that the documentation knows; a fresh guest was not stopped.",
    || {
        let shared = clock();
        let info = shared.info();
        check_eq!(info.flags & !3, 0, "flags that nobody defined");
        check_eq!(info.flags & 2, 0, "the flag of a guest that was stopped");
        check_eq!(shared.get::<u32>(4), 0, "padding behind the version");
        check_eq!(shared.get::<u16>(30), 0, "padding behind the flags");
        report::value("tsc_stable", (info.flags & 1).into());
    }
);

test!(rate, "kvmclock goes on by nanoseconds, as the PM timer measures them.", || {
    let shared = clock();
    let first = clock::sample(|| port::in32(0x608).into());
    let start = shared.now();
    time::delay(20_000);
    let end = shared.now();
    let last = clock::sample(|| port::in32(0x608).into());
    // kvmclock was read inside of what the PM timer measured.
    let pm = last.value.wrapping_sub(first.value) & 0xff_ffff;
    let most = (pm + 2) * SECOND / PM_HZ * (1_000_000 + PPM) / 1_000_000;
    check!(end - start <= most, "{} ns by kvmclock within {most} ns", end - start);
    // And the other way round: the PM timer inside of what kvmclock measures.
    let start = shared.now();
    let first = port::in32(0x608);
    time::delay(20_000);
    let last = port::in32(0x608);
    let passed = shared.now() - start;
    let pm = u64::from(last.wrapping_sub(first) & 0xff_ffff);
    let least = pm.saturating_sub(2) * SECOND / PM_HZ * (1_000_000 - PPM) / 1_000_000;
    check!(passed >= least, "{passed} ns by kvmclock around {least} ns");
});

test!(scale, "The scale is the TSC's rate by the PM timer.", || {
    let info = clock().info();
    let hz = (u128::from(SECOND) << 32) / u128::from(info.mul);
    let hz = (if info.shift < 0 { hz << -info.shift } else { hz >> info.shift }) as u64;
    let pm = || u64::from(port::in32(0x608));
    let first = clock::sample(pm);
    time::delay(20_000);
    let last = clock::sample(pm);
    let passed = last.value.wrapping_sub(first.value) & 0xff_ffff;
    let Some(rate) = clock::rate(&first, &last, passed, hz) else { fail!("{first:?}, {last:?}") };
    check!(rate.holds(PM_HZ, PPM), "PM timer: {rate} by a TSC of {hz} Hz, must be {PM_HZ} Hz");
});

test!(monotonic, "kvmclock never goes backwards on one CPU.", || {
    let shared = clock();
    let start = shared.now();
    let mut last = start;
    for i in 0..1000 {
        let now = shared.now();
        check!(now >= last, "read {i}: {now} ns after {last} ns");
        last = now;
    }
    check!(last > start, "kvmclock stands at {start} ns");
});

static LATEST: AtomicU64 = AtomicU64::new(0);
static BEHIND: AtomicU64 = AtomicU64::new(0);
static FOREIGN: AtomicU64 = AtomicU64::new(0);

// The flag says that time is monotonic across CPUs without further ado (msr.rst, flags bit 0).
test!(
    across_cpus,
    "With the stable flag, kvmclock read after another CPU's value was seen is not below it.",
    || {
        const ROUNDS: usize = 500;
        static BARRIER: sync::Barrier = sync::Barrier::new();
        CLOCKSOURCE_NEW.require();
        let count = smp::start();
        if count < 2 {
            skip!("one CPU");
        }
        static UNSTABLE: AtomicU32 = AtomicU32::new(0);
        smp::on_all(|_| {
            let shared = clock();
            if shared.info().flags & 1 == 0 {
                UNSTABLE.fetch_add(1, SeqCst);
            }
            let mut own = 0;
            BARRIER.wait(count);
            for _ in 0..ROUNDS {
                let seen = LATEST.load(SeqCst);
                let now = shared.now();
                if seen != own {
                    FOREIGN.fetch_add(1, SeqCst);
                    BEHIND.fetch_max(seen.saturating_sub(now), SeqCst);
                }
                own = now;
                LATEST.fetch_max(now, SeqCst);
            }
        });
        report::value("exchanges", FOREIGN.load(SeqCst));
        report::value("behind_ns", BEHIND.load(SeqCst));
        let unstable = UNSTABLE.load(SeqCst);
        if unstable != 0 {
            skip!("{unstable} of {count} CPUs have kvmclock without the stable flag");
        }
        check_eq!(BEHIND.load(SeqCst), 0, "ns by which a CPU's kvmclock is behind another's");
        check!(FOREIGN.load(SeqCst) > 0, "no CPU ever saw another's value");
    }
);

/// A number from the RTC's register, in BCD as it comes up.
fn rtc(index: u8) -> u64 {
    port::out8(0x70, index);
    let byte = u64::from(port::in8(0x71));
    (byte >> 4) * 10 + (byte & 15)
}

/// Seconds since 1970 by the RTC.
fn rtc_seconds() -> u64 {
    let read = || [0x32, 9, 8, 7, 4, 2, 0].map(rtc);
    let mut fields = read();
    // Two equal reads are not torn by an update.
    while fields != read() {
        fields = read();
    }
    let [century, year, month, day, hour, minute, second] = fields;
    // Days since 1 March of year 0, then to 1970: March is the first month, so that leap days are
    // at a year's end.
    let (year, month) = (century * 100 + year, (month + 9) % 12);
    let year = if month >= 10 { year - 1 } else { year };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 306 + 5) / 10 + day - 1;
    ((days - 719_468) * 24 + hour) * 3600 + minute * 60 + second
}

test!(
    wall_clock,
    "Wall clock and system time add up to the time of the RTC, by both pairs of MSRs.",
    || {
        let system = clock();
        for (feature, msr, _) in PAIRS {
            if !feature.present() {
                continue;
            }
            let wall = Shared::new(0x100, 0xee);
            write(msr, wall.at);
            let version: u32 = wall.get(0);
            check_eq!(version % 2, 0, "the version of the wall clock by MSR {msr:#x}");
            let (seconds, nanos) = (wall.get::<u32>(4), wall.get::<u32>(8));
            check!(u64::from(nanos) < SECOND, "{nanos} ns in a second");
            wall.check_around(12, 0xee);
            let now = u64::from(seconds) + (u64::from(nanos) + system.now()) / SECOND;
            let rtc = rtc_seconds();
            check!(
                rtc.abs_diff(now) <= 2,
                "wall clock {seconds} s and system time make {now} s, the RTC has {rtc} s"
            );
        }
    }
);

// KVM's msr.rst has time go on from TSC_ADJUST's change; its source says why a page must be
// written anew: "guest's percpu pvclock time could jump".
test!(tsc_adjusted, "kvmclock does not jump when the guest moves its TSC by TSC_ADJUST.", || {
    const TSC_ADJUST: u32 = 0x3b;
    Feature::new("tsc_adjust", 7, 0, cpuid::Register::Ebx, 1).require();
    let shared = clock();
    for value in [1_u64 << 42, 0] {
        let before = shared.now();
        write(TSC_ADJUST, value);
        let after = shared.now();
        check!(after + 1000 >= before, "{after} ns after {before} ns");
        check!(after - before < SECOND, "{after} ns after {before} ns");
    }
});

// CPUID bit 3 of leaf 0x40000001 gone: a VMM may have KVM enforce that (KVM_CAP_ENFORCE_PV_
// FEATURE_CPUID), and then the MSRs are #GP; without, they work. There is nothing in between.
test!(
    hidden,
    "Without kvmclock in CPUID, its MSRs are either all #GP or all what they were.",
    || {
        if CLOCKSOURCE.present() || CLOCKSOURCE_NEW.present() {
            skip!("CPUID has kvmclock: run with --cpu host,-kvmclock,-kvmclock2");
        }
        let mut refused = 0;
        for (_, wall_msr, msr) in PAIRS {
            let (wall, shared) = (Shared::new(0, 0), Shared::new(0, 0));
            let results = [
                reg::rdmsr(msr).map(drop),
                reg::wrmsr(msr, shared.at | 1),
                reg::wrmsr(wall_msr, wall.at),
            ];
            for result in results {
                if let Err(fault) = result {
                    check!(fault.is(trap::GP, 0), "{fault}");
                    refused += 1;
                }
            }
            let told = [shared.get::<u32>(24), wall.get::<u32>(4)];
            match results.iter().filter(|result| result.is_err()).count() {
                0 => check!(told.iter().all(|&word| word != 0), "MSR {msr:#x} was taken in vain"),
                3 => {
                    check_eq!(told, [0, 0], "what MSRs {msr:#x} and {wall_msr:#x}, refused, wrote")
                }
                _ => fail!("MSRs {msr:#x} and {wall_msr:#x}: {results:?}"),
            }
            let _ = reg::wrmsr(msr, 0);
        }
        check!(refused == 0 || refused == 6, "one pair is refused and the other is not");
    }
);

test!(
    bad_addresses,
    "A place where no RAM is, or over a page's edge, harms nothing; a good one works after it.",
    || {
        CLOCKSOURCE_NEW.require();
        let mut edge = frames::alloc();
        edge.bytes().fill(0x77);
        for place in [
            0xd000_0000,
            0xfee0_0000,
            0x000f_ffff_ffff_f000,
            0xffff_ffff_ffff_fff0,
            edge.address() + 0xff0,
            edge.address() + 2,
        ] {
            match reg::wrmsr(SYSTEM_TIME_NEW, place | 1) {
                Ok(()) => {}
                Err(fault) => check!(fault.is(trap::GP, 0), "{place:#x}: {fault}"),
            }
            match reg::wrmsr(WALL_CLOCK_NEW, place) {
                Ok(()) => {}
                Err(fault) => check!(fault.is(trap::GP, 0), "{place:#x}: {fault}"),
            }
        }
        write(SYSTEM_TIME_NEW, 0);
        // At most the structures themselves may be there.
        let start = edge.address();
        for at in (start + 0x24..start + 0xff0).step_by(4) {
            check_eq!(check_ok!(mem::read::<u32>(at)), 0x7777_7777, "at {at:#x}");
        }
        let shared = clock();
        check!(shared.info().mul != 0, "kvmclock does not come back after bad addresses");
        let first = shared.now();
        check!(shared.now() >= first);
    }
);
