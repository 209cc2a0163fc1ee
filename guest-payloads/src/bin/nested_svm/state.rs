//! What VMRUN, #VMEXIT, VMLOAD and VMSAVE move, and what they leave (AMD APM volume 2, 15.5 and 15.6;
//! volume 3, VMLOAD and VMSAVE).

use crate::l1::L1;
use crate::{guest, page, run_to, run_to_end};
use payload_rt::reg::{rdmsr, wrmsr};
use payload_rt::svm::vmcb::{self, Field, Seg};
use payload_rt::svm::{self, Guest, Vmcb, exit};
use payload_rt::{asm_code, check, check_eq, check_ok, cpu, insn, mem, reg, simd_fn, test, time};

/// The MSRs of VMLOAD and VMSAVE, with a value that each takes.
const MSRS: [(Field, u32, u64); 8] = [
    (vmcb::STAR, reg::STAR, 0x0033_0008_1234_5678),
    (vmcb::LSTAR, reg::LSTAR, 0x7fff_1234_5000),
    (vmcb::CSTAR, reg::CSTAR, 0x7fff_2345_6000),
    (vmcb::SFMASK, reg::FMASK, 0x4_7700),
    (vmcb::KERNEL_GS_BASE, reg::KERNEL_GS_BASE, 0x7fff_3456_7000),
    (vmcb::SYSENTER_CS, 0x174, 0x1238),
    (vmcb::SYSENTER_ESP, 0x175, 0x7fff_4567_8000),
    (vmcb::SYSENTER_EIP, 0x176, 0x7fff_5678_9000),
];

test!(vmsave_msrs, "VMSAVE stores each of its MSRs in its field.", || {
    svm::enable();
    for (_, msr, value) in MSRS {
        check_ok!(wrmsr(msr, value), "write MSR {msr:#x}");
    }
    let saved = Vmcb::new();
    check_ok!(svm::vmsave(saved.address()));
    for (field, _, value) in MSRS {
        check_eq!(saved.get(field), value, "{field:?}");
    }
});

test!(vmload_msrs, "VMLOAD loads each of its MSRs from its field.", || {
    svm::enable();
    let mut image = Vmcb::new();
    check_ok!(svm::vmsave(image.address()));
    for (field, _, value) in MSRS {
        image.set(field, value);
    }
    check_ok!(svm::vmload(image.address()));
    for (field, msr, value) in MSRS {
        check_eq!(rdmsr(msr), Ok(value), "the MSR of {field:?}");
    }
});

test!(vmsave_segments, "VMSAVE stores FS, GS, TR and LDTR with their hidden parts.", || {
    svm::enable();
    check_ok!(wrmsr(reg::FS_BASE, 0x1234_5000));
    check_ok!(wrmsr(reg::GS_BASE, 0x2345_6000));
    let saved = Vmcb::new();
    check_ok!(svm::vmsave(saved.address()));
    check_eq!(saved.segment(Seg::Fs).base, 0x1234_5000, "the base of FS");
    check_eq!(saved.segment(Seg::Gs).base, 0x2345_6000, "the base of GS");
    let tr = saved.segment(Seg::Tr);
    check_eq!(tr.selector, cpu::TSS_SELECTOR, "TR's selector");
    check_eq!(tr.base, cpu::tss_address(), "TR's base");
    // Processors of AMD do not all show the busy bit here.
    check_eq!(tr.attributes & 0xfd, 0x89, "TR's type: a 64-bit TSS");
    check_eq!(saved.segment(Seg::Ldtr).selector, 0, "LDTR's selector");
});

test!(vmload_segments, "VMLOAD loads the bases of FS and GS, and VMSAVE gives them back.", || {
    svm::enable();
    let mut image = Vmcb::new();
    check_ok!(svm::vmsave(image.address()));
    for (segment, base) in [(Seg::Fs, 0x7fff_0000_1000), (Seg::Gs, 0x7fff_0000_2000)] {
        let mut value = image.segment(segment);
        (value.base, value.limit) = (base, 0x000f_ffff);
        image.set_segment(segment, value);
    }
    check_ok!(svm::vmload(image.address()));
    check_eq!(rdmsr(reg::FS_BASE), Ok(0x7fff_0000_1000), "the base of FS");
    check_eq!(rdmsr(reg::GS_BASE), Ok(0x7fff_0000_2000), "the base of GS");
    let saved = Vmcb::new();
    check_ok!(svm::vmsave(saved.address()));
    for segment in [Seg::Fs, Seg::Gs, Seg::Tr, Seg::Ldtr] {
        check_eq!(saved.segment(segment), image.segment(segment), "{segment:?}");
    }
});

test!(vmsave_spares, "VMSAVE writes no byte but those of its own fields.", || {
    svm::enable();
    let mut saved = Vmcb::new();
    for field in vmcb::CONTROL.iter().chain(vmcb::STATE) {
        saved.set(*field, 0x5a5a_5a5a_5a5a_5a5a);
    }
    for segment in [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Gdtr, Seg::Idtr] {
        saved.set_segment(segment, svm::vmcb::Segment { base: 0x5a5a, ..Default::default() });
    }
    let before = saved.snapshot();
    check_ok!(svm::vmsave(saved.address()));
    let written = [Seg::Fs, Seg::Gs, Seg::Tr, Seg::Ldtr];
    let mut after = saved.segment(Seg::Es);
    check_eq!(after.base, 0x5a5a, "ES's base");
    for segment in written {
        after = saved.segment(segment);
        saved.set_segment(segment, Default::default());
    }
    check_eq!(after.selector, 0, "LDTR's selector");
    if let Some(offset) = saved.differs(&before, vmcb::EXTENDED) {
        payload_rt::fail!("VMSAVE wrote at {offset:#x}");
    }
});

test!(vmload_spares, "VMLOAD changes none of what VMRUN loads.", || {
    svm::enable();
    let image = Vmcb::new();
    check_ok!(svm::vmsave(image.address()));
    let l1 = L1::now();
    check_ok!(svm::vmload(image.address()));
    l1.check_intact("after VMLOAD of what VMSAVE stored");
});

// Volume 3, VMLOAD: bases are canonicalised.
test!(vmload_canonicalises, "VMLOAD makes the bases of FS, GS and KernelGSbase canonical.", || {
    svm::enable();
    let mut image = Vmcb::new();
    check_ok!(svm::vmsave(image.address()));
    for segment in [Seg::Fs, Seg::Gs] {
        let mut value = image.segment(segment);
        value.base = 0x1200_0000_0000_5000;
        image.set_segment(segment, value);
    }
    image.set(vmcb::KERNEL_GS_BASE, 0x1200_0000_0000_6000);
    check_ok!(svm::vmload(image.address()));
    check_eq!(rdmsr(reg::FS_BASE), Ok(0x5000), "the base of FS");
    check_eq!(rdmsr(reg::GS_BASE), Ok(0x5000), "the base of GS");
    check_eq!(rdmsr(reg::KERNEL_GS_BASE), Ok(0x6000), "KernelGSbase");
});

// 15.5.1: VMRUN loads none of what VMLOAD loads.
test!(
    vmrun_spares_msrs,
    "VMRUN leaves the MSRs of VMLOAD as they are, whatever the VMCB holds.",
    || {
        let mut guest = guest(asm_code!("rdmsr", "vmmcall"));
        for (field, msr, value) in MSRS {
            check_ok!(wrmsr(msr, value), "write MSR {msr:#x}");
            guest.vmcb.set(field, 0x5a5a_5a5a);
        }
        let rip = guest.rip();
        for (field, msr, value) in MSRS {
            guest.regs.rcx = msr.into();
            guest.vmcb.set(vmcb::RIP, rip);
            run_to_end(&mut guest, "a read");
            let read = guest.vmcb.get(vmcb::RAX) & 0xffff_ffff | guest.regs.rdx << 32;
            check_eq!(read, value, "the MSR of {field:?} in the guest");
            check_eq!(rdmsr(msr), Ok(value), "the MSR of {field:?} in L1");
            check_eq!(guest.vmcb.get(field), 0x5a5a_5a5a, "{field:?} in the VMCB");
        }
    }
);

// A hypervisor that switches this state does VMSAVE, VMLOAD and the reverse around VMRUN.
test!(
    switched_state,
    "With VMLOAD and VMSAVE around VMRUN guest and L1 have MSRs of their own.",
    || {
        let mut guest =
            guest(asm_code!("rdmsr", "mov eax, 0x1111", "xor edx, edx", "wrmsr", "vmmcall"));
        check_ok!(wrmsr(reg::LSTAR, 0x1000));
        let host = Vmcb::new();
        check_ok!(svm::vmsave(host.address()));
        check_ok!(svm::vmsave(guest.vmcb.address()));
        guest.vmcb.set(vmcb::LSTAR, 0x2000);
        guest.regs.rcx = reg::LSTAR.into();
        check_ok!(svm::vmload(guest.vmcb.address()));
        run_to_end(&mut guest, "the guest");
        check_ok!(svm::vmsave(guest.vmcb.address()));
        check_ok!(svm::vmload(host.address()));
        check_eq!(guest.vmcb.get(vmcb::LSTAR), 0x1111, "LSTAR of the guest");
        check_eq!(rdmsr(reg::LSTAR), Ok(0x1000), "LSTAR of L1");
    }
);

// 15.5.1 and 15.6.
test!(
    registers_pass,
    "The registers that the VMCB has no place for pass in both directions.",
    || {
        let mut guest = guest(asm_code!(
            "not rbx", "not rcx", "not rdx", "not rsi", "not rdi", "not rbp", "not r8", "not r9",
            "not r10", "not r11", "not r12", "not r13", "not r14", "not r15", "not rax", "vmmcall",
        ));
        let r = &mut guest.regs;
        let all = |r: &svm::Registers| {
            [
                r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
                r.r14, r.r15,
            ]
        };
        (r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8) = (1, 2, 3, 4, 5, 6, 7);
        (r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15) = (8, 9, 10, 11, 12, 13, 14);
        guest.vmcb.set(vmcb::RAX, 15);
        run_to_end(&mut guest, "the guest");
        for (value, old) in all(&guest.regs).into_iter().zip(1_u64..) {
            check_eq!(value, !old, "register {old}");
        }
        check_eq!(guest.vmcb.get(vmcb::RAX), !15, "RAX");
        check_eq!(guest.regs.host_rax, guest.vmcb.address(), "RAX of L1 after the exit");
    }
);

test!(state_is_stored, "#VMEXIT stores RIP, RSP, RAX, RFLAGS and CR2 of the guest.", || {
    let code = asm_code!("mov eax, 0x77", "push rax", "stc", "std", "mov cr2, rax", "vmmcall");
    let mut guest = guest(code);
    let rsp = guest.vmcb.get(vmcb::RSP);
    run_to_end(&mut guest, "the guest");
    check_eq!(guest.rip(), code.as_ptr() as u64 + code.len() as u64 - 3, "RIP");
    check_eq!(guest.vmcb.get(vmcb::RSP), rsp - 8, "RSP");
    check_eq!(guest.vmcb.get(vmcb::RAX), 0x77, "RAX");
    check_eq!(guest.vmcb.get(vmcb::RFLAGS), 0x403, "RFLAGS: CF, DF and bit 1");
    check_eq!(guest.vmcb.get(vmcb::CR2), 0x77, "CR2");
    check_eq!(guest.vmcb.get(vmcb::CPL), 0, "CPL");
});

test!(
    tables_are_apart,
    "GDTR and IDTR that the guest loads are in its VMCB, and not in L1.",
    || {
        let mut guest = guest(asm_code!("lidt [rbx]", "lgdt [rbx + 16]", "vmmcall"));
        let page = page();
        check_ok!(mem::write(page, 0x123_u16));
        check_ok!(mem::write(page + 2, 0x1234_5000_u64));
        check_ok!(mem::write(page + 16, 0x7f_u16));
        check_ok!(mem::write(page + 18, 0x2345_6000_u64));
        guest.regs.rbx = page;
        let l1 = L1::now();
        run_to_end(&mut guest, "the guest");
        l1.check_intact("after the guest's LIDT and LGDT");
        let idt = guest.vmcb.segment(Seg::Idtr);
        check_eq!((idt.base, idt.limit), (0x1234_5000, 0x123), "IDTR");
        let gdt = guest.vmcb.segment(Seg::Gdtr);
        check_eq!((gdt.base, gdt.limit), (0x2345_6000, 0x7f), "GDTR");
    }
);

test!(
    thousand_entries,
    "After 1000 entries L1's registers, tables and MSRs are as they were.",
    || {
        let mut guest = guest(asm_code!("2: inc rbx", "vmmcall", "jmp 2b"));
        let l1 = L1::now();
        for round in 1..=1000 {
            run_to_end(&mut guest, "a round");
            check_eq!(guest.regs.rbx, round, "RBX");
            guest.skip(3);
        }
        l1.check_intact("after 1000 entries");
    }
);

test!(two_guests, "Two guests in turn keep their own registers and state.", || {
    let code = asm_code!("2: inc rbx", "mov cr2, rbx", "push rbx", "vmmcall", "jmp 2b");
    let mut guests = [guest(code), guest(code)];
    guests[1].vmcb.set(vmcb::ASID, 2);
    guests[1].regs.rbx = 1000;
    for round in 1..=20 {
        for (guest, base) in guests.iter_mut().zip([0, 1000]) {
            run_to_end(guest, "a round");
            guest.skip(3);
            check_eq!(guest.regs.rbx, base + round, "RBX");
            check_eq!(guest.vmcb.get(vmcb::CR2), base + round, "CR2");
            check_eq!(mem::read(guest.vmcb.get(vmcb::RSP)), Ok(base + round), "the stack's top");
        }
    }
});

simd_fn! {
    /// Runs the guest with XMM3 and MM2 set, and gives both afterwards.
    fn with_vector_registers(guest: &mut Guest) -> (u64, u64) {
        let (vector, x87): (u64, u64);
        check_ok!(insn!("fninit", "movq xmm3, {0}", "movq mm2, {1}"; in(reg) 0x1111_u64, in(reg) 0x2222_u64));
        guest.run();
        check_ok!(insn!("movq {0}, xmm3", "movq {1}, mm2", "emms"; out(reg) vector, out(reg) x87));
        (vector, x87)
    }
}

// 15.5.1: VMRUN does not touch the x87 and SSE state.
test!(
    fpu_is_shared,
    "The guest finds L1's vector registers, and L1 finds what the guest left.",
    || {
        let mut guest = guest(asm_code!(
            "movq rbx, xmm3",
            "movq rcx, mm2",
            "mov eax, 0x3333",
            "movq xmm3, rax",
            "vmmcall",
        ));
        let (vector, x87) = with_vector_registers(&mut guest);
        check_eq!((guest.regs.rbx, guest.regs.rcx), (0x1111, 0x2222), "XMM3 and MM2 in the guest");
        check_eq!((vector, x87), (0x3333, 0x2222), "XMM3 and MM2 in L1 afterwards");
    }
);

// 15.5.2: the offset is added to what the guest reads, and is gone after the exit.
test!(
    tsc_offset,
    "TSC_OFFSET moves the guest's TSC, by RDTSC and by the MSR, and not L1's.",
    || {
        for offset in [1_u64 << 50, (1_u64 << 45).wrapping_neg()] {
            let code = asm_code!(
                "rdtsc",
                "mov ebx, eax",
                "mov esi, edx",
                "mov ecx, 0x10",
                "rdmsr",
                "vmmcall",
            );
            let mut guest = guest(code);
            guest.vmcb.set(vmcb::TSC_OFFSET, offset);
            let before = time::rdtsc_ordered();
            run_to_end(&mut guest, "the guest");
            let after = time::rdtsc_ordered();
            check!(after.wrapping_sub(before) < 1 << 40, "L1's TSC from {before:#x} to {after:#x}");
            let by_rdtsc = guest.regs.rbx | guest.regs.rsi << 32;
            let by_msr = guest.vmcb.get(vmcb::RAX) & 0xffff_ffff | guest.regs.rdx << 32;
            for (what, value) in [("RDTSC", by_rdtsc), ("the MSR", by_msr)] {
                let value = value.wrapping_sub(offset);
                check!(
                    before <= value && value <= after,
                    "{what}: {before:#x}, {value:#x}, {after:#x}"
                );
            }
        }
    }
);

// 15.15.1: clean bits may be set for what has not changed.
test!(clean_bits_unchanged, "A VMCB that has not changed runs with all clean bits set.", || {
    svm::VMCB_CLEAN.require();
    let mut guest = guest(asm_code!("2: inc rbx", "vmmcall", "jmp 2b"));
    run_to_end(&mut guest, "with no clean bit");
    for round in 2..10 {
        guest.skip(3);
        guest.vmcb.set(vmcb::CLEAN, 0x3ff);
        run_to_end(&mut guest, "with all clean bits");
        check_eq!(guest.regs.rbx, round, "RBX");
    }
});

test!(clean_bits_clear, "With no clean bit set, each change of the VMCB counts.", || {
    let mut guest = guest(asm_code!("mov rsi, cr2", "cpuid", "vmmcall"));
    let rip = guest.rip();
    for round in 0..4 {
        let intercepted = round % 2 == 0;
        guest.vmcb.set(vmcb::CLEAN, 0);
        guest.vmcb.set(vmcb::RIP, rip);
        guest.vmcb.set(vmcb::CR2, 0x1000 + round);
        guest.vmcb.intercept(exit::CPUID, intercepted);
        run_to(&mut guest, if intercepted { exit::CPUID } else { exit::VMMCALL }, "a round");
        check_eq!(guest.regs.rsi, 0x1000 + round, "CR2 as the guest read it");
    }
});

// 15.6: #VMEXIT ends the effect of intercepts and of the guest's TF.
test!(single_step_ends, "The guest's TF does not step L1, and L1's RFLAGS are its own.", || {
    let mut guest = guest(asm_code!("vmmcall"));
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_TF | reg::FLAG_AC | 0xcd5);
    let l1 = L1::now();
    run_to_end(&mut guest, "the guest");
    l1.check_intact("after a guest with all flags");
});
