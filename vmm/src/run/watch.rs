//! The same loops with exits counted and timed. They are functions of their own, and what answers an access in
//! place is another type, so that a VM whose exits nobody counts runs not one instruction of this.
//!
//! The time-stamp counter is read three times an exit: when KVM_RUN returns, when the exit is answered, and before
//! KVM_RUN is called again. What the counting takes lies between the last two, and so in neither time.

use super::{Control, Direct, Handler};
use crate::access::Access;
use crate::exit::{Entry, Exit};
use crate::hv::{Answers, Kick, Vcpu, ticks};
use crate::machine::{Context, Machine};
use crate::stats::{Counters, Reason, VcpuStats};

/// Takes the time of one vCPU's exits.
struct Watch<'a> {
    stats: &'a VcpuStats,
    /// When KVM_RUN was called last.
    entered: u64,
    /// When it returned.
    left: u64,
    /// When the exit was answered.
    answered: u64,
}

impl<'a> Watch<'a> {
    fn new(stats: &'a VcpuStats) -> Watch<'a> {
        let now = ticks();
        Watch { stats, entered: now, left: now, answered: now }
    }

    #[inline(always)]
    fn entering(&mut self) {
        self.entered = ticks();
        self.stats.own(since(self.answered, self.entered));
    }

    #[inline(always)]
    fn left(&mut self) {
        self.left = ticks();
    }

    /// The exit was answered just now.
    #[inline(always)]
    fn answered(&mut self) {
        self.answered = ticks();
    }

    /// Counts the exit that was answered.
    #[inline(always)]
    fn count(&self, reason: Reason) {
        let (kvm, user) = (since(self.entered, self.left), since(self.left, self.answered));
        self.stats.exit(reason, kvm, user);
    }
}

/// Ticks from `before` to `after`; none where a thread came to a processor whose counter is behind.
#[inline(always)]
fn since(before: u64, after: u64) -> u64 {
    after.saturating_sub(before)
}

/// As [`Direct`], with the time taken.
struct Watched<'a, 'b, K> {
    direct: Direct<'a, K>,
    watch: &'a mut Watch<'b>,
}

impl<K: Kick> Answers for Watched<'_, '_, K> {
    const WATCHES: bool = true;

    #[inline(always)]
    fn access(&mut self, access: Access) -> u64 {
        let value = self.direct.access(access);
        let Access { space, addr, size, dir } = access;
        self.watch.answered();
        let device = self.direct.machine.owner(self.direct.cx, space, addr, size);
        self.watch.count(Reason::of_access(space, dir));
        self.watch.stats.access(device, since(self.watch.left, self.watch.answered));
        value
    }

    #[inline(always)]
    fn entering(&mut self) {
        self.watch.entering();
    }

    #[inline(always)]
    fn left(&mut self) {
        self.watch.left();
    }
}

impl<K: Kick> Control<K> {
    /// Runs a vCPU until the VM ends, and counts its exits.
    pub(super) fn run_watched<V: Vcpu<Kicker = K>>(
        &self,
        index: usize,
        vcpu: &mut V,
        cx: &mut Context,
        handler: &impl Handler<V>,
        counters: &Counters,
    ) {
        let Some(stats) = counters.vcpu(index) else {
            unreachable!("vCPU {index} has no counters: those of another VM were given")
        };
        let mut watch = Watch::new(stats);
        match handler.board() {
            Some(machine) if vcpu.answers_in_place() => {
                let seat = &self.seats[index];
                while !self.ending() {
                    let direct = Direct { control: self, index, machine, cx, seat };
                    let exit = vcpu.enter(&mut Watched { direct, watch: &mut watch });
                    self.answer_watched(index, vcpu, cx, handler, &mut watch, exit);
                }
            }
            _ => {
                let mut entry = Entry::Resume;
                while !self.ending() {
                    watch.entering();
                    let exit = vcpu.run(entry);
                    watch.left();
                    entry = self.answer_watched(index, vcpu, cx, handler, &mut watch, exit);
                }
            }
        }
    }

    /// Answers an exit and the items that follow it, and counts it. Gives the last answer.
    #[inline(never)]
    fn answer_watched<V: Vcpu<Kicker = K>>(
        &self,
        index: usize,
        vcpu: &mut V,
        cx: &mut Context,
        handler: &impl Handler<V>,
        watch: &mut Watch<'_>,
        first: Exit,
    ) -> Entry {
        let (mut exit, mut began) = (first, watch.left);
        let entry = loop {
            let entry = self.answer(index, vcpu, cx, handler, exit);
            watch.answered();
            if let (Exit::Io(access), Some(machine)) = (exit, handler.map()) {
                let device = owner(machine, cx, &access);
                watch.stats.access(device, since(began, watch.answered));
            }
            match vcpu.complete(entry) {
                Some(next) if !self.ending() => (exit, began) = (next, ticks()),
                _ => break entry,
            }
        };
        watch.count(Reason::of(&first));
        entry
    }
}

fn owner(machine: &Machine, cx: &mut Context, access: &Access) -> usize {
    machine.owner(cx, access.space, access.addr, access.size)
}
