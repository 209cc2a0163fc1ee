use super::*;

/// What a KVM that has everything offers, as far as this module looks.
fn offered() -> Cpuid {
    let leaf = |leaf, eax, ebx, edx| Leaf { leaf, eax, ebx, edx, ..Leaf::default() };
    let text = |b: &[u8; 4]| u32::from_le_bytes(*b);
    Cpuid(vec![
        Leaf { ecx: text(b"KVM "), ..leaf(FIRST, 0x4000_0082, text(b"Linu"), text(b"Hv\0\0")) },
        leaf(FIRST + 1, text(b"Hv#1"), 0, 0),
        leaf(FEATURES, 0x0000_aaff | 1 << 8, 0x0010_0830, 0x0008_4d10),
        leaf(ADVICE, 0x0004_0e2c, 0xfff, 0),
        leaf(FIRST + 5, 1024, 64, 0),
    ])
}

/// KVM's own leaves before Hyper-V's come.
fn own() -> Cpuid {
    let leaf = |leaf, eax| Leaf { leaf, eax, ..Leaf::default() };
    Cpuid(vec![leaf(0, 0xd), leaf(FIRST, FIRST + 1), leaf(FIRST + 1, 0x0100_7efb)])
}

fn list(text: &str) -> Enlightenments {
    text.parse().expect(text)
}

fn leaves(text: &str) -> Cpuid {
    let (offered, mut cpuid) = (offered(), own());
    list(text).on(&offered).expect(text).apply(&offered, &mut cpuid);
    cpuid
}

#[test]
fn a_list_is_written_back_as_it_was_read() {
    for text in [
        "",
        "relaxed",
        "relaxed,vapic,spinlocks=0x1fff,vpindex,runtime,crash,time,synic,stimer,stimer-direct",
        "vpindex,tlbflush,tlbflush-ext,ipi,reset,frequencies,reenlightenment,xmm-input",
        "all",
        "all,enforce-cpuid",
    ] {
        assert_eq!(list(text).to_string(), text);
    }
    assert_eq!(list(" time , runtime,"), list("runtime,time"));
}

#[test]
fn a_wrong_list_is_refused_with_what_is_right() {
    for (text, says) in [
        ("tyme", "is `time` meant?"),
        ("frobnicate", "known are relaxed, vapic"),
        ("time=1", "`time=1` is no enlightenment"),
        ("spinlocks=12", "0xfff to 0xfffffffe"),
        ("spinlocks=0xffffffff", "0xfff to 0xfffffffe"),
        ("stimer,time,vpindex", "`stimer` needs `synic`"),
        ("stimer,synic,vpindex", "`stimer` needs `time`"),
        ("synic", "`synic` needs `vpindex`"),
        ("ipi", "`ipi` needs `vpindex`"),
        ("tlbflush-ext,vpindex", "`tlbflush-ext` needs `tlbflush`"),
    ] {
        let error = text.parse::<Enlightenments>().unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn kvms_leaves_go_up_and_hypervs_are_there() {
    let cpuid = leaves("time");
    let eax = |leaf| cpuid.get(leaf, 0).map(|l| l.eax);
    assert_eq!(eax(0), Some(0xd));
    assert_eq!((eax(FIRST), eax(FIRST + 1)), (Some(0x4000_0005), Some(0x3123_7648)));
    assert_eq!((eax(FIRST + STEP), eax(FIRST + STEP + 1)), (Some(0x4000_0101), Some(0x0100_7efb)));
    assert!(cpuid.0.is_sorted_by_key(|l| l.leaf), "the leaves are in order");
    assert!((FIRST..END).all(|leaf| cpuid.get(leaf, 0).is_some()), "no gap");
}

#[test]
fn nothing_asked_for_is_nothing_changed() {
    for text in ["", "enforce-cpuid"] {
        assert_eq!(leaves(text), own(), "{text}");
    }
}

#[test]
fn what_was_asked_for_is_told_and_no_more() {
    let of = |text: &str| {
        let cpuid = leaves(text);
        let (features, advice) = (*cpuid.get(FEATURES, 0).unwrap(), *cpuid.get(ADVICE, 0).unwrap());
        (features.eax, features.ebx, features.edx, advice.eax, advice.ebx)
    };
    assert_eq!(of("time"), (0x222, 0, 0, 0, NEVER));
    assert_eq!(of("vpindex,synic"), (0x64, 0x30, 0, 0, NEVER));
    assert_eq!(of("relaxed,spinlocks"), (0x20, 0, 0, 0x20, 0xfff));
    assert_eq!(of("spinlocks=8191"), (0x20, 0, 0, 0, 8191));
    assert_eq!(of("vpindex,ipi,crash"), (0x60, 0, 0x400, 0xc00, NEVER));
    assert_eq!(of("all"), (0x2aff, 0x30, 0x8_4510, 0xc2c, 0xfff));
}

#[test]
fn a_host_that_lacks_one_says_which() {
    let mut less = offered();
    less.get_mut(FEATURES, 0).expect("features").edx &= !(1 << 19);
    let error = list("vpindex,time,synic,stimer,stimer-direct").on(&less).unwrap_err().to_string();
    assert!(error.contains("`stimer-direct`") && error.contains("EDX bit 19"), "{error}");
    let rest = list("all").on(&less).expect("what there is");
    assert!(rest.has("stimer") && !rest.has("stimer-direct"));
    assert_eq!(is_offered("stimer-direct", &less), Some(false));
    assert_eq!((is_offered("stimer", &less), is_offered("stimmer", &less)), (Some(true), None));
    let none = list("all").on(&Cpuid::default()).expect("nothing");
    assert!(none.is_empty());
}

#[test]
fn a_name_stands_once_and_needs_are_names() {
    let known: std::collections::BTreeSet<_> = names().collect();
    assert_eq!(known.len(), ROWS.len());
    for row in ROWS {
        assert!(row.needs.iter().all(|name| known.contains(name)), "{}", row.name);
    }
}
