//! The text form: what is printed is read back, and what is no script is named.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use crate::access::{Access, Size, Space};
use crate::exit::SystemEvent;

fn access() -> impl Strategy<Value = Access> {
    let size = prop::sample::select(&Size::ALL[..]);
    (any::<bool>(), any::<u64>(), size, any::<Option<u64>>()).prop_map(
        |(port, addr, size, write)| {
            let (space, addr, size) = match port {
                true => (Space::Port, addr & 0xffff, size.min(Size::B4)),
                false => (Space::Mmio, addr, size),
            };
            match write {
                Some(value) => Access::write(space, addr, size, value),
                None => Access::read(space, addr, size),
            }
        },
    )
}

fn exit() -> impl Strategy<Value = Exit> {
    let w = any::<u32>;
    let q = any::<u64>;
    prop_oneof![
        8 => access().prop_map(Exit::Io),
        1 => Just(Exit::Hlt),
        1 => Just(Exit::Shutdown),
        1 => Just(Exit::SystemEvent(SystemEvent::Shutdown)),
        1 => Just(Exit::SystemEvent(SystemEvent::Reset)),
        1 => Just(Exit::SystemEvent(SystemEvent::Crash)),
        1 => w().prop_map(|kind| Exit::SystemEvent(SystemEvent::Other(kind))),
        1 => w().prop_map(|suberror| Exit::InternalError { suberror }),
        1 => (q(), w()).prop_map(|(reason, cpu)| Exit::FailEntry { reason, cpu }),
        1 => (w(), q(), q()).prop_map(|(vector, pc, dr6)| Exit::Debug { vector, pc, dr6 }),
        1 => (q(), [q(), q(), q()]).prop_map(|(nr, args)| Exit::Hypercall { nr, args }),
        1 => (q(), [q(), q()]).prop_map(|(input, params)| Exit::HypervCall { input, params }),
        1 => (any::<u16>(), w(), q(), q(), q()).prop_map(|(vp, msr, control, events, messages)| {
            Exit::HypervSynic { vp, msr, control, events, messages }
        }),
        1 => w().prop_map(|msr| Exit::HypervDebug { msr }),
        1 => w().prop_map(|index| Exit::Rdmsr { index }),
        1 => (w(), q()).prop_map(|(index, value)| Exit::Wrmsr { index, value }),
        1 => any::<u8>().prop_map(Exit::IoapicEoi),
        1 => (q(), q(), q()).prop_map(|(flags, gpa, size)| Exit::MemoryFault { flags, gpa, size }),
        1 => prop::sample::select(vec![
            Exit::SetTpr,
            Exit::IrqWindow,
            Exit::DirtyRingFull,
            Exit::BusLock,
            Exit::Notify,
            Exit::Interrupted,
        ]),
        1 => (0..=i32::MAX).prop_map(Exit::RunError),
        1 => w().prop_map(Exit::Unknown),
    ]
}

fn name() -> impl Strategy<Value = Cow<'static, str>> {
    prop_oneof!["[a-z0-9.-]{1,8}", any::<String>()].prop_map(Cow::from)
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = || vec(any::<u8>(), 0..40);
    prop_oneof![
        6 => (0..4u16, exit()).prop_map(|(cpu, exit)| Op::Exit { cpu, exit }),
        2 => (any::<u64>(), bytes(), 0..3u32)
            .prop_map(|(addr, bytes, after)| Op::Ram { addr, bytes, after }),
        2 => (name(), bytes()).prop_map(|(device, bytes)| Op::Input { device, bytes }),
        1 => any::<u64>().prop_map(Op::Advance),
        1 => prop::sample::select(vec![Op::Timer, Op::SaveRestore, Op::Reset]),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let stop = prop_oneof![
        any::<u8>().prop_map(Stop::Exit),
        any::<u8>().prop_map(Stop::Sleep),
        prop::sample::select(vec![
            Stop::PowerOff,
            Stop::Reset,
            Stop::TripleFault,
            Stop::Halted,
            Stop::Crash,
            Stop::Unexpected,
            Stop::Timeout,
            Stop::Interrupted,
        ]),
    ];
    prop_oneof![
        Just(Answer::Ok),
        any::<u64>().prop_map(Answer::Value),
        Just(Answer::Fault),
        Just(Answer::Refused),
        stop.prop_map(Answer::Stop),
    ]
}

fn effect() -> impl Strategy<Value = Effect> {
    prop_oneof![
        (any::<u32>(), any::<bool>()).prop_map(|(gsi, level)| Effect::Line { gsi, level }),
        (name(), any::<u8>()).prop_map(|(device, byte)| Effect::Output { device, byte }),
        any::<u64>().prop_map(Effect::Remap),
        (any::<u32>(), any::<Option<(u64, u32)>>())
            .prop_map(|(pin, message)| Effect::AwaitEnd { pin, message }),
        (any::<u64>(), any::<u32>()).prop_map(|(address, data)| Effect::Message { address, data }),
        any::<u64>().prop_map(Effect::Deadline),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    let step = (op(), prop::option::of(answer()), vec(effect(), 0..3))
        .prop_map(|(op, expect, effects)| Step { op, expect, effects });
    let pci = prop::option::of(vec(prop::sample::select(&PciDevice::ALL[..]), 0..3));
    let iommu = prop::option::of(any::<bool>().prop_map(|interrupts| IommuConfig { interrupts }));
    let machine = (name(), any::<u64>(), 4..=u16::MAX, any::<u64>(), pci, any::<bool>(), iommu);
    (machine, any::<bool>(), vec(step, 0..20)).prop_map(
        |((kind, memory, cpus, unix_time, pci, ioapic, iommu), all_effects, steps)| Script {
            board: BoardSpec { kind, memory, cpus, unix_time, pci, ioapic, iommu },
            all_effects,
            steps,
        },
    )
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(script in script()) {
        let text = script.to_string();
        prop_assert_eq!(parse(text.as_bytes()), Ok(script), "{}", text);
    }

    #[test]
    fn no_bytes_panic_the_parser(bytes in vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let _ = parse(&[HEAD.as_bytes(), &bytes].concat());
    }

    #[test]
    fn a_damaged_script_is_read_or_refused(
        script in script(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = script.to_string().into_bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let lines = bytes.iter().filter(|&&b| b == b'\n').count() as u64 + 1;
        match parse(&bytes) {
            // What was read must be printable and readable again.
            Ok(script) => prop_assert_eq!(parse(script.to_string().as_bytes()), Ok(script)),
            Err(e) => prop_assert!(e.line <= lines && e.column >= 1, "{}", e),
        }
    }
}

const HEAD: &str = "# exitlab script 1\nmachine pc\n";

#[test]
fn the_largest_bytes_that_an_operation_carries_are_read_back() {
    let input = |byte| Op::Input { device: "com1".into(), bytes: vec![byte; MAX_BYTES] };
    let ram = Op::Ram { addr: u64::MAX, bytes: vec![0; MAX_BYTES], after: u32::MAX };
    let script = Script::new(BoardSpec::default(), [input(b'a'), input(0), ram]);
    assert_eq!(parse(script.to_string().as_bytes()), Ok(script));
}

#[test]
fn a_script_by_hand() {
    let text = "# exitlab script 1\n\n  # a comment\n\
                machine pc memory=4M cpus=2 unix-time=5 # so\n\
                effects listed\r\n\
                \n\
                out 1016 1 0x41 -> ok # one byte\n  output com1 \"A\"\nline 4 high\n\
                cpu 1\n\
                rdmsr 0x10 -> fault\n\
                ram 0x1000 \"hi\\n\"\n\
                timer -> stop exit 0x0\n";
    let script = parse(text.as_bytes()).expect("a script");
    let board = BoardSpec {
        kind: "pc".into(),
        memory: 4 << 20,
        cpus: 2,
        unix_time: 5,
        ..BoardSpec::default()
    };
    assert_eq!((&script.board, script.all_effects), (&board, true));
    let out = Access::write(Space::Port, 0x3f8, Size::B1, 0x41);
    let output = Effect::Output { device: "com1".into(), byte: b'A' };
    assert_eq!(
        script.steps,
        [
            Step {
                op: Op::io(out),
                expect: Some(Answer::Ok),
                effects: vec![output, Effect::Line { gsi: 4, level: true }],
            },
            Step {
                op: Op::Exit { cpu: 1, exit: Exit::Rdmsr { index: 0x10 } },
                expect: Some(Answer::Fault),
                effects: Vec::new(),
            },
            Step::new(Op::Ram { addr: 0x1000, bytes: b"hi\n".to_vec(), after: 0 }),
            Step { op: Op::Timer, expect: Some(Answer::Stop(Stop::Exit(0))), effects: Vec::new() },
        ]
    );
}

#[test]
fn an_error_names_the_place_and_what_belongs_there() {
    let wrong = |text: &str| parse(text.as_bytes()).expect_err(text).to_string();
    let line = |text: &str| wrong(&format!("{HEAD}{text}\n"));
    let cases = [
        (wrong(""), "line 1, column 1: found the end of the line, expected `# exitlab script 1`"),
        (wrong("# exitlab script 2\n"), "`# exitlab script 1`: this VMM reads no other version"),
        (wrong("# exitlab script 1\n"), "expected `machine KIND`"),
        (wrong("# exitlab script 1\nmachine pc ram=1\n"), "line 2, column 12: found `ram=1`"),
        (wrong("# exitlab script 1\nmachine pc cpus=0\n"), "found `cpus=0`, expected `memory="),
        (line("in 0x3f8"), "line 3, column 9: found the end of the line, expected a width"),
        (line("in 0x3f8 8"), "column 10: found `8`, expected a width of 1, 2 or 4"),
        (line("in 0x10000 1"), "found `0x10000`, expected a port, at most 0xffff"),
        (line("out 0x80 1 0x100"), "expected a value of that width, at most 0xff"),
        (line("out 0x80 1 +1"), "found `+1`, expected a value of that width, a number"),
        (line("frob"), "found `frob`, expected an operation"),
        (line("hlt now"), "found `now`, expected `->` and an answer, or the end of the line"),
        (line("hlt -> perhaps"), "found `perhaps`, expected an answer"),
        (line("hlt -> ok ok"), "found `ok`, expected the end of the line"),
        (line("hlt -> stop soon"), "found `soon`, expected a stop"),
        (line("line 4 high"), "found an effect, expected an operation before its effects"),
        (line("hlt\nline 4 up"), "line 4, column 8: found `up`, expected `high` or `low`"),
        (line("hlt\noutput com1 \"AB\""), "expected one byte of output"),
        (line("ram 0 123"), "found `123`, expected memory: pairs of hexadecimal digits"),
        (line("input com1 \"a"), "column 14: found the end of the line, expected a closing `\"`"),
        (line("input com1 \"\\q\""), "found `\\\\q`, expected an escape"),
        (line("input com1 \"\\xg0\""), "expected an escape"),
        (line("input c/1 \"\""), "found `c/1`, expected the name of a device"),
        (line("cpu 1"), "found `1`, expected a vCPU of this machine, at most 0x0"),
        (line(&"x".repeat(300_000)), "line 3, column 263169: found a longer one"),
    ];
    for (got, want) in cases {
        assert!(got.contains(want), "`{got}` does not say `{want}`");
    }
}

#[test]
fn a_broken_source_is_no_end() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is gone"))
        }
    }
    let text = format!("{HEAD}hlt\n");
    let source = std::io::Read::chain(text.as_bytes(), Broken);
    let mut reader = Reader::new(std::io::BufReader::new(source)).expect("a header");
    let error = reader.next_step().expect_err("the rest is not there").to_string();
    assert_eq!(error, "after line 3: the rest cannot be read: the disk is gone");
}
