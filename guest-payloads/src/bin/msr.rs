//! Model-specific registers: which there are, what they take, what they do.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "msr/apic_base.rs"]
mod apic_base;
#[path = "msr/mtrr.rs"]
mod mtrr;
#[path = "msr/tsc.rs"]
mod tsc;

use payload_rt::cpuid::{self, Feature};
use payload_rt::reg::{rdmsr, wrmsr};
use payload_rt::trap::{GP, Trap};
use payload_rt::{
    check, check_eq, check_ok, check_trap, cpu, frames, insn, mem, reg, report, skip, smp, test,
};

const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;

// "All existing and future processors will not implement MSRs with addresses in the range
// 40000000H - 400000FFH" (SDM volume 4, 2.1); the others lie at the edges of the ranges that VMX
// and SVM have permission bitmaps for (SDM volume 3, 26.6.9; AMD APM volume 2, 15.11).
const UNKNOWN: [u32; 8] = [
    0x4000_00aa,
    0x0000_1fff,
    0x0000_2000,
    0x4b56_4dff,
    0xbfff_ffff,
    0xc000_1fff,
    0xc001_ffff,
    0xffff_ffff,
];

test!(
    unknown,
    "RDMSR and WRMSR of an MSR that does not exist are #GP(0) and change nothing.",
    || {
        for msr in UNKNOWN {
            let (a, d): (u64, u64);
            let read = insn!(
                "rdmsr"; in("ecx") msr, inout("rax") 0x0123_4567_89ab_cdef_u64 => a,
                inout("rdx") 0x1122_3344_5566_7788_u64 => d
            );
            check_trap!(read, GP, 0, "read MSR {msr:#x}");
            let kept = (0x0123_4567_89ab_cdef, 0x1122_3344_5566_7788);
            check_eq!((a, d), kept, "RAX and RDX after the refused read of MSR {msr:#x}");
            for value in [0, 1, u64::MAX] {
                check_trap!(wrmsr(msr, value), GP, 0, "write {value:#x} to MSR {msr:#x}");
            }
        }
    }
);

// SDM volume 2, RDMSR: "The high-order 32 bits of each of RCX, RAX and RDX are" ignored or cleared.
test!(
    halves,
    "RDMSR clears, and WRMSR ignores, the upper halves of RAX and RDX; RCX's too.",
    || {
        let value = 0x1234_5678_u64 | 0x7654_3210 << 32;
        let msr = u64::from(reg::STAR) | 0xdead_beef << 32;
        let old = check_ok!(rdmsr(reg::STAR));
        check_ok!(insn!(
            "wrmsr"; in("rcx") msr, in("rax") value & 0xffff_ffff | 0xaaaa_aaaa << 32,
            in("rdx") value >> 32 | 0xbbbb_bbbb << 32
        ));
        let (a, d): (u64, u64);
        check_ok!(insn!(
            "rdmsr"; in("rcx") msr, inout("rax") u64::MAX => a, inout("rdx") u64::MAX => d
        ));
        check_ok!(wrmsr(reg::STAR, old));
        check_eq!(a, value & 0xffff_ffff, "RAX");
        check_eq!(d, value >> 32, "RDX");
    }
);

/// MSRs that hold whatever they are given, and what they are given here.
const PLAIN: [(&str, u32, [u64; 3]); 10] = [
    ("STAR", reg::STAR, [0x0123_4567_89ab_cdef, u64::MAX, 0]),
    ("LSTAR", reg::LSTAR, [0xffff_8123_4567_89ab, 0x7fff_ffff_ffff, 0]),
    ("CSTAR", reg::CSTAR, [0xffff_8123_4567_89ab, 0x7fff_ffff_ffff, 0]),
    ("FMASK", reg::FMASK, [0x4700, 0xffff_ffff, 0]),
    ("FS_BASE", reg::FS_BASE, [0xffff_8000_0000_0000, 0x1234_5678_9abc, 0]),
    ("GS_BASE", reg::GS_BASE, [0xffff_8000_0000_0001, 0x2345_6789_abcd, 0]),
    ("KERNEL_GS_BASE", reg::KERNEL_GS_BASE, [0xffff_ffff_ffff_f000, 0x3456_789a_bcde, 0]),
    ("SYSENTER_CS", SYSENTER_CS, [0x1234, 0x8, 0]),
    ("SYSENTER_ESP", SYSENTER_ESP, [0x1234_5678, 0x9abc_def0, 0]),
    ("SYSENTER_EIP", SYSENTER_EIP, [0x8765_4321, 0x1000, 0]),
];

test!(read_back, "MSRs that software owns give back what was written, and only that one.", || {
    for (name, msr, values) in PLAIN {
        for value in values {
            check_ok!(wrmsr(msr, value), "write {value:#x} to {name}");
            check_eq!(rdmsr(msr), Ok(value), "{name} after {value:#x}");
        }
    }
    // All at once, so that none shares its place with another.
    for (name, msr, values) in PLAIN {
        check_ok!(wrmsr(msr, values[0]), "write {name}");
    }
    for (name, msr, values) in PLAIN {
        check_eq!(rdmsr(msr), Ok(values[0]), "{name} after the others were written");
    }
});

test!(per_cpu, "MSRs that software owns are each CPU's own.", || {
    let cpus = smp::start();
    if cpus < 2 {
        skip!("one CPU");
    }
    report::value("cpus", cpus as u64);
    let value = |values: [u64; 3], cpu: usize| values[0] & !0xff | cpu as u64;
    for cpu in 0..cpus {
        for (name, msr, values) in PLAIN {
            let value = value(values, cpu);
            let done = smp::run_on(cpu, || wrmsr(msr, value));
            check_ok!(done, "write {value:#x} to {name} on cpu {cpu}");
        }
    }
    for cpu in 0..cpus {
        for (name, msr, values) in PLAIN {
            check_eq!(smp::run_on(cpu, || rdmsr(msr)), Ok(value(values, cpu)), "{name}, cpu {cpu}");
        }
    }
});

/// MSRs that take canonical addresses alone.
const ADDRESSES: [(&str, u32); 5] = [
    ("LSTAR", reg::LSTAR),
    ("CSTAR", reg::CSTAR),
    ("FS_BASE", reg::FS_BASE),
    ("GS_BASE", reg::GS_BASE),
    ("KERNEL_GS_BASE", reg::KERNEL_GS_BASE),
];

// SDM volume 2, WRMSR, and volume 3, 5.5; AMD APM volume 2, 1.1.3. These are not canonical at any
// width.
test!(canonical, "MSRs of linear addresses refuse what is not canonical with #GP.", || {
    addresses(
        [0, (1 << 47) - 1, 0xffff_8000_0000_0000, u64::MAX],
        [1 << 56, 1 << 63, i64::MAX as u64, !(1 << 56)],
    );
});

// As above; by the width that the processor supports, whatever CR4.LA57 says.
test!(canonical_edge, "MSRs of linear addresses refuse the first that is not canonical.", || {
    let half = if cpuid::LA57.present() { 1_u64 << 56 } else { 1 << 47 };
    let (last, first) = (half - 1, half.wrapping_neg());
    addresses([0, last, first, u64::MAX], [half, half + 1, first - 1, first - 0x1000]);
});

fn addresses(good: [u64; 4], bad: [u64; 4]) {
    for (name, msr) in ADDRESSES {
        for value in good {
            check_ok!(wrmsr(msr, value), "write {value:#x} to {name}");
            check_eq!(rdmsr(msr), Ok(value), "{name}");
        }
        let before = check_ok!(rdmsr(msr));
        for value in bad {
            check_trap!(wrmsr(msr, value), GP, 0, "write {value:#x} to {name}");
            check_eq!(rdmsr(msr), Ok(before), "{name} after the refused {value:#x}");
        }
    }
}

// SDM volume 3, 4.4.4; AMD APM volume 2, 4.5.3.
test!(bases, "FS_BASE and GS_BASE are where FS and GS begin, until a selector is loaded.", || {
    let mut page = frames::alloc();
    page.bytes()[8..16].copy_from_slice(&0x600d_f00d_u64.to_le_bytes());
    page.bytes()[24..32].copy_from_slice(&0x9009_9009_u64.to_le_bytes());
    check_ok!(wrmsr(reg::FS_BASE, page.address()));
    check_ok!(wrmsr(reg::GS_BASE, page.address() + 16));
    let (fs, gs): (u64, u64);
    check_ok!(insn!("mov {}, fs:[8]", "mov {}, gs:[8]"; out(reg) fs, out(reg) gs));
    check_eq!(fs, 0x600d_f00d, "word at FS:8");
    check_eq!(gs, 0x9009_9009, "word at GS:8");
    check_ok!(insn!("mov qword ptr fs:[40], {}"; in(reg) 0x77_u64));
    check_eq!(mem::read(page.address() + 40), Ok(0x77_u64), "written to FS:40");
    check_ok!(reg::set_fs(cpu::KERNEL_DS));
    check_ok!(reg::set_gs(cpu::KERNEL_DS));
    check_eq!(rdmsr(reg::FS_BASE), Ok(0), "FS_BASE after a selector was loaded");
    check_eq!(rdmsr(reg::GS_BASE), Ok(0), "GS_BASE after a selector was loaded");
});

// SDM volume 3, 2.2.1; AMD APM volume 2, 3.1.7. Bits that either maker gave a meaning are left out.
test!(efer_reserved, "Setting a reserved bit of EFER is #GP and leaves EFER alone.", || {
    let efer = check_ok!(rdmsr(reg::EFER));
    for bit in (1..8).chain([9, 16, 19]).chain(22..64) {
        check_trap!(wrmsr(reg::EFER, efer | 1 << bit), GP, 0, "set bit {bit} of EFER");
        check_eq!(rdmsr(reg::EFER), Ok(efer), "EFER after the refused bit {bit}");
    }
});

// SDM volume 3, 2.2.1 (LMA is read-only) and 11.8.5: "#GP if LME is changed while paging is on".
test!(efer_long_mode, "With paging on, LME cannot be cleared; LMA does not follow writes.", || {
    let efer = check_ok!(rdmsr(reg::EFER));
    check_trap!(wrmsr(reg::EFER, efer & !reg::EFER_LME), GP, 0, "clear EFER.LME under paging");
    check_ok!(wrmsr(reg::EFER, efer & !reg::EFER_LMA), "write EFER with LMA clear");
    check_eq!(rdmsr(reg::EFER), Ok(efer), "EFER after LMA was written as 0");
});

test!(
    efer_features,
    "EFER takes the bits whose features CPUID has, and refuses the others.",
    || {
        let efer = check_ok!(rdmsr(reg::EFER));
        for (bit, feature) in [
            (reg::EFER_SCE, cpuid::SYSCALL_BIT),
            (reg::EFER_NXE, cpuid::NX),
            (1 << 12, cpuid::SVM),
            (1 << 14, cpuid::FXSR_OPT),
        ] {
            if !feature.present() {
                check_trap!(
                    wrmsr(reg::EFER, efer | bit),
                    GP,
                    0,
                    "set {bit:#x} without {}",
                    feature.name
                );
                continue;
            }
            for value in [efer | bit, efer & !bit, efer] {
                check_ok!(wrmsr(reg::EFER, value), "write EFER {value:#x} with {}", feature.name);
                check_eq!(rdmsr(reg::EFER), Ok(value), "EFER");
            }
        }
    }
);

// SDM volume 3, 13.12.2: encodings 2, 3 and from 8 on are reserved.
test!(pat, "IA32_PAT takes the six memory types in each entry, and no other.", || {
    cpuid::PAT_BIT.require();
    let pat = check_ok!(rdmsr(reg::PAT));
    for entry in 0..8 {
        let with = |kind: u64| pat & !(0xff << (8 * entry)) | kind << (8 * entry);
        for kind in [0, 1, 4, 5, 6, 7] {
            check_ok!(wrmsr(reg::PAT, with(kind)), "type {kind} in entry {entry}");
            check_eq!(rdmsr(reg::PAT), Ok(with(kind)), "IA32_PAT");
        }
        check_ok!(wrmsr(reg::PAT, pat));
        for kind in [2, 3, 8, 0x10, 0x80, 0xff] {
            check_trap!(wrmsr(reg::PAT, with(kind)), GP, 0, "type {kind} in entry {entry}");
            check_eq!(rdmsr(reg::PAT), Ok(pat), "IA32_PAT after the refused type {kind}");
        }
    }
});

fn is_intel() -> bool {
    &cpuid::signature(0) == b"GenuineIntel"
}

// SDM volume 4, table 2-2: bits 11 and 12 (no BTS, no PEBS) are read-only.
test!(misc_enable, "IA32_MISC_ENABLE takes its own value back, and keeps it.", || {
    if !is_intel() {
        skip!("the CPU is not Intel's");
    }
    let value = check_ok!(rdmsr(reg::MISC_ENABLE));
    report::value("misc_enable", value);
    check_ok!(wrmsr(reg::MISC_ENABLE, value), "write back {value:#x}");
    check_eq!(rdmsr(reg::MISC_ENABLE), Ok(value), "IA32_MISC_ENABLE");
});

// SDM volume 3, 17.3: bank registers for as many banks as MCG_CAP counts; "#GP on any value
// other than 0 written to IA32_MCi_STATUS".
test!(machine_check, "Each machine-check bank that MCG_CAP counts is there, and no other.", || {
    const MCG_CAP: u32 = 0x179;
    const BANKS: u32 = 0x400;
    cpuid::MCA.require();
    let banks = check_ok!(rdmsr(MCG_CAP)) as u32 & 0xff;
    report::value("banks", banks.into());
    // Further up is something else (VMX capabilities from 0x480).
    for bank in 0..banks.min(32) {
        let ctl = BANKS + 4 * bank;
        check_ok!(rdmsr(ctl), "read MC{bank}_CTL");
        check_ok!(rdmsr(ctl + 1), "read MC{bank}_STATUS");
        check_ok!(wrmsr(ctl + 1, 0), "clear MC{bank}_STATUS");
    }
    if is_intel() && banks > 0 {
        check_trap!(wrmsr(BANKS + 1, 1), GP, 0, "write 1 to MC0_STATUS");
    }
    if banks < 32 {
        check_trap!(rdmsr(BANKS + 4 * banks), GP, 0, "read MC{banks}_CTL of {banks} banks");
    }
});

/// An MSR that is there if one of some features is.
struct Optional {
    name: &'static str,
    msr: u32,
    features: &'static [Feature],
}

const AMD_SPECULATION: [Feature; 3] = [
    Feature::new("amd-ibrs", 0x8000_0008, 0, cpuid::Register::Ebx, 14),
    Feature::new("amd-stibp", 0x8000_0008, 0, cpuid::Register::Ebx, 15),
    Feature::new("amd-ssbd", 0x8000_0008, 0, cpuid::Register::Ebx, 24),
];
const STIBP: Feature = Feature::new("stibp", 7, 0, cpuid::Register::Edx, 27);
const SSBD: Feature = Feature::new("ssbd", 7, 0, cpuid::Register::Edx, 31);

// SDM volume 4, table 2-2: the CPUID condition of each; AMD APM volume 2, appendix A.
const OPTIONAL: [Optional; 6] = [
    Optional { name: "TSC_AUX", msr: reg::TSC_AUX, features: &[cpuid::RDTSCP, cpuid::RDPID] },
    Optional {
        name: "SPEC_CTRL",
        msr: 0x48,
        features: &[
            cpuid::SPEC_CTRL,
            STIBP,
            SSBD,
            AMD_SPECULATION[0],
            AMD_SPECULATION[1],
            AMD_SPECULATION[2],
        ],
    },
    Optional { name: "ARCH_CAPABILITIES", msr: 0x10a, features: &[cpuid::ARCH_CAPABILITIES] },
    Optional { name: "XSS", msr: 0xda0, features: &[cpuid::XSAVES] },
    Optional { name: "UMWAIT_CONTROL", msr: 0xe1, features: &[cpuid::WAITPKG] },
    Optional { name: "VMX_BASIC", msr: 0x480, features: &[cpuid::VMX] },
];

test!(features, "MSRs that come with a feature are there with it, and #GP without.", || {
    for Optional { name, msr, features } in OPTIONAL {
        match features.iter().find(|feature| feature.present()) {
            Some(_) => drop(check_ok!(rdmsr(msr), "read {name}")),
            None => {
                check_trap!(rdmsr(msr), GP, 0, "read {name} without {}", features[0].name);
                check_trap!(wrmsr(msr, 0), GP, 0, "write {name} without {}", features[0].name);
            }
        }
    }
});

test!(read_only, "Writing a read-only MSR is #GP.", || {
    for (name, msr, there) in [
        ("MTRRCAP", 0xfe, cpuid::MTRR.present()),
        ("ARCH_CAPABILITIES", 0x10a, cpuid::ARCH_CAPABILITIES.present()),
        ("VMX_BASIC", 0x480, cpuid::VMX.present()),
    ] {
        if there {
            let value = check_ok!(rdmsr(msr), "read {name}");
            check_trap!(wrmsr(msr, value ^ 1), GP, 0, "write {name}");
            check_eq!(rdmsr(msr), Ok(value), "{name}");
        }
    }
});

/// Whether something was refused with #GP(0).
fn refused<T>(result: &Result<T, Trap>) -> bool {
    matches!(result, Err(trap) if trap.is(GP, 0))
}

/// Checks that a write is taken and read back, or refused without an effect.
fn write(what: core::fmt::Arguments, msr: u32, value: u64, taken: bool) {
    let before = rdmsr(msr);
    let result = wrmsr(msr, value);
    if taken {
        check!(result.is_ok(), "write {value:#x} to {what}: {result:?}, must be taken");
        check_eq!(rdmsr(msr), Ok(value), "{what} after {value:#x}");
    } else {
        check!(refused(&result), "write {value:#x} to {what}: {result:?}, must be #GP(0)");
        check_eq!(rdmsr(msr), before, "{what} after the refused {value:#x}");
    }
}
