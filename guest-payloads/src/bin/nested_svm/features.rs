//! What CPUID leaf 0x8000_000a announces beyond SVM itself, and task switches (AMD APM volume 2, 15.7.1,
//! 15.8 and 15.14).

use crate::{guest, page, run_to, run_to_end};
use payload_rt::svm::vmcb::{self, Seg, Segment, Vmcb};
use payload_rt::svm::{self, EFER_SVME, Guest, exit};
use payload_rt::trap::TS;
use payload_rt::{asm_code, check, check_eq, check_ok, mem, reg, test};

// 15.7.1.
test!(
    nrip,
    "With NRIP_SAVE an intercepted instruction has the next one's address in nRIP.",
    || {
        svm::NRIP_SAVE.require();
        let code = asm_code!("cpuid", "vmmcall");
        let mut guest = guest(code);
        guest.intercept(&[exit::CPUID]);
        run_to(&mut guest, exit::CPUID, "CPUID");
        check_eq!(guest.vmcb.get(vmcb::NRIP), code.as_ptr() as u64 + 2, "nRIP");
    }
);

test!(no_nrip, "Without NRIP_SAVE #VMEXIT leaves nRIP alone.", || {
    let mut guest = guest(asm_code!("cpuid", "vmmcall"));
    if svm::NRIP_SAVE.present() {
        payload_rt::skip!("nrip-save in CPUID");
    }
    guest.vmcb.set(vmcb::NRIP, 0x5a5a);
    guest.intercept(&[exit::CPUID]);
    run_to(&mut guest, exit::CPUID, "CPUID");
    check_eq!(guest.vmcb.get(vmcb::NRIP), 0x5a5a, "nRIP");
});

// 15.8.1 to 15.8.3.
test!(
    decode_assists,
    "With decode assists EXITINFO1 has the register, the vector, the address.",
    || {
        svm::DECODE_ASSISTS.require();
        let mut guest = guest(asm_code!("mov cr3, rsi", "int 0x55", "invlpg [rcx]", "vmmcall"));
        guest.intercept(&[exit::cr_write(3), exit::SWINT, exit::INVLPG]);
        guest.regs.rcx = 0x1234_5678;
        let found = run_to(&mut guest, exit::cr_write(3), "MOV to CR3");
        check_eq!(found.info1, 1 << 63 | 6, "EXITINFO1 of MOV to CR3 from RSI");
        guest.skip(3);
        check_eq!(run_to(&mut guest, exit::SWINT, "INT").info1, 0x55, "EXITINFO1 of INT n");
        guest.skip(2);
        let found = run_to(&mut guest, exit::INVLPG, "INVLPG");
        check_eq!(found.info1, 0x1234_5678, "EXITINFO1 of INVLPG");
    }
);

// 15.14.4: the count goes down by each PAUSE, and the exit comes when it would fall below 0.
test!(
    pause_filter,
    "With a pause filter the guest exits after some PAUSEs, and not before all of them.",
    || {
        svm::PAUSE_FILTER.require();
        let mut guest = guest(asm_code!("2: pause", "inc rbx", "jmp 2b"));
        guest.intercept(&[exit::PAUSE]);
        guest.vmcb.set(vmcb::PAUSE_COUNT, 10);
        run_to(&mut guest, exit::PAUSE, "PAUSE");
        check!(guest.regs.rbx <= 10, "{} PAUSEs ran, the count was 10", guest.regs.rbx);
    }
);

// 15.33.1: without the virtualization of VMLOAD and VMSAVE they run for the hypervisor.
test!(
    guest_vmload_vmsave,
    "VMLOAD and VMSAVE that are not intercepted work on L1's own memory.",
    || {
        let mut guest = guest(asm_code!("vmsave", "mov rax, rbx", "vmload", "vmmcall"));
        check_ok!(reg::wrmsr(reg::LSTAR, 0x7fff_1234_5000));
        let (saved, mut image) = (Vmcb::new(), Vmcb::new());
        check_ok!(svm::vmsave(image.address()));
        image.set(vmcb::LSTAR, 0x7fff_5678_9000);
        guest.vmcb.set(vmcb::RAX, saved.address());
        guest.regs.rbx = image.address();
        run_to_end(&mut guest, "the guest");
        check_eq!(saved.get(vmcb::LSTAR), 0x7fff_1234_5000, "LSTAR as the guest stored it");
        check_eq!(reg::rdmsr(reg::LSTAR), Ok(0x7fff_5678_9000), "LSTAR as the guest loaded it");
    }
);

/// The TSS that a task switch leads to, in the guest's GDT.
const NEXT_TASK: u16 = 0x20;

/// A guest in protected mode that loads TR with one 32-bit TSS and jumps to another, whose code is
/// `next`.
fn tasks(next: &'static [u8]) -> Guest {
    let code = asm_code!(".code32", "mov eax, 0x18", "ltr ax", ".byte 0xea, 0, 0, 0, 0, 0x20, 0",);
    let mut guest = guest(code);
    let (gdt, first, second) = (page(), page(), page());
    let tss = |base: u64| 0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    let entries = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, tss(first), tss(second)];
    for (i, entry) in entries.into_iter().enumerate() {
        check_ok!(mem::write(gdt + 8 * i as u64, entry));
    }
    // 12.2.4: EIP, EFLAGS, ESP, then the segments.
    for (offset, value) in [
        (0x20, next.as_ptr() as u32),
        (0x24, 2),
        (0x38, guest.stack_top() as u32 - 64),
        (0x48, 0x10),
        (0x4c, 8),
        (0x50, 0x10),
        (0x54, 0x10),
    ] {
        check_ok!(mem::write(second + offset, value));
    }
    let v = &mut guest.vmcb;
    v.set(vmcb::EFER, EFER_SVME);
    v.set(vmcb::CR0, reg::CR0_PE | 0x10);
    v.set(vmcb::CR3, 0);
    v.set(vmcb::CR4, 0);
    let flat = |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
    v.set_segment(Seg::Cs, flat(8, 0xc9b));
    v.set_segment(Seg::Gdtr, Segment { base: gdt, limit: 0x27, ..Segment::default() });
    guest
}

// 15.14.1: EXITINFO1 has the selector, EXITINFO2 whether it was IRET (36), a jump (38), an error code (44).
test!(task_switch_exits, "A task switch by a far jump exits with the new task's selector.", || {
    let mut guest = tasks(asm_code!("vmmcall"));
    guest.intercept(&[exit::TASK_SWITCH]);
    let host = Vmcb::new();
    check_ok!(svm::vmsave(host.address()));
    let found = guest.run();
    check_ok!(svm::vmload(host.address()));
    check_eq!(found.code, exit::TASK_SWITCH, "{found:?}");
    check_eq!(found.info1 as u16, NEXT_TASK, "EXITINFO1");
    check_eq!(found.info2 & (1 << 36 | 1 << 38 | 1 << 44), 1 << 38, "EXITINFO2: a jump");
});

// 8.2.11: the stack segment of the new task must be writable data.
test!(ts_exits, "An intercepted #TS of a task switch exits with the bad selector.", || {
    let mut guest = tasks(asm_code!("vmmcall"));
    let gdt = guest.vmcb.segment(Seg::Gdtr).base;
    let descriptor: u64 = check_ok!(mem::read(gdt + u64::from(NEXT_TASK)));
    let next = descriptor >> 16 & 0xff_ffff | descriptor >> 56 << 24;
    check_ok!(mem::write(next + 0x50, 8u32), "its SS is the code segment");
    guest.intercept(&[exit::exception(TS)]);
    let host = Vmcb::new();
    check_ok!(svm::vmsave(host.address()));
    let found = guest.run();
    check_ok!(svm::vmload(host.address()));
    check_eq!((found.code, found.info1), (exit::exception(TS), 8), "{found:?}");
});

test!(
    task_switch_runs,
    "A task switch that is not intercepted loads the new task's registers.",
    || {
        let next = asm_code!(".code32", "str ebx", "vmmcall");
        let mut guest = tasks(next);
        let host = Vmcb::new();
        check_ok!(svm::vmsave(host.address()));
        let found = guest.run();
        check_ok!(svm::vmload(host.address()));
        check_eq!(found.code, exit::VMMCALL, "{found:?} at {:#x}", guest.rip());
        check_eq!(guest.regs.rbx as u16, NEXT_TASK, "TR of the new task");
        check_eq!(guest.rip(), next.as_ptr() as u64 + next.len() as u64 - 3, "RIP");
        check_eq!(guest.vmcb.get(vmcb::CR0) & reg::CR0_TS, reg::CR0_TS, "CR0.TS after the switch");
    }
);
