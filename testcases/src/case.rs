//! A case: which test of which payload runs, on which machine, and what the right outcome is; or
//! which test of the host itself.
//!
//! A case is a TOML file `cases/AREA/NAME.toml`; its id is `AREA/NAME`, and each table
//! `[variant.V]` in it overlays the file to make a further case `AREA/NAME@V`. Every key is checked:
//! an unknown one is an error that names the file, the key and the known keys.

mod known;
mod spec;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::status::VmmEnd;
use vmm::units;

pub use known::{Because, Deviates, Deviation, KnownBug, Modules};
pub use spec::{Spec, Subject, TestRef};

/// How long a case may run if it does not say: enough for any single test, short enough that a hang
/// is noticed.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The timeouts that a case may ask for.
pub const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);

/// The name of a case: `area/name` or `area/name@variant`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaseId {
    /// The directory under `cases/`.
    pub area: String,
    /// The file's name without `.toml`.
    pub name: String,
    /// The variant, if it is one.
    pub variant: Option<String>,
}

impl Case {
    /// The directory of its file, from which its paths go.
    pub fn dir(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }
}

impl fmt::Display for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.area, self.name)?;
        match &self.variant {
            Some(v) => write!(f, "@{v}"),
            None => Ok(()),
        }
    }
}

/// One case, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its name.
    pub id: CaseId,
    /// The file it was read from.
    pub file: PathBuf,
    /// What the case says of itself.
    pub spec: Spec,
}

/// The virtual machine of a case. What is not given is left to the VMM's own default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Number of vCPUs, from 1 to 255; 1 if not given.
    #[serde(default)]
    pub vcpus: Vcpus,
    /// Size of guest memory, such as `256M`.
    pub memory: Option<Size>,
    /// The CPU model and its changes, such as `host,-pcid,+x2apic`.
    pub cpu: Option<Cpu>,
    /// Where PIC, I/O APIC and local APIC live.
    pub irqchip: Option<Irqchip>,
    /// Where the PIT lives.
    pub pit: Option<Pit>,
    /// Whether vCPUs keep their processors when they halt, pause or wait.
    #[serde(default)]
    pub cpu_pm: bool,
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
    /// The machine as options of `vmm run`, for a case in the directory `dir`.
    pub fn arguments(&self, dir: &Path) -> Vec<String> {
        let mut args = Vec::new();
        let mut add = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                args.extend([format!("--{key}"), value]);
            }
        };
        add("cpus", (self.vcpus.0 != 1).then(|| self.vcpus.0.to_string()));
        add("memory", self.memory.as_ref().map(|m| m.0.clone()));
        add("cpu", self.cpu.as_ref().map(|c| c.0.clone()));
        add("irqchip", self.irqchip.map(|v| v.word().into()));
        add("pit", self.pit.map(|v| v.word().into()));
        add("cpu-pm", self.cpu_pm.then(|| "on".into()));
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

/// Makes a type that is read from a string by a checking function.
macro_rules! checked {
    ($($(#[$doc:meta])* $name:ident($inner:ty) = $check:expr;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(pub $inner);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let check: fn(String) -> Result<$inner, String> = $check;
                check(text).map($name)
            }
        }
    )* };
}

checked! {
    /// A sentence, not empty.
    About(String) = |text| {
        if text.trim().is_empty() {
            return Err("say in one sentence what holds if the case passes".into());
        }
        Ok(text)
    };

    /// A duration within [`TIMEOUTS`].
    Timeout(Duration) = |text| {
        let time = units::duration(&text).map_err(|e| e.to_string())?;
        if !TIMEOUTS.contains(&time) {
            return Err(format!("timeout {text} is out of range: from 100ms to 10m"));
        }
        Ok(time)
    };

    /// A size of memory as the VMM reads it: at least `1M`.
    Size(String) = |text| {
        if units::size(&text).map_err(|e| e.to_string())? < 1 << 20 {
            return Err(format!("memory {text} is too small: 1M at least"));
        }
        Ok(text)
    };

    /// A CPU model as `vmm run --cpu` reads it: `host,-pcid,+x2apic`. Names are checked here, what the
    /// host supports is not.
    Cpu(String) = |text| match text.parse::<vmm::cpuid::CpuModel>() {
        Ok(_) => Ok(text),
        Err(e) => Err(format!("cpu `{text}`: {e}")),
    };

    /// A word of lower-case letters, digits and hyphens.
    Tag(String) = |text| {
        if !is_word(&text) {
            return Err(format!("tag `{text}`: write lower-case letters, digits, - and _"));
        }
        Ok(text)
    };
}

impl Default for Timeout {
    fn default() -> Self {
        Timeout(DEFAULT_TIMEOUT)
    }
}

/// A number of vCPUs, from 1 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Vcpus(pub u8);

impl Default for Vcpus {
    fn default() -> Self {
        Vcpus(1)
    }
}

impl TryFrom<i64> for Vcpus {
    type Error = String;

    fn try_from(n: i64) -> Result<Vcpus, String> {
        match u8::try_from(n) {
            Ok(n) if n > 0 => Ok(Vcpus(n)),
            _ => Err(format!("vcpus = {n} is out of range: from 1 to 255")),
        }
    }
}

/// The outcome that is right for a case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Expect {
    /// The guest says `pass`, on the serial port and through the exit port. Written `pass`.
    #[default]
    Pass,
    /// The guest begins its test and writes this value to the exit port, without a word on how it
    /// ended. Written `exit:N`, N from 0 to 127 and none of the protocol's own values.
    Exit(u8),
    /// The guest begins its test, and then the VMM ends it in this way. Written `power-off`,
    /// `triple-fault`, `internal-error`, `halted`, `reset`, `crash` or `timeout`.
    Vmm(VmmEnd),
}

impl TryFrom<String> for Expect {
    type Error = String;

    fn try_from(text: String) -> Result<Expect, String> {
        if text == "pass" {
            return Ok(Expect::Pass);
        }
        if let Some(number) = text.strip_prefix("exit:") {
            let value = number.parse::<u8>().ok().filter(|v| *v < 128);
            let value = value.ok_or_else(|| {
                format!("expect `{text}`: the value after exit: is a number from 0 to 127")
            })?;
            let status = payload_abi::exit_status(value);
            return match payload_abi::ExitValue::from_status(status) {
                None => Ok(Expect::Exit(value)),
                Some(v) => Err(format!(
                    "expect `{text}`: {value} is how a payload says `{}`; only other values can be \
                     expected",
                    v.word()
                )),
            };
        }
        let guest_ends = VmmEnd::ALL.into_iter().filter(|end| end.is_guests_doing());
        guest_ends.clone().find(|end| end.word() == text).map(Expect::Vmm).ok_or_else(|| {
            let words: Vec<_> = guest_ends.map(VmmEnd::word).collect();
            format!("unknown expect `{text}`: known are pass, exit:N, {}", words.join(", "))
        })
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Pass => f.write_str("pass"),
            Expect::Exit(value) => write!(f, "exit:{value}"),
            Expect::Vmm(end) => f.write_str(end.word()),
        }
    }
}

/// Whether `text` can be an area, a case's name, a variant or a tag: lower-case letters, digits,
/// hyphens and underscores, beginning with a letter or a digit.
pub fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<Spec, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    const SMALL: &str = "about = \"It works.\"\npayload = \"apic::self_ipi\"\n";

    #[test]
    fn a_small_case_gets_the_defaults() {
        let spec = spec(SMALL).expect("a case");
        assert_eq!(spec.subject.to_string(), "apic::self_ipi");
        assert_eq!(spec.timeout.0, DEFAULT_TIMEOUT);
        assert_eq!(spec.expect, Expect::Pass);
        assert_eq!(spec.machine, Machine::default());
        assert!(spec.machine.arguments(Path::new("d")).is_empty());
    }

    #[test]
    fn a_full_case_becomes_arguments_of_the_vmm() {
        let spec = spec(&format!(
            "{SMALL}needs = [\"cpuid:x2apic\"]\ntimeout = \"5s\"\nexpect = \"triple-fault\"\n\
             tags = [\"smoke\"]\n[machine]\nvcpus = 2\nmemory = \"64M\"\ncpu = \"host,-pcid\"\n\
             irqchip = \"split\"\npit = \"none\"\nboot = \"pvh\"\nhugepages = \"2M\"\n\
             lab = true\ndirty-ring = 1024\ncmdline = \"x=1 y\"\nmodules = [\"m\"]\n"
        ))
        .expect("a case");
        assert_eq!(spec.expect, Expect::Vmm(VmmEnd::TripleFault));
        assert_eq!(spec.timeout.0, Duration::from_secs(5));
        assert_eq!(
            spec.machine.arguments(Path::new("d")).join("|"),
            "--cpus|2|--memory|64M|--cpu|host,-pcid|--irqchip|split|--pit|none|--boot|pvh|\
             --hugepages|2M|--dirty-ring|1024|--cmdline|x=1 y|--module|d/m|--lab"
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        let error = spec(&format!("{SMALL}time_out = \"5s\"\n")).unwrap_err();
        assert!(error.contains("time_out") && error.contains("`timeout`"), "{error}");
        let error = spec(&format!("{SMALL}[machine]\ncpus = 2\n")).unwrap_err();
        assert!(error.contains("`cpus`") && error.contains("`vcpus`"), "{error}");
        let error = spec("about = \"It works.\"\n").unwrap_err();
        assert!(error.contains("nothing is tested: write `payload"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_refused_with_what_is_right() {
        for (line, says) in [
            ("needs = [\"cpuidx2apic\"]", "unknown need"),
            ("timeout = \"5\"", "is no duration"),
            ("timeout = \"1ms\"", "from 100ms to 10m"),
            ("timeout = \"11m\"", "from 100ms to 10m"),
            ("expect = \"tripple-fault\"", "triple-fault"),
            ("expect = \"bad-input\"", "unknown expect"),
            ("expect = \"failed\"", "unknown expect"),
            ("expect = \"exit:128\"", "from 0 to 127"),
            ("expect = \"exit:\"", "from 0 to 127"),
            ("expect = \"exit:0\"", "how a payload says `pass`"),
            ("expect = \"exit:1\"", "how a payload says `fail`"),
            ("expect = \"exit:63\"", "how a payload says `error`"),
            ("tags = [\"Smoke\"]", "lower-case"),
            ("[machine]\nvcpus = 0", "from 1 to 255"),
            ("[machine]\nvcpus = 256", "from 1 to 255"),
            ("[machine]\nmemory = \"64\"", "is no size"),
            ("[machine]\nmemory = \"4K\"", "1M at least"),
            ("[machine]\ncpu = \"host,-pcidd\"", "pcidd"),
            ("[machine]\ncpu = \"host,phys-bits=99\"", "phys-bits"),
            ("[machine]\nirqchip = \"user\"", "`split`"),
            ("[machine]\npit = \"split\"", "`kernel`"),
            ("[machine]\nboot = \"bios\"", "`pvh`"),
            ("[machine]\nhugepages = \"4M\"", "`thp`"),
        ] {
            let error = spec(&format!("{SMALL}{line}\n")).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
        for (text, says) in [
            ("about = \" \"\npayload = \"a::b\"", "one sentence"),
            ("about = \"x\"\npayload = \"a::b\"\nbecause = \"So.\"", "without the last full stop"),
            ("about = \"x\"\npayload = \"a:b\"", "PAYLOAD::TEST"),
            ("about = \"x\"\npayload = \"::b\"", "PAYLOAD::TEST"),
        ] {
            assert!(spec(text).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn every_expectation_is_written_back_as_it_was_read() {
        for text in ["pass", "exit:5", "exit:127", "triple-fault", "halted", "timeout", "reset"] {
            assert_eq!(Expect::try_from(text.to_string()).expect(text).to_string(), text);
        }
    }
}
