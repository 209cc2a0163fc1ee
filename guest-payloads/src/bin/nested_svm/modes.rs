//! Guests in other modes than their hypervisor's, and guests that use their own CPL 3 (AMD APM volume
//! 2, 15.5.1 and 15.19).

use crate::{guest, page, run_to, run_to_end};
use payload_rt::reg::{CR0_AM, CR0_PE, CR0_PG, CR4_PAE, CR4_PSE, FLAG_AC};
use payload_rt::svm::vmcb::{self, Seg, Segment, Vmcb};
use payload_rt::svm::{self, EFER_SVME, Guest, exit};
use payload_rt::trap::{AC, GP};
use payload_rt::{
    apic, asm_code, check_eq, check_ok, cpu, cpuid, frames, irq, mem, reg, test, user,
};

/// Where real-mode code goes: 64 KiB of RAM below 640 KiB.
const LOW: u64 = 0x5_0000;

fn segment(selector: u16, attributes: u16, base: u64, limit: u32) -> Segment {
    Segment { selector, attributes, limit, base }
}

/// Takes a guest out of long mode: paging off, flat segments.
fn flat32(code: &'static [u8]) -> Guest {
    let mut guest = guest(code);
    let v = &mut guest.vmcb;
    v.set(vmcb::EFER, EFER_SVME);
    v.set(vmcb::CR0, CR0_PE | 0x10);
    v.set(vmcb::CR3, 0);
    v.set(vmcb::CR4, 0);
    v.set_segment(Seg::Cs, segment(cpu::KERNEL_CS32, 0xc9b, 0, u32::MAX));
    guest
}

/// Puts a guest into real mode, with its code at [`LOW`].
fn real(code: &'static [u8]) -> Guest {
    let mut guest = flat32(code);
    check_ok!(mem::write_bytes(LOW, code));
    let v = &mut guest.vmcb;
    v.set(vmcb::CR0, 0x10);
    v.set(vmcb::RIP, 0);
    v.set(vmcb::RSP, 0x8000);
    v.set_segment(Seg::Cs, segment((LOW >> 4) as u16, 0x9b, LOW, 0xffff));
    for data in [Seg::Ds, Seg::Es, Seg::Ss] {
        v.set_segment(data, segment((LOW >> 4) as u16, 0x93, LOW, 0xffff));
    }
    v.set_segment(Seg::Idtr, segment(0, 0, LOW + 0x4000, 0x3ff));
    guest
}

/// Lets a vector of the guest in real mode lead to a handler that sets bit 1 of BX.
fn handle(vector: u64) {
    check_ok!(mem::write_bytes(LOW + 0x1000, asm_code!(".code16", "or bx, 2", "iret")));
    check_ok!(mem::write(LOW + 0x4000 + 4 * vector, 0x5000_1000_u32));
}

/// The guest's end, and EBX.
fn ends_with(guest: &mut Guest, rbx: u64) {
    run_to_end(guest, "the guest");
    check_eq!(guest.regs.rbx, rbx, "RBX");
}

test!(
    real_mode,
    "A guest in real mode runs 16-bit code, with segments by their selectors.",
    || {
        let code = asm_code!(
            ".code16",
            "mov ax, 0x5100",
            "mov ds, ax",
            "mov bx, [0x10]",
            "mov dx, cs",
            "push dx",
            "vmmcall",
        );
        let mut guest = real(code);
        check_ok!(mem::write(0x5_1010, 0xbeef_u16));
        ends_with(&mut guest, 0xbeef);
        check_eq!(guest.vmcb.get(vmcb::RSP), 0x7ffe, "RSP");
        let ds = guest.vmcb.segment(Seg::Ds);
        check_eq!((ds.selector, ds.base), (0x5100, 0x5_1000), "DS");
        check_eq!(mem::read(LOW + 0x7ffe), Ok(0x5000_u16), "what it pushed");
    }
);

test!(
    real_mode_interrupt,
    "INT n of a guest in real mode goes through its interrupt table.",
    || {
        let code = asm_code!(".code16", "mov bx, 1", "int 0x21", "or bx, 4", "vmmcall");
        let mut guest = real(code);
        handle(0x21);
        run_to(&mut guest, exit::VMMCALL, "the guest");
        check_eq!(guest.regs.rbx, 7, "BX");
    }
);

test!(
    real_mode_injection,
    "An interrupt injected into real mode goes through its interrupt table.",
    || {
        let code = asm_code!(".code16", "or bx, 4", "vmmcall");
        let mut guest = real(code);
        handle(0x22);
        guest.vmcb.set(vmcb::EVENTINJ, 1 << 31 | 0x22);
        run_to(&mut guest, exit::VMMCALL, "the guest");
        check_eq!(guest.regs.rbx, 6, "BX");
    }
);

test!(protected_mode, "A guest in protected mode without paging runs 32-bit code.", || {
    let code = asm_code!(".code32", "mov eax, 0x12345678", "push eax", "mov ebx, [esp]", "vmmcall");
    let mut guest = flat32(code);
    let rsp = guest.vmcb.get(vmcb::RSP);
    ends_with(&mut guest, 0x1234_5678);
    check_eq!(guest.vmcb.get(vmcb::RSP), rsp - 4, "RSP");
});

/// A page directory: `count` large pages of `1 << shift` bytes each from 0, in entries of `T`.
fn directory(entries: u64, shift: u32, wide: bool) -> u64 {
    let table = frames::alloc().address();
    for i in 0..entries {
        let entry = i << shift | 0x83;
        check_ok!(match wide {
            true => mem::write(table + 8 * i, entry),
            false => mem::write(table + 4 * i, entry as u32),
        });
    }
    table
}

test!(legacy_paging, "A guest under 32-bit paging with 4 MiB pages runs.", || {
    let code = asm_code!(".code32", "mov ebx, [ecx]", "vmmcall");
    let mut guest = flat32(code);
    let directory = directory(256, 22, false);
    let target = frames::alloc_range(1024, 1 << 22);
    check_ok!(mem::write(target + 0x10, 0x77_u32));
    // Page 512 of the directory, at 2 GiB, leads there.
    check_ok!(mem::write(directory + 4 * 512, target as u32 | 0x83));
    guest.vmcb.set(vmcb::CR3, directory);
    guest.vmcb.set(vmcb::CR4, CR4_PSE);
    guest.vmcb.add(vmcb::CR0, CR0_PG);
    guest.regs.rcx = 0x8000_0010;
    ends_with(&mut guest, 0x77);
});

test!(pae_paging, "A guest under PAE paging, outside of long mode, runs.", || {
    let code = asm_code!(".code32", "mov ebx, [ecx]", "vmmcall");
    let mut guest = flat32(code);
    let pointers = frames::alloc().address();
    check_ok!(mem::write(pointers, directory(512, 21, true) | 1));
    // The second GiB is the first one again.
    check_ok!(mem::write(pointers + 8, directory(512, 21, true) | 1));
    let target = page();
    check_ok!(mem::write(target + 0x10, 0x77_u32));
    guest.vmcb.set(vmcb::CR3, pointers);
    guest.vmcb.set(vmcb::CR4, CR4_PAE);
    guest.vmcb.add(vmcb::CR0, CR0_PG);
    guest.regs.rcx = (1 << 30) + target + 0x10;
    ends_with(&mut guest, 0x77);
});

test!(
    compatibility_mode,
    "A guest in compatibility mode runs 32-bit code under long mode's tables.",
    || {
        let code = asm_code!(".code32", "mov eax, -1", "inc eax", "mov ebx, 7", "vmmcall");
        let mut guest = guest(code);
        guest.vmcb.set_segment(Seg::Cs, segment(cpu::KERNEL_CS32, 0xc9b, 0, u32::MAX));
        ends_with(&mut guest, 7);
        check_eq!(guest.vmcb.get(vmcb::RAX), 0, "RAX");
    }
);

// 15.19: what real mode software sees, with the hypervisor's pages below it.
test!(paged_real_mode, "VMRUN takes paged real mode: CR0.PG with PE clear.", || {
    let code = asm_code!(".code16", "mov bx, [0x10]", "vmmcall");
    let mut guest = real(code);
    let directory = directory(256, 22, false);
    check_ok!(mem::write(LOW + 0x10, 0x77_u16));
    guest.vmcb.set(vmcb::CR3, directory);
    guest.vmcb.set(vmcb::CR4, CR4_PSE);
    guest.vmcb.add(vmcb::CR0, CR0_PG);
    ends_with(&mut guest, 0x77);
});

/// A guest at CPL 3, in pages of its hypervisor that CPL 3 may use.
fn at_cpl3(code: &'static [u8]) -> Guest {
    let mut guest = guest(code);
    let start = user::User::new(code).regs;
    let v = &mut guest.vmcb;
    v.set(vmcb::RIP, start.rip);
    v.set(vmcb::RSP, start.rsp);
    v.set(vmcb::CPL, 3);
    v.set_segment(Seg::Cs, segment(cpu::USER_CS, 0xafb, 0, u32::MAX));
    v.set_segment(Seg::Ss, segment(cpu::USER_DS, 0xcf3, 0, u32::MAX));
    guest
}

test!(cpl3_runs, "A guest at CPL 3 runs, exits at CPL 3, and has its CPL in the VMCB.", || {
    let mut guest = at_cpl3(asm_code!("mov ebx, 7", "cpuid", "vmmcall"));
    guest.intercept(&[exit::CPUID]);
    run_to(&mut guest, exit::CPUID, "at CPL 3");
    check_eq!(guest.regs.rbx, 7, "RBX");
    check_eq!(guest.vmcb.get(vmcb::CPL), 3, "CPL");
    check_eq!(guest.vmcb.segment(Seg::Cs).selector, cpu::USER_CS, "CS");
    check_eq!(reg::cs(), cpu::KERNEL_CS, "CS of L1");
});

// 15.9: #GP for the lack of privilege comes before the intercept.
test!(
    cpl3_privilege_first,
    "At CPL 3 the #GP of a privileged instruction comes before its intercept.",
    || {
        for (code, exit) in [
            (asm_code!("mov rax, cr0", "vmmcall"), exit::cr_read(0)),
            (asm_code!("mov dr7, rax", "vmmcall"), exit::dr_write(7)),
            (asm_code!("hlt", "vmmcall"), exit::HLT),
            (asm_code!("invlpg [rcx]", "vmmcall"), exit::INVLPG),
            (asm_code!("lgdt [rcx]", "vmmcall"), exit::GDTR_WRITE),
            (asm_code!("lidt [rcx]", "vmmcall"), exit::IDTR_WRITE),
            (asm_code!("lldt cx", "vmmcall"), exit::LDTR_WRITE),
            (asm_code!("ltr cx", "vmmcall"), exit::TR_WRITE),
            (asm_code!("vmrun", "vmmcall"), exit::VMRUN),
            (asm_code!("stgi", "vmmcall"), exit::STGI),
            (asm_code!("clgi", "vmmcall"), exit::CLGI),
        ] {
            let mut guest = at_cpl3(code);
            guest.intercept(&[exit, exit::exception(GP)]);
            let found = run_to(&mut guest, exit::exception(GP), "a privileged instruction");
            check_eq!(found.info1, 0, "its error code, with the intercept {exit:#x} on");
        }
    }
);

test!(cpl3_wbinvd, "At CPL 3 the #GP of WBINVD and INVD comes before their intercepts.", || {
    for (code, exit) in
        [(asm_code!("wbinvd", "vmmcall"), exit::WBINVD), (asm_code!("invd", "vmmcall"), exit::INVD)]
    {
        let mut guest = at_cpl3(code);
        guest.intercept(&[exit, exit::exception(GP)]);
        run_to(&mut guest, exit::exception(GP), "at CPL 3");
    }
});

test!(ac_exits, "An intercepted #AC exits at the unaligned access at CPL 3.", || {
    let mut guest = at_cpl3(asm_code!("mov eax, [rsp - 15]", "vmmcall"));
    guest.vmcb.add(vmcb::CR0, CR0_AM);
    guest.vmcb.add(vmcb::RFLAGS, FLAG_AC);
    guest.intercept(&[exit::exception(AC)]);
    let rip = guest.rip();
    let found = run_to(&mut guest, exit::exception(AC), "unaligned");
    check_eq!(found.info1, 0, "the error code");
    check_eq!(guest.rip(), rip, "RIP at the exit");
});

// A guest with a TSS of its own, which VMLOAD brings.
test!(
    cpl3_to_cpl0,
    "A guest at CPL 3 enters its own CPL 0 by INT n, and returns, without an exit.",
    || {
        let mut guest = at_cpl3(asm_code!("int 0x80", "mov ecx, 3", "vmmcall"));
        let handler = asm_code!("mov rbx, rsp", "mov edx, cs", "iretq");
        guest.set_gate(0x80, handler.as_ptr() as u64, 3);
        let (tss, stack) = (page(), page() + frames::PAGE);
        check_ok!(mem::write(tss + 4, stack as u32));
        check_ok!(mem::write(tss + 8, (stack >> 32) as u32));
        let host = Vmcb::new();
        check_ok!(svm::vmsave(host.address()));
        check_ok!(svm::vmsave(guest.vmcb.address()));
        guest.vmcb.set_segment(Seg::Tr, segment(cpu::TSS_SELECTOR, 0x8b, tss, 0x67));
        check_ok!(svm::vmload(guest.vmcb.address()));
        let found = guest.run();
        check_ok!(svm::vmload(host.address()));
        check_eq!(found.code, exit::VMMCALL, "{found:?}");
        check_eq!(guest.regs.rbx, stack - 40, "RSP in the handler");
        check_eq!(guest.regs.rdx, cpu::KERNEL_CS.into(), "CS in the handler");
        check_eq!(guest.regs.rcx, 3, "RCX after the return");
        check_eq!(guest.vmcb.get(vmcb::CPL), 3, "CPL at the exit");
    }
);

// The guest shares L1's local APIC where L1 intercepts none of its MSRs.
test!(x2apic_read, "A guest reads L1's x2APIC by RDMSR.", || {
    cpuid::X2APIC.require();
    let mut guest = guest(asm_code!("mov ecx, 0x802", "rdmsr", "vmmcall"));
    let id = apic::set_mode(apic::Mode::X2Apic).id();
    run_to_end(&mut guest, "the read");
    check_eq!(guest.vmcb.get(vmcb::RAX), id.into(), "the x2APIC's identifier");
});

test!(x2apic_self_ipi, "A self-IPI by the guest's WRMSR is an interrupt of L1.", || {
    cpuid::X2APIC.require();
    let code = asm_code!("mov ecx, 0x83f", "mov eax, 0x42", "xor edx, edx", "wrmsr", "vmmcall");
    let mut guest = guest(code);
    apic::set_mode(apic::Mode::X2Apic).enable();
    irq::count_only(0x42);
    irq::reset();
    run_to_end(&mut guest, "the write");
    check_eq!(irq::count(0x42), 0, "interrupts with IF clear");
    payload_rt::check!(irq::wait_for(0x42, 1, 1_000_000), "the self-IPI does not come");
});
