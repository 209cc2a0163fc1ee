use proptest::prelude::*;

use super::*;
use crate::laws::{Answer, Op, Session};

fn bench() -> Session<IoApic> {
    Session::new(IoApic::new(), IoApic::new)
}

fn read(s: &mut Session<IoApic>, register: u8) -> u32 {
    let ops = [Op::write(SELECT, Size::B4, register.into()), Op::read(WINDOW, Size::B4)];
    s.run(&ops).expect("lawful");
    match s.trace.last().expect("a step").answer {
        Answer::Read(Ok(value)) => value as u32,
        other => panic!("register {register:#x} reads {other:?}"),
    }
}

fn write(s: &mut Session<IoApic>, register: u8, value: u32) -> Vec<Action> {
    let select = Op::write(SELECT, Size::B4, register.into());
    s.run(&[select, Op::write(WINDOW, Size::B4, value.into())]).expect("lawful");
    s.trace.last().expect("a step").actions.clone()
}

fn pin(s: &mut Session<IoApic>, pin: u32, level: bool) -> Vec<Action> {
    s.call(|d, env| d.pin(env, pin, level)).expect("lawful").1
}

fn eoi(s: &mut Session<IoApic>, vector: u8) -> Vec<Action> {
    let ended = (0..32).flat_map(|pin| s.call(|d, env| d.eoi(env, pin, vector)).expect("lawful").1);
    ended.collect()
}

fn sent(address: u64, data: u32) -> Vec<Action> {
    vec![Action::Message { address, data }]
}

const LOW: u8 = REDIRECTION + 2 * 5;

#[test]
fn registers_read_as_they_are_described() {
    let mut s = bench();
    assert_eq!(read(&mut s, VERSION), 0x17_0011);
    for id in [5, 0xf] {
        write(&mut s, ID, id << 24 | 0xf0ff_ffff);
        assert_eq!(read(&mut s, ID), id << 24);
        assert_eq!(read(&mut s, ARBITRATION), id << 24);
    }
    assert_eq!((read(&mut s, LOW), read(&mut s, LOW + 1)), (0x1_0000, 0));
    write(&mut s, LOW, 0xffff_ffff);
    write(&mut s, LOW + 1, 0xffff_ffff);
    assert_eq!((read(&mut s, LOW), read(&mut s, LOW + 1)), (0x1_afff, 0xffff_0000));
    assert_eq!((read(&mut s, 3), read(&mut s, REDIRECTION + 48)), (0, 0));
}

#[test]
fn an_edge_is_one_message() {
    let mut s = bench();
    write(&mut s, LOW + 1, 0x0300_0000);
    assert_eq!(write(&mut s, LOW, 0x0842), [], "its line is low");
    assert_eq!(pin(&mut s, 5, true), sent(0xfee0_3004, 0x42));
    assert_eq!(pin(&mut s, 5, true), []);
    assert_eq!(pin(&mut s, 5, false), []);
    assert_eq!(pin(&mut s, 4, true), [], "another line");
    write(&mut s, LOW, 0x1_0842);
    assert_eq!(pin(&mut s, 5, true), []);
    assert_eq!(write(&mut s, LOW, 0x0842), [], "masked, it is lost");
    assert_eq!(s.device.awaited(5), None);
}

#[test]
fn a_level_is_sent_again_until_it_is_low() {
    let mut s = bench();
    let level = sent(0xfee0_0000, 0xc041);
    assert_eq!(write(&mut s, LOW, 0x8041), []);
    assert_eq!(s.device.awaited(5), Some((0xfee0_0000, 0xc041)));
    assert_eq!(pin(&mut s, 5, true), level);
    assert_eq!(read(&mut s, LOW), 0xc041);
    assert_eq!(eoi(&mut s, 0x42), [], "another vector");
    assert_eq!(eoi(&mut s, 0x41), level, "it is still asserted");
    pin(&mut s, 5, false);
    assert_eq!(eoi(&mut s, 0x41), []);
    assert_eq!(read(&mut s, LOW), 0x8041);
    // Masked meanwhile, it is sent when it is unmasked.
    write(&mut s, LOW, 0x1_8041);
    assert_eq!(s.device.awaited(5), None);
    assert_eq!(pin(&mut s, 5, true), []);
    assert_eq!(write(&mut s, LOW, 0x8041), level);
    // An edge waits for nothing.
    write(&mut s, LOW, 0x41);
    assert_eq!((read(&mut s, LOW), s.device.awaited(5)), (0x41, None));
}

#[test]
fn the_upper_half_is_an_index_where_interrupts_are_remapped() {
    let mut s = bench();
    write(&mut s, LOW + 1, 0x0007_0000);
    write(&mut s, LOW, 0x0850);
    assert_eq!(pin(&mut s, 5, true), sent(0xfee0_0074, 0x50));
}

#[test]
fn lines_that_are_not_there_are_nobodys() {
    let mut s = bench();
    for line in [24, 31, 32, u32::MAX] {
        assert_eq!(pin(&mut s, line, true), []);
        assert_eq!(s.device.awaited(line), None);
    }
    assert_eq!(s.device, IoApic::new());
}

proptest! {
    /// A model of one level-triggered line: a message when it is asserted, unmasked and not served.
    #[test]
    fn a_level_is_delivered_once_while_it_is_served(steps in prop::collection::vec(0u8..5, 0..60)) {
        let mut s = bench();
        write(&mut s, LOW, 0x8041);
        let (mut line, mut masked, mut served) = (false, false, false);
        for step in steps {
            let actions = match step {
                0 | 1 => {
                    line = step == 1;
                    pin(&mut s, 5, line)
                }
                2 | 3 => {
                    masked = step == 3;
                    write(&mut s, LOW, 0x8041 | u32::from(masked) << 16)
                }
                _ => {
                    served = false;
                    eoi(&mut s, 0x41)
                }
            };
            let delivered = line && !masked && !served;
            served |= delivered;
            prop_assert_eq!(actions.len(), usize::from(delivered));
            prop_assert_eq!(read(&mut s, LOW) >> 14 & 1 == 1, served);
        }
    }
}

crate::device_laws!(laws, IoApic::new, prologues: [
    vec![Op::write(SELECT, Size::B4, LOW.into()), Op::write(WINDOW, Size::B4, 0x8041)],
], keeps: |old, new| new.lines = old.lines);
