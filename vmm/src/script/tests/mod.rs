//! Scripts in their text form, and sessions on a board of a test device.

mod session;
mod text;

use super::BoardSpec;
use super::replay::BuildError;
use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Nanos, Region, StateError};
use crate::machine::Machine;
use crate::state;

/// Port of [`Toy`]'s first register.
pub(super) const TOY: u64 = 0x500;

/// A device that sees and does everything a device can.
///
/// Registers of 4 bytes: 0 reads time in nanoseconds, a write makes it the deadline that many
/// nanoseconds from now; 4 is an address in memory: a write fetches the u32 there, adds 1, stores
/// it, and fetches it again; a read gives what was fetched; 8 writes a byte of output, reads a
/// byte of input; 12 lowers the line.
#[derive(Clone, Debug, Default)]
pub(super) struct Toy {
    due: Option<Nanos>,
    pending: bool,
    fetched: [u32; 2],
    input: Vec<u8>,
}

impl Device for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }
    fn regions(&self) -> &'static [Region] {
        &[Region { name: "toy", space: Space::Port, len: 16, widest: Size::B4 }]
    }
    fn read(&mut self, env: &mut Env<'_>, at: At, _: Size) -> Result<u64, IoError> {
        match at.offset {
            0 => Ok(env.now()),
            4 => Ok(u64::from(self.fetched[0] ^ self.fetched[1].rotate_left(16))),
            8 if self.input.is_empty() => Ok(0),
            8 => Ok(self.input.remove(0).into()),
            _ => Err(IoError::NoRegister),
        }
    }
    fn write(&mut self, env: &mut Env<'_>, at: At, _: Size, value: u64) -> Result<(), IoError> {
        match at.offset {
            0 => self.due = Some(env.now() + value),
            4 => {
                let before = env.ram.read_u32(value).unwrap_or(0);
                let stored = env.ram.write(value, &before.wrapping_add(1).to_le_bytes());
                let after = env.ram.read_u32(value).unwrap_or(0);
                if stored.is_ok() {
                    self.fetched = [before, after];
                }
            }
            8 => env.act(Action::Output(value as u8)),
            12 => self.pending = false,
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }
    fn irq(&self) -> bool {
        self.pending
    }
    fn deadline(&self) -> Option<Nanos> {
        self.due
    }
    fn advance(&mut self, env: &mut Env<'_>) {
        if self.due.is_some_and(|due| due <= env.now()) {
            (self.due, self.pending) = (None, true);
        }
    }
    fn input(&mut self, _: &mut Env<'_>, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.input_room());
        self.input.extend_from_slice(&bytes[..taken]);
        taken
    }
    fn input_room(&self) -> usize {
        16 - self.input.len()
    }
    fn reset(&mut self, _: &mut Env<'_>) {
        *self = Toy::default();
    }
    fn save(&self) -> Vec<u8> {
        let Toy { due, pending, fetched, input } = self;
        state::encode(&(due, pending, fetched, input))
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let (due, pending, fetched, input) = state::decode("toy", bytes)?;
        *self = Toy { due, pending, fetched, input };
        Ok(())
    }
}

/// A board with a [`Toy`] on GSI 5.
pub(super) fn toys(_: &BoardSpec, machine: &mut Machine) -> Result<(), BuildError> {
    Ok(machine.add(Box::new(Toy::default()), &[TOY], Some(5))?)
}
