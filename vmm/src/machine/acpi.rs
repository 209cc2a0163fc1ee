//! The board's ACPI tables, after ACPI 6.5, chapter 5: how a guest without firmware of its own finds
//! the processors, the interrupt controllers, the PM timer and the sleep states.
//!
//! | table | what it says |
//! |---|---|
//! | RSDP, RSDT, XSDT | where the others lie |
//! | FADT | the fixed hardware of [`crate::chips::acpi_pm`], the reset register |
//! | FACS | the waking vector, which the guest writes |
//! | DSDT | the sleep types of S3 and S5 |
//! | MADT | a local APIC for each vCPU, and the I/O APIC |
//! | DMAR | the IOMMU, if there is one (VT-d specification, chapter 8) |

use super::{IommuConfig, PCI_GSIS};
use crate::chips::acpi_pm as pm;
use crate::chips::pci::vtd;

/// Where the tables lie: at the beginning of the area in which a guest looks for the root pointer
/// (section 5.2.5.1), and which the memory map calls reserved.
pub const BASE: u64 = 0xf_0000;
/// The most bytes that they may take: what is left of that area.
pub const ROOM: u64 = 0x1_0000;
/// Where in the FACS the waking vector is (section 5.2.10).
const WAKING_VECTOR: u64 = 12;

/// Offsets of the tables that are not where the one before ends.
const FACS: usize = 64;
const FACS_BYTES: usize = 64;
/// Bytes of a table's header (section 5.2.6).
const HEADER: usize = 36;

/// Where the guest writes the address that it goes on at when it wakes.
pub const WAKING_VECTOR_AT: u64 = BASE + FACS as u64 + WAKING_VECTOR;

/// `Name (_S3_, Package () { 1, 1, 0, 0 })` and `_S5_` with 0 in AML (sections 7.4.2 and 20.2): the
/// first two elements are the `SLP_TYP` of PM1a and PM1b.
const fn sleep_state(digit: u8, kind: u8) -> [u8; 14] {
    let (name, package, byte) = (0x08, 0x12, 0x0a);
    [name, b'_', b'S', digit, b'_', package, 8, 4, byte, kind, byte, kind, 0, 0]
}

/// What of a board is in its tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Described<'a> {
    /// The ID of each processor's local APIC.
    pub apic_ids: &'a [u32],
    /// There is a PCI bus, so its lines are told.
    pub pci: bool,
    /// There is an IOMMU.
    pub iommu: Option<IommuConfig>,
}

/// The tables of a board, as they lie from [`BASE`] on; `None` if there are more processors than there
/// is room for.
pub fn tables(board: &Described<'_>) -> Option<Vec<u8>> {
    let mut all = vec![0; FACS + FACS_BYTES];
    all[FACS..FACS + 4].copy_from_slice(b"FACS");
    all[FACS + 4..FACS + 8].copy_from_slice(&(FACS_BYTES as u32).to_le_bytes());
    // Version 1: the vector is entered in real mode, or where X_Firmware_Waking_Vector says; see 5.2.10.
    all[FACS + 32] = 1;
    let mut add = |signature: &[u8; 4], revision: u8, body: &[u8]| {
        let at = all.len().next_multiple_of(16);
        all.resize(at, 0);
        all.extend(table(signature, revision, body));
        BASE + at as u64
    };
    let states = [sleep_state(b'3', pm::SLP_TYP_S3), sleep_state(b'5', pm::SLP_TYP_S5)];
    let dsdt = add(b"DSDT", 2, states.as_flattened());
    let fadt = add(b"FACP", 3, &fadt(BASE + FACS as u64, dsdt));
    let madt = add(b"APIC", 3, &madt(board));
    let mut told = vec![fadt, madt];
    if let Some(iommu) = board.iommu {
        told.push(add(b"DMAR", 1, &dmar(iommu)));
    }
    let short: Vec<u8> = told.iter().flat_map(|at| (*at as u32).to_le_bytes()).collect();
    let long: Vec<u8> = told.iter().flat_map(|at| at.to_le_bytes()).collect();
    let rsdt = add(b"RSDT", 1, &short);
    let xsdt = add(b"XSDT", 1, &long);
    let rsdp = rsdp(rsdt as u32, xsdt);
    all[..rsdp.len()].copy_from_slice(&rsdp);
    (all.len() as u64 <= ROOM).then_some(all)
}

/// The byte that makes all of them add up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

/// Section 5.2.5.3.
fn rsdp(rsdt: u32, xsdt: u64) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(b"EXITLB");
    bytes[15] = 2;
    bytes[16..20].copy_from_slice(&rsdt.to_le_bytes());
    bytes[20..24].copy_from_slice(&36u32.to_le_bytes());
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    // The first is of the structure of version 1, 20 bytes; the second of all.
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// A table: the header of section 5.2.6, and what follows it.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(signature);
    bytes.extend(((HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(b"EXITLBBOARD   ");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"XLAB");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(body);
    bytes[9] = checksum(&bytes);
    bytes
}

/// What follows the FADT's header: section 5.2.9, as far as its third revision goes.
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let mut bytes = [0; 244];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    let (event, cnt, timer) = (pm::PM_BASE, pm::PM_BASE + 4, pm::PM_BASE + 8);
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &(pm::GSI as u16).to_le_bytes());
    put(48, &(pm::SMI_PORT as u32).to_le_bytes());
    put(52, &[pm::ACPI_ENABLE, pm::ACPI_DISABLE]);
    put(56, &(event as u32).to_le_bytes());
    put(64, &(cnt as u32).to_le_bytes());
    put(76, &(timer as u32).to_le_bytes());
    put(88, &[4, 2, 0, 4]);
    // No C2 and C3: latencies above 100 and 1000 us say so.
    put(96, &0xffff_u16.to_le_bytes());
    put(98, &0xffff_u16.to_le_bytes());
    // IAPC_BOOT_ARCH: devices of an AT, an 8042, no VGA.
    put(109, &0b111_u16.to_le_bytes());
    // WBINVD, C1 on every processor, no sleep button of its own, a reset register.
    put(112, &(1u32 | 1 << 2 | 1 << 5 | 1 << 10).to_le_bytes());
    // Generic addresses: I/O space, width in bits, offset, access size, address.
    let address = |port: u64, bits: u8, access: u8| {
        let mut gas = [0; 12];
        gas[..4].copy_from_slice(&[1, bits, 0, access]);
        gas[4..].copy_from_slice(&port.to_le_bytes());
        gas
    };
    put(116, &address(u64::from(crate::chips::resets::RESET_CONTROL) + 1, 8, 1));
    put(128, &[0b110]);
    put(132, &facs.to_le_bytes());
    put(140, &dsdt.to_le_bytes());
    put(148, &address(event, 32, 2));
    put(172, &address(cnt, 16, 2));
    put(208, &address(timer, 32, 3));
    bytes[HEADER..].to_vec()
}

/// What follows the MADT's header: section 5.2.12.
fn madt(board: &Described<'_>) -> Vec<u8> {
    let Described { apic_ids, pci, .. } = *board;
    let mut bytes = Vec::new();
    bytes.extend(0xfee0_0000_u32.to_le_bytes());
    // There are PICs, too.
    bytes.extend(1u32.to_le_bytes());
    for (index, id) in (0u32..).zip(apic_ids) {
        match u8::try_from(*id) {
            Ok(id) if id < 255 => bytes.extend([0, 8, index as u8, id, 1, 0, 0, 0]),
            _ => {
                bytes.extend([9, 16, 0, 0]);
                bytes.extend([*id, 1, index].map(u32::to_le_bytes).as_flattened());
            }
        }
    }
    // The I/O APIC: its ID, its address, its first GSI.
    bytes.extend([1, 12, 0, 0]);
    bytes.extend([0xfec0_0000_u32, 0].map(u32::to_le_bytes).as_flattened());
    // The SCI's line is level triggered and active high, and so are those of the PCI bus.
    let mut level = vec![pm::GSI];
    if pci {
        level.extend(PCI_GSIS);
        level.dedup();
    }
    for gsi in level {
        bytes.extend([2, 10, 0, gsi as u8]);
        bytes.extend(gsi.to_le_bytes());
        bytes.extend(0b1101_u16.to_le_bytes());
    }
    // NMI on LINT1 of every processor; those with an x2APIC ID have a form of their own.
    bytes.extend([4, 6, 0xff, 0, 0, 1]);
    if apic_ids.iter().any(|id| *id >= 255) {
        bytes.extend([0xa, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    bytes
}

/// What follows the DMAR table's header: VT-d specification, 8.1, 8.3 and 8.3.1.
fn dmar(iommu: IommuConfig) -> Vec<u8> {
    // The width of addresses, less 1; interrupts are remapped; reserved.
    let mut bytes = vec![vtd::ADDRESS_WIDTH - 1, u8::from(iommu.interrupts)];
    bytes.extend([0; 10]);
    // One unit for every function of segment 0, and for the I/O APIC, which is on no bus.
    let scope = [3, 8, 0, 0, 0, 0xff, 0, 0];
    bytes.extend([0, 0, 16 + scope.len() as u8, 0, 1, 0, 0, 0]);
    bytes.extend(vtd::BASE.to_le_bytes());
    bytes.extend(scope);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(all: &[u8], address: u64, len: usize) -> &[u8] {
        let from = (address - BASE) as usize;
        &all[from..from + len]
    }

    fn u32_at(bytes: &[u8], from: usize) -> u32 {
        u32::from_le_bytes(bytes[from..from + 4].try_into().expect("four"))
    }

    fn board(apic_ids: &[u32], pci: bool) -> Option<Vec<u8>> {
        tables(&Described { apic_ids, pci, iommu: None })
    }

    /// The entries of the MADT: their types, and what follows type and length.
    fn entries(all: &[u8]) -> Vec<(u8, &[u8])> {
        let madt = whole(all, u32_at(whole(all, u32_at(all, 16), b"RSDT"), HEADER + 4), b"APIC");
        let (mut entries, mut rest) = (Vec::new(), &madt[HEADER + 8..]);
        while let [kind, len, ..] = *rest {
            entries.push((kind, &rest[2..usize::from(len)]));
            rest = &rest[usize::from(len)..];
        }
        entries
    }

    /// The table at an address, with its signature and its sum checked.
    fn whole<'a>(all: &'a [u8], address: u32, signature: &[u8; 4]) -> &'a [u8] {
        let len = u32_at(at(all, address.into(), HEADER), 4) as usize;
        let table = at(all, address.into(), len);
        assert_eq!(&table[..4], signature);
        assert_eq!(checksum(table), 0, "{signature:?}");
        table
    }

    #[test]
    fn every_table_is_found_from_the_root_by_either_way() {
        let all = board(&[0, 1], false).expect("room");
        assert_eq!(&all[..8], b"RSD PTR ");
        assert_eq!((checksum(&all[..20]), checksum(&all[..36])), (0, 0));
        let (rsdt, xsdt) = (u32_at(&all, 16), u32_at(&all, 24));
        let (short, long) = (whole(&all, rsdt, b"RSDT"), whole(&all, xsdt, b"XSDT"));
        for (i, signature) in [b"FACP", b"APIC"].into_iter().enumerate() {
            let (short, long) = (u32_at(short, HEADER + 4 * i), u32_at(long, HEADER + 8 * i));
            assert_eq!(short, long);
            whole(&all, short, signature);
        }
        let fadt = whole(&all, u32_at(short, HEADER), b"FACP");
        assert_eq!(fadt.len(), 244);
        assert_eq!(u64::from(u32_at(fadt, 36)) + WAKING_VECTOR, WAKING_VECTOR_AT);
        assert_eq!(at(&all, u32_at(fadt, 36).into(), 4), b"FACS");
        assert_eq!(u32_at(fadt, 36) % 64, 0);
        assert_eq!([56, 64, 76].map(|field| u32_at(fadt, field)), [0x600, 0x604, 0x608]);
        let dsdt = whole(&all, u32_at(fadt, 40), b"DSDT");
        assert_eq!(&dsdt[HEADER..HEADER + 5], b"\x08_S3_");
    }

    #[test]
    fn each_processor_has_an_entry_as_wide_as_its_id() {
        let all = board(&[0, 254, 255, 300], false).expect("room");
        let entries = entries(&all);
        let kinds: Vec<u8> = entries.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0, 0, 9, 9, 1, 2, 4, 0xa]);
        assert_eq!((entries[1].1[1], u32_at(entries[3].1, 2)), (254, 300));
        assert!(board(&vec![300; 10_000], false).is_none());
    }

    #[test]
    fn the_iommu_has_a_table() {
        for interrupts in [false, true] {
            let iommu = Some(IommuConfig { interrupts });
            let all = tables(&Described { apic_ids: &[0], pci: true, iommu }).expect("room");
            let at = u32_at(whole(&all, u32_at(&all, 16), b"RSDT"), HEADER + 8);
            let dmar = whole(&all, at, b"DMAR");
            assert_eq!((dmar[36], dmar[37]), (47, interrupts.into()));
            assert_eq!((dmar.len() - 48, dmar[50]), (24, 24), "one structure");
            assert_eq!(u32_at(dmar, 56), 0xfed9_0000);
        }
    }

    #[test]
    fn the_lines_of_a_pci_bus_are_level_triggered() {
        let all = board(&[0], true).expect("room");
        let entries = entries(&all);
        let level = entries.iter().filter(|(kind, _)| *kind == 2);
        let told = level.map(|(_, e)| (e[1], u32_at(e, 2), e[6])).collect::<Vec<_>>();
        assert_eq!(told, [(9, 9, 0xd), (10, 10, 0xd), (11, 11, 0xd)]);
    }
}
