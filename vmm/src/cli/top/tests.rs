//! What is shown of two snapshots, and what keys do.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use vmm::stats::metric::{Kind, Metric, Unit};
use vmm::stats::{DeviceRow, KvmStats, ReasonRow, Snapshot, Times, VcpuSnapshot};

use super::model::{Model, Page, Sort};
use super::*;

/// One tick is a nanosecond here.
fn times(buckets: &[(u64, u64)]) -> Times {
    let total_ns = buckets.iter().map(|(value, n)| value * n).sum();
    let max_ns = buckets.iter().map(|(value, _)| *value).max().unwrap_or(0);
    Times { total_ns, max_ns, buckets: buckets.to_vec(), ..Times::default() }
}

fn exits(name: &str, buckets: &[(u64, u64)]) -> ReasonRow {
    let count = buckets.iter().map(|(_, n)| n).sum();
    ReasonRow { name: name.to_owned(), count, user: times(buckets), kvm: times(buckets) }
}

fn snapshot(seconds: u64, reasons: Vec<ReasonRow>) -> Snapshot {
    let exits = reasons.iter().map(|row| row.count).sum();
    let devices = reasons
        .iter()
        .map(|row| DeviceRow {
            name: format!("device of {}", row.name),
            count: row.count,
            user: row.user.clone(),
        })
        .collect();
    let user_ns = reasons.iter().map(|row| row.user.total_ns).sum();
    let total = VcpuSnapshot { exits, reasons, devices, user_ns, ..VcpuSnapshot::default() };
    let metric = |name: &str, values: &[u64], kind| Metric {
        name: name.to_owned(),
        kind,
        unit: Unit::None,
        base: 10,
        exponent: 0,
        bucket_size: 0,
        values: values.to_vec(),
    };
    let of_vcpu = vec![
        metric("exits", &[exits * 2], Kind::Cumulative),
        metric("polls", &[0, 1, 2], Kind::Log),
        metric("nothing", &[0], Kind::Cumulative),
    ];
    Snapshot {
        version: 1,
        elapsed_ns: seconds * 1_000_000_000,
        ticks_per_second: 1_000_000_000,
        vcpus: vec![total.clone(), VcpuSnapshot::default()],
        total,
        kvm: KvmStats { vcpus: vec![of_vcpu.clone(), of_vcpu], ..KvmStats::default() },
    }
}

/// In the second between the two, 100 writes of 2 us and 300 reads of 9 us came to what there was.
fn model() -> Model {
    let mut model = Model::default();
    model.update(snapshot(1, vec![exits("io in", &[(50, 10)]), exits("io out", &[(50, 900)])]));
    let now =
        vec![exits("io in", &[(50, 10), (9000, 300)]), exits("io out", &[(50, 900), (2000, 100)])];
    model.update(snapshot(2, now));
    model
}

fn screen(model: &Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| view::draw(frame, model, "/run/vm, process 7")).expect("drawn");
    terminal.backend().to_string()
}

#[test]
fn rates_and_percentiles_are_those_of_the_interval() {
    let rows = model().exits();
    let told: Vec<_> = rows
        .iter()
        .map(|r| (&r.name[..], r.count, r.rate, r.share, r.user.p50, r.user.p99))
        .collect();
    assert_eq!(
        told,
        [
            ("io in", 310, 300.0, 75.0, Some(9000), Some(9000)),
            ("io out", 1000, 100.0, 25.0, Some(2000), Some(2000)),
        ]
    );
    assert_eq!(rows[0].user.total, 300 * 9000);
}

#[test]
fn nothing_new_is_no_time_and_no_division() {
    let mut model = Model::default();
    assert!(screen(&model, 100, 30).contains("0 exits, 0.0/s"));
    model.update(snapshot(1, vec![exits("hlt", &[(50, 10)])]));
    model.update(snapshot(1, vec![exits("hlt", &[(50, 10)])]));
    let row = &model.exits()[0];
    assert_eq!((row.rate, row.share, row.user.p50), (0.0, 0.0, None));
    assert!(screen(&model, 100, 30).contains('-'));
}

#[test]
fn each_page_shows_its_rows() {
    let mut model = model();
    let shown = screen(&model, 110, 30);
    for part in [
        "vmm top   /run/vm, process 7",
        "all 2 vCPUs   up 2.00 s   1310 exits, 400/s   sorted by rate",
        "io in",
        "9.00 us",
        "device of io out",
        "q quit",
    ] {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
    model.turn(true);
    let shown = screen(&model, 110, 30);
    assert!(shown.contains("KVM_RUN %") && shown.contains("1310"), "{shown}");
    model.turn(true);
    let shown = screen(&model, 110, 30);
    assert!(shown.contains("exits") && shown.contains("5240") && shown.contains("1600"), "{shown}");
    assert!(shown.contains("1:2 2:4"), "a histogram of two vCPUs:\n{shown}");
    assert!(!shown.contains("nothing"), "{shown}");
    model.turn(true);
    assert_eq!(model.page, Page::Exits);
    model.turn(false);
    assert_eq!(model.page, Page::Kvm);
}

#[test]
fn any_screen_is_large_enough_not_to_panic() {
    let mut model = model();
    for _ in 0..3 {
        for (width, height) in [(1, 1), (1, 50), (200, 1), (20, 5), (80, 8), (300, 100)] {
            screen(&model, width, height);
        }
        model.scroll = 100;
        model.turn(true);
        model.scroll = 100;
    }
}

#[test]
fn a_low_screen_shows_exits_first() {
    let shown = screen(&model(), 80, 11);
    assert!(shown.contains("io in") && !shown.contains("device of"), "{shown}");
}

#[test]
fn any_numbers_are_shown() {
    let most = |name: &str| {
        let row = exits(name, &[(1, 1)]);
        let user = Times { total_ns: u64::MAX, buckets: vec![(u64::MAX, u64::MAX); 2], ..row.user };
        ReasonRow { count: u64::MAX, user: user.clone(), kvm: user, ..row }
    };
    let mut now = snapshot(2, vec![exits("a", &[(1, 1)])]);
    now.total.reasons = vec![most("a"), most("b")];
    now.total.devices.clear();
    now.vcpus = vec![now.total.clone(); 2];
    now.vcpus.iter_mut().for_each(|vcpu| vcpu.exits = u64::MAX);
    (now.elapsed_ns, now.ticks_per_second) = (u64::MAX, 0);
    let mut model = Model::default();
    model.update(now);
    for _ in Page::ALL {
        assert!(screen(&model, 120, 20).contains("vmm top"));
        model.turn(true);
    }
}

#[test]
fn keys_do_what_the_last_line_says() {
    let mut model = model();
    let press = |model: &mut Model, code| typed(model, KeyEvent::new(code, KeyModifiers::NONE));
    let names =
        |model: &Model| -> Vec<String> { model.exits().into_iter().map(|row| row.name).collect() };
    for (sort, first) in [
        (Sort::Count, "io out"),
        (Sort::Time, "io in"),
        (Sort::P99, "io in"),
        (Sort::Name, "io in"),
        (Sort::Rate, "io in"),
    ] {
        assert!(press(&mut model, KeyCode::Char('s')));
        assert_eq!((model.sort, &names(&model)[0][..]), (sort, first));
    }
    assert!(press(&mut model, KeyCode::Char('p')));
    model.update(snapshot(9, Vec::new()));
    assert_eq!(names(&model).len(), 2, "paused");
    assert!(screen(&model, 100, 30).contains("paused"));
    assert!(press(&mut model, KeyCode::Char('p')));
    let chosen: Vec<_> = (0..4)
        .map(|_| {
            press(&mut model, KeyCode::Right);
            model.vcpu
        })
        .collect();
    assert_eq!(chosen, [Some(0), Some(1), None, Some(0)]);
    press(&mut model, KeyCode::Left);
    press(&mut model, KeyCode::Left);
    assert_eq!((model.vcpu, names(&model).len()), (Some(1), 0), "that one did nothing");
    assert!(!press(&mut model, KeyCode::Char('q')));
    assert!(!typed(&mut model, KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
}

#[test]
fn a_vm_that_has_ended_and_a_kvm_without_statistics_say_so() {
    let mut model = model();
    model.ended = Some("the VM at `/run/vm` has ended".to_owned());
    assert!(screen(&model, 120, 30).contains("has ended"));
    let lacks = Some("this host's KVM tells none".to_owned());
    let kvm = KvmStats { lacks, ..KvmStats::default() };
    model.update(Snapshot { kvm, ..Snapshot::default() });
    model.page = Page::Kvm;
    assert!(screen(&model, 120, 30).contains("tells none"));
}
