//! The state in which a loader enters an image, by protocol, and what no loader touches.

use payload_rt::boot::{self, EntryState, Kind, Protocol, Region};
use payload_rt::{apic, check, check_eq, check_ok, mem, println, reg, skip, test};

const FLAG_VM: u64 = 1 << 17;
/// EAX at the entry (Multiboot Specification 0.6.96, 3.2).
const MULTIBOOT_MAGIC: u64 = 0x2bad_b002;
/// First word of `hvm_start_info`.
const PVH_MAGIC: u32 = 0x336e_c578;

fn entered_by(wanted: Protocol) -> EntryState {
    let protocol = boot::info().protocol();
    if protocol != wanted {
        skip!("started by {protocol:?}, not {wanted:?}");
    }
    let state = boot::entry_state();
    println!("{state:#x?}");
    state
}

fn is_long(state: &EntryState) -> bool {
    state.efer & reg::EFER_LMA != 0
}

/// A word of what the loader left in memory.
fn word(at: u64) -> u32 {
    check_ok!(mem::read::<u32>(at), "read {at:#x}")
}

fn long(at: u64) -> u64 {
    check_ok!(mem::read::<u64>(at), "read {at:#x}")
}

// Xen's docs/misc/pvh.pandoc: "cr0: bit 0 (PE) must be set. All the other writeable bits are
// cleared"; CR4 all clear; EFLAGS without VM, IF and TF; EBX leads to hvm_start_info.
test!(pvh_state, "PVH enters with PE alone in CR0, and VM, IF and TF off.", || {
    let state = entered_by_pvh();
    // ET cannot be written.
    check_eq!(state.cr0 & !(1 << 4), reg::CR0_PE, "CR0 but for ET");
    check_eq!(state.rflags & (FLAG_VM | reg::FLAG_IF | reg::FLAG_TF), 0, "EFLAGS");
    check_eq!(state.efer & reg::EFER_LMA, 0, "EFER.LMA");
    check_eq!(word(state.rbx), PVH_MAGIC, "first word at EBX = {:#x}", state.rbx);
    check!(state.cs != 0 && state.cs & 7 == 0, "CS is {:#x}", state.cs);
    for (name, selector) in [("DS", state.ds), ("ES", state.es), ("SS", state.ss)] {
        check!(selector != 0 && selector & 3 == 0, "{name} is {selector:#x}");
    }
});

test!(pvh_cr4, "PVH enters with CR4 clear.", || {
    check_eq!(entered_by_pvh().cr4, 0, "CR4");
});

fn entered_by_pvh() -> EntryState {
    let state = entered_by(Protocol::Pvh);
    if is_long(&state) {
        skip!("entered in 64-bit mode");
    }
    state
}

// Xen's public/arch-x86/hvm/start_info.h.
test!(pvh_info, "hvm_start_info is of version 1, with reserved fields clear.", || {
    let info = entered_by(Protocol::Pvh).rbx;
    check!(word(info + 4) >= 1, "version {}", word(info + 4));
    check_eq!(word(info + 8), 0, "flags: this image was not started as the first domain");
    check_eq!(word(info + 52), 0, "reserved");
    let (modules, list) = (word(info + 12), long(info + 16));
    for entry in (0..u64::from(modules)).map(|i| list + 32 * i) {
        check!(long(entry + 8) > 0, "the module listed at {entry:#x} is empty");
        check_eq!(long(entry + 24), 0, "reserved word of the module listed at {entry:#x}");
    }
    let (map, entries) = (long(info + 40), word(info + 48));
    check!(entries > 0, "no memory map");
    for entry in (0..u64::from(entries)).map(|i| map + 24 * i) {
        check_eq!(word(entry + 20), 0, "reserved word of the range listed at {entry:#x}");
    }
    // Every structure lies where the map says that there is memory.
    for (what, at) in [("start_info", info), ("command line", long(info + 24)), ("map", map)] {
        check!(at == 0 || in_ram(at), "{what} at {at:#x} is not in RAM");
    }
});

// Multiboot Specification 0.6.96, 3.2.
test!(multiboot_state, "Multiboot enters with PE set and PG, VM and IF clear.", || {
    let state = entered_by(Protocol::Multiboot);
    check_eq!(state.rax, MULTIBOOT_MAGIC, "EAX");
    check_eq!(state.cr0 & (reg::CR0_PE | reg::CR0_PG), reg::CR0_PE, "CR0");
    check_eq!(state.rflags & (FLAG_VM | reg::FLAG_IF), 0, "EFLAGS");
    check!(in_ram(state.rbx), "the information at EBX = {:#x} is not in RAM", state.rbx);
    let segments = [state.cs, state.ds, state.es, state.fs, state.gs, state.ss];
    check!(segments.iter().all(|s| s & !7 != 0), "a null selector among {segments:#x?}");
});

// Multiboot Specification 0.6.96, 3.3.
test!(multiboot_info, "The multiboot information agrees with itself and with the map.", || {
    let info = entered_by(Protocol::Multiboot).rbx;
    let flags = word(info);
    check_eq!(flags & 0b100_0101, 0b100_0101, "flags must have memory, command line, map");
    let (lower, upper) = (u64::from(word(info + 4)), u64::from(word(info + 8)));
    check!(lower <= 640, "{lower} KiB of lower memory");
    let ends = |start: u64| ram().find(|r| r.start <= start && start < r.end()).map(|r| r.end());
    // Down to a KiB, and no more than the word holds.
    check_eq!(Some(lower), ends(0).map(|end| end / 1024), "KiB from 0 by the map");
    let above = ends(0x10_0000).map(|end| (end - 0x10_0000) / 1024);
    check_eq!(Some(upper), above, "KiB from 1 MiB by the map");
    if flags & 1 << 9 != 0 {
        let name = u64::from(word(info + 64));
        check!(in_ram(name) && word(name) & 0xff != 0, "the loader's name at {name:#x} is empty");
    }
    // The command line starts with the image's name and ends with what the user said.
    let line = boot::info().command_line();
    check!(!line.starts_with(b"test="), "no image name before {}", line.escape_ascii());
});

// A plain ELF64 is started in 64-bit mode with hvm_start_info at RDI and RBX, on a stack as after
// a call: this VMM's own convention (vmm::boot).
test!(
    elf_state,
    "A plain ELF64 is entered in 64-bit mode with a stack and its information.",
    || {
        let state = entered_in_long_mode();
        check_eq!(state.rdi, state.rbx, "RDI and RBX");
        check_eq!(word(state.rdi), PVH_MAGIC, "first word at RDI");
        check_eq!(state.rsp % 16, 8, "RSP {:#x} modulo 16", state.rsp);
        check_eq!(long(state.rsp), 0, "return address at RSP");
        check!(in_ram(state.rsp - 0x1000), "no page of stack below {:#x}", state.rsp);
        let want = reg::CR0_PE | reg::CR0_PG;
        check_eq!(state.cr0 & (want | reg::CR0_CD | reg::CR0_NW | reg::CR0_TS), want, "CR0");
        check_eq!(state.efer, reg::EFER_LMA | reg::EFER_LME, "EFER");
        check_eq!(state.rflags, 2, "RFLAGS");
        check!(in_ram(state.cr3), "CR3 is {:#x}", state.cr3);
    }
);

test!(elf_cr4, "A plain ELF64 is entered with PAE alone in CR4.", || {
    check_eq!(entered_in_long_mode().cr4, reg::CR4_PAE, "CR4");
});

fn entered_in_long_mode() -> EntryState {
    let state = entered_by(Protocol::Pvh);
    if !is_long(&state) {
        skip!("entered in 32-bit mode");
    }
    state
}

// IBM's AT gate: with A20 off, bit 20 of every address is 0. Both protocols want it on.
test!(a20, "Address bit 20 is there: low memory does not show above 1 MiB.", || {
    const LOW: u64 = 0x7000;
    const HIGH: u64 = LOW | 1 << 20;
    let (low, high) = (long(LOW), long(HIGH));
    for value in [!high, 0x5555_aaaa_1234_5678, low] {
        check_ok!(mem::write(LOW, value), "write {LOW:#x}");
        check_eq!(mem::read(LOW), Ok(value), "at {LOW:#x}");
        check_eq!(mem::read(HIGH), Ok(high), "at {HIGH:#x}, after {value:#x} went to {LOW:#x}");
    }
});

// SDM volume 3, table 10-1 and 12.4.7.1; AMD APM volume 2, tables 14-1 and 16-2.
test!(reset_state, "What no loader writes is as after a reset.", || {
    check_eq!(reg::cr2(), 0, "CR2");
    check_eq!(reg::cr8(), 0, "CR8");
    for n in 0..4 {
        check_eq!(reg::dr(n), Ok(0), "DR{n}");
    }
    check_eq!(reg::dr(6), Ok(0xffff_0ff0), "DR6");
    check_eq!(reg::dr(7), Ok(0x400), "DR7");
    let base = apic::DEFAULT_BASE | apic::BASE_ENABLE | apic::BASE_BSP;
    for (what, msr, value) in [
        ("IA32_APIC_BASE", reg::APIC_BASE, base),
        ("IA32_PAT", reg::PAT, 0x0007_0406_0007_0406),
        ("STAR", reg::STAR, 0),
        ("LSTAR", reg::LSTAR, 0),
        ("CSTAR", reg::CSTAR, 0),
        ("FMASK", reg::FMASK, 0),
        ("KERNEL_GS_BASE", reg::KERNEL_GS_BASE, 0),
        ("SYSENTER_CS", 0x174, 0),
        ("SYSENTER_ESP", 0x175, 0),
        ("SYSENTER_EIP", 0x176, 0),
        ("DEBUGCTL", 0x1d9, 0),
    ] {
        check_eq!(reg::rdmsr(msr), Ok(value), "{what} (MSR {msr:#x})");
    }
});

fn ram() -> impl Iterator<Item = &'static Region> {
    boot::info().regions().iter().filter(|r| r.kind == Kind::Ram)
}

fn in_ram(at: u64) -> bool {
    // The BIOS's own data at the end of conventional memory holds a loader's tables as well.
    at < 0xa_0000 || ram().any(|r| r.start <= at && at < r.end())
}
