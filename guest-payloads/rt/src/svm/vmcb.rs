//! The virtual machine control block (AMD APM volume 2, appendix B).
//!
//! A VMCB is a page of RAM that the processor reads and writes while nobody looks, so its fields are
//! reached by offset, as volatile words. A field carries its name, for tests that walk all of them.

use crate::frames::{self, PAGE};
use core::fmt;

/// A field of a VMCB: 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// What the APM calls it.
    pub name: &'static str,
    offset: u16,
    bytes: u8,
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! fields {
    ($list:ident, $about:literal: $($name:ident = $offset:literal, $bytes:literal;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, at offset ", stringify!($offset), ".")]
            pub const $name: Field =
                Field { name: stringify!($name), offset: $offset, bytes: $bytes };
        )*
        #[doc = $about]
        pub const $list: &[Field] = &[$($name),*];
    };
}

// Table B-1.
fields! {
    CONTROL, "The fields of the control area.":
    INTERCEPT_CR = 0x000, 4;
    INTERCEPT_DR = 0x004, 4;
    INTERCEPT_EXCEPTION = 0x008, 4;
    INTERCEPT_3 = 0x00c, 4;
    INTERCEPT_4 = 0x010, 4;
    INTERCEPT_5 = 0x014, 4;
    PAUSE_THRESHOLD = 0x03c, 2;
    PAUSE_COUNT = 0x03e, 2;
    IOPM_BASE = 0x040, 8;
    MSRPM_BASE = 0x048, 8;
    TSC_OFFSET = 0x050, 8;
    ASID = 0x058, 4;
    TLB_CONTROL = 0x05c, 1;
    V_INTR = 0x060, 4;
    V_INTR_VECTOR = 0x064, 1;
    INTERRUPT_SHADOW = 0x068, 8;
    EXITCODE = 0x070, 8;
    EXITINFO1 = 0x078, 8;
    EXITINFO2 = 0x080, 8;
    EXITINTINFO = 0x088, 8;
    NP_ENABLE = 0x090, 8;
    EVENTINJ = 0x0a8, 8;
    N_CR3 = 0x0b0, 8;
    LBR_ENABLE = 0x0b8, 8;
    CLEAN = 0x0c0, 4;
    NRIP = 0x0c8, 8;
    FETCHED = 0x0d0, 8;
    FETCHED_MORE = 0x0d8, 8;
}

// Table B-2, what VMRUN loads and #VMEXIT stores.
fields! {
    STATE, "The fields of the save area that VMRUN loads and #VMEXIT stores, but for segments.":
    CPL = 0x4cb, 1;
    EFER = 0x4d0, 8;
    CR4 = 0x548, 8;
    CR3 = 0x550, 8;
    CR0 = 0x558, 8;
    DR7 = 0x560, 8;
    DR6 = 0x568, 8;
    RFLAGS = 0x570, 8;
    RIP = 0x578, 8;
    RSP = 0x5d8, 8;
    RAX = 0x5f8, 8;
    CR2 = 0x640, 8;
    G_PAT = 0x668, 8;
}

// Table B-2, what VMLOAD loads and VMSAVE stores (APM volume 3, VMLOAD).
fields! {
    EXTENDED, "The fields that VMLOAD loads and VMSAVE stores, but for segments.":
    STAR = 0x600, 8;
    LSTAR = 0x608, 8;
    CSTAR = 0x610, 8;
    SFMASK = 0x618, 8;
    KERNEL_GS_BASE = 0x620, 8;
    SYSENTER_CS = 0x628, 8;
    SYSENTER_ESP = 0x630, 8;
    SYSENTER_EIP = 0x638, 8;
}

/// A segment or descriptor-table register's place in the save area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs)] // The registers they are named for.
pub enum Seg {
    Es = 0x400,
    Cs = 0x410,
    Ss = 0x420,
    Ds = 0x430,
    Fs = 0x440,
    Gs = 0x450,
    Gdtr = 0x460,
    Ldtr = 0x470,
    Idtr = 0x480,
    Tr = 0x490,
}

/// A segment register as a VMCB holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// Type, S, DPL and P in bits 7:0; AVL, L, D/B and G in bits 11:8.
    pub attributes: u16,
    /// The limit, in bytes whatever G says.
    pub limit: u32,
    /// The base.
    pub base: u64,
}

/// V_INTR: a virtual interrupt is pending.
pub const V_IRQ: u64 = 1 << 8;
/// V_INTR: the virtual global interrupt flag.
pub const V_GIF: u64 = 1 << 9;
/// V_INTR: the virtual interrupt's priority (bits 19:16).
pub const fn v_priority(priority: u8) -> u64 {
    (priority as u64 & 0xf) << 16
}
/// V_INTR: V_TPR does not hold the virtual interrupt back.
pub const V_IGN_TPR: u64 = 1 << 20;
/// V_INTR: RFLAGS.IF and CR8 of the guest mask virtual interrupts alone.
pub const V_INTR_MASKING: u64 = 1 << 24;
/// V_INTR: STGI and CLGI of the guest change V_GIF.
pub const V_GIF_ENABLE: u64 = 1 << 25;

/// A VMCB, with a page of its own.
#[derive(Debug)]
pub struct Vmcb {
    at: u64,
}

impl Vmcb {
    /// A VMCB of zeroes.
    pub fn new() -> Vmcb {
        Vmcb { at: frames::alloc().address() }
    }

    /// Its physical address.
    pub fn address(&self) -> u64 {
        self.at
    }

    /// Reads a field.
    pub fn get(&self, field: Field) -> u64 {
        let at = self.at + u64::from(field.offset);
        // SAFETY: a naturally aligned word of the page that this VMCB owns, identity-mapped.
        unsafe {
            match field.bytes {
                1 => (at as *const u8).read_volatile().into(),
                2 => (at as *const u16).read_volatile().into(),
                4 => (at as *const u32).read_volatile().into(),
                _ => (at as *const u64).read_volatile(),
            }
        }
    }

    /// Writes a field; a value that is too wide loses its upper bits.
    pub fn set(&mut self, field: Field, value: u64) {
        let at = self.at + u64::from(field.offset);
        // SAFETY: as in `get`.
        unsafe {
            match field.bytes {
                1 => (at as *mut u8).write_volatile(value as u8),
                2 => (at as *mut u16).write_volatile(value as u16),
                4 => (at as *mut u32).write_volatile(value as u32),
                _ => (at as *mut u64).write_volatile(value),
            }
        }
    }

    /// Sets bits of a field.
    pub fn add(&mut self, field: Field, bits: u64) {
        self.set(field, self.get(field) | bits);
    }

    /// Clears bits of a field.
    pub fn remove(&mut self, field: Field, bits: u64) {
        self.set(field, self.get(field) & !bits);
    }

    /// Switches the intercept whose exit code is `code` (below 0xc0) on or off: the intercept
    /// vectors are one bitmap in the order of the exit codes (table B-1, appendix C). The trap
    /// codes 0x8f to 0x9f count in it as well.
    pub fn intercept(&mut self, code: u64, on: bool) {
        assert!(code < 0xc0, "exit code {code:#x} has no intercept bit");
        let word = Field { name: "intercepts", offset: 4 * (code / 32) as u16, bytes: 4 };
        let bit = 1 << (code % 32);
        if on {
            self.add(word, bit);
        } else {
            self.remove(word, bit);
        }
    }

    /// Reads a segment register.
    pub fn segment(&self, segment: Seg) -> Segment {
        let part =
            |offset, bytes| self.get(Field { name: "", offset: segment as u16 + offset, bytes });
        Segment {
            selector: part(0, 2) as u16,
            attributes: part(2, 2) as u16,
            limit: part(4, 4) as u32,
            base: part(8, 8),
        }
    }

    /// Writes a segment register.
    pub fn set_segment(&mut self, segment: Seg, value: Segment) {
        let part = |offset, bytes| Field { name: "", offset: segment as u16 + offset, bytes };
        self.set(part(0, 2), value.selector.into());
        self.set(part(2, 2), value.attributes.into());
        self.set(part(4, 4), value.limit.into());
        self.set(part(8, 8), value.base);
    }

    /// All its bytes as they are now, to compare with later.
    pub fn snapshot(&self) -> Snapshot {
        let mut words = [0; WORDS];
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: a word of the page that this VMCB owns.
            *word = unsafe { (self.at as *const u64).add(i).read_volatile() };
        }
        Snapshot(words)
    }

    /// The offset of the first 64-bit word that differs from `before`, outside of `fields`.
    pub fn differs(&self, before: &Snapshot, fields: &[Field]) -> Option<u16> {
        let now = self.snapshot();
        let offsets = (0..PAGE as u16).step_by(8);
        offsets.zip(before.0.iter().zip(&now.0)).find_map(|(offset, (old, new))| {
            let named = |field: &Field| field.offset & !7 == offset;
            (old != new && !fields.iter().any(named)).then_some(offset)
        })
    }
}

impl Default for Vmcb {
    fn default() -> Vmcb {
        Vmcb::new()
    }
}

/// Words of the part of a VMCB that the APM defines.
const WORDS: usize = 0x6a0 / 8;

/// A VMCB's bytes at some time.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot([u64; WORDS]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_aligned_and_apart() {
        let all = || CONTROL.iter().chain(STATE).chain(EXTENDED);
        for field in all() {
            assert!(field.offset.is_multiple_of(field.bytes.into()), "{field:?}");
            let clash = |other: &&Field| {
                other.name != field.name
                    && other.offset < field.offset + u16::from(field.bytes)
                    && field.offset < other.offset + u16::from(other.bytes)
            };
            assert_eq!(all().find(clash), None, "{field:?}");
        }
    }
}
