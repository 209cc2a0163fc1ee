//! The lab: a guest asks its VMM for calls about itself.
//!
//! A payload under test needs both sides of what it tests: it writes a page, and KVM's dirty log
//! must name it; it is in the middle of something, and its state goes into another VM. The lab
//! relays such calls, and has no opinion on any. [`Relay`] takes a request from guest memory
//! (`payload_abi::lab` has the layouts), checks it, and moves bytes between guest memory and copies
//! of the host's own, which are all that the hypervisor gets to see ([`crate::hv::lab::Lab`]).
//!
//! The exit by which a request comes is completed first: registers that the guest sets or saves
//! are those behind its OUT.

mod record;
pub mod request;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use payload_abi::lab::{
    LogEntry, MAGIC, MAX_CHAIN, MsrRange as MsrWords, PORT, REQUEST_SIZE, RESULT_AT, RULE_SIZE,
    Request, Rule,
};

use crate::access::{Access, Dir, Size, Space};
use crate::exit::{Entry, Exit, Stop};
use crate::hv::Vcpu;
use crate::hv::lab::{Errno, Lab, MsrRange, Part};
use crate::ram::GuestRam;
use record::{Recording, answer, describe};
use request::{Buffer, E2BIG, EFAULT, EINVAL, Op, decode};

/// The longest bitmap of an MSR filter's range, in bytes (`KVM_MSR_FILTER_MAX_BITMAP_SIZE`).
const MAX_BITMAP: u64 = 0x600;
/// The most lab memory that one request fills or sums up, in bytes.
const MAX_PART: u64 = 64 << 20;
/// How much of it at once, in bytes: a multiple of a word.
const CHUNK: usize = 64 << 10;
/// How many exits the completion of one may lead to before that is taken for the guest's doing.
const MAX_DEPTH: u32 = 8;

/// What a request gives: its result and its value.
type Done = (i64, u64);

/// Relays the requests of one guest.
#[derive(Debug)]
pub struct Relay<L> {
    lab: L,
    ram: GuestRam,
    /// What each vCPU records. Only its own thread takes the lock.
    seats: Vec<Mutex<Recording>>,
    refusal: OnceLock<String>,
}

impl<L: Lab> Relay<L> {
    /// For a guest with this memory and so many vCPUs.
    pub fn new(lab: L, ram: GuestRam, cpus: usize) -> Relay<L> {
        let seats = (0..cpus).map(|_| Mutex::default()).collect();
        Relay { lab, ram, seats, refusal: OnceLock::new() }
    }

    /// Why the lab ended the VM, if it did.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }

    /// Answers `exit` of vCPU `index`, or gives the exit that is the board's to answer: `exit`
    /// itself, or one that completing it led to.
    ///
    /// # Errors
    /// When it is neither a request nor recorded.
    pub fn handle(&self, index: usize, vcpu: &mut L::Vcpu, exit: &Exit) -> Result<Entry, Exit> {
        const LAB: u64 = PORT as u64;
        match *exit {
            Exit::Io(Access { space: Space::Port, addr: LAB, size: Size::B4, dir }) => match dir {
                Dir::Read => Ok(Entry::Read(MAGIC.into())),
                Dir::Write(at) => {
                    if let Some(stop) = self.settle(index, vcpu, Entry::Resume, MAX_DEPTH)? {
                        return Ok(Entry::Stop(stop));
                    }
                    let stop = self.chain(index, vcpu, at);
                    self.lab.nudge(vcpu);
                    Ok(stop.map_or(Entry::Resume, Entry::Stop))
                }
            },
            _ => self.record(index, vcpu, exit, MAX_DEPTH),
        }
    }

    fn seat(&self, index: usize) -> Option<MutexGuard<'_, Recording>> {
        Some(self.seats.get(index)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refuse(&self, why: String) -> Stop {
        // The first one is the cause of the others.
        let _ = self.refusal.set(why);
        Stop::Unexpected
    }

    /// Completes the exit under way; exits that this leads to are recorded.
    fn settle(
        &self,
        index: usize,
        vcpu: &mut L::Vcpu,
        entry: Entry,
        depth: u32,
    ) -> Result<Option<Stop>, Exit> {
        let mut entry = entry;
        for _ in 0..MAX_DEPTH {
            let exit = self.lab.settle(vcpu, entry);
            if exit == Exit::Interrupted {
                return Ok(None);
            }
            if depth == 0 {
                return Err(exit);
            }
            entry = self.record(index, vcpu, &exit, depth - 1)?;
            if let Entry::Stop(stop) = entry {
                return Ok(Some(stop));
            }
        }
        Ok(Some(self.refuse(format!(
            "completing an access of vCPU {index} led to {MAX_DEPTH} exits in a row; record fewer"
        ))))
    }

    fn record(
        &self,
        index: usize,
        vcpu: &mut L::Vcpu,
        exit: &Exit,
        depth: u32,
    ) -> Result<Entry, Exit> {
        let Some(mut seat) = self.seat(index) else { return Err(*exit) };
        if seat.is_off() {
            return Err(*exit);
        }
        let Some(described) = describe(exit, || vcpu.detail()) else { return Err(*exit) };
        let Some(rule) = seat.rule(&described) else { return Err(*exit) };
        // A vCPU that tells nothing is one whose exit is told without registers.
        let (rip, rflags) = self.lab.registers(vcpu).unwrap_or_default();
        let (kind, words) = (described.kind, described.words);
        // The number of vCPUs is a u32.
        let logged = LogEntry { kind, cpu: index as u32, rip, rflags, words };
        if let Err(e) = seat.push(&self.ram, &logged) {
            return Ok(Entry::Stop(self.refuse(format!("the log of recorded exits: {e}"))));
        }
        // Requests may set other rules.
        drop(seat);
        let entry = answer(exit, &rule);
        if rule.requests == 0 && rule.rip_add == 0 && rule.rflags_or == 0 {
            return Ok(entry);
        }
        if let Some(stop) = self.settle(index, vcpu, entry, depth)? {
            return Ok(Entry::Stop(stop));
        }
        if rule.requests != 0
            && let Some(stop) = self.chain(index, vcpu, rule.requests.into())
        {
            return Ok(Entry::Stop(stop));
        }
        if rule.rip_add != 0 || rule.rflags_or != 0 {
            let moved = self.lab.registers(vcpu).and_then(|(rip, rflags)| {
                let (rip, rflags) = (rip.wrapping_add(rule.rip_add), rflags | rule.rflags_or);
                self.lab.set_registers(vcpu, rip, rflags)
            });
            if let Err(Errno(errno)) = moved {
                let why = std::io::Error::from_raw_os_error(errno);
                return Ok(Entry::Stop(self.refuse(format!(
                    "RIP and RFLAGS of vCPU {index} cannot be set after a recorded exit: {why}"
                ))));
            }
        }
        self.lab.nudge(vcpu);
        Ok(Entry::Resume)
    }

    /// Carries out the requests from the one at `at` on.
    fn chain(&self, index: usize, vcpu: &mut L::Vcpu, at: u64) -> Option<Stop> {
        let mut at = at;
        for _ in 0..MAX_CHAIN {
            let mut bytes = [0; REQUEST_SIZE];
            if let Err(e) = self.ram.read(at, &mut bytes) {
                return Some(self.refuse(format!(
                    "the guest's lab request is not in its memory ({e}); write the physical \
                     address of a request in RAM to the lab's port"
                )));
            }
            let request = Request::from_bytes(&bytes);
            let done =
                decode(&request).map_err(|e| (e, 0)).and_then(|op| self.carry_out(index, vcpu, op));
            let (result, value) = match done {
                Ok(done) => done,
                Err((Errno(errno), value)) => (-i64::from(errno), value),
            };
            let answer = [result.to_le_bytes(), value.to_le_bytes()];
            if let Err(e) = self.ram.write(at + RESULT_AT, answer.as_flattened()) {
                return Some(self.refuse(format!("the answer of a lab request: {e}")));
            }
            if request.next == 0 {
                return None;
            }
            at = request.next.into();
        }
        Some(self.refuse(format!(
            "the guest's lab requests make a chain of more than {MAX_CHAIN}; end it earlier"
        )))
    }

    fn carry_out(&self, index: usize, vcpu: &mut L::Vcpu, op: Op) -> Result<Done, (Errno, u64)> {
        match op {
            Op::Transplant if self.seats.len() == 1 => self.lab.transplant(vcpu).map(|()| (0, 0)),
            Op::Transplant => Err((Errno(libc::EBUSY), payload_abi::lab::step::CHECK)),
            op => self.simple(index, vcpu, op).map_err(|e| (e, 0)),
        }
    }

    fn simple(&self, index: usize, vcpu: &mut L::Vcpu, op: Op) -> Result<Done, Errno> {
        let lab = &self.lab;
        match op {
            Op::Ioctl { target, number, buffer, value } => {
                let mut bytes = self.load(buffer)?;
                let result = lab.ioctl(vcpu, target, number, &mut bytes, value);
                // An ioctl that fails may say what it wants in the buffer.
                bytes.truncate(buffer.len as usize);
                self.store(buffer, &bytes)?;
                Ok((result?, 0))
            }
            Op::Attribute { target, group, attribute, call } => {
                Ok((0, lab.attribute(vcpu, target, group, attribute, call)?))
            }
            Op::MsrFilter { flags, ranges } => {
                let words = self.load(ranges)?;
                let range = |b: &[u8; 16]| self.msr_range(&MsrWords::from_bytes(b));
                let (ranges, _) = words.as_chunks::<16>();
                let ranges = ranges.iter().map(range).collect::<Result<Vec<_>, _>>()?;
                lab.msr_filter(flags, &ranges).map(|()| (0, 0))
            }
            Op::Memory { size, backing } => Ok((lab.memory(size, backing)?.into(), 0)),
            Op::Slot(slot) => lab.slot(slot).map(|()| (0, 0)),
            Op::RamSlot { gpa } => lab.ram_slot(gpa).map(|(slot, start)| (slot.into(), start)),
            Op::RamFlags { slot, flags } => lab.ram_flags(slot, flags).map(|()| (0, 0)),
            Op::Read { memory, offset, buffer } => {
                let mut bytes = self.load(buffer)?;
                lab.read(memory, offset, &mut bytes)?;
                self.store(buffer, &bytes).map(|()| (0, 0))
            }
            Op::Write { memory, offset, buffer } => {
                lab.write(memory, offset, &self.load(buffer)?).map(|()| (0, 0))
            }
            Op::Fill { part, word } => {
                let pattern = word.to_le_bytes().repeat(CHUNK / 8);
                pieces(part, |at, len| lab.write(part.memory, at, &pattern[..len]))?;
                Ok((0, 0))
            }
            Op::Hash(part) => {
                let mut all = Vec::new();
                pieces(part, |at, len| {
                    let start = all.len();
                    all.resize(start + len, 0);
                    lab.read(part.memory, at, &mut all[start..])
                })?;
                Ok((0, payload_abi::lab::hash(&all)))
            }
            Op::Advise(part, advice) => lab.advise(part, advice).map(|()| (0, 0)),
            Op::Protect(part, protection) => lab.protect(part, protection).map(|()| (0, 0)),
            Op::DirtyLog { slot, buffer } => {
                self.check(buffer)?;
                let bitmap = lab.dirty_log(slot, buffer.len)?;
                self.store(buffer, &bitmap)?;
                Ok((bitmap.len() as i64, 0))
            }
            Op::ClearDirtyLog { slot, first, pages, buffer } => {
                let bitmap = self.load(buffer)?;
                lab.clear_dirty_log(slot, first, pages, bitmap).map(|()| (0, 0))
            }
            Op::Harvest(buffer) => {
                self.check(buffer)?;
                let pages = lab.harvest(vcpu, buffer.len as usize / 16)?;
                let bytes: Vec<u8> = pages
                    .iter()
                    .flat_map(|p| [u64::from(p.slot).to_le_bytes(), p.page.to_le_bytes()])
                    .flatten()
                    .collect();
                self.store(buffer, &bytes)?;
                Ok((pages.len() as i64, 0))
            }
            Op::Record { rules, log } => {
                let bytes = self.load(rules)?;
                let (rules, _) = bytes.as_chunks::<RULE_SIZE>();
                let rules: Vec<Rule> = rules.iter().map(Rule::from_bytes).collect();
                let recording = Recording::new(&rules, log, &self.ram)?;
                *self.seat(index).ok_or(EINVAL)? = recording;
                Ok((0, 0))
            }
            Op::Userfault { part, seed } => lab.userfault(part, seed).map(|()| (0, 0)),
            Op::UserfaultCount { memory } => Ok((0, lab.userfaults(memory)?)),
            Op::InterruptWindow { request } => Ok((0, lab.interrupt_window(vcpu, request))),
            // Of more than one word on what failed: `carry_out`.
            Op::Transplant => Err(EINVAL),
        }
    }

    fn msr_range(&self, words: &MsrWords) -> Result<MsrRange, Errno> {
        let len = u64::from(words.count).div_ceil(8);
        if len > MAX_BITMAP {
            return Err(E2BIG);
        }
        let bitmap = self.load(Buffer { at: words.bitmap.into(), len })?;
        Ok(MsrRange { flags: words.flags, count: words.count, first: words.first, bitmap })
    }

    fn check(&self, buffer: Buffer) -> Result<(), Errno> {
        let fits = buffer.len == 0 || self.ram.contains(buffer.at, buffer.len);
        if fits { Ok(()) } else { Err(EFAULT) }
    }

    /// A copy of a buffer, which is checked to be RAM before there is one.
    fn load(&self, buffer: Buffer) -> Result<Vec<u8>, Errno> {
        self.check(buffer)?;
        let mut bytes = vec![0; buffer.len as usize];
        match bytes.is_empty() {
            true => Ok(bytes),
            false => self.ram.read(buffer.at, &mut bytes).map(|()| bytes).map_err(|_| EFAULT),
        }
    }

    fn store(&self, buffer: Buffer, bytes: &[u8]) -> Result<(), Errno> {
        match bytes.is_empty() {
            true => Ok(()),
            false => self.ram.write(buffer.at, bytes).map_err(|_| EFAULT),
        }
    }
}

/// Calls `f` with the offset and length of each chunk of a part.
fn pieces(part: Part, mut f: impl FnMut(u64, usize) -> Result<(), Errno>) -> Result<(), Errno> {
    if part.len > MAX_PART {
        return Err(E2BIG);
    }
    let end = part.offset.checked_add(part.len).ok_or(EFAULT)?;
    let mut at = part.offset;
    while at < end {
        let len = (end - at).min(CHUNK as u64);
        f(at, len as usize)?;
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
