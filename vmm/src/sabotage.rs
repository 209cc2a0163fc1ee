//! Ways in which a VMM can be wrong, to see whether tests notice.
//!
//! Only a VMM that is built with the feature `sabotage` has any of this. It then does one of these
//! things wrong, the one that [`VARIABLE`] names. What each flaw does is at the place that is wrong:
//! `launch::sabotage` for the board and the processor, `hv::kvm::lab` for what a lab relays.

use std::str::FromStr;

/// The environment variable that names the flaw; without it nothing is wrong.
pub const VARIABLE: &str = "EXITLAB_SABOTAGE";

/// Makes [`Flaw`] and its table from lines of variant, name, areas and sentence.
macro_rules! flaws {
    ($($flaw:ident $name:literal [$($area:literal)*] $what:literal)*) => {
        /// One way to be wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Flaw {
            $(#[doc = $what] $flaw,)*
        }

        impl Flaw {
            /// All of them.
            pub const ALL: &[Flaw] = &[$(Flaw::$flaw),*];

            /// Its name, as [`VARIABLE`] has it.
            pub const fn name(self) -> &'static str {
                match self { $(Flaw::$flaw => $name,)* }
            }

            /// The areas of cases that should notice.
            pub const fn areas(self) -> &'static [&'static str] {
                match self { $(Flaw::$flaw => &[$($area),*],)* }
            }

            /// What is wrong, in a sentence.
            pub const fn what(self) -> &'static str {
                match self { $(Flaw::$flaw => $what,)* }
            }
        }
    };
}

flaws! {
    CpuidApicId "cpuid-apic-id" ["cpuid" "smp" "apic"] "CPUID tells each vCPU an APIC ID that is one too high."
    CpuidNoX2apic "cpuid-no-x2apic" ["apic" "cpuid" "msr"] "CPUID hides x2APIC."
    CpuidNoHypervisor "cpuid-no-hypervisor" ["cpuid" "pvclock"] "CPUID's hypervisor bit is clear."
    CpuidNoFxsr "cpuid-no-fxsr" ["cpuid" "exceptions"] "CPUID hides FXSAVE, which 64-bit processors have."
    CpuidVendor "cpuid-vendor" ["cpuid"] "The two leaves with the vendor's name differ."
    CpuidAvxSize "cpuid-avx-size" ["cpuid"] "CPUID tells a wrong size of the AVX state."
    ReadBit "port-read-bit" ["io" "devices" "replay"] "Reads of two bytes from a port lose their highest bit."
    WriteLost "port-write-lost" ["io" "devices"] "Every fifth write of the test device's latch is lost."
    WriteHalf "port-write-half" ["io" "devices" "replay"] "Writes of four bytes to a port arrive as two."
    MmioSwapped "mmio-swapped" ["io" "replay"] "MMIO reads of four bytes come with their bytes in reverse."
    MmioLost "mmio-lost" ["io" "replay"] "MMIO writes of one byte are lost."
    NothingIsZero "nothing-is-zero" ["io" "devices" "replay"] "Where no device answers, the guest reads zeros."
    FlagClobbered "flag-clobbered" ["io"] "After an MMIO write the carry flag is set."
    RegisterClobbered "register-clobbered" ["io"] "After an MMIO read R13 is zero."
    LineLost "line-lost" ["rtc" "apic"] "GSI 8 never rises."
    LineStuck "line-stuck" ["uart" "apic"] "GSI 4 never falls."
    LineElsewhere "line-elsewhere" ["uart" "apic"] "What is to be GSI 4 is GSI 3."
    ClockBack "clock-back" ["pvclock"] "kvmclock goes a millisecond back at every 16th exit."
    TscApart "tsc-apart" ["time" "pvclock" "smp"] "The TSC of every vCPU but the first is far ahead."
    PmTimerFast "pm-timer-fast" ["time" "devices"] "The ACPI PM timer counts twice as fast."
    RtcOdd "rtc-odd" ["rtc"] "The RTC's registers read without their lowest bit."
    MsrWriteLost "msr-write-lost" ["msr" "cpl"] "Writes of IA32_LSTAR are lost."
    MsrReadZero "msr-read-zero" ["msr" "time" "state"] "IA32_TSC_ADJUST reads as zero."
    TripleIsReset "triple-is-reset" ["exceptions"] "A triple fault looks like a reset that the guest asked for."
    DirtyUnreported "dirty-unreported" ["lab" "memslot"] "The dirty log lacks the first page that was written."
    DirtyTooMuch "dirty-too-much" ["lab" "memslot"] "The dirty log names the page after a written one, too."
    ClearIgnored "clear-ignored" ["lab" "memslot"] "Clearing the dirty log does nothing."
    RingLost "ring-lost" ["lab" "memslot"] "The first entry of each harvest of a dirty ring is lost."
    SlotStale "slot-stale" ["lab" "memslot"] "A memslot that moves stays mapped where it was, too."
    SlotUndead "slot-undead" ["lab" "memslot"] "A memslot that is deleted stays."
    ReadOnlyIgnored "read-only-ignored" ["memslot"] "A read-only memslot can be written."
    HostWriteLost "host-write-lost" ["lab" "memslot" "pv"] "What the host writes into a guest's memory is lost."
    UserfaultWrong "userfault-wrong" ["lab" "memslot"] "Memory that appears on demand holds another page's contents."
    EventsLost "events-lost" ["lab" "state"] "Events that are put into a vCPU are lost."
    DebugLost "debug-lost" ["lab" "state"] "Debugging of the guest is not switched on."
    FilterLost "filter-lost" ["lab" "state"] "The filter of MSRs is not set."
    ClockIgnored "clock-ignored" ["pvclock" "lab"] "KVM_SET_CLOCK is ignored."
    MsiLost "msi-lost" ["x2apic"] "Every message-signalled interrupt that is sent by ioctl is lost."
    WindowLost "window-lost" ["x2apic"] "The VMM never asks KVM for an interrupt window."
    NestedLost "nested-lost" ["lab" "state"] "Nested state that is put into a vCPU is lost."
    NestedIoWrong "nested-io-wrong" ["nested_svm" "nested_vmx"] "What a guest of a guest reads from a port has its lowest bit inverted."
    NestedNoHlt "nested-no-hlt" ["nested_vmx"] "The VMX that a guest sees cannot exit at HLT."
    SmiLost "smi-lost" ["smm"] "KVM_SMI does nothing."
    SpacesMixed "spaces-mixed" ["smm"] "A memslot for system-management mode lands in the ordinary address space."
    MceBank "mce-bank" ["mce"] "A machine check is injected into bank 0, whatever it is for."
    MoveForgetsSmbase "move-forgets-smbase" ["smm"] "A guest that moves into another VM loses its SMBASE."
    MoveForgetsMsr "move-forgets-msr" ["lab" "state"] "A guest that moves into another VM loses IA32_LSTAR."
    MoveForgetsXsave "move-forgets-xsave" ["lab" "state"] "A guest that moves into another VM loses its vector registers."
    MoveForgetsTimer "move-forgets-timer" ["lab" "state"] "A guest that moves into another VM loses its local APIC's timer."
    MoveForgetsDebug "move-forgets-debug" ["lab" "state"] "A guest that moves into another VM loses its breakpoints."
}

/// What [`VARIABLE`] says that is no flaw's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no flaw is called `{0}`; `vmm flaws` lists them")]
pub struct NoFlaw(pub String);

impl FromStr for Flaw {
    type Err = NoFlaw;

    fn from_str(name: &str) -> Result<Flaw, NoFlaw> {
        let found = Flaw::ALL.iter().copied().find(|flaw| flaw.name() == name);
        found.ok_or_else(|| NoFlaw(name.to_owned()))
    }
}

impl Flaw {
    /// The flaw that the environment names, if it names one.
    ///
    /// # Errors
    /// It names one that there is not.
    pub fn chosen() -> Result<Option<Flaw>, NoFlaw> {
        match std::env::var_os(VARIABLE) {
            None => Ok(None),
            Some(name) => name.to_string_lossy().parse().map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unlike_and_lead_back() {
        for (i, flaw) in Flaw::ALL.iter().enumerate() {
            assert_eq!(flaw.name().parse(), Ok(*flaw));
            assert!(Flaw::ALL[..i].iter().all(|other| other.name() != flaw.name()));
            assert!(!flaw.areas().is_empty() && flaw.what().ends_with('.'));
        }
        assert!("none".parse::<Flaw>().unwrap_err().to_string().contains("vmm flaws"));
    }
}
