//! KVM's statistics: any bytes, bytes that say what they are, and this machine's own.

use proptest::prelude::*;

use super::format::{HEADER, MOST};
use super::*;
use crate::hv::Vm;
use crate::hv::kvm::KvmConfig;
use crate::stats::metric::{Kind, Unit};

/// A descriptor as KVM writes it.
fn descriptor(
    flags: u32,
    exponent: i16,
    size: u16,
    offset: u32,
    bucket: u32,
    name: &str,
) -> Vec<u8> {
    let mut bytes = flags.to_le_bytes().to_vec();
    bytes.extend(exponent.to_le_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes.extend(bucket.to_le_bytes());
    let mut name = name.as_bytes().to_vec();
    name.resize(NAME, 0);
    bytes.extend(name);
    bytes
}

const NAME: usize = 48;
const ID: u32 = HEADER as u32;

/// A file with these descriptors and values.
fn file(descriptors: &[Vec<u8>], values: &[u64]) -> Vec<u8> {
    let (at, block) = (ID + NAME as u32, descriptors.concat());
    let header = [0, NAME as u32, descriptors.len() as u32, ID, at, at + block.len() as u32];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(at as usize, b'x');
    bytes.extend(block);
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[test]
fn kinds_units_and_values_are_those_that_are_described() {
    let descriptors = [
        descriptor(0x000, 0, 1, 0, 0, "exits"),
        descriptor(0x011, -3, 1, 8, 0, "held"),
        descriptor(0x122, 20, 1, 16, 0, "peak"),
        descriptor(0x033, 0, 3, 24, 100, "linear"),
        descriptor(0x024, -9, 2, 48, 0, "log"),
        descriptor(0x041, 0, 1, 64, 0, "blocking"),
    ];
    let metrics = parse(&file(&descriptors, &[5, 6, 7, 1, 2, 3, 8, 9, 1])).expect("its form");
    let told: Vec<_> = metrics
        .iter()
        .map(|m| (&m.name[..], m.kind, m.unit, m.base, m.exponent, m.bucket_size, &m.values[..]))
        .collect();
    assert_eq!(
        told,
        [
            ("exits", Kind::Cumulative, Unit::None, 10, 0, 0, &[5][..]),
            ("held", Kind::Instant, Unit::Bytes, 10, -3, 0, &[6]),
            ("peak", Kind::Peak, Unit::Seconds, 2, 20, 0, &[7]),
            ("linear", Kind::Linear, Unit::Cycles, 10, 0, 100, &[1, 2, 3]),
            ("log", Kind::Log, Unit::Seconds, 10, -9, 0, &[8, 9]),
            ("blocking", Kind::Instant, Unit::Boolean, 10, 0, 0, &[1]),
        ]
    );
}

#[test]
fn what_is_not_known_is_left_out_and_counted() {
    let unknown = [0x005, 0x050, 0x200].map(|flags| descriptor(flags, 0, 1, 0, 0, "new"));
    let known = [descriptor(0, 0, 1, 0, 0, "exits")];
    let bytes = file(&[&unknown[..], &known].concat(), &[5]);
    let (at, len) = descriptors_at(&bytes);
    let layout = Layout::new(&bytes, &bytes[at..at + len]).expect("its form");
    assert_eq!((layout.unknown(), layout.data_at().1), (3, 8));
    assert_eq!(parse(&bytes).expect("its form").len(), 1);
}

fn descriptors_at(bytes: &[u8]) -> (usize, usize) {
    let (at, len) = super::format::descriptors_at(bytes).expect("a header");
    (at as usize, len)
}

#[test]
fn what_is_wrong_is_named() {
    let one = |name: &str, at| file(&[descriptor(0, 0, 1, at, 0, name)], &[5]);
    let good = one("exits", 0);
    let said = |bytes: &[u8]| parse(bytes).expect_err("it is wrong").to_string();
    assert_eq!(said(&good[..20]), "the header has 20 bytes where 24 are needed");
    assert!(said(&good[..100]).starts_with("the block of descriptors has 28 bytes where 64"));
    assert!(said(&good[..good.len() - 1]).starts_with("the block of values has 7 bytes where 8"));
    assert!(said(&one("", 0)).contains("the name of statistic 0"));
    assert!(said(&one(&"x".repeat(NAME), 0)).contains("the name of statistic 0"));
    assert!(said(&one("a\u{1b}[2J", 0)).contains("the name of statistic 0"), "nor for a terminal");
    assert!(said(&one("exits", u32::MAX)).starts_with("the values would have 4294967303 bytes"));
    let mut many = good.clone();
    many[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(said(&many).starts_with("the descriptors would have"));
    assert!(said(&[0xff; 64]).starts_with("the descriptors would have"), "however many");
    // Descriptors that all show the same values.
    let same = vec![descriptor(4, 0, u16::MAX, 0, 0, "log"); 3];
    assert!(said(&file(&same, &[0; 65535])).starts_with("all values would have"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn a_damaged_file_is_read_or_refused(
        flags in 0u32..0x300,
        size in any::<u16>(),
        offset in 0u32..64,
        at in 0usize..160,
        to in any::<u8>(),
        cut in 0usize..300,
    ) {
        let descriptors = [descriptor(flags, 1, size, offset, 1, "a"), descriptor(4, 1, 3, 8, 1, "b")];
        let mut bytes = file(&descriptors, &[7; 16]);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        bytes.truncate(cut.max(HEADER));
        if let Ok(metrics) = parse(&bytes) {
            let values: usize = metrics.iter().map(|metric| metric.values.len()).sum();
            prop_assert!(8 * values <= MOST);
            prop_assert!(metrics.iter().all(|metric| !metric.name.is_empty()));
        }
    }
}

#[test]
fn this_machines_kvm_tells_its_statistics() {
    let Some(host) = crate::hv::kvm::tests::host() else { return };
    if !host.has_stats() {
        eprintln!("not tested: no KVM_CAP_BINARY_STATS_FD");
        return;
    }
    let vm = host.create_vm(&KvmConfig { cpus: 1, ..KvmConfig::default() }, None).expect("a VM");
    let vcpu = vm.create_vcpu(0).expect("a vCPU");
    let (of_vm, of_vcpu) = (vm.stats().expect("a file"), vcpu.stats().expect("a file"));
    assert_eq!((of_vm.unknown(), of_vcpu.unknown()), (0, 0));
    let (of_vm, metrics) = (of_vm.read().expect("values"), of_vcpu.read().expect("values"));
    assert!(of_vm.iter().any(|metric| metric.name == "remote_tlb_flush"));
    let exits = metrics.iter().find(|metric| metric.name == "exits").expect("exits are counted");
    assert_eq!(
        (exits.kind, exits.unit, &exits.values[..]),
        (Kind::Cumulative, Unit::None, &[0][..])
    );
    let polls = metrics.iter().find(|metric| metric.kind == Kind::Log).expect("a histogram");
    assert!(polls.values.len() > 8 && polls.exponent == -9, "{polls:?}");
}
