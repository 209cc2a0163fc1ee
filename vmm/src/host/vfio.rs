//! PCI devices that the host gives to user space: bound to vfio-pci, in a group that an IOMMU keeps
//! apart (Linux, Documentation/driver-api/vfio.rst).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};
use vm_memory::MmapRegion;
use vm_memory::mmap::MmapRegionError;

/// The size of a page that is mapped. Bytes.
const PAGE: usize = 4096;

/// Linux, include/uapi/linux/vfio.h: the regions of a PCI device.
const REGIONS: u32 = 9;
/// The one that is its configuration space.
const CONFIG: u32 = 7;
/// The interrupts of a PCI device.
const IRQS: u32 = 5;

/// A PCI device that is bound to vfio-pci.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Its address, such as `0000:01:00.0`.
    pub address: String,
    /// The number of its IOMMU group.
    pub group: u32,
    /// The numbers of its vendor and of its kind.
    pub id: (u16, u16),
    /// Its directory in `/sys`.
    dir: PathBuf,
}

/// Why there is no such device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Absent {
    /// Nothing has loaded the driver.
    #[error("{0} is not there: vfio-pci is not loaded; `modprobe vfio-pci` loads it")]
    Driver(String),
    /// The driver has no device.
    #[error(
        "no PCI device is bound to vfio-pci; `modprobe vfio-pci ids=VENDOR:DEVICE` binds one that has \
         no driver yet"
    )]
    Device,
    /// Its devices are in no group.
    #[error(
        "PCI device {0} is bound to vfio-pci and in no IOMMU group; boot with an IOMMU switched on \
         (intel_iommu=on)"
    )]
    Group(String),
    /// It cannot be told what the device is.
    #[error("PCI device {0} is bound to vfio-pci, and {1} cannot be read")]
    Unreadable(String, String),
}

impl Bound {
    /// The first device that is bound to vfio-pci, of the machine whose files are below `root`.
    ///
    /// # Errors
    ///
    /// There is none, and why.
    pub fn find(root: &Path) -> Result<Bound, Absent> {
        let driver = root.join("sys/bus/pci/drivers/vfio-pci");
        let node = root.join("dev/vfio/vfio");
        let Some(entries) = fs::read_dir(&driver).ok().filter(|_| node.exists()) else {
            let absent = if node.exists() { &driver } else { &node };
            return Err(Absent::Driver(absent.display().to_string()));
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        // Beside the devices there are files to bind them by, and the module.
        let address = names.filter(|name| name.contains(':')).min().ok_or(Absent::Device)?;
        let dir = driver.join(&address);
        let group = fs::read_link(dir.join("iommu_group")).ok();
        let group = group.as_deref().and_then(|link| link.file_name()?.to_str()?.parse().ok());
        let Some(group) = group else { return Err(Absent::Group(address)) };
        let number = |name: &str| {
            let path = dir.join(name);
            let text = fs::read_to_string(&path).unwrap_or_default();
            let digits = text.trim().strip_prefix("0x").unwrap_or_default();
            u16::from_str_radix(digits, 16)
                .map_err(|_| Absent::Unreadable(address.clone(), path.display().to_string()))
        };
        let id = (number("vendor")?, number("device")?);
        Ok(Bound { address, group, id, dir })
    }
}

/// A device that cannot be used.
#[derive(Debug, Error)]
pub enum AssignError {
    /// The kernel refused something.
    #[error("cannot {what} of PCI device {address}: {error}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// On which device.
        address: String,
        /// What the kernel says.
        error: VfioError,
    },
    /// There is no memory to map.
    #[error("cannot get a page to map: {0}")]
    Memory(#[from] MmapRegionError),
}

/// A device that this process has to itself, with an address space for its DMA.
pub struct Assigned {
    container: Arc<VfioContainer>,
    device: VfioDevice,
    address: String,
}

impl Assigned {
    /// Takes the device: opens its group, which must be viable, gives that an address space of a
    /// type 1 IOMMU, and asks the device what it has.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn take(bound: &Bound) -> Result<Assigned, AssignError> {
        let refused = |what| {
            let address = bound.address.clone();
            move |error| AssignError::Refused { what, address, error }
        };
        let container =
            VfioContainer::new(None).map_err(refused("make an address space for the DMA"))?;
        let container = Arc::new(container);
        let device = VfioDevice::new(&bound.dir, container.clone(), false)
            .map_err(refused("take the group and the registers"))?;
        Ok(Assigned { container, device, address: bound.address.clone() })
    }

    /// How many regions it has: registers, ROM and configuration space.
    pub fn regions(&self) -> usize {
        (0..REGIONS).filter(|&index| self.device.get_region_size(index) > 0).count()
    }

    /// How many interrupts it has, of all kinds together.
    pub fn irqs(&self) -> u32 {
        let infos = (0..IRQS).filter_map(|index| self.device.get_irq_info(index));
        infos.map(|info| info.count).sum()
    }

    /// The numbers of its vendor and of its kind, from its configuration space; zeros if that cannot
    /// be read.
    pub fn id(&self) -> (u16, u16) {
        let mut bytes = [0; 4];
        self.device.region_read(CONFIG, &mut bytes, 0);
        let [a, b, c, d] = bytes;
        (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
    }

    /// Resets it if it can be reset; nothing tells whether it was.
    pub fn reset(&self) {
        self.device.reset();
    }

    /// Gives the device a page at this address of its DMA, and takes it away again.
    ///
    /// # Errors
    ///
    /// The kernel refuses it, or there is no memory.
    pub fn map_once(&self, address: u64) -> Result<(), AssignError> {
        let refused = |what| {
            let address = self.address.clone();
            move |error| AssignError::Refused { what, address, error }
        };
        let page = MmapRegion::<()>::new(PAGE)?;
        // SAFETY: the page is this function's own, nothing but the device reaches it as long as it is
        // mapped, and no reference to its bytes is made.
        unsafe { self.container.vfio_dma_map(address, PAGE, page.as_ptr()) }
            .map_err(refused("map a page for the DMA"))?;
        self.container.vfio_dma_unmap(address, PAGE).map_err(|error| {
            // It may still be reached by the device, so it must stay this process's.
            std::mem::forget(page);
            refused("unmap the page for the DMA")(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of a machine; those that begin with `>` are links.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            match text.strip_prefix('>') {
                Some(to) => std::os::unix::fs::symlink(to, path).expect("a link"),
                None => fs::write(path, text).expect("a file"),
            }
        }
        dir
    }

    const NODE: (&str, &str) = ("dev/vfio/vfio", "");
    const BIND: (&str, &str) = ("sys/bus/pci/drivers/vfio-pci/bind", "");
    const DEVICE: &str = "sys/bus/pci/drivers/vfio-pci/0000:01:00.0";

    #[test]
    fn a_bound_device_is_found_with_its_group() {
        let at = |name: &str| format!("{DEVICE}/{name}");
        let (vendor, device, group) = (at("vendor"), at("device"), at("iommu_group"));
        let (vendor, device) = ((&vendor[..], "0x8086\n"), (&device[..], "0x10d3\n"));
        let group = (&group[..], ">../../../kernel/iommu_groups/12");
        let other = ("sys/bus/pci/drivers/vfio-pci/0000:02:00.0/vendor", "0x1234");
        let dir = machine(&[NODE, BIND, other, vendor, device, group]);
        let bound = Bound::find(dir.path()).expect("a device");
        assert_eq!(
            (&bound.address[..], bound.group, bound.id),
            ("0000:01:00.0", 12, (0x8086, 0x10d3))
        );
        for (files, says) in [
            (vec![], "dev/vfio/vfio is not there"),
            (vec![NODE], "drivers/vfio-pci is not there"),
            (vec![BIND], "dev/vfio/vfio is not there"),
            (vec![NODE, BIND], "no PCI device is bound to vfio-pci"),
            (vec![NODE, vendor, device], "0000:01:00.0 is bound to vfio-pci and in no IOMMU group"),
            (vec![NODE, vendor, group], "0000:01:00.0/device cannot be read"),
        ] {
            let dir = machine(&files);
            let error = Bound::find(dir.path()).unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
