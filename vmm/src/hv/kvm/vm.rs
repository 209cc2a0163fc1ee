//! A KVM virtual machine.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use kvm_bindings::*;
use kvm_ioctls::VmFd;

use super::lab::Memories;
use super::ring::{self, DirtyRing};
use super::sints::Sints;
use super::vcpu::KvmVcpu;
use super::{Host, Irqchip, KVM_HC_MAP_GPA_RANGE, KvmConfig, call};
use crate::hv::{HvError, Vm};
use crate::hyperv::Enlightenments;
use crate::ram::{Backing, GuestRam, PAGE, RamRange, VGA_END, VGA_START};

/// Three pages below the BIOS that KVM on Intel keeps for a guest in real mode.
pub(super) const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page that KVM on Intel keeps for a guest without paging.
const IDENTITY_MAP: u64 = 0xfffb_c000;

/// A KVM virtual machine with its memory.
#[derive(Debug)]
pub struct KvmVm {
    pub(super) fd: VmFd,
    ram: Option<GuestRam>,
    irqchip: Irqchip,
    sync_regs: bool,
    dirty_ring: u32,
    hyperv: Enlightenments,
}

impl KvmVm {
    pub(super) fn new(
        host: &Host,
        config: &KvmConfig,
        ram: Option<GuestRam>,
    ) -> Result<KvmVm, HvError> {
        let fd = call("KVM_CREATE_VM", host.kvm.create_vm())?;
        call("KVM_SET_IDENTITY_MAP_ADDR", fd.set_identity_map_address(IDENTITY_MAP))?;
        call("KVM_SET_TSS_ADDR", fd.set_tss_address(TSS_ADDRESS))?;
        // Memory comes before the interrupt controllers: making those starts a grace period of the
        // kernel's that a memslot set afterwards would wait for, several milliseconds.
        if let Some(ram) = &ram {
            set_memory(&fd, ram, host.address_spaces(config.smm))?;
        }
        let enable = |cap: u32, arg: u64, name: &str| {
            let cap = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
            call(format!("KVM_ENABLE_CAP of {name}"), fd.enable_cap(&cap))
        };
        match config.irqchip {
            Irqchip::Kernel => call("KVM_CREATE_IRQCHIP", fd.create_irq_chip())?,
            // The I/O APIC's lines that are outside the kernel: their routes are reserved.
            Irqchip::Split => enable(KVM_CAP_SPLIT_IRQCHIP, 24, "KVM_CAP_SPLIT_IRQCHIP")?,
            Irqchip::None => {}
        }
        if config.pit && config.irqchip == Irqchip::Kernel {
            // The dummy speaker takes port 0x61, which guests calibrate their clocks with.
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            call("KVM_CREATE_PIT2", fd.create_pit2(pit))?;
        }
        if config.needs_long_ids() {
            let flags = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
            enable(KVM_CAP_X2APIC_API, flags.into(), "KVM_CAP_X2APIC_API")?;
        }
        let exits = host.idle_exits(config);
        if exits != 0 {
            // Before the first vCPU, or KVM refuses it.
            let name = "KVM_CAP_X86_DISABLE_EXITS";
            enable(KVM_CAP_X86_DISABLE_EXITS, exits.into(), name)?;
        }
        if config.msr_exits {
            let why = KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL;
            enable(KVM_CAP_X86_USER_SPACE_MSR, why.into(), "KVM_CAP_X86_USER_SPACE_MSR")?;
        }
        if config.hypercall_exits {
            let mask = 1 << KVM_HC_MAP_GPA_RANGE;
            enable(KVM_CAP_EXIT_HYPERCALL, mask, "KVM_CAP_EXIT_HYPERCALL")?;
        }
        if config.dirty_ring != 0 {
            let bytes = u64::from(config.dirty_ring) * u64::from(ring::ENTRY);
            enable(host.ring_capability().0, bytes, "KVM_CAP_DIRTY_LOG_RING")?;
        }
        let KvmConfig { irqchip, sync_regs, dirty_ring, .. } = *config;
        let hyperv = config.hyperv.clone();
        Ok(KvmVm { fd, ram, irqchip, sync_regs, dirty_ring, hyperv })
    }
}

/// One memslot for each run of RAM in each address space, without the VGA window. The memory must
/// outlive the VM.
fn set_memory(fd: &VmFd, ram: &GuestRam, spaces: u32) -> Result<(), HvError> {
    ram.ranges().try_for_each(|range| advise(ram, range))?;
    for region in ram_slots(ram, spaces)? {
        // SAFETY: the memory is mapped, and the VM that is being made keeps it for its life.
        call(set_region(&region), unsafe { fd.set_user_memory_region(region) })?;
    }
    Ok(())
}

pub(super) fn set_region(region: &kvm_userspace_memory_region) -> String {
    let (start, len) = (region.guest_phys_addr, region.memory_size);
    format!("KVM_SET_USER_MEMORY_REGION of {start:#x}+{len:#x}")
}

/// Where the address space is in the number of a memslot (Linux, Documentation/virt/kvm/api.rst, 4.35).
pub(super) const SPACE_SHIFT: u32 = 16;

/// The memslots of the board's RAM: the same in each address space, numbered from 0 there.
pub(super) fn ram_slots(
    ram: &GuestRam,
    spaces: u32,
) -> Result<Vec<kvm_userspace_memory_region>, HvError> {
    let ranges = (0..spaces).flat_map(|space| {
        let ranges = ram.ranges().flat_map(without_vga).flatten();
        (space << SPACE_SHIFT..).zip(ranges)
    });
    let region = |(slot, range): (u32, RamRange)| {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: range.start,
            memory_size: range.len,
            userspace_addr: 0,
        };
        let source = |e| HvError::Call { what: set_region(&region), source: io::Error::other(e) };
        let userspace_addr = ram.host_address(range).map_err(source)?;
        Ok(kvm_userspace_memory_region { userspace_addr, ..region })
    };
    ranges.map(region).collect()
}

/// Tells the host which page size the memory is to have.
fn advise(ram: &GuestRam, range: RamRange) -> Result<(), HvError> {
    let (advice, name) = match ram.backing() {
        Backing::Small => (libc::MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE"),
        Backing::Transparent => (libc::MADV_HUGEPAGE, "MADV_HUGEPAGE"),
        Backing::Auto | Backing::Huge2M | Backing::Huge1G => return Ok(()),
    };
    let failed =
        |source| HvError::Call { what: format!("madvise({name}) of guest memory"), source };
    let host = ram.host_address(range).map_err(|e| failed(io::Error::other(e)))?;
    // SAFETY: the range is guest memory; the advice changes its page size, not its contents.
    match unsafe { libc::madvise(host as *mut _, range.len as usize, advice) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without transparent huge pages has small ones in any case.
            e if e.raw_os_error() == Some(libc::EINVAL) && ram.backing() == Backing::Small => {
                Ok(())
            }
            e => Err(failed(e)),
        },
    }
}

/// A run of RAM, without the part that lies in the VGA window.
fn without_vga(range: RamRange) -> [Option<RamRange>; 2] {
    let (start, end) = (range.start, range.start + range.len);
    let run = |start: u64, end: u64| (start < end).then(|| RamRange { start, len: end - start });
    [run(start, end.min(VGA_START)), run(start.max(VGA_END), end)]
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    fn create_vcpu(&self, index: u32) -> Result<KvmVcpu, HvError> {
        let fd = self.fd.create_vcpu(index.into());
        let fd = call(format!("KVM_CREATE_VCPU of vCPU {index}"), fd)?;
        let ring = match self.dirty_ring {
            0 => None,
            entries => Some(DirtyRing::map(&fd, entries)?),
        };
        let mut vcpu = KvmVcpu::new(fd, index, self.fd.run_size(), self.sync_regs, ring);
        vcpu.start_hyperv(&self.hyperv)?;
        Ok(vcpu)
    }

    fn set_line(&self, gsi: u32, level: bool) -> Result<(), HvError> {
        match self.irqchip {
            Irqchip::Kernel => call("KVM_IRQ_LINE", self.fd.set_irq_line(gsi, level)),
            Irqchip::Split | Irqchip::None => Ok(()),
        }
    }

    fn message(&self, address: u64, data: u32) -> Result<(), HvError> {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        match self.irqchip {
            // Whether a local APIC took it is the guest's business.
            Irqchip::Kernel | Irqchip::Split => {
                call("KVM_SIGNAL_MSI", self.fd.signal_msi(msi)).map(drop)
            }
            Irqchip::None => Ok(()),
        }
    }

    fn set_routes(&self, routes: &[Option<(u64, u32)>]) -> Result<(), HvError> {
        if self.irqchip != Irqchip::Split {
            return Ok(());
        }
        let route = |(gsi, message): (u32, &Option<(u64, u32)>)| {
            let (address, data) = (*message)?;
            let msi = kvm_irq_routing_msi {
                address_lo: address as u32,
                address_hi: (address >> 32) as u32,
                data,
                ..Default::default()
            };
            Some(kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
                ..Default::default()
            })
        };
        let entries: Vec<_> = (0..).zip(routes).filter_map(route).collect();
        let what = "KVM_SET_GSI_ROUTING";
        let failed = |e| HvError::Call { what: what.to_owned(), source: io::Error::other(e) };
        let table = KvmIrqRouting::from_entries(&entries).map_err(|e| failed(format!("{e:?}")))?;
        call(what, self.fd.set_gsi_routing(&table))
    }

    fn remap_page(&self, gpa: u64) -> Result<(), HvError> {
        let page = RamRange { start: gpa & !(PAGE - 1), len: PAGE };
        let Some(host) = self.ram.as_ref().and_then(|ram| ram.host_address(page).ok()) else {
            return Ok(());
        };
        // Any change of a mapping's protection makes the kernel drop what KVM has mapped of it.
        // Adding a right that nobody uses and taking it away again leaves no moment in which the
        // page could not be accessed, by another vCPU or by a device.
        let (normal, more) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_EXEC);
        for protection in [normal | more, normal] {
            // SAFETY: the page is guest memory, which nothing executes and no reference points to.
            if unsafe { libc::mprotect(host as *mut _, PAGE as usize, protection) } != 0 {
                let source = io::Error::last_os_error();
                return Err(HvError::Call { what: format!("mprotect of page {gpa:#x}"), source });
            }
        }
        Ok(())
    }
}

/// The VM that a guest runs in at the moment: a lab can put it into another one.
#[derive(Debug)]
pub struct CurrentVm {
    vm: RwLock<Arc<KvmVm>>,
    // What memslots show beside RAM: dropped after the VM.
    pub(super) memories: Memories,
    /// Where the VMM has to do with synthetic interrupt sources; the same in every VM.
    pub(super) sints: Sints,
}

impl CurrentVm {
    /// A guest in `vm`.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(vm: KvmVm) -> Result<CurrentVm, HvError> {
        let (memories, sints) = (Memories::default(), Sints::new()?);
        Ok(CurrentVm { vm: RwLock::new(Arc::new(vm)), memories, sints })
    }

    /// The synthetic interrupt sources that the VMM has to do with.
    pub fn sints(&self) -> &Sints {
        &self.sints
    }

    /// Requests the interrupt of a synthetic source; one that is masked takes none.
    ///
    /// # Errors
    /// When there is no such source, or the host refuses.
    pub fn raise_sint(&self, vp: u32, sint: u8) -> Result<(), HvError> {
        let vm = self.get();
        vm.set_line(self.sints.gsi(&vm, vp, sint)?, true)
    }

    /// Has [`Sints::done_fd`] tell when the guest is done with a message or an interrupt of a source.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn watch_sint(&self, vp: u32, sint: u8) -> Result<(), HvError> {
        self.sints.gsi(&self.get(), vp, sint).map(|_| ())
    }

    /// The VM. Waits while it is being replaced.
    pub fn get(&self) -> Arc<KvmVm> {
        self.vm.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The VM, to be replaced: nobody else gets one meanwhile. Who got it before may still have it.
    pub(super) fn lock(&self) -> RwLockWriteGuard<'_, Arc<KvmVm>> {
        self.vm.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vga_window_is_in_no_memslot() {
        let run = |start, len| RamRange { start, len };
        let cut = |r| without_vga(r).into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(cut(run(0, 4 << 20)), [run(0, VGA_START), run(VGA_END, (4 << 20) - VGA_END)]);
        assert_eq!(cut(run(0, VGA_START)), [run(0, VGA_START)]);
        assert_eq!(cut(run(VGA_END, PAGE)), [run(VGA_END, PAGE)]);
        assert_eq!(cut(run(1 << 32, PAGE)), [run(1 << 32, PAGE)]);
    }

    #[test]
    fn system_management_mode_has_the_same_memory_under_numbers_of_its_own() {
        // More than fits below 4 GiB, so that there are three runs.
        let ram = GuestRam::new(5 << 30, Backing::Small).expect("address space");
        let normal = ram_slots(&ram, 1).expect("slots");
        let both = ram_slots(&ram, 2).expect("slots");
        assert_eq!(normal.iter().map(|r| r.slot).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(normal.last().is_some_and(|r| r.guest_phys_addr >= 1 << 32));
        let (first, second) = both.split_at(3);
        assert_eq!(first, normal);
        let smm =
            normal.iter().map(|r| kvm_userspace_memory_region { slot: r.slot | 0x1_0000, ..*r });
        assert_eq!(second, smm.collect::<Vec<_>>());
    }
}
