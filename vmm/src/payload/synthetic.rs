//! Files made for tests: an ELF with what is asked for, and nothing else. The payload build's tests
//! use it too, by its path.

/// A section: name, address, bytes, flags (4 is executable), type.
pub(crate) struct Part<'a>(pub &'a str, pub u64, pub &'a [u8], pub u64, pub u32);

/// The file; all parts are in one PT_LOAD whose addresses run with the offsets, from
/// 0x100000. Symbols are (name, address).
pub(crate) fn elf(parts: &[Part], symbols: &[(&str, u64)]) -> Vec<u8> {
    let mut strings = b"\0".to_vec();
    let mut symtab = vec![0; 24];
    for (name, address) in symbols {
        symtab.extend((strings.len() as u32).to_le_bytes());
        symtab.extend([2, 0, 1, 0]); // a function, in section 1
        symtab.extend(address.to_le_bytes());
        symtab.extend(0_u64.to_le_bytes());
        strings.extend(name.bytes().chain([0]));
    }
    let mut all: Vec<(&str, u64, &[u8], u64, u32)> = vec![("", 0, &[], 0, 0)];
    all.extend(parts.iter().map(|p| (p.0, p.1, p.2, p.3, p.4)));
    let link = all.len() as u32 + 1;
    all.push((".symtab", 0, &symtab, 0, 2));
    all.push((".strtab", 0, &strings, 0, 3));
    let mut names = Vec::new();
    let offsets: Vec<u32> = all
        .iter()
        .chain([&(".names", 0, &[][..], 0, 3)])
        .map(|section| {
            let at = names.len() as u32;
            names.extend(section.0.bytes().chain([0]));
            at
        })
        .collect();
    all.push((".names", 0, &names, 0, 3));

    let mut file = vec![0; 0x1000];
    let mut headers = Vec::new();
    for (i, (_, address, bytes, flags, kind)) in all.iter().enumerate() {
        if *address != 0 {
            file.resize((address - 0x10_0000 + 0x1000) as usize, 0);
        }
        let offset = file.len() as u64;
        file.extend(*bytes);
        headers.extend(offsets[i].to_le_bytes());
        headers.extend(kind.to_le_bytes());
        for word in [*flags, *address, offset, bytes.len() as u64] {
            headers.extend(word.to_le_bytes());
        }
        headers.extend(if *kind == 2 { link } else { 0 }.to_le_bytes());
        headers.extend([0; 4]);
        headers.extend([0; 16]);
    }
    let load = file.len() as u64 - 0x1000;
    let shoff = file.len() as u64;
    file.extend(headers);
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [0x10_0000, 64, shoff] {
        head.extend(u64::to_le_bytes(word));
    }
    head.extend([0; 4]);
    for half in [64, 56, 2, 64, all.len() as u16, all.len() as u16 - 1] {
        head.extend(u16::to_le_bytes(half));
    }
    for (kind, len) in [(1_u32, load), (4, 0)] {
        head.extend(kind.to_le_bytes());
        head.extend(7_u32.to_le_bytes());
        for word in [0x1000, 0x10_0000, 0x10_0000, len, len, 0x1000] {
            head.extend(u64::to_le_bytes(word));
        }
    }
    file[..head.len()].copy_from_slice(&head);
    file
}
