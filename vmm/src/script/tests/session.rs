//! Sessions on a board are recorded and replayed, and a replay notices what differs.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::super::record::{RecordError, Recorder};
use super::super::replay::{self, Player, ReplayError, check, run};
use super::super::*;
use super::{TOY, toys};
use crate::access::{Access, IoError, Size, Space};
use crate::device::Clock;
use crate::machine::{Context, Machine, MachineState, ManualClock, Nowhere, PcConfig, pc};
use crate::ram::{Backing, GuestRam};

fn play(lines: &str) -> String {
    let text = format!("# exitlab script 1\nmachine toys\n{lines}");
    let script = parse(text.as_bytes()).expect("a script");
    let trace = run(&script, &toys).expect("a board");
    let pinned = trace.pin(&script).to_string();
    pinned.lines().skip(3).fold(String::new(), |all, line| all + line.trim() + "\n")
}

#[test]
fn every_operation_does_what_it_says() {
    let played = play(
        "ram 0x1000 fe000000\nout 0x504 4 0x1000\nin 0x504 4\n\
         input toy \"hello, toy, how are you?\"\nin 0x508 4\n\
         advance 500\nin 0x500 4\nout 0x500 4 100\ntimer\nadvance 100\ntimer\n\
         save-restore\nout 0x50c 4 0\nout 0x508 4 0x41\nreset\nin 0x504 4\nhlt\n\
         ram 0xb0000 00\nram 0xb0000 00 after 1\ninput none \"\"\n",
    );
    assert_eq!(
        played,
        "ram 0x1000 fe000000 -> ok\nout 0x504 4 0x1000 -> ok\nin 0x504 4 -> 0xff00fe\n\
         input toy \"hello, toy, how are you?\" -> 0x10\nin 0x508 4 -> 0x68\n\
         advance 500 -> ok\nin 0x500 4 -> 0x1f4\nout 0x500 4 0x64 -> ok\ndeadline 600\n\
         timer -> ok\nadvance 100 -> ok\ntimer -> ok\nline 5 high\n\
         save-restore -> ok\nout 0x50c 4 0x0 -> ok\nline 5 low\n\
         out 0x508 4 0x41 -> ok\noutput toy \"A\"\nreset -> ok\nin 0x504 4 -> 0x0\n\
         hlt -> stop halted\n\
         ram 0xb0000 00 -> refused\nram 0xb0000 00 after 1 -> refused\n\
         input none \"\" -> refused\n"
    );
}

#[test]
fn memory_changes_amid_an_operation() {
    // The toy reads, writes, and reads again: after 2 accesses, another vCPU has been there.
    let played = play("ram 0x1000 01\nram 0x1000 07 after 2\nout 0x504 4 0x1000\nin 0x504 4\n");
    assert!(played.ends_with("in 0x504 4 -> 0x70001\n"), "{played}");
}

#[test]
fn a_replay_names_the_first_difference() {
    let text = "# exitlab script 1\nmachine toys\nadvance 7\nin 0x500 4 -> 0x7\n\
                in 0x500 4 -> 0x8\nin 0x500 4 -> 0x9\n";
    let error = replay::stream("F", text.as_bytes(), &toys).expect_err("it differs");
    assert_eq!(
        error.to_string(),
        "script F, line 5: `in 0x500 4`: expected `0x8`, got `0x7`; the board behaves otherwise \
         than when this was recorded"
    );
    let effects = [
        ("out 0x508 4 1\noutput toy \"\\x02\"\n", "expected effect `output toy \"\\x02\"`"),
        ("out 0x508 4 1\n", "expected no further effect, got effect `output toy \"\\x01\"`"),
        ("hlt\nremap 1\n", "expected effect `remap 0x1`, got no further effect"),
        ("input it \"\" -> ok\n", "got `refused` (this board has no device `it`)"),
    ];
    for (lines, want) in effects {
        let text = format!("# exitlab script 1\nmachine toys\neffects listed\n{lines}");
        let error = replay::stream("F", text.as_bytes(), &toys).expect_err("it differs");
        assert!(error.to_string().contains(want), "{error}");
    }
    let loose = "# exitlab script 1\nmachine toys\nout 0x508 4 1\n";
    let summary = replay::stream("F", loose.as_bytes(), &toys).expect("nothing is expected");
    assert_eq!(summary.output["toy"], 1);
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let stream = |text: &str| replay::stream("F", text.as_bytes(), &replay::board);
    let error = stream("# exitlab script 1\nmachine mainframe\n").expect_err("no such machine");
    assert!(error.to_string().contains("no machine of kind `mainframe`; it has `pc`"), "{error}");
    let error = stream("# exitlab script 1\nmachine pc memory=5\n").expect_err("too small");
    assert!(error.to_string().contains("guest memory of 5 bytes"), "{error}");
    let error = stream("what?").expect_err("no script").to_string();
    assert!(error.starts_with("script F, line 1, column 1: found `what?`"), "{error}");
    let error = replay::file("/nonexistent/x.script".as_ref()).expect_err("no file");
    assert!(matches!(error, ReplayError::Open { .. }));
    let summary = stream("# exitlab script 1\nmachine pc\nhlt -> stop halted\n").expect("a PC");
    let text = summary.to_string();
    assert!(text.starts_with("1 operations, 1 of them exits, 0.000000 s"), "{text}");
    assert!(text.contains("all 1 answers are as expected\nend: every vCPU is halted"), "{text}");
}

/// What a recorder writes, for the test to look at.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A clock that no two looks at give the same time, as the host's.
#[derive(Default)]
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn now(&self) -> u64 {
        self.0.fetch_add(13, Ordering::Relaxed)
    }
}

struct Rig {
    file: Shared,
    recorder: Recorder,
    ram: GuestRam,
    machine: Machine,
}

fn rig() -> Rig {
    let spec = BoardSpec { kind: "toys".into(), cpus: 2, ..BoardSpec::default() };
    let file = Shared::default();
    let recorder = Recorder::new("F".to_owned(), Box::new(file.clone()), &spec);
    let ram = GuestRam::new(spec.memory, Backing::Auto).expect("2 MiB");
    let clock = Arc::new(Ticking::default());
    let (clock, backplane) = recorder.wrap(clock, Arc::new(Nowhere));
    let mut machine = Machine::new(recorder.wrap_ram(&ram), clock, backplane);
    toys(&spec, &mut machine).expect("a board");
    Rig { file, recorder, ram, machine }
}

/// A small generator of numbers, so that a session is the same each time (xorshift64).
struct Rng(u64);

impl Rng {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

/// Memory that the toy fetches from: two words in two pages, and one over the edge between them.
const FETCHED: [u64; 3] = [0x1004, 0x2000, 0x1ffe];

impl Rig {
    /// A vCPU's life: random exits, and what the host does meanwhile.
    fn drive(&self, vcpu: usize, seed: u64, steps: u64) -> Context {
        let (mut rng, mut cx) = (Rng(seed), Context::new());
        for _ in 0..steps {
            let access = match rng.next(10) {
                0 => {
                    self.recorder.advance(&self.machine, &mut cx);
                    continue;
                }
                1 => {
                    let bytes = seed.to_le_bytes();
                    self.recorder.input(&self.machine, &mut cx, "toy", &bytes);
                    continue;
                }
                2 if rng.next(16) == 0 => {
                    self.recorder.reset(&self.machine, &mut cx);
                    continue;
                }
                3 => {
                    let value = rng.next(u64::MAX).to_le_bytes();
                    let addr = FETCHED[rng.next(3) as usize];
                    self.ram.write(addr, &value[..1 + rng.next(4) as usize]).expect("RAM");
                    continue;
                }
                4 => Access::write(Space::Port, TOY, Size::B4, rng.next(2000)),
                5 | 6 => {
                    let addr = FETCHED[rng.next(3) as usize];
                    Access::write(Space::Port, TOY + 4, Size::B4, addr)
                }
                7 => Access::write(Space::Port, TOY + 8 + 4 * rng.next(2), Size::B4, 0x41),
                _ => Access::read(Space::Port, TOY - 1 + rng.next(14), Size::B4),
            };
            self.recorder.handle(&self.machine, &mut cx, vcpu, &Exit::Io(access));
        }
        cx
    }

    /// The recording must replay to the state that the board is in.
    fn replays(&self) -> Script {
        let steps = self.recorder.finish(None).expect("a complete recording");
        let text = self.file.0.lock().expect("no panic").clone();
        let script = parse(&text).expect("a script");
        assert_eq!(script.steps.len() as u64, steps);
        let trace = run(&script, &toys).expect("a board");
        if let Err(difference) = check(&script, &trace) {
            panic!("step {}: {difference}", difference.step);
        }
        let MachineState { now: _, devices } = self.machine.save();
        assert_eq!(trace.end.state.devices, devices);
        let pinned = trace.pin(&script);
        let same = pinned.steps.iter().zip(&script.steps).filter(|(a, b)| a == b).count();
        let bare = script.steps.iter().filter(|s| s.expect.is_none()).count();
        assert_eq!(same + bare, script.steps.len(), "all but time and memory are written in full");
        script
    }
}

#[test]
fn a_recorded_session_replays() {
    let rig = rig();
    rig.ram.write(0x1000, &[0x5a; 0x1100]).expect("RAM");
    rig.drive(0, 0x1234_5678_9abc_def1, 3000);
    let script = rig.replays();
    let has = |what: fn(&Op) -> bool| script.steps.iter().any(|s| what(&s.op));
    assert!(has(|op| matches!(op, Op::Ram { after: 0, .. })), "memory that the guest changed");
    assert!(has(|op| matches!(op, Op::Advance(_))), "time that the device saw");
    assert!(has(|op| matches!(op, Op::Timer)), "timers");
    assert!(has(|op| matches!(op, Op::Reset)), "resets");
}

#[test]
fn a_session_of_two_vcpus_and_a_racing_guest_replays() {
    let rig = rig();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u64;
            while !over.load(Ordering::Relaxed) {
                n = n.wrapping_add(0x0101_0101_0101_0107);
                rig.ram.write(FETCHED[n as usize % 3], &n.to_le_bytes()[..4]).expect("RAM");
            }
        });
        let vcpus = [(0, 0x0bad_cafe_1234_5678), (1, 0xfeed_f00d_dead_beef)];
        let vcpus = vcpus.map(|(vcpu, seed)| {
            let rig = &rig;
            scope.spawn(move || rig.drive(vcpu, seed, 3000))
        });
        let lives = vcpus.map(|vcpu| vcpu.join());
        over.store(true, Ordering::Relaxed);
        assert!(lives.iter().all(Result::is_ok), "a vCPU panicked");
    });
    let script = rig.replays();
    let by =
        |n| script.steps.iter().filter(move |s| matches!(s.op, Op::Exit { cpu, .. } if cpu == n));
    assert!(by(0).count() > 1000 && by(1).count() > 1000);
}

#[test]
fn memory_that_changed_between_two_reads_of_one_call_is_placed_there() {
    // A device that lets its guest run between two reads: the tap's order is then known.
    let rig = rig();
    let seen = rig.recorder.wrap_ram(&rig.ram);
    let guest = rig.ram.clone();
    let mut machine = Machine::new(seen, Arc::new(ManualClock::default()), Arc::new(Nowhere));
    machine.add(Box::new(Fetcher(guest)), &[0x100], None).expect("an empty board");
    let access = Access::read(Space::Port, 0x100, Size::B1);
    rig.recorder.handle(&machine, &mut Context::new(), 0, &Exit::Io(access));
    rig.recorder.finish(None).expect("a complete recording");
    let text = String::from_utf8(rig.file.0.lock().expect("no panic").clone()).expect("text");
    assert!(text.ends_with("ram 0x1000 01\nram 0x1000 02 after 1\nin 0x100 1 -> 0x2\n"), "{text}");
}

/// Reads 0x1000 twice, and between them the guest writes 2 there.
#[derive(Debug)]
struct Fetcher(GuestRam);

impl crate::device::Device for Fetcher {
    fn name(&self) -> &'static str {
        "fetcher"
    }
    fn regions(&self) -> &'static [crate::device::Region] {
        &[crate::device::Region { name: "f", space: Space::Port, len: 1, widest: Size::B1 }]
    }
    fn read(
        &mut self,
        env: &mut crate::device::Env<'_>,
        _: crate::device::At,
        _: Size,
    ) -> Result<u64, IoError> {
        self.0.write(0x1000, &[1]).expect("RAM");
        let first = env.ram.read_u32(0x1000).expect("RAM");
        self.0.write(0x1000, &[2]).expect("RAM");
        let second = env.ram.read_u32(0x1000).expect("RAM");
        assert_eq!((first, second), (1, 2));
        Ok(second.into())
    }
    fn write(
        &mut self,
        _: &mut crate::device::Env<'_>,
        _: crate::device::At,
        _: Size,
        _: u64,
    ) -> Result<(), IoError> {
        Err(IoError::ReadOnly)
    }
    fn reset(&mut self, _: &mut crate::device::Env<'_>) {}
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    fn restore(&mut self, _: &[u8]) -> Result<(), crate::device::StateError> {
        Ok(())
    }
}

#[test]
fn a_recording_says_when_it_is_not_complete() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let recorder = Recorder::new("F".to_owned(), Box::new(Full), &BoardSpec::default());
    for _ in 0..2 {
        let error = recorder.finish(None).expect_err("nothing was written");
        assert!(matches!(error, RecordError::Write { steps: 0, .. }));
        assert!(error.to_string().starts_with("recording F broke off after 0 operations: "));
    }

    let rig = rig();
    let out = Access::write(Space::Port, TOY + 8, Size::B4, 1);
    rig.machine.handle(&mut Context::new(), &Exit::Io(out));
    let error = rig.recorder.finish(None).expect_err("somebody went past it");
    assert!(matches!(error, RecordError::Past { effects: 1, .. }), "{error}");

    let config = PcConfig { cpus: 1, ..PcConfig::default() };
    let error = Recorder::create("/nonexistent/x".as_ref(), &config, &rig.ram).err();
    assert!(matches!(error, Some(RecordError::Create { .. })));
}

#[test]
fn a_recording_goes_to_a_file_and_back() {
    let path = std::env::temp_dir().join(format!("exitlab-record-{}", std::process::id()));
    let board = BoardSpec::default();
    let config = PcConfig { cpus: board.cpus, ..PcConfig::default() };
    let ram = GuestRam::new(board.memory, Backing::Auto).expect("2 MiB");
    let recorder = Recorder::create(&path, &config, &ram).expect("a file");
    let (clock, backplane) = recorder.wrap(Arc::new(ManualClock::default()), Arc::new(Nowhere));
    let machine = pc(&config, recorder.wrap_ram(&ram), clock, backplane).expect("a PC");
    let mut cx = Context::new();
    recorder.handle(&machine, &mut cx, 0, &Exit::Rdmsr { index: 5 });
    recorder.handle(&machine, &mut cx, 0, &Exit::Shutdown);
    assert_eq!(recorder.finish(Some(Stop::TripleFault)).expect("complete"), 2);
    let text = std::fs::read_to_string(&path).expect("a file");
    let summary = replay::file(&path);
    std::fs::remove_file(&path).expect("it was there");
    let summary = summary.expect("it replays");
    assert_eq!((summary.steps, summary.stop), (2, Some(Stop::TripleFault)));
    assert!(text.starts_with("# exitlab script 1\nmachine pc memory=2M cpus=1 "), "{text}");
    assert!(text.ends_with("shutdown -> stop triple-fault\n# end: triple fault\n"), "{text}");
}

#[test]
fn a_player_shows_its_board() {
    let mut player = Player::new(&BoardSpec::default(), &toys).expect("a board");
    player.step(&Op::io(Access::read(Space::Port, 0x80, Size::B1)));
    assert_eq!(player.context().faults[IoError::Unclaimed as usize], 1);
    assert_eq!(player.machine().devices().collect::<Vec<_>>(), ["toy"]);
    player.step(&Op::Ram { addr: 0x5000, bytes: vec![1], after: 0 });
    let end = player.end();
    assert_eq!(end.ram.len(), 1);
    assert_eq!(end.ram[0].0, 0x5000);
}

#[test]
fn a_player_that_was_used_begins_anew() {
    let mut player = Player::new(&BoardSpec::default(), &toys).expect("a board");
    let new = player.end();
    for used_before in [false, true] {
        player.step(&Op::Ram { addr: 0x5000, bytes: vec![0xff; 4], after: 0 });
        player.step(&Op::io(Access::write(Space::Port, TOY, Size::B4, 5)));
        player.step(&Op::Advance(7));
        assert!(player.step(&Op::Timer).effects.contains(&Effect::Line { gsi: 5, level: true }));
        player.step(&Op::Ram { addr: 0x6000, bytes: vec![1], after: 3 });
        if used_before {
            assert_ne!(player.end(), new);
        }
        player.renew().expect("a board");
        assert_eq!((player.end(), player.machine().line(5)), (new.clone(), false));
        let fetch = player.step(&Op::io(Access::write(Space::Port, TOY + 4, Size::B4, 0x5000)));
        assert!(fetch.effects.is_empty());
        let fetched = player.step(&Op::io(Access::read(Space::Port, TOY + 4, Size::B4)));
        assert_eq!(fetched.answer, Answer::Value(0x1_0000), "memory was all zeros");
        player.renew().expect("a board");
    }
}
