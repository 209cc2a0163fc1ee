//! A hypervisor on SVM, for payloads that are one (AMD APM volume 2, chapter 15).
//!
//! ```ignore
//! svm::enable();
//! let mut guest = Guest::new(asm_code!("mov ebx, 7", "vmmcall"));
//! check_eq!(guest.run().code, exit::VMMCALL);
//! check_eq!(guest.regs.rbx, 7);
//! ```
//!
//! A [`Guest`] starts in 64-bit mode at CPL 0 with the hypervisor's page tables and GDT, on a stack of
//! its own, with interrupts off and an IDT of its own: each of its vectors leads to a `vmmcall`, so a
//! trap that the guest takes is an exit that [`Guest::trap`] tells from others. What a guest shares
//! with its hypervisor (TR, FS, GS, the MSRs that VMLOAD loads, CR8, the FPU) is the hypervisor's
//! own, unless a test does VMLOAD and VMSAVE.

pub mod exit;
mod guest;
pub mod npt;
pub mod run;
pub mod vmcb;

pub use exit::Exit;
pub use guest::{Guest, GuestTrap};
pub use run::{Around, Registers};
pub use vmcb::Vmcb;

use crate::cpuid::{self, Feature, Register};
use crate::trap::Trap;
use crate::{frames, insn, reg};

/// EFER: SVM's instructions are enabled (15.4).
pub const EFER_SVME: u64 = 1 << 12;
/// VM_CR: what SVM does at INIT and whether it can be enabled (15.30.1).
pub const VM_CR: u32 = 0xc001_0114;
/// VM_CR: EFER.SVME cannot be set.
pub const VM_CR_SVMDIS: u64 = 1 << 4;
/// VM_CR: SVMDIS and this bit cannot be written.
pub const VM_CR_LOCK: u64 = 1 << 3;
/// The physical address of the host save area (15.30.4).
pub const VM_HSAVE_PA: u32 = 0xc001_0117;

macro_rules! features {
    ($($const:ident = $name:literal, $bit:literal;)*) => {$(
        #[doc = concat!("`", $name, "`, of CPUID leaf 0x8000_000a")]
        pub const $const: Feature = Feature::new($name, 0x8000_000a, 0, Register::Edx, $bit);
    )*};
}
features! {
    NPT = "npt", 0;
    LBRV = "lbrv", 1;
    SVM_LOCK = "svm-lock", 2;
    NRIP_SAVE = "nrip-save", 3;
    VMCB_CLEAN = "vmcb-clean", 5;
    FLUSH_BY_ASID = "flushbyasid", 6;
    DECODE_ASSISTS = "decodeassists", 7;
    PAUSE_FILTER = "pause-filter", 10;
    V_VMSAVE_VMLOAD = "v-vmsave-vmload", 15;
    VGIF = "vgif", 16;
    VMCB_ADDRESS_CHECK = "nested-vmcb-addr-check", 28;
}

/// ASIDs there are, 0 (the hypervisor's) among them.
pub fn asids() -> u32 {
    cpuid::leaf(0x8000_000a, 0).ebx
}

/// Enables SVM on this CPU, and gives it a host save area unless it has one. Ends the test with `skip` if CPUID has no
/// SVM, or the firmware disabled it.
pub fn enable() {
    cpuid::SVM.require();
    match reg::rdmsr(VM_CR) {
        Ok(value) if value & VM_CR_SVMDIS != 0 => {
            crate::skip!("VM_CR is {value:#x}: SVM is disabled by SVMDIS")
        }
        _ => {}
    }
    set_svme(true).unwrap_or_else(|trap| panic!("set EFER.SVME: {trap}"));
    if reg::rdmsr(VM_HSAVE_PA) == Ok(0) {
        let area = frames::alloc().address();
        reg::wrmsr(VM_HSAVE_PA, area).unwrap_or_else(|trap| panic!("write VM_HSAVE_PA: {trap}"));
    }
}

/// Sets or clears EFER.SVME.
pub fn set_svme(on: bool) -> Result<(), Trap> {
    let efer = reg::rdmsr(reg::EFER)? & !EFER_SVME;
    reg::wrmsr(reg::EFER, efer | if on { EFER_SVME } else { 0 })
}

macro_rules! instructions {
    ($($name:ident $text:literal;)*) => {$(
        #[doc = concat!("`", $text, "`.")]
        pub fn $name() -> Result<(), Trap> {
            insn!($text)
        }
    )*};
}
instructions! {
    stgi "stgi";
    clgi "clgi";
    vmmcall "vmmcall";
}

/// `vmload` from the page at `address`: FS, GS, TR, LDTR and the MSRs of [`vmcb::EXTENDED`].
pub fn vmload(address: u64) -> Result<(), Trap> {
    insn!("vmload"; in("rax") address)
}

/// `vmsave` to the page at `address`.
pub fn vmsave(address: u64) -> Result<(), Trap> {
    insn!("vmsave"; in("rax") address)
}

/// `invlpga`: flushes one address in the TLB entries of one ASID.
pub fn invlpga(address: u64, asid: u32) -> Result<(), Trap> {
    insn!("invlpga"; in("rax") address, in("ecx") asid)
}

/// `skinit` with EAX 0.
pub fn skinit() -> Result<(), Trap> {
    insn!("skinit"; inout("eax") 0 => _)
}
