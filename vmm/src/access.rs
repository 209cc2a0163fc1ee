//! What a guest does to an address: the smallest words of the language that the board speaks.

use std::fmt;

/// Width of one access. Wider or odd ones are split before they get here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Size {
    /// One byte.
    B1 = 1,
    /// Two bytes.
    B2 = 2,
    /// Four bytes.
    B4 = 4,
    /// Eight bytes; MMIO only.
    B8 = 8,
}

impl Size {
    /// Every width, narrowest first.
    pub const ALL: [Size; 4] = [Size::B1, Size::B2, Size::B4, Size::B8];

    /// The width in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// The width of `bytes` bytes, if there is one.
    #[inline]
    pub const fn from_bytes(bytes: u64) -> Option<Size> {
        if bytes <= u8::MAX as u64 { Size::from_byte(bytes as u8) } else { None }
    }

    /// As [`Size::from_bytes`].
    #[inline(always)]
    pub const fn from_byte(bytes: u8) -> Option<Size> {
        const SIZES: [Option<Size>; 256] = {
            let mut sizes = [None; 256];
            let mut at = 0;
            while at < Size::ALL.len() {
                sizes[Size::ALL[at] as usize] = Some(Size::ALL[at]);
                at += 1;
            }
            sizes
        };
        SIZES[bytes as usize]
    }

    /// The bits that a value of this width can have; also what a read of nothing returns.
    #[inline]
    pub const fn mask(self) -> u64 {
        // A table, since a shift by a number takes three instructions to prepare.
        const MASKS: [u64; 9] = [0, 0xff, 0xffff, 0, 0xffff_ffff, 0, 0, 0, u64::MAX];
        MASKS[self as usize]
    }

    /// The widest aligned access at `addr` that is no longer than `left` bytes (`left` is not 0).
    #[inline]
    pub const fn widest(addr: u64, left: u64) -> Size {
        if left >= 8 && addr.is_multiple_of(8) {
            Size::B8
        } else if left >= 4 && addr.is_multiple_of(4) {
            Size::B4
        } else if left >= 2 && addr.is_multiple_of(2) {
            Size::B2
        } else {
            Size::B1
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

/// The two address spaces that a processor's accesses leave it through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// I/O ports, 0 to 0xffff.
    Port,
    /// Guest-physical addresses outside RAM.
    Mmio,
}

/// Which way an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dir {
    /// The guest reads.
    Read,
    /// The guest writes this value; bits above the access's width are 0.
    Write(u64),
}

/// One access of one item: what a string instruction or a page-crossing access is split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Port or MMIO.
    pub space: Space,
    /// Port number or guest-physical address.
    pub addr: u64,
    /// Width.
    pub size: Size,
    /// Read, or write with its value.
    pub dir: Dir,
}

impl Access {
    /// A read.
    pub const fn read(space: Space, addr: u64, size: Size) -> Access {
        Access { space, addr, size, dir: Dir::Read }
    }

    /// A write; `value` is cut to `size`.
    pub const fn write(space: Space, addr: u64, size: Size, value: u64) -> Access {
        Access { space, addr, size, dir: Dir::Write(value & size.mask()) }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = match self.space {
            Space::Port => "port",
            Space::Mmio => "mmio",
        };
        match self.dir {
            Dir::Read => write!(f, "{space} {:#x} read {}", self.addr, self.size),
            Dir::Write(v) => write!(f, "{space} {:#x} write {} {v:#x}", self.addr, self.size),
        }
    }
}

/// Why a device did not take an access. A device names the fault; the bus decides what the guest
/// sees of it (all-ones for a read, nothing for a write) and counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoError {
    /// Nothing answers at this address.
    Unclaimed,
    /// The device has no register at this offset.
    NoRegister,
    /// The register cannot be accessed with this width.
    Width,
    /// The register can only be read.
    ReadOnly,
    /// The register can only be written.
    WriteOnly,
    /// The register exists, but not in the state that the device is in.
    Disabled,
}

impl IoError {
    /// Every fault; its place here is its index in counters.
    pub const ALL: [IoError; 6] = [
        IoError::Unclaimed,
        IoError::NoRegister,
        IoError::Width,
        IoError::ReadOnly,
        IoError::WriteOnly,
        IoError::Disabled,
    ];
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoError::Unclaimed => "nothing answers there",
            IoError::NoRegister => "no such register",
            IoError::Width => "not a width of this register",
            IoError::ReadOnly => "read-only register",
            IoError::WriteOnly => "write-only register",
            IoError::Disabled => "register disabled",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widest_covers_a_range_without_crossing_alignment() {
        for addr in 0..16u64 {
            for len in 1..=16u64 {
                let (mut at, end) = (addr, addr + len);
                while at < end {
                    let size = Size::widest(at, end - at);
                    assert_eq!(at % size.bytes(), 0);
                    at += size.bytes();
                }
                assert_eq!(at, end);
            }
        }
    }

    #[test]
    fn masks_and_writes_are_cut_to_the_width() {
        assert_eq!(Size::B1.mask(), 0xff);
        assert_eq!(Size::B8.mask(), u64::MAX);
        assert_eq!(Access::write(Space::Port, 1, Size::B2, 0x12345).dir, Dir::Write(0x2345));
    }
}
