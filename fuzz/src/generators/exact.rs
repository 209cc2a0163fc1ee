//! Operations that are written down as they are: how a recorded script becomes an input.

use vmm::access::{Access, Dir, Size, Space};
use vmm::exit::Exit;
use vmm::script::{Op, Script};

use super::tables::{EXACT, RESET, SAVE_RESTORE};
use super::{Generator, HEADER, MAX_OPS, RECORD};

/// What follows the first byte: bits 0 and 1 of the second say which of these it is.
const IO: u8 = 0;
const RAM: u8 = 1;
const INPUT: u8 = 2;
const TIME: u8 = 3;

/// Bytes of memory and of input that a record has room for.
const RAM_BYTES: usize = 9;
const INPUT_BYTES: usize = 12;

/// The input that says what `script` says, as far as inputs can: its first [`MAX_OPS`] operations,
/// without exits that are no accesses, and without memory that changes amid an operation. `devices` are
/// the names of the board's devices, in their order.
pub fn encode(script: &Script, devices: &[&str]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    let mut put = |parts: &[&[u8]]| {
        let mut record = parts.concat();
        record.resize(RECORD, 0);
        bytes.extend(record);
    };
    for step in script.steps.iter().take(MAX_OPS) {
        match &step.op {
            Op::Exit { exit: Exit::Io(access), .. } => {
                let Access { space, addr, size, dir } = *access;
                let size = size.bytes().trailing_zeros() as u8;
                let (write, value) = match dir {
                    Dir::Read => (0, 0),
                    Dir::Write(value) => (1, value),
                };
                let how = IO | size << 2 | write << 4 | u8::from(space == Space::Mmio) << 5;
                put(&[&[EXACT, how], &addr.to_le_bytes()[..6], &value.to_le_bytes()]);
            }
            Op::Ram { addr, bytes, after: 0 } => {
                for (at, part) in (*addr..).step_by(RAM_BYTES).zip(bytes.chunks(RAM_BYTES)) {
                    let how = RAM | (part.len() as u8) << 2;
                    put(&[&[EXACT, how], &at.to_le_bytes()[..5], part]);
                }
            }
            Op::Input { device, bytes } => {
                let Some(at) = devices.iter().position(|name| name == device) else { continue };
                for part in bytes.chunks(INPUT_BYTES) {
                    put(&[&[EXACT, INPUT, at as u8, part.len() as u8], part]);
                }
            }
            Op::Advance(by) => put(&[&[EXACT, TIME], &by.to_le_bytes()]),
            // Of its own, so that time does not go to the deadline first.
            Op::Timer => put(&[&[EXACT, TIME | 4]]),
            Op::SaveRestore => put(&[&[SAVE_RESTORE]]),
            Op::Reset => put(&[&[RESET]]),
            Op::Exit { .. } | Op::Ram { .. } => {}
        }
    }
    bytes
}

impl Generator<'_, '_, '_> {
    /// What [`encode`] wrote.
    pub(super) fn exact(&mut self) {
        let how = self.byte();
        match how & 3 {
            IO => {
                let size = Size::ALL[usize::from(how >> 2 & 3)];
                let (addr, value) = (self.number::<6>(), self.number::<8>());
                let mmio = how >> 5 & 1 == 1;
                // Ports have 16 bits and 4 bytes at most.
                let (space, addr, size) = match mmio {
                    true => (Space::Mmio, addr, size),
                    false => (Space::Port, addr & 0xffff, size.min(Size::B4)),
                };
                let access = match how >> 4 & 1 {
                    0 => Access::read(space, addr, size),
                    _ => Access::write(space, addr, size, value),
                };
                self.access(access);
            }
            RAM => {
                let addr = self.number::<5>();
                let len = usize::from(how >> 2).min(RAM_BYTES);
                let bytes = (0..len).map(|_| self.byte()).collect();
                self.play(Op::Ram { addr, bytes, after: 0 });
            }
            INPUT => {
                let (which, len) = (usize::from(self.byte()), usize::from(self.byte()));
                let machine = self.player.machine();
                let which = which % machine.devices().count().max(1);
                let device = machine.devices().nth(which);
                let Some(device) = device else { return };
                let bytes = (0..len.min(INPUT_BYTES)).map(|_| self.byte()).collect();
                self.play(Op::Input { device: device.into(), bytes });
            }
            _ if how & 4 != 0 => self.play(Op::Timer),
            _ => {
                let by = self.number::<8>();
                self.by(by);
            }
        }
    }
}
