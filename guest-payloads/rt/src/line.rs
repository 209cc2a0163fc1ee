//! The interrupt lines of a PC's devices: by the I/O APIC or by the pair of PICs to a vector.
//!
//! I/O APIC: Intel 82093AA datasheet, 3.1 and 3.2. PICs: Intel 8259A datasheet, "Programming the
//! 8259A". Lines are named by their global system interrupt, which is the ISA IRQ for all but
//! IRQ 0.

use crate::apic::{self, Register};
use crate::{mem, port};

/// Where a PC has its I/O APIC.
pub const IO_APIC: u64 = 0xfec0_0000;
/// Redirection entry: level triggered.
const LEVEL: u64 = 1 << 15;
/// Redirection entry: masked.
const MASKED: u64 = 1 << 16;

/// How a line signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By going high.
    Edge,
    /// By being high, until it is not.
    Level,
}

/// Which interrupt controller a line goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The I/O APIC.
    IoApic,
    /// The PICs, and from there LINT0 of this CPU's local APIC.
    Pic,
}

/// Reads a register of the I/O APIC; `!0` if it is not mapped.
pub fn io_apic_read(register: u8) -> u32 {
    let read = mem::write(IO_APIC, u32::from(register)).and_then(|()| mem::read(IO_APIC + 0x10));
    read.unwrap_or(!0)
}

/// Writes a register of the I/O APIC.
pub fn io_apic_write(register: u8, value: u32) {
    let written =
        mem::write(IO_APIC, u32::from(register)).and_then(|()| mem::write(IO_APIC + 0x10, value));
    if let Err(trap) = written {
        panic!("write register {register:#x} of the I/O APIC: {trap}");
    }
}

/// Writes the redirection entry of a line.
pub fn redirect(gsi: u8, entry: u64) {
    let register = 0x10 + 2 * gsi;
    // Masked first, so that no half-written entry is acted on.
    io_apic_write(register, (entry | MASKED) as u32);
    io_apic_write(register + 1, (entry >> 32) as u32);
    io_apic_write(register, entry as u32);
}

/// Leads a line (below 16 for [`Through::Pic`]) to `vector` of this CPU, active high, and makes
/// this CPU's local APIC take it. PICs have one range of vectors for eight lines, so the vector's
/// low three bits are replaced by those of the line: the vector is returned. All other lines of
/// the PICs are masked.
pub fn connect(gsi: u8, vector: u8, trigger: Trigger, through: Through) -> u8 {
    let apic = apic::local();
    apic.enable();
    match through {
        Through::IoApic => {
            let level = if trigger == Trigger::Level { LEVEL } else { 0 };
            redirect(gsi, u64::from(apic.id()) << 56 | level | u64::from(vector));
            vector
        }
        Through::Pic => {
            assert!(gsi < 16, "the PICs have no line {gsi}");
            let base = vector & !7;
            // LINT0: ExtINT (SDM volume 3, 12.5.1).
            apic.write(Register::LVT_LINT0, 7 << 8);
            // Edge or level by chip set register ELCR (ICH9 datasheet, 13.4.10).
            let elcr = 0x4d0 + u16::from(gsi / 8);
            let bit = 1 << (gsi % 8);
            let other = port::in8(elcr) & !bit;
            port::out8(elcr, if trigger == Trigger::Level { other | bit } else { other });
            let (own, idle) = (base, base ^ 8);
            let [first, second] = if gsi < 8 { [own, idle] } else { [idle, own] };
            for (port, base, cascade) in [(0x20, first, 1 << 2), (0xa0, second, 2)] {
                port::out8(port, 0x11);
                port::out8(port + 1, base);
                port::out8(port + 1, cascade);
                port::out8(port + 1, 1);
                port::out8(port + 1, 0xff);
            }
            let open: u16 = !(1 << gsi | if gsi < 8 { 0 } else { 1 << 2 });
            port::out8(0x21, open as u8);
            port::out8(0xa1, (open >> 8) as u8);
            base | (gsi % 8)
        }
    }
}

/// Masks a line again.
pub fn disconnect(gsi: u8, through: Through) {
    match through {
        Through::IoApic => redirect(gsi, MASKED),
        Through::Pic => {
            port::out8(0x21, 0xff);
            port::out8(0xa1, 0xff);
            apic::local().write(Register::LVT_LINT0, apic::LVT_MASKED);
        }
    }
}

/// Acknowledges the interrupt of a line in service.
pub fn eoi(gsi: u8, through: Through) {
    match through {
        Through::IoApic => apic::eoi(),
        Through::Pic => {
            if gsi >= 8 {
                port::out8(0xa0, 0x20);
            }
            port::out8(0x20, 0x20);
        }
    }
}
