//! The configuration space of a function: a header of type 0 and a list of capabilities.
//!
//! After the PCI Local Bus Specification 3.0, chapter 6: the header in 6.1, command and status in
//! 6.2.2 and 6.2.3, base addresses in 6.2.5.1, capabilities in 6.7, messages in 6.8.
//!
//! What the specification lets a function leave out reads 0: cache line size, latency timer, built-in
//! self test, parity, an expansion ROM. A write there is taken and changes nothing (6.1).

use serde::{Deserialize, Serialize};

use super::CONFIG_BYTES;
use super::msi::Msi;
use crate::access::{IoError, Size, Space};
use crate::device::{Action, Env, StateError};
use crate::planted::{self, Flaw};

/// Offset of the command register.
pub const COMMAND: u64 = 0x04;
/// Offset of the first base address register.
pub const BARS: u64 = 0x10;
/// Offset of the interrupt line register.
pub const LINE: u64 = 0x3c;
/// Where the first capability stands.
pub const CAPABILITIES: u64 = 0x40;

/// Bits of the command register (6.2.2).
pub mod command {
    /// The function's ports are decoded.
    pub const IO: u16 = 1 << 0;
    /// The function's memory is decoded.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may access memory and send messages.
    pub const MASTER: u16 = 1 << 2;
    /// The function does not assert its interrupt pin.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of the status register (6.2.3).
pub mod status {
    /// The function has an interrupt that its pin would tell.
    pub const INTERRUPT: u16 = 1 << 3;
    /// There is a list of capabilities.
    pub const CAPABILITIES: u16 = 1 << 4;
}

/// What one base address register claims. Lengths are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Ports; 4 at least.
    Io(u32),
    /// Memory below 4 GiB; 16 bytes at least.
    Memory32(u32),
    /// Memory anywhere; 16 bytes at least. It takes the next register, too.
    Memory64(u64),
}

impl Bar {
    /// Its length, in bytes.
    pub const fn len(self) -> u64 {
        match self {
            Bar::Io(len) | Bar::Memory32(len) => len as u64,
            Bar::Memory64(len) => len,
        }
    }

    /// Whether it claims nothing: never, for a BAR that is one.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Which address space it lies in.
    pub const fn space(self) -> Space {
        match self {
            Bar::Io(_) => Space::Port,
            Bar::Memory32(_) | Bar::Memory64(_) => Space::Mmio,
        }
    }

    /// The bits that say what it is.
    const fn kind(self) -> u64 {
        match self {
            Bar::Io(_) => 0b01,
            Bar::Memory32(_) => 0b000,
            Bar::Memory64(_) => 0b100,
        }
    }

    /// The bits that an address has.
    const fn mask(self) -> u64 {
        match self {
            Bar::Memory64(len) => !(len - 1),
            _ => !(self.len() - 1) & 0xffff_ffff,
        }
    }
}

/// What of a function is in its silicon.
#[derive(Debug)]
pub struct Shape {
    /// The name of the function, for errors.
    pub name: &'static str,
    /// Who made it, and which it is.
    pub id: (u16, u16),
    /// Which edition.
    pub revision: u8,
    /// Base class, sub-class and programming interface, as in the upper 24 bits of offset 8.
    pub class: u32,
    /// What its base address registers claim, each with the register's number (0 to 5).
    pub bars: &'static [(u8, Bar)],
    /// Whether it has an interrupt; its pin is INTA#.
    pub interrupt: bool,
    /// Whether it accesses memory by itself.
    pub master: bool,
    /// Message-signalled interrupts: how many messages it can send, as the binary logarithm (0 to
    /// [`Msi::MOST`]).
    pub messages: Option<u8>,
}

impl Shape {
    /// The bits of the command register that can be written.
    fn command_bits(&self) -> u16 {
        let has = |space: Space| self.bars.iter().any(|(_, bar)| bar.space() == space);
        let bit = |there: bool, bit: u16| if there { bit } else { 0 };
        bit(has(Space::Port), command::IO)
            | bit(has(Space::Mmio), command::MEMORY)
            | bit(self.master, command::MASTER)
            | bit(self.interrupt, command::INTX_DISABLE)
    }
}

/// How firmware left a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Where each of its base addresses lies, in their order.
    pub bases: Vec<u64>,
    /// Its interrupt line register.
    pub line: u8,
}

impl Placement {
    /// A place for each BAR in windows of ports and memory that begin at `ports` and `memory` and are
    /// moved on past what is taken. BARs lie at multiples of their length (6.2.5.1).
    pub fn assign(shape: &Shape, line: u8, ports: &mut u64, memory: &mut u64) -> Placement {
        let place = |(_, bar): &(u8, Bar)| {
            let next = match bar.space() {
                Space::Port => &mut *ports,
                Space::Mmio => &mut *memory,
            };
            let base = next.next_multiple_of(bar.len());
            *next = base + bar.len();
            base
        };
        Placement { bases: shape.bars.iter().map(place).collect(), line }
    }
}

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    command: u16,
    /// The address of each BAR, in their order.
    bases: Vec<u64>,
    line: u8,
    msi: Msi,
}

/// A configuration space.
#[derive(Clone, Debug)]
pub struct Config {
    shape: &'static Shape,
    placement: Placement,
    regs: Registers,
}

impl Config {
    /// The configuration space of a function as firmware leaves it.
    pub fn new(shape: &'static Shape, placement: Placement) -> Config {
        let regs = Registers::new(shape, &placement);
        Config { shape, placement, regs }
    }

    /// As firmware leaves it.
    pub fn reset(&mut self) {
        self.regs = Registers::new(self.shape, &self.placement);
    }

    /// What is saved of it.
    pub fn registers(&self) -> &Registers {
        &self.regs
    }

    /// Checks saved registers; [`Config::set_registers`] then takes them.
    ///
    /// # Errors
    /// When registers of this function cannot hold them.
    pub fn check(&self, regs: &Registers) -> Result<(), StateError> {
        let error = |what: String| Err(StateError { device: self.shape.name, what });
        let Registers { command, bases, line: _, msi } = regs;
        if command & !self.shape.command_bits() != 0 {
            return error(format!("command {command:#x} has bits that do not exist"));
        }
        let bars = self.shape.bars;
        let fits = |(base, (_, bar)): (&u64, &(u8, Bar))| base & !bar.mask() == 0;
        if bases.len() != bars.len() || !bases.iter().zip(bars).all(fits) {
            return error(format!("base addresses {bases:x?} are none of its registers'"));
        }
        match msi.is_of(self.shape.messages, command & command::MASTER != 0) {
            true => Ok(()),
            false => error(format!("{msi:x?} has bits that do not exist")),
        }
    }

    /// Takes up registers that were checked.
    pub fn set_registers(&mut self, regs: Registers) {
        self.regs = regs;
    }

    /// Reads up to four bytes of one dword. `interrupt` is whether the function has one.
    ///
    /// # Errors
    /// Beyond the space, and over the edge of a dword.
    pub fn read(&self, offset: u64, size: Size, interrupt: bool) -> Result<u64, IoError> {
        let shift = lanes(offset, size)?.1;
        Ok(u64::from(self.dword(offset & !3, interrupt) >> shift) & size.mask())
    }

    fn dword(&self, offset: u64, interrupt: bool) -> u32 {
        let (Shape { id, revision, class, .. }, regs) = (self.shape, &self.regs);
        match offset {
            0x00 => u32::from(id.0) | u32::from(id.1) << 16,
            COMMAND => {
                let list = if self.shape.messages.is_some() { status::CAPABILITIES } else { 0 };
                let told = interrupt && self.shape.interrupt && !regs.msi.is_enabled();
                let status = list | if told { status::INTERRUPT } else { 0 };
                u32::from(regs.command) | u32::from(status) << 16
            }
            0x08 => u32::from(*revision) | class << 8,
            0x10..0x28 => self.bar(offset).map_or(0, |(at, bar, high)| {
                let value = regs.bases[at] | bar.kind();
                (value >> if high { 32 } else { 0 }) as u32
            }),
            // Subsystem: the same as the function, so that it is not 0 (6.2.4).
            0x2c => u32::from(id.0) | u32::from(id.1) << 16,
            0x34 if self.shape.messages.is_some() => CAPABILITIES as u32,
            LINE => u32::from(regs.line) | u32::from(self.shape.interrupt) << 8,
            _ => match self.shape.messages {
                Some(most) => regs.msi.dword(offset.wrapping_sub(CAPABILITIES), most),
                None => 0,
            },
        }
    }

    /// Which BAR the register at `offset` is of, and whether it is the upper half.
    fn bar(&self, offset: u64) -> Option<(usize, Bar, bool)> {
        let register = ((offset - BARS) / 4) as u8;
        self.shape.bars.iter().enumerate().find_map(|(at, &(first, bar))| match bar {
            _ if first == register => Some((at, bar, false)),
            Bar::Memory64(_) if first + 1 == register => Some((at, bar, true)),
            _ => None,
        })
    }

    /// Writes up to four bytes of one dword. Messages that this lets go are sent.
    ///
    /// # Errors
    /// Beyond the space, and over the edge of a dword.
    pub fn write(
        &mut self,
        env: &mut Env<'_>,
        offset: u64,
        size: Size,
        value: u64,
    ) -> Result<(), IoError> {
        let (mask, shift) = lanes(offset, size)?;
        let value = (value as u32) << shift & mask;
        let merge = |old: u32| old & !mask | value;
        match offset & !3 {
            COMMAND => {
                let command = merge(self.regs.command.into()) as u16;
                self.regs.command = command & self.shape.command_bits();
            }
            at @ 0x10..0x28 => {
                if let Some((index, bar, high)) = self.bar(at) {
                    let base = &mut self.regs.bases[index];
                    let shift = if high { 32 } else { 0 };
                    let half = u64::from(merge((*base >> shift) as u32)) << shift;
                    let mask = if planted::has(Flaw::BarMask) { u64::MAX } else { bar.mask() };
                    *base = (*base & !(0xffff_ffff << shift) | half) & mask;
                }
            }
            LINE => self.regs.line = merge(self.regs.line.into()) as u8,
            at => {
                if let Some(most) = self.shape.messages {
                    self.regs.msi.write(at.wrapping_sub(CAPABILITIES), most, merge);
                }
            }
        }
        self.send(env);
        Ok(())
    }

    /// Where BAR `index` (in their order) lies, while it is decoded.
    pub fn base(&self, index: usize) -> Option<u64> {
        let (_, bar) = self.shape.bars.get(index)?;
        let enable = match bar.space() {
            Space::Port => command::IO,
            Space::Mmio => command::MEMORY,
        };
        (self.regs.command & enable != 0).then(|| self.regs.bases[index])
    }

    /// Whether the function may access memory.
    pub fn is_master(&self) -> bool {
        self.regs.command & command::MASTER != 0
    }

    /// Whether the function's pin is asserted, if it has an interrupt to tell: not while it is
    /// disabled, and not while messages are used instead (6.8.3.3).
    pub fn pin(&self, interrupt: bool) -> bool {
        let disabled = self.regs.command & command::INTX_DISABLE != 0;
        interrupt && self.shape.interrupt && !disabled && !self.regs.msi.is_enabled()
    }

    /// The function has something to tell by message `number`. Without messages nothing happens:
    /// its pin tells. A message that is masked, or that a function may not send that is no bus master,
    /// stays pending (6.8.3.4).
    pub fn message(&mut self, env: &mut Env<'_>, number: u8) {
        if self.shape.messages.is_some() {
            self.regs.msi.request(number);
            self.send(env);
        }
    }

    fn send(&mut self, env: &mut Env<'_>) {
        if !self.is_master() {
            return;
        }
        while let Some((address, data)) = self.regs.msi.take() {
            env.act(Action::Message { address, data });
        }
    }
}

impl Registers {
    fn new(shape: &Shape, placement: &Placement) -> Registers {
        let decoders = shape.command_bits() & (command::IO | command::MEMORY);
        let at = |(i, (_, bar)): (usize, &(u8, Bar))| {
            placement.bases.get(i).map_or(0, |base| base & bar.mask())
        };
        Registers {
            command: decoders,
            bases: shape.bars.iter().enumerate().map(at).collect(),
            line: placement.line,
            msi: Msi::default(),
        }
    }
}

/// The byte lanes of an access within one dword, as a mask, and how far up they begin.
fn lanes(offset: u64, size: Size) -> Result<(u32, u32), IoError> {
    let lane = offset % 4;
    if offset >= CONFIG_BYTES {
        return Err(IoError::NoRegister);
    }
    if lane + size.bytes() > 4 {
        return Err(IoError::Width);
    }
    let shift = 8 * lane as u32;
    Ok(((size.mask() as u32) << shift, shift))
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
