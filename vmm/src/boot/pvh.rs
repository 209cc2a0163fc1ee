//! Xen's direct boot of x86/HVM guests ("PVH", Xen's docs/misc/pvh.pandoc and
//! xen/include/public/arch-x86/hvm/start_info.h).

use super::Request;
use super::elf::{Elf, EntryPoint};
use super::error::{Fault, Place};
use super::map::MemRange;
use super::place::Block;

/// Type of the note that holds the physical address of the 32-bit entry.
const PHYS32_ENTRY: u32 = 18;
/// `hvm_start_info.magic`: "xEn3" with the top bit set.
const MAGIC: u32 = 0x336e_c578;
/// Version of the structure: 1 is the one with a memory map.
const VERSION: u32 = 1;
/// Bytes of `hvm_start_info`.
const START_INFO_BYTES: usize = 56;

/// The entry point that an image's note names, if it has the note.
pub(super) fn entry(elf: &Elf<'_>) -> Result<Option<EntryPoint>, Fault> {
    let Some((index, desc)) = elf.note(b"Xen\0", PHYS32_ENTRY)? else {
        return Ok(None);
    };
    let addr = match *desc {
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => {
            return Err(Fault::Field {
                place: Place::Note(index),
                field: "n_descsz of XEN_ELFNOTE_PHYS32_ENTRY",
                value: desc.len() as u64,
                expected: "4 or 8: an address".to_owned(),
            });
        }
    };
    let field = "XEN_ELFNOTE_PHYS32_ENTRY";
    Ok(Some(EntryPoint { place: Place::Note(index), field, value: addr, addr }))
}

/// Appends `hvm_start_info` and all it leads to, and says where it lies. `modules` are the
/// addresses of the request's modules.
pub(super) fn start_info(
    block: &mut Block,
    request: &Request<'_>,
    map: &[MemRange],
    modules: &[u64],
) -> u64 {
    let info = block.put(8, &[0; START_INFO_BYTES]);
    // hvm_modlist_entry: paddr, size, cmdline_paddr, reserved.
    let modlist = block.put(8, &[]);
    for (module, addr) in request.modules.iter().zip(modules) {
        block.put(8, &quads(&[*addr, module.bytes.len() as u64, 0, 0]));
    }
    // hvm_memmap_table_entry: addr, size, and 32 bits each of type and zero.
    let memmap = block.put(8, &[]);
    for range in map {
        block.put(8, &quads(&[range.start, range.len, range.kind as u64]));
    }
    let cmdline = block.string(&[request.cmdline]);
    for (i, module) in (0u64..).zip(request.modules) {
        if !module.cmdline.is_empty() {
            let at = block.string(&[module.cmdline]);
            block.set(modlist + i * 32 + 16, &at.to_le_bytes());
        }
    }
    let head = [MAGIC, VERSION, 0, modules.len() as u32];
    block.set(info, &head.map(u32::to_le_bytes).concat());
    let rsdp = request.acpi_rsdp.unwrap_or(0);
    let modlist = if modules.is_empty() { 0 } else { modlist };
    block.set(info + 16, &quads(&[modlist, cmdline, rsdp, memmap, map.len() as u64]));
    info
}

fn quads(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
