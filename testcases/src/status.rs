//! How a `vmm` process ends.
//!
//! An odd exit status is the guest's word, `(value << 1) | 1` of what it wrote to the exit port; see
//! [`payload_abi::ExitValue`]. An even one is the VMM's, and listed in [`VmmEnd`].

/// What the VMM itself says by an even exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmmEnd {
    /// 0: the guest switched the machine off.
    PowerOff,
    /// 2: wrong input, or the host lacks something; no guest was run.
    BadInput,
    /// 4: a triple fault.
    TripleFault,
    /// 6: KVM reported an internal error, a failed entry, or an exit the VMM does not know.
    InternalError,
    /// 8: every vCPU is halted and nothing can wake one.
    Halted,
    /// 10: the guest asked for a reset.
    Reset,
    /// 12: the guest reported its own crash.
    Crash,
    /// 14: the VMM failed: a flaw in it, or the host refused something.
    VmmFailed,
    /// 124: the guest ran for longer than `--timeout`.
    Timeout,
    /// 130: somebody interrupted the VMM.
    Interrupted,
}

impl VmmEnd {
    /// All of them, by status.
    pub const ALL: [VmmEnd; 10] = [
        VmmEnd::PowerOff,
        VmmEnd::BadInput,
        VmmEnd::TripleFault,
        VmmEnd::InternalError,
        VmmEnd::Halted,
        VmmEnd::Reset,
        VmmEnd::Crash,
        VmmEnd::VmmFailed,
        VmmEnd::Timeout,
        VmmEnd::Interrupted,
    ];

    /// The exit status.
    pub const fn status(self) -> u8 {
        match self {
            VmmEnd::PowerOff => 0,
            VmmEnd::BadInput => 2,
            VmmEnd::TripleFault => 4,
            VmmEnd::InternalError => 6,
            VmmEnd::Halted => 8,
            VmmEnd::Reset => 10,
            VmmEnd::Crash => 12,
            VmmEnd::VmmFailed => 14,
            VmmEnd::Timeout => 124,
            VmmEnd::Interrupted => 130,
        }
    }

    /// The end that an exit status stands for.
    pub fn from_status(status: u8) -> Option<VmmEnd> {
        VmmEnd::ALL.into_iter().find(|end| end.status() == status)
    }

    /// The word for it, as a case's `expect` writes it.
    pub const fn word(self) -> &'static str {
        match self {
            VmmEnd::PowerOff => "power-off",
            VmmEnd::BadInput => "bad-input",
            VmmEnd::TripleFault => "triple-fault",
            VmmEnd::InternalError => "internal-error",
            VmmEnd::Halted => "halted",
            VmmEnd::Reset => "reset",
            VmmEnd::Crash => "crash",
            VmmEnd::VmmFailed => "vmm-failed",
            VmmEnd::Timeout => "timeout",
            VmmEnd::Interrupted => "interrupted",
        }
    }

    /// What happened, as a sentence's predicate about the run.
    pub const fn story(self) -> &'static str {
        match self {
            VmmEnd::PowerOff => "the guest powered off",
            VmmEnd::BadInput => "the VMM refused its input or lacks something of the host",
            VmmEnd::TripleFault => "the guest triple-faulted",
            VmmEnd::InternalError => "KVM could not run the guest on",
            VmmEnd::Halted => "every vCPU halted for ever",
            VmmEnd::Reset => "the guest asked for a reset",
            VmmEnd::Crash => "the guest reported a crash",
            VmmEnd::VmmFailed => "the VMM failed",
            VmmEnd::Timeout => "the guest did not end in time",
            VmmEnd::Interrupted => "the VMM was interrupted",
        }
    }

    /// Whether a guest brought it about, so that a case can expect it. What is left speaks of the
    /// VMM or the host.
    pub const fn is_guests_doing(self) -> bool {
        !matches!(self, VmmEnd::BadInput | VmmEnd::VmmFailed | VmmEnd::Interrupted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_even_distinct_and_read_back() {
        for end in VmmEnd::ALL {
            assert_eq!(end.status() % 2, 0, "{end:?} must not meet a guest's odd status");
            assert_eq!(VmmEnd::from_status(end.status()), Some(end));
        }
        assert_eq!(VmmEnd::from_status(16), None);
        assert_eq!(VmmEnd::from_status(1), None);
    }
}
