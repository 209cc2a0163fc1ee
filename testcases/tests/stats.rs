//! `vmm run --stats` of payloads whose exits are known. Needs /dev/kvm; without it this says so and, if
//! EXITLAB_REQUIRE names kvm, fails.

mod real;

use std::path::Path;
use std::process::Command;

use payload_abi::exits::{CMDLINE, COLD, NUMBER};
use testcases::build::{Options, build_payloads};
use testcases::facts_table::FactsTable;
use vmm::stats::{Snapshot, UNCLAIMED, VcpuSnapshot};

/// What was counted of a payload's test, which must pass.
fn counted(vmm: &Path, payload: &Path, test: &str, more: &[&str]) -> Snapshot {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let json = folder.path().join("stats.json");
    let output = Command::new(vmm)
        .args(["run", "--timeout", "60s", "--test", test, "--payload"])
        .arg(payload)
        .arg(format!("--stats={}", json.display()))
        .args(more)
        .output()
        .expect("vmm");
    assert_eq!(
        output.status.code(),
        Some(1),
        "{test}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    serde_json::from_slice(&std::fs::read(json).expect("a file")).expect("a snapshot")
}

fn of_reason(vcpu: &VcpuSnapshot, name: &str) -> u64 {
    vcpu.reasons.iter().find(|row| row.name == name).map_or(0, |row| row.count)
}

fn of_device(vcpu: &VcpuSnapshot, name: &str) -> u64 {
    vcpu.devices.iter().find(|row| row.name == name).map_or(0, |row| row.count)
}

#[test]
fn exits_of_payloads_are_counted_one_by_one() {
    let facts = FactsTable::collect();
    let Some(vmm) = real::vmm(&facts, "statistics of no guest are looked at") else { return };
    let built = build_payloads(real::workspace(), &Options::default());
    let built = built.unwrap_or_else(|e| panic!("{e}"));
    let exits = &built.catalog.get("exits").expect("the payload exits").path;
    // Each test does its exit so many times, and looks once whether it did what it should.
    let all = (NUMBER + COLD) as u64;
    for test in ["port_write_unclaimed", "port_read_unclaimed"] {
        let counts = counted(&vmm, exits, test, &[]).total;
        assert_eq!(of_device(&counts, UNCLAIMED), all + 1, "{test}");
        // Where the measured exits begin and end; the end of the guest.
        assert_eq!(
            (of_device(&counts, "post"), of_device(&counts, "debug-exit")),
            (2, 1),
            "{test}"
        );
        let ports = of_reason(&counts, "io in") + of_reason(&counts, "io out");
        assert_eq!((ports, counts.accesses), (counts.exits, counts.exits), "{test}: no other exit");
    }
    // A hundred more of a kind are a hundred more, and of others as many as before.
    let more = format!("{CMDLINE}={}", NUMBER + 100);
    for (test, kind, other) in
        [("mmio_write", "mmio write", "mmio read"), ("mmio_read", "mmio read", "mmio write")]
    {
        let few = counted(&vmm, exits, test, &[]);
        let many = counted(&vmm, exits, test, &["--cmdline", &more]);
        let difference =
            |of: fn(&VcpuSnapshot, &str) -> u64, name| of(&many.total, name) - of(&few.total, name);
        assert_eq!(difference(of_reason, kind), 100, "{test}");
        assert_eq!(difference(of_reason, other), 0, "{test}");
        assert_eq!(difference(of_device, "testdev"), 100, "{test}");
        for Snapshot { total, kvm, .. } in [&few, &many] {
            let mmio = of_reason(total, "mmio read") + of_reason(total, "mmio write");
            assert_eq!(of_device(total, "testdev"), mmio, "{test}: nobody else is in memory");
            let Some(metrics) = kvm.vcpus.first() else {
                assert!(kvm.lacks.is_some(), "KVM's statistics are there, or why not");
                continue;
            };
            let metric = |name| {
                let found = metrics.iter().find(|metric| metric.name == name);
                found.unwrap_or_else(|| panic!("KVM does not tell {name}")).values[0]
            };
            // KVM counts an exit to its user for memory where it makes one.
            assert_eq!(metric("mmio_exits"), mmio, "{test}");
            assert!(metric("exits") >= total.exits, "{test}: KVM has some to itself");
        }
    }
    let smp = &built.catalog.get("smp").expect("the payload smp").path;
    let Snapshot { total, vcpus, .. } =
        counted(&vmm, smp, "stores_in_order", &["--cpus", "2", "--memory", "64M"]);
    assert_eq!(vcpus.len(), 2);
    assert_eq!(vcpus.iter().map(|vcpu| vcpu.exits).sum::<u64>(), total.exits);
    assert_eq!(of_device(&vcpus[0], "debug-exit") + of_device(&vcpus[1], "debug-exit"), 1);
}
