//! The two 8259A interrupt controllers of a PC, the second cascaded into the first's input 2.
//!
//! Intel 8259A datasheet (order number 231468). The runtime masks both at the start.

use crate::port;

/// Command port of the first and of the second controller; the data port is one above.
pub const COMMAND: [u16; 2] = [0x20, 0xa0];

/// Ports of the two edge/level control registers (of the chipset, not of the 8259A), which firmware
/// may have set: a bit is an IRQ that is level-triggered.
const ELCR: [u16; 2] = [0x4d0, 0x4d1];
/// OCW2: non-specific end of interrupt.
const EOI: u8 = 0x20;

/// Ends the test with `skip` if there are no PICs: their masks do not read back. Leaves all masked.
pub fn require() {
    for value in [0xa55a, 0xffff] {
        set_mask(value);
        if mask() != value {
            crate::skip!("no PICs at ports 0x20 and 0xa0");
        }
    }
}

/// Initialises both: edge-triggered, cascaded, 8086 mode, normal end of interrupt, IRQ 0 to 7 on
/// the vectors from `base` (a multiple of 8) and IRQ 8 to 15 on the eight above, all masked.
pub fn init(base: u8) {
    for (chip, icw3) in [(0, 1 << 2), (1, 2)] {
        let command = COMMAND[chip];
        port::out8(command, 0x11);
        port::out8(command + 1, base + 8 * chip as u8);
        port::out8(command + 1, icw3);
        port::out8(command + 1, 0x01);
        port::out8(command + 1, 0xff);
        port::out8(ELCR[chip], 0);
    }
}

/// The mask registers: bit n is IRQ n, set where it is masked.
pub fn mask() -> u16 {
    u16::from_le_bytes(COMMAND.map(|command| port::in8(command + 1)))
}

/// Writes the mask registers.
pub fn set_mask(mask: u16) {
    for (command, half) in COMMAND.into_iter().zip(mask.to_le_bytes()) {
        port::out8(command + 1, half);
    }
}

/// The request registers: bit n is IRQ n.
pub fn requests() -> u16 {
    ocw3(0x0a)
}

/// The in-service registers: bit n is IRQ n.
pub fn in_service() -> u16 {
    ocw3(0x0b)
}

fn ocw3(what: u8) -> u16 {
    u16::from_le_bytes(COMMAND.map(|command| {
        port::out8(command, what);
        port::in8(command)
    }))
}

/// Ends the interrupt in service that came from `irq`: at the second controller too if it is its.
pub fn eoi(irq: u8) {
    if irq >= 8 {
        port::out8(COMMAND[1], EOI);
    }
    port::out8(COMMAND[0], EOI);
}
