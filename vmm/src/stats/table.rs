//! Statistics as a text for people.

use std::fmt::Write;

use super::metric::{Kind, Metric, Unit, merged};
use super::{Reason, Snapshot, Times, VcpuSnapshot};

/// Nanoseconds in three or four digits.
pub fn duration(nanos: u64) -> String {
    let scaled = |unit: u64, name: &str| {
        let value = nanos as f64 / unit as f64;
        match value {
            v if v >= 100.0 => format!("{v:.0} {name}"),
            v if v >= 10.0 => format!("{v:.1} {name}"),
            v => format!("{v:.2} {name}"),
        }
    };
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => scaled(1_000, "us"),
        1_000_000..1_000_000_000 => scaled(1_000_000, "ms"),
        _ => scaled(1_000_000_000, "s"),
    }
}

/// A share of a whole, in per cent; nothing of nothing is nothing.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn times(t: &Times) -> String {
    let [total, p50, p90, p99, max] =
        [t.total_ns, t.p50_ns, t.p90_ns, t.p99_ns, t.max_ns].map(duration);
    format!("{total:>9}{p50:>9}{p90:>9}{p99:>9}{max:>9}")
}

const HEAD: &str = "    total      p50      p90      p99      max";

fn one(text: &mut String, who: &str, v: &VcpuSnapshot) -> std::fmt::Result {
    let (user, kvm, own) = (duration(v.user_ns), duration(v.kvm_ns), duration(v.own_ns));
    writeln!(
        text,
        "{who}: {} exits; {user} in user space, {kvm} in KVM_RUN, {own} for these statistics",
        v.exits
    )?;
    let (user, kvm) = ("in user space", "in KVM_RUN");
    writeln!(text, "  {:<16}{:>10}{:>7}  {user:^45}  {kvm:^45}", "", "", "")?;
    writeln!(text, "  {:<16}{:>10}{:>7}  {HEAD}  {HEAD}", "exit", "count", "%")?;
    for row in &v.reasons {
        // What is this program's own doing is no share of the guest's exits.
        let share = match row.name == Reason::Interrupted.name() {
            true => String::new(),
            false => format!("{:.1}", percent(row.count, v.exits)),
        };
        let (user, kvm) = (times(&row.user), times(&row.kvm));
        writeln!(text, "  {:<16}{:>10}{share:>7}  {user}  {kvm}", row.name, row.count)?;
    }
    writeln!(text, "  {:<16}{:>10}{:>7}  {HEAD}", "device", "accesses", "%")?;
    for row in &v.devices {
        let (name, count, share) = (&row.name, row.count, percent(row.count, v.accesses));
        writeln!(text, "  {name:<16}{count:>10}{share:>7.1}  {}", times(&row.user))?;
    }
    Ok(())
}

/// The name of a metric, with its unit.
pub fn name_of(metric: &Metric) -> String {
    let name = &metric.name;
    let power = || format!("{}^{}", metric.base, metric.exponent);
    match (metric.unit, metric.base, metric.exponent) {
        (Unit::None | Unit::Boolean, _, 0) => name.clone(),
        (Unit::Seconds, 10, -9) => format!("{name} (ns)"),
        (Unit::Seconds, 10, -6) => format!("{name} (us)"),
        (Unit::Seconds, 10, -3) => format!("{name} (ms)"),
        (Unit::Seconds, _, 0) => format!("{name} (s)"),
        (Unit::Bytes, _, 0) => format!("{name} (bytes)"),
        (Unit::Bytes, 2, 10) => format!("{name} (KiB)"),
        (Unit::Bytes, 2, 20) => format!("{name} (MiB)"),
        (Unit::Cycles, _, 0) => format!("{name} (cycles)"),
        (Unit::None | Unit::Boolean, ..) => format!("{name} ({})", power()),
        (Unit::Seconds, ..) => format!("{name} ({} s)", power()),
        (Unit::Bytes, ..) => format!("{name} ({} bytes)", power()),
        (Unit::Cycles, ..) => format!("{name} ({} cycles)", power()),
    }
}

/// The value of a metric; of a histogram, each bucket that is not empty as FIRST VALUE:COUNT.
pub fn value_of(metric: &Metric) -> String {
    let first = |index: usize| match metric.kind {
        Kind::Linear => (index as u128) * u128::from(metric.bucket_size),
        _ => index.checked_sub(1).map_or(0, |power| 1u128 << power.min(127)),
    };
    if !metric.is_histogram() {
        return metric.values.first().map_or_else(String::new, u64::to_string);
    }
    let filled = metric.values.iter().enumerate().filter(|(_, n)| **n != 0);
    let words: Vec<String> = filled.map(|(index, n)| format!("{}:{n}", first(index))).collect();
    words.join(" ")
}

/// What KVM counts, but for what is 0: names and values in two columns.
pub fn kvm_table(metrics: &[Metric]) -> String {
    let mut text = String::new();
    for metric in metrics.iter().filter(|m| m.values.iter().any(|&v| v != 0)) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:<40} {}", name_of(metric), value_of(metric));
    }
    text
}

/// All of a snapshot: the vCPUs together and each of several, and what KVM counts.
pub fn table(snapshot: &Snapshot) -> String {
    let mut text = format!("statistics of {}\n", duration(snapshot.elapsed_ns));
    let written = match &snapshot.vcpus[..] {
        [only] => one(&mut text, "vCPU 0", only),
        each => one(&mut text, &format!("{} vCPUs", each.len()), &snapshot.total).and_then(|()| {
            let mut each = each.iter().enumerate();
            each.try_for_each(|(index, v)| one(&mut text, &format!("vCPU {index}"), v))
        }),
    };
    debug_assert!(written.is_ok(), "writing to a string does not fail");
    match &snapshot.kvm.lacks {
        Some(why) => text += &format!("KVM's own statistics: {why}\n"),
        None => {
            text += "KVM's own statistics of the VM (what is not 0)\n";
            text += &kvm_table(&snapshot.kvm.vm);
            text += "KVM's own statistics of its vCPUs (what is not 0)\n";
            text += &kvm_table(&merged(snapshot.kvm.vcpus.iter().map(Vec::as_slice)));
            if snapshot.kvm.left_out != 0 {
                let n = snapshot.kvm.left_out;
                text +=
                    &format!("  {n} more are of kinds or units that this program does not know\n");
            }
        }
    }
    text
}
