//! vCPU threads: how they run, how one is asked to stop, and what is known of each at the end.

pub mod report;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};

use crate::access::Access;
use crate::cpu::RFLAGS_IF;
use crate::exit::{Entry, Exit, Stop};
use crate::hv::{Activity, Answers, Kick, Vcpu};
use crate::machine::{Context, Machine};
use crate::stats::Counters;
use report::VcpuReport;

/// Answers the exits of a vCPU: the machine, or a recorder before it.
pub trait Handler<V>: Sync {
    /// The answer to `exit` of vCPU `index`, which is `vcpu` and outside of guest mode.
    fn handle(&self, cx: &mut Context, index: usize, vcpu: &mut V, exit: &Exit) -> Entry;

    /// The board that answers accesses, if the handler has nothing to do with them: they go there at once.
    #[inline]
    fn board(&self) -> Option<&Machine> {
        None
    }

    /// The board whose map says which device an access is to, for who counts them.
    fn map(&self) -> Option<&Machine> {
        None
    }
}

/// The way of an access from a vCPU straight to the board.
struct Direct<'a, K> {
    control: &'a Control<K>,
    index: usize,
    machine: &'a Machine,
    cx: &'a mut Context,
    seat: &'a Seat<K>,
}

impl<K: Kick> Answers for Direct<'_, K> {
    #[inline(always)]
    fn access(&mut self, access: Access) -> u64 {
        self.seat.count();
        self.machine.access(self.cx, access, |stop| {
            self.control.end(Some(self.index), stop);
            // Nobody sees what a read of it gets.
            0
        })
    }
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub stop: Stop,
    /// Whose exit it was, if a vCPU's.
    pub vcpu: Option<usize>,
}

/// What other threads see of one vCPU; alone on its cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Seat<K> {
    kicker: OnceLock<K>,
    exits: AtomicU64,
    /// The probe that it answered last.
    probed: AtomicU32,
    /// Whether nothing could wake it then.
    dead: AtomicBool,
}

impl<K> Seat<K> {
    /// One exit more. Only the vCPU's own thread counts, so nothing is lost between the two halves.
    #[inline(always)]
    fn count(&self) {
        let exits = self.exits.load(Ordering::Relaxed);
        self.exits.store(exits.wrapping_add(1), Ordering::Relaxed);
    }
}

/// What the threads of a VM have in common.
pub struct Control<K> {
    ending: AtomicBool,
    ended: OnceLock<Ended>,
    probe: AtomicU32,
    seats: Vec<Seat<K>>,
    /// Where exits are counted by reason and device, if somebody wants to know.
    counters: Option<Arc<Counters>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl<K: Kick> Control<K> {
    /// For `cpus` vCPUs; `wake` tells the supervising thread that the VM ended.
    pub fn new(cpus: usize, wake: Box<dyn Fn() + Send + Sync>) -> Control<K> {
        let seat = |_| Seat {
            kicker: OnceLock::new(),
            exits: AtomicU64::new(0),
            probed: AtomicU32::new(0),
            dead: AtomicBool::new(false),
        };
        Control {
            ending: AtomicBool::new(false),
            ended: OnceLock::new(),
            probe: AtomicU32::new(0),
            seats: (0..cpus).map(seat).collect(),
            counters: None,
            wake,
        }
    }

    /// The same with exits counted: they take a way of their own, so that nobody else pays for it.
    #[must_use]
    pub fn counted(self, counters: Option<Arc<Counters>>) -> Control<K> {
        Control { counters, ..self }
    }

    /// Ends the VM. The first call says how.
    pub fn end(&self, vcpu: Option<usize>, stop: Stop) {
        // A second ending comes too late to be told.
        let _ = self.ended.set(Ended { stop, vcpu });
        self.ending.store(true, Ordering::SeqCst);
        self.kick_all();
        (self.wake)();
    }

    /// How the VM ended, once it has.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.get().copied()
    }

    /// Whether the vCPUs are on their way out.
    #[inline]
    pub fn ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    fn kick_all(&self) {
        fence(Ordering::SeqCst);
        for seat in &self.seats {
            if let Some(kicker) = seat.kicker.get() {
                kicker.kick();
            }
        }
    }

    /// Exits of all vCPUs so far.
    pub fn exits(&self) -> u64 {
        self.seats.iter().map(|s| s.exits.load(Ordering::Relaxed)).sum()
    }

    /// Asks every vCPU whether anything could wake it; they answer one after the other.
    pub fn start_probe(&self) {
        self.probe.fetch_add(1, Ordering::SeqCst);
        self.kick_all();
    }

    /// The answer to the last probe: `None` while one is missing, else whether all are halted with
    /// interrupts off or wait for a SIPI that nobody can send. An NMI could still wake one. Another
    /// vCPU will not send it; that an interrupt line may be programmed to deliver one (an I/O APIC
    /// entry, LINT0 behind the PIT) is not looked at, so a guest that waits for such a line with
    /// interrupts off is taken for dead, and its user must say that it is not.
    pub fn all_dead(&self) -> Option<bool> {
        let probe = self.probe.load(Ordering::SeqCst);
        let answered = |s: &Seat<K>| s.probed.load(Ordering::SeqCst) == probe;
        self.seats
            .iter()
            .all(answered)
            .then(|| self.seats.iter().all(|s| s.dead.load(Ordering::SeqCst)))
    }

    /// At the start, or after an interruption: answers the probe, if there is one.
    #[cold]
    fn attend<V: Vcpu>(&self, index: usize, vcpu: &V) {
        let probe = self.probe.load(Ordering::SeqCst);
        let seat = &self.seats[index];
        if seat.probed.load(Ordering::SeqCst) == probe {
            return;
        }
        let dead = match vcpu.activity() {
            Ok(Activity::WaitForSipi) => true,
            Ok(Activity::Halted) => vcpu.state().is_ok_and(|s| s.rflags & RFLAGS_IF == 0),
            _ => false,
        };
        seat.dead.store(dead, Ordering::SeqCst);
        seat.probed.store(probe, Ordering::SeqCst);
    }

    /// Accesses go from the vCPU to the board, other exits to the handler. A function of its own, so that what stands
    /// around its call takes none of its registers.
    #[inline(never)]
    fn run_direct<V: Vcpu<Kicker = K>>(
        &self,
        index: usize,
        vcpu: &mut V,
        cx: &mut Context,
        handler: &impl Handler<V>,
        machine: &Machine,
    ) {
        let seat = &self.seats[index];
        while !self.ending() {
            let exit = vcpu.enter(&mut Direct { control: self, index, machine, cx, seat });
            self.rare(index, vcpu, cx, handler, exit);
        }
    }

    /// Answers an exit that [`Vcpu::enter`] left to others, and the items that follow it.
    #[inline(never)]
    fn rare<V: Vcpu<Kicker = K>>(
        &self,
        index: usize,
        vcpu: &mut V,
        cx: &mut Context,
        handler: &impl Handler<V>,
        mut exit: Exit,
    ) {
        loop {
            let entry = self.answer(index, vcpu, cx, handler, exit);
            match vcpu.complete(entry) {
                Some(next) if !self.ending() => exit = next,
                _ => return,
            }
        }
    }

    /// The answer to any exit.
    #[inline(never)]
    fn answer<V: Vcpu<Kicker = K>>(
        &self,
        index: usize,
        vcpu: &mut V,
        cx: &mut Context,
        handler: &impl Handler<V>,
        exit: Exit,
    ) -> Entry {
        if exit == Exit::Interrupted {
            // Not the guest's doing: it is neither counted nor logged.
            self.attend(index, vcpu);
            return Entry::Resume;
        }
        self.seats[index].count();
        cx.rip = vcpu.synced_rip();
        let entry = handler.handle(cx, index, vcpu, &exit);
        if let Entry::Stop(stop) = entry {
            self.end(Some(index), stop);
        }
        entry
    }

    /// Runs a vCPU on the calling thread until the VM ends; gives what is to be told of it if the
    /// end wants a report.
    pub fn run<V: Vcpu<Kicker = K>>(
        &self,
        index: usize,
        vcpu: &mut V,
        cx: &mut Context,
        handler: &impl Handler<V>,
        ram: &crate::ram::GuestRam,
    ) -> Option<VcpuReport> {
        let seat = &self.seats[index];
        // A kick that came before the vCPU had a kicker is not lost: `ending` is read after this.
        let first = seat.kicker.set(vcpu.bind());
        assert!(first.is_ok(), "vCPU {index} runs on two threads");
        // The kicker is seen by whoever ends the VM, or the end is seen here: with `kick_all`'s.
        fence(Ordering::SeqCst);
        // Nor is a probe that began before.
        self.attend(index, vcpu);
        match handler.board() {
            _ if let Some(counters) = &self.counters => {
                self.run_watched(index, vcpu, cx, handler, counters)
            }
            Some(machine) if vcpu.answers_in_place() => {
                self.run_direct(index, vcpu, cx, handler, machine)
            }
            _ => {
                let mut entry = Entry::Resume;
                while !self.ending() {
                    let exit = vcpu.run(entry);
                    entry = self.answer(index, vcpu, cx, handler, exit);
                }
            }
        }
        self.ended()
            .filter(|ended| ended.stop.wants_report())
            .map(|_| VcpuReport::new(index, vcpu, cx, ram))
    }
}

#[cfg(test)]
mod tests;
