//! Where time is published: which MSR says so, and what is there before, while and after.

use crate::{
    CLOCKSOURCE, CLOCKSOURCE_NEW, PAIRS, SECOND, SYSTEM_TIME, SYSTEM_TIME_NEW, Shared, WALL_CLOCK,
    WALL_CLOCK_NEW, clock, read, write,
};
use payload_rt::time::rdtsc_ordered;
use payload_rt::*;

fn both_pairs() {
    if !(CLOCKSOURCE.present() && CLOCKSOURCE_NEW.present()) {
        skip!("CPUID does not have both pairs");
    }
}

/// Steps the clock's next value must not be below, nor far above: whether `shared` goes on from
/// `before`.
fn goes_on(shared: Shared, before: u64, what: &str) {
    let after = shared.now();
    // A new registration may take the clock's base anew, by less than a microsecond.
    check!(after + 1000 >= before, "{what}: {after} ns after {before} ns");
    check!(after - before.min(after) < 10 * SECOND, "{what}: {after} ns after {before} ns");
}

test!(system_time_reads_alike, "What one system-time MSR was written, both read.", || {
    both_pairs();
    for (written, other) in [(SYSTEM_TIME, SYSTEM_TIME_NEW), (SYSTEM_TIME_NEW, SYSTEM_TIME)] {
        let shared = Shared::new(0x80, 0);
        write(written, shared.at | 1);
        check_eq!((read(written), read(other)), (shared.at | 1, shared.at | 1));
        write(other, 0);
        check_eq!(read(written), 0, "MSR {written:#x} after 0 to MSR {other:#x}");
    }
});

test!(wall_clock_reads_back, "The wall-clock MSRs read as they were written, and alike.", || {
    both_pairs();
    for (written, other) in [(WALL_CLOCK, WALL_CLOCK_NEW), (WALL_CLOCK_NEW, WALL_CLOCK)] {
        let wall = Shared::new(0x40, 0);
        write(written, wall.at);
        check_eq!((read(written), read(other)), (wall.at, wall.at));
    }
});

test!(wall_clock_version, "Each write of a wall-clock MSR publishes a new, even version.", || {
    CLOCKSOURCE_NEW.require();
    let wall = Shared::new(0, 0);
    let mut last = 0;
    for _ in 0..5 {
        write(WALL_CLOCK_NEW, wall.at);
        let version: u32 = wall.get(0);
        check!(version.is_multiple_of(2) && version != last, "version {version} after {last}");
        last = version;
    }
    // An odd version is one that somebody is writing; it must not stay odd.
    check_ok!(mem::write(wall.at, 7u32));
    write(WALL_CLOCK_NEW, wall.at);
    check_eq!(wall.get::<u32>(0) % 2, 0, "the version after an odd one");
});

test!(wall_clock_stands, "The wall clock is the time of the boot: it does not go on.", || {
    CLOCKSOURCE_NEW.require();
    let wall = Shared::new(0, 0);
    let boot = || {
        write(WALL_CLOCK_NEW, wall.at);
        u64::from(wall.get::<u32>(4)) * SECOND + u64::from(wall.get::<u32>(8))
    };
    let first = boot();
    // KVM takes two clocks for it, one after the other; where the host was away in between, again.
    let mut tries = 0;
    let near = time::wait_until(5_000_000, || {
        tries += 1;
        tries > 3 && boot().abs_diff(first) < SECOND / 100
    });
    check!(near, "the time of the boot goes from {first} ns to {} ns", boot());
});

test!(wall_clock_stays_alone, "The wall clock is written when it is asked for, only.", || {
    CLOCKSOURCE_NEW.require();
    let wall = Shared::new(0x200, 0);
    write(WALL_CLOCK_NEW, wall.at);
    check!(wall.get::<u32>(4) != 0, "no wall clock");
    check_ok!(mem::write(wall.at + 4, 0u32));
    let shared = clock();
    time::delay(2000);
    check!(shared.info().mul != 0, "no system time");
    check_eq!(wall.get::<u32>(4), 0, "the wall clock's seconds, which nobody asked for");
});

test!(page_moves, "After a move, time is published at the new place and not at the old.", || {
    let first = clock();
    let before = first.now();
    let version: u32 = first.get(0);
    let second = Shared::new(0x7c0, 0x5a);
    write(SYSTEM_TIME_NEW, second.at | 1);
    goes_on(second, before, "at the new place");
    second.check_around(32, 0x5a);
    for _ in 0..5 {
        write(SYSTEM_TIME_NEW, second.at | 1);
    }
    check_eq!(first.get::<u32>(0), version, "the version at the old place");
});

test!(moves_within_a_page, "Time is published at each place of a page that fits.", || {
    let page = clock();
    let base = page.at & !(frames::PAGE - 1);
    let mut before = page.now();
    for offset in [0, 4, 8, 0x20, 0x7fc, 0xfc0, 0xfe0] {
        let shared = Shared { at: base + offset };
        write(SYSTEM_TIME_NEW, shared.at | 1);
        goes_on(shared, before, "within the page");
        before = shared.now();
    }
});

test!(off_by_bit_0, "Without bit 0 a place is no clock, and what is there stays.", || {
    CLOCKSOURCE_NEW.require();
    let shared = Shared::new(0x100, 0x33);
    write(SYSTEM_TIME_NEW, shared.at);
    for _ in 0..3 {
        time::delay(300);
        write(SYSTEM_TIME_NEW, shared.at);
    }
    shared.check_around(0, 0x33);
});

test!(off_and_on, "A clock that was off goes on where time is, not where it stopped.", || {
    let shared = clock();
    for _ in 0..5 {
        let before = shared.now();
        write(SYSTEM_TIME_NEW, 0);
        let start = rdtsc_ordered();
        time::delay(1000);
        write(SYSTEM_TIME_NEW, shared.at | 1);
        let least = rdtsc_ordered() - start;
        let info = shared.info();
        let passed = info.at(start + least) - info.at(start);
        let after = shared.now();
        check!(
            after + 1000 >= before + passed,
            "{} ns went by while it was off, of {passed} ns",
            after.wrapping_sub(before)
        );
    }
});

test!(old_to_new, "Time goes on as it moves between the pairs of MSRs.", || {
    both_pairs();
    let (a, b) = (Shared::new(0, 0), Shared::new(0, 0));
    write(SYSTEM_TIME, a.at | 1);
    let mut before = a.now();
    for round in 0..6 {
        let (msr, shared) = if round % 2 == 0 { (SYSTEM_TIME_NEW, b) } else { (SYSTEM_TIME, a) };
        write(msr, shared.at | 1);
        goes_on(shared, before, "by the other MSR");
        before = shared.now();
    }
});

// SDM volume 3, 20.17.3: WRMSR of IA32_TIME_STAMP_COUNTER sets the TSC.
test!(tsc_written, "kvmclock does not jump when the guest writes its TSC.", || {
    const TSC: u32 = 0x10;
    let shared = clock();
    for step in [1_i64 << 40, -(1 << 39), 1 << 44] {
        let before = shared.now();
        let tsc = rdtsc_ordered().wrapping_add_signed(step);
        write(TSC, tsc);
        let now = rdtsc_ordered();
        check!(now >= tsc && now - tsc < 1 << 38, "the TSC is {now:#x} after {tsc:#x} was written");
        goes_on(shared, before, "after a write of the TSC");
    }
});

test!(msrs_at_cpl_3, "The MSRs of kvmclock are #GP at CPL 3.", || {
    clock();
    for code in [asm_code!("rdmsr", "ret"), asm_code!("wrmsr", "ret")] {
        for (_, wall, system) in PAIRS {
            for msr in [wall, system] {
                let mut user = user::User::new(code);
                user.regs.rcx = msr.into();
                let user::End::Trap(fault) = user.run().end else { fail!("MSR {msr:#x}") };
                check!(fault.is(trap::GP, 0), "MSR {msr:#x}: {fault}");
            }
        }
    }
});

test!(read_at_cpl_3, "Code at CPL 3 reads the time from a page that is open to it.", || {
    let shared = clock();
    let linear = 0x7f00_0000;
    let flags = paging::Flags::RWU;
    paging::map(linear, shared.at & !(frames::PAGE - 1), paging::Size::K4, flags);
    let before = shared.now();
    let code = asm_code!(
        "mov r8d, [rdi]",
        "lfence",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov r9, [rdi + 8]",
        "mov r10, [rdi + 16]",
        "mov r11d, [rdi]",
        "ret"
    );
    for _ in 0..1000 {
        let mut user = user::User::new(code);
        user.regs.rdi = linear + (shared.at & (frames::PAGE - 1));
        let outcome = user.run();
        check_eq!(outcome.end, user::End::Done);
        let regs = outcome.regs;
        if regs.r8 == regs.r11 && regs.r8.is_multiple_of(2) {
            let info = shared.info();
            let now = crate::Info { tsc_timestamp: regs.r9, system_time: regs.r10, ..info };
            let now = now.at(regs.rax);
            let after = shared.now();
            check!((before..=after).contains(&now), "{before} ns, {now} ns at CPL 3, {after} ns");
            return;
        }
    }
    fail!("the version changes each time");
});
