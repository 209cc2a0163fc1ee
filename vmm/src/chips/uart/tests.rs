use super::*;
use crate::laws::{Answer, Op, Session};

const RBR: u64 = 0;
const THR: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

pub(super) type Bench = Session<Uart>;

pub(super) fn bench() -> Bench {
    Session::new(Uart::new("com1"), || Uart::new("com1"))
}

pub(super) fn last(s: &Bench) -> &crate::laws::Step {
    s.trace.last().expect("something was done")
}

pub(super) fn read(s: &mut Bench, offset: u64) -> u8 {
    s.apply(&Op::read(offset, Size::B1)).expect("lawful");
    match last(s).answer {
        Answer::Read(Ok(v)) => v as u8,
        ref other => panic!("{other:?}"),
    }
}

pub(super) fn write(s: &mut Bench, offset: u64, value: u8) {
    s.apply(&Op::write(offset, Size::B1, value.into())).expect("lawful");
    assert_eq!(last(s).answer, Answer::Wrote(Ok(())));
}

pub(super) fn input(s: &mut Bench, bytes: &[u8]) -> usize {
    s.apply(&Op::Input(bytes.to_vec())).expect("lawful");
    match last(s).answer {
        Answer::Took(n) => n,
        ref other => panic!("{other:?}"),
    }
}

pub(super) fn apply(s: &mut Bench, op: Op) {
    s.apply(&op).expect("lawful");
}

#[test]
fn registers_after_master_reset() {
    // 8.0, table I.
    let mut s = bench();
    let values = [IER, IIR, LCR, MCR, LSR, MSR].map(|r| read(&mut s, r));
    assert_eq!(values, [0, 1, 0, 0, 0x60, 0xb0]);
    assert!(!s.device.irq());
}

#[test]
fn a_byte_leaves_at_once() {
    let mut s = bench();
    write(&mut s, THR, b'x');
    assert_eq!(last(&s).actions, [Action::Output(b'x')]);
    assert_eq!(read(&mut s, LSR), 0x60);
}

#[test]
fn nothing_but_a_break_leaves_during_a_break() {
    let mut s = bench();
    write(&mut s, LCR, LCR_BREAK | 3);
    write(&mut s, THR, b'x');
    assert_eq!(last(&s).actions, []);
    write(&mut s, LCR, 3);
    write(&mut s, THR, b'y');
    assert_eq!(last(&s).actions, [Action::Output(b'y')]);
}

#[test]
fn the_divisor_is_behind_dlab_and_0_is_safe() {
    let mut s = bench();
    write(&mut s, LCR, LCR_DLAB | 3);
    write(&mut s, 0, 0);
    write(&mut s, 1, 0);
    assert_eq!([read(&mut s, 0), read(&mut s, 1)], [0, 0]);
    write(&mut s, LCR, 3);
    assert_eq!(read(&mut s, IER), 0);
    write(&mut s, FCR, 0xc1);
    input(&mut s, b"a");
    write(&mut s, IER, IER_RX);
    apply(&mut s, Op::Advance(SECOND));
    assert_eq!(read(&mut s, IIR), 0xc0 | CAUSE_TIMEOUT);
}

#[test]
fn reading_iir_takes_the_thre_interrupt_back() {
    // 8.6, table IV: reset by reading IIR, if it is the source, or writing THR.
    let mut s = bench();
    write(&mut s, MCR, MCR_OUT2);
    write(&mut s, IER, IER_THRE);
    assert!(s.device.irq());
    assert_eq!([read(&mut s, IIR), read(&mut s, IIR)], [CAUSE_THRE, CAUSE_NONE]);
    assert!(!s.device.irq());
    // THR is filled and empty again.
    write(&mut s, THR, 0);
    assert!(s.device.irq());
    assert_eq!(read(&mut s, IIR), CAUSE_THRE);
    // Enabling it again tells again; writing IER as it is does not.
    write(&mut s, IER, IER_THRE);
    assert_eq!(read(&mut s, IIR), CAUSE_NONE);
    write(&mut s, IER, 0);
    write(&mut s, IER, IER_THRE);
    assert_eq!(read(&mut s, IIR), CAUSE_THRE);
}

#[test]
fn a_higher_cause_hides_thre_and_does_not_clear_it() {
    let mut s = bench();
    write(&mut s, IER, 0xf);
    input(&mut s, b"a");
    assert_eq!([read(&mut s, IIR), read(&mut s, IIR)], [CAUSE_DATA, CAUSE_DATA]);
    read(&mut s, RBR);
    assert_eq!(read(&mut s, IIR), CAUSE_THRE);
}

#[test]
fn causes_come_in_order_of_priority() {
    let mut s = bench();
    write(&mut s, FCR, 1);
    // Loop back: the modem lines change, and 17 characters overrun 16 places.
    write(&mut s, MCR, MCR_LOOP);
    (0..17).for_each(|i| write(&mut s, THR, i));
    write(&mut s, IER, 0xf);
    assert_eq!(read(&mut s, IIR), 0xc0 | CAUSE_LINE);
    assert_eq!(read(&mut s, LSR), LSR_IDLE | LSR_READY | LSR_OVERRUN);
    assert_eq!(read(&mut s, IIR), 0xc0 | CAUSE_DATA);
    assert_eq!((0..16).map(|_| read(&mut s, RBR)).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    assert_eq!(read(&mut s, IIR), 0xc0 | CAUSE_THRE);
    assert_eq!(read(&mut s, IIR), 0xc0 | CAUSE_MODEM);
    assert_eq!(read(&mut s, MSR) & 0xf, 0b1011);
    assert_eq!(read(&mut s, IIR), 0xc0 | CAUSE_NONE);
}

#[test]
fn without_the_fifo_an_overrun_destroys_the_old_character() {
    let mut s = bench();
    write(&mut s, MCR, MCR_LOOP);
    write(&mut s, THR, 1);
    write(&mut s, THR, 2);
    assert_eq!(read(&mut s, LSR), LSR_IDLE | LSR_READY | LSR_OVERRUN);
    assert_eq!(read(&mut s, LSR), LSR_IDLE | LSR_READY);
    assert_eq!(read(&mut s, RBR), 2);
}

#[test]
fn host_input_is_taken_as_far_as_it_fits() {
    let mut s = bench();
    assert_eq!(input(&mut s, b"ab"), 1);
    assert_eq!(input(&mut s, b"b"), 0);
    write(&mut s, FCR, 1);
    assert_eq!(input(&mut s, &[7; 100]), 16);
    assert_eq!(read(&mut s, RBR), 7);
    assert_eq!(input(&mut s, &[7; 100]), 1);
    assert_eq!(read(&mut s, LSR) & LSR_OVERRUN, 0);
    write(&mut s, FCR, 1 | FCR_CLEAR_RX);
    assert_eq!(read(&mut s, LSR) & LSR_READY, 0);
    // Looped back, SIN is off: the bytes wait outside.
    write(&mut s, MCR, MCR_LOOP);
    assert_eq!(input(&mut s, b"a"), 0);
}

#[test]
fn the_fifo_interrupts_at_its_trigger_level() {
    for (bits, level) in [(0u8, 1), (1, 4), (2, 8), (3, 14)] {
        let mut s = bench();
        write(&mut s, MCR, MCR_OUT2);
        write(&mut s, IER, IER_RX);
        write(&mut s, FCR, bits << 6 | 1);
        input(&mut s, &vec![0; level - 1]);
        assert!(!s.device.irq());
        input(&mut s, &[0]);
        assert!(s.device.irq());
        read(&mut s, RBR);
        assert!(!s.device.irq());
    }
}

#[test]
fn a_character_left_in_the_fifo_interrupts_after_four_character_times() {
    let mut s = bench();
    write(&mut s, MCR, MCR_OUT2);
    write(&mut s, LCR, 3);
    write(&mut s, IER, IER_RX);
    write(&mut s, FCR, 0xc1);
    input(&mut s, b"ab");
    // 8N1 at 9600 baud: 10 bits.
    let patience = 4 * 10 * SECOND / 9600;
    assert_eq!(s.device.deadline(), Some(patience));
    apply(&mut s, Op::Advance(patience - 1));
    assert!(!s.device.irq());
    // Another character: the time starts again.
    input(&mut s, b"c");
    apply(&mut s, Op::Advance(patience - 1));
    assert!(!s.device.irq());
    apply(&mut s, Op::Advance(1));
    assert!(s.device.irq());
    assert_eq!(read(&mut s, IIR), 0xc0 | CAUSE_TIMEOUT);
    // More characters leave it; only a read takes it back, and starts the time again.
    input(&mut s, b"d");
    assert!(s.device.irq());
    read(&mut s, RBR);
    apply(&mut s, Op::Advance(patience - 1));
    assert!(!s.device.irq());
    apply(&mut s, Op::ToDeadline);
    assert!(s.device.irq());
    assert_eq!(s.now(), 3 * patience - 1);
    assert_eq!([0; 3].map(|_| read(&mut s, RBR)), *b"bcd");
    assert_eq!((s.device.irq(), s.device.deadline()), (false, None));
}

#[test]
fn a_slower_line_does_not_take_a_time_out_back() {
    // Whatever sets the character time, what was over before stays over.
    let slower = [(0, LCR, 0x1f), (LCR_DLAB, 0, 0xff), (LCR_DLAB, 1, 0xff)];
    for (lcr, register, value) in slower {
        let mut s = bench();
        write(&mut s, MCR, MCR_OUT2);
        write(&mut s, IER, IER_RX);
        write(&mut s, FCR, 0xc1);
        write(&mut s, LCR, lcr);
        input(&mut s, b"a");
        let due = s.device.deadline().expect("a character waits");
        apply(&mut s, Op::Pass(due));
        write(&mut s, register, value);
        assert!(s.device.patience() > due, "{register}");
        assert!(s.device.irq(), "{register}");
    }
}

#[test]
fn loop_back_connects_the_modem_lines() {
    // 8.8, bit 4; MSR upper half: CTS, DSR, RI, DCD.
    let mut s = bench();
    write(&mut s, MCR, MCR_LOOP);
    read(&mut s, MSR);
    for (mcr, msr) in [(1, 0x22), (2, 0x11), (4, 0x40), (8, 0x88)] {
        write(&mut s, MCR, MCR_LOOP | mcr);
        assert_eq!(read(&mut s, MSR), msr, "MCR bit {mcr:#x}");
        write(&mut s, MCR, MCR_LOOP);
        // Gone again; the trailing edge of RI is the one that counts.
        let gone = if mcr == 4 { 4 } else { msr & 0xf };
        assert_eq!(read(&mut s, MSR), gone, "MCR bit {mcr:#x} off");
    }
    write(&mut s, THR, 0x55);
    assert_eq!(last(&s).actions, []);
    assert_eq!(read(&mut s, RBR), 0x55);
}

#[test]
fn out2_is_the_gate_of_the_line() {
    let mut s = bench();
    write(&mut s, IER, IER_THRE);
    assert!(!s.device.irq());
    write(&mut s, MCR, MCR_OUT2);
    assert!(s.device.irq());
    write(&mut s, MCR, MCR_OUT2 | MCR_LOOP);
    assert!(!s.device.irq());
    assert_eq!(read(&mut s, IIR), CAUSE_THRE);
}

#[test]
fn a_break_is_told_when_it_comes_to_the_head() {
    // 8.4, bits 4 and 7.
    let mut s = bench();
    write(&mut s, FCR, 1);
    write(&mut s, IER, IER_LINE);
    input(&mut s, b"a");
    assert!(s.call(|d, env| d.receive_break(env)).expect("lawful").0);
    assert_eq!(read(&mut s, LSR), LSR_IDLE | LSR_READY | LSR_FIFO_ERROR);
    assert_eq!(read(&mut s, IIR), 0xc0 | CAUSE_NONE);
    assert_eq!(read(&mut s, RBR), b'a');
    assert_eq!(read(&mut s, IIR), 0xc0 | CAUSE_LINE);
    assert_eq!(read(&mut s, LSR), LSR_IDLE | LSR_READY | LSR_FIFO_ERROR | LSR_BREAK);
    assert_eq!(read(&mut s, LSR), LSR_IDLE | LSR_READY);
    assert_eq!(read(&mut s, RBR), 0);
    write(&mut s, MCR, MCR_LOOP);
    assert!(!s.call(|d, env| d.receive_break(env)).expect("lawful").0);
}

#[test]
fn fcr_bits_count_only_with_the_fifo_enabled() {
    let mut s = bench();
    input(&mut s, b"a");
    write(&mut s, FCR, 0xc0 | FCR_CLEAR_RX);
    assert_eq!(read(&mut s, IIR), CAUSE_NONE);
    assert_eq!(read(&mut s, RBR), b'a');
}

#[test]
fn registers_that_cannot_be_are_refused() {
    let mut uart = Uart::new("com1");
    let bad: [fn(&mut Regs); 8] = [
        |r| r.ier = 0x10,
        |r| r.mcr = 0x20,
        |r| r.deltas = 0x10,
        |r| r.trigger = 1,
        |r| r.head = 16,
        |r| r.len = 2,
        |r| r.breaks = 1,
        |r| r.timeout = true,
    ];
    for spoil in bad {
        let mut regs = Regs::default();
        spoil(&mut regs);
        assert!(uart.restore(&encode(&regs)).is_err(), "{regs:?}");
    }
    uart.restore(&encode(&Regs::default())).expect("sound");
}

crate::device_laws!(
    laws,
    || Uart::new("com1"),
    prologues: [
        // A driver at work: FIFO on with trigger 14, all interrupts.
        vec![Op::write(FCR, Size::B1, 0xc1), Op::write(IER, Size::B1, 15),
            Op::write(MCR, Size::B1, 0xb), Op::Input(b"abc".to_vec())],
        // Looped back, the receiver full.
        [vec![Op::write(FCR, Size::B1, 1), Op::write(MCR, Size::B1, 0x1f)],
            vec![Op::write(THR, Size::B1, 0x42); 17]].concat(),
    ],
);
