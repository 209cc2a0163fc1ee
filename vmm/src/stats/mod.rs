//! What exits cost: how many there were and how long they took, by reason and by device.
//!
//! Each vCPU has counters of its own, which its thread alone writes, without a lock and without allocating;
//! any thread may read them meanwhile. Time is in ticks of the processor's time-stamp counter, as reading that is one
//! instruction, where the clock is a function that reads it and calculates; what a tick is, is known from the clock by
//! whoever makes a [`Snapshot`].
//!
//! A reason counts *exits*: each return of the hypervisor to this program. A device counts *accesses*: a string
//! instruction of sixteen bytes is one exit and sixteen accesses.

mod histogram;
pub mod metric;
mod reason;
mod snapshot;
mod table;

use std::sync::atomic::{AtomicU64, Ordering};

pub use histogram::{BUCKETS, Meter, Sample, permille_of};
pub use reason::Reason;
pub use snapshot::{DeviceRow, KvmStats, ReasonRow, Scale, Snapshot, Times, VERSION, VcpuSnapshot};
pub use table::{duration, kvm_table, name_of, percent, table, value_of};

/// What the row of accesses that no device takes is called.
pub const UNCLAIMED: &str = "unclaimed";

/// An exit's two halves.
#[derive(Debug, Default)]
struct Exits {
    /// From the hypervisor's return to the next call of it.
    user: Meter,
    /// Inside the call that ended with the exit: the guest, and the kernel's part of the exit.
    kvm: Meter,
}

/// What one vCPU counts. Only its own thread records.
#[derive(Debug)]
pub struct VcpuStats {
    reasons: Box<[Exits]>,
    devices: Box<[Meter]>,
    /// Ticks that these statistics took themselves; in no other number.
    own: AtomicU64,
}

impl VcpuStats {
    fn new(devices: usize) -> VcpuStats {
        VcpuStats {
            reasons: Reason::ALL.iter().map(|_| Exits::default()).collect(),
            devices: (0..devices).map(|_| Meter::default()).collect(),
            own: AtomicU64::new(0),
        }
    }

    /// An exit was answered: `kvm` ticks in the call that ended with it, `user` ticks until it was answered.
    #[inline(always)]
    pub fn exit(&self, reason: Reason, kvm: u64, user: u64) {
        if let Some(exits) = self.reasons.get(reason as usize) {
            exits.user.record(user);
            exits.kvm.record(kvm);
        }
    }

    /// A device answered an access in so many ticks. Behind the last device is who takes what is nobody's.
    #[inline(always)]
    pub fn access(&self, device: usize, ticks: u64) {
        if let Some(meter) = self.devices.get(device) {
            meter.record(ticks);
        }
    }

    /// The statistics themselves took so many ticks.
    #[inline(always)]
    pub fn own(&self, ticks: u64) {
        self.own.store(self.own.load(Ordering::Relaxed).wrapping_add(ticks), Ordering::Relaxed);
    }
}

/// The counters of a VM.
#[derive(Debug)]
pub struct Counters {
    devices: Vec<&'static str>,
    vcpus: Vec<VcpuStats>,
}

impl Counters {
    /// For so many vCPUs, and a board with these devices in this order.
    pub fn new(vcpus: usize, devices: impl Iterator<Item = &'static str>) -> Counters {
        let devices: Vec<_> = devices.chain([UNCLAIMED]).collect();
        let vcpus = (0..vcpus).map(|_| VcpuStats::new(devices.len())).collect();
        Counters { devices, vcpus }
    }

    /// Those of one vCPU.
    pub fn vcpu(&self, index: usize) -> Option<&VcpuStats> {
        self.vcpus.get(index)
    }
}

#[cfg(test)]
mod tests;
