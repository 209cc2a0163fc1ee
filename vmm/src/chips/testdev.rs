//! The test device of a PC: what kvm-unit-tests' x86 images expect to find beside the chipset.
//!
//! | region | where | what it does |
//! |---|---|---|
//! | 0 | port 0xe0, 4 bytes | a 32-bit latch, any width |
//! | 1 | port 0xe4, 4 bytes | a dword write drops the mapping of the page at that address |
//! | 2 | port 0xe8, 4 bytes | the same latch, byte by byte |
//! | 3 | port 0x2000, 24 bytes | a byte is the level of the GSI with the offset's number |
//! | 4 | MMIO 0xff000000, 64 KiB | memory, any width |
//!
//! The levels of region 3 are state like any other: they read back, are saved, and are low after a
//! reset.

use std::hint::cold_path;

use serde::{Deserialize, Serialize};

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Region, StateError};
use crate::planted::{self, Flaw};
use crate::state::{decode, encode};

/// Where test guests expect the regions, in their order.
pub const BASES: [u64; 5] = [0xe0, 0xe4, 0xe8, 0x2000, 0xff00_0000];
/// GSIs of region 3.
pub const LINES: u32 = 24;
/// Bytes of region 4.
pub const MEMORY: usize = 64 << 10;

/// Bytes of a piece of memory in the saved state, which leaves out the pieces that are all 0.
const PIECE: usize = 32;

const fn region(name: &'static str, space: Space, len: u64, widest: Size) -> Region {
    Region { name, space, len, widest }
}

const REGIONS: &[Region] = &[
    region("testdev-latch", Space::Port, 4, Size::B4),
    region("testdev-remap", Space::Port, 4, Size::B4),
    region("testdev-latch-bytes", Space::Port, 4, Size::B1),
    region("testdev-lines", Space::Port, LINES as u64, Size::B1),
    region("testdev-memory", Space::Mmio, MEMORY as u64, Size::B8),
];

/// The device.
#[derive(Clone)]
pub struct TestDevice {
    latch: u32,
    lines: u32,
    memory: Box<[u8; MEMORY]>,
}

/// The saved form.
#[derive(Serialize, Deserialize)]
struct Saved {
    latch: u32,
    lines: u32,
    /// Pieces of memory that are not all 0, with their index, ascending.
    pieces: Vec<(u16, [u8; PIECE])>,
}

impl TestDevice {
    /// The device after power-on.
    pub fn new() -> TestDevice {
        TestDevice { latch: 0, lines: 0, memory: Box::new([0; MEMORY]) }
    }

    /// As many bytes of the memory as an access may have, from `offset` on, if they are there: all but
    /// the last seven offsets. They are quicker to move than as many as it has.
    #[inline(always)]
    fn word(&mut self, offset: u64) -> Option<&mut [u8; 8]> {
        self.memory.get_mut(offset as usize..)?.first_chunk_mut()
    }

    #[inline(never)]
    fn bytes(&mut self, offset: u64, size: Size) -> Result<&mut [u8], IoError> {
        let start = usize::try_from(offset).map_err(|_| IoError::NoRegister)?;
        let end = start.checked_add(size.bytes() as usize).ok_or(IoError::NoRegister)?;
        self.memory.get_mut(start..end).ok_or(IoError::NoRegister)
    }

    fn load(&mut self, offset: u64, size: Size) -> Result<u64, IoError> {
        let mut value = [0; 8];
        let bytes = self.bytes(offset, size)?;
        value[..bytes.len()].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(value))
    }

    fn store(&mut self, offset: u64, size: Size, value: u64) -> Result<(), IoError> {
        let bytes = self.bytes(offset, size)?;
        bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
        Ok(())
    }
}

impl Default for TestDevice {
    fn default() -> Self {
        TestDevice::new()
    }
}

impl std::fmt::Debug for TestDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TestDevice { latch, lines, memory: _ } = self;
        f.debug_struct("TestDevice")
            .field("latch", latch)
            .field("lines", lines)
            .finish_non_exhaustive()
    }
}

/// Bits of the latch that an access of `size` at `offset` reaches, and how far up they begin.
fn latch_bits(offset: u64, size: Size) -> Result<(u32, u32), IoError> {
    if offset >= 4 {
        return Err(IoError::NoRegister);
    }
    let shift = 8 * offset as u32;
    Ok(((size.mask() as u32) << shift, shift))
}

impl Device for TestDevice {
    fn name(&self) -> &'static str {
        "testdev"
    }

    fn regions(&self) -> &'static [Region] {
        REGIONS
    }

    #[inline(always)]
    fn look(&self, at: At, _: Size) -> Option<u64> {
        let word = (at.region == 4).then(|| self.memory.get(at.offset as usize..))??;
        Some(u64::from_le_bytes(*word.first_chunk()?))
    }

    #[inline(always)]
    fn keep(&mut self, at: At, size: Size, value: u64) -> bool {
        if at.region != 4 {
            cold_path();
            return false;
        }
        let Some(word) = self.word(at.offset) else { return false };
        if size == Size::B4 {
            word[..4].copy_from_slice(&(value as u32).to_le_bytes());
        } else {
            let kept = u64::from_le_bytes(*word) & !size.mask();
            *word = (kept | value).to_le_bytes();
        }
        true
    }

    fn read(&mut self, _: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        match at.region {
            4 => self.load(at.offset, size),
            0 | 2 => {
                let (mask, shift) = latch_bits(at.offset, size)?;
                Ok(u64::from((self.latch & mask) >> shift))
            }
            1 if at.offset < 4 => Err(IoError::WriteOnly),
            3 if at.offset < LINES.into() => match size {
                Size::B1 => Ok(u64::from(self.lines >> at.offset & 1)),
                _ => Err(IoError::Width),
            },
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        match at.region {
            0 | 2 => {
                let (mask, shift) = latch_bits(at.offset, size)?;
                self.latch = self.latch & !mask | (value as u32) << shift & mask;
            }
            1 => match (at.offset, size) {
                (0, Size::B4) => env.act(Action::RemapPage(value)),
                (0..4, _) => return Err(IoError::Width),
                _ => return Err(IoError::NoRegister),
            },
            3 if at.offset < LINES.into() => {
                if size != Size::B1 {
                    return Err(IoError::Width);
                }
                let (gsi, level) = (at.offset as u32, value != 0);
                self.lines = self.lines & !(1 << gsi) | u32::from(level) << gsi;
            }
            4 => return self.store(at.offset, size, value),
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }

    fn drives(&self) -> u32 {
        (1 << LINES) - 1
    }

    fn lines(&self) -> u32 {
        self.lines
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        self.latch = 0;
        self.lines = 0;
        self.memory.fill(0);
    }

    fn save(&self) -> Vec<u8> {
        let TestDevice { latch, lines, memory } = self;
        let saved = MEMORY / PIECE - usize::from(planted::has(Flaw::TestdevEnd));
        // Many are looked at at once, since a fuzzer saves often.
        const MANY: usize = 64;
        let blocks = (0u16..).step_by(MANY).zip(memory.as_chunks::<{ MANY * PIECE }>().0);
        let used = blocks.filter(|(_, block)| **block != [0; MANY * PIECE]);
        let pieces = used.flat_map(|(first, block)| (first..).zip(block.as_chunks().0));
        let pieces = pieces.filter(|(at, _)| usize::from(*at) < saved);
        let pieces = pieces.filter(|(_, piece)| **piece != [0; PIECE]);
        let pieces = pieces.map(|(at, piece)| (at, *piece)).collect();
        let mask = if planted::has(Flaw::TestdevLines) { 0xffff } else { u32::MAX };
        encode(&Saved { latch: *latch, lines: *lines & mask, pieces })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let Saved { latch, lines, pieces } = decode("testdev", state)?;
        let error = |what: &str| StateError { device: "testdev", what: what.to_owned() };
        if lines >> LINES != 0 {
            return Err(error("more lines than there are"));
        }
        let most = if planted::has(Flaw::TestdevPiece) { usize::MAX } else { MEMORY / PIECE };
        if !pieces.is_sorted_by(|a, b| a.0 < b.0)
            || pieces.last().is_some_and(|&(i, _)| usize::from(i) >= most)
            || pieces.iter().any(|(_, piece)| *piece == [0; PIECE])
        {
            return Err(error("memory out of order or out of bounds"));
        }
        self.latch = latch;
        self.lines = lines;
        self.memory.fill(0);
        let memory = self.memory.as_chunks_mut().0;
        for (i, piece) in pieces {
            memory[usize::from(i)] = piece;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::{Answer, Op, Session};

    fn bench() -> Session<TestDevice> {
        Session::new(TestDevice::new(), TestDevice::new)
    }

    fn read(s: &mut Session<TestDevice>, region: u8, offset: u64, size: Size) -> Answer {
        s.apply(&Op::Read { region, offset, size }).expect("lawful");
        s.trace.last().expect("a step").answer
    }

    fn write(
        s: &mut Session<TestDevice>,
        region: u8,
        offset: u64,
        size: Size,
        value: u64,
    ) -> (Answer, Vec<Action>) {
        s.apply(&Op::Write { region, offset, size, value }).expect("lawful");
        let step = s.trace.last().expect("a step");
        (step.answer, step.actions.clone())
    }

    #[test]
    fn the_latch_takes_any_width_and_both_ranges_are_it() {
        let mut s = bench();
        write(&mut s, 0, 0, Size::B4, 0x1122_3344);
        write(&mut s, 0, 2, Size::B2, 0xaabb);
        write(&mut s, 2, 0, Size::B1, 0x55);
        assert_eq!(read(&mut s, 0, 0, Size::B4), Answer::Read(Ok(0xaabb_3355)));
        assert_eq!(read(&mut s, 0, 1, Size::B2), Answer::Read(Ok(0xbb33)));
        assert_eq!(read(&mut s, 2, 3, Size::B1), Answer::Read(Ok(0xaa)));
    }

    #[test]
    fn a_page_is_remapped_by_a_dword() {
        let mut s = bench();
        let taken = (Answer::Wrote(Ok(())), vec![Action::RemapPage(0x1234_5000)]);
        assert_eq!(write(&mut s, 1, 0, Size::B4, 0x1234_5000), taken);
        let refused = (Answer::Wrote(Err(IoError::Width)), vec![]);
        assert_eq!(write(&mut s, 1, 0, Size::B2, 0x5000), refused);
        assert_eq!(read(&mut s, 1, 0, Size::B4), Answer::Read(Err(IoError::WriteOnly)));
    }

    #[test]
    fn a_byte_is_a_level() {
        let mut s = bench();
        let done = (Answer::Wrote(Ok(())), vec![]);
        assert_eq!(write(&mut s, 3, 23, Size::B1, 0x80), done);
        assert_eq!(write(&mut s, 3, 4, Size::B1, 1), done);
        assert_eq!(s.device.lines(), 1 << 23 | 1 << 4);
        assert_eq!(write(&mut s, 3, 4, Size::B1, 0), done);
        assert_eq!(s.device.lines(), 1 << 23);
        assert_eq!(read(&mut s, 3, 23, Size::B1), Answer::Read(Ok(1)));
    }

    #[test]
    fn memory_is_memory() {
        let mut s = bench();
        write(&mut s, 4, 0x1003, Size::B8, 0x1122_3344_5566_7788);
        assert_eq!(read(&mut s, 4, 0x1004, Size::B2), Answer::Read(Ok(0x6677)));
        write(&mut s, 4, 0xffff, Size::B1, 0x42);
        assert_eq!(read(&mut s, 4, 0xffff, Size::B1), Answer::Read(Ok(0x42)));
        let over = Answer::Read(Err(IoError::NoRegister));
        assert_eq!(read(&mut s, 4, 0xffff, Size::B2), over);
        assert!(s.device.save().len() < 100, "only what is not 0 is saved");
    }

    #[test]
    fn states_that_cannot_be_are_refused() {
        let [some, zero] = [[1; PIECE], [0; PIECE]];
        let last = (MEMORY / PIECE) as u16;
        for (lines, pieces) in [
            (1 << LINES, vec![]),
            (0, vec![(last, some)]),
            (0, vec![(1, some), (0, some)]),
            (0, vec![(1, some), (1, some)]),
            (0, vec![(0, zero)]),
        ] {
            let state = encode(&Saved { latch: 0, lines, pieces });
            assert!(TestDevice::new().restore(&state).is_err());
        }
        let state = encode(&Saved { latch: 0, lines: 1, pieces: vec![(last - 1, some)] });
        TestDevice::new().restore(&state).expect("sound");
    }

    crate::device_laws!(laws, TestDevice::new);
}
