//! Messages and events through connections, which the test device at port 0x3000 makes (TLFS,
//! Inter-Partition Communication). The VMM answers these hypercalls.

use crate::*;
use payload_rt::{check_eq, smp, test, time};

const SINT: u64 = 8;
const VECTOR: u8 = 0x70;
/// Connections: for messages, for events.
const MESSAGES: u32 = 0x21;
const EVENTS: u32 = 0x45;
/// A type that guests may use.
const KIND: u32 = 0x1234_5678;

/// An identity, a controller, and both connections to source 8 of this processor.
fn start() -> Synic {
    introduce();
    let synic = Synic::start();
    open(SINT, VECTOR);
    tell(command::CONNECT_MESSAGES, 0, SINT, MESSAGES);
    tell(command::CONNECT_EVENTS, 0, SINT, EVENTS);
    synic
}

/// HvPostMessage of one word.
fn post(connection: u32, value: u64) -> u64 {
    post_raw([connection, 0, KIND, 8], value)
}

fn post_raw(words: [u32; 4], value: u64) -> u64 {
    let input = page();
    for (at, word) in (input..).step_by(4).zip(words) {
        put(at, word);
    }
    put(input + 16, value);
    call(code::POST_MESSAGE, input, 0)
}

/// HvSignalEvent, fast.
fn signal(connection: u32) -> u64 {
    call(code::SIGNAL_EVENT | FAST, connection.into(), 0)
}

test!(message, "A message gets to its slot, whole, with one interrupt.", || {
    let synic = start();
    check_eq!(post(MESSAGES, 0x1122_3344_5566_7788), status::SUCCESS);
    expect_interrupts(VECTOR, 1);
    let slot = synic.slot(SINT);
    check_eq!(synic.kind(SINT), KIND, "type");
    check_eq!(word::<u32>(slot + 4), 8, "payload size, flags and reserved bytes");
    check_eq!(word::<u64>(slot + 16), 0x1122_3344_5566_7788, "payload");
    check_eq!(word::<u64>(slot + 24), 0, "behind it");
    for other in (0..16).filter(|&other| other != SINT) {
        check_eq!(synic.kind(other), 0, "the slot of source {other}");
    }
});

test!(message_waits, "A message waits for its slot, which says so, and comes with EOM.", || {
    let synic = start();
    check_eq!(post(MESSAGES, 1), status::SUCCESS);
    expect_interrupts(VECTOR, 1);
    check_eq!(post(MESSAGES, 2), status::SUCCESS, "a second one");
    irq::let_in(10 * SETTLE);
    check_eq!(irq::count(VECTOR), 1, "interrupts while the slot is taken");
    check_eq!((synic.flags(SINT), word::<u64>(synic.slot(SINT) + 16)), (1, 1), "flags, payload");
    synic.done(SINT);
    expect_interrupts(VECTOR, 2);
    check_eq!((synic.flags(SINT), word::<u64>(synic.slot(SINT) + 16)), (0, 2), "flags, payload");
    synic.done(SINT);
    irq::let_in(10 * SETTLE);
    check_eq!((irq::count(VECTOR), synic.kind(SINT)), (2, 0), "nothing more");
});

test!(no_third_message, "Where one message waits there is no room for another.", || {
    let synic = start();
    for (value, expected) in
        [(1, status::SUCCESS), (2, status::SUCCESS), (3, status::INSUFFICIENT_BUFFERS)]
    {
        check_eq!(post(MESSAGES, value), expected, "message {value}");
    }
    // Before the slot is free: two requests at once would be one interrupt.
    expect_interrupts(VECTOR, 1);
    synic.done(SINT);
    check!(irq::wait_for(VECTOR, 2, PATIENCE), "the waiting message does not come");
    check_eq!(word::<u64>(synic.slot(SINT) + 16), 2, "payload");
    check_eq!(post(MESSAGES, 4), status::SUCCESS, "there is room again");
});

test!(bad_messages, "What is no message is refused.", || {
    start();
    for (words, expected) in [
        ([MESSAGES + 1, 0, KIND, 8], status::INVALID_CONNECTION_ID),
        ([EVENTS, 0, KIND, 8], status::INVALID_CONNECTION_ID),
        // Types with bit 31 are the hypervisor's own, 0 is none; 240 bytes are the most.
        ([MESSAGES, 0, 1 << 31 | 1, 8], status::INVALID_PARAMETER),
        ([MESSAGES, 0, 0, 8], status::INVALID_PARAMETER),
        ([MESSAGES, 0, KIND, 241], status::INVALID_PARAMETER),
        ([MESSAGES, 0, KIND, 240], status::SUCCESS),
    ] {
        check_eq!(post_raw(words, 0), expected, "{words:x?}");
    }
    let input = page();
    for at in [input + 4, input + 1, input + 4096 - 248] {
        check_eq!(call(code::POST_MESSAGE, at, 0), status::INVALID_ALIGNMENT, "input at {at:#x}");
    }
    for bits in [1 << REPS, 1 << VARIABLE, FAST] {
        let result = call(bits | code::POST_MESSAGE, input, 0);
        check_eq!(result, status::INVALID_HYPERCALL_INPUT, "input bits {bits:#x}");
    }
});

test!(event, "An event sets its flag, with one interrupt until the flag is taken.", || {
    let synic = start();
    let flag = 1 << (EVENTS % 32);
    check_eq!(signal(EVENTS), status::SUCCESS);
    expect_interrupts(VECTOR, 1);
    check_eq!(synic.events(SINT, EVENTS.into()), flag, "the flags");
    check_eq!(signal(EVENTS), status::SUCCESS, "once more");
    irq::let_in(10 * SETTLE);
    check_eq!(irq::count(VECTOR), 1, "interrupts while the flag is set");
    put(synic.events + SINT * 256 + u64::from(EVENTS / 32 * 4), 0u32);
    check_eq!(signal(EVENTS), status::SUCCESS, "after it was taken");
    expect_interrupts(VECTOR, 2);
});

test!(event_by_address, "HvSignalEvent takes its parameter from memory, too.", || {
    let synic = start();
    let input = page();
    put(input + 8, u64::from(EVENTS));
    check_eq!(call(code::SIGNAL_EVENT, input + 8, 0), status::SUCCESS);
    expect_interrupts(VECTOR, 1);
    check_eq!(synic.events(SINT, EVENTS.into()), 1 << (EVENTS % 32), "the flags");
});

test!(event_alignment, "A parameter in memory that is not aligned is INVALID_ALIGNMENT.", || {
    start();
    let input = page();
    for at in [input + 12, input + 1] {
        check_eq!(call(code::SIGNAL_EVENT, at, 0), status::INVALID_ALIGNMENT, "input at {at:#x}");
    }
});

test!(bad_events, "An event to nobody, or with what is reserved, is refused.", || {
    start();
    let by = |parameter: u64| call(code::SIGNAL_EVENT | FAST, parameter, 0);
    check_eq!(by((EVENTS + 1).into()), status::INVALID_CONNECTION_ID, "to nobody");
    check_eq!(by(MESSAGES.into()), status::INVALID_CONNECTION_ID, "to messages");
    check_eq!(by(1 << 48 | u64::from(EVENTS)), status::INVALID_HYPERCALL_INPUT, "bit 48");
    // The connection has one flag, number 0.
    check_eq!(by(1 << 32 | u64::from(EVENTS)), status::INVALID_PARAMETER, "flag 1");
    for bits in [1 << REPS, 1 << VARIABLE] {
        let result = call(bits | FAST | code::SIGNAL_EVENT, EVENTS.into(), 0);
        check_eq!(result, status::INVALID_HYPERCALL_INPUT, "input bits {bits:#x}");
    }
    irq::let_in(SETTLE);
    check_eq!(irq::count(VECTOR), 0, "interrupts");
});

test!(
    connections_without_pages,
    "Without its pages, or switched off, a controller takes nothing.",
    || {
        let synic = start();
        for (msr, value, on) in [(SIMP, synic.messages, synic.messages | 1), (SCONTROL, 0, 1)] {
            write(msr, value);
            check_eq!(post(MESSAGES, 1), status::INVALID_SYNIC_STATE, "MSR {msr:#x} is {value:#x}");
            write(msr, on);
        }
        write(SIEFP, synic.events);
        check_eq!(signal(EVENTS), status::INVALID_SYNIC_STATE, "no event flags page");
        irq::let_in(SETTLE);
        check_eq!(irq::count(VECTOR), 0, "interrupts");
        write(SIEFP, synic.events | 1);
        check_eq!(post(MESSAGES, 1), status::SUCCESS, "with them again");
        check_eq!(signal(EVENTS), status::SUCCESS, "with them again");
    }
);

test!(connections_end, "A connection that is no more takes nothing.", || {
    start();
    tell(command::DISCONNECT_MESSAGES, 0, 0, EVENTS);
    check_eq!(signal(EVENTS), status::SUCCESS, "it is none for messages");
    tell(command::DISCONNECT_MESSAGES, 0, 0, MESSAGES);
    tell(command::DISCONNECT_EVENTS, 0, 0, EVENTS);
    check_eq!(post(MESSAGES, 1), status::INVALID_CONNECTION_ID);
    check_eq!(signal(EVENTS), status::INVALID_CONNECTION_ID);
});

test!(
    messages_other_processor,
    "Messages and events get to the processor of their connection.",
    || {
        irq::count_only(VECTOR);
        irq::count_only(VECTOR + 1);
        let cpus = smp::start();
        check!(cpus >= 2, "{cpus} CPUs: the case must give the machine two");
        introduce();
        let synic = smp::run_on(1, || {
            let synic = Synic::start();
            open(SINT, VECTOR);
            open(SINT + 1, VECTOR + 1);
            synic
        });
        tell(command::CONNECT_MESSAGES, 1, SINT, MESSAGES);
        tell(command::CONNECT_EVENTS, 1, SINT + 1, EVENTS);
        check_eq!(post(MESSAGES, 77), status::SUCCESS);
        check_eq!(signal(EVENTS), status::SUCCESS);
        for vector in [VECTOR, VECTOR + 1] {
            let came = time::wait_until(PATIENCE, || irq::count_on(1, vector) == 1);
            check!(came, "vector {vector:#x} does not come to cpu 1");
            check_eq!(irq::count(vector), 0, "vector {vector:#x} at cpu 0");
        }
        check_eq!(word::<u64>(synic.slot(SINT) + 16), 77, "payload");
        check_eq!(synic.events(SINT + 1, EVENTS.into()), 1 << (EVENTS % 32), "flags");
    }
);
