//! What an image that cannot be booted looks like, so that its owner is told what to do with it.

/// How a kind of file is told, and what its owner can do with it.
struct Kind {
    offset: usize,
    magic: &'static [u8],
    name: &'static str,
    advice: &'static str,
}

const UNPACK: &str = "unpack it first";
const DISK: &str = "attach it as a disk; it is not a kernel";
const WRAPPED: &str = "take the kernel out of it, as an ELF";

/// The first that fits is the one: a bzImage is a PE image and a boot sector too.
const KINDS: &[Kind] = &[
    Kind {
        offset: 0x202,
        magic: b"HdrS",
        name: "a Linux bzImage",
        advice: "not supported yet; boot the vmlinux inside it (scripts/extract-vmlinux of the Linux \
                 sources takes it out), which needs CONFIG_PVH",
    },
    Kind { offset: 0, magic: b"\x1f\x8b", name: "a gzip file", advice: UNPACK },
    Kind { offset: 0, magic: b"\xfd7zXZ\0", name: "an xz file", advice: UNPACK },
    Kind { offset: 0, magic: b"\x28\xb5\x2f\xfd", name: "a zstd file", advice: UNPACK },
    Kind { offset: 0, magic: b"BZh", name: "a bzip2 file", advice: UNPACK },
    Kind { offset: 0, magic: b"\x04\x22\x4d\x18", name: "an lz4 file", advice: UNPACK },
    Kind { offset: 0, magic: b"\x02\x21\x4c\x18", name: "an lz4 file", advice: UNPACK },
    Kind { offset: 0, magic: b"PK\x03\x04", name: "a zip file", advice: UNPACK },
    Kind { offset: 257, magic: b"ustar", name: "a tar file", advice: UNPACK },
    Kind { offset: 0, magic: b"MZ", name: "a PE (EFI or Windows) program", advice: WRAPPED },
    Kind { offset: 0, magic: b"\x27\x05\x19\x56", name: "a U-Boot image", advice: WRAPPED },
    Kind { offset: 0, magic: b"\xcf\xfa\xed\xfe", name: "a Mach-O program", advice: WRAPPED },
    Kind {
        offset: 0,
        magic: b"!<arch>\n",
        name: "an archive (a library, or a Debian package)",
        advice: WRAPPED,
    },
    Kind {
        offset: 0,
        magic: b"07070",
        name: "a cpio archive (an initramfs)",
        advice: "give it as a module beside a kernel",
    },
    Kind { offset: 0, magic: b"QFI\xfb", name: "a qcow2 disk image", advice: DISK },
    Kind { offset: 0x8001, magic: b"CD001", name: "an ISO 9660 image", advice: DISK },
    Kind {
        offset: 0x28,
        magic: b"_FVH",
        name: "a UEFI firmware volume",
        advice: "firmware is not booted this way",
    },
    Kind { offset: 0, magic: b"#!", name: "a script", advice: "give the kernel that it starts" },
    Kind {
        offset: 510,
        magic: b"\x55\xaa",
        name: "a boot sector or a disk image",
        advice: "boot it with --boot flat:0x7c00:real16, or attach it as a disk",
    },
];

/// What the bytes look like, and what to do about it.
pub(super) fn looks(image: &[u8]) -> (&'static str, &'static str) {
    if image.is_empty() {
        return ("an empty file", "give one that holds a kernel");
    }
    let fits = |k: &&Kind| image.get(k.offset..).is_some_and(|rest| rest.starts_with(k.magic));
    if let Some(kind) = KINDS.iter().find(fits) {
        return (kind.name, kind.advice);
    }
    let head = &image[..image.len().min(512)];
    if head.iter().all(|b| matches!(b, b' '..=b'~' | b'\t' | b'\n' | b'\r')) {
        return ("text", "give a file that holds a kernel");
    }
    ("unknown data", "give an ELF, or say where raw code belongs with --boot flat:ADDR:MODE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart() {
        let at = |offset: usize, magic: &[u8]| {
            let mut image = vec![0; 0x9000];
            image[offset..offset + magic.len()].copy_from_slice(magic);
            looks(&image).0
        };
        for kind in KINDS {
            assert_eq!(at(kind.offset, kind.magic), kind.name);
        }
        let mut kernel = vec![0; 0x1000];
        kernel[..2].copy_from_slice(b"MZ");
        kernel[510..512].copy_from_slice(b"\x55\xaa");
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(looks(&kernel).0, "a Linux bzImage");
        assert_eq!(looks(b"").0, "an empty file");
        assert_eq!(looks(b"hello\n").0, "text");
        assert_eq!(looks(b"\0").0, "unknown data");
        assert_eq!(looks(b"#").0, "text");
    }
}
