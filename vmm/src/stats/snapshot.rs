//! The counters at one moment, as plain values: what is printed, written to a file, and sent.

use serde::{Deserialize, Serialize};

use super::metric::Metric;
use super::{Counters, Reason, Sample, VcpuStats};
use std::sync::atomic::Ordering;

/// The version of [`Snapshot`]'s form. Fields may be added to it; what there is keeps its meaning.
pub const VERSION: u32 = 1;

/// What a tick is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Ticks of a second; not 0.
    pub per_second: u64,
}

impl Scale {
    /// So many ticks in nanoseconds.
    pub fn nanos(self, ticks: u64) -> u64 {
        let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(self.per_second.max(1));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// How long something took: nanoseconds, and in ticks how often which time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// In all.
    pub total_ns: u64,
    /// What half of them did not exceed, to 3 %.
    pub p50_ns: u64,
    /// What 90 % did not exceed.
    pub p90_ns: u64,
    /// What 99 % did not exceed.
    pub p99_ns: u64,
    /// The longest, exactly.
    pub max_ns: u64,
    /// Buckets that are not empty: the largest value of each in ticks, and how many are in it.
    pub buckets: Vec<(u64, u64)>,
}

impl Times {
    fn of(sample: &Sample, scale: Scale) -> Times {
        Times {
            total_ns: scale.nanos(sample.total),
            p50_ns: scale.nanos(sample.permille(500)),
            p90_ns: scale.nanos(sample.permille(900)),
            p99_ns: scale.nanos(sample.permille(990)),
            max_ns: scale.nanos(sample.max),
            buckets: sample.filled().collect(),
        }
    }
}

/// Exits of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonRow {
    /// The reason.
    pub name: String,
    /// Exits.
    pub count: u64,
    /// Time in user space: from the return of `KVM_RUN` until the exit was answered.
    pub user: Times,
    /// Time in the `KVM_RUN` that ended with it.
    pub kvm: Times,
}

/// Accesses to one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// The device.
    pub name: String,
    /// Accesses.
    pub count: u64,
    /// Time in user space.
    pub user: Times,
}

/// One vCPU, or all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuSnapshot {
    /// Exits of the guest: all but `interrupted`, which is this program's own doing.
    pub exits: u64,
    /// Accesses to devices, and to nobody.
    pub accesses: u64,
    /// Time in user space, for exits.
    pub user_ns: u64,
    /// Time in `KVM_RUN`.
    pub kvm_ns: u64,
    /// Time that the statistics took themselves; in no other number.
    pub own_ns: u64,
    /// By reason, where there were exits.
    pub reasons: Vec<ReasonRow>,
    /// By device, where there were accesses.
    pub devices: Vec<DeviceRow>,
}

/// What KVM counts itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmStats {
    /// Why there is nothing, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
    /// How many are left out, as this program does not know their kind or unit.
    #[serde(default)]
    pub left_out: u64,
    /// Of the VM.
    #[serde(default)]
    pub vm: Vec<Metric>,
    /// Of each vCPU.
    #[serde(default)]
    pub vcpus: Vec<Vec<Metric>>,
}

/// All of it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u32,
    /// Since the guest started.
    pub elapsed_ns: u64,
    /// Ticks of a second.
    pub ticks_per_second: u64,
    /// All vCPUs together.
    pub total: VcpuSnapshot,
    /// Each of them.
    pub vcpus: Vec<VcpuSnapshot>,
    /// What KVM counts.
    pub kvm: KvmStats,
}

/// The samples of one vCPU, or of all.
struct Samples {
    reasons: Vec<(Sample, Sample)>,
    devices: Vec<Sample>,
    own: u64,
}

impl Samples {
    fn read(stats: &VcpuStats) -> Samples {
        let read = |meter: &super::Meter| meter.read().unwrap_or_default();
        Samples {
            reasons: stats.reasons.iter().map(|r| (read(&r.user), read(&r.kvm))).collect(),
            devices: stats.devices.iter().map(read).collect(),
            own: stats.own.load(Ordering::Relaxed),
        }
    }

    fn merge(&mut self, other: &Samples) {
        for (to, from) in self.reasons.iter_mut().zip(&other.reasons) {
            to.0.merge(&from.0);
            to.1.merge(&from.1);
        }
        for (to, from) in self.devices.iter_mut().zip(&other.devices) {
            to.merge(from);
        }
        self.own = self.own.wrapping_add(other.own);
    }

    fn shown(&self, devices: &[&str], scale: Scale) -> VcpuSnapshot {
        let reasons: Vec<ReasonRow> = Reason::ALL
            .iter()
            .zip(&self.reasons)
            .filter(|(_, (user, _))| user.count != 0)
            .map(|(reason, (user, kvm))| ReasonRow {
                name: reason.name().to_owned(),
                count: user.count,
                user: Times::of(user, scale),
                kvm: Times::of(kvm, scale),
            })
            .collect();
        let devices: Vec<DeviceRow> = devices
            .iter()
            .zip(&self.devices)
            .filter(|(_, sample)| sample.count != 0)
            .map(|(name, sample)| DeviceRow {
                name: (*name).to_owned(),
                count: sample.count,
                user: Times::of(sample, scale),
            })
            .collect();
        let guests = |row: &&ReasonRow| row.name != Reason::Interrupted.name();
        VcpuSnapshot {
            exits: reasons.iter().filter(guests).map(|row| row.count).sum(),
            accesses: devices.iter().map(|row| row.count).sum(),
            user_ns: reasons.iter().map(|row| row.user.total_ns).sum(),
            kvm_ns: reasons.iter().map(|row| row.kvm.total_ns).sum(),
            own_ns: scale.nanos(self.own),
            reasons,
            devices,
        }
    }
}

impl Counters {
    /// What was counted so far: all vCPUs together, and each.
    pub fn read(&self, scale: Scale) -> (VcpuSnapshot, Vec<VcpuSnapshot>) {
        let samples: Vec<Samples> = self.vcpus.iter().map(Samples::read).collect();
        let each = samples.iter().map(|s| s.shown(&self.devices, scale)).collect();
        let mut samples = samples.into_iter();
        let Some(mut all) = samples.next() else { return (VcpuSnapshot::default(), each) };
        samples.for_each(|s| all.merge(&s));
        (all.shown(&self.devices, scale), each)
    }
}
