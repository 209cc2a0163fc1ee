//! The devices: QEMU's docs/specs/edu.rst and docs/specs/pci-testdev.rst.

use super::{EDU, TESTDEV, edu, function, read, write};
use payload_rt::pci::Function;
use payload_rt::*;

const PATIENCE: u64 = 1_000_000;

test!(edu_registers, "edu says what it is, is alive, and computes factorials.", || {
    let registers = function(EDU).bar(0);
    check_eq!(read(registers + edu::ID), edu::IDENTITY);
    for value in [0, 0x1234_5678, u32::MAX] {
        write(registers + edu::ALIVE, value);
        check_eq!(read(registers + edu::ALIVE), !value, "liveness of {value:#x}");
    }
    for (n, factorial) in [(0, 1), (1, 1), (2, 2), (5, 120), (12, 479_001_600)] {
        write(registers + edu::FACTORIAL, n);
        let done = time::wait_until(PATIENCE, || read(registers + edu::STATUS) & 1 == 0);
        check!(done, "the factorial of {n} takes more than a second");
        check_eq!(read(registers + edu::FACTORIAL), factorial, "the factorial of {n}");
    }
    // An interrupt follows if it is asked for; its cause is 1.
    check_eq!(read(registers + edu::CAUSES), 0, "causes");
    write(registers + edu::STATUS, 0x80);
    write(registers + edu::FACTORIAL, 3);
    check!(time::wait_until(PATIENCE, || read(registers + edu::CAUSES) == 1), "no cause");
    write(registers + edu::ACKNOWLEDGE, 1);
    check_eq!(read(registers + edu::CAUSES), 0, "causes acknowledged");
});

/// Moves `length` bytes; gives the causes that there are afterwards.
fn transfer(registers: u64, source: u64, destination: u64, length: u64, command: u32) -> u32 {
    check_ok!(mem::write(registers + edu::SOURCE, source));
    check_ok!(mem::write(registers + edu::DESTINATION, destination));
    check_ok!(mem::write(registers + edu::LENGTH, length));
    write(registers + edu::COMMAND, command | 1);
    let done = time::wait_until(PATIENCE, || read(registers + edu::COMMAND) & 1 == 0);
    check!(done, "a transfer of {length} bytes takes more than a second");
    read(registers + edu::CAUSES)
}

fn edu_master() -> (Function, u64) {
    let device = function(EDU);
    device.command(pci::MASTER, 0);
    (device, device.bar(0))
}

test!(edu_dma, "edu moves memory into its buffer and back, and tells when it is done.", || {
    let (_, registers) = edu_master();
    let (mut from, mut to) = (frames::alloc(), frames::alloc());
    for (i, byte) in from.bytes().iter_mut().enumerate() {
        *byte = (i * 7 + i / 256) as u8;
    }
    to.bytes().fill(0xee);
    for (at, length) in [(0, 4096), (100, 1), (4092, 4), (0x80, 0x100)] {
        let (source, inside) = (from.address() + at, edu::BUFFER + at);
        check_eq!(transfer(registers, source, inside, length, 0), 0, "causes without asking");
        let destination = to.address() + at;
        check_eq!(transfer(registers, inside, destination, length, 6), 0x100, "causes");
        write(registers + edu::ACKNOWLEDGE, 0x100);
        let range = at as usize..(at + length) as usize;
        check!(from.bytes()[range.clone()] == to.bytes()[range], "{length} bytes at {at} differ");
    }
    check!(from.bytes() == to.bytes(), "more was written than was asked for");
    from.free();
    to.free();
});

test!(
    edu_dma_refused,
    "What does not fit the buffer, or is no bus master's, moves nothing.",
    || {
        let (device, registers) = edu_master();
        let mut frame = frames::alloc();
        frame.bytes().fill(0x11);
        let memory = frame.address();
        check_eq!(transfer(registers, memory, edu::BUFFER, 4096, 0), 0);
        frame.bytes().fill(0xee);
        for (inside, length) in [(edu::BUFFER + 4093, 4), (edu::BUFFER - 1, 4), (edu::BUFFER, 4097)]
        {
            transfer(registers, inside, memory, length, 2);
            check!(frame.bytes().iter().all(|&b| b == 0xee), "{length} bytes from {inside:#x}");
        }
        device.command(0, pci::MASTER);
        transfer(registers, edu::BUFFER, memory, 4, 2);
        check!(frame.bytes().iter().all(|&b| b == 0xee), "written by what is no bus master");
        device.command(pci::MASTER, 0);
        transfer(registers, edu::BUFFER, memory, 4, 2);
        check_eq!(frame.bytes()[..5], [0x11, 0x11, 0x11, 0x11, 0xee], "as a bus master");
        frame.free();
    }
);

test!(
    testdev,
    "pci-testdev describes its tests in memory and in ports, and counts their writes.",
    || {
        let device = function(TESTDEV);
        let (memory, ports) = (device.bar(0), device.bar(1) as u16);
        check_eq!(device.read32(pci::BARS) & 1, 0, "base address 0 is memory");
        check_eq!(device.read32(pci::BARS + 4) & 1, 1, "base address 1 are ports");
        for test in 0..3 {
            check_ok!(mem::write(memory, test));
            check_eq!(check_ok!(mem::read::<u8>(memory + 1)), 1, "width of test {test} in memory");
            let at = memory + u64::from(read(memory + 4));
            let data = read(memory + 8) as u8;
            for _ in 0..3 {
                check_ok!(mem::write(at, data));
            }
            check_eq!(read(memory + 12), 3, "writes of test {test} in memory");

            port::out8(ports, test);
            check_eq!(port::in8(ports + 1), 1, "width of test {test} in ports");
            let at = ports + port::in32(ports + 4) as u16;
            let data = port::in32(ports + 8) as u8;
            port::out8(at, data);
            port::out8(at, data ^ 1);
            // The last test is about one value only.
            let counted = if test == 2 { 1 } else { 2 };
            check_eq!(port::in32(ports + 12), counted, "writes of test {test} in ports");
        }
        check_ok!(mem::write(memory, 3_u8));
        check_eq!(check_ok!(mem::read::<u8>(memory + 1)), 0, "there is no test 3");
    }
);
