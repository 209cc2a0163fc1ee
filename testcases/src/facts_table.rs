//! A snapshot of all facts of a host, which can travel: what an emulated host tells of itself, and
//! what this machine is asked once.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmm::cpuid::{self, Cpuid};
use vmm::hv::HvError;
use vmm::hv::kvm::{DEV_KVM, Host};
use vmm::hyperv;

use crate::facts::{Files, HostFacts, KvmFlavour, Processor};
use crate::need::Met;
use crate::{caps, nearest};

/// The name in a need that stands for any enlightenment.
const ANY: &str = "any";

/// The sizes of huge pages that a need can ask for, in bytes.
const HUGE_PAGES: [u64; 2] = [2 << 20, 1 << 30];

/// The facts of one host, as they were when it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsTable {
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// What executes instructions.
    pub processor: Processor,
    /// The KVM module.
    pub flavour: KvmFlavour,
    /// What KVM says, or why it cannot be used and what to do.
    pub kvm: Result<KvmTable, String>,
    /// The parameters of kernel modules, by module and name.
    pub params: BTreeMap<String, BTreeMap<String, String>>,
    /// Processors that a process may run on.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// Free huge pages, by their size in bytes.
    pub free_hugepages: BTreeMap<u64, u64>,
    /// Whether a process can resolve page faults of the kernel, or why not and what to do.
    pub userfault: Result<(), String>,
    /// The address of a PCI device that is bound to vfio-pci, or why there is none and what to do.
    pub vfio_device: Result<String, String>,
}

/// What KVM says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmTable {
    /// What it can show a guest (`KVM_GET_SUPPORTED_CPUID`).
    pub cpuid: Cpuid,
    /// What `KVM_CHECK_EXTENSION` answers, for each of [`caps::CAPS`] by its name; 0 if KVM lacks it.
    pub caps: BTreeMap<String, u32>,
    /// The leaves of Hyper-V's that it offers guests (`KVM_GET_SUPPORTED_HV_CPUID`); none if it does not
    /// know Hyper-V.
    pub hyperv: Cpuid,
    /// The most vCPUs that a VM can have.
    pub max_cpus: u32,
}

impl FactsTable {
    /// Looks at this machine.
    pub fn collect() -> FactsTable {
        FactsTable::of(&Files::default(), Path::new(DEV_KVM))
    }

    /// Looks at the machine of these files, with KVM's device node at `node`.
    pub fn of(files: &Files, node: &Path) -> FactsTable {
        FactsTable {
            kernel: files.kernel(),
            cpu: files.cpuinfo("model name").unwrap_or_else(|| "unknown".into()),
            processor: files.processor(),
            flavour: files.flavour(),
            kvm: KvmTable::of(node).map_err(|e| chain(&e)),
            params: files.module_params(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: files.memory(),
            free_hugepages: HUGE_PAGES.map(|size| (size, files.hugepages(size).0)).into(),
            userfault: vmm::hv::kvm::userfaults(),
            vfio_device: files.vfio_device(),
        }
    }

    /// What KVM says.
    ///
    /// # Errors
    /// Why it cannot be used, and what to do.
    fn usable(&self) -> Result<&KvmTable, String> {
        self.kvm.as_ref().map_err(String::clone)
    }
}

impl KvmTable {
    fn of(node: &Path) -> Result<KvmTable, HvError> {
        let host = Host::open(node)?;
        let ask = |&(name, number): &(&str, u32)| {
            (name.to_string(), u32::try_from(host.check_extension(number)).unwrap_or(0))
        };
        Ok(KvmTable {
            cpuid: host.supported_cpuid()?,
            caps: caps::CAPS.iter().map(ask).collect(),
            hyperv: match host.hyperv_cpuid() {
                Err(HvError::Lacks { .. }) => Cpuid::default(),
                leaves => leaves?,
            },
            max_cpus: host.max_cpus(),
        })
    }

    /// What `KVM_CHECK_EXTENSION` answers for the capability of this name; 0 if KVM lacks it.
    pub fn cap(&self, name: &str) -> u32 {
        self.caps.get(name).copied().unwrap_or(0)
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl HostFacts for FactsTable {
    fn kvm(&self) -> Result<(), String> {
        self.usable().map(|_| ())
    }

    fn cpuid(&self, feature: &str) -> Met {
        let Some(known) = cpuid::feature(feature) else {
            let hint = cpuid::nearest(feature, &[]);
            let hint = hint.map(|name| format!("; the nearest is `{name}`")).unwrap_or_default();
            return Met::Unknown(format!("no CPUID feature `{feature}` is known{hint}"));
        };
        match self.usable() {
            Ok(kvm) if kvm.cpuid.has(&known) => Met::Yes,
            Ok(_) => Met::No(format!("this KVM cannot show a guest {known}")),
            Err(why) => Met::No(why),
        }
    }

    fn kvm_cap(&self, cap: &str) -> Met {
        if caps::number(cap).is_none() {
            let hint = nearest::hint(cap, caps::CAPS.iter().map(|(name, _)| *name));
            return Met::Unknown(format!(
                "no capability KVM_CAP_{cap} is known here{hint}; add it to testcases' caps.rs if \
                 KVM has it"
            ));
        }
        match self.usable() {
            Ok(kvm) if kvm.cap(cap) > 0 => Met::Yes,
            Ok(_) => Met::No(format!("this KVM lacks KVM_CAP_{cap}")),
            Err(why) => Met::No(why),
        }
    }

    fn hyperv(&self, name: &str) -> Met {
        if name != ANY && hyperv::is_offered(name, &Cpuid::default()).is_none() {
            let hint = nearest::hint(name, hyperv::names());
            return Met::Unknown(format!(
                "no enlightenment of Hyper-V's is called `{name}`{hint}; `{ANY}` is any at all"
            ));
        }
        let kvm = match self.usable() {
            Ok(kvm) => kvm,
            Err(why) => return Met::No(why),
        };
        if kvm.hyperv.0.is_empty() {
            return Met::No("this KVM has none of Hyper-V's interfaces".into());
        }
        match name == ANY || hyperv::is_offered(name, &kvm.hyperv) == Some(true) {
            true => Met::Yes,
            false => Met::No(format!("this KVM does not offer Hyper-V's `{name}`")),
        }
    }

    fn module_param(&self, module: &str, param: &str) -> Option<String> {
        self.params.get(module)?.get(param).cloned()
    }

    fn flavour(&self) -> KvmFlavour {
        self.flavour
    }

    fn processor(&self) -> Processor {
        self.processor
    }

    fn cpus(&self) -> usize {
        self.cpus
    }

    fn memory(&self) -> u64 {
        self.memory
    }

    fn free_hugepages(&self, size: u64) -> u64 {
        self.free_hugepages.get(&size).copied().unwrap_or(0)
    }

    fn userfault(&self) -> Result<(), String> {
        self.userfault.clone()
    }

    fn vfio_device(&self) -> Result<(), String> {
        self.vfio_device.as_ref().map(|_| ()).map_err(String::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_kvm_the_reason_names_the_node() {
        let facts = FactsTable::of(&Files::default(), Path::new("/no/such/kvm"));
        assert!(facts.kvm().unwrap_err().contains("/no/such/kvm"));
        assert!(matches!(facts.kvm_cap("IRQCHIP"), Met::No(why) if why.contains("/no/such/kvm")));
        assert!(matches!(facts.kvm_cap("IRQCHP"), Met::Unknown(why) if why.contains("`IRQCHIP`")));
        assert!(matches!(facts.cpuid("x2apic"), Met::No(why) if why.contains("/no/such/kvm")));
        assert!(matches!(facts.cpuid("x2apik"), Met::Unknown(why) if why.contains("`x2apic`")));
    }

    #[test]
    fn a_kvm_is_asked_by_name() {
        let mut kvm = KvmTable::default();
        kvm.cpuid.set(&cpuid::feature("x2apic").expect("a feature"), true);
        kvm.caps = [("IRQCHIP".to_string(), 1), ("NR_MEMSLOTS".to_string(), 0)].into();
        let nowhere = FactsTable::of(&Files::below("/no/such/root"), Path::new("/no/such/kvm"));
        let facts = FactsTable { kvm: Ok(kvm), ..nowhere };
        assert_eq!((facts.kvm(), facts.cpuid("x2apic")), (Ok(()), Met::Yes));
        let none = |name| matches!(facts.hyperv(name), Met::No(why) if why.contains("has none"));
        assert!(none("any") && none("synic"));
        assert!(matches!(facts.hyperv("sinic"), Met::Unknown(why) if why.contains("`synic`")));
        assert!(matches!(facts.cpuid("pcid"), Met::No(why) if why.contains("pcid (leaf 0x1")));
        assert_eq!(facts.kvm_cap("IRQCHIP"), Met::Yes);
        for lacks in ["NR_MEMSLOTS", "X86_SMM"] {
            assert!(matches!(facts.kvm_cap(lacks), Met::No(why) if why.contains(lacks)), "{lacks}");
        }
    }

    #[test]
    fn this_machine_has_processors_and_memory() {
        let facts = FactsTable::collect();
        assert!(facts.cpus() >= 1);
        assert!(facts.memory() > 64 << 20);
        assert!(!facts.kernel.is_empty());
    }

    #[test]
    fn a_table_survives_the_wire() {
        let facts = FactsTable::collect();
        let bytes = postcard::to_stdvec(&facts).expect("it is plain data");
        assert_eq!(postcard::from_bytes::<FactsTable>(&bytes), Ok(facts));
    }
}
