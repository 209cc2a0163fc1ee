//! What KVM does beside the run of a vCPU: eventfds in the place of exits and of interrupt lines, and what is
//! asked of a vCPU or of memory from outside.

use std::io;

use kvm_ioctls::{IoEventAddress, NoDatamatch};
use vmm_sys_util::eventfd::EventFd;

use super::{KvmVcpu, KvmVm, call};
use crate::hv::HvError;
use crate::ram::{GuestRam, RamRange};

impl KvmVm {
    /// A write to `port`, of any width, or of four bytes with this value, no longer leaves KVM: it signals `event`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn signal_writes(
        &self,
        port: u16,
        value: Option<u32>,
        event: &EventFd,
    ) -> Result<(), HvError> {
        let at = IoEventAddress::Pio(port.into());
        let done = match value {
            None => self.fd.register_ioevent(event, &at, NoDatamatch),
            Some(value) => self.fd.register_ioevent(event, &at, value),
        };
        call(format!("KVM_IOEVENTFD of port {port:#x}"), done)
    }

    /// As [`KvmVm::signal_writes`], of one byte with this value.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn signal_byte(&self, port: u16, value: u8, event: &EventFd) -> Result<(), HvError> {
        let at = IoEventAddress::Pio(port.into());
        let done = self.fd.register_ioevent(event, &at, value);
        call(format!("KVM_IOEVENTFD of port {port:#x}"), done)
    }

    /// `event` makes a pulse on a line.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn pulse_by(&self, gsi: u32, event: &EventFd) -> Result<(), HvError> {
        call(format!("KVM_IRQFD of GSI {gsi}"), self.fd.register_irqfd(event, gsi))
    }
}

impl KvmVcpu {
    /// Has the vCPU leave the guest where that can take an interrupt, or no more
    /// (`kvm_run.request_interrupt_window`).
    pub fn want_window(&mut self, on: bool) {
        self.interrupt_window(Some(on));
    }
}

/// Gives memory back to the host: it reads as zeros, and the host finds a page for each that is touched.
///
/// # Errors
/// When it is not one run of RAM, or the host refuses.
pub fn discard(ram: &GuestRam, range: RamRange) -> Result<(), HvError> {
    let what = || format!("madvise(MADV_DONTNEED) of {:#x}+{:#x}", range.start, range.len);
    let failed = |source| HvError::Call { what: what(), source };
    let host = ram.host_address(range).map_err(|e| failed(io::Error::other(e)))?;
    // SAFETY: the range is guest memory, to which no reference points; only what is in it changes.
    match unsafe { libc::madvise(host as *mut _, range.len as usize, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(failed(io::Error::last_os_error())),
    }
}
