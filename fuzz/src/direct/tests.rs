use payload_abi::replay::{self as guest, BEGIN, END, TELL};
use vmm::script::{Effect, Step, parse};

use super::*;

/// What can be wrong between an instruction and the board.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    None,
    /// A read of 2 bytes sets the upper half of EAX, too.
    TooWide,
    /// A write of 4 bytes arrives as 2.
    Halved,
    /// A read arrives twice.
    Twice,
    /// The last access does not arrive.
    Lost,
    /// The board answered something else than it does directly.
    Answer,
    /// A line rose that does not rise directly.
    Line,
}

fn value_of(access: Access) -> u64 {
    match access.dir {
        Dir::Write(value) => value,
        Dir::Read => 0,
    }
}

/// The recording of a guest that does a script.
fn record(script: &Script, flaw: Flaw) -> Script {
    let mut player = player(&script.board);
    let mut steps = Vec::new();
    let mut exit = |access: Access| {
        let op = Op::io(access);
        let outcome = player.step(&op);
        steps.push(Step { op, expect: Some(outcome.answer), effects: outcome.effects });
        match outcome.answer {
            Answer::Value(value) => value,
            _ => 0,
        }
    };
    let tell = |word: u64| Access::write(Space::Port, TELL.into(), Size::B4, word);
    // What the runtime does before is nobody's business.
    exit(Access::read(Space::Port, 0x3fd, Size::B1));
    exit(tell(BEGIN.into()));
    for (n, step) in script.steps.iter().enumerate() {
        let Op::Exit { exit: Exit::Io(access), .. } = &step.op else { continue };
        let last = n + 1 == script.steps.len();
        let mut value = 0;
        for (done, piece) in pieces(access) {
            let mut piece = piece;
            match (flaw, piece.dir) {
                (Flaw::Halved, Dir::Write(_)) if piece.size == Size::B4 => {
                    piece = Access::write(piece.space, piece.addr, Size::B2, value_of(piece));
                }
                (Flaw::Twice, Dir::Read) => drop(exit(piece)),
                (Flaw::Lost, _) if last => continue,
                _ => {}
            }
            value |= exit(piece) << (8 * done);
        }
        if access.dir == Dir::Read {
            let size = match (flaw, access.size) {
                (Flaw::TooWide, Size::B2) => 4,
                (_, size) => size.bytes() as u8,
            };
            let rax = guest::after(guest::before(n as u64), size, value);
            exit(tell(rax & 0xffff_ffff));
            exit(tell(rax >> 32));
        }
    }
    exit(tell(END.into()));
    let read = |step: &&mut Step| matches!(step.expect, Some(Answer::Value(_)));
    match (flaw, steps.iter_mut().rfind(read)) {
        (Flaw::Answer, Some(step)) => step.expect = Some(Answer::Value(0x77)),
        (Flaw::Line, Some(step)) => step.effects.push(Effect::Line { gsi: 4, level: true }),
        _ => {}
    }
    // It is read as text, as that of a guest is.
    let recording = Script { board: script.board.clone(), all_effects: true, steps };
    parse(recording.to_string().as_bytes()).expect("a script")
}

const SCRIPT: &[u8] = b"# exitlab script 1
machine pc memory=2M cpus=1 unix-time=0 pci=host,pci-testdev,edu iommu=memory
out 0x3ff 1 0x5a
in 0x3fe 2
ram 0x1000 0102
out 0x70 4 0x41424344
write 0xff000ffd 8 0x1122334455667788
read 0xff000ffd 8
in 0x3ff 1
";

fn prepared(text: &[u8]) -> Prepared {
    let script = parse(text).expect("a script");
    let mut preparer = Preparer::new(&script.board);
    preparer.add(ops_of(script));
    preparer.finish()
}

#[test]
fn a_guest_that_does_what_it_is_told_is_the_same() {
    let Prepared { script, left_out } = prepared(SCRIPT);
    assert_eq!((script.steps.len(), left_out), (7, [0; Why::ALL.len()]));
    let compared = compare(&script, &record(&script, Flaw::None));
    assert_eq!(compared, Ok(Compared { ops: 7, ended: None }));
}

#[test]
fn whatever_goes_wrong_on_the_way_is_told() {
    let Prepared { script, .. } = prepared(SCRIPT);
    for (flaw, op, says) in [
        (Flaw::TooWide, Some(1), "guest: RAX is"),
        (Flaw::Halved, Some(3), "direct: `out 0x70 4 0x41424344`; guest: `out 0x70 2 0x4344`"),
        (Flaw::Twice, Some(1), "direct: one exit for it; guest: then `in 0x3fe 2`"),
        (Flaw::Lost, Some(6), "direct: `in 0x3ff 1`; guest: `out 0x1ac0 4"),
        (Flaw::Answer, None, "direct: `0x5a`; guest: `0x77`"),
        (Flaw::Line, None, "guest: effect `line 4 high`"),
    ] {
        let difference = compare(&script, &record(&script, flaw)).expect_err(says);
        assert_eq!(difference.op, op, "{difference}");
        assert!(difference.to_string().contains(says), "{difference}");
    }
}

#[test]
fn a_recording_that_breaks_off_is_told() {
    let Prepared { script, .. } = prepared(SCRIPT);
    let mut recording = record(&script, Flaw::None);
    recording.steps.truncate(6);
    let difference = compare(&script, &recording).expect_err("too short");
    assert!(difference.to_string().ends_with("direct: goes on; guest: ended"), "{difference}");
}

#[test]
fn what_comes_behind_the_end_of_the_machine_is_not_compared() {
    let Prepared { mut script, .. } = prepared(SCRIPT);
    // As if time had had a part in it.
    let end = Access::write(Space::Port, 0xf4, Size::B1, 3);
    script.steps.insert(2, Step::new(Op::io(end)));
    let compared = compare(&script, &record(&script, Flaw::None));
    // The memory that is filled next would be no exit.
    assert_eq!(compared, Ok(Compared { ops: 4, ended: Some(Why::Ends.words()) }));
}

#[test]
fn what_a_guest_cannot_do_is_left_out() {
    for (line, why) in [
        ("input com1 \"a\"", Why::Host),
        ("reset", Why::Host),
        ("timer", Why::Host),
        ("save-restore", Why::Host),
        ("hlt", Why::Host),
        ("in 0x21 1", Why::Kernel),
        ("out 0x60 2 0", Why::Kernel),
        ("in 0x4d1 1", Why::Kernel),
        ("read 0xfee00020 4", Why::Kernel),
        ("read 0xfec00010 4", Why::Kernel),
        ("read 0xfffbd000 1", Why::Kernel),
        ("write 0x1000 1 1", Why::Memory),
        ("read 0x9fffe 4", Why::Memory),
        ("read 0x1000000000 1", Why::Address),
        ("read 0xfffffffffffffffe 4", Why::Address),
        ("out 0xf4 1 0", Why::Ends),
        ("out 0x64 1 0xfe", Why::Ends),
        ("ram 0x100000 01", Why::Elsewhere),
        ("ram 0xfffffffffffffffe 01020304", Why::Elsewhere),
        ("out 0x1abe 4 0", Why::Tell),
    ] {
        let text = format!("# exitlab script 1\nmachine pc pci=host,edu iommu=memory\n{line}\n");
        let Prepared { script, left_out } = prepared(text.as_bytes());
        assert_eq!((script.steps.len(), left_out[why as usize]), (0, 1), "{line}: {left_out:?}");
    }
}

#[test]
fn a_device_that_uses_the_payloads_memory_is_kept_from_it() {
    // fw_cfg's DMA address register: big-endian halves, the second one starts (QEMU's specification of it).
    let dma = |descriptor: &str, to: &str| {
        format!(
            "# exitlab script 1\nmachine pc pci=host,edu iommu=memory\nram 0x1000 0000000a00000004{to}\n\
             out 0x514 4 0\nout 0x518 4 {descriptor}\nin 0x510 2\n"
        )
    };
    let kept = |text: String| prepared(text.as_bytes()).script.steps.len();
    assert_eq!(kept(dma("0x00100000", "0000000000002000")), 4);
    // Into the image, and with a descriptor in it.
    assert_eq!(kept(dma("0x00100000", "0000000000100000")), 3);
    assert_eq!(kept(dma("0x00001000", "0000000000002000")), 3);
}

#[test]
fn an_access_over_the_end_of_a_page_leaves_the_guest_in_two_parts() {
    let text = |access: Access| -> Vec<String> {
        pieces(&access).into_iter().map(|(_, piece)| Op::io(piece).to_string()).collect()
    };
    let write = Access::write(Space::Mmio, 0xffd, Size::B8, 0x1122_3344_5566_7788);
    let parts = ["write 0xffd 1 0x88", "write 0xffe 2 0x6677", "write 0x1000 4 0x22334455"];
    assert_eq!(text(write)[..3], parts);
    assert_eq!(text(write)[3], "write 0x1004 1 0x11");
    assert_eq!(text(Access::read(Space::Mmio, 0xffe, Size::B4)), ["read 0xffe 2", "read 0x1000 2"]);
    assert_eq!(text(Access::read(Space::Mmio, 0xff9, Size::B4)), ["read 0xff9 4"]);
    assert_eq!(text(Access::read(Space::Port, 0xfff, Size::B4)), ["in 0xfff 4"]);
}

#[test]
fn scripts_of_each_chip_meet_it_on_the_pc() {
    for target in crate::targets::ALL {
        let Some(own) = target.board() else { continue };
        let spec = board(&own);
        let places = |machine: &vmm::machine::Machine| -> Vec<(Space, u64)> {
            machine.mappings().map(|m| (m.region.space, m.base)).collect()
        };
        let mut pc = player(&spec);
        for op in homeward(&spec) {
            pc.step(&op);
        }
        let (pc, own) = (places(pc.machine()), Player::new(&own.spec, own.build).expect("a board"));
        // A stand-in of some targets, where a PC has nothing.
        let missing: Vec<_> =
            places(own.machine()).into_iter().filter(|place| !pc.contains(place)).collect();
        assert!(missing.len() <= 1, "{}: {missing:x?}", target.name);
    }
}
