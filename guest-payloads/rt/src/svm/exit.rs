//! What a #VMEXIT says: exit codes (AMD APM volume 2, appendix C) and the words that come with them.

use core::fmt;

macro_rules! codes {
    ($($name:ident = $code:literal, $about:literal;)*) => {
        $(#[doc = $about] pub const $name: u64 = $code;)*

        fn name(code: u64) -> Option<&'static str> {
            match code {
                $($code => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}
codes! {
    INTR = 0x60, "A physical interrupt.";
    NMI = 0x61, "A non-maskable interrupt.";
    SMI = 0x62, "A system management interrupt.";
    INIT = 0x63, "INIT.";
    VINTR = 0x64, "A virtual interrupt is about to be taken.";
    CR0_SEL_WRITE = 0x65, "CR0 was written, and bits other than TS and MP would change.";
    IDTR_READ = 0x66, "`sidt`.";
    GDTR_READ = 0x67, "`sgdt`.";
    LDTR_READ = 0x68, "`sldt`.";
    TR_READ = 0x69, "`str`.";
    IDTR_WRITE = 0x6a, "`lidt`.";
    GDTR_WRITE = 0x6b, "`lgdt`.";
    LDTR_WRITE = 0x6c, "`lldt`.";
    TR_WRITE = 0x6d, "`ltr`.";
    RDTSC = 0x6e, "`rdtsc`.";
    RDPMC = 0x6f, "`rdpmc`.";
    PUSHF = 0x70, "`pushf`.";
    POPF = 0x71, "`popf`.";
    CPUID = 0x72, "`cpuid`.";
    RSM = 0x73, "`rsm`.";
    IRET = 0x74, "`iret`.";
    SWINT = 0x75, "`int n`.";
    INVD = 0x76, "`invd`.";
    PAUSE = 0x77, "`pause`.";
    HLT = 0x78, "`hlt`.";
    INVLPG = 0x79, "`invlpg`.";
    INVLPGA = 0x7a, "`invlpga`.";
    IOIO = 0x7b, "A port.";
    MSR = 0x7c, "`rdmsr` or `wrmsr`.";
    TASK_SWITCH = 0x7d, "A task switch.";
    FERR_FREEZE = 0x7e, "The processor is frozen for an x87 error.";
    SHUTDOWN = 0x7f, "Shutdown: a triple fault.";
    VMRUN = 0x80, "`vmrun`.";
    VMMCALL = 0x81, "`vmmcall`.";
    VMLOAD = 0x82, "`vmload`.";
    VMSAVE = 0x83, "`vmsave`.";
    STGI = 0x84, "`stgi`.";
    CLGI = 0x85, "`clgi`.";
    SKINIT = 0x86, "`skinit`.";
    RDTSCP = 0x87, "`rdtscp`.";
    ICEBP = 0x88, "`icebp`.";
    WBINVD = 0x89, "`wbinvd`.";
    MONITOR = 0x8a, "`monitor`.";
    MWAIT = 0x8b, "`mwait`.";
    MWAIT_ARMED = 0x8c, "`mwait` with the monitor armed.";
    XSETBV = 0x8d, "`xsetbv`.";
    RDPRU = 0x8e, "`rdpru`.";
    EFER_WRITE_TRAP = 0x8f, "EFER has been written.";
    INVPCID = 0xa2, "`invpcid`.";
    NPF = 0x400, "A nested page fault.";
    INVALID = 0xffff_ffff_ffff_ffff, "VMRUN found the VMCB illegal.";
}

/// A read of control register `n`.
pub const fn cr_read(n: u8) -> u64 {
    n as u64
}
/// A write of control register `n`.
pub const fn cr_write(n: u8) -> u64 {
    0x10 + n as u64
}
/// A read of debug register `n`.
pub const fn dr_read(n: u8) -> u64 {
    0x20 + n as u64
}
/// A write of debug register `n`.
pub const fn dr_write(n: u8) -> u64 {
    0x30 + n as u64
}
/// Exception `vector`.
pub const fn exception(vector: u8) -> u64 {
    0x40 + vector as u64
}

/// NPF's EXITINFO1: the fault came in the translation of the final address (15.25.6).
pub const NPF_FINAL: u64 = 1 << 32;
/// NPF's EXITINFO1: the fault came in the walk of the guest's own tables.
pub const NPF_WALK: u64 = 1 << 33;

/// A #VMEXIT: its code, and EXITINFO1 and 2.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// EXITCODE.
    pub code: u64,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
}

impl fmt::Debug for Exit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Exit { code, info1, info2 } = *self;
        match (code, name(code)) {
            (_, Some(name)) => write!(f, "exit {name}")?,
            (0..0x20, _) => {
                let what = if code < 0x10 { "read" } else { "write" };
                write!(f, "exit CR{}_{what}", code % 0x10)?
            }
            (0x20..0x40, _) => {
                let what = if code < 0x30 { "read" } else { "write" };
                write!(f, "exit DR{}_{what}", code % 0x10)?
            }
            (0x40..0x60, _) => write!(f, "exit exception {}", code - 0x40)?,
            _ => f.write_str("exit")?,
        }
        write!(f, " ({code:#x}) info1 {info1:#x} info2 {info2:#x}")
    }
}
