//! The form of KVM's statistics: a header, descriptors and values. The bytes come from the host; whatever they are,
//! this gives statistics or says what is wrong, and takes no more memory than there are bytes to read, at most
//! [`MOST`] of each part.

use kvm_bindings::*;

use crate::stats::metric::{Kind, Metric, Unit};

/// Bytes of the header.
pub const HEADER: usize = size_of::<kvm_stats_header>();
/// Bytes of a descriptor before its name.
const DESCRIPTOR: usize = size_of::<kvm_stats_desc>();
/// The most bytes that the descriptors, or the values, may have: a hundred times what KVM has.
pub const MOST: usize = 1 << 20;

/// What is wrong with statistics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A part is cut off.
    #[error("{part} has {len} bytes where {wanted} are needed")]
    Short {
        /// Which part.
        part: &'static str,
        /// How long it is.
        len: usize,
        /// How long it would have to be.
        wanted: usize,
    },
    /// A part is longer than is plausible.
    #[error("{part} would have {len} bytes, more than {MOST}")]
    Long {
        /// Which part.
        part: &'static str,
        /// How long it would be.
        len: u64,
    },
    /// A name is empty, not ended, or not ASCII.
    #[error("the name of statistic {index} is empty, has no end, or is no text")]
    Name {
        /// Which statistic.
        index: usize,
    },
}

/// The dword at `at`.
fn dword(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// The word at `at`.
fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

/// The header's numbers.
struct Header {
    name: usize,
    count: u32,
    descriptors: u32,
    data: u32,
}

impl Header {
    fn of(bytes: &[u8]) -> Result<Header, FormatError> {
        let short = FormatError::Short { part: "the header", len: bytes.len(), wanted: HEADER };
        let header = || {
            Some(Header {
                name: dword(bytes, 4)? as usize,
                count: dword(bytes, 8)?,
                descriptors: dword(bytes, 16)?,
                data: dword(bytes, 20)?,
            })
        };
        header().ok_or(short)
    }

    /// Bytes of the descriptors.
    fn len(&self) -> Result<usize, FormatError> {
        let len = u64::from(self.count).saturating_mul(DESCRIPTOR as u64 + self.name as u64);
        checked("the descriptors", len)
    }
}

/// The length of a part.
fn checked(part: &'static str, len: u64) -> Result<usize, FormatError> {
    let fits = usize::try_from(len).ok().filter(|&len| len <= MOST);
    fits.ok_or(FormatError::Long { part, len })
}

/// Where the descriptors are in the file, and how many bytes.
///
/// # Errors
/// When the header is cut off, or speaks of more than is plausible.
pub fn descriptors_at(header: &[u8]) -> Result<(u64, usize), FormatError> {
    let header = Header::of(header)?;
    Ok((header.descriptors.into(), header.len()?))
}

/// One statistic: what it is, and the place of its first value.
#[derive(Clone, Debug)]
struct Described {
    metric: Metric,
    at: usize,
    count: usize,
}

/// What statistics there are, and where their values.
#[derive(Clone, Debug)]
pub struct Layout {
    data: u64,
    len: usize,
    described: Vec<Described>,
    unknown: usize,
}

impl Layout {
    /// Reads header and descriptors.
    ///
    /// # Errors
    /// When they are cut off, or not in KVM's form.
    pub fn new(header: &[u8], descriptors: &[u8]) -> Result<Layout, FormatError> {
        let header = Header::of(header)?;
        let wanted = header.len()?;
        let part = "the block of descriptors";
        let Some(descriptors) = descriptors.get(..wanted) else {
            return Err(FormatError::Short { part, len: descriptors.len(), wanted });
        };
        let (mut described, mut unknown, mut len) = (Vec::new(), 0, 0);
        for (index, bytes) in descriptors.chunks_exact(DESCRIPTOR + header.name).enumerate() {
            let Some(one) = describe(index, bytes)? else {
                unknown += 1;
                continue;
            };
            // The values of different statistics do not overlap in KVM's file; if they do here, no more is
            // read for it than that many bytes.
            len = len.max(one.at as u64 + 8 * one.count as u64);
            described.push(one);
        }
        let len = checked("the values", len)?;
        let values: u64 = described.iter().map(|one| 8 * one.count as u64).sum();
        checked("all values", values)?;
        Ok(Layout { data: header.data.into(), len, described, unknown })
    }

    /// How many statistics are left out, as their kind or unit is not known.
    pub fn unknown(&self) -> usize {
        self.unknown
    }

    /// Where the values are in the file, and how many bytes.
    pub fn data_at(&self) -> (u64, usize) {
        (self.data, self.len)
    }

    /// The statistics with their values.
    ///
    /// # Errors
    /// When the values are cut off.
    pub fn metrics(&self, data: &[u8]) -> Result<Vec<Metric>, FormatError> {
        let short =
            FormatError::Short { part: "the block of values", len: data.len(), wanted: self.len };
        let with = |one: &Described| {
            let bytes = data.get(one.at..one.at + 8 * one.count)?;
            let (words, _) = bytes.as_chunks::<8>();
            let values = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
            Some(Metric { values, ..one.metric.clone() })
        };
        self.described.iter().map(with).collect::<Option<_>>().ok_or(short)
    }
}

/// Reads one descriptor; `None` if its kind or unit is not known.
fn describe(index: usize, bytes: &[u8]) -> Result<Option<Described>, FormatError> {
    let wrong = FormatError::Name { index };
    let name = bytes.get(DESCRIPTOR..).unwrap_or_default();
    let end = name.iter().position(|&byte| byte == 0).ok_or(wrong.clone())?;
    let name =
        name.get(..end).filter(|name| !name.is_empty() && name.iter().all(u8::is_ascii_graphic));
    let name = name.and_then(|name| str::from_utf8(name).ok()).ok_or(wrong)?;
    let flags = dword(bytes, 0).unwrap_or(0);
    let kind = match flags & KVM_STATS_TYPE_MASK {
        KVM_STATS_TYPE_CUMULATIVE => Kind::Cumulative,
        KVM_STATS_TYPE_INSTANT => Kind::Instant,
        KVM_STATS_TYPE_PEAK => Kind::Peak,
        KVM_STATS_TYPE_LINEAR_HIST => Kind::Linear,
        KVM_STATS_TYPE_LOG_HIST => Kind::Log,
        _ => return Ok(None),
    };
    let unit = match flags & KVM_STATS_UNIT_MASK {
        KVM_STATS_UNIT_NONE => Unit::None,
        KVM_STATS_UNIT_BYTES => Unit::Bytes,
        KVM_STATS_UNIT_SECONDS => Unit::Seconds,
        KVM_STATS_UNIT_CYCLES => Unit::Cycles,
        KVM_STATS_UNIT_BOOLEAN => Unit::Boolean,
        _ => return Ok(None),
    };
    let base = match flags & KVM_STATS_BASE_MASK {
        KVM_STATS_BASE_POW10 => 10,
        KVM_STATS_BASE_POW2 => 2,
        _ => return Ok(None),
    };
    let metric = Metric {
        name: name.to_owned(),
        kind,
        unit,
        base,
        exponent: word(bytes, 4).unwrap_or(0).cast_signed(),
        bucket_size: dword(bytes, 12).unwrap_or(0),
        values: Vec::new(),
    };
    let (at, count) = (dword(bytes, 8).unwrap_or(0), word(bytes, 6).unwrap_or(0));
    Ok(Some(Described { metric, at: at as usize, count: count.into() }))
}

/// A whole file at once: its statistics with their values.
///
/// # Errors
/// When it is cut off, or not in KVM's form.
pub fn parse(file: &[u8]) -> Result<Vec<Metric>, FormatError> {
    let part = |at: u64| usize::try_from(at).ok().and_then(|at| file.get(at..)).unwrap_or_default();
    let (at, _) = descriptors_at(file)?;
    let layout = Layout::new(file, part(at))?;
    layout.metrics(part(layout.data_at().0))
}
