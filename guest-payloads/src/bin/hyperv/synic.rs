//! The registers of the synthetic interrupt controller (TLFS, Virtual Interrupt Controller).

use crate::*;
use payload_rt::lab::{self, Rule, kind};
use payload_rt::{check_eq, fail, smp, test};

test!(
    synic_reset_values,
    "After a reset the controller is off, and its sources are masked.",
    || {
        check_eq!(read(SVERSION), 1, "the version");
        for msr in [SCONTROL, SIEFP, SIMP, EOM] {
            check_eq!(read(msr), 0, "MSR {msr:#x}");
        }
        for sint in 0..16 {
            check_eq!(read(SINT0 + sint), 1 << 16, "source {sint}");
        }
    }
);

test!(synic_version_is_fixed, "SVERSION cannot be written.", || {
    for value in [0, 1, 2] {
        refused(SVERSION, value);
    }
    check_eq!(read(SVERSION), 1);
});

test!(synic_registers_keep, "What is written to the controller's registers is read back.", || {
    let (messages, events) = (page(), page());
    for (msr, value) in [(SIMP, messages | 1), (SIEFP, events | 1), (SCONTROL, 1), (SIMP, messages)]
    {
        write(msr, value);
        check_eq!(read(msr), value, "MSR {msr:#x}");
    }
    for sint in 0..16 {
        let value = (0x40 + u64::from(sint)) | (u64::from(sint & 1) << 17);
        write(SINT0 + sint, value);
        check_eq!(read(SINT0 + sint), value, "source {sint}");
    }
});

// Vectors 0 to 15 are not for sources; one that is masked may have any.
test!(synic_vector_range, "A source that is not masked has a vector from 16 on.", || {
    for vector in 0..16 {
        refused(SINT0 + 3, vector);
        check_eq!(read(SINT0 + 3), 1 << 16, "the source");
        write(SINT0 + 4, 1 << 16 | vector);
        check_eq!(read(SINT0 + 4), 1 << 16 | vector);
    }
    for vector in [16, 0x7f, 0xff] {
        write(SINT0 + 3, vector);
        check_eq!(read(SINT0 + 3), vector);
    }
});

test!(synic_pages_begin_empty, "A message page and an event flags page begin as zeroes.", || {
    for msr in [SIMP, SIEFP] {
        let at = page();
        for offset in (0..4096).step_by(8) {
            put(at + offset, u64::MAX);
        }
        write(msr, at | 1);
        for offset in (0..4096).step_by(8) {
            check_eq!(word::<u64>(at + offset), 0, "MSR {msr:#x}, byte {offset}");
        }
    }
});

test!(synic_one_for_each, "Every virtual processor has a controller of its own.", || {
    let cpus = smp::start();
    check!(cpus >= 2, "{cpus} CPUs: the case must give the machine two");
    write(SINT0 + 5, 0x77);
    write(SCONTROL, 1);
    for cpu in 1..cpus {
        let other = smp::run_on(cpu, || (read(SINT0 + 5), read(SCONTROL)));
        check_eq!(other, (1 << 16, 0), "cpu {cpu}");
        smp::run_on(cpu, || write(SINT0 + 5, 0x78));
    }
    check_eq!((read(SINT0 + 5), read(SCONTROL)), (0x77, 1), "cpu 0");
});

// api.rst, KVM_EXIT_HYPERV_SYNIC.
test!(
    synic_writes_leave_the_guest,
    "Writes of SCONTROL, SIEFP and SIMP leave the guest, with all three.",
    || {
        let log = check_ok!(lab::record(&[Rule::on(kind::HYPERV)]));
        let (messages, events) = (page(), page());
        write(SCONTROL, 1);
        write(SIMP, messages | 1);
        write(SINT0 + 2, 0x55);
        write(SIEFP, events | 1);
        write(EOM, 0);
        check_ok!(log.stop());
        let of = |msr: u32, events: u64, messages: u64| {
            [kind::HYPERV_SYNIC, msr.into(), 1, events, messages]
        };
        let expected =
            [of(SCONTROL, 0, 0), of(SIMP, 0, messages | 1), of(SIEFP, events | 1, messages | 1)];
        check_eq!(log.count(), 3, "exits");
        for (at, words) in expected.into_iter().enumerate() {
            let Some(exit) = log.get(at as u64) else { fail!("no room") };
            check_eq!((exit.kind, exit.words), (kind::HYPERV, words), "exit {at}");
        }
    }
);
