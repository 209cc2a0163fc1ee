//! Why a guest could not be run.

use std::io;
use std::path::PathBuf;

use crate::boot::BootError;
use crate::cpuid::CpuidError;
use crate::device::StateError;
use crate::hv::HvError;
use crate::hyperv::HypervError;
use crate::machine::BoardError;
use crate::ram::RamError;
use crate::script::RecordError;

/// Why a guest could not be run, or not to its end. Never anything that the guest did.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file cannot be read.
    #[error("{what} `{path}` cannot be read: {source}; name a file that is there and readable")]
    File {
        /// What it was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The environment names a flaw that there is not.
    #[cfg(feature = "sabotage")]
    #[error(transparent)]
    Sabotage(crate::sabotage::NoFlaw),
    /// The image is none that can be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// More memory than the host has.
    #[error(
        "guest memory of {asked} MiB is more than the {host} MiB of memory and swap that this host \
         has; ask for less with --memory"
    )]
    TooMuchMemory {
        /// What was asked for, in MiB.
        asked: u64,
        /// What there is, in MiB.
        host: u64,
    },
    /// No guest memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// KVM.
    #[error(transparent)]
    Hv(#[from] HvError),
    /// The CPU model asks for what is not there.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// The guest is to be offered what of Hyper-V's there is not.
    #[error(transparent)]
    Hyperv(#[from] HypervError),
    /// The board.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// No room for ACPI tables.
    #[error(
        "the ACPI tables of so many vCPUs have no room below 1 MiB; ask for fewer with --cpus, or \
         leave --acpi out"
    )]
    AcpiTables,
    /// The board cannot take up what it was before its guest slept.
    #[error("the board does not come back from sleep: {0}; this is a flaw of this program")]
    Resume(StateError),
    /// The serial port's other end.
    #[error("serial output to {to} cannot be opened: {source}; choose another with --serial")]
    Serial {
        /// Where it goes.
        to: String,
        /// What the host said.
        source: io::Error,
    },
    /// The serial port's other end broke off while the guest ran.
    #[error(
        "the guest's output to {to} broke off: {source}; make room, or choose another place with \
         --serial"
    )]
    Output {
        /// Where it goes.
        to: String,
        /// What the host said.
        source: io::Error,
    },
    /// No descriptor to wait with.
    #[error(
        "the host has no descriptor to wait for events with: {0}; close some, or raise the limit"
    )]
    Events(io::Error),
    /// No thread for a vCPU.
    #[error(
        "the host has no thread for a vCPU: {0}; ask for fewer with --cpus, or raise the limit"
    )]
    Thread(io::Error),
    /// Nobody to answer at the control socket.
    #[error(
        "the host has no thread or descriptor to answer at the control socket: {0}; raise the limit, or \
         leave --control out"
    )]
    Control(io::Error),
    /// A recording of a guest with a lab.
    #[error(
        "a guest with a lab cannot be recorded: what it asks its lab for is no business of the \
         board's; leave --lab or --trace out"
    )]
    LabTrace,
    /// The recording.
    #[error(transparent)]
    Trace(#[from] RecordError),
}

impl LaunchError {
    /// Exit status for it: 2 for what was asked for wrongly or is missing, 14 for a host that
    /// failed on the way.
    pub fn status(&self) -> u8 {
        match self {
            LaunchError::Events(_)
            | LaunchError::Thread(_)
            | LaunchError::Control(_)
            | LaunchError::Board(_)
            | LaunchError::Resume(_) => 14,
            LaunchError::Hv(HvError::Call { .. }) | LaunchError::Output { .. } => 14,
            LaunchError::Trace(RecordError::Write { .. } | RecordError::Past { .. }) => 14,
            _ => 2,
        }
    }
}
