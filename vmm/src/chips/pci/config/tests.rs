//! The header, on a function with every kind of base address.

use proptest::prelude::*;

use super::*;
use crate::device::{At, Device, Region};
use crate::laws::{Answer, Op, Session};
use crate::state::{decode, encode};

static SHAPE: Shape = Shape {
    name: "probe",
    id: (0x1af4, 0x1234),
    revision: 7,
    class: 0xff_0102,
    bars: &[(0, Bar::Io(0x20)), (1, Bar::Memory32(0x1000)), (3, Bar::Memory64(1 << 33))],
    interrupt: true,
    master: true,
    messages: Some(1),
};

/// A function that has an interrupt while the first dword of its memory is not 0; writing it sends
/// message 1.
#[derive(Debug)]
struct Probe {
    config: Config,
    word: u32,
}

fn probe() -> Probe {
    let (mut ports, mut memory) = (0xc001, 0xe000_0001);
    let placement = Placement::assign(&SHAPE, 11, &mut ports, &mut memory);
    Probe { config: Config::new(&SHAPE, placement), word: 0 }
}

impl Device for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }
    fn regions(&self) -> &'static [Region] {
        const R: fn(Space, u64) -> Region =
            |space, len| Region { name: "probe", space, len, widest: Size::B4 };
        static REGIONS: std::sync::LazyLock<[Region; 4]> = std::sync::LazyLock::new(|| {
            let config = super::super::config_region("probe-config");
            [config, R(Space::Port, 0x20), R(Space::Mmio, 0x1000), R(Space::Mmio, 1 << 33)]
        });
        &*REGIONS
    }
    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match at.region {
            0 => self.config.read(at.offset, size, self.word != 0),
            _ => Err(IoError::NoRegister),
        }
    }
    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match (at.region, at.offset) {
            (0, _) => return self.config.write(env, at.offset, size, value),
            (2, 0) => {
                self.word = value as u32;
                self.config.message(env, 1);
            }
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }
    fn irq(&self) -> bool {
        self.config.pin(self.word != 0)
    }
    fn reset(&mut self, _: &mut Env<'_>) {
        self.config.reset();
        self.word = 0;
    }
    fn save(&self) -> Vec<u8> {
        encode(&(self.config.registers(), self.word))
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let (regs, word): (Registers, u32) = decode("probe", state)?;
        self.config.check(&regs)?;
        self.config.set_registers(regs);
        self.word = word;
        Ok(())
    }
}

fn bench() -> Session<Probe> {
    Session::new(probe(), probe)
}

fn read(s: &mut Session<Probe>, offset: u64, size: Size) -> u64 {
    s.apply(&Op::read(offset, size)).expect("lawful");
    match s.trace.last().expect("a step").answer {
        Answer::Read(Ok(value)) => value,
        other => panic!("a read of {offset:#x} gives {other:?}"),
    }
}

fn write(s: &mut Session<Probe>, offset: u64, size: Size, value: u64) -> Vec<Action> {
    s.apply(&Op::write(offset, size, value)).expect("lawful");
    s.trace.last().expect("a step").actions.clone()
}

const WORD: Op = Op::Write { region: 2, offset: 0, size: Size::B4, value: 1 };

#[test]
fn the_header_says_what_the_function_is() {
    let mut s = bench();
    let expected = [
        (0x00, 0x1234_1af4),
        (0x04, 0x0010_0003),
        (0x08, 0xff01_0207),
        (0x0c, 0),
        (0x10, 0xc021),
        (0x14, 0xe000_1000),
        (0x18, 0),
        (0x1c, 0x4),
        (0x20, 0x2),
        (0x24, 0),
        (0x2c, 0x1234_1af4),
        (0x30, 0),
        (0x34, 0x40),
        (0x3c, 0x010b),
        (0x40, 0x0182_0005),
    ];
    for (offset, value) in expected {
        assert_eq!(read(&mut s, offset, Size::B4), value, "at {offset:#x}");
    }
    assert_eq!((read(&mut s, 2, Size::B2), read(&mut s, 0xb, Size::B1)), (0x1234, 0xff));
}

#[test]
fn all_ones_in_a_base_address_give_its_length_back() {
    let mut s = bench();
    for (offset, kept) in [
        (0x10, 0xffff_ffe1),
        (0x14, 0xffff_f000),
        (0x18, 0),
        (0x1c, 0x4),
        (0x20, 0xffff_fffe),
        (0x24, 0),
        (0x30, 0),
    ] {
        write(&mut s, offset, Size::B4, 0xffff_ffff);
        assert_eq!(read(&mut s, offset, Size::B4), kept, "at {offset:#x}");
    }
    assert_eq!(s.device.config.base(2), Some(0xffff_fffe_0000_0000));
}

#[test]
fn what_is_not_enabled_is_not_decoded() {
    let mut s = bench();
    let bases = |s: &Session<Probe>| [0, 1, 2, 3].map(|i| s.device.config.base(i));
    let [io, low, high] = [0xc020, 0xe000_1000, 0x2_0000_0000].map(Some);
    assert_eq!(bases(&s), [io, low, high, None]);
    write(&mut s, COMMAND, Size::B2, command::IO.into());
    assert_eq!(bases(&s), [io, None, None, None]);
    write(&mut s, COMMAND, Size::B1, command::MEMORY.into());
    assert_eq!(bases(&s), [None, low, high, None]);
    // Bits that do not exist.
    write(&mut s, COMMAND, Size::B4, 0xffff_ffff);
    assert_eq!(read(&mut s, COMMAND, Size::B4), 0x0010_0407);
}

#[test]
fn bytes_are_written_alone() {
    let mut s = bench();
    write(&mut s, 0x22, Size::B1, 0x77);
    write(&mut s, 0x15, Size::B1, 0xff);
    assert_eq!(
        (read(&mut s, 0x20, Size::B4), read(&mut s, 0x14, Size::B4)),
        (0x77_0002, 0xe000_f000)
    );
    for (offset, size) in [(3, Size::B2), (1, Size::B4), (2, Size::B4), (0, Size::B8)] {
        s.apply(&Op::read(offset, size)).expect("lawful");
        assert_eq!(s.trace.last().expect("a step").answer, Answer::Read(Err(IoError::Width)));
    }
}

#[test]
fn the_pin_is_asserted_unless_it_is_disabled_or_messages_are_used() {
    let mut s = bench();
    s.apply(&WORD).expect("lawful");
    assert!(s.device.irq());
    assert_eq!(read(&mut s, 6, Size::B2), 0x18);
    write(&mut s, COMMAND, Size::B2, (command::INTX_DISABLE | command::MEMORY).into());
    assert!(!s.device.irq());
    // The status tells it all the same (6.2.3).
    assert_eq!(read(&mut s, 6, Size::B2), 0x18);
    write(&mut s, COMMAND, Size::B2, command::MEMORY.into());
    write(&mut s, CAPABILITIES + 2, Size::B2, 1);
    assert!(!s.device.irq());
    assert_eq!(read(&mut s, 6, Size::B2), 0x10);
}

#[test]
fn a_message_waits_for_its_mask_and_for_bus_mastering() {
    let mut s = bench();
    for (at, value) in [(4, 0xfee0_0000), (12, 0x40), (0, 0x11 << 16), (16, 2)] {
        write(&mut s, CAPABILITIES + at, Size::B4, value);
    }
    let sent = vec![Action::Message { address: 0xfee0_0000, data: 0x41 }];
    s.apply(&WORD).expect("lawful");
    assert_eq!(s.trace.last().expect("a step").actions, []);
    assert_eq!(read(&mut s, CAPABILITIES + 20, Size::B4), 2);
    assert_eq!(write(&mut s, CAPABILITIES + 16, Size::B4, 0), [], "it is no bus master");
    assert_eq!(write(&mut s, COMMAND, Size::B2, 6), sent);
    assert_eq!(read(&mut s, CAPABILITIES + 20, Size::B4), 0);
    s.apply(&WORD).expect("lawful");
    assert_eq!(s.trace.last().expect("a step").actions, sent);
}

#[test]
fn places_do_not_overlap_and_suit_their_length() {
    let (mut ports, mut memory) = (0xc000, 0xe000_0000);
    let first = Placement::assign(&SHAPE, 10, &mut ports, &mut memory);
    let second = Placement::assign(&SHAPE, 10, &mut ports, &mut memory);
    assert_eq!(first.bases, [0xc000, 0xe000_0000, 0x2_0000_0000]);
    assert_eq!(second.bases, [0xc020, 0x4_0000_0000, 0x6_0000_0000]);
}

proptest! {
    /// Whatever is written in whatever pieces, what is hardwired stays, and a register is the dword
    /// that its bytes make.
    #[test]
    fn nothing_hardwired_changes(writes in prop::collection::vec((0u64..256, 0usize..3, any::<u32>()), 0..60)) {
        let mut s = bench();
        for (offset, size, value) in writes {
            let size = Size::ALL[size];
            write(&mut s, offset - offset % size.bytes(), size, u64::from(value) & size.mask());
        }
        for (offset, bits, value) in [
            (0x00, !0, 0x1234_1af4),
            (0x04, !0x0008_0407, 0x0010_0000),
            (0x08, !0, 0xff01_0207),
            (0x0c, !0, 0),
            (0x10, 0x1f, 1),
            (0x14, 0xfff, 0),
            (0x18, !0, 0),
            (0x1c, !0, 4),
            (0x20, 1, 0),
            (0x24, !0, 0),
            (0x2c, !0, 0x1234_1af4),
            (0x30, !0, 0),
            (0x34, !0, 0x40),
            (0x3c, 0xffff_ff00, 0x100),
            (0x40, !(0x71 << 16), 0x0182_0005),
        ] {
            let whole = read(&mut s, offset, Size::B4);
            prop_assert_eq!(whole & bits & 0xffff_ffff, value, "at {:#x}", offset);
            let bytes = (0..4).map(|i| read(&mut s, offset + i, Size::B1) << (8 * i));
            prop_assert_eq!(bytes.fold(0, |all, byte| all | byte), whole);
        }
    }
}

crate::device_laws!(laws, probe, prologues: [
    vec![
        Op::write(CAPABILITIES + 2, Size::B2, 0x11),
        Op::write(CAPABILITIES + 16, Size::B4, 3),
        Op::write(COMMAND, Size::B2, 6),
        WORD,
    ],
]);
