//! Loads an image into guest memory and says what state the boot vCPU starts in.
//!
//! [`load`] is a function of its [`Request`]: it checks everything first, writes guest memory only
//! when nothing is wrong, and gives back plain values. It knows nothing of KVM. Three protocols are
//! spoken, and raw code and plain ELFs are entered in a mode of the user's choice:
//!
//! | protocol | image | entered |
//! |---|---|---|
//! | [`Pvh`](Protocol::Pvh) | ELF32 or ELF64 with Xen's note | 32-bit, `ebx` = `hvm_start_info` |
//! | [`Multiboot`](Protocol::Multiboot) | ELF, or anything with address fields | 32-bit, `eax` = magic, `ebx` = information |
//! | [`Elf`](Protocol::Elf) | ELF32 | 32-bit, `ebx` = `hvm_start_info`, a stack |
//! | [`Elf`](Protocol::Elf) | ELF64 | 64-bit, `rdi` = `rbx` = `hvm_start_info`, a stack |
//! | [`Flat`](Protocol::Flat) | raw bytes | as ELF; in real mode with `ss:sp` = 0:0x7c00 and nothing else |
//!
//! A plain entry has no protocol of its own to hand over a command line, modules and the memory
//! map, so it gets PVH's structure. Its stack is as after a call of the entry.
//!
//! Boot structures go to the top of conventional memory, modules to the top of RAM below 4 GiB;
//! page 0 is left alone.

mod cpu;
mod elf;
mod error;
mod flat;
mod looks;
mod map;
mod multiboot;
mod place;
mod protocol;
mod pvh;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;

pub use cpu::Mode;
pub use error::{BootError, Fault, Place, What};
pub use map::{
    BIOS_START, CHIPS_START, EBDA_START, MIB, MemKind, MemRange, memory_map, with_reserved,
};
pub use protocol::{FLAT, Protocol, ProtocolError};

use crate::cpu::{CpuState, RSP};
use crate::ram::{GuestRam, HOLE_END};
use elf::{Elf, EntryPoint};
use place::{Block, Piece, Placer};

/// The longest command line that is handed over, in bytes.
pub const MAX_CMDLINE: usize = 0xffff;
/// Bytes of stack that a plain entry gets.
pub const STACK_BYTES: u64 = 0x4000;

/// A file handed to the guest beside the image; the first one is a Linux guest's initrd.
#[derive(Clone, Copy, Debug, Default)]
pub struct Module<'a> {
    /// The file's name: the first word of its multiboot string.
    pub name: &'a str,
    /// Its contents.
    pub bytes: &'a [u8],
    /// Its command line.
    pub cmdline: &'a str,
}

/// What guest memory holds before an image is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RamState {
    /// All zeros but for the reserved ranges: nothing ran and nothing was loaded. Zeros are not
    /// written, so a large bss costs neither time nor host memory.
    #[default]
    Fresh,
    /// Anything: a guest ran here. What must be zero is read, and written where it is not.
    Used,
}

/// What to load, and where.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The image's bytes.
    pub image: &'a [u8],
    /// Its name, for errors and as the guest's `argv[0]`.
    pub name: &'a str,
    /// How it is to be entered.
    pub protocol: Protocol,
    /// Its command line, without its name.
    pub cmdline: &'a str,
    /// Files that go with it.
    pub modules: &'a [Module<'a>],
    /// The guest's memory.
    pub ram: &'a GuestRam,
    /// What that memory holds.
    pub ram_state: RamState,
    /// Ranges that the board has filled or keeps to itself: nothing is loaded there, and the guest
    /// is told of them. They may lie outside RAM.
    pub reserved: &'a [MemRange],
    /// Address of the ACPI root pointer, if there is one.
    pub acpi_rsdp: Option<u64>,
}

impl<'a> Request<'a> {
    /// A request to load `image` into fresh memory, with nothing else.
    pub fn new(image: &'a [u8], name: &'a str, ram: &'a GuestRam) -> Request<'a> {
        Request {
            image,
            name,
            protocol: Protocol::Auto,
            cmdline: "",
            modules: &[],
            ram,
            ram_state: RamState::Fresh,
            reserved: &[],
            acpi_rsdp: None,
        }
    }
}

/// A range of guest memory that was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// With what.
    pub what: What,
    /// Its guest-physical address.
    pub start: u64,
    /// Its length in bytes, zeros at its end included.
    pub len: u64,
}

/// What [`load`] did. Its `Display` is a log of it, a line for each range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The protocol that was used; never `Auto`.
    pub protocol: Protocol,
    /// The mode that the image is entered in.
    pub mode: Mode,
    /// The registers that the boot vCPU starts with; whoever runs it keeps its own `apic_base`.
    pub start: CpuState,
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// What lies where, lowest first.
    pub placed: Vec<Placed>,
    /// The memory map that the guest was told.
    pub map: Vec<MemRange>,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: entry {:#x} in mode {}", self.protocol, self.entry, self.mode)?;
        for p in &self.placed {
            write!(f, "\n  {:#x}..{:#x} {}", p.start, p.start + p.len, p.what)?;
        }
        for r in &self.map {
            write!(f, "\n  map {:#x}..{:#x} {}", r.start, r.end(), r.kind)?;
        }
        Ok(())
    }
}

/// An image that was understood: what to load and how to enter it.
struct Image<'a> {
    protocol: Protocol,
    mode: Mode,
    pieces: Vec<Piece<'a>>,
    entry: EntryPoint,
}

/// Loads an image and what goes with it.
///
/// # Errors
/// When the image is not one of the protocol, a field of its headers cannot be used, or memory has
/// no room; guest memory is then untouched.
pub fn load(request: &Request<'_>) -> Result<Loaded, BootError> {
    prepare(request).map_err(|fault| BootError {
        image: request.name.to_owned(),
        protocol: request.protocol,
        fault,
    })
}

/// The registers of a processor that goes on at the waking vector of ACPI's FACS: in real mode, at
/// CS:IP of the address shifted right by 4, and the 4 bits that leaves (ACPI 6.5, section 5.2.10). Of
/// the address, the 20 bits that real mode reaches count.
pub fn waking(vector: u32) -> CpuState {
    let vector = u64::from(vector & 0xf_ffff);
    let mut start = cpu::real(vector & !0xf, 0);
    start.rip = if vector < 0x1_0000 { vector } else { vector & 0xf };
    start
}

fn prepare(request: &Request<'_>) -> Result<Loaded, Fault> {
    check_cmdlines(request)?;
    let Image { protocol, mode, mut pieces, entry } = understand(request)?;
    place::check(&mut pieces, request.ram, request.reserved)?;
    check_entry(&pieces, &entry)?;

    let map = with_reserved(&memory_map(request.ram), request.reserved);
    let mut placer = Placer::new(&map, &pieces);
    let mut modules = Vec::with_capacity(request.modules.len());
    for (i, module) in request.modules.iter().enumerate() {
        let at = placer.high(What::Module(i), module.bytes.len() as u64)?;
        pieces.push(Piece::new(What::Module(i), at, module.bytes));
        modules.push(at);
    }

    let start = if mode == Mode::Real16 {
        if !request.cmdline.is_empty() {
            return Err(Fault::NoWayToPass { what: "a command line" });
        }
        if !request.modules.is_empty() {
            return Err(Fault::NoWayToPass { what: "modules" });
        }
        cpu::real(entry.addr, flat::REAL_STACK)
    } else {
        let multiboot = protocol == Protocol::Multiboot;
        let structures = if multiboot { multiboot::info } else { pvh::start_info };
        let (block, (gdt, info)) = Block::place(&mut placer, |block| {
            let gdt = block.put(8, &cpu::gdt(mode));
            (gdt, structures(block, request, &map, &modules))
        })?;
        pieces.push(block);
        let mut start = if mode == Mode::Long64 {
            let tables = flat::page_tables(&mut placer)?;
            let cr3 = tables[0].addr;
            pieces.extend(tables);
            let mut start = cpu::long(entry.addr, gdt, cr3);
            start.gpr[cpu::RDI] = info;
            start
        } else {
            cpu::protected(entry.addr, gdt)
        };
        start.gpr[cpu::RBX] = info;
        if multiboot {
            start.gpr[cpu::RAX] = multiboot::BOOT_MAGIC;
        } else if protocol != Protocol::Pvh {
            let at = placer.low(What::Stack, STACK_BYTES)?;
            let data = Cow::Borrowed(&[][..]);
            pieces.push(Piece { what: What::Stack, addr: at, data, len: STACK_BYTES });
            // As a function finds it: a return address, here 0, on a stack aligned before the call.
            start.gpr[RSP] = at + STACK_BYTES - 8;
        }
        start
    };

    // Nothing can go wrong from here on.
    for piece in &pieces {
        piece.write(request.ram, request.ram_state);
    }
    pieces.sort_by_key(|piece| piece.addr);
    let placed = pieces.iter().map(|p| Placed { what: p.what, start: p.addr, len: p.len });
    Ok(Loaded { protocol, mode, start, entry: entry.addr, placed: placed.collect(), map })
}

/// Finds out what an image is and what of it to load.
fn understand<'a>(request: &Request<'a>) -> Result<Image<'a>, Fault> {
    let image = request.image;
    match request.protocol {
        Protocol::Flat { addr, mode } => {
            let (piece, entry) = flat::piece(image, addr, mode)?;
            Ok(Image { protocol: request.protocol, mode, pieces: vec![piece], entry })
        }
        Protocol::Multiboot => by_multiboot(image, multiboot::find(image)?),
        Protocol::Elf => by_elf(&Elf::parse(image)?),
        Protocol::Pvh => {
            let elf = Elf::parse(image)?;
            let entry = pvh::entry(&elf)?.ok_or(Fault::NoPvhNote)?;
            by_pvh(&elf, entry)
        }
        Protocol::Auto if elf::is_elf(image) => {
            let elf = Elf::parse(image)?;
            if let Some(entry) = pvh::entry(&elf)? {
                return by_pvh(&elf, entry);
            }
            match multiboot::find(image) {
                Ok(header) => by_multiboot(image, header),
                // No header, or bytes that look like one by chance.
                Err(_) => by_elf(&elf),
            }
        }
        Protocol::Auto => match multiboot::find(image) {
            Ok(header) if header.has_addresses() => by_multiboot(image, header),
            _ => {
                let (looks, advice) = looks::looks(image);
                let expected = "an ELF, or an image with a multiboot header and address fields,";
                Err(Fault::NotAnImage { expected, looks, advice })
            }
        },
    }
}

fn by_pvh<'a>(elf: &Elf<'a>, entry: EntryPoint) -> Result<Image<'a>, Fault> {
    let (protocol, mode) = (Protocol::Pvh, Mode::Protected32);
    Ok(Image { protocol, mode, pieces: elf.pieces()?, entry })
}

fn by_multiboot(image: &[u8], header: multiboot::Header) -> Result<Image<'_>, Fault> {
    let (pieces, entry) = header.pieces(image)?;
    Ok(Image { protocol: Protocol::Multiboot, mode: Mode::Protected32, pieces, entry })
}

fn by_elf<'a>(elf: &Elf<'a>) -> Result<Image<'a>, Fault> {
    let (protocol, mode) = (Protocol::Elf, elf.mode());
    Ok(Image { protocol, mode, pieces: elf.pieces()?, entry: elf.entry() })
}

fn check_cmdlines(request: &Request<'_>) -> Result<(), Fault> {
    let modules = request.modules.iter().enumerate();
    let all = std::iter::once((What::Image, request.cmdline))
        .chain(modules.map(|(i, m)| (What::Module(i), m.cmdline)));
    for (of, text) in all {
        if text.len() > MAX_CMDLINE {
            return Err(Fault::Cmdline { of, why: format!("it has {} bytes", text.len()) });
        }
        if let Some(at) = text.bytes().position(|b| b == 0) {
            return Err(Fault::Cmdline { of, why: format!("byte {at} is 0") });
        }
    }
    Ok(())
}

/// Wants the entry inside a piece, and where every mode can jump to.
fn check_entry(pieces: &[Piece<'_>], entry: &EntryPoint) -> Result<(), Fault> {
    if !pieces.iter().any(|p| p.addr <= entry.addr && entry.addr < p.end()) {
        let mut loaded: Vec<String> =
            pieces.iter().take(8).map(|p| format!("{:#x}..{:#x}", p.addr, p.end())).collect();
        if pieces.len() > loaded.len() {
            loaded.push(format!("and {} more", pieces.len() - loaded.len()));
        }
        return Err(Fault::Entry {
            place: entry.place,
            field: entry.field,
            value: entry.value,
            loaded: loaded.join(", "),
        });
    }
    if entry.addr >= HOLE_END {
        return Err(Fault::Field {
            place: entry.place,
            field: entry.field,
            value: entry.value,
            expected:
                "an entry below 0x100000000: 32-bit code reaches no further, and the page tables \
                       of 64-bit mode map no further"
                    .to_owned(),
        });
    }
    Ok(())
}
