//! APIC virtualization (SDM volume 3, chapter "APIC Virtualization and Virtual Interrupts": "Virtualizing
//! CR8-Based TPR Accesses", "Virtualizing Memory-Mapped APIC Accesses", "Virtualizing MSR-Based APIC
//! Accesses"; table "Exit Qualification for APIC-Access VM Exits").

use super::{L1, check_l1, passes, vm};
use payload_rt::apic::DEFAULT_BASE;
use payload_rt::vmx::caps::*;
use payload_rt::vmx::ept::{RWX, WB};
use payload_rt::vmx::{Field, Reason, Vm, get, set};
use payload_rt::{asm_code, check_eq, check_ok, frames, mem, reg, test};

const VTPR: u64 = 0x80;

/// A guest with a virtual-APIC page, whose address it gives.
fn shadowed() -> (Vm, u64) {
    let mut vm = vm();
    let page = frames::alloc().address();
    set(Field::VIRTUAL_APIC, page);
    vm.add(Field::CPU_CONTROLS, CPU_TPR_SHADOW);
    (vm, page)
}

test!(
    tpr_shadow,
    "With the TPR shadow L2's CR8 is bits 7:4 of the virtual-APIC page's TPR, and L1's stays.",
    || {
        let (mut vm, page) = shadowed();
        check_ok!(reg::set_cr8(2));
        for class in [0u64, 5, 15] {
            check_ok!(mem::write(page + VTPR, (class as u32) << 4));
            passes(&mut vm, asm_code!("mov rax, cr8", "mov ebx, 9", "mov cr8, rbx"), "CR8");
            check_eq!(vm.regs.rax, class, "CR8 that L2 read");
            check_eq!(mem::read(page + VTPR), Ok(0x90u32), "TPR that L2 wrote");
            check_eq!(reg::cr8(), 2, "CR8 of L1");
        }
        check_ok!(reg::set_cr8(0));
    }
);

test!(
    tpr_threshold,
    "A MOV to CR8 that takes the virtual TPR below the threshold exits behind itself.",
    || {
        let (mut vm, page) = shadowed();
        check_ok!(mem::write(page + VTPR, 0x70u32));
        set(Field::TPR_THRESHOLD, 5);
        passes(&mut vm, asm_code!("mov ebx, 5", "mov cr8, rbx"), "to the threshold");
        let code = asm_code!("mov ebx, 4", "mov cr8, rbx", "nop");
        let at = vm.start(code);
        let l1 = L1::now();
        let exit = vm.run_until(Reason::TPR_BELOW_THRESHOLD, "below the threshold");
        check_eq!(exit.rip, at + code.len() as u64 - 1, "RIP");
        check_eq!(mem::read(page + VTPR), Ok(0x40u32), "TPR");
        check_l1(&exit, l1, "TPR below the threshold");
    }
);

test!(cr8_exits_first, "CR8 exiting goes before the TPR shadow.", || {
    let (mut vm, page) = shadowed();
    check_ok!(mem::write(page + VTPR, 0x30u32));
    vm.add(Field::CPU_CONTROLS, CPU_CR8_LOAD | CPU_CR8_STORE);
    for (code, qualification) in
        [(asm_code!("mov cr8, rbx"), 8 | 3 << 8), (asm_code!("mov rcx, cr8"), 8 | 1 << 4 | 1 << 8)]
    {
        super::exits(&mut vm, code, Reason::CR_ACCESS, qualification, "CR8");
    }
    check_eq!(mem::read(page + VTPR), Ok(0x30u32), "TPR");
});

/// The page that L2 takes for the APIC's; EPT leads there. Some page of RAM that nothing else uses.
fn with_access_page(vm: &mut Vm) -> u64 {
    let access = frames::alloc().address();
    let ept = vm.with_ept();
    vm.add(Field::CPU_CONTROLS2, CPU2_APIC_ACCESSES);
    set(Field::APIC_ACCESS, access);
    ept.slot(DEFAULT_BASE, 1).set(access | WB | RWX);
    access
}

test!(
    apic_accesses,
    "Reads and writes of the APIC-access page exit, with offset and kind, but those of the shadowed TPR.",
    || {
        let (mut vm, page) = shadowed();
        with_access_page(&mut vm);
        check_ok!(mem::write(page + VTPR, 0x60u32));
        for (code, offset, kind) in [
            (asm_code!("mov eax, [rbx + 0x20]"), 0x20, 0),
            (asm_code!("mov eax, [rbx + 0x300]"), 0x300, 0),
            (asm_code!("mov [rbx + 0xb0], eax"), 0xb0, 1),
            (asm_code!("mov [rbx + 0xfff], al"), 0xfff, 1),
        ] {
            let at = vm.start(code);
            vm.regs.rbx = DEFAULT_BASE;
            let (regs, l1) = (vm.regs, L1::now());
            let exit = vm.run_until(Reason::APIC_ACCESS, "the APIC-access page");
            check_eq!(exit.qualification & 0xffff, offset | kind << 12, "qualification");
            check_eq!((exit.rip, vm.regs), (at, regs), "RIP and registers");
            check_l1(&exit, l1, "an APIC access");
        }
    }
);

test!(
    apic_access_tpr,
    "Accesses to the TPR in the APIC-access page go to the virtual-APIC page without an exit.",
    || {
        let (mut vm, page) = shadowed();
        with_access_page(&mut vm);
        check_ok!(mem::write(page + VTPR, 0x60u32));
        vm.start(asm_code!("mov eax, [rbx + 0x80]", "mov dword ptr [rbx + 0x80], 0x20"));
        vm.regs.rbx = DEFAULT_BASE;
        vm.run_until(Reason::VMCALL, "the TPR");
        check_eq!(vm.regs.rax & 0xffff_ffff, 0x60, "TPR that L2 read");
        check_eq!(mem::read(page + VTPR), Ok(0x20u32), "TPR that L2 wrote");
    }
);

test!(apic_access_fetch, "A fetch from the APIC-access page exits as one.", || {
    let (mut vm, _) = shadowed();
    let access = with_access_page(&mut vm);
    check_ok!(mem::write(access, 0xc3u8));
    vm.start(asm_code!("call rbx"));
    vm.regs.rbx = DEFAULT_BASE;
    let exit = vm.run_until(Reason::APIC_ACCESS, "a fetch");
    check_eq!(exit.qualification & 0xf000, 2 << 12, "kind of access");
    check_eq!(exit.rip, DEFAULT_BASE, "RIP");
});

test!(
    virtual_x2apic,
    "With virtualize x2APIC mode L2's MSR 0x808 is the virtual TPR; L1's bitmap still exits first.",
    || {
        let (mut vm, page) = shadowed();
        vm.add(Field::CPU_CONTROLS2, CPU2_X2APIC);
        check_ok!(mem::write(page + VTPR, 0x30u32));
        let code = asm_code!(
            "mov ecx, 0x808",
            "rdmsr",
            "mov ebx, eax",
            "mov eax, 0x50",
            "xor edx, edx",
            "wrmsr",
            "mov rsi, cr8"
        );
        passes(&mut vm, code, "MSR 0x808");
        check_eq!((vm.regs.rbx, vm.regs.rsi), (0x30, 5), "TPR that L2 read, CR8 then");
        check_eq!(mem::read(page + VTPR), Ok(0x50u32), "TPR that L2 wrote");
        // 0x808 / 8 and its bit.
        let bitmap = get(Field::MSR_BITMAP);
        check_ok!(mem::write(bitmap + 0x101, 1u8));
        vm.start(code);
        vm.run_until(Reason::RDMSR, "the bitmap's bit");
    }
);
