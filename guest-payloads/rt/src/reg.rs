//! Control, debug, model-specific and descriptor-table registers, and the interrupt flag.
//!
//! What can fault gives a `Result`; what cannot at CPL 0 gives the value.

use crate::insn;
use crate::trap::Trap;
use core::arch::asm;

macro_rules! bits {
    ($($name:ident = $bit:literal, $about:literal;)*) => {
        $(#[doc = $about] pub const $name: u64 = 1 << $bit;)*
    };
}
bits! {
    CR0_PE = 0, "CR0: protected mode.";
    CR0_MP = 1, "CR0: `fwait` obeys TS.";
    CR0_EM = 2, "CR0: no x87.";
    CR0_TS = 3, "CR0: task switched.";
    CR0_NE = 5, "CR0: x87 errors are #MF.";
    CR0_WP = 16, "CR0: read-only pages are so at CPL 0 too.";
    CR0_AM = 18, "CR0: alignment checks allowed.";
    CR0_NW = 29, "CR0: not write-through.";
    CR0_CD = 30, "CR0: cache disable.";
    CR0_PG = 31, "CR0: paging.";
    CR4_TSD = 2, "CR4: `rdtsc` is for CPL 0.";
    CR4_DE = 3, "CR4: debugging extensions.";
    CR4_PSE = 4, "CR4: page size extensions.";
    CR4_PAE = 5, "CR4: physical address extension.";
    CR4_PGE = 7, "CR4: global pages.";
    CR4_OSFXSR = 9, "CR4: `fxsave` and SSE.";
    CR4_OSXMMEXCPT = 10, "CR4: #XM.";
    CR4_UMIP = 11, "CR4: user-mode instruction prevention.";
    CR4_LA57 = 12, "CR4: five-level paging.";
    CR4_FSGSBASE = 16, "CR4: `rdfsbase` and its kin.";
    CR4_PCIDE = 17, "CR4: process-context identifiers.";
    CR4_OSXSAVE = 18, "CR4: `xsave` and XCR0.";
    CR4_SMEP = 20, "CR4: no execution of user pages at CPL 0.";
    CR4_SMAP = 21, "CR4: no access to user pages at CPL 0.";
    CR4_PKE = 22, "CR4: protection keys.";
    EFER_SCE = 0, "EFER: `syscall`.";
    EFER_LME = 8, "EFER: long mode enable.";
    EFER_LMA = 10, "EFER: long mode active.";
    EFER_NXE = 11, "EFER: no-execute pages.";
    FLAG_CF = 0, "RFLAGS: carry.";
    FLAG_TF = 8, "RFLAGS: single step.";
    FLAG_IF = 9, "RFLAGS: interrupts enabled.";
    FLAG_DF = 10, "RFLAGS: strings go downwards.";
    FLAG_RF = 16, "RFLAGS: resume.";
    FLAG_AC = 18, "RFLAGS: alignment check.";
    FLAG_ID = 21, "RFLAGS: CPUID is there.";
}

macro_rules! msrs {
    ($($name:ident = $index:literal, $about:literal;)*) => {
        $(#[doc = $about] pub const $name: u32 = $index;)*
    };
}
msrs! {
    TSC = 0x10, "Time-stamp counter.";
    APIC_BASE = 0x1b, "Local APIC address and mode.";
    SYSENTER_CS = 0x174, "Code segment of `sysenter`.";
    SYSENTER_ESP = 0x175, "Stack pointer of `sysenter`.";
    SYSENTER_EIP = 0x176, "Target of `sysenter`.";
    MISC_ENABLE = 0x1a0, "IA32_MISC_ENABLE.";
    PAT = 0x277, "Page attribute table.";
    TSC_DEADLINE = 0x6e0, "Deadline of the APIC timer.";
    EFER = 0xc000_0080, "Extended features.";
    STAR = 0xc000_0081, "Segments of `syscall`.";
    LSTAR = 0xc000_0082, "Target of `syscall` in 64-bit mode.";
    CSTAR = 0xc000_0083, "Target of `syscall` in compatibility mode.";
    FMASK = 0xc000_0084, "Flags that `syscall` clears.";
    FS_BASE = 0xc000_0100, "Base of FS.";
    GS_BASE = 0xc000_0101, "Base of GS.";
    KERNEL_GS_BASE = 0xc000_0102, "What `swapgs` brings.";
    TSC_AUX = 0xc000_0103, "What `rdtscp` and `rdpid` give.";
}

macro_rules! control {
    ($($get:ident $set:ident $name:literal),*) => {$(
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $get() -> u64 {
            let value: u64;
            // SAFETY: reading a control register at CPL 0 changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }
        #[doc = concat!("Writes ", $name, ". `Err` if the CPU refuses the value.")]
        pub fn $set(value: u64) -> Result<(), Trap> {
            insn!(concat!("mov ", $name, ", {}"); in(reg) value)
        }
    )*};
}
control!(cr0 set_cr0 "cr0", cr2 set_cr2 "cr2", cr3 set_cr3 "cr3", cr4 set_cr4 "cr4", cr8 set_cr8 "cr8");

/// Reads debug register `n`, 0 to 7. `Err` is #UD for 4 and 5 under CR4.DE, #DB under DR7.GD.
pub fn dr(n: u8) -> Result<u64, Trap> {
    let value: u64;
    macro_rules! read {
        ($name:literal) => {
            insn!(concat!("mov {}, ", $name); out(reg) value)
        };
    }
    let done = match n {
        0 => read!("dr0"),
        1 => read!("dr1"),
        2 => read!("dr2"),
        3 => read!("dr3"),
        4 => read!("dr4"),
        5 => read!("dr5"),
        6 => read!("dr6"),
        7 => read!("dr7"),
        _ => panic!("there is no debug register {n}"),
    };
    done.map(|()| value)
}

/// Writes debug register `n`, 0 to 7. `Err` as for [`dr`], and #GP for a value above 32 bits in
/// DR6 or DR7.
pub fn set_dr(n: u8, value: u64) -> Result<(), Trap> {
    macro_rules! write {
        ($name:literal) => {
            insn!(concat!("mov ", $name, ", {}"); in(reg) value)
        };
    }
    match n {
        0 => write!("dr0"),
        1 => write!("dr1"),
        2 => write!("dr2"),
        3 => write!("dr3"),
        4 => write!("dr4"),
        5 => write!("dr5"),
        6 => write!("dr6"),
        7 => write!("dr7"),
        _ => panic!("there is no debug register {n}"),
    }
}

/// Reads a model-specific register.
pub fn rdmsr(index: u32) -> Result<u64, Trap> {
    let (low, high): (u32, u32);
    insn!("rdmsr"; in("ecx") index, out("eax") low, out("edx") high)?;
    Ok(u64::from(low) | u64::from(high) << 32)
}

/// Writes a model-specific register.
pub fn wrmsr(index: u32, value: u64) -> Result<(), Trap> {
    insn!("wrmsr"; in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

/// Reads an extended control register. `Err` is #UD without CR4.OSXSAVE, #GP for a bad index.
pub fn xgetbv(index: u32) -> Result<u64, Trap> {
    let (low, high): (u32, u32);
    insn!("xgetbv"; in("ecx") index, out("eax") low, out("edx") high)?;
    Ok(u64::from(low) | u64::from(high) << 32)
}

/// Writes an extended control register.
pub fn xsetbv(index: u32, value: u64) -> Result<(), Trap> {
    insn!("xsetbv"; in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

/// RFLAGS.
pub fn rflags() -> u64 {
    let value: u64;
    // SAFETY: pushes and pops one word of the stack, as the absence of `nostack` says.
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(preserves_flags)) };
    value
}

/// Turns interrupts off.
pub fn cli() {
    // SAFETY: the runtime keeps no state that depends on interrupts being on. A memory barrier
    // for the compiler, as handlers share memory with what they interrupt.
    unsafe { asm!("cli", options(nostack)) };
}

/// Turns interrupts on; the first can come after the next instruction.
pub fn sti() {
    // SAFETY: the IDT has a gate for every vector.
    unsafe { asm!("sti", options(nostack)) };
}

/// Lets pending interrupts in, and turns them off again: a window of one instruction, in which a
/// CPU takes what is pending. To wait for an interrupt use [`irq::wait_for`](crate::irq::wait_for).
pub fn interrupt_window() {
    // SAFETY: as for `sti` and `cli`. Two `nop`s, since the first is in the shadow of `sti`.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
}

/// Turns interrupts on and waits for one, with no gap in which it could come before the wait;
/// returns with interrupts off.
pub fn wait_for_interrupt() {
    // SAFETY: as for `sti`; `hlt` in its shadow starts before an interrupt is taken.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Halts until an interrupt comes, with the interrupt flag as it is.
pub fn hlt() {
    // SAFETY: changes nothing but time.
    unsafe { asm!("hlt", options(nostack)) };
}

/// Runs `f` with interrupts off, and puts the flag back.
pub fn without_interrupts<T>(f: impl FnOnce() -> T) -> T {
    let on = rflags() & FLAG_IF != 0;
    cli();
    let value = f();
    if on {
        sti();
    }
    value
}

/// Tells the CPU that this is a wait loop.
pub fn pause() {
    core::hint::spin_loop();
}

/// A table register: base and limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Linear address of the table.
    pub base: u64,
    /// Its last byte's offset.
    pub limit: u16,
}

/// What LGDT and SGDT have in memory: 2 bytes of limit, 8 of base.
#[repr(C, packed(2))]
#[derive(Default)]
struct Image {
    limit: u16,
    base: u64,
}

macro_rules! tables {
    ($($load:ident $store:ident $what:literal),*) => {$(
        #[doc = concat!("Loads the ", $what, ". `Err` is #GP for a base that is not canonical.")]
        pub fn $load(table: Table) -> Result<(), Trap> {
            let image = Image { limit: table.limit, base: table.base };
            insn!(concat!(stringify!($load), " [{}]"); in(reg) &raw const image)
        }
        #[doc = concat!("Reads the ", $what, ".")]
        pub fn $store() -> Result<Table, Trap> {
            let mut image = Image::default();
            insn!(concat!(stringify!($store), " [{}]"); in(reg) &raw mut image)?;
            Ok(Table { base: image.base, limit: image.limit })
        }
    )*};
}
tables!(lgdt sgdt "GDT register", lidt sidt "IDT register");

/// Loads the task register.
pub fn ltr(selector: u16) -> Result<(), Trap> {
    insn!("ltr {:x}"; in(reg) selector)
}

/// The task register's selector.
pub fn str() -> Result<u16, Trap> {
    let selector: u16;
    insn!("str {:x}"; out(reg) selector)?;
    Ok(selector)
}

macro_rules! segments {
    ($($get:ident $set:ident $name:literal),*) => {$(
        #[doc = concat!("The selector in ", $name, ".")]
        pub fn $get() -> u16 {
            let value: u16;
            // SAFETY: reads a segment register.
            unsafe { asm!(concat!("mov {:x}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }
        #[doc = concat!("Loads a selector into ", $name, ".")]
        pub fn $set(value: u16) -> Result<(), Trap> {
            insn!(concat!("mov ", $name, ", {:x}"); in(reg) value)
        }
    )*};
}
segments!(ds set_ds "ds", es set_es "es", fs set_fs "fs", gs set_gs "gs", ss set_ss "ss");

/// The selector in CS.
pub fn cs() -> u16 {
    let value: u16;
    // SAFETY: reads a segment register.
    unsafe { asm!("mov {:x}, cs", out(reg) value, options(nomem, nostack)) };
    value
}

/// Loads GDT, TSS and IDT of a CPU that comes up. A fault here is a triple fault.
pub(crate) fn load_tables(gdt: u64, gdt_limit: u16) {
    let gdt = Image { limit: gdt_limit, base: gdt };
    let idt = Image { limit: crate::idt::LIMIT, base: crate::idt::base() };
    // SAFETY: the GDT has the segments now in use at the same selectors; the IDT's gates lead to
    // stubs that preserve all registers.
    unsafe {
        asm!(
            "lgdt [{}]", "lidt [{}]", "ltr {:x}",
            in(reg) &raw const gdt, in(reg) &raw const idt, in(reg) crate::cpu::TSS_SELECTOR,
            options(nostack)
        );
    }
}
