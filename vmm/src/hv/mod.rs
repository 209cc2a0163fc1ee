//! The hypervisor behind the board: what a VM and a vCPU are, whoever provides them.
//!
//! [`kvm`] is the only place that knows KVM.

pub mod kvm;
pub mod lab;
mod ticks;

pub use ticks::ticks;

use crate::access::Access;
use crate::cpu::CpuState;
use crate::exit::{Entry, Exit};

/// Why the hypervisor could not do something. What a guest does is never one of these.
#[derive(Debug, thiserror::Error)]
pub enum HvError {
    /// The device node cannot be opened.
    #[error("{path} cannot be opened: {source}. {hint}")]
    Open {
        /// The device node.
        path: String,
        /// A way out.
        hint: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
    /// What was opened is no hypervisor of the kind that is wanted.
    #[error(
        "{path} is not KVM, or one of another API: it answers KVM_GET_API_VERSION with {version}, \
         not 12; name KVM's device node, usually /dev/kvm"
    )]
    NotKvm {
        /// The device node.
        path: String,
        /// What it answers.
        version: i32,
    },
    /// The hypervisor lacks something that was asked for.
    #[error("this host's KVM lacks {what}; {hint}")]
    Lacks {
        /// The capability.
        what: String,
        /// A way out.
        hint: &'static str,
    },
    /// A call failed.
    #[error("{what} failed on this host: {source}")]
    Call {
        /// The call, with its subject.
        what: String,
        /// What the host said.
        source: std::io::Error,
    },
}

/// Where a vCPU stands between two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It executes instructions.
    Runnable,
    /// HLT waits for an interrupt.
    Halted,
    /// It waits for INIT and SIPI.
    WaitForSipi,
    /// Another state, by its KVM number.
    Other(u32),
}

/// A virtual machine.
pub trait Vm: Send + Sync {
    /// Its vCPUs.
    type Vcpu: Vcpu;

    /// Makes the vCPU with this APIC ID; 0 is the one that boots.
    ///
    /// # Errors
    /// When the host refuses.
    fn create_vcpu(&self, apic_id: u32) -> Result<Self::Vcpu, HvError>;

    /// Sets the level of a GSI.
    ///
    /// # Errors
    /// When there is no such line.
    fn set_line(&self, gsi: u32, level: bool) -> Result<(), HvError>;

    /// Sends an interrupt message: a dword that is written to an address of the local APICs.
    ///
    /// # Errors
    /// When the host refuses, or no local APIC is there.
    fn message(&self, address: u64, data: u32) -> Result<(), HvError>;

    /// Has the end of these level-triggered interrupts told, each an address and a dword of the I/O
    /// APIC's pin of that number: where the local APICs are the host's and the I/O APIC is not.
    ///
    /// # Errors
    /// When the host refuses.
    fn set_routes(&self, routes: &[Option<(u64, u32)>]) -> Result<(), HvError>;

    /// Drops the guest's mapping of the page at `gpa`, so that its next access faults it in
    /// again. The page stays accessible throughout. Does nothing where there is no RAM.
    ///
    /// # Errors
    /// When the host refuses.
    fn remap_page(&self, gpa: u64) -> Result<(), HvError>;
}

/// Who answers an access of a vCPU.
pub trait Answers {
    /// What a read gets, of which bits above its width mean nothing. If the VM ends with it, the vCPU has
    /// been kicked.
    fn access(&mut self, access: Access) -> u64;

    /// Whether [`Answers::entering`] and [`Answers::left`] do anything.
    const WATCHES: bool = false;

    /// The vCPU is about to enter the guest.
    #[inline(always)]
    fn entering(&mut self) {}

    /// The vCPU has left the guest.
    #[inline(always)]
    fn left(&mut self) {}
}

/// A virtual CPU, owned by the thread that runs it.
pub trait Vcpu: Send {
    /// What gets it out of guest mode from another thread.
    type Kicker: Kick;

    /// Binds the vCPU to the calling thread, from which alone it may run from now on.
    fn bind(&mut self) -> Self::Kicker;

    /// Completes the last exit with `entry`, and goes on to the next one. An exit that was split
    /// goes on without entering the guest.
    fn run(&mut self, entry: Entry) -> Exit;

    /// Completes the last exit with `entry`; gives the next item if it was split and goes on, and nothing where
    /// the vCPU has [`Vcpu::run`] alone. That may be called with the same `entry` afterwards: nothing is completed twice.
    fn complete(&mut self, entry: Entry) -> Option<Exit> {
        let _ = entry;
        None
    }

    /// Enters the guest, once every exit before is completed, and again after each exit for one whole access,
    /// which `board` answers. Gives any other exit, a kick among them, for [`Vcpu::complete`]. Only asked of
    /// one that [`Vcpu::answers_in_place`].
    #[inline]
    fn enter<A: Answers>(&mut self, board: &mut A) -> Exit {
        let _ = board;
        self.run(Entry::Resume)
    }

    /// Whether accesses may be answered on the way, by [`Vcpu::enter`]: not where somebody wants to see more
    /// of an exit, nor of a vCPU that has [`Vcpu::run`] alone.
    fn answers_in_place(&self) -> bool {
        false
    }

    /// Sets the registers that an image is entered with.
    ///
    /// # Errors
    /// When the host refuses them.
    fn start(&mut self, start: &CpuState) -> Result<(), HvError>;

    /// Reads the registers.
    ///
    /// # Errors
    /// When the host refuses.
    fn state(&self) -> Result<CpuState, HvError>;

    /// Whether it runs, halts or waits.
    ///
    /// # Errors
    /// When the host refuses.
    fn activity(&self) -> Result<Activity, HvError>;

    /// The guest-physical address behind a linear one, through the guest's own page tables.
    fn translate(&self, linear: u64) -> Option<u64>;

    /// What the hypervisor has to say of the last exit beyond its kind: an internal error's data
    /// words and instruction bytes.
    fn detail(&self) -> Detail;

    /// RIP at the last exit, where exits bring registers along without being asked for them.
    fn synced_rip(&self) -> Option<u64> {
        None
    }
}

/// What comes with an unexpected exit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Data words, as the hypervisor gives them.
    pub data: Vec<u64>,
    /// Bytes of the instruction that could not be emulated.
    pub instruction: Option<Vec<u8>>,
}

/// Gets a vCPU out of guest mode.
pub trait Kick: Send + Sync {
    /// Makes the vCPU's current or next run end with [`Exit::Interrupted`].
    fn kick(&self);
}
