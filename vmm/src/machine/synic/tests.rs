use std::sync::Mutex;

use super::*;
use crate::device::Nanos;
use crate::ram::Backing;

/// Notes what is raised and watched.
#[derive(Default)]
struct Noted(Mutex<Vec<(char, u32, u8)>>);

impl Backplane for Noted {
    fn set_line(&self, _: u32, _: bool) {}
    fn output(&self, _: &'static str, _: u8) {}
    fn remap_page(&self, _: u64) {}
    fn raise_sint(&self, vp: u32, sint: u8) {
        self.0.lock().expect("no panic").push(('r', vp, sint));
    }
    fn watch_sint(&self, vp: u32, sint: u8) {
        self.0.lock().expect("no panic").push(('w', vp, sint));
    }
    fn message(&self, _: u64, _: u32) {}
    fn await_end(&self, _: u32, _: Option<(u64, u32)>) {}
    fn deadline(&self, _: Nanos) {}
}

const INPUT: u64 = 0x1_0000;
const MESSAGES: u64 = 0x2_0000;
const EVENTS: u64 = 0x3_0000;
/// The slot of source 8, and its flags.
const SLOT: u64 = MESSAGES + 8 * 256;
const FLAGS_OF_8: u64 = EVENTS + 8 * 256;

struct Rig {
    synic: Synic,
    ram: GuestRam,
    noted: Noted,
}

/// Processor 1 has both pages; connection 0x21 is for messages to its source 8, 0x22 for events.
fn rig() -> Rig {
    let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
    let mut rig = Rig { synic: Synic::default(), ram, noted: Noted::default() };
    rig.write(SIMP, 1, EVENTS | 1, MESSAGES | 1);
    rig.ask(SynicCall::ConnectMessages { connection: 0x21, vp: 1, sint: 8 });
    rig.ask(SynicCall::ConnectEvents { connection: 0x22, vp: 1, sint: 8 });
    assert_eq!(rig.take(), [('w', 1, 8)]);
    rig
}

impl Rig {
    fn write(&mut self, msr: u32, control: u64, events: u64, messages: u64) {
        self.synic.changed(&self.ram, 1, msr, Registers { control, events, messages });
    }
    fn ask(&mut self, call: SynicCall) {
        self.synic.ask(&self.noted, call);
    }
    fn call(&mut self, input: u64, param: u64) -> u64 {
        let behind = Behind { ram: &self.ram, backplane: &self.noted };
        self.synic.call(behind, input, [param, 0])
    }
    fn retry(&mut self) {
        self.synic.retry(Behind { ram: &self.ram, backplane: &self.noted });
    }
    fn take(&self) -> Vec<(char, u32, u8)> {
        std::mem::take(&mut self.noted.0.lock().expect("no panic"))
    }
    fn poke(&self, at: u64, bytes: &[u8]) {
        self.ram.write(at, bytes).expect("RAM");
    }
    fn peek<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.read(at, &mut bytes).expect("RAM");
        bytes
    }
    /// Posts a message with these four words before its payload of two bytes.
    fn post(&mut self, words: [u32; 4]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.poke(INPUT, &bytes);
        self.poke(INPUT + 16, &[0xaa, 0xbb, 0xcc]);
        self.call(POST_MESSAGE.into(), INPUT)
    }
}

#[test]
fn a_message_gets_to_its_slot() {
    let mut r = rig();
    assert_eq!(r.post([0x21, 0, 0x77, 2]), status::SUCCESS);
    let header = [0x77, 0, 0, 0, 2, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(r.peek::<16>(SLOT), header);
    assert_eq!(r.peek::<3>(SLOT + 16), [0xaa, 0xbb, 0], "no more than its size");
    assert_eq!(r.take(), [('r', 1, 8)]);
}

#[test]
fn a_message_waits_for_room_and_no_second_one_does() {
    let mut r = rig();
    assert_eq!(r.post([0x21, 0, 1, 2]), status::SUCCESS);
    assert_eq!(r.post([0x21, 0, 2, 1]), status::SUCCESS);
    assert_eq!(r.peek::<6>(SLOT), [1, 0, 0, 0, 2, PENDING]);
    assert_eq!(r.post([0x21, 0, 3, 1]), status::INSUFFICIENT_BUFFERS);
    r.retry();
    assert_eq!(r.take(), [('r', 1, 8)], "the slot is still taken");
    r.poke(SLOT, &[0; 4]);
    r.retry();
    assert_eq!(r.peek::<6>(SLOT), [2, 0, 0, 0, 1, 0]);
    assert_eq!(r.take(), [('r', 1, 8)]);
    r.retry();
    assert_eq!(r.take(), [], "nothing waits any more");
}

#[test]
fn what_is_no_message_is_refused() {
    let mut r = rig();
    for (words, expected) in [
        ([0x20, 0, 1, 2], status::INVALID_CONNECTION_ID),
        ([0x22, 0, 1, 2], status::INVALID_CONNECTION_ID),
        ([0x21, 1, 1, 2], status::INVALID_PARAMETER),
        ([0x21, 0, 0, 2], status::INVALID_PARAMETER),
        ([0x21, 0, OWN_TYPE, 2], status::INVALID_PARAMETER),
        ([0x21, 0, 1, 241], status::INVALID_PARAMETER),
        ([0x21, 0, 1, 240], status::SUCCESS),
    ] {
        assert_eq!(r.post(words), expected, "{words:x?}");
    }
    for (input, at, expected) in [
        (0x5c, INPUT + 4, status::INVALID_ALIGNMENT),
        (0x5c, INPUT + 0xf08, status::INVALID_ALIGNMENT),
        (0x5c, 1 << 40, status::INVALID_ALIGNMENT),
        (0x1_005c, INPUT, status::INVALID_HYPERCALL_INPUT),
        (0x5d, INPUT + 1, status::INVALID_ALIGNMENT),
        (0x8001, INPUT, status::INVALID_HYPERCALL_CODE),
    ] {
        assert_eq!(r.call(input, at), expected, "{input:#x} {at:#x}");
    }
}

#[test]
fn an_event_sets_its_flag_and_interrupts_once() {
    let mut r = rig();
    assert_eq!(r.call(0x1_005d, 0x22), status::SUCCESS);
    assert_eq!(r.peek::<1>(FLAGS_OF_8 + 4), [4]);
    assert_eq!(r.call(0x1_005d, 0x22), status::SUCCESS);
    assert_eq!(r.take(), [('r', 1, 8)], "the flag was still set");
    r.poke(FLAGS_OF_8 + 4, &[1]);
    r.poke(INPUT, &0x22u64.to_le_bytes());
    assert_eq!(r.call(0x5d, INPUT), status::SUCCESS);
    assert_eq!(r.peek::<1>(FLAGS_OF_8 + 4), [5], "the other flag stays");
    assert_eq!(r.take(), [('r', 1, 8)]);
    for (param, expected) in [
        (0x21, status::INVALID_CONNECTION_ID),
        (0x1_0000_0022, status::INVALID_PARAMETER),
        (1 << 48 | 0x22, status::INVALID_HYPERCALL_INPUT),
    ] {
        assert_eq!(r.call(0x1_005d, param), expected, "{param:#x}");
    }
}

#[test]
fn without_pages_nothing_arrives() {
    for (control, events, messages) in
        [(0, EVENTS | 1, MESSAGES | 1), (1, EVENTS, MESSAGES), (1, 1 << 40 | 1, 1 << 40 | 1)]
    {
        let mut r = rig();
        r.write(SIMP, control, events, messages);
        assert_eq!(r.post([0x21, 0, 1, 2]), status::INVALID_SYNIC_STATE);
        assert_eq!(r.call(0x1_005d, 0x22), status::INVALID_SYNIC_STATE);
        assert_eq!(r.take(), []);
    }
}

#[test]
fn a_page_begins_as_zeroes_and_keeps_what_is_in_it() {
    let mut r = rig();
    let dirty = |r: &Rig| [MESSAGES, EVENTS].into_iter().for_each(|at| r.poke(at + 4095, &[9]));
    let ends = |r: &Rig| [r.peek::<1>(MESSAGES + 4095)[0], r.peek::<1>(EVENTS + 4095)[0]];
    dirty(&r);
    r.write(SIMP, 1, EVENTS | 1, MESSAGES | 1);
    assert_eq!(ends(&r), [9, 9], "nothing new");
    r.write(SIMP, 1, EVENTS | 1, MESSAGES);
    r.write(SIMP, 1, EVENTS | 1, MESSAGES | 1);
    assert_eq!(ends(&r), [0, 9]);
    r.write(SIEFP, 1, EVENTS, MESSAGES | 1);
    r.write(SIEFP, 1, EVENTS | 1, MESSAGES | 1);
    assert_eq!(ends(&r), [0, 0]);
}

#[test]
fn connections_come_and_go() {
    let mut r = rig();
    r.ask(SynicCall::Raise { vp: 3, sint: 15 });
    r.ask(SynicCall::Raise { vp: 3, sint: 16 });
    assert_eq!(r.take(), [('r', 3, 15)]);
    r.ask(SynicCall::ConnectEvents { connection: 2048, vp: 1, sint: 8 });
    assert_eq!(r.call(0x1_005d, 2048), status::INVALID_CONNECTION_ID);
    r.ask(SynicCall::Disconnect { connection: 0x21, events: true });
    assert_eq!(r.post([0x21, 0, 1, 2]), status::SUCCESS);
    r.ask(SynicCall::Disconnect { connection: 0x21, events: false });
    assert_eq!(r.post([0x21, 0, 1, 2]), status::INVALID_CONNECTION_ID);
}

#[test]
fn a_saved_state_comes_back_and_a_wrong_one_is_refused() {
    let mut r = rig();
    for kind in [1, 2] {
        assert_eq!(r.post([0x21, 0, kind, 2]), status::SUCCESS);
    }
    r.take();
    let again = Synic::restored(&r.synic.save(), &r.noted).expect("its own state");
    assert_eq!((&again, r.take()), (&r.synic, vec![('w', 1, 8)]));
    let port = |sint, kind| Port { vp: 0, sint, kind };
    for (connection, port) in [
        (0, port(16, Kind::Events)),
        (2048, port(0, Kind::Events)),
        (0, port(0, Kind::Messages(Some(vec![0; 255])))),
    ] {
        let wrong = Synic { ports: [(connection, port)].into(), ..Synic::default() };
        assert!(Synic::restored(&wrong.save(), &r.noted).is_err(), "{wrong:?}");
    }
}
