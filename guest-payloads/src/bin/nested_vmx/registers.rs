//! Control and debug registers of L2 (SDM volume 3, "Guest/Host Masks and Read Shadows for CR0 and
//! CR4", "CR3-Target Controls", tables "Exit Qualification for Control-Register Accesses" and "... for
//! MOV DR").

use super::{exits, exits_with, passes, vm};
use payload_rt::reg::{self, CR0_EM, CR0_MP, CR0_TS, CR0_WP, CR4_DE, CR4_TSD};
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::{Field, Reason, Vm, get, set};
use payload_rt::{asm_code, check_eq, skip, test};

/// Qualification of an access to a control register: register, 0 to or 1 from it, general register.
const fn access(cr: u64, kind: u64, gpr: u64) -> u64 {
    cr | kind << 4 | gpr << 8
}

/// The value of a control register as L2 reads it.
fn seen(vm: &mut Vm, code: &[u8], what: &str) -> u64 {
    passes(vm, code, what);
    vm.regs.rax
}

test!(
    cr0_mask_and_shadow,
    "L2 reads CR0 bits of the mask from the shadow, the others from CR0.",
    || {
        let mut vm = vm();
        let real = get(Field::GUEST_CR0);
        let read = asm_code!("mov rax, cr0");
        for (mask, shadow) in [
            (0, u64::MAX),
            (CR0_TS, CR0_TS),
            (CR0_TS | CR0_WP, CR0_TS),
            (u64::MAX, 0x1234_5678_9abc_def0),
            (1 << 20 | 1 << 40, 1 << 40),
        ] {
            set(Field::CR0_MASK, mask);
            set(Field::CR0_SHADOW, shadow);
            let expected = real & !mask | shadow & mask;
            check_eq!(seen(&mut vm, read, "MOV from CR0"), expected, "CR0, mask {mask:#x}");
            passes(&mut vm, asm_code!("smsw rax"), "SMSW");
            check_eq!(vm.regs.rax & 0xffff, expected & 0xffff, "SMSW, mask {mask:#x}");
        }
    }
);

test!(
    cr4_mask_and_shadow,
    "L2 reads CR4 bits of the mask from the shadow, the others from CR4.",
    || {
        let mut vm = vm();
        let real = get(Field::GUEST_CR4);
        for (mask, shadow) in
            [(0, u64::MAX), (1 << 13, 0), (CR4_DE, CR4_DE), (u64::MAX, 0x1234_5678_9abc_def0)]
        {
            set(Field::CR4_MASK, mask);
            set(Field::CR4_SHADOW, shadow);
            let expected = real & !mask | shadow & mask;
            let seen = seen(&mut vm, asm_code!("mov rax, cr4"), "MOV from CR4");
            check_eq!(seen, expected, "CR4, mask {mask:#x}");
        }
    }
);

test!(
    cr0_write,
    "MOV to CR0 exits if a bit of the mask would differ from the shadow, and else writes the others.",
    || {
        let mut vm = vm();
        let real = get(Field::GUEST_CR0);
        set(Field::CR0_MASK, CR0_TS | reg::CR0_NE);
        set(Field::CR0_SHADOW, real & reg::CR0_NE | CR0_TS);
        // Owned by L2, and as the shadow has them.
        let code = asm_code!("mov rax, cr0", "xor rax, 2", "mov cr0, rax", "mov rbx, cr0");
        passes(&mut vm, code, "CR0.MP is L2's own");
        check_eq!(get(Field::GUEST_CR0), real ^ CR0_MP, "CR0 behind a write of MP");
        check_eq!(vm.regs.rbx, real ^ CR0_MP | CR0_TS, "CR0 that L2 sees then");
        set(Field::GUEST_CR0, real);
        for (code, gpr) in [
            (asm_code!("mov cr0, rcx"), 1),
            (asm_code!("mov cr0, r11"), 11),
            (asm_code!("mov cr0, rsp"), 4),
        ] {
            let what = "MOV to CR0 with TS as it really is";
            exits(&mut vm, code, Reason::CR_ACCESS, access(0, 0, gpr), what);
        }
        check_eq!(get(Field::GUEST_CR0), real, "CR0 behind the exits");
    }
);

test!(
    cr4_write,
    "MOV to CR4 exits if a bit of the mask would differ from the shadow, and else writes the others.",
    || {
        let mut vm = vm();
        let real = get(Field::GUEST_CR4);
        set(Field::CR4_MASK, CR4_TSD);
        set(Field::CR4_SHADOW, CR4_TSD);
        let code = asm_code!("mov rax, cr4", "xor rax, 8", "mov cr4, rax", "mov rbx, cr4");
        passes(&mut vm, code, "CR4.DE is L2's own");
        check_eq!(get(Field::GUEST_CR4), real ^ CR4_DE, "CR4 behind a write of DE");
        check_eq!(vm.regs.rbx, real ^ CR4_DE | CR4_TSD, "CR4 that L2 sees then");
        set(Field::GUEST_CR4, real);
        let what = "MOV to CR4 with TSD clear";
        exits_with(
            &mut vm,
            asm_code!("mov cr4, r8"),
            Reason::CR_ACCESS,
            access(4, 0, 8),
            what,
            |r| {
                r.r8 = 0x20;
            },
        );
        check_eq!(get(Field::GUEST_CR4), real, "CR4 behind the exit");
    }
);

test!(
    clts,
    "CLTS exits if mask and shadow both have TS; with TS in the mask alone it changes nothing.",
    || {
        let mut vm = vm();
        let real = get(Field::GUEST_CR0);
        let clts = asm_code!("clts");
        set(Field::CR0_MASK, CR0_TS);
        set(Field::CR0_SHADOW, CR0_TS);
        exits(&mut vm, clts, Reason::CR_ACCESS, access(0, 2, 0), "CLTS");
        set(Field::GUEST_CR0, real | CR0_TS);
        set(Field::CR0_SHADOW, 0);
        passes(&mut vm, clts, "CLTS with TS clear in the shadow");
        check_eq!(get(Field::GUEST_CR0), real | CR0_TS, "CR0 behind that");
        set(Field::CR0_MASK, 0);
        passes(&mut vm, clts, "CLTS without the mask");
        check_eq!(get(Field::GUEST_CR0), real, "CR0 behind that");
    }
);

test!(
    lmsw,
    "LMSW exits if a bit of the mask in MP, EM, TS (or PE to set) would differ, with its source.",
    || {
        let mut vm = vm();
        let real = get(Field::GUEST_CR0);
        set(Field::CR0_MASK, CR0_TS);
        set(Field::CR0_SHADOW, 0);
        let qualification = access(0, 3, 0) | 0x1239 << 16;
        exits_with(&mut vm, asm_code!("lmsw cx"), Reason::CR_ACCESS, qualification, "LMSW", |r| {
            r.rcx = 0x1239;
        });
        // From memory: bit 6, and the operand's linear address.
        let at = vm.stack_top() - 8;
        payload_rt::check_ok!(payload_rt::mem::write(at, 0x0008u16));
        let qualification = access(0, 3, 0) | 1 << 6 | 8 << 16;
        let code = asm_code!("lmsw word ptr [rsp - 8]");
        exits(&mut vm, code, Reason::CR_ACCESS, qualification, "LMSW of memory");
        check_eq!(get(Field::LINEAR), at, "linear address of LMSW's operand");
        // PE in the mask: LMSW cannot clear it.
        set(Field::CR0_MASK, 1);
        set(Field::CR0_SHADOW, 1);
        passes(&mut vm, asm_code!("xor eax, eax", "lmsw ax"), "LMSW of 0");
        check_eq!(get(Field::GUEST_CR0), real & !(CR0_MP | CR0_EM | CR0_TS), "CR0 behind it");
        set(Field::CR0_SHADOW, 0);
        let qualification = access(0, 3, 0) | 1 << 16;
        exits_with(
            &mut vm,
            asm_code!("lmsw ax"),
            Reason::CR_ACCESS,
            qualification,
            "LMSW, PE",
            |r| {
                r.rax = 1;
            },
        );
    }
);

test!(cr3_exiting, "MOV to and from CR3 exit under their controls only.", || {
    let mut vm = vm();
    let copy = asm_code!("mov rax, cr3", "mov cr3, rax");
    passes(&mut vm, copy, "MOV CR3 without the controls");
    check_eq!(vm.regs.rax, reg::cr3(), "CR3");
    vm.add(Field::CPU_CONTROLS, CPU_CR3_LOAD);
    exits(&mut vm, asm_code!("mov cr3, r9"), Reason::CR_ACCESS, access(3, 0, 9), "MOV to CR3");
    passes(&mut vm, asm_code!("mov rax, cr3"), "MOV from CR3 without its control");
    vm.add(Field::CPU_CONTROLS, CPU_CR3_STORE);
    exits(&mut vm, asm_code!("mov rsi, cr3"), Reason::CR_ACCESS, access(3, 1, 6), "MOV from CR3");
});

test!(
    cr3_targets,
    "MOV to CR3 of a CR3-target value does not exit, as far as the count goes.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS, CPU_CR3_LOAD);
        let cr3 = reg::cr3();
        let load = asm_code!("mov cr3, rbx");
        let most = caps::read(caps::MISC) >> 16 & 0x1ff;
        if most == 0 {
            skip!("no CR3-target values, says IA32_VMX_MISC");
        }
        for count in 0..=most.min(4) {
            set(Field::CR3_TARGET_COUNT, count);
            for place in 0..4 {
                for n in 0..4 {
                    set(Field(Field::CR3_TARGET0.0 + 2 * n), if n == place { cr3 } else { 0x5000 });
                }
                vm.start(load);
                vm.regs.rbx = cr3;
                let expected = if place < count { Reason::VMCALL } else { Reason::CR_ACCESS };
                vm.run_until(expected, "MOV to CR3");
            }
        }
    }
);

test!(cr8_exiting, "MOV to and from CR8 exit under their controls only.", || {
    let mut vm = vm();
    passes(&mut vm, asm_code!("mov rax, cr8", "mov cr8, rax"), "MOV CR8 without the controls");
    vm.add(Field::CPU_CONTROLS, CPU_CR8_LOAD);
    exits(&mut vm, asm_code!("mov cr8, r15"), Reason::CR_ACCESS, access(8, 0, 15), "MOV to CR8");
    vm.remove(Field::CPU_CONTROLS, CPU_CR8_LOAD);
    vm.add(Field::CPU_CONTROLS, CPU_CR8_STORE);
    exits(&mut vm, asm_code!("mov rbp, cr8"), Reason::CR_ACCESS, access(8, 1, 5), "MOV from CR8");
});

test!(
    mov_dr,
    "MOV to and from debug registers exit under their control, with register and direction.",
    || {
        let mut vm = vm();
        passes(&mut vm, asm_code!("mov rax, dr7", "mov dr0, rbx", "mov rcx, dr0"), "MOV DR");
        check_eq!((vm.regs.rax, vm.regs.rcx), (0x400, vm.regs.rbx), "DR7 and DR0 as L2 sees them");
        vm.add(Field::CPU_CONTROLS, CPU_MOV_DR);
        for (code, dr, from, gpr) in [
            (asm_code!("mov dr0, rdx"), 0, 0, 2),
            (asm_code!("mov dr3, r14"), 3, 0, 14),
            (asm_code!("mov dr7, rax"), 7, 0, 0),
            (asm_code!("mov rdi, dr6"), 6, 1, 7),
            (asm_code!("mov r8, dr7"), 7, 1, 8),
        ] {
            exits(&mut vm, code, Reason::MOV_DR, dr | from << 4 | gpr << 8, "MOV DR");
        }
    }
);

test!(
    dr7_in_l2,
    "DR7 is L2's own: loaded at entry, saved at exit, and 0x400 for L1; L2's MOV DR reads it.",
    || {
        let mut vm = vm();
        vm.add(Field::ENTRY_CONTROLS, ENTRY_LOAD_DEBUG);
        vm.add(Field::EXIT_CONTROLS, EXIT_SAVE_DEBUG);
        set(Field::GUEST_DR7, 0x700);
        let code = asm_code!("mov rax, dr7", "mov ebx, 0x600", "mov dr7, rbx");
        payload_rt::check_ok!(reg::set_dr(7, 0x500));
        passes(&mut vm, code, "MOV DR7");
        check_eq!(vm.regs.rax, 0x700, "DR7 that L2 saw");
        check_eq!(get(Field::GUEST_DR7), 0x600, "DR7 that the exit saved");
        check_eq!(reg::dr(7), Ok(0x400), "DR7 of L1 behind the exit");
    }
);
