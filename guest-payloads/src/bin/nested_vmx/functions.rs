//! VM functions and XSAVES (SDM volume 3, "VM Functions", "EPTP Switching"; "XSS-Exiting Bitmap").

use super::vm;
use payload_rt::trap::UD;
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::ept::{Ept, RWX, WB};
use payload_rt::vmx::exit::{Kind, event};
use payload_rt::vmx::{Field, Reason, Vm, set};
use payload_rt::{asm_code, check_eq, check_ok, cpuid, frames, mem, reg, skip, test};

/// VMFUNC with EAX and ECX, then what L2 reads at RBX.
fn function(vm: &mut Vm, eax: u64, ecx: u64, address: u64) -> u64 {
    let at = vm.start(asm_code!("vmfunc", "mov rdx, [rbx]"));
    (vm.regs.rax, vm.regs.rcx, vm.regs.rbx) = (eax, ecx, address);
    at
}

test!(
    vmfunc_off,
    "VMFUNC is #UD in L2 without its control, and exits for a function that is off.",
    || {
        let mut vm = vm();
        set(Field::EXCEPTION_BITMAP, 1 << UD);
        function(&mut vm, 0, 0, 0);
        let exit = vm.run_until(Reason::EXCEPTION, "without the control");
        check_eq!(exit.event, event(Kind::Hardware, UD), "event");
        vm.with_ept();
        vm.add(Field::CPU_CONTROLS2, CPU2_VMFUNC);
        for number in [0, 1, 63] {
            let at = function(&mut vm, number, 0, 0);
            let exit = vm.run_until(Reason::VMFUNC, "a function that is off");
            check_eq!((exit.rip, exit.length), (at, 3), "RIP and length, function {number:#x}");
        }
        // There are no functions above 63.
        for number in [64, 0xffff_ffff] {
            function(&mut vm, number, 0, 0);
            let exit = vm.run_until(Reason::EXCEPTION, "a function that there cannot be");
            check_eq!(exit.event, event(Kind::Hardware, UD), "event, function {number:#x}");
        }
    }
);

test!(
    eptp_switching,
    "VMFUNC 0 switches L2 to an EPT of the list without an exit; a bad entry or index exits.",
    || {
        let mut vm = vm();
        let ept = vm.with_ept();
        vm.add(Field::CPU_CONTROLS2, CPU2_VMFUNC);
        if caps::read(caps::VMFUNC) & 1 == 0 {
            skip!("no EPTP switching");
        }
        // The same memory in both, but for one page.
        let other = Ept::identity();
        let (here, there) = (frames::alloc().address(), frames::alloc().address());
        check_ok!(mem::write(here, 0xaau64));
        check_ok!(mem::write(there, 0xbbu64));
        other.slot(here, 1).set(there | WB | RWX);
        let list = frames::alloc().address();
        for (i, pointer) in [ept.pointer(), other.pointer(), 5].into_iter().enumerate() {
            check_ok!(mem::write(list + 8 * i as u64, pointer));
        }
        set(Field::VMFUNC_CONTROLS, 1);
        set(Field::EPTP_LIST, list);
        for (index, word) in [(1, 0xbb), (0, 0xaa), (1, 0xbb)] {
            function(&mut vm, 0, index, here);
            vm.run_until(Reason::VMCALL, "EPTP switching");
            check_eq!(vm.regs.rdx, word, "what L2 read behind the switch to {index}");
        }
        for index in [2, 512, 0xffff_ffff] {
            let at = function(&mut vm, 0, index, here);
            let exit = vm.run_until(Reason::VMFUNC, "a bad index or entry");
            check_eq!(exit.rip, at, "RIP, index {index:#x}");
        }
    }
);

test!(
    xsaves,
    "XSAVES and XRSTORS are #UD in L2 without their control; with it XSAVES runs.",
    || {
        cpuid::XSAVES.require();
        let mut vm = vm();
        set(Field::GUEST_CR4, reg::cr4() | reg::CR4_OSXSAVE);
        set(Field::EXCEPTION_BITMAP, 1 << UD);
        let (save, restore) = (asm_code!("xsaves [rbx]"), asm_code!("xrstors [rbx]"));
        for code in [save, restore] {
            vm.start(code);
            let exit = vm.run_until(Reason::EXCEPTION, "without the control");
            check_eq!(exit.event, event(Kind::Hardware, UD), "event");
        }
        vm.add(Field::CPU_CONTROLS2, CPU2_XSAVES);
        let area = frames::alloc_range(2, frames::PAGE);
        vm.start(save);
        (vm.regs.rbx, vm.regs.rax, vm.regs.rdx) = (area, 3, 0);
        vm.run_until(Reason::VMCALL, "XSAVES with an empty bitmap");
    }
);
