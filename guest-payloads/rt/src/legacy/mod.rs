//! Legacy mode: a piece of 16- or 32-bit code outside of long mode, with descriptor tables of the test's
//! own, and what came of it (Intel SDM volume 3, 11.8.5.4; AMD APM volume 2, 1.3 and 14.7).
//!
//! A [`Machine`] holds a GDT, an LDT, an IDT, an interrupt table for real mode, two TSSs, and the registers at
//! the start. A run ends with the first trap or interrupt that its tables lead to the runtime's stubs,
//! all of them at the start; the [`Outcome`] says which, and has the registers. Code comes from
//! [`code32!`](crate::code32) and [`code16!`](crate::code16), which end it with an instruction that no mode has.
//!
//! All of it lies below 1 MiB, so that real mode and virtual-8086 mode reach it; see the constants. Paging
//! is off unless [`Machine::page`] switches it on. Interrupts are off unless the code turns them on.

/// As [`asm_code!`](crate::asm_code), for 32-bit code in a [`Machine`]: ends with a load of CS by MOV, which
/// is #UD in each mode, and unlike `ud2` so for instruction emulators too.
#[macro_export]
macro_rules! code32 {
    ($($line:expr),+ $(,)?) => {
        $crate::asm_code!(".code32", $($line,)+ ".byte 0x8e, 0xc8")
    };
}

/// As [`code32!`](crate::code32), for 16-bit code.
#[macro_export]
macro_rules! code16 {
    ($($line:expr),+ $(,)?) => {
        $crate::asm_code!(".code16", $($line,)+ ".byte 0x8e, 0xc8")
    };
}

mod machine;
mod outcome;
pub mod table;

pub use machine::Machine;
pub use outcome::Outcome;

/// What belongs to a machine starts here.
pub const LOW: u32 = 0x2_0000;
/// The GDT: [`GDT_ENTRIES`] descriptors.
pub const GDT: u32 = LOW;
/// Descriptors that fit into the GDT.
pub const GDT_ENTRIES: u32 = 128;
/// The LDT: [`LDT_ENTRIES`] descriptors.
pub const LDT: u32 = LOW + 0x800;
/// Descriptors that fit into the LDT.
pub const LDT_ENTRIES: u32 = 32;
/// The IDT: 256 gates of protected mode.
pub const IDT: u32 = LOW + 0x1000;
/// The interrupt table of real mode: 256 far pointers.
pub const IVT: u32 = LOW + 0x1800;
const STATE: u32 = LOW + 0x3000;
/// The TSS that is loaded at the start, with room for a whole I/O permission map.
pub const TSS: u32 = LOW + 0x4000;
/// Another TSS.
pub const TSS2: u32 = LOW + 0x7000;
/// The runtime's real-mode code.
const REAL: u32 = LOW + 0x8000;
/// Stubs of real mode, [`REAL_STUB_SIZE`] apart.
const REAL_STUBS: u32 = REAL + 0x400;
const REAL_STUB_SIZE: u32 = 8;
/// Stubs of protected mode, [`STUB_SIZE`] apart.
const STUBS: u32 = LOW + 0x9000;
const STUB_SIZE: u32 = 16;
/// 64 KiB for the code under test.
pub const CODE: u32 = 0x3_0000;
/// 64 KiB for its data.
pub const DATA: u32 = 0x4_0000;
/// 64 KiB for its stack, and for that of CPL 0 where the code runs further outward.
pub const STACK: u32 = 0x5_0000;
/// 64 KiB for a stack at an outer CPL.
pub const OUTER_STACK: u32 = 0x6_0000;
/// 64 KiB for what another task needs.
pub const OTHER: u32 = 0x7_0000;
/// Offset of the stacks' tops in their 64 KiB.
pub const TOP: u32 = 0xf000;

/// Selector of the flat 32-bit code segment at CPL 0.
pub const CODE32: u32 = 0x30;
/// Selector of the flat writable data segment at CPL 0.
pub const DATA32: u32 = 0x10;
/// Selector of the flat 32-bit code segment at CPL 3.
pub const OUTER_CODE: u32 = 0x18 | 3;
/// Selector of the flat writable data segment at CPL 3.
pub const OUTER_DATA: u32 = 0x20 | 3;
/// Selector of the TSS at [`TSS`], 32-bit, 104 bytes, loaded at the start.
pub const TSS_SELECTOR: u32 = 0x38;
/// Selector of the LDT, loaded at the start.
pub const LDT_SELECTOR: u32 = 0x40;
/// Selector of the TSS at [`TSS2`], 32-bit, 104 bytes, available.
pub const TSS2_SELECTOR: u32 = 0x48;
/// The way to real mode: the runtime's code as a 16-bit segment, and data with real mode's limit.
const REAL_CODE: u32 = 0x50;
const REAL_DATA: u32 = 0x58;
/// Selector of 16-bit code at [`CODE`], 64 KiB, CPL 0.
pub const CODE16: u32 = 0x60;
/// Selector of writable 16-bit data at [`DATA`], 64 KiB, CPL 0.
pub const DATA16: u32 = 0x68;
/// Selector of a 16-bit stack at [`STACK`], 64 KiB, CPL 0.
pub const STACK16: u32 = 0x70;
/// Selector of the first descriptor that a test may fill.
pub const FREE: u32 = 0x78;

/// EFLAGS: nested task.
pub const FLAG_NT: u32 = 1 << 14;
/// EFLAGS: virtual-8086 mode.
pub const FLAG_VM: u32 = 1 << 17;

/// The registers of legacy mode, at the start of a run and at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // The fields are the registers they are named for.
pub struct Regs {
    pub eax: u32,
    pub ecx: u32,
    pub edx: u32,
    pub ebx: u32,
    pub esp: u32,
    pub ebp: u32,
    pub esi: u32,
    pub edi: u32,
    pub eip: u32,
    pub eflags: u32,
    pub es: u32,
    pub cs: u32,
    pub ss: u32,
    pub ds: u32,
    pub fs: u32,
    pub gs: u32,
    pub ldtr: u32,
    pub tr: u32,
    pub cr0: u32,
    pub cr3: u32,
    pub cr4: u32,
}

/// How the code is entered. The numbers are those of asm/legacy.s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Way {
    /// By a far return at CPL 0.
    Same = 0,
    /// By IRET to an outer CPL.
    Outward = 1,
    /// Through real mode's own door.
    Real = 2,
    /// By IRET with VM set.
    Virtual = 3,
}

/// What the assembly reads and writes at [`STATE`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct State {
    regs: Regs,
    way: u32,
    cached: u32,
    vector: u32,
    error: u32,
    inner_esp: u32,
    inner_ss: u32,
    pad0: u16,
    gdt_limit: u16,
    gdt_base: u32,
    pad1: u16,
    idt_limit: u16,
    idt_base: u32,
}

const _: () = assert!(core::mem::offset_of!(State, way) == 0x54);
const _: () = assert!(core::mem::offset_of!(State, gdt_limit) == 0x6e);
const _: () = assert!(size_of::<State>() <= 0x80);

#[cfg(feature = "bare-metal")]
core::arch::global_asm!(
    include_str!("../../asm/legacy.s"),
    state = const STATE,
    low = const LOW,
    low_segment = const LOW >> 4,
    real_segment = const REAL >> 4,
    real_code = const REAL_CODE,
    options(att_syntax)
);
