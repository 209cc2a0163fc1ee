//! VM exits: why, and what the VMCS says of it (Intel SDM volume 3, chapter "VM Exits"; appendix
//! "VMX Basic Exit Reasons").

use super::fields::Field;
use super::get;
use core::fmt;

/// A basic exit reason.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reason(pub u16);

macro_rules! reasons {
    ($($name:ident = $number:literal;)*) => {
        #[allow(missing_docs)] // The manual's own names.
        impl Reason {
            $(pub const $name: Reason = Reason($number);)*

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}
reasons! {
    EXCEPTION = 0;
    EXTERNAL_INTERRUPT = 1;
    TRIPLE_FAULT = 2;
    INIT = 3;
    SIPI = 4;
    INTERRUPT_WINDOW = 7;
    NMI_WINDOW = 8;
    TASK_SWITCH = 9;
    CPUID = 10;
    GETSEC = 11;
    HLT = 12;
    INVD = 13;
    INVLPG = 14;
    RDPMC = 15;
    RDTSC = 16;
    RSM = 17;
    VMCALL = 18;
    VMCLEAR = 19;
    VMLAUNCH = 20;
    VMPTRLD = 21;
    VMPTRST = 22;
    VMREAD = 23;
    VMRESUME = 24;
    VMWRITE = 25;
    VMXOFF = 26;
    VMXON = 27;
    CR_ACCESS = 28;
    MOV_DR = 29;
    IO = 30;
    RDMSR = 31;
    WRMSR = 32;
    INVALID_GUEST_STATE = 33;
    MSR_LOADING = 34;
    MWAIT = 36;
    MONITOR_TRAP = 37;
    MONITOR = 39;
    PAUSE = 40;
    MACHINE_CHECK_AT_ENTRY = 41;
    TPR_BELOW_THRESHOLD = 43;
    APIC_ACCESS = 44;
    VIRTUAL_EOI = 45;
    GDTR_IDTR = 46;
    LDTR_TR = 47;
    EPT_VIOLATION = 48;
    EPT_MISCONFIGURATION = 49;
    INVEPT = 50;
    RDTSCP = 51;
    PREEMPTION_TIMER = 52;
    INVVPID = 53;
    WBINVD = 54;
    XSETBV = 55;
    APIC_WRITE = 56;
    RDRAND = 57;
    INVPCID = 58;
    VMFUNC = 59;
    ENCLS = 60;
    RDSEED = 61;
    PML_FULL = 62;
    XSAVES = 63;
    XRSTORS = 64;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "exit reason {}", self.0),
        }
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How an event is delivered: bits 10:8 of interruption information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The manual's own names.
pub enum Kind {
    External = 0,
    Nmi = 2,
    Hardware = 3,
    Software = 4,
    PrivilegedSoftware = 5,
    SoftwareException = 6,
}

/// An interruption-information word is valid.
pub const EVENT_VALID: u64 = 1 << 31;
/// An error code goes with the event.
pub const EVENT_ERROR: u64 = 1 << 11;
/// Exit information: the exit interrupts an IRET that had unblocked NMIs.
pub const EVENT_NMI_UNBLOCKED: u64 = 1 << 12;

/// The interruption information of an event without an error code.
pub const fn event(kind: Kind, vector: u8) -> u64 {
    EVENT_VALID | (kind as u64) << 8 | vector as u64
}

/// The interruption information of an event with an error code.
pub const fn event_with_error(kind: Kind, vector: u8) -> u64 {
    event(kind, vector) | EVENT_ERROR
}

/// What the VMCS says of the last VM exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The whole exit reason; bit 31 says that the entry failed.
    pub full_reason: u64,
    /// Why.
    pub reason: Reason,
    /// What about it.
    pub qualification: u64,
    /// How long the instruction was.
    pub length: u64,
    /// Where the guest is.
    pub rip: u64,
    /// The event that is the exit's cause.
    pub event: u64,
    /// The event during whose delivery the exit came.
    pub vectoring: u64,
    /// The host's RFLAGS behind the exit.
    pub host_rflags: u64,
}

/// The entry failed in its checks of guest state or in loading MSRs.
pub const ENTRY_FAILED: u64 = 1 << 31;

impl Exit {
    /// Reads the current VMCS behind a VM exit.
    pub(super) fn read(host_rflags: u64) -> Exit {
        let full_reason = get(Field::EXIT_REASON);
        Exit {
            full_reason,
            reason: Reason(full_reason as u16),
            qualification: get(Field::QUALIFICATION),
            length: get(Field::EXIT_LENGTH),
            rip: get(Field::GUEST_RIP),
            event: get(Field::EXIT_EVENT),
            vectoring: get(Field::VECTORING_EVENT),
            host_rflags,
        }
    }

    /// Whether the entry failed and the guest never ran.
    pub const fn entry_failed(&self) -> bool {
        self.full_reason & ENTRY_FAILED != 0
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.entry_failed() {
            write!(f, "failed entry, ")?;
        }
        write!(f, "{} qualification {:#x}", self.reason, self.qualification)?;
        write!(f, " length {} at {:#x}", self.length, self.rip)?;
        if self.event & EVENT_VALID != 0 {
            write!(f, " event {:#x}", self.event)?;
        }
        if self.vectoring & EVENT_VALID != 0 {
            write!(f, " during event {:#x}", self.vectoring)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    #[test]
    fn events_are_those_of_the_manual() {
        assert_eq!(event(Kind::Nmi, 2), 0x8000_0202);
        assert_eq!(event_with_error(Kind::Hardware, 14), 0x8000_0b0e);
    }

    #[test]
    fn an_exit_says_what_it_is() {
        assert_eq!(format!("{}", Reason::CPUID), "CPUID (10)");
        assert_eq!(format!("{}", Reason(99)), "exit reason 99");
    }
}
