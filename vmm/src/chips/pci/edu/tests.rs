use proptest::prelude::*;

use super::*;
use crate::device::Action;
use crate::laws::{Answer, Op, Session};

fn new() -> Edu {
    let memory = BusMemory::new(super::super::Slot::new(4, 0), None);
    Edu::new(memory, Placement { bases: vec![0xe010_0000], line: 11 })
}

fn bench() -> Session<Edu> {
    let mut s = Session::new(new(), new);
    s.apply(&Op::write(4, Size::B2, 6)).expect("lawful");
    s
}

const fn set(offset: u64, size: Size, value: u64) -> Op {
    Op::Write { region: 1, offset, size, value }
}

const fn dword(offset: u64, value: u64) -> Op {
    set(offset, Size::B4, value)
}

fn read(s: &mut Session<Edu>, offset: u64, size: Size) -> Answer {
    s.apply(&Op::Read { region: 1, offset, size }).expect("lawful");
    s.trace.last().expect("a step").answer
}

fn value(s: &mut Session<Edu>, offset: u64) -> u64 {
    match read(s, offset, Size::B4) {
        Answer::Read(Ok(value)) => value,
        other => panic!("a read of {offset:#x} gives {other:?}"),
    }
}

#[test]
fn it_is_there_and_alive() {
    let mut s = bench();
    assert_eq!(value(&mut s, reg::ID), 0x0100_00ed);
    s.run(&[dword(reg::ALIVE, 0x1234_5678)]).expect("lawful");
    assert_eq!(value(&mut s, reg::ALIVE), 0xedcb_a987);
    for (n, factorial) in [(0, 1), (1, 1), (5, 120), (13, 1_932_053_504), (33, 1 << 31), (34, 0)] {
        s.run(&[dword(reg::FACTORIAL, n)]).expect("lawful");
        assert_eq!(value(&mut s, reg::FACTORIAL), factorial, "of {n}");
    }
    s.run(&[dword(reg::FACTORIAL, 0xffff_ffff)]).expect("lawful");
    assert_eq!(value(&mut s, reg::FACTORIAL), 0);
}

#[test]
fn registers_have_their_widths() {
    let mut s = bench();
    for (offset, size) in [(0, Size::B1), (4, Size::B8), (0x20, Size::B2), (0x84, Size::B8)] {
        assert_eq!(read(&mut s, offset, size), Answer::Read(Err(IoError::Width)), "{offset:#x}");
    }
    s.run(&[set(reg::SOURCE, Size::B8, 0x1_2345_6789), dword(0x84, 7)]).expect("lawful");
    assert_eq!(read(&mut s, reg::SOURCE, Size::B8), Answer::Read(Ok(0x7_2345_6789)));
    assert_eq!(value(&mut s, 0x84), 7);
    assert_eq!(read(&mut s, reg::RAISE, Size::B4), Answer::Read(Err(IoError::WriteOnly)));
    assert_eq!(read(&mut s, BUFFER, Size::B4), Answer::Read(Err(IoError::NoRegister)));
}

#[test]
fn causes_hold_the_line_until_all_are_acknowledged() {
    let mut s = bench();
    s.run(&[dword(reg::RAISE, 6)]).expect("lawful");
    assert!(s.device.irq());
    s.run(&[dword(reg::ACKNOWLEDGE, 2)]).expect("lawful");
    assert_eq!((value(&mut s, reg::CAUSES), s.device.irq()), (4, true));
    s.run(&[dword(reg::ACKNOWLEDGE, 4)]).expect("lawful");
    assert!(!s.device.irq());
    s.run(&[dword(reg::STATUS, 0xffff_ffff), dword(reg::FACTORIAL, 3)]).expect("lawful");
    assert_eq!((value(&mut s, reg::STATUS), value(&mut s, reg::CAUSES)), (0x80, 1));
}

#[test]
fn with_messages_each_cause_is_one() {
    let mut s = bench();
    let setup = [(0x44, 0xfee0_0000), (0x4c, 0x41), (0x40, 1 << 16)];
    s.run(&setup.map(|(at, value)| Op::write(at, Size::B4, value))).expect("lawful");
    let sent = vec![Action::Message { address: 0xfee0_0000, data: 0x41 }];
    for (op, actions) in [
        (dword(reg::RAISE, 1), &sent),
        (dword(reg::RAISE, 1), &sent),
        (dword(reg::ACKNOWLEDGE, 1), &vec![]),
        (dword(reg::RAISE, 0), &vec![]),
    ] {
        s.apply(&op).expect("lawful");
        let step = s.trace.last().expect("a step");
        assert_eq!((&step.actions, step.irq), (actions, false), "{op:?}");
    }
}

fn transfer(source: u64, destination: u64, length: u64, command: u64) -> [Op; 4] {
    [
        set(reg::SOURCE, Size::B8, source),
        set(reg::DESTINATION, Size::B8, destination),
        set(reg::LENGTH, Size::B8, length),
        dword(reg::COMMAND, command),
    ]
}

#[test]
fn data_goes_to_the_buffer_and_back() {
    let mut s = bench();
    s.run(&[Op::Ram { addr: 0x1000, bytes: (0..100).collect() }]).expect("lawful");
    s.run(&transfer(0x1000, BUFFER + 4000, 96, 1)).expect("lawful");
    // Busy: its registers are not to be changed.
    s.run(&[dword(reg::LENGTH, 1), dword(reg::COMMAND, 0)]).expect("lawful");
    let busy = Answer::Wrote(Err(IoError::Disabled));
    assert!(s.trace[s.trace.len() - 2..].iter().all(|step| step.answer == busy));
    assert_eq!(value(&mut s, reg::COMMAND), 1);
    assert_eq!(s.device.deadline(), Some(BUSY));
    s.run(&[Op::Pass(BUSY)]).expect("lawful");
    assert_eq!((value(&mut s, reg::COMMAND), s.device.irq()), (0, false));
    s.run(&transfer(BUFFER + 4000, 0x2000, 96, 7)).expect("lawful");
    s.run(&[Op::ToDeadline]).expect("lawful");
    assert_eq!((value(&mut s, reg::CAUSES), value(&mut s, reg::COMMAND)), (0x100, 6));
    let mut bytes = [0; 97];
    s.ram().read(0x2000, &mut bytes).expect("RAM");
    assert!(bytes[..96].iter().copied().eq(0..96) && bytes[96] == 0);
}

#[test]
fn what_cannot_be_moved_is_not() {
    for (source, destination, length, command) in [
        (0x1000, BUFFER + 4000, 97, 1),
        (0x1000, BUFFER - 1, 4, 1),
        (0x1000, BUFFER, u64::MAX, 1),
        (0x1000, u64::MAX, 1, 1),
        (BUFFER, 0xa_0000, 4, 3),
        (0xfff_ffff, BUFFER, 4, 1),
    ] {
        let mut s = bench();
        s.run(&[Op::Ram { addr: 0x1000, bytes: vec![9; 100] }]).expect("lawful");
        s.run(&transfer(source, destination, length, command)).expect("lawful");
        s.run(&[Op::ToDeadline]).expect("lawful");
        assert!(s.device.buffer.iter().all(|&byte| byte == 0), "{source:#x} {destination:#x}");
        assert_eq!(value(&mut s, reg::COMMAND) & 1, 0);
    }
    // Not a bus master.
    let mut s = bench();
    s.run(&[Op::write(4, Size::B2, 2), Op::Ram { addr: 0, bytes: vec![1] }]).expect("lawful");
    s.run(&transfer(0, BUFFER, 1, 1)).expect("lawful");
    assert_eq!(s.device.buffer[0], 0);
}

proptest! {
    #[test]
    fn a_transfer_is_a_copy(from in 0u64..0x1f_0000, at in 0u64..4096, len in 0u64..4096, seed: u8) {
        let len = len.min(4096 - at);
        let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
        let mut s = bench();
        s.run(&[Op::Ram { addr: from, bytes: bytes.clone() }]).expect("lawful");
        s.run(&transfer(from, BUFFER + at, len, 1)).expect("lawful");
        s.run(&[Op::Advance(BUSY)]).expect("lawful");
        let in_ram = s.ram().contains(from, len.max(1));
        let moved = s.device.buffer[at as usize..(at + len) as usize] == bytes[..];
        prop_assert_eq!(moved, in_ram || len == 0);
    }
}

crate::device_laws!(laws, new, prologues: [
    [vec![Op::write(4, Size::B2, 6)], transfer(0x100, BUFFER, 64, 1).to_vec()].concat(),
    [vec![Op::write(4, Size::B2, 6)], transfer(BUFFER, 0x100, 64, 7).to_vec()].concat(),
    vec![Op::write(4, Size::B2, 6), Op::write(0x42, Size::B2, 1), dword(reg::RAISE, 1)],
]);
