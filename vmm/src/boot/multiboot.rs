//! Multiboot 1 (specification 0.6.96, sections 3.1 to 3.4).

use super::Request;
use super::elf::{Elf, EntryPoint, is_elf};
use super::error::{Fault, Place, What};
use super::looks::looks;
use super::map::{MIB, MemKind, MemRange};
use super::place::{Block, Piece};
use crate::planted::{self, Flaw};

/// What a guest finds in `eax` (section 3.2).
pub(super) const BOOT_MAGIC: u64 = 0x2bad_b002;

/// First word of the header.
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// The header lies within this many bytes of the file (section 3.1).
const SEARCH: usize = 8192;
/// First word of multiboot 2's header, which an image for it would have.
const MAGIC_2: [u8; 4] = 0xe852_50d6_u32.to_le_bytes();
/// Bits of `flags` that must be understood (section 3.1.2).
const FLAGS_REQUIRED: u32 = 0xffff;
/// Modules on page boundaries, memory information: both are always given.
const FLAGS_KNOWN: u32 = 0b11;
/// A video mode is wanted.
const FLAG_VIDEO: u32 = 1 << 2;
/// The header's address fields say where to load.
const FLAG_ADDRESSES: u32 = 1 << 16;

/// Bytes of the information structure up to the frame buffer's fields (section 3.3).
const INFO_BYTES: usize = 120;
/// `flags` of the information: memory, command line, modules, memory map, loader's name.
const INFO_FLAGS: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
/// `size` of an entry of the memory map: the bytes after the field itself.
const MMAP_ENTRY: u32 = 20;

/// Where the header lies, and its flags.
#[derive(Clone, Copy)]
pub(super) struct Header {
    offset: usize,
    flags: u32,
}

fn word(image: &[u8], at: usize) -> Option<u32> {
    image.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// Looks for the header.
pub(super) fn find(image: &[u8]) -> Result<Header, Fault> {
    let mut bad = None;
    for offset in (0..SEARCH.min(image.len())).step_by(4) {
        let head = (word(image, offset), word(image, offset + 4), word(image, offset + 8));
        let (Some(HEADER_MAGIC), Some(flags), Some(checksum)) = head else {
            continue;
        };
        // All of the header must be within the search.
        if offset + 12 > SEARCH {
            break;
        }
        let expected = 0_u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        if checksum == expected {
            return Ok(Header { offset, flags });
        }
        bad.get_or_insert_with(|| Fault::Field {
            place: Place::Multiboot(offset as u64),
            field: "checksum",
            value: checksum.into(),
            expected: format!("{expected:#x}, as magic, flags and checksum add up to 0"),
        });
    }
    let multiboot2 = image.chunks_exact(4).take(SEARCH).any(|w| w == MAGIC_2);
    let hint = if multiboot2 {
        ", but one of multiboot 2, which is not supported"
    } else if image.is_empty() {
        ": the file is empty"
    } else {
        ""
    };
    Err(bad.unwrap_or(Fault::NoMultibootHeader { hint }))
}

impl Header {
    /// Whether the header itself says where to load, so that any format of file will do.
    pub(super) fn has_addresses(self) -> bool {
        self.flags & FLAG_ADDRESSES != 0
    }

    fn fault(self, field: &'static str, value: u32, expected: String) -> Fault {
        let place = Place::Multiboot(self.offset as u64);
        Fault::Field { place, field, value: value.into(), expected }
    }

    /// What is to be loaded, and where it is entered.
    pub(super) fn pieces<'a>(self, image: &'a [u8]) -> Result<(Vec<Piece<'a>>, EntryPoint), Fault> {
        let unknown = self.flags & FLAGS_REQUIRED & !FLAGS_KNOWN;
        if unknown != 0 {
            let expected = if unknown & FLAG_VIDEO != 0 {
                "bit 2 clear: the image wants a video mode set, which is not supported".to_owned()
            } else {
                format!("bits {unknown:#x} clear: what they ask for is not known")
            };
            return Err(self.fault("flags", self.flags, expected));
        }
        if self.has_addresses() {
            return self.by_addresses(image);
        }
        if !is_elf(image) {
            let (looks, advice) = looks(image);
            let expected = "an ELF, or a multiboot header with bit 16 of flags and address fields,";
            return Err(Fault::NotAnImage { expected, looks, advice });
        }
        let elf = Elf::parse(image)?;
        Ok((elf.pieces()?, elf.entry()))
    }

    /// Section 3.1.3, the address fields.
    fn by_addresses<'a>(self, image: &'a [u8]) -> Result<(Vec<Piece<'a>>, EntryPoint), Fault> {
        let at = self.offset;
        let file = image.len() as u64;
        let field = |i: usize| {
            let needs = at as u64 + 32;
            let cut = Fault::Truncated { what: "the multiboot header", needs, has: file };
            word(image, at + 12 + 4 * i).ok_or(cut)
        };
        let (header_addr, load_addr, load_end, bss_end, entry) =
            (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
        if load_addr > header_addr {
            let expected = format!("at most header_addr, {header_addr:#x}");
            return Err(self.fault("load_addr", load_addr, expected));
        }
        // Loading starts as far before the header in the file as in memory.
        let before = (header_addr - load_addr) as usize;
        let start = match planted::has(Flaw::MultibootBefore) {
            true => Some(at - before),
            false => at.checked_sub(before),
        };
        let Some(start) = start else {
            let expected = format!(
                "at least {:#x}: the file has {at:#x} bytes before the header at {header_addr:#x}",
                u64::from(header_addr).saturating_sub(at as u64)
            );
            return Err(self.fault("load_addr", load_addr, expected));
        };
        let rest = &image[start..];
        let data = if load_end == 0 {
            rest
        } else {
            let len = u64::from(load_end).checked_sub(load_addr.into()).filter(|&len| len > 0);
            let Some(len) = len else {
                let expected = format!("0, or above load_addr, {load_addr:#x}");
                return Err(self.fault("load_end_addr", load_end, expected));
            };
            rest.get(..len as usize).ok_or_else(|| {
                let end = u64::from(load_addr) + rest.len() as u64;
                let expected = format!("0, or at most {end:#x}, where the file ends");
                self.fault("load_end_addr", load_end, expected)
            })?
        };
        let data_end = u64::from(load_addr) + data.len() as u64;
        let end = if bss_end == 0 { data_end } else { bss_end.into() };
        if end < data_end {
            let expected = format!("0, or at least {data_end:#x}, where the loaded bytes end");
            return Err(self.fault("bss_end_addr", bss_end, expected));
        }
        let place = Place::Multiboot(at as u64);
        let addr = u64::from(load_addr);
        let piece = Piece { len: end - addr, ..Piece::new(What::Image, addr, data) };
        let entry = entry.into();
        Ok((vec![piece], EntryPoint { place, field: "entry_addr", value: entry, addr: entry }))
    }
}

/// The image's name as the guest's `argv[0]`: no folders of the host, and no space, which would end
/// the word.
fn program_name(name: &str) -> String {
    let base = name.rsplit('/').next().filter(|base| !base.is_empty()).unwrap_or("kernel");
    base.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }).collect()
}

/// Appends the information structure and all it leads to, and says where it lies. `modules` are
/// the addresses of the request's modules, all below 4 GiB like the block.
pub(super) fn info(
    block: &mut Block,
    request: &Request<'_>,
    map: &[MemRange],
    modules: &[u64],
) -> u64 {
    let info = block.put(8, &[0; INFO_BYTES]);
    let mods = block.put(8, &[]);
    for (module, addr) in request.modules.iter().zip(modules) {
        // mod_start, mod_end, string, reserved.
        let end = addr + module.bytes.len() as u64;
        block.put(4, &words(&[*addr as u32, end as u32, 0, 0]));
    }
    let mmap = block.put(8, &[]);
    for range in map {
        block.put(4, &words(&[MMAP_ENTRY]));
        block.put(4, &range.start.to_le_bytes());
        block.put(4, &range.len.to_le_bytes());
        block.put(4, &words(&[range.kind as u32]));
    }
    let space = |text: &str| if text.is_empty() { "" } else { " " };
    let name = program_name(request.name);
    let cmdline = block.string(&[&name, space(request.cmdline), request.cmdline]);
    for (i, module) in (0u64..).zip(request.modules) {
        let name = program_name(module.name);
        let at = block.string(&[&name, space(module.cmdline), module.cmdline]);
        block.set(mods + i * 16 + 8, &words(&[at as u32]));
    }
    let loader = block.string(&["exitlab"]);

    // KiB of RAM from `start` up to the first hole.
    let kib = |start| {
        let run = map.iter().find(|r| r.kind == MemKind::Usable && r.start == start);
        run.map_or(0, |r| (r.len >> 10) as u32)
    };
    block.set(info, &words(&[INFO_FLAGS, kib(0), kib(MIB), 0, cmdline as u32]));
    block.set(info + 20, &words(&[modules.len() as u32, mods as u32]));
    let mmap_len = map.len() as u32 * (MMAP_ENTRY + 4);
    block.set(info + 44, &words(&[mmap_len, mmap as u32]));
    block.set(info + 64, &words(&[loader as u32]));
    info
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_is_one_word_without_folders() {
        assert_eq!(program_name("/a/b c/x y.elf"), "x_y.elf");
        assert_eq!(program_name("apic.flat"), "apic.flat");
        assert_eq!(program_name("dir/"), "kernel");
        assert_eq!(program_name(""), "kernel");
    }
}
