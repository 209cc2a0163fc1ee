//! Images: loading one into a guest's memory, taking one out of another, making one.

use std::hint::black_box;
use std::io::{Read, Write};

use hosts::cpio::Archive;
use hosts::kernel;
use vmm::boot::{self, Mode, Protocol, RamState};
use vmm::ram::{Backing, GuestRam};

use super::{Pair, Scene};

const COPY: &str = "a copy of its bytes";

pub(super) const SCENES: &[Scene] = &[
    scene("load_flat", COPY, || load(code(), Protocol::Flat { addr: START, mode: Mode::Long64 })),
    scene("load_elf", COPY, || load(elf(false), Protocol::Elf)),
    scene("load_pvh", COPY, || load(elf(true), Protocol::Pvh)),
    scene("load_multiboot", COPY, || load(multiboot(), Protocol::Multiboot)),
    scene("vmlinux_of_bzimage", "its decompression alone", bzimage),
    scene("archive", COPY, archive),
];

const fn scene(name: &'static str, against: &'static str, make: fn() -> Pair) -> Scene {
    Scene { group: "image", name, against, make }
}

/// Where an image lies in memory, in bytes, and how long it is.
const START: u64 = 1 << 20;
const LENGTH: usize = 256 << 10;
const MEMORY: u64 = 16 << 20;

/// Bytes that look like a program's: neither all alike nor without any order.
fn code() -> Vec<u8> {
    (0..LENGTH).map(|i| ((i * i) >> 7) as u8).collect()
}

/// An ELF64 with these bytes as its one segment, and Xen's note (ELF-64 object file format; Xen's
/// docs/misc/pvh.pandoc) if `pvh` says so.
fn elf(pvh: bool) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    let words = |image: &mut Vec<u8>, words: &[(u64, usize)]| {
        words.iter().for_each(|(word, len)| image.extend(&word.to_le_bytes()[..*len]));
    };
    let segments = 1 + u64::from(pvh);
    // Executable, x86-64, version, entry, program headers, no sections, flags, sizes.
    words(&mut image, &[(2, 2), (62, 2), (1, 4), (START, 8), (64, 8), (0, 8), (0, 4)]);
    words(&mut image, &[(64, 2), (56, 2), (segments, 2), (64, 2), (0, 2), (0, 2)]);
    let len = LENGTH as u64;
    // PT_LOAD, all rights.
    words(&mut image, &[(1, 4), (7, 4), (HEADERS, 8), (START, 8), (START, 8)]);
    words(&mut image, &[(len, 8), (len, 8), (0x1000, 8)]);
    // PT_NOTE, of 20 bytes.
    words(&mut image, &[(if pvh { 4 } else { 0 }, 4), (4, 4), (HEADERS + len, 8), (0, 8), (0, 8)]);
    words(&mut image, &[(20, 8), (20, 8), (4, 8)]);
    image.extend(code());
    // XEN_ELFNOTE_PHYS32_ENTRY.
    words(&mut image, &[(4, 4), (4, 4), (18, 4)]);
    image.extend(b"Xen\0");
    words(&mut image, &[(START, 4)]);
    image
}

/// Raw bytes with a multiboot header with address fields (Multiboot Specification 0.6.96, 3.1).
fn multiboot() -> Vec<u8> {
    let mut image = code();
    let (magic, flags) = (0x1bad_b002_u32, 1_u32 << 16);
    let start = START as u32;
    let end = start + LENGTH as u32;
    let header =
        [magic, flags, 0u32.wrapping_sub(magic + flags), start, start, end, end, start + 0x20];
    let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image[..bytes.len()].copy_from_slice(&bytes);
    image
}

fn load(image: Vec<u8>, protocol: Protocol) -> Pair {
    let ram = GuestRam::new(MEMORY, Backing::Auto).expect("the host has 16 MiB");
    let (other, same) = (ram.clone(), image.clone());
    let ours = move || {
        let request = boot::Request {
            protocol,
            ram_state: RamState::Used,
            ..boot::Request::new(black_box(&image), "image", &ram)
        };
        let loaded = boot::load(&request).unwrap_or_else(|e| panic!("{e}"));
        black_box(loaded.start);
    };
    ours();
    Pair::new(ours, move || other.write(START, black_box(&same)).expect("RAM"))
}

/// A vmlinux out of a bzImage that holds it compressed by gzip.
fn bzimage() -> Pair {
    let vmlinux = elf(true);
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(&vmlinux).expect("into memory");
    let packed = packer.finish().expect("into memory");
    // The real-mode kernel header (Linux, Documentation/arch/x86/boot.rst): one sector of set-up, version 2.15,
    // and where the payload is.
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(packed.len() as u32).to_le_bytes());
    image.extend(&packed);
    assert!(kernel::vmlinux("image", &image).is_ok_and(|found| found == vmlinux));
    let ours = move || drop(black_box(kernel::vmlinux("image", black_box(&image))));
    let bare = move || {
        let mut unpacked = Vec::with_capacity(vmlinux.len());
        let mut unpacker = flate2::read::GzDecoder::new(black_box(&packed[..]));
        unpacker.read_to_end(&mut unpacked).expect("what was packed");
        black_box(unpacked);
    };
    Pair::new(ours, bare)
}

/// An archive of files as an emulated host's image is one.
fn archive() -> Pair {
    const FILES: usize = 16;
    let file = code();
    let same = file.clone();
    let ours = move || {
        let mut archive = Archive::default();
        for i in 0..FILES {
            archive.file(&format!("bin/{i}"), 0o755, &file[..]).expect("a file");
        }
        assert!(black_box(archive.to_bytes()).len() > FILES * LENGTH);
    };
    let bare = move || {
        let mut all: Vec<u8> = Vec::with_capacity(FILES * LENGTH);
        (0..FILES).for_each(|_| all.extend_from_slice(black_box(&same)));
        black_box(all);
    };
    Pair::new(ours, bare)
}
