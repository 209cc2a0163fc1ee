//! The dispatch to a PCI bus, with functions that answer with who they are.

use super::super::{Backplane, Context, Machine, ManualClock, Nowhere};
use super::*;
use crate::access::IoError;
use crate::chips::pci::config::{Bar, Config, Placement, Registers, Shape};
use crate::chips::pci::{bridge, config_region};
use crate::chips::resets::{RESET_CONTROL, ResetControl};
use crate::device::{Action, Env, StateError};
use crate::exit::{Entry, Exit};
use crate::ram::{Backing, GuestRam};
use crate::state::{decode, encode};
use std::sync::{Arc, Mutex};

static SHAPE: Shape = Shape {
    name: "echo",
    id: (0x1af4, 0x1111),
    revision: 0,
    class: 0xff_0000,
    bars: &[(0, Bar::Io(0x20)), (1, Bar::Memory32(0x1000)), (2, Bar::Memory64(0x1000))],
    interrupt: true,
    master: true,
    messages: None,
};

/// Reads give the region, the offset and the function's mark; writing is an interrupt.
#[derive(Debug)]
struct Echo {
    name: &'static str,
    mark: u64,
    config: Config,
    interrupt: bool,
}

const fn region(space: Space, len: u64) -> Region {
    Region { name: "echo", space, len, widest: Size::B4 }
}

impl Device for Echo {
    fn name(&self) -> &'static str {
        self.name
    }
    fn regions(&self) -> &'static [Region] {
        const {
            &[
                config_region("echo-config"),
                region(Space::Port, 0x20),
                region(Space::Mmio, 0x1000),
                region(Space::Mmio, 0x1000),
            ]
        }
    }
    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match at.region {
            CONFIG => self.config.read(at.offset, size, self.interrupt),
            region => Ok(self.mark << 24 | u64::from(region) << 16 | at.offset),
        }
    }
    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match at.region {
            CONFIG => return self.config.write(env, at.offset, size, value),
            2 => env.act(Action::Message { address: value << 12, data: 0x4021 }),
            _ => self.interrupt = value != 0,
        }
        Ok(())
    }
    fn base(&self, region: u8) -> Option<u64> {
        self.config.base(usize::from(region.checked_sub(1)?))
    }
    fn irq(&self) -> bool {
        self.config.pin(self.interrupt)
    }
    fn reset(&mut self, _: &mut Env<'_>) {
        self.config.reset();
        self.interrupt = false;
    }
    fn save(&self) -> Vec<u8> {
        encode(&(self.config.registers(), self.interrupt))
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let (regs, interrupt): (Registers, bool) = decode("echo", state)?;
        self.config.check(&regs)?;
        self.config.set_registers(regs);
        self.interrupt = interrupt;
        Ok(())
    }
}

/// An echo in this slot whose BARs lie at the same places as every other's.
fn echo(name: &'static str, slot: Slot) -> Box<Echo> {
    let placement = Placement { bases: vec![0xc000, 0xe000_0000, 0x10_0000_0000], line: 11 };
    let (mark, config) = (slot.number().into(), Config::new(&SHAPE, placement));
    Box::new(Echo { name, mark, config, interrupt: false })
}

#[derive(Default)]
struct Seen(Mutex<Vec<(u64, u64)>>);

impl Backplane for Seen {
    fn set_line(&self, gsi: u32, level: bool) {
        self.0.lock().expect("no panic").push((gsi.into(), level.into()));
    }
    fn output(&self, _: &'static str, _: u8) {}
    fn remap_page(&self, _: u64) {}
    fn message(&self, address: u64, data: u32) {
        self.0.lock().expect("no panic").push((address, data.into()));
    }
    fn raise_sint(&self, _: u32, _: u8) {}
    fn watch_sint(&self, _: u32, _: u8) {}
    fn await_end(&self, _: u32, _: Option<(u64, u32)>) {}
    fn deadline(&self, _: crate::device::Nanos) {}
}

struct Rig {
    machine: Machine,
    cx: Context,
    seen: Arc<Seen>,
}

fn machine(backplane: Arc<dyn Backplane>) -> Machine {
    let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
    let mut machine = Machine::new(ram, Arc::new(ManualClock::default()), backplane);
    let ports = [RESET_CONTROL.into()];
    machine.add(Box::new(ResetControl::default()), &ports, None).expect("an empty board");
    machine
}

const FIRST: Slot = Slot::new(1, 0);
const SECOND: Slot = Slot::new(31, 7);

fn rig() -> Rig {
    let seen = Arc::new(Seen::default());
    let mut machine = machine(seen.clone());
    machine.add_pci("reset-control").expect("no bus yet");
    machine.add_function(Box::new(bridge::HostBridge::new()), bridge::SLOT, None).expect("free");
    // The higher slot first: who answers does not depend on it.
    machine.add_function(echo("second", SECOND), SECOND, Some(11)).expect("free");
    machine.add_function(echo("first", FIRST), FIRST, Some(11)).expect("free");
    Rig { machine, cx: Context::new(), seen }
}

impl Rig {
    fn read(&mut self, space: Space, addr: u64, size: Size) -> u64 {
        let exit = Exit::Io(Access::read(space, addr, size));
        match self.machine.handle(&mut self.cx, &exit) {
            Entry::Read(value) => value,
            other => panic!("a read gives {other:?}"),
        }
    }

    fn write(&mut self, space: Space, addr: u64, size: Size, value: u64) {
        let exit = Exit::Io(Access::write(space, addr, size, value));
        assert_eq!(self.machine.handle(&mut self.cx, &exit), Entry::Resume);
    }

    fn select(&mut self, slot: Slot, offset: u64) {
        let address = 1 << 31 | u64::from(slot.number()) << 8 | offset;
        self.write(Space::Port, 0xcf8, Size::B4, address);
    }

    fn configure(&mut self, slot: Slot, offset: u64, size: Size, value: u64) {
        self.select(slot, offset);
        self.write(Space::Port, DATA_PORT + offset % 4, size, value);
    }
}

const MEMORY: u64 = 0xe000_0000;

#[test]
fn configuration_cycles_reach_what_is_there_in_every_width() {
    let mut rig = rig();
    rig.select(bridge::SLOT, 8);
    assert_eq!(rig.read(Space::Port, DATA_PORT, Size::B4), 0x0600_0002);
    assert_eq!(rig.read(Space::Port, DATA_PORT + 2, Size::B2), 0x0600);
    assert_eq!(rig.read(Space::Port, DATA_PORT + 1, Size::B2), 0);
    assert_eq!(rig.read(Space::Port, DATA_PORT + 3, Size::B1), 6);
    // Over the end of the register: the rest meets nobody.
    assert_eq!(rig.read(Space::Port, DATA_PORT + 3, Size::B2), 0xff06);
    rig.select(SECOND, 0x3c);
    assert_eq!(rig.read(Space::Port, DATA_PORT, Size::B4), 0x010b);
    rig.configure(SECOND, 0x3c, Size::B1, 9);
    assert_eq!(rig.read(Space::Port, DATA_PORT, Size::B4), 0x0109);
}

#[test]
fn who_is_not_there_reads_as_all_ones() {
    let mut rig = rig();
    let absent = [Slot::new(1, 1), Slot::new(2, 0), Slot::new(31, 6)];
    for slot in absent {
        rig.configure(slot, 0, Size::B4, 0);
        assert_eq!(rig.read(Space::Port, DATA_PORT, Size::B4), 0xffff_ffff);
        assert_eq!(rig.read(Space::Port, DATA_PORT + 2, Size::B1), 0xff);
    }
    // Another bus, and no configuration cycle at all.
    for address in [0x8001_0000, 0x0000_0000] {
        rig.write(Space::Port, 0xcf8, Size::B4, address);
        assert_eq!(rig.read(Space::Port, DATA_PORT, Size::B2), 0xffff);
    }
    let mut rig = Rig { machine: machine(Arc::new(Nowhere)), ..rig };
    rig.select(bridge::SLOT, 0);
    assert_eq!(rig.read(Space::Port, DATA_PORT, Size::B4), 0xffff_ffff, "no bus");
}

#[test]
fn the_dispatch_follows_base_addresses() {
    let mut rig = rig();
    rig.configure(SECOND, 4, Size::B2, 0);
    assert_eq!(rig.read(Space::Mmio, MEMORY + 0x10, Size::B4), 0x0802_0010);
    rig.configure(FIRST, 0x14, Size::B4, 0xd000_0000);
    assert_eq!(rig.read(Space::Mmio, MEMORY + 0x10, Size::B4), 0xffff_ffff);
    assert_eq!(rig.read(Space::Mmio, 0xd000_0ffc, Size::B4), 0x0802_0ffc);
    assert_eq!(rig.read(Space::Mmio, 0xd000_1000, Size::B4), 0xffff_ffff);
    // An 8-byte access in two, and one that reaches over the edge byte by byte.
    assert_eq!(rig.read(Space::Mmio, 0xd000_0010, Size::B8), 0x0802_0014_0802_0010);
    assert_eq!(rig.read(Space::Mmio, 0xd000_0ffe, Size::B4), 0xffff_fffe);
    assert_eq!(rig.read(Space::Mmio, 0xcfff_fffe, Size::B4), 0x0100_ffff);
    // Ports, and what is above 4 GiB, move as well.
    rig.configure(FIRST, 0x10, Size::B4, 0x1000);
    assert_eq!(rig.read(Space::Port, 0x1004, Size::B4), 0x0801_0004);
    assert_eq!(rig.read(Space::Port, 0xc004, Size::B4), 0xffff_ffff);
    rig.configure(FIRST, 0x1c, Size::B4, 0x20);
    assert_eq!(rig.read(Space::Mmio, 0x20_0000_0008, Size::B4), 0x0803_0008);
    // Decoding off and on again.
    rig.configure(FIRST, 4, Size::B2, 1);
    assert_eq!(rig.read(Space::Mmio, 0xd000_0000, Size::B4), 0xffff_ffff);
    assert_eq!(rig.read(Space::Port, 0x1004, Size::B4), 0x0801_0004);
    rig.configure(FIRST, 4, Size::B2, 2);
    assert_eq!(rig.read(Space::Mmio, 0xd000_0000, Size::B4), 0x0802_0000);
}

#[test]
fn of_two_at_one_place_the_board_answers_then_the_lower_slot() {
    let mut rig = rig();
    assert_eq!(rig.read(Space::Port, 0xc000, Size::B4), 0x0801_0000);
    // Memory 1 of the first over its memory 2: the lower register answers.
    rig.configure(FIRST, 0x1c, Size::B4, 0);
    rig.configure(FIRST, 0x18, Size::B4, MEMORY);
    assert_eq!(rig.read(Space::Mmio, MEMORY, Size::B4), 0x0802_0000);
    rig.configure(FIRST, 4, Size::B2, 0);
    assert_eq!(rig.read(Space::Mmio, MEMORY, Size::B4), 0xf802_0000 | 0xff << 24 & 0xff00_0000);
    // Ports over the configuration address: that stays where it is.
    rig.configure(SECOND, 0x10, Size::B4, 0xce0);
    rig.select(bridge::SLOT, 0);
    assert_eq!(rig.read(Space::Port, 0xcf8, Size::B4), 0x8000_0000);
    assert_eq!(rig.read(Space::Port, DATA_PORT, Size::B4), 0x1237_8086);
    assert_eq!(rig.read(Space::Port, 0xcf4, Size::B4), 0xff01_0014);
}

#[test]
fn functions_share_a_line() {
    let mut rig = rig();
    rig.configure(SECOND, 0x10, Size::B4, 0xd000);
    rig.write(Space::Port, 0xc000, Size::B1, 1);
    rig.write(Space::Port, 0xd000, Size::B1, 1);
    rig.write(Space::Port, 0xc000, Size::B1, 0);
    assert!(rig.machine.line(11));
    rig.configure(SECOND, 4, Size::B2, 0x401);
    assert!(!rig.machine.line(11));
    assert_eq!(*rig.seen.0.lock().expect("no panic"), [(11, 1), (11, 0)]);
}

#[test]
fn a_message_goes_to_the_apics_or_to_memory() {
    let mut rig = rig();
    rig.write(Space::Mmio, MEMORY, Size::B4, 0xfee01);
    rig.write(Space::Mmio, MEMORY, Size::B4, 0x1);
    rig.write(Space::Mmio, MEMORY, Size::B4, 0xfff00);
    assert_eq!(*rig.seen.0.lock().expect("no panic"), [(0xfee0_1000, 0x4021)]);
    assert_eq!(rig.machine.ram().read_u32(0x1000), Ok(0x4021));
}

#[test]
fn a_reset_and_a_restore_move_base_addresses() {
    let mut rig = rig();
    rig.configure(FIRST, 0x14, Size::B4, 0xd000_0000);
    let state = rig.machine.save();
    rig.machine.reset(&mut rig.cx);
    assert_eq!(rig.read(Space::Mmio, MEMORY, Size::B4), 0x0802_0000);
    assert_eq!(rig.read(Space::Mmio, 0xd000_0000, Size::B4), 0xffff_ffff);
    rig.machine.restore(&mut rig.cx, &state).expect("its own state");
    assert_eq!(rig.read(Space::Mmio, 0xd000_0000, Size::B4), 0x0802_0000);
}

#[test]
fn what_cannot_be_put_together_is_refused() {
    let mut board = machine(Arc::new(Nowhere));
    let error = board.add_function(echo("e", FIRST), FIRST, None).expect_err("no bus");
    assert!(error.to_string().contains("no PCI bus"), "{error}");
    let error = board.add_pci("uart").expect_err("no such device");
    assert!(error.to_string().contains("`uart`"), "{error}");
    let mut rig = rig();
    let error = rig.machine.add_function(echo("third", FIRST), FIRST, None).expect_err("taken");
    assert!(error.to_string().contains("its PCI slot is taken by `first`"), "{error}");
    let slot = Slot::new(4, 0);
    let error = rig.machine.add_function(echo("first", slot), slot, None).expect_err("taken");
    assert!(error.to_string().contains("its name is taken"), "{error}");
    let there: Vec<_> = rig.machine.pci_functions().map(|(slot, _)| slot).collect();
    assert_eq!(there, [bridge::SLOT, SECOND, FIRST]);
}
