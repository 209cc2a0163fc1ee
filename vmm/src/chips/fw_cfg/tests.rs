use proptest::prelude::*;

use super::*;
use crate::device::Actions;
use crate::laws::{Op, TestClock};
use crate::ram::{Backing, GuestRam, MIN_SIZE, VGA_START};

const STANDARD: Standard =
    Standard { ram_size: 3 << 30, cpus: 2, max_cpus: 8, display: false, uuid: Some([7; 16]) };
const ITEM: [u8; 6] = *b"kernel";
const KERNEL: u16 = 0x11;

fn device() -> FwCfg {
    let mut cfg = FwCfg::new(&STANDARD);
    cfg.add(KERNEL, ITEM).expect("free");
    cfg.add_file("etc/a", vec![1, 2, 3]).expect("free");
    cfg.add_file("opt/b", vec![]).expect("free");
    cfg
}

struct Bench {
    ram: GuestRam,
    actions: Actions,
    cfg: FwCfg,
}

impl Bench {
    fn new() -> Bench {
        let ram = GuestRam::new(4 << 20, Backing::Auto).expect("4 MiB");
        Bench { ram, actions: Actions::default(), cfg: device() }
    }

    fn write(&mut self, region: u8, offset: u64, size: Size, value: u64) -> Result<(), IoError> {
        let clock = TestClock::default();
        let mut env = Env::new(&clock, &self.ram, &mut self.actions);
        self.cfg.write(&mut env, At { region, offset }, size, value)
    }

    fn read(&mut self, region: u8, offset: u64, size: Size) -> Result<u64, IoError> {
        let clock = TestClock::default();
        let mut env = Env::new(&clock, &self.ram, &mut self.actions);
        self.cfg.read(&mut env, At { region, offset }, size)
    }

    /// The first `len` bytes of an item through the data register.
    fn item(&mut self, key: u16, len: usize) -> Vec<u8> {
        self.write(0, 0, Size::B2, key.into()).expect("select");
        (0..len).map(|_| self.read(0, 1, Size::B1).expect("data") as u8).collect()
    }

    /// Runs a descriptor that lies at `at`; returns the control word that answers it.
    fn dma_at(&mut self, at: u64, control: u32, length: u32, address: u64) -> u32 {
        let mut bytes = [control.to_be_bytes(), length.to_be_bytes()].concat();
        bytes.extend(address.to_be_bytes());
        self.ram.write(at, &bytes).expect("RAM");
        self.write(1, 0, Size::B4, u64::from(((at >> 32) as u32).swap_bytes())).expect("high");
        self.write(1, 4, Size::B4, u64::from((at as u32).swap_bytes())).expect("low");
        u32::from_be(self.ram.read_u32(at).expect("RAM"))
    }

    fn dma(&mut self, control: u32, length: u32, address: u64) -> u32 {
        self.dma_at(0x1000, control, length, address)
    }

    fn ram(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(at, &mut bytes).expect("RAM");
        bytes
    }
}

const SELECT_KERNEL: u32 = (KERNEL as u32) << 16 | dma::SELECT;

#[test]
fn standard_items_say_what_the_machine_is() {
    let mut b = Bench::new();
    assert_eq!(b.item(key::SIGNATURE, 5), b"QEMU\0");
    assert_eq!(b.item(key::ID, 4), [3, 0, 0, 0]);
    assert_eq!(b.item(key::UUID, 16), [7; 16]);
    assert_eq!(b.item(key::RAM_SIZE, 8), (3u64 << 30).to_le_bytes());
    assert_eq!(b.item(key::NO_GRAPHIC, 2), [1, 0]);
    assert_eq!(b.item(key::CPUS, 2), [2, 0]);
    assert_eq!(b.item(key::MAX_CPUS, 2), [8, 0]);
    assert_eq!(b.item(0x3fff, 2), [0, 0], "no such item");
    assert_eq!(b.item(KERNEL | KEY_WRITE, 8), b"kernel\0\0");
}

#[test]
fn the_directory_leads_to_the_files() {
    let mut b = Bench::new();
    let directory = b.item(key::FILE_DIR, 4 + 2 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 2]);
    assert_eq!(directory[4..18], *b"\0\0\0\x03\0\x20\0\0etc/a\0");
    assert_eq!(directory[68..82], *b"\0\0\0\0\0\x21\0\0opt/b\0");
    assert_eq!(b.item(key::FILE_FIRST, 4), [1, 2, 3, 0]);
}

#[test]
fn what_cannot_be_added_is_refused() {
    let mut cfg = device();
    for key in [key::FILE_FIRST, 0x7fff, KERNEL | KEY_WRITE, 0xc000] {
        assert_eq!(cfg.add(key, []), Err(FwCfgError::Reserved(key)));
    }
    for key in [key::SIGNATURE, key::ID, key::FILE_DIR, KERNEL] {
        assert_eq!(cfg.add(key, []), Err(FwCfgError::Twice(key)));
    }
    assert_eq!(cfg.add(0x8003, [1]), Ok(()));
    let long = "x".repeat(56);
    for name in ["", "a b", "a\0", "ä", &long] {
        assert_eq!(cfg.add_file(name, []), Err(FwCfgError::Name(name.to_owned())));
    }
    assert_eq!(cfg.add_file(&long[1..], []), Ok(()));
    assert_eq!(cfg.add_file("etc/a", []), Err(FwCfgError::FileTwice("etc/a".to_owned())));
    for i in 3..MAX_FILES {
        assert_eq!(cfg.add_file(&i.to_string(), []), Ok(()));
    }
    assert_eq!(cfg.add_file("more", []), Err(FwCfgError::Full("more".to_owned())));
    let keys: Vec<u16> = cfg.items.iter().map(|item| item.key).rev().take(2).collect();
    assert_eq!(keys, [0x8003, key::FILE_FIRST + MAX_FILES as u16 - 1]);
}

#[test]
fn registers_have_their_widths_and_ways() {
    let mut b = Bench::new();
    assert_eq!(b.read(0, 0, Size::B1), Err(IoError::WriteOnly));
    assert_eq!(b.read(0, 0, Size::B2), Err(IoError::WriteOnly));
    assert_eq!(b.write(0, 1, Size::B1, 1), Err(IoError::ReadOnly));
    assert_eq!(b.write(0, 0, Size::B1, 1), Err(IoError::Width));
    assert_eq!(b.write(1, 4, Size::B2, 1), Err(IoError::Width));
    assert_eq!(b.write(1, 2, Size::B4, 1), Err(IoError::Width));
    assert_eq!(b.read(1, 0, Size::B4), Ok(u32::from_le_bytes(*b"QEMU").into()));
    assert_eq!(b.read(1, 4, Size::B4), Ok(u32::from_le_bytes(*b" CFG").into()));
    assert_eq!(b.read(1, 6, Size::B4), Err(IoError::Width));
}

#[test]
fn dma_selects_skips_reads_and_goes_on() {
    let mut b = Bench::new();
    b.ram.write(0x2000, &[0xee; 16]).expect("RAM");
    assert_eq!(b.dma(SELECT_KERNEL | dma::SKIP, 2, 0), 0);
    assert_eq!(b.dma(dma::READ, 3, 0x2000), 0);
    assert_eq!(b.ram(0x2000, 4), b"rne\xee");
    assert_eq!(b.read(0, 1, Size::B1), Ok(b'l'.into()), "both interfaces share the offset");
    assert_eq!(b.dma(SELECT_KERNEL, 9, 0), 0, "nothing but a selection");
    assert_eq!(b.dma(dma::READ, 8, 0x2000), 0);
    assert_eq!(b.ram(0x2000, 9), b"kernel\0\0\xee", "zeroes past the end");
    assert_eq!(b.dma(dma::READ, 0, u64::MAX), 0, "nothing goes anywhere");
}

#[test]
fn dma_says_what_it_cannot_do_and_does_none_of_it() {
    let mut b = Bench::new();
    for (length, address) in [
        (6, 4 << 20),              // beyond RAM
        (6, (4 << 20) - 5),        // over its end
        (6, VGA_START - 3),        // into the VGA window
        (6, u64::MAX - 2),         // around the end of all addresses
        (MAX_FILL + 7, 0x10_0000), // in RAM, but too many zeroes
        (u32::MAX, 0x10_0000),
    ] {
        assert_eq!(b.dma(SELECT_KERNEL | dma::READ, length, address), dma::ERROR);
        assert_eq!(b.read(0, 1, Size::B1), Ok(b'k'.into()));
        assert_eq!(b.ram((4 << 20) - 5, 5), [0; 5]);
    }
    assert_eq!(b.dma(SELECT_KERNEL | dma::READ, MAX_FILL + 6, 0x10_0000), 0);
    assert_eq!(b.dma(SELECT_KERNEL | dma::WRITE, 1, 0x2000), dma::ERROR);
    assert_eq!(b.item(KERNEL, 6), ITEM);
    // A descriptor of which only the control word is RAM, and one of which nothing is.
    let end = 4 << 20;
    b.ram.write(end - 4, &[0; 4]).expect("RAM");
    b.write(1, 4, Size::B4, ((end - 4) as u32).swap_bytes().into()).expect("low");
    assert_eq!(b.ram(end - 4, 4), dma::ERROR.to_be_bytes());
    b.write(1, 0, Size::B4, u32::MAX.into()).expect("high");
    b.write(1, 4, Size::B4, u32::MAX.into()).expect("low");
    assert_eq!(b.cfg.regs.dma_high, 0, "the upper half does not stay");
}

#[test]
fn a_state_of_another_configuration_is_refused() {
    let mut cfg = device();
    let mut state = |selector, offset| {
        cfg.restore(&state::encode(&Regs { selector, offset, dma_high: 0 })).map_err(|e| e.what)
    };
    assert_eq!(state(KERNEL, 6), Ok(()));
    assert!(state(KERNEL, 7).unwrap_err().contains("has 6 bytes here"));
    assert!(state(0x123, 1).is_err());
    assert!(state(KERNEL | KEY_WRITE, 0).is_err());
}

proptest! {
    /// Any mix of the two interfaces reads what one reads from the item with zeroes behind it.
    #[test]
    fn reading_is_reading_a_slice(
        item in proptest::collection::vec(any::<u8>(), 0..40),
        steps in proptest::collection::vec((0..4u8, 0..24usize), 0..12),
    ) {
        let mut b = Bench::new();
        b.cfg.add(0x12, item.clone()).expect("free");
        b.write(0, 0, Size::B2, 0x12).expect("select");
        let mut at = 0;
        for (how, len) in steps {
            let rest = item.get(at..).unwrap_or(&[]);
            let mut expected = rest[..len.min(rest.len())].to_vec();
            at = (at + len).min(item.len());
            expected.resize(len, 0);
            match how {
                0 => {
                    prop_assert_eq!(b.dma(dma::SKIP, len as u32, 0), 0);
                }
                1 | 2 => {
                    prop_assert_eq!(b.dma(dma::READ, len as u32, 0x3000), 0);
                    prop_assert_eq!(b.ram(0x3000, len), expected);
                }
                _ => {
                    let read: Vec<u8> =
                        (0..len).map(|_| b.read(0, 1, Size::B1).expect("data") as u8).collect();
                    prop_assert_eq!(read, expected);
                }
            }
        }
    }
}

/// A descriptor in RAM, and the register written that starts it.
fn dma_read(length: u32, address: u64) -> Vec<Op> {
    let mut bytes = [(SELECT_KERNEL | dma::READ).to_be_bytes(), length.to_be_bytes()].concat();
    bytes.extend(address.to_be_bytes());
    let at = (MIN_SIZE / 2) as u32;
    let write = |offset, value: u32| Op::Write {
        region: 1,
        offset,
        size: Size::B4,
        value: value.swap_bytes().into(),
    };
    vec![Op::Ram { addr: at.into(), bytes }, write(0, 0), write(4, at)]
}

crate::device_laws!(
    laws,
    device,
    prologues: [
        vec![Op::write(0, Size::B2, u64::from(KERNEL)), Op::read(1, Size::B1)],
        vec![Op::write(0, Size::B2, u64::from(key::FILE_DIR)), Op::read(1, Size::B1)],
        dma_read(64, 0x4000),
        dma_read(u32::MAX, 0),
    ],
);
