//! Devices that an emulated host itself has, for tests of device assignment and of vhost.
//!
//! They take QEMU's q35 machine, which has PCI Express and room for an IOMMU, and a kernel with their
//! drivers: Debian's for real machines, not the one for virtual ones.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use testcases::nearest;
use thiserror::Error;

use crate::plan::Params;
use crate::qemu;

/// The word that gives a device to vfio-pci, after its name and a colon.
const ASSIGNED: &str = "vfio";

/// The modules that take a device for assignment, in whatever order they need each other.
const VFIO: [&str; 2] = ["vfio_iommu_type1", "vfio_pci"];

/// The size of the USB stick. Bytes.
const STICK: u64 = 16 << 20;

/// The file that is the USB stick, in a boot's directory.
const STICK_FILE: &str = "usb-stick.img";

/// A device that a host can have.
#[derive(Debug, PartialEq, Eq)]
pub struct Device {
    /// What `--device` calls it.
    pub name: &'static str,
    /// One sentence for people.
    pub about: &'static str,
    /// Options of QEMU, beside those for its file.
    options: &'static [&'static str],
    /// The modules that drive it.
    modules: &'static [&'static str],
    /// More words for the kernel's command line.
    command_line: &'static [&'static str],
    /// `VENDOR:DEVICE` if it is a PCI device that can be assigned.
    pci: Option<&'static str>,
    /// Words for the kernel's command line that keep a driver away from it that is built in and would
    /// take it before vfio-pci can.
    keep_off: &'static [&'static str],
}

/// The devices that there are; QEMU makes them in this order, and an IOMMU comes before what it
/// translates for.
///
/// The network cards have no option ROM, which would be one more package; each is at the end of a
/// hub of its own machine, so that they hear each other and nobody else. The Intel one stands behind
/// a root port: only by its bus can it be reset.
pub static KNOWN: [Device; 5] = [
    Device {
        name: "iommu",
        about: "an Intel IOMMU, which puts each PCI device into a group of its own",
        options: &["-device", "intel-iommu,intremap=on,caching-mode=on"],
        modules: &[],
        command_line: &["intel_iommu=on"],
        pci: None,
        keep_off: &[],
    },
    Device {
        name: "edu",
        about: "QEMU's device for teaching: registers, an interrupt and a DMA engine, and no driver",
        options: &["-device", "edu"],
        modules: &[],
        command_line: &[],
        pci: Some("1234:11e8"),
        keep_off: &[],
    },
    Device {
        name: "e1000e",
        about: "a network card as Intel makes them (82574L), with MSI-X",
        options: &[
            "-netdev",
            "hubport,id=e1000e-net,hubid=0",
            "-device",
            "pcie-root-port,id=e1000e-port,chassis=1",
            "-device",
            "e1000e,bus=e1000e-port,netdev=e1000e-net,romfile=",
        ],
        modules: &["e1000e"],
        command_line: &[],
        pci: Some("8086:10d3"),
        keep_off: &[],
    },
    Device {
        name: "virtio-net",
        about: "a virtio network card, which reaches memory through the IOMMU if there is one",
        options: &[
            "-netdev",
            "hubport,id=virtio-net-net,hubid=0",
            "-device",
            "virtio-net-pci,netdev=virtio-net-net,romfile=,disable-legacy=on,iommu_platform=on",
        ],
        modules: &["virtio_pci", "virtio_net"],
        command_line: &[],
        pci: Some("1af4:1041"),
        keep_off: &["initcall_blacklist=virtio_pci_driver_init"],
    },
    Device {
        name: "usb-stick",
        about: "a USB stick of 16 MiB, all zero, at an xHCI controller",
        options: &[
            "-device",
            "qemu-xhci,id=usb",
            "-device",
            "usb-storage,bus=usb.0,drive=usb-stick,removable=on",
        ],
        modules: &["xhci_pci", "usb_storage", "sd_mod"],
        command_line: &[],
        pci: None,
        keep_off: &[],
    },
];

/// Devices that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// There is none of that name.
    #[error("no device is called `{name}`{hint}; there are {known}", known = names())]
    Unknown {
        /// What was asked for.
        name: String,
        /// What might have been meant.
        hint: String,
    },
    /// Something other than `vfio` follows the name.
    #[error("`{0}` is no device: write NAME, or NAME:{ASSIGNED} for one that vfio-pci shall have")]
    Syntax(String),
    /// Not a PCI device that can be given away.
    #[error("{0} cannot be given to vfio-pci: {choices} can", choices = assignable())]
    NotAssignable(&'static str),
    /// With and without `:vfio`.
    #[error("{0} is asked for both with and without :{ASSIGNED}, and there is one: leave one out")]
    Twice(&'static str),
}

fn names() -> String {
    KNOWN.iter().map(|device| device.name).collect::<Vec<_>>().join(", ")
}

fn assignable() -> String {
    let devices = KNOWN.iter().filter(|device| device.pci.is_some());
    devices.map(|device| device.name).collect::<Vec<_>>().join(", ")
}

/// One device of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chosen {
    device: &'static Device,
    /// Whether vfio-pci has it, instead of its driver.
    assigned: bool,
}

/// The devices of a machine; by themselves none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices(Vec<Chosen>);

impl Devices {
    /// No device.
    pub const NONE: Devices = Devices(Vec::new());

    /// The devices of these names; `NAME:vfio` gives one to vfio-pci, and brings an IOMMU with it.
    ///
    /// # Errors
    ///
    /// There is no such device, or it cannot be assigned, or is asked for in two ways.
    pub fn new<S: AsRef<str>>(names: &[S]) -> Result<Devices, DeviceError> {
        let mut devices: Vec<Chosen> = Vec::new();
        let mut add = |new: Chosen| match devices.iter().find(|old| old.device == new.device) {
            Some(old) if *old == new => Ok(()),
            Some(_) => Err(DeviceError::Twice(new.device.name)),
            None => {
                devices.push(new);
                Ok(())
            }
        };
        for text in names.iter().map(AsRef::as_ref) {
            let (name, assigned) = match text.split_once(':') {
                None => (text, false),
                Some((name, ASSIGNED)) => (name, true),
                Some(_) => return Err(DeviceError::Syntax(text.to_owned())),
            };
            let device = find(name)?;
            if assigned {
                if device.pci.is_none() {
                    return Err(DeviceError::NotAssignable(device.name));
                }
                add(Chosen { device: find("iommu")?, assigned: false })?;
            }
            add(Chosen { device, assigned })?;
        }
        devices.sort_by_key(|chosen| KNOWN.iter().position(|known| known == chosen.device));
        Ok(Devices(devices))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The modules that drive them.
    pub fn modules(&self) -> Vec<&'static str> {
        let own = self.0.iter().filter(|chosen| !chosen.assigned);
        let own = own.flat_map(|chosen| chosen.device.modules.iter().copied());
        let any = self.0.iter().any(|chosen| chosen.assigned);
        own.chain(VFIO.into_iter().filter(|_| any)).collect()
    }

    /// The parameters of modules that they take: the devices that vfio-pci binds when it is loaded
    /// (Linux, `ids` in drivers/vfio/pci/vfio_pci.c).
    pub fn params(&self) -> Params {
        let assigned = self.0.iter().filter(|chosen| chosen.assigned);
        let ids: Vec<&str> = assigned.filter_map(|chosen| chosen.device.pci).collect();
        let key = ("vfio_pci".to_owned(), "ids".to_owned());
        Params((!ids.is_empty()).then(|| (key, ids.join(","))).into_iter().collect())
    }

    /// More words for the kernel's command line.
    pub fn command_line(&self) -> impl Iterator<Item = &'static str> {
        let words = |chosen: &Chosen| {
            let keep_off = if chosen.assigned { chosen.device.keep_off } else { &[] };
            chosen.device.command_line.iter().chain(keep_off).copied()
        };
        self.0.iter().flat_map(words)
    }

    /// The options of QEMU that make them, for a boot in this directory, which gets their files.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn options(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut words = Vec::new();
        if !self.is_empty() {
            words.extend(["-machine".to_owned(), "q35".to_owned()]);
        }
        for Chosen { device, .. } in &self.0 {
            if device.name == "usb-stick" {
                let path = dir.join(STICK_FILE);
                File::create(&path)?.set_len(STICK)?;
                let file = qemu::path(&path);
                words.push("-drive".to_owned());
                words.push(format!("if=none,id=usb-stick,format=raw,file={file}"));
            }
            words.extend(device.options.iter().map(|&word| word.to_owned()));
        }
        Ok(words)
    }
}

/// As `--device` takes them.
impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Chosen { device, assigned }) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let end = if *assigned { ":vfio" } else { "" };
            write!(f, "{comma}{}{end}", device.name)?;
        }
        Ok(())
    }
}

fn find(name: &str) -> Result<&'static Device, DeviceError> {
    KNOWN.iter().find(|device| device.name == name).ok_or_else(|| {
        let hint = nearest::hint(name, KNOWN.iter().map(|device| device.name));
        DeviceError::Unknown { name: name.to_owned(), hint }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(names: &[&str]) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let devices = Devices::new(names).expect("devices");
        devices.options(dir.path()).expect("options").join(" ")
    }

    #[test]
    fn a_device_that_is_assigned_brings_an_iommu_and_not_its_driver() {
        let devices = Devices::new(&["e1000e:vfio", "virtio-net", "edu:vfio"]).expect("devices");
        assert_eq!(devices.to_string(), "iommu,edu:vfio,e1000e:vfio,virtio-net");
        assert_eq!(devices.modules(), ["virtio_pci", "virtio_net", "vfio_iommu_type1", "vfio_pci"]);
        assert_eq!(devices.params().of("vfio-pci"), "ids=1234:11e8,8086:10d3");
        assert_eq!(devices.command_line().collect::<Vec<_>>(), ["intel_iommu=on"]);
        let virtio = Devices::new(&["virtio-net:vfio"]).expect("a device");
        assert_eq!(
            virtio.command_line().collect::<Vec<_>>(),
            ["intel_iommu=on", "initcall_blacklist=virtio_pci_driver_init"]
        );
    }

    #[test]
    fn the_iommu_stands_before_what_it_translates_for() {
        let line = options(&["e1000e", "iommu"]);
        assert!(line.starts_with("-machine q35 -device intel-iommu,"), "{line}");
        assert!(line.ends_with("netdev=e1000e-net,romfile="), "{line}");
    }

    #[test]
    fn no_device_is_no_option() {
        let none = Devices::NONE;
        assert!(none.is_empty() && none.modules().is_empty() && none.params() == Params::default());
        assert_eq!((options(&[]), none.to_string()), (String::new(), String::new()));
    }

    #[test]
    fn the_stick_is_a_file_of_the_boot() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Devices::new(&["usb-stick"]).expect("a device").options(dir.path());
        let file = dir.path().join(STICK_FILE);
        let drive = format!("if=none,id=usb-stick,format=raw,file={}", file.display());
        assert!(options.expect("options").contains(&drive), "{drive}");
        assert_eq!(file.metadata().expect("a file").len(), STICK);
        let error = Devices::new(&["usb-stick"]).expect("a device").options(&file);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn what_cannot_be_had_is_told_with_what_can() {
        for (names, says) in [
            (vec!["e1000"], "the nearest is `e1000e`; there are iommu, edu, e1000e"),
            (vec![""], "no device is called ``"),
            (vec!["e1000e:kvm"], "`e1000e:kvm` is no device: write NAME, or NAME:vfio"),
            (vec!["iommu:vfio"], "iommu cannot be given to vfio-pci: edu, e1000e, virtio-net can"),
            (vec!["edu", "edu:vfio"], "edu is asked for both with and without :vfio"),
        ] {
            let error = Devices::new(&names).unwrap_err().to_string();
            assert!(error.contains(says), "{names:?}: {error}");
        }
    }
}
