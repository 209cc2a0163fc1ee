//! The least that a VMM can do: what an exit costs whoever answers it, or not.

use payload_abi::exits::{BEGIN, FENCE};

use super::KvmVcpu;
use super::kick::Kicker;
use crate::access::{Access, Dir, Space};
use crate::cpu::CpuState;
use crate::exit::{Entry, Exit};
use crate::hv::{Activity, Detail, HvError, Vcpu};

/// A vCPU whose accesses nobody answers between two writes to port 0x80, of which the first writes 0xb5: it is
/// entered again at once, and what a read gives is left to chance. What a VMM takes beyond that is its own.
///
/// `vmm run --bare` runs guests so; the payload `exits` writes there.
#[derive(Debug)]
pub struct Bare {
    vcpu: KvmVcpu,
    /// Accesses are not answered now.
    past: bool,
}

impl Bare {
    /// That vCPU, which answers until it is told.
    pub fn new(vcpu: KvmVcpu) -> Bare {
        Bare { vcpu, past: false }
    }
}

impl Vcpu for Bare {
    type Kicker = Kicker;

    fn bind(&mut self) -> Kicker {
        self.vcpu.bind()
    }

    fn run(&mut self, entry: Entry) -> Exit {
        if !self.past {
            let exit = self.vcpu.run(entry);
            let begins = |access: &Access| {
                (access.space, access.addr) == (Space::Port, FENCE.into())
                    && access.dir == Dir::Write(BEGIN.into())
            };
            if !matches!(&exit, Exit::Io(access) if begins(access)) {
                return exit;
            }
        }
        let exit = self.vcpu.run_past(FENCE);
        self.past = exit == Exit::Interrupted;
        exit
    }

    fn start(&mut self, start: &CpuState) -> Result<(), HvError> {
        self.vcpu.start(start)
    }

    fn state(&self) -> Result<CpuState, HvError> {
        self.vcpu.state()
    }

    fn activity(&self) -> Result<Activity, HvError> {
        self.vcpu.activity()
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        self.vcpu.translate(linear)
    }

    fn detail(&self) -> Detail {
        self.vcpu.detail()
    }
}
