//! The least that a program can do with KVM: what a VMM is held against (`benches`).

use std::fmt;
use std::io;
use std::ptr;

use kvm_bindings::*;
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use super::vcpu::KVM_RUN;
use super::vm::{KvmVm, TSS_ADDRESS, ram_slots, set_region};
use super::{Host, KvmVcpu, call};
use crate::exit::Exit;
use crate::hv::HvError;
use crate::ram::{GuestRam, PAGE};

/// What a hypercall returns that nobody knows (`KVM_ENOSYS`).
const UNKNOWN_CALL: u64 = -1000i64 as u64;
/// What is mapped of what a vCPU shares: its page, and the one with the data of port accesses.
const SHARED: usize = (KVM_PIO_PAGE_OFFSET as usize + 1) * PAGE as usize;
/// The memslot that [`change_slot`] makes, behind all that RAM has, and where it is: above all memory.
const SLOT: u32 = 100;
const SLOT_START: u64 = 1 << 36;

/// A vCPU that nobody serves between two reads of one port: it is entered again at once, reads get what is in
/// the page by chance, accesses to MSRs raise #GP, hypercalls are unknown.
pub struct Yardstick {
    // Mapped a second time: what the vCPU's own type knows of the last exit does not matter here.
    shared: *mut kvm_run,
    vcpu: KvmVcpu,
    port: u16,
    served: Served,
}

/// What somebody has to do all the same, or the guest would wait for ever.
pub enum Served {
    /// Nothing.
    Nothing,
    /// After a write to this port the vCPU is to leave the guest where that can take an interrupt, once.
    Windows(u16),
    /// A byte that is written to this port is told.
    Writes(u16, Box<dyn FnMut(u8) + Send>),
}

// SAFETY: the mapping belongs to this value alone, and moves with it.
unsafe impl Send for Yardstick {}

impl Yardstick {
    /// A vCPU whose last exit was a read of four bytes of `port`, and which was not entered since.
    ///
    /// # Errors
    /// When the host has no room for the mapping.
    pub fn new(vcpu: KvmVcpu, port: u16, served: Served) -> Result<Yardstick, HvError> {
        let (rights, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), SHARED, rights, shared, vcpu.raw, 0) };
        if at == libc::MAP_FAILED {
            let (what, source) = ("mmap of a vCPU's page".into(), io::Error::last_os_error());
            return Err(HvError::Call { what, source });
        }
        Ok(Yardstick { shared: at.cast(), vcpu, port, served })
    }

    /// Gives `number` to the read that the guest waits for, and enters it until the next.
    ///
    /// # Errors
    /// The exit that nobody can go on after.
    pub fn round(&mut self, number: u32) -> Result<(), Exit> {
        let run = self.shared;
        let data = self.data().ok_or(Exit::Unknown(KVM_EXIT_IO))?;
        // SAFETY: four bytes inside of the mapping, which KVM reads at the next entry.
        unsafe { data.cast::<u32>().write_unaligned(number) };
        loop {
            // SAFETY: the descriptor is an open vCPU's; KVM_RUN takes no argument.
            if unsafe { libc::ioctl(self.vcpu.raw, KVM_RUN, 0) } != 0 {
                match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN) => continue,
                    errno => return Err(Exit::RunError(errno.unwrap_or(0))),
                }
            }
            // SAFETY: KVM writes the page only during KVM_RUN, which this thread makes, and the exit's reason
            // says which member of the union holds.
            unsafe {
                let data = &raw mut (*run).__bindgen_anon_1;
                match (*run).exit_reason {
                    KVM_EXIT_IO => {
                        let port = (*data).io.port;
                        if port == self.port {
                            return Ok(());
                        }
                        match &self.served {
                            Served::Nothing => {}
                            Served::Windows(at) if *at == port => {
                                (*run).request_interrupt_window = 1;
                            }
                            Served::Writes(at, _) if *at == port => self.tell(),
                            Served::Windows(_) | Served::Writes(..) => {}
                        }
                    }
                    KVM_EXIT_MMIO => {}
                    KVM_EXIT_IRQ_WINDOW_OPEN => (*run).request_interrupt_window = 0,
                    KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => (*data).msr.error = 1,
                    KVM_EXIT_HYPERCALL => (*data).hypercall.ret = UNKNOWN_CALL,
                    reason => return Err(Exit::Unknown(reason)),
                }
            }
        }
    }
}

impl Yardstick {
    /// Where the data of the last exit lies, which was a port access.
    fn data(&self) -> Option<*mut u8> {
        // SAFETY: the member of the union that holds after such an exit.
        let at = unsafe { (*self.shared).__bindgen_anon_1.io.data_offset } as usize;
        // SAFETY: it lies inside of the mapping.
        (at <= SHARED - 4).then(|| unsafe { self.shared.cast::<u8>().add(at) })
    }

    /// Tells the byte that was written.
    fn tell(&mut self) {
        let Some(data) = self.data() else { return };
        // SAFETY: a byte inside of the mapping.
        let byte = unsafe { data.read() };
        if let Served::Writes(_, f) = &mut self.served {
            f(byte);
        }
    }
}

impl fmt::Debug for Yardstick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Yardstick { shared: _, vcpu, port, served: _ } = self;
        f.debug_struct("Yardstick").field("vcpu", vcpu).field("port", port).finish_non_exhaustive()
    }
}

impl Drop for Yardstick {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, of this length; nothing points into it any more.
        unsafe { libc::munmap(self.shared.cast(), SHARED) };
    }
}

/// A VM of as few calls as there can be: one memslot for each run of RAM, and vCPUs in real mode. It is entered
/// at address 0 and left at its first exit.
#[derive(Debug)]
pub struct BareVm {
    fd: VmFd,
    // Behind the VM, which shows it.
    ram: GuestRam,
}

impl BareVm {
    /// A VM with this memory.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn new(host: &Host, ram: GuestRam, irqchip: bool) -> Result<BareVm, HvError> {
        let fd = call("KVM_CREATE_VM", host.kvm.create_vm())?;
        if host.kvm.check_extension(Cap::SetTssAddr) {
            call("KVM_SET_TSS_ADDR", fd.set_tss_address(TSS_ADDRESS))?;
        }
        for region in ram_slots(&ram, 1)? {
            // SAFETY: the memory is mapped, and is kept for the VM's life.
            call(set_region(&region), unsafe { fd.set_user_memory_region(region) })?;
        }
        if irqchip {
            call("KVM_CREATE_IRQCHIP", fd.create_irq_chip())?;
        }
        Ok(BareVm { fd, ram })
    }

    /// The vCPU with this APIC ID.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn create_vcpu(&self, index: u32) -> Result<BareVcpu, HvError> {
        let fd = self.fd.create_vcpu(index.into());
        Ok(BareVcpu(call(format!("KVM_CREATE_VCPU of vCPU {index}"), fd)?))
    }

    /// As [`KvmVm::change_slot`].
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn change_slot(&self, memory: &GuestRam) -> Result<(), HvError> {
        change_slot(&self.fd, memory)
    }

    /// Its memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

/// A vCPU of a [`BareVm`].
#[derive(Debug)]
pub struct BareVcpu(VcpuFd);

impl BareVcpu {
    /// Enters the guest at address `start`, below 64 KiB, in real mode, until it leaves; the reason's number.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn run_from(&mut self, start: u16) -> Result<u32, HvError> {
        let mut sregs = call("KVM_GET_SREGS", self.0.get_sregs())?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        call("KVM_SET_SREGS", self.0.set_sregs(&sregs))?;
        let regs = kvm_regs { rip: start.into(), rflags: 2, ..Default::default() };
        call("KVM_SET_REGS", self.0.set_regs(&regs))?;
        call("KVM_RUN", self.0.run().map(drop))?;
        Ok(self.0.get_kvm_run().exit_reason)
    }
}

impl KvmVm {
    /// Shows `memory` above all RAM, and takes it away again: what a change of memslots costs.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn change_slot(&self, memory: &GuestRam) -> Result<(), HvError> {
        change_slot(&self.fd, memory)
    }
}

fn change_slot(fd: &VmFd, memory: &GuestRam) -> Result<(), HvError> {
    let first = ram_slots(memory, 1)?.into_iter().next();
    for size in first.iter().flat_map(|slot| [slot.memory_size, 0]) {
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            guest_phys_addr: SLOT_START,
            memory_size: size,
            ..first.unwrap_or_default()
        };
        // SAFETY: the memory is mapped while it is borrowed, and the slot is gone before that ends.
        call(set_region(&region), unsafe { fd.set_user_memory_region(region) })?;
    }
    Ok(())
}
