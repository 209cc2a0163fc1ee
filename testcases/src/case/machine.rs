//! The virtual machine of a case, as options of the VMM.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Cpu, Hyperv, Size, Vcpus};
use crate::need::Need;

/// The virtual machine of a case. What is not given is left to the VMM's own default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Number of vCPUs, from 1 to 255; 1 if not given.
    #[serde(default)]
    pub vcpus: Vcpus,
    /// From the APIC ID of one vCPU to that of the next, a power of two; 1 if not given.
    #[serde(rename = "apic-id-step")]
    pub apic_id_step: Option<u32>,
    /// Size of guest memory, such as `256M`.
    pub memory: Option<Size>,
    /// The CPU model and its changes, such as `host,-pcid,+x2apic`.
    pub cpu: Option<Cpu>,
    /// Where PIC, I/O APIC and local APIC live.
    pub irqchip: Option<Irqchip>,
    /// Where the PIT lives.
    pub pit: Option<Pit>,
    /// What of Hyper-V's interfaces the guest is offered, such as `vpindex,time,synic`, or `all`. A case
    /// needs what it names, unsaid.
    pub hyperv: Option<Hyperv>,
    /// Whether vCPUs keep their processors when they halt, pause or wait.
    #[serde(default)]
    pub cpu_pm: bool,
    /// Whether the guest has memory in system-management mode.
    pub smm: Option<Smm>,
    /// Whether the guest finds ACPI tables, and can sleep in S3.
    #[serde(default)]
    pub acpi: bool,
    /// Whether the board has a PCI bus; a device on it gives it one.
    #[serde(default)]
    pub pci: bool,
    /// Devices on the PCI bus, or behind it.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// How the payload is loaded and entered.
    pub boot: Option<Boot>,
    /// What backs guest memory.
    pub hugepages: Option<HugePages>,
    /// Whether the guest may ask its VMM for KVM ioctls about itself.
    #[serde(default)]
    pub lab: bool,
    /// Entries of each vCPU's dirty ring; there is none if not given.
    #[serde(rename = "dirty-ring")]
    pub dirty_ring: Option<u32>,
    /// More words for the guest's command line, after `test=NAME`.
    pub cmdline: Option<String>,
    /// Files that are handed to the guest as modules, relative to the case's own file.
    #[serde(default)]
    pub modules: Vec<PathBuf>,
}

impl Machine {
    /// What the host must have for it, beyond what is the VMM's own.
    pub fn needs(&self) -> Vec<Need> {
        let Some(Hyperv(list)) = &self.hyperv else { return Vec::new() };
        let any = list.wants_all().then_some("any");
        let names = list.named().chain(any).map(|name| Need::Hyperv(name.into()));
        let enforce = list.is_enforced().then(|| Need::KvmCap("HYPERV_ENFORCE_CPUID".into()));
        names.chain(enforce).collect()
    }

    /// The machine as options of `vmm run`, for a case in the directory `dir`.
    pub fn arguments(&self, dir: &Path) -> Vec<String> {
        let mut args = Vec::new();
        let mut add = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                args.extend([format!("--{key}"), value]);
            }
        };
        add("cpus", (self.vcpus.0 != 1).then(|| self.vcpus.0.to_string()));
        add("apic-id-step", self.apic_id_step.map(|n| n.to_string()));
        add("memory", self.memory.as_ref().map(|m| m.0.clone()));
        add("cpu", self.cpu.as_ref().map(|c| c.0.clone()));
        add("irqchip", self.irqchip.map(|v| v.word().into()));
        add("pit", self.pit.map(|v| v.word().into()));
        add("hyperv", self.hyperv.as_ref().map(|h| h.0.to_string()));
        add("cpu-pm", self.cpu_pm.then(|| "on".into()));
        add("smm", self.smm.map(|v| v.word().into()));
        add("acpi", self.acpi.then(|| "on".into()));
        add("pci", self.pci.then(|| "on".into()));
        for device in &self.devices {
            add("device", Some(device.word().into()));
        }
        add("boot", self.boot.map(|v| v.word().into()));
        add("hugepages", self.hugepages.map(|v| v.word().into()));
        add("dirty-ring", self.dirty_ring.map(|n| n.to_string()));
        add("cmdline", self.cmdline.clone());
        for module in &self.modules {
            add("module", Some(dir.join(module).display().to_string()));
        }
        if self.lab {
            args.push("--lab".into());
        }
        args
    }
}

/// Makes an enum whose values are words in a case and on the VMM's command line alike.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)* }

        impl $name {
            /// The word for it, in a case and on the VMM's command line.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// Where the interrupt controllers live.
    Irqchip {
        /// All in KVM.
        Kernel = "kernel",
        /// The local APIC in KVM, the I/O APIC in the VMM.
        Split = "split",
        /// None in KVM.
        None = "none",
    }
}

words! {
    /// Where the PIT lives.
    Pit {
        /// In KVM.
        Kernel = "kernel",
        /// There is none.
        None = "none",
    }
}

words! {
    /// Whether the guest has memory in system-management mode.
    Smm {
        /// Yes; a host without the mode is an error.
        On = "on",
        /// No.
        Off = "off",
    }
}

words! {
    /// A device on the PCI bus, or behind it.
    Device {
        /// The PCI test device of kvm-unit-tests.
        PciTestdev = "pci-testdev",
        /// The device for teaching: registers, an interrupt, DMA.
        Edu = "edu",
        /// An IOMMU, for memory.
        Iommu = "intel-iommu",
        /// An IOMMU, for memory and interrupts; needs `irqchip = "split"`.
        IommuInterrupts = "intel-iommu,intremap=on",
    }
}

words! {
    /// How a payload is loaded and entered.
    Boot {
        /// By what the file offers.
        Auto = "auto",
        /// The PVH entry point.
        Pvh = "pvh",
        /// Multiboot 1.
        Multiboot = "multiboot",
        /// The ELF's entry point.
        Elf = "elf",
        /// A flat image in real mode.
        Flat = "flat",
    }
}

words! {
    /// What backs guest memory.
    HugePages {
        /// Base pages only.
        Off = "off",
        /// Transparent huge pages.
        Thp = "thp",
        /// Reserved pages of 2 MiB.
        Size2M = "2M",
        /// Reserved pages of 1 GiB.
        Size1G = "1G",
    }
}
