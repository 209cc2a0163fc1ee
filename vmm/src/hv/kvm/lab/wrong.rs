//! A lab that does one thing wrong on purpose ([`crate::sabotage`]).

use std::sync::Arc;

use super::{KvmLab, KvmVcpu, table};
use crate::exit::{Entry, Exit};
use crate::hv::lab::{
    Advice, AttrCall, DirtyPage, Errno, Lab, MsrRange, Part, Protection, Slot, Target,
};
use crate::ram::Backing;
use crate::sabotage::Flaw;

/// `KVM_SIGNAL_MSI`.
const SIGNAL_MSI: u32 = table::iow(0xa5, 32);
/// `KVM_SMI`, and `KVM_X86_SET_MCE` with the offset of its bank.
const SMI: u32 = table::io(0xb7);
const SET_MCE: u32 = table::iow(0x9e, 64);
const MCE_BANK: usize = 32;
/// `KVM_CAP_X86_USER_SPACE_MSR`, and its reason "the filter".
const USER_SPACE_MSR: u32 = 188;
const BY_FILTER: u64 = 1 << 2;
/// `KVM_MSR_FILTER_READ` and `KVM_MSR_FILTER_WRITE`.
const FILTER_READ: u32 = 1;
const FILTER_WRITE: u32 = 2;
/// MSRs (SDM volume 4, 2.1).
const TSC: u32 = 0x10;
const TSC_ADJUST: u32 = 0x3b;
const TSC_DEADLINE: u32 = 0x6e0;
const LSTAR: u32 = 0xc000_0082;
const SMBASE: u32 = 0x9e;
/// What SMBASE is after a reset (SDM volume 3, "System Management Mode").
const FIRST_SMBASE: u64 = 0x3_0000;
/// IA32_VMX_TRUE_PROCBASED_CTLS, from which KVM makes the one without TRUE, and in its upper half "HLT
/// exiting" (SDM volume 3, appendix A.3).
const VMX_TRUE_PROCBASED: u32 = 0x48e;
const HLT_EXITING: u64 = 1 << (32 + 7);
/// `KVM_STATE_NESTED_GUEST_MODE`, and room for any nested state.
const NESTED_GUEST_MODE: u8 = 1;
const MAX_NESTED: u32 = 16 << 10;
/// `KVM_MEM_READONLY`.
const READ_ONLY: u32 = 2;
/// Hours of any TSC: KVM takes less for an attempt to set it anew, and evens it out.
const APART: u64 = 1 << 45;

/// A lab with a flaw, if it has one.
#[derive(Clone, Debug)]
pub struct WrongLab {
    lab: Arc<KvmLab>,
    flaw: Option<Flaw>,
}

impl WrongLab {
    /// Makes the flaw.
    pub fn new(lab: KvmLab, flaw: Option<Flaw>) -> WrongLab {
        WrongLab { lab: Arc::new(lab), flaw }
    }

    /// What is wrong before the first instruction of this vCPU, number `index`.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn prepare(&self, vcpu: &mut KvmVcpu, index: usize) -> Result<(), Errno> {
        let (msr, access) = match self.flaw {
            Some(Flaw::TscApart) if index > 0 => {
                let now = self.msr(vcpu, TSC)?;
                return self.set_msr(vcpu, TSC, now + APART);
            }
            Some(Flaw::NestedNoHlt) => {
                let allowed = self.msr(vcpu, VMX_TRUE_PROCBASED)?;
                return self.set_msr(vcpu, VMX_TRUE_PROCBASED, allowed & !HLT_EXITING);
            }
            Some(Flaw::MsrWriteLost) if index == 0 => (LSTAR, FILTER_WRITE),
            Some(Flaw::MsrReadZero) if index == 0 => (TSC_ADJUST, FILTER_READ),
            _ => return Ok(()),
        };
        let mut cap = vec![0; 104];
        cap[..4].copy_from_slice(&USER_SPACE_MSR.to_le_bytes());
        cap[8..16].copy_from_slice(&BY_FILTER.to_le_bytes());
        self.lab.ioctl(vcpu, Target::Vm, table::ENABLE_CAP, &mut cap, 0)?;
        let range = MsrRange { flags: access, count: 1, first: msr, bitmap: vec![0] };
        self.lab.msr_filter(0, &[range])
    }

    /// Sets kvmclock back by so many nanoseconds.
    pub fn clock_back(&self, vcpu: &mut KvmVcpu, by: u64) {
        let mut clock = vec![0; 48];
        let got = self.lab.ioctl(vcpu, Target::Vm, table::GET_CLOCK, &mut clock, 0);
        if got.is_ok() {
            let now = u64::from_le_bytes(std::array::from_fn(|i| clock[i]));
            clock[..8].copy_from_slice(&now.saturating_sub(by).to_le_bytes());
            clock[8..12].fill(0);
            // A host that refuses is not wrong, which the caller's tests tell.
            let _ = self.lab.ioctl(vcpu, Target::Vm, table::SET_CLOCK, &mut clock, 0);
        }
    }

    /// Completes an exit, then clears R13 if asked to, and sets `flags` in RFLAGS; gives the exit
    /// that completing it led to.
    pub fn clobber(&self, vcpu: &mut KvmVcpu, entry: Entry, r13: bool, flags: u64) -> Exit {
        let next = self.lab.settle(vcpu, entry);
        let mut regs = vec![0; 144];
        if self.lab.ioctl(vcpu, Target::Vcpu, table::GET_REGS, &mut regs, 0).is_ok() {
            if r13 {
                regs[104..112].fill(0);
            }
            for (byte, flag) in regs[136..].iter_mut().zip(flags.to_le_bytes()) {
                *byte |= flag;
            }
            let _ = self.lab.ioctl(vcpu, Target::Vcpu, table::SET_REGS, &mut regs, 0);
        }
        self.lab.nudge(vcpu);
        next
    }

    /// Whether the vCPU is in a guest of its guest.
    pub fn is_nested(&self, vcpu: &mut KvmVcpu) -> bool {
        let mut state = vec![0; MAX_NESTED as usize];
        state[4..8].copy_from_slice(&MAX_NESTED.to_le_bytes());
        let got = self.lab.ioctl(vcpu, Target::Vcpu, table::GET_NESTED_STATE, &mut state, 0);
        got.is_ok() && state[0] & NESTED_GUEST_MODE != 0
    }

    fn msr(&self, vcpu: &mut KvmVcpu, index: u32) -> Result<u64, Errno> {
        let mut bytes = one_msr(index, 0);
        self.lab.ioctl(vcpu, Target::Vcpu, table::GET_MSRS, &mut bytes, 0)?;
        Ok(u64::from_le_bytes(std::array::from_fn(|i| bytes[16 + i])))
    }

    fn set_msr(&self, vcpu: &mut KvmVcpu, index: u32, value: u64) -> Result<(), Errno> {
        let mut bytes = one_msr(index, value);
        self.lab.ioctl(vcpu, Target::Vcpu, table::SET_MSRS, &mut bytes, 0).map(|_| ())
    }

    /// Takes a structure of the vCPU's out, changes it, and puts it back.
    fn change(
        &self,
        vcpu: &mut KvmVcpu,
        (get, set, len): (u32, u32, usize),
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), Errno> {
        let mut bytes = vec![0; len];
        self.lab.ioctl(vcpu, Target::Vcpu, get, &mut bytes, 0)?;
        change(&mut bytes);
        self.lab.ioctl(vcpu, Target::Vcpu, set, &mut bytes, 0).map(|_| ())
    }

    /// What is lost of a guest that moved.
    fn forget(&self, vcpu: &mut KvmVcpu) -> Result<(), Errno> {
        match self.flaw {
            Some(Flaw::MoveForgetsMsr) => self.set_msr(vcpu, LSTAR, 0),
            Some(Flaw::MoveForgetsSmbase) => self.set_msr(vcpu, SMBASE, FIRST_SMBASE),
            Some(Flaw::MoveForgetsXsave) => {
                let structure = (table::GET_XSAVE, table::SET_XSAVE, self.lab.xsave_size());
                // The XMM registers of the legacy area, and from the header that there is SSE or
                // AVX state (SDM volume 1, 13.4).
                self.change(vcpu, structure, |bytes| {
                    bytes[160..416].fill(0);
                    bytes[512] &= 1;
                })
            }
            Some(Flaw::MoveForgetsTimer) => {
                // The deadline is not in the structure; without its mode there is none to lose.
                let _ = self.set_msr(vcpu, TSC_DEADLINE, 0);
                let structure = (table::GET_LAPIC, table::SET_LAPIC, 1024);
                self.change(vcpu, structure, |bytes| bytes[0x380..0x384].fill(0))
            }
            Some(Flaw::MoveForgetsDebug) => {
                let structure = (table::GET_DEBUGREGS, table::SET_DEBUGREGS, 128);
                self.change(vcpu, structure, |bytes| {
                    bytes[..32].fill(0);
                    bytes[40..48].copy_from_slice(&0x400u64.to_le_bytes());
                })
            }
            _ => Ok(()),
        }
    }
}

fn one_msr(index: u32, value: u64) -> Vec<u8> {
    [1, u64::from(index), value].iter().flat_map(|word: &u64| word.to_le_bytes()).collect()
}

impl Lab for WrongLab {
    type Vcpu = KvmVcpu;

    fn settle(&self, vcpu: &mut KvmVcpu, entry: Entry) -> Exit {
        self.lab.settle(vcpu, entry)
    }

    fn nudge(&self, vcpu: &mut KvmVcpu) {
        self.lab.nudge(vcpu);
    }

    fn registers(&self, vcpu: &KvmVcpu) -> Result<(u64, u64), Errno> {
        self.lab.registers(vcpu)
    }

    fn set_registers(&self, vcpu: &mut KvmVcpu, rip: u64, rflags: u64) -> Result<(), Errno> {
        self.lab.set_registers(vcpu, rip, rflags)
    }

    fn ioctl(
        &self,
        vcpu: &mut KvmVcpu,
        target: Target,
        number: u32,
        bytes: &mut Vec<u8>,
        value: u64,
    ) -> Result<i64, Errno> {
        match (self.flaw, target, number) {
            (Some(Flaw::EventsLost), Target::Vcpu, table::SET_EVENTS)
            | (Some(Flaw::DebugLost), Target::Vcpu, table::SET_GUEST_DEBUG)
            | (Some(Flaw::NestedLost), Target::Vcpu, table::SET_NESTED_STATE)
            | (Some(Flaw::SmiLost), Target::Vcpu, SMI)
            | (Some(Flaw::ClockIgnored), Target::Vm, table::SET_CLOCK) => Ok(0),
            (Some(Flaw::MceBank), Target::Vcpu, SET_MCE) => {
                bytes.get_mut(MCE_BANK).into_iter().for_each(|bank| *bank = 0);
                self.lab.ioctl(vcpu, target, number, bytes, value)
            }
            (Some(Flaw::MsiLost), Target::Vm, SIGNAL_MSI) => Ok(1),
            _ => self.lab.ioctl(vcpu, target, number, bytes, value),
        }
    }

    fn attribute(
        &self,
        vcpu: &mut KvmVcpu,
        target: Target,
        group: u32,
        attribute: u64,
        call: AttrCall,
    ) -> Result<u64, Errno> {
        self.lab.attribute(vcpu, target, group, attribute, call)
    }

    fn msr_filter(&self, flags: u32, ranges: &[MsrRange]) -> Result<(), Errno> {
        match self.flaw {
            Some(Flaw::FilterLost) => Ok(()),
            _ => self.lab.msr_filter(flags, ranges),
        }
    }

    fn memory(&self, size: u64, backing: Backing) -> Result<u32, Errno> {
        self.lab.memory(size, backing)
    }

    fn slot(&self, slot: Slot) -> Result<(), Errno> {
        let slot = match self.flaw {
            Some(Flaw::SlotUndead) if slot.size == 0 => return Ok(()),
            Some(Flaw::SpacesMixed) => Slot { slot: slot.slot & 0xffff, ..slot },
            Some(Flaw::ReadOnlyIgnored) => Slot { flags: slot.flags & !READ_ONLY, ..slot },
            _ => slot,
        };
        let there = self.lab.state().slots.get(&slot.slot).copied();
        self.lab.slot(slot)?;
        match there {
            // What is stale is a second slot; one that overlaps is refused, and nothing is wrong.
            Some(old) if self.flaw == Some(Flaw::SlotStale) && slot.size != 0 => {
                let stale = kvm_bindings::kvm_userspace_memory_region { slot: 400, ..old };
                let _ = super::set_region(&self.lab.current.get(), &stale);
            }
            _ => {}
        }
        Ok(())
    }

    fn ram_slot(&self, gpa: u64) -> Result<(u32, u64), Errno> {
        self.lab.ram_slot(gpa)
    }

    fn ram_flags(&self, slot: u32, flags: u32) -> Result<(), Errno> {
        self.lab.ram_flags(slot, flags)
    }

    fn read(&self, memory: u32, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.lab.read(memory, offset, bytes)
    }

    fn write(&self, memory: u32, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        match self.flaw {
            Some(Flaw::HostWriteLost) => Ok(()),
            _ => self.lab.write(memory, offset, bytes),
        }
    }

    fn advise(&self, part: Part, advice: Advice) -> Result<(), Errno> {
        self.lab.advise(part, advice)
    }

    fn protect(&self, part: Part, protection: Protection) -> Result<(), Errno> {
        self.lab.protect(part, protection)
    }

    fn dirty_log(&self, slot: u32, most: u64) -> Result<Vec<u8>, Errno> {
        let mut bitmap = self.lab.dirty_log(slot, most)?;
        let first = bitmap.iter().position(|byte| *byte != 0);
        if let Some(byte) = first.and_then(|at| bitmap.get_mut(at)) {
            match self.flaw {
                Some(Flaw::DirtyUnreported) => *byte &= *byte - 1,
                Some(Flaw::DirtyTooMuch) => *byte |= *byte << 1 | *byte >> 1,
                _ => {}
            }
        }
        Ok(bitmap)
    }

    fn clear_dirty_log(
        &self,
        slot: u32,
        first: u64,
        pages: u32,
        bitmap: Vec<u8>,
    ) -> Result<(), Errno> {
        match self.flaw {
            Some(Flaw::ClearIgnored) => Ok(()),
            _ => self.lab.clear_dirty_log(slot, first, pages, bitmap),
        }
    }

    fn harvest(&self, vcpu: &mut KvmVcpu, most: usize) -> Result<Vec<DirtyPage>, Errno> {
        let mut pages = self.lab.harvest(vcpu, most)?;
        if self.flaw == Some(Flaw::RingLost) && !pages.is_empty() {
            pages.remove(0);
        }
        Ok(pages)
    }

    fn transplant(&self, vcpu: &mut KvmVcpu) -> Result<(), (Errno, u64)> {
        self.lab.transplant(vcpu)?;
        self.forget(vcpu).map_err(|e| (e, 0))
    }

    fn userfault(&self, part: Part, seed: u64) -> Result<(), Errno> {
        let wrong = self.flaw == Some(Flaw::UserfaultWrong);
        self.lab.userfault(part, seed ^ u64::from(wrong) << 12)
    }

    fn userfaults(&self, memory: u32) -> Result<u64, Errno> {
        self.lab.userfaults(memory)
    }

    fn interrupt_window(&self, vcpu: &mut KvmVcpu, request: Option<bool>) -> u64 {
        let request = request.filter(|on| !on || self.flaw != Some(Flaw::WindowLost));
        self.lab.interrupt_window(vcpu, request)
    }
}
