//! The small devices of the board as a guest meets them: fw_cfg, keyboard controller, PM1 block,
//! POST port, port 0x92, the test device's interrupt lines, and every way to reset and switch off.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use payload_rt::line::{self, Through, Trigger};
use payload_rt::*;

/// fw_cfg (QEMU's specification "Firmware Configuration (fw_cfg) Device"): selector, data, and the
/// DMA address register in two big-endian halves.
const FW_SELECT: u16 = 0x510;
const FW_DATA: u16 = 0x511;
const FW_DMA: u16 = 0x514;

/// Reads the start of fw_cfg item `key` with one `rep ins`.
fn fw_item<const N: usize>(key: u16) -> [u8; N] {
    let mut bytes = [0; N];
    port::out16(FW_SELECT, key);
    port::in8_rep(FW_DATA, &mut bytes);
    bytes
}

test!(fw_cfg_items, "fw_cfg has its signature, says it can DMA, and knows CPUs and RAM.", || {
    check_eq!(fw_item(0), *b"QEMU", "the signature");
    let id = u32::from_le_bytes(fw_item(1));
    check_eq!(id & 3, 3, "features: traditional interface and DMA");
    let cpus = u16::from_le_bytes(fw_item(5));
    if let Some(expected) = boot::number("cpus") {
        check_eq!(u64::from(cpus), expected, "CPUs");
    }
    let count = smp::start();
    check_eq!(usize::from(cpus), count, "CPUs by fw_cfg, and those that came up");
    let ram = u64::from_le_bytes(fw_item(3));
    let regions = boot::info().regions().iter();
    let mapped: u64 = regions.filter(|r| r.kind == boot::Kind::Ram).map(|r| r.len).sum();
    // The map leaves out what lies between 640 KiB and 1 MiB.
    check!(ram >= mapped && ram - mapped <= 1 << 20, "{ram:#x} bytes, {mapped:#x} in the map");
});

test!(
    fw_cfg_reading,
    "A fw_cfg item reads in order, then zeroes, and from its start anew.",
    || {
        check_eq!(fw_item(0), *b"QEMU\0\0\0\0", "beyond an item's end");
        port::out16(FW_SELECT, 0);
        check_eq!([port::in8(FW_DATA), port::in8(FW_DATA)], *b"QE", "by single reads");
        check_eq!(fw_item(0), *b"QEMU", "selected again in the middle");
        check_eq!(fw_item::<8>(0x1f), [0; 8], "an item that is not there");
        port::out8(FW_DATA, 0x55);
        check_eq!(fw_item(0), *b"QEMU", "after a write to the data register");
    }
);

const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;

/// Does a DMA transfer; gives the control word that the device leaves.
fn fw_dma(control: u32, len: u32, address: u64) -> u32 {
    let mut frame = frames::alloc();
    let at = frame.address();
    frame.bytes()[..4].copy_from_slice(&control.to_be_bytes());
    frame.bytes()[4..8].copy_from_slice(&len.to_be_bytes());
    frame.bytes()[8..16].copy_from_slice(&address.to_be_bytes());
    port::out32(FW_DMA, ((at >> 32) as u32).to_be());
    port::out32(FW_DMA + 4, (at as u32).to_be());
    let mut answer = [0; 4];
    check_ok!(mem::read_bytes(at, &mut answer));
    frame.free();
    u32::from_be_bytes(answer)
}

test!(fw_cfg_dma, "fw_cfg DMA selects, reads and skips; errors are told and move nothing.", || {
    let dma = port::in32(FW_DMA).to_le_bytes();
    let second = port::in32(FW_DMA + 4).to_le_bytes();
    check_eq!((dma, second), (*b"QEMU", *b" CFG"), "what the DMA address register reads as");
    let mut frame = frames::alloc();
    let at = frame.address();
    frame.bytes().fill(0xee);
    check_eq!(fw_dma(DMA_SELECT | DMA_READ, 2, at), 0, "select and read 2 bytes");
    check_eq!(frame.bytes()[..4], *b"QE\xee\xee");
    check_eq!(fw_dma(DMA_READ, 4, at + 8), 0, "go on reading, beyond the end");
    check_eq!(frame.bytes()[8..14], *b"MU\0\0\xee\xee");
    check_eq!(fw_dma(DMA_SELECT | DMA_SKIP, 3, 0), 0, "skip 3 bytes");
    check_eq!(port::in8(FW_DATA), b'U', "the byte after the 3 skipped");
    // The key is the upper half of the control word.
    check_eq!(fw_dma(1 << 16 | DMA_SELECT | DMA_READ, 4, at + 16), 0, "item 1");
    check_eq!(frame.bytes()[16], 3, "features by DMA");
    for (what, control, len, address) in [
        ("a read to where no RAM is", DMA_SELECT | DMA_READ, 4, 0xd000_0000),
        ("a read to the end of all addresses", DMA_SELECT | DMA_READ, 4, u64::MAX - 1),
        ("a write to an item that is read-only", DMA_SELECT | DMA_WRITE, 4, at),
    ] {
        check_eq!(fw_dma(control, len, address), DMA_ERROR, "{what}");
    }
    check_eq!(fw_item(0), *b"QEMU", "after errors");
});

/// Keyboard controller (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary
/// Device Controller").
const KEYBOARD: u16 = 0x60;
const CONTROLLER: u16 = 0x64;
const OUTPUT_FULL: u8 = 1;

/// The next byte from the controller, within a second.
fn answer(what: &str) -> u8 {
    let came = time::wait_until(1_000_000, || port::in8(CONTROLLER) & OUTPUT_FULL != 0);
    check!(came, "no byte from the keyboard controller within a second: {what}");
    port::in8(KEYBOARD)
}

fn controller_command(byte: u8) {
    // Input buffer full: bit 1.
    let ready = time::wait_until(1_000_000, || port::in8(CONTROLLER) & 2 == 0);
    check!(ready, "the keyboard controller does not take a command");
    port::out8(CONTROLLER, byte);
}

test!(
    i8042_controller,
    "The keyboard controller passes its tests and keeps its command byte.",
    || {
        while port::in8(CONTROLLER) & OUTPUT_FULL != 0 {
            port::in8(KEYBOARD);
        }
        controller_command(0xaa);
        check_eq!(answer("self-test"), 0x55, "self-test");
        controller_command(0xab);
        check_eq!(answer("interface test"), 0, "test of the keyboard's interface");
        for value in [0x74, 0x24, 0x65] {
            controller_command(0x60);
            port::out8(KEYBOARD, value);
            controller_command(0x20);
            check_eq!(answer("command byte"), value, "the command byte");
        }
        check_eq!(port::in8(CONTROLLER) & OUTPUT_FULL, 0, "output buffer full after it was read");
        controller_command(0xd2);
        port::out8(KEYBOARD, 0x5a);
        check_eq!(answer("loop-back"), 0x5a, "a byte written as if by the keyboard");
    }
);

test!(
    i8042_keyboard,
    "The keyboard behind the controller resets, echoes and says what it is.",
    || {
        // No translation, no interrupts.
        controller_command(0x60);
        port::out8(KEYBOARD, 0x24);
        for (what, command, answers) in [
            ("reset", 0xff, &[0xfa, 0xaa][..]),
            ("echo", 0xee, &[0xee]),
            ("identify", 0xf2, &[0xfa, 0xab, 0x83]),
            ("disable", 0xf5, &[0xfa]),
            ("enable", 0xf4, &[0xfa]),
            ("an unknown command", 0xef, &[0xfe]),
        ] {
            port::out8(KEYBOARD, command);
            for &expected in answers {
                check_eq!(answer(what), expected, "answer to {what} ({command:#x})");
            }
        }
        // Translated to set 1, the second byte of the identity is another.
        controller_command(0x60);
        port::out8(KEYBOARD, 0x64);
        port::out8(KEYBOARD, 0xf2);
        for expected in [0xfa, 0xab, 0x41] {
            check_eq!(answer("identify, translated"), expected, "identify, translated");
        }
    }
);

static KEYS: AtomicU32 = AtomicU32::new(0);

test!(
    i8042_interrupt,
    "Each byte from the keyboard raises IRQ 1 once, through either chip.",
    || {
        for (through, vector) in [(Through::IoApic, 0x51), (Through::Pic, 0x60)] {
            let vector = line::connect(1, vector, Trigger::Edge, through);
            let handlers: [irq::Handler; 2] = [
                |_| {
                    KEYS.store(KEYS.load(SeqCst) << 8 | u32::from(port::in8(KEYBOARD)), SeqCst);
                    line::eoi(1, Through::IoApic);
                },
                |_| {
                    KEYS.store(KEYS.load(SeqCst) << 8 | u32::from(port::in8(KEYBOARD)), SeqCst);
                    line::eoi(1, Through::Pic);
                },
            ];
            irq::handle(vector, handlers[usize::from(through == Through::Pic)]);
            KEYS.store(0, SeqCst);
            // Interrupts on, no translation.
            controller_command(0x60);
            port::out8(KEYBOARD, 0x25);
            port::out8(KEYBOARD, 0xf2);
            check!(irq::wait_for(vector, 3, 1_000_000), "3 interrupts by {through:?}");
            check_eq!(KEYS.load(SeqCst), 0xfa_ab83, "bytes in order, by {through:?}");
            irq::let_in(2000);
            check_eq!(irq::count(vector), 3, "interrupts of 3 bytes by {through:?}");
            line::disconnect(1, through);
        }
    }
);

test!(post_port, "The POST port takes any byte and gives the last one.", || {
    for value in [0x55, 0xaa, 0, 0xff] {
        port::out8(0x80, value);
        check_eq!(port::in8(0x80), value);
    }
});

/// PM1 (ACPI 6.5, 4.8.3.1 and 4.8.3.2): status, enable, control, and the SMI command port.
const PM1_STATUS: u16 = 0x600;
const PM1_ENABLE: u16 = 0x602;
const PM1_CONTROL: u16 = 0x604;
const SMI_COMMAND: u16 = 0xb2;

test!(
    pm1_registers,
    "PM1 enable keeps its bits, status clears by 1, SCI_EN follows SMI_CMD.",
    || {
        for value in [0x0521, 0x0100, 0] {
            port::out16(PM1_ENABLE, value);
            check_eq!(port::in16(PM1_ENABLE), value, "PM1_EN");
        }
        port::out16(PM1_STATUS, 0xffff);
        check_eq!(port::in16(PM1_STATUS) & 0x0721, 0, "PM1_STS after 1 was written to all of it");
        for (command, expected) in [(2, 1), (3, 0), (2, 1)] {
            port::out8(SMI_COMMAND, command);
            check_eq!(port::in16(PM1_CONTROL) & 1, expected, "SCI_EN after SMI command {command}");
        }
        // A sleep type without SLP_EN is only kept; SLP_EN reads as 0.
        port::out16(PM1_CONTROL, 5 << 10 | 1);
        check_eq!(port::in16(PM1_CONTROL) & 0x3c00, 5 << 10, "SLP_TYP");
    }
);

test!(port_92, "Port 0x92 shows an open A20 gate, and writing that again resets nothing.", || {
    check_eq!(port::in8(0x92) & 3, 2, "port 0x92 as the board came up: A20, no reset");
    port::out8(0x92, 2);
    check_eq!(port::in8(0x92) & 3, 2, "port 0x92 after A20 was written again");
});

/// Where the test device drives the lines: a byte a GSI.
const LINES: u16 = 0x2000;
/// Lines that no other device of the board drives.
const FREE: [u8; 14] = [3, 5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19, 22, 23];

test!(
    lines_by_io_apic,
    "Each free line interrupts once as it rises, by the I/O APIC, edge triggered.",
    || {
        for gsi in FREE {
            let vector = 0x70 + gsi;
            irq::count_only(vector);
            line::connect(gsi, vector, Trigger::Edge, Through::IoApic);
            for round in 1..=2 {
                port::out8(LINES + u16::from(gsi), 1);
                check!(irq::wait_for(vector, round, 1_000_000), "no interrupt of line {gsi}");
                // Still high, and written high again: no further edge.
                port::out8(LINES + u16::from(gsi), 1);
                irq::let_in(500);
                check_eq!(irq::count(vector), round, "interrupts of line {gsi} while it is high");
                port::out8(LINES + u16::from(gsi), 0);
            }
            irq::let_in(500);
            check_eq!(irq::count(vector), 2, "interrupts of line {gsi} after it fell");
            line::disconnect(gsi, Through::IoApic);
        }
    }
);

test!(lines_by_pic, "Each free line below 16 interrupts once as it rises, by the PICs.", || {
    for gsi in FREE.into_iter().filter(|&gsi| gsi < 16) {
        let vector = line::connect(gsi, 0x60, Trigger::Edge, Through::Pic);
        // The line in service is the only one open, so both PICs can be told of its end.
        irq::handle(vector, |_| line::eoi(8, Through::Pic));
        irq::reset();
        for round in 1..=2 {
            port::out8(LINES + u16::from(gsi), 1);
            check!(irq::wait_for(vector, round, 1_000_000), "no interrupt of line {gsi}");
            irq::let_in(500);
            check_eq!(irq::count(vector), round, "interrupts of line {gsi} while it is high");
            port::out8(LINES + u16::from(gsi), 0);
        }
        irq::unhandle(vector);
        line::disconnect(gsi, Through::Pic);
    }
});

test!(lines_masked, "A line that is masked at the I/O APIC does not interrupt.", || {
    const GSI: u8 = 10;
    irq::count_only(0x7a);
    line::connect(GSI, 0x7a, Trigger::Edge, Through::IoApic);
    line::disconnect(GSI, Through::IoApic);
    port::out8(LINES + u16::from(GSI), 1);
    irq::let_in(2000);
    check_eq!(irq::count(0x7a), 0, "interrupts of a masked line");
    port::out8(LINES + u16::from(GSI), 0);
});

const LEVEL_GSI: u8 = 11;
static STILL: AtomicU32 = AtomicU32::new(0);

// Intel 82093AA, 3.2.4: a level-triggered line interrupts again after EOI as long as it is active,
// and no more once it is not.
test!(
    level_line,
    "A level-triggered line interrupts until it is lowered, and not once more.",
    || {
        const VECTOR: u8 = 0x59;
        irq::handle(VECTOR, |_| {
            if STILL.fetch_sub(1, SeqCst) == 1 {
                port::out8(LINES + u16::from(LEVEL_GSI), 0);
            }
            line::eoi(LEVEL_GSI, Through::IoApic);
        });
        line::connect(LEVEL_GSI, VECTOR, Trigger::Level, Through::IoApic);
        let mut expected = 0;
        for times in [1, 1, 5, 1] {
            STILL.store(times, SeqCst);
            expected += times;
            port::out8(LINES + u16::from(LEVEL_GSI), 1);
            check!(irq::wait_for(VECTOR, expected, 1_000_000), "interrupt {expected} did not come");
            irq::let_in(2000);
            check_eq!(irq::count(VECTOR), expected, "interrupts; the line fell after {times}");
        }
    }
);

// Intel ICH9 datasheet, 13.7.5: a reset is by bit 2 going from 0 to 1.
test!(reset_cf9, "Bit 2 of port 0xcf9 resets the machine as it rises; the others do not.", || {
    for value in [0x02, 0x0a, 0x00, 0x02] {
        port::out8(0xcf9, value);
    }
    port::out8(0xcf9, 0x06);
    fail!("the machine runs on after 0x06 was written to port 0xcf9");
});

test!(reset_keyboard, "Command 0xfe of the keyboard controller resets the machine.", || {
    // 0xff pulses no line.
    port::out8(CONTROLLER, 0xff);
    println!("still here");
    port::out8(CONTROLLER, 0xfe);
    fail!("the machine runs on after command 0xfe of the keyboard controller");
});

test!(reset_output_port, "Bit 0 of the keyboard controller's output port resets when low.", || {
    port::out8(CONTROLLER, 0xd1);
    port::out8(KEYBOARD, 0xcf);
    println!("still here");
    port::out8(CONTROLLER, 0xd1);
    port::out8(KEYBOARD, 0xce);
    fail!("the machine runs on after its reset line was pulled by the output port");
});

test!(reset_port_92, "Bit 0 of port 0x92 resets the machine.", || {
    port::out8(0x92, 2);
    println!("still here");
    port::out8(0x92, 3);
    fail!("the machine runs on after bit 0 of port 0x92 was set");
});

// ACPI 6.5, 4.8.3.2.1: SLP_EN with the type of S5, which is 0 on this board.
test!(power_off_s5, "SLP_EN with the sleep type of S5 switches the machine off.", || {
    port::out16(PM1_CONTROL, 1);
    println!("still here");
    port::out16(PM1_CONTROL, 1 << 13 | 1);
    fail!("the machine runs on after SLP_EN");
});

test!(
    power_off_word,
    "The word `Shutdown` at port 0x8900 switches off; part of it does not.",
    || {
        for word in [&b"Shutdow"[..], b"shutdown", b"ShutShut"] {
            port::out8_rep(0x8900, word);
        }
        port::out8(0x8900, b'!');
        println!("still here");
        port::out8_rep(0x8900, b"Shutdown");
        fail!("the machine runs on after `Shutdown` was written to port 0x8900");
    }
);
