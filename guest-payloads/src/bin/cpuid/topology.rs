//! Who a CPU is, and where it stands among the others.

use payload_rt::cpuid::{self, leaf};
use payload_rt::{apic, check, check_eq, println, skip, smp, test};

const HT: cpuid::Feature = cpuid::Feature::new("ht", 1, 0, cpuid::Register::Edx, 28);

/// The two leaves that list levels of topology.
const LISTS: [u32; 2] = [0xb, 0x1f];

fn has_levels(number: u32) -> bool {
    cpuid::get(number, 0).is_some_and(|words| words.ebx != 0)
}

// SDM volume 2, CPUID, leaves 1, 0xb and 0x1f; volume 3, 10.9.
test!(
    apic_ids,
    "Each CPU's identifier is the same by every leaf and the local APIC, and its own.",
    || {
        let cpus = smp::start();
        for cpu in 0..cpus {
            let id = smp::run_on(cpu, || apic::local().id());
            let initial = smp::run_on(cpu, || leaf(1, 0).ebx >> 24);
            check_eq!(initial, id & 0xff, "identifier in leaf 1 of cpu {cpu}");
            for number in LISTS {
                if has_levels(number) {
                    let edx = smp::run_on(cpu, || leaf(number, 0).edx);
                    check_eq!(edx, id, "identifier in leaf {number:#x} of cpu {cpu}");
                }
            }
            for other in 0..cpu {
                check!(smp::apic_id(other) != id, "cpus {other} and {cpu} are both {id:#x}");
            }
        }
    }
);

test!(levels, "Levels of topology rise to a package that holds all CPUs, and then end.", || {
    let cpus = smp::start() as u32;
    let mut seen = false;
    for number in LISTS {
        if !has_levels(number) {
            println!("no leaf {number:#x}");
            continue;
        }
        seen = true;
        for cpu in 0..cpus {
            smp::run_on(cpu as usize, || check_levels(number, cpu, cpus));
        }
    }
    if !seen {
        skip!("no leaf 0xb or 0x1f");
    }
});

fn check_levels(number: u32, cpu: u32, cpus: u32) {
    let id = leaf(number, 0).edx;
    let (mut shift, mut count, mut last_kind) = (0, 0, 0);
    for subleaf in 0..8 {
        let words = leaf(number, subleaf);
        let kind = words.ecx >> 8 & 0xff;
        let what = format_args!("leaf {number:#x}.{subleaf} of cpu {cpu}");
        check_eq!(words.ecx & 0xff, subleaf, "the subleaf in ECX, {what}");
        check_eq!(words.edx, id, "EDX, {what}");
        if kind == 0 {
            check_eq!(words.ebx & 0xffff, 0, "CPUs of no level, {what}");
            check!(subleaf > 0 && count >= cpus, "{count} CPUs in the package, of {cpus}: {what}");
            check!(1 << shift >= count, "{count} CPUs in {shift} bits of identifier: {what}");
            check_eq!(id >> shift, 0, "the package's number, {what}");
            return;
        }
        check!(kind > last_kind, "level of kind {kind} above one of {last_kind}: {what}");
        check!(words.eax & 0x1f >= shift, "fewer bits than the level below: {what}");
        check!(words.ebx & 0xffff >= count.max(1), "fewer CPUs than the level below: {what}");
        (shift, count, last_kind) = (words.eax & 0x1f, words.ebx & 0xffff, kind);
    }
    payload_rt::fail!("leaf {number:#x} has eight levels and no end");
}

// SDM volume 2, CPUID, leaf 1: EBX 23:16 means something if HTT is set. AMD APM volume 3, E.4.7:
// ECX 7:0 of leaf 0x8000_0008 is the number of threads less one.
test!(counts, "The older leaves have room for all CPUs.", || {
    let cpus = smp::start() as u32;
    if cpus > 1 {
        check!(HT.present(), "{cpus} CPUs, but no HTT");
    }
    if HT.present() {
        let room = leaf(1, 0).ebx >> 16 & 0xff;
        check!(room >= cpus, "leaf 1 has room for {room} identifiers, of {cpus} CPUs");
    }
    if super::is_amd() {
        let threads = (leaf(0x8000_0008, 0).ecx & 0xff) + 1;
        check!(threads >= cpus, "leaf 0x80000008 counts {threads} threads, of {cpus} CPUs");
    } else if cpuid::get(4, 0).is_some_and(|words| words.eax & 0x1f != 0) {
        let cores = (leaf(4, 0).eax >> 26) + 1;
        check!(cores >= cpus, "leaf 4 has room for {cores} cores, of {cpus} CPUs");
    }
});
