//! What a case needs of the machine it runs on, checked before it starts.
//!
//! | written as | holds when |
//! |---|---|
//! | `kvm` | `/dev/kvm` opens and speaks API version 12; every case with a guest needs it unsaid |
//! | `cpuid:NAME` | KVM can show the guest that CPUID feature (`KVM_GET_SUPPORTED_CPUID`) |
//! | `kvm-cap:NAME` | `KVM_CHECK_EXTENSION` answers more than 0 for `KVM_CAP_NAME` |
//! | `hyperv:NAME` | KVM offers that one of Hyper-V's enlightenments (`KVM_GET_SUPPORTED_HV_CPUID`), or `any` |
//! | `module:MODULE.PARAM=VALUE` | `/sys/module/MODULE/parameters/PARAM` reads VALUE; see [`reads_as`] |
//! | `host:hardware-cpl0` | guest code at CPL 0 runs on the processor, not in KVM's emulator |
//! | `host:cpl3-entry` | guest CPL 3 code enters CPL 0 by `int n` and `syscall` as on a processor |
//! | `host:intel`, `host:amd` | the host's KVM is kvm-intel, or kvm-amd |
//! | `host:cpus>=N` | the process may run on at least N processors |
//! | `host:memory>=SIZE` | the machine has at least SIZE of memory |
//! | `host:hugepages-2M`, `host:hugepages-1G` | at least one such page is free |
//! | `host:userfault` | a process can resolve page faults of the kernel (userfaultfd) |
//! | `host:vfio-device` | a PCI device is bound to vfio-pci, in an IOMMU group |
//!
//! An emulated host is booted with the module parameters that a case needs, unless the user gave it
//! others; and where one is needed and it can have one, with a device for vfio-pci. On the machine's
//! own KVM they are what they are.
//!
//! A need that is not in this table is an error in the case, never a skip: a typing mistake must
//! not quietly turn a test off.

use std::fmt;

use crate::facts::{HostFacts, KvmFlavour};
use crate::nearest;
use vmm::units;

/// One need of a case.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Need {
    /// A usable `/dev/kvm`.
    Kvm,
    /// A CPUID feature that KVM can show the guest, by its name in `vmm::cpuid`.
    Cpuid(String),
    /// A KVM capability, by its name without `KVM_CAP_`.
    KvmCap(String),
    /// One of Hyper-V's enlightenments, by its name in `vmm::hyperv`; `any` for any at all.
    Hyperv(String),
    /// A parameter of a kernel module.
    Module {
        /// The module, as under `/sys/module`.
        module: String,
        /// Its parameter.
        param: String,
        /// What the parameter must read.
        value: String,
    },
    /// A fact of the host.
    Host(HostNeed),
}

/// A fact of the host that a case can need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostNeed {
    /// Guest CPL 0 runs on the processor (VMX or SVM), not in the kernel's instruction emulator.
    HardwareCpl0,
    /// `int n` and `syscall` at guest CPL 3 enter CPL 0. kvm-pvm makes #UD and #PF of them, whatever
    /// VMM runs the guest.
    Cpl3Entry,
    /// The host's KVM is kvm-intel.
    Intel,
    /// The host's KVM is kvm-amd.
    Amd,
    /// At least so many processors.
    Cpus(usize),
    /// At least so many bytes of memory; the text it was written as follows.
    Memory(u64, String),
    /// At least one free huge page of this size in bytes; the text it was written as follows.
    HugePages(u64, String),
    /// A process can resolve page faults of the kernel, which KVM's are.
    Userfault,
    /// A PCI device that is bound to vfio-pci.
    VfioDevice,
}

/// Whether a need is met, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met {
    /// It is.
    Yes,
    /// It is not, because of this.
    No(String),
    /// There is no such thing to ask for: the case is wrong.
    Unknown(String),
}

const HOST_NEEDS: [&str; 10] = [
    "hardware-cpl0",
    "cpl3-entry",
    "intel",
    "amd",
    "cpus>=N",
    "memory>=SIZE",
    "hugepages-2M",
    "hugepages-1G",
    "userfault",
    "vfio-device",
];

impl TryFrom<String> for Need {
    type Error = String;

    fn try_from(text: String) -> Result<Need, String> {
        if text == "kvm" {
            return Ok(Need::Kvm);
        }
        let Some((kind, rest)) = text.split_once(':') else {
            return Err(format!(
                "unknown need `{text}`: write kvm, cpuid:NAME, kvm-cap:NAME, hyperv:NAME, \
                 module:MODULE.PARAM=VALUE or host:FACT"
            ));
        };
        if rest.is_empty() {
            return Err(format!("need `{text}` names nothing after `{kind}:`"));
        }
        match kind {
            "cpuid" => Ok(Need::Cpuid(rest.into())),
            "kvm-cap" => Ok(Need::KvmCap(rest.into())),
            "hyperv" => Ok(Need::Hyperv(rest.into())),
            "module" => module(rest)
                .ok_or_else(|| format!("need `{text}`: write module:MODULE.PARAM=VALUE")),
            "host" => host(rest).map(Need::Host).ok_or_else(|| {
                let hint = nearest::hint(rest, HOST_NEEDS);
                format!("unknown need `{text}`: host: knows {}{hint}", HOST_NEEDS.join(", "))
            }),
            _ => Err(format!(
                "unknown kind of need `{kind}:` in `{text}`: known are cpuid:, kvm-cap:, hyperv:, \
                 module:, host:"
            )),
        }
    }
}

fn module(rest: &str) -> Option<Need> {
    let (path, value) = rest.split_once('=')?;
    let (module, param) = path.split_once('.')?;
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (word(module) && word(param) && !value.is_empty()).then(|| Need::Module {
        module: module.into(),
        param: param.into(),
        value: value.into(),
    })
}

fn host(rest: &str) -> Option<HostNeed> {
    match rest {
        "hardware-cpl0" => return Some(HostNeed::HardwareCpl0),
        "cpl3-entry" => return Some(HostNeed::Cpl3Entry),
        "intel" => return Some(HostNeed::Intel),
        "amd" => return Some(HostNeed::Amd),
        "userfault" => return Some(HostNeed::Userfault),
        "vfio-device" => return Some(HostNeed::VfioDevice),
        "hugepages-2M" => return Some(HostNeed::HugePages(2 << 20, "2M".into())),
        "hugepages-1G" => return Some(HostNeed::HugePages(1 << 30, "1G".into())),
        _ => {}
    }
    let (key, value) = rest.split_once(">=")?;
    match key {
        "cpus" => value.parse().ok().map(HostNeed::Cpus),
        "memory" => units::size(value).ok().map(|bytes| HostNeed::Memory(bytes, value.into())),
        _ => None,
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Kvm => f.write_str("kvm"),
            Need::Cpuid(name) => write!(f, "cpuid:{name}"),
            Need::KvmCap(name) => write!(f, "kvm-cap:{name}"),
            Need::Hyperv(name) => write!(f, "hyperv:{name}"),
            Need::Module { module, param, value } => write!(f, "module:{module}.{param}={value}"),
            Need::Host(host) => match host {
                HostNeed::HardwareCpl0 => f.write_str("host:hardware-cpl0"),
                HostNeed::Cpl3Entry => f.write_str("host:cpl3-entry"),
                HostNeed::Intel => f.write_str("host:intel"),
                HostNeed::Amd => f.write_str("host:amd"),
                HostNeed::Cpus(n) => write!(f, "host:cpus>={n}"),
                HostNeed::Memory(_, text) => write!(f, "host:memory>={text}"),
                HostNeed::HugePages(_, text) => write!(f, "host:hugepages-{text}"),
                HostNeed::Userfault => f.write_str("host:userfault"),
                HostNeed::VfioDevice => f.write_str("host:vfio-device"),
            },
        }
    }
}

impl From<Need> for String {
    fn from(need: Need) -> String {
        need.to_string()
    }
}

/// Whether a module parameter that was set to `value` reads `found`. One that is a truth value reads
/// `Y` or `N`, whichever of the words for it was written (Linux, kstrtobool in lib/kstrtox.c).
pub fn reads_as(value: &str, found: &str) -> bool {
    let truth = || match value.as_bytes() {
        [b'y' | b'Y' | b't' | b'T' | b'1', ..] | [b'o' | b'O', b'n' | b'N', ..] => Some("Y"),
        [b'n' | b'N' | b'f' | b'F' | b'0', ..] | [b'o' | b'O', b'f' | b'F', ..] => Some("N"),
        _ => None,
    };
    value == found || matches!(found, "Y" | "N") && truth() == Some(found)
}

impl Need {
    /// Compares the need with what the host offers.
    pub fn check(&self, facts: &dyn HostFacts) -> Met {
        let met = |yes: bool, no: &dyn Fn() -> String| if yes { Met::Yes } else { Met::No(no()) };
        match self {
            Need::Kvm => match facts.kvm() {
                Ok(()) => Met::Yes,
                Err(why) => Met::No(why),
            },
            Need::Cpuid(name) => facts.cpuid(name),
            Need::KvmCap(name) => facts.kvm_cap(name),
            Need::Hyperv(name) => facts.hyperv(name),
            Need::Module { module, param, value } => match facts.module_param(module, param) {
                Some(found) if reads_as(value, &found) => Met::Yes,
                Some(found) => Met::No(format!("{module}.{param} is {found}, not {value}")),
                None => Met::No(format!(
                    "/sys/module/{module}/parameters/{param} is not there: the module is not \
                     loaded or has no such parameter"
                )),
            },
            Need::Host(host) => match host {
                HostNeed::HardwareCpl0 => match facts.flavour() {
                    KvmFlavour::Intel | KvmFlavour::Amd => Met::Yes,
                    KvmFlavour::Pvm => Met::No(
                        "kvm-pvm interprets guest CPL 0 code in the kernel's instruction emulator"
                            .into(),
                    ),
                    KvmFlavour::Unknown => Met::No(
                        "neither kvm-intel nor kvm-amd is loaded: guest CPL 0 code may be interpreted"
                            .into(),
                    ),
                },
                HostNeed::Cpl3Entry => met(facts.flavour() != KvmFlavour::Pvm, &|| {
                    "kvm-pvm makes #UD of `int n` and #PF of `syscall` at CPL 3".into()
                }),
                HostNeed::Intel => met(facts.flavour() == KvmFlavour::Intel, &|| {
                    format!("the host's KVM is {}, not kvm-intel", facts.flavour())
                }),
                HostNeed::Amd => met(facts.flavour() == KvmFlavour::Amd, &|| {
                    format!("the host's KVM is {}, not kvm-amd", facts.flavour())
                }),
                HostNeed::Cpus(n) => {
                    let have = facts.cpus();
                    met(have >= *n, &|| format!("{have} processors, {n} needed"))
                }
                HostNeed::Memory(bytes, text) => {
                    let have = facts.memory();
                    met(have >= *bytes, &|| format!("{} MiB of memory, {text} needed", have >> 20))
                }
                HostNeed::HugePages(bytes, text) => {
                    let free = facts.free_hugepages(*bytes);
                    met(free > 0, &|| format!("no free huge page of {text}"))
                }
                HostNeed::Userfault => facts.userfault().map_or_else(Met::No, |()| Met::Yes),
                HostNeed::VfioDevice => facts.vfio_device().map_or_else(Met::No, |()| Met::Yes),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::fake::FakeFacts;

    fn need(text: &str) -> Need {
        Need::try_from(text.to_string()).expect(text)
    }

    #[test]
    fn every_need_is_written_back_as_it_was_read() {
        for text in [
            "kvm",
            "cpuid:x2apic",
            "kvm-cap:X86_SMM",
            "hyperv:synic",
            "module:kvm_intel.nested=Y",
            "host:hardware-cpl0",
            "host:cpl3-entry",
            "host:intel",
            "host:amd",
            "host:cpus>=2",
            "host:memory>=2G",
            "host:hugepages-2M",
            "host:hugepages-1G",
            "host:userfault",
            "host:vfio-device",
        ] {
            assert_eq!(need(text).to_string(), text);
        }
    }

    #[test]
    fn an_unknown_need_is_refused_with_what_is_known() {
        for (text, says) in [
            ("", "unknown need ``"),
            ("x2apic", "write kvm, cpuid:NAME"),
            ("cpu:x2apic", "unknown kind of need `cpu:`"),
            ("cpuid:", "names nothing after `cpuid:`"),
            ("host:hardware-cpl1", "the nearest is `hardware-cpl0`"),
            ("host:vfio", "the nearest is `vfio-device`"),
            ("host:cpus>=many", "unknown need"),
            ("host:cpus>2", "unknown need"),
            ("host:memory>=2GB", "unknown need"),
            ("module:kvm", "write module:MODULE.PARAM=VALUE"),
            ("module:../x.y=1", "write module:MODULE.PARAM=VALUE"),
            ("module:kvm.x=", "write module:MODULE.PARAM=VALUE"),
        ] {
            let error = Need::try_from(text.to_string()).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn needs_are_compared_with_the_host() {
        let facts = FakeFacts {
            cpuid: vec![("x2apic", true), ("pcid", false)],
            caps: vec![("SPLIT_IRQCHIP", true), ("X86_SMM", false)],
            hyperv: vec![("time", true), ("synic", false)],
            params: vec![("kvm", "enable_pmu", "Y"), ("kvm", "halt_poll_ns", "200000")],
            flavour: KvmFlavour::Pvm,
            cpus: 2,
            memory: 2 << 30,
            ..FakeFacts::default()
        };
        for yes in [
            "kvm",
            "cpuid:x2apic",
            "kvm-cap:SPLIT_IRQCHIP",
            "hyperv:time",
            "module:kvm.enable_pmu=Y",
            "module:kvm.enable_pmu=1",
            "module:kvm.enable_pmu=on",
            "module:kvm.halt_poll_ns=200000",
            "host:cpus>=2",
            "host:memory>=2G",
        ] {
            assert_eq!(need(yes).check(&facts), Met::Yes, "{yes}");
        }
        for (no, says) in [
            ("cpuid:pcid", "pcid"),
            ("kvm-cap:X86_SMM", "X86_SMM"),
            ("hyperv:synic", "synic"),
            ("module:kvm.enable_pmu=N", "kvm.enable_pmu is Y, not N"),
            ("module:kvm.enable_pmu=0", "kvm.enable_pmu is Y, not 0"),
            ("module:kvm.enable_pmu=2", "kvm.enable_pmu is Y, not 2"),
            ("module:kvm.halt_poll_ns=2", "kvm.halt_poll_ns is 200000, not 2"),
            ("module:kvm_intel.nested=Y", "/sys/module/kvm_intel/parameters/nested"),
            ("host:hardware-cpl0", "kvm-pvm interprets guest CPL 0"),
            ("host:cpl3-entry", "#UD of `int n`"),
            ("host:intel", "the host's KVM is kvm-pvm"),
            ("host:amd", "the host's KVM is kvm-pvm"),
            ("host:cpus>=3", "2 processors, 3 needed"),
            ("host:memory>=3G", "2048 MiB of memory, 3G needed"),
            ("host:hugepages-2M", "no free huge page of 2M"),
            ("host:userfault", "no userfaultfd"),
            ("host:vfio-device", "no vfio-pci"),
        ] {
            match need(no).check(&facts) {
                Met::No(why) => assert!(why.contains(says), "{no}: {why}"),
                other => panic!("{no}: {other:?}"),
            }
        }
        for unknown in ["cpuid:x3apic", "kvm-cap:NO_SUCH", "hyperv:sinic"] {
            assert!(matches!(need(unknown).check(&facts), Met::Unknown(_)), "{unknown}");
        }
    }

    #[test]
    fn real_hardware_is_recognised() {
        for flavour in [KvmFlavour::Intel, KvmFlavour::Amd] {
            let facts = FakeFacts { flavour, hugepages: 4, ..FakeFacts::default() };
            assert_eq!(need("host:hardware-cpl0").check(&facts), Met::Yes);
            assert_eq!(need("host:cpl3-entry").check(&facts), Met::Yes);
            assert_eq!(need("host:hugepages-1G").check(&facts), Met::Yes);
        }
    }

    #[test]
    fn without_kvm_the_reason_is_passed_on() {
        let facts = FakeFacts { no_kvm: Some("no /dev/kvm".into()), ..FakeFacts::default() };
        assert_eq!(need("kvm").check(&facts), Met::No("no /dev/kvm".into()));
    }
}
