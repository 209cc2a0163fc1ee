use proptest::prelude::*;

use super::apply::COMPONENTS;
use super::*;

const fn leaf(leaf: u32, subleaf: u32, regs: [u32; 4]) -> Leaf {
    let [eax, ebx, ecx, edx] = regs;
    Leaf { leaf, subleaf, eax, ebx, ecx, edx, significant_subleaf: has_subleaves(leaf) }
}

/// A host on which every feature with a name is there, but for `svm` and `amx-tile`.
fn host(vendor: &[u8; 12]) -> Cpuid {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| vendor[at + i]));
    let mut cpuid = Cpuid(vec![
        leaf(0, 0, [0x1f, word(0), word(8), word(4)]),
        leaf(1, 0, [0x000a_06e4, 0x1234_0800, 0, 0]),
        leaf(4, 0, [0xfc00_4121, 0x01c0_003f, 0x3f, 0]),
        leaf(4, 1, [0xfc00_4163, 0x01c0_003f, 0x3ff, 0]),
        leaf(4, 2, [0, 0, 0, 0]),
        leaf(7, 0, [2, 0, 0, 0]),
        leaf(0xb, 0, [1, 2, 0x100, 99]),
        leaf(0xd, 0, [0x2ff, 2696, 2696, 0]),
        leaf(0xd, 2, [256, 576, 0, 0]),
        leaf(0xd, 3, [64, 960, 0, 0]),
        leaf(0xd, 4, [64, 1024, 0, 0]),
        leaf(0xd, 5, [64, 1088, 0, 0]),
        leaf(0xd, 6, [512, 1152, 0, 0]),
        leaf(0xd, 7, [1024, 1664, 0, 0]),
        leaf(0xd, 9, [8, 2688, 0, 0]),
        leaf(0x1f, 0, [1, 2, 0x100, 99]),
        leaf(HYPERVISOR, 0, [HYPERVISOR + 1, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(EXTENDED, 0, [EXTENDED + 0x21, word(0), word(8), word(4)]),
        leaf(EXTENDED + 8, 0, [0x3930, 0, 0x3_7007, 0]),
        leaf(EXTENDED + 0x1d, 0, [0x4121, 0, 0, 0]),
        leaf(EXTENDED + 0x1d, 3, [0x1c163, 0, 0, 0]),
        leaf(EXTENDED + 0x1e, 0, [7, 7, 7, 0]),
    ]);
    for f in features().filter(|f| !["svm", "amx-tile"].contains(&f.name)) {
        cpuid.set(&f, true);
    }
    cpuid
}

fn intel() -> Cpuid {
    host(b"GenuineIntel")
}

fn model(text: &str) -> CpuModel {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn cpu(text: &str) -> Cpuid {
    model(text).apply(&intel(), 0, &Topology::flat(1)).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn leaves_are_found_put_and_raised() {
    let mut cpuid = Cpuid::default();
    let named = |name| feature(name).expect("a feature");
    cpuid.set(&named("svm"), false);
    assert_eq!(cpuid.0, [], "clearing adds nothing");
    cpuid.set(&named("svm"), true);
    assert!(cpuid.has_named("svm") && !cpuid.has_named("lahf_lm") && !cpuid.has_named("none"));
    assert_eq!(cpuid.highest(EXTENDED), EXTENDED + 1);
    cpuid.set(&named("lam"), true);
    assert_eq!(cpuid.get(7, 0).map(|l| l.eax), Some(1));
    assert_eq!(cpuid.highest(0), 7);
    assert_eq!(cpuid.get(7, 2), None);
    assert!(cpuid.get(EXTENDED + 1, 5).is_some(), "its subleaf means nothing");
    assert!(cpuid.0.is_sorted_by_key(|l| (l.leaf, l.subleaf)));
}

#[test]
fn the_option_is_read_and_written() {
    let m = model("host,-pcid,+x2apic,tsc_deadline,avx=off,vendor=AuthenticAMD,phys-bits=40");
    assert_eq!(
        m.to_string(),
        "host,-pcid,+x2apic,+tsc-deadline,-avx,vendor=AuthenticAMD,phys-bits=40"
    );
    let m = model("max, model-name=A test (R),family=0x19,model=17,stepping=2,kvm=off,force");
    assert_eq!(m.to_string().parse(), Ok(m.clone()));
    assert_eq!(model("phys-bits=40,host-phys-bits"), CpuModel::default());
    assert_eq!(model("svm"), model("host,+svm"));
}

#[test]
fn errors_name_the_word_and_the_way_out() {
    let error = |text: &str| text.parse::<CpuModel>().unwrap_err().to_string();
    assert!(error("host,+x2apci").contains("`+x2apci`"), "{}", error("host,+x2apci"));
    assert!(error("host,+x2apci").contains("is `x2apic` meant?"));
    assert!(error("vendr=GenuineIntel").contains("is `vendor` meant?"));
    assert!(error("-pcid,host").contains("`host` is no feature"), "only the first word is a model");
    assert!(error("").contains("``"));
    for bad in [
        "vendor=Intel",
        "vendor=Genuine Inte",
        "phys-bits=53",
        "phys-bits=x",
        "family=271",
        "model=0x100",
        "stepping=16",
        "kvm=maybe",
        "pcid=1",
    ] {
        assert!(error(bad).contains(&format!("`{bad}` cannot be")), "{}", error(bad));
    }
    assert!(error(&format!("model-name={}", "x".repeat(48))).contains("47"));
}

#[test]
fn features_are_turned_on_and_off() {
    let c = cpu("host,-pcid,-smep");
    assert!(!c.has_named("pcid") && !c.has_named("smep") && c.has_named("smap"));
    assert!(!c.has_named("invpcid"), "which needs pcid");
    assert!(c.has_named("hypervisor") && !cpu("-hypervisor").has_named("hypervisor"));
    assert!(!c.has_named("osxsave") && !c.has_named("ospke"));
    let refused = model("+svm").apply(&intel(), 0, &Topology::flat(1)).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("svm (leaf 0x80000001, ECX bit 2)") && text.contains("force"), "{text}");
    assert!(cpu("+svm,force").has_named("svm"));
    let bare = Cpuid(vec![leaf(0, 0, [1, 0, 0, 0]), leaf(1, 0, [0; 4])]);
    let c = model("+umip,force").apply(&bare, 0, &Topology::flat(1)).expect("forced");
    assert!(c.has_named("umip") && c.highest(0) == 7);
    assert!(c.get(HYPERVISOR, 0).is_none(), "no hypervisor leaves but the host's own");
    assert!(model("kvm-hint-dedicated").apply(&bare, 0, &Topology::flat(1)).is_ok());
}

#[test]
fn a_model_has_its_own_features_and_no_more_than_the_host() {
    let qemu64 = cpu("qemu64,-sse3,+smep");
    for (name, there) in [
        ("sse2", true),
        ("lahf-lm", true),
        ("x2apic", true),
        ("kvmclock", true),
        ("smep", true),
        ("sse3", false),
        ("avx", false),
        ("xsave", false),
        ("smap", false),
        ("invtsc", false),
    ] {
        assert_eq!(qemu64.has_named(name), there, "{name}");
    }
    assert_eq!(qemu64.get(1, 0).map(|l| l.eax & 0x0fff_0fff), Some(0x0006_0fb1), "15, 107, 1");
    assert_eq!(qemu64.get(EXTENDED + 8, 0).map(|l| l.eax & 0xff), Some(40));
    assert!(qemu64.get(0xd, 0).is_none(), "no XSAVE, no state components");
    let own = cpu("qemu64,host-phys-bits").get(EXTENDED + 8, 0).map(|l| l.eax & 0xff);
    assert_eq!(own, Some(0x30));
    for base in &MODELS {
        let told = cpu(base.name);
        assert!(features().all(|f| !told.has(&f) || intel().has(&f) || f.name == "hypervisor"));
        let written = model(base.name).to_string();
        assert_eq!(model(&written), model(base.name), "{written}");
    }
    let amd = model("qemu64").apply(&host(b"AuthenticAMD"), 0, &Topology::flat(1)).expect("a CPU");
    let mirrored = |leaf| amd.get(leaf, 0).map(|l| l.edx & 0x0183_f3ff);
    assert_eq!(mirrored(1), mirrored(EXTENDED + 1), "what AMD repeats");
}

#[test]
fn what_the_host_lacks_is_left_out_if_that_is_allowed() {
    let asked = "host,+svm,+sse3,phys-bits=52";
    assert!(model(asked).apply(&intel(), 0, &Topology::flat(1)).is_err());
    let lenient = cpu(&format!("{asked},enforce=off"));
    assert!(!lenient.has_named("svm") && lenient.has_named("sse3"));
    assert_eq!(lenient.get(EXTENDED + 8, 0).map(|l| l.eax & 0xff), Some(0x30));
    assert!(!model(&format!("{asked},enforce=off,enforce")).lenient);
    let shown = model("qemu64,enforce=off,host-phys-bits,+svm");
    assert_eq!(model(&shown.to_string()), shown);
}

#[test]
fn the_leaves_of_the_hypervisor_can_be_hidden() {
    assert!(cpu("host").has_named("kvmclock"));
    assert!(!cpu("-kvmclock").has_named("kvmclock2"));
    let c = cpu("kvm=off");
    assert!(c.0.iter().all(|l| l.leaf & RANGE != HYPERVISOR));
}

#[test]
fn amd_repeats_bits_and_intel_does_not() {
    let amd = |text| model(text).apply(&host(b"AuthenticAMD"), 0, &Topology::flat(1)).expect("ok");
    let repeated = |c: &Cpuid| c.get(EXTENDED + 1, 0).expect("there").edx & table::MIRROR;
    assert_eq!(repeated(&amd("-pae")), table::MIRROR & !(1 << 6));
    assert_eq!(repeated(&amd("vendor=GenuineIntel")), 0);
    assert_eq!(repeated(&cpu("vendor=HygonGenuine")), table::MIRROR);
    assert_eq!(&cpu("vendor=AuthenticAMD").vendor(), b"AuthenticAMD");
}

#[test]
fn names_and_numbers_are_where_they_belong() {
    let c = cpu("model-name=Exit Lab,family=25,model=0x61,stepping=2");
    let text: Vec<u8> = (EXTENDED + 2..=EXTENDED + 4)
        .flat_map(|l| Reg::ALL.map(|reg| c.get(l, 0).expect("there").reg(reg).to_le_bytes()))
        .flatten()
        .collect();
    assert_eq!(text[..9], *b"Exit Lab\0");
    assert_eq!(c.get(1, 0).expect("there").eax, 0x00a6_0f12);
    assert_eq!(cpu("host").get(1, 0).expect("there").eax, 0x000a_06e4, "as the host's");
}

#[test]
fn address_bits_follow_phys_bits_and_la57() {
    let bits = |text| cpu(text).get(EXTENDED + 8, 0).expect("there").eax;
    assert_eq!(bits("host"), 0x3930);
    assert_eq!(bits("phys-bits=40"), 0x3928);
    assert_eq!(bits("-la57"), 0x3030);
    assert_eq!(bits("phys-bits=52,force"), 0x3934);
    let e = model("phys-bits=52").apply(&intel(), 0, &Topology::flat(1)).unwrap_err();
    assert_eq!(e, CpuidError::PhysBits { asked: 52, host: 48 });
}

#[test]
fn xsave_loses_the_components_of_absent_features() {
    let d = |text: &str| cpu(text).get(0xd, 0).copied().map(|l| (l.eax, l.ecx));
    assert_eq!(d("host"), Some((0x2ff, 2696)));
    assert_eq!(d("-pku"), Some((0xff, 2688)));
    assert_eq!(d("-avx512f"), Some((0x21f, 2696)));
    assert_eq!(d("-avx512f,-pku"), Some((0x1f, 1088)));
    assert_eq!(d("-avx,-mpx,-pku"), Some((0b11, 576)));
    assert_eq!(d("-xsave"), None);
    let c = cpu("-avx");
    assert!(!c.has_named("avx2") && !c.has_named("avx512vnni") && c.has_named("xsave"));
    assert!(COMPONENTS.iter().all(|(bits, _)| bits & 0b11 == 0), "x87 and SSE always stay");
}

#[test]
fn the_topology_is_told_everywhere() {
    let topology = Topology { sockets: 2, cores: 3, threads: 2, step: 1 };
    let c = model("host").apply(&intel(), 9, &topology).expect("ok");
    let regs = |l, s| c.get(l, s).map(|l| [l.eax, l.ebx, l.ecx, l.edx]).expect("there");
    assert_eq!(regs(1, 0)[1], 0x0b08_0800, "APIC ID 11, 8 IDs a package, lines of 64 bytes");
    assert!(c.has_named("ht"));
    assert_eq!(regs(4, 0)[0], 3 << 26 | 1 << 14 | 0x121, "a core's");
    assert_eq!(regs(4, 1)[0], 3 << 26 | 7 << 14 | 0x163, "a package's");
    assert_eq!(regs(4, 2), [0; 4], "the end of the list");
    for l in [0xb, 0x1f] {
        assert_eq!(regs(l, 0), [1, 2, 0x100, 11]);
        assert_eq!(regs(l, 1), [3, 6, 0x201, 11]);
        assert_eq!(regs(l, 2), [0, 0, 2, 11]);
    }
    assert_eq!(regs(EXTENDED + 8, 0)[2], 0);
    let c = model("host").apply(&host(b"AuthenticAMD"), 9, &topology).expect("ok");
    let regs = |l, s| c.get(l, s).map(|l| [l.eax, l.ebx, l.ecx, l.edx]).expect("there");
    assert_eq!(regs(EXTENDED + 8, 0)[2], 0x3_3005);
    assert_eq!(regs(EXTENDED + 0x1d, 0)[0] >> 14, 1);
    assert_eq!(regs(EXTENDED + 0x1d, 3)[0] >> 14, 5);
    assert_eq!(regs(EXTENDED + 0x1e, 0), [11, 0x101, 1, 0]);
    assert!(c.has_named("cmp-legacy"));
    assert!(!cpu("host").has_named("ht"), "one thread needs no count");
}

#[test]
fn a_topology_that_cannot_be_is_refused() {
    let apply = |vcpu, t: Topology| model("host").apply(&intel(), vcpu, &t);
    assert_eq!(apply(2, Topology::flat(2)), Err(CpuidError::Vcpu { vcpu: 2, cpus: 2 }));
    for t in [
        Topology::flat(0),
        Topology::flat(u32::MAX),
        Topology { sockets: 3, cores: 1 << 15, threads: 1, step: 1 },
        Topology { sockets: 1 << 16, cores: 1 << 16, threads: 1 << 16, step: 1 },
    ] {
        assert_eq!(apply(0, t), Err(CpuidError::Topology(t)));
    }
    assert!(apply(65535, Topology::flat(1 << 16)).is_ok());
}

fn any_feature() -> impl Strategy<Value = Feature> {
    proptest::sample::select(features().collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn the_last_word_on_a_feature_counts(f in any_feature(), g in any_feature()) {
        let off = cpu(&format!("+{0},-{0},force", f.name));
        prop_assert!(!off.has(&f));
        let on = cpu(&format!("-{0},+{0},force", f.name));
        prop_assert!(on.has(&f));
        let both = cpu(&format!("-{},-{}", g.name, f.name));
        prop_assert!(!both.has(&f) && !both.has(&g));
    }

    /// Turning a feature off changes no bit with a name but its own and those that need it.
    #[test]
    fn turning_off_leaves_the_others(f in any_feature()) {
        let (with, without) = (cpu("host"), cpu(&format!("-{}", f.name)));
        for other in features().filter(|other| with.has(other) && !without.has(other)) {
            let needs = |name| table::NEEDS.iter().filter(move |(n, _)| *n == name);
            let mut above = vec![other.name];
            let mut found = false;
            while let Some(name) = above.pop() {
                found |= name == f.name;
                above.extend(needs(name).map(|(_, needed)| *needed));
            }
            prop_assert!(found, "-{} took {other} away", f.name);
        }
        prop_assert!(features().all(|other| with.has(&other) || !without.has(&other)));
    }

    #[test]
    fn any_option_is_read_or_refused(text in "[a-z0-9+=,_-]{0,40}|(host)?(,[+-]?(pcid|avx|kvm|force))*") {
        if let Ok(m) = text.parse::<CpuModel>() {
            prop_assert_eq!(m.to_string().parse::<CpuModel>(), Ok(m.clone()));
            let _ = m.apply(&intel(), 0, &Topology::flat(1));
        }
    }

    #[test]
    fn apic_ids_differ_and_fit(
        sockets in 1..5u32,
        cores in 1..9u32,
        threads in 1..4u32,
        step in (0..8u32).prop_map(|bits| 1 << bits),
    ) {
        let t = Topology { sockets, cores, threads, step };
        let ids: Vec<_> = (0..t.cpus()).map(|i| t.apic_id(i)).collect();
        prop_assert!(ids.is_sorted_by(|a, b| a < b));
        for (i, id) in (0..).zip(&ids) {
            let c = model("host").apply(&intel(), i, &t).expect("ok");
            prop_assert_eq!(c.get(0xb, 0).map(|l| l.edx), Some(*id));
            prop_assert_eq!(c.get(1, 0).map(|l| l.ebx >> 24), Some(id & 0xff));
        }
    }

    /// Whatever leaves a host reports, a model is applied or refused.
    #[test]
    fn any_host_will_do(
        leaves in proptest::collection::vec(
            (0..0x22u32, 0..3u32, 0..10u32, any::<[u32; 4]>()), 0..24),
        on in any_feature(),
        off in any_feature(),
    ) {
        let at = [0, EXTENDED, HYPERVISOR];
        let leaves = leaves.into_iter().map(|(l, range, s, regs)| leaf(at[range as usize] + l, s, regs));
        let text = format!("-{},+{},force,phys-bits=44,vendor=AuthenticAMD", off.name, on.name);
        let c = model(&text).apply(&Cpuid(leaves.collect()), 1, &Topology::flat(2));
        prop_assert!(c.is_ok_and(|c| c.has(&on)));
    }
}
