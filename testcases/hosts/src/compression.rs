//! What kernels and modules are compressed with, told by its first bytes and undone in bounded
//! memory.

use std::fmt;
use std::io::{self, Read};

use ruzstd::decoding::StreamingDecoder;

/// A way to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// gzip (RFC 1952).
    Gzip,
    /// XZ, with or without the filter for x86 code.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
    /// LZ4's legacy frames, which the kernel's build makes (lz4_Frame_format.md, "Legacy frame").
    Lz4,
}

/// Why bytes could not be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// Not the beginning of a format that is known.
    #[error(
        "{what}; gzip, xz, zstd and LZ4's legacy frames are understood: use a file that is compressed \
         by one of these, and get it again if it should be"
    )]
    Unknown {
        /// What they look like.
        what: String,
    },
    /// They begin well and do not go on so.
    #[error("the {format} data is damaged or cut off, get the file again: {why}")]
    Damaged {
        /// What they are.
        format: Format,
        /// What the decoder says.
        why: String,
    },
    /// There is more than the caller wants.
    #[error("the {format} data decompresses to more than {limit} bytes")]
    TooLong {
        /// What they are.
        format: Format,
        /// The caller's limit.
        limit: u64,
    },
}

/// The first bytes of LZ4's legacy frames.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// The most that a block of such a frame decompresses to.
const LZ4_BLOCK: usize = 8 << 20;
/// The dictionary or window that a file may ask the decoder for. The kernel's build uses 128 MiB.
const MAX_WINDOW: u64 = 128 << 20;

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Gzip => "gzip",
            Format::Xz => "xz",
            Format::Zstd => "zstd",
            Format::Lz4 => "LZ4",
        })
    }
}

impl Format {
    /// The format of `bytes`, by their beginning.
    ///
    /// # Errors
    /// [`CompressionError::Unknown`], with a name for what the kernel's build knows besides.
    pub fn of(bytes: &[u8]) -> Result<Format, CompressionError> {
        let what = match bytes {
            [0x1f, 0x8b, ..] => return Ok(Format::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Ok(Format::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => return Ok(Format::Zstd),
            _ if bytes.starts_with(&LZ4_MAGIC) => return Ok(Format::Lz4),
            [b'B', b'Z', b'h', ..] => "the data is compressed by bzip2".to_owned(),
            [0x89, b'L', b'Z', b'O', ..] => "the data is compressed by lzop".to_owned(),
            [0x5d, 0, 0, ..] => "the data is compressed by the old LZMA".to_owned(),
            _ => {
                let first = &bytes[..bytes.len().min(8)];
                let hex: Vec<String> = first.iter().map(|b| format!("{b:02x}")).collect();
                format!(
                    "the data is compressed in no known way; it begins with [{}]",
                    hex.join(" ")
                )
            }
        };
        Err(CompressionError::Unknown { what })
    }
}

/// Decompresses `bytes` to at most `limit` bytes.
///
/// # Errors
/// The format is not known, the data is damaged (checksums are checked where it has them), or it is
/// longer than `limit`.
pub fn decompress(bytes: &[u8], limit: u64) -> Result<Vec<u8>, CompressionError> {
    let format = Format::of(bytes)?;
    let damaged = |why: String| CompressionError::Damaged { format, why };
    let io = |e: io::Error| damaged(e.to_string());
    let mut out = Vec::new();
    // One byte more tells what is too long from what just fits.
    let room = limit.saturating_add(1);
    match format {
        Format::Gzip => {
            flate2::bufread::GzDecoder::new(bytes).take(room).read_to_end(&mut out).map_err(io)?;
        }
        Format::Xz => {
            let kib = (2 * MAX_WINDOW / 1024) as u32;
            let reader = lzma_rust2::XzReader::new_mem_limit(bytes, false, kib);
            reader.take(room).read_to_end(&mut out).map_err(io)?;
        }
        Format::Zstd => {
            let decoder = StreamingDecoder::new_with_max_window_size(bytes, MAX_WINDOW)
                .map_err(|e| damaged(e.to_string()))?;
            let mut decoder = decoder.take(room);
            decoder.read_to_end(&mut out).map_err(io)?;
            let frame = decoder.into_inner().into_frame_decoder();
            let stored = frame.get_checksum_from_data();
            if out.len() as u64 <= limit
                && stored.is_some_and(|_| stored != frame.get_calculated_checksum())
            {
                return Err(damaged("its checksum is another".to_owned()));
            }
        }
        Format::Lz4 => lz4_legacy(bytes, room, &mut out).map_err(damaged)?,
    }
    if out.len() as u64 > limit {
        return Err(CompressionError::TooLong { format, limit });
    }
    Ok(out)
}

/// Appends what LZ4's legacy frames hold to `out`, until that has `enough` bytes: after the magic
/// number blocks, each behind its compressed size; another magic number begins another frame.
fn lz4_legacy(mut bytes: &[u8], enough: u64, out: &mut Vec<u8>) -> Result<(), String> {
    let mut block = vec![0; LZ4_BLOCK];
    while !bytes.is_empty() && (out.len() as u64) < enough {
        let Some((word, rest)) = bytes.split_first_chunk::<4>() else {
            return Err(format!("{} bytes at its end are no size of a block", bytes.len()));
        };
        bytes = rest;
        if *word == LZ4_MAGIC {
            continue;
        }
        let size = u32::from_le_bytes(*word) as usize;
        let Some((data, rest)) = rest.split_at_checked(size) else {
            return Err(format!("a block has {size} bytes, and {} are left", rest.len()));
        };
        bytes = rest;
        let n = lz4_flex::block::decompress_into(data, &mut block).map_err(|e| e.to_string())?;
        out.extend_from_slice(&block[..n]);
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use lzma_rust2::{CheckType, FilterType, XzOptions, XzWriter};
    use proptest::prelude::*;

    use super::*;

    const ALL: [Format; 4] = [Format::Gzip, Format::Xz, Format::Zstd, Format::Lz4];

    /// Compresses as a kernel's build does.
    pub(crate) fn compress(format: Format, bytes: &[u8]) -> Vec<u8> {
        match format {
            Format::Gzip => {
                let mut w = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                w.write_all(bytes).and_then(|()| w.finish()).expect("gzip")
            }
            Format::Xz => {
                let mut options = XzOptions::with_preset(1);
                options.set_check_sum_type(CheckType::Crc32);
                options.prepend_pre_filter(FilterType::BcjX86, 0);
                let mut w = XzWriter::new(Vec::new(), options).expect("xz");
                w.write_all(bytes).and_then(|()| w.finish()).expect("xz")
            }
            Format::Zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                ruzstd::encoding::compress_to_vec(bytes, level)
            }
            Format::Lz4 => {
                let mut out = LZ4_MAGIC.to_vec();
                for chunk in bytes.chunks(LZ4_BLOCK) {
                    let block = lz4_flex::block::compress(chunk);
                    out.extend_from_slice(&(block.len() as u32).to_le_bytes());
                    out.extend_from_slice(&block);
                }
                out
            }
        }
    }

    /// Something like machine code: calls with addresses that the filter for x86 rewrites.
    pub(crate) fn code(len: usize) -> Vec<u8> {
        let call = |i: u32| [&[0x55, 0xe8][..], &(i * 16).to_le_bytes(), &[0x5d, 0xc3]].concat();
        (0..).flat_map(call).take(len).collect()
    }

    #[test]
    fn each_format_is_told_by_its_beginning_and_undone() {
        for format in ALL {
            for len in [0, 1, 100_000, LZ4_BLOCK + 5] {
                let plain = code(len);
                let packed = compress(format, &plain);
                assert_eq!(Format::of(&packed), Ok(format), "{format} {len}");
                assert!(decompress(&packed, len as u64) == Ok(plain), "{format} {len}");
            }
        }
    }

    #[test]
    fn lz4_frames_follow_each_other() {
        let (a, b) = (code(1000), code(50));
        let packed = [compress(Format::Lz4, &a), compress(Format::Lz4, &b)].concat();
        assert_eq!(decompress(&packed, 2000), Ok([a, b].concat()));
    }

    #[test]
    fn more_than_the_limit_is_refused() {
        for format in ALL {
            let packed = compress(format, &code(10_000));
            let expected = Err(CompressionError::TooLong { format, limit: 9_999 });
            assert_eq!(decompress(&packed, 9_999), expected);
        }
    }

    #[test]
    fn damage_is_noticed() {
        for format in ALL {
            let packed = compress(format, &code(100_000));
            let cut = decompress(&packed[..packed.len() - 2], 1 << 20).unwrap_err().to_string();
            assert!(cut.contains("damaged or cut off"), "{format}: {cut}");
            // LZ4's legacy frames have no checksum; their user knows the length.
            if format != Format::Lz4 {
                let mut bent = packed.clone();
                bent[packed.len() - 6] ^= 0x10;
                let error = decompress(&bent, 1 << 20).unwrap_err().to_string();
                assert!(error.contains("damaged or cut off"), "{format}: {error}");
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (bytes, name) in [
            (&b"BZh91AY"[..], "bzip2"),
            (&[0x89, b'L', b'Z', b'O', 0][..], "lzop"),
            (&[0x5d, 0, 0, 0x80][..], "old LZMA"),
            (&b"\x7fELF"[..], "[7f 45 4c 46]"),
            (&b""[..], "begins with []"),
        ] {
            let error = decompress(bytes, 10).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("zstd"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_grow(
            format in prop::sample::select(&ALL[..]),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut packed = compress(format, &code(3000));
            for (at, value) in flips {
                let at = at.index(packed.len());
                packed[at] = value;
            }
            packed.truncate(cut.index(packed.len()) + 1);
            if let Ok(plain) = decompress(&packed, 4000) {
                prop_assert!(plain.len() <= 4000);
            }
        }
    }
}
