//! TSC scaling for L2 (SDM volume 3, 26.6.5 and 26.3): its TSC is L1's by the multiplier, 48 bits of which are
//! behind the point, with the offset on top.

use super::vm;
use payload_rt::lab::{self, kvm};
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::{Field, Vm, set};
use payload_rt::*;

/// One: an L2 at L1's rate.
const ONE: u64 = 1 << 48;

extern "C" fn read_tsc(how: u64) -> u64 {
    match how {
        0 => time::rdtsc(),
        _ => reg::rdmsr(reg::TSC).unwrap_or(0),
    }
}

/// An L2 with a scaled TSC, and the offset on or off.
fn scaled(offset: bool) -> Vm {
    if caps::cpu2().may & CPU2_TSC_SCALING == 0 {
        skip!("no TSC scaling for L2");
    }
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS, CPU_SECONDARY);
    vm.add(Field::CPU_CONTROLS2, CPU2_TSC_SCALING);
    vm.remove(Field::CPU_CONTROLS, CPU_TSC_OFFSET);
    if offset {
        vm.add(Field::CPU_CONTROLS, CPU_TSC_OFFSET);
    }
    vm
}

fn by(tsc: u64, multiplier: u64) -> u64 {
    ((u128::from(tsc) * u128::from(multiplier)) >> 48) as u64
}

/// Checks what L2 reads, in both ways, against L1's TSC before and after.
fn check_reads(vm: &mut Vm, multiplier: u64, offset: u64, what: &str) {
    for how in [0, 1] {
        let before = time::rdtsc();
        let seen = vm.run_to_end(read_tsc, how).wrapping_sub(offset);
        let after = time::rdtsc();
        check!(
            (by(before, multiplier)..=by(after, multiplier)).contains(&seen),
            "{what}: L2's TSC less its offset {seen:#x} by way {how}, L1's {before:#x} to {after:#x}"
        );
    }
}

const MULTIPLIERS: [u64; 5] = [ONE, ONE / 2, ONE * 2, ONE / 4 * 5, ONE / 1000];

test!(scaling, "L2's TSC is L1's by the multiplier, with the offset on top.", || {
    let mut vm = scaled(true);
    for multiplier in MULTIPLIERS {
        set(Field::TSC_MULTIPLIER, multiplier);
        for offset in [0, 1 << 40, (1_u64 << 40).wrapping_neg()] {
            set(Field::TSC_OFFSET, offset);
            check_reads(&mut vm, multiplier, offset, "with an offset");
        }
        // L1's own stays what it was.
        let (first, second) = (time::rdtsc(), time::rdtsc());
        check!(second >= first && second - first < 1 << 40, "L1's TSC: {first:#x}, {second:#x}");
    }
});

// 26.6.5, "use TSC scaling": only under "use TSC offsetting" has the multiplier a meaning.
test!(scaling_without_offset, "Without TSC offsetting the multiplier means nothing.", || {
    let mut vm = scaled(false);
    for multiplier in MULTIPLIERS {
        set(Field::TSC_MULTIPLIER, multiplier);
        set(Field::TSC_OFFSET, 1 << 40);
        check_reads(&mut vm, ONE, 0, "without offsetting");
    }
});

test!(scaling_of_scaled, "Where L1's TSC is scaled itself, the two scales multiply.", || {
    let mut vm = scaled(true);
    let host = check_ok!(lab::call(kvm::GET_TSC_KHZ)) as u64;
    for of_host in [host / 2, host * 2] {
        check_ok!(lab::call_with(kvm::SET_TSC_KHZ, of_host));
        // Another rate moved it: below zero, even.
        check_ok!(reg::wrmsr(reg::TSC, 1 << 40));
        for multiplier in MULTIPLIERS {
            set(Field::TSC_MULTIPLIER, multiplier);
            set(Field::TSC_OFFSET, 1 << 30);
            // Two roundings: some ticks more or less.
            for how in [0, 1] {
                let before = by(time::rdtsc(), multiplier);
                let seen = vm.run_to_end(read_tsc, how).wrapping_sub(1 << 30);
                let after = by(time::rdtsc(), multiplier);
                const ROUNDING: u64 = 64;
                check!(
                    before <= seen + ROUNDING && seen <= after + ROUNDING,
                    "L1 at {of_host} kHz, multiplier {multiplier:#x}: L2 {seen:#x}, \
                     L1 {before:#x} to {after:#x}"
                );
            }
        }
    }
    check_ok!(lab::call_with(kvm::SET_TSC_KHZ, host));
});
