//! A KVM vCPU.

use std::arch::asm;
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
use crate::hv::{Activity, Answers, Detail, HvError, Vcpu};
use crate::hyperv::Enlightenments;

/// `KVM_RUN`: `_IO(KVMIO, 0x80)`.
pub(super) const KVM_RUN: libc::c_ulong = 0xae80;
/// The control register of a synthetic interrupt controller.
const SCONTROL: u32 = 0x4000_0080;
/// What a guest writes to tell of a crash, and reads to learn that it can.
const CRASH_CTL: u32 = 0x4000_0105;
const CRASH_NOTIFY: u64 = 1 << 63;
/// What a guest says of its crash: HV_X64_MSR_CRASH_P0 to P4.
const CRASH: [u32; 5] = [0x4000_0100, 0x4000_0101, 0x4000_0102, 0x4000_0103, 0x4000_0104];

/// KVM_RUN on the descriptor of a vCPU: 0, or a negated error number. The C library's way there takes as
/// many instructions again as half of what an exit takes here.
#[inline(always)]
fn kvm_run(fd: i32) -> i32 {
    let answer: i64;
    // SAFETY: ioctl(fd, KVM_RUN, 0) takes no pointer; it writes the page that the vCPU shares, which is only
    // read through raw pointers, and memory that is the guest's, which nothing here takes to be still. The
    // kernel changes rax, rcx and r11 and no other register.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") libc::SYS_ioctl => answer,
            in("rdi") fd,
            in("rsi") KVM_RUN,
            in("rdx") 0,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    answer as i32
}

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

    fn enable(&mut self, cap: u32, arg: u64, name: &str) -> Result<(), HvError> {
        let cap = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
        call(self.what(&format!("KVM_ENABLE_CAP of {name}")), self.fd.enable_cap(&cap))
    }

    fn set_msr(&mut self, index: u32, data: u64) -> Result<(), HvError> {
        let what = self.what(&format!("KVM_SET_MSRS of MSR {index:#x}"));
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        let refused = |source| HvError::Call { what: what.clone(), source };
        let msrs = Msrs::from_entries(&[entry]).map_err(|e| refused(io::Error::other(e)))?;
        match call(what.clone(), self.fd.set_msrs(&msrs))? {
            1 => Ok(()),
            _ => Err(refused(io::Error::from_raw_os_error(libc::EIO))),
        }
    }

    /// Makes a new vCPU one of a guest that is offered this of Hyper-V's.
    pub(super) fn start_hyperv(&mut self, offered: &Enlightenments) -> Result<(), HvError> {
        if offered.has("synic") {
            // Its pages are the VMM's to clear. It is off, as after a reset (TLFS, Virtual Interrupt
            // Controller); KVM makes one that is on.
            self.enable(KVM_CAP_HYPERV_SYNIC2, 0, "KVM_CAP_HYPERV_SYNIC2")?;
            self.set_msr(SCONTROL, 0)?;
        }
        if offered.has("crash") {
            self.set_msr(CRASH_CTL, CRASH_NOTIFY)?;
        }
        if offered.is_enforced() {
            self.enable(KVM_CAP_HYPERV_ENFORCE_CPUID, 1, "KVM_CAP_HYPERV_ENFORCE_CPUID")?;
        }
        Ok(())
    }

    /// What the guest says of its crash, as far as KVM gives it: five words of its own.
    fn crash_words(&self) -> Vec<u64> {
        let entry = |index| kvm_msr_entry { index, ..Default::default() };
        let Ok(mut msrs) = Msrs::from_entries(&CRASH.map(entry)) else { return Vec::new() };
        let read = self.fd.get_msrs(&mut msrs).unwrap_or(0);
        msrs.as_slice().iter().take(read).map(|msr| msr.data).collect()
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

    /// As [`crate::hv::lab::Lab::interrupt_window`].
    pub(super) fn interrupt_window(&mut self, request: Option<bool>) -> u64 {
        if let Some(on) = request {
            self.page.request_interrupt_window(on);
        }
        self.page.interrupt_window()
    }

    /// Enters the guest over and over past accesses that nobody answers, up to one of port `end` or an exit
    /// that is none.
    pub(super) fn run_past(&mut self, end: u16) -> Exit {
        self.page.forget();
        loop {
            // As a loop in C would: what others compare themselves with.
            // SAFETY: the descriptor is an open vCPU's; KVM_RUN takes no argument.
            let answer = match unsafe { libc::ioctl(self.raw, KVM_RUN, 0) } {
                0 if self.page.is_past(end) => continue,
                0 => 0,
                _ => -io::Error::last_os_error().raw_os_error().unwrap_or(0),
            };
            if let Some(exit) = self.left(answer) {
                return exit;
            }
        }
    }

    /// Completes the last exit; gives the next item if it goes on.
    #[inline]
    fn complete(&mut self, entry: Entry) -> Option<Exit> {
        let read = match entry {
            Entry::Read(value) => Some(value),
            Entry::Resume | Entry::Stop(_) => Some(0),
            Entry::Fault => None,
        };
        self.page.complete(read)
    }

    /// What KVM_RUN, which gave `answer`, left the guest for, if it did: else it is to be called again.
    #[inline]
    fn left(&mut self, answer: i32) -> Option<Exit> {
        if answer == 0 {
            return Some(self.page.decode(self.index));
        }
        self.page.forget();
        self.failed(-answer)
    }

    /// KVM_RUN, and again after what is no exit if somebody takes the time of exits: a vCPU that waited for its
    /// SIPI and got one. Else that is left to [`KvmVcpu::rare`].
    #[inline(always)]
    fn enter_once<A: Answers>(&self) -> i32 {
        let mut answer = kvm_run(self.raw);
        while A::WATCHES && answer == -libc::EAGAIN {
            answer = kvm_run(self.raw);
        }
        answer
    }

    /// The exit of a KVM_RUN that gave `answer`, which [`RunPage::answer`] leaves alone.
    #[cold]
    #[inline(never)]
    fn rare(&mut self, mut answer: i32) -> Exit {
        loop {
            match self.left(answer) {
                Some(exit) => return exit,
                None => answer = kvm_run(self.raw),
            }
        }
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
            libc::EFAULT if self.page.is_memory_fault() => Some(self.page.decode(self.index)),
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

    fn run(&mut self, entry: Entry) -> Exit {
        match self.complete(entry) {
            Some(next) => next,
            None => {
                let answer = kvm_run(self.raw);
                self.rare(answer)
            }
        }
    }

    fn complete(&mut self, entry: Entry) -> Option<Exit> {
        KvmVcpu::complete(self, entry)
    }

    #[inline(always)]
    fn enter<A: Answers>(&mut self, board: &mut A) -> Exit {
        loop {
            board.entering();
            let answer = self.enter_once::<A>();
            board.left();
            if answer != 0 || !self.page.answer(board) {
                return self.rare(answer);
            }
        }
    }

    fn answers_in_place(&self) -> bool {
        !self.page.syncs()
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
        if self.page.is_crash() {
            return Detail { data: self.crash_words(), instruction: None };
        }
        self.page.detail()
    }

    fn synced_rip(&self) -> Option<u64> {
        KvmVcpu::synced_rip(self)
    }
}
