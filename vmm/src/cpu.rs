//! A processor's registers as plain values, known to no hypervisor.

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Type field of the descriptor (SDM vol. 3, 3.4.5.1 and 3.5).
    pub kind: u8,
    /// Code or data, not a system descriptor (S flag).
    pub code_or_data: bool,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// Available to software.
    pub avl: bool,
    /// 64-bit code.
    pub long: bool,
    /// 32-bit default operand size (D/B flag).
    pub default_32: bool,
    /// The limit counts pages.
    pub granular: bool,
    /// A null selector was loaded.
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// The registers that say what a processor is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of their numbers.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: the order of their numbers.
    pub segments: [Segment; 6],
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table.
    pub ldt: Segment,
    /// Global descriptor table.
    pub gdt: Table,
    /// Interrupt descriptor table.
    pub idt: Table,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8, the task priority.
    pub cr8: u64,
    /// EFER.
    pub efer: u64,
    /// APIC base MSR.
    pub apic_base: u64,
}

/// CS's index in [`CpuState::segments`].
pub const CS: usize = 1;
/// RSP's index in [`CpuState::gpr`].
pub const RSP: usize = 4;
/// The interrupt flag in RFLAGS.
pub const RFLAGS_IF: u64 = 1 << 9;

impl CpuState {
    /// Linear address of the next instruction.
    pub fn linear_rip(&self) -> u64 {
        let cs = &self.segments[CS];
        if cs.long { self.rip } else { cs.base.wrapping_add(self.rip) & 0xffff_ffff }
    }

    /// Width of the code that it executes, in bits.
    pub fn bitness(&self) -> u32 {
        let cs = &self.segments[CS];
        match (cs.long, cs.default_32) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        }
    }
}
