//! Counters, snapshots and their texts.

use super::metric::{Kind, Metric, Unit, merged};
use super::*;
use crate::access::{Access, Dir, Size, Space};
use crate::exit::Exit;

const SCALE: Scale = Scale { per_second: 2_000_000_000 };

fn counters() -> Counters {
    let counters = Counters::new(2, ["com1", "rtc"].into_iter());
    let [a, b] = [0, 1].map(|index| counters.vcpu(index).expect("a vCPU"));
    for _ in 0..3 {
        a.exit(Reason::IoOut, 2000, 100);
        a.access(0, 80);
    }
    a.exit(Reason::Interrupted, 10, 20);
    a.own(50);
    b.exit(Reason::IoOut, 6000, 400);
    b.access(2, 400);
    assert!(counters.vcpu(2).is_none());
    counters
}

#[test]
fn vcpus_are_counted_apart_and_together() {
    let (total, each) = counters().read(SCALE);
    assert_eq!(
        (total.exits, each[0].exits, each[1].exits),
        (4, 3, 1),
        "interrupted is not the guest's"
    );
    let row = &total.reasons[0];
    assert_eq!((row.name.as_str(), row.count), ("io out", 4));
    assert_eq!((row.user.total_ns, row.kvm.total_ns), (350, 6000));
    assert_eq!((row.user.max_ns, row.kvm.max_ns), (200, 3000));
    assert_eq!(row.user.p50_ns, 50);
    assert_eq!(row.user.buckets.iter().map(|(_, n)| n).sum::<u64>(), 4);
    assert_eq!(total.reasons[1].name, "interrupted");
    let devices: Vec<_> = total.devices.iter().map(|d| (d.name.as_str(), d.count)).collect();
    assert_eq!(devices, [("com1", 3), (UNCLAIMED, 1)]);
    assert_eq!((total.own_ns, total.accesses), (25, 4));
    assert_eq!((total.user_ns, total.kvm_ns), (360, 6005));
}

#[test]
fn a_number_of_no_row_is_not_counted_and_does_no_harm() {
    let counters = counters();
    let before = counters.read(SCALE);
    counters.vcpu(0).expect("a vCPU").access(usize::MAX, 1);
    assert_eq!(counters.read(SCALE), before);
}

#[test]
fn a_snapshot_is_the_same_after_json() {
    let (total, vcpus) = counters().read(SCALE);
    let kvm = KvmStats { vm: vec![metric(Kind::Log, &[0, 1, 2])], ..KvmStats::default() };
    let snapshot =
        Snapshot { version: VERSION, elapsed_ns: 7, ticks_per_second: 9, total, vcpus, kvm };
    let json = serde_json::to_string(&snapshot).expect("plain data");
    assert_eq!(serde_json::from_str::<Snapshot>(&json).expect("its own form"), snapshot);
}

fn metric(kind: Kind, values: &[u64]) -> Metric {
    let (name, values) = ("m".to_owned(), values.to_vec());
    Metric { name, kind, unit: Unit::Seconds, base: 10, exponent: -9, bucket_size: 5, values }
}

#[test]
fn metrics_merge_as_their_kind_asks() {
    let lists = |kind| [[metric(kind, &[3, 1])], [metric(kind, &[2, 7])]];
    let of = |kind| merged(lists(kind).iter().map(|list| &list[..]))[0].values.clone();
    assert_eq!(of(Kind::Cumulative), [5, 8]);
    assert_eq!(of(Kind::Log), [5, 8]);
    assert_eq!(of(Kind::Peak), [3, 7]);
}

#[test]
fn a_metric_is_told_with_its_unit_and_a_histogram_by_where_buckets_begin() {
    assert_eq!(name_of(&metric(Kind::Cumulative, &[1])), "m (ns)");
    assert_eq!(name_of(&Metric { base: 2, exponent: 3, ..metric(Kind::Peak, &[]) }), "m (2^3 s)");
    assert_eq!(value_of(&metric(Kind::Cumulative, &[17])), "17");
    assert_eq!(value_of(&metric(Kind::Log, &[1, 0, 2, 3])), "0:1 2:2 4:3");
    assert_eq!(value_of(&metric(Kind::Linear, &[1, 0, 2])), "0:1 10:2");
    assert_eq!(value_of(&metric(Kind::Log, &vec![1; 200])).split(' ').count(), 200, "however long");
}

#[test]
fn a_table_has_every_row_and_says_what_the_host_lacks() {
    let (total, vcpus) = counters().read(SCALE);
    let kvm = KvmStats { lacks: Some("this host has none".to_owned()), ..KvmStats::default() };
    let snapshot = Snapshot { elapsed_ns: 1_500_000, total, vcpus, kvm, ..Snapshot::default() };
    let text = table(&snapshot);
    for part in [
        "statistics of 1.50 ms",
        "2 vCPUs: 4 exits; 360 ns in user space, 6.00 us in KVM_RUN",
        "vCPU 0: 3 exits",
        "vCPU 1: 1 exits",
        "unclaimed",
        "this host has none",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let [out, interrupted] = ["io out", "interrupted"]
        .map(|name| text.lines().find(|l| l.trim_start().starts_with(name)).expect("a row"));
    assert!(out.contains("100.0"), "{out}");
    assert!(!interrupted.contains("100.0") && !interrupted.contains("25.0"), "{interrupted}");
}

#[test]
fn durations_have_three_digits() {
    let told = [0, 999, 1000, 99_940, 1_234_567, 123_456_789, 4_000_000_000].map(duration);
    assert_eq!(told, ["0 ns", "999 ns", "1.00 us", "99.9 us", "1.23 ms", "123 ms", "4.00 s"]);
}

#[test]
fn an_access_has_the_reason_of_its_exit() {
    for (space, dir) in [
        (Space::Port, Dir::Read),
        (Space::Port, Dir::Write(1)),
        (Space::Mmio, Dir::Read),
        (Space::Mmio, Dir::Write(1)),
    ] {
        let exit = Exit::Io(Access { space, addr: 0, size: Size::B1, dir });
        assert_eq!(Reason::of(&exit), Reason::of_access(space, dir));
    }
}
