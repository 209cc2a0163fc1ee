//! The interrupt descriptor table: typed gates, one table for all CPUs.

use crate::cpu::KERNEL_CS;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Address of the first stub; `payload.ld` asserts it. Known here so that the table is a
/// constant of the image and costs nothing at boot.
const STUBS: u64 = 0x10_1000;
/// Bytes from one stub to the next.
const STUB_SIZE: u64 = 16;
/// The vector that CPL 3 may name in `int n` from the start.
pub const USER_GATE: u8 = 0x80;

/// A 64-bit interrupt gate (Intel SDM volume 3, 7.14.1; AMD APM volume 2, 4.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Where the handler starts.
    pub offset: u64,
    /// Its code segment.
    pub selector: u16,
    /// The IST stack, 1 to 7; 0 keeps the usual stack.
    pub ist: u8,
    /// The most outward CPL from which `int n` may name this gate.
    pub dpl: u8,
    /// A trap gate leaves IF as it is; an interrupt gate clears it.
    pub trap: bool,
    /// Not present: the vector ends in #NP.
    pub present: bool,
}

impl Gate {
    /// The gate that leads to the runtime's stub for `vector`.
    pub const fn stub(vector: u8) -> Gate {
        let ist = match vector {
            8 => 1,
            2 => 2,
            18 => 3,
            _ => 0,
        };
        let dpl = if vector == USER_GATE { 3 } else { 0 };
        let offset = STUBS + STUB_SIZE * vector as u64;
        Gate { offset, selector: KERNEL_CS, ist, dpl, trap: false, present: true }
    }

    /// The two words of the descriptor.
    pub const fn encode(self) -> [u64; 2] {
        let kind = if self.trap { 0xf } else { 0xe };
        let access = kind | (self.dpl as u64 & 3) << 5 | (self.present as u64) << 7;
        let low = (self.offset & 0xffff)
            | (self.selector as u64) << 16
            | (self.ist as u64 & 7) << 32
            | access << 40
            | (self.offset >> 16 & 0xffff) << 48;
        [low, self.offset >> 32]
    }

    /// Reads a descriptor back.
    pub const fn decode(words: [u64; 2]) -> Gate {
        let [low, high] = words;
        Gate {
            offset: (low & 0xffff) | (low >> 48) << 16 | high << 32,
            selector: (low >> 16) as u16,
            ist: (low >> 32 & 7) as u8,
            dpl: (low >> 45 & 3) as u8,
            trap: low >> 40 & 1 != 0,
            present: low >> 47 & 1 != 0,
        }
    }
}

#[repr(C, align(16))]
struct Idt([[AtomicU64; 2]; 256]);

static IDT: Idt = {
    let mut table = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; 256];
    let mut vector = 0;
    while vector < 256 {
        let [low, high] = Gate::stub(vector as u8).encode();
        table[vector] = [AtomicU64::new(low), AtomicU64::new(high)];
        vector += 1;
    }
    Idt(table)
};

/// Address of the table.
pub fn base() -> u64 {
    core::ptr::from_ref(&IDT) as u64
}

/// Limit of the table, as LIDT takes it.
pub const LIMIT: u16 = 256 * 16 - 1;

/// The gate of a vector.
pub fn get(vector: u8) -> Gate {
    let [low, high] = &IDT.0[vector as usize];
    Gate::decode([low.load(Relaxed), high.load(Relaxed)])
}

/// Changes the gate of a vector, for all CPUs. Not atomic: the vector must not arrive meanwhile.
pub fn set(vector: u8, gate: Gate) {
    let [low, high] = gate.encode();
    IDT.0[vector as usize][1].store(high, Relaxed);
    IDT.0[vector as usize][0].store(low, Relaxed);
}

/// Lets a vector arrive on IST stack `ist` (0: on the usual stack).
pub fn set_ist(vector: u8, ist: u8) {
    set(vector, Gate { ist, ..get(vector) });
}

/// Lets code up to CPL `dpl` reach a vector with `int n`.
pub fn set_dpl(vector: u8, dpl: u8) {
    set(vector, Gate { dpl, ..get(vector) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_survives_its_encoding() {
        let gate = Gate {
            offset: 0xffff_8123_4567_89ab,
            selector: 0x1234,
            ist: 5,
            dpl: 3,
            trap: true,
            present: false,
        };
        assert_eq!(Gate::decode(gate.encode()), gate);
        assert_eq!(get(14), Gate::stub(14));
    }

    #[test]
    fn a_gate_lies_as_the_manual_says() {
        let gate = Gate { offset: 0x1_2345_6789, ..Gate::stub(0x80) };
        assert_eq!(gate.encode(), [0x2345_ee00_0008_6789, 1]);
    }
}
