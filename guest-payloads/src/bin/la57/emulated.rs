//! What KVM's instruction emulator does with 57-bit addresses: accesses of devices and strings of port I/O
//! go through it, and it walks the guest's tables by itself (SDM volume 3, 5.5; volume 1, 3.3.7.1).

use crate::{ADDRESSES, AT, check_fault, frame_with, map};
use payload_rt::levels::{self, LOWER_END, UPPER};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::*;

/// Where the device's page is mapped: not canonical with 48 bits.
const DEVICE: u64 = 0xff22_3344_5566_7000;
/// A port that takes anything and gives the last byte back: POST.
const POST: u16 = 0x80;

/// Five levels, with the test device's memory at [`DEVICE`].
fn device() {
    testdev::require();
    levels::five();
    map(DEVICE, testdev::MEMORY);
}

test!(
    mmio,
    "A device's memory at a 57-bit address is what it is at its own, in each width.",
    || {
        device();
        check_ok!(mem::write(DEVICE, 0x1122_3344_5566_7788_u64));
        check_eq!(mem::read::<u64>(testdev::MEMORY), Ok(0x1122_3344_5566_7788), "8 bytes");
        check_ok!(mem::write(DEVICE + 8, 0x99aa_bbcc_u32));
        check_ok!(mem::write(DEVICE + 12, 0xddee_u16));
        check_ok!(mem::write(DEVICE + 14, 0xff_u8));
        check_ok!(mem::write(DEVICE + 15, 0x01_u8));
        check_eq!(mem::read::<u64>(testdev::MEMORY + 8), Ok(0x01ff_ddee_99aa_bbcc), "smaller ones");
        check_eq!(mem::read::<u32>(DEVICE + 6), Ok(0xbbcc_1122), "4 bytes");
        check_eq!(mem::read::<u16>(DEVICE + 3), Ok(0x4455), "2 bytes");
        check_eq!(mem::read::<u8>(DEVICE + 15), Ok(1), "a byte");
    }
);

test!(mmio_sizes, "A device behind a 2 MiB or 1 GiB page of the upper half is there, too.", || {
    device();
    for (size, at) in [(Size::M2, 0xff55_0000_0000_0000), (Size::G1, 0xff66_0000_0000_0000)] {
        if size == Size::G1 && !cpuid::PAGE_1G.present() {
            continue;
        }
        let inside = testdev::MEMORY & (size.bytes() - 1);
        paging::map(at, testdev::MEMORY - inside, size, Flags::RW);
        check_ok!(mem::write(at + inside + 0x10, 0x600d_600d_u32));
        check_eq!(mem::read::<u32>(testdev::MEMORY + 0x10), Ok(0x600d_600d), "{size:?}");
    }
});

test!(apic_page, "The local APIC at a 57-bit address has its registers.", || {
    levels::five();
    let base = check_ok!(reg::rdmsr(reg::APIC_BASE));
    if base & apic::BASE_X2APIC != 0 {
        skip!("the local APIC is in x2APIC mode");
    }
    let page = base & paging::ADDRESS;
    map(AT, page);
    for offset in [0x20, 0x30, 0xf0] {
        let wanted = check_ok!(mem::read::<u32>(page + offset));
        check_eq!(mem::read::<u32>(AT + offset), Ok(wanted), "register {offset:#x}");
    }
    check_ok!(mem::write(AT + 0x80, 0x50_u32), "TPR");
    check_eq!(mem::read::<u32>(page + 0x80), Ok(0x50), "TPR");
    check_ok!(mem::write(AT + 0x80, 0_u32));
});

/// `rep movsb`.
fn copy(from: u64, to: u64, count: u64) -> Result<(), trap::Trap> {
    insn!("rep movsb"; inout("rsi") from => _, inout("rdi") to => _, inout("rcx") count => _)
}

test!(strings, "MOVS between a device and memory goes by 57 bits on both sides.", || {
    device();
    for at in ADDRESSES {
        let frame = frame_with(0x8877_6655_4433_2211);
        map(at, frame);
        check_ok!(copy(at, DEVICE + 0x40, 8), "from {at:#x}");
        check_eq!(mem::read::<u64>(testdev::MEMORY + 0x40), Ok(0x8877_6655_4433_2211));
        check_ok!(copy(DEVICE + 0x40, at + 0x800, 8), "to {at:#x}");
        check_eq!(mem::read::<u64>(frame + 0x800), Ok(0x8877_6655_4433_2211), "at {at:#x}");
    }
});

test!(
    strings_fault,
    "MOVS from a device to a 57-bit address that is not mapped is #PF there.",
    || {
        device();
        for at in [ADDRESSES[0], ADDRESSES[4], LOWER_END - 0x1000, UPPER] {
            let at = at + 0x321;
            check_fault(copy(DEVICE, at, 1), 2, at, "MOVS to it");
            check_fault(copy(at, DEVICE, 1), 0, at, "MOVS from it");
        }
        // Over the edge of a page: what fitted is there, and the fault is at the next page's start.
        let frame = frame_with(0);
        map(AT, frame);
        check_ok!(mem::write(testdev::MEMORY, 0x0403_0201_u32));
        check_fault(copy(DEVICE, AT + 0xffd, 8), 2, AT + 0x1000, "MOVS over an edge");
        check_eq!(mem::read::<u32>(frame + 0xffc), Ok(0x0302_0100), "what fitted");
    }
);

test!(strings_read_only, "MOVS from a device to a read-only 57-bit address is #PF there.", || {
    device();
    map(AT, frame_with(0));
    paging::change(AT, Flags::NONE, Flags::W);
    check_fault(copy(DEVICE, AT, 1), 3, AT, "by the leaf");
    paging::change(AT, Flags::W, Flags::NONE);
    check_ok!(copy(DEVICE, AT, 1));
    let top = crate::top(AT);
    paging::set(AT, &top, top.value & !Flags::W.0);
    check_fault(copy(DEVICE, AT, 1), 3, AT, "by the fifth level");
    paging::set(AT, &top, top.value);
    check_ok!(copy(DEVICE, AT, 1));
    paging::set(AT, &top, top.value | 1 << 7);
    check_fault(copy(DEVICE, AT, 1), 8 | 3, AT, "by a reserved bit of the fifth level");
    paging::set(AT, &top, top.value);
});

test!(strings_canonical, "MOVS from a device to what is not canonical is #GP(0).", || {
    device();
    for at in [LOWER_END, UPPER - 1, 1 << 63] {
        check_trap!(copy(DEVICE, at, 1), trap::GP, 0, "MOVS to {at:#x}");
        check_trap!(copy(at, DEVICE, 1), trap::GP, 0, "MOVS from {at:#x}");
    }
});

test!(port_strings, "OUTS and INS go by 57 bits, and fault there.", || {
    levels::five();
    let outs = |at: u64, count: u64| insn!("rep outsb"; inout("rsi") at => _, inout("rcx") count => _, in("dx") POST);
    let ins = |at: u64, count: u64| insn!("rep insb"; inout("rdi") at => _, inout("rcx") count => _, in("dx") POST);
    for at in ADDRESSES {
        let frame = frame_with(0x5a00_1234);
        map(at, frame);
        check_ok!(outs(at, 4), "OUTS from {at:#x}");
        check_eq!(port::in8(POST), 0x5a, "the last byte of {at:#x}");
        check_ok!(ins(at + 0x100, 3), "INS to {at:#x}");
        check_eq!(mem::read::<u32>(frame + 0x100), Ok(0x5a_5a5a), "what INS wrote to {at:#x}");
        let beyond = at + 0x1000;
        check_fault(outs(beyond, 1), 0, beyond, "OUTS");
        check_fault(ins(beyond, 1), 2, beyond, "INS");
    }
    for at in [LOWER_END, UPPER - 1] {
        check_trap!(outs(at, 1), trap::GP, 0, "OUTS from {at:#x}");
        check_trap!(ins(at, 1), trap::GP, 0, "INS to {at:#x}");
    }
});

test!(
    emulated_accessed,
    "What the emulator walks gets A at the fifth level, and D at the leaf.",
    || {
        device();
        let leaf = map(AT, frame_with(0));
        let top = crate::top(AT);
        let clear = || {
            top.set(top.value & !Flags::A.0);
            leaf.set(leaf.value & !(Flags::A.0 | Flags::D.0));
            paging::flush();
        };
        let bits = || (top.reload().flags().has(Flags::A), leaf.reload().flags());
        clear();
        check_ok!(copy(AT, DEVICE, 1));
        let (accessed, flags) = bits();
        check!(
            accessed && flags.has(Flags::A) && !flags.has(Flags::D),
            "read: {accessed} {flags:x?}"
        );
        clear();
        check_ok!(copy(DEVICE, AT, 1));
        let (accessed, flags) = bits();
        check!(accessed && flags.has(Flags::A | Flags::D), "written: {accessed} {flags:x?}");
    }
);
