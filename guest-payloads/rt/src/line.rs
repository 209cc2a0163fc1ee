//! The interrupt lines of a PC's devices: by the I/O APIC or by the pair of PICs to a vector.
//!
//! What [`ioapic`] and [`pic`] do by register, in one step. Lines are named by their global system
//! interrupt, which is the ISA IRQ for all but IRQ 0.

use crate::apic::{self, Register};
use crate::{ioapic, pic, port};

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

/// Leads a line (below 16 for [`Through::Pic`]) to `vector` of this CPU, active high, and makes
/// this CPU's local APIC take it. The PICs have sixteen vectors in a row, so there the vector's low
/// four bits are replaced by the line's number, and all other lines are masked. The vector that
/// the line has in the end is returned.
pub fn connect(gsi: u8, vector: u8, trigger: Trigger, through: Through) -> u8 {
    let apic = apic::local();
    apic.enable();
    match through {
        Through::IoApic => {
            let level = if trigger == Trigger::Level { ioapic::LEVEL } else { 0 };
            let entry = ioapic::destination(apic.id() as u8) | level | u64::from(vector);
            ioapic::set_entry(gsi, entry);
            vector
        }
        Through::Pic => {
            assert!(gsi < 16, "the PICs have no line {gsi}");
            // LINT0: ExtINT (SDM volume 3, 12.5.1).
            apic.write(Register::LVT_LINT0, 7 << 8);
            // Edge or level by chip set register ELCR (ICH9 datasheet, 13.4.10).
            let elcr = 0x4d0 + u16::from(gsi / 8);
            let bit = 1 << (gsi % 8);
            let other = port::in8(elcr) & !bit;
            port::out8(elcr, if trigger == Trigger::Level { other | bit } else { other });
            let base = vector & 0xf0;
            pic::init(base);
            let cascade = if gsi < 8 { 0 } else { 1 << 2 };
            pic::set_mask(!(1 << gsi | cascade));
            base + gsi
        }
    }
}

/// Masks a line again; with [`Through::Pic`], all of them.
pub fn disconnect(gsi: u8, through: Through) {
    match through {
        Through::IoApic => ioapic::set_entry(gsi, ioapic::MASKED),
        Through::Pic => {
            pic::set_mask(!0);
            apic::local().write(Register::LVT_LINT0, apic::LVT_MASKED);
        }
    }
}

/// Acknowledges the interrupt of a line in service.
pub fn eoi(gsi: u8, through: Through) {
    match through {
        Through::IoApic => apic::eoi(),
        Through::Pic => pic::eoi(gsi),
    }
}
