//! The UART as a guest's driver meets it, after National Semiconductor's PC16550D datasheet;
//! section numbers are its own.
//!
//! The report goes through the same UART. So a test works on it inside of [`with_uart`], says
//! what it sees to a [`Watch`], and the checks that fail do so when the port is as it was.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use payload_rt::line::{self, Through, Trigger};
use payload_rt::*;

const BASE: u16 = 0x3f8;
/// Receive buffer and transmit holding register; the divisor's low byte.
const DATA: u16 = BASE;
/// Interrupt enable; the divisor's high byte.
const IER: u16 = BASE + 1;
/// Interrupt identification, read.
const IIR: u16 = BASE + 2;
/// FIFO control, written.
const FCR: u16 = BASE + 2;
const LCR: u16 = BASE + 3;
const MCR: u16 = BASE + 4;
const LSR: u16 = BASE + 5;
const MSR: u16 = BASE + 6;
const SCRATCH: u16 = BASE + 7;

const LCR_DLAB: u8 = 0x80;
const MCR_DTR_RTS: u8 = 3;
const MCR_OUT2: u8 = 8;
const MCR_LOOP: u8 = 0x10;
/// FIFOs on and emptied; the receiver's trigger level is in the upper two bits.
const FCR_FRESH: u8 = 7;
const LSR_READY: u8 = 1;
const LSR_OVERRUN: u8 = 2;
const LSR_IDLE: u8 = 0x60;
const IER_RX: u8 = 1;
const IER_THRE: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;

/// The first thing that was not as it must be.
struct Watch(Option<(&'static str, u32, u32, u32)>);

impl Watch {
    /// Notes if `seen` is not `expected`; `at` says in which round.
    fn eq(&mut self, what: &'static str, at: impl Into<u32>, seen: u8, expected: u8) {
        if seen != expected && self.0.is_none() {
            self.0 = Some((what, at.into(), seen.into(), expected.into()));
        }
    }

    /// Notes if the condition does not hold.
    fn holds(&mut self, what: &'static str, at: impl Into<u32>, condition: bool) {
        self.eq(what, at, condition.into(), 1);
    }
}

/// Runs a test on the UART, puts the UART back, and ends the test if something was wrong.
fn with_uart(test: impl FnOnce(&mut Watch)) {
    // What was sent must be out before the port is turned around.
    time::wait_until(1_000_000, || port::in8(LSR) & LSR_IDLE == LSR_IDLE);
    let [ier, lcr, mcr, scratch] = [IER, LCR, MCR, SCRATCH].map(port::in8);
    port::out8(LCR, lcr | LCR_DLAB);
    let divisor = [DATA, IER].map(port::in8);
    port::out8(LCR, lcr);
    let mut watch = Watch(None);
    test(&mut watch);
    port::out8(LCR, lcr | LCR_DLAB);
    port::out8(DATA, divisor[0]);
    port::out8(IER, divisor[1]);
    for (register, value) in
        [(LCR, lcr), (IER, ier), (FCR, FCR_FRESH), (MCR, mcr), (SCRATCH, scratch)]
    {
        port::out8(register, value);
    }
    for register in [LSR, MSR, IIR] {
        port::in8(register);
    }
    if let Some((what, at, seen, expected)) = watch.0 {
        fail!("{what} ({at:#x}): is {seen:#x}, must be {expected:#x}");
    }
}

/// FIFOs on and empty, looped back.
fn loop_back() {
    port::out8(IER, 0);
    port::out8(FCR, FCR_FRESH);
    port::out8(MCR, MCR_LOOP | MCR_DTR_RTS);
    for register in [DATA, LSR, MSR, IIR] {
        port::in8(register);
    }
}

test!(identify, "The UART identifies as a 16550A, and as a 16450 with its FIFOs off.", || {
    with_uart(|watch| {
        // 8.5 and 8.6: IIR has bits 6 and 7 while FCR bit 0 is set.
        for (fcr, expected) in [(0, 0), (1, 0xc0), (0, 0), (FCR_FRESH, 0xc0)] {
            port::out8(FCR, fcr);
            watch.eq(
                "bits 6 and 7 of IIR after FCR was written",
                fcr,
                port::in8(IIR) & 0xc0,
                expected,
            );
        }
        watch.eq("IIR with no interrupt enabled", 0_u8, port::in8(IIR), 0xc1);
    });
});

test!(scratch, "The scratch register keeps all eight bits and means nothing.", || {
    with_uart(|watch| {
        let others = [IER, LCR, MCR].map(port::in8);
        for value in (0..8).map(|bit| 1_u8 << bit).chain([0, 0xff, 0x5a]) {
            port::out8(SCRATCH, value);
            watch.eq("scratch register", value, port::in8(SCRATCH), value);
        }
        for (register, before) in [IER, LCR, MCR].into_iter().zip(others) {
            watch.eq("another register", register, port::in8(register), before);
        }
    });
});

test!(registers, "IER, LCR and MCR read as written, in the bits that they have.", || {
    with_uart(|watch| {
        for value in [0, 5, 0xa, 0xf] {
            port::out8(IER, value);
            watch.eq("IER", value, port::in8(IER), value);
        }
        port::out8(IER, 0xf0);
        watch.eq("IER's upper half", 0xf0_u8, port::in8(IER), 0);
        for value in [0, 0x1b, 0x3f, 3] {
            port::out8(LCR, value);
            watch.eq("LCR", value, port::in8(LCR), value);
        }
        for value in [MCR_LOOP, 0x1f, 0x15, 0xb] {
            port::out8(MCR, value);
            watch.eq("MCR", value, port::in8(MCR), value);
        }
    });
});

test!(divisor, "With DLAB the divisor is there, without it the registers that it hides.", || {
    with_uart(|watch| {
        loop_back();
        port::out8(IER, IER_LINE);
        port::out8(LCR, LCR_DLAB | 3);
        port::out8(DATA, 0x34);
        port::out8(IER, 0x12);
        watch.eq("divisor, low", 0_u8, port::in8(DATA), 0x34);
        watch.eq("divisor, high", 0_u8, port::in8(IER), 0x12);
        watch.eq("LSR after bytes of the divisor", 0_u8, port::in8(LSR), LSR_IDLE);
        port::out8(LCR, 3);
        watch.eq("IER after the divisor was written", 0_u8, port::in8(IER), IER_LINE);
        port::out8(LCR, LCR_DLAB | 3);
        watch.eq("divisor, low, again", 0_u8, port::in8(DATA), 0x34);
        // A divisor that a guest on a host of any speed comes back from.
        port::out8(DATA, 1);
        port::out8(IER, 0);
    });
});

/// Waits for a byte to have come around.
fn ready() -> bool {
    time::wait_until(1_000_000, || port::in8(LSR) & LSR_READY != 0)
}

test!(
    loop_data,
    "Looped back, each byte that is sent is received, in order, and nothing else.",
    || {
        with_uart(|watch| {
            loop_back();
            for value in 0..=0xff_u8 {
                port::out8(DATA, value);
                watch.holds("a byte to come around", value, ready());
                watch.eq("the byte that came around", value, port::in8(DATA), value);
                watch.eq("LSR after it was read", value, port::in8(LSR) & 0x9f, 0);
            }
            // As strings: a FIFO full at once.
            for round in 0..4_u8 {
                let sent: [u8; 16] = core::array::from_fn(|i| (round * 16 + i as u8) ^ 0x5a);
                let mut received = [0; 16];
                port::out8_rep(DATA, &sent);
                // Sent at the line's pace on some hosts.
                time::wait_until(50_000, || port::in8(LSR) & LSR_IDLE == LSR_IDLE);
                port::in8_rep(DATA, &mut received);
                for (i, (seen, expected)) in received.into_iter().zip(sent).enumerate() {
                    watch.eq("a byte of a string", i as u32, seen, expected);
                }
                watch.eq("LSR after the FIFO was read", round, port::in8(LSR), LSR_IDLE);
            }
        });
    }
);

test!(overrun, "The 17th byte into a full FIFO is lost and told, the first 16 are kept.", || {
    with_uart(|watch| {
        loop_back();
        for value in 0..17_u8 {
            port::out8(DATA, 0x40 + value);
            time::wait_until(50_000, || port::in8(LSR) & LSR_IDLE == LSR_IDLE);
        }
        // Reading LSR has cleared what it told of the last byte, so one more is sent unread.
        port::out8(DATA, 0x7f);
        let lsr = port::in8(LSR);
        watch.eq("LSR after 18 bytes", lsr, lsr & 0x1f, LSR_READY | LSR_OVERRUN);
        watch.eq("LSR once more", 0_u8, port::in8(LSR) & 0x1f, LSR_READY);
        for value in 0..16_u8 {
            watch.eq("a byte of the full FIFO", value, port::in8(DATA), 0x40 + value);
        }
        watch.eq("LSR after 16 bytes were read", 0_u8, port::in8(LSR) & 0x1f, 0);
        // 8.5, bit 1: the receiver's FIFO is emptied.
        port::out8(DATA, 0x11);
        port::out8(FCR, 3);
        watch.eq("LSR after the FIFO was cleared", 0_u8, port::in8(LSR) & 0x1f, 0);
    });
});

// 8.8, bit 4, and 8.9: DTR, RTS, OUT1 and OUT2 come back as DSR, CTS, RI and DCD; bits 0, 1 and 3
// of MSR tell a change, bit 2 the end of a ring.
test!(modem_lines, "Looped back, MSR shows the lines of MCR, and tells each change once.", || {
    with_uart(|watch| {
        let lines = |mcr: u8| (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4;
        loop_back();
        port::out8(MCR, MCR_LOOP);
        port::in8(MSR);
        let mut before = 0;
        for mcr in [1, 3, 2, 6, 0, 0xf, 0xb, 0, 8, 4, 0, 0xf, 0] {
            port::out8(MCR, MCR_LOOP | mcr);
            let (was, is) = (lines(before), lines(mcr));
            let changed = was ^ is;
            // CTS, DSR, end of RI, DCD.
            let deltas = (changed & 0xb0 | changed & was & 0x40) >> 4;
            watch.eq("MSR after a change of MCR", mcr, port::in8(MSR), is | deltas);
            watch.eq("MSR once more", mcr, port::in8(MSR), is);
            before = mcr;
        }
    });
});

// 8.6, table IV: causes by priority, and what clears each.
test!(
    interrupt_causes,
    "IIR names the cause of highest priority, and each is cleared its way.",
    || {
        with_uart(|watch| {
            loop_back();
            watch.eq("IIR with nothing enabled", 0_u8, port::in8(IIR) & 0xf, 1);
            port::out8(IER, IER_THRE);
            watch.eq("IIR: transmitter empty", 0_u8, port::in8(IIR) & 0xf, 2);
            watch.eq("IIR after it told the empty transmitter", 0_u8, port::in8(IIR) & 0xf, 1);
            port::out8(IER, 0);
            // All causes at once: modem lines, data, and an overrun.
            port::out8(MCR, MCR_LOOP);
            for value in 0..18_u8 {
                port::out8(DATA, value);
                time::wait_until(50_000, || port::in8(LSR) & LSR_IDLE == LSR_IDLE);
            }
            port::out8(DATA, 0xaa);
            port::out8(IER, IER_RX | IER_THRE | IER_LINE | IER_MODEM);
            watch.eq("IIR: receiver line status first", 0_u8, port::in8(IIR) & 0xf, 6);
            port::in8(LSR);
            watch.eq("IIR: then received data", 0_u8, port::in8(IIR) & 0xf, 4);
            for _ in 0..16 {
                port::in8(DATA);
            }
            watch.eq("IIR: then the empty transmitter", 0_u8, port::in8(IIR) & 0xf, 2);
            watch.eq("IIR: then the modem's lines", 0_u8, port::in8(IIR) & 0xf, 0);
            port::in8(MSR);
            watch.eq("IIR: then none", 0_u8, port::in8(IIR) & 0xf, 1);
            // Writing THR takes back that it is empty, until it is once more.
            port::out8(DATA, 0x55);
            time::wait_until(50_000, || port::in8(LSR) & LSR_IDLE == LSR_IDLE);
            port::in8(DATA);
            watch.eq("IIR: empty after a byte was sent", 0_u8, port::in8(IIR) & 0xf, 2);
        });
    }
);

// 8.5: trigger levels; 8.11: data below the level tells itself after four character times.
test!(
    trigger_levels,
    "Received data interrupts at the level asked for, or after a time-out.",
    || {
        with_uart(|watch| {
            for (level, bytes) in [(0_u8, 1), (1, 4), (2, 8), (3, 14)] {
                loop_back();
                // Slow, so that the time-out is 4 * 10 bits of 9600 baud.
                port::out8(LCR, LCR_DLAB | 3);
                port::out8(DATA, 12);
                port::out8(LCR, 3);
                port::out8(FCR, FCR_FRESH | level << 6);
                port::out8(IER, IER_RX);
                for sent in 1..=bytes {
                    watch.holds(
                        "nothing at the trigger level yet",
                        sent,
                        port::in8(IIR) & 0xf != 4,
                    );
                    port::out8(DATA, 0x30 + sent);
                    time::wait_until(50_000, || port::in8(LSR) & LSR_IDLE == LSR_IDLE);
                }
                watch.eq("IIR at the trigger level", bytes, port::in8(IIR) & 0xf, 4);
                port::in8(DATA);
                if bytes > 1 {
                    let told = time::wait_until(1_000_000, || port::in8(IIR) & 0xf == 0xc);
                    watch.holds("a time-out for what is below the level", bytes, told);
                    // By the time that a busy host is back, it may have come again.
                    let mut tries = 0..bytes - 2;
                    let ended = loop {
                        let before = time::rdtsc_ordered();
                        port::in8(DATA);
                        if port::in8(IIR) & 0xf != 0xc {
                            break true;
                        }
                        let was_here = time::rdtsc_ordered() - before < time::tsc_hz() / 1000;
                        if was_here || tries.next().is_none() {
                            break false;
                        }
                    };
                    watch.holds("the time-out to end", bytes, ended);
                }
            }
        });
    }
);

static CAUSES: AtomicU32 = AtomicU32::new(0);

/// Notes IIR's cause, two bits a time, and what the line needs.
fn note(through: Through) {
    let cause = u32::from(port::in8(IIR) & 0xf);
    CAUSES.store(CAUSES.load(SeqCst) << 4 | cause, SeqCst);
    line::eoi(4, through);
}

test!(
    transmit_interrupt,
    "An empty transmitter interrupts by IRQ 4, through I/O APIC and PIC, and once for each byte.",
    || {
        for (through, vector) in [(Through::IoApic, 0x52), (Through::Pic, 0x60)] {
            let vector = line::connect(4, vector, Trigger::Edge, through);
            let handlers: [irq::Handler; 2] = [|_| note(Through::IoApic), |_| note(Through::Pic)];
            irq::handle(vector, handlers[usize::from(through == Through::Pic)]);
            CAUSES.store(0, SeqCst);
            with_uart(|watch| {
                let which = u32::from(vector);
                port::out8(IER, 0);
                port::in8(IIR);
                // OUT2 opens the gate to the interrupt controller.
                port::out8(MCR, MCR_DTR_RTS | MCR_OUT2);
                port::out8(IER, IER_THRE);
                watch.holds(
                    "an interrupt when enabled",
                    which,
                    irq::wait_for(vector, 1, 1_000_000),
                );
                for sent in 2..=4 {
                    port::out8(DATA, b'\n');
                    let came = irq::wait_for(vector, sent, 1_000_000);
                    watch.holds("an interrupt after a byte", sent, came);
                }
                irq::let_in(1000);
                watch.eq("interrupts", which, irq::count(vector) as u8, 4);
                port::out8(IER, 0);
            });
            check_eq!(CAUSES.load(SeqCst), 0x2222, "causes by IIR, through {through:?}");
            line::disconnect(4, through);
        }
    }
);

test!(
    out2_gate,
    "Without OUT2 the UART's interrupt does not reach IRQ 4, however it is enabled.",
    || {
        const VECTOR: u8 = 0x53;
        line::connect(4, VECTOR, Trigger::Edge, Through::IoApic);
        irq::handle(VECTOR, |_| note(Through::IoApic));
        with_uart(|watch| {
            port::out8(IER, 0);
            port::out8(MCR, MCR_DTR_RTS);
            port::out8(IER, IER_THRE);
            irq::let_in(2000);
            watch.eq("interrupts without OUT2", 0_u8, irq::count(VECTOR) as u8, 0);
            port::out8(MCR, MCR_DTR_RTS | MCR_OUT2);
            watch.holds("an interrupt with OUT2", 0_u8, irq::wait_for(VECTOR, 1, 1_000_000));
            port::out8(IER, 0);
        });
    }
);
