//! The firmware configuration device, by QEMU's specification "Firmware Configuration (fw_cfg)
//! Device": how a guest's firmware, and many a test, learns what machine it is on.
//!
//! A guest selects an item by its key and reads it byte by byte, or has it copied by DMA. The
//! board adds the items when it is built; to the guest they are read-only. They are configuration
//! and no state: what is saved is where the guest is reading.
//!
//! DMA differs from QEMU in two ways, so that one access is bounded work: a transfer is done
//! wholly or not at all, and one that would fill more than [`MAX_FILL`] bytes past an item's end
//! with zeroes is answered with the error bit.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::access::{IoError, Size, Space};
use crate::device::{At, Device, Env, Region, StateError};
use crate::planted::{self, Flaw};
use crate::state;

/// Where PCs have the selector and, one byte on, the data register.
pub const SELECTOR_PORT: u64 = 0x510;
/// Where PCs have the DMA address register.
pub const DMA_PORT: u64 = 0x514;
/// The most bytes of a DMA read that may lie past the end of the item, where zeroes are.
pub const MAX_FILL: u32 = 1 << 20;
/// The most files that the directory has room for.
pub const MAX_FILES: usize = 1024;
/// The longest name of a file, in bytes.
pub const MAX_NAME: usize = 55;

/// Keys of items that have a meaning of their own. The file directory's and those below are the
/// device's; the rest is the board's to fill.
pub mod key {
    /// `QEMU`, the four bytes that say that the device is there.
    pub const SIGNATURE: u16 = 0x00;
    /// Features of the device, a little-endian u32.
    pub const ID: u16 = 0x01;
    /// UUID of the machine, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// Bytes of RAM, a little-endian u64.
    pub const RAM_SIZE: u16 = 0x03;
    /// 1 if the machine has no display, a little-endian u16.
    pub const NO_GRAPHIC: u16 = 0x04;
    /// Processors that are there at the start, a little-endian u16.
    pub const CPUS: u16 = 0x05;
    /// One more than the highest APIC ID that there will ever be, a little-endian u16.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The directory of files.
    pub const FILE_DIR: u16 = 0x19;
    /// The first key of a file.
    pub const FILE_FIRST: u16 = 0x20;
    /// The first of the keys that an architecture has for itself.
    pub const ARCH_FIRST: u16 = 0x8000;
}

/// A key's bit that once meant writing; it is no part of the key.
const KEY_WRITE: u16 = 0x4000;
const SIGNATURE: &[u8; 4] = b"QEMU";
/// What the DMA address register reads as, first byte first.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// The traditional interface (bit 0), and DMA (bit 1).
const FEATURES: u32 = 0b11;

/// Bits of a DMA descriptor's control word.
mod dma {
    pub const ERROR: u32 = 1 << 0;
    pub const READ: u32 = 1 << 1;
    pub const SKIP: u32 = 1 << 2;
    pub const SELECT: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
}

/// Why an item could not be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// The key is the device's own or a file's.
    #[error(
        "fw_cfg item {0:#x}: that key is the device's own or no key; use one below 0x20 \
         or from 0x8000 to 0xbfff, or add a file"
    )]
    Reserved(u16),
    /// There is such an item.
    #[error("fw_cfg item {0:#x} is there already; add it once")]
    Twice(u16),
    /// There is such a file.
    #[error("fw_cfg file `{0}` is there already; choose another name")]
    FileTwice(String),
    /// The name is not one that the directory can hold.
    #[error(
        "fw_cfg file `{0}`: a name has 1 to 55 printable ASCII characters and no space; \
         choose another"
    )]
    Name(String),
    /// The contents are 4 GiB or longer.
    #[error("fw_cfg item `{what}` of {len} bytes: must be shorter than 4 GiB; leave some out")]
    Long {
        /// The key or the name.
        what: String,
        /// Length in bytes.
        len: u64,
    },
    /// The directory is full.
    #[error("fw_cfg file `{0}`: the directory holds {MAX_FILES} files at most; leave one out")]
    Full(String),
}

/// What every machine tells its firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    /// Bytes of RAM.
    pub ram_size: u64,
    /// Processors at the start.
    pub cpus: u16,
    /// One more than the highest APIC ID that there will ever be.
    pub max_cpus: u16,
    /// Whether the machine has a display; without one, firmware talks to the serial port.
    pub display: bool,
    /// The machine's UUID, if it has one.
    pub uuid: Option<[u8; 16]>,
}

struct Item {
    key: u16,
    bytes: Vec<u8>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: {} bytes", self.key, self.bytes.len())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Regs {
    selector: u16,
    /// Where in the selected item the next byte is; at most its length.
    offset: u32,
    /// The upper half of the DMA address, in wait for the lower one.
    dma_high: u32,
}

/// The firmware configuration device.
#[derive(Debug)]
pub struct FwCfg {
    /// In the order of their keys.
    items: Vec<Item>,
    names: Vec<String>,
    regs: Regs,
}

impl FwCfg {
    /// Its regions: selector and data register, and the DMA address register.
    pub const REGIONS: [Region; 2] = [
        Region { name: "fw-cfg", space: Space::Port, len: 2, widest: Size::B2 },
        Region { name: "fw-cfg-dma", space: Space::Port, len: 8, widest: Size::B4 },
    ];

    /// A device with its own items and those in `standard`, and an empty directory.
    pub fn new(standard: &Standard) -> FwCfg {
        let Standard { ram_size, cpus, max_cpus, display, uuid } = *standard;
        let mut cfg = FwCfg { items: Vec::new(), names: Vec::new(), regs: Regs::default() };
        cfg.insert(key::SIGNATURE, SIGNATURE.to_vec());
        cfg.insert(key::ID, FEATURES.to_le_bytes().to_vec());
        if let Some(uuid) = uuid {
            cfg.insert(key::UUID, uuid.to_vec());
        }
        cfg.insert(key::RAM_SIZE, ram_size.to_le_bytes().to_vec());
        cfg.insert(key::NO_GRAPHIC, u16::from(!display).to_le_bytes().to_vec());
        cfg.insert(key::CPUS, cpus.to_le_bytes().to_vec());
        cfg.insert(key::MAX_CPUS, max_cpus.to_le_bytes().to_vec());
        cfg.insert(key::FILE_DIR, 0u32.to_be_bytes().to_vec());
        cfg
    }

    fn place(&self, key: u16) -> Result<usize, usize> {
        self.items.binary_search_by_key(&key, |item| item.key)
    }

    fn insert(&mut self, key: u16, bytes: Vec<u8>) {
        if let Err(at) = self.place(key) {
            self.items.insert(at, Item { key, bytes });
        }
    }

    /// Adds an item under a key of its own: one below 0x20, or one of the architecture's.
    ///
    /// # Errors
    /// When the key is taken or not the board's to give, or the item is 4 GiB or longer.
    pub fn add(&mut self, key: u16, bytes: impl Into<Vec<u8>>) -> Result<(), FwCfgError> {
        let bytes = bytes.into();
        if key & KEY_WRITE != 0 || (key::FILE_FIRST..key::ARCH_FIRST).contains(&key) {
            return Err(FwCfgError::Reserved(key));
        }
        if self.place(key).is_ok() {
            return Err(FwCfgError::Twice(key));
        }
        length(&bytes, || format!("{key:#x}"))?;
        self.insert(key, bytes);
        Ok(())
    }

    /// Adds a file to the directory: `etc/acpi/tables`, `opt/org.example/config`.
    ///
    /// # Errors
    /// When the name is taken or none, or there is no room for such a file.
    pub fn add_file(&mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Result<(), FwCfgError> {
        let bytes = bytes.into();
        let printable = name.bytes().all(|b| b.is_ascii_graphic());
        if name.is_empty() || name.len() > MAX_NAME || !printable {
            return Err(FwCfgError::Name(name.to_owned()));
        }
        if self.names.iter().any(|n| n == name) {
            return Err(FwCfgError::FileTwice(name.to_owned()));
        }
        if self.names.len() == MAX_FILES {
            return Err(FwCfgError::Full(name.to_owned()));
        }
        let size = length(&bytes, || name.to_owned())?;
        let file = key::FILE_FIRST + self.names.len() as u16;
        self.insert(file, bytes);
        self.names.push(name.to_owned());
        // An entry: size, key, 2 reserved bytes, name and zeroes, 64 bytes in all.
        let mut entry = [0; 64];
        entry[..4].copy_from_slice(&size.to_be_bytes());
        entry[4..6].copy_from_slice(&file.to_be_bytes());
        entry[8..8 + name.len()].copy_from_slice(name.as_bytes());
        if let Ok(at) = self.place(key::FILE_DIR) {
            let directory = &mut self.items[at].bytes;
            directory[..4].copy_from_slice(&(self.names.len() as u32).to_be_bytes());
            directory.extend_from_slice(&entry);
        }
        Ok(())
    }

    /// The item with this key; empty if there is none.
    fn item(&self, key: u16) -> &[u8] {
        self.place(key).map_or(&[], |at| &self.items[at].bytes)
    }

    /// What is left of the selected item.
    fn rest(&self) -> &[u8] {
        self.item(self.regs.selector).get(self.regs.offset as usize..).unwrap_or(&[])
    }

    fn select(&mut self, key: u16) {
        self.regs.selector = key & !KEY_WRITE;
        self.regs.offset = 0;
    }

    /// The next byte; 0 past the end.
    fn next_byte(&mut self) -> u8 {
        if planted::has(Flaw::FwCfgByte) {
            let byte = self.item(self.regs.selector)[self.regs.offset as usize];
            self.regs.offset += 1;
            return byte;
        }
        match self.rest().first().copied() {
            Some(byte) => {
                self.regs.offset += 1;
                byte
            }
            None => 0,
        }
    }

    /// Does what the descriptor at guest-physical `at` says, and answers in its control word.
    fn run_dma(&mut self, env: &mut Env<'_>, at: u64) {
        let mut descriptor = [0; 16];
        let done = match env.ram.read(at, &mut descriptor) {
            Ok(()) => self.transfer(env, &descriptor),
            Err(_) => Err(()),
        };
        let answer = if done.is_ok() { 0 } else { dma::ERROR };
        // Where even the answer cannot be written, there is nobody to tell.
        let _ = env.ram.write(at, &answer.to_be_bytes());
    }

    fn transfer(&mut self, env: &mut Env<'_>, descriptor: &[u8; 16]) -> Result<(), ()> {
        let descriptor = u128::from_be_bytes(*descriptor);
        let control = (descriptor >> 96) as u32;
        let (length, address) = ((descriptor >> 64) as u32, descriptor as u64);
        if control & dma::SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let rest = self.rest();
        let part = rest.len().min(length as usize);
        if control & dma::READ != 0 {
            let mut fill = length as usize - part;
            let fits = length == 0 || env.ram.contains(address, length.into());
            if !fits || fill > MAX_FILL as usize {
                return Err(());
            }
            env.ram.write(address, &rest[..part]).map_err(drop)?;
            if planted::has(Flaw::FwCfgFill) && fill > 0 {
                fill = fill.next_multiple_of(4);
            }
            let mut at = address + part as u64;
            while fill > 0 {
                let zeroes = [0; 4096];
                let chunk = fill.min(zeroes.len());
                env.ram.write(at, &zeroes[..chunk]).map_err(drop)?;
                at += chunk as u64;
                fill -= chunk;
            }
        } else if control & dma::WRITE != 0 {
            // Every item is read-only.
            return if planted::has(Flaw::FwCfgWrite) { Ok(()) } else { Err(()) };
        } else if control & dma::SKIP == 0 {
            return Ok(());
        }
        let far = control & dma::SKIP != 0 && planted::has(Flaw::FwCfgSkip);
        self.regs.offset += if far { length } else { part as u32 };
        Ok(())
    }
}

fn length(bytes: &[u8], what: impl FnOnce() -> String) -> Result<u32, FwCfgError> {
    let len = bytes.len() as u64;
    u32::try_from(len).map_err(|_| FwCfgError::Long { what: what(), len })
}

impl Device for FwCfg {
    fn name(&self) -> &'static str {
        "fw-cfg"
    }

    fn regions(&self) -> &'static [Region] {
        &FwCfg::REGIONS
    }

    fn read(&mut self, _env: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match (at.region, at.offset, size) {
            (0, 1, Size::B1) => Ok(self.next_byte().into()),
            (0, 0, _) => Err(IoError::WriteOnly),
            (0, 1, _) => Err(IoError::Width),
            (1, 0..8, _) => {
                let bytes = &DMA_SIGNATURE[at.offset as usize..];
                let bytes = bytes.get(..size.bytes() as usize).ok_or(IoError::Width)?;
                Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
            }
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match (at.region, at.offset, size) {
            (0, 0, Size::B2) => self.select(value as u16),
            // Writing items by this register was taken out of the interface.
            (0, 1, Size::B1) => return Err(IoError::ReadOnly),
            (0, 0..2, _) => return Err(IoError::Width),
            // The register is big-endian, and its lower half starts the transfer.
            (1, 0, Size::B4) => self.regs.dma_high = (value as u32).swap_bytes(),
            (1, 4, Size::B4) => {
                let high = u64::from(std::mem::take(&mut self.regs.dma_high));
                self.run_dma(env, high << 32 | u64::from((value as u32).swap_bytes()));
            }
            (1, 0..8, _) => return Err(IoError::Width),
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }

    fn reset(&mut self, _env: &mut Env<'_>) {
        let FwCfg { items: _, names: _, regs } = self;
        *regs = Regs::default();
    }

    fn save(&self) -> Vec<u8> {
        let FwCfg { items: _, names: _, regs } = self;
        state::encode(regs)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let regs: Regs = state::decode("fw-cfg", bytes)?;
        let len = self.item(regs.selector).len();
        let what = if regs.selector & KEY_WRITE != 0 {
            format!("{:#x} is no key", regs.selector)
        } else if regs.offset as usize > len {
            let Regs { selector, offset, .. } = regs;
            format!("reads byte {offset} of item {selector:#x}, which has {len} bytes here")
        } else {
            self.regs = regs;
            return Ok(());
        };
        Err(StateError { device: "fw-cfg", what })
    }
}

#[cfg(test)]
mod tests;
