//! The TSC's offset from both sides (devices/vcpu.rst, KVM_VCPU_TSC_CTRL): guest_tsc = host_tsc +
//! KVM_VCPU_TSC_OFFSET. SDM volume 3, 18.17.3: what TSC_ADJUST has to do with it.

use crate::khz;
use payload_rt::lab;
use payload_rt::time::rdtsc_ordered;
use payload_rt::*;

const TSC_ADJUST: u32 = 0x3b;
const STEP: u64 = 1 << 44;

fn offset() -> u64 {
    check_ok!(lab::tsc_offset())
}

/// Whether a TSC that should be at `wanted` is there, or less than a minute further.
fn follows(now: u64, wanted: u64) -> bool {
    now.wrapping_sub(wanted) < khz() * 60_000
}

test!(offset_is_local, "The offset is that of one vCPU.", || {
    let cpus = smp::start();
    check!(cpus >= 3, "{cpus} CPUs, must be 3");
    let before: [u64; 3] = core::array::from_fn(|cpu| smp::run_on(cpu, offset));
    for n in 1..4_u64 {
        smp::run_on(1, || check_ok!(lab::set_tsc_offset(before[1].wrapping_add(n * STEP))));
        for cpu in [0, 2] {
            check_eq!(smp::run_on(cpu, offset), before[cpu], "offset of cpu {cpu}");
        }
        check_eq!(smp::run_on(1, offset), before[1].wrapping_add(n * STEP), "offset of cpu 1");
        let first = rdtsc_ordered();
        let there = smp::run_on(1, rdtsc_ordered);
        let other = smp::run_on(2, rdtsc_ordered);
        check!(follows(there, first.wrapping_add(n * STEP)), "cpu 1: {there:#x}, cpu 0 {first:#x}");
        check!(follows(other, first), "cpu 2: {other:#x}, cpu 0 {first:#x}");
    }
});

test!(offsets_make_one, "vCPUs with one offset have one TSC.", || {
    let cpus = smp::start();
    check!(cpus >= 3, "{cpus} CPUs, must be 3");
    // Apart first.
    for cpu in 1..3 {
        let far = offset().wrapping_add(cpu as u64 * STEP);
        smp::run_on(cpu, || check_ok!(lab::set_tsc_offset(far)));
    }
    let common = offset();
    for cpu in 0..3 {
        smp::run_on(cpu, || check_ok!(lab::set_tsc_offset(common)));
    }
    for _ in 0..30 {
        let all = [0, 1, 2, 0, 2, 1].map(|cpu| smp::run_on(cpu, rdtsc_ordered));
        check!(all.is_sorted(), "one after the other: {all:x?}");
    }
});

test!(offset_wraps, "An offset below zero is one; the TSC goes over 2^64 to 0.", || {
    let now = rdtsc_ordered();
    let ahead = khz() / 2;
    // Half a millisecond from its end.
    let to_end = now.wrapping_neg().wrapping_sub(ahead);
    let moved = offset().wrapping_add(to_end);
    check_ok!(lab::set_tsc_offset(moved));
    // However long the way here took: it is over the end at some time, and goes on.
    let over = |tsc: u64| tsc < 1 << 63;
    let mut last = rdtsc_ordered();
    while !over(last) {
        let next = rdtsc_ordered();
        check!(next.wrapping_sub(last) < 1 << 62, "from {last:#x} to {next:#x}");
        last = next;
    }
    check!(follows(last, 0), "{last:#x} behind the end");
    check_eq!(lab::tsc_offset(), Ok(moved), "the offset");
    check_eq!(check_ok!(lab::msr(reg::TSC)).is_some_and(over), true, "by the host");
});

test!(offset_leaves_adjust, "The host's offset moves the TSC and not TSC_ADJUST.", || {
    cpuid::TSC_ADJUST.require();
    check_ok!(reg::wrmsr(TSC_ADJUST, 0x1234_5000));
    for n in 1..4_u64 {
        let before = rdtsc_ordered();
        check_ok!(lab::set_tsc_offset(offset().wrapping_add(n * STEP)));
        let after = rdtsc_ordered();
        check!(follows(after, before.wrapping_add(n * STEP)), "{before:#x}, {after:#x}");
        check_eq!(reg::rdmsr(TSC_ADJUST), Ok(0x1234_5000), "TSC_ADJUST");
        check_eq!(lab::msr(TSC_ADJUST), Ok(Some(0x1234_5000)), "TSC_ADJUST by the host");
    }
});

test!(adjust_moves_offset, "A write of TSC_ADJUST changes the offset by as much.", || {
    cpuid::TSC_ADJUST.require();
    for value in [STEP, 5, 1 << 50, STEP.wrapping_neg(), 0] {
        let (adjust, before) = (check_ok!(reg::rdmsr(TSC_ADJUST)), offset());
        check_ok!(reg::wrmsr(TSC_ADJUST, value));
        let moved = value.wrapping_sub(adjust);
        check_eq!(offset(), before.wrapping_add(moved), "offset after TSC_ADJUST = {value:#x}");
    }
});

test!(write_moves_both, "A write of the TSC changes offset and TSC_ADJUST by as much.", || {
    cpuid::TSC_ADJUST.require();
    for value in [STEP, 0, 1 << 52, 1 << 33] {
        let before = (offset(), check_ok!(reg::rdmsr(TSC_ADJUST)));
        check_ok!(reg::wrmsr(reg::TSC, value));
        let now = rdtsc_ordered();
        check!(follows(now, value), "{now:#x} after a write of {value:#x}");
        let after = (offset(), check_ok!(reg::rdmsr(TSC_ADJUST)));
        let moved = (after.0.wrapping_sub(before.0), after.1.wrapping_sub(before.1));
        check_eq!(moved.0, moved.1, "offset and TSC_ADJUST after a write of {value:#x}");
    }
});

test!(host_writes_agree, "TSCs that the host sets to one value run side by side.", || {
    check!(smp::start() >= 2, "one CPU");
    let restore = || {
        check_eq!(lab::set_msr(reg::TSC, STEP), Ok(true));
        offset()
    };
    let offsets = [restore(), smp::run_on(1, restore)];
    check_eq!(offsets[0], offsets[1], "KVM_VCPU_TSC_OFFSET");
    for _ in 0..50 {
        let before = rdtsc_ordered();
        let between = smp::run_on(1, rdtsc_ordered);
        let after = rdtsc_ordered();
        check!(before <= between && between <= after, "{before:#x} {between:#x} {after:#x}");
    }
});
