//! The state a boot vCPU starts in, as plain values for whatever runs it.

use std::fmt;

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

/// A segment register with its hidden part (SDM volume 3, 3.4.3 to 3.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte, in bytes whatever the granularity.
    pub limit: u32,
    /// The descriptor's type field, 4 bits.
    pub kind: u8,
    /// The S bit: code or data, not a system segment.
    pub code_or_data: bool,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// The P bit. A segment that is not present is unusable, to hardware virtualization.
    pub present: bool,
    /// The L bit: 64-bit code.
    pub long: bool,
    /// The D/B bit: 32-bit operands, or a 32-bit stack pointer.
    pub big: bool,
    /// The G bit: the descriptor counts its limit in pages.
    pub granular: bool,
}

impl Segment {
    /// The segment as an entry of a descriptor table (SDM volume 3, figure 3-8).
    const fn descriptor(&self) -> u64 {
        let limit = if self.granular { self.limit >> 12 } else { self.limit } as u64;
        limit & 0xffff
            | (self.base & 0xff_ffff) << 16
            | (self.kind as u64) << 40
            | (self.code_or_data as u64) << 44
            | (self.dpl as u64) << 45
            | (self.present as u64) << 47
            | (limit >> 16 & 0xf) << 48
            | (self.long as u64) << 53
            | (self.big as u64) << 54
            | (self.granular as u64) << 55
            | (self.base >> 24 & 0xff) << 56
    }

    /// A flat code segment, readable and accessed, of 64 or 32 bits.
    const fn flat_code(long: bool) -> Segment {
        Segment {
            selector: SEL_CODE,
            base: 0,
            limit: u32::MAX,
            kind: 0xb,
            code_or_data: true,
            dpl: 0,
            present: true,
            long,
            big: !long,
            granular: true,
        }
    }

    /// A flat data segment, writable and accessed.
    const fn flat_data() -> Segment {
        Segment { selector: SEL_DATA, kind: 0x3, ..Segment::flat_code(false) }
    }

    /// A busy TSS at 0 of 0x68 bytes, as PVH asks for; hardware wants one in any mode.
    const fn tss() -> Segment {
        Segment {
            selector: SEL_TSS,
            limit: 0x67,
            code_or_data: false,
            big: false,
            granular: false,
            ..Segment::flat_code(false)
        }
    }

    /// A real-mode segment: base is the selector times 16, the limit 64 KiB.
    const fn real(selector: u16, kind: u8) -> Segment {
        Segment {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            kind,
            code_or_data: true,
            dpl: 0,
            present: true,
            long: false,
            big: false,
            granular: false,
        }
    }

    /// No local descriptor table.
    const fn no_ldt() -> Segment {
        Segment {
            limit: 0,
            kind: 0x2,
            code_or_data: false,
            present: false,
            ..Segment::real(0, 0x2)
        }
    }
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte; 0 when there is no table.
    pub limit: u16,
}

/// What the boot vCPU holds when it runs its first instruction. What is not named here is as after
/// a reset; `rcx`, `rdx`, `rbp` and `r8` to `r15` are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuStart {
    /// The mode that the registers below amount to.
    pub mode: Mode,
    /// Instruction pointer: an offset into `cs`.
    pub rip: u64,
    /// Stack pointer, 0 where the protocol promises no stack.
    pub rsp: u64,
    /// Flags: nothing but the bit that is always 1, so interrupts are off.
    pub rflags: u64,
    /// Multiboot's magic, otherwise 0.
    pub rax: u64,
    /// Address of the protocol's information structure, or 0.
    pub rbx: u64,
    /// 0 in every protocol so far.
    pub rsi: u64,
    /// As `rbx` when an image is entered in 64-bit mode: the first argument of the System V ABI.
    pub rdi: u64,
    /// Code segment.
    pub cs: Segment,
    /// What `ds`, `es`, `fs`, `gs` and `ss` hold.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldt: Segment,
    /// Global descriptor table, in guest memory except in real mode.
    pub gdt: Table,
    /// Interrupt descriptor table: the vector table in real mode, otherwise none.
    pub idt: Table,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3: the page tables in 64-bit mode, otherwise 0.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enables.
    pub efer: u64,
}

impl CpuStart {
    /// Flat protected mode at `rip`, paging off, as PVH and multiboot ask for; `gdt` is where
    /// [`gdt`]'s bytes lie.
    pub(super) fn protected(rip: u64, gdt: u64) -> CpuStart {
        CpuStart {
            mode: Mode::Protected32,
            rip,
            rsp: 0,
            rflags: 2,
            rax: 0,
            rbx: 0,
            rsi: 0,
            rdi: 0,
            cs: Segment::flat_code(false),
            data: Segment::flat_data(),
            tr: Segment::tss(),
            ldt: Segment::no_ldt(),
            gdt: Table { base: gdt, limit: GDT_BYTES as u16 - 1 },
            idt: Table::default(),
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
        }
    }

    /// 64-bit mode at `rip` with the page tables at `cr3`.
    pub(super) fn long(rip: u64, gdt: u64, cr3: u64) -> CpuStart {
        CpuStart {
            mode: Mode::Long64,
            cs: Segment::flat_code(true),
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3,
            cr4: CR4_PAE,
            efer: EFER_LONG,
            ..CpuStart::protected(rip, gdt)
        }
    }

    /// Real mode at `addr`, which is below 1 MiB and either below 64 KiB or a multiple of 16.
    pub(super) fn real(addr: u64, stack: u64) -> CpuStart {
        let (selector, ip) = if addr < 0x1_0000 { (0, addr) } else { ((addr >> 4) as u16, 0) };
        CpuStart {
            mode: Mode::Real16,
            rsp: stack,
            cs: Segment::real(selector, 0xb),
            data: Segment::real(0, 0x3),
            // A TSS of the size that a reset leaves.
            tr: Segment { selector: 0, limit: 0xffff, ..Segment::tss() },
            gdt: Table::default(),
            idt: Table { base: 0, limit: 0x3ff },
            cr0: CR0_ET,
            ..CpuStart::protected(ip, 0)
        }
    }
}

/// The descriptor table behind the selectors of a protected-mode or 64-bit start, so that a guest
/// which reloads a segment register before it has its own table gets what it had.
pub(super) fn gdt(mode: Mode) -> [u8; GDT_BYTES] {
    let entries = [
        0,
        Segment::flat_code(mode == Mode::Long64).descriptor(),
        Segment::flat_data().descriptor(),
        Segment::tss().descriptor(),
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

    #[test]
    fn descriptors_are_those_of_the_manual() {
        // The values every hobby kernel's table holds, with the accessed bit set.
        assert_eq!(Segment::flat_code(false).descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(Segment::flat_code(true).descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(Segment::flat_data().descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(Segment::tss().descriptor(), 0x0000_8b00_0000_0067);
        let odd = Segment { base: 0x1234_5678, ..Segment::tss() };
        assert_eq!(odd.descriptor(), 0x1200_8b34_5678_0067);
    }

    #[test]
    fn real_mode_reaches_the_address_it_was_given() {
        for addr in [0, 0x7c00, 0xffff, 0x1_0000, 0x9_fff0, 0xf_fff0] {
            let start = CpuStart::real(addr, 0x7c00);
            assert_eq!(start.cs.base + start.rip, addr);
            assert_eq!(start.cs.base, u64::from(start.cs.selector) << 4);
            assert_eq!(start.cr0 & CR0_PE, 0);
        }
    }

    #[test]
    fn only_64_bit_mode_has_paging() {
        let long = CpuStart::long(0x10_0000, 0x9000, 0xa000);
        assert_eq!((long.cr0, long.cr3, long.cr4, long.efer), (0x8000_0011, 0xa000, 0x20, 0x500));
        assert!(long.cs.long && !long.cs.big);
        let prot = CpuStart::protected(0x10_0000, 0x9000);
        assert_eq!((prot.cr0, prot.cr3, prot.cr4, prot.efer), (0x11, 0, 0, 0));
        assert!(!prot.cs.long && prot.cs.big);
    }
}
