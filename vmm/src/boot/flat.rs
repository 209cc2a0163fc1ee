//! Plain entries: raw bytes at an address, and the page tables of 64-bit mode.

use super::cpu::Mode;
use super::elf::EntryPoint;
use super::error::{Fault, Place, What};
use super::map::MIB;
use super::place::{Piece, Placer};
use crate::ram::PAGE;

/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, a large page.
const LARGE: u64 = 0b1000_0011;
/// GiB that the identity map covers.
const MAPPED_GIB: u64 = 4;
/// Where a real-mode image's stack pointer starts: below where a BIOS puts a boot sector.
pub(super) const REAL_STACK: u64 = 0x7c00;

/// The image as one piece at `addr`.
pub(super) fn piece(image: &[u8], addr: u64, mode: Mode) -> Result<(Piece<'_>, EntryPoint), Fault> {
    if image.is_empty() {
        return Err(Fault::NotAnImage {
            expected: "raw code",
            looks: "an empty file",
            advice: "give one that holds a kernel",
        });
    }
    let reachable = addr < 0x1_0000 || addr < MIB && addr.is_multiple_of(16);
    if mode == Mode::Real16 && !reachable {
        return Err(Fault::Field {
            place: Place::Flat,
            field: "address",
            value: addr,
            expected:
                "below 0x10000, or a multiple of 16 below 0x100000: real mode reaches no other"
                    .to_owned(),
        });
    }
    let entry = EntryPoint { place: Place::Flat, field: "address", value: addr, addr };
    Ok((Piece::new(What::Image, addr, image), entry))
}

/// Page tables that map the first 4 GiB one to one with pages of 2 MiB, which every processor with
/// a 64-bit mode has (pages of 1 GiB are a feature). CR3 is the address of the first piece.
pub(super) fn page_tables(placer: &mut Placer) -> Result<[Piece<'static>; 3], Fault> {
    let pml4 = placer.low(What::PageTables, (2 + MAPPED_GIB) * PAGE)?;
    let (pdpt, pd) = (pml4 + PAGE, pml4 + 2 * PAGE);
    let table = |addr: u64, entries: &mut dyn Iterator<Item = u64>, pages: u64| Piece {
        len: pages * PAGE,
        ..Piece::new(
            What::PageTables,
            addr,
            entries.flat_map(u64::to_le_bytes).collect::<Vec<u8>>(),
        )
    };
    Ok([
        table(pml4, &mut [pdpt | TABLE].into_iter(), 1),
        table(pdpt, &mut (0..MAPPED_GIB).map(|i| (pd + i * PAGE) | TABLE), 1),
        table(pd, &mut (0..MAPPED_GIB * 512).map(|i| i << 21 | LARGE), MAPPED_GIB),
    ])
}
