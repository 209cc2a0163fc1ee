//! Images that are right, or nearly so: a template, with fields changed.
//!
//! The first byte of an input says how it is made ([`forms`](crate::forms)), the second chooses the
//! template, the third is for whoever loads the image; then come changes of 4 bytes each: where, and how.
//! A sound image has other code; a damaged one any other field.

use std::cell::OnceCell;

use payload_abi::TEST_MAGIC;
use vmm::ram::GuestRam;

use crate::forms::{Choices, How, how};
use crate::targets::loader_ram;

/// How many templates there are; and one more, which is a payload.
pub const TEMPLATES: u8 = 7;
/// That one.
pub const PAYLOAD: u8 = 7;
/// Bytes at the end of a template that are only code.
const CODE_BYTES: usize = 32;

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
    let (how, rest) = how(bytes);
    let (&template, rest) = rest.split_first().unwrap_or((&0, &[]));
    let rest = rest.get(1..).unwrap_or(&[]);
    if how == How::Raw {
        return rest.to_vec();
    }
    if template == PAYLOAD {
        let mut image = payload(rest);
        if how == How::Damaged {
            change(&mut image, rest);
        }
        return image;
    }
    let mut image = match template % TEMPLATES {
        0 => elf(true, &[]),
        1 => elf(false, &[]),
        2 => elf(true, &pvh_note()),
        3 => elf(false, &pvh_note()),
        4 => multiboot(1 << 16, &[0x10_0100, 0x10_0000, 0, 0x10_4000, 0x10_0004], 0x100),
        5 => [elf(false, &[]), vec![0; 64], multiboot(3, &[], 0)].concat(),
        _ => [&[0; 510][..], &[0x55, 0xaa], b"HdrS"].concat(),
    };
    if how == How::Damaged {
        change(&mut image, rest);
    } else if !matches!(template % TEMPLATES, 2 | 3) {
        let at = image.len() - CODE_BYTES;
        image[at..].iter_mut().zip(rest).for_each(|(byte, code)| *byte = *code);
    }
    image
}

/// Changes fields, 4 bytes each.
fn change(image: &mut Vec<u8>, changes: &[u8]) {
    for change in changes.as_chunks::<4>().0 {
        let [low, high, how, value] = *change;
        let at = usize::from(low) | usize::from(high) << 8;
        // Most of what matters is in the headers.
        let at = if high < 0xc0 { usize::from(low) } else { at } % image.len().max(1);
        match how % 8 {
            0 => image[at] = value,
            1 => field(image, at, how >> 3, value),
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
}

/// A field of 2, 4 or 8 bytes becomes a number at which something may change: in itself, with the length of the
/// image, or with the field before it. So may the next one: lengths come in pairs, in a file and in memory.
fn field(image: &mut [u8], at: usize, how: u8, value: u8) {
    let width = [8, 4, 8, 2][usize::from(how & 3)];
    let at = at - at % width;
    let word = |at: usize| {
        let mut word = [0; 8];
        word[..width].copy_from_slice(image.get(at..at + width)?);
        Some(u64::from_le_bytes(word))
    };
    let (Some(old), len) = (word(at), image.len() as u64) else { return };
    let before = at.checked_sub(width).and_then(word).unwrap_or(0);
    let number = match value & 7 {
        0 => old,
        1 => u64::MAX,
        2 => 1 << (8 * width - 1),
        3 => len,
        4 => len.wrapping_neg(),
        5 => before,
        6 => before.wrapping_neg(),
        _ => 0,
    };
    let number = number.wrapping_add_signed(i64::from(value as i8 >> 3));
    let fields = if how & 4 == 0 { 1 } else { 2 };
    for field in image[at..].chunks_exact_mut(width).take(fields) {
        field.copy_from_slice(&number.to_le_bytes()[..width]);
    }
}

/// A payload: a loaded segment, a note, a table of tests, symbols, and sections that name them.
fn payload(bytes: &[u8]) -> Vec<u8> {
    let mut choices = Choices(bytes);
    let word = |value: u64| value.to_le_bytes();
    let (mut texts, mut tests, mut symbols) = (Vec::new(), Vec::new(), vec![0; 24]);
    // The header, three segments, and what loaders look for.
    let multiboot = multiboot(0, &[], 0);
    let texts_at = 64 + 3 * 56 + multiboot.len() as u64;
    let names = b"\0.shstrtab\0.exitlab.tests\0.symtab\0.strtab\0.bss\0";
    for test in 0..choices.below(5) {
        let mut put = |text: &[u8]| {
            texts.extend_from_slice(text);
            CODE + texts_at + (texts.len() - text.len()) as u64
        };
        let mut name = vec![b'a' + test as u8];
        name.extend((0..choices.below(20)).map(|_| b"0_zZ"[choices.below(4)]));
        let about = vec![b' ' + choices.byte() % 90; 1 + choices.below(200)];
        let (name_at, about_at) = (put(&name), put(&about));
        let magic = u64::from(TEST_MAGIC);
        let entry =
            [magic, name_at, name.len() as u64, about_at, about.len() as u64, CODE].map(word);
        tests.extend_from_slice(entry.as_flattened());
        // Its name among the sections' is as good as any.
        let symbol = [u64::from(choices.byte() % 24) | 0x1_0012_0000_0000, name_at, 8].map(word);
        symbols.extend_from_slice(symbol.as_flattened());
    }
    let tests_at = texts_at + texts.len() as u64;
    let symbols_at = tests_at + tests.len() as u64;
    let names_at = symbols_at + symbols.len() as u64;
    let sections_at = names_at + names.len() as u64;
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    image.resize(16, 0);
    let mut put = |bytes: usize, value: u64| image.extend(&value.to_le_bytes()[..bytes]);
    let header =
        [(2, 2), (2, 62), (4, 1), (8, CODE), (8, 64), (8, sections_at), (4, 0), (2, 64), (2, 56)];
    let counts = [(2, 3), (2, 64), (2, 6), (2, 1)];
    header.into_iter().chain(counts).for_each(|(bytes, value)| put(bytes, value));
    // One that is not loaded, one that is, and the note, which is empty.
    for (kind, at, to, len) in [(0, 0, 0, 0), (1, 0, CODE, sections_at), (4, 64, 0, 0)] {
        [(4, kind), (4, 7)].into_iter().for_each(|(bytes, value)| put(bytes, value));
        [at, to, to, len, len, 4].into_iter().for_each(|value| put(8, value));
    }
    let parts = [multiboot, texts, tests.clone(), symbols.clone(), names.to_vec()];
    image.extend(parts.concat());
    let mut section =
        |name: u64, kind: u64, flags: u64, at: u64, len: u64, link: u64, each: u64| {
            let mut put = |bytes: usize, value: u64| image.extend(&value.to_le_bytes()[..bytes]);
            [name, kind].into_iter().for_each(|value| put(4, value));
            [flags, 0, at, len].into_iter().for_each(|value| put(8, value));
            [link, 0].into_iter().for_each(|value| put(4, value));
            [1, each].into_iter().for_each(|value| put(8, value));
        };
    section(0, 0, 0, 0, 0, 0, 0);
    section(1, 3, 0, names_at, names.len() as u64, 0, 0);
    section(11, 1, 2, tests_at, tests.len() as u64, 0, 0);
    section(26, 2, 0, symbols_at, symbols.len() as u64, 4, 24);
    section(34, 3, 0, names_at, names.len() as u64, 0, 0);
    section(42, 8, 6, 0, 1 << 20, 0, 0);
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
