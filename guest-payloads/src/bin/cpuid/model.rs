//! What the VMM was asked to tell the guest arrives: arguments say what.

use payload_rt::boot::{argument, number};
use payload_rt::cpuid::{self, Feature, leaf};
use payload_rt::{check, check_eq, report, skip, test};

fn named(name: &str) -> Feature {
    match cpuid::ALL.iter().find(|feature| feature.name == name) {
        Some(feature) => *feature,
        None => report::error(format_args!("this payload knows no feature {name}")),
    }
}

test!(switches, "Features are there or not as asked: wants `present=A,B` or `absent=A,B`.", || {
    let (present, absent) = (argument("present"), argument("absent"));
    if present.is_none() && absent.is_none() {
        skip!("needs present= or absent= on the command line");
    }
    for (list, there) in [(present, true), (absent, false)] {
        for name in list.into_iter().flat_map(|list| list.split(',')) {
            check_eq!(named(name).present(), there, "{name}");
        }
    }
});

// SDM volume 2, CPUID, leaf 1, EAX: the extended family is added if the family is 15, the
// extended model is put before the model.
test!(version, "Vendor, family, model, stepping and address bits are as asked.", || {
    let version = leaf(1, 0).eax;
    let base = version >> 8 & 0xf;
    let family = if base == 0xf { base + (version >> 20 & 0xff) } else { base };
    let model = version >> 4 & 0xf | version >> 12 & 0xf0;
    let mut asked = 0;
    for (key, value) in [
        ("family", family),
        ("model", model),
        ("stepping", version & 0xf),
        ("physbits", cpuid::physical_bits().into()),
    ] {
        if let Some(wanted) = number(key) {
            asked += 1;
            check_eq!(u64::from(value), wanted, "{key}");
        }
    }
    if let Some(wanted) = argument("vendor") {
        asked += 1;
        let letters = cpuid::signature(0);
        check!(letters == *wanted.as_bytes(), "vendor is {}", letters.escape_ascii());
    }
    if asked == 0 {
        skip!("needs vendor=, family=, model=, stepping= or physbits= on the command line");
    }
});
