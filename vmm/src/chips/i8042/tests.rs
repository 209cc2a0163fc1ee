use super::*;
use crate::device::{Actions, SECOND};
use crate::laws::TestClock;
use crate::ram::{Backing, GuestRam, MIN_SIZE};

/// A controller on a bench where time passes only when told to.
struct Bench {
    clock: TestClock,
    now: Nanos,
    ram: GuestRam,
    actions: Actions,
    chip: I8042,
}

impl Bench {
    fn new() -> Bench {
        let ram = GuestRam::new(MIN_SIZE, Backing::Auto).expect("2 MiB");
        let (clock, actions) = (TestClock::default(), Actions::default());
        Bench { clock, now: 0, ram, actions, chip: I8042::new() }
    }

    fn call<T>(&mut self, f: impl FnOnce(&mut I8042, &mut Env<'_>) -> T) -> T {
        f(&mut self.chip, &mut Env::new(&self.clock, &self.ram, &mut self.actions))
    }

    fn pass(&mut self, time: Nanos) {
        self.now += time;
        self.clock.set(self.now);
    }

    fn inb(&mut self, region: u8) -> u8 {
        let at = At { region, offset: 0 };
        self.call(|d, env| d.read(env, at, Size::B1)).expect("a register") as u8
    }

    fn outb(&mut self, region: u8, value: u8) {
        let at = At { region, offset: 0 };
        self.call(|d, env| d.write(env, at, Size::B1, value.into())).expect("a register");
    }

    fn status(&mut self) -> u8 {
        self.inb(1)
    }

    /// Sends a command with its data bytes and returns what lies in the output buffer afterwards.
    fn command(&mut self, command: u8, data: &[u8]) -> Option<u8> {
        self.outb(1, command);
        data.iter().for_each(|&byte| self.outb(0, byte));
        (self.status() & status::OUTPUT_FULL != 0).then(|| self.inb(0))
    }

    /// Everything that comes within a second, read as a driver does that polls.
    fn take_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        for _ in 0..1000 {
            if self.status() & status::OUTPUT_FULL != 0 {
                all.push(self.inb(0));
            }
            self.pass(SECOND / 1000);
        }
        all
    }

    fn press(&mut self, bytes: &[u8]) -> usize {
        self.call(|d, env| d.input(env, bytes))
    }

    fn actions(&mut self) -> Vec<Action> {
        self.actions.drain().collect()
    }
}

#[test]
fn self_tests_pass_and_the_command_byte_is_kept() {
    let mut b = Bench::new();
    assert_eq!(b.command(0xaa, &[]), Some(0x55));
    assert_eq!(b.command(0xa9, &[]), Some(0x00));
    assert_eq!(b.command(0xab, &[]), Some(0x00));
    assert_eq!(b.command(0x60, &[0x61]), None);
    assert_eq!(b.command(0x20, &[]), Some(0x61));
    assert_eq!(b.command(0xad, &[]), None);
    assert_eq!(b.command(0x20, &[]), Some(0x71));
    assert_eq!(b.command(0xae, &[]), None);
    assert_eq!(b.command(0xa8, &[]), None);
    assert_eq!(b.command(0x20, &[]), Some(0x41));
    assert_eq!(b.command(0xa7, &[]), None);
    assert_eq!(b.command(0x20, &[]), Some(0x61));
    assert_eq!(b.command(0x7f, &[0x5a]), None);
    assert_eq!(b.command(0x3f, &[]), Some(0x5a));
    assert_eq!(b.command(0xc0, &[]), Some(0xa3));
    assert_eq!(b.command(0x99, &[]), None, "no command");
}

#[test]
fn the_status_register_tells_commands_from_data() {
    let mut b = Bench::new();
    b.outb(1, 0xad);
    assert_eq!(b.status(), status::NOT_LOCKED | status::SYSTEM | status::COMMAND);
    b.outb(1, 0x60);
    b.outb(0, 0x00);
    assert_eq!(b.status(), status::NOT_LOCKED);
    b.outb(1, 0xaa);
    let full = status::NOT_LOCKED | status::SYSTEM | status::COMMAND | status::OUTPUT_FULL;
    assert_eq!(b.status(), full);
    assert_eq!(b.inb(0), 0x55);
    assert_eq!(b.status(), full & !status::OUTPUT_FULL);
    assert_eq!(b.inb(0), 0x55, "an empty buffer keeps its byte");
}

#[test]
fn keys_come_one_interrupt_each() {
    let mut b = Bench::new();
    // A pressed and released: 1c f0 1c in set 2, 1e 9e in set 1.
    assert_eq!(b.press(&[0x1c, 0xf0, 0x1c]), 3);
    assert!(b.chip.irq());
    assert_eq!(b.inb(0), 0x1e);
    assert!(!b.chip.irq(), "the line falls, so that an edge is seen");
    assert_eq!(b.chip.deadline(), Some(BYTE_TIME));
    b.pass(BYTE_TIME);
    b.call(|d, env| d.advance(env));
    assert!(b.chip.irq());
    assert_eq!(b.inb(0), 0x9e);
    assert_eq!((b.chip.irq(), b.chip.deadline()), (false, None));
    b.command(0x60, &[0x00]);
    b.press(&[0x1c, 0xf0, 0x1c]);
    assert!(!b.chip.irq(), "interrupts are off");
    assert_eq!(b.take_all(), [0x1c, 0xf0, 0x1c], "and so is translation");
}

#[test]
fn the_keyboard_waits_while_its_interface_is_off() {
    let mut b = Bench::new();
    b.outb(1, 0xad);
    assert_eq!(b.press(&[0x1c; 30]), 16);
    assert_eq!(b.chip.input_room(), 0);
    assert_eq!(b.take_all(), [0u8; 0]);
    b.outb(1, 0xae);
    assert!(b.chip.irq());
    assert_eq!(b.chip.input_room(), 0, "a byte makes room when it is read");
    b.inb(0);
    assert_eq!(b.chip.input_room(), 1);
    assert_eq!(b.take_all(), [0x1e; 15]);
}

#[test]
fn the_keyboard_answers_through_the_translation() {
    let mut b = Bench::new();
    b.outb(0, 0xff);
    assert_eq!(b.status() & status::OUTPUT_FULL, 0, "the wire takes its time");
    assert_eq!(b.take_all(), [0xfa, 0xaa]);
    b.outb(0, 0xf2);
    assert_eq!(b.take_all(), [0xfa, 0xab, 0x41]);
    b.outb(1, 0xad);
    b.outb(0, 0xf4);
    assert_eq!(b.take_all(), [0xfa], "a byte to the keyboard turns its interface on");
}

#[test]
fn a_key_that_is_sent_again_is_translated_once() {
    let mut b = Bench::new();
    b.press(&[0x1c]);
    assert_eq!(b.take_all(), [0x1e]);
    for _ in 0..2 {
        b.outb(0, 0xfe);
        assert_eq!(b.take_all(), [0x1e]);
    }
    b.outb(0, 0xf2);
    assert_eq!(b.take_all(), [0xfa, 0xab, 0x41]);
    b.outb(0, 0xfe);
    assert_eq!(b.take_all(), [0x41], "an answer is translated on its way");
}

#[test]
fn nothing_is_at_the_auxiliary_port() {
    let mut b = Bench::new();
    b.command(0xd4, &[0xf4]);
    assert_eq!(b.status() & status::OUTPUT_FULL, 0);
    b.pass(AUX_TIMEOUT);
    let bits = status::OUTPUT_FULL | status::AUX_FULL | status::TIMEOUT;
    assert_eq!(b.status() & bits, bits);
    assert!(!b.chip.irq(), "it is not the keyboard's");
    assert_eq!(b.inb(0), 0xfe);
    assert_eq!(b.status() & bits, status::TIMEOUT);
    b.command(0xd3, &[0x5a]);
    assert_eq!(b.inb(0), 0x5a, "the loop of the auxiliary port");
}

#[test]
fn loops_and_answers_keep_their_order() {
    let mut b = Bench::new();
    b.outb(1, 0xd2);
    b.outb(0, 0x77);
    assert!(b.chip.irq());
    b.outb(1, 0xaa);
    assert_eq!(b.inb(0), 0x77, "an answer waits for the buffer");
    assert_eq!(b.status() & status::OUTPUT_FULL, 0);
    b.pass(BYTE_TIME);
    assert_eq!(b.command(0xad, &[]), Some(0x55));
}

#[test]
fn the_output_port_moves_a20_and_resets() {
    let mut b = Bench::new();
    assert_eq!(b.command(0xd0, &[]), Some(0xcf));
    b.command(0xd1, &[0xcd]);
    assert_eq!(b.actions(), [Action::A20(false)]);
    b.command(0xd1, &[0xcd]);
    assert_eq!(b.actions(), [], "it did not move");
    assert_eq!(b.command(0xd0, &[]), Some(0xcd));
    b.outb(1, 0xdf);
    assert_eq!(b.actions(), [Action::A20(true)]);
    b.outb(1, 0xdd);
    assert_eq!(b.actions(), [Action::A20(false)]);
    b.command(0xd1, &[0x02]);
    assert_eq!(b.actions(), [Action::A20(true), Action::Reset]);
    b.outb(1, 0xfe);
    assert_eq!(b.actions(), [Action::Reset]);
    b.outb(1, 0xff);
    assert_eq!(b.actions(), [], "no line is pulsed");
    b.command(0xd2, &[1]);
    b.press(&[0x1c]);
    b.outb(1, 0xd2);
    b.outb(0, 1);
    assert_eq!(b.chip.regs.read_output_port() & port::KEYBOARD_IRQ, port::KEYBOARD_IRQ);
}

#[test]
fn impossible_states_are_refused() {
    let mut chip = I8042::new();
    let mut refused = |f: fn(&mut Regs)| {
        let mut regs = Regs::new();
        f(&mut regs);
        assert!(chip.restore(&state::encode(&regs)).is_err(), "{regs:?}");
    };
    refused(|r| r.flags = 0x80);
    refused(|r| r.flags = status::AUX_FULL);
    refused(|r| r.key = true);
    refused(|r| r.next = Next::Ram(32));
    refused(|r| r.output_port = 0);
    refused(|r| r.reply = Some(Reply { byte: 0, flags: 0 }));
    assert_eq!(chip.restore(&state::encode(&Regs::new())), Ok(()));
}

crate::device_laws!(
    laws,
    I8042::new,
    prologues: [
        // Keys are waiting.
        vec![Op::Input(vec![0x1c, 0xf0, 0x1c, 0xe0, 0x75])],
        // A command to the keyboard, and one to the mouse that is not there.
        vec![Op::write(0, Size::B1, 0xf2), Op::Write { region: 1, offset: 0, size: Size::B1, value: 0xd4 }],
        // The same without translation.
        vec![
            Op::Write { region: 1, offset: 0, size: Size::B1, value: 0x60 },
            Op::write(0, Size::B1, 0x03),
            Op::write(0, Size::B1, 0xff),
        ],
    ],
);
