//! Which pages are touched, and what is out of whose way.

use super::image::{link, multiboot_elf, plain, pvh_note, seg};
use super::*;
use crate::boot::{Placed, RamState, What};

#[test]
fn a_large_bss_touches_no_page_of_fresh_memory() {
    let ram = ram(64 * MIB);
    // A bss of 12 MiB, and 8 MiB of zeros that the file carries.
    let mut zeros = vec![0; 8 << 20];
    zeros[0x5000] = 1;
    let image = link(
        false,
        0x40_0000,
        &[seg(0x40_0000, &[0x90; 0x1800], 12 << 20), seg(32 * MIB, &zeros, 8 << 20)],
    );
    loaded(&Request::new(&image, "k", &ram));
    let kernel: Vec<u64> = dirty(&ram).into_iter().filter(|&p| p >= MIB).collect();
    assert_eq!(kernel, [0x40_0000, 0x40_1000, 32 * MIB + 0x5000]);
}

#[test]
fn used_memory_is_zeroed_where_it_must_be() {
    let ram = ram(4 * MIB);
    for at in [0x10_0030, 0x10_0040, 0x10_2fff, 0x10_3000] {
        ram.write(at, &[0xee]).expect("RAM");
    }
    dirty(&ram);
    let image = plain(true);
    let request =
        Request { ram_state: RamState::Used, cmdline: "x", ..Request::new(&image, "k", &ram) };
    let first = loaded(&request);
    assert_eq!(bytes(&ram, 0x10_0000), [0x90; 0x40]);
    assert_eq!(bytes(&ram, 0x10_0040), [0; 0x2fc0]);
    assert_eq!(bytes(&ram, 0x10_3000), [0xee], "behind the bss");
    let kernel: Vec<u64> = dirty(&ram).into_iter().filter(|&p| p >= MIB).collect();
    assert_eq!(kernel, [0x10_0000, 0x10_2000], "0x101000 was zero");

    // Whatever a guest left in them, the structures of a second load are those of the first.
    let snapshot = |placed: &[Placed]| -> Vec<Vec<u8>> {
        let read = |p: &Placed| {
            let mut b = vec![0; p.len as usize];
            ram.read(p.start, &mut b).expect("RAM");
            b
        };
        placed.iter().map(read).collect()
    };
    let before = snapshot(&first.placed);
    for p in &first.placed {
        ram.write(p.start, &vec![0xee; p.len as usize]).expect("RAM");
    }
    let second = loaded(&request);
    assert_eq!(second, first);
    assert_eq!(snapshot(&second.placed), before);
}

#[test]
fn boot_structures_go_to_the_top_of_conventional_memory() {
    let (ram, image) = (ram(4 * MIB), plain(true));
    let placed = loaded(&Request::new(&image, "k", &ram)).placed;
    let low: Vec<_> = placed.iter().filter(|p| p.start < MIB).collect();
    assert_eq!(low.len(), 5, "stack, three levels of page tables, information: {low:x?}");
    // realmode.flat of kvm-unit-tests ends at 0xda30, and its kind expect what is below 0x80000.
    assert!(low.iter().all(|p| p.start >= 0x8_0000 && p.start + p.len <= 0x9_fc00));
}

#[test]
fn boot_structures_make_way_for_the_kernel() {
    let whole = seg(0, &[0xaa; 16], 0x9_fc00);
    let most = seg(0x2000, &[0xaa; 16], 0x9_e000);
    for low in [whole, most] {
        let load = seg(0x10_0000, &[0x90; 0x40], 0x1000);
        let image = link(true, 0x10_0000, &[load, low, pvh_note(0x10_0000)]);
        for protocol in [crate::boot::Protocol::Pvh, crate::boot::Protocol::Elf] {
            let ram = ram(4 * MIB);
            let request = Request { protocol, ..Request::new(&image, "k", &ram) };
            let mut last = 0;
            for p in &loaded(&request).placed {
                assert!(last <= p.start, "{p:x?} overlaps");
                last = p.start + p.len;
            }
        }
    }
}

#[test]
fn a_module_of_no_bytes_is_a_module() {
    let (ram, image) = (ram(4 * MIB), multiboot_elf(false));
    let modules = [crate::boot::Module { name: "empty", bytes: &[], cmdline: "" }];
    let loaded = loaded(&Request { modules: &modules, ..Request::new(&image, "k", &ram) });
    let found = loaded.placed.iter().find(|p| p.what == What::Module(0)).expect("placed");
    assert_eq!((found.start, found.len), (0x3f_f000, 0));
    let mods = u64::from(u32_at(&ram, loaded.start.gpr[crate::boot::cpu::RBX] + 24));
    assert_eq!((u32_at(&ram, mods), u32_at(&ram, mods + 4)), (0x3f_f000, 0x3f_f000));
}
