//! What stands behind the board when KVM drives it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::Nanos;
use crate::host::console::OutputQueue;
use crate::host::events::Wake;
use crate::hv::kvm::CurrentVm;
use crate::hv::{HvError, Vm};
use crate::machine::Backplane;

/// Interrupt lines to KVM, output to the console, deadlines to the supervising thread.
pub(super) struct KvmBackplane {
    vm: Arc<CurrentVm>,
    output: Option<Arc<OutputQueue>>,
    wake: Wake,
    /// What the ends of interrupts are told of, by the I/O APIC's pin.
    routes: Mutex<[Option<(u64, u32)>; 24]>,
    /// Calls that the host refused: a guest's doing never ends the VM.
    refused: AtomicU64,
}

impl KvmBackplane {
    pub(super) fn new(vm: Arc<CurrentVm>, output: Option<Arc<OutputQueue>>, wake: Wake) -> Self {
        KvmBackplane { vm, output, wake, routes: Mutex::default(), refused: AtomicU64::new(0) }
    }

    fn count(&self, done: Result<(), HvError>) {
        if done.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Backplane for KvmBackplane {
    fn set_line(&self, gsi: u32, level: bool) {
        self.count(self.vm.get().set_line(gsi, level));
    }

    #[inline]
    fn output(&self, _: &'static str, byte: u8) {
        if let Some(queue) = &self.output {
            queue.push(byte);
        }
    }

    fn remap_page(&self, gpa: u64) {
        self.count(self.vm.get().remap_page(gpa));
    }

    fn raise_sint(&self, vp: u32, sint: u8) {
        self.count(self.vm.raise_sint(vp, sint));
    }

    fn watch_sint(&self, vp: u32, sint: u8) {
        self.count(self.vm.watch_sint(vp, sint));
    }

    fn message(&self, address: u64, data: u32) {
        if self.vm.get().message(address, data).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn await_end(&self, pin: u32, message: Option<(u64, u32)>) {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = routes.get_mut(pin as usize) {
            *route = message;
            if self.vm.get().set_routes(&*routes).is_err() {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn deadline(&self, _: Nanos) {
        self.wake.wake();
    }
}
