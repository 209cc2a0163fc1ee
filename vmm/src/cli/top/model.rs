//! What `vmm top` shows: two snapshots, and what came about between them.

use std::cmp::Reverse;
use std::sync::LazyLock;

use vmm::stats::metric::{Metric, merged};
use vmm::stats::{Snapshot, Times, VcpuSnapshot, percent, permille_of};

/// What rows are in order of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// The most a second first.
    #[default]
    Rate,
    /// The most since the start first.
    Count,
    /// The most time in user space first.
    Time,
    /// The slowest first.
    P99,
    /// By name.
    Name,
}

impl Sort {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Sort::Rate => "rate",
            Sort::Count => "count",
            Sort::Time => "time",
            Sort::P99 => "p99",
            Sort::Name => "name",
        }
    }

    /// The next one.
    pub fn next(self) -> Sort {
        match self {
            Sort::Rate => Sort::Count,
            Sort::Count => Sort::Time,
            Sort::Time => Sort::P99,
            Sort::P99 => Sort::Name,
            Sort::Name => Sort::Rate,
        }
    }
}

/// A page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Page {
    /// By reason and by device.
    #[default]
    Exits,
    /// By vCPU.
    Vcpus,
    /// What KVM counts.
    Kvm,
}

impl Page {
    /// All of them.
    pub const ALL: [Page; 3] = [Page::Exits, Page::Vcpus, Page::Kvm];

    /// Its title.
    pub fn title(self) -> &'static str {
        match self {
            Page::Exits => "exits",
            Page::Vcpus => "vCPUs",
            Page::Kvm => "KVM",
        }
    }
}

/// How long something took between two snapshots, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// In all.
    pub total: u64,
    /// What half did not exceed; none if there was nothing.
    pub p50: Option<u64>,
    /// What 99 % did not exceed.
    pub p99: Option<u64>,
}

/// A row of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What is counted.
    pub name: String,
    /// Since the start.
    pub count: u64,
    /// A second.
    pub rate: f64,
    /// Its share of all that came about, in per cent.
    pub share: f64,
    /// Time in user space.
    pub user: Window,
    /// Time in KVM_RUN; of exits.
    pub kvm: Window,
}

/// Two snapshots and how they are looked at.
#[derive(Debug, Default)]
pub struct Model {
    before: Snapshot,
    now: Snapshot,
    /// The order of rows.
    pub sort: Sort,
    /// The page.
    pub page: Page,
    /// Which vCPU; none for all.
    pub vcpu: Option<usize>,
    /// Rows that are scrolled past.
    pub scroll: usize,
    /// Nothing new is shown.
    pub is_paused: bool,
    /// The VM has ended: why nothing new comes.
    pub ended: Option<String>,
}

impl Model {
    /// A newer snapshot has come.
    pub fn update(&mut self, now: Snapshot) {
        if !self.is_paused {
            self.before = std::mem::replace(&mut self.now, now);
            self.vcpu = self.vcpu.filter(|&vcpu| vcpu < self.now.vcpus.len());
        }
    }

    /// The newest snapshot that is shown.
    pub fn now(&self) -> &Snapshot {
        &self.now
    }

    /// Nanoseconds between the two snapshots.
    pub fn window(&self) -> u64 {
        self.now.elapsed_ns.saturating_sub(self.before.elapsed_ns)
    }

    /// So many in the window, a second.
    fn rate(&self, n: u64) -> f64 {
        match self.window() {
            0 => 0.0,
            nanos => n as f64 * 1e9 / nanos as f64,
        }
    }

    /// What is looked at, before and now.
    fn sides(&self) -> (&VcpuSnapshot, &VcpuSnapshot) {
        static NOTHING: LazyLock<VcpuSnapshot> = LazyLock::new(VcpuSnapshot::default);
        (pick(&self.before, self.vcpu, &NOTHING), pick(&self.now, self.vcpu, &NOTHING))
    }

    /// Exits by reason, in order.
    pub fn exits(&self) -> Vec<Row> {
        let (before, now) = self.sides();
        let rows = now.reasons.iter().map(|row| {
            let old = before.reasons.iter().find(|old| old.name == row.name);
            let count = row.count.saturating_sub(old.map_or(0, |old| old.count));
            let user = self.between(old.map(|old| &old.user), &row.user);
            let kvm = self.between(old.map(|old| &old.kvm), &row.kvm);
            (row.name.clone(), row.count, count, user, kvm)
        });
        self.rows(rows.collect())
    }

    /// Accesses by device, in order.
    pub fn devices(&self) -> Vec<Row> {
        let (before, now) = self.sides();
        let rows = now.devices.iter().map(|row| {
            let old = before.devices.iter().find(|old| old.name == row.name);
            let count = row.count.saturating_sub(old.map_or(0, |old| old.count));
            let user = self.between(old.map(|old| &old.user), &row.user);
            (row.name.clone(), row.count, count, user, Window::default())
        });
        self.rows(rows.collect())
    }

    /// One row for each vCPU; their names are numbers.
    pub fn vcpus(&self) -> Vec<Row> {
        let each = self.now.vcpus.iter().enumerate().map(|(index, now)| {
            let nothing = VcpuSnapshot::default();
            let old = self.before.vcpus.get(index).unwrap_or(&nothing);
            let time = |total: u64, old: u64| Window {
                total: total.saturating_sub(old),
                ..Window::default()
            };
            let count = now.exits.saturating_sub(old.exits);
            let (user, kvm) = (time(now.user_ns, old.user_ns), time(now.kvm_ns, old.kvm_ns));
            (index.to_string(), now.exits, count, user, kvm)
        });
        let all = each.clone().fold(0, |all: u64, row| all.saturating_add(row.2));
        each.map(|row| self.row(row, all)).collect()
    }

    fn rows(&self, rows: Vec<(String, u64, u64, Window, Window)>) -> Vec<Row> {
        let all = rows.iter().fold(0, |all: u64, row| all.saturating_add(row.2));
        let mut rows: Vec<Row> = rows.into_iter().map(|row| self.row(row, all)).collect();
        match self.sort {
            Sort::Rate => rows.sort_by(|a, b| b.rate.total_cmp(&a.rate)),
            Sort::Count => rows.sort_by_key(|row| Reverse(row.count)),
            Sort::Time => rows.sort_by_key(|row| Reverse(row.user.total)),
            Sort::P99 => rows.sort_by_key(|row| Reverse(row.user.p99)),
            Sort::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        }
        rows
    }

    fn row(&self, row: (String, u64, u64, Window, Window), all: u64) -> Row {
        let (name, count, new, user, kvm) = row;
        Row { name, count, rate: self.rate(new), share: percent(new, all), user, kvm }
    }

    /// What was new in the window. Percentiles are those of the window, too: of what is in each bucket
    /// now and was not before.
    fn between(&self, old: Option<&Times>, now: &Times) -> Window {
        let before = |value: u64| {
            let buckets = old.map_or(&[][..], |old| &old.buckets);
            let at = buckets.binary_search_by_key(&value, |bucket| bucket.0);
            at.ok().and_then(|at| buckets.get(at)).map_or(0, |bucket| bucket.1)
        };
        let new: Vec<(u64, u64)> = now
            .buckets
            .iter()
            .map(|&(value, n)| (value, n.saturating_sub(before(value))))
            .filter(|(_, n)| *n != 0)
            .collect();
        let nanos = |ticks: u64| {
            let per_second = u128::from(self.now.ticks_per_second.max(1));
            let nanos = u128::from(ticks) * 1_000_000_000 / per_second;
            u64::try_from(nanos).unwrap_or(u64::MAX).min(now.max_ns)
        };
        let at = |permille| permille_of(new.iter().copied(), permille).map(nanos);
        Window {
            total: now.total_ns.saturating_sub(old.map_or(0, |old| old.total_ns)),
            p50: at(500),
            p99: at(990),
        }
    }

    /// What KVM counts: of the VM where no vCPU is chosen, then of the vCPUs; each with how much it grew a second.
    pub fn kvm(&self) -> Vec<(Metric, f64)> {
        let of = |snapshot: &Snapshot| -> Vec<Metric> {
            let kvm = &snapshot.kvm;
            match self.vcpu {
                Some(index) => kvm.vcpus.get(index).cloned().unwrap_or_default(),
                None => {
                    let of_vcpus = merged(kvm.vcpus.iter().map(Vec::as_slice));
                    kvm.vm.iter().cloned().chain(of_vcpus).collect()
                }
            }
        };
        let (before, now) = (of(&self.before), of(&self.now));
        let sum =
            |metric: &Metric| metric.values.iter().fold(0u64, |sum, v| sum.saturating_add(*v));
        let mut rows: Vec<(Metric, f64)> = now
            .into_iter()
            .filter(|metric| sum(metric) != 0)
            .map(|metric| {
                let old = before.iter().find(|old| old.name == metric.name).map_or(0, sum);
                let rate = self.rate(sum(&metric).saturating_sub(old));
                (metric, rate)
            })
            .collect();
        match self.sort {
            Sort::Rate => rows.sort_by(|a, b| b.1.total_cmp(&a.1)),
            Sort::Name => rows.sort_by(|a, b| a.0.name.cmp(&b.0.name)),
            _ => rows.sort_by_key(|(metric, _)| Reverse(sum(metric))),
        }
        rows
    }

    /// The next page, or the one before.
    pub fn turn(&mut self, forward: bool) {
        let at = Page::ALL.iter().position(|&page| page == self.page).unwrap_or(0);
        let by = if forward { 1 } else { Page::ALL.len() - 1 };
        (self.page, self.scroll) = (Page::ALL[(at + by) % Page::ALL.len()], 0);
    }

    /// The next vCPU, or the one before; all of them are between the last and the first.
    pub fn choose(&mut self, forward: bool) {
        let count = self.now.vcpus.len();
        self.vcpu = match (self.vcpu, forward) {
            (None, true) => (count > 0).then_some(0),
            (None, false) => count.checked_sub(1),
            (Some(at), true) => Some(at + 1).filter(|&at| at < count),
            (Some(at), false) => at.checked_sub(1),
        };
    }
}

fn pick<'a>(
    snapshot: &'a Snapshot,
    vcpu: Option<usize>,
    nothing: &'a VcpuSnapshot,
) -> &'a VcpuSnapshot {
    match vcpu {
        None => &snapshot.total,
        Some(index) => snapshot.vcpus.get(index).unwrap_or(nothing),
    }
}
