//! Puts a kernel and an initramfs into the memory of a Bochs machine before it starts.
//!
//! Bochs can load a file to an address (`optramimage`). But it gives memory to its guest in blocks: a
//! block of the guest gets the next free block of the host's when it is first used, and loading a file
//! uses only the first block at its address and writes on behind that. So the bytes of a longer file
//! lie in host blocks that belong to no address yet, and come to be wherever the guest goes next.
//!
//! This makes use of it. The file holds, block by block:
//!
//! 1. the beginning of the kernel, at the address it is loaded to;
//! 2. nothing: the second file (the job) is loaded here, to the address where the initramfs ends;
//! 3. padding, each block with its number, for the blocks that the BIOS uses in an unknown number; the
//!    boot ROM uses up what is left of it by touching spare memory until it sees the last number;
//! 4. the rest of the kernel, and the initramfs, into which the ROM touches memory in that order.
//!
//! The ROM then checks the sum of one word of each of these blocks, so a Bochs that works otherwise
//! is told plainly. This saves a disk, a boot loader and the BIOS's slow way of reading.

use std::ops::Range;

use thiserror::Error;

/// Blocks of padding by the size of a block: more than the BIOS uses.
const fn padding(block: u64) -> u64 {
    if block >= 1 << 20 { 6 } else { 96 }
}

/// The numbers of the padding count from here.
const PADDING_MAGIC: u32 = 0x5041_4400;

/// The word of each block that is summed up lies here: not at its beginning, where an initramfs may
/// hold zeros.
const PROBE: u32 = 0xff8;

/// Where everything goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The size of a block. Bytes, a power of two.
    pub block: u64,
    /// The address that the file is loaded to: the kernel's.
    pub kernel: u64,
    /// The address of the initramfs.
    pub initrd: u64,
    /// Its size with the job's archive behind it.
    pub initrd_size: u64,
    /// The address that the job is loaded to; a multiple of [`Layout::block`].
    pub job: u64,
    /// Memory that the ROM uses padding up with.
    pub spare: Range<u64>,
    /// The blocks that follow in the file, in this order.
    pub touched: [Range<u64>; 2],
    /// The offset in a block of the word that is summed up.
    pub probe: u32,
    /// The sum of these words of the blocks of [`Layout::touched`].
    pub sum: u32,
}

/// Why something cannot be laid out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// The memory is too small.
    #[error(
        "{memory} MiB of memory have no room for a kernel of {kernel} MiB and an initramfs of \
         {initrd} MiB; give the machine more"
    )]
    NoRoom {
        /// The machine's memory. MiB.
        memory: u64,
        /// The kernel. MiB.
        kernel: u64,
        /// The initramfs. MiB.
        initrd: u64,
    },
    /// The kernel does not begin on a block's boundary.
    #[error("the kernel wants address {0:#x}, which is no multiple of a block of {1:#x} bytes")]
    Unaligned(u64, u64),
    /// The job does not fit a block.
    #[error("the job has {0} bytes, and there is room for {1}; run fewer cases at once")]
    LongJob(u64, u64),
}

impl Layout {
    /// The number in the last block of padding.
    pub fn last_padding(&self) -> u32 {
        PADDING_MAGIC + padding(self.block) as u32 - 1
    }

    /// Lays out a kernel at its address, an initramfs and a job of `job` bytes, and returns with the
    /// layout the file's pieces: offsets and bytes. What lies between the pieces is zero.
    ///
    /// # Errors
    ///
    /// Something has no room.
    pub fn new<'a>(
        block: u64,
        memory: u64,
        address: u64,
        kernel: &'a [u8],
        initrd: &'a [u8],
        job: u64,
    ) -> Result<(Layout, Vec<Piece<'a>>), LayoutError> {
        if !address.is_multiple_of(block) {
            return Err(LayoutError::Unaligned(address, block));
        }
        if job > block {
            return Err(LayoutError::LongJob(job, block));
        }
        let up = |value: u64| value.next_multiple_of(block);
        // The last block is the BIOS's, for its ACPI tables.
        let no_room = LayoutError::NoRoom {
            memory: memory >> 20,
            kernel: kernel.len() as u64 >> 20,
            initrd: initrd.len() as u64 >> 20,
        };
        let kernel_end = up(address + kernel.len() as u64);
        let size = (initrd.len() as u64).next_multiple_of(4);
        let job_at = memory.checked_sub(2 * block).ok_or(no_room.clone())? / block * block;
        let initrd_at = job_at.checked_sub(size).ok_or(no_room.clone())?;
        let initrd_start = initrd_at / block * block;
        // A kernel needs room above its image for its own variables.
        let spare = kernel_end + up(32 << 20)..initrd_start;
        if spare.end < spare.start + padding(block) * block {
            return Err(no_room);
        }
        let touched = [address + block..kernel_end.max(address + block), initrd_start..job_at];
        let mut pieces = vec![];
        let (head, rest) = kernel.split_at(kernel.len().min(block as usize));
        pieces.push(Piece { offset: 0, bytes: Bytes::Borrowed(head) });
        let mut at = 2 * block;
        for number in 0..padding(block) as u32 {
            let mark = (PADDING_MAGIC + number).to_le_bytes();
            pieces.push(Piece { offset: at, bytes: Bytes::Number(mark) });
            at += block;
        }
        pieces.push(Piece { offset: at, bytes: Bytes::Borrowed(rest) });
        at += touched[0].end - touched[0].start;
        let skip = initrd_at - initrd_start;
        pieces.push(Piece { offset: at + skip, bytes: Bytes::Borrowed(initrd) });
        let probe = u64::from(PROBE);
        let mut sum = 0_u32;
        for block_at in (0..touched[0].end - touched[0].start).step_by(block as usize) {
            sum = sum.wrapping_add(word(rest, block_at + probe));
        }
        for block_at in (initrd_start..job_at).step_by(block as usize) {
            if let Some(at) = (block_at + probe).checked_sub(initrd_at) {
                sum = sum.wrapping_add(word(initrd, at));
            }
        }
        let layout = Layout {
            block,
            kernel: address,
            initrd: initrd_at,
            initrd_size: size + job,
            job: job_at,
            spare,
            touched,
            probe: PROBE,
            sum,
        };
        Ok((layout, pieces))
    }
}

/// The word at an offset; behind the bytes there are zeros.
fn word(bytes: &[u8], at: u64) -> u32 {
    let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    rest.iter().take(4).rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// A part of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Where it begins. Bytes.
    pub offset: u64,
    /// What it holds.
    pub bytes: Bytes<'a>,
}

/// The bytes of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bytes<'a> {
    /// Somebody else's.
    Borrowed(&'a [u8]),
    /// The number of a block of padding.
    Number([u8; 4]),
}

impl AsRef<[u8]> for Bytes<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Bytes::Borrowed(bytes) => bytes,
            Bytes::Number(bytes) => bytes,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A layout of a small kernel and initramfs.
    pub(crate) fn layout() -> Layout {
        let (kernel, initrd) = (vec![1; 20 << 20], vec![2; 10 << 20]);
        Layout::new(8 * MIB, 512 * MIB, 16 * MIB, &kernel, &initrd, 512).expect("a layout").0
    }

    /// Does what Bochs does: blocks of the file go to blocks of memory in the order of their first
    /// use. `bios`: how many blocks the BIOS uses before the ROM runs.
    fn touch(layout: &Layout, pieces: &[Piece<'_>], bios: u64) -> Option<BTreeMap<u64, u64>> {
        let number = |slot: u64| {
            let piece = pieces.iter().find(|p| p.offset == slot * layout.block);
            piece.map(|p| word(p.bytes.as_ref(), 0))
        };
        // Slots 0 and 1 are taken by the two files.
        let mut slot = 2 + bios;
        let mut blocks = BTreeMap::from([(layout.kernel, 0)]);
        let mut at = layout.spare.start;
        loop {
            if at >= layout.spare.end {
                return None;
            }
            slot += 1;
            if number(slot - 1) == Some(layout.last_padding()) {
                break;
            }
            at += layout.block;
        }
        for range in &layout.touched {
            for at in range.clone().step_by(layout.block as usize) {
                blocks.insert(at, slot);
                slot += 1;
            }
        }
        Some(blocks)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn each_byte_comes_to_its_address(
            small in any::<bool>(),
            kernel in 1..6_000_000_usize,
            initrd in 1..3_000_000_usize,
            bios in 0..6_u64,
        ) {
            let block = if small { 128 << 10 } else { MIB };
            let kernel: Vec<u8> = (0..kernel).map(|i| (i / 1000) as u8).collect();
            let initrd: Vec<u8> = (0..initrd).map(|i| (i / 777) as u8 ^ 0x55).collect();
            let (layout, pieces) =
                Layout::new(block, 128 * MIB, 16 * MIB, &kernel, &initrd, 100).expect("a layout");
            let end = pieces.iter().map(|p| p.offset + p.bytes.as_ref().len() as u64).max();
            let mut file = vec![0; (end.expect("pieces") + 2 * block) as usize];
            for piece in &pieces {
                let bytes = piece.bytes.as_ref();
                file[piece.offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            let blocks = touch(&layout, &pieces, bios).expect("the padding is found");
            let byte = |at: u64| {
                let slot = blocks[&(at / block * block)];
                file[(slot * block + at % block) as usize]
            };
            for (at, bytes) in [(layout.kernel, &kernel), (layout.initrd, &initrd)] {
                for i in (0..bytes.len() as u64).step_by(4093) {
                    prop_assert_eq!(byte(at + i), bytes[i as usize]);
                }
            }
            let mut sum = 0_u32;
            for at in layout.touched.iter().flat_map(|r| r.clone().step_by(block as usize)) {
                let slot = blocks[&at];
                sum = sum.wrapping_add(word(&file, slot * block + u64::from(layout.probe)));
            }
            prop_assert_eq!(sum, layout.sum);
            prop_assert_eq!(layout.initrd + layout.initrd_size, layout.job + 100);
        }
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let (kernel, initrd) = (vec![0; 8 << 20], vec![0; 60 << 20]);
        let new = |block, memory, address, job| {
            Layout::new(block, memory, address, &kernel, &initrd, job).map(|_| ())
        };
        assert_eq!(new(MIB, 256 * MIB, 16 * MIB, 4), Ok(()));
        let error = new(MIB, 96 * MIB, 16 * MIB, 4).unwrap_err();
        assert!(error.to_string().contains("96 MiB of memory have no room"), "{error}");
        assert!(matches!(new(MIB, 1, 16 * MIB, 4), Err(LayoutError::NoRoom { .. })));
        assert!(matches!(new(MIB, 256 * MIB, 0x1234, 4), Err(LayoutError::Unaligned(..))));
        let long = new(MIB, 256 * MIB, 16 * MIB, MIB + 1);
        assert!(matches!(long, Err(LayoutError::LongJob(..))));
    }

    #[test]
    fn a_bios_that_uses_more_than_the_padding_is_noticed() {
        let (kernel, initrd) = (vec![1; 20 << 20], vec![2; 10 << 20]);
        let (layout, pieces) =
            Layout::new(8 * MIB, 512 * MIB, 16 * MIB, &kernel, &initrd, 512).expect("a layout");
        assert!(touch(&layout, &pieces, padding(8 * MIB) - 1).is_some());
        assert_eq!(touch(&layout, &pieces, padding(8 * MIB)), None);
    }
}
