//! The board on synthetic exits, without KVM.

use super::*;
use crate::access::{Access, IoError, Size, Space};
use crate::device::{Action, At, Env, Region, StateError};
use crate::exit::{Entry, Exit, SystemEvent};
use crate::ram::Backing;

/// Registers of one byte each; register 0 drives the line, register 1 asks for a power-off,
/// register 2 sets a deadline, register 3 names a fault.
#[derive(Debug, Default)]
struct Probe {
    regs: [u8; 4],
    due: Option<Nanos>,
}

impl Device for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }
    fn regions(&self) -> &'static [Region] {
        &[Region { name: "probe", space: Space::Port, len: 4, widest: Size::B1 }]
    }
    fn read(&mut self, _: &mut Env<'_>, at: At, _: Size) -> Result<u64, IoError> {
        match at.offset {
            3 => Err(IoError::WriteOnly),
            i => Ok(self.regs[i as usize].into()),
        }
    }
    fn write(&mut self, env: &mut Env<'_>, at: At, _: Size, value: u64) -> Result<(), IoError> {
        self.regs[at.offset as usize] = value as u8;
        match at.offset {
            1 => env.act(Action::PowerOff),
            2 => self.due = Some(env.now() + value),
            _ => {}
        }
        Ok(())
    }
    fn irq(&self) -> bool {
        self.regs[0] != 0
    }
    fn deadline(&self) -> Option<Nanos> {
        self.due
    }
    fn advance(&mut self, env: &mut Env<'_>) {
        if self.due.is_some_and(|due| due <= env.now()) {
            self.due = None;
            self.regs[0] = 1;
        }
    }
    fn reset(&mut self, _: &mut Env<'_>) {
        *self = Probe::default();
    }
    fn save(&self) -> Vec<u8> {
        crate::state::encode(&(self.regs, self.due))
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        (self.regs, self.due) = crate::state::decode("probe", state)?;
        Ok(())
    }
}

#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Seen {
    fn note(&self, what: String) {
        self.0.lock().push(what);
    }
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Backplane for Seen {
    fn set_line(&self, gsi: u32, level: bool) {
        self.note(format!("line {gsi} {level}"));
    }
    fn output(&self, device: &'static str, byte: u8) {
        self.note(format!("output {device} {byte:#x}"));
    }
    fn remap_page(&self, gpa: u64) {
        self.note(format!("remap {gpa:#x}"));
    }
    fn raise_sint(&self, vp: u32, sint: u8) {
        self.note(format!("sint {vp} {sint}"));
    }
    fn watch_sint(&self, vp: u32, sint: u8) {
        self.note(format!("watch {vp} {sint}"));
    }
    fn message(&self, address: u64, data: u32) {
        self.note(format!("message {address:#x} {data:#x}"));
    }
    fn await_end(&self, pin: u32, message: Option<(u64, u32)>) {
        self.note(format!("await {pin} {message:x?}"));
    }

    fn deadline(&self, at: Nanos) {
        self.note(format!("deadline {at}"));
    }
}

struct Rig {
    machine: Machine,
    cx: Context,
    clock: Arc<ManualClock>,
    seen: Arc<Seen>,
}

fn rig() -> Rig {
    let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
    let (clock, seen) = (Arc::new(ManualClock::default()), Arc::new(Seen::default()));
    let mut machine = Machine::new(ram, clock.clone(), seen.clone());
    machine.add(Box::new(Probe::default()), &[0x100], Some(5)).expect("an empty board");
    Rig { machine, cx: Context::new(), clock, seen }
}

impl Rig {
    fn out(&mut self, port: u64, size: Size, value: u64) -> Entry {
        let access = Access::write(Space::Port, port, size, value);
        self.machine.handle(&mut self.cx, &Exit::Io(access))
    }
    fn inp(&mut self, port: u64, size: Size) -> Entry {
        self.machine.handle(&mut self.cx, &Exit::Io(Access::read(Space::Port, port, size)))
    }
}

#[test]
fn unclaimed_reads_give_all_ones_and_are_counted() {
    let mut r = rig();
    assert_eq!(r.inp(0x80, Size::B2), Entry::Read(0xffff));
    let mmio = Access::read(Space::Mmio, 0xfee0_0000, Size::B8);
    assert_eq!(r.machine.handle(&mut r.cx, &Exit::Io(mmio)), Entry::Read(u64::MAX));
    assert_eq!(r.out(0x80, Size::B1, 1), Entry::Resume);
    assert_eq!(r.cx.faults[IoError::Unclaimed as usize], 3);
}

#[test]
fn a_named_fault_reads_as_all_ones() {
    let mut r = rig();
    assert_eq!(r.inp(0x103, Size::B1), Entry::Read(0xff));
    assert_eq!(r.cx.faults[IoError::WriteOnly as usize], 1);
}

#[test]
fn a_wide_access_is_split_low_byte_first_and_over_the_edge() {
    let mut r = rig();
    r.out(0x100, Size::B1, 0);
    r.out(0x102, Size::B4, 0xaabb_ccdd);
    assert_eq!(r.machine.save().devices[0].1[..4], [0, 0, 0xdd, 0xcc]);
    // 0xfe and 0xff are nobody's, 0x100 and 0x101 the device's.
    assert_eq!(r.inp(0xfe, Size::B4), Entry::Read(0x0000_ffff));
}

#[test]
fn a_line_is_told_on_changes_only() {
    let mut r = rig();
    r.out(0x100, Size::B1, 1);
    r.out(0x100, Size::B1, 2);
    r.out(0x100, Size::B1, 0);
    assert_eq!(r.seen.take(), ["line 5 true", "line 5 false"]);
}

/// Drives GSIs 5 and 6 with the bits of its one register.
#[derive(Debug, Default)]
struct Driver(u8);

impl Device for Driver {
    fn name(&self) -> &'static str {
        "driver"
    }
    fn regions(&self) -> &'static [Region] {
        &[Region { name: "driver", space: Space::Port, len: 1, widest: Size::B1 }]
    }
    fn read(&mut self, _: &mut Env<'_>, _: At, _: Size) -> Result<u64, IoError> {
        Ok(self.0.into())
    }
    fn write(&mut self, _: &mut Env<'_>, _: At, _: Size, value: u64) -> Result<(), IoError> {
        self.0 = value as u8;
        Ok(())
    }
    fn drives(&self) -> u32 {
        3 << 5
    }
    fn lines(&self) -> u32 {
        u32::from(self.0) << 5
    }
    fn reset(&mut self, _: &mut Env<'_>) {
        self.0 = 0;
    }
    fn save(&self) -> Vec<u8> {
        vec![self.0]
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.0 = crate::state::decode("driver", state)?;
        Ok(())
    }
}

#[test]
fn a_line_of_two_drivers_is_high_while_one_holds_it() {
    let mut r = rig();
    r.machine.add(Box::new(Driver(0)), &[0x200], None).expect("free");
    r.out(0x100, Size::B1, 1);
    // Bit 7 would be GSI 12, which this device does not drive.
    r.out(0x200, Size::B1, 0x83);
    r.out(0x100, Size::B1, 0);
    assert_eq!(r.seen.take(), ["line 5 true", "line 6 true"]);
    let state = r.machine.save();
    r.out(0x200, Size::B1, 0);
    assert_eq!(r.seen.take(), ["line 5 false", "line 6 false"]);
    r.machine.restore(&mut r.cx, &state).expect("its own state");
    assert_eq!(r.seen.take(), ["line 5 true", "line 6 true"]);
}

#[test]
fn a_deadline_is_told_and_kept() {
    let mut r = rig();
    r.out(0x102, Size::B1, 100);
    assert_eq!(r.machine.next_deadline(), Some(100));
    r.clock.advance(99);
    assert_eq!(r.machine.advance(&mut r.cx), None);
    assert_eq!(r.seen.take(), ["deadline 100"]);
    r.clock.advance(1);
    r.machine.advance(&mut r.cx);
    assert_eq!(r.seen.take(), ["line 5 true"]);
    assert_eq!(r.machine.next_deadline(), None);
}

#[test]
fn saved_devices_come_back_with_their_lines() {
    let mut r = rig();
    r.out(0x100, Size::B1, 7);
    let state = r.machine.save();
    r.machine.reset(&mut r.cx);
    assert_eq!(r.seen.take(), ["line 5 true", "line 5 false"]);
    r.machine.restore(&mut r.cx, &state).expect("its own state");
    assert_eq!(r.seen.take(), ["line 5 true"]);
    assert_eq!(r.machine.save(), state);
    let none = MachineState { now: 0, devices: Vec::new() };
    assert_eq!(r.machine.restore(&mut r.cx, &none).unwrap_err().what, "is missing");
}

#[test]
fn what_ends_a_vm_and_what_does_not() {
    let mut r = rig();
    assert_eq!(r.out(0x101, Size::B1, 1), Entry::Stop(Stop::PowerOff));
    let cases = [
        (Exit::Hlt, Entry::Stop(Stop::Halted)),
        (Exit::Shutdown, Entry::Stop(Stop::TripleFault)),
        (Exit::SystemEvent(SystemEvent::Reset), Entry::Stop(Stop::Reset)),
        (Exit::SystemEvent(SystemEvent::Other(9)), Entry::Stop(Stop::Unexpected)),
        (Exit::InternalError { suberror: 1 }, Entry::Stop(Stop::Unexpected)),
        (Exit::FailEntry { reason: 0, cpu: 0 }, Entry::Stop(Stop::Unexpected)),
        (Exit::Unknown(77), Entry::Stop(Stop::Unexpected)),
        (Exit::Interrupted, Entry::Resume),
        (Exit::IoapicEoi(0x20), Entry::Resume),
        (Exit::Rdmsr { index: 1 }, Entry::Fault),
        (Exit::Wrmsr { index: 1, value: 2 }, Entry::Fault),
        (Exit::Hypercall { nr: 99, args: [0; 3] }, Entry::Read(-1000i64 as u64)),
    ];
    for (exit, entry) in cases {
        assert_eq!(r.machine.handle(&mut r.cx, &exit), entry, "{exit}");
    }
    assert_eq!(r.cx.log.count(), 1 + cases.len() as u64);
}

#[test]
fn a_board_refuses_what_is_taken() {
    let mut r = rig();
    let again = r.machine.add(Box::new(Probe::default()), &[0x200], None);
    assert!(matches!(again, Err(BoardError::Taken { what: "name", .. })));
    let far = r.machine.add(Box::new(Driver(0)), &[0x200], Some(64));
    assert!(matches!(far, Err(BoardError::Gsi { gsi: 64, .. })));
    let places = r.machine.add(Box::new(Probe::default()), &[], None);
    assert!(matches!(places, Err(BoardError::Bases { regions: 1, bases: 0, .. })));
}
