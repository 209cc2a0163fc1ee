//! Why an image could not be loaded.

use std::fmt;

use super::map::MemKind;
use super::{MAX_CMDLINE, Protocol};

/// An image that could not be loaded; guest memory is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot boot {image} ({protocol}): {fault}")]
pub struct BootError {
    /// The image's name, as the caller gave it.
    pub image: String,
    /// The protocol asked for.
    pub protocol: Protocol,
    /// What is wrong.
    pub fault: Fault,
}

/// Something that lies in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A PT_LOAD segment, by the index of its program header.
    Segment(u16),
    /// The image, where it is loaded as one piece.
    Image,
    /// A module, counted from 0.
    Module(usize),
    /// The boot protocol's information, its strings, and the GDT.
    Info,
    /// Page tables of the 64-bit entry.
    PageTables,
    /// The stack of a plain entry.
    Stack,
    /// A range that the board had reserved before.
    Reserved(MemKind),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Segment(i) => write!(f, "the segment of program header {i}"),
            What::Image => f.write_str("the image"),
            What::Module(i) => write!(f, "module {i}"),
            What::Info => f.write_str("boot information"),
            What::PageTables => f.write_str("page tables"),
            What::Stack => f.write_str("the stack"),
            What::Reserved(kind) => write!(f, "the board's range ({kind})"),
        }
    }
}

/// The structure that a faulty field belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The ELF header.
    ElfHeader,
    /// A program header, by its index.
    ProgramHeader(u16),
    /// A note in the segment of that program header.
    Note(u16),
    /// The multiboot header at that offset of the file.
    Multiboot(u64),
    /// The flat image's place, as the user gave it.
    Flat,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::ElfHeader => f.write_str("ELF header"),
            Place::ProgramHeader(i) => write!(f, "program header {i}"),
            Place::Note(i) => write!(f, "note in program header {i}"),
            Place::Multiboot(at) => write!(f, "multiboot header at file offset {at:#x}"),
            Place::Flat => f.write_str("flat image"),
        }
    }
}

/// What is wrong with a request to boot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a file of the kind that the protocol needs.
    #[error("{expected} was expected, but this looks like {looks}: {advice}")]
    NotAnImage {
        /// What the protocol needs.
        expected: &'static str,
        /// What the file looks like.
        looks: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The file ends inside a structure.
    #[error(
        "the file has {has} bytes, but {what} ends at byte {needs}: the file was cut off, copy it again"
    )]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Length the file should at least have.
        needs: u64,
        /// Length it has.
        has: u64,
    },
    /// A header field has a value that cannot be used.
    #[error("{place}: {field} is {value:#x}, expected {expected}")]
    Field {
        /// The structure.
        place: Place,
        /// The field, by its name in the specification.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What it should hold, and often why.
        expected: String,
    },
    /// A PVH image without its note.
    #[error(
        "no PT_NOTE segment holds the note XEN_ELFNOTE_PHYS32_ENTRY (name \"Xen\", type 18); build the \
         image with it (Linux: CONFIG_PVH), or use another protocol"
    )]
    NoPvhNote,
    /// A multiboot image without its header.
    #[error(
        "no multiboot 1 header (0x1badb002 at a multiple of 4 in the first 8192 bytes){hint}; add one, \
         or use another protocol"
    )]
    NoMultibootHeader {
        /// What was seen instead.
        hint: &'static str,
    },
    /// No PT_LOAD segment, or none with a length.
    #[error(
        "no PT_LOAD segment with a p_memsz above 0, so there is nothing to load; check the linker script"
    )]
    NothingToLoad,
    /// The entry point is outside what is loaded.
    #[error("{place}: {field} is {value:#x}, expected an address inside what is loaded: {loaded}")]
    Entry {
        /// The structure that names the entry.
        place: Place,
        /// The field that names it.
        field: &'static str,
        /// The address.
        value: u64,
        /// Where the loaded pieces lie.
        loaded: String,
    },
    /// A piece does not lie in RAM.
    #[error("{what} at {start:#x}, {len:#x} bytes, is not wholly in RAM: {why}")]
    OutsideRam {
        /// The piece.
        what: What,
        /// Its guest-physical address.
        start: u64,
        /// Its length in memory, in bytes.
        len: u64,
        /// Where RAM is, and what to do.
        why: String,
    },
    /// Two pieces share bytes of memory.
    #[error(
        "{a} at {a_start:#x}..{a_end:#x} overlaps {b} at {b_start:#x}..{b_end:#x}; link the image elsewhere"
    )]
    Overlap {
        /// The lower piece.
        a: What,
        /// Its first address.
        a_start: u64,
        /// The address after it.
        a_end: u64,
        /// The higher piece.
        b: What,
        /// Its first address.
        b_start: u64,
        /// The address after it.
        b_end: u64,
    },
    /// Memory has no free run that is long enough.
    #[error(
        "{what} of {len} bytes: the longest free run of RAM below 4 GiB has {largest} bytes; give the \
         guest more memory"
    )]
    NoRoom {
        /// What was to be placed.
        what: What,
        /// Its length in bytes.
        len: u64,
        /// The longest run there is.
        largest: u64,
    },
    /// The command line, or a module's, cannot be handed over.
    #[error("the command line of {of}: {why} (at most {MAX_CMDLINE} bytes, none of them 0)")]
    Cmdline {
        /// Whose it is.
        of: What,
        /// What is wrong with it.
        why: String,
    },
    /// A real-mode flat image has nowhere to find a command line or modules.
    #[error(
        "a flat image in real mode gets {what}, but has no way to find it; leave it out, or use another \
         mode or protocol"
    )]
    NoWayToPass {
        /// What was given.
        what: &'static str,
    },
}
