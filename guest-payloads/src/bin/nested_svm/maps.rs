//! The permission maps for MSRs and for ports (AMD APM volume 2, 15.10 and 15.11).

use crate::{guest, page, run_to, run_to_end};
use payload_rt::svm::{Guest, exit, vmcb};
use payload_rt::{asm_code, check, check_eq, check_ok, frames, mem, port, test, trap};

/// Pages of a map of zeroes, in a row.
fn map(pages: u64) -> u64 {
    let at = frames::alloc_range(pages, frames::PAGE);
    for word in (at..at + pages * frames::PAGE).step_by(8) {
        check_ok!(mem::write(word, 0_u64));
    }
    at
}

fn set_bit(map: u64, bit: u64, on: bool) {
    let at = map + bit / 8;
    let old: u8 = check_ok!(mem::read(at));
    let mask = 1 << (bit % 8);
    check_ok!(mem::write(at, if on { old | mask } else { old & !mask }));
}

/// The bit of an MSR's reads in the map (15.11, table 15-8); that of its writes is the next.
fn msr_bit(msr: u32) -> u64 {
    let (vector, first) = match msr {
        0..0x2000 => (0, 0),
        0xc000_0000..0xc000_2000 => (1, 0xc000_0000),
        _ => (2, 0xc001_0000),
    };
    vector * 0x800 * 8 + 2 * u64::from(msr - first)
}

fn with_msr_map(code: &'static [u8], msr: u32) -> (Guest, u64) {
    let mut guest = guest(code);
    let map = map(2);
    guest.intercept(&[exit::MSR]);
    guest.vmcb.set(vmcb::MSRPM_BASE, map);
    guest.regs.rcx = msr.into();
    (guest, map)
}

const READ: fn() -> &'static [u8] = || asm_code!("rdmsr", "vmmcall");
const WRITE: fn() -> &'static [u8] = || asm_code!("wrmsr", "vmmcall");

/// Sets the bits of one MSR one at a time: the one exits, and only for its kind of access.
fn msr_bits(msr: u32) {
    for (code, write) in [(READ(), 0), (WRITE(), 1)] {
        let (mut guest, map) = with_msr_map(code, msr);
        let rip = guest.rip();
        set_bit(map, msr_bit(msr) + write, true);
        let found = run_to(&mut guest, exit::MSR, "its bit set");
        check_eq!(found.info1, write, "EXITINFO1 for MSR {msr:#x}");
        check_eq!(guest.rip(), rip, "RIP at the exit");
        // All the others set, and this one clear.
        for word in (map..map + 2 * frames::PAGE).step_by(8) {
            check_ok!(mem::write(word, u64::MAX));
        }
        set_bit(map, msr_bit(msr) + write, false);
        guest.vmcb.set(vmcb::RAX, 0);
        run_to_end(&mut guest, "its bit alone clear");
    }
}

test!(msr_low, "The MSR map's first range: a bit for each read and each write.", || msr_bits(
    0x174
));
test!(msr_c000, "The MSR map's second range: a bit for each read and each write.", || {
    msr_bits(0xc000_0102);
});
test!(msr_c000_star, "The MSR map's bits of STAR and its kin.", || {
    for msr in [0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084] {
        msr_bits(msr);
    }
});

test!(msr_c001, "The MSR map's third range: a bit for each read and each write.", || {
    // VM_HSAVE_PA; the guest has SVM, as its hypervisor.
    let (mut guest, map) = with_msr_map(READ(), 0xc001_0117);
    set_bit(map, msr_bit(0xc001_0117), true);
    check_eq!(run_to(&mut guest, exit::MSR, "its read's bit").info1, 0, "EXITINFO1");
    let (mut guest, map) = with_msr_map(WRITE(), 0xc001_0117);
    set_bit(map, msr_bit(0xc001_0117) + 1, true);
    check_eq!(run_to(&mut guest, exit::MSR, "its write's bit").info1, 1, "EXITINFO1");
});

test!(msr_ends, "The last MSR of each range has the range's last bits.", || {
    for msr in [0x1fff, 0xc000_1fff, 0xc001_1fff] {
        for (code, write) in [(READ(), 0), (WRITE(), 1)] {
            let (mut guest, map) = with_msr_map(code, msr);
            set_bit(map, msr_bit(msr) + write, true);
            let found = run_to(&mut guest, exit::MSR, "its bit set");
            check_eq!(found.info1, write, "EXITINFO1 for MSR {msr:#x}");
        }
    }
});

// 15.11: MSRs outside of the ranges always exit.
test!(msr_outside, "An MSR that the map has no bit for exits whatever the map holds.", || {
    for msr in [0x2000, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, 0xc000_ffff, 0xc001_2000, u32::MAX] {
        let (mut guest, _) = with_msr_map(READ(), msr);
        run_to(&mut guest, exit::MSR, "a read");
        check_eq!(guest.regs.rcx, msr.into(), "the MSR that was read");
    }
});

test!(msr_absent, "An MSR that exists nowhere, with its bit clear, is #GP in the guest.", || {
    let (mut guest, _) = with_msr_map(READ(), 0x1ffe);
    let found = guest.run();
    check_eq!(guest.trap().map(|trap| trap.vector), Some(trap::GP), "{found:?}");
});

test!(msr_map_off, "Without the intercept the MSR map is not looked at.", || {
    let (mut guest, map) = with_msr_map(READ(), 0x174);
    set_bit(map, msr_bit(0x174), true);
    guest.vmcb.intercept(exit::MSR, false);
    run_to_end(&mut guest, "the intercept off");
});

test!(msr_map_changes, "A bit that changes between two runs counts in the second.", || {
    let (mut guest, map) = with_msr_map(READ(), 0xc000_0081);
    set_bit(map, msr_bit(0xc000_0081), true);
    let rip = guest.rip();
    for on in [true, false, true] {
        set_bit(map, msr_bit(0xc000_0081), on);
        guest.vmcb.set(vmcb::RIP, rip);
        let code = if on { exit::MSR } else { exit::VMMCALL };
        run_to(&mut guest, code, "a run");
    }
});

// What the guest writes where nobody intercepts it is L1's MSR, which VMRUN does not switch.
test!(msr_shared, "STAR that the guest writes is what L1 reads afterwards.", || {
    let (mut guest, _) = with_msr_map(WRITE(), 0xc000_0081);
    guest.vmcb.set(vmcb::RAX, 0x1234);
    guest.regs.rdx = 0x0023_0010;
    run_to_end(&mut guest, "the write");
    check_eq!(payload_rt::reg::rdmsr(0xc000_0081), Ok(0x0023_0010_0000_1234), "STAR");
});

/// A latch of 32 bits, and its bytes once more.
const LATCH: u16 = 0xe0;

/// EXITINFO1 (15.10.2).
const IN: u64 = 1;
const STRING: u64 = 1 << 2;
const REP: u64 = 1 << 3;
fn size(bytes: u64) -> u64 {
    bytes << 4
}
const A64: u64 = 1 << 9;
const A32: u64 = 1 << 8;
/// The segment of OUTS, which only processors with decode assists tell.
const SEGMENT: u64 = 7 << 10;
/// The address size, which [`io_address_size`] looks at.
const ADDRESS_SIZE: u64 = 7 << 7;

fn with_io_map(code: &'static [u8], port: u16) -> (Guest, u64) {
    let mut guest = guest(code);
    let map = map(3);
    guest.intercept(&[exit::IOIO]);
    guest.vmcb.set(vmcb::IOPM_BASE, map);
    guest.regs.rdx = port.into();
    (guest, map)
}

/// The exit of a port access whose instruction has `length` bytes.
fn io_exit(guest: &mut Guest, info: u64, port: u16, length: u64) {
    let rip = guest.rip();
    let found = run_to(guest, exit::IOIO, "its bit set");
    check_eq!(found.info1 & !(SEGMENT | ADDRESS_SIZE), info | u64::from(port) << 16, "EXITINFO1");
    check_eq!(found.info2, rip + length, "EXITINFO2, the next instruction");
    check_eq!(guest.rip(), rip, "RIP at the exit");
}

test!(
    io_sizes,
    "An access of each size exits with its size and direction, or reaches the device.",
    || {
        for (code, bytes, length, info) in [
            (asm_code!("in al, dx", "vmmcall"), 1, 1, IN),
            (asm_code!("in ax, dx", "vmmcall"), 2, 2, IN),
            (asm_code!("in eax, dx", "vmmcall"), 4, 1, IN),
            (asm_code!("out dx, al", "vmmcall"), 1, 1, 0),
            (asm_code!("out dx, ax", "vmmcall"), 2, 2, 0),
            (asm_code!("out dx, eax", "vmmcall"), 4, 1, 0),
        ] {
            let (mut guest, map) = with_io_map(code, LATCH);
            set_bit(map, LATCH.into(), true);
            io_exit(&mut guest, info | size(bytes), LATCH, length);
            set_bit(map, LATCH.into(), false);
            run_to_end(&mut guest, "its bit clear");
        }
    }
);

test!(io_immediate, "An access by an immediate port number exits with that number.", || {
    let (mut guest, map) = with_io_map(asm_code!("in al, 0xe3", "vmmcall"), 0);
    set_bit(map, 0xe3, true);
    io_exit(&mut guest, IN | size(1), 0xe3, 2);
});

test!(
    io_each_byte,
    "A wide access exits by the bit of any of its ports, and by no neighbour's.",
    || {
        for bit in 0..8 {
            let (mut guest, map) = with_io_map(asm_code!("in eax, dx", "vmmcall"), LATCH + 2);
            set_bit(map, u64::from(LATCH) + bit, true);
            let code = if (2..6).contains(&bit) { exit::IOIO } else { exit::VMMCALL };
            run_to(&mut guest, code, "a bit of four");
        }
    }
);

test!(
    io_across_bytes,
    "A wide access over a byte of the map exits by the bit in the second.",
    || {
        for port in [LATCH - 1, LATCH + 7] {
            let (mut guest, map) = with_io_map(asm_code!("in ax, dx", "vmmcall"), port);
            set_bit(map, u64::from(port) + 1, true);
            io_exit(&mut guest, IN | size(2), port, 2);
        }
    }
);

test!(io_last_port, "A wide access at port 0xffff looks at the bits behind the map's 64K.", || {
    let (mut guest, map) = with_io_map(asm_code!("in ax, dx", "vmmcall"), 0xffff);
    set_bit(map, 0x1_0000, true);
    io_exit(&mut guest, IN | size(2), 0xffff, 2);
});

test!(io_page_edge, "The bits of ports 0x7fff and 0x8000 lie in two pages of the map.", || {
    for bit in [0x7fff, 0x8000] {
        let (mut guest, map) = with_io_map(asm_code!("in ax, dx", "vmmcall"), 0x7fff);
        set_bit(map, bit, true);
        io_exit(&mut guest, IN | size(2), 0x7fff, 2);
    }
});

test!(io_string, "INS and OUTS exit with STR set, and with their registers as they were.", || {
    for (code, info, length) in [
        (asm_code!("insb", "vmmcall"), IN | size(1), 1),
        (asm_code!("outsb", "vmmcall"), size(1), 1),
        (asm_code!("outsw", "vmmcall"), size(2), 2),
        (asm_code!("insd", "vmmcall"), IN | size(4), 1),
    ] {
        let (mut guest, map) = with_io_map(code, LATCH);
        let page = page();
        (guest.regs.rsi, guest.regs.rdi) = (page, page);
        set_bit(map, LATCH.into(), true);
        io_exit(&mut guest, info | STRING, LATCH, length);
        check_eq!((guest.regs.rsi, guest.regs.rdi), (page, page), "RSI and RDI");
    }
});

test!(io_address_size, "EXITINFO1 has the address size of INS and OUTS.", || {
    for (code, bit) in [
        (asm_code!("insb", "vmmcall"), A64),
        (asm_code!("outsb", "vmmcall"), A64),
        (asm_code!(".byte 0x67", "insb", "vmmcall"), A32),
        (asm_code!(".byte 0x67", "outsb", "vmmcall"), A32),
    ] {
        let (mut guest, map) = with_io_map(code, LATCH);
        let page = page();
        (guest.regs.rsi, guest.regs.rdi) = (page, page);
        set_bit(map, LATCH.into(), true);
        let found = run_to(&mut guest, exit::IOIO, "its bit set");
        check_eq!(found.info1 & ADDRESS_SIZE, bit, "the address size in EXITINFO1");
    }
});

test!(io_rep, "REP INS and REP OUTS exit with REP set, with their registers as they were.", || {
    for (code, info, bytes, length) in
        [(asm_code!("rep insb", "vmmcall"), IN, 1, 2), (asm_code!("rep outsd", "vmmcall"), 0, 4, 2)]
    {
        let (mut guest, map) = with_io_map(code, LATCH);
        let page = page();
        (guest.regs.rsi, guest.regs.rdi, guest.regs.rcx) = (page, page, 5);
        set_bit(map, LATCH.into(), true);
        io_exit(&mut guest, info | STRING | REP | size(bytes), LATCH, length);
        check_eq!(guest.regs.rcx, 5, "RCX");
    }
});

test!(io_rep_runs, "REP OUTS and REP INS that are not intercepted move all their bytes.", || {
    let code = asm_code!("rep outsb", "mov ecx, 4", "rep insb", "vmmcall");
    let (mut guest, _) = with_io_map(code, LATCH);
    let page = page();
    check_ok!(mem::write(page, 0x4433_2211_u32));
    (guest.regs.rsi, guest.regs.rdi, guest.regs.rcx) = (page, page + 0x100, 4);
    run_to_end(&mut guest, "both");
    let last: u32 = check_ok!(mem::read(page + 0x100));
    check_eq!(last, 0x4444_4444, "what the latch kept, four times");
});

test!(
    io_map_off,
    "Without the intercept the I/O map is not looked at, and L1 sees what was written.",
    || {
        let (mut guest, map) = with_io_map(asm_code!("out dx, eax", "vmmcall"), LATCH);
        set_bit(map, LATCH.into(), true);
        guest.vmcb.intercept(exit::IOIO, false);
        guest.vmcb.set(vmcb::RAX, 0x1234_5678);
        run_to_end(&mut guest, "the intercept off");
        check!(port::in32(LATCH) == 0x1234_5678, "the latch has {:#x}", port::in32(LATCH));
    }
);
