//! The option ROM that starts a kernel which lies in memory already.
//!
//! The system BIOS calls an option ROM in real mode when it has set the machine up. This one does not
//! return: it checks that memory is as [`super::memory`] laid it out, and enters the kernel as a PVH
//! loader does (Xen's `docs/misc/pvh.pandoc`, `xen/include/public/arch-x86/hvm/start_info.h`):
//! 32-bit protected mode without paging, flat segments, `ebx` at the start info.
//!
//! When the kernel resets the machine, as it does after a panic, the ROM runs for the second time and
//! switches the machine off. Whether it ran is in a byte of CMOS RAM that the BIOS does not use: that
//! outlives a reset, and not the end of the emulator.

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction};
use thiserror::Error;

use super::memory::Layout;

/// Where the ROM lies: in the range that the BIOS searches for option ROMs (0xC8000 to 0xDFFFF), behind
/// what a VGA BIOS takes. Physical address.
pub const ADDRESS: u32 = 0xd_0000;

/// Its size; a multiple of the 512 bytes that its header counts in.
pub const SIZE: usize = 4096;

/// What the ROM writes to the debug console when it finds itself started again by a reset.
pub const RESET: &str = "boot ROM: the kernel reset the machine\n";

/// What the ROM writes to the debug console when memory is not as it was laid out.
pub const MISPLACED: &str = "boot ROM: the images are not in memory where they were put\n";

/// The longest command line that has room. Bytes.
pub const MAX_CMDLINE: usize = SIZE - CMDLINE as usize - 2;

/// Memory below this lies at its own address; what is more lies from 4 GiB on. Bytes.
pub const LOW_MEMORY: u64 = 0xc000_0000;

/// The start info is copied here, because the kernel's entry code uses its first word as a stack.
const START_INFO_RAM: u32 = 0x9_0000;

/// A stack below it, which nothing uses.
const STACK: u32 = 0x8_0000;

/// The CMOS byte that tells a second start, and its value then.
const RAN_BEFORE: (u32, i32) = (0x7e, 0x5a);

/// The debug console.
const CONSOLE: u32 = 0xe9;

/// Writing this word to this port switches a Bochs machine off.
const SHUTDOWN: (u32, &str) = (0x8900, "Shutdown");

// Offsets in the ROM.
const CODE16: u32 = 3;
const CODE32: u32 = 0x100;
const GDT: u32 = 0x300;
const GDTR: u32 = 0x318;
const START_INFO: u32 = 0x320;
const MODULES: u32 = 0x360;
const MEMORY_MAP: u32 = 0x380;
const TEXTS: u32 = 0x480;
const CMDLINE: u32 = 0x580;

/// The magic number of a start info: "xEn3" with the top bit of the E set.
const START_MAGIC: u32 = 0x336e_c578;

/// Flat segments: none, code and data of 32 bits at 0, 4 GiB long, present (SDM volume 3A, 3.4.5).
const SEGMENTS: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u32 = 16;

/// Why no ROM can be made.
#[derive(Debug, Error)]
pub enum RomError {
    /// The command line has no room.
    #[error(
        "the kernel's command line has {0} bytes, and the boot ROM has room for {MAX_CMDLINE}; \
         shorten it"
    )]
    LongCommandLine(usize),
    /// The assembler refused an instruction.
    #[error("the boot ROM cannot be assembled: {0}")]
    Assemble(#[from] IcedError),
}

/// Makes the ROM for a kernel and an initramfs laid out like this. `entry` is the kernel's PVH entry
/// point (physical), `memory` the size of RAM in bytes.
///
/// # Errors
///
/// The command line is too long.
pub fn rom(
    layout: &Layout,
    entry: u32,
    memory: u64,
    command_line: &str,
) -> Result<Vec<u8>, RomError> {
    if command_line.len() > MAX_CMDLINE {
        return Err(RomError::LongCommandLine(command_line.len()));
    }
    let mut rom = vec![0; SIZE];
    let mut put = |offset: u32, bytes: &[u8]| {
        let offset = offset as usize;
        rom[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    // The header of an option ROM: the mark, and the size in units of 512 bytes; the entry follows.
    put(0, &[0x55, 0xaa, (SIZE / 512) as u8]);
    let reset_text = ADDRESS + TEXTS;
    let misplaced_text = reset_text + RESET.len() as u32 + 1;
    put(TEXTS, [RESET, "\0", MISPLACED, "\0", SHUTDOWN.1, "\0"].concat().as_bytes());
    let shutdown_text = misplaced_text + MISPLACED.len() as u32 + 1;
    put(CODE16, &code16()?);
    put(CODE32, &code32(layout, entry, [reset_text, misplaced_text, shutdown_text])?);
    put(GDT, &words(&SEGMENTS));
    put(GDTR, &[(SEGMENTS.len() * 8 - 1) as u8, 0]);
    put(GDTR + 2, &(ADDRESS + GDT).to_le_bytes());
    let map = memory_map(memory);
    // struct hvm_start_info, version 1.
    put(START_INFO, &START_MAGIC.to_le_bytes());
    put(START_INFO + 4, &1_u32.to_le_bytes());
    put(START_INFO + 12, &1_u32.to_le_bytes());
    let addresses = [ADDRESS + MODULES, ADDRESS + CMDLINE, 0, ADDRESS + MEMORY_MAP].map(u64::from);
    put(START_INFO + 16, &words(&addresses));
    let parts = map.iter().filter(|(_, size, _)| *size > 0);
    put(START_INFO + 48, &(parts.clone().count() as u32).to_le_bytes());
    // struct hvm_modlist_entry: address, size, no command line of its own.
    put(MODULES, &words(&[layout.initrd, layout.initrd_size, 0, 0]));
    for (index, (start, size, kind)) in parts.enumerate() {
        // struct hvm_memmap_table_entry.
        put(MEMORY_MAP + 24 * index as u32, &words(&[*start, *size, u64::from(*kind)]));
    }
    put(CMDLINE, command_line.as_bytes());
    let sum = rom.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    // The bytes of an option ROM add up to 0.
    rom[SIZE - 1] = sum.wrapping_neg();
    Ok(rom)
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Memory as the BIOS uses it: start, size, E820 type. At the end of what lies below the devices are
/// its ACPI tables; what the machine has besides begins at 4 GiB.
fn memory_map(memory: u64) -> [(u64, u64, u32); 6] {
    const ACPI: u64 = 0x1_0000;
    let low = memory.min(LOW_MEMORY);
    [
        (0, 0x9_fc00, 1),
        (0xe_0000, 0x2_0000, 2),
        (0x10_0000, low - ACPI - 0x10_0000, 1),
        (low - ACPI, ACPI, 3),
        (0xfffc_0000, 0x4_0000, 2),
        (1 << 32, memory - low, 1),
    ]
}

/// From real mode to protected mode.
fn code16() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.cli()?;
    a.cld()?;
    // A20 on: System Control Port A, bit 1; bit 0 would reset.
    a.in_(al, 0x92)?;
    a.or(al, 2)?;
    a.and(al, 0xfe)?;
    a.out(0x92, al)?;
    a.lgdt(word_ptr(GDTR).cs())?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    let target = ADDRESS + CODE32;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, CODE_SELECTOR, target)?)?;
    a.assemble(u64::from(CODE16))
}

/// From protected mode to the kernel. `texts`: what is told at a second start, when memory is wrong,
/// and to the port that switches off.
fn code32(layout: &Layout, entry: u32, texts: [u32; 3]) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let (mut first, mut wrong, mut tell) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(eax, DATA_SELECTOR)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    a.mov(esp, STACK)?;
    let (register, ran) = RAN_BEFORE;
    a.mov(eax, register)?;
    a.out(0x70, al)?;
    a.in_(al, 0x71)?;
    a.cmp(al, ran)?;
    a.jne(first)?;
    a.mov(esi, texts[0])?;
    a.jmp(tell)?;

    a.set_label(&mut first)?;
    a.mov(eax, register)?;
    a.out(0x70, al)?;
    a.mov(al, ran)?;
    a.out(0x71, al)?;
    // Uses up the padding: each read of a block never used before takes one from the file.
    let (mut next, mut found) = (a.create_label(), a.create_label());
    a.mov(esi, layout.spare.start as u32)?;
    a.set_label(&mut next)?;
    a.cmp(dword_ptr(esi), layout.last_padding())?;
    a.je(found)?;
    a.add(esi, layout.block as u32)?;
    a.cmp(esi, layout.spare.end as u32)?;
    a.jb(next)?;
    a.jmp(wrong)?;
    a.set_label(&mut found)?;
    // What follows the padding in the file comes into these blocks, in the order they are touched.
    a.xor(edx, edx)?;
    for range in &layout.touched {
        let mut again = a.create_label();
        a.mov(esi, range.start as u32)?;
        a.set_label(&mut again)?;
        a.add(edx, dword_ptr(esi + layout.probe))?;
        a.add(esi, layout.block as u32)?;
        a.cmp(esi, range.end as u32)?;
        a.jb(again)?;
    }
    a.cmp(edx, layout.sum as i32)?;
    a.jne(wrong)?;
    a.mov(esi, ADDRESS + START_INFO)?;
    a.mov(edi, START_INFO_RAM)?;
    a.mov(ecx, 14)?;
    a.rep().movsd()?;
    a.mov(ebx, START_INFO_RAM)?;
    a.mov(ecx, entry)?;
    a.jmp(ecx)?;

    a.set_label(&mut wrong)?;
    a.mov(esi, texts[1])?;
    a.set_label(&mut tell)?;
    for (port, text) in [(CONSOLE, None), (SHUTDOWN.0, Some(texts[2]))] {
        let (mut byte, mut end) = (a.create_label(), a.create_label());
        if let Some(text) = text {
            a.mov(esi, text)?;
        }
        a.mov(edx, port)?;
        a.set_label(&mut byte)?;
        a.lodsb()?;
        a.test(al, al)?;
        a.je(end)?;
        a.out(dx, al)?;
        a.jmp(byte)?;
        a.set_label(&mut end)?;
    }
    let mut stay = a.create_label();
    a.cli()?;
    a.set_label(&mut stay)?;
    a.hlt()?;
    a.jmp(stay)?;
    let code = a.assemble(u64::from(ADDRESS + CODE32))?;
    debug_assert!(code.len() <= (GDT - CODE32) as usize);
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bochs::memory::tests::layout;

    #[test]
    fn the_header_and_the_sum_are_those_of_an_option_rom() {
        let rom = rom(&layout(), 0x100_0b20, 512 << 20, "quiet").expect("a ROM");
        assert_eq!((rom.len(), &rom[..3]), (SIZE, &[0x55, 0xaa, 8][..]));
        assert_eq!(rom.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let at = CMDLINE as usize;
        assert_eq!(&rom[at..at + 6], b"quiet\0");
        let start = START_INFO as usize;
        assert_eq!(rom[start..start + 4], START_MAGIC.to_le_bytes());
    }

    #[test]
    fn a_command_line_that_has_no_room_is_refused() {
        let line = |n| "x".repeat(n);
        assert!(rom(&layout(), 0, 1 << 29, &line(MAX_CMDLINE)).is_ok());
        let error = rom(&layout(), 0, 1 << 29, &line(MAX_CMDLINE + 1)).unwrap_err();
        assert!(error.to_string().contains("shorten it"), "{error}");
    }

    #[test]
    fn no_part_reaches_into_the_next() {
        let code = code32(&layout(), 0x100_0000, [1, 2, 3]).expect("code");
        assert!(code.len() <= (GDT - CODE32) as usize, "{} bytes", code.len());
        assert!(code16().expect("code").len() <= (CODE32 - CODE16) as usize);
        assert!(RESET.len() + MISPLACED.len() + 12 <= (CMDLINE - TEXTS) as usize);
        assert!(24 * memory_map(1 << 29).len() <= (TEXTS - MEMORY_MAP) as usize);
    }

    #[test]
    fn the_memory_map_covers_ram_once_and_in_order() {
        for (memory, low) in [(256 << 20, 256 << 20), (6 << 30, LOW_MEMORY)] {
            let map = memory_map(memory);
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
            }
            assert_eq!(map[2].0 + map[2].1, map[3].0);
            assert_eq!(map[3].0 + map[3].1, low);
            assert_eq!(low + map[5].1, memory);
        }
    }
}
