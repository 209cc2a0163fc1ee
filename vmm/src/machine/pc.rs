//! The PC board: the chips a payload, a kernel and kvm-unit-tests expect, where they expect them.

use std::sync::Arc;

use super::{Backplane, BoardError, Machine};
use crate::device::Clock;
use crate::ram::GuestRam;

/// What differs from one PC to the next.
#[derive(Clone, Debug)]
pub struct PcConfig {
    /// Number of vCPUs, for fw_cfg.
    pub cpus: u16,
    /// Wall-clock time at power-on, in seconds since 1970, for the RTC.
    pub unix_time: u64,
}

/// A PC.
///
/// # Errors
/// When two of its devices claim one place: an error in the table below.
pub fn pc(
    config: &PcConfig,
    ram: GuestRam,
    clock: Arc<dyn Clock>,
    backplane: Arc<dyn Backplane>,
) -> Result<Machine, BoardError> {
    let _ = config;
    Ok(Machine::new(ram, clock, backplane))
}
