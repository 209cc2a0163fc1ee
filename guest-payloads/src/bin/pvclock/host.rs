//! The clock from both sides: what the host reads and sets, the guest sees (Linux,
//! Documentation/virt/kvm/api.rst, 4.29 KVM_GET_CLOCK, 4.30 KVM_SET_CLOCK, 4.80 KVM_KVMCLOCK_CTRL).

use crate::{PPM, SECOND, SYSTEM_TIME_NEW, Shared, clock, read, write};
use payload_rt::lab::{self, Errno, kvm};
use payload_rt::time::rdtsc_ordered;
use payload_rt::*;

/// `KVM_CAP_ADJUST_CLOCK`: the flags that KVM_SET_CLOCK takes.
const ADJUST_CLOCK: u32 = 39;
const TSC_STABLE: u32 = 2;
const REALTIME: u32 = 4;
const HOST_TSC: u32 = 8;
/// Of a page: the guest was stopped.
const STOPPED: u8 = 2;

fn host_clock() -> kvm::ClockData {
    check_ok!(lab::get(kvm::GET_CLOCK))
}

fn set_clock(clock: u64) {
    check_ok!(lab::set(kvm::SET_CLOCK, &kvm::ClockData { clock, ..Default::default() }));
}

fn takes(flag: u32) {
    if lab::check_extension(ADJUST_CLOCK) as u32 & flag == 0 {
        skip!("this KVM's clock has no flag {flag:#x}");
    }
}

test!(
    host_agrees,
    "What KVM_GET_CLOCK gives lies between what the guest read before and after.",
    || {
        let shared = clock();
        for _ in 0..20 {
            let (before, host, after) = (shared.now(), host_clock().clock, shared.now());
            // The two are computed from one TSC by two scales, which round.
            check!(host + 2000 >= before, "the host has {host} ns after the guest's {before} ns");
            check!(after + 2000 >= host, "the guest has {after} ns after the host's {host} ns");
        }
    }
);

test!(host_without_guest, "KVM_GET_CLOCK goes on whether or not the guest has a clock.", || {
    let first = host_clock().clock;
    time::delay(500);
    let second = host_clock().clock;
    check!(second > first, "{second} ns after {first} ns");
    let shared = clock();
    check!(shared.now() + 2000 >= second, "the guest's clock begins before {second} ns");
});

test!(set_forward, "A clock that the host sets forward goes on from there.", || {
    let shared = clock();
    let to = shared.now() + 3600 * SECOND;
    set_clock(to);
    let now = shared.now();
    check!((to..to + 60 * SECOND).contains(&now), "{now} ns after it was set to {to} ns");
    check!(shared.now() >= now, "it stands");
});

test!(set_back, "A clock that the host sets back goes on from there.", || {
    let shared = clock();
    set_clock(7200 * SECOND);
    check!(shared.now() >= 7200 * SECOND);
    set_clock(SECOND);
    let now = shared.now();
    check!((SECOND..60 * SECOND).contains(&now), "{now} ns after it was set to a second");
});

test!(set_to_zero, "A clock that the host sets to 0 begins anew.", || {
    let shared = clock();
    set_clock(0);
    let now = shared.now();
    check!(now < 60 * SECOND, "{now} ns after it was set to 0");
    check!(shared.now() >= now);
});

test!(set_while_off, "What the host sets while the clock is off, it has when it is on.", || {
    let shared = clock();
    write(SYSTEM_TIME_NEW, 0);
    set_clock(5000 * SECOND);
    write(SYSTEM_TIME_NEW, shared.at | 1);
    let now = shared.now();
    check!((5000 * SECOND..5060 * SECOND).contains(&now), "{now} ns");
});

test!(
    set_raises_the_version,
    "Each time that is set is published under a new, even version.",
    || {
        let shared = clock();
        let mut last = shared.info().version;
        for n in 1..=5 {
            set_clock(n * 1000 * SECOND);
            let info = shared.info();
            check!(info.version != last, "the version {last} stays");
            last = info.version;
        }
    }
);

test!(set_moves_the_wall_clock, "Wall clock and system time keep their sum.", || {
    let shared = clock();
    let wall = Shared::new(0, 0);
    let sum = || {
        write(crate::WALL_CLOCK_NEW, wall.at);
        u64::from(wall.get::<u32>(4)) + (u64::from(wall.get::<u32>(8)) + shared.now()) / SECOND
    };
    let before = sum();
    set_clock(shared.now() + 100_000 * SECOND);
    let after = sum();
    check!(after.wrapping_sub(before) < 60, "{after} s after {before} s");
});

test!(flags_that_there_are_not, "KVM_SET_CLOCK refuses flags that nobody defined.", || {
    let shared = clock();
    let before = shared.now();
    for flags in [1, 0x10, 0x8000_0000] {
        let data = kvm::ClockData { clock: 1, flags, ..Default::default() };
        check_eq!(lab::set(kvm::SET_CLOCK, &data).err(), Some(Errno::EINVAL), "{flags:#x}");
    }
    check!(shared.now() >= before, "a refused time was set");
});

test!(stable_for_both, "The host's stable flag is the guest's.", || {
    takes(TSC_STABLE);
    let shared = clock();
    let host = host_clock().flags & TSC_STABLE != 0;
    check_eq!(shared.info().flags & 1 != 0, host);
    // cpuid.rst, bit 24: the host would warn if the flag were not to be relied on.
    check!(cpuid::KVM_CLOCK_STABLE.present() || !host, "a flag that CPUID does not have");
    report::value("stable", host.into());
});

test!(realtime_flag, "KVM_CLOCK_REALTIME adds what went by since the time that is given.", || {
    takes(REALTIME);
    let shared = clock();
    let data = host_clock();
    if data.flags & REALTIME == 0 {
        skip!("KVM_GET_CLOCK gives no real time: the host's clock is no TSC");
    }
    const WENT_BY: u64 = 1000 * SECOND;
    let data = kvm::ClockData {
        clock: 50 * SECOND,
        flags: REALTIME,
        realtime: data.realtime - WENT_BY,
        ..Default::default()
    };
    check_ok!(lab::set(kvm::SET_CLOCK, &data));
    let now = shared.now();
    let from = 50 * SECOND + WENT_BY;
    check!((from..from + 60 * SECOND).contains(&now), "{now} ns, must be {from} ns and a little");
});

test!(realtime_of_the_future, "A real time that is still to come adds nothing.", || {
    takes(REALTIME);
    let shared = clock();
    let data = host_clock();
    if data.flags & REALTIME == 0 {
        skip!("KVM_GET_CLOCK gives no real time: the host's clock is no TSC");
    }
    let realtime = data.realtime + 5000 * SECOND;
    let data =
        kvm::ClockData { clock: 50 * SECOND, flags: REALTIME, realtime, ..Default::default() };
    check_ok!(lab::set(kvm::SET_CLOCK, &data));
    let now = shared.now();
    check!((50 * SECOND..110 * SECOND).contains(&now), "{now} ns after it was set to 50 s");
});

test!(drift, "Over a tenth of a second the clock goes as the host's real time does.", || {
    let shared = clock();
    if host_clock().flags & REALTIME == 0 {
        skip!("KVM_GET_CLOCK gives no real time: the host's clock is no TSC");
    }
    // Both are of one moment; only somebody who sets the host's clock meanwhile comes between.
    let steady = time::wait_until(5_000_000, || {
        let (first, start) = (host_clock(), shared.now());
        time::sleep(100_000);
        let (last, end) = (host_clock(), shared.now());
        let (clock, real) = (last.clock - first.clock, last.realtime.wrapping_sub(first.realtime));
        check!(end - start <= clock + 60 * SECOND && end >= start, "{start} ns, {end} ns");
        real >= SECOND / 20 && clock.abs_diff(real) <= real / 1_000_000 * 2 * PPM
    });
    check!(steady, "the clock goes by more than 2 in 1000 off the host's");
});

test!(host_tsc, "The TSC that KVM_GET_CLOCK gives is the guest's, less its offset.", || {
    takes(HOST_TSC);
    clock();
    let offset = check_ok!(lab::tsc_offset());
    let before = rdtsc_ordered();
    let data = host_clock();
    let after = rdtsc_ordered();
    if data.flags & HOST_TSC == 0 {
        skip!("KVM_GET_CLOCK gives no TSC: the host's clock is none");
    }
    let tsc = data.host_tsc.wrapping_add(offset);
    check!((before..=after).contains(&tsc), "{before:#x}, {tsc:#x} of the host, {after:#x}");
});

test!(scale_is_the_rate, "The scale is that of KVM_GET_TSC_KHZ.", || {
    let info = clock().info();
    let khz = check_ok!(lab::call(kvm::GET_TSC_KHZ)) as u64;
    let hz = (u128::from(SECOND) << 32) / u128::from(info.mul);
    let hz = (if info.shift < 0 { hz << -info.shift } else { hz >> info.shift }) as u64;
    check!(hz.abs_diff(khz * 1000) <= khz + khz / 100, "{hz} Hz by the scale, {khz} kHz by KVM");
});

test!(stopped, "KVM_KVMCLOCK_CTRL sets the flag of a guest that was stopped, once.", || {
    let shared = clock();
    check_eq!(lab::call(kvm::KVMCLOCK_CTRL), Ok(0));
    // It is published with the next update: at the latest when the clock is turned on anew.
    write(SYSTEM_TIME_NEW, shared.at | 1);
    check_eq!(shared.info().flags & STOPPED, STOPPED, "the flag after KVM_KVMCLOCK_CTRL");
    // msr.rst: the guest clears it.
    let flags = shared.get::<u8>(29);
    check_ok!(mem::write(shared.at + 29, flags & !STOPPED));
    for _ in 0..3 {
        write(SYSTEM_TIME_NEW, shared.at | 1);
        check_eq!(shared.info().flags & STOPPED, 0, "the flag after the guest cleared it");
    }
    check_eq!(lab::call(kvm::KVMCLOCK_CTRL), Ok(0));
    write(SYSTEM_TIME_NEW, shared.at | 1);
    check_eq!(shared.info().flags & STOPPED, STOPPED, "the flag of a second stop");
});

test!(
    stopped_stays,
    "The flag of a guest that was stopped stays until the guest clears it.",
    || {
        let shared = clock();
        check_eq!(lab::call(kvm::KVMCLOCK_CTRL), Ok(0));
        for n in 1..=3 {
            set_clock(n * 1000 * SECOND);
            check_eq!(shared.info().flags & STOPPED, STOPPED, "after update {n}");
        }
    }
);

test!(stopped_without_a_clock, "KVM_KVMCLOCK_CTRL is EINVAL while there is no clock.", || {
    check_eq!(lab::call(kvm::KVMCLOCK_CTRL), Err(Errno::EINVAL), "before");
    clock();
    check_eq!(lab::call(kvm::KVMCLOCK_CTRL), Ok(0), "while");
    write(SYSTEM_TIME_NEW, 0);
    check_eq!(lab::call(kvm::KVMCLOCK_CTRL), Err(Errno::EINVAL), "after");
});

/// Time goes on in spite of what `act` does to the TSC.
fn goes_on(act: impl Fn()) {
    let shared = clock();
    for _ in 0..3 {
        let before = shared.now();
        act();
        let after = shared.now();
        check!(after + 1000 >= before, "{after} ns after {before} ns");
        check!(after.saturating_sub(before) < 60 * SECOND, "{after} ns after {before} ns");
    }
}

test!(tsc_set_by_the_host, "kvmclock does not jump when the host sets the guest's TSC.", || {
    goes_on(|| check_eq!(lab::set_msr(0x10, rdtsc_ordered() + (1 << 41)), Ok(true)));
});

test!(tsc_offset, "kvmclock does not jump when the host changes the TSC's offset.", || {
    goes_on(|| {
        let offset = check_ok!(lab::tsc_offset());
        check_ok!(lab::set_tsc_offset(offset.wrapping_add(1 << 41)));
    });
});

test!(moves, "The clock goes on in another VM, where the MSR says so.", || {
    let shared = clock();
    for _ in 0..3 {
        let before = shared.now();
        check_ok!(lab::transplant());
        check_eq!(read(SYSTEM_TIME_NEW), shared.at | 1);
        let after = shared.now();
        check!(after + 1000 >= before, "{after} ns after {before} ns");
        check!(after.saturating_sub(before) < 60 * SECOND, "{after} ns after {before} ns");
        check!(shared.now() >= after, "it stands");
    }
});

test!(moves_while_off, "A clock that is off stays so in another VM.", || {
    let shared = clock();
    write(SYSTEM_TIME_NEW, 0);
    let version: u32 = shared.get(0);
    let before = host_clock().clock;
    check_ok!(lab::transplant());
    check_eq!((read(SYSTEM_TIME_NEW), shared.get::<u32>(0)), (0, version));
    check!(host_clock().clock >= before, "the host's clock went back");
});
