//! What holds for any image: no panic, nothing written outside what was placed, nothing at all
//! when the image is refused.

use proptest::prelude::*;

use super::image::{Seg, link, multiboot_elf, multiboot_raw, plain, pvh, seg};
use super::*;
use crate::boot::{Mode, Module, Protocol, RamState};
use crate::ram::{VGA_END, VGA_START};

const PROTOCOLS: [Protocol; 5] = [
    Protocol::Auto,
    Protocol::Pvh,
    Protocol::Multiboot,
    Protocol::Elf,
    Protocol::Flat { addr: 0x9_ff00, mode: Mode::Long64 },
];

fn samples() -> Vec<Vec<u8>> {
    let mut images = vec![multiboot_raw()];
    for is_64 in [false, true] {
        images.extend([plain(is_64), pvh(is_64), multiboot_elf(is_64)]);
    }
    images
}

/// Loads an image and checks what must hold whatever it is.
fn check(image: &[u8], protocol: Protocol, ram_state: RamState) -> Result<bool, TestCaseError> {
    let ram = ram(2 * MIB);
    let modules = [Module { name: "m", bytes: &[1; 5000], cmdline: "c" }];
    let modules = if ram_state == RamState::Used { &modules[..] } else { &[] };
    let request = Request { protocol, ram_state, modules, ..Request::new(image, "k", &ram) };
    let outcome = load(&request);
    let dirty = dirty(&ram);
    let Ok(loaded) = outcome else {
        prop_assert_eq!(dirty, [0_u64; 0], "a refused image wrote memory");
        return Ok(false);
    };
    let mut last = 0;
    for p in &loaded.placed {
        prop_assert!(ram.contains(p.start, p.len) || p.len == 0, "{:x?} is not in RAM", p);
        prop_assert!(last <= p.start, "{:x?} overlaps what is below", p);
        last = p.start + p.len;
    }
    for page in dirty {
        let covers = |p: &crate::boot::Placed| p.start < page + 0x1000 && page < p.start + p.len;
        prop_assert!(loaded.placed.iter().any(covers), "page {:#x} was written", page);
    }
    let inside =
        |p: &crate::boot::Placed| p.start <= loaded.entry && loaded.entry < p.start + p.len;
    prop_assert!(loaded.placed.iter().any(inside), "the entry {:#x} is nowhere", loaded.entry);
    Ok(true)
}

#[test]
fn an_image_cut_off_anywhere_is_refused_or_loaded() {
    for image in samples() {
        for len in 0..image.len() {
            for protocol in PROTOCOLS {
                check(&image[..len], protocol, RamState::Fresh).expect("holds for every length");
            }
        }
        // So that the above does not cut bytes off something that was never an image.
        assert!(matches!(check(&image, Protocol::Auto, RamState::Used), Ok(true)));
    }
}

proptest! {
    #[test]
    fn an_image_with_bytes_changed_is_refused_or_loaded(
        which in 0..7_usize,
        // Most of what matters is in the first bytes.
        changes in prop::collection::vec((prop_oneof![0..128_usize, 0..0x300_usize], any::<u8>()), 1..6),
        protocol in prop::sample::select(&PROTOCOLS[..]),
        used in any::<bool>(),
    ) {
        let mut image = samples().swap_remove(which);
        for (at, value) in changes {
            let at = at % image.len();
            image[at] = value;
        }
        check(&image, protocol, if used { RamState::Used } else { RamState::Fresh })?;
    }

    #[test]
    fn any_bytes_are_refused_or_loaded(
        mut image in prop::collection::vec(any::<u8>(), 0..0x400),
        magic in prop::sample::select(vec![vec![], b"\x7fELF\x01\x01\x01".to_vec(),
            b"\x7fELF\x02\x01\x01".to_vec(), super::image::multiboot(1 << 16, &[])]),
        protocol in prop::sample::select(&PROTOCOLS[..]),
    ) {
        image.splice(0..magic.len().min(image.len()), magic);
        check(&image, protocol, RamState::Fresh)?;
    }

    #[test]
    fn segments_load_exactly_when_they_lie_in_ram_and_apart(
        is_64 in any::<bool>(),
        places in prop::collection::vec(
            (
                prop::sample::select(vec![0, 0x1000, VGA_START - 0x1000, VGA_START, VGA_END - 0x1000,
                    VGA_END, MIB, 2 * MIB - 0x1000, 2 * MIB, 0xffff_f000]),
                0..4_u64,
                prop::sample::select(vec![1_u64, 0x1000, 0x1001, 0x2000, 0x4_0000]),
            ),
            1..4,
        ),
    ) {
        let ranges: Vec<(u64, u64)> =
            places.iter().map(|&(base, page, len)| (base + page * 0x1000, len)).collect();
        // Addresses of an ELF32 stop at 4 GiB.
        prop_assume!(is_64 || ranges.iter().all(|r| r.0 <= u32::MAX.into()));
        let segs: Vec<Seg> = ranges.iter().map(|&(at, len)| seg(at, &[0xcc], len)).collect();
        let image = link(is_64, ranges[0].0, &segs);
        let in_ram = |&(at, len): &(u64, u64)| {
            at + len <= VGA_START || at >= VGA_END && at + len <= 2 * MIB
        };
        let apart = ranges.iter().enumerate().all(|(i, a)| {
            ranges[..i].iter().all(|b| a.0 + a.1 <= b.0 || b.0 + b.1 <= a.0)
        });
        // Never so much that the boot structures have no room.
        let expected = apart && ranges.iter().all(in_ram);
        prop_assert_eq!(check(&image, Protocol::Elf, RamState::Fresh)?, expected);
    }
}
