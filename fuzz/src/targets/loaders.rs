//! What is read from images, and the tables that are written for a guest.

use vmm::boot::{self, Mode, Module, Protocol, RamState, Request};
use vmm::machine::IommuConfig;
use vmm::machine::acpi::{BASE, Described, ROOM, tables};
use vmm::payload::{Image, list_tests};
use vmm::ram::{Backing, GuestRam, MIN_SIZE};

use super::{Said, Subject, Target, whole};
use crate::forms::{How, how};
use crate::images;

pub static LOADER: Target = Target {
    name: "loader",
    about: "the loaders: ELF, PVH, multiboot and raw code",
    subject: Subject::Bytes {
        make: whole,
        check: load,
        canary: |b| loaded(b) == Ok(Protocol::Multiboot),
    },
    sources: &[
        "vmm/src/boot/elf.rs",
        "vmm/src/boot/flat.rs",
        "vmm/src/boot/looks.rs",
        "vmm/src/boot/multiboot.rs",
        "vmm/src/boot/place.rs",
        "vmm/src/boot/pvh.rs",
    ],
    beyond: &[],
    floor: 80,
    uncovered: "images of gigabytes, and the advice for kinds of files that no guest is",
    words: &[
        b"\x7fELF\x01\x01\x01",
        b"\x7fELF\x02\x01\x01",
        b"\x02\xb0\xad\x1b",
        b"Xen\0",
        b"HdrS",
    ],
    seeds: || (0..images::TEMPLATES).map(|template| vec![0, template, 0]).collect(),
};

pub static PAYLOAD: Target = Target {
    name: "payload",
    about: "the table of tests in a payload",
    subject: Subject::Bytes {
        make: whole,
        check: payload,
        canary: |b| payload(b).is_err_and(|e| e.contains("section")),
    },
    sources: &["vmm/src/payload/elf.rs", "vmm/src/payload/table.rs"],
    beyond: &[],
    floor: 86,
    uncovered: "tables that are damaged in one word and whole in all others",
    words: &[b"\x7fELF\x02\x01\x01", b".exitlab.tests"],
    seeds: || vec![vec![0, images::PAYLOAD, 0, 3, 5, 1, 2, 3, 0, 7, 40]],
};

pub static ACPI: Target = Target {
    name: "acpi",
    about: "ACPI's tables, written and read back",
    subject: Subject::Bytes {
        make: whole,
        check: acpi,
        canary: |b| b.len() > 8 && acpi(b).is_ok(),
    },
    sources: &["vmm/src/machine/acpi.rs"],
    beyond: &[],
    floor: 95,
    uncovered: "",
    words: &[],
    seeds: Vec::new,
};

/// The protocol by which the image that these bytes make was loaded.
fn loaded(bytes: &[u8]) -> Result<Protocol, String> {
    let choice = bytes.get(2).copied().unwrap_or(0);
    let image = images::made(bytes);
    let template = bytes.get(1).copied().unwrap_or(0) % images::TEMPLATES;
    let sound = how(bytes).0 == How::Sound;
    // In real mode nothing else can be handed over.
    let flat = if choice & 0x18 == 0 { 6 } else { 7 };
    // What is sound is loaded as what it is.
    let which = match (sound, template) {
        (false, _) => choice & 7,
        (true, 0 | 1) => [0, 4, 4, flat][usize::from(choice & 3)],
        (true, 2 | 3) => [0, 2, 4, flat][usize::from(choice & 3)],
        (true, 4 | 5) => [0, 3, 3, flat][usize::from(choice & 3)],
        (true, _) => flat,
    };
    let protocol = match which {
        0 | 1 => Protocol::Auto,
        2 => Protocol::Pvh,
        3 => Protocol::Multiboot,
        4 => Protocol::Elf,
        5 => Protocol::Flat { addr: 0x9_ff00, mode: Mode::Long64 },
        6 => Protocol::Flat { addr: 0x7c00, mode: Mode::Real16 },
        _ if sound => Protocol::Flat {
            addr: (0x100 | (u64::from(choice) >> 1)) << 12,
            mode: Mode::Protected32,
        },
        _ => Protocol::Flat { addr: u64::from(choice) << 12, mode: Mode::Protected32 },
    };
    images::with_ram(|ram| {
        let modules = [Module { name: "m", bytes: &[1; 500], cmdline: "c" }];
        let modules = if choice & 8 == 0 { &[][..] } else { &modules[..] };
        let cmdline = if choice & 16 == 0 { "" } else { "quiet" };
        let ram_state = if choice & 32 == 0 { RamState::Fresh } else { RamState::Used };
        let new = Request::new(&image, "k", ram);
        let outcome = boot::load(&Request { protocol, modules, cmdline, ram_state, ..new });
        let dirty = images::wipe(ram);
        let loaded = outcome.map_err(|e| {
            assert_eq!(dirty, [0; 0], "an image that was refused has changed memory");
            e.to_string()
        })?;
        let mut last = 0;
        for p in &loaded.placed {
            assert!(p.len == 0 || ram.contains(p.start, p.len), "{p:x?} is not in RAM");
            assert!(last <= p.start, "{p:x?} overlaps what is below");
            last = p.start + p.len;
        }
        for page in dirty {
            let over = |p: &boot::Placed| p.start < page + 0x1000 && page < p.start + p.len;
            assert!(loaded.placed.iter().any(over), "page {page:#x} was written");
        }
        let inside = |p: &boot::Placed| p.start <= loaded.entry && loaded.entry < p.start + p.len;
        assert!(loaded.placed.iter().any(inside), "the entry {:#x} is nowhere", loaded.entry);
        Ok(loaded.protocol)
    })
}

fn load(bytes: &[u8]) -> Said {
    loaded(bytes).map(drop)
}

/// A payload always, unless the bytes are the image. Symbols are as sound as the table of tests.
fn payload(bytes: &[u8]) -> Said {
    let mut bytes = bytes.to_vec();
    bytes.iter_mut().skip(1).take(1).for_each(|template| *template = images::PAYLOAD);
    let image = images::made(&bytes);
    let tests = list_tests(&image).map_err(|e| e.to_string())?;
    let image = Image::parse(&image).map_err(|e| e.to_string())?;
    image.check_loaders().map_err(|e| e.to_string())?;
    let symbols = image.symbols().map_err(|e| e.to_string())?;
    assert!(symbols.is_sorted_by_key(|symbol| symbol.address), "{symbols:?}");
    assert!(tests.is_sorted_by_key(|test| &test.name), "{tests:?}");
    for test in &tests {
        assert!((1..=100).contains(&test.name.len()) && !test.about.is_empty(), "{test:?}");
    }
    Ok(())
}

/// Tables of any board, walked from the root pointer as a guest does (ACPI 6.5, 5.2.5 to 5.2.8).
fn acpi(bytes: &[u8]) -> Said {
    let (&choice, ids) = bytes.split_first().unwrap_or((&0, &[]));
    let wide = |pair: &[u8]| u32::from_le_bytes([pair[0], *pair.get(1).unwrap_or(&0), 0, 0]);
    // As rarely as inputs of other readers are damaged.
    let repeat = if how(bytes).0 == How::Sound { 1 } else { 64 };
    let ids: Vec<u32> = ids.chunks(2).map(wide).collect::<Vec<_>>().repeat(repeat);
    let iommu = (choice & 1 == 1).then_some(IommuConfig { interrupts: choice & 2 == 2 });
    let board = Described { apic_ids: &ids, pci: choice & 4 == 4, iommu };
    let Some(all) = tables(&board) else {
        // An entry of the MADT has at most 16 bytes.
        assert!(ids.len() * 16 > ROOM as usize / 2, "{} processors have no room", ids.len());
        return Err("no room".to_owned());
    };
    assert!(all.len() as u64 <= ROOM);
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    let word = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().expect("4 bytes"));
    let table = |at: usize| {
        let len = word(at + 4) as usize;
        assert_eq!(sum(&all[at..at + len]), 0, "the checksum of {:?}", &all[at..at + 4]);
        &all[at..at + len]
    };
    assert_eq!((&all[..8], sum(&all[..20]), sum(&all[..36])), (&b"RSD PTR "[..], 0, 0));
    let offset = |address: u64| (address - BASE) as usize;
    let rsdt = table(offset(word(16).into()));
    let found: Vec<&[u8]> = rsdt[36..]
        .as_chunks()
        .0
        .iter()
        .map(|at| table(offset(u32::from_le_bytes(*at).into())))
        .collect();
    let names: Vec<&[u8]> = found.iter().map(|table| &table[..4]).collect();
    let expected: &[&[u8]] =
        if iommu.is_some() { &[b"FACP", b"APIC", b"DMAR"] } else { &[b"FACP", b"APIC"] };
    assert_eq!(names, expected);
    // Local APICs (type 0) and x2APICs (type 9) of the MADT, 5.2.12.2 and 5.2.12.12.
    let mut told = Vec::new();
    let mut rest = &found[1][44..];
    while let [kind, len, ..] = *rest {
        assert!(len >= 2 && usize::from(len) <= rest.len(), "a structure of {len} bytes");
        let entry = &rest[..usize::from(len)];
        match kind {
            0 => told.push(entry[3].into()),
            9 => told.push(u32::from_le_bytes(entry[4..8].try_into().expect("4 bytes"))),
            _ => {}
        }
        rest = &rest[usize::from(len)..];
    }
    told.sort_unstable();
    let mut ids = ids;
    ids.sort_unstable();
    assert_eq!(told, ids, "the processors of the MADT");
    Ok(())
}

/// Memory for loaders: as much as the least board has.
pub fn ram() -> GuestRam {
    GuestRam::new(MIN_SIZE, Backing::Auto).expect("the host has 2 MiB")
}
