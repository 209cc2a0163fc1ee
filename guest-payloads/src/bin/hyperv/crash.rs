//! Crash and reset by MSRs (TLFS, Partition Properties), and how KVM tells its VMM of them (api.rst,
//! KVM_EXIT_SYSTEM_EVENT).

use crate::*;
use payload_rt::lab::{self, Rule, kind};
use payload_rt::{fail, test};

/// Bit of CRASH_CTL: tell the hypervisor.
const NOTIFY: u64 = 1 << 63;

test!(
    crash_registers,
    "The crash registers keep what is written; CTL says what can be told.",
    || {
        check_eq!(read(CRASH_CTL), NOTIFY, "what can be told");
        for index in 0..5 {
            check_eq!(read(CRASH_P0 + index), 0, "word {index} after a reset");
            write(CRASH_P0 + index, 0x1111_2222_3333_4444 + u64::from(index));
        }
        for index in 0..5 {
            check_eq!(
                read(CRASH_P0 + index),
                0x1111_2222_3333_4444 + u64::from(index),
                "word {index}"
            );
        }
    }
);

test!(no_crash, "CRASH_CTL without its notify bit tells nobody.", || {
    for value in [0, 1, 1 << 62] {
        write(CRASH_CTL, value);
        check_eq!(read(CRASH_CTL), NOTIFY, "what can be told, after {value:#x}");
    }
});

test!(crash_is_told, "A crash is told as a system event, and the guest can go on.", || {
    let log = check_ok!(lab::record(&[Rule::on(kind::SYSTEM_EVENT)]));
    write(CRASH_P0, 0xdead);
    write(CRASH_CTL, NOTIFY);
    check_ok!(log.stop());
    check_eq!(log.count(), 1);
    let Some(event) = log.get(0) else { fail!("no room") };
    // KVM_SYSTEM_EVENT_CRASH.
    check_eq!(event.words[0], 3, "its type");
    check_eq!(lab::msr(CRASH_P0), Ok(Some(0xdead)), "its first word, for the host");
});

test!(crash_ends, "A crash ends the machine.", || {
    for index in 0..5 {
        write(CRASH_P0 + index, 0xc0de_0000 + u64::from(index));
    }
    write(CRASH_CTL, NOTIFY);
    fail!("the guest goes on");
});

test!(reset, "A write of 1 to RESET resets the machine.", || {
    check_eq!(read(RESET), 0, "RESET");
    for value in [0, 2] {
        write(RESET, value);
    }
    write(RESET, 1);
    fail!("the guest goes on");
});
