//! Why a vCPU left guest mode, without what comes with it: a row of the statistics.

use crate::access::{Dir, Space};
use crate::exit::Exit;

macro_rules! reasons {
    ($($reason:ident $name:literal,)*) => {
        /// An exit's reason. Port and memory accesses are told apart by direction.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each is the exit of that name")]
        pub enum Reason { $($reason,)* }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Reason] = &[$(Reason::$reason,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$reason => $name,)* }
            }
        }
    };
}

reasons! {
    IoIn "io in",
    IoOut "io out",
    MmioRead "mmio read",
    MmioWrite "mmio write",
    Hlt "hlt",
    Shutdown "shutdown",
    SystemEvent "system event",
    InternalError "internal error",
    FailEntry "fail entry",
    Debug "debug",
    Hypercall "hypercall",
    HypervCall "hyperv call",
    HypervSynic "hyperv synic",
    HypervDebug "hyperv debug",
    Rdmsr "rdmsr",
    Wrmsr "wrmsr",
    IoapicEoi "ioapic eoi",
    SetTpr "set tpr",
    IrqWindow "irq window",
    MemoryFault "memory fault",
    DirtyRingFull "dirty ring full",
    BusLock "bus lock",
    Notify "notify",
    RunError "run error",
    Unknown "unknown",
    Interrupted "interrupted",
}

impl Reason {
    /// That of an exit.
    pub fn of(exit: &Exit) -> Reason {
        match exit {
            Exit::Io(access) => Reason::of_access(access.space, access.dir),
            Exit::Hlt => Reason::Hlt,
            Exit::Shutdown => Reason::Shutdown,
            Exit::SystemEvent(_) => Reason::SystemEvent,
            Exit::InternalError { .. } => Reason::InternalError,
            Exit::FailEntry { .. } => Reason::FailEntry,
            Exit::Debug { .. } => Reason::Debug,
            Exit::Hypercall { .. } => Reason::Hypercall,
            Exit::HypervCall { .. } => Reason::HypervCall,
            Exit::HypervSynic { .. } => Reason::HypervSynic,
            Exit::HypervDebug { .. } => Reason::HypervDebug,
            Exit::Rdmsr { .. } => Reason::Rdmsr,
            Exit::Wrmsr { .. } => Reason::Wrmsr,
            Exit::IoapicEoi(_) => Reason::IoapicEoi,
            Exit::SetTpr => Reason::SetTpr,
            Exit::IrqWindow => Reason::IrqWindow,
            Exit::MemoryFault { .. } => Reason::MemoryFault,
            Exit::DirtyRingFull => Reason::DirtyRingFull,
            Exit::BusLock => Reason::BusLock,
            Exit::Notify => Reason::Notify,
            Exit::RunError(_) => Reason::RunError,
            Exit::Interrupted => Reason::Interrupted,
            Exit::Unknown(_) => Reason::Unknown,
        }
    }

    /// That of an access.
    #[inline(always)]
    pub fn of_access(space: Space, dir: Dir) -> Reason {
        match (space, dir) {
            (Space::Port, Dir::Read) => Reason::IoIn,
            (Space::Port, Dir::Write(_)) => Reason::IoOut,
            (Space::Mmio, Dir::Read) => Reason::MmioRead,
            (Space::Mmio, Dir::Write(_)) => Reason::MmioWrite,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_differ_and_all_is_in_order() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
