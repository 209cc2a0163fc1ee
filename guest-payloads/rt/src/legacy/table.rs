//! Descriptors and task state segments of legacy mode (Intel SDM volume 3, 3.4.5, 3.5, 7.11, 9.2 and 9.6;
//! AMD APM volume 2, 4.7, 8.2 and 12.2).

use super::TSS;
use crate::mem;

/// A segment descriptor's access byte: writable data, accessed, of DPL 0.
pub const WRITABLE: u64 = 0x93;
/// Read-only data, accessed.
pub const READ_ONLY: u64 = 0x91;
/// Writable expand-down data, accessed.
pub const EXPAND_DOWN: u64 = 0x97;
/// Readable code, accessed.
pub const READABLE: u64 = 0x9b;
/// Execute-only code, accessed.
pub const EXECUTE_ONLY: u64 = 0x99;
/// Readable conforming code, accessed.
pub const CONFORMING: u64 = 0x9f;
/// An LDT.
pub const AN_LDT: u64 = 0x82;
/// An available 16-bit TSS.
pub const TSS16: u64 = 0x81;
/// An available 32-bit TSS.
pub const TSS32: u64 = 0x89;
/// A task gate.
pub const TASK_GATE: u64 = 0x85;
/// A call gate for 16-bit code.
pub const CALL_GATE16: u64 = 0x84;
/// A call gate for 32-bit code.
pub const CALL_GATE32: u64 = 0x8c;
/// A 16-bit interrupt gate.
pub const INTERRUPT_GATE16: u64 = 0x86;
/// A 16-bit trap gate.
pub const TRAP_GATE16: u64 = 0x87;
/// A 32-bit interrupt gate.
pub const INTERRUPT_GATE32: u64 = 0x8e;
/// A 32-bit trap gate.
pub const TRAP_GATE32: u64 = 0x8f;

/// In an access byte: not accessed yet, if taken away from one of a segment.
pub const ACCESSED: u64 = 1;
/// In the access byte of a TSS: it is busy.
pub const BUSY: u64 = 2;
/// In an access byte: present.
pub const PRESENT: u64 = 0x80;
/// In an access byte: of DPL 3.
pub const DPL3: u64 = 0x60;

/// In a descriptor: a 32-bit segment (D or B).
pub const BIG: u64 = 1 << 54;
/// In a descriptor: the limit counts in pages.
pub const PAGES: u64 = 1 << 55;

/// A descriptor with this base, limit (20 bits) and access byte; [`BIG`] and [`PAGES`] may be added.
pub const fn segment(base: u32, limit: u32, access: u64) -> u64 {
    (limit as u64 & 0xffff)
        | (base as u64 & 0xff_ffff) << 16
        | access << 40
        | (limit as u64 >> 16 & 0xf) << 48
        | (base as u64 >> 24) << 56
}

/// A flat 32-bit segment of 4 GiB.
pub const fn flat(access: u64) -> u64 {
    segment(0, 0xf_ffff, access) | BIG | PAGES
}

/// A gate: where it leads, its access byte, and the parameters that a call gate copies.
pub const fn gate(selector: u32, offset: u32, access: u64, count: u64) -> u64 {
    (offset as u64 & 0xffff)
        | (selector as u64 & 0xffff) << 16
        | count << 32
        | access << 40
        | (offset as u64 >> 16) << 48
}

/// A task state segment in memory, by the address it starts at.
#[derive(Clone, Copy, Debug)]
pub struct Tss(pub u32);

macro_rules! fields {
    ($($name:ident = $offset:literal, $about:literal;)*) => {
        /// Offsets in a 32-bit TSS (Intel SDM volume 3, figure 9-2).
        pub mod tss32 {
            $(#[doc = $about] pub const $name: u32 = $offset;)*
        }
    };
}
fields! {
    LINK = 0, "Selector of the previous task.";
    ESP0 = 4, "Stack pointer of CPL 0.";
    SS0 = 8, "Stack segment of CPL 0.";
    ESP1 = 12, "Stack pointer of CPL 1.";
    SS1 = 16, "Stack segment of CPL 1.";
    CR3 = 28, "CR3.";
    EIP = 32, "EIP.";
    EFLAGS = 36, "EFLAGS.";
    EAX = 40, "EAX.";
    ECX = 44, "ECX.";
    EDX = 48, "EDX.";
    EBX = 52, "EBX.";
    ESP = 56, "ESP.";
    EBP = 60, "EBP.";
    ESI = 64, "ESI.";
    EDI = 68, "EDI.";
    ES = 72, "ES.";
    CS = 76, "CS.";
    SS = 80, "SS.";
    DS = 84, "DS.";
    FS = 88, "FS.";
    GS = 92, "GS.";
    LDTR = 96, "LDTR.";
    TRAP = 100, "The debug trap flag, bit 0.";
    MAP = 102, "Offset of the I/O permission map.";
}

/// Offsets in a 16-bit TSS (Intel SDM volume 3, 9.6).
#[allow(missing_docs)] // As those of `tss32`.
pub mod tss16 {
    pub const LINK: u32 = 0;
    pub const SP0: u32 = 2;
    pub const SS0: u32 = 4;
    pub const IP: u32 = 14;
    pub const FLAGS: u32 = 16;
    pub const AX: u32 = 18;
    pub const CX: u32 = 20;
    pub const DX: u32 = 22;
    pub const BX: u32 = 24;
    pub const SP: u32 = 26;
    pub const BP: u32 = 28;
    pub const SI: u32 = 30;
    pub const DI: u32 = 32;
    pub const ES: u32 = 34;
    pub const CS: u32 = 36;
    pub const SS: u32 = 38;
    pub const DS: u32 = 40;
    pub const LDTR: u32 = 42;
}

impl Tss {
    /// The TSS that is loaded at the start of a run.
    pub const FIRST: Tss = Tss(TSS);
    /// The other one.
    pub const SECOND: Tss = Tss(super::TSS2);

    /// A 32-bit field, or a selector with what lies above it.
    pub fn get(self, offset: u32) -> u32 {
        sure(mem::read((self.0 + offset).into()))
    }
    /// A 16-bit field.
    pub fn get16(self, offset: u32) -> u32 {
        sure(mem::read::<u16>((self.0 + offset).into())).into()
    }
    /// Writes a 32-bit field.
    pub fn set(self, offset: u32, value: u32) {
        sure(mem::write((self.0 + offset).into(), value));
    }
    /// Writes a 16-bit field.
    pub fn set16(self, offset: u32, value: u32) {
        sure(mem::write((self.0 + offset).into(), value as u16));
    }
    /// Writes `bytes` bytes of `fill`.
    pub fn fill(self, bytes: u32, fill: u8) {
        for at in (0..bytes).step_by(4) {
            self.set(at, u32::from_le_bytes([fill; 4]));
        }
    }
}

/// The value; low memory is RAM and mapped, so there is always one.
pub(super) fn sure<T>(result: Result<T, crate::trap::Trap>) -> T {
    match result {
        Ok(value) => value,
        Err(trap) => panic!("memory below 1 MiB that legacy-mode code needs: {trap}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_lie_as_the_manual_says() {
        assert_eq!(flat(READABLE), 0x00cf_9b00_0000_ffff);
        assert_eq!(segment(0x1234_5678, 0xa_bcde, WRITABLE), 0x120a_9334_5678_bcde);
        assert_eq!(gate(0x30, 0x1234_5678, CALL_GATE32, 3), 0x1234_8c03_0030_5678);
    }
}
