//! Values that matter to one register, as its documentation names them: commands, and where structures lie.

use vmm::chips::pci::edu::{BUFFER, BUFFER_BYTES, reg as edu};
use vmm::chips::pci::vtd::{reg as vtd, status};

/// Where chains of tables begin.
pub(super) const CHAINS: [u64; 4] = [0x1000, 0x8000, 0x1_0000, 0x10_0000];

/// The name of what is selected of PCI configuration space.
pub(super) const CONFIG: &str = "pci-data";

/// The name of the IOMMU's registers.
pub(super) const IOMMU: &str = "intel-iommu";
/// The command that has it take up its root and translate.
pub(super) const TRANSLATION: u64 = (status::ROOT | status::TRANSLATION) as u64;

/// Those of the register at `offset` of a region of this name. Of most registers any value is as good as
/// another, and there are none.
pub(super) fn of(region: &str, offset: u64) -> &'static [u64] {
    match (region, offset) {
        // The command register: which spaces are decoded, and whether it is a bus master (PCI 3.0, 6.2.2).
        (CONFIG, 4) => &[6, 7, 4, 2, 0x406],
        ("edu", edu::SOURCE | edu::DESTINATION) => {
            &[BUFFER, BUFFER + BUFFER_BYTES as u64 - 4, CHAINS[0], 0]
        }
        // Upper halves: most of what matters lies below 4 GiB.
        ("edu", _) if offset % 8 == 4 && offset > edu::SOURCE => &[0],
        ("edu", edu::LENGTH) => &[4, 16, BUFFER_BYTES as u64, 1],
        // To begin, to memory, with an interrupt.
        ("edu", edu::COMMAND) => &[1, 3, 5, 7],
        (IOMMU, vtd::COMMAND) => {
            const QUEUE: u64 = status::QUEUE as u64;
            const INTERRUPTS: u64 = (status::TABLE | status::INTERRUPTS) as u64;
            &[TRANSLATION, QUEUE, INTERRUPTS, TRANSLATION | QUEUE, TRANSLATION | INTERRUPTS]
        }
        (IOMMU, vtd::ROOT | vtd::QUEUE | vtd::INTERRUPTS) => &CHAINS,
        // So many descriptors.
        (IOMMU, vtd::QUEUE_TAIL) => &[16, 32, 64],
        _ => &[],
    }
}
