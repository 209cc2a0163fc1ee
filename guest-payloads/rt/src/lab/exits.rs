//! Exits that the VMM writes down for the test, answers as the test says, and goes on from.

use super::kvm::{self, Plain, mp_state};
use super::{LogEntry, Result, abi, answer, ask, op, physical, request};
use crate::{frames, trap};
use abi::{LOG_ENTRY_SIZE, LOG_HEADER_SIZE, Request};
use core::marker::PhantomData;
use core::ops::RangeInclusive;

/// Which exits of this vCPU are recorded, and how they are answered.
#[derive(Clone, Copy, Debug)]
pub struct Rule(abi::Rule);

impl Rule {
    /// Records exits of these kinds ([`super::kind`]), any number of them. Reads get 0.
    pub const fn on(kinds: u32) -> Rule {
        let last = u64::MAX;
        let (fault, first, value, rip_add, rflags_or) = (0, 0, 0, 0, 0);
        let (requests, limit, reserved) = (0, 0, 0);
        Rule(abi::Rule {
            kinds,
            fault,
            first,
            last,
            value,
            rip_add,
            rflags_or,
            requests,
            limit,
            reserved,
        })
    }

    /// Only those of these ports, addresses, MSRs or hypercalls.
    pub const fn range(mut self, range: RangeInclusive<u64>) -> Rule {
        (self.0.first, self.0.last) = (*range.start(), *range.end());
        self
    }

    /// Reads, RDMSR and hypercalls get this value.
    pub const fn value(mut self, value: u64) -> Rule {
        self.0.value = value;
        self
    }

    /// RDMSR and WRMSR raise #GP.
    pub const fn fault(mut self) -> Rule {
        self.0.fault = 1;
        self
    }

    /// The guest goes on so many bytes further: past an `int3`, for one.
    pub const fn skip(mut self, bytes: u64) -> Rule {
        self.0.rip_add = bytes;
        self
    }

    /// The guest goes on with RF set: past an instruction breakpoint.
    pub const fn past_breakpoint(mut self) -> Rule {
        self.0.rflags_or = 1 << 16;
        self
    }

    /// The host carries out these requests at the exit, with the access behind it.
    pub fn then(mut self, chain: &Chain) -> Rule {
        self.0.requests = chain.first();
        self
    }

    /// Only the first so many; the next ones are the next rule's, or end the VM.
    pub const fn limit(mut self, exits: u32) -> Rule {
        self.0.limit = exits;
        self
    }
}

/// Records exits of this vCPU until [`Log::stop`] or the next recording: up to 255 are kept.
pub fn record(rules: &[Rule]) -> Result<Log> {
    record_many(rules, 255)
}

/// As [`record`], with room for so many. The room is never given back.
pub fn record_many(rules: &[Rule], most: u64) -> Result<Log> {
    let len = LOG_HEADER_SIZE + most * LOG_ENTRY_SIZE;
    let at = frames::alloc_range(len.div_ceil(frames::PAGE), frames::PAGE);
    let rules_len = (rules.len() * abi::RULE_SIZE) as u64;
    ask(op::RECORD, &[physical(rules.as_ptr()), rules_len, at, len])?;
    Ok(Log { at, most })
}

/// The exits that were recorded.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    at: u64,
    most: u64,
}

impl Log {
    /// How many there were, also those for which there was no room.
    pub fn count(&self) -> u64 {
        // SAFETY: the header of the log, in frames that are the log's alone.
        unsafe { (self.at as *const u64).read_volatile() }
    }

    /// One of them; `None` if there was no such, or no room.
    pub fn get(&self, index: u64) -> Option<LogEntry> {
        if index >= self.count().min(self.most) {
            return None;
        }
        let at = self.at + LOG_HEADER_SIZE + index * LOG_ENTRY_SIZE;
        // SAFETY: an entry of the log, in frames that are the log's alone.
        Some(unsafe { (at as *const LogEntry).read_volatile() })
    }

    /// Those that there was room for.
    pub fn entries(&self) -> impl Iterator<Item = LogEntry> + '_ {
        (0..self.count().min(self.most)).filter_map(|i| self.get(i))
    }

    /// Records no more: exits do what they do without a lab.
    pub fn stop(&self) -> Result<()> {
        ask(op::RECORD, &[0, 0, 0, 0]).map(|_| ())
    }
}

/// Bytes of a chain's frames: requests first, then what they point to.
const CHAIN: u64 = 4 * frames::PAGE;
/// Requests that fit.
const REQUESTS: u64 = 32;

/// Requests that the host carries out one after the other, at an exit or at [`Chain::run`].
#[derive(Debug)]
pub struct Chain {
    at: u64,
    count: u64,
    /// Where the next data go.
    data: u64,
}

/// A structure that a chain's request gives or takes.
#[derive(Clone, Copy, Debug)]
pub struct Place<T> {
    at: u64,
    what: PhantomData<T>,
}

impl<T: Plain> Place<T> {
    /// What is there now.
    pub fn read(self) -> T {
        // SAFETY: data of a chain, which is never given back; any bytes are a `T`.
        unsafe { (self.at as *const T).read_volatile() }
    }

    /// Puts something there.
    pub fn write(self, value: T) {
        // SAFETY: as for `read`; nobody holds a reference.
        unsafe { (self.at as *mut T).write_volatile(value) }
    }
}

impl Chain {
    /// One without requests: 32 fit, and 13 KiB of structures. The room is never given back.
    pub fn new() -> Chain {
        let at = frames::alloc_range(CHAIN / frames::PAGE, frames::PAGE);
        Chain { at, count: 0, data: at + REQUESTS * abi::REQUEST_SIZE as u64 }
    }

    fn first(&self) -> u32 {
        if self.count == 0 { 0 } else { self.at as u32 }
    }

    /// Physical address of the first request: a test's own OUT of it to [`abi::PORT`] has the host carry
    /// them out, with nothing of the runtime's around it.
    pub fn address(&self) -> u32 {
        self.at as u32
    }

    fn request(&self, index: u64) -> *mut Request {
        (self.at + index * abi::REQUEST_SIZE as u64) as *mut Request
    }

    /// Adds any request; its place, for [`Chain::result`].
    pub fn ask(&mut self, op: u32, args: &[u64]) -> u64 {
        let index = self.count;
        assert!(index < REQUESTS, "a chain has room for {REQUESTS} requests");
        // SAFETY: inside the chain's frames, which are its alone.
        unsafe {
            self.request(index).write_volatile(request(op, args));
            if let Some(before) = index.checked_sub(1) {
                (&raw mut (*self.request(before)).next).write_volatile(self.request(index) as u32);
            }
        }
        self.count += 1;
        index
    }

    /// Room for a structure, `value` in it.
    pub fn place<T: Plain>(&mut self, value: T) -> Place<T> {
        let at = self.data.next_multiple_of(16);
        self.data = at + size_of::<T>() as u64;
        assert!(self.data <= self.at + CHAIN, "a chain has room for 13 KiB of structures");
        let place = Place { at, what: PhantomData };
        place.write(value);
        place
    }

    fn with<T: Plain>(&mut self, target: u64, number: u32, value: T) -> Place<T> {
        let place = self.place(value);
        self.ask(op::IOCTL, &[target, number.into(), place.at, size_of::<T>() as u64]);
        place
    }

    /// Adds an ioctl that gives a structure: where it will be.
    pub fn get<T: Plain>(&mut self, call: kvm::Get<T>) -> Place<T> {
        self.with(call.target, call.number, T::zeroed())
    }

    /// Adds an ioctl that takes a structure: where it is, to be changed later.
    pub fn set<T: Plain>(&mut self, call: kvm::Set<T>, value: T) -> Place<T> {
        self.with(call.target, call.number, value)
    }

    /// Adds an ioctl that takes what another one gave, or what is changed between.
    pub fn set_from<T: Plain>(&mut self, call: kvm::Set<T>, place: Place<T>) {
        let len = size_of::<T>() as u64;
        self.ask(op::IOCTL, &[call.target, call.number.into(), place.at, len]);
    }

    /// Adds any ioctl on what lies at a place; the request, for [`Chain::result`].
    pub fn ioctl<T: Plain>(&mut self, target: u64, number: u32, place: Place<T>) -> u64 {
        self.ask(op::IOCTL, &[target, number.into(), place.at, size_of::<T>() as u64])
    }

    /// Adds an ioctl that takes a number or nothing.
    pub fn call(&mut self, call: kvm::Call, value: u64) -> u64 {
        self.ask(op::IOCTL, &[call.target, call.number.into(), 0, 0, value])
    }

    /// What came of a request the last time. Ends the test with `error` if it was not carried out.
    pub fn result(&self, index: u64) -> Result<i64> {
        assert!(index < self.count, "a chain of {} requests has no {index}", self.count);
        // SAFETY: inside the chain's frames, which are its alone.
        let request = unsafe { self.request(index).read_volatile() };
        answer(&request).map(|(result, _)| result).map_err(|(e, _)| e)
    }

    /// The second result of a request, of those operations that have one.
    pub fn value(&self, index: u64) -> u64 {
        assert!(index < self.count, "a chain of {} requests has no {index}", self.count);
        // SAFETY: as for `result`.
        unsafe { (&raw const (*self.request(index)).value).read_volatile() }
    }

    /// Whether every request was carried out without an error the last time.
    pub fn all_ok(&self) -> Result<()> {
        (0..self.count).try_for_each(|i| self.result(i).map(|_| ()))
    }

    /// Has the host carry them out now.
    pub fn run(&self) {
        if self.count > 0 {
            crate::port::out32(abi::PORT, self.first());
        }
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

unsafe extern "C" {
    fn rt_lab_land();
}

// Where the host puts a vCPU that left the guest in `until_exit`: a trap, which is caught.
#[cfg(feature = "bare-metal")]
core::arch::global_asm!(
    ".section .text.rt_lab_land, \"ax\", @progbits",
    ".global rt_lab_land",
    "rt_lab_land:",
    "ud2"
);

/// Runs `f` until it is over, or until this vCPU leaves the guest with an exit of one of these
/// kinds ([`super::kind`]): then the host puts the registers back as they were before `f`, and the
/// exit is the error. For what a guest does not survive: triple faults, failed entries, internal
/// errors. The general, segment and control registers, EFER and pending events are put back; what
/// else `f` or the exit changed (debug registers, MSRs, after a triple fault the local APIC) is not.
/// As with [`trap::catch`], nothing that `f` was in the middle of is undone.
pub fn until_exit<T>(kinds: u32, f: impl FnOnce() -> T) -> core::result::Result<T, LogEntry> {
    let fatal = |what: &str, e: super::Errno| -> ! {
        crate::report::error(format_args!("until_exit: {what}: {e}"))
    };
    let mut log = None;
    let outcome = {
        let log = &mut log;
        trap::catch(move || {
            let mut chain = Chain::new();
            let sregs = super::get(kvm::GET_SREGS).unwrap_or_else(|e| fatal("registers", e));
            let events = super::events().unwrap_or_else(|e| fatal("events", e));
            let mut regs = super::regs().unwrap_or_else(|e| fatal("registers", e));
            regs.rip = rt_lab_land as *const () as u64;
            chain.set(kvm::SET_SREGS, sregs);
            chain.set(kvm::SET_REGS, regs);
            chain.set(kvm::SET_VCPU_EVENTS, events);
            chain.set(kvm::SET_MP_STATE, mp_state::RUNNABLE);
            let rules = [Rule::on(kinds).then(&chain).limit(1)];
            *log = Some(super::record(&rules).unwrap_or_else(|e| fatal("recording", e)));
            f()
        })
    };
    if let Some(Err(e)) = log.map(|log| log.stop()) {
        fatal("stopping", e);
    }
    match outcome {
        Ok(value) => Ok(value),
        Err(caught) => match log.and_then(|log| log.get(0)) {
            Some(entry) if caught.rip == rt_lab_land as *const () as u64 => Err(entry),
            _ => crate::report::error(format_args!("unexpected {caught}")),
        },
    }
}
