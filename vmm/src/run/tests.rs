//! vCPU threads without KVM: a vCPU that plays a list of exits.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use super::*;
use crate::access::{Access, Size, Space};
use crate::cpu::CpuState;
use crate::hv::{Detail, HvError};
use crate::ram::{Backing, GuestRam};

/// Plays `exits`, then halts until it is kicked.
struct Played {
    exits: Vec<Exit>,
    kicked: Arc<AtomicUsize>,
    activity: Activity,
    rflags: u64,
}

#[derive(Debug)]
struct Bell(Arc<AtomicUsize>);

impl Kick for Bell {
    fn kick(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Vcpu for Played {
    type Kicker = Bell;
    fn bind(&mut self) -> Bell {
        Bell(self.kicked.clone())
    }
    fn run(&mut self, _: Entry) -> Exit {
        if let Some(exit) = self.exits.pop() {
            return exit;
        }
        let start = Instant::now();
        while self.kicked.load(Ordering::SeqCst) == 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "nobody kicks");
            std::thread::yield_now();
        }
        self.kicked.fetch_sub(1, Ordering::SeqCst);
        Exit::Interrupted
    }
    fn start(&mut self, _: &CpuState) -> Result<(), HvError> {
        Ok(())
    }
    fn state(&self) -> Result<CpuState, HvError> {
        Ok(CpuState { rflags: self.rflags, ..CpuState::default() })
    }
    fn activity(&self) -> Result<Activity, HvError> {
        Ok(self.activity)
    }
    fn translate(&self, linear: u64) -> Option<u64> {
        (linear < 0x1000).then_some(linear)
    }
    fn detail(&self) -> Detail {
        Detail { data: vec![0xdead], instruction: Some(vec![0x0f, 0x57, 0xc0]) }
    }
}

fn played(exits: &[Exit]) -> Played {
    Played {
        exits: exits.iter().rev().copied().collect(),
        kicked: Arc::default(),
        activity: Activity::Halted,
        rflags: 2,
    }
}

/// Answers everything but a halt with Resume.
struct Board;

impl<V> Handler<V> for Board {
    fn handle(&self, cx: &mut Context, _: usize, _: &mut V, exit: &Exit) -> Entry {
        let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
        let clock = Arc::new(crate::machine::ManualClock::default());
        let nowhere = Arc::new(crate::machine::Nowhere);
        crate::machine::Machine::new(ram, clock, nowhere).handle(cx, exit)
    }
}

fn ram() -> GuestRam {
    let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
    ram.write(0, &[0x31, 0xc0, 0xf4]).expect("RAM");
    ram
}

#[test]
fn one_vcpus_end_takes_the_others_out_of_the_guest() {
    let woken = Arc::new(AtomicUsize::new(0));
    let wake = woken.clone();
    let control = Control::new(
        2,
        Box::new(move || {
            wake.fetch_add(1, Ordering::SeqCst);
        }),
    );
    let io = Exit::Io(Access::write(Space::Port, 0x80, Size::B1, 7));
    let reports: Vec<_> = std::thread::scope(|s| {
        let control = &control;
        let run = |index, mut vcpu: Played| {
            move || control.run(index, &mut vcpu, &mut Context::new(), &Board, &ram())
        };
        let threads = [
            s.spawn(run(0, played(&[]))),
            s.spawn(run(1, played(&[io, Exit::InternalError { suberror: 1 }]))),
        ];
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    assert_eq!(control.ended(), Some(Ended { stop: Stop::Unexpected, vcpu: Some(1) }));
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    assert_eq!(control.exits(), 2);
    let text = reports[1].as_ref().expect("a report is wanted").to_string();
    for part in [
        "port 0x80 write 1 0x7",
        "suberror 1: emulation failed -> stop",
        "xorps xmm0,xmm0",
        "data words: 0xdead\n",
        "rflags 0x2",
        "2 exits, 1 accesses refused",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert!(reports[0].is_some());
}

#[test]
fn a_probe_before_the_vcpu_had_a_kicker_is_answered() {
    let control = Control::new(1, Box::new(|| {}));
    control.start_probe();
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            control.run(0, &mut played(&[]), &mut Context::new(), &Board, &ram()).is_none()
        });
        let start = Instant::now();
        while control.all_dead().is_none() && start.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        let answer = control.all_dead();
        control.end(None, Stop::PowerOff);
        assert!(thread.join().expect("no panic"));
        assert_eq!(answer, Some(true));
    });
}

#[test]
fn a_probe_tells_who_could_still_wake() {
    for (activity, rflags, dead) in [
        (Activity::Halted, 2, true),
        (Activity::Halted, 2 | RFLAGS_IF, false),
        (Activity::WaitForSipi, 2, true),
        (Activity::Runnable, 2, false),
    ] {
        let control = Control::new(1, Box::new(|| {}));
        std::thread::scope(|s| {
            let mut vcpu = Played { activity, rflags, ..played(&[]) };
            let (control, ram) = (&control, ram());
            let thread = s.spawn(move || {
                control.run(0, &mut vcpu, &mut Context::new(), &Board, &ram).is_none()
            });
            while control.seats[0].kicker.get().is_none() {
                std::thread::yield_now();
            }
            control.start_probe();
            while control.all_dead().is_none() {
                std::thread::yield_now();
            }
            assert_eq!(control.all_dead(), Some(dead), "{activity:?} {rflags:#x}");
            control.end(None, Stop::PowerOff);
            assert!(thread.join().expect("no panic"), "no report of an end that was asked for");
        });
    }
}
