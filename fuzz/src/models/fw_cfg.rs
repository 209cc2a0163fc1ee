//! fw_cfg, after QEMU's specification "Firmware Configuration (fw_cfg) Device" (docs/specs/fw_cfg.rst): the
//! items that it names, the selector, the data register, and DMA.
//!
//! What is the board's own: the selector takes 2 bytes at once and each half of the DMA address 4; every item
//! is read-only; a transfer is done wholly or not at all, and not if it would fill more than 1 MiB beyond an
//! item with zeroes.

use std::ops::Range;

use vmm::access::{Access, Dir, Size, Space};
use vmm::machine::Machine;
use vmm::script::replay::Touch;
use vmm::script::{BoardSpec, Op};

use super::{Byte, Model, Seen, same};

const BASE: u64 = 0x510;
/// The DMA address register begins there.
const HIGH: u64 = 0x514;
const LOW: u64 = 0x518;
const SIGNATURE: &[u8; 8] = b"QEMU CFG";
/// The most zeroes of a transfer.
const FILL: u64 = 1 << 20;
/// Bits of a descriptor's control field; the key to be selected is in its upper half.
const ERROR: u32 = 1;
const READ: u32 = 2;
const SKIP: u32 = 4;
const SELECT: u32 = 8;
const WRITE: u32 = 16;

/// A file of the directory.
struct File {
    name: &'static str,
    bytes: &'static [u8],
}

/// What target `fw-cfg` has there.
const FILES: &[File] = &[File { name: "opt/exitlab", bytes: &[0x5a; 300] }];

pub(super) struct FwCfg {
    cpus: u16,
    memory: u64,
    files: &'static [File],
    key: u16,
    /// Of the next byte; a key that has none gives zeroes.
    offset: u64,
    high: u64,
    /// The transfer that the operation starts: where its descriptor is, and that, if it is in memory.
    started: Option<(u64, Option<[u8; 16]>)>,
    /// Where the device may write: the answer, and the data.
    offered: [Range<u64>; 2],
}

impl FwCfg {
    pub(super) fn new(spec: &BoardSpec) -> FwCfg {
        let files = if spec.kind == "fw-cfg" { FILES } else { &[] };
        FwCfg {
            cpus: spec.cpus,
            memory: spec.memory,
            files,
            key: 0,
            offset: 0,
            high: 0,
            started: None,
            offered: [0..0, 0..0],
        }
    }

    /// How many bytes the selected item has.
    fn len(&self) -> u64 {
        match self.key {
            0x00 | 0x01 => 4,
            0x03 => 8,
            // The words that a PC's firmware has always asked for: no display, processors, APIC identifiers.
            0x04 | 0x05 | 0x0f => 2,
            0x19 => 4 + 64 * self.files.len() as u64,
            key => self.file(key).map_or(0, |file| file.bytes.len() as u64),
        }
    }

    fn file(&self, key: u16) -> Option<&File> {
        self.files.get(usize::from(key.checked_sub(0x20)?))
    }

    /// A byte of the selected item; 0 beyond its end.
    fn byte(&self, at: u64) -> u8 {
        let little = |value: u64| if at < self.len() { (value >> (8 * at)) as u8 } else { 0 };
        match self.key {
            0x00 => little(u32::from_le_bytes(*b"QEMU").into()),
            // The traditional interface, and DMA.
            0x01 => little(3),
            0x03 => little(self.memory),
            0x04 => little(1),
            0x05 | 0x0f => little(self.cpus.into()),
            0x19 if at < 4 => (self.files.len() as u32).to_be_bytes()[at as usize],
            // Size, key, two bytes that are reserved, and 56 of the name.
            0x19 => {
                let (entry, at) = ((at - 4) / 64, ((at - 4) % 64) as usize);
                let Some(file) = self.files.get(entry as usize) else { return 0 };
                match at {
                    0..4 => (file.bytes.len() as u32).to_be_bytes()[at],
                    4..6 => (0x20 + entry as u16).to_be_bytes()[at - 4],
                    6..8 => 0,
                    _ => file.name.as_bytes().get(at - 8).copied().unwrap_or(0),
                }
            }
            key => {
                let bytes = self.file(key).map_or(&[][..], |file| file.bytes);
                usize::try_from(at).ok().and_then(|at| bytes.get(at)).copied().unwrap_or(0)
            }
        }
    }

    fn select(&mut self, key: u16) {
        // Bit 14 was for writing.
        (self.key, self.offset) = (key & !0x4000, 0);
    }

    fn skip(&mut self, by: u64) {
        self.offset = (self.offset + by).min(self.len());
    }

    /// The access that starts a transfer, and the lower half of the address.
    fn start(access: Option<Access>) -> Option<u32> {
        match access? {
            Access { space: Space::Port, addr: LOW, size: Size::B4, dir: Dir::Write(value) } => {
                Some((value as u32).swap_bytes())
            }
            _ => None,
        }
    }

    /// What the descriptor asks for: an answer in its control field, and data.
    fn transfer(&mut self, seen: &Seen<'_>, at: u64, bytes: [u8; 16]) -> Result<u32, String> {
        let fields = u128::from_be_bytes(bytes);
        let control = (fields >> 96) as u32;
        let (length, address) = ((fields >> 64) as u64 & 0xffff_ffff, fields as u64);
        if control & SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & READ != 0 {
            let from = self.offset;
            let fill = length.saturating_sub(self.len().saturating_sub(from));
            if fill > FILL || length > 0 && !seen.machine.ram().contains(address, length) {
                return Ok(ERROR);
            }
            self.offered[1] = address..address + length;
            self.skip(length);
            if !seen.is_racing {
                self.arrived(seen, from, at)?;
            }
        } else if control & WRITE != 0 {
            return Ok(ERROR);
        } else if control & SKIP != 0 {
            self.skip(length);
        }
        Ok(0)
    }

    /// Whether the data is there, but for where the answer came over it.
    fn arrived(&self, seen: &Seen<'_>, from: u64, answer: u64) -> Result<(), String> {
        let Range { start, end } = self.offered[1];
        let (mut page, mut at) = ([0; 4096], start);
        while at < end {
            let part = &mut page[..(end - at).min(4096) as usize];
            // It is RAM.
            let _ = seen.machine.ram().peek(at, part);
            for (place, &got) in (at..).zip(&*part) {
                let is = self.byte(from + (place - start));
                if got != is && place.wrapping_sub(answer) >= 4 {
                    return Err(format!("byte {place:#x} of a transfer is {is:#x}, not {got:#x}"));
                }
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    fn run(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Some((at, descriptor)) = self.started.take() else { return Ok(()) };
        let answer = match descriptor {
            Some(bytes) => self.transfer(seen, at, bytes)?,
            None => ERROR,
        };
        self.offered[0] = at..at.saturating_add(4);
        let mut told = [0; 4];
        match seen.machine.ram().peek(at, &mut told).map(|()| u32::from_be_bytes(told)) {
            Ok(told) if told != answer && !seen.is_racing => {
                Err(format!("it answers {told:#x} at {at:#x}, not {answer:#x}"))
            }
            _ => Ok(()),
        }
    }

    fn access(&mut self, seen: &Seen<'_>, access: Access) -> Result<(), String> {
        match access {
            Access { addr: BASE, size, dir, .. } if size != Size::B1 => {
                if let Dir::Write(value) = dir {
                    self.select(value as u16);
                }
            }
            Access { addr: HIGH, size: Size::B4, dir: Dir::Write(value), .. } => {
                self.high = u64::from((value as u32).swap_bytes());
            }
            _ => {
                for (offset, byte) in seen.bytes(BASE, 12) {
                    match (offset, byte) {
                        (1, Byte::Read(got)) => {
                            same("the data register", got, self.byte(self.offset))?;
                            self.skip(1);
                        }
                        (4.., Byte::Read(got)) => {
                            let is = SIGNATURE[offset as usize - 4];
                            same("a byte of the DMA address register", got, is)?;
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }
}

impl Model for FwCfg {
    fn before(&mut self, op: &Op, machine: &Machine) {
        self.offered = [0..0, 0..0];
        let low = FwCfg::start(super::access(op));
        self.started = low.map(|low| {
            let at = self.high << 32 | u64::from(low);
            let mut bytes = [0; 16];
            (at, machine.ram().peek(at, &mut bytes).ok().map(|()| bytes))
        });
    }

    fn step(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen.access {
            access if FwCfg::start(access).is_some() => {
                self.high = 0;
                return self.run(seen);
            }
            Some(access) if access.space == Space::Port => self.access(seen, access)?,
            _ if *seen.op == Op::Reset => (self.key, self.offset, self.high) = (0, 0, 0),
            _ => {}
        }
        Ok(())
    }

    fn offers(&self, touch: &Touch) -> bool {
        let inside = |place: &Range<u64>| {
            let offset = touch.addr.wrapping_sub(place.start);
            let len = place.end - place.start;
            touch.addr >= place.start && offset <= len && touch.len <= len - offset
        };
        self.offered.iter().any(inside)
    }
}
