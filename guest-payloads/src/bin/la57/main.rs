//! Five levels of paging: 57-bit linear addresses.
//!
//! Intel SDM volume 3, 5.1.1, 5.2, 5.5 and chapter 4; volume 1, 3.3.7.1; AMD APM volume 2, 5.3.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod edges;
mod emulated;
mod entries;
mod events;
mod host;
mod nested;

use payload_rt::frames::{RET, of_ret as frame_of_ret, with_word as frame_with};
use payload_rt::legacy::{self, Machine};
use payload_rt::levels::{self, LOWER_END, UPPER};
use payload_rt::paging::{self, Entry, Flags, Size};
use payload_rt::trap::{self, Trap};
use payload_rt::user::{End, User};
use payload_rt::*;

/// Addresses in slots of the fifth level that nothing else is in, both halves and the slots at their ends;
/// apart from every boundary of a table.
const ADDRESSES: [u64; 5] = [
    0x0001_2345_6789_a000,
    0x0042_1357_9bdf_0000,
    0x00ff_edcb_a987_6000,
    0xff00_1234_5678_9000,
    0xfffe_8765_4321_0000,
];

/// One of them.
const AT: u64 = ADDRESSES[1];

/// Maps a page of 4 KiB, readable, writable, executable, for CPL 0.
fn map(address: u64, frame: u64) -> Entry {
    paging::map(address, frame, Size::K4, Flags::RW)
}

/// The entry of the fifth level for an address.
fn top(address: u64) -> Entry {
    paging::entry(address, 5)
}

/// Runs 32-bit code in compatibility mode at CPL 0, with EBX; it ends with RETF.
fn compat(code: &[u8], ebx: u64) -> Result<(), Trap> {
    let mut page = frames::alloc();
    page.bytes()[..code.len()].copy_from_slice(code);
    let at = page.address();
    trap::catch(|| {
        insn_raw!(
            // For RETF in 32-bit code: CS and EIP as two dwords.
            "push rbx", "lea rax, [rip + 2f]", "sub rsp, 8", "mov [rsp], eax",
            "mov dword ptr [rsp + 4], 8",
            "push 0x30", "push {at}", "mov rbx, {ebx}", "retfq", "2:", "pop rbx";
            at = in(reg) at, ebx = in(reg) ebx, out("rax") _
        );
    })
}

/// Checks that a trap is #PF with this error code and CR2.
fn check_fault<T: core::fmt::Debug>(result: Result<T, Trap>, error_code: u64, at: u64, what: &str) {
    let fault = check_err!(result, "{what} at {at:#x}");
    check!(fault.is(trap::PF, error_code), "{what} at {at:#x}: {fault}");
    check_eq!(fault.cr2, at, "CR2 after {what} at {at:#x}");
}

test!(enters, "A CPU enters long mode with CR4.LA57, and leaves it for four levels again.", || {
    let four = reg::cr3();
    let five = levels::five();
    for _ in 0..4 {
        check_eq!(reg::cr4() & reg::CR4_LA57, reg::CR4_LA57, "CR4.LA57 with five levels");
        check_eq!(reg::cr3(), five, "CR3 with five levels");
        check_eq!(reg::rdmsr(reg::EFER).map(|e| e & reg::EFER_LMA), Ok(reg::EFER_LMA), "LMA");
        map(AT, frame_with(0x5757));
        check_eq!(mem::read::<u64>(AT), Ok(0x5757), "an address of 57 bits");
        levels::switch(four, false);
        check_eq!((reg::cr4() & reg::CR4_LA57, reg::cr3()), (0, four), "with four levels");
        check_trap!(mem::read::<u64>(AT), trap::GP, 0, "an address of 57 bits, with four levels");
        levels::switch(five, true);
        check_eq!(mem::read::<u64>(AT), Ok(0x5757), "the same with five levels again");
    }
});

// SDM volume 3, 5.1.1: "Software cannot ... modify CR4.LA57 while IA-32e mode is active".
test!(
    fixed,
    "CR4.LA57 cannot be cleared with five levels, in 64-bit or compatibility mode.",
    || {
        levels::five();
        let cr4 = reg::cr4();
        check_trap!(reg::set_cr4(cr4 & !reg::CR4_LA57), trap::GP, 0, "CR4.LA57 cleared");
        check_eq!(reg::cr4(), cr4, "CR4");
        // The others are as free as ever.
        check_ok!(reg::set_cr4(cr4 ^ reg::CR4_TSD), "CR4.TSD");
        check_ok!(reg::set_cr4(cr4));
        let set = asm_code!(".code32", "mov cr4, ebx", "retf");
        check_ok!(compat(set, cr4), "the same value in compatibility mode");
        check_trap!(
            compat(set, cr4 & !reg::CR4_LA57),
            trap::GP,
            0,
            "cleared in compatibility mode"
        );
        check_eq!(reg::cr4(), cr4, "CR4");
    }
);

// SDM volume 3, 5.1.1: outside of long mode CR4.LA57 may change, and means nothing.
test!(
    legacy,
    "In legacy mode, paging on or off, CR4.LA57 changes freely and means nothing.",
    || {
        cpuid::LA57.require();
        for paged in [false, true] {
            let mut machine = Machine::new(code32!(
                "mov eax, cr4",
                "bts eax, 12",
                "mov cr4, eax",
                "mov esi, cr4",
                "mov edi, [ebx]",
                "btr eax, 12",
                "mov cr4, eax",
                "mov ebp, cr4",
                "add edi, [ebx]"
            ));
            if paged {
                machine.page();
            }
            machine.regs.ebx = legacy::DATA;
            check_ok!(mem::write(legacy::DATA.into(), 0x1111_u32));
            let outcome = machine.run();
            outcome.done("changes of CR4.LA57");
            let la57 = |cr4: u32| u64::from(cr4) & reg::CR4_LA57;
            check_eq!(la57(outcome.regs.esi), reg::CR4_LA57, "paging {paged}: set");
            check_eq!(la57(outcome.regs.ebp), 0, "paging {paged}: cleared");
            check_eq!(outcome.regs.edi, 0x2222, "paging {paged}: memory");
        }
    }
);

// SDM volume 3, 2.5: a bit of CR4 that CPUID does not enumerate is reserved.
test!(
    hidden,
    "Without LA57 in CPUID, CR4.LA57 is #GP in any mode, and addresses have 48 bits.",
    || {
        if cpuid::LA57.present() {
            skip!("CPUID has LA57");
        }
        let cr4 = reg::cr4();
        check_trap!(reg::set_cr4(cr4 | reg::CR4_LA57), trap::GP, 0, "in 64-bit mode");
        check_eq!(reg::cr4(), cr4, "CR4");
        if let Some(widths) = cpuid::get(0x8000_0008, 0) {
            check_eq!(widths.eax >> 8 & 0xff, 48, "bits of linear addresses");
        }
        let mut machine = Machine::new(code32!("mov eax, cr4", "bts eax, 12", "mov cr4, eax"));
        machine.run().faults(trap::GP, 0, 7, "in protected mode");
    }
);

// SDM volume 2, CPUID leaf 80000008H, EAX[15:8]; APM volume 3, E.4.7: what the processor has, whatever CR4
// says.
test!(widths, "CPUID gives 57 bits of linear addresses, with four levels and with five.", || {
    cpuid::LA57.require();
    let width = || cpuid::leaf(0x8000_0008, 0).eax >> 8 & 0xff;
    check_eq!(width(), 57, "with four levels");
    levels::five();
    check_eq!(width(), 57, "with five levels");
    check!(cpuid::LA57.present(), "LA57 with five levels");
});

test!(translates, "Pages of each size, in both halves, lead where five levels say.", || {
    levels::five();
    let sizes = [Size::K4, Size::M2, Size::G1];
    for (n, &size) in sizes.iter().enumerate() {
        if size == Size::G1 && !cpuid::PAGE_1G.present() {
            continue;
        }
        for (i, at) in ADDRESSES.into_iter().enumerate() {
            // Far enough from each other for tables of their own.
            let at = (at & !(size.bytes() - 1)) + n as u64 * Size::G1.bytes() * 4;
            let frame = frame_of_ret();
            let inside = frame & (size.bytes() - 1);
            paging::map(at, frame - inside, size, Flags::RW);
            let page = at + inside;
            let mark = 0x5700_0000 + i as u64;
            check_ok!(mem::write(page + 8, mark), "write {page:#x}, {size:?}");
            check_eq!(mem::read::<u64>(frame + 8), Ok(mark), "memory of {page:#x}, {size:?}");
            check_eq!(mem::read::<u64>(page + 8), Ok(mark), "read of {page:#x}, {size:?}");
            check_ok!(mem::call(page), "call of {page:#x}, {size:?}");
            check_eq!(paging::walk(page).level, size as u32, "the level of {page:#x}");
        }
    }
});

test!(slots, "Each of the 512 entries of the fifth level has its own 256 TiB.", || {
    let root = levels::five();
    // One table below for all: what differs is the fifth level's entry and its A bit.
    map(AT, frame_with(0x57));
    let below = top(AT).value & paging::ADDRESS;
    let offset = AT & 0x0000_ffff_ffff_ffff;
    for slot in 1..512_u64 {
        check_ok!(mem::write(root + 8 * slot, below | Flags::RW.0));
    }
    paging::flush();
    for slot in 1..512_u64 {
        let high = ((slot << 55) as i64 >> 7) as u64;
        let at = high | offset;
        let entry = root + 8 * slot;
        check_eq!(mem::read::<u64>(entry), Ok(below | Flags::RW.0), "entry {slot} before");
        check_eq!(mem::read::<u64>(at), Ok(0x57), "by entry {slot}");
        let after = check_ok!(mem::read::<u64>(entry));
        check_eq!(after & !Flags::D.0, below | Flags::RW.0 | Flags::A.0, "entry {slot} after");
    }
});

test!(
    not_present,
    "Faults have all 57 bits of their address in CR2, whichever level ends the way.",
    || {
        levels::five();
        for at in ADDRESSES {
            let whole = at + 0x123;
            check_fault(mem::read::<u8>(whole), 0, whole, "a read by an empty fifth level");
            check_fault(mem::write(whole, 0_u8), 2, whole, "a write by an empty fifth level");
            map(at, frame_with(1));
            for level in 1..=5 {
                let entry = paging::entry(at, level);
                paging::set(at, &entry, entry.value & !Flags::P.0);
                check_fault(mem::read::<u8>(whole), 0, whole, "a read");
                check_fault(mem::call(whole), fetch_error(), whole, "a fetch");
                paging::set(at, &entry, entry.value);
                check_eq!(mem::read::<u64>(at), Ok(1), "{at:#x}, level {level} present again");
            }
        }
    }
);

/// The error code of a fetch from a page that is not present: I/D is there with NX or SMEP.
fn fetch_error() -> u64 {
    let nx = reg::rdmsr(reg::EFER).is_ok_and(|efer| efer & reg::EFER_NXE != 0);
    if nx || reg::cr4() & reg::CR4_SMEP != 0 { 16 } else { 0 }
}

// SDM volume 1, 3.3.7.1: what is canonical with 57 bits and not with 48 is #PF at most.
test!(between, "Addresses canonical with 57 bits but not with 48 are #PF, or memory.", || {
    levels::five();
    for at in [1 << 48, 1 << 55, 0xff80_0000_0000_0000, 0xfffe_ffff_ffff_f000] {
        check_fault(mem::read::<u8>(at), 0, at, "a read");
        map(at, frame_with(0x48));
        check_eq!(mem::read::<u64>(at), Ok(0x48), "{at:#x}");
    }
    // The upper half of 48 bits is in the last slot, and the 2^47 above the lower half in the first.
    for at in [0x8000_0000_0000, 0xffff_7fff_ffff_f000] {
        map(at, frame_with(0x47));
        check_eq!(mem::read::<u64>(at), Ok(0x47), "{at:#x}");
    }
});

test!(ends, "The last pages of the lower half and the first of the upper are memory.", || {
    levels::five();
    for at in [LOWER_END - 0x1000, UPPER] {
        map(at, frame_of_ret());
        check_ok!(mem::write(at + 8, at));
        check_eq!(mem::read::<u64>(at + 8), Ok(at));
        check_ok!(mem::read::<u64>(at + 0xff8), "the last word at {at:#x}");
        check_ok!(mem::call(at + 0xfff), "the last byte at {at:#x}");
    }
    // The last page of all: an access around the end of the address space is two accesses.
    let last = 0xffff_ffff_ffff_f000;
    map(last, frame_with(7));
    check_eq!(mem::read::<u64>(last), Ok(7));
});

test!(cpl3, "CPL 3 runs, reads and writes at 57-bit addresses, on a stack there.", || {
    levels::five();
    let code = asm_code!("mov rax, [rdi]", "mov [rdi + 8], rax", "push rax", "pop rbx", "ret");
    for at in [ADDRESSES[0], LOWER_END - 0x3000] {
        let mut page = frames::alloc();
        page.bytes()[..code.len()].copy_from_slice(code);
        paging::map(at, page.address(), Size::K4, Flags::P | Flags::U);
        for data in [at + 0x1000, at + 0x2000] {
            paging::map(data, frame_with(0x3333), Size::K4, Flags::RWU);
        }
        let mut user = User::at(at);
        let ret: u64 = check_ok!(mem::read(user.regs.rsp));
        user.regs.rsp = at + 0x2800;
        check_ok!(mem::write(user.regs.rsp, ret));
        user.regs.rdi = at + 0x1000;
        let outcome = user.run();
        check_eq!(outcome.end, End::Done, "at {at:#x}");
        check_eq!((outcome.regs.rax, outcome.regs.rbx), (0x3333, 0x3333), "at {at:#x}");
        check_eq!(mem::read::<u64>(at + 0x1008), Ok(0x3333), "written at {at:#x}");
    }
});
