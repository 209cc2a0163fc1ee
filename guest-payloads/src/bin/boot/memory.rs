//! RAM and the holes in it.

use payload_rt::boot::{self, Kind, Region};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::{check, check_eq, check_ok, frames, mem, println, report, skip, test};

/// Where an AT's adapters decode: video memory, option ROMs, the BIOS.
const ADAPTERS: core::ops::Range<u64> = 0xa_0000..0x10_0000;
/// Where a PC's chips decode: I/O APIC, HPET, local APIC, firmware.
const CHIPS: core::ops::Range<u64> = 0xfec0_0000..0x1_0000_0000;

fn ram() -> impl Iterator<Item = &'static Region> {
    boot::info().regions().iter().filter(|r| r.kind == Kind::Ram)
}

// ACPI 6.5, 15.4: memory below 1 MiB that adapters take, and the chips' range, are not for the OS.
test!(holes, "The map shows no RAM where a PC's adapters and chips are.", || {
    for region in ram() {
        for hole in [ADAPTERS, CHIPS] {
            let apart = region.end() <= hole.start || hole.end <= region.start;
            check!(apart, "RAM {:#x} to {:#x} reaches into {hole:#x?}", region.start, region.end());
        }
    }
    check!(ram().any(|r| r.start == 0), "no conventional memory");
});

test!(ram_size, "The map has as much RAM as the machine was given: wants `mib=N`.", || {
    let Some(mib) = boot::number("mib") else { skip!("needs mib=N on the command line") };
    let total: u64 = ram().map(|r| r.len).sum();
    report::value("ram_bytes", total);
    // What adapters shadow and what firmware keeps is less than a MiB.
    check!(total <= mib << 20, "{total:#x} bytes of RAM in a machine of {mib} MiB");
    check!(total > (mib - 1) << 20, "{total:#x} bytes of RAM in a machine of {mib} MiB");
});

test!(
    nothing_there,
    "Where neither RAM nor a device is, reads give ones and writes are lost.",
    || {
        // Behind the last RAM below the chips, in the window that PCI devices are placed in.
        let end = ram().map(Region::end).filter(|&end| end <= CHIPS.start).max();
        let Some(at) = end.map(|end| end.max(0x1000_0000) + (16 << 20)) else { skip!("no RAM") };
        check!(at < CHIPS.start, "RAM up to {at:#x}");
        check_ok!(mem::write(at, 0x1234_5678_u32), "write {at:#x}");
        check_eq!(mem::read(at), Ok(u8::MAX), "byte at {at:#x}");
        check_eq!(mem::read(at), Ok(u16::MAX), "word at {at:#x}");
        check_eq!(mem::read(at), Ok(u32::MAX), "doubleword at {at:#x}");
        check_eq!(mem::read(at), Ok(u64::MAX), "quadword at {at:#x}");
    }
);

test!(above_4_gib, "RAM above 4 GiB holds what is written, and is not RAM below 4 GiB.", || {
    const WINDOW: u64 = 0x1_2340_0000;
    let Some(high) = ram().find(|r| r.start >= 1 << 32) else { skip!("no RAM above 4 GiB") };
    println!("{:#x} to {:#x}", high.start, high.end());
    // A page of our own, and the page 4 GiB above it where there is one.
    let below = frames::alloc_range(1, frames::PAGE);
    let mut pages = [high.start, high.end() - frames::PAGE, below + (1 << 32)];
    if pages[2] >= high.end() {
        pages[2] = high.start;
    }
    let word = 0x600d_0000_0000_0000_u64;
    check_ok!(mem::write(below, word));
    for page in pages {
        paging::map(WINDOW, page, Size::K4, Flags::RW);
        let old = check_ok!(mem::read::<u64>(WINDOW), "read {page:#x}");
        for value in [!old, page, old] {
            check_ok!(mem::write(WINDOW, value), "write {page:#x}");
            check_eq!(mem::read(WINDOW), Ok(value), "at {page:#x}");
        }
        check_ok!(mem::write(WINDOW, page), "write {page:#x}");
    }
    check_eq!(mem::read(below), Ok(word), "at {below:#x}, after writes above 4 GiB");
    for page in pages {
        paging::map(WINDOW, page, Size::K4, Flags::RW);
        check_eq!(mem::read(WINDOW), Ok(page), "at {page:#x}, after writes to other pages");
    }
});
