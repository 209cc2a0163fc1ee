//! What an exit costs, as the guest sees it: each test makes one kind of exit over and over, takes the
//! time before and after each, and tells the least, the median and the most of them.
//!
//! Where a tick is an instruction of the host (`cargo xtask bench exact`), those are exact. With `bare=1`
//! on the command line nobody answers the exits, so what is read is not looked at.
//!
//! Writes to the port of POST codes say where the measured exits begin and end.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::hint::black_box;

use payload_rt::exits::{BEGIN, CMDLINE, COLD, END, FENCE, MOST, NUMBER};
use payload_rt::time::rdtsc;
use payload_rt::*;

/// A register that is claimed and does nothing: the scratch register of the first serial port.
const CLAIMED: u16 = 0x3ff;
/// A port that is nobody's.
const UNCLAIMED: u16 = 0x1;
/// The test device's latch.
const LATCH: u16 = 0xe0;
/// An address that is nobody's.
const NOWHERE: u64 = 0xfed8_0000;

/// Measures `exit`, and tells.
#[inline(always)]
fn measure(exit: impl Fn()) {
    let exits = boot::number(CMDLINE).unwrap_or(NUMBER as u64) as usize;
    if exits == 0 || exits > MOST {
        report::error(format_args!("{CMDLINE}={exits}: it is 1 to {MOST}"));
    }
    let mut ticks = [0u64; MOST + COLD];
    let ticks = &mut ticks[..exits + COLD];
    port::out8(FENCE, BEGIN);
    for tick in ticks.iter_mut() {
        let before = rdtsc();
        exit();
        *tick = rdtsc().wrapping_sub(before);
    }
    port::out8(FENCE, END);
    let ticks = &mut ticks[COLD..];
    ticks.sort_unstable();
    report::value("ticks_least", ticks[0]);
    report::value("ticks_median", ticks[ticks.len() / 2]);
    report::value("ticks_most", ticks[ticks.len() - 1]);
}

/// Whether exits are answered.
fn answered() -> bool {
    boot::number("bare").is_none()
}

test!(nothing, "What it costs to take the time twice.", || measure(|| {}));

test!(port_read, "A byte read from a register that is claimed.", || {
    port::out8(CLAIMED, 0x5a);
    measure(|| {
        black_box(port::in8(CLAIMED));
    });
    check!(!answered() || port::in8(CLAIMED) == 0x5a, "the register does not keep what is written");
});

test!(port_write, "A byte written to a register that is claimed.", || {
    measure(|| port::out8(CLAIMED, 0xa5));
    check!(!answered() || port::in8(CLAIMED) == 0xa5, "the register does not keep what is written");
});

test!(port_read_wide, "Four bytes read from a register that is claimed.", || {
    testdev::require();
    port::out32(LATCH, 0x1234_5678);
    measure(|| {
        black_box(port::in32(LATCH));
    });
    check!(!answered() || port::in32(LATCH) == 0x1234_5678, "the latch does not keep");
});

test!(port_read_unclaimed, "A byte read from a port that is nobody's.", || {
    measure(|| {
        black_box(port::in8(UNCLAIMED));
    });
    check!(!answered() || port::in8(UNCLAIMED) == 0xff, "the port is somebody's");
});

test!(port_write_unclaimed, "A byte written to a port that is nobody's.", || {
    measure(|| port::out8(UNCLAIMED, 0));
    check!(!answered() || port::in8(UNCLAIMED) == 0xff, "the port is somebody's");
});

test!(
    port_string,
    "Sixteen bytes written to a claimed register by one string instruction.",
    || {
        let bytes = [0x3c; 16];
        measure(|| port::out8_rep(CLAIMED, black_box(&bytes)));
        check!(
            !answered() || port::in8(CLAIMED) == 0x3c,
            "the register does not keep what is written"
        );
    }
);

test!(mmio_read, "Four bytes read from a device's memory.", || {
    testdev::require();
    check!(mem::write(testdev::MEMORY, 0x8765_4321u32).is_ok());
    measure(|| {
        black_box(mem::read::<u32>(testdev::MEMORY).is_ok());
    });
    check!(!answered() || mem::read(testdev::MEMORY) == Ok(0x8765_4321u32), "it does not keep");
});

test!(mmio_write, "Four bytes written to a device's memory.", || {
    testdev::require();
    measure(|| {
        black_box(mem::write(testdev::MEMORY, 0x0bad_cafeu32).is_ok());
    });
    check!(!answered() || mem::read(testdev::MEMORY) == Ok(0x0bad_cafeu32), "it does not keep");
});

test!(mmio_read_unclaimed, "Four bytes read from an address that is nobody's.", || {
    measure(|| {
        black_box(mem::read::<u32>(NOWHERE).is_ok());
    });
    check!(!answered() || mem::read(NOWHERE) == Ok(u32::MAX), "the address is somebody's");
});

test!(cpuid_leaf, "CPUID, which KVM answers itself.", || {
    measure(|| {
        black_box(cpuid::leaf(0, 0));
    });
});
