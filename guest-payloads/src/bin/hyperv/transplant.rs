//! A guest that goes on in another VM, with what it has of Hyper-V's (KVM_GET_MSRS and KVM_SET_MSRS).

use crate::*;
use payload_rt::lab;
use payload_rt::{check_eq, test};

const SINT: u64 = 6;
const VECTOR: u8 = 0x5a;
const MS: u64 = SECOND / 1000;

#[track_caller]
fn transplant() {
    check_ok!(lab::transplant(), "into another VM");
}

test!(registers_move, "The registers of controller, timers and crash move to another VM.", || {
    let (messages, events, assist) = (page(), page(), page());
    let far = now() + 1000 * SECOND;
    let values = [
        (GUEST_OS_ID, IDENTITY),
        (SCONTROL, 1),
        (SIMP, messages | 1),
        (SIEFP, events | 1),
        (SINT0, 0x41),
        (SINT0 + 7, 0x2_0042),
        (SINT0 + 15, 0x1_0043),
        (STIMER0_COUNT, far),
        (STIMER0_CONFIG, 0x7_0001),
        // Auto-enable, and over by now: it must not run again.
        (STIMER0_COUNT + 2, 1),
        (STIMER0_CONFIG + 2, 0x7_0008),
        (STIMER0_COUNT + 6, far),
        (STIMER0_CONFIG + 6, 0x7_0002),
        (CRASH_P0 + 4, 0x7777),
        (VP_ASSIST_PAGE, assist | 1),
        (REENLIGHTENMENT_CONTROL, 0x1_0053),
    ];
    for (msr, value) in values {
        write(msr, value);
    }
    // What the host may find in the pages it must leave there.
    put(messages + 16, 0x99u64);
    put(events + 64, 0x98u64);
    transplant();
    for (msr, value) in values {
        check_eq!(read(msr), value, "MSR {msr:#x}");
    }
    check_eq!((word::<u64>(messages + 16), word::<u64>(events + 64)), (0x99, 0x98), "the pages");
    check_eq!((read(SVERSION), read(SINT0 + 3)), (1, 1 << 16), "what was not written");
});

test!(calls_move, "Hypercalls are made as before in another VM.", || {
    introduce();
    transplant();
    check_eq!(read(GUEST_OS_ID), IDENTITY);
    check_eq!(call(code::NONE, 0, 0), status::INVALID_HYPERCALL_CODE);
    check_eq!(call(code::LONG_SPIN_WAIT | FAST, 1, 0), status::SUCCESS);
});

test!(timer_moves, "A timer that runs comes in another VM, when it is due.", || {
    Synic::start();
    open(SINT, VECTOR);
    let due = now() + 20 * MS;
    write(STIMER0_COUNT, due);
    write(STIMER0_CONFIG, SINT << 16 | 1);
    transplant();
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it does not come");
    check!(now() >= due, "it came before it was due");
    expect_interrupts(VECTOR, 1);
    check_eq!(read(STIMER0_CONFIG) & 1, 0, "enabled after it");
});

test!(periodic_timer_moves, "A periodic timer goes on in another VM.", || {
    apic::local().enable();
    irq::count_only(VECTOR);
    write(STIMER0_COUNT, MS);
    write(STIMER0_CONFIG, 1 << 12 | u64::from(VECTOR) << 4 | 3);
    check!(irq::wait_for(VECTOR, 3, PATIENCE), "it does not come");
    transplant();
    irq::reset();
    check!(irq::wait_for(VECTOR, 3, PATIENCE), "it does not come in the new VM");
    write(STIMER0_CONFIG, 0);
});

test!(time_moves, "The reference time goes on in another VM, by the counter and the page.", || {
    let at = page();
    write(REFERENCE_TSC, at | 1);
    let before = now();
    transplant();
    check_eq!(read(REFERENCE_TSC), at | 1);
    let after = now();
    check!((before..before + 60 * SECOND).contains(&after), "{before}, then {after}");
    if word::<u32>(at) == 0 {
        payload_rt::skip!("the host's clock is no TSC: the page says so by its sequence 0");
    }
    let by_page = || {
        let (scale, offset): (u64, u64) = (word(at + 8), word(at + 16));
        let tsc = payload_rt::time::rdtsc_ordered();
        (((u128::from(tsc) * u128::from(scale)) >> 64) as u64).wrapping_add(offset)
    };
    let (low, counter, high) = (by_page(), now(), by_page());
    check!(low <= counter + 2 && counter <= high + 2, "{low}, {counter}, {high}");
});

test!(connections_move, "Connections lead to the same source in another VM.", || {
    introduce();
    let synic = Synic::start();
    open(SINT, VECTOR);
    tell(command::CONNECT_MESSAGES, 0, SINT, 0x31);
    tell(command::CONNECT_EVENTS, 0, SINT, 0x32);
    let input = page();
    put(input, 0x31u32);
    put(input + 8, 0x55u32);
    put(input + 12, 8u32);
    let post = |value: u64| {
        put(input + 16, value);
        call(code::POST_MESSAGE, input, 0)
    };
    // One is in its slot, one waits.
    check_eq!([post(1), post(2)], [status::SUCCESS; 2]);
    transplant();
    expect_interrupts(VECTOR, 1);
    check_eq!(word::<u64>(synic.slot(SINT) + 16), 1, "payload");
    synic.done(SINT);
    expect_interrupts(VECTOR, 2);
    check_eq!(word::<u64>(synic.slot(SINT) + 16), 2, "payload of the one that waited");
    synic.done(SINT);
    check_eq!(call(code::SIGNAL_EVENT | FAST, 0x32, 0), status::SUCCESS);
    expect_interrupts(VECTOR, 3);
    check_eq!(synic.events(SINT, 0x32), 1 << (0x32 % 32), "flags");
});
