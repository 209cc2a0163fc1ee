//! Images that are nearly right: a template, with fields changed.
//!
//! The first byte of an input chooses the template, the second is for whoever loads the image; then
//! come changes of 4 bytes each: where, and how. Template 0 is the rest of the input as it is.

use std::cell::OnceCell;

use vmm::ram::GuestRam;

use crate::targets::loader_ram;

/// How many templates there are beside the input itself.
pub const TEMPLATES: u8 = 7;

/// Where a template's code goes.
const CODE: u64 = 0x10_0000;

thread_local! {
    static RAM: OnceCell<GuestRam> = const { OnceCell::new() };
}

/// Calls `f` with memory that is all zeros; [`wipe`] makes it so again.
pub fn with_ram<T>(f: impl FnOnce(&GuestRam) -> T) -> T {
    RAM.with(|ram| f(ram.get_or_init(loader_ram)))
}

/// Zeroes what was written, and says which pages that was.
pub fn wipe(ram: &GuestRam) -> Vec<u64> {
    let mut pages = Vec::new();
    ram.take_dirty(|page| pages.push(page));
    for &page in &pages {
        ram.write(page, &[0; 4096]).expect("a page that was written is RAM");
    }
    ram.take_dirty(|_| {});
    pages
}

/// The image that these bytes make.
pub fn made(bytes: &[u8]) -> Vec<u8> {
    let (&template, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let rest = rest.get(1..).unwrap_or(&[]);
    let mut image = match template % (TEMPLATES + 1) {
        0 => return rest.to_vec(),
        1 => elf(true, &[]),
        2 => elf(false, &[]),
        3 => elf(true, &pvh_note()),
        4 => elf(false, &pvh_note()),
        5 => multiboot(1 << 16, &[0x10_0100, 0x10_0000, 0, 0x10_4000, 0x10_0004], 0x100),
        6 => [elf(false, &[]), vec![0; 64], multiboot(3, &[], 0)].concat(),
        _ => [&[0; 510][..], &[0x55, 0xaa], b"HdrS"].concat(),
    };
    for change in rest.as_chunks::<4>().0 {
        let [low, high, how, value] = *change;
        let at = usize::from(low) | usize::from(high) << 8;
        // Most of what matters is in the headers.
        let at = if high < 0xc0 { usize::from(low) } else { at } % image.len().max(1);
        match how % 8 {
            0 | 1 => image[at] = value,
            2 => image[at] ^= 1 << (value & 7),
            3 => image[at] = image[at].wrapping_add(value),
            4 => image[at..].iter_mut().take(8).for_each(|byte| *byte = 0),
            5 => image[at..].iter_mut().take(1 + usize::from(value & 7)).for_each(|b| *b = 0xff),
            6 => {
                let field = 0x1000u64 << (value & 31);
                image[at..].iter_mut().zip(field.to_le_bytes()).for_each(|(b, v)| *b = v);
            }
            _ => image.truncate(at + 1),
        }
    }
    image
}

fn pvh_note() -> Vec<u8> {
    let words = [4, 4, 18].map(u32::to_le_bytes);
    [words.as_flattened(), b"Xen\0", &0x10_0020u32.to_le_bytes()].concat()
}

fn multiboot(flags: u32, addresses: &[u32], before: usize) -> Vec<u8> {
    let sum = 0x1bad_b002_u32.wrapping_add(flags).wrapping_neg();
    let words = [&[0x1bad_b002, flags, sum], addresses].concat();
    let mut image = vec![0xf4; before];
    image.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    image.resize(image.len() + 64, 0x90);
    image
}

/// An executable of one segment, and a note if there is one.
fn elf(is_64: bool, note: &[u8]) -> Vec<u8> {
    let (header, one) = if is_64 { (64u64, 56u64) } else { (52, 32) };
    let segments = if note.is_empty() { 1 } else { 2 };
    let code_at = header + one * segments;
    let note_at = code_at + 64;
    let class = if is_64 { 2 } else { 1 };
    let mut image = vec![0x7f, b'E', b'L', b'F', class, 1, 1];
    image.resize(16, 0);
    let mut put = |bytes: usize, value: u64| image.extend(&value.to_le_bytes()[..bytes]);
    let word = if is_64 { 8 } else { 4 };
    let machine = if is_64 { 62 } else { 3 };
    for (bytes, value) in
        [(2, 2), (2, machine), (4, 1), (word, CODE + 0x10), (word, header), (word, 0)]
    {
        put(bytes, value);
    }
    for (bytes, value) in [(4, 0), (2, header), (2, one), (2, segments), (2, 0), (2, 0), (2, 0)] {
        put(bytes, value);
    }
    let mut segment = |kind: u64, at: u64, to: u64, len: u64, in_memory: u64| {
        if is_64 {
            put(4, kind);
            put(4, 7);
            [at, to, to, len, in_memory, 4].into_iter().for_each(|value| put(8, value));
        } else {
            [kind, at, to, to, len, in_memory, 7, 4].into_iter().for_each(|value| put(4, value));
        }
    };
    segment(1, code_at, CODE, 64, 0x3000);
    if !note.is_empty() {
        segment(4, note_at, 0, note.len() as u64, note.len() as u64);
    }
    image.resize(note_at as usize, 0x90);
    image.extend(note);
    image
}
