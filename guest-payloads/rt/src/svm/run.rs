//! VMRUN and what stands around it.

use super::exit::Exit;
use super::vmcb::{self, Vmcb};
use crate::trap::{self, Trap};

/// The guest's registers that VMRUN leaves to the hypervisor: all but RAX and RSP, which are in the
/// VMCB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // The registers they are named for.
pub struct Registers {
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    /// Not the guest's: RAX of the hypervisor after #VMEXIT.
    pub host_rax: u64,
}

/// What the hypervisor does around VMRUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// CLGI before; STGI after #VMEXIT, which leaves GIF 0 (APM volume 2, 15.17).
    pub gif: bool,
    /// RFLAGS.IF is 1 at VMRUN: it decides about physical interrupts under V_INTR_MASKING
    /// (15.21.1).
    pub interrupts: bool,
}

impl Around {
    /// As a hypervisor has it: interrupts may end the guest, and wait until STGI.
    pub const USUAL: Around = Around { gif: true, interrupts: false };
    /// With RFLAGS.IF 1 at VMRUN.
    pub const INTERRUPTS: Around = Around { gif: true, interrupts: true };
    /// Neither CLGI nor STGI: GIF is 0 when the call is over.
    pub const BARE: Around = Around { gif: false, interrupts: false };
}

unsafe extern "C" {
    fn rt_svm_run(regs: *mut Registers, vmcb: u64, options: u64);
}

/// Runs the guest of the VMCB at `address` (which need not be one) until it exits. `Err` is what
/// VMRUN itself raised.
pub fn vmrun(regs: &mut Registers, address: u64, around: Around) -> Result<(), Trap> {
    let options = u64::from(around.gif) | u64::from(around.interrupts) << 1;
    trap::arm();
    // SAFETY: the routine keeps what a call keeps. What the guest does with memory is the test's
    // business; the runtime gives it a stack and tables of its own.
    unsafe { rt_svm_run(regs, address, options) };
    trap::taken()
}

/// What the VMCB says about the last #VMEXIT.
pub fn exit_of(vmcb: &Vmcb) -> Exit {
    Exit {
        code: vmcb.get(vmcb::EXITCODE),
        info1: vmcb.get(vmcb::EXITINFO1),
        info2: vmcb.get(vmcb::EXITINFO2),
    }
}

#[cfg(feature = "bare-metal")]
core::arch::global_asm!(
    ".pushsection .text.rt_svm, \"ax\", @progbits",
    ".global rt_svm_run",
    "rt_svm_run:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "push rdx",
    "mov rax, rsi",
    "test dl, 1",
    "jz 2f",
    "clgi",
    "2: test dl, 2",
    "jz 3f",
    "sti",
    "3: mov rbx, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rsi, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov r8, [rdi + 48]",
    "mov r9, [rdi + 56]",
    "mov r10, [rdi + 64]",
    "mov r11, [rdi + 72]",
    "mov r12, [rdi + 80]",
    "mov r13, [rdi + 88]",
    "mov r14, [rdi + 96]",
    "mov r15, [rdi + 104]",
    "mov rdi, [rdi + 32]",
    // A trap in VMRUN goes on behind it, as after `insn!`.
    "4: vmrun",
    "5: push rdi",
    "mov rdi, [rsp + 16]",
    "mov [rdi], rbx",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rsi",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], r8",
    "mov [rdi + 56], r9",
    "mov [rdi + 64], r10",
    "mov [rdi + 72], r11",
    "mov [rdi + 80], r12",
    "mov [rdi + 88], r13",
    "mov [rdi + 96], r14",
    "mov [rdi + 104], r15",
    "mov [rdi + 112], rax",
    "pop [rdi + 32]",
    "pop rdx",
    "pop rdi",
    "test dl, 2",
    "jz 6f",
    "cli",
    "6: test dl, 1",
    "jz 7f",
    "stgi",
    "7: pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".popsection",
    ".pushsection .exitlab.extable, \"a\", @progbits",
    ".balign 4",
    ".long 4b - .",
    ".long 5b - .",
    ".popsection",
);
