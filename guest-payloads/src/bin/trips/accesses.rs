//! Accesses: ports, memory of devices, and memory that is not there yet.

use core::hint::black_box;

use payload_rt::testdev::MEMORY;
use payload_rt::{check, check_eq, frames, mem, port, rounds::PAGES, rounds::PORT, test, testdev};

use crate::rounds;

/// A register that is claimed and does nothing: the scratch register of the first serial port.
const SCRATCH: u16 = 0x3ff;
/// A port that is nobody's.
const UNCLAIMED: u16 = 0x1;
/// The test device's latch, of four bytes.
const LATCH: u16 = 0xe0;
/// An address that is nobody's.
const NOWHERE: u64 = 0xfed8_0000;

test!(nothing, "A turn of the loop that all the others are made in.", || {
    let mut turns = 0u32;
    let all = rounds(|| turns = black_box(turns).wrapping_add(1));
    check_eq!(turns, all);
});

macro_rules! ports {
    ($($in:ident $out:ident $read:ident $write:ident $type:ty, $bytes:literal;)*) => {$(
        test!($in, $bytes, || {
            testdev::require();
            port::out32(LATCH, 0x1234_5678);
            rounds(|| {
                black_box(port::$read(LATCH));
            });
            check_eq!(port::$read(LATCH), 0x1234_5678u32 as $type);
        });

        test!($out, $bytes, || {
            testdev::require();
            port::out32(LATCH, 0);
            rounds(|| port::$write(LATCH, 0x8765_4321u32 as $type));
            check_eq!(port::in32(LATCH), u32::from(0x8765_4321u32 as $type));
        });
    )*};
}
ports! {
    in_8 out_8 in8 out8 u8, "A byte of a port that is claimed.";
    in_16 out_16 in16 out16 u16, "Two bytes of a port that is claimed.";
    in_32 out_32 in32 out32 u32, "Four bytes of a port that is claimed.";
}

test!(in_unclaimed, "A byte read from a port that is nobody's.", || {
    rounds(|| {
        black_box(port::in8(UNCLAIMED));
    });
    check_eq!(port::in8(UNCLAIMED), 0xff);
});

test!(out_unclaimed, "A byte written to a port that is nobody's.", || {
    rounds(|| port::out8(UNCLAIMED, 0));
    check_eq!(port::in8(UNCLAIMED), 0xff);
});

test!(out_string, "Sixteen bytes written to a port by one string instruction.", || {
    let bytes = [0x3c; 16];
    port::out8(SCRATCH, 0);
    rounds(|| port::out8_rep(SCRATCH, black_box(&bytes)));
    check_eq!(port::in8(SCRATCH), 0x3c);
});

macro_rules! memory {
    ($($read:ident $write:ident $type:ty, $bytes:literal;)*) => {$(
        test!($read, $bytes, || {
            testdev::require();
            check!(mem::write(MEMORY, 0x1122_3344_5566_7788u64).is_ok());
            rounds(|| {
                black_box(mem::read::<$type>(MEMORY).is_ok());
            });
            check_eq!(mem::read::<$type>(MEMORY), Ok(0x1122_3344_5566_7788u64 as $type));
        });

        test!($write, $bytes, || {
            testdev::require();
            check!(mem::write(MEMORY, 0u64).is_ok());
            rounds(|| {
                black_box(mem::write(MEMORY, 0x8877_6655_4433_2211u64 as $type).is_ok());
            });
            let written = u64::from(0x8877_6655_4433_2211u64 as $type);
            check_eq!(mem::read::<u64>(MEMORY), Ok(written));
        });
    )*};
}
memory! {
    read_8 write_8 u8, "A byte of a device's memory.";
    read_16 write_16 u16, "Two bytes of a device's memory.";
    read_32 write_32 u32, "Four bytes of a device's memory.";
    read_64 write_64 u64, "Eight bytes of a device's memory.";
}

test!(read_unclaimed, "Four bytes read from an address that is nobody's.", || {
    rounds(|| {
        black_box(mem::read::<u32>(NOWHERE).is_ok());
    });
    check_eq!(mem::read(NOWHERE), Ok(u32::MAX));
});

test!(write_unclaimed, "Four bytes written to an address that is nobody's.", || {
    rounds(|| {
        black_box(mem::write(NOWHERE, 0u32).is_ok());
    });
    check_eq!(mem::read(NOWHERE), Ok(u32::MAX));
});

test!(absent, "A page is touched that the host has to find memory for.", || {
    let memory = frames::alloc_range(PAGES.into(), frames::PAGE);
    // Whoever asks for rounds takes it away before each.
    port::out32(PORT, memory as u32);
    let mut next = 0u64;
    let all = rounds(|| {
        black_box(mem::write(memory + next % u64::from(PAGES) * frames::PAGE, 0x5au8).is_ok());
        next += 1;
    });
    check!(all != 0, "no page was touched");
    check_eq!(mem::read::<u8>(memory + (next - 1) % u64::from(PAGES) * frames::PAGE), Ok(0x5a));
});
