//! What a Linux kernel's bzImage holds: its release, the vmlinux ELF, and that ELF laid out flat.
//!
//! An emulator's boot loader and the kernel's own decompressor cost seconds of emulated time, which
//! is why the ELF is taken out here and entered by PVH. Offsets are those of the Linux boot protocol
//! (Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use vmm::boot::{self, Protocol, What};
use vmm::ram::{Backing, GuestRam};

use crate::compression::{self, CompressionError};

/// The largest vmlinux that is taken out of a bzImage, in bytes. Debian's have a tenth of it.
pub const MAX_VMLINUX: u32 = 512 << 20;
/// Memory that a vmlinux is laid out in, from address 0.
const LAYOUT: u64 = 1 << 30;

/// A kernel that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use kernel {image}: {fault}")]
pub struct KernelError {
    /// The kernel, as the caller named it.
    pub image: String,
    /// What is wrong.
    pub fault: KernelFault,
}

/// What is wrong with a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelFault {
    /// Another kind of file.
    #[error(
        "it is no bzImage ({why}); a host boots an x86 kernel as distributions install it, \
         /boot/vmlinuz-RELEASE"
    )]
    NoBzImage {
        /// How that was told.
        why: &'static str,
    },
    /// A bzImage of before 2007.
    #[error(
        "its boot protocol is {}.{:02}; version 2.08 (Linux 2.6.26) is the first that says where the \
         compressed kernel lies",
        version >> 8,
        version & 0xff
    )]
    OldProtocol {
        /// The version field.
        version: u16,
    },
    /// The file ends early.
    #[error(
        "{what} ends at byte {needs}, and the file has {has}: it was cut off, fetch or install it again"
    )]
    Truncated {
        /// What is missing.
        what: &'static str,
        /// How long the file would have to be.
        needs: u64,
        /// How long it is.
        has: u64,
    },
    /// It names no release.
    #[error("its header names no release (kernel_version at 0x20e is {at:#x})")]
    NoRelease {
        /// The field.
        at: u16,
    },
    /// The compressed kernel.
    #[error("its compressed part: {0}")]
    Compression(#[from] CompressionError),
    /// The size that is stored behind the compressed kernel.
    #[error(
        "its compressed part says that it has {said} bytes uncompressed, and {found}: the file is \
         damaged, fetch or install it again"
    )]
    Size {
        /// What the file says.
        said: u32,
        /// What is the case.
        found: String,
    },
    /// Its ELF cannot be loaded or entered.
    #[error("its vmlinux: {0}")]
    Elf(boot::Fault),
    /// There was no memory to lay it out in.
    #[error("no memory to lay it out in: {0}")]
    Memory(#[from] vmm::ram::RamError),
}

/// The fields of a bzImage's header that are used.
struct Header<'a> {
    bytes: &'a [u8],
    kernel_version: u16,
    /// Where the protected-mode part starts.
    protected: u64,
    payload_offset: u32,
    payload_length: u32,
}

impl<'a> Header<'a> {
    /// Reads the header, and refuses what is no bzImage.
    fn parse(bytes: &'a [u8]) -> Result<Header<'a>, KernelFault> {
        let no = |why| Err(KernelFault::NoBzImage { why });
        if bytes.starts_with(b"\x7fELF") {
            return no("it is an ELF, as is the vmlinux of a kernel's build folder");
        }
        let Some(head) = bytes.first_chunk::<0x250>() else {
            return no("it is shorter than the header of one");
        };
        let word = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let long = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        if word(0x1fe) != 0xaa55 || head[0x202..0x206] != *b"HdrS" {
            return no("it has no 0xaa55 at 0x1fe and `HdrS` at 0x202");
        }
        let version = word(0x206);
        if version < 0x208 {
            return Err(KernelFault::OldProtocol { version });
        }
        // 0 stands for 4, and the boot sector itself is not counted.
        let setup_sects = if head[0x1f1] == 0 { 4 } else { head[0x1f1] };
        Ok(Header {
            bytes,
            kernel_version: word(0x20e),
            protected: (u64::from(setup_sects) + 1) * 512,
            payload_offset: long(0x248),
            payload_length: long(0x24c),
        })
    }

    /// The compressed kernel, with the size that is stored at its end.
    fn payload(&self) -> Result<&'a [u8], KernelFault> {
        let start = self.protected + u64::from(self.payload_offset);
        let needs = start + u64::from(self.payload_length);
        let has = self.bytes.len() as u64;
        if needs > has {
            return Err(KernelFault::Truncated { what: "the compressed kernel", needs, has });
        }
        Ok(&self.bytes[start as usize..needs as usize])
    }
}

/// The release of a kernel as `uname -r` prints it, such as `6.1.0-48-cloud-amd64`. `image` names
/// the file in errors; `bzimage` is the file.
///
/// # Errors
/// It is no bzImage, or does not name a release.
pub fn release(image: &str, bzimage: &[u8]) -> Result<String, KernelError> {
    let find = || {
        let at = Header::parse(bzimage)?.kernel_version;
        let text = bzimage.get(0x200 + usize::from(at)..).unwrap_or_default();
        let end = text.iter().position(|b| !b.is_ascii_graphic()).unwrap_or(text.len());
        if at == 0 || end == 0 {
            return Err(KernelFault::NoRelease { at });
        }
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    };
    find().map_err(|fault| KernelError { image: image.to_owned(), fault })
}

/// The vmlinux ELF that a bzImage holds. `image` names the file in errors; `bzimage` is the file.
///
/// # Errors
/// It is no bzImage, it is damaged, its compression is not known, or it has more than
/// [`MAX_VMLINUX`] bytes uncompressed.
pub fn vmlinux(image: &str, bzimage: &[u8]) -> Result<Vec<u8>, KernelError> {
    unpack(bzimage).map_err(|fault| KernelError { image: image.to_owned(), fault })
}

fn unpack(bzimage: &[u8]) -> Result<Vec<u8>, KernelFault> {
    let payload = Header::parse(bzimage)?.payload()?;
    // The uncompressed size stands behind it; gzip has it as its own trailer (RFC 1952, ISIZE).
    let Some((data, size)) = payload.split_last_chunk::<4>() else {
        return Err(CompressionError::Unknown { what: "there is none".to_owned() }.into());
    };
    let said = u32::from_le_bytes(*size);
    let wrong = |found| Err(KernelFault::Size { said, found });
    if said > MAX_VMLINUX {
        return wrong(format!("that is more than the {MAX_VMLINUX} bytes that are allowed"));
    }
    let data = match compression::Format::of(data)? {
        compression::Format::Gzip => payload,
        _ => data,
    };
    match compression::decompress(data, said.into()) {
        Ok(vmlinux) if vmlinux.len() == said as usize => Ok(vmlinux),
        Ok(vmlinux) => wrong(format!("has {}", vmlinux.len())),
        Err(CompressionError::TooLong { .. }) => wrong("has more".to_owned()),
        Err(e) => Err(e.into()),
    }
}

/// A kernel as it lies in memory when it is entered, for an emulator that can put a file at an
/// address.
#[derive(Clone, PartialEq, Eq)]
pub struct Flat {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// What lies there. Zeros at its end (bss) are left out: memory must be zero behind it.
    pub bytes: Vec<u8>,
    /// The address of the 32-bit entry (Xen's docs/misc/pvh.pandoc), in protected mode, without
    /// paging, `ebx` = `hvm_start_info`.
    pub pvh_entry: u32,
}

/// Lays out an ELF's segments at their physical addresses. `image` names it in errors.
///
/// # Errors
/// The VMM's loader would refuse it, for the same reasons; among them that it has no PVH entry.
pub fn flat(image: &str, vmlinux: &[u8]) -> Result<Flat, KernelError> {
    lay_out(image, vmlinux).map_err(|fault| KernelError { image: image.to_owned(), fault })
}

fn lay_out(image: &str, vmlinux: &[u8]) -> Result<Flat, KernelFault> {
    let ram = GuestRam::new(LAYOUT, Backing::Auto)?;
    let protocol = Protocol::Pvh;
    let request = boot::Request { protocol, ..boot::Request::new(vmlinux, image, &ram) };
    let loaded = boot::load(&request).map_err(|e| KernelFault::Elf(e.fault))?;
    // Lowest first; the loader puts nothing of its own between them that could be seen here.
    let segments = loaded.placed.iter().filter(|p| matches!(p.what, What::Segment(_)));
    let segments: Vec<_> = segments.map(|p| (p.start, p.len)).collect();
    let address = segments.first().map_or(0, |(start, _)| *start);
    let end = segments.last().map_or(0, |(start, len)| start + len);
    let mut bytes = vec![0; (end - address) as usize];
    for (start, len) in segments {
        let at = (start - address) as usize;
        let to = &mut bytes[at..at + len as usize];
        ram.read(start, to).expect("the loader has put a segment there");
    }
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    bytes.truncate(end);
    Ok(Flat { address, bytes, pvh_entry: loaded.entry as u32 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compression::Format;
    use crate::compression::tests::{code, compress};

    const RELEASE: &str = "6.1.0-48-cloud-amd64";

    /// A bzImage of three sectors of set-up, with this payload.
    fn bzimage(payload: &[u8], size: u32) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[0x1f1] = 2;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&64_u32.to_le_bytes());
        image[0x24c..0x250]
            .copy_from_slice(&(payload.len() as u32 + size_bytes(payload)).to_le_bytes());
        let version = format!("{RELEASE} (someone@somewhere) #1 SMP\0");
        image[0x500..0x500 + version.len()].copy_from_slice(version.as_bytes());
        image.extend([0x90; 64]);
        image.extend(payload);
        if size_bytes(payload) == 4 {
            image.extend(size.to_le_bytes());
        }
        image.extend([0xcc; 100]);
        image
    }

    /// gzip ends in the size anyway.
    fn size_bytes(payload: &[u8]) -> u32 {
        if payload.starts_with(&[0x1f, 0x8b]) { 0 } else { 4 }
    }

    #[test]
    fn a_kernel_is_taken_out_of_every_format() {
        let plain = code(300_000);
        for format in [Format::Gzip, Format::Xz, Format::Zstd, Format::Lz4] {
            let image = bzimage(&compress(format, &plain), plain.len() as u32);
            assert!(vmlinux("k", &image).is_ok_and(|v| v == plain), "{format}");
            assert_eq!(release("k", &image).unwrap(), RELEASE);
        }
    }

    #[test]
    fn zero_sectors_of_set_up_are_four() {
        let plain = code(1000);
        let mut image = bzimage(&compress(Format::Lz4, &plain), 1000);
        image[0x1f1] = 0;
        image.splice(3 * 512..3 * 512, [0; 2 * 512]);
        assert_eq!(vmlinux("k", &image).unwrap(), plain);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let plain = code(1000);
        let good = bzimage(&compress(Format::Zstd, &plain), 1000);
        let bent = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut image = good.clone();
            change(&mut image);
            vmlinux("/boot/vmlinuz", &image).unwrap_err().to_string()
        };
        let is = |error: String, words: &[&str]| {
            assert!(error.starts_with("cannot use kernel /boot/vmlinuz: "), "{error}");
            for word in words {
                assert!(error.contains(word), "{error}: no `{word}`");
            }
        };
        is(bent(&|i| i.truncate(0x200)), &["shorter than the header"]);
        is(bent(&|i| i[..4].copy_from_slice(b"\x7fELF")), &["is an ELF", "/boot/vmlinuz-RELEASE"]);
        is(bent(&|i| i[0x203] = b'x'), &["no bzImage", "HdrS"]);
        is(bent(&|i| i[0x206] = 7), &["boot protocol is 2.07", "2.08"]);
        is(bent(&|i| i.truncate(i.len() - 101)), &["cut off", "the file has 1"]);
        is(bent(&|i| i[3 * 512 + 64..][..4].fill(7)), &["no known way", "[07 07 07 07"]);
        is(bent(&|i| i[0x24f] = 0x7f), &["cut off"]);
        is(bent(&|i| i[0x24c..0x250].fill(0)), &["there is none"]);
        let said = good.len() - 104;
        is(bent(&|i| i[said + 3] = 0x30), &["805307368 bytes", "more than the 536870912"]);
        is(bent(&|i| i[said] -= 1), &["says that it has 999", "and has more", "damaged"]);
        is(bent(&|i| i[said] += 1), &["says that it has 1001", "and has 1000"]);
        is(bent(&|i| i[said - 9] ^= 1), &["zstd data is damaged"]);
        for at in [[0, 0], [0xff, 0xff]] {
            let mut image = good.clone();
            image[0x20e..0x210].copy_from_slice(&at);
            let error = release("/boot/vmlinuz", &image).unwrap_err().to_string();
            is(error, &["names no release"]);
        }
    }

    /// An ELF64 with one segment of two pages, one of them bss, another one above it, and maybe
    /// the note that names the entry.
    fn elf(note: &[u8]) -> Vec<u8> {
        let segment = |kind: u32, offset: u64, paddr: u64, file: u64, memory: u64| {
            let mut p = [kind.to_le_bytes(), 7_u32.to_le_bytes()].concat();
            for value in [offset, 0xffff_ffff_8000_0000 + paddr, paddr, file, memory, 4] {
                p.extend(value.to_le_bytes());
            }
            p
        };
        let notes = [&4_u32.to_le_bytes()[..], &(note.len() as u32).to_le_bytes(), &[18, 0, 0, 0]];
        let notes = [&notes.concat()[..], b"Xen\0", note].concat();
        let mut image = b"\x7fELF\x02\x01\x01".to_vec();
        image.resize(16, 0);
        image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for value in [0x100_0000_u64, 64, 0] {
            image.extend(value.to_le_bytes());
        }
        image.extend([0, 0, 0, 0, 64, 0, 56, 0, 3, 0, 64, 0, 0, 0, 0, 0]);
        image.extend(segment(1, 0x200, 0x100_0000, 0x100, 0x2000));
        image.extend(segment(1, 0x300, 0x100_3000, 2, 0x1000));
        image.extend(segment(4, 0x400, 0, notes.len() as u64, notes.len() as u64));
        image.resize(0x200, 0);
        image.extend([0x11; 0x100]);
        image.extend([0x22; 0x100]);
        image.extend(notes);
        image
    }

    #[test]
    fn segments_lie_at_their_physical_addresses() {
        for note in [&0x100_0040_u32.to_le_bytes()[..], &0x100_0040_u64.to_le_bytes()] {
            let flat = flat("k", &elf(note)).unwrap();
            assert_eq!((flat.address, flat.pvh_entry), (0x100_0000, 0x100_0040));
            let gap = vec![0; 0x3000 - 0x100];
            assert!(flat.bytes == [&[0x11; 0x100][..], &gap, &[0x22; 2]].concat());
        }
    }

    #[test]
    fn an_elf_that_cannot_be_entered_says_why() {
        let error = |elf: &[u8]| flat("k", elf).map(drop).unwrap_err().to_string();
        assert!(error(b"").contains("an ELF was expected"), "{}", error(b""));
        let elf = elf(&[0; 4]);
        assert!(error(&elf).contains("PHYS32_ENTRY is 0x0"), "{}", error(&elf));
        let mut nameless = elf;
        nameless[0x400 + 12] = b'x';
        assert!(error(&nameless).contains("CONFIG_PVH"), "{}", error(&nameless));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            changes in prop::collection::vec((0..0x700_usize, any::<u8>()), 0..12),
            cut in 0..0x700_usize,
        ) {
            let mut image = bzimage(&compress(Format::Lz4, &code(200)), 200);
            for (at, value) in changes {
                let at = at % image.len();
                image[at] = value;
            }
            let _ = (vmlinux("k", &image), release("k", &image));
            image.truncate(cut);
            let _ = (vmlinux("k", &image), release("k", &image));
        }
    }
}
