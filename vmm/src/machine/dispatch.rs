//! The answer to every exit.
//!
//! An access takes the same short way whatever it is: decode ([`Bus::decode`]), lock, one call through a
//! pointer, log. All of it is compiled into the loop that enters the guest, once for each of reading and
//! writing ports and memory; what an access seldom does (another level of a line, an action, a fault, a
//! second device) is in functions of its own, which that loop makes no room for. `cargo xtask bench exact`
//! says how many instructions it takes.
//!
//! [`Bus::decode`]: crate::bus::Bus::decode

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::context::unclaimed;
use super::synic::Registers;
use super::{Context, Inner, Machine, Slot};
use crate::access::{Access, Dir, Size, Space};
use crate::bus::{Decoded, DeviceId, Route};
use crate::device::{Action, At, Env, Served, Told};
use crate::exit::{Entry, Exit, Stop, SystemEvent};
use crate::planted::{self, Flaw};

impl Machine {
    /// Answers one exit. Whatever the guest does, this returns, and does a bounded amount of work.
    #[inline]
    pub fn handle(&self, cx: &mut Context, exit: &Exit) -> Entry {
        let entry = match exit {
            Exit::Io(access) => {
                let mut end = None;
                let value = self.access(cx, *access, |stop| {
                    end = Some(stop);
                    0
                });
                match (end, access.dir) {
                    (Some(stop), _) => Entry::Stop(stop),
                    (None, Dir::Read) => Entry::Read(value & access.size.mask()),
                    (None, Dir::Write(_)) => Entry::Resume,
                }
            }
            exit => self.rare(cx, exit),
        };
        cx.note_rip();
        entry
    }

    /// As [`Machine::handle`], of the exits that are most of all: what a read gets, of which bits above its
    /// width mean nothing. `ended` is called if the VM ends with it, and answers then.
    #[inline(always)]
    pub fn access(&self, cx: &mut Context, access: Access, ended: impl FnOnce(Stop) -> u64) -> u64 {
        let Access { space, addr, size, dir } = access;
        let rest = match self.bus.decode(&mut cx.hint, space, addr, size) {
            Decoded::At(device, at) => match self.slots.get(device) {
                Some(slot) => match self.serve(cx, slot, at, size, dir) {
                    Ok(value) => {
                        cx.log.access(space, addr, size, dir, value);
                        return value;
                    }
                    Err(rest) => rest,
                },
                None if self.pci.is_none() => {
                    let value = unclaimed(cx);
                    cx.log.access(space, addr, size, dir, value);
                    return value;
                }
                None => self.routed(cx, space, addr, size, dir),
            },
            Decoded::Unsure => self.routed(cx, space, addr, size, dir),
        };
        match cx.note(space, addr, size, dir, rest) {
            Some(value) => value,
            None => ended(cx.stop.unwrap_or(Stop::Unexpected)),
        }
    }

    /// One access to one device. An error is what comes of one that did more than give a value: `None` if the
    /// VM ends.
    #[inline(always)]
    fn serve(
        &self,
        cx: &mut Context,
        slot: &Slot,
        at: At,
        size: Size,
        dir: Dir,
    ) -> Result<u64, Option<u64>> {
        let mut inner = slot.lock();
        let Inner { device, told } = &mut *inner;
        let mut env = Env::new(&*self.clock, &self.ram, &mut cx.actions);
        let served = match dir {
            Dir::Read => device.serve_read(&mut env, at, size, told),
            Dir::Write(value) => device.serve_write(&mut env, at, size, value, told),
        };
        if served.is_plain() {
            return Ok(served.value);
        }
        Err(self.after(cx, slot, inner, served))
    }

    /// The same where it does not matter which.
    pub(super) fn call(
        &self,
        cx: &mut Context,
        id: DeviceId,
        at: At,
        size: Size,
        dir: Dir,
    ) -> Option<u64> {
        match self.serve(cx, &self.slots[usize::from(id)], at, size, dir) {
            Ok(value) => Some(value),
            Err(rest) => rest,
        }
    }

    /// What an access did beside giving a value.
    #[inline(never)]
    fn after(
        &self,
        cx: &mut Context,
        slot: &Slot,
        mut inner: MutexGuard<'_, Inner>,
        served: Served,
    ) -> Option<u64> {
        if let Some(fault) = served.fault() {
            cx.faults[fault] += 1;
        }
        let mut stop = None;
        if served.changed() {
            self.settle(cx, slot, &mut inner, &mut stop);
        } else {
            self.act_all(cx, slot, &mut stop);
        }
        cx.answer(served.value, stop)
    }

    /// An access that is not to one place of the bus.
    #[inline(never)]
    fn routed(
        &self,
        cx: &mut Context,
        space: Space,
        addr: u64,
        size: Size,
        dir: Dir,
    ) -> Option<u64> {
        let access = Access { space, addr, size, dir };
        match self.bus.route(&access) {
            Route::To(id, at) => self.call(cx, id, at, size, dir),
            Route::Split(first) => self.split(cx, &access, first),
            Route::Nobody => self.nobody(cx, &access),
        }
    }

    /// An access in pieces, low address first, as a bridge to a narrower bus makes it. All of them are
    /// made; the first stop that one of them asks for counts.
    #[cold]
    pub(super) fn split(&self, cx: &mut Context, access: &Access, first: Size) -> Option<u64> {
        let (mut whole, mut stop) = (0, None);
        let (mut done, mut size) = (0, first);
        let total = access.size.bytes();
        loop {
            let dir = match access.dir {
                Dir::Read => Dir::Read,
                Dir::Write(v) => Dir::Write(v >> (8 * done) & size.mask()),
            };
            // A piece past port 0xffff meets nobody: no region reaches there. Nor where MMIO wraps.
            let addr = access.addr.wrapping_add(done);
            let piece = Access { addr, size, dir, ..*access };
            let value = match self.bus.route(&piece) {
                Route::Split(narrower) => {
                    size = narrower;
                    continue;
                }
                Route::To(id, at) => self.call(cx, id, at, size, dir),
                Route::Nobody => self.nobody(cx, &piece),
            };
            match value {
                Some(value) => whole |= (value & size.mask()) << (8 * done),
                None => stop = stop.or(cx.stop),
            }
            if planted::has(Flaw::BusLogged) {
                cx.log.push(&Exit::Io(piece), Entry::Resume);
            }
            done += size.bytes();
            if done >= total {
                return cx.answer(whole, stop);
            }
            size = if total - done >= first.bytes() { first } else { Size::B1 };
        }
    }

    /// What is on no fixed place of the board: on its PCI bus, or nowhere.
    fn nobody(&self, cx: &mut Context, access: &Access) -> Option<u64> {
        match &self.pci {
            Some(pci) => self.on_pci(pci, cx, access),
            None => Some(unclaimed(cx)),
        }
    }

    /// After a device may have changed: its line, its deadline, what it asked for.
    pub(super) fn settle(
        &self,
        cx: &mut Context,
        slot: &Slot,
        inner: &mut Inner,
        stop: &mut Option<Stop>,
    ) {
        let Inner { device, told } = inner;
        let (now, before) = (Told::of(&**device), *told);
        *told = now;
        if slot.watched {
            told.deadline = Told::UNKNOWN;
        }
        if let Some(gsi) = slot.gsi
            && now.irq() != before.irq()
        {
            self.lines.drive(gsi, now.irq(), |gsi, level| self.line_changed(gsi, level));
        }
        if slot.drives != 0 && now.lines() != before.lines() {
            let tell = |gsi, level| self.line_changed(gsi, level);
            self.lines.drive_many(before.lines() & slot.drives, now.lines() & slot.drives, tell);
        }
        if slot.watched {
            self.settle_controller(slot.id, &mut **device);
        }
        let earlier = slot.deadline.swap(now.deadline, Ordering::Relaxed);
        if now.deadline < earlier {
            self.backplane.deadline(now.deadline);
        }
        self.act_all(cx, slot, stop);
    }

    /// Does what a device asked for.
    fn act_all(&self, cx: &mut Context, slot: &Slot, stop: &mut Option<Stop>) {
        for action in cx.actions.drain() {
            if let Some(s) = self.act(slot, action) {
                stop.get_or_insert(s);
            }
        }
    }

    fn act(&self, slot: &Slot, action: Action) -> Option<Stop> {
        match action {
            Action::Output(byte) => self.backplane.output(slot.name, byte),
            Action::Exit(value) => return Some(Stop::Exit(value)),
            Action::Reset => return Some(Stop::Reset),
            Action::PowerOff => return Some(Stop::PowerOff),
            Action::Sleep(state) => return Some(Stop::Sleep(state)),
            Action::RemapPage(gpa) => self.backplane.remap_page(gpa),
            Action::Synic(call) => self.synic().ask(&*self.backplane, call),
            Action::Message { address, data } => self.message(slot.function, address, data),
            Action::Interrupt { address, data } => self.backplane.message(address, data),
            // Nothing on this board hangs on either: A20 is always open, and a POST code is in
            // the log of exits.
            Action::Post(_) | Action::A20(_) => {}
        }
        None
    }

    /// Exits that are no accesses.
    #[cold]
    fn rare(&self, cx: &mut Context, exit: &Exit) -> Entry {
        let entry = self.other(exit);
        cx.log.push(exit, entry);
        entry
    }

    fn other(&self, exit: &Exit) -> Entry {
        let stop = match *exit {
            Exit::Interrupted | Exit::IrqWindow | Exit::SetTpr | Exit::BusLock => {
                return Entry::Resume;
            }
            Exit::IoapicEoi(vector) => {
                self.end_of_interrupt(vector);
                return Entry::Resume;
            }
            // KVM_ENOSYS, as KVM itself answers a hypercall that it does not know (-1000).
            Exit::Hypercall { .. } => return Entry::Read(-1000i64 as u64),
            Exit::HypervCall { input, params } => {
                return Entry::Read(self.synic().call(self.behind(), input, params));
            }
            Exit::HypervSynic { vp, msr, control, events, messages } => {
                self.synic().changed(&self.ram, vp, msr, Registers { control, events, messages });
                return Entry::Resume;
            }
            // No debugger is behind it: no status.
            Exit::HypervDebug { .. } => return Entry::Read(0),
            // No MSR belongs to the board.
            Exit::Rdmsr { .. } | Exit::Wrmsr { .. } => return Entry::Fault,
            // Without an interrupt controller nothing can wake the vCPU.
            Exit::Hlt => Stop::Halted,
            Exit::Shutdown => Stop::TripleFault,
            Exit::SystemEvent(SystemEvent::Shutdown) => Stop::PowerOff,
            Exit::SystemEvent(SystemEvent::Reset) => Stop::Reset,
            Exit::SystemEvent(SystemEvent::Crash) => Stop::Crash,
            Exit::Io(_)
            | Exit::SystemEvent(SystemEvent::Other(_))
            | Exit::InternalError { .. }
            | Exit::FailEntry { .. }
            | Exit::Debug { .. }
            | Exit::MemoryFault { .. }
            | Exit::DirtyRingFull
            | Exit::Notify
            | Exit::RunError(_)
            | Exit::Unknown(_) => Stop::Unexpected,
        };
        Entry::Stop(stop)
    }
}
