//! What the loader said: command line, memory map, modules; from PVH or multiboot 1 alike.
//!
//! All of it is copied at boot, so the loader's own copies may be overwritten.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Who started the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Xen's PVH direct boot, found through the ELF note.
    Pvh,
    /// Multiboot 1, found through the header in the first 8 KiB.
    Multiboot,
}

/// What a range of the memory map is for, in the numbers of the E820 map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Usable RAM (1).
    Ram,
    /// Not for use (2).
    Reserved,
    /// ACPI tables (3).
    Acpi,
    /// ACPI non-volatile storage (4).
    Nvs,
    /// Anything else.
    Other(u32),
}

/// A range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is for.
    pub kind: Kind,
}

impl Region {
    /// The address behind the last one, or the highest address if that does not fit.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// A file the loader put into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

const MAX_REGIONS: usize = 32;
const MAX_MODULES: usize = 8;
const MAX_COMMAND_LINE: usize = 1024;

/// What the loader said.
pub struct Info {
    protocol: Protocol,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_len: usize,
    regions: [Region; MAX_REGIONS],
    region_count: usize,
    modules: [Module; MAX_MODULES],
    module_count: usize,
    rsdp: u64,
    truncated: bool,
}

impl Info {
    const EMPTY: Info = Info {
        protocol: Protocol::Pvh,
        command_line: [0; MAX_COMMAND_LINE],
        command_line_len: 0,
        regions: [Region { start: 0, len: 0, kind: Kind::Ram }; MAX_REGIONS],
        region_count: 0,
        modules: [Module { start: 0, len: 0 }; MAX_MODULES],
        module_count: 0,
        rsdp: 0,
        truncated: false,
    };

    /// Who started the payload.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }
    /// The command line as bytes; multiboot loaders put the payload's file name first.
    pub fn command_line(&self) -> &[u8] {
        &self.command_line[..self.command_line_len]
    }
    /// The memory map in the loader's order.
    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }
    /// The modules in the loader's order.
    pub fn modules(&self) -> &[Module] {
        &self.modules[..self.module_count]
    }
    /// Address of the ACPI root pointer, if the loader told it (PVH only); 0 if not.
    pub fn rsdp(&self) -> u64 {
        self.rsdp
    }
    /// Whether the loader said more than fits here: 1 KiB of command line, 32 ranges, 8 modules.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    fn push_region(&mut self, start: u64, len: u64, kind: u32) {
        let kind = match kind {
            1 => Kind::Ram,
            2 => Kind::Reserved,
            3 => Kind::Acpi,
            4 => Kind::Nvs,
            other => Kind::Other(other),
        };
        match self.regions.get_mut(self.region_count) {
            Some(slot) => {
                *slot = Region { start, len, kind };
                self.region_count += 1;
            }
            None => self.truncated = true,
        }
    }

    fn push_module(&mut self, start: u64, len: u64) {
        match self.modules.get_mut(self.module_count) {
            Some(slot) => {
                *slot = Module { start, len };
                self.module_count += 1;
            }
            None => self.truncated = true,
        }
    }

    fn set_command_line(&mut self, memory: &impl Memory, at: u64) {
        self.command_line_len = memory.copy_string(at, &mut self.command_line);
        self.truncated |= self.command_line_len == MAX_COMMAND_LINE;
    }

    /// Xen's `hvm_start_info` (xen/include/public/arch-x86/hvm/start_info.h).
    fn read_pvh(&mut self, memory: &impl Memory, at: u64) {
        self.protocol = Protocol::Pvh;
        let version = memory.word(at + 4);
        let modules = memory.word(at + 12);
        let list = memory.long(at + 16);
        for i in 0..u64::from(modules.min(MAX_MODULES as u32 + 1)) {
            self.push_module(memory.long(list + 32 * i), memory.long(list + 32 * i + 8));
        }
        let command_line = memory.long(at + 24);
        if command_line != 0 {
            self.set_command_line(memory, command_line);
        }
        self.rsdp = memory.long(at + 32);
        // Version 0 has no memory map.
        if version >= 1 {
            let map = memory.long(at + 40);
            let entries = memory.word(at + 48).min(MAX_REGIONS as u32 + 1);
            for entry in (0..u64::from(entries)).map(|i| map + 24 * i) {
                self.push_region(
                    memory.long(entry),
                    memory.long(entry + 8),
                    memory.word(entry + 16),
                );
            }
        }
    }

    /// Multiboot Specification 0.6.96, 3.3.
    fn read_multiboot(&mut self, memory: &impl Memory, at: u64) {
        self.protocol = Protocol::Multiboot;
        let flags = memory.word(at);
        if flags & 1 << 2 != 0 {
            self.set_command_line(memory, memory.word(at + 16).into());
        }
        if flags & 1 << 3 != 0 {
            let list = u64::from(memory.word(at + 24));
            for i in 0..u64::from(memory.word(at + 20).min(MAX_MODULES as u32 + 1)) {
                let start = memory.word(list + 16 * i);
                let end = memory.word(list + 16 * i + 4);
                self.push_module(start.into(), end.saturating_sub(start).into());
            }
        }
        if flags & 1 << 6 != 0 {
            let start = u64::from(memory.word(at + 48));
            let end = start + u64::from(memory.word(at + 44));
            let mut entry = start;
            // Each entry says how long it is, without the four bytes that say so.
            while entry < end && !self.truncated {
                self.push_region(
                    memory.long(entry + 4),
                    memory.long(entry + 12),
                    memory.word(entry + 20),
                );
                entry += u64::from(memory.word(entry)) + 4;
            }
        }
    }
}

/// Guest memory as the parsers see it.
trait Memory {
    fn word(&self, at: u64) -> u32;
    fn long(&self, at: u64) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }
    /// Copies a string that ends in a zero; its length, at most that of `to`.
    fn copy_string(&self, at: u64, to: &mut [u8]) -> usize;
}

/// The machine's own memory, identity-mapped below 4 GiB.
struct Physical;

impl Memory for Physical {
    fn word(&self, at: u64) -> u32 {
        // SAFETY: an address from the loader; if it is wrong, the read gives all-ones (nothing
        // there) or a page fault that ends the payload with an error.
        unsafe { (at as *const u32).read_unaligned() }
    }
    fn copy_string(&self, at: u64, to: &mut [u8]) -> usize {
        let left: usize;
        // SAFETY: as for `word`; reads up to the zero, at most `to.len()` bytes (which is not 0, so
        // the comparison sets ZF), DF clear. RCX is then what is left behind the zero.
        unsafe {
            core::arch::asm!(
                "repne scasb",
                "sete al",
                "movzx eax, al",
                "add rcx, rax",
                inout("rdi") at => _, inout("rcx") to.len() => left, inout("eax") 0 => _,
                options(nostack, readonly)
            );
        }
        let len = to.len() - left;
        // SAFETY: just read; `to` is the runtime's own, and not where the loader put the string.
        unsafe { core::ptr::copy_nonoverlapping(at as *const u8, to.as_mut_ptr(), len) };
        len
    }
}

struct Cell(UnsafeCell<Info>);

// SAFETY: written by `init` alone, before there is a second CPU or any reader.
unsafe impl Sync for Cell {}

static INFO: Cell = Cell(UnsafeCell::new(Info::EMPTY));

/// What the loader said.
pub fn info() -> &'static Info {
    // SAFETY: `init` is over before anything calls this.
    unsafe { &*INFO.0.get() }
}

/// EAX at the entry, from a multiboot loader.
const MULTIBOOT_MAGIC: u32 = 0x2bad_b002;
/// First word of `hvm_start_info`.
const PVH_MAGIC: u32 = 0x336e_c578;

pub(crate) fn init(magic: u32, at: u32) {
    // SAFETY: the one writer, and no reader yet.
    let info = unsafe { &mut *INFO.0.get() };
    let at = u64::from(at);
    if magic == MULTIBOOT_MAGIC {
        info.read_multiboot(&Physical, at);
    } else if Physical.word(at) == PVH_MAGIC {
        info.read_pvh(&Physical, at);
    } else {
        crate::report::error(format_args!(
            "started by neither multiboot (EAX {magic:#x}) nor PVH (no {PVH_MAGIC:#x} at {at:#x})"
        ));
    }
}

unsafe extern "C" {
    static rt_entry_tsc: u64;
    static rt_entry_state: EntryState;
}

/// The registers as the loader left them, noted by the first instructions of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // The registers they are named for.
pub struct EntryState {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u16,
    pub ds: u16,
    pub es: u16,
    pub ss: u16,
    pub fs: u16,
    pub gs: u16,
    /// The task register's selector.
    pub tr: u16,
    /// Zero.
    pub unused: u16,
}

const _: () = assert!(size_of::<EntryState>() == 120);

/// The registers as the loader left them.
pub fn entry_state() -> EntryState {
    // SAFETY: written once, before Rust code runs.
    unsafe { rt_entry_state }
}

/// The time-stamp counter as it was a few instructions after the payload was entered.
pub fn entry_tsc() -> u64 {
    // SAFETY: written once, before long mode.
    unsafe { rt_entry_tsc }
}

static PRINT_TSC: AtomicU64 = AtomicU64::new(0);

/// The time-stamp counter just before the first line was printed.
pub fn print_tsc() -> u64 {
    PRINT_TSC.load(Relaxed)
}

pub(crate) fn about_to_print() {
    PRINT_TSC.store(crate::time::rdtsc(), Relaxed);
}

/// The value of `key=value` on the command line; the first, if there are several.
pub fn argument(key: &str) -> Option<&'static str> {
    find_argument(info().command_line(), key)
}

fn find_argument<'a>(line: &'a [u8], key: &str) -> Option<&'a str> {
    let value = line.split(|&byte| byte == b' ').find_map(|word| {
        let value = word.strip_prefix(key.as_bytes())?;
        value.strip_prefix(b"=")
    })?;
    core::str::from_utf8(value).ok()
}

/// The number of `key=NUMBER` on the command line: decimal, or hexadecimal after `0x`. Ends the
/// payload with an error if there is something else.
pub fn number(key: &str) -> Option<u64> {
    let text = argument(key)?;
    match parse_number(text) {
        Some(number) => Some(number),
        None => crate::report::error(format_args!("{key}={text} on the command line: no number")),
    }
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Memory that starts at address 0x1000.
    struct Bytes(Vec<u8>);

    impl Memory for Bytes {
        fn word(&self, at: u64) -> u32 {
            let at = at as usize - 0x1000;
            u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
        }
        fn copy_string(&self, at: u64, to: &mut [u8]) -> usize {
            let from = &self.0[at as usize - 0x1000..];
            let len = from.iter().position(|&b| b == 0).unwrap().min(to.len());
            to[..len].copy_from_slice(&from[..len]);
            len
        }
    }

    impl Bytes {
        fn new() -> Bytes {
            Bytes(Vec::from([0; 4096]))
        }
        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.0[at - 0x1000..at - 0x1000 + bytes.len()].copy_from_slice(bytes);
        }
        fn put32(&mut self, at: usize, value: u32) {
            self.put(at, &value.to_le_bytes());
        }
        fn put64(&mut self, at: usize, value: u64) {
            self.put(at, &value.to_le_bytes());
        }
    }

    #[test]
    fn pvh_start_info_is_read() {
        let mut m = Bytes::new();
        m.put32(0x1000, PVH_MAGIC);
        m.put32(0x1004, 1);
        m.put32(0x100c, 1);
        m.put64(0x1010, 0x1100);
        m.put64(0x1018, 0x1200);
        m.put64(0x1020, 0xe_0000);
        m.put64(0x1028, 0x1300);
        m.put32(0x1030, 2);
        m.put64(0x1100, 0x20_0000);
        m.put64(0x1108, 77);
        m.put(0x1200, b"test=a b=0x10\0");
        m.put64(0x1308, 0x9_fc00);
        m.put32(0x1310, 1);
        m.put64(0x1318, 0xfffc_0000);
        m.put64(0x1320, 0x4_0000);
        m.put32(0x1328, 2);
        let mut info = Info::EMPTY;
        info.read_pvh(&m, 0x1000);
        assert_eq!(info.command_line(), b"test=a b=0x10");
        assert_eq!(info.modules(), [Module { start: 0x20_0000, len: 77 }]);
        assert_eq!(info.rsdp(), 0xe_0000);
        assert_eq!(info.regions().len(), 2);
        assert_eq!(info.regions()[1].end(), 0x1_0000_0000);
        assert_eq!(info.regions()[1].kind, Kind::Reserved);
        assert!(!info.truncated());
    }

    #[test]
    fn multiboot_info_is_read_and_overlong_maps_are_cut() {
        let mut m = Bytes::new();
        m.put32(0x1000, 1 << 2 | 1 << 6);
        m.put32(0x1010, 0x1200);
        m.put32(0x102c, 24 * 40);
        m.put32(0x1030, 0x1400);
        m.put(0x1200, b"file test=x\0");
        for i in 0..40 {
            m.put32(0x1400 + 24 * i, 20);
            m.put64(0x1404 + 24 * i, i as u64 * 0x1000);
            m.put64(0x140c + 24 * i, 0x1000);
            m.put32(0x1414 + 24 * i, 3);
        }
        let mut info = Info::EMPTY;
        info.read_multiboot(&m, 0x1000);
        assert_eq!(info.regions().len(), MAX_REGIONS);
        assert!(info.truncated());
        assert_eq!(info.regions()[5], Region { start: 0x5000, len: 0x1000, kind: Kind::Acpi });
        assert_eq!(find_argument(info.command_line(), "test"), Some("x"));
    }

    #[test]
    fn arguments_are_whole_words() {
        let line = b"file atest=1 test test=2 test=3";
        assert_eq!(find_argument(line, "test"), Some("2"));
        assert_eq!(find_argument(line, "tes"), None);
        assert_eq!(parse_number("0x1f"), Some(31));
        assert_eq!(parse_number("31"), Some(31));
        assert_eq!(parse_number("-1"), None);
    }
}
