//! Which exits of a vCPU are recorded, and what an exit looks like in the log.

use payload_abi::lab::{LOG_ENTRY_SIZE, LOG_HEADER_SIZE, LogEntry, Rule, kind};

use super::request::{Buffer, EFAULT, EINVAL};
use crate::access::{Access, Dir, Space};
use crate::exit::{Entry, Exit, SystemEvent};
use crate::hv::Detail;
use crate::hv::lab::Errno;
use crate::ram::{GuestRam, OutOfRam};

/// What one vCPU records.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// Each rule, with the exits that it may still answer.
    rules: Vec<(Rule, Option<u32>)>,
    log: Option<Buffer>,
    count: u64,
}

/// An exit as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub kind: u32,
    /// What ranges of rules are about.
    pub number: u64,
    pub words: [u64; 5],
}

impl Recording {
    /// With these rules, and an empty log.
    pub(super) fn new(rules: &[Rule], log: Buffer, ram: &GuestRam) -> Result<Recording, Errno> {
        let sound = |r: &Rule| r.kinds & !kind::ALL == 0 && r.fault <= 1 && r.reserved == 0;
        if !rules.iter().all(sound) {
            return Err(EINVAL);
        }
        if rules.is_empty() {
            return Ok(Recording::default());
        }
        if log.len < LOG_HEADER_SIZE {
            return Err(EINVAL);
        }
        if !ram.contains(log.at, log.len) {
            return Err(EFAULT);
        }
        ram.write(log.at, &[0; LOG_HEADER_SIZE as usize]).map_err(|_| EFAULT)?;
        let limited = |r: &Rule| (*r, (r.limit != 0).then_some(r.limit));
        Ok(Recording { rules: rules.iter().map(limited).collect(), log: Some(log), count: 0 })
    }

    /// Whether nothing is recorded.
    pub(super) fn is_off(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rule that is about this exit, which uses it up by one.
    pub(super) fn rule(&mut self, exit: &Described) -> Option<Rule> {
        let fits = |(r, left): &&mut (Rule, Option<u32>)| {
            r.kinds & exit.kind != 0
                && (r.first..=r.last).contains(&exit.number)
                && *left != Some(0)
        };
        let (rule, left) = self.rules.iter_mut().find(fits)?;
        if let Some(left) = left {
            *left -= 1;
        }
        Some(*rule)
    }

    /// Writes an exit down.
    pub(super) fn push(&mut self, ram: &GuestRam, entry: &LogEntry) -> Result<(), OutOfRam> {
        let Some(log) = self.log else { return Ok(()) };
        let room = (log.len - LOG_HEADER_SIZE) / LOG_ENTRY_SIZE;
        if self.count < room {
            ram.write(log.at + LOG_HEADER_SIZE + self.count * LOG_ENTRY_SIZE, &entry.to_bytes())?;
        }
        self.count += 1;
        ram.write(log.at, &self.count.to_le_bytes())
    }
}

/// The kind and the words of an exit; `None` for those that nobody records.
pub(super) fn describe(exit: &Exit, detail: impl FnOnce() -> Detail) -> Option<Described> {
    let mut number = 0;
    let mut words = [0; 5];
    let mut put =
        |from: &[u64]| words[..from.len().min(5)].copy_from_slice(&from[..from.len().min(5)]);
    let kind = match *exit {
        Exit::Io(Access { space, addr, size, dir }) => {
            let (write, value) = match dir {
                Dir::Read => (0, 0),
                Dir::Write(value) => (1, value),
            };
            number = addr;
            put(&[addr, size.bytes(), write, value]);
            match space {
                Space::Port => kind::PORT,
                Space::Mmio => kind::MMIO,
            }
        }
        Exit::Debug { vector, pc, dr6 } => {
            let dr7 = detail().data.first().copied().unwrap_or(0);
            put(&[pc, dr6, dr7, vector.into()]);
            kind::DEBUG
        }
        Exit::Rdmsr { index } => {
            number = index.into();
            put(&[number]);
            kind::RDMSR
        }
        Exit::Wrmsr { index, value } => {
            number = index.into();
            put(&[number, value]);
            kind::WRMSR
        }
        Exit::Hypercall { nr, args: [a, b, c] } => {
            number = nr;
            put(&[nr, a, b, c]);
            kind::HYPERCALL
        }
        Exit::HypervSynic { vp: _, msr, control, events, messages } => {
            number = msr.into();
            put(&[kind::HYPERV_SYNIC, number, control, events, messages]);
            kind::HYPERV
        }
        Exit::HypervCall { input, params: [a, b] } => {
            number = input & 0xffff;
            put(&[kind::HYPERV_CALL, input, a, b]);
            kind::HYPERV
        }
        Exit::HypervDebug { msr } => {
            number = msr.into();
            put(&[kind::HYPERV_DEBUG, number]);
            kind::HYPERV
        }
        Exit::DirtyRingFull => kind::DIRTY_RING_FULL,
        Exit::MemoryFault { flags, gpa, size } => {
            number = gpa;
            put(&[flags, gpa, size]);
            kind::MEMORY_FAULT
        }
        Exit::IrqWindow => kind::IRQ_WINDOW,
        Exit::SetTpr => kind::SET_TPR,
        Exit::BusLock => kind::BUS_LOCK,
        Exit::FailEntry { reason, cpu } => {
            put(&[reason, cpu.into()]);
            kind::FAIL_ENTRY
        }
        Exit::InternalError { suberror } => {
            put(&[&[suberror.into()][..], &detail().data].concat());
            kind::INTERNAL_ERROR
        }
        Exit::Shutdown => kind::SHUTDOWN,
        Exit::Hlt => kind::HLT,
        Exit::IoapicEoi(vector) => {
            put(&[vector.into()]);
            kind::IOAPIC_EOI
        }
        Exit::Notify => kind::NOTIFY,
        Exit::RunError(errno) => {
            put(&[errno as u64]);
            kind::RUN_ERROR
        }
        Exit::Unknown(reason) => {
            put(&[reason.into()]);
            kind::UNKNOWN
        }
        Exit::SystemEvent(event) => {
            put(&[match event {
                SystemEvent::Shutdown => 1,
                SystemEvent::Reset => 2,
                SystemEvent::Crash => 3,
                SystemEvent::Other(number) => number.into(),
            }]);
            kind::SYSTEM_EVENT
        }
        Exit::Interrupted => return None,
    };
    Some(Described { kind, number, words })
}

/// How a rule answers an exit.
pub(super) fn answer(exit: &Exit, rule: &Rule) -> Entry {
    match exit {
        Exit::Rdmsr { .. } | Exit::Wrmsr { .. } if rule.fault != 0 => Entry::Fault,
        Exit::Rdmsr { .. } | Exit::Hypercall { .. } | Exit::HypervCall { .. } => {
            Entry::Read(rule.value)
        }
        Exit::Io(Access { dir: Dir::Read, size, .. }) => Entry::Read(rule.value & size.mask()),
        _ => Entry::Resume,
    }
}
