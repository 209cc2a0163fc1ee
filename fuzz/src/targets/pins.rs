//! A device that drives interrupt lines as a guest says, and nothing else: for boards on which something
//! else is to be met.

use vmm::access::{IoError, Size, Space};
use vmm::device::{At, Device, Env, Region, StateError};
use vmm::state::{decode, encode};

/// Its port: bit N is the level of GSI N, 0 to 23.
pub const PORT: u64 = 0x10;

/// The lines that it drives.
const LINES: u32 = 0xff_ffff;

/// The device.
#[derive(Debug, Default)]
pub struct Pins(u32);

impl Device for Pins {
    fn name(&self) -> &'static str {
        "pins"
    }
    fn regions(&self) -> &'static [Region] {
        &[Region { name: "pins", space: Space::Port, len: 4, widest: Size::B4 }]
    }
    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match (at.offset, size) {
            (0, Size::B4) => Ok(self.0.into()),
            _ => Err(IoError::Width),
        }
    }
    fn write(&mut self, _: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match (at.offset, size) {
            (0, Size::B4) => self.0 = value as u32 & LINES,
            // One line alone, so that each is reached without chance.
            (0, Size::B1) => self.0 ^= 1 << (value % 24),
            _ => return Err(IoError::Width),
        }
        Ok(())
    }
    fn drives(&self) -> u32 {
        LINES
    }
    fn lines(&self) -> u32 {
        self.0
    }
    fn reset(&mut self, _: &mut Env<'_>) {
        self.0 = 0;
    }
    fn save(&self) -> Vec<u8> {
        encode(&self.0)
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let lines: u32 = decode("pins", state)?;
        if lines & !LINES != 0 {
            return Err(StateError {
                device: "pins",
                what: "more lines than there are".to_owned(),
            });
        }
        self.0 = lines;
        Ok(())
    }
}
