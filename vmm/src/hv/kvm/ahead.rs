//! What KVM offers of CPUID, asked for while something else is done.
//!
//! KVM executes CPUID for each leaf that it tells of, which a hypervisor below it intercepts each time: on a host
//! that is a guest itself, that one call takes longer than all others of a VM's start together.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use super::Host;
use crate::cpuid::Cpuid;
use crate::hv::HvError;

/// [`Host::supported_cpuid`], on a thread of its own if that gets a processor in time.
#[derive(Debug)]
pub struct Supported {
    /// Somebody asks.
    taken: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<Result<Cpuid, HvError>>>>,
}

impl Supported {
    /// To be asked when it is wanted.
    pub fn later() -> Supported {
        Supported { taken: Arc::default(), thread: None }
    }

    /// Asks the KVM behind this device node.
    pub fn ahead(kvm: &Path) -> Supported {
        let taken = Arc::new(AtomicBool::new(false));
        let (kvm, is_taken) = (kvm.to_owned(), taken.clone());
        let ask = move || {
            let is_first = !is_taken.swap(true, Ordering::SeqCst);
            is_first.then(|| Host::open(&kvm)?.supported_cpuid())
        };
        // Without a thread, it is asked later.
        Supported { taken, thread: Builder::new().name("cpuid".to_owned()).spawn(ask).ok() }
    }

    /// What KVM offers; `host` is the same one.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn of(self, host: &Host) -> Result<Cpuid, HvError> {
        let Some(thread) = self.thread else { return host.supported_cpuid() };
        if !self.taken.swap(true, Ordering::SeqCst) {
            return host.supported_cpuid();
        }
        match thread.join() {
            Ok(Some(Ok(asked))) => Ok(asked),
            // Who is asked here tells what is wrong; a thread that panicked does not.
            _ => host.supported_cpuid(),
        }
    }
}
