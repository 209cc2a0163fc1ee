//! KVM: the only module that knows it.

mod ahead;
pub mod api;
mod aside;
mod bare;
mod cpuid;
mod kick;
mod lab;
mod page;
mod regs;
mod ring;
mod sints;
pub mod stats;
mod vcpu;
mod vm;
mod yardstick;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::path::{Path, PathBuf};

use kvm_bindings::*;
use kvm_ioctls::{Cap, Kvm};

pub use ahead::Supported;
pub use aside::discard;
pub use bare::Bare;
pub use kick::Kicker;
#[cfg(feature = "sabotage")]
pub use lab::WrongLab;
pub use lab::{KvmLab, userfaults};
pub use sints::Sints;
pub use vcpu::KvmVcpu;
pub use vm::{CurrentVm, KvmVm};
pub use yardstick::{BareVcpu, BareVm, Served, Yardstick};

use crate::cpuid::{Cpuid, feature};
use crate::hv::HvError;
use crate::hyperv::Enlightenments;
use crate::ram::GuestRam;

/// Where KVM's device node is, unless somebody says otherwise.
pub const DEV_KVM: &str = "/dev/kvm";

/// Which interrupt controllers are in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// Local APICs, I/O APIC and PICs.
    #[default]
    Kernel,
    /// Local APICs only; the I/O APIC is the board's. There are no PICs.
    Split,
    /// None: HLT leaves the guest, no interrupt arrives, one vCPU.
    None,
}

/// Whether RAM is also in address space 1, which a vCPU in system-management mode sees.
///
/// A host with `KVM_CAP_X86_SMM` lets every guest into that mode, if only by an SMI that it sends
/// itself. Without memory there, `KVM_RUN` then fails with EIO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Smm {
    /// Where the host has the mode.
    #[default]
    Auto,
    /// Yes; a host without the mode is an error.
    On,
    /// No.
    Off,
}

/// How a VM is made.
#[derive(Clone, Debug, Default)]
pub struct KvmConfig {
    /// Interrupt controllers in the kernel.
    pub irqchip: Irqchip,
    /// The kernel's PIT with the speaker port; needs [`Irqchip::Kernel`].
    pub pit: bool,
    /// MSR accesses that KVM refuses come to the board (`KVM_CAP_X86_USER_SPACE_MSR`).
    pub msr_exits: bool,
    /// `KVM_HC_MAP_GPA_RANGE` comes to the board (`KVM_CAP_EXIT_HYPERCALL`).
    pub hypercall_exits: bool,
    /// Each exit brings the general registers along (`KVM_CAP_SYNC_REGS`), so that the log of the
    /// last exits can say where each one came from.
    pub sync_regs: bool,
    /// vCPUs keep their processors when they halt, pause or wait
    /// (`KVM_CAP_X86_DISABLE_EXITS`), as far as this host lets them.
    pub cpu_pm: bool,
    /// Memory of system-management mode.
    pub smm: Smm,
    /// vCPUs that the VM will have.
    pub cpus: u32,
    /// The largest APIC ID that one of them will have.
    pub last_apic_id: u32,
    /// Entries of each vCPU's dirty ring, a power of two; 0 for none, and bitmaps instead.
    pub dirty_ring: u32,
    /// What of Hyper-V's the guest is offered; needs [`Irqchip::Kernel`].
    pub hyperv: Enlightenments,
}

impl KvmConfig {
    /// Whether eight bits do not name every local APIC: 255 is everybody.
    fn needs_long_ids(&self) -> bool {
        self.irqchip != Irqchip::None && self.last_apic_id > 254
    }
}

/// What of `KVM_CAP_X86_DISABLE_EXITS` is waiting.
const IDLE: u32 = KVM_X86_DISABLE_EXITS_MWAIT
    | KVM_X86_DISABLE_EXITS_HLT
    | KVM_X86_DISABLE_EXITS_PAUSE
    | KVM_X86_DISABLE_EXITS_CSTATE;

/// `KVM_HC_MAP_GPA_RANGE` of the hypercall ABI (linux/kvm_para.h).
const KVM_HC_MAP_GPA_RANGE: u32 = 12;

/// KVM on this host.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    path: PathBuf,
}

fn call<T>(what: impl Into<String>, result: Result<T, kvm_ioctls::Error>) -> Result<T, HvError> {
    result.map_err(|e| HvError::Call {
        what: what.into(),
        source: io::Error::from_raw_os_error(e.errno()),
    })
}

impl Host {
    /// Opens KVM's device node.
    ///
    /// # Errors
    /// When there is none, it may not be opened, or what opens is not KVM.
    pub fn open(path: &Path) -> Result<Host, HvError> {
        let open = || std::fs::File::options().read(true).write(true).open(path);
        let file = open().map_err(|source| HvError::Open {
            path: path.display().to_string(),
            hint: hint(source.kind()),
            source,
        })?;
        // SAFETY: the descriptor is open and handed over.
        let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(HvError::NotKvm { path: path.display().to_string(), version });
        }
        Ok(Host { kvm, path: path.to_owned() })
    }

    /// The device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What KVM offers guests of the processor (`KVM_GET_SUPPORTED_CPUID`), and the timer mode of
    /// the local APIC that it reports as a capability instead.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn supported_cpuid(&self) -> Result<Cpuid, HvError> {
        let cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let mut cpuid = cpuid::from_kvm(&call("KVM_GET_SUPPORTED_CPUID", cpuid)?);
        if let Some(timer) = feature("tsc-deadline") {
            cpuid.set(&timer, self.kvm.check_extension(Cap::TscDeadlineTimer));
        }
        Ok(cpuid)
    }

    /// The leaves of Hyper-V's that KVM offers guests (`KVM_GET_SUPPORTED_HV_CPUID`).
    ///
    /// # Errors
    /// When KVM does not know Hyper-V, or refuses.
    pub fn hyperv_cpuid(&self) -> Result<Cpuid, HvError> {
        if self.check_extension(KVM_CAP_HYPERV_CPUID) <= 0 {
            let what = "Hyper-V's interfaces (KVM_CAP_HYPERV_CPUID)".to_owned();
            return Err(HvError::Lacks { what, hint: "run without --hyperv" });
        }
        if self.check_extension(KVM_CAP_SYS_HYPERV_CPUID) > 0 {
            return cpuid::hyperv(self.kvm.as_raw_fd());
        }
        // Before Linux 5.11 only a vCPU tells.
        let vm = call("KVM_CREATE_VM", self.kvm.create_vm())?;
        call("KVM_CREATE_IRQCHIP", vm.create_irq_chip())?;
        let vcpu = call("KVM_CREATE_VCPU of vCPU 0", vm.create_vcpu(0))?;
        cpuid::hyperv(vcpu.as_raw_fd())
    }

    /// What `KVM_CHECK_EXTENSION` says of capability number `cap`: 0 if KVM lacks it.
    pub fn check_extension(&self, cap: u32) -> i32 {
        self.kvm.check_extension_raw(cap.into())
    }

    /// The most vCPUs that a VM can have.
    pub fn max_cpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX)
    }

    /// Makes a VM with this memory, and without vCPUs.
    ///
    /// # Errors
    /// When KVM lacks what `config` asks for, or refuses.
    pub fn create_vm(&self, config: &KvmConfig, ram: Option<GuestRam>) -> Result<KvmVm, HvError> {
        const NEW: &str = "a KVM of Linux 4.12 or later has it";
        self.need(Cap::UserMemory, "KVM_CAP_USER_MEMORY", NEW)?;
        self.need(Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", NEW)?;
        self.need(Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", NEW)?;
        match config.irqchip {
            Irqchip::Kernel => {
                self.need(Cap::Irqchip, "KVM_CAP_IRQCHIP", "run with --irqchip none")?;
            }
            Irqchip::Split => {
                let hint = "run with --irqchip kernel";
                self.need(Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP", hint)?;
            }
            Irqchip::None => {}
        }
        if config.sync_regs {
            self.need(Cap::SyncRegs, "KVM_CAP_SYNC_REGS", "run without --exit-rips")?;
        }
        if config.msr_exits {
            let name = "KVM_CAP_X86_USER_SPACE_MSR";
            self.need(Cap::X86UserSpaceMsr, name, "run without --msr-exits")?;
        }
        self.check_ring(config.dirty_ring)?;
        self.check_hyperv(&config.hyperv)?;
        // This one says which hypercalls can be passed on.
        let calls = self.check_extension(KVM_CAP_EXIT_HYPERCALL);
        if config.hypercall_exits && calls & (1 << KVM_HC_MAP_GPA_RANGE) == 0 {
            return Err(HvError::Lacks {
                what: "KVM_CAP_EXIT_HYPERCALL for KVM_HC_MAP_GPA_RANGE".to_owned(),
                hint: "run without --hypercall-exits",
            });
        }
        if config.cpus > self.max_cpus() {
            return Err(HvError::Lacks {
                what: format!("room for {} vCPUs in one VM (KVM_CAP_MAX_VCPUS)", config.cpus),
                hint: "ask for fewer with --cpus",
            });
        }
        let ids = self.check_extension(KVM_CAP_MAX_VCPU_ID);
        if i64::from(config.last_apic_id) >= i64::from(ids) {
            return Err(HvError::Lacks {
                what: format!(
                    "room for APIC ID {} (KVM_CAP_MAX_VCPU_ID is {ids})",
                    config.last_apic_id
                ),
                hint: "ask for fewer vCPUs with --cpus, or a smaller --apic-id-step",
            });
        }
        if config.needs_long_ids() && self.check_extension(KVM_CAP_X2APIC_API) == 0 {
            return Err(HvError::Lacks {
                what: format!("APIC ID {} (KVM_CAP_X2APIC_API)", config.last_apic_id),
                hint: "ask for fewer vCPUs with --cpus, or a smaller --apic-id-step",
            });
        }
        if config.cpu_pm && self.idle_exits(config) == 0 {
            let what = "KVM_CAP_X86_DISABLE_EXITS".to_owned();
            return Err(HvError::Lacks { what, hint: "run without --cpu-pm on" });
        }
        if config.smm == Smm::On && self.address_spaces(Smm::On) < 2 {
            return Err(HvError::Lacks {
                what: "system-management mode (KVM_CAP_X86_SMM, KVM_CAP_MULTI_ADDRESS_SPACE)"
                    .into(),
                hint: "run without --smm on",
            });
        }
        KvmVm::new(self, config, ram)
    }

    /// In how many address spaces RAM is: 2 with that of system-management mode, else 1.
    fn address_spaces(&self, smm: Smm) -> u32 {
        let has_smm = || {
            self.check_extension(KVM_CAP_X86_SMM) > 0
                && self.check_extension(KVM_CAP_MULTI_ADDRESS_SPACE) > 1
        };
        if smm != Smm::Off && has_smm() { 2 } else { 1 }
    }

    /// The bits of `KVM_CAP_X86_DISABLE_EXITS` for vCPUs that keep their processors, if they are to.
    fn idle_exits(&self, config: &KvmConfig) -> u32 {
        match config.cpu_pm {
            true => self.check_extension(KVM_CAP_X86_DISABLE_EXITS).cast_unsigned() & IDLE,
            false => 0,
        }
    }

    /// The capability that brings dirty rings, and the bytes that one may have.
    fn ring_capability(&self) -> (u32, i32) {
        let with = |cap| (cap, self.check_extension(cap));
        let ordered = with(KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
        if ordered.1 > 0 { ordered } else { with(KVM_CAP_DIRTY_LOG_RING) }
    }

    fn check_ring(&self, entries: u32) -> Result<(), HvError> {
        let most = u32::try_from(self.ring_capability().1).unwrap_or(0) / ring::ENTRY;
        if entries == 0 || entries.is_power_of_two() && entries <= most {
            return Ok(());
        }
        Err(HvError::Lacks {
            what: match most {
                0 => "dirty rings (KVM_CAP_DIRTY_LOG_RING)".to_owned(),
                _ => format!("a dirty ring of {entries} entries (a power of two, at most {most})"),
            },
            hint: "ask for another with --dirty-ring, or for none",
        })
    }

    fn check_hyperv(&self, wanted: &Enlightenments) -> Result<(), HvError> {
        for (wants, cap, name, hint) in [
            (
                wanted.has("synic"),
                KVM_CAP_HYPERV_SYNIC2,
                "KVM_CAP_HYPERV_SYNIC2",
                "leave `synic` out of --hyperv, and what needs it",
            ),
            (
                wanted.is_enforced(),
                KVM_CAP_HYPERV_ENFORCE_CPUID,
                "KVM_CAP_HYPERV_ENFORCE_CPUID",
                "leave `enforce-cpuid` out of --hyperv",
            ),
        ] {
            if wants && self.check_extension(cap) <= 0 {
                return Err(HvError::Lacks { what: name.to_owned(), hint });
            }
        }
        Ok(())
    }

    fn need(&self, cap: Cap, name: &str, hint: &'static str) -> Result<(), HvError> {
        match self.kvm.check_extension(cap) {
            true => Ok(()),
            false => Err(HvError::Lacks { what: name.to_owned(), hint }),
        }
    }
}

/// A way out for someone whose KVM cannot be opened.
fn hint(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => {
            "Load the kernel's module (`modprobe kvm_intel` or `modprobe kvm_amd`), switch \
             virtualisation on in the firmware, or, inside a VM or container, have its host pass \
             KVM through"
        }
        io::ErrorKind::PermissionDenied => {
            "Run as root, or be let in: `ls -l /dev/kvm` shows its group, usually kvm, which \
             `usermod -aG kvm USER` adds you to from the next login; where only root has it, \
             `chgrp kvm /dev/kvm` and `chmod 660 /dev/kvm` come first"
        }
        _ => "Name KVM's device node, usually /dev/kvm",
    }
}

#[cfg(test)]
mod tests;
