//! The state a boot vCPU starts in, as plain values for whatever runs it.

use std::fmt;

use crate::cpu::{CpuState, RSP, Segment, Table};

/// `CR0.PE`.
const CR0_PE: u64 = 1;
/// `CR0.ET`, fixed to 1 since the 486.
const CR0_ET: u64 = 1 << 4;
/// `CR0.PG`.
const CR0_PG: u64 = 1 << 31;
/// `CR4.PAE`.
const CR4_PAE: u64 = 1 << 5;
/// `EFER.LME | EFER.LMA`.
const EFER_LONG: u64 = 1 << 8 | 1 << 10;

/// Selector of the code segment in [`gdt`].
const SEL_CODE: u16 = 0x08;
/// Selector of the data segment in [`gdt`].
const SEL_DATA: u16 = 0x10;
/// Selector of the TSS in [`gdt`].
const SEL_TSS: u16 = 0x18;
/// Bytes of [`gdt`]: null, code, data, and a TSS that takes two entries in long mode.
pub(super) const GDT_BYTES: usize = 5 * 8;

/// The processor mode a guest is entered in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode: 16-bit code, segments of 64 KiB.
    Real16,
    /// Protected mode, paging off, flat 32-bit segments.
    Protected32,
    /// 64-bit mode; the first 4 GiB are mapped one to one with pages of 2 MiB.
    Long64,
}

impl Mode {
    /// The word that stands for the mode on a command line.
    pub const fn word(self) -> &'static str {
        match self {
            Mode::Real16 => "real16",
            Mode::Protected32 => "prot32",
            Mode::Long64 => "long64",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// RAX's index in [`CpuState::gpr`].
pub(super) const RAX: usize = 0;
/// RBX's index.
pub(super) const RBX: usize = 3;
/// RDI's index.
pub(super) const RDI: usize = 7;

/// A flat 32-bit code segment, readable and accessed.
const CODE_32: Segment = Segment {
    selector: SEL_CODE,
    base: 0,
    limit: u32::MAX,
    kind: 0xb,
    code_or_data: true,
    dpl: 0,
    present: true,
    avl: false,
    long: false,
    default_32: true,
    granular: true,
    unusable: false,
};

/// The same of 64 bits.
const CODE_64: Segment = Segment { long: true, default_32: false, ..CODE_32 };

/// A flat data segment, writable and accessed.
const DATA: Segment = Segment { selector: SEL_DATA, kind: 0x3, ..CODE_32 };

/// A busy TSS at 0 of 0x68 bytes, as PVH asks for; hardware wants one in any mode.
const TSS: Segment = Segment {
    selector: SEL_TSS,
    limit: 0x67,
    code_or_data: false,
    default_32: false,
    granular: false,
    ..CODE_32
};

/// No local descriptor table.
const NO_LDT: Segment =
    Segment { selector: 0, limit: 0, kind: 0x2, present: false, unusable: true, ..TSS };

/// A real-mode segment: base is the selector times 16, the limit 64 KiB.
const fn real_segment(selector: u16, kind: u8) -> Segment {
    let base = (selector as u64) << 4;
    Segment { selector, base, limit: 0xffff, kind, code_or_data: true, ..TSS }
}

/// A segment as an entry of a descriptor table (SDM volume 3, figure 3-8).
const fn descriptor(s: &Segment) -> u64 {
    let limit = if s.granular { s.limit >> 12 } else { s.limit } as u64;
    limit & 0xffff
        | (s.base & 0xff_ffff) << 16
        | (s.kind as u64) << 40
        | (s.code_or_data as u64) << 44
        | (s.dpl as u64) << 45
        | (s.present as u64) << 47
        | (limit >> 16 & 0xf) << 48
        | (s.avl as u64) << 52
        | (s.long as u64) << 53
        | (s.default_32 as u64) << 54
        | (s.granular as u64) << 55
        | (s.base >> 24 & 0xff) << 56
}

/// ES, CS, SS, DS, FS and GS.
const fn segments(code: Segment, data: Segment) -> [Segment; 6] {
    [data, code, data, data, data, data]
}

/// Flat protected mode at `rip`, paging and interrupts off, as PVH and multiboot ask for; `gdt` is
/// where [`gdt`]'s bytes lie.
pub(super) fn protected(rip: u64, gdt: u64) -> CpuState {
    CpuState {
        rip,
        // The bit that is always 1.
        rflags: 2,
        segments: segments(CODE_32, DATA),
        tr: TSS,
        ldt: NO_LDT,
        gdt: Table { base: gdt, limit: GDT_BYTES as u16 - 1 },
        cr0: CR0_PE | CR0_ET,
        ..CpuState::default()
    }
}

/// 64-bit mode at `rip` with the page tables at `cr3`.
pub(super) fn long(rip: u64, gdt: u64, cr3: u64) -> CpuState {
    CpuState {
        segments: segments(CODE_64, DATA),
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3,
        cr4: CR4_PAE,
        efer: EFER_LONG,
        ..protected(rip, gdt)
    }
}

/// Real mode at `addr`, which is below 1 MiB and either below 64 KiB or a multiple of 16.
pub(super) fn real(addr: u64, stack: u64) -> CpuState {
    let (selector, ip) = if addr < 0x1_0000 { (0, addr) } else { ((addr >> 4) as u16, 0) };
    let mut start = CpuState {
        segments: segments(real_segment(selector, 0xb), real_segment(0, 0x3)),
        // Of the size that a reset leaves.
        tr: Segment { selector: 0, limit: 0xffff, ..TSS },
        gdt: Table::default(),
        idt: Table { base: 0, limit: 0x3ff },
        cr0: CR0_ET,
        ..protected(ip, 0)
    };
    start.gpr[RSP] = stack;
    start
}

/// The descriptor table behind the selectors of a protected-mode or 64-bit start, so that a guest
/// which reloads a segment register before it has its own table gets what it had.
pub(super) fn gdt(mode: Mode) -> [u8; GDT_BYTES] {
    let entries = [
        0,
        descriptor(if mode == Mode::Long64 { &CODE_64 } else { &CODE_32 }),
        descriptor(&DATA),
        descriptor(&TSS),
        // Upper half of the TSS descriptor's base.
        0,
    ];
    let mut bytes = [0; GDT_BYTES];
    for (at, entry) in bytes.chunks_exact_mut(8).zip(entries) {
        at.copy_from_slice(&entry.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CS;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        // The values every hobby kernel's table holds, with the accessed bit set.
        assert_eq!(descriptor(&CODE_32), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&CODE_64), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&DATA), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&TSS), 0x0000_8b00_0000_0067);
        let odd = Segment { base: 0x1234_5678, avl: true, dpl: 3, ..TSS };
        assert_eq!(descriptor(&odd), 0x1210_eb34_5678_0067);
    }

    #[test]
    fn real_mode_reaches_the_address_it_was_given() {
        for addr in [0, 0x7c00, 0xffff, 0x1_0000, 0x9_fff0, 0xf_fff0] {
            let start = real(addr, 0x7c00);
            let cs = start.segments[CS];
            assert_eq!((start.linear_rip(), start.bitness()), (addr, 16));
            assert_eq!(cs.base, u64::from(cs.selector) << 4);
            assert_eq!(start.cr0 & CR0_PE, 0);
        }
    }

    #[test]
    fn only_64_bit_mode_has_paging() {
        let start = long(0x10_0000, 0x9000, 0xa000);
        assert_eq!(
            (start.cr0, start.cr3, start.cr4, start.efer),
            (0x8000_0011, 0xa000, 0x20, 0x500)
        );
        assert_eq!((start.bitness(), start.linear_rip()), (64, 0x10_0000));
        let start = protected(0x10_0000, 0x9000);
        assert_eq!((start.cr0, start.cr3, start.cr4, start.efer), (0x11, 0, 0, 0));
        assert_eq!((start.bitness(), start.linear_rip()), (32, 0x10_0000));
    }
}
