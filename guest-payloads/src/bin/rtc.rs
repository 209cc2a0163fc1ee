//! The real-time clock as a guest meets it, after Motorola's MC146818A datasheet; wired as a PC has
//! it: index at port 0x70, data at 0x71, interrupts on line 8, the century at 0x32.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use payload_rt::line::{self, Through, Trigger};
use payload_rt::time::{rdtsc_ordered, tsc_hz};
use payload_rt::*;

const A: u8 = 10;
const B: u8 = 11;
const C: u8 = 12;
const D: u8 = 13;
const CENTURY: u8 = 0x32;
const LINE: u8 = 8;

const A_UIP: u8 = 0x80;
/// Divider for 32.768 kHz; and held in reset.
const A_RUN: u8 = 0x20;
const A_RESET: u8 = 0x70;
const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 4;
const B_24H: u8 = 2;
const C_IRQ: u8 = 0x80;
/// Time between two periodic flags at rate 6, 1024 Hz; in nanoseconds, times 2^6.
const PERIOD: u64 = 62_500_000;

fn get(index: u8) -> u8 {
    port::out8(0x70, index);
    port::in8(0x71)
}

fn put(index: u8, value: u8) {
    port::out8(0x70, index);
    port::out8(0x71, value);
}

/// Stops the clock, sets it (second, minute, hour, weekday, day, month, year, century) in the format
/// of `mode`, and lets it go: the first update comes half a second later ("Divider bits").
fn set_clock(mode: u8, time: [u8; 8]) {
    put(B, B_SET | mode);
    put(A, A_RESET | 6);
    for (index, value) in [0, 2, 4, 6, 7, 8, 9, CENTURY].into_iter().zip(time) {
        put(index, value);
    }
    get(C);
    put(B, mode);
    put(A, A_RUN | 6);
}

fn clock() -> [u8; 8] {
    [0, 2, 4, 6, 7, 8, 9, CENTURY].map(get)
}

/// Waits until a flag of register C is set anew, and says between which values of the TSC that
/// was: what was set before `since` is known to have been read.
fn edge(flag: u8, since: u64) -> (u64, u64) {
    let (mut clear, mut set) = (since, 0);
    let came = time::wait_until(3_000_000, || {
        let asked = rdtsc_ordered();
        if get(C) & flag == 0 {
            clear = asked;
            return false;
        }
        set = rdtsc_ordered();
        true
    });
    check!(came, "no flag {flag:#x} within three seconds");
    (clear, set)
}

/// Waits for flags of register C; whether they came.
fn wait_flag(flag: u8, microseconds: u64) -> bool {
    time::wait_until(microseconds, || get(C) & flag != 0)
}

test!(sane, "The clock shows a valid date in BCD, and says that its battery is good.", || {
    check_eq!(get(D), 0x80, "register D: valid, and nothing else");
    check_eq!(get(B) & (B_BINARY | B_24H | B_SET), B_24H, "register B: BCD, 24 hours, running");
    check_eq!(get(A) & 0x7f, A_RUN | 6, "register A: 32.768 kHz, 1024 Hz");
    // An update in between changes more than one.
    let mut time = clock();
    while time != clock() {
        time = clock();
    }
    let limits = [(0, 59), (0, 59), (0, 23), (1, 7), (1, 31), (1, 12), (0, 99), (20, 21)];
    for (index, (byte, (low, high))) in time.into_iter().zip(limits).enumerate() {
        check!(byte & 0xf < 10 && byte >> 4 < 10, "field {index} is {byte:#x}, which is not BCD");
        let value = (byte >> 4) * 10 + (byte & 0xf);
        check!((low..=high).contains(&value), "field {index} is {byte:#x}");
    }
});

test!(ram, "CMOS RAM keeps what is written, byte by byte, and its index port is not read.", || {
    let places = 0x50..0x5b;
    for i in places.clone() {
        put(i, i ^ 0xa5);
    }
    for i in places {
        check_eq!(get(i), i ^ 0xa5, "byte {i:#x}");
    }
    // Bit 7 of the index masks NMIs and is no part of it.
    port::out8(0x70, 0x80 | 0x50);
    check_eq!(port::in8(0x71), 0x50 ^ 0xa5, "byte 0x50 with the NMI mask set");
    port::out8(0x70, 0x50);
});

test!(read_only, "Registers C and D and the UIP bit cannot be written.", || {
    put(D, 0);
    check_eq!(get(D), 0x80, "register D");
    get(C);
    put(B, B_24H | B_SET);
    put(C, 0xff);
    check_eq!(get(C) & 0x30, 0, "register C's alarm and update flags, with updates stopped");
    put(A, A_UIP | A_RUN | 6);
    check_eq!(get(A) & A_UIP, 0, "UIP with updates stopped");
});

test!(
    set_bit,
    "SET takes the update interrupt's enable away and lets the clock be written.",
    || {
        put(B, B_24H | B_UPDATE);
        check_eq!(get(B), B_24H | B_UPDATE, "register B");
        put(B, B_24H | B_UPDATE | B_SET);
        check_eq!(get(B), B_24H | B_SET, "register B after SET: UIE is cleared");
        for (index, value) in [(0, 0x42), (2, 0x17), (4, 0x05)] {
            put(index, value);
            check_eq!(get(index), value, "field {index}");
        }
    }
);

// "Time, calendar and alarm locations", table 3: the last second of a year in each format.
test!(
    new_year,
    "The last second of 2023 goes over into 2024, in the format that `mode=` says.",
    || {
        let pm = 0x80;
        let (what, mode, last, first) = match boot::argument("mode") {
            Some("bin24") => (
                "binary, 24 hours",
                B_BINARY | B_24H,
                [59, 59, 23, 1, 31, 12, 23, 20],
                [0, 0, 0, 2, 1, 1, 24, 20],
            ),
            Some("bin12") => (
                "binary, 12 hours",
                B_BINARY,
                [59, 59, pm | 11, 1, 31, 12, 23, 20],
                [0, 0, 12, 2, 1, 1, 24, 20],
            ),
            Some("bcd12") => (
                "BCD, 12 hours",
                0,
                [0x59, 0x59, pm | 0x11, 1, 0x31, 0x12, 0x23, 0x20],
                [0, 0, 0x12, 2, 1, 1, 0x24, 0x20],
            ),
            None => (
                "BCD, 24 hours",
                B_24H,
                [0x59, 0x59, 0x23, 1, 0x31, 0x12, 0x23, 0x20],
                [0, 0, 0, 2, 1, 1, 0x24, 0x20],
            ),
            Some(other) => panic!("mode={other}: it takes bin24, bin12, bcd12, or is left out"),
        };
        set_clock(mode, last);
        check_eq!(clock(), last, "{what}: as it was set");
        time::sleep(450_000);
        check!(wait_flag(B_UPDATE, 1_000_000), "{what}: no update within a second");
        let mut seen = clock();
        // A busy host may have let a few seconds pass.
        seen[0] = if seen[0] < 5 { 0 } else { seen[0] };
        check_eq!(seen, first, "{what}: after the update");
    }
);

// "Update cycle": UIP is set at least 244 us before the registers change.
test!(
    update_in_progress,
    "UIP is set for 244 us before an update and clear after it, and the time holds while it is clear.",
    || {
        set_clock(B_24H, [0x10, 0, 0, 1, 1, 1, 0x24, 0x20]);
        time::sleep(480_000);
        let least = tsc_hz() / 1_000_000 * 244;
        get(C);
        // A busy host may be away each time; mostly it is here for one of twelve seconds. Where it is
        // not, each update is still seen to come late enough for UIP.
        const PATIENCE: u64 = 12_000_000;
        // When it was last seen clear in this second: no update for 244 us from then on.
        let mut clear = None;
        let came = time::wait_until(PATIENCE, || {
            let asked = rdtsc_ordered();
            if get(A) & A_UIP != 0 {
                return clear.is_some();
            }
            if get(C) & B_UPDATE == 0 {
                clear = Some(asked);
            } else if let Some(clear) = clear.take() {
                // The host was away while UIP was set, which must have been long enough.
                let gone = rdtsc_ordered() - clear;
                check!(gone >= least, "an update {gone} ticks after UIP was clear, not {least}");
            }
            false
        });
        if !came {
            skip!("the host was away while UIP was set, in each of twelve seconds");
        }
        check!(time::wait_until(1_000_000, || get(A) & A_UIP == 0), "UIP does not end");
        let gone = rdtsc_ordered() - clear.unwrap_or(0);
        check!(gone >= least, "UIP ends {gone} ticks after it was clear, not {least}");
        check!(get(C) & B_UPDATE != 0, "UIP ended without an update");
        check!((0x11..=0x23).contains(&get(0)), "seconds after the update: {:#x}", get(0));
    }
);

test!(
    periodic_flags,
    "At 1024 Hz the periodic flag is set at the beat of the crystal, enabled or not.",
    || {
        put(B, B_24H);
        put(A, A_RUN | 6);
        let hz = tsc_hz();
        let start = rdtsc_ordered();
        get(C);
        let first = edge(B_PERIODIC, start);
        let mut since = first.0;
        let ns = |tsc: u64| (u128::from(tsc) * 1_000_000_000 / u128::from(hz)) as u64;
        for i in 0..40 {
            let (clear, set) = edge(B_PERIODIC, since);
            since = clear;
            // It is some number of periods behind the first, give or take what is not known.
            let least = ns(clear.saturating_sub(first.1));
            let most = ns(set - first.0);
            let slack = 2000 + most / 1000;
            let beats = (most + slack) * 64 / PERIOD;
            let beat = beats * PERIOD / 64;
            check!(
                beat + slack >= least && beats > 0,
                "flag {i}: {least} to {most} ns after the first, which is no multiple of 976562 ns"
            );
        }
    }
);

test!(rate_off, "With rate 0 there is no periodic flag; register C clears as it is read.", || {
    put(B, B_24H | B_SET);
    put(A, A_RUN | 3);
    check!(wait_flag(B_PERIODIC, 1_000_000), "no periodic flag at 8192 Hz");
    check!(wait_flag(B_PERIODIC, 1_000_000), "no second periodic flag at 8192 Hz");
    put(A, A_RUN);
    get(C);
    check_eq!(get(C), 0, "register C after it was read, with rate 0");
    time::delay(2000);
    check_eq!(get(C), 0, "register C 2 ms later");
});

static CAUSES: AtomicU32 = AtomicU32::new(0);
static SECONDS: AtomicU32 = AtomicU32::new(0);

/// Notes which flags register C had, and what second it was.
fn note(through: Through) {
    let flags = get(C);
    SECONDS.store(get(0).into(), SeqCst);
    CAUSES.fetch_or(flags.into(), SeqCst);
    line::eoi(LINE, through);
}

/// Leads line 8 to a vector whose handler notes register C.
fn connect(through: Through) -> u8 {
    let vector = line::connect(LINE, 0x58, Trigger::Edge, through);
    let handlers: [irq::Handler; 2] = [|_| note(Through::IoApic), |_| note(Through::Pic)];
    irq::handle(vector, handlers[usize::from(through == Through::Pic)]);
    CAUSES.store(0, SeqCst);
    get(C);
    vector
}

test!(
    periodic_interrupt,
    "The periodic interrupt comes by line 8, through I/O APIC and PIC, and not too often.",
    || {
        for through in [Through::IoApic, Through::Pic] {
            put(B, B_24H | B_SET);
            put(A, A_RUN | 6);
            let vector = connect(through);
            irq::reset();
            let start = rdtsc_ordered();
            put(B, B_24H | B_SET | B_PERIODIC);
            check!(irq::wait_for(vector, 8, 5_000_000), "8 interrupts by {through:?}");
            put(B, B_24H | B_SET);
            let count = u64::from(irq::count(vector));
            let ns = u128::from(rdtsc_ordered() - start) * 1_000_000_000 / u128::from(tsc_hz());
            let most = ns as u64 * 64 / PERIOD + 2;
            check!(count <= most, "{count} interrupts in {ns} ns by {through:?}");
            let causes = CAUSES.load(SeqCst) as u8;
            check_eq!(causes, C_IRQ | B_PERIODIC, "flags of register C in the handler");
            // Disabled, flags are set and nothing comes.
            get(C);
            // What was under way when it was disabled still comes.
            irq::let_in(3000);
            let before = irq::count(vector);
            irq::let_in(5000);
            check_eq!(irq::count(vector), before, "interrupts after PIE was cleared");
            line::disconnect(LINE, through);
        }
    }
);

test!(
    alarm,
    "The alarm interrupts in the second it names, with its flag; another second does not.",
    || {
        set_clock(B_24H, [0x29, 0x34, 0x12, 1, 1, 1, 0x24, 0x20]);
        // Any hour, minute 0x34, second 0x30: the next. Above 0xc0 stands for any.
        for (index, value) in [(1, 0x30), (3, 0x34), (5, 0xff)] {
            put(index, value);
        }
        let vector = connect(Through::IoApic);
        put(B, B_24H | B_ALARM);
        time::sleep(400_000);
        let early = irq::count(vector);
        if get(0) == 0x29 {
            check_eq!(early, 0, "interrupts before the alarm's second");
        }
        check!(irq::wait_for(vector, 1, 2_000_000), "no alarm");
        check_eq!(SECONDS.load(SeqCst), 0x30, "the second in which the alarm came");
        let causes = CAUSES.load(SeqCst) as u8;
        check_eq!(causes & (C_IRQ | B_ALARM), C_IRQ | B_ALARM, "flags of register C");
        // An alarm a minute off leaves the next second alone: only the update's flag is set.
        put(B, B_24H | B_ALARM | B_SET);
        set_clock(B_24H | B_ALARM, [0x29, 0x35, 0x12, 1, 1, 1, 0x24, 0x20]);
        irq::reset();
        time::sleep(450_000);
        check!(wait_flag(B_UPDATE, 1_000_000), "no update within a second");
        check_eq!(irq::count(vector), 0, "interrupts in a second that is not the alarm's");
    }
);

test!(
    second,
    "A second of the clock is a second of the TSC, from one update interrupt to the next.",
    || {
        set_clock(B_24H, [0, 0, 0, 1, 1, 1, 0x24, 0x20]);
        let vector = connect(Through::IoApic);
        // Polled close to where it is due, so that both bounds are.
        let update = |early: u64| {
            time::sleep(early);
            let since = rdtsc_ordered();
            get(C);
            edge(B_UPDATE, since)
        };
        let first = update(490_000);
        let last = update(980_000);
        let hz = tsc_hz();
        let (least, most) = (last.0.saturating_sub(first.1), last.1 - first.0);
        let slack = hz / 1000;
        // If the host was away for it, a number of seconds.
        let seconds = (most + slack) / hz;
        check!(
            seconds > 0 && least <= seconds * hz + slack,
            "{least} to {most} ticks of {hz} Hz from one update to the next"
        );
        check_eq!(irq::count(vector), 0, "interrupts that nobody enabled");
    }
);
