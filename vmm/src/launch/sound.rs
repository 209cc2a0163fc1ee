//! A VMM that does nothing wrong on purpose: what `sabotage` is without the feature of that name.

use std::sync::Arc;

use super::LaunchError;
use crate::cpuid::Cpuid;
use crate::hv::kvm::{KvmLab, KvmVcpu};
use crate::machine::Backplane;
use crate::run::Handler;

/// The lab of a guest.
pub(super) type GuestLab = KvmLab;

/// Changes nothing.
pub(super) struct Saboteur;

impl Saboteur {
    pub(super) fn new() -> Result<Saboteur, LaunchError> {
        Ok(Saboteur)
    }

    pub(super) fn cpuid(&self, leaves: Cpuid) -> Cpuid {
        leaves
    }

    pub(super) fn backplane(&self, behind: Arc<dyn Backplane>) -> Arc<dyn Backplane> {
        behind
    }

    /// Whether a guest without a lab needs one all the same.
    pub(super) fn needs_lab(&self) -> bool {
        false
    }

    pub(super) fn lab(&self, lab: KvmLab, _: &mut [KvmVcpu]) -> GuestLab {
        lab
    }

    pub(super) fn around<H: Handler<KvmVcpu>>(&self, handler: H) -> H {
        handler
    }
}
