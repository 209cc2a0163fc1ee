//! A linker of a few lines.

/// One program header and its bytes.
#[derive(Clone, Debug)]
pub(super) struct Seg {
    pub(super) kind: u32,
    pub(super) vaddr: u64,
    pub(super) paddr: u64,
    pub(super) data: Vec<u8>,
    pub(super) memsz: u64,
    pub(super) align: u64,
}

/// A PT_LOAD segment linked where it is loaded.
pub(super) fn seg(paddr: u64, data: &[u8], memsz: u64) -> Seg {
    Seg { kind: 1, vaddr: paddr, paddr, data: data.to_vec(), memsz, align: 0x1000 }
}

/// A PT_NOTE segment of one note.
pub(super) fn note(name: &[u8], kind: u32, desc: &[u8], align: usize) -> Seg {
    let mut data = Vec::new();
    for word in [name.len() as u32, desc.len() as u32, kind] {
        data.extend(word.to_le_bytes());
    }
    data.extend(name);
    data.resize(data.len().next_multiple_of(align), 0);
    data.extend(desc);
    data.resize(data.len().next_multiple_of(align), 0);
    let memsz = data.len() as u64;
    Seg { kind: 4, vaddr: 0, paddr: 0, data, memsz, align: align as u64 }
}

/// Xen's note that names the 32-bit entry.
pub(super) fn pvh_note(entry: u32) -> Seg {
    note(b"Xen\0", 18, &entry.to_le_bytes(), 4)
}

/// A multiboot header with right checksum.
pub(super) fn multiboot(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let sum = 0x1bad_b002_u32.wrapping_add(flags).wrapping_neg();
    [0x1bad_b002, flags, sum].iter().chain(addresses).flat_map(|w| w.to_le_bytes()).collect()
}

/// Offsets of fields in an ELF of this class: (name, offset, bytes).
pub(super) fn field(is_64: bool, name: &str) -> (usize, usize) {
    const FIELDS: &[(&str, [(usize, usize); 2])] = &[
        ("e_ident[EI_CLASS]", [(4, 1), (4, 1)]),
        ("e_ident[EI_DATA]", [(5, 1), (5, 1)]),
        ("e_ident[EI_VERSION]", [(6, 1), (6, 1)]),
        ("e_type", [(16, 2), (16, 2)]),
        ("e_machine", [(18, 2), (18, 2)]),
        ("e_version", [(20, 4), (20, 4)]),
        ("e_entry", [(24, 4), (24, 8)]),
        ("e_phoff", [(28, 4), (32, 8)]),
        ("e_ehsize", [(40, 2), (52, 2)]),
        ("e_phentsize", [(42, 2), (54, 2)]),
        ("e_phnum", [(44, 2), (56, 2)]),
        // Of the first program header.
        ("p_type", [(52, 4), (64, 4)]),
        ("p_offset", [(56, 4), (72, 8)]),
        ("p_paddr", [(64, 4), (88, 8)]),
        ("p_filesz", [(68, 4), (96, 8)]),
        ("p_memsz", [(72, 4), (104, 8)]),
    ];
    let found = FIELDS.iter().find(|(n, _)| *n == name).expect("a field of this table");
    found.1[usize::from(is_64)]
}

/// Overwrites a field.
pub(super) fn set(image: &mut [u8], is_64: bool, name: &str, value: u64) {
    let (at, len) = field(is_64, name);
    image[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}

/// Links an executable: header, program headers, then the segments' bytes.
pub(super) fn link(is_64: bool, entry: u64, segs: &[Seg]) -> Vec<u8> {
    let (ehsize, phentsize) = if is_64 { (64, 56) } else { (52, 32) };
    let mut image = vec![0; ehsize + phentsize * segs.len()];
    image[..4].copy_from_slice(b"\x7fELF");
    for (name, value) in [
        ("e_ident[EI_CLASS]", if is_64 { 2 } else { 1 }),
        ("e_ident[EI_DATA]", 1),
        ("e_ident[EI_VERSION]", 1),
        ("e_type", 2),
        ("e_machine", if is_64 { 62 } else { 3 }),
        ("e_version", 1),
        ("e_entry", entry),
        ("e_phoff", ehsize as u64),
        ("e_ehsize", ehsize as u64),
        ("e_phentsize", phentsize as u64),
        ("e_phnum", segs.len() as u64),
    ] {
        set(&mut image, is_64, name, value);
    }
    for (i, s) in segs.iter().enumerate() {
        image.resize(image.len().next_multiple_of(8), 0);
        let (offset, filesz) = (image.len() as u64, s.data.len() as u64);
        let head: Vec<u8> = if is_64 {
            let tail = [offset, s.vaddr, s.paddr, filesz, s.memsz, s.align];
            [s.kind, 7]
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .chain(tail.iter().flat_map(|q| q.to_le_bytes()))
                .collect()
        } else {
            [s.kind.into(), offset, s.vaddr, s.paddr, filesz, s.memsz, 7, s.align]
                .iter()
                .flat_map(|q| (*q as u32).to_le_bytes())
                .collect()
        };
        let at = ehsize + i * phentsize;
        image[at..at + phentsize].copy_from_slice(&head);
        image.extend(&s.data);
    }
    image
}

/// Code at 1 MiB and a bss behind it.
pub(super) fn plain(is_64: bool) -> Vec<u8> {
    link(is_64, 0x10_0010, &[seg(0x10_0000, &[0x90; 0x40], 0x3000)])
}

/// As [`plain`], with PVH's note, whose entry is another one.
pub(super) fn pvh(is_64: bool) -> Vec<u8> {
    let load = seg(0x10_0000, &[0x90; 0x40], 0x3000);
    link(is_64, 0x10_0010, &[load, pvh_note(0x10_0020)])
}

/// As [`plain`], with a multiboot header at the start of the code.
pub(super) fn multiboot_elf(is_64: bool) -> Vec<u8> {
    let mut code = multiboot(3, &[]);
    code.resize(0x40, 0x90);
    link(is_64, 0x10_0010, &[seg(0x10_0000, &code, 0x3000)])
}

/// Raw bytes with a multiboot header at 0x100 whose address fields load all of it to 1 MiB.
pub(super) fn multiboot_raw() -> Vec<u8> {
    let mut image = vec![0xf4; 0x100];
    image.extend(multiboot(1 << 16, &[0x10_0100, 0x10_0000, 0, 0x10_4000, 0x10_0004]));
    image.resize(0x200, 0x90);
    image
}
