//! State that entries and exits load and save (SDM volume 3, "Loading Guest State", "Saving Guest
//! State", "Loading Host State", "Loading MSRs", "Saving MSRs").

use super::{L1, check_l1, passes, vm};
use payload_rt::reg::{self, Table};
use payload_rt::vmx::caps::*;
use payload_rt::vmx::{self, Entry, Field, Reason, Regs, Vm, get, set};
use payload_rt::{asm_code, check, check_eq, check_ok, cpu, fail, frames, insn, mem, test, time};

/// Writes an MSR area: index, reserved, value.
fn area(entries: &[(u64, u64)]) -> u64 {
    let page = frames::alloc().address();
    for (i, (index, value)) in entries.iter().enumerate() {
        check_ok!(mem::write(page + 16 * i as u64, *index));
        check_ok!(mem::write(page + 16 * i as u64 + 8, *value));
    }
    page
}

/// Reads MSRs by L2, one after the other.
extern "C" fn read_msr(index: u64) -> u64 {
    reg::rdmsr(index as u32).unwrap_or(u64::MAX)
}

test!(
    msr_areas,
    "Entry loads, exit stores and exit loads its MSR area: L2 and L1 each have their own values.",
    || {
        let mut vm = vm();
        let msrs = [reg::STAR, reg::LSTAR, reg::FMASK, reg::KERNEL_GS_BASE].map(u64::from);
        let of =
            |n: u64| -> [(u64, u64); 4] { core::array::from_fn(|i| (msrs[i], n + 8 * i as u64)) };
        let l1 = of(0x1000);
        for (msr, value) in l1 {
            check_ok!(reg::wrmsr(msr as u32, value));
        }
        let (load, store, back) = (area(&of(0x2000)), area(&of(0)), area(&l1));
        for (address, count, page) in [
            (Field::ENTRY_MSR_LOAD, Field::ENTRY_MSR_LOAD_COUNT, load),
            (Field::EXIT_MSR_STORE, Field::EXIT_MSR_STORE_COUNT, store),
            (Field::EXIT_MSR_LOAD, Field::EXIT_MSR_LOAD_COUNT, back),
        ] {
            set(address, page);
            set(count, 4);
        }
        for (i, (msr, value)) in of(0x2000).into_iter().enumerate() {
            check_eq!(vm.run_to_end(read_msr, msr), value, "MSR {msr:#x} in L2");
            check_eq!(mem::read(store + 16 * i as u64 + 8), Ok(value), "MSR {msr:#x}, stored");
            check_eq!(reg::rdmsr(msr as u32), Ok(l1[i].1), "MSR {msr:#x} in L1");
        }
        // What L2 writes is stored.
        vm.start(asm_code!("wrmsr"));
        (vm.regs.rcx, vm.regs.rax, vm.regs.rdx) = (reg::LSTAR.into(), 0x7000, 0);
        vm.run_until(Reason::VMCALL, "WRMSR");
        check_eq!(mem::read(store + 16 + 8), Ok(0x7000u64), "LSTAR, stored");
        check_eq!(reg::rdmsr(reg::LSTAR), Ok(l1[1].1), "LSTAR in L1");
    }
);

// "VM-Entry Failures During or After Loading Guest State": reason 34, the number of the entry.
test!(
    msr_load_fails,
    "An MSR that entry cannot load fails it with exit reason 34 and the number of the entry.",
    || {
        let mut vm = vm();
        let good = (u64::from(reg::LSTAR), 0x1000);
        for (bad, what) in [
            ((reg::FS_BASE.into(), 0), "IA32_FS_BASE"),
            ((reg::GS_BASE.into(), 0), "IA32_GS_BASE"),
            ((0x80b, 0), "an x2APIC register"),
            ((0x9b, 0), "IA32_SMM_MONITOR_CTL"),
            ((u64::from(reg::LSTAR) | 1 << 32, 0), "reserved bits of the entry"),
            ((reg::LSTAR.into(), 1 << 62), "a value that is #GP"),
            ((0x480, 0), "a read-only MSR"),
        ] {
            for place in 0..3 {
                let mut entries = [good; 3];
                entries[place] = bad;
                set(Field::ENTRY_MSR_LOAD, area(&entries));
                set(Field::ENTRY_MSR_LOAD_COUNT, 3);
                vm.start(&[]);
                let (regs, mut l1) = (vm.regs, L1::now());
                let Entry::Exit(exit) = vm.enter() else {
                    fail!("{what}: VM-instruction error {}", get(Field::INSTRUCTION_ERROR));
                };
                check_eq!(exit.full_reason, 0x8000_0022, "{what}: {exit}");
                check_eq!(exit.qualification, place as u64 + 1, "qualification, {what}");
                check_eq!(vm.regs, regs, "registers, {what}");
                // What was loaded before stays.
                l1.set_lstar(check_ok!(reg::rdmsr(reg::LSTAR)));
                check_l1(&exit, l1, what);
            }
        }
        set(Field::ENTRY_MSR_LOAD_COUNT, 0);
        vm.start(&[]);
        vm.run_until(Reason::VMCALL, "with no area");
    }
);

test!(
    efer,
    "EFER is loaded, saved and given back by its controls; without them L2's SCE is L1's.",
    || {
        let mut vm = vm();
        let efer = check_ok!(reg::rdmsr(reg::EFER));
        let toggle =
            asm_code!("mov ecx, 0xc0000080", "rdmsr", "mov ebx, eax", "xor eax, 1", "wrmsr");
        passes(&mut vm, toggle, "without the controls");
        check_eq!(vm.regs.rbx, efer & 0xffff_ffff, "EFER that L2 saw, without the controls");
        check_eq!(reg::rdmsr(reg::EFER), Ok(efer ^ reg::EFER_SCE), "EFER of L1, without them");
        check_ok!(reg::wrmsr(reg::EFER, efer));
        vm.add(Field::ENTRY_CONTROLS, ENTRY_LOAD_EFER);
        vm.add(Field::EXIT_CONTROLS, EXIT_SAVE_EFER | EXIT_LOAD_EFER);
        let guest = efer & !reg::EFER_NXE | reg::EFER_SCE;
        set(Field::GUEST_EFER, guest);
        set(Field::HOST_EFER, efer);
        passes(&mut vm, toggle, "with the controls");
        check_eq!(vm.regs.rbx, guest & 0xffff_ffff, "EFER that L2 saw");
        check_eq!(get(Field::GUEST_EFER), guest ^ reg::EFER_SCE, "EFER that the exit saved");
        check_eq!(reg::rdmsr(reg::EFER), Ok(efer), "EFER of L1");
        let host = efer ^ reg::EFER_SCE;
        set(Field::HOST_EFER, host);
        passes(&mut vm, toggle, "another host EFER");
        check_eq!(reg::rdmsr(reg::EFER), Ok(host), "EFER of L1 from the VMCS");
    }
);

test!(pat, "PAT is loaded, saved and given back by its controls.", || {
    let mut vm = vm();
    let pat = check_ok!(reg::rdmsr(reg::PAT));
    vm.add(Field::ENTRY_CONTROLS, ENTRY_LOAD_PAT);
    vm.add(Field::EXIT_CONTROLS, EXIT_SAVE_PAT | EXIT_LOAD_PAT);
    let (guest, host) = (0x0606_0606_0606_0606, pat);
    set(Field::GUEST_PAT, guest);
    set(Field::HOST_PAT, host);
    let code = asm_code!("mov ecx, 0x277", "rdmsr", "mov ebx, eax", "mov eax, 0x01010101", "wrmsr");
    passes(&mut vm, code, "PAT");
    check_eq!(vm.regs.rbx, guest & 0xffff_ffff, "PAT that L2 saw");
    check_eq!(get(Field::GUEST_PAT), guest >> 32 << 32 | 0x0101_0101, "PAT that the exit saved");
    check_eq!(reg::rdmsr(reg::PAT), Ok(host), "PAT of L1");
});

extern "C" fn read_tsc(how: u64) -> u64 {
    match how {
        0 => time::rdtsc(),
        _ => reg::rdmsr(reg::TSC).unwrap_or(0),
    }
}

test!(
    tsc_offset,
    "L2's RDTSC and RDMSR of the TSC are off by the TSC offset, and L1's are not.",
    || {
        let mut vm = vm();
        for offset in [0, 1u64 << 40, (1u64 << 40).wrapping_neg(), 12_345] {
            for on in [true, false] {
                vm.remove(Field::CPU_CONTROLS, CPU_TSC_OFFSET);
                if on {
                    vm.add(Field::CPU_CONTROLS, CPU_TSC_OFFSET);
                }
                set(Field::TSC_OFFSET, offset);
                for how in [0, 1] {
                    let before = time::rdtsc();
                    let seen = vm.run_to_end(read_tsc, how);
                    let after = time::rdtsc();
                    let plain = if on { seen.wrapping_sub(offset) } else { seen };
                    check!(
                        before <= plain && plain <= after,
                        "L2's TSC {seen:#x} by way {how} with offset {offset:#x} ({on}), \
                     L1's {before:#x} to {after:#x}"
                    );
                }
            }
        }
    }
);

// "Loading Host Segment and Descriptor-Table Registers": limits are not in the VMCS.
test!(
    host_tables,
    "A VM exit leaves GDTR and IDTR limits at 0xffff, LDTR null, and segments as the manual says.",
    || {
        let mut vm = vm();
        let (gdt, idt) = (check_ok!(reg::sgdt()), check_ok!(reg::sidt()));
        vm.start(&[]);
        vm.run_until(Reason::VMCALL, "an exit");
        check_eq!(reg::sgdt(), Ok(Table { base: gdt.base, limit: 0xffff }), "GDTR");
        check_eq!(reg::sidt(), Ok(Table { base: idt.base, limit: 0xffff }), "IDTR");
        let ldtr: u16;
        check_ok!(insn!("sldt {:x}"; out(reg) ldtr));
        check_eq!(ldtr, 0, "LDTR");
        check_eq!(reg::str(), Ok(cpu::TSS_SELECTOR), "TR");
        check_ok!(reg::lgdt(gdt));
        check_ok!(reg::lidt(idt));
    }
);

test!(
    host_registers,
    "A VM exit loads CR4, FS and GS base and the SYSENTER MSRs from the host fields, whatever L1 had.",
    || {
        let mut vm = vm();
        let cr4 = reg::cr4();
        set(Field::HOST_CR4, cr4 ^ reg::CR4_TSD);
        set(Field::HOST_FS_BASE, 0x1111_0000);
        set(Field::HOST_GS_BASE, 0xffff_8000_2222_0000);
        set(Field::HOST_SYSENTER_CS, 0x33);
        set(Field::HOST_SYSENTER_ESP, 0x4444_0000);
        set(Field::HOST_SYSENTER_EIP, 0xffff_8000_5555_0000);
        set(Field::HOST_DS, 0);
        set(Field::HOST_FS, u64::from(cpu::KERNEL_DS));
        vm.start(&[]);
        vm.run_until(Reason::VMCALL, "an exit");
        check_eq!(reg::cr4(), cr4 ^ reg::CR4_TSD, "CR4");
        for (msr, value) in [
            (reg::FS_BASE, 0x1111_0000),
            (reg::GS_BASE, 0xffff_8000_2222_0000),
            (reg::SYSENTER_CS, 0x33),
            (reg::SYSENTER_ESP, 0x4444_0000),
            (reg::SYSENTER_EIP, 0xffff_8000_5555_0000),
        ] {
            check_eq!(reg::rdmsr(msr), Ok(value), "MSR {msr:#x}");
        }
        check_eq!((reg::ds(), reg::fs()), (0, cpu::KERNEL_DS), "DS and FS");
    }
);

test!(
    guest_segments_saved,
    "What L2 loads into segment and table registers, RSP and RFLAGS a VM exit saves.",
    || {
        let mut vm = vm();
        let code = asm_code!(
            "mov eax, 0x23",
            "mov es, eax",
            "mov eax, 0x10",
            "mov fs, eax",
            "lidt [rip + 3f]",
            "lgdt [rip + 4f]",
            "mov rsp, 0x123456789abc",
            "stc",
            "std",
            "jmp 2f",
            "3: .short 0x123",
            ".quad 0xffff800012345678",
            "4: .short 0x67",
            ".quad 0xffff800087654321",
            "2:"
        );
        passes(&mut vm, code, "loads of registers");
        for (field, value) in [
            (Field::GUEST_ES, 0x23),
            (Field::ES_RIGHTS, 0xc0f3),
            (Field::ES_LIMIT, 0xffff_ffff),
            (Field::GUEST_FS, 0x10),
            (Field::FS_RIGHTS, 0xc093),
            (Field::FS_BASE, 0),
            (Field::IDTR_LIMIT, 0x123),
            (Field::IDTR_BASE, 0xffff_8000_1234_5678),
            (Field::GDTR_LIMIT, 0x67),
            (Field::GDTR_BASE, 0xffff_8000_8765_4321),
            (Field::GUEST_RSP, 0x1234_5678_9abc),
            (Field::GUEST_RFLAGS, 2 | reg::FLAG_CF | reg::FLAG_DF),
        ] {
            check_eq!(get(field), value, "{field}");
        }
    }
);

test!(
    registers_pass,
    "L2 finds the general registers as L1 left them, and L1 finds them as L2 left them.",
    || {
        let mut vm = vm();
        // Each register goes to the next one.
        let code = asm_code!(
            "xchg rax, r15",
            "xchg rax, r14",
            "xchg rax, r13",
            "xchg rax, r12",
            "xchg rax, r11",
            "xchg rax, r10",
            "xchg rax, r9",
            "xchg rax, r8",
            "xchg rax, rbp",
            "xchg rax, rdi",
            "xchg rax, rsi",
            "xchg rax, rdx",
            "xchg rax, rcx",
            "xchg rax, rbx"
        );
        passes(&mut vm, code, "registers that move");
        let m = Regs::marked();
        let moved = Regs {
            rax: m.rbx,
            rbx: m.rcx,
            rcx: m.rdx,
            rdx: m.rsi,
            rsi: m.rdi,
            rdi: m.rbp,
            rbp: m.r8,
            r8: m.r9,
            r9: m.r10,
            r10: m.r11,
            r11: m.r12,
            r12: m.r13,
            r13: m.r14,
            r14: m.r15,
            r15: m.rax,
        };
        check_eq!(vm.regs, moved, "registers");
    }
);

test!(cr8_and_dr, "CR8, CR2 and DR0 to DR3 are no part of the VMCS: L2 and L1 share them.", || {
    let mut vm = vm();
    check_ok!(reg::set_cr2(0x1111));
    check_ok!(reg::set_dr(1, 0x2222));
    check_ok!(reg::set_cr8(3));
    let code = asm_code!(
        "mov rax, cr2",
        "mov rbx, dr1",
        "mov rcx, cr8",
        "mov edx, 0x3333",
        "mov cr2, rdx",
        "mov edx, 0x4444",
        "mov dr1, rdx",
        "mov edx, 5",
        "mov cr8, rdx"
    );
    passes(&mut vm, code, "CR2, DR1, CR8");
    check_eq!((vm.regs.rax, vm.regs.rbx, vm.regs.rcx), (0x1111, 0x2222, 3), "what L2 saw");
    check_eq!((reg::cr2(), reg::dr(1), reg::cr8()), (0x3333, Ok(0x4444), 5), "what L1 sees");
    check_ok!(reg::set_cr8(0));
});

test!(
    many_entries,
    "After 1000 entries and exits L1's registers and MSRs and L2's counter are right.",
    || {
        let mut vm = vm();
        let l1 = L1::now();
        let at = vm.start(asm_code!("2: inc rbx", "cpuid", "jmp 2b"));
        vm.regs.rbx = 0;
        for n in 1..=1000u64 {
            let exit = vm.run();
            if exit.reason != Reason::CPUID || vm.regs.rbx != n || exit.rip != at + 3 {
                fail!("entry {n}: {exit}, RBX {}", vm.regs.rbx);
            }
            vm.skip(&exit);
        }
        check_eq!(L1::now(), l1, "L1");
    }
);

test!(
    two_guests,
    "Two VMCSs take turns, each with its own registers, launch state and exit information.",
    || {
        let mut first = vm();
        let mut second = Vm::new();
        first.load();
        first.start(asm_code!("2: add rbx, 1", "cpuid", "jmp 2b"));
        first.regs.rbx = 0;
        second.load();
        second.add(Field::CPU_CONTROLS, CPU_HLT);
        second.start(asm_code!("2: add rbx, 3", "hlt", "jmp 2b"));
        second.regs.rbx = 0;
        for n in 1..=20 {
            for (vm, reason, step) in
                [(&mut first, Reason::CPUID, 1), (&mut second, Reason::HLT, 3)]
            {
                vm.load();
                let exit = vm.run_until(reason, "one of two");
                check_eq!(vm.regs.rbx, n * step, "RBX");
                vm.skip(&exit);
            }
        }
        first.load();
        check_eq!(get(Field::EXIT_REASON), Reason::CPUID.0.into(), "exit reason of the first");
        check_eq!(vmx::vmptrst(), Ok(first.vmcs()), "the current VMCS");
    }
);

// "VMCS Shadowing": VMREAD and VMWRITE of L2 go to the VMCS of the link pointer.
test!(
    vmcs_shadowing,
    "With VMCS shadowing L2's VMREAD and VMWRITE exit by the bitmaps, or reach the shadow VMCS.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS2, CPU2_SHADOW);
        let (reads, writes) = (frames::alloc().address(), frames::alloc().address());
        set(Field::VMREAD_BITMAP, reads);
        set(Field::VMWRITE_BITMAP, writes);
        // A VMCS with a value, made a shadow.
        let shadow = vmx::region();
        check_eq!(vmx::vmclear(shadow), Ok(()), "VMCLEAR");
        check_eq!(vmx::vmptrld(shadow), Ok(()), "VMPTRLD of what becomes the shadow");
        set(Field::GUEST_RSP, 0x7777_8888);
        check_eq!(vmx::vmclear(shadow), Ok(()), "VMCLEAR");
        check_ok!(mem::write(shadow, revision() | 1 << 31));
        vm.load();
        set(Field::LINK, shadow);
        let field = Field::GUEST_RSP.0;
        vm.start(asm_code!(
            "vmread rax, rbx",
            "mov ecx, 0x9999",
            "vmwrite rbx, rcx",
            "vmread rdx, rbx"
        ));
        vm.regs.rbx = field;
        vm.run_until(Reason::VMCALL, "a field that does not exit");
        check_eq!((vm.regs.rax, vm.regs.rdx), (0x7777_8888, 0x9999), "what L2 read");
        for (bitmap, code, reason) in [
            (reads, asm_code!("vmread rax, rbx"), Reason::VMREAD),
            (writes, asm_code!("vmwrite rbx, rax"), Reason::VMWRITE),
        ] {
            let byte = bitmap + field / 8;
            check_ok!(mem::write(byte, 1u8 << (field % 8)));
            vm.start(code);
            vm.regs.rbx = field;
            vm.run_until(reason, "a field that exits by its bit");
            check_ok!(mem::write(byte, 0u8));
            vm.start(code);
            vm.regs.rbx = 1 << 15 | field;
            vm.run_until(reason, "a field beyond the bitmap");
        }
        set(Field::LINK, u64::MAX);
        // Without a shadow VMCS: VMfailInvalid, in L2.
        vm.start(asm_code!("vmread rax, rbx", "pushfq", "pop rcx"));
        vm.regs.rbx = field;
        vm.run_until(Reason::VMCALL, "no shadow VMCS");
        check_eq!(vm.regs.rcx & 0x41, 1, "CF and ZF in L2 without a shadow VMCS");
        check_eq!(vmx::vmclear(shadow), Ok(()), "VMCLEAR");
        check_ok!(mem::write(shadow, revision()));
        check_eq!(vmx::vmptrld(shadow), Ok(()), "VMPTRLD of what was the shadow");
        check_eq!(get(Field::GUEST_RSP), 0x9999, "what L2 wrote");
    }
);
