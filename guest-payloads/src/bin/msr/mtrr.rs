//! Memory type range registers (SDM volume 3, 13.11; AMD APM volume 2, 7.7).

use payload_rt::reg::rdmsr;
use payload_rt::{check, check_ok, cpuid, report, test};

const CAP: u32 = 0xfe;
const DEF_TYPE: u32 = 0x2ff;
const FIRST_BASE: u32 = 0x200;
const FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const GOOD: [u64; 5] = [0, 1, 4, 5, 6];
const BAD: [u64; 3] = [2, 3, 7];

fn variable_count() -> u32 {
    cpuid::MTRR.require();
    check_ok!(rdmsr(CAP), "read MTRRCAP") as u32 & 0xff
}

test!(mtrr_default, "The default memory type takes types there are, and no reserved bit.", || {
    cpuid::MTRR.require();
    let old = check_ok!(rdmsr(DEF_TYPE));
    let what = format_args!("MTRRdefType");
    for kind in GOOD {
        super::write(what, DEF_TYPE, old & !0xff | kind, true);
    }
    for kind in BAD {
        super::write(what, DEF_TYPE, old & !0xff | kind, false);
    }
    for bit in [8, 9].into_iter().chain(12..64) {
        super::write(what, DEF_TYPE, old | 1 << bit, false);
    }
    super::write(what, DEF_TYPE, old, true);
});

test!(
    mtrr_variable,
    "Variable ranges, as many as counted, take aligned bases of a good type.",
    || {
        let count = variable_count();
        report::value("variable_ranges", count.into());
        check!(count <= 40, "{count} variable ranges reach into the fixed ones");
        let physical = u32::from(cpuid::physical_bits());
        for n in 0..count {
            let (base, mask) = (FIRST_BASE + 2 * n, FIRST_BASE + 2 * n + 1);
            let old = (check_ok!(rdmsr(base)), check_ok!(rdmsr(mask)));
            let what = format_args!("MTRRphysBase{n}");
            super::write(what, base, 0x8000_0000 | GOOD[n as usize % GOOD.len()], true);
            super::write(what, base, 0x8000_0000 | BAD[n as usize % BAD.len()], false);
            // Each write costs a flush of page tables; the ranges between get the types alone.
            let all = n == 0 || n == count - 1;
            for bit in (8..12).chain([physical, 63]).filter(|_| all) {
                super::write(what, base, 1 << bit, false);
            }
            super::write(what, base, old.0, true);
            let what = format_args!("MTRRphysMask{n}");
            super::write(what, mask, (1 << physical) - 0x1000, true);
            for bit in (0..11).chain([physical, 63]).filter(|_| all) {
                super::write(what, mask, 1 << bit, false);
            }
            super::write(what, mask, old.1, true);
        }
        if count < 40 {
            let beyond = FIRST_BASE + 2 * count;
            check!(
                super::refused(&rdmsr(beyond)),
                "range {count} of {count} at {beyond:#x} is there"
            );
        }
    }
);

test!(
    mtrr_fixed,
    "Fixed ranges hold a good type for each of their eight parts, and no bad one.",
    || {
        cpuid::MTRR.require();
        let capable = check_ok!(rdmsr(CAP)) & 1 << 8 != 0;
        for msr in FIXED {
            if !capable {
                check!(
                    super::refused(&rdmsr(msr)),
                    "MTRRCAP has no fixed ranges, {msr:#x} is there"
                );
                continue;
            }
            let old = check_ok!(rdmsr(msr));
            let what = format_args!("fixed range MSR {msr:#x}");
            super::write(what, msr, 0x0001_0405_0606_0504, true);
            for part in [0, 3, 7] {
                for kind in BAD {
                    super::write(what, msr, kind << (8 * part), false);
                }
            }
            super::write(what, msr, old, true);
        }
    }
);
