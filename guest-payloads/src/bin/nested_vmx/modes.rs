//! L2 in other modes than 64-bit at CPL 0 (SDM volume 3, "Unrestricted Guests", "IA-32e Mode Guests",
//! "Task Switches"; "Relative Priority of Faults and VM Exits").

use super::guest_state::pae;
use super::{L1, check_l1, vm};
use payload_rt::paging::{self, Flags};
use payload_rt::reg::{self, CR0_PE, CR0_PG};
use payload_rt::trap::{GP, UD};
use payload_rt::vmx::caps::*;
use payload_rt::vmx::exit::{EVENT_ERROR, EVENT_VALID, Kind, event};
use payload_rt::vmx::{Field, Reason, Vm, get, set};
use payload_rt::{asm_code, check, check_eq, check_ok, frames, mem, test};

/// An unrestricted guest without paging, and with EPT.
fn unpaged() -> Vm {
    let mut vm = vm();
    vm.with_ept();
    vm.add(Field::CPU_CONTROLS2, CPU2_UNRESTRICTED);
    vm.remove(Field::ENTRY_CONTROLS, ENTRY_GUEST64);
    set(Field::GUEST_CR0, get(Field::GUEST_CR0) & !CR0_PG);
    set(Field::GUEST_CR4, get(Field::GUEST_CR4) & !reg::CR4_PCIDE);
    // A TSS of 32 bits: there is no other outside of IA-32e mode.
    set(Field::TR_RIGHTS, 0x8b);
    vm
}

/// Starts it in real mode, with CS, DS, ES and SS at its code.
fn start_real(vm: &mut Vm, code: &[u8]) {
    set(Field::GUEST_CR0, get(Field::GUEST_CR0) & !CR0_PE);
    let at = vm.start(code);
    for index in [0, 2, 4, 6, 8, 10] {
        let rights = if index == 2 { 0x9b } else { 0x93 };
        set(Field(Field::GUEST_ES.0 + index), at >> 4 & 0xffff);
        set(Field(Field::ES_BASE.0 + index), at);
        set(Field(Field::ES_LIMIT.0 + index), 0xffff);
        set(Field(Field::ES_RIGHTS.0 + index), rights);
    }
    set(Field::GUEST_RIP, 0);
    set(Field::GUEST_RSP, 0xff0);
}

test!(
    real_mode,
    "An unrestricted guest runs in real mode: 16-bit code, its segments, and exits.",
    || {
        let mut vm = unpaged();
        let code = asm_code!(
            ".code16",
            "mov ax, 0x1234",
            "push ax",
            "pop bx",
            "mov cx, cs",
            "mov [0x800], bx",
            "smsw dx",
            "cpuid"
        );
        let at = {
            start_real(&mut vm, code);
            get(Field::CS_BASE)
        };
        let l1 = L1::now();
        let exit = vm.run_until(Reason::CPUID, "real mode");
        check_eq!((exit.rip, exit.length), (code.len() as u64 - 2, 2), "RIP and length");
        check_eq!(vm.regs.rbx & 0xffff, 0x1234, "BX");
        check_eq!(vm.regs.rcx & 0xffff, at >> 4 & 0xffff, "CS");
        check_eq!(vm.regs.rdx & 1, 0, "PE in SMSW");
        check_eq!(mem::read(at + 0x800), Ok(0x1234u16), "what L2 wrote");
        check_eq!(get(Field::GUEST_CR0) & (CR0_PE | CR0_PG), 0, "CR0");
        check_l1(&exit, l1, "real mode");
    }
);

test!(
    real_mode_interrupts,
    "In real mode L2 takes INT n and injected interrupts through its IVT at IDTR's base.",
    || {
        let mut vm = unpaged();
        let ivt = frames::alloc().address();
        // INT 0x40 and an injected 0x41 each count in BX.
        let code = asm_code!(
            ".code16",
            "3: int 0x40",
            "cpuid",
            ".skip 0x20 - (. - 3b)",
            "add bx, 1",
            "iret",
            ".skip 0x30 - (. - 3b)",
            "add bx, 0x10",
            "iret"
        );
        start_real(&mut vm, code);
        // The vectors' CS: a selector is at most 1 MiB, so the handlers lie below it, as a copy.
        let low = 0x8000u64;
        check_ok!(mem::write_bytes(low, code));
        for index in [0, 2, 4, 6] {
            set(Field(Field::GUEST_ES.0 + index), low >> 4);
            set(Field(Field::ES_BASE.0 + index), low);
        }
        check_ok!(mem::write(ivt + 4 * 0x40, (low as u32 >> 4) << 16 | 0x20));
        check_ok!(mem::write(ivt + 4 * 0x41, (low as u32 >> 4) << 16 | 0x30));
        set(Field::IDTR_BASE, ivt);
        set(Field::IDTR_LIMIT, 0x3ff);
        set(Field::GUEST_RFLAGS, 2 | reg::FLAG_IF);
        set(Field::ENTRY_EVENT, event(Kind::External, 0x41));
        vm.regs.rbx = 0;
        let exit = vm.run_until(Reason::CPUID, "behind the handlers");
        check_eq!(vm.regs.rbx, 0x11, "BX");
        check_eq!(exit.rip, 2, "RIP");
    }
);

test!(
    protected_32,
    "L2 runs in 32-bit protected mode without paging, and goes there from real mode by itself.",
    || {
        let mut vm = unpaged();
        let code = asm_code!(
            ".code16",
            "3: mov eax, cr0",
            "or al, 1",
            "mov cr0, eax",
            ".byte 0x66, 0xea",
            ".long 4f - 3b + 0x8000",
            ".short 0x30",
            ".code32",
            "4: mov eax, 0x10",
            "mov ds, eax",
            "mov ecx, 0x12345678",
            "mov ebx, dword ptr ds:[0x8800]",
            "cpuid"
        );
        start_real(&mut vm, code);
        check_ok!(mem::write_bytes(0x8000, code));
        check_ok!(mem::write(0x8800, 0x5678_1234u32));
        set(Field::GUEST_CS, 0x800);
        set(Field::CS_BASE, 0x8000);
        let exit = vm.run_until(Reason::CPUID, "32-bit code");
        check_eq!(exit.rip, 0x8000 + code.len() as u64 - 2, "RIP");
        check_eq!(vm.regs.rcx & 0xffff_ffff, 0x1234_5678, "ECX");
        check_eq!(vm.regs.rbx & 0xffff_ffff, 0x5678_1234, "EBX");
        check_eq!(get(Field::GUEST_CR0) & (CR0_PE | CR0_PG), CR0_PE, "CR0");
        check_eq!((get(Field::GUEST_CS), get(Field::CS_RIGHTS)), (0x30, 0xc09b), "CS");
    }
);

test!(pae_mode, "L2 runs in 32-bit code under PAE paging, with EPT and without.", || {
    let mut vm = vm();
    pae(&mut vm);
    for with_ept in [false, true] {
        if with_ept {
            vm.with_ept();
        }
        let at = vm.start(asm_code!(".code32", "mov eax, cr4", "push eax", "pop ebx", "inc ecx"));
        vm.regs.rcx = 0xffff_ffff;
        set(Field::GUEST_RSP, at + 0xff0);
        vm.run_until(Reason::VMCALL, "PAE");
        check_eq!(vm.regs.rbx & reg::CR4_PAE, reg::CR4_PAE, "CR4 that L2 saw, EPT: {with_ept}");
        check_eq!(vm.regs.rcx & 0xffff_ffff, 0, "ECX, EPT: {with_ept}");
    }
});

test!(
    compatibility_mode,
    "L2 runs in compatibility mode, and its exits' RIP and lengths are right.",
    || {
        let mut vm = vm();
        set(Field::GUEST_CS, 0x30);
        set(Field::CS_RIGHTS, 0xc09b);
        // 0x48 is DEC EAX there, and REX.W in 64-bit mode.
        let at = vm.start(asm_code!(".code32", "mov eax, 5", ".byte 0x48", ".byte 0x48", "cpuid"));
        let exit = vm.run_until(Reason::CPUID, "compatibility mode");
        check_eq!((exit.rip - at, exit.length), (7, 2), "RIP and length");
        check_eq!(vm.regs.rax, 3, "EAX");
    }
);

/// Puts L2 at CPL 3; its code page and its stack are open to it.
fn at_cpl3(vm: &mut Vm, code: &[u8]) -> u64 {
    let at = vm.start(code);
    for page in [at, vm.stack_top() - 0x1000] {
        paging::reach(page, 1);
        paging::change(page, Flags::U, Flags::NONE);
    }
    set(Field::GUEST_CS, 0x2b);
    set(Field::CS_RIGHTS, 0xa0fb);
    set(Field::GUEST_SS, 0x23);
    set(Field::SS_RIGHTS, 0xc0f3);
    at
}

test!(
    cpl3_priority,
    "At CPL 3 privileged instructions are #GP before they exit; CPUID, VMX instructions and MOV DR exit.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS, CPU_HLT | CPU_CR3_LOAD | CPU_MOV_DR | CPU_INVLPG | CPU_IO);
        vm.remove(Field::CPU_CONTROLS, CPU_MSR_BITMAPS);
        set(Field::EXCEPTION_BITMAP, 1 << GP | 1 << UD);
        for (name, code) in [
            ("HLT", asm_code!("hlt")),
            ("INVD", asm_code!("invd")),
            ("INVLPG", asm_code!("invlpg [rsp]")),
            ("MOV CR3", asm_code!("mov cr3, rax")),
            ("RDMSR", asm_code!("rdmsr")),
            ("WRMSR", asm_code!("wrmsr")),
            ("CLTS", asm_code!("clts")),
            ("IN", asm_code!("in al, 0x80")),
        ] {
            let at = at_cpl3(&mut vm, code);
            let exit = vm.run_until(Reason::EXCEPTION, name);
            check_eq!(exit.event, event(Kind::Hardware, GP) | EVENT_ERROR, "event of {name}");
            check_eq!((exit.rip, get(Field::EXIT_EVENT_ERROR)), (at, 0), "RIP and error of {name}");
        }
        for (code, reason) in [
            (asm_code!("cpuid"), Reason::CPUID),
            (asm_code!("vmcall"), Reason::VMCALL),
            (asm_code!("vmxoff"), Reason::VMXOFF),
            (asm_code!("vmread rax, rbx"), Reason::VMREAD),
            (asm_code!("vmptrld [rsp]"), Reason::VMPTRLD),
            // "Instructions That Cause VM Exits Conditionally": MOV DR goes before #GP.
            (asm_code!("mov rax, dr7"), Reason::MOV_DR),
        ] {
            let at = at_cpl3(&mut vm, code);
            let l1 = L1::now();
            let exit = vm.run_until(reason, "an instruction at CPL 3");
            check_eq!((exit.rip, exit.event & EVENT_VALID), (at, 0), "RIP and event, {reason}");
            check_eq!(get(Field::GUEST_CS), 0x2b, "CS, {reason}");
            check_l1(&exit, l1, "CPL 3");
        }
    }
);

test!(cpl3_to_cpl0, "An interrupt injected at CPL 3 switches to L2's own RSP0 and back.", || {
    let mut vm = vm();
    payload_rt::irq::handle(0x51, |frame| frame.rax = frame.cs << 32 | reg::rflags() & 0xffff);
    let at = at_cpl3(&mut vm, asm_code!("nop"));
    set(Field::GUEST_RFLAGS, 2 | reg::FLAG_IF);
    set(Field::ENTRY_EVENT, event(Kind::External, 0x51));
    let exit = vm.run_until(Reason::VMCALL, "behind the handler");
    check_eq!(vm.regs.rax >> 32, 0x2b, "CS on the handler's stack");
    check_eq!(vm.regs.rax & reg::FLAG_IF, 0, "IF in the handler");
    check_eq!((exit.rip, get(Field::GUEST_CS)), (at + 1, 0x2b), "RIP and CS behind it");
});

// Table "Exit Qualification for Task Switches": selector, source in bits 31:30.
test!(
    task_switches,
    "CALL, JMP and IRET to a TSS and an interrupt through a task gate exit, with selector and source.",
    || {
        let mut vm = unpaged();
        let gdt = get(Field::GDTR_BASE);
        // An available and a busy TSS of 32 bits, at 0x48 and 0x50.
        let tss = frames::alloc().address();
        let descriptor =
            |kind: u64| 0x67 | (tss & 0xff_ffff) << 16 | kind << 40 | (tss >> 24) << 56;
        check_ok!(mem::write(gdt + 0x48, descriptor(0x89)));
        check_ok!(mem::write(gdt + 0x50, descriptor(0x8b)));
        set(Field::CS_RIGHTS, 0xc09b);
        // IRET with NT goes to the back link of the current TSS.
        let current = frames::alloc().address();
        check_ok!(mem::write(current, 0x50u32));
        set(Field::TR_BASE, current);
        set(Field::TR_LIMIT, 0x67);
        for (code, flags, qualification, what) in [
            (asm_code!(".code32", ".byte 0x9a", ".long 0", ".short 0x48"), 2, 0x48, "CALL"),
            (asm_code!(".code32", "iretd"), 2 | 1 << 14, 0x50 | 1 << 30, "IRET"),
            (
                asm_code!(".code32", ".byte 0xea", ".long 0", ".short 0x48"),
                2,
                0x48 | 2 << 30,
                "JMP",
            ),
        ] {
            let at = vm.start(code);
            set(Field::GUEST_RFLAGS, flags);
            let l1 = L1::now();
            let exit = vm.run_until(Reason::TASK_SWITCH, what);
            check_eq!(exit.qualification, qualification, "qualification, {what}");
            check_eq!((exit.rip, exit.length), (at, code.len() as u64), "RIP and length, {what}");
            check_eq!(exit.vectoring & EVENT_VALID, 0, "vectoring, {what}");
            check_l1(&exit, l1, what);
        }
        // A task gate for vector 0x51, in an IDT of 8-byte gates.
        check_ok!(mem::write(vm.idt() + 8 * 0x51, 0x48u64 << 16 | 0x85 << 40));
        let at = vm.start(asm_code!(".code32", "int 0x51"));
        let exit = vm.run_until(Reason::TASK_SWITCH, "INT n");
        check_eq!(exit.qualification, 0x48 | 3 << 30, "qualification, INT n");
        check_eq!((exit.rip, exit.length), (at, 2), "RIP and length, INT n");
        check_eq!(exit.vectoring, event(Kind::Software, 0x51), "vectoring, INT n");
        vm.start(asm_code!(".code32", "nop"));
        set(Field::GUEST_RFLAGS, 2 | reg::FLAG_IF);
        set(Field::ENTRY_EVENT, event(Kind::External, 0x51));
        let exit = vm.run_until(Reason::TASK_SWITCH, "an injected interrupt");
        check_eq!(exit.qualification, 0x48 | 3 << 30, "qualification, injected");
        check_eq!(exit.vectoring, event(Kind::External, 0x51), "vectoring, injected");
        check!(get(Field::GUEST_TR) == 0x38, "TR changed: {:#x}", get(Field::GUEST_TR));
    }
);
