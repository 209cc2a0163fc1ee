//! The facts of this machine: from `/dev/kvm`, `/sys` and `/proc`.

use std::path::Path;

use vmm::cpuid::{self, Cpuid};
use vmm::hv::kvm::{DEV_KVM, Host};

use crate::facts::{Files, HostFacts, KvmFlavour};
use crate::need::Met;
use crate::{caps, nearest};

/// `KVM_CAP_TSC_DEADLINE_TIMER`.
const TSC_DEADLINE: u32 = 72;

/// This machine. `/dev/kvm` is opened once, in [`LinuxFacts::collect`].
#[derive(Debug)]
pub struct LinuxFacts {
    files: Files,
    kvm: Result<(Host, Cpuid), String>,
}

impl LinuxFacts {
    /// Looks at this machine.
    pub fn collect() -> LinuxFacts {
        LinuxFacts::of(Files::default(), Path::new(DEV_KVM))
    }

    /// Looks at the machine of these files, with KVM's device node at `node`.
    pub fn of(files: Files, node: &Path) -> LinuxFacts {
        let open = || {
            let host = Host::open(node)?;
            let cpuid = host.supported_cpuid()?;
            Ok((host, cpuid))
        };
        let kvm = open().map_err(|e: vmm::hv::HvError| chain(&e));
        LinuxFacts { files, kvm }
    }

    /// What the files of this machine tell.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// KVM, and what it offers guests of the processor.
    ///
    /// # Errors
    ///
    /// Why it cannot be used, and what to do.
    pub fn host(&self) -> Result<&(Host, Cpuid), &str> {
        self.kvm.as_ref().map_err(String::as_str)
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

impl HostFacts for LinuxFacts {
    fn kvm(&self) -> Result<(), String> {
        self.host().map(|_| ()).map_err(str::to_string)
    }

    fn cpuid(&self, feature: &str) -> Met {
        let Some(known) = cpuid::feature(feature) else {
            let hint = cpuid::nearest(feature, &[]);
            let hint = hint.map(|name| format!("; the nearest is `{name}`")).unwrap_or_default();
            return Met::Unknown(format!("no CPUID feature `{feature}` is known{hint}"));
        };
        match &self.kvm {
            // KVM tells of this one by a capability, because it needs the local APIC in the kernel.
            Ok((host, _))
                if known.name == "tsc-deadline" && host.check_extension(TSC_DEADLINE) > 0 =>
            {
                Met::Yes
            }
            Ok((_, cpuid)) if cpuid.has(&known) => Met::Yes,
            Ok(_) => Met::No(format!("this KVM cannot show a guest {known}")),
            Err(why) => Met::No(why.clone()),
        }
    }

    fn kvm_cap(&self, cap: &str) -> Met {
        let Some(number) = caps::number(cap) else {
            let hint = nearest::hint(cap, caps::CAPS.iter().map(|(name, _)| *name));
            return Met::Unknown(format!(
                "no capability KVM_CAP_{cap} is known here{hint}; add it to testcases' caps.rs if \
                 KVM has it"
            ));
        };
        match &self.kvm {
            Ok((host, _)) if host.check_extension(number) > 0 => Met::Yes,
            Ok(_) => Met::No(format!("this KVM lacks KVM_CAP_{cap}")),
            Err(why) => Met::No(why.clone()),
        }
    }

    fn module_param(&self, module: &str, param: &str) -> Option<String> {
        self.files.module_param(module, param)
    }

    fn flavour(&self) -> KvmFlavour {
        self.files.flavour()
    }

    fn cpus(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn memory(&self) -> u64 {
        self.files.memory()
    }

    fn free_hugepages(&self, size: u64) -> u64 {
        self.files.hugepages(size).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_kvm_the_reason_names_the_node() {
        let facts = LinuxFacts::of(Files::default(), Path::new("/no/such/kvm"));
        assert!(facts.kvm().unwrap_err().contains("/no/such/kvm"));
        assert!(matches!(facts.kvm_cap("IRQCHIP"), Met::No(why) if why.contains("/no/such/kvm")));
        assert!(matches!(facts.kvm_cap("IRQCHP"), Met::Unknown(why) if why.contains("`IRQCHIP`")));
        assert!(matches!(facts.cpuid("x2apic"), Met::No(why) if why.contains("/no/such/kvm")));
        assert!(matches!(facts.cpuid("x2apik"), Met::Unknown(why) if why.contains("`x2apic`")));
        assert_eq!(caps::number("TSC_DEADLINE_TIMER"), Some(TSC_DEADLINE));
    }

    #[test]
    fn this_machine_has_processors_and_memory() {
        let facts = LinuxFacts::collect();
        assert!(facts.cpus() >= 1);
        assert!(facts.memory() > 64 << 20);
        assert!(!facts.files().kernel().is_empty());
    }
}
