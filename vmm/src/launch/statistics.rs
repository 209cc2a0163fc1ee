//! What a VM counts, for whoever wants to know: while it runs and afterwards.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::Value;

use crate::control::Commands;
use crate::control::wire::{Refusal, RefusalKind};
use crate::host::tsc;
use crate::hv::kvm::stats::{StatsError, StatsFile};
use crate::hv::kvm::{Host, KvmVcpu, KvmVm};
use crate::machine::Machine;
use crate::stats::{Counters, KvmStats, Scale, Snapshot, VERSION};

/// Exits by reason and device, and what KVM counts. One for all of a run, however often the guest starts again
/// or sleeps: then the exits of all its VMs are counted together, and KVM's statistics are those of the last.
#[derive(Debug, Default)]
pub struct Statistics {
    started: OnceLock<Started>,
    kvm: Mutex<KvmSide>,
}

#[derive(Debug)]
struct Started {
    counters: Arc<Counters>,
    /// Time-stamp counter and clock at the same moment.
    at: (u64, Instant),
}

/// KVM's own statistics.
#[derive(Debug)]
pub(super) enum KvmSide {
    /// There are none, and why.
    Lacks(String),
    /// The files of a VM and its vCPUs.
    Open { vm: StatsFile, vcpus: Vec<StatsFile> },
}

impl Default for KvmSide {
    fn default() -> KvmSide {
        KvmSide::Lacks("the VM has not started yet".to_owned())
    }
}

impl KvmSide {
    /// Those of this VM. A host that has none is no error.
    pub(super) fn open(host: &Host, vm: &KvmVm, vcpus: &[KvmVcpu]) -> KvmSide {
        if !host.has_stats() {
            let why = "this host's KVM tells none (KVM_CAP_BINARY_STATS_FD, since Linux 5.14)";
            return KvmSide::Lacks(why.to_owned());
        }
        let open = || {
            let vcpus = vcpus.iter().map(KvmVcpu::stats).collect::<Result<_, StatsError>>()?;
            Ok(KvmSide::Open { vm: vm.stats()?, vcpus })
        };
        open().unwrap_or_else(|e: StatsError| KvmSide::Lacks(e.to_string()))
    }

    fn read(&self) -> KvmStats {
        let (vm, vcpus) = match self {
            KvmSide::Lacks(why) => {
                return KvmStats { lacks: Some(why.clone()), ..KvmStats::default() };
            }
            KvmSide::Open { vm, vcpus } => (vm, vcpus),
        };
        let read = || {
            let of_vcpus = vcpus.iter().map(StatsFile::read).collect::<Result<_, StatsError>>()?;
            Ok((vm.read()?, of_vcpus))
        };
        let left_out = vm.unknown() + vcpus.iter().map(StatsFile::unknown).sum::<usize>();
        match read() {
            Ok((vm, vcpus)) => KvmStats { lacks: None, left_out: left_out as u64, vm, vcpus },
            Err::<_, StatsError>(e) => {
                KvmStats { lacks: Some(e.to_string()), ..KvmStats::default() }
            }
        }
    }
}

impl Statistics {
    /// With nothing counted.
    pub fn new() -> Statistics {
        Statistics::default()
    }

    /// A VM with these vCPUs and this board is about to run.
    pub(super) fn start(&self, vcpus: usize, machine: &Machine, kvm: KvmSide) {
        // The time of a guest that starts again goes on.
        self.started.get_or_init(|| Started {
            counters: Arc::new(Counters::new(vcpus, machine.devices())),
            at: tsc::read(),
        });
        *self.kvm.lock() = kvm;
    }

    /// The counters, once a VM is about to run.
    pub(super) fn counters(&self) -> Option<Arc<Counters>> {
        self.started.get().map(|started| started.counters.clone())
    }

    /// What was counted so far. May be asked for at any time, and keeps no vCPU waiting.
    pub fn snapshot(&self) -> Snapshot {
        let kvm = self.kvm.lock().read();
        let Some(Started { counters, at }) = self.started.get() else {
            return Snapshot { version: VERSION, kvm, ..Snapshot::default() };
        };
        let now = tsc::read();
        let scale = Scale { per_second: tsc::per_second(*at, now).max(1) };
        let (total, vcpus) = counters.read(scale);
        let elapsed = now.1.saturating_duration_since(at.1).as_nanos();
        Snapshot {
            version: VERSION,
            elapsed_ns: u64::try_from(elapsed).unwrap_or(u64::MAX),
            ticks_per_second: scale.per_second,
            total,
            vcpus,
            kvm,
        }
    }
}

/// What can be asked for at a control socket.
impl Commands for Statistics {
    fn names(&self) -> &'static [&'static str] {
        &["stats"]
    }

    fn run(&self, command: &str, arguments: &Value) -> Result<Value, Refusal> {
        let is_empty = arguments.is_null() || arguments.as_object().is_some_and(|a| a.is_empty());
        match command {
            "stats" if is_empty => serde_json::to_value(self.snapshot())
                .map_err(|e| Refusal::new(RefusalKind::Failed, e.to_string())),
            "stats" => Err(Refusal::new(RefusalKind::BadArguments, "`stats` takes no arguments")),
            _ => Err(Refusal::new(RefusalKind::UnknownCommand, format!("no command `{command}`"))),
        }
    }
}
