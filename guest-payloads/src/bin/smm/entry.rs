//! Where SMIs come from, and the state in which the handler starts (APM 10.3.3; SDM "SMI Handler
//! Execution Environment").

use crate::code::{self, ENTRY, SMBASE};
use payload_rt::apic::{self, Delivery, Destination, Mode};
use payload_rt::lab::{self, Chain, Place, kvm, kvm::Plain};
use payload_rt::reg::{CR0_EM, CR0_PE, CR0_PG, CR0_TS};
use payload_rt::{asm_code, check, check_eq, check_ok, mem, port, reg, test, time};

test!(by_host, "KVM_SMI takes the guest to SMM once, and it goes on behind it.", || {
    code::install(&[]);
    for _ in 0..3 {
        code::smi();
    }
    time::delay(100);
    check_eq!(code::count(), 3, "SMIs taken");
});

/// Sends an SMI to this CPU by its local APIC.
fn send_self(mode: Mode) {
    let apic = apic::set_mode(mode);
    apic.enable();
    for n in 1..=3 {
        apic.send(Delivery::Smi, Destination::Physical(apic.id()));
        let came = time::wait_until(crate::PATIENCE, || code::count() == n);
        check!(came, "{} SMIs taken of {n}", code::count());
    }
    time::delay(100);
    check_eq!(code::count(), 3, "SMIs taken");
}

// SDM volume 3, "Interrupt Command Register (ICR)", delivery mode SMI.
test!(by_xapic, "An SMI that a CPU sends itself by the xAPIC's ICR is taken.", || {
    code::install(&[]);
    send_self(Mode::XApic);
});

test!(by_x2apic, "An SMI that a CPU sends itself by the x2APIC's ICR is taken.", || {
    code::install(&[]);
    send_self(Mode::X2Apic);
});

// ACPI 6.5, 4.8.3.6: the port is the board's to answer, and this board has no firmware to tell.
test!(not_by_command_port, "The board answers its SMI command port without an SMI.", || {
    code::install(&[]);
    for command in 0..=255 {
        port::out8(0xb2, command);
    }
    time::delay(100);
    check_eq!(code::count(), 0, "SMIs taken");
    code::smi();
});

/// What the host sees in SMM, right after the entry.
fn at_entry<T: Plain>(get: kvm::Get<T>) -> T {
    code::install(&[]);
    let mut chain = Chain::new();
    let place: Place<T> = chain.get(get);
    code::ask(&chain);
    code::smi();
    check_ok!(chain.all_ok(), "in SMM");
    place.read()
}

test!(
    code_segment,
    "The handler starts at SMBASE + 8000h, in a segment of 4 GiB from SMBASE.",
    || {
        let cs = at_entry(kvm::GET_SREGS).cs;
        check_eq!((cs.selector, cs.base, cs.limit), ((SMBASE >> 4) as u16, SMBASE, u32::MAX), "CS");
        check_eq!((cs.l, cs.db), (0, 0), "CS is of 16 bits");
        let rip = at_entry(kvm::GET_REGS).rip;
        check_eq!(rip, code::rip_in_chain(), "RIP, {ENTRY:#x} before the prologue");
    }
);

test!(data_segments, "Data segments are at 0, with 4 GiB and selector 0.", || {
    let s = at_entry(kvm::GET_SREGS);
    for (name, segment) in [("DS", s.ds), ("ES", s.es), ("FS", s.fs), ("GS", s.gs), ("SS", s.ss)] {
        let found = (segment.selector, segment.base, segment.limit);
        check_eq!(found, (0, 0, u32::MAX), "{name}");
    }
});

test!(
    control_registers,
    "PE, EM, TS and PG of CR0 are clear, the rest of it stays; CR4 and EFER are 0.",
    || {
        check_ok!(reg::set_cr0(reg::cr0() | reg::CR0_WP | reg::CR0_AM | CR0_TS));
        let outside = reg::cr0();
        let s = at_entry(kvm::GET_SREGS);
        check_eq!(
            s.cr0,
            outside & !(CR0_PE | CR0_EM | CR0_TS | CR0_PG),
            "CR0, {outside:#x} outside"
        );
        check_eq!(s.cr4, 0, "CR4");
        check_eq!(s.efer, 0, "EFER");
        check_eq!(reg::cr0(), outside, "CR0 afterwards");
    }
);

test!(flags_and_dr7, "RFLAGS is 2 and DR7 is 400h, whatever they are outside.", || {
    check_ok!(reg::set_dr(7, 0x755));
    check_eq!(at_entry(kvm::GET_DEBUGREGS).dr7, 0x400, "DR7");
    check_eq!(reg::dr(7), Ok(0x755), "DR7 afterwards");
    code::install(&[]);
    let mut chain = Chain::new();
    let regs = chain.get(kvm::GET_REGS);
    code::ask(&chain);
    let smi = code::smi_chain();
    check_ok!(payload_rt::insn!(
        "std", "stc", "sti", "out dx, eax", "cli", "cld";
        in("dx") lab::PORT, in("eax") smi.address()
    ));
    check_eq!(code::count(), 1, "SMIs taken");
    check_eq!(regs.read().rflags, 2, "RFLAGS");
});

// APM 10.3.3 and SDM "SMI Handler Execution Environment": segments of 4 GiB reach all of it.
test!(memory, "The handler reaches memory above 1 MiB, and bit 20 of an address counts.", || {
    let page = payload_rt::frames::alloc_range(1, 4096);
    check!(page > 0x10_0000, "a frame at {page:#x}");
    code::install(&[asm_code!(
        ".code16",
        "mov edi, dword ptr [esi + 0x40]",
        "mov eax, dword ptr [edi]",
        "mov dword ptr [esi + 0x44], eax",
        "not eax",
        "mov dword ptr [edi + 4], eax",
        "mov edi, 0x136f00",
        "mov eax, dword ptr [edi]",
        "mov dword ptr [esi + 0x48], eax",
    )]);
    check_ok!(mem::write(page, 0x1234_5678_u32));
    // The same address without bit 20 is in the area of the SMM code.
    check_ok!(mem::write(0x3_6f00, 0x2020_2020_u32));
    let above = check_ok!(mem::read::<u32>(0x13_6f00));
    check!(above != 0x2020_2020, "the two addresses hold the same");
    code::set_note(0, page as u32);
    code::smi();
    check_eq!(code::note(1), 0x1234_5678, "what the handler read");
    check_eq!(mem::read(page + 4), Ok(!0x1234_5678_u32), "what it wrote");
    check_eq!(code::note(2), above, "what it read at 136f00h");
});

test!(devices, "The handler reaches ports, the local APIC, and MMIO that the VMM answers.", || {
    apic::set_mode(Mode::XApic).enable();
    code::install(&[asm_code!(
        ".code16",
        "mov dx, 0xe0",
        "mov eax, 0x5ca1ab1e",
        "out dx, eax",
        "in eax, dx",
        "mov dword ptr [esi + 0x40], eax",
        "mov edi, 0xfee00030",
        "mov eax, dword ptr [edi]",
        "mov dword ptr [esi + 0x44], eax",
        "mov edi, 0xff000000",
        "mov eax, 0x0badcafe",
        "mov dword ptr [edi], eax",
        "mov eax, dword ptr [edi]",
        "mov dword ptr [esi + 0x48], eax",
        "mov edi, 0xd0000000",
        "mov eax, dword ptr [edi]",
        "mov dword ptr [esi + 0x4c], eax",
    )]);
    let version = apic::local().read(apic::Register::VERSION);
    code::smi();
    check_eq!(code::note(0), 0x5ca1_ab1e, "the test device's port");
    check_eq!(code::note(1), version, "the local APIC's version");
    check_eq!(code::note(2), 0x0bad_cafe, "the test device's memory");
    check_eq!(code::note(3), u32::MAX, "where nothing is");
});
