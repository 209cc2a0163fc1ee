//! A KVM vCPU.

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::*;
use kvm_ioctls::{SyncReg, VcpuFd};

use super::page::RunPage;
use super::ring::DirtyRing;
use super::{call, cpuid, kick, regs};
use crate::cpu::CpuState;
use crate::cpuid::Cpuid;
use crate::exit::{Entry, Exit};
use crate::hv::{Activity, Detail, HvError, Vcpu};

/// `KVM_RUN`: `_IO(KVMIO, 0x80)`.
const KVM_RUN: libc::c_ulong = 0xae80;

/// A KVM vCPU. Its descriptor and its shared page live as long as it does.
#[derive(Debug)]
pub struct KvmVcpu {
    // The page lies in a mapping that `fd` owns.
    page: RunPage,
    /// Its dirty ring, if the VM has such.
    pub(super) ring: Option<DirtyRing>,
    fd: VcpuFd,
    pub(super) raw: i32,
    pub(super) index: u32,
}

impl KvmVcpu {
    pub(super) fn new(
        mut fd: VcpuFd,
        index: u32,
        run_size: usize,
        sync_regs: bool,
        ring: Option<DirtyRing>,
    ) -> KvmVcpu {
        if sync_regs {
            fd.set_sync_valid_reg(SyncReg::Register);
        }
        let run: *mut kvm_run = fd.get_kvm_run();
        // SAFETY: the mapping is `run_size` bytes long and `fd`, which is kept, owns it; all other
        // uses of it by this type go through the page.
        let page = unsafe { RunPage::new(run, run_size) };
        let raw = fd.as_raw_fd();
        KvmVcpu { page, ring, fd, raw, index }
    }

    fn what(&self, call: &str) -> String {
        format!("{call} of vCPU {}", self.index)
    }

    /// Sets what CPUID tells the guest.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn set_cpuid(&mut self, leaves: &Cpuid) -> Result<(), HvError> {
        let entries = cpuid::to_kvm(leaves).ok_or_else(|| HvError::Lacks {
            what: format!("room for {} CPUID leaves", leaves.0.len()),
            hint: "change fewer with --cpu",
        })?;
        call(self.what("KVM_SET_CPUID2"), self.fd.set_cpuid2(&entries))
    }

    /// Completes the last exit without executing another instruction.
    pub(super) fn settle(&mut self, entry: Entry) -> Exit {
        self.nudge();
        let exit = self.run(entry);
        if exit != Exit::Interrupted {
            self.page.clear_immediate_exit();
        }
        exit
    }

    /// Makes the next run end at once: KVM completes what is under way, and enters no guest.
    pub(super) fn nudge(&mut self) {
        self.page.set_immediate_exit();
    }

    /// What KVM_RUN's error number means.
    #[cold]
    fn failed(&mut self, errno: i32) -> Option<Exit> {
        match errno {
            libc::EINTR => {
                self.page.clear_immediate_exit();
                Some(Exit::Interrupted)
            }
            // A vCPU that waited for its SIPI got one: it goes on.
            libc::EAGAIN => None,
            libc::EFAULT if self.page.is_memory_fault() => Some(self.page.decode()),
            errno => Some(Exit::RunError(errno)),
        }
    }

    /// Where the guest was at the last exit, if exits bring registers along.
    #[inline]
    pub fn synced_rip(&self) -> Option<u64> {
        self.page.synced_rip()
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        kick::disarm(self.page.immediate_exit());
    }
}

impl Vcpu for KvmVcpu {
    type Kicker = kick::Kicker;

    fn bind(&mut self) -> kick::Kicker {
        kick::arm(self.page.immediate_exit())
    }

    #[inline]
    fn run(&mut self, entry: Entry) -> Exit {
        let read = match entry {
            Entry::Read(value) => Some(value),
            Entry::Resume | Entry::Stop(_) => Some(0),
            Entry::Fault => None,
        };
        if let Some(next) = self.page.complete(read) {
            return next;
        }
        loop {
            // SAFETY: the descriptor is an open vCPU's; KVM_RUN takes no argument.
            if unsafe { libc::ioctl(self.raw, KVM_RUN, 0) } == 0 {
                return self.page.decode();
            }
            self.page.forget();
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            if let Some(exit) = self.failed(errno) {
                return exit;
            }
        }
    }

    fn start(&mut self, start: &CpuState) -> Result<(), HvError> {
        let old = call(self.what("KVM_GET_SREGS"), self.fd.get_sregs())?;
        // Where it is mapped, and whether this is the vCPU that boots, is KVM's to know.
        let start = CpuState { apic_base: old.apic_base, ..*start };
        let sregs = regs::to_sregs(&start, old);
        call(self.what("KVM_SET_SREGS"), self.fd.set_sregs(&sregs))?;
        call(self.what("KVM_SET_REGS"), self.fd.set_regs(&regs::to_regs(&start)))
    }

    fn state(&self) -> Result<CpuState, HvError> {
        let regs = call(self.what("KVM_GET_REGS"), self.fd.get_regs())?;
        let sregs = call(self.what("KVM_GET_SREGS"), self.fd.get_sregs())?;
        Ok(regs::from_kvm(&regs, &sregs))
    }

    fn activity(&self) -> Result<Activity, HvError> {
        let state = call(self.what("KVM_GET_MP_STATE"), self.fd.get_mp_state())?;
        Ok(match state.mp_state {
            KVM_MP_STATE_RUNNABLE => Activity::Runnable,
            KVM_MP_STATE_HALTED => Activity::Halted,
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Activity::WaitForSipi,
            other => Activity::Other(other),
        })
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        let t = self.fd.translate_gva(linear).ok()?;
        (t.valid != 0).then_some(t.physical_address)
    }

    fn detail(&self) -> Detail {
        self.page.detail()
    }

    fn synced_rip(&self) -> Option<u64> {
        KvmVcpu::synced_rip(self)
    }
}
