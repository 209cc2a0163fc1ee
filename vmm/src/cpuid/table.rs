//! Every feature bit that has a name: after Intel's Software Developer's Manual, volume 2, CPUID;
//! AMD's Programmer's Manual, volume 3, appendix E; and Linux's documentation of KVM's own leaves.

use super::{EXTENDED, Feature, HYPERVISOR, Reg};
use crate::words::distance;

/// One register, and the names of its bits from bit 0 on; empty where a bit has none.
struct Word {
    leaf: u32,
    subleaf: u32,
    reg: Reg,
    names: &'static [&'static str],
}

const fn word(leaf: u32, subleaf: u32, reg: Reg, names: &'static [&'static str]) -> Word {
    assert!(names.len() <= 32);
    Word { leaf, subleaf, reg, names }
}

#[rustfmt::skip]
static WORDS: &[Word] = &[
    word(1, 0, Reg::Edx, &[
        "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce",
        "cx8", "apic", "", "sep", "mtrr", "pge", "mca", "cmov",
        "pat", "pse36", "pn", "clflush", "", "ds", "acpi", "mmx",
        "fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64", "pbe",
    ]),
    word(1, 0, Reg::Ecx, &[
        "sse3", "pclmulqdq", "dtes64", "monitor", "ds-cpl", "vmx", "smx", "est",
        "tm2", "ssse3", "cid", "sdbg", "fma", "cx16", "xtpr", "pdcm",
        "", "pcid", "dca", "sse4.1", "sse4.2", "x2apic", "movbe", "popcnt",
        "tsc-deadline", "aes", "xsave", "osxsave", "avx", "f16c", "rdrand", "hypervisor",
    ]),
    word(7, 0, Reg::Ebx, &[
        "fsgsbase", "tsc-adjust", "sgx", "bmi1", "hle", "avx2", "fdp-excptn-only", "smep",
        "bmi2", "erms", "invpcid", "rtm", "cqm", "zero-fcs-fds", "mpx", "rdt-a",
        "avx512f", "avx512dq", "rdseed", "adx", "smap", "avx512ifma", "pcommit", "clflushopt",
        "clwb", "intel-pt", "avx512pf", "avx512er", "avx512cd", "sha-ni", "avx512bw", "avx512vl",
    ]),
    // Bits 17 to 21 are a number, not features.
    word(7, 0, Reg::Ecx, &[
        "prefetchwt1", "avx512vbmi", "umip", "pku", "ospke", "waitpkg", "avx512vbmi2", "cet-ss",
        "gfni", "vaes", "vpclmulqdq", "avx512vnni", "avx512bitalg", "tme", "avx512-vpopcntdq", "",
        "la57", "", "", "", "", "", "rdpid", "kl",
        "bus-lock-detect", "cldemote", "", "movdiri", "movdir64b", "enqcmd", "sgxlc", "pks",
    ]),
    word(7, 0, Reg::Edx, &[
        "", "sgx-keys", "avx512-4vnniw", "avx512-4fmaps", "fsrm", "uintr", "", "",
        "avx512-vp2intersect", "srbds-ctrl", "md-clear", "rtm-always-abort", "", "tsx-force-abort", "serialize", "hybrid",
        "tsxldtrk", "", "pconfig", "arch-lbr", "cet-ibt", "", "amx-bf16", "avx512-fp16",
        "amx-tile", "amx-int8", "spec-ctrl", "stibp", "flush-l1d", "arch-capabilities", "core-capability", "ssbd",
    ]),
    word(7, 1, Reg::Eax, &[
        "sha512", "sm3", "sm4", "rao-int", "avx-vnni", "avx512-bf16", "lass", "cmpccxadd",
        "arch-perfmon-ext", "", "fzrm", "fsrs", "fsrc", "", "", "",
        "", "fred", "lkgs", "wrmsrns", "nmi-src", "amx-fp16", "hreset", "avx-ifma",
        "", "", "lam", "msrlist", "", "", "invd-disable-post-bios-done", "movrs",
    ]),
    word(7, 1, Reg::Edx, &[
        "", "", "", "", "avx-vnni-int8", "avx-ne-convert", "", "",
        "amx-complex", "", "avx-vnni-int16", "", "", "utmr", "prefetchiti", "user-msr",
        "", "uiret-uif", "cet-sss", "avx10", "", "apx", "", "mwait",
    ]),
    word(7, 2, Reg::Edx, &[
        "intel-psfd", "ipred-ctrl", "rrsba-ctrl", "ddpd-u", "bhi-ctrl", "mcdt-no", "uc-lock", "monitor-mitg-no",
    ]),
    word(0xd, 1, Reg::Eax, &["xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd"]),
    word(HYPERVISOR + 1, 0, Reg::Eax, &[
        "kvmclock", "kvm-nopiodelay", "kvm-mmu", "kvmclock2", "kvm-asyncpf", "kvm-steal-time", "kvm-pv-eoi", "kvm-pv-unhalt",
        "", "kvm-pv-tlb-flush", "kvm-asyncpf-vmexit", "kvm-pv-ipi", "kvm-poll-control", "kvm-pv-sched-yield", "kvm-asyncpf-int", "kvm-msi-ext-dest-id",
        "kvm-hc-map-gpa-range", "kvm-migration-control", "", "", "", "", "", "",
        "kvmclock-stable-bit",
    ]),
    word(HYPERVISOR + 1, 0, Reg::Edx, &["kvm-hint-dedicated"]),
    // The bits of EDX that repeat those of leaf 1 on AMD's processors go with them: see `MIRROR`.
    word(EXTENDED + 1, 0, Reg::Edx, &[
        "", "", "", "", "", "", "", "",
        "", "", "", "syscall", "", "", "", "",
        "", "", "", "mp", "nx", "", "mmxext", "",
        "", "fxsr-opt", "pdpe1gb", "rdtscp", "", "lm", "3dnowext", "3dnow",
    ]),
    word(EXTENDED + 1, 0, Reg::Ecx, &[
        "lahf-lm", "cmp-legacy", "svm", "extapic", "cr8legacy", "abm", "sse4a", "misalignsse",
        "3dnowprefetch", "osvw", "ibs", "xop", "skinit", "wdt", "", "lwp",
        "fma4", "tce", "", "nodeid-msr", "", "tbm", "topoext", "perfctr-core",
        "perfctr-nb", "", "bpext", "ptsc", "perfctr-llc", "mwaitx", "addr-mask-ext", "",
    ]),
    word(EXTENDED + 7, 0, Reg::Edx, &[
        "ts", "fid", "vid", "ttp", "htc", "", "100mhzsteps", "hwpstate",
        "invtsc", "cpb", "aperfmperf-ro", "proc-feedback", "acc-power",
    ]),
    word(EXTENDED + 8, 0, Reg::Ebx, &[
        "clzero", "irperf", "xsaveerptr", "invlpgb", "rdpru", "", "mba", "",
        "mcommit", "wbnoinvd", "", "", "amd-ibpb", "int-wbinvd", "amd-ibrs", "amd-stibp",
        "ibrs-always-on", "stibp-always-on", "ibrs-preferred", "ibrs-same-mode", "no-efer-lmsle", "invlpgb-nested", "", "amd-ppin",
        "amd-ssbd", "virt-ssbd", "amd-no-ssb", "cppc", "amd-psfd", "btc-no", "ibpb-ret", "brs",
    ]),
    word(EXTENDED + 0xa, 0, Reg::Edx, &[
        "npt", "lbrv", "svm-lock", "nrip-save", "tsc-scale", "vmcb-clean", "flushbyasid", "decodeassists",
        "pmc-virt", "", "pause-filter", "", "pfthreshold", "avic", "", "v-vmsave-vmload",
        "vgif", "gmet", "x2avic", "sss-check", "v-spec-ctrl", "rogpt", "", "host-mce-override",
        "tlbi-ctl", "vnmi", "ibs-virt", "ext-lvt-avic", "nested-vmcb-addr-check", "bus-lock-threshold", "idle-hlt-intercept", "",
    ]),
    word(EXTENDED + 0x21, 0, Reg::Eax, &[
        "no-nested-data-bp", "fs-gs-base-ns", "lfence-always-serializing", "smm-pgcfg-lock", "", "", "null-sel-clr-base", "upper-address-ignore",
        "auto-ibrs", "no-smm-ctl-msr", "amd-fsrs", "amd-fsrc", "", "prefetch-ctl-msr", "", "",
        "", "cpuid-user-dis", "epsf", "", "prefetchi", "", "", "",
        "eraps", "", "", "sbpb", "ibpb-brtype", "srso-no", "srso-user-kernel-no", "srso-msr-fix",
    ]),
];

/// Other names of the same bits: those of `/proc/cpuinfo`, of QEMU, and of the manuals.
#[rustfmt::skip]
static ALIASES: &[(&str, &str)] = &[
    ("1gb-pages", "pdpe1gb"), ("avx512-bitalg", "avx512bitalg"), ("avx512-ifma", "avx512ifma"),
    ("avx512-vbmi", "avx512vbmi"), ("avx512-vbmi2", "avx512vbmi2"), ("avx512-vnni", "avx512vnni"),
    ("clfsh", "clflush"), ("cmpxchg16b", "cx16"), ("cmpxchg8b", "cx8"), ("cr8-legacy", "cr8legacy"), ("dts", "ds"),
    ("eist", "est"), ("ffxsr", "fxsr-opt"), ("htt", "ht"), ("i64", "lm"), ("ibpb", "amd-ibpb"), ("ibrs", "amd-ibrs"),
    ("ibt", "cet-ibt"), ("invariant-tsc", "invtsc"), ("kvmclock-stable", "kvmclock-stable-bit"), ("lzcnt", "abm"),
    ("nonstop-tsc", "invtsc"), ("nrips", "nrip-save"), ("pclmul", "pclmulqdq"), ("pni", "sse3"), ("pqe", "rdt-a"), ("pqm", "cqm"),
    ("sgx-lc", "sgxlc"), ("sha", "sha-ni"), ("shstk", "cet-ss"), ("tsc-deadline-timer", "tsc-deadline"), ("user-shstk", "cet-ss"),
    ("xd", "nx"),
];

/// Bits of leaf 1 EDX that AMD's processors repeat in EDX of the first extended leaf.
pub(super) const MIRROR: u32 = 0x0183_f3ff;

/// Features that another one needs: without the second, the first is not there either.
#[rustfmt::skip]
pub(super) static NEEDS: &[(&str, &str)] = &[
    ("avx", "xsave"), ("xsaveopt", "xsave"), ("xsavec", "xsave"), ("xgetbv1", "xsave"), ("xsaves", "xsave"), ("xfd", "xsave"),
    ("mpx", "xsave"), ("pku", "xsave"), ("amx-tile", "xsave"), ("xop", "avx"), ("fma4", "avx"),
    ("fma", "avx"), ("f16c", "avx"), ("avx2", "avx"), ("vaes", "avx"), ("vpclmulqdq", "avx"), ("avx-vnni", "avx2"),
    ("avx-ifma", "avx2"), ("avx-vnni-int8", "avx2"), ("avx-ne-convert", "avx2"), ("avx-vnni-int16", "avx2"), ("avx512f", "avx2"),
    ("avx512dq", "avx512f"), ("avx512ifma", "avx512f"), ("avx512pf", "avx512f"), ("avx512er", "avx512f"),
    ("avx512cd", "avx512f"), ("avx512bw", "avx512f"), ("avx512vl", "avx512f"), ("avx512vbmi", "avx512f"),
    ("avx512vbmi2", "avx512f"), ("avx512vnni", "avx512f"), ("avx512bitalg", "avx512f"), ("avx512-vpopcntdq", "avx512f"),
    ("avx512-4vnniw", "avx512f"), ("avx512-4fmaps", "avx512f"), ("avx512-vp2intersect", "avx512f"),
    ("avx512-fp16", "avx512f"), ("avx512-bf16", "avx512f"), ("avx10", "avx512f"), ("amx-bf16", "amx-tile"), ("amx-int8", "amx-tile"),
    ("amx-fp16", "amx-tile"), ("amx-complex", "amx-tile"), ("invpcid", "pcid"), ("x2apic", "apic"), ("tsc-deadline", "apic"),
    ("kvmclock2", "kvmclock"), ("kvmclock-stable-bit", "kvmclock"), ("npt", "svm"), ("lbrv", "svm"), ("svm-lock", "svm"),
    ("nrip-save", "svm"), ("tsc-scale", "svm"), ("vmcb-clean", "svm"), ("flushbyasid", "svm"), ("decodeassists", "svm"),
    ("pmc-virt", "svm"), ("pause-filter", "svm"), ("pfthreshold", "svm"), ("avic", "svm"), ("v-vmsave-vmload", "svm"),
    ("vgif", "svm"), ("gmet", "svm"), ("x2avic", "svm"), ("v-spec-ctrl", "svm"), ("vnmi", "svm"),
];

/// Every feature that has a name.
pub fn features() -> impl Iterator<Item = Feature> {
    WORDS.iter().flat_map(|&Word { leaf, subleaf, reg, names }| {
        (0..).zip(names).filter(|(_, name)| !name.is_empty()).map(move |(bit, &name)| Feature {
            name,
            leaf,
            subleaf,
            reg,
            bit,
        })
    })
}

/// The registers that hold features of the processor: all of the table but those in which a
/// hypervisor tells of itself.
pub(super) fn processor_words() -> impl Iterator<Item = (u32, u32, Reg)> {
    WORDS.iter().filter(|w| w.leaf & super::RANGE != HYPERVISOR).map(|w| (w.leaf, w.subleaf, w.reg))
}

/// Whether two names are one: case, and which of `_`, `-` and `.` is used, means nothing.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().map(plain).eq(b.bytes().map(plain))
}

fn plain(byte: u8) -> u8 {
    match byte {
        b'_' | b'.' => b'-',
        byte => byte.to_ascii_lowercase(),
    }
}

/// The feature of a name: this table's, that of `/proc/cpuinfo` or QEMU's; in any case, with `_`,
/// `-` or `.` alike.
pub fn feature(name: &str) -> Option<Feature> {
    let alias = ALIASES.iter().find(|(alias, _)| same(alias, name));
    let name = alias.map_or(name, |&(_, name)| name);
    features().find(|f| same(f.name, name))
}

/// The known name that is most like `word`, if one is like it at all; `more` are names to look at
/// beside those of features.
pub fn nearest(word: &str, more: &'static [&'static str]) -> Option<&'static str> {
    let names = features().map(|f| f.name);
    let names = names.chain(ALIASES.iter().map(|&(alias, _)| alias)).chain(more.iter().copied());
    let normal = |name: &str| -> String { name.bytes().map(|b| char::from(plain(b))).collect() };
    let word: String = word.bytes().take(32).map(|b| char::from(plain(b))).collect();
    let limit = word.len() / 3 + usize::from(word.len() < 3);
    names
        .map(|name| (distance(&word, &normal(name)), name))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, _)| distance <= limit)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn normal(name: &str) -> String {
        name.bytes().map(|b| char::from(plain(b))).collect()
    }

    #[test]
    fn no_bit_and_no_name_is_there_twice() {
        let (mut bits, mut names) = (BTreeSet::new(), BTreeSet::new());
        for f in features() {
            assert!(bits.insert((f.leaf, f.subleaf, f.reg, f.bit)), "{f}");
            assert!(names.insert(normal(f.name)), "{f}");
        }
        for (alias, _) in ALIASES {
            assert!(names.insert(normal(alias)), "{alias}");
        }
        assert!(bits.len() > 300, "{}", bits.len());
    }

    #[test]
    fn aliases_and_needs_lead_to_features() {
        let names: BTreeSet<_> = features().map(|f| f.name).collect();
        for (_, name) in ALIASES {
            assert!(names.contains(name), "{name}");
        }
        for (child, parent) in NEEDS {
            assert!(names.contains(child) && names.contains(parent), "{child} {parent}");
            assert_ne!(child, parent);
        }
    }

    #[test]
    fn names_are_where_the_manuals_have_them() {
        for (name, leaf, subleaf, reg, bit) in [
            ("pcid", 1, 0, Reg::Ecx, 17),
            ("X2APIC", 1, 0, Reg::Ecx, 21),
            ("tsc_deadline_timer", 1, 0, Reg::Ecx, 24),
            ("hypervisor", 1, 0, Reg::Ecx, 31),
            ("pbe", 1, 0, Reg::Edx, 31),
            ("fsgsbase", 7, 0, Reg::Ebx, 0),
            ("smap", 7, 0, Reg::Ebx, 20),
            ("avx512f", 7, 0, Reg::Ebx, 16),
            ("avx512vl", 7, 0, Reg::Ebx, 31),
            ("umip", 7, 0, Reg::Ecx, 2),
            ("la57", 7, 0, Reg::Ecx, 16),
            ("rdpid", 7, 0, Reg::Ecx, 22),
            ("pks", 7, 0, Reg::Ecx, 31),
            ("ssbd", 7, 0, Reg::Edx, 31),
            ("lam", 7, 1, Reg::Eax, 26),
            ("xsaves", 0xd, 1, Reg::Eax, 3),
            ("sse4_1", 1, 0, Reg::Ecx, 19),
            ("sse4-1", 1, 0, Reg::Ecx, 19),
            ("svm", EXTENDED + 1, 0, Reg::Ecx, 2),
            ("topoext", EXTENDED + 1, 0, Reg::Ecx, 22),
            ("1gb-pages", EXTENDED + 1, 0, Reg::Edx, 26),
            ("nx", EXTENDED + 1, 0, Reg::Edx, 20),
            ("3dnow", EXTENDED + 1, 0, Reg::Edx, 31),
            ("invtsc", EXTENDED + 7, 0, Reg::Edx, 8),
            ("brs", EXTENDED + 8, 0, Reg::Ebx, 31),
            ("vnmi", EXTENDED + 0xa, 0, Reg::Edx, 25),
            ("srso-no", EXTENDED + 0x21, 0, Reg::Eax, 29),
            ("kvmclock-stable", HYPERVISOR + 1, 0, Reg::Eax, 24),
            ("kvm-migration-control", HYPERVISOR + 1, 0, Reg::Eax, 17),
        ] {
            let f = feature(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((f.leaf, f.subleaf, f.reg, f.bit), (leaf, subleaf, reg, bit), "{f}");
        }
        assert_eq!(feature("nothing"), None);
    }

    #[test]
    fn a_slip_of_the_finger_is_understood() {
        assert_eq!(nearest("x2apci", &[]), Some("x2apic"));
        assert_eq!(nearest("tsc_deadlin", &[]), Some("tsc-deadline"));
        assert_eq!(nearest("vendr", &["vendor"]), Some("vendor"));
        assert_eq!(nearest("completely-different", &[]), None);
        assert_eq!(nearest("", &[]), None);
    }
}
