//! Configuration mechanism 1: PCI Local Bus Specification 3.0, 3.2.2.3.2, and the header of 6.1.

use super::{EDU, TESTDEV, function};
use payload_rt::pci::{self, Function};
use payload_rt::*;

const HOST: Function = Function(0);

test!(address, "The configuration address takes dwords only, and its reserved bits are 0.", || {
    for value in [u32::MAX, 0x8000_0000, 0x8012_3454, 0] {
        port::out32(pci::ADDRESS, value);
        check_eq!(port::in32(pci::ADDRESS), value & 0x80ff_fffc, "after {value:#x}");
    }
    port::out32(pci::ADDRESS, 0x8000_1234);
    // Accesses of other widths are not its own; 0xcf9 is the reset control, so no byte goes there.
    port::out8(pci::ADDRESS, 0x55);
    port::out8(pci::ADDRESS + 3, 0);
    port::out16(pci::ADDRESS + 2, 0xffff);
    check_eq!(port::in32(pci::ADDRESS), 0x8000_1234, "after a byte and a word");
});

test!(enable, "Without the enable bit the data register is an ordinary port.", || {
    port::out32(pci::ADDRESS, pci::ENABLE);
    let there = port::in32(pci::DATA);
    check!(there != u32::MAX, "no host bridge");
    port::out32(pci::ADDRESS, 0);
    check_eq!(port::in32(pci::DATA), u32::MAX, "without the enable bit");
    check_eq!(port::in8(pci::DATA + 2), 0xff, "a byte of it");
});

test!(host_bridge, "Device 0 of bus 0 is a host bridge.", || {
    check_eq!(HOST.read32(pci::CLASS) >> 8, 0x06_0000, "its class");
    check_eq!(HOST.read32(pci::ID), 0x1237_8086, "its vendor and device");
    check_eq!(HOST.read8(0xe) & 0x7f, 0, "its header's type");
});

test!(
    widths,
    "Bytes, words and dwords of the data register are the same configuration space.",
    || {
        for function in [HOST, function(EDU), function(TESTDEV)] {
            for at in (0..64).step_by(4) {
                let dword = function.read32(at);
                for i in 0..4 {
                    let byte = (dword >> (8 * i)) as u8;
                    check_eq!(function.read8(at + i), byte, "{function:?}, byte {:#x}", at + i);
                }
                for i in 0..3 {
                    let word = (dword >> (8 * i)) as u16;
                    check_eq!(function.read16(at + i), word, "{function:?}, word at {:#x}", at + i);
                }
            }
        }
        // Byte enables: what is not written stays (3.2.2.3.1).
        let edu = function(EDU);
        edu.write32(pci::LINE, 0);
        edu.write8(pci::LINE, 0x5a);
        edu.write8(pci::LINE + 1, 0xff);
        check_eq!(edu.read16(pci::LINE), 0x015a, "line and pin");
    }
);

test!(absent, "Where no function is, reads give all ones and writes are lost.", || {
    let mut there = 0;
    for function in pci::all() {
        if function.read16(pci::ID) != 0xffff {
            there += 1;
            continue;
        }
        function.write32(pci::BARS, 0);
        for at in [0, 4, 0x10, 0x3c, 0xfc] {
            check_eq!(function.read32(at), u32::MAX, "{function:?} at {at:#x}");
        }
    }
    check_eq!(there, 3, "functions on bus 0");
    for bus in [1_u32, 0x80, 0xff] {
        port::out32(pci::ADDRESS, pci::ENABLE | bus << 16);
        check_eq!(port::in32(pci::DATA), u32::MAX, "bus {bus}");
    }
});

test!(read_only, "What a function is cannot be written.", || {
    for function in [HOST, function(EDU), function(TESTDEV)] {
        for at in [pci::ID, pci::CLASS, 0x28, 0x2c, 0x30, pci::CAPABILITIES, 0x38] {
            let before = function.read32(at);
            for value in [!before, 0, u32::MAX] {
                function.write32(at, value);
                check_eq!(function.read32(at), before, "{function:?} at {at:#x} after {value:#x}");
            }
        }
    }
});

test!(
    capabilities,
    "edu has a list of capabilities with messages in it; others have none.",
    || {
        let edu = function(EDU);
        check_eq!(edu.read16(pci::STATUS) & 0x10, 0x10, "edu's status says that there is a list");
        check!(edu.capability(pci::MSI).is_some(), "edu has no MSI capability");
        for function in [HOST, function(TESTDEV)] {
            check_eq!(function.read16(pci::STATUS) & 0x10, 0, "{function:?} has a list");
            check_eq!(function.read8(pci::CAPABILITIES), 0, "{function:?} has a pointer");
        }
    }
);
