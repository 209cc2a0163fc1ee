//! What the machine that runs the tests offers.
//!
//! [`HostFacts`] is what needs ask; a [`FactsTable`](crate::facts_table::FactsTable) answers, made
//! from `/dev/kvm`, `/sys` and `/proc` on this machine or on another one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::need::Met;
use vmm::host::vfio::Bound;

/// Which KVM module serves `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvmFlavour {
    /// kvm-intel, on VMX.
    Intel,
    /// kvm-amd, on SVM.
    Amd,
    /// kvm-pvm: no processor support; guest CPL 0 code is interpreted by the kernel.
    Pvm,
    /// None of the modules that are known here, or `/sys` does not tell.
    Unknown,
}

impl fmt::Display for KvmFlavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvmFlavour::Intel => "kvm-intel",
            KvmFlavour::Amd => "kvm-amd",
            KvmFlavour::Pvm => "kvm-pvm",
            KvmFlavour::Unknown => "an unknown KVM",
        })
    }
}

/// What executes the host's own instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Processor {
    /// A processor, as far as can be told.
    #[default]
    Hardware,
    /// QEMU's translator, TCG.
    Tcg,
    /// Bochs.
    Bochs,
}

impl Processor {
    /// The word on the kernel's command line that says which it is, with `tcg` or `bochs` after it:
    /// an emulator may tell its guest the name of any processor.
    pub const WORD: &'static str = "exitlab.processor=";

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Processor::Hardware => "hardware",
            Processor::Tcg => "tcg",
            Processor::Bochs => "bochs",
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The questions a need can ask of a host.
pub trait HostFacts: Sync {
    /// Whether `/dev/kvm` can be used; if not, why and what to do.
    fn kvm(&self) -> Result<(), String>;
    /// Whether KVM can show the guest this CPUID feature.
    fn cpuid(&self, feature: &str) -> Met;
    /// Whether KVM has this capability, named without `KVM_CAP_`.
    fn kvm_cap(&self, cap: &str) -> Met;
    /// Whether KVM offers this one of Hyper-V's enlightenments; `any` for any at all.
    fn hyperv(&self, name: &str) -> Met;
    /// A kernel module's parameter as `/sys` shows it, trimmed.
    fn module_param(&self, module: &str, param: &str) -> Option<String>;
    /// Which KVM this is.
    fn flavour(&self) -> KvmFlavour;
    /// What executes the host's own instructions.
    fn processor(&self) -> Processor {
        Processor::Hardware
    }
    /// Processors this process may run on.
    fn cpus(&self) -> usize;
    /// The machine's memory in bytes.
    fn memory(&self) -> u64;
    /// Free huge pages of the given size in bytes.
    fn free_hugepages(&self, size: u64) -> u64;
    /// Whether a process can resolve page faults of the kernel; if not, why and what to do.
    fn userfault(&self) -> Result<(), String>;
    /// Whether a PCI device is bound to vfio-pci, in an IOMMU group; if not, why and what to do.
    fn vfio_device(&self) -> Result<(), String>;
}

/// The facts that files of `/sys` and `/proc` tell, below a root that tests can replace.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Files { root: "/".into() }
    }
}

impl Files {
    /// Reads below `root` instead of `/`.
    pub fn below(root: impl Into<PathBuf>) -> Files {
        Files { root: root.into() }
    }

    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok().map(|text| text.trim().to_string())
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// A kernel module's parameter.
    pub fn module_param(&self, module: &str, param: &str) -> Option<String> {
        self.read(format!("sys/module/{module}/parameters/{param}"))
    }

    /// Every parameter of every kernel module that can be read, by module and name.
    pub fn module_params(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for module in self.names("sys/module") {
            let names = self.names(format!("sys/module/{module}/parameters"));
            let read = |name: String| {
                let value = self.module_param(&module, &name)?;
                Some((name, value))
            };
            let params: BTreeMap<_, _> = names.into_iter().filter_map(read).collect();
            if !params.is_empty() {
                all.insert(module, params);
            }
        }
        all
    }

    /// The names in a directory; none if it cannot be listed.
    fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// What executes instructions here. The kernel's command line outweighs the processor's name.
    pub fn processor(&self) -> Processor {
        let cmdline = self.cmdline();
        let said = cmdline.split_whitespace().rev().find_map(|w| w.strip_prefix(Processor::WORD));
        let known = [Processor::Hardware, Processor::Tcg, Processor::Bochs];
        let named = || {
            let name = self.cpuinfo("model name").unwrap_or_default();
            if name.starts_with("QEMU TCG") { Processor::Tcg } else { Processor::Hardware }
        };
        known.into_iter().find(|p| Some(p.word()) == said).unwrap_or_else(named)
    }

    /// The KVM that serves `/dev/kvm`, told by the vendor module that is loaded.
    ///
    /// A vendor module also appears under `/sys/module` when it is built in. Where both kvm-intel
    /// and kvm-amd appear so, only one can have found its processor: the flags in `/proc/cpuinfo`
    /// decide, as they do where a module is loaded on a processor without its feature.
    pub fn flavour(&self) -> KvmFlavour {
        if self.has("sys/module/kvm_pvm") {
            return KvmFlavour::Pvm;
        }
        let flags = self.cpu_flags();
        let flag = |name: &str| flags.iter().any(|f| f == name);
        match (self.has("sys/module/kvm_intel"), self.has("sys/module/kvm_amd")) {
            (true, _) if flag("vmx") => KvmFlavour::Intel,
            (_, true) if flag("svm") => KvmFlavour::Amd,
            _ => KvmFlavour::Unknown,
        }
    }

    /// The first processor's flags from `/proc/cpuinfo`.
    pub fn cpu_flags(&self) -> Vec<String> {
        self.cpuinfo("flags").unwrap_or_default().split_whitespace().map(str::to_string).collect()
    }

    /// The first value of a key in `/proc/cpuinfo`.
    pub fn cpuinfo(&self, key: &str) -> Option<String> {
        let text = self.read("proc/cpuinfo")?;
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(k, _)| k.trim() == key)
            .map(|(_, v)| v.trim().to_string())
    }

    /// The address of a PCI device that is bound to vfio-pci.
    ///
    /// # Errors
    ///
    /// There is none, and why.
    pub fn vfio_device(&self) -> Result<String, String> {
        Bound::find(&self.root).map(|bound| bound.address).map_err(|why| why.to_string())
    }

    /// The kernel's release, as `uname -r` prints it.
    pub fn kernel(&self) -> String {
        self.read("proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into())
    }

    /// The kernel's command line; empty if it cannot be read.
    pub fn cmdline(&self) -> String {
        self.read("proc/cmdline").unwrap_or_default()
    }

    /// `MemTotal` in bytes; 0 if it cannot be read.
    pub fn memory(&self) -> u64 {
        self.meminfo("MemTotal")
    }

    /// `MemAvailable` in bytes; 0 if it cannot be read.
    pub fn memory_available(&self) -> u64 {
        self.meminfo("MemAvailable")
    }

    fn meminfo(&self, key: &str) -> u64 {
        let text = self.read("proc/meminfo").unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(k, _)| *k == key)
            .and_then(|(_, v)| v.split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib << 10)
    }

    /// Huge pages of `size` bytes: how many are free, and how many there are.
    pub fn hugepages(&self, size: u64) -> (u64, u64) {
        let number = |what: &str| {
            self.read(format!("sys/kernel/mm/hugepages/hugepages-{}kB/{what}", size >> 10))
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        (number("free_hugepages"), number("nr_hugepages"))
    }
}

/// A host that is a table: for tests of what depends on a host.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;

    pub(crate) struct FakeFacts {
        pub no_kvm: Option<String>,
        pub cpuid: Vec<(&'static str, bool)>,
        pub caps: Vec<(&'static str, bool)>,
        pub hyperv: Vec<(&'static str, bool)>,
        pub params: Vec<(&'static str, &'static str, &'static str)>,
        pub flavour: KvmFlavour,
        pub cpus: usize,
        pub memory: u64,
        pub hugepages: u64,
    }

    impl Default for FakeFacts {
        fn default() -> Self {
            FakeFacts {
                no_kvm: None,
                cpuid: vec![],
                caps: vec![],
                hyperv: vec![],
                params: vec![],
                flavour: KvmFlavour::Intel,
                cpus: 4,
                memory: 8 << 30,
                hugepages: 0,
            }
        }
    }

    fn look(table: &[(&'static str, bool)], name: &str) -> Met {
        match table.iter().find(|(n, _)| *n == name) {
            Some((_, true)) => Met::Yes,
            Some((_, false)) => Met::No(format!("no {name}")),
            None => Met::Unknown(format!("unknown {name}")),
        }
    }

    impl HostFacts for FakeFacts {
        fn kvm(&self) -> Result<(), String> {
            self.no_kvm.clone().map_or(Ok(()), Err)
        }
        fn cpuid(&self, feature: &str) -> Met {
            look(&self.cpuid, feature)
        }
        fn kvm_cap(&self, cap: &str) -> Met {
            look(&self.caps, cap)
        }
        fn hyperv(&self, name: &str) -> Met {
            look(&self.hyperv, name)
        }
        fn module_param(&self, module: &str, param: &str) -> Option<String> {
            let found = self.params.iter().find(|(m, p, _)| *m == module && *p == param);
            found.map(|(_, _, v)| v.to_string())
        }
        fn flavour(&self) -> KvmFlavour {
            self.flavour
        }
        fn cpus(&self) -> usize {
            self.cpus
        }
        fn memory(&self) -> u64 {
            self.memory
        }
        fn free_hugepages(&self, _size: u64) -> u64 {
            self.hugepages
        }
        fn userfault(&self) -> Result<(), String> {
            Err("no userfaultfd".into())
        }
        fn vfio_device(&self) -> Result<(), String> {
            Err("no vfio-pci".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        }
        let files = Files::below(dir.path());
        (dir, files)
    }

    #[test]
    fn the_flavour_is_told_by_module_and_processor() {
        let intel = ("sys/module/kvm_intel/parameters/nested", "Y\n");
        let amd = ("sys/module/kvm_amd/parameters/nested", "1\n");
        let pvm = ("sys/module/kvm_pvm/parameters/force", "N\n");
        let vmx = ("proc/cpuinfo", "vendor_id : GenuineIntel\nflags\t\t: fpu vmx\n");
        let svm = ("proc/cpuinfo", "flags\t\t: fpu svm\n");
        let none = ("proc/cpuinfo", "flags\t\t: fpu\n");
        for (files, flavour) in [
            (vec![intel, vmx], KvmFlavour::Intel),
            (vec![amd, svm], KvmFlavour::Amd),
            (vec![intel, amd, svm], KvmFlavour::Amd),
            (vec![intel, amd, vmx], KvmFlavour::Intel),
            (vec![pvm, none], KvmFlavour::Pvm),
            (vec![pvm, intel, vmx], KvmFlavour::Pvm),
            (vec![intel, none], KvmFlavour::Unknown),
            (vec![vmx], KvmFlavour::Unknown),
            (vec![], KvmFlavour::Unknown),
        ] {
            let (_dir, host) = host(&files);
            assert_eq!(host.flavour(), flavour, "{files:?}");
        }
    }

    #[test]
    fn the_command_line_outweighs_the_processors_name() {
        let (qemu, other) = ("model name\t: QEMU TCG CPU version 2.5+\n", "model name\t: Xeon\n");
        for (cpuinfo, cmdline, processor) in [
            (qemu, "quiet", Processor::Tcg),
            (other, "quiet", Processor::Hardware),
            (other, "quiet exitlab.processor=bochs panic=-1\n", Processor::Bochs),
            (qemu, "exitlab.processor=hardware", Processor::Hardware),
            (qemu, "exitlab.processor=z80", Processor::Tcg),
        ] {
            let (_dir, host) = host(&[("proc/cpuinfo", cpuinfo), ("proc/cmdline", cmdline)]);
            assert_eq!(host.processor(), processor, "{cpuinfo} {cmdline}");
        }
    }

    #[test]
    fn files_are_read_and_absent_ones_are_nothing() {
        let (_dir, found) = host(&[
            ("proc/meminfo", "MemTotal:  1024 kB\nMemAvailable:   512 kB\n"),
            ("proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\nprocessor\t: 1\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "4\n"),
            ("sys/module/kvm/parameters/enable_pmu", "N\n"),
        ]);
        assert_eq!((found.memory(), found.memory_available()), (1 << 20, 512 << 10));
        assert_eq!(found.cpuinfo("vendor_id").as_deref(), Some("GenuineIntel"));
        assert_eq!(found.cpuinfo("processor").as_deref(), Some("0"));
        assert_eq!(found.hugepages(2 << 20), (3, 4));
        assert_eq!(found.hugepages(1 << 30), (0, 0));
        assert_eq!(found.module_param("kvm", "enable_pmu").as_deref(), Some("N"));
        let params = found.module_params();
        assert_eq!((params.len(), &params["kvm"]["enable_pmu"][..]), (1, "N"));
        let (_dir, empty) = host(&[]);
        assert_eq!((empty.memory(), empty.module_param("kvm", "x")), (0, None));
        assert!(empty.cpu_flags().is_empty());
    }
}
