//! CPUID: that what it says agrees with itself, with other CPUs, and with what the CPU does.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "cpuid/behaviour.rs"]
mod behaviour;
#[path = "cpuid/model.rs"]
mod model;
#[path = "cpuid/topology.rs"]
mod topology;
#[path = "cpuid/xsave.rs"]
mod xsave;

use payload_rt::cpuid::{self, leaf, signature};
use payload_rt::user::{End, User};
use payload_rt::{apic, asm_code, check, check_eq, check_ok, insn, println, reg, skip, smp, test};

const EXTENDED: u32 = 0x8000_0000;
const HYPERVISOR: u32 = 0x4000_0000;

fn is_amd() -> bool {
    matches!(&signature(0), b"AuthenticAMD" | b"HygonGenuine")
}

fn is_intel() -> bool {
    &signature(0) == b"GenuineIntel"
}

/// The four registers of a leaf.
fn words(number: u32, subleaf: u32) -> [u32; 4] {
    let words = leaf(number, subleaf);
    [words.eax, words.ebx, words.ecx, words.edx]
}

// SDM volume 2, CPUID, leaves 0 and 0x8000_0000; AMD APM volume 3, E.3 and E.4.
test!(ranges, "Each range says how far it goes, far enough for what the CPU has.", || {
    let (basic, extended) = (leaf(0, 0).eax, leaf(EXTENDED, 0).eax);
    println!("basic up to {basic:#x}, extended up to {extended:#x}");
    // Long mode is announced in 0x8000_0001, and its address sizes in 0x8000_0008.
    check!((EXTENDED + 8..EXTENDED + 0x1_0000).contains(&extended), "extended up to {extended:#x}");
    for (feature, needed) in [(cpuid::SMEP, 7), (cpuid::XSAVE, 0xd), (cpuid::X2APIC, 1)] {
        let reached = !feature.present() || basic >= needed;
        check!(reached, "{} is there, but leaf {needed:#x} is beyond {basic:#x}", feature.name);
    }
    check!((1..0x1_0000).contains(&basic), "basic up to {basic:#x}");
    let letters = signature(0);
    check!(letters.iter().all(u8::is_ascii_graphic), "vendor {letters:x?}");
    if is_amd() {
        check_eq!(words(EXTENDED, 0)[1..], words(0, 0)[1..], "vendor in leaf 0x80000000");
    }
});

// SDM volume 2, CPUID: an Intel CPU gives the highest basic leaf's data for a leaf beyond the
// range; an AMD CPU zeroes (APM volume 3, E.2).
test!(beyond, "A leaf beyond its range gives what the maker says it does.", || {
    let (basic, extended) = (leaf(0, 0).eax, leaf(EXTENDED, 0).eax);
    for number in [basic + 1, basic + 0x100, extended + 1, 0x7fff_ffff] {
        if is_amd() {
            check_eq!(words(number, 0), [0; 4], "leaf {number:#x}");
        } else if is_intel() {
            check_eq!(words(number, 0), words(basic, 0), "leaf {number:#x}, as leaf {basic:#x}");
        } else {
            skip!("a maker this test does not know");
        }
    }
});

test!(halves, "CPUID clears the upper halves of RAX, RBX, RCX and RDX, and ignores them.", || {
    let (a, b, c, d): (u64, u64, u64, u64);
    check_ok!(insn!(
        "xchg {0}, rbx", "cpuid", "xchg {0}, rbx";
        inout(reg) u64::MAX => b, inout("rax") 0xffff_ffff_0000_0000_u64 => a,
        inout("rcx") 0xffff_ffff_0000_0000_u64 => c, inout("rdx") u64::MAX => d
    ));
    check_eq!([a, b, c, d], words(0, 0).map(u64::from), "64-bit registers after leaf 0");
});

test!(user, "CPUID gives the same at CPL 3 as at CPL 0.", || {
    for (number, subleaf) in [
        (0, 0),
        (1, 0),
        (7, 0),
        (0xb, 0),
        (0xd, 0),
        (0xd, 1),
        (HYPERVISOR, 0),
        (HYPERVISOR + 1, 0),
        (EXTENDED, 0),
        (EXTENDED + 1, 0),
        (EXTENDED + 8, 0),
    ] {
        let mut user = User::new(asm_code!("cpuid", "ret"));
        (user.regs.rax, user.regs.rcx) = (number.into(), subleaf.into());
        let outcome = user.run();
        check_eq!(outcome.end, End::Done, "leaf {number:#x}.{subleaf}");
        let regs = outcome.regs;
        let seen = [regs.rax, regs.rbx, regs.rcx, regs.rdx];
        check_eq!(seen, words(number, subleaf).map(u64::from), "leaf {number:#x}.{subleaf}");
    }
});

/// Leaves and subleaves that are the same on every CPU, with masks of what is not.
const SHARED: [(u32, u32, [u32; 4]); 18] = [
    (0, 0, [!0; 4]),
    // The initial APIC identifier.
    (1, 0, [!0, 0x00ff_ffff, !0, !0]),
    (4, 0, [!0; 4]),
    (4, 3, [!0; 4]),
    (6, 0, [!0; 4]),
    (7, 0, [!0; 4]),
    (7, 1, [!0; 4]),
    (0xa, 0, [!0; 4]),
    (0xd, 0, [!0; 4]),
    (0xd, 1, [!0; 4]),
    (0x15, 0, [!0; 4]),
    (0x16, 0, [!0; 4]),
    (HYPERVISOR, 0, [!0; 4]),
    (HYPERVISOR + 1, 0, [!0; 4]),
    (EXTENDED + 1, 0, [!0; 4]),
    (EXTENDED + 7, 0, [!0; 4]),
    (EXTENDED + 8, 0, [!0; 4]),
    (EXTENDED + 10, 0, [!0; 4]),
];

test!(same, "Every CPU says the same of everything but its identifier.", || {
    let cpus = smp::start();
    if cpus < 2 {
        skip!("one CPU");
    }
    for (number, subleaf, mask) in SHARED {
        let masked = || {
            let mut all = words(number, subleaf);
            all.iter_mut().zip(mask).for_each(|(word, mask)| *word &= mask);
            all
        };
        let first = masked();
        for cpu in 1..cpus {
            let here = smp::run_on(cpu, masked);
            check_eq!(here, first, "leaf {number:#x}.{subleaf} of cpu {cpu}");
        }
    }
});

// Linux's documentation, virt/kvm/x86/cpuid.rst.
test!(hypervisor, "The hypervisor's leaves are announced, and name KVM.", || {
    if !cpuid::HYPERVISOR.present() {
        check!(&signature(HYPERVISOR) != b"KVMKVMKVM\0\0\0", "KVM's leaves, and no bit says so");
        skip!("no hypervisor bit");
    }
    let last = leaf(HYPERVISOR, 0).eax;
    check!((HYPERVISOR + 1..HYPERVISOR + 0x1_0000).contains(&last), "leaves up to {last:#x}");
    check_eq!(&signature(HYPERVISOR), b"KVMKVMKVM\0\0\0", "signature");
    if cpuid::KVM_CLOCK_STABLE.present() {
        check!(cpuid::KVM_CLOCK.present(), "a stable kvmclock, but no kvmclock");
    }
});

test!(
    no_hypervisor,
    "With the hypervisor's leaves hidden, none of their numbers says KVM.",
    || {
        for number in [HYPERVISOR, HYPERVISOR + 0x100, HYPERVISOR + 1] {
            let letters = signature(number);
            check!(
                &letters[..9] != b"KVMKVMKVM",
                "leaf {number:#x} says {}",
                letters.escape_ascii()
            );
        }
        // As any leaf beyond the ranges.
        let expected = if is_amd() { [0; 4] } else { words(leaf(0, 0).eax, 0) };
        check_eq!(words(HYPERVISOR, 0), expected, "leaf {HYPERVISOR:#x}");
    }
);

// SDM volume 2, CPUID, leaf 7: EAX of subleaf 0 is the last subleaf; others are zero.
test!(subleaves, "Leaf 7 has the subleaves it says, and zeroes beyond.", || {
    let Some(first) = cpuid::get(7, 0) else { skip!("no leaf 7") };
    check!(first.eax < 16, "{} subleaves of leaf 7", first.eax);
    for subleaf in [first.eax + 1, first.eax + 2, 0xffff, u32::MAX] {
        check_eq!(words(7, subleaf), [0; 4], "leaf 7.{subleaf:#x}");
    }
});

// SDM volume 2, CPUID, leaf 4; AMD APM volume 3, E.4.15.
test!(caches, "The list of caches ends, and each is as large as its parts say.", || {
    let number = if is_amd() { EXTENDED + 0x1d } else { 4 };
    if cpuid::get(number, 0).is_none_or(|words| words.eax & 0x1f == 0) {
        skip!("no list of caches in leaf {number:#x}");
    }
    let mut last_level = 0;
    for subleaf in 0..16 {
        let words = leaf(number, subleaf);
        let (kind, level) = (words.eax & 0x1f, words.eax >> 5 & 7);
        if kind == 0 {
            return;
        }
        check!(kind <= 3, "cache {subleaf} is of kind {kind}");
        check!((1..=4).contains(&level) && level >= last_level, "cache {subleaf}: level {level}");
        last_level = level;
        let line = (words.ebx & 0xfff) + 1;
        let bytes = u64::from(line)
            * u64::from((words.ebx >> 12 & 0x3ff) + 1)
            * u64::from((words.ebx >> 22) + 1)
            * (u64::from(words.ecx) + 1);
        println!("level {level}, kind {kind}: {bytes} bytes");
        check!(line.is_power_of_two(), "cache {subleaf} has lines of {line} bytes");
        check!(bytes >= 1 << 10, "cache {subleaf} of {bytes} bytes");
    }
    payload_rt::fail!("16 caches and no end");
});

// AMD APM volume 3, E.4.2: EDX repeats bits of leaf 1 on AMD; Intel's are zero there.
test!(mirror, "EDX of leaf 0x80000001 repeats leaf 1's bits on AMD, and not on Intel.", || {
    const MIRROR: u32 = 0x0183_f3ff;
    let (one, extended) = (leaf(1, 0).edx, leaf(EXTENDED + 1, 0).edx);
    let expected = if is_amd() { one & MIRROR } else { 0 };
    check_eq!(extended & MIRROR, expected, "the repeated bits of {extended:#x}");
});

test!(brand, "The processor's name is text.", || {
    if cpuid::get(EXTENDED + 4, 0).is_none() {
        skip!("no name");
    }
    let mut name = [0; 48];
    let all = [2, 3, 4].map(|n| words(EXTENDED + n, 0));
    for (bytes, word) in name.chunks_mut(4).zip(all.as_flattened()) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let len = name.iter().position(|&byte| byte == 0).unwrap_or(48);
    println!("{}", name[..len].escape_ascii());
    check!(name[..len].iter().all(|byte| (b' '..=b'~').contains(byte)), "name {:x?}", name);
    check!(name[len..].iter().all(|&byte| byte == 0), "text behind the name's end: {:x?}", name);
});

// SDM volume 3, 2.5 (OSXSAVE, PKE) and 12.4.3 (the APIC bit).
test!(
    live_bits,
    "OSXSAVE, OSPKE and the APIC bit follow CR4 and IA32_APIC_BASE as they change.",
    || {
        let cr4 = reg::cr4();
        for (bit, name, feature, shown) in [
            (reg::CR4_OSXSAVE, "OSXSAVE", cpuid::XSAVE, cpuid::OSXSAVE),
            (reg::CR4_PKE, "PKE", cpuid::PKU, cpuid::OSPKE),
        ] {
            if !feature.present() {
                println!("no {}", feature.name);
                continue;
            }
            for value in [cr4 | bit, cr4 & !bit, cr4 | bit, cr4 & !bit] {
                check_ok!(reg::set_cr4(value), "CR4 = {value:#x}");
                check_eq!(shown.present(), value & bit != 0, "{} with CR4.{name}", shown.name);
            }
        }
        cpuid::APIC_BIT.require();
        for mode in [apic::Mode::Disabled, apic::Mode::XApic] {
            apic::set_mode(mode);
            let there = mode != apic::Mode::Disabled;
            check_eq!(cpuid::APIC_BIT.present(), there, "the APIC bit with the APIC {mode:?}");
        }
    }
);
