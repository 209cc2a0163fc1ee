//! The IOMMU and what stands behind it, on sequences that the specification describes.

use super::*;
use crate::models::vtd::{Remapped, Unit, Vtd, Walk};

const UNIT: u64 = 0xfed9_0000;
const EDU: u64 = 0xe000_0000;

/// An IOMMU, and the edu device where firmware would put it, a bus master.
fn bench() -> Bench {
    let mut b = Bench::new("vtd");
    let unit = Unit::new(Vtd::new(true).into());
    let mut placed = edu::Edu::new(3, 11, true, Some(unit.clone()));
    (placed.base, placed.is_placed, placed.command) = (Some(EDU), true, 6);
    b.models.models[0].1 = Box::new(unit);
    b.models.models[1].1 = Box::new(placed);
    b
}

fn mmio(size: Size, addr: u64, value: u64) -> Op {
    Op::io(Access::write(Space::Mmio, addr, size, value))
}

impl Bench {
    fn program(&mut self, register: u64, value: u64) {
        self.programs(register, value, &[]).expect("what the model says");
    }

    fn programs(&mut self, register: u64, value: u64, effects: &[Effect]) -> Result<(), String> {
        self.does(mmio(Size::B4, UNIT + register, value), Answer::Ok, effects)
    }

    /// Whether a register may read as this.
    fn has(&mut self, register: u64, value: u64) -> bool {
        let read = Op::io(Access::read(Space::Mmio, UNIT + register, Size::B4));
        self.does(read, Answer::Value(value), &[]).is_ok()
    }

    fn words(&self, addr: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.machine.ram().write(addr, &bytes).expect("RAM");
    }

    /// Tables of three levels for the function in slot 3, that lead bus page 0 to this entry.
    fn tables(&mut self, entry: u64) {
        self.words(0xc000, &[0x2001, 0]);
        self.words(0x2000 + 16 * 0x18, &[0x3001, 1]);
        self.words(0x3000, &[0x4003]);
        self.words(0x4000, &[0x5003]);
        self.words(0x5000, &[entry]);
        self.program(0x20, 0xc000);
        self.program(0x18, 1 << 30);
        self.program(0x18, 1 << 31);
    }

    /// A transfer from the buffer, of 16 bytes to bus address 0xff8: what devices write, and messages.
    fn transfers(&mut self, writes: &[(u64, u64)], effects: &[Effect]) -> Result<(), String> {
        self.pass(100_000);
        for (register, value) in [(0x80, 0x4_0000), (0x88, 0xff8), (0x90, 16)] {
            self.does(mmio(Size::B4, EDU + register, value), Answer::Ok, &[]).expect("idle");
        }
        let touch = |&(addr, len): &(u64, u64)| Touch { addr, len, is_write: true };
        let touched: Vec<Touch> = writes.iter().map(touch).collect();
        self.does_to(mmio(Size::B4, EDU + 0x98, 3), (Answer::Ok, effects), &touched, |_| {})
    }
}

/// 11.4: the status follows the command, bits that are done at once, and what never changes.
#[test]
fn registers_of_an_iommu() {
    let mut b = bench();
    b.program(0x18, 1 << 31 | 1 << 26 | 1 << 23);
    assert!(b.has(0x1c, 0x8480_0000) && !b.has(0x1c, 0xc480_0000) && b.has(0x18, 0));
    b.program(0x20, 0x1234_5000);
    b.program(0x18, 1 << 30);
    assert!(b.has(0x1c, 1 << 30) && b.has(0x20, 0x1234_5000) && !b.has(0x20, 0x1234_6000));
    b.program(0x2c, 1 << 31);
    assert!(b.has(0x2c, 1 << 27) && !b.has(0x2c, 1 << 31));
    assert!(b.has(0, 0x10) && b.has(0, 0x10) && !b.has(0, 0x11), "the version does not change");
    assert!(!b.has(8, 0x2200_0206) && b.has(8, 0x2200_0606), "39 and 48 bits");
    b.program(0xb8, 0x7003);
    assert!(b.has(0xb8, 0x7003));
}

/// 7.2.1, 7.3: the first fault is recorded and told, the second is lost, and so is what comes then.
#[test]
fn faults_of_an_iommu() {
    let mut b = bench();
    b.program(0x3c, 0x41);
    b.program(0x40, 0xfee0_1000);
    b.tables(0x8001);
    let told = [Effect::Message { address: 0xfee0_1000, data: 0x41 }];
    b.transfers(&[], &[]).expect("masked");
    assert!(b.has(0x38, 0xc000_0000) && !b.has(0x38, 0x8000_0000));
    b.programs(0x38, 0, &[]).expect_err("it is pending");
    let mut b = bench();
    b.program(0x3c, 0x41);
    b.program(0x40, 0xfee0_1000);
    b.program(0x38, 0);
    b.tables(0x8001);
    b.transfers(&[], &told).expect("the page cannot be written");
    assert!(b.has(0x34, 2) && !b.has(0x34, 3));
    assert!(b.has(0x228, 0x18) && !b.has(0x228, 0x20));
    assert!(b.has(0x22c, 0x8000_0005) && !b.has(0x22c, 0xc000_0005) && !b.has(0x22c, 0x8000_0006));
    b.transfers(&[], &[]).expect("told already");
    assert!(b.has(0x34, 3) && !b.has(0x34, 2));
    b.program(0x22c, 1 << 31);
    b.transfers(&[], &[]).expect("not recorded");
    assert!(b.has(0x34, 1) && !b.has(0x34, 3) && b.has(0x22c, 0));
    b.program(0x34, 1);
    b.transfers(&[], &[]).expect_err("one that is told");
}

/// 3.7: a transfer goes where the tables say, page by page, and nowhere else.
#[test]
fn a_transfer_behind_an_iommu() {
    let mut b = bench();
    b.tables(0x8003);
    b.words(0x5008, &[0xa003]);
    b.transfers(&[(0x8ff8, 8), (0xa000, 8)], &[]).expect("two pages");
    b.transfers(&[(0x8ff8, 8), (0x9000, 8)], &[]).expect_err("the second is elsewhere");
    b.words(0x5008, &[0xa001]);
    b.transfers(&[(0x8ff8, 8), (0xa000, 8)], &[]).expect_err("the second cannot be written");
    b.words(0x8ff8, &[1]);
    b.transfers(&[(0x8ff8, 8)], &[]).expect_err("the buffer is all zeroes");
    // Pass-through, and translation off.
    b.words(0x2000 + 16 * 0x18, &[0x3009, 2]);
    b.transfers(&[(0xff8, 16)], &[]).expect("as it is");
    b.program(0x18, 0);
    b.transfers(&[(0xff8, 16)], &[]).expect("as it is");
}

/// 7.1.3: why an address is refused. 5.1, 9.10: what becomes of a message.
#[test]
fn walks_of_an_iommu() {
    let mut b = bench();
    b.tables(0x8003);
    let unit = Unit::new(Vtd::new(true).into());
    b.models.models[0].1 = Box::new(unit.clone());
    b.tables(0x8003);
    let ram = b.machine.ram().clone();
    let read = |at: u64| {
        let mut bytes = [0; 8];
        ram.peek(at, &mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
    };
    let walk = |address| unit.borrow().walk(0x18, address, true, &read);
    assert_eq!(walk(0x123), Walk::To(0x8123, 0xedd));
    assert_eq!(walk(0x1000), Walk::Refused(Some(5), true));
    assert_eq!(walk(1 << 39), Walk::Refused(Some(4), true));
    b.words(0x4000, &[0x20_0083]);
    assert_eq!(walk(0x123), Walk::To(0x20_0123, 0x1f_fedd), "a page of 2 MiB");
    b.words(0x4000, &[0x20_1083]);
    assert_eq!(walk(0x123), Walk::Refused(Some(0xc), true), "one at an odd place");
    b.words(0x4000, &[0xf000_0003]);
    assert_eq!(walk(0x123), Walk::Refused(Some(7), true), "no memory");
    for (context, reason) in [
        ([0x3003, 4], Some(3)),
        ([0x3011, 1], Some(0xb)),
        ([0x3011, 4], None),
        ([0x3002, 1], Some(2)),
    ] {
        b.words(0x2000 + 16 * 0x18, &context);
        assert_eq!(walk(0), Walk::Refused(reason, context[0] & 2 == 0), "{context:x?}");
    }
    b.words(0xc000, &[0x2001, 1]);
    assert_eq!(walk(0), Walk::Refused(Some(0xa), true));
    b.words(0xc000, &[0]);
    assert_eq!(walk(0), Walk::Refused(Some(1), true));
    // Entry 1 is a level-triggered, logical one for this function.
    b.words(0x6010, &[0x0300_0033_0015 | 0xff00_0000_0000_0000, 4 << 16 | 0x18]);
    b.words(0x6020, &[0x0000_0300_0033_0015, 4 << 16 | 0x18]);
    let remap = |address| unit.borrow().remapped(0x18, (address, 0x99), &read);
    assert_eq!(remap(0xfee0_0000), Remapped::To(0xfee0_0000, 0x99), "off");
    b.program(0xb8, 0x6003);
    b.program(0x18, 1 << 24);
    b.program(0x18, 1 << 25);
    assert_eq!(remap(0xfee0_0000), Remapped::Refused(0x25, 0, true));
    assert_eq!(remap(0xfee0_0010), Remapped::Refused(0x22, 0, true));
    assert_eq!(remap(0xfee0_0030), Remapped::Refused(0x24, 1, true));
    assert_eq!(remap(0xfee0_0050), Remapped::To(0xfee0_3004, 0xc033));
    assert_eq!(remap(0xfee0_0210), Remapped::Refused(0x21, 16, true));
}

/// 6.5.2: descriptors up to the tail, a status, an event, and one that is wrong.
#[test]
fn a_queue_of_an_iommu() {
    let mut b = bench();
    b.program(0x90, 0x7000);
    b.program(0x18, 1 << 26);
    b.program(0xa4, 0x42);
    b.program(0xa0, 0);
    b.words(0x7000, &[1, 0, 0x1234_0000_0035, 0x9000, 0, 0]);
    let event = [Effect::Message { address: 0, data: 0x42 }];
    let status = |addr| [Touch { addr, len: 4, is_write: true }];
    let rings = |b: &mut Bench, tail, effects: &[Effect], touched: &[Touch]| {
        let op = mmio(Size::B4, UNIT + 0x88, tail);
        b.does_to(op, (Answer::Ok, effects), touched, |_| {})
    };
    rings(&mut b, 0x10, &[], &[]).expect("nothing to tell");
    assert!(b.has(0x80, 0x10) && !b.has(0x80, 0));
    rings(&mut b, 0x20, &event, &status(0x9000)).expect("a status and an event");
    assert!(b.has(0x9c, 1) && !b.has(0x9c, 0));
    rings(&mut b, 0x30, &[], &[]).expect("a descriptor of no type");
    assert!(b.has(0x34, 0x10) && b.has(0x80, 0x20) && !b.has(0x34, 0));
    for (effects, at) in [(&event[..], 0x8ffc), (&[], 0x9000)] {
        let mut b = bench();
        b.program(0x90, 0x7000);
        b.program(0x18, 1 << 26);
        b.program(0xa4, 0x42);
        b.program(0xa0, 0);
        b.words(0x7000, &[0x1234_0000_0035, 0x9000]);
        rings(&mut b, 0x10, effects, &status(at)).expect_err("another place, or no event");
    }
}
