//! Base addresses: PCI Local Bus Specification 3.0, 6.2.5.1; the command register, 6.2.2.

use super::{EDU, TESTDEV, edu, function, read, write};
use payload_rt::*;

/// Places with nothing on them.
const MEMORY: u32 = 0xd000_0000;
const PORTS: u32 = 0x5000;

test!(sizing, "All ones in a base address give its length back, and leave no trace.", || {
    let (edu, testdev) = (function(EDU), function(TESTDEV));
    let before = [edu.read32(pci::BARS), testdev.read32(pci::BARS), testdev.read32(pci::BARS + 4)];
    check_eq!(edu.bar_length(0), 1 << 20, "edu's memory");
    check_eq!(testdev.bar_length(0), 4096, "pci-testdev's memory");
    check_eq!(testdev.bar_length(1), 256, "pci-testdev's ports");
    for n in 1..6 {
        check_eq!(edu.bar_length(n), 0, "edu's base address {n}");
    }
    let after = [edu.read32(pci::BARS), testdev.read32(pci::BARS), testdev.read32(pci::BARS + 4)];
    check_eq!(after, before);
    // Bits below the length do not exist: a base lies at a multiple of it.
    edu.set_bar(0, MEMORY | 0xf_ffff);
    check_eq!(edu.read32(pci::BARS), MEMORY, "low bits of edu's memory");
    testdev.set_bar(1, PORTS | 0xff);
    check_eq!(testdev.read32(pci::BARS + 4), PORTS | 1, "low bits of pci-testdev's ports");
});

test!(
    memory_moves,
    "What a memory base address claims answers there at once, and no longer where it was.",
    || {
        let device = function(EDU);
        let first = device.bar(0);
        check_eq!(read(first + edu::ID), edu::IDENTITY, "where firmware put it");
        let mut before = first;
        for place in [MEMORY, 0xfd00_0000, MEMORY + (1 << 20), first as u32] {
            write(before + edu::ALIVE, !place);
            device.set_bar(0, place);
            let place = u64::from(place);
            check_eq!(read(place + edu::ID), edu::IDENTITY, "at {place:#x}");
            check_eq!(u64::from(read(place + edu::ALIVE)), place, "the same device at {place:#x}");
            check_eq!(read(before + edu::ID), u32::MAX, "at {before:#x}, where it was");
            before = place;
        }
    }
);

test!(
    ports_move,
    "What a port base address claims answers there at once, and no longer where it was.",
    || {
        let device = function(TESTDEV);
        let mut before = device.bar(1) as u16;
        for place in [PORTS as u16, 0x6f00, 0xff00] {
            device.set_bar(1, place.into());
            port::out8(place, 1);
            check_eq!(port::in16(place), 0x101, "the test and its width at {place:#x}");
            check_eq!(port::in32(place + 4), 129, "where the test's access goes, at {place:#x}");
            check_eq!(port::in16(before), u16::MAX, "at {before:#x}, where it was");
            before = place;
        }
    }
);

test!(
    decoding,
    "The command register switches memory and ports on and off, each for itself.",
    || {
        let device = function(TESTDEV);
        let (memory, ports) = (device.bar(0), device.bar(1) as u16);
        check_ok!(mem::write(memory, 0_u8));
        port::out8(ports, 0);
        for command in [0, pci::IO, pci::MEMORY, pci::IO | pci::MEMORY] {
            device.write16(pci::COMMAND, command);
            check_eq!(device.read16(pci::COMMAND), command, "the command register");
            let [there, absent] = [0x100, 0xffff];
            let expected = if command & pci::MEMORY != 0 { there } else { absent };
            check_eq!(check_ok!(mem::read::<u16>(memory)), expected, "memory with {command:#x}");
            let expected = if command & pci::IO != 0 { there } else { absent };
            check_eq!(port::in16(ports), expected, "ports with {command:#x}");
            check_eq!((device.bar(0), device.bar(1)), (memory, ports.into()), "the addresses stay");
        }
        // What has no ports has no bit for them.
        let device = function(EDU);
        device.write16(pci::COMMAND, 0xffff);
        check_eq!(device.read16(pci::COMMAND), pci::MEMORY | pci::MASTER | pci::INTX_DISABLE);
    }
);

test!(
    overlap,
    "Of two functions at one place one answers, and the other again when it is alone.",
    || {
        // The specification leaves open who; that both take part must not be seen.
        let (first, second) = (function(EDU), function(TESTDEV));
        let (edu_at, testdev_at) = (first.bar(0) as u32, second.bar(0) as u32);
        check_ok!(mem::write(u64::from(testdev_at), 2_u8));
        let alone = read(testdev_at.into());
        second.set_bar(0, edu_at);
        let answers = [0; 4].map(|_| read(edu_at.into()));
        check!(answers[0] == edu::IDENTITY || answers[0] == alone, "a mixture: {:#x}", answers[0]);
        check_eq!(answers, [answers[0]; 4], "who answers changes");
        check_eq!(
            read(u64::from(edu_at) + 0x1000 + edu::ALIVE),
            u32::MAX,
            "behind the smaller one"
        );
        second.set_bar(0, testdev_at);
        check_eq!(
            (read(edu_at.into()), read(testdev_at.into())),
            (edu::IDENTITY, alone),
            "apart again"
        );
    }
);

test!(chips_stay, "A base address over the chips of the board takes nothing from them.", || {
    let device = function(TESTDEV);
    device.set_bar(1, 0xc00);
    check_eq!(device.read32(pci::ID), 0x0005_1b36, "the configuration data");
    check_eq!(port::in32(pci::ADDRESS), pci::ENABLE | u32::from(device.0) << 8, "its address");
    device.set_bar(1, 0x0300);
    // The serial port's scratch register (0x3ff), and beside it the function's own.
    port::out8(0x3ff, 0x5a);
    check_eq!(port::in8(0x3ff), 0x5a, "the serial port");
    port::out8(0x300, 0);
    check_eq!(port::in16(0x300), 0x100, "the function beside it");
});
