//! Interrupts of Hyper-V's synthetic interrupt sources, requested by the VMM, and word of when the guest
//! is done with them (Linux, Documentation/virt/kvm/api.rst, KVM_IRQ_ROUTING_HV_SINT, and KVM_IRQFD with
//! its resamplefd).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_bindings::*;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::call;
use super::vm::KvmVm;
use crate::hv::HvError;

/// The first GSI of a source: behind those of the I/O APIC.
const FIRST: u32 = 24;
/// Lines of the two PICs.
const PIC_LINES: u32 = 16;
/// Lines of one PIC.
const PIC_PINS: u32 = 8;

/// A source that has a GSI.
#[derive(Debug)]
struct Source {
    vp: u32,
    sint: u8,
    /// The GSI's own descriptor, as KVM wants one; nobody writes it.
    trigger: EventFd,
}

/// The sources of one guest that the VMM has to do with, in the order of their GSIs.
#[derive(Debug)]
pub struct Sints {
    sources: Mutex<Vec<Source>>,
    /// KVM signals it when the guest is done with a message or an interrupt of any of them.
    done: EventFd,
}

fn descriptor() -> Result<EventFd, HvError> {
    let made = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
    made.map_err(|source| HvError::Call { what: "eventfd".to_owned(), source })
}

impl Sints {
    pub(super) fn new() -> Result<Sints, HvError> {
        Ok(Sints { sources: Mutex::default(), done: descriptor()? })
    }

    fn sources(&self) -> MutexGuard<'_, Vec<Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes readable when the guest is done with something.
    pub fn done_fd(&self) -> RawFd {
        self.done.as_raw_fd()
    }

    /// Makes [`Sints::done_fd`] unreadable again.
    pub fn clear_done(&self) {
        // It fails only when nobody wrote.
        let _ = self.done.read();
    }

    /// The GSI of a source, which gets one if it has none.
    pub(super) fn gsi(&self, vm: &KvmVm, vp: u32, sint: u8) -> Result<u32, HvError> {
        let mut sources = self.sources();
        let at = sources.iter().position(|s| (s.vp, s.sint) == (vp, sint));
        if let Some(at) = at {
            return Ok(FIRST + at as u32);
        }
        let gsi = FIRST + sources.len() as u32;
        sources.push(Source { vp, sint, trigger: descriptor()? });
        let made = route(vm, &sources).and_then(|()| self.watch(vm, &sources, gsi));
        if made.is_err() {
            sources.pop();
        }
        made.map(|()| gsi)
    }

    fn watch(&self, vm: &KvmVm, sources: &[Source], gsi: u32) -> Result<(), HvError> {
        let Some(source) = sources.get((gsi - FIRST) as usize) else { return Ok(()) };
        let watched = vm.fd.register_irqfd_with_resample(&source.trigger, &self.done, gsi);
        call(format!("KVM_IRQFD of GSI {gsi}"), watched)
    }

    /// Gives the sources their GSIs in another VM, whose vCPUs are there.
    pub(super) fn move_to(&self, vm: &KvmVm) -> Result<(), HvError> {
        let sources = self.sources();
        if sources.is_empty() {
            return Ok(());
        }
        route(vm, &sources)?;
        (FIRST..).take(sources.len()).try_for_each(|gsi| self.watch(vm, &sources, gsi))
    }
}

/// `KVM_SET_GSI_ROUTING`: the lines of PICs and I/O APIC as KVM has them by itself, and the sources.
fn route(vm: &KvmVm, sources: &[Source]) -> Result<(), HvError> {
    let entry = |gsi, type_, u| kvm_irq_routing_entry { gsi, type_, flags: 0, pad: 0, u };
    let chip = |gsi, irqchip, pin| {
        let u = kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        };
        entry(gsi, KVM_IRQ_ROUTING_IRQCHIP, u)
    };
    let pic = |gsi| match gsi {
        ..PIC_PINS => chip(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        _ => chip(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS),
    };
    let source = |(gsi, source): (u32, &Source)| {
        let hv_sint = kvm_irq_routing_hv_sint { vcpu: source.vp, sint: source.sint.into() };
        entry(gsi, KVM_IRQ_ROUTING_HV_SINT, kvm_irq_routing_entry__bindgen_ty_1 { hv_sint })
    };
    let entries: Vec<_> = (0..FIRST)
        .map(|gsi| chip(gsi, KVM_IRQCHIP_IOAPIC, gsi))
        .chain((0..PIC_LINES).map(pic))
        .chain((FIRST..).zip(sources).map(source))
        .collect();
    let what = || format!("KVM_SET_GSI_ROUTING with {} synthetic sources", sources.len());
    let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| HvError::Call {
        what: what(),
        source: io::Error::from_raw_os_error(libc::E2BIG),
    })?;
    call(what(), vm.fd.set_gsi_routing(&routing))
}
