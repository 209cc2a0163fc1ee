//! ELF images (gABI chapters 4 and 5): headers checked field by field, PT_LOAD segments as pieces.

use std::borrow::Cow;

use goblin::container::{Container, Ctx};
use goblin::elf::header::{self, Header};
use goblin::elf::program_header::{self, ProgramHeader};

use super::cpu::Mode;
use super::error::{Fault, Place, What};
use super::looks::looks;
use super::place::Piece;
use crate::planted::{self, Flaw};

/// Bytes of notes that are looked at, all segments together: a bound for images that lie.
const MAX_NOTES: u64 = 1 << 20;

/// Where an image is entered, and the field that says so.
#[derive(Clone, Copy)]
pub(super) struct EntryPoint {
    pub(super) place: Place,
    pub(super) field: &'static str,
    /// The field's value.
    pub(super) value: u64,
    /// The guest-physical address it amounts to.
    pub(super) addr: u64,
}

/// An ELF for x86 whose header and table of program headers were checked.
pub(super) struct Elf<'a> {
    image: &'a [u8],
    is_64: bool,
    entry: u64,
    headers: Vec<ProgramHeader>,
}

/// Whether an image says that it is an ELF.
pub(super) fn is_elf(image: &[u8]) -> bool {
    image.starts_with(header::ELFMAG)
}

/// Wants `field` to be `expected`.
fn want(field: &'static str, value: u64, expected: u64, meaning: &str) -> Result<(), Fault> {
    if value == expected {
        return Ok(());
    }
    Err(fault(field, value, format!("{expected:#x} ({meaning})")))
}

fn fault(field: &'static str, value: u64, expected: String) -> Fault {
    Fault::Field { place: Place::ElfHeader, field, value, expected }
}

fn segment_fault(index: u16, field: &'static str, value: u64, expected: String) -> Fault {
    Fault::Field { place: Place::ProgramHeader(index), field, value, expected }
}

/// Name of a machine that people do try, for the error.
fn machine(value: u16) -> &'static str {
    match value {
        header::EM_386 => " (that is i386, which needs ELFCLASS32)",
        header::EM_X86_64 => {
            " (that is x86-64, which needs ELFCLASS64; the x32 ABI is not supported)"
        }
        header::EM_AARCH64 => " (that is AArch64)",
        header::EM_ARM => " (that is 32-bit ARM)",
        header::EM_RISCV => " (that is RISC-V)",
        header::EM_PPC | header::EM_PPC64 => " (that is PowerPC)",
        header::EM_S390 => " (that is s390)",
        header::EM_MIPS => " (that is MIPS)",
        _ => "",
    }
}

impl<'a> Elf<'a> {
    /// Checks everything in the ELF header that loading depends on, and reads the program headers.
    pub(super) fn parse(image: &'a [u8]) -> Result<Elf<'a>, Fault> {
        if !is_elf(image) {
            let (looks, advice) = looks(image);
            return Err(Fault::NotAnImage { expected: "an ELF", looks, advice });
        }
        let cut = |what, needs| Fault::Truncated { what, needs, has: image.len() as u64 };
        let ident: &[u8; header::SIZEOF_IDENT] = image
            .first_chunk()
            .ok_or(cut("e_ident of the ELF header", header::SIZEOF_IDENT as u64))?;
        let class = ident[header::EI_CLASS];
        let is_64 = match class {
            header::ELFCLASS32 => false,
            header::ELFCLASS64 => true,
            _ => {
                let expected = "1 (ELFCLASS32) or 2 (ELFCLASS64)".to_owned();
                return Err(fault("e_ident[EI_CLASS]", class.into(), expected));
            }
        };
        let data = ident[header::EI_DATA].into();
        want("e_ident[EI_DATA]", data, 1, "ELFDATA2LSB: x86 is little-endian")?;
        want("e_ident[EI_VERSION]", ident[header::EI_VERSION].into(), 1, "EV_CURRENT")?;
        let container = if is_64 { Container::Big } else { Container::Little };
        let ctx = Ctx::new(container, goblin::container::Endian::Little);
        let ehsize = Header::size(ctx) as u64;
        let unreadable = |_| cut("the ELF header", ehsize);
        let head: Header = if is_64 {
            header::header64::Header::parse(image).map_err(unreadable)?.into()
        } else {
            header::header32::Header::parse(image).map_err(unreadable)?.into()
        };

        let kind: u64 = head.e_type.into();
        match head.e_type {
            header::ET_EXEC => {}
            header::ET_DYN => {
                let expected = "2 (ET_EXEC); 3 is ET_DYN, a position-independent image whose relocations \
                                nobody would apply: link it with -no-pie (rustc: -C \
                                relocation-model=static)";
                return Err(fault("e_type", kind, expected.to_owned()));
            }
            header::ET_REL => {
                let expected = "2 (ET_EXEC); 1 is ET_REL, an object file or kernel module: link it";
                return Err(fault("e_type", kind, expected.to_owned()));
            }
            _ => want("e_type", kind, 2, "ET_EXEC")?,
        }
        let em = if is_64 { header::EM_X86_64 } else { header::EM_386 };
        if head.e_machine != em {
            let name = if is_64 { "EM_X86_64" } else { "EM_386" };
            let expected = format!("{em:#x} ({name}){}", machine(head.e_machine));
            return Err(fault("e_machine", head.e_machine.into(), expected));
        }
        want("e_version", head.e_version.into(), 1, "EV_CURRENT")?;
        want("e_ehsize", head.e_ehsize.into(), ehsize, "the size of the header of this class")?;
        let count = head.e_phnum;
        if count == 0 || count == u16::MAX {
            let expected = "a number of program headers from 1 to 0xfffe: they say what to load";
            return Err(fault("e_phnum", count.into(), expected.to_owned()));
        }
        let phentsize = ProgramHeader::size(ctx) as u64;
        want(
            "e_phentsize",
            head.e_phentsize.into(),
            phentsize,
            "the size of this class's entries",
        )?;
        let table = u64::from(count) * phentsize;
        let last = (image.len() as u64).checked_sub(table).filter(|&last| head.e_phoff <= last);
        let Some(_) = last else {
            let expected = format!(
                "a table of {count} entries, {table:#x} bytes, inside the file of {:#x} bytes",
                image.len()
            );
            return Err(fault("e_phoff", head.e_phoff, expected));
        };
        let headers = ProgramHeader::parse(image, head.e_phoff as usize, count.into(), ctx)
            .map_err(|_| cut("the table of program headers", head.e_phoff + table))?;
        Ok(Elf { image, is_64, entry: head.e_entry, headers })
    }

    /// The mode that `e_entry` is meant for.
    pub(super) fn mode(&self) -> Mode {
        if self.is_64 { Mode::Long64 } else { Mode::Protected32 }
    }

    fn headers(&self, kind: u32) -> impl Iterator<Item = (u16, &ProgramHeader)> {
        // There are at most 0xfffe.
        (0..).zip(&self.headers).filter(move |(_, p)| p.p_type == kind)
    }

    /// The bytes of the file that belong to a segment.
    fn bytes(&self, index: u16, p: &ProgramHeader) -> Result<&'a [u8], Fault> {
        let file = self.image.len() as u64;
        if p.p_offset > file {
            let expected = format!("an offset inside the file of {file:#x} bytes");
            return Err(segment_fault(index, "p_offset", p.p_offset, expected));
        }
        let fits = match planted::has(Flaw::ElfFile) {
            true => p.p_offset + p.p_filesz <= file,
            false => p.p_filesz <= file - p.p_offset,
        };
        if !fits {
            let expected = format!(
                "at most {:#x}, as the file ends there (p_offset {:#x}, file of {file:#x} bytes)",
                file - p.p_offset,
                p.p_offset
            );
            return Err(segment_fault(index, "p_filesz", p.p_filesz, expected));
        }
        let start = p.p_offset as usize;
        Ok(&self.image[start..start + p.p_filesz as usize])
    }

    /// What is to be loaded: each PT_LOAD segment at its p_paddr.
    pub(super) fn pieces(&self) -> Result<Vec<Piece<'a>>, Fault> {
        if let Some((index, _)) = self.headers(program_header::PT_INTERP).next() {
            let expected =
                "no PT_INTERP: this is a program that wants an operating system's dynamic \
                            linker, not a kernel"
                    .to_owned();
            return Err(segment_fault(index, "p_type", program_header::PT_INTERP.into(), expected));
        }
        let mut pieces = Vec::new();
        for (index, p) in self.headers(program_header::PT_LOAD) {
            if p.p_filesz > p.p_memsz {
                let expected = format!("at least p_filesz, {:#x}", p.p_filesz);
                return Err(segment_fault(index, "p_memsz", p.p_memsz, expected));
            }
            let bytes = self.bytes(index, p)?;
            if p.p_paddr.checked_add(p.p_memsz).is_none() {
                let expected =
                    format!("an address that p_memsz, {:#x}, can be added to", p.p_memsz);
                return Err(segment_fault(index, "p_paddr", p.p_paddr, expected));
            }
            if p.p_memsz > 0 {
                pieces.push(Piece {
                    what: What::Segment(index),
                    addr: p.p_paddr,
                    data: Cow::Borrowed(bytes),
                    len: p.p_memsz,
                });
            }
        }
        if pieces.is_empty() {
            return Err(Fault::NothingToLoad);
        }
        Ok(pieces)
    }

    /// The entry point. Paging does not map the image where it was linked, so a virtual address is
    /// turned into the physical one of the same byte, as other multiboot loaders do; an image whose
    /// `e_entry` is in no segment's virtual range means a physical address already.
    pub(super) fn entry(&self) -> EntryPoint {
        let virt = self
            .headers(program_header::PT_LOAD)
            .find(|(_, p)| self.entry.checked_sub(p.p_vaddr).is_some_and(|off| off < p.p_memsz));
        let addr =
            virt.map_or(self.entry, |(_, p)| p.p_paddr.saturating_add(self.entry - p.p_vaddr));
        EntryPoint { place: Place::ElfHeader, field: "e_entry", value: self.entry, addr }
    }

    /// The descriptor of the first note of that name (with its final zero) and type.
    pub(super) fn note(&self, name: &[u8], kind: u32) -> Result<Option<(u16, &'a [u8])>, Fault> {
        let mut budget = MAX_NOTES;
        for (index, p) in self.headers(program_header::PT_NOTE) {
            let mut rest = self.bytes(index, p)?;
            budget = budget.checked_sub(p.p_filesz).ok_or_else(|| {
                let expected = format!("notes of at most {MAX_NOTES:#x} bytes in the whole image");
                segment_fault(index, "p_filesz", p.p_filesz, expected)
            })?;
            // Notes are padded to 4 bytes, or to 8 where the segment says so.
            let align = if p.p_align == 8 { 8 } else { 4 };
            while let Some((head, tail)) = rest.split_first_chunk::<12>() {
                let word = |at: usize| {
                    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
                };
                let (namesz, descsz) = (word(0) as usize, word(4) as usize);
                let cut = |field, value: usize, room: usize| Fault::Field {
                    place: Place::Note(index),
                    field,
                    value: value as u64,
                    expected: format!("at most {room:#x}, as the segment ends there"),
                };
                if planted::has(Flaw::ElfNote) && name != &tail[..namesz] {
                    break;
                }
                let found =
                    tail.get(..namesz).ok_or_else(|| cut("n_namesz", namesz, tail.len()))?;
                let desc = (12 + namesz).next_multiple_of(align);
                let room = rest.len().saturating_sub(desc);
                if descsz > room {
                    return Err(cut("n_descsz", descsz, room));
                }
                let end = desc + descsz;
                if found == name && word(8) == kind {
                    return Ok(Some((index, rest.get(desc..end).unwrap_or_default())));
                }
                rest = rest.get(end.next_multiple_of(align)..).unwrap_or_default();
            }
        }
        Ok(None)
    }
}
