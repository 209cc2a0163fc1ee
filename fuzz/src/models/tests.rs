//! Models by themselves, on sequences that the specifications describe.

mod vtd;

use vmm::access::{Access, Size, Space};
use vmm::device::{Nanos, SECOND};
use vmm::exit::Exit;
use vmm::machine::{Machine, ManualClock, Nowhere};
use vmm::ram::{Backing, GuestRam, MIN_SIZE};
use vmm::script::replay::{Outcome, Touch};
use vmm::script::{Answer, BoardSpec, Effect, Op};

use super::{Models, edu};

/// A model, and a board without devices: what happens is what a test says.
struct Bench {
    models: Models,
    machine: Machine,
    clock: std::sync::Arc<ManualClock>,
}

impl Bench {
    fn new(kind: &str) -> Bench {
        let spec = BoardSpec { kind: kind.to_owned().into(), ..BoardSpec::default() };
        let ram = GuestRam::new(MIN_SIZE, Backing::Auto).expect("2 MiB");
        let clock = std::sync::Arc::new(ManualClock::default());
        let machine = Machine::new(ram, clock.clone(), std::sync::Arc::new(Nowhere));
        Bench { models: Models::of(&spec), machine, clock }
    }

    fn does(&mut self, op: Op, answer: Answer, effects: &[Effect]) -> Result<(), String> {
        self.does_to(op, (answer, effects), &[], |_| {})
    }

    /// The same, with what it does to memory, and what devices are heard to write.
    fn does_to(
        &mut self,
        op: Op,
        (answer, effects): (Answer, &[Effect]),
        touched: &[Touch],
        change: impl FnOnce(&GuestRam),
    ) -> Result<(), String> {
        let outcome = Outcome { answer, effects: effects.to_vec() };
        self.models.before(&op, &self.machine);
        change(self.machine.ram());
        let after = self.models.after(0, &op, &outcome, &self.machine, touched);
        after.map_err(|v| v.what)
    }

    /// Whether a read may give this.
    fn gives(&mut self, port: u64, value: u64) -> bool {
        let access = Access::read(Space::Port, port, Size::B1);
        self.does(Op::io(access), Answer::Value(value), &[]).is_ok()
    }

    /// A read gives this.
    fn read(&mut self, port: u64, value: u64) {
        let access = Access::read(Space::Port, port, Size::B1);
        self.does(Op::io(access), Answer::Value(value), &[]).expect("what the model says");
    }

    fn write_with(&mut self, port: u64, value: u64, effects: &[Effect]) -> Result<(), String> {
        let access = Access::write(Space::Port, port, Size::B1, value);
        self.does(Op::io(access), Answer::Ok, effects)
    }

    fn write(&mut self, port: u64, value: u64) {
        self.write_with(port, value, &[]).expect("what the model says");
    }

    fn pass(&mut self, by: Nanos) {
        self.clock.advance(by);
        self.does(Op::Advance(by), Answer::Ok, &[]).expect("time passes");
    }

    fn input(&mut self, bytes: &[u8], taken: u64) -> Result<(), String> {
        let op = Op::Input { device: "com1".into(), bytes: bytes.to_vec() };
        self.does(op, Answer::Value(taken), &[])
    }
}

/// Section 8.4 and 8.11: 16 characters, an overrun by loop-back, the trigger level, the time-out.
#[test]
fn the_receiver_of_a_16550() {
    let mut b = Bench::new("uart");
    b.write(0x3fa, 0x81); // FIFOs on, level 8.
    b.write(0x3f9, 0x01);
    b.input(&[7; 7], 7).expect("room for 16");
    b.read(0x3fa, 0xc1);
    b.input(&[8; 12], 12).expect_err("there is room for 9");
    let mut b = Bench::new("uart");
    b.write(0x3fa, 0x81);
    b.write(0x3f9, 0x05);
    b.input(&[7; 12], 12).expect("room for 16");
    b.read(0x3fa, 0xc4);
    b.write(0x3fc, 0x10);
    (0..4).for_each(|_| b.write(0x3f8, 9));
    b.read(0x3fa, 0xc4);
    b.write(0x3f8, 10); // Nowhere to go.
    b.read(0x3fa, 0xc6);
    b.read(0x3fd, 0x63);
    b.read(0x3fd, 0x61);
    assert!(!b.gives(0x3f8, 9), "the first one is a 7");
    (0..11).for_each(|_| b.read(0x3f8, 7));
    b.read(0x3fa, 0xc1);
    // Four characters of 10 bits at 9600 baud are 4.17 ms.
    b.write(0x3fb, 3);
    b.pass(4_166_000);
    b.read(0x3fa, 0xc1);
    b.pass(1_000);
    b.read(0x3fa, 0xcc);
    b.read(0x3f8, 9);
    b.read(0x3fa, 0xc1);
}

/// Table IV: which comes first, and what resets it.
#[test]
fn the_priorities_of_a_16550() {
    let mut b = Bench::new("uart");
    b.write(0x3f9, 0x0f);
    b.write(0x3fc, 0x10);
    let told = [0x06, 0x04, 0x02, 0x00, 0x01];
    b.write(0x3f8, 1);
    b.write(0x3f8, 2);
    b.read(0x3fa, told[0]);
    b.read(0x3fd, 0x63);
    b.read(0x3fa, told[1]);
    b.read(0x3f8, 2);
    b.read(0x3fa, told[2]);
    b.read(0x3fa, told[3]);
    // CTS, DSR and DCD went off with the loop.
    b.read(0x3fe, 0x0b);
    b.read(0x3fa, told[4]);
    b.write_with(0x3f8, 3, &[Effect::Output { device: "com1".into(), byte: 3 }])
        .expect_err("nothing leaves a loop");
}

impl Bench {
    fn cmos(&mut self, index: u64, value: u64) {
        self.write(0x70, index);
        self.read(0x71, value);
    }
    fn set(&mut self, index: u64, value: u64) {
        self.write(0x70, index);
        self.write(0x71, value);
    }
}

/// Tables 3 and 4: formats, the alarm, and half a second after the divider's reset.
#[test]
fn a_clock_at_noon() {
    let mut b = Bench::new("rtc");
    b.set(0x0a, 0x76);
    b.set(0x0b, 0x80);
    // 11:59:59 in the morning of 28 February 2100, which has no 29th.
    for (index, value) in
        [(0, 0x59), (2, 0x59), (4, 0x11), (6, 1), (7, 0x28), (8, 2), (9, 0), (0x32, 0x21)]
    {
        b.set(index, value);
    }
    // An alarm at 12:00:any.
    b.set(1, 0xc0);
    b.set(3, 0);
    b.set(5, 0x92);
    b.set(0x0b, 0x00);
    b.set(0x0a, 0x26);
    b.pass(SECOND / 2 - 1);
    b.cmos(0, 0x59);
    b.cmos(0x0a, 0xa6);
    b.pass(1);
    b.cmos(4, 0x92);
    b.cmos(0, 0);
    b.cmos(0x0a, 0x26);
    b.write(0x70, 0x0c);
    assert!(!b.gives(0x71, 0x50), "the alarm struck");
    let mut again = Bench::new("rtc");
    again.pass(SECOND);
    again.cmos(0x0c, 0x50);
    again.cmos(0x0c, 0);
    b.pass(12 * 3600 * SECOND);
    b.cmos(4, 0x12);
    b.cmos(7, 1);
    b.cmos(8, 3);
    b.cmos(6, 2);
    // All time that is none is nobody's business, until it is a time again.
    b.set(2, 0x7a);
    b.pass(SECOND);
    b.write(0x70, 2);
    assert!(b.gives(0x71, 0x59) && b.gives(0x71, 0));
    b.write(0x71, 0x30);
    assert!(!b.gives(0x71, 0x59) && b.gives(0x71, 0x30));
}

/// Dates far apart, against the days counted one by one.
#[test]
fn days_add_up() {
    for start in [[1, 1, 1970], [29, 2, 2000], [31, 12, 2099], [28, 2, 1999]] {
        let mut date = start;
        for days in 1..2000 {
            date = super::rtc::later(date, 1);
            assert_eq!(super::rtc::later(start, days), date, "{start:?} and {days} days");
        }
    }
    assert_eq!(super::rtc::later([1, 1, 1970], 47_541), [1, 3, 2100]);
    assert_eq!(super::rtc::later([31, 12, 9999], 1), [1, 1, 0]);
}

/// 4.8.4.1.1: any change of the timer's highest bit; ones clear; the SCI is a level.
#[test]
fn the_carries_of_a_pm_timer() {
    let mut b = Bench::new("acpi-pm");
    b.pass(2_343_484_000);
    b.read(0x600, 0);
    b.read(0x60a, 0x7f);
    b.pass(1_000);
    b.read(0x600, 1);
    b.read(0x60a, 0x80);
    b.write(0x602, 1);
    b.write(0x600, 1);
    b.read(0x600, 0);
    b.write(0xb2, 2);
    b.pass(2_343_484_438);
    let line = Effect::Line { gsi: 9, level: true };
    b.does(Op::Timer, Answer::Ok, &[]).expect_err("the line is to go high");
    b.does(Op::Timer, Answer::Ok, &[line]).expect("it does");
    assert!(!b.gives(0x600, 0) && b.gives(0x600, 1));
}

/// Commands of the controller and of the keyboard, their answers in order, and the line of each byte.
#[test]
fn a_keyboard_and_its_controller() {
    let mut b = Bench::new("i8042");
    let line = |level| [Effect::Line { gsi: 1, level }];
    let read = |b: &mut Bench, value, effects: &[Effect]| {
        b.does(Op::io(Access::read(Space::Port, 0x60, Size::B1)), Answer::Value(value), effects)
    };
    let press = |b: &mut Bench, bytes: &[u8], taken, effects: &[Effect]| {
        let op = Op::Input { device: "i8042".into(), bytes: bytes.to_vec() };
        b.does(op, Answer::Value(taken), effects)
    };
    b.write_with(0x64, 0xaa, &line(true)).expect("an answer at once");
    assert!(b.gives(0x64, 0x19) && b.gives(0x64, 0x1d) && !b.gives(0x64, 0x15));
    b.write_with(0x64, 0x20, &[]).expect("the buffer is taken");
    read(&mut b, 0x55, &line(false)).expect("the test passes");
    b.pass(660_000);
    b.does(Op::Timer, Answer::Ok, &line(true)).expect("the command byte");
    read(&mut b, 0x61, &line(false)).expect("but for the system flag");
    // Identity, and a key that comes meanwhile.
    b.write(0x60, 0xf2);
    b.read(0x64, 0x10);
    press(&mut b, &[0xf0, 0x1c], 2, &[]).expect("room for 16");
    for byte in [0xfa, 0xab, 0x41, 0x9e] {
        b.pass(660_000);
        assert!(b.does(Op::Timer, Answer::Ok, &[]).is_err(), "the line is to go high");
        b.does(Op::Timer, Answer::Ok, &line(true)).expect("it does");
        read(&mut b, byte, &line(false)).expect("the translated byte");
    }
    // Sent once more, it is not translated once more.
    b.write(0x60, 0xfe);
    b.pass(660_000);
    read(&mut b, 0x03, &line(false)).expect_err("what it was");
    // Without translation and interrupts; the interface off.
    b.write(0x64, 0x60);
    b.write(0x60, 0x10);
    press(&mut b, &[0x1c; 20], 20, &[]).expect_err("room for 16");
    assert!(b.gives(0x64, 0x10), "nothing comes");
    b.write(0x64, 0xd1);
    let reset = Op::io(Access::write(Space::Port, 0x60, Size::B1, 0xfe));
    b.does(reset.clone(), Answer::Ok, &[]).expect_err("the reset line is low");
    b.write(0x64, 0xd1);
    b.does(reset, Answer::Stop(vmm::exit::Stop::Reset), &[]).expect("a reset");
}

/// 3.2.4: an edge is lost while it is masked, a level is sent once until its end.
#[test]
fn an_entry_of_an_io_apic() {
    let mut b = Bench::new("ioapic");
    let entry = |b: &mut Bench, register, value, effects: &[Effect]| {
        for (at, value, effects) in [(0, register, &[][..]), (0x10, value, effects)] {
            let access = Access::write(Space::Mmio, 0xfec0_0000 + at, Size::B4, value);
            b.does(Op::io(access), Answer::Ok, effects)?;
        }
        Ok::<_, String>(())
    };
    let level = |level| Effect::Line { gsi: 3, level };
    let message = |address, data| Effect::Message { address, data };
    let pins = || Op::io(Access::write(Space::Port, 0x10, Size::B4, 8));
    b.does(pins(), Answer::Ok, &[level(true)]).expect("masked");
    entry(&mut b, 0x16, 0x0931, &[]).expect("an edge that is over");
    b.does(pins(), Answer::Ok, &[level(false)]).expect("no edge");
    b.does(pins(), Answer::Ok, &[level(true)]).expect_err("an edge");
    b.does(pins(), Answer::Ok, &[level(false)]).expect("no edge");
    let sent = [level(true), message(0xfee0_0004, 0x131)];
    b.does(pins(), Answer::Ok, &sent).expect("logical, lowest priority");
    entry(&mut b, 0x17, 0x0200_0000, &[]).expect("an edge that was sent");
    let sent = [message(0xfee0_2000, 0xc031)];
    entry(&mut b, 0x16, 0x8031, &sent).expect("a level that is asserted");
    entry(&mut b, 0x16, 0x8031, &sent).expect_err("not before its end");
    let read = Op::io(Access::read(Space::Mmio, 0xfec0_0010, Size::B4));
    b.does(read, Answer::Value(0xc031), &[]).expect("remote IRR");
    let end = |vector| Op::Exit { cpu: 0, exit: Exit::IoapicEoi(vector) };
    b.does(end(0x30), Answer::Ok, &[]).expect("another's");
    b.does(end(0x31), Answer::Ok, &[]).expect_err("it is still asserted");
    b.does(pins(), Answer::Ok, &[level(false)]).expect("it is served");
}

/// docs/specs/edu.rst: inversion, factorial, causes, and a transfer there and back.
#[test]
fn an_edu_device() {
    let mut b = Bench::new("edu");
    // Where firmware would put it, and a bus master.
    let mut placed = edu::Edu::new(3, 11, true, None);
    (placed.base, placed.is_placed, placed.command) = (Some(0xe000_0000), true, 6);
    b.models.models[0].1 = Box::new(placed);
    let write = |b: &mut Bench, offset, value, effects: &[Effect]| {
        let access = Access::write(Space::Mmio, 0xe000_0000u64 + offset, Size::B4, value);
        b.does(Op::io(access), Answer::Ok, effects)
    };
    let read = |b: &mut Bench, offset, value| {
        let access = Access::read(Space::Mmio, 0xe000_0000u64 + offset, Size::B4);
        b.does(Op::io(access), Answer::Value(value), &[])
    };
    let line = |level| [Effect::Line { gsi: 11, level }];
    read(&mut b, 0, 0x0100_00ed).expect("version 1.0");
    write(&mut b, 4, 0x1234, &[]).expect("liveness");
    read(&mut b, 4, 0xffff_edcb).expect("inverted");
    write(&mut b, 0x20, 0x80, &[]).expect("with an interrupt");
    write(&mut b, 8, 13, &line(true)).expect("a factorial");
    read(&mut b, 8, 479_001_600).expect_err("that is of 12");
    read(&mut b, 8, 1_932_053_504).expect("13! modulo 2^32");
    read(&mut b, 0x24, 1).expect("its cause");
    write(&mut b, 0x64, 1, &[]).expect_err("the line falls");
    write(&mut b, 0x60, 1, &line(true)).expect("raised again");
    write(&mut b, 0x64, 1, &line(false)).expect("acknowledged");
    let ram = |b: &Bench, addr, bytes: &[u8]| b.machine.ram().write(addr, bytes).expect("RAM");
    ram(&b, 0x1000, b"exitlab");
    let transfer = |b: &mut Bench, from, to, command| {
        for (register, value) in [(0x80, from), (0x88, to), (0x90, 7)] {
            write(b, register, value, &[]).expect("the engine is idle");
        }
        write(b, 0x98, command, &[])
    };
    transfer(&mut b, 0x1000, 0x4_0010, 1).expect("into the buffer");
    b.pass(100_000);
    transfer(&mut b, 0x4_0010, 0x2000, 3).expect_err("nothing came there");
    b.pass(100_000);
    ram(&b, 0x2000, b"exitlab");
    transfer(&mut b, 0x4_0010, 0x2000, 3).expect("what was put there");
    let busy = Op::io(Access::read(Space::Mmio, 0xe000_0098, Size::B8));
    b.does(busy, Answer::Value(3), &[]).expect("it takes a while");
}

/// docs/specs/fw_cfg.rst: the selector, bytes up to an item's end, and each kind of transfer.
#[test]
fn a_firmware_configuration_device() {
    let mut b = Bench::new("fw-cfg");
    let select = |b: &mut Bench, key| {
        b.does(Op::io(Access::write(Space::Port, 0x510, Size::B2, key)), Answer::Ok, &[])
    };
    select(&mut b, 0).expect("the signature");
    b"QEMU\0".iter().for_each(|&byte| b.read(0x511, byte.into()));
    select(&mut b, 0x4019).expect("the directory, with the bit that means nothing");
    b"\0\0\0\x01\0\0\x01\x2c\0\x20\0\0opt/exitlab\0".iter().for_each(|&byte| {
        b.read(0x511, byte.into());
    });
    let ram = |b: &Bench, addr, bytes: &[u8]| b.machine.ram().write(addr, bytes).expect("RAM");
    // A transfer with this control field, of 8 bytes to 0x2000; its answer; what it writes there.
    let run = |b: &mut Bench, control: u32, answer: u32, data: Option<[u8; 8]>, writes: &[u64]| {
        let fields = [control.to_be_bytes(), 8u32.to_be_bytes(), [0; 4], [0, 0, 0x20, 0]];
        ram(b, 0x1000, fields.as_flattened());
        let write = |&addr: &u64| Touch { addr, len: 4, is_write: true };
        let touched: Vec<Touch> = writes.iter().map(write).collect();
        let op = Op::io(Access::write(Space::Port, 0x518, Size::B4, 0x0010_0000));
        b.does_to(op, (Answer::Ok, &[]), &touched, |ram| {
            ram.write(0x1000, &answer.to_be_bytes()).expect("RAM");
            data.iter().for_each(|data| ram.write(0x2000, data).expect("RAM"));
        })
    };
    let name = Some(*b"\0\0\0\0\0\0\0\0");
    let all = [0x1000, 0x2000, 0x2004];
    run(&mut b, 2, 0, name, &all).expect("zeroes after the name");
    run(&mut b, 2, 0, name, &[0x1000, 0x2000, 0x2005]).expect_err("a byte beyond");
    run(&mut b, 2, 0, name, &[0x1000, 0x2000, 0x1004]).expect_err("the descriptor's length");
    run(&mut b, 2, 1, name, &all).expect_err("nothing was wrong");
    let mut b = Bench::new("fw-cfg");
    run(&mut b, 0x0020_000a, 0, Some([0x5a; 8]), &all).expect("the file");
    run(&mut b, 4, 0, None, &[0x1000]).expect("a skip");
    run(&mut b, 4, 0, None, &all).expect_err("a skip has no data");
    run(&mut b, 16, 0, None, &[0x1000]).expect_err("nothing can be written");
    run(&mut b, 16, 1, None, &[0x1000]).expect("an error");
    run(&mut b, 0x0000_000a, 0, Some(*b"QEMU\0\0\0\0"), &all).expect("zeroes beyond the end");
    b.read(0x511, 0);
    run(&mut b, 8, 0, None, &[0x1000]).expect("selected alone");
    b.read(0x511, b'Q'.into());
}

/// Hyper-V's controllers write to their pages, and to no other.
#[test]
fn pages_of_hyper_v() {
    let mut b = Bench::new("exit");
    let call = Exit::HypervCall { input: 0x5c, params: [0; 2] };
    let write = [Touch { addr: 0x5100, len: 256, is_write: true }];
    let posts = |b: &mut Bench| {
        let op = Op::Exit { cpu: 0, exit: call };
        b.does_to(op, (Answer::Value(0), &[]), &write, |_| {})
    };
    posts(&mut b).expect_err("there is no page");
    let exit = Exit::HypervSynic { vp: 1, msr: 0, control: 1, events: 0, messages: 0x5001 };
    b.does(Op::Exit { cpu: 0, exit }, Answer::Ok, &[]).expect("a page of messages");
    posts(&mut b).expect("its second slot");
    let port = Op::io(Access::write(Space::Port, 0xf4, Size::B1, 0));
    b.does_to(port, (Answer::Ok, &[]), &write, |_| {}).expect_err("nobody was called");
    b.does(Op::Reset, Answer::Ok, &[]).expect("a reset");
    posts(&mut b).expect_err("a reset takes the page away");
}
