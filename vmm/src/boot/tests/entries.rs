//! What each protocol hands over.

use super::image::{link, multiboot_elf, multiboot_raw, plain, pvh, seg};
use super::*;
use crate::boot::cpu::{RAX, RBX, RDI};
use crate::boot::{
    EBDA_START, MemKind, MemRange, Mode, Module, Protocol, STACK_BYTES, What, memory_map,
};
use crate::cpu::{CS, RSP, Segment};
use crate::ram::{HOLE_END, HOLE_START};

const MODULES: [Module<'static>; 2] = [
    Module { name: "dir/env", bytes: b"NR_CPUS=2\nMEMSIZE=8\n", cmdline: "" },
    Module { name: "second", bytes: &[7; 0x1001], cmdline: "a=b c" },
];

/// Finds the segment that a selector names in the table in memory, as the processor would.
fn descriptor(ram: &GuestRam, loaded: &Loaded, segment: &Segment) -> (u64, u32, bool) {
    let gdt = loaded.start.gdt;
    assert!(segment.selector + 7 <= gdt.limit);
    let d = u64_at(ram, gdt.base + u64::from(segment.selector));
    let limit = (d & 0xffff | d >> 32 & 0xf_0000) as u32;
    let limit = if d >> 55 & 1 == 1 { limit << 12 | 0xfff } else { limit };
    (d >> 16 & 0xff_ffff | d >> 32 & 0xff00_0000, limit, d >> 53 & 1 == 1)
}

fn check_flat(ram: &GuestRam, loaded: &Loaded) {
    let s = &loaded.start;
    for segment in s.segments.iter().chain([&s.tr]) {
        let found = descriptor(ram, loaded, segment);
        assert_eq!(found, (segment.base, segment.limit, segment.long));
        assert!(segment.present && !segment.unusable);
    }
    for (i, segment) in s.segments.iter().enumerate() {
        let kind = if i == CS { 0xb } else { 3 };
        assert_eq!((segment.base, segment.limit, segment.kind), (0, u32::MAX, kind));
    }
    assert_eq!((s.tr.base, s.tr.limit, s.tr.kind), (0, 0x67, 0xb));
    assert!(s.ldt.unusable && !s.ldt.present);
    assert_eq!(s.rflags, 2);
    assert_eq!(s.idt.limit, 0);
}

/// Reads `hvm_start_info` back as a guest does and checks it against the request.
fn check_start_info(request: &Request<'_>, loaded: &Loaded) {
    let ram = request.ram;
    let info = loaded.start.gpr[RBX];
    let head: Vec<u32> = (0..4).map(|i| u32_at(ram, info + 4 * i)).collect();
    assert_eq!(head, [0x336e_c578, 1, 0, request.modules.len() as u32]);
    let modlist = u64_at(ram, info + 16);
    assert_eq!(string_at(ram, u64_at(ram, info + 24)), request.cmdline);
    assert_eq!(u64_at(ram, info + 32), request.acpi_rsdp.unwrap_or(0));
    let memmap = u64_at(ram, info + 40);
    assert_eq!(u32_at(ram, info + 48) as usize, loaded.map.len());
    for (i, range) in (0..).zip(&loaded.map) {
        let at = memmap + 24 * i;
        let entry = (u64_at(ram, at), u64_at(ram, at + 8), u64_at(ram, at + 16));
        assert_eq!(entry, (range.start, range.len, range.kind as u64));
    }
    assert_eq!(modlist == 0, request.modules.is_empty());
    for (i, module) in (0..).zip(request.modules) {
        let at = modlist + 32 * i;
        let (addr, len, cmdline) = (u64_at(ram, at), u64_at(ram, at + 8), u64_at(ram, at + 16));
        assert_eq!(addr % 0x1000, 0);
        let mut found = vec![0; len as usize];
        ram.read(addr, &mut found).expect("RAM");
        assert_eq!(found, module.bytes);
        assert_eq!(cmdline == 0, module.cmdline.is_empty());
        if cmdline != 0 {
            assert_eq!(string_at(ram, cmdline), module.cmdline);
        }
    }
}

#[test]
fn pvh_gets_its_start_info_in_flat_protected_mode() {
    for is_64 in [false, true] {
        let (ram, image) = (ram(8 * MIB), pvh(is_64));
        let request = Request {
            cmdline: "console=ttyS0 panic=-1",
            modules: &MODULES,
            acpi_rsdp: Some(0xe_0000),
            ..Request::new(&image, "vmlinux", &ram)
        };
        let loaded = loaded(&request);
        assert_eq!((loaded.protocol, loaded.entry), (Protocol::Pvh, 0x10_0020));
        let s = loaded.start;
        assert_eq!(
            (loaded.mode, s.rip, s.gpr[RAX], s.gpr[RSP]),
            (Mode::Protected32, 0x10_0020, 0, 0)
        );
        assert_eq!((s.cr0, s.cr3, s.cr4, s.efer), (0x11, 0, 0, 0));
        check_flat(&ram, &loaded);
        check_start_info(&request, &loaded);
        assert_eq!(bytes(&ram, 0x10_0000), [0x90; 0x40]);
        assert_eq!(bytes(&ram, 0x10_0040), [0; 0x40]);
    }
}

#[test]
fn a_pvh_note_is_found_behind_others_and_may_hold_8_bytes() {
    use super::image::{note, pvh_note};
    let load = seg(0x10_0000, &[0x90; 0x40], 0x40);
    for align in [4, 8] {
        let mut mixed = note(b"GNU\0", 3, &[1, 2, 3, 4, 5], align);
        // The right type of another owner, then of an owner whose name only begins alike.
        mixed.data.extend(note(b"Linux\0", 18, &[9; 4], align).data);
        mixed.data.extend(note(b"Xen\0\0", 18, &[9; 4], align).data);
        mixed.data.extend(note(b"Xen\0", 17, &[9; 4], align).data);
        mixed.data.extend(note(b"Xen\0", 18, &0x10_0008_u64.to_le_bytes(), align).data);
        mixed.data.extend(pvh_note(9).data);
        let image = link(true, 0x10_0000, &[load.clone(), mixed]);
        let ram = ram(2 * MIB);
        let loaded = loaded(&Request::new(&image, "k", &ram));
        assert_eq!((loaded.protocol, loaded.entry), (Protocol::Pvh, 0x10_0008));
    }
}

#[test]
fn multiboot_gets_what_kvm_unit_tests_read() {
    for (image, entry) in [
        (multiboot_elf(false), 0x10_0010),
        (multiboot_elf(true), 0x10_0010),
        (multiboot_raw(), 0x10_0004),
    ] {
        let ram = ram(HOLE_START + 64 * MIB);
        let request = Request {
            cmdline: "one two",
            modules: &MODULES,
            ..Request::new(&image, "x86/apic test.flat", &ram)
        };
        let loaded = loaded(&request);
        assert_eq!((loaded.protocol, loaded.entry), (Protocol::Multiboot, entry));
        let s = loaded.start;
        assert_eq!((loaded.mode, s.rip, s.gpr[RAX]), (Mode::Protected32, entry, 0x2bad_b002));
        assert_eq!((s.cr0, s.cr3, s.cr4, s.efer), (0x11, 0, 0, 0));
        check_flat(&ram, &loaded);

        let info = s.gpr[RBX];
        let word = |at| u32_at(&ram, info + at);
        assert_eq!(word(0), 0b10_0100_1101);
        assert_eq!((word(4), word(8)), (639, (3 << 20) - 1024));
        assert_eq!(string_at(&ram, word(16).into()), "apic_test.flat one two");
        assert_eq!(string_at(&ram, word(64).into()), "exitlab");
        assert_eq!(word(20), 2);
        let mods = u64::from(word(24));
        for (i, (module, text)) in (0..).zip(MODULES.iter().zip(["env", "second a=b c"])) {
            let at = mods + 16 * i;
            let (start, end) = (u32_at(&ram, at), u32_at(&ram, at + 4));
            let mut found = vec![0; (end - start) as usize];
            ram.read(start.into(), &mut found).expect("RAM");
            assert_eq!(found, module.bytes);
            assert_eq!(start % 0x1000, 0);
            assert_eq!(string_at(&ram, u32_at(&ram, at + 8).into()), text);
        }
        let (mut at, end) = (u64::from(word(48)), u64::from(word(44) + word(48)));
        let mut map = Vec::new();
        while at < end {
            map.push((u64_at(&ram, at + 4), u64_at(&ram, at + 12), u32_at(&ram, at + 20)));
            at += u64::from(u32_at(&ram, at)) + 4;
        }
        assert_eq!(at, end);
        let told: Vec<_> = loaded.map.iter().map(|r| (r.start, r.len, r.kind as u32)).collect();
        assert_eq!(map, told);
        assert!(map.contains(&(HOLE_END, 64 * MIB, 1)));
        // The trampoline of application processors goes to page 0.
        assert!(!dirty(&ram).contains(&0));
    }
}

#[test]
fn address_fields_load_a_part_of_the_file() {
    let mut image = vec![0xaa; 0x100];
    let fields = [0x20_0080, 0x20_0000, 0x20_00c0, 0, 0x20_0004];
    image[0x80..].fill(0);
    image.splice(0x90..0x90 + 32, super::image::multiboot(1 << 16 | 1, &fields));
    let ram = ram(4 * MIB);
    let loaded = loaded(&Request::new(&image, "k", &ram));
    // The header is 0x80 bytes into what is loaded, and 0x90 into the file.
    let placed = loaded.placed.iter().find(|p| p.what == What::Image).expect("placed");
    assert_eq!((placed.start, placed.len), (0x20_0000, 0xc0));
    assert_eq!(bytes(&ram, 0x20_0000), [0xaa; 0x70]);
    assert_eq!(u32_at(&ram, 0x20_0080), 0x1bad_b002);
    assert_eq!(bytes(&ram, 0x20_00c0), [0; 0x40]);
}

#[test]
fn a_plain_elf64_runs_in_64_bit_mode_on_an_identity_map() {
    let (ram, image) = (ram(8 * MIB), plain(true));
    let request = Request { cmdline: "x", modules: &MODULES, ..Request::new(&image, "k", &ram) };
    let loaded = loaded(&request);
    assert_eq!((loaded.protocol, loaded.entry), (Protocol::Elf, 0x10_0010));
    let s = loaded.start;
    assert_eq!((loaded.mode, s.rip, s.gpr[RDI]), (Mode::Long64, 0x10_0010, s.gpr[RBX]));
    assert_eq!((s.cr0, s.cr4, s.efer), (0x8000_0011, 0x20, 0x500));
    check_flat(&ram, &loaded);
    check_start_info(&request, &loaded);
    let stack = loaded.placed.iter().find(|p| p.what == What::Stack).expect("a stack");
    assert_eq!((stack.len, stack.start + stack.len), (STACK_BYTES, s.gpr[RSP] + 8));
    // As after a call: aligned to 16 once the return address is popped.
    assert_eq!((s.gpr[RSP] + 8) % 16, 0);

    let walk = |addr: u64| {
        let mut table = s.cr3;
        for shift in [39, 30] {
            let entry = u64_at(&ram, table + 8 * (addr >> shift & 511));
            assert_eq!(entry & 0xfff, 3, "{addr:#x}: entry {entry:#x}");
            table = entry & !0xfff;
        }
        let entry = u64_at(&ram, table + 8 * (addr >> 21 & 511));
        assert_eq!(entry & 0xfff, 0x83, "{addr:#x}: entry {entry:#x}");
        (entry & !0x1f_ffff) | addr & 0x1f_ffff
    };
    for addr in [0, 0x10_0010, s.gpr[RSP], 0x1234_5678, 0xfee0_0020, HOLE_END - 1] {
        assert_eq!(walk(addr), addr);
    }
    assert_eq!(u64_at(&ram, s.cr3 + 8), 0, "nothing above 512 GiB");
    let pdpt = u64_at(&ram, s.cr3) & !0xfff;
    assert_eq!(u64_at(&ram, pdpt + 8 * 4), 0, "nothing above 4 GiB");
}

#[test]
fn a_plain_elf32_runs_in_flat_protected_mode() {
    let (ram, image) = (ram(8 * MIB), plain(false));
    let request = Request { cmdline: "x", ..Request::new(&image, "k", &ram) };
    let loaded = loaded(&request);
    let s = loaded.start;
    assert_eq!((loaded.mode, s.rip, s.cr0, s.gpr[RDI]), (Mode::Protected32, 0x10_0010, 0x11, 0));
    assert!(
        loaded.placed.iter().any(|p| p.what == What::Stack && p.start + p.len == s.gpr[RSP] + 8)
    );
    check_flat(&ram, &loaded);
    check_start_info(&request, &loaded);
}

#[test]
fn an_entry_in_the_higher_half_is_turned_into_the_physical_one() {
    let high = |is_64, entry| {
        let mut text = seg(0x10_0000, &[0x90; 0x40], 0x2000);
        text.vaddr = if is_64 { 0xffff_ffff_8010_0000 } else { 0xc010_0000 };
        link(is_64, entry, &[text])
    };
    for (image, entry) in [
        (high(true, 0xffff_ffff_8010_0020), 0x10_0020),
        // Linux's vmlinux gives a physical address although it is linked high.
        (high(true, 0x10_0020), 0x10_0020),
        (high(false, 0xc010_1fff), 0x10_1fff),
    ] {
        let ram = ram(4 * MIB);
        assert_eq!(loaded(&Request::new(&image, "k", &ram)).start.rip, entry);
    }
}

#[test]
fn auto_prefers_the_note_then_the_header_then_the_elf() {
    let ram = ram(4 * MIB);
    let mut code = super::image::multiboot(0, &[]);
    code.resize(0x40, 0x90);
    let load = seg(0x10_0000, &code, 0x40);
    let both = link(true, 0x10_0010, &[load, super::image::pvh_note(0x10_0020)]);
    let with = |image: &[u8], protocol| {
        loaded(&Request { protocol, ..Request::new(image, "k", &ram) }).protocol
    };
    assert_eq!(with(&both, Protocol::Auto), Protocol::Pvh);
    for protocol in [Protocol::Pvh, Protocol::Multiboot, Protocol::Elf] {
        assert_eq!(with(&both, protocol), protocol);
    }
    assert_eq!(with(&multiboot_elf(false), Protocol::Auto), Protocol::Multiboot);
    assert_eq!(with(&plain(false), Protocol::Auto), Protocol::Elf);
    // Bytes that are a header but for the checksum are no reason to refuse an ELF.
    let mut chance = multiboot_elf(false);
    let at = chance.windows(4).position(|w| w == [2, 0xb0, 0xad, 0x1b]).expect("a header");
    chance[at + 8] ^= 1;
    assert_eq!(with(&chance, Protocol::Auto), Protocol::Elf);
}

#[test]
fn flat_images_run_where_and_how_they_are_told() {
    let code = [0xeb, 0xfe];
    let (ram, modules) = (ram(4 * MIB), &MODULES[..1]);
    let flat = |addr, mode| Request {
        protocol: Protocol::Flat { addr, mode },
        ..Request::new(&code, "k", &ram)
    };
    let real = loaded(&flat(0x7c00, Mode::Real16));
    let s = real.start;
    assert_eq!(
        (real.mode, s.segments[CS].selector, s.rip, s.gpr[RSP]),
        (Mode::Real16, 0, 0x7c00, 0x7c00)
    );
    assert_eq!((s.cr0, s.idt.limit), (0x10, 0x3ff));
    assert!(s.segments.iter().all(|s| (s.base, s.limit) == (0, 0xffff)));
    assert_eq!(bytes(&ram, 0x7c00), code);
    assert_eq!(real.placed.len(), 1);
    let cs = loaded(&flat(0xf_fff0, Mode::Real16)).start.segments[CS];
    assert_eq!((cs.selector, cs.base), (0xffff, 0xf_fff0));

    let request = Request { cmdline: "y", modules, ..flat(0x10_0000, Mode::Protected32) };
    let prot = loaded(&request);
    assert_eq!((prot.mode, prot.start.rip), (Mode::Protected32, 0x10_0000));
    check_start_info(&request, &prot);
    let request = Request { cmdline: "y", modules, ..flat(0x20_0000, Mode::Long64) };
    let long = loaded(&request);
    assert_eq!((long.mode, long.start.rip), (Mode::Long64, 0x20_0000));
    assert_eq!(long.start.gpr[RDI], long.start.gpr[RBX]);
    check_start_info(&request, &long);
}

#[test]
fn what_the_board_reserved_is_told_and_kept_clear_of() {
    let (ram, image) = (ram(4 * MIB), pvh(true));
    let tables = MemRange::new(4 * MIB - 0x1_0000, 4 * MIB, MemKind::Acpi);
    let top = MemRange::new(EBDA_START - 0x8000, EBDA_START, MemKind::Reserved);
    let request =
        Request { modules: &MODULES, reserved: &[tables, top], ..Request::new(&image, "k", &ram) };
    let loaded = loaded(&request);
    check_start_info(&request, &loaded);
    assert!(loaded.map.contains(&tables) && loaded.map.contains(&top));
    assert_ne!(loaded.map, memory_map(&ram));
    for p in &loaded.placed {
        let clear = |r: &MemRange| p.start + p.len <= r.start || r.end() <= p.start;
        assert!(clear(&tables) && clear(&top), "{p:x?}");
    }
}

#[test]
fn the_log_names_everything_that_was_placed() {
    let (ram, image) = (ram(4 * MIB), plain(true));
    let request = Request { modules: &MODULES, ..Request::new(&image, "k", &ram) };
    let log = loaded(&request).to_string();
    for line in [
        "elf: entry 0x100010 in mode long64",
        "0x100000..0x103000 the segment of program header 0",
        "0x3ff000..0x3ff014 module 0",
        "0x3fd000..0x3fe001 module 1",
        "boot information",
        "page tables",
        "the stack",
        "map 0x9fc00..0xa0000 reserved",
    ] {
        assert!(log.contains(line), "no {line:?} in:\n{log}");
    }
}
