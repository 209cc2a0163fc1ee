//! Flaws for a fuzzer to find: small ones, as real device models and parsers have had them.
//!
//! Only a build with the feature `planted` can be flawed. Each flaw is an `if planted::has(..)` at the
//! place that is wrong; without the feature [`has`] is the constant `false`, so nothing of it is left in
//! the program. With it, [`VARIABLE`] names the one flaw that this process has.
//!
//! [`crate::sabotage`] is for the tests of guests; this is for `cargo xtask fuzz planted`.

/// Makes [`Flaw`] and its table from lines of variant, name, target and sentence.
macro_rules! flaws {
    ($($flaw:ident $name:literal $target:literal $what:literal)*) => {
        /// One flaw.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Flaw {
            $(#[doc = $what] $flaw,)*
        }

        impl Flaw {
            /// All of them.
            pub const ALL: &[Flaw] = &[$(Flaw::$flaw),*];

            /// Its name, as [`VARIABLE`] has it.
            #[cfg(feature = "planted")]
            pub const fn name(self) -> &'static str {
                match self { $(Flaw::$flaw => $name,)* }
            }

            /// The fuzz target that is to find it.
            #[cfg(feature = "planted")]
            pub const fn target(self) -> &'static str {
                match self { $(Flaw::$flaw => $target,)* }
            }

            /// What is wrong, in a sentence.
            #[cfg(feature = "planted")]
            pub const fn what(self) -> &'static str {
                match self { $(Flaw::$flaw => $what,)* }
            }
        }
    };
}

flaws! {
    UartScratch "uart-scratch-kept" "uart" "A reset leaves the scratch register as it was."
    UartRing "uart-ring-end" "uart" "The slot of a received character does not begin anew at the ring's end."
    UartThre "uart-thre-unsaved" "uart" "The pending transmitter interrupt is no part of the saved state."
    UartDivisor "uart-divisor-zero" "uart" "A divisor of 0 is divided by when it is written."
    UartHead "uart-head-unchecked" "snapshot" "A saved head beyond the ring is taken back."
    UartCleared "uart-clear-forgets" "uart" "Clearing the receiver leaves its time-out struck."
    UartOverrun "uart-overrun-untold" "uart" "An overrun of the receive FIFO is not told in LSR."
    UartPriority "uart-thre-first" "uart" "An empty transmitter comes before received data in IIR."
    UartTrigger "uart-trigger-late" "uart" "The receive FIFO's level of 14 is 15."
    UartPatience "uart-stop-bit" "uart" "The character time-out does not count the second stop bit."
    RtcIndex "rtc-index-unmasked" "rtc" "The index is used with the NMI mask in it."
    RtcFlags "rtc-flags-unsaved" "rtc" "The flags of register C are no part of the saved state."
    RtcMonth "rtc-month-unchecked" "rtc" "A month that is none is looked up all the same."
    RtcSeconds "rtc-seconds-counted" "rtc" "Time that passed is counted second by second."
    RtcPeriod "rtc-period-stuck" "rtc" "The periodic deadline is that of the tick that was."
    RtcSet "rtc-set-uie" "rtc" "SET leaves the interrupt of an update's end enabled."
    RtcAny "rtc-alarm-any" "rtc" "An alarm byte below 0xe0 is not any."
    RtcEnded "rtc-update-untold" "rtc" "With the alarm an update's end is not told."
    RtcSaturday "rtc-saturday" "rtc" "Saturday is day 0 of the week."
    PmCarry "pm-timer-carry" "acpi-pm" "A change of the timer's highest bit from set to clear is not told."
    PmClear "pm-status-word" "acpi-pm" "Clearing the status of one button clears all of them."
    KbdRam "i8042-ram-end" "i8042" "The controller's RAM is indexed one too high."
    KbdRoom "i8042-room-ignored" "i8042" "Keys are taken though the buffer has no room."
    KbdRelease "i8042-release-kept" "i8042" "A reset leaves half of a key code behind."
    KbdIdentity "i8042-identity-order" "i8042" "The keyboard tells the second byte of its identity first."
    KbdTypematic "i8042-typematic-option" "i8042" "The typematic rate is taken as a command."
    KbdLoop "i8042-loop-aux" "i8042" "A byte that is looped back as the keyboard's is the auxiliary device's."
    KbdOrder "i8042-key-first" "i8042" "A key's code comes before an answer that waits."
    IoapicLast "ioapic-last-entry" "ioapic" "There is one redirection entry too many."
    IoapicIrr "ioapic-irr-unsaved" "ioapic" "The remote IRR is no part of the saved state."
    IoapicReserved "ioapic-reserved-kept" "ioapic" "Reserved bits of a redirection entry can be written."
    IoapicPolarity "ioapic-polarity" "ioapic" "The polarity of a line cannot be written."
    IoapicArbitration "ioapic-arbitration" "ioapic" "The arbitration identifier does not follow the identifier."
    IoapicLogical "ioapic-logical" "ioapic" "A logical destination is sent as a physical one."
    BarMask "pci-bar-mask" "pci-config" "A base address takes bits below its length."
    BarStale "pci-bar-stale" "pci-config" "A base address that is written by halves goes on being decoded where it was."
    SlotIndex "pci-slot-unchecked" "pci-config" "The slot that the guest selects is an index without a check."
    MsiAllowed "msi-allowed-unchecked" "pci-config" "More messages can be allowed than there are."
    MsiPending "msi-pending-kept" "pci-config" "Switching messages off leaves them pending."
    EduBounds "edu-dma-unchecked" "edu" "The end of a transfer is not held against the buffer."
    EduWrap "edu-dma-wraps" "edu" "Start and length of a transfer are added without a check."
    EduFactorial "edu-factorial-endless" "edu" "A factorial has as many factors as the guest asks for."
    EduBusy "edu-reset-busy" "edu" "A reset leaves the engine busy."
    EduBuffer "edu-buffer-unsaved" "edu" "The engine's buffer is saved up to its first byte that is 0."
    EduZero "edu-factorial-zero" "edu" "The factorial of 0 is 0."
    EduStatus "edu-status-kept" "edu" "The interrupt after a factorial cannot be switched off."
    EduHalf "edu-dma-half" "edu" "The lower half of what is written to a DMA register comes into the upper half, too."
    TestdevPiece "testdev-piece-unchecked" "snapshot" "The place of a saved piece of memory is not checked."
    PciTestName "pci-testdev-test" "pci-testdev" "A test that is not there can be started."
    VtdQueue "vtd-queue-endless" "vtd" "Invalidation goes on to a tail that is never reached."
    VtdStuck "vtd-invalidate-stuck" "vtd" "An invalidation of the context cache is never done."
    VtdTail "vtd-tail-unmasked" "vtd" "The queue's tail keeps bits that it does not have."
    VtdLevels "vtd-levels-unchecked" "vtd" "The depth of a page table is what the guest says."
    VtdCompleted "vtd-completed-kept" "vtd" "A reset leaves a completion told."
    VtdLost "vtd-lost-recorded" "vtd" "A fault is recorded although one was lost that is still told."
    VtdWritable "vtd-write-unchecked" "vtd" "A page that can be read can be written."
    VtdStatus "vtd-status-early" "vtd" "A wait descriptor's status comes a dword before its place."
    VtdDwords "vtd-walk-each-dword" "vtd" "The address of each dword of a transfer is translated by itself."
    TestdevEnd "testdev-last-piece" "testdev" "The last bytes of the test device's memory are not saved."
    TestdevLines "testdev-lines-unsaved" "testdev" "Lines from 16 on are no part of the saved state."
    FwCfgSkip "fw-cfg-skip-length" "fw-cfg" "A skip goes as far as the guest says."
    FwCfgByte "fw-cfg-byte-unchecked" "fw-cfg" "The byte after an item's last one is read."
    FwCfgFill "fw-cfg-fill-beyond" "fw-cfg" "The zeroes of a DMA read go on to the end of a dword."
    FwCfgWrite "fw-cfg-write-taken" "fw-cfg" "A DMA write is answered as if it were done."
    SynicRoutes "hyperv-routes-empty" "hyperv-testdev" "A processor without routes stays in the table."
    BusSplit "bus-split-same" "board" "An access that is too wide is split into one as wide."
    BusLogged "bus-pieces-logged" "board" "Each piece of an access that is split has a record of its own in the log."
    ScriptEscape "script-escape-short" "script" "An escape at the end of a line is read beyond it."
    ScriptSize "script-size-wraps" "script" "A size with a unit is multiplied without a check."
    StateShort "state-first-byte" "snapshot" "The first byte of a state is looked at before it is there."
    ElfFile "elf-filesz-wraps" "loader" "Offset and length of a segment are added without a check."
    ElfNote "elf-note-unchecked" "loader" "A note's name is as long as it says."
    MultibootBefore "multiboot-before" "loader" "The bytes before a multiboot header are not counted."
}

/// The environment variable that names the flaw; without it there is none.
#[cfg(feature = "planted")]
pub const VARIABLE: &str = "EXITLAB_PLANTED";

/// Whether this process has the flaw: never, without the feature.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn has(_: Flaw) -> bool {
    false
}

/// Whether this process has the flaw that the environment names. A name that is no flaw's is none: whoever
/// sets it has read the list.
#[cfg(feature = "planted")]
pub fn has(flaw: Flaw) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Flaw>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var(VARIABLE).ok()?;
        Flaw::ALL.iter().copied().find(|flaw| flaw.name() == name)
    });
    *chosen == Some(flaw)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known before the program runs, so the compiler leaves nothing of a flaw.
    #[cfg(not(feature = "planted"))]
    #[test]
    fn a_normal_build_has_no_flaw() {
        const NONE: bool = {
            let mut at = 0;
            while at < Flaw::ALL.len() {
                assert!(!has(Flaw::ALL[at]));
                at += 1;
            }
            true
        };
        assert!(NONE && Flaw::ALL.len() >= 30);
    }

    #[cfg(feature = "planted")]
    #[test]
    fn names_are_unlike_and_nothing_is_wrong_unasked() {
        for (i, flaw) in Flaw::ALL.iter().enumerate() {
            assert!(Flaw::ALL[..i].iter().all(|other| other.name() != flaw.name()));
            assert!(flaw.what().ends_with('.') && !flaw.target().is_empty());
            assert!(std::env::var_os(VARIABLE).is_some() || !has(*flaw));
        }
    }
}
