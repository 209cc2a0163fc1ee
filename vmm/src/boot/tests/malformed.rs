//! Images that must be refused, and what is said of each.

use super::image::{
    Seg, field, link, multiboot, multiboot_elf, multiboot_raw, note, plain, pvh, seg, set,
};
use super::*;
use crate::boot::{MAX_CMDLINE, MemKind, MemRange, Mode, Module, Protocol};
use crate::ram::HOLE_START;

/// Wants `image` refused with all of `says`, and memory untouched.
#[track_caller]
fn refuse(image: &[u8], protocol: Protocol, says: &[&str]) {
    let ram = ram(4 * MIB);
    let error = refused(&Request { protocol, ..Request::new(image, "dir/kernel", &ram) });
    assert!(error.starts_with("cannot boot dir/kernel ("), "{error}");
    for part in says {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
    assert_eq!(dirty(&ram), [0_u64; 0], "{error}");
}

#[test]
fn every_field_of_an_elf_is_checked() {
    // Field, value, and what must be said: for ELF32 and ELF64 alike.
    let table: &[(&str, u64, &[&str])] = &[
        ("e_ident[EI_CLASS]", 0, &["ELF header: e_ident[EI_CLASS] is 0x0", "ELFCLASS32"]),
        ("e_ident[EI_CLASS]", 3, &["is 0x3", "ELFCLASS64"]),
        ("e_ident[EI_DATA]", 2, &["e_ident[EI_DATA] is 0x2", "expected 0x1", "little-endian"]),
        ("e_ident[EI_VERSION]", 0, &["e_ident[EI_VERSION] is 0x0", "expected 0x1"]),
        ("e_type", 0, &["e_type is 0x0", "ET_EXEC"]),
        ("e_type", 1, &["e_type is 0x1", "object file"]),
        ("e_type", 3, &["e_type is 0x3", "position-independent", "-no-pie"]),
        ("e_type", 4, &["e_type is 0x4", "ET_EXEC"]),
        ("e_machine", 183, &["e_machine is 0xb7", "that is AArch64"]),
        ("e_machine", 0, &["e_machine is 0x0", "expected"]),
        ("e_version", 2, &["e_version is 0x2", "expected 0x1"]),
        ("e_ehsize", 0, &["e_ehsize is 0x0", "expected 0x"]),
        ("e_phentsize", 1, &["e_phentsize is 0x1", "expected 0x"]),
        ("e_phnum", 0, &["e_phnum is 0x0", "from 1 to 0xfffe"]),
        ("e_phnum", 0xffff, &["e_phnum is 0xffff", "from 1 to 0xfffe"]),
        ("e_phnum", 0xfffe, &["e_phoff is", "65534 entries", "inside the file"]),
        ("e_phoff", 0xffff_fff0, &["e_phoff is 0xfffffff0", "inside the file"]),
        (
            "e_entry",
            0x50_0000,
            &["e_entry is 0x500000", "inside what is loaded: 0x100000..0x103000"],
        ),
        ("e_entry", 0x10_3000, &["e_entry is 0x103000"]),
        ("e_entry", 0, &["e_entry is 0x0"]),
        ("p_type", 3, &["program header 0: p_type is 0x3", "dynamic linker"]),
        ("p_type", 0, &["no PT_LOAD segment"]),
        ("p_offset", 0x7fff_ffff, &["program header 0: p_offset is 0x7fffffff", "inside the file"]),
        ("p_filesz", 0x2fff, &["p_filesz is 0x2fff", "the file ends there"]),
        ("p_filesz", 0xffff_fff0, &["p_memsz is 0x3000", "at least p_filesz, 0xfffffff0"]),
        ("p_memsz", 0x3f, &["p_memsz is 0x3f", "at least p_filesz, 0x40"]),
        ("p_memsz", 0x30_0001, &["header 0 at 0x100000, 0x300001 bytes", "RAM ends before it"]),
        (
            "p_paddr",
            0x9_f000,
            &["at 0x9f000", "VGA window at 0xa0000..0xc0000", "RAM is 0x0..0xa0000"],
        ),
        ("p_paddr", 0xb_0000, &["VGA window"]),
        ("p_paddr", 0x40_0000, &["RAM ends before it", "more memory"]),
        ("p_paddr", 0xffff_f000, &["at 0xfffff000", "window of PCI and chips"]),
    ];
    for is_64 in [false, true] {
        for &(name, value, says) in table {
            let mut image = plain(is_64);
            set(&mut image, is_64, name, value);
            refuse(&image, Protocol::Elf, says);
            refuse(&image, Protocol::Auto, says);
        }
        // The class decides on the machine.
        let (other, says) = if is_64 { (3, "that is i386") } else { (62, "that is x86-64") };
        let mut image = plain(is_64);
        set(&mut image, is_64, "e_machine", other);
        refuse(&image, Protocol::Elf, &["e_machine is", says]);
    }
    // What 64 bits can hold and 32 cannot.
    for (name, value, says) in [
        ("e_phoff", u64::MAX, "e_phoff is 0xffffffffffffffff"),
        ("p_offset", u64::MAX, "p_offset is 0xffffffffffffffff"),
        ("p_memsz", u64::MAX, "p_paddr is 0x100000, expected an address that p_memsz"),
        ("p_paddr", u64::MAX, "p_paddr is 0xffffffffffffffff"),
        ("p_filesz", u64::MAX, "at least p_filesz, 0xffffffffffffffff"),
    ] {
        let mut image = plain(true);
        set(&mut image, true, name, value);
        refuse(&image, Protocol::Elf, &[says]);
    }
}

#[test]
fn fields_that_do_not_matter_change_nothing_and_all_others_do() {
    for is_64 in [false, true] {
        let good = plain(is_64);
        let expected = loaded(&Request::new(&good, "k", &ram(4 * MIB)));
        // EI_OSABI to the end of e_ident; e_shoff and e_flags; the fields of sections.
        let ignored = if is_64 { [7..16, 40..52, 58..64] } else { [7..16, 32..40, 46..52] };
        for at in 0..field(is_64, "p_type").0 {
            let mut image = good.clone();
            image[at] ^= 0xff;
            let outcome = load(&Request::new(&image, "k", &ram(4 * MIB)));
            if ignored.iter().any(|fields| fields.contains(&at)) {
                assert_eq!(outcome.as_ref(), Ok(&expected), "byte {at} matters");
            } else {
                assert_ne!(outcome.as_ref(), Ok(&expected), "byte {at} does not matter");
            }
        }
    }
}

#[test]
fn segments_that_overlap_or_are_missing() {
    let two = |a: Seg, b: Seg| link(true, 0x10_0000, &[a, b]);
    let first = seg(0x10_0000, &[0x90; 0x40], 0x1000);
    refuse(
        &two(first.clone(), seg(0x10_0fff, &[1], 1)),
        Protocol::Elf,
        &[
            "program header 0 at 0x100000..0x101000 overlaps the segment of program header 1 at 0x100fff",
        ],
    );
    refuse(
        &two(seg(0x10_0010, &[1], 1), first.clone()),
        Protocol::Elf,
        &["program header 1 at 0x100000..0x101000 overlaps the segment of program header 0"],
    );
    refuse(&two(seg(0x20_0000, &[], 0), seg(0, &[], 0)), Protocol::Elf, &["no PT_LOAD segment"]);
    // Neighbours do not overlap, and an empty segment is nowhere.
    let ram = ram(4 * MIB);
    for second in [seg(0x10_1000, &[1], 1), seg(0x10_0800, &[], 0), seg(u64::MAX, &[], 0)] {
        loaded(&Request::new(&two(first.clone(), second), "k", &ram));
    }

    let tables = [MemRange::new(0x10_2000, 0x10_3000, MemKind::Acpi)];
    let image = plain(true);
    let error = refused(&Request { reserved: &tables, ..Request::new(&image, "k", &ram) });
    let says = "0x100000..0x103000 overlaps the board's range (ACPI tables) at 0x102000..0x103000";
    assert!(error.contains(says), "{error}");
}

#[test]
fn pvh_notes_that_cannot_be_used() {
    let with = |n: Seg| link(true, 0x10_0000, &[seg(0x10_0000, &[0x90; 0x40], 0x40), n]);
    refuse(&plain(true), Protocol::Pvh, &["XEN_ELFNOTE_PHYS32_ENTRY", "CONFIG_PVH"]);
    let short = with(note(b"Xen\0", 18, &[1, 2], 4));
    refuse(
        &short,
        Protocol::Pvh,
        &["note in program header 1: n_descsz", "is 0x2, expected 4 or 8"],
    );
    let outside = with(note(b"Xen\0", 18, &[0, 0, 0x20, 0], 4));
    refuse(
        &outside,
        Protocol::Pvh,
        &["XEN_ELFNOTE_PHYS32_ENTRY is 0x200000", "inside what is loaded"],
    );
    for (word, says) in [(0, "n_namesz is 0xfffffff0"), (4, "n_descsz is 0xfffffff0")] {
        let mut n = note(b"GNU\0", 1, &[1; 4], 4);
        n.data[word..word + 4].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
        refuse(&with(n), Protocol::Auto, &[says, "the segment ends there"]);
    }
    let mut image = pvh(true);
    // p_offset of the second program header.
    image[64 + 56 + 8..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refuse(&image, Protocol::Auto, &["program header 1: p_offset is 0xffffffffffffffff"]);
    let mut big = note(b"GNU\0", 1, &[0; 4], 4);
    big.data.resize((1 << 20) + 1, 0);
    refuse(
        &with(big),
        Protocol::Auto,
        &["p_filesz is 0x100001", "notes of at most 0x100000 bytes"],
    );
}

#[test]
fn entries_that_no_mode_reaches() {
    let ram = ram(HOLE_START + 64 * MIB);
    let high = 0x1_0010_0000;
    let image = link(true, high, &[seg(high, &[0x90; 4], 4)]);
    let error = refused(&Request::new(&image, "k", &ram));
    assert!(
        error.contains("e_entry is 0x100100000, expected an entry below 0x100000000"),
        "{error}"
    );
    // A segment up there is fine as long as the entry is not in it.
    let image = link(true, 0x10_0000, &[seg(0x10_0000, &[0x90; 4], 4), seg(high, &[5; 4], 4)]);
    loaded(&Request::new(&image, "k", &ram));
    assert_eq!(bytes(&ram, high), [5; 4]);
}

#[test]
fn multiboot_headers_that_cannot_be_used() {
    let mb = Protocol::Multiboot;
    let raw = |flags: u32, fields: &[u32]| {
        let mut image = vec![0xf4; 0x100];
        image.extend(multiboot(flags, fields));
        image
    };
    let elf = |code: Vec<u8>| link(false, 0x10_0000, &[seg(0x10_0000, &code, 0x40)]);
    refuse(&plain(false), mb, &["no multiboot 1 header"]);
    refuse(&[], mb, &["no multiboot 1 header", "the file is empty"]);
    refuse(&0xe852_50d6_u32.to_le_bytes(), mb, &["one of multiboot 2"]);
    refuse(&elf(multiboot(4, &[])), mb, &["flags is 0x4, expected bit 2 clear", "video mode"]);
    refuse(&elf(multiboot(0x8, &[])), mb, &["flags is 0x8, expected bits 0x8 clear"]);
    refuse(&raw(0, &[0; 5]), mb, &["an ELF, or a multiboot header with bit 16", "unknown data"]);
    refuse(&raw(0, &[0; 5]), Protocol::Auto, &["unknown data"]);
    let mut sum = multiboot_elf(false);
    let at = sum.windows(4).position(|w| w == [2, 0xb0, 0xad, 0x1b]).expect("a header");
    sum[at + 8] ^= 1;
    let says = format!("multiboot header at file offset {at:#x}: checksum is 0xe4524ffa");
    refuse(&sum, mb, &[&says, "expected 0xe4524ffb"]);
    // Too far from the start of the file, or not at a multiple of 4.
    let mut late = vec![0; 8192 - 8];
    late.extend(multiboot(1 << 16, &[0; 5]));
    refuse(&late, mb, &["no multiboot 1 header"]);
    let mut odd = vec![0; 2];
    odd.extend(multiboot(1 << 16, &[0; 5]));
    refuse(&odd, mb, &["no multiboot 1 header"]);

    let kludge = |fields: [u32; 5], says: &[&str]| refuse(&raw(1 << 16, &fields), mb, says);
    let base = 0x10_0000;
    // header, load, load end, bss end, entry
    kludge([base, base + 1, 0, 0, base], &["load_addr is 0x100001, expected at most header_addr"]);
    kludge([base + 0x101, base, 0, 0, base], &["load_addr is 0x100000", "0x100 bytes before"]);
    kludge(
        [base, base, base, 0, base],
        &["load_end_addr is 0x100000, expected 0, or above load_addr"],
    );
    kludge(
        [base, base, base + 33, 0, base],
        &["load_end_addr is 0x100021", "0x100020, where the file ends"],
    );
    kludge([base, base, 0, base + 31, base], &["bss_end_addr is 0x10001f", "at least 0x100020"]);
    kludge([base, base, 0, 0, base + 32], &["entry_addr is 0x100020", "0x100000..0x100020"]);
    kludge([base, base, 0, base << 3, base], &["the image at 0x100000, 0x700000 bytes"]);
    refuse(&raw(1 << 16, &[0; 4]), mb, &["the multiboot header ends at byte 288", "has 284 bytes"]);
}

#[test]
fn files_that_are_no_image() {
    for (bytes, says) in [
        (&b""[..], "an empty file"),
        (b"\x1f\x8b\x08", "a gzip file: unpack it first"),
        (b"#!/bin/sh\n", "a script"),
        (b"MZ", "a PE"),
        (b"hello", "text"),
    ] {
        refuse(bytes, Protocol::Auto, &["an ELF, or an image with a multiboot header", says]);
        refuse(bytes, Protocol::Elf, &["an ELF was expected", says]);
        refuse(bytes, Protocol::Pvh, &["an ELF was expected", says]);
    }
    let mut linux = vec![0; 0x400];
    linux[0x202..0x206].copy_from_slice(b"HdrS");
    refuse(&linux, Protocol::Auto, &["a Linux bzImage: not supported yet", "vmlinux"]);
    refuse(&multiboot_raw(), Protocol::Elf, &["an ELF was expected", "unknown data"]);
}

#[test]
fn flat_images_and_arguments_that_do_not_fit() {
    let flat = |addr, mode| Protocol::Flat { addr, mode };
    refuse(&[], flat(0, Mode::Real16), &["raw code was expected", "an empty file"]);
    for addr in [0x1_0001, 0x10_0000, u64::MAX] {
        refuse(&[0], flat(addr, Mode::Real16), &["flat image: address is", "a multiple of 16"]);
    }
    refuse(&[0; 2], flat(0x9_ffff, Mode::Long64), &["the image at 0x9ffff", "VGA window"]);
    refuse(&[0; 2], flat(u64::MAX, Mode::Long64), &["the image at 0xffffffffffffffff"]);

    let ram = ram(4 * MIB);
    let image = [0xf4];
    let real = Request { protocol: super::super::FLAT, ..Request::new(&image, "k", &ram) };
    let error = refused(&Request { cmdline: "x", ..real });
    assert!(error.contains("gets a command line, but has no way to find it"), "{error}");
    let error = refused(&Request { modules: &[Module::default()], ..real });
    assert!(error.contains("gets modules"), "{error}");
}

#[test]
fn command_lines_and_modules_that_do_not_fit() {
    let (ram, image) = (ram(4 * MIB), pvh(true));
    let request = Request::new(&image, "k", &ram);
    let long = "x".repeat(MAX_CMDLINE + 1);
    let error = refused(&Request { cmdline: &long, ..request });
    assert!(error.contains("the command line of the image: it has 65536 bytes"), "{error}");
    loaded(&Request { cmdline: &long[1..], ..request });
    let module = Module { name: "m", bytes: &[], cmdline: "a\0b" };
    let error = refused(&Request { modules: &[Module::default(), module], ..request });
    assert!(error.contains("the command line of module 1: byte 1 is 0"), "{error}");

    // RAM from the end of the kernel at 0x103000 to 4 MiB.
    let room = vec![1; 0x2f_d000];
    let modules = |len| [Module { name: "initrd", bytes: &room[..len], cmdline: "" }];
    loaded(&Request { modules: &modules(0x2f_d000), ..request });
    let big = vec![1; 0x2f_d001];
    let modules = [Module { name: "initrd", bytes: &big, cmdline: "" }];
    let error = refused(&Request { modules: &modules, ..request });
    let says =
        "module 0 of 3133441 bytes: the longest free run of RAM below 4 GiB has 3133440 bytes";
    assert!(error.contains(says), "{error}");
}
