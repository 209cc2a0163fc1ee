//! The edu device: registers, an interrupt and a DMA engine, for those who learn to write drivers.
//!
//! After QEMU's description of it (docs/specs/edu.rst). One memory BAR of 1 MiB:
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | identification |
//! | 0x04 | liveness: reads as the complement of what was written |
//! | 0x08 | factorial: reads as the factorial of what was written, modulo 2^32 |
//! | 0x20 | status: an interrupt follows a factorial |
//! | 0x24 | causes of the interrupt |
//! | 0x60, 0x64 | raises and acknowledges causes |
//! | 0x80, 0x88, 0x90 | DMA source, destination and length |
//! | 0x98 | DMA command |
//!
//! Below 0x80 a register takes 4 bytes, above 4 or 8. A factorial is there at once: of 34 and above it
//! is 0. The data of a DMA transfer moves when it is started; the engine is busy for [`BUSY`] all the
//! same. A transfer that is not wholly inside the engine's buffer, or that memory does not take, moves
//! nothing. Addresses have 28 bits.

use serde::{Deserialize, Serialize};

use super::config::{Bar, Config, Placement, Registers, Shape};
use super::memory::BusMemory;
use super::{CONFIG, config_region};
use crate::access::{IoError, Size, Space};
use crate::device::{At, Device, Env, Nanos, Region, StateError};
use crate::planted::{self, Flaw};
use crate::state::{decode, encode, used};

/// How long the DMA engine is busy with a transfer, in nanoseconds.
pub const BUSY: Nanos = 100_000;
/// Where the engine's buffer begins, as the engine sees it.
pub const BUFFER: u64 = 0x4_0000;
/// Its length in bytes.
pub const BUFFER_BYTES: usize = 4096;

/// Registers.
pub mod reg {
    /// Identification.
    pub const ID: u64 = 0x00;
    /// Liveness.
    pub const ALIVE: u64 = 0x04;
    /// Factorial.
    pub const FACTORIAL: u64 = 0x08;
    /// Status.
    pub const STATUS: u64 = 0x20;
    /// Causes of the interrupt.
    pub const CAUSES: u64 = 0x24;
    /// Raises causes.
    pub const RAISE: u64 = 0x60;
    /// Acknowledges causes.
    pub const ACKNOWLEDGE: u64 = 0x64;
    /// DMA source.
    pub const SOURCE: u64 = 0x80;
    /// DMA destination.
    pub const DESTINATION: u64 = 0x88;
    /// DMA length.
    pub const LENGTH: u64 = 0x90;
    /// DMA command.
    pub const COMMAND: u64 = 0x98;
}

/// Version 1.0.
const ID: u32 = 0x0100_00ed;
/// Status: an interrupt follows a factorial.
const FACTORIAL_INTERRUPT: u32 = 0x80;
/// The cause that a factorial has, and that of a transfer.
const CAUSE_FACTORIAL: u32 = 0x1;
const CAUSE_TRANSFER: u32 = 0x100;
/// Bits of the DMA command: start, from the buffer to memory, an interrupt follows.
const START: u32 = 1;
const TO_MEMORY: u32 = 2;
const TRANSFER_INTERRUPT: u32 = 4;
/// The address bits that the engine has.
const ADDRESS_BITS: u64 = (1 << 28) - 1;

const NAME: &str = "edu";
const BAR: Bar = Bar::Memory32(1 << 20);

/// What it is on the bus.
pub static SHAPE: Shape = Shape {
    name: NAME,
    id: (0x1234, 0x11e8),
    revision: 0x10,
    class: 0xff_0000,
    bars: &[(0, BAR)],
    interrupt: true,
    master: true,
    messages: Some(0),
};

const REGIONS: &[Region] = &[
    config_region("edu-config"),
    Region { name: "edu", space: Space::Mmio, len: BAR.len(), widest: Size::B8 },
];

/// The device.
#[derive(Clone)]
pub struct Edu {
    config: Config,
    memory: BusMemory,
    regs: Regs,
    buffer: Box<[u8; BUFFER_BYTES]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Regs {
    alive: u32,
    factorial: u32,
    status: u32,
    causes: u32,
    source: u64,
    destination: u64,
    length: u64,
    /// Bit 0 says that the engine is busy.
    command: u32,
    /// Until when.
    busy: Option<Nanos>,
}

/// The saved form.
#[derive(Serialize, Deserialize)]
struct Saved {
    config: Registers,
    regs: Regs,
    /// The buffer up to its last byte that is not 0.
    buffer: Vec<u8>,
}

/// The factorial of `n`, modulo 2^32. From 34 on it has 32 factors of 2.
fn factorial(n: u32) -> u32 {
    match n {
        _ if planted::has(Flaw::EduFactorial) => {
            (1..=n).fold(1u32, |f, n| std::hint::black_box(f).wrapping_mul(n))
        }
        0 if planted::has(Flaw::EduZero) => 0,
        0..34 => (1..=n).fold(1u32, u32::wrapping_mul),
        34.. => 0,
    }
}

impl Edu {
    /// The device after power-on, as firmware leaves it. Its transfers go to `memory`.
    pub fn new(memory: BusMemory, placement: Placement) -> Edu {
        let config = Config::new(&SHAPE, placement);
        Edu { config, memory, regs: Regs::default(), buffer: Box::new([0; BUFFER_BYTES]) }
    }

    fn raise(&mut self, env: &mut Env<'_>, causes: u32) {
        self.regs.causes |= causes;
        if self.regs.causes != 0 {
            self.config.message(env, 0);
        }
    }

    /// Ends the transfer that is over.
    fn catch_up(&mut self, env: &mut Env<'_>) {
        if self.regs.busy.is_some_and(|until| until <= env.now()) {
            self.regs.busy = None;
            self.regs.command &= !START;
            if self.regs.command & TRANSFER_INTERRUPT != 0 {
                self.raise(env, CAUSE_TRANSFER);
            }
        }
    }

    /// What `at` in the buffer and the transfer's length are as a range of it.
    fn range(&self, at: u64) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(at.checked_sub(BUFFER)?).ok()?;
        let length = usize::try_from(self.regs.length).ok()?;
        let end = match planted::has(Flaw::EduWrap) {
            true => start + length,
            false => start.checked_add(length)?,
        };
        (end <= BUFFER_BYTES || planted::has(Flaw::EduBounds)).then_some(start..end)
    }

    fn transfer(&mut self, env: &mut Env<'_>) {
        self.regs.busy = Some(env.now().saturating_add(BUSY));
        let Regs { source, destination, command, .. } = self.regs;
        let (inside, memory) = match command & TO_MEMORY {
            0 => (destination, source),
            _ => (source, destination),
        };
        let Some(range) = self.range(inside).filter(|_| self.config.is_master()) else { return };
        let address = memory & ADDRESS_BITS;
        // What memory does not take is lost on the bus; the device does not hear of it.
        let _ = match command & TO_MEMORY {
            0 => self.memory.read(env, address, &mut self.buffer[range]),
            _ => self.memory.write(env, address, &self.buffer[range]),
        };
    }

    fn read_register(&self, offset: u64, size: Size) -> Result<u64, IoError> {
        let Regs { alive, factorial, status, causes, .. } = self.regs;
        if let Some((value, shift)) = self.wide(offset) {
            return match size {
                Size::B4 => Ok(value >> shift & 0xffff_ffff),
                Size::B8 if shift == 0 => Ok(value),
                _ => Err(IoError::Width),
            };
        }
        let value = match offset {
            reg::ID => ID,
            reg::ALIVE => alive,
            reg::FACTORIAL => factorial,
            reg::STATUS => status,
            reg::CAUSES => causes,
            reg::RAISE | reg::ACKNOWLEDGE => return Err(IoError::WriteOnly),
            _ => return Err(IoError::NoRegister),
        };
        if size == Size::B4 { Ok(value.into()) } else { Err(IoError::Width) }
    }

    /// The DMA register that a dword belongs to, and how far up that is.
    fn wide(&self, offset: u64) -> Option<(u64, u32)> {
        let value = match offset & !4 {
            reg::SOURCE => self.regs.source,
            reg::DESTINATION => self.regs.destination,
            reg::LENGTH => self.regs.length,
            reg::COMMAND => self.regs.command.into(),
            _ => return None,
        };
        Some((value, if offset & 4 == 0 { 0 } else { 32 }))
    }

    fn write_register(
        &mut self,
        env: &mut Env<'_>,
        offset: u64,
        size: Size,
        value: u64,
    ) -> Result<(), IoError> {
        if let Some((old, shift)) = self.wide(offset) {
            let value = match size {
                Size::B4 => old & !(0xffff_ffff << shift) | value << shift,
                Size::B8 if shift == 0 && planted::has(Flaw::EduHalf) => value | value << 32,
                Size::B8 if shift == 0 => value,
                _ => return Err(IoError::Width),
            };
            if self.regs.command & START != 0 {
                return Err(IoError::Disabled);
            }
            match offset & !4 {
                reg::SOURCE => self.regs.source = value,
                reg::DESTINATION => self.regs.destination = value,
                reg::LENGTH => self.regs.length = value,
                _ => {
                    self.regs.command = value as u32 & (START | TO_MEMORY | TRANSFER_INTERRUPT);
                    if self.regs.command & START != 0 {
                        self.transfer(env);
                    }
                }
            }
            return Ok(());
        }
        let known = [reg::ALIVE, reg::FACTORIAL, reg::STATUS, reg::RAISE, reg::ACKNOWLEDGE];
        match offset {
            reg::ID | reg::CAUSES => return Err(IoError::ReadOnly),
            _ if !known.contains(&offset) => return Err(IoError::NoRegister),
            _ if size != Size::B4 => return Err(IoError::Width),
            _ => {}
        }
        let value = value as u32;
        match offset {
            reg::ALIVE => self.regs.alive = !value,
            reg::FACTORIAL => {
                self.regs.factorial = factorial(value);
                if self.regs.status & FACTORIAL_INTERRUPT != 0 {
                    self.raise(env, CAUSE_FACTORIAL);
                }
            }
            reg::STATUS if planted::has(Flaw::EduStatus) => {
                self.regs.status |= value & FACTORIAL_INTERRUPT;
            }
            reg::STATUS => self.regs.status = value & FACTORIAL_INTERRUPT,
            reg::RAISE => self.raise(env, value),
            _ => self.regs.causes &= !value,
        }
        Ok(())
    }
}

impl std::fmt::Debug for Edu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Edu { config, memory: _, regs, buffer: _ } = self;
        f.debug_struct("Edu").field("config", config).field("regs", regs).finish_non_exhaustive()
    }
}

impl Device for Edu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn regions(&self) -> &'static [Region] {
        REGIONS
    }

    fn read(&mut self, env: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        self.catch_up(env);
        match at.region {
            CONFIG => self.config.read(at.offset, size, self.regs.causes != 0),
            1 => self.read_register(at.offset, size),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        self.catch_up(env);
        match at.region {
            CONFIG => self.config.write(env, at.offset, size, value),
            1 => self.write_register(env, at.offset, size, value),
            _ => Err(IoError::NoRegister),
        }
    }

    fn irq(&self) -> bool {
        self.config.pin(self.regs.causes != 0)
    }

    fn base(&self, region: u8) -> Option<u64> {
        self.config.base(usize::from(region.checked_sub(1)?))
    }

    fn deadline(&self) -> Option<Nanos> {
        self.regs.busy
    }

    fn advance(&mut self, env: &mut Env<'_>) {
        self.catch_up(env);
    }

    fn reset(&mut self, env: &mut Env<'_>) {
        self.catch_up(env);
        let Edu { config, memory: _, regs, buffer } = self;
        config.reset();
        let busy = regs.busy.filter(|_| planted::has(Flaw::EduBusy));
        *regs = Regs { busy, ..Regs::default() };
        buffer.fill(0);
    }

    fn save(&self) -> Vec<u8> {
        let Edu { config, memory: _, regs, buffer } = self;
        let used = match planted::has(Flaw::EduBuffer) {
            true => buffer.iter().position(|&byte| byte == 0).unwrap_or(BUFFER_BYTES),
            false => used(&buffer[..]),
        };
        let config = config.registers().clone();
        encode(&Saved { config, regs: regs.clone(), buffer: buffer[..used].to_vec() })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let Saved { config, regs, buffer } = decode(NAME, state)?;
        let error = |what: &str| Err(StateError { device: NAME, what: what.to_owned() });
        self.config.check(&config)?;
        if buffer.len() > BUFFER_BYTES || buffer.last() == Some(&0) {
            return error("a buffer that is too long, or ends in 0");
        }
        if regs.status & !FACTORIAL_INTERRUPT != 0
            || regs.command & !(START | TO_MEMORY | TRANSFER_INTERRUPT) != 0
            || regs.busy.is_some() != (regs.command & START != 0)
        {
            return error("registers with bits that do not exist, or an engine half busy");
        }
        self.config.set_registers(config);
        self.regs = regs;
        self.buffer.fill(0);
        self.buffer[..buffer.len()].copy_from_slice(&buffer);
        Ok(())
    }
}

#[cfg(test)]
#[path = "edu/tests.rs"]
mod tests;
