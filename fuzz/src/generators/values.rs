//! Values that matter to one register, as its documentation names them: commands, and where structures lie.

use vmm::access::Size;
use vmm::chips::pci::edu::{BUFFER, BUFFER_BYTES, reg as edu};
use vmm::chips::pci::vtd::{faults, reg as vtd, status};

/// Where chains of tables begin.
pub(super) const CHAINS: [u64; 4] = [0x1000, 0x8000, 0x1_0000, 0x10_0000];

/// The name of what is selected of PCI configuration space.
pub(super) const CONFIG: &str = "pci-data";

/// The name of the IOMMU's registers.
pub(super) const IOMMU: &str = "intel-iommu";
/// The last dword of the fault that it recorded.
const RECORD_END: u64 = vtd::RECORD + 12;
/// The command that has it take up its root and translate.
pub(super) const TRANSLATION: u64 = (status::ROOT | status::TRANSLATION) as u64;
/// The one that has it take up its table of interrupts and remap them.
const INTERRUPTING: u64 = (status::TABLE | status::INTERRUPTS) as u64;

/// Rows of 16 bytes that a device finds in memory, and how a driver tells it of them.
#[derive(Debug)]
pub(super) struct Rows {
    /// The region of the registers that it is told by.
    pub(super) region: &'static str,
    /// What matters in the halves of a row.
    pub(super) halves: [&'static [u64]; 2],
    pub(super) tells: &'static [Tells],
}

/// A register, by offset, and what is written to it.
pub(super) type Tells = (u64, Size, Tell);

/// What a register is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tell {
    /// This, whatever there is in memory.
    Value(u64),
    /// Where something lies in memory, and bits beside the address.
    Place(u64),
    /// How long it is.
    Bytes,
}

/// What a driver writes in a row, to registers of a region: what one of them holds says what is right in another.
pub(super) fn recipes(region: &str) -> &'static [&'static [Tells]] {
    use Tell::{Bytes, Place, Value};
    match region {
        // Transfers from memory, and to it, that tell their end.
        "edu" => &[
            &[
                (edu::SOURCE, Size::B8, Place(0)),
                (edu::DESTINATION, Size::B8, Value(BUFFER)),
                (edu::LENGTH, Size::B8, Bytes),
                (edu::COMMAND, Size::B8, Value(5)),
            ],
            &[
                (edu::SOURCE, Size::B8, Value(BUFFER)),
                (edu::DESTINATION, Size::B8, Place(0)),
                (edu::LENGTH, Size::B8, Bytes),
                (edu::COMMAND, Size::B8, Value(7)),
            ],
        ],
        // Faults are to be told, and translation begins; what was told is cleared, in either order.
        IOMMU => &[
            &[
                (vtd::FAULT_EVENT + 4, Size::B4, Value(0x42)),
                (vtd::FAULT_EVENT + 8, Size::B4, Value(0xfee0_2000)),
                (vtd::FAULT_EVENT, Size::B4, Value(0)),
                (vtd::COMMAND, Size::B4, Value(TRANSLATION)),
            ],
            &[(RECORD_END, Size::B4, Value(1 << 31)), (vtd::FAULTS, Size::B4, Value(0x11))],
            &[(vtd::FAULTS, Size::B4, Value(0x11)), (RECORD_END, Size::B4, Value(1 << 31))],
        ],
        _ => &[],
    }
}

/// All that there are.
pub(super) const ROWS: &[Rows] = &[
    // The invalidation queue (VT-d 6.5.2): a wait that writes and tells, one that does one of both, and
    // invalidations.
    Rows {
        region: IOMMU,
        halves: [&[7 << 32 | 0x35, 1, 2, 4, 7 << 32 | 0x25, 0x15], &[]],
        tells: &[
            (vtd::QUEUE_TAIL, Size::B4, Tell::Value(0)),
            (vtd::QUEUE, Size::B8, Tell::Place(0)),
            (vtd::COMMAND, Size::B4, Tell::Value(status::QUEUE as u64)),
            (vtd::QUEUE_TAIL, Size::B4, Tell::Bytes),
        ],
    },
    // Entries of interrupts (VT-d 9.10): by edge, by level, to a logical destination; of any source, of the
    // function in slot 3, of bus 0.
    Rows {
        region: IOMMU,
        halves: [&[0x41_0001, 0x42_0011, 0x43_000d, 0x44_0003], &[0, 1 << 18 | 0x18, 2 << 18]],
        tells: &[
            (vtd::INTERRUPTS, Size::B8, Tell::Place(3)),
            (vtd::COMMAND, Size::B4, Tell::Value(INTERRUPTING)),
        ],
    },
];

/// Those of an access, and how far up in it they are: an access may be as wide as two registers, of which only
/// the second has any.
pub(crate) fn of_access(region: &str, offset: u64, size: Size) -> (&'static [u64], u32) {
    match (of(region, offset), size) {
        ([], Size::B8) => (of(region, offset.wrapping_add(4)), 32),
        (own, _) => (own, 0),
    }
}

/// Those of the register at `offset` of a region of this name. Of most registers any value is as good as
/// another, and there are none.
pub(crate) fn of(region: &str, offset: u64) -> &'static [u64] {
    match (region, offset) {
        // The command register: which spaces are decoded, and whether it is a bus master (PCI 3.0, 6.2.2).
        (CONFIG, 4) => &[6, 7, 4, 2, 0x406],
        // Messages: where they go, in either format of VT-d 5.1.2, and that they are used (PCI 3.0, 6.8.1).
        (CONFIG, 0x44) => &[0xfee0_1000, 0xfee0_0010, 0xfee0_0018, 0xfee0_0030, CHAINS[0]],
        (CONFIG, 0x40) => &[1 << 16],
        ("edu", edu::SOURCE | edu::DESTINATION) => {
            &[BUFFER, BUFFER + BUFFER_BYTES as u64 - 4, CHAINS[0], 0]
        }
        // Upper halves: most of what matters lies below 4 GiB.
        ("edu", _) if offset % 8 == 4 && offset > edu::SOURCE => &[0],
        ("edu", edu::LENGTH) => &[4, 16, BUFFER_BYTES as u64, 1],
        // To begin, to memory, with an interrupt.
        ("edu", edu::COMMAND) => &[1, 3, 5, 7],
        // Causes; an interrupt after a factorial.
        ("edu", edu::RAISE | edu::ACKNOWLEDGE) => &[1, 0x101],
        ("edu", edu::STATUS) => &[0x80],
        (IOMMU, vtd::COMMAND) => {
            const QUEUE: u64 = status::QUEUE as u64;
            &[TRANSLATION, QUEUE, INTERRUPTING, TRANSLATION | QUEUE, TRANSLATION | INTERRUPTING]
        }
        (IOMMU, vtd::ROOT | vtd::QUEUE | vtd::INTERRUPTS) => &CHAINS,
        // So many descriptors.
        (IOMMU, vtd::QUEUE_TAIL) => &[16, 32, 64],
        // What these tell goes when it is written; before it is told, they hold nothing.
        (IOMMU, vtd::FAULTS) => {
            const QUEUE: u64 = faults::QUEUE as u64;
            const OVERFLOW: u64 = faults::OVERFLOW as u64;
            &[QUEUE | OVERFLOW, QUEUE, OVERFLOW]
        }
        (IOMMU, RECORD_END) => &[1 << 31],
        (IOMMU, vtd::COMPLETION) => &[1],
        _ => &[],
    }
}
