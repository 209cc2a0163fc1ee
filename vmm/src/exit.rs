//! Exits are values: what a vCPU leaves guest mode with, and what it is answered.

use std::fmt;

use crate::access::Access;

/// Why a vCPU left guest mode. Small and `Copy`, so that the last ones can be kept; what is bulky
/// about an unexpected exit (registers, an instruction's bytes) the vCPU is asked for afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// One item of port or memory-mapped I/O. String forms and odd lengths are split before.
    Io(Access),
    /// HLT, where no interrupt controller in the kernel waits for the wake-up.
    Hlt,
    /// Shutdown: a triple fault.
    Shutdown,
    /// The guest or KVM reports an event of the whole system.
    SystemEvent(SystemEvent),
    /// KVM could not go on; the suberror is `KVM_INTERNAL_ERROR_*`.
    InternalError {
        /// 1 emulation, 2 simultaneous exceptions, 3 delivery of an event, 4 unexpected exit.
        suberror: u32,
    },
    /// The processor refused the guest's state at entry, or left it in a way that KVM does not know.
    FailEntry {
        /// The hardware's reason (VMX: VM-instruction error or exit qualification).
        reason: u64,
        /// The physical processor it happened on; [`Exit::NO_CPU`] for an exit that KVM does not
        /// know (`KVM_EXIT_UNKNOWN`).
        cpu: u32,
    },
    /// A debug event: a breakpoint or a single step that was asked for.
    Debug {
        /// Vector: 1 for #DB, 3 for #BP.
        vector: u32,
        /// Linear address of the instruction.
        pc: u64,
        /// DR6 as the guest would have seen it.
        dr6: u64,
    },
    /// A hypercall that KVM passes on.
    Hypercall {
        /// Its number.
        nr: u64,
        /// Its first three arguments.
        args: [u64; 3],
    },
    /// A Hyper-V hypercall that KVM passes on (TLFS, Hypercall Interface).
    HypervCall {
        /// The input value: call code in bits 15:0, fast in bit 16, counts above.
        input: u64,
        /// Its two parameters: addresses, or the words themselves if it is fast.
        params: [u64; 2],
    },
    /// The guest wrote a register of its synthetic interrupt controller that its VMM must know of:
    /// these are all of them (TLFS, Virtual Interrupt Controller).
    HypervSynic {
        /// The virtual processor.
        vp: u16,
        /// The MSR that was written.
        msr: u32,
        /// SCONTROL.
        control: u64,
        /// SIEFP: the event flags page.
        events: u64,
        /// SIMP: the message page.
        messages: u64,
    },
    /// The guest wrote an MSR of Hyper-V's synthetic debugger, and waits for the status.
    HypervDebug {
        /// The MSR.
        msr: u32,
    },
    /// RDMSR of an MSR that KVM passes on.
    Rdmsr {
        /// The MSR.
        index: u32,
    },
    /// WRMSR to an MSR that KVM passes on.
    Wrmsr {
        /// The MSR.
        index: u32,
        /// The value.
        value: u64,
    },
    /// An EOI for this vector that a split irqchip must tell its I/O APIC of.
    IoapicEoi(u8),
    /// The TPR was lowered (`KVM_EXIT_SET_TPR`).
    SetTpr,
    /// The vCPU can take an interrupt now, as was asked for.
    IrqWindow,
    /// KVM could not resolve an access to guest memory.
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_*`.
        flags: u64,
        /// First guest-physical address.
        gpa: u64,
        /// Length in bytes.
        size: u64,
    },
    /// The dirty ring is full and must be harvested.
    DirtyRingFull,
    /// The processor took a bus lock and was asked to say so.
    BusLock,
    /// The processor left through a notify VM exit (no progress within the window).
    Notify,
    /// KVM_RUN itself failed with this error number.
    RunError(i32),
    /// KVM_RUN came back without one: a signal or `immediate_exit`.
    Interrupted,
    /// An exit reason that this VMM does not know.
    Unknown(u32),
}

/// What kind of event a guest or KVM reports of the whole system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// The guest switched itself off.
    Shutdown,
    /// The guest asks for a reset.
    Reset,
    /// The guest says that it crashed.
    Crash,
    /// Another type of `KVM_SYSTEM_EVENT_*`.
    Other(u32),
}

/// The board's answer: how the vCPU goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Enter the guest; a write or an event is done with.
    Resume,
    /// Enter the guest, whose read gets this value.
    Read(u64),
    /// Enter the guest, whose RDMSR or WRMSR raises #GP.
    Fault,
    /// Do not enter again: the VM ends.
    Stop(Stop),
}

/// How a VM ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest wrote this value to the exit device.
    Exit(u8),
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest went to this ACPI sleep state.
    Sleep(u8),
    /// A triple fault.
    TripleFault,
    /// Every vCPU is halted and nothing will wake one.
    Halted,
    /// The guest reports that it crashed.
    Crash,
    /// An exit that the board has no answer to.
    Unexpected,
    /// The time that the user gave is over.
    Timeout,
    /// The user asked for the end (a signal).
    Interrupted,
}

impl Exit {
    /// The processor of an [`Exit::FailEntry`] that is an exit unknown to KVM.
    pub const NO_CPU: u32 = u32::MAX;
}

impl Stop {
    /// Exit status of a VMM process whose guest ended so. Odd ones are the guest's own words
    /// (`value * 2 + 1`), even ones the VMM's.
    pub const fn status(self) -> u8 {
        match self {
            Stop::Exit(value) => (value << 1) | 1,
            Stop::PowerOff | Stop::Sleep(_) => 0,
            Stop::TripleFault => 4,
            Stop::Unexpected => 6,
            Stop::Halted => 8,
            Stop::Reset => 10,
            Stop::Crash => 12,
            Stop::Timeout => 124,
            Stop::Interrupted => 130,
        }
    }

    /// Whether a report of the vCPUs' state helps whoever reads how the guest ended.
    pub const fn wants_report(self) -> bool {
        matches!(
            self,
            Stop::TripleFault | Stop::Unexpected | Stop::Halted | Stop::Crash | Stop::Timeout
        )
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Exit(v) => write!(f, "the guest wrote {v:#x} to the exit device"),
            Stop::PowerOff => f.write_str("the guest switched itself off"),
            Stop::Reset => f.write_str("the guest asked for a reset"),
            Stop::Sleep(s) => write!(f, "the guest went to ACPI sleep state S{s}"),
            Stop::TripleFault => f.write_str("triple fault"),
            Stop::Halted => f.write_str("every vCPU is halted and nothing will wake one"),
            Stop::Crash => f.write_str("the guest reports that it crashed"),
            Stop::Unexpected => f.write_str("an exit that the board has no answer to"),
            Stop::Timeout => f.write_str("the time given to the guest is over"),
            Stop::Interrupted => f.write_str("interrupted by the user"),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Io(access) => write!(f, "{access}"),
            Exit::Hlt => f.write_str("hlt"),
            Exit::Shutdown => f.write_str("shutdown (triple fault)"),
            Exit::SystemEvent(e) => write!(f, "system event {e:?}"),
            Exit::InternalError { suberror } => {
                let what = match suberror {
                    1 => "emulation failed",
                    2 => "simultaneous exceptions",
                    3 => "event delivery failed",
                    4 => "unexpected hardware exit",
                    _ => "unknown suberror",
                };
                write!(f, "KVM internal error, suberror {suberror}: {what}")
            }
            Exit::FailEntry { reason, cpu: Exit::NO_CPU } => {
                write!(f, "hardware exit {reason:#x}, which KVM does not know")
            }
            Exit::FailEntry { reason, cpu } => {
                write!(f, "VM entry failed: hardware reason {reason:#x} on CPU {cpu}")
            }
            Exit::Debug { vector, pc, dr6 } => {
                write!(f, "debug vector {vector} at {pc:#x}, dr6 {dr6:#x}")
            }
            Exit::Hypercall { nr, args: [a, b, c] } => {
                write!(f, "hypercall {nr:#x} ({a:#x}, {b:#x}, {c:#x})")
            }
            Exit::HypervCall { input, params: [a, b] } => {
                write!(f, "Hyper-V hypercall {input:#x} ({a:#x}, {b:#x})")
            }
            Exit::HypervSynic { vp, msr, control, events, messages } => {
                write!(
                    f,
                    "synic of VP {vp}, MSR {msr:#x}: control {control:#x}, events {events:#x}, \
                     messages {messages:#x}"
                )
            }
            Exit::HypervDebug { msr } => write!(f, "Hyper-V debug MSR {msr:#x}"),
            Exit::Rdmsr { index } => write!(f, "rdmsr {index:#x}"),
            Exit::Wrmsr { index, value } => write!(f, "wrmsr {index:#x} {value:#x}"),
            Exit::IoapicEoi(vector) => write!(f, "eoi of vector {vector:#x}"),
            Exit::SetTpr => f.write_str("tpr lowered"),
            Exit::IrqWindow => f.write_str("interrupt window open"),
            Exit::MemoryFault { flags, gpa, size } => {
                write!(f, "memory fault at {gpa:#x}, {size} bytes, flags {flags:#x}")
            }
            Exit::DirtyRingFull => f.write_str("dirty ring full"),
            Exit::BusLock => f.write_str("bus lock"),
            Exit::Notify => f.write_str("notify window expired"),
            Exit::RunError(errno) => {
                write!(f, "KVM_RUN failed: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Exit::Interrupted => f.write_str("interrupted"),
            Exit::Unknown(reason) => write!(f, "KVM exit reason {reason}, unknown to this VMM"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_word_never_meets_the_vmms_own() {
        for value in 0..=255 {
            assert_eq!(Stop::Exit(value).status() & 1, 1);
        }
        let own = [
            Stop::PowerOff,
            Stop::Reset,
            Stop::Sleep(3),
            Stop::TripleFault,
            Stop::Halted,
            Stop::Crash,
            Stop::Unexpected,
            Stop::Timeout,
            Stop::Interrupted,
        ];
        for stop in own {
            assert_eq!(stop.status() & 1, 0, "{stop}");
        }
    }

    #[test]
    fn an_exit_is_told_in_one_line() {
        let unknown = Exit::FailEntry { reason: 0x42, cpu: Exit::NO_CPU };
        assert_eq!(unknown.to_string(), "hardware exit 0x42, which KVM does not know");
        let call = Exit::Hypercall { nr: 12, args: [1, 2, 3] };
        assert_eq!(call.to_string(), "hypercall 0xc (0x1, 0x2, 0x3)");
    }

    #[test]
    fn an_exit_is_small_enough_to_keep_the_last_ones_of() {
        assert!(size_of::<Exit>() <= 40);
    }
}
