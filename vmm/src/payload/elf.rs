//! The few things to know of a payload's ELF file, with every offset checked.

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::program_header::{PT_LOAD, PT_NOTE};
use goblin::elf::section_header::{SHT_NOBITS, SHT_SYMTAB};
use goblin::elf::{Header, ProgramHeader, SectionHeader, Symtab};
use std::ops::Range;

/// What is wrong with a payload's file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It does not parse.
    #[error("its {part} does not parse: {reason}")]
    Malformed {
        /// Which part of the file.
        part: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// It is an ELF file for something else.
    #[error("it is not a 64-bit little-endian ELF file for x86-64")]
    Foreign,
    /// A part lies outside of the file.
    #[error("its {part} ({start:#x}, {len:#x} bytes) lies outside of the file")]
    Outside {
        /// Which part.
        part: String,
        /// Where it should start.
        start: u64,
        /// How long it should be.
        len: u64,
    },
    /// A section is missing.
    #[error("it has no section {0}; link it with guest-payloads/rt/payload.ld")]
    NoSection(&'static str),
    /// The test table is broken.
    #[error("entry {index} of its test table: {reason}")]
    Test {
        /// Which entry, from 0.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A loader would not take it.
    #[error("{0}")]
    Loader(&'static str),
}

/// A section.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it lies in memory.
    pub address: u64,
    /// Its bytes in the file; none for one that has no bytes there.
    pub bytes: &'a [u8],
    /// Whether it holds instructions.
    pub executable: bool,
}

/// A symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its address.
    pub address: u64,
    /// Its name as the linker has it.
    pub name: &'a str,
}

/// A payload's file.
#[derive(Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    segments: Vec<ProgramHeader>,
    headers: Vec<SectionHeader>,
    sections: Vec<Section<'a>>,
}

const CONTEXT: Ctx = Ctx { container: Container::Big, le: Endian::Little };
const EM_X86_64: u16 = 62;
/// Bytes of the file in which a multiboot header may lie (Multiboot Specification 0.6.96, 3.1).
const MULTIBOOT_SEARCH: usize = 8192;
const MULTIBOOT_MAGIC: u32 = 0x1bad_b002;

fn malformed(part: &'static str) -> impl Fn(goblin::error::Error) -> ElfError {
    move |error| ElfError::Malformed { part, reason: error.to_string() }
}

/// `len` bytes of `bytes` from `start`.
fn slice<'a>(bytes: &'a [u8], part: &str, start: u64, len: u64) -> Result<&'a [u8], ElfError> {
    let range = || -> Option<Range<usize>> {
        let end = start.checked_add(len)?;
        Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    };
    range().and_then(|range| bytes.get(range)).ok_or_else(|| ElfError::Outside {
        part: part.to_owned(),
        start,
        len,
    })
}

/// The string that starts at `at` in a string table; empty if there is none.
fn string(table: &[u8], at: u64) -> &str {
    let bytes = usize::try_from(at).ok().and_then(|at| table.get(at..)).unwrap_or_default();
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(0);
    std::str::from_utf8(&bytes[..end]).unwrap_or_default()
}

impl<'a> Image<'a> {
    /// Reads headers and sections.
    pub fn parse(bytes: &'a [u8]) -> Result<Image<'a>, ElfError> {
        let header: Header = match bytes.get(..64) {
            Some(start) if start[..6] == *b"\x7fELF\x02\x01" => {
                goblin::elf::Elf::parse_header(start).map_err(malformed("header"))?
            }
            _ => return Err(ElfError::Foreign),
        };
        if header.e_machine != EM_X86_64 {
            return Err(ElfError::Foreign);
        }
        let table = |part: &str, start: u64, count: u16, each: u64| {
            slice(bytes, part, start, u64::from(count) * each).map(|_| usize::from(count))
        };
        let count = table("program header table", header.e_phoff, header.e_phnum, 56)?;
        let segments = ProgramHeader::parse(bytes, header.e_phoff as usize, count, CONTEXT)
            .map_err(malformed("program header table"))?;
        let count = table("section header table", header.e_shoff, header.e_shnum, 64)?;
        let headers = SectionHeader::parse(bytes, header.e_shoff as usize, count, CONTEXT)
            .map_err(malformed("section header table"))?;
        let data = |section: &SectionHeader, name: &str| match section.sh_type {
            SHT_NOBITS => Ok(&[][..]),
            _ => slice(bytes, &format!("section {name}"), section.sh_offset, section.sh_size),
        };
        let names = match headers.get(usize::from(header.e_shstrndx)) {
            Some(section) => data(section, "of section names")?,
            None => &[],
        };
        let mut sections = Vec::new();
        for section in &headers {
            let name = string(names, section.sh_name as u64);
            sections.push(Section {
                name,
                address: section.sh_addr,
                bytes: data(section, name)?,
                executable: section.is_executable(),
            });
        }
        Ok(Image { bytes, segments, headers, sections })
    }

    /// The sections.
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// Reads the symbols of code and data; by address. Whoever only runs a payload needs none.
    pub fn symbols(&self) -> Result<Vec<Symbol<'a>>, ElfError> {
        let table = self.headers.iter().find(|section| section.sh_type == SHT_SYMTAB);
        table.map_or(Ok(Vec::new()), |table| read_symbols(self.bytes, table, &self.headers))
    }

    /// The section of a name.
    pub fn section(&self, name: &'static str) -> Result<&Section<'a>, ElfError> {
        let found = self.sections.iter().find(|section| section.name == name);
        found.ok_or(ElfError::NoSection(name))
    }

    /// `len` bytes at an address, as a loader would put them there.
    pub fn at(&self, address: u64, len: u64) -> Option<&'a [u8]> {
        self.segments.iter().filter(|segment| segment.p_type == PT_LOAD).find_map(|segment| {
            let inside = address.checked_sub(segment.p_vaddr)?;
            let end = inside.checked_add(len)?;
            let start = segment.p_offset.checked_add(inside)?;
            (end <= segment.p_filesz).then(|| slice(self.bytes, "", start, len).ok())?
        })
    }

    /// Refuses a file that PVH or multiboot loaders do not take.
    pub fn check_loaders(&self) -> Result<(), ElfError> {
        if !self.segments.iter().any(|segment| segment.p_type == PT_NOTE) {
            return Err(ElfError::Loader("it has no PT_NOTE segment, so PVH loaders refuse it"));
        }
        let search = &self.bytes[..self.bytes.len().min(MULTIBOOT_SEARCH)];
        let words = search.chunks_exact(4);
        let magic = |word: &[u8]| *word == MULTIBOOT_MAGIC.to_le_bytes();
        if !words.into_iter().any(magic) {
            return Err(ElfError::Loader("its first 8 KiB hold no multiboot header"));
        }
        Ok(())
    }
}

fn read_symbols<'a>(
    bytes: &'a [u8],
    section: &SectionHeader,
    headers: &[SectionHeader],
) -> Result<Vec<Symbol<'a>>, ElfError> {
    slice(bytes, "symbol table", section.sh_offset, section.sh_size)?;
    let names = match headers.get(section.sh_link as usize) {
        Some(names) => slice(bytes, "symbols' names", names.sh_offset, names.sh_size)?,
        None => &[],
    };
    let count = (section.sh_size / 24) as usize;
    let table = Symtab::parse(bytes, section.sh_offset as usize, count, CONTEXT)
        .map_err(malformed("symbol table"))?;
    let mut symbols: Vec<Symbol> = table
        .iter()
        .filter(|symbol| symbol.st_shndx != 0 && matches!(symbol.st_type(), 0..=2))
        .map(|symbol| Symbol {
            address: symbol.st_value,
            name: string(names, symbol.st_name as u64),
        })
        .filter(|symbol| !symbol.name.is_empty())
        .collect();
    symbols.sort_by_key(|symbol| symbol.address);
    Ok(symbols)
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{Part, elf};
    use super::*;

    #[test]
    fn parts_are_found_by_name_and_by_address() {
        let file = elf(&[Part(".text", 0x10_0000, b"\xc3\x90\x90", 6, 1)], &[("f", 0x10_0001)]);
        let image = Image::parse(&file).unwrap();
        assert_eq!(image.section(".text").unwrap().bytes, b"\xc3\x90\x90");
        assert!(image.section(".text").unwrap().executable);
        assert_eq!(image.symbols().unwrap(), [Symbol { address: 0x10_0001, name: "f" }]);
        assert_eq!(image.at(0x10_0001, 2), Some(&b"\x90\x90"[..]));
        assert_eq!(image.at(0x0f_ffff, 1), None);
        assert_eq!(image.at(0x10_0000, u64::MAX), None);
        assert_eq!(image.section(".data").unwrap_err(), ElfError::NoSection(".data"));
        let refused = image.check_loaders().unwrap_err().to_string();
        assert!(refused.contains("multiboot"), "{refused}");
    }

    #[test]
    fn files_cut_short_anywhere_are_refused_in_words() {
        let file = elf(&[Part(".text", 0x10_0000, b"\xc3", 6, 1)], &[("f", 0x10_0000)]);
        for len in 0..file.len() {
            let error = Image::parse(&file[..len]).expect_err("a file cut short").to_string();
            assert!(!error.is_empty());
        }
    }

    #[test]
    fn any_byte_may_be_wrong() {
        let file = elf(&[Part(".text", 0x10_0000, b"\xc3", 6, 1)], &[("f", 0x10_0000)]);
        for at in (0..200).chain(0x1000..file.len()) {
            for value in [0, 0x7f, 0xff] {
                let mut broken = file.clone();
                broken[at] = value;
                // Either is fine; what must not happen is a panic.
                if let Ok(image) = Image::parse(&broken) {
                    assert!(image.sections().len() <= usize::from(u16::MAX));
                }
            }
        }
    }
}
