//! SMIs while a guest of this guest runs (APM volume 2, 15.13.3 and 15.22, and 10.2.3 for what the map
//! holds of SVM; SDM volume 3, "Default Treatment of SMIs and System-Management Interrupts").

use crate::code::{self, ask, saved};
use payload_rt::apic::{self, Delivery, Destination, Mode};
use payload_rt::lab::{Chain, kvm};
use payload_rt::svm::{self, Guest, exit};
use payload_rt::vmx::{self, Reason, Vm};
use payload_rt::{asm_code, check, check_eq, check_ok, reg, test, time};

/// The map's word that tells of a guest of SVM, and the one with its VMCB.
const SVM_STATE: u64 = 0xfed8;
const VMCB: u64 = 0xfee0;

/// A guest of SVM that sends itself an SMI and counts on, with this VMM's APIC.
fn svm_guest() -> Guest {
    svm::enable();
    apic::set_mode(Mode::XApic).enable();
    let mut guest = Guest::new(asm_code!(
        "mov dword ptr [rbx + 0x10], edx",
        "mov dword ptr [rbx], ecx",
        "nop",
        "inc rsi",
        "vmmcall",
    ));
    guest.regs.rbx = apic::DEFAULT_BASE + 0x300;
    guest.regs.rcx = apic::command(Delivery::Smi, Destination::Physical(0)).into();
    guest.regs.rdx = u64::from(apic::local().id()) << 24;
    guest.regs.rsi = 7;
    guest
}

test!(svm, "An SMI in a guest of SVM goes to SMM, and RSM back to that guest.", || {
    code::install(&[]);
    let mut guest = svm_guest();
    let exit = guest.run();
    check_eq!(exit.code, exit::VMMCALL, "{exit:?} at {:#x}", guest.rip());
    check_eq!(code::count(), 1, "SMIs taken");
    check_eq!(guest.regs.rsi, 8, "RSI of the guest");
    check!(saved::<u64>(SVM_STATE) & 1 != 0, "the map tells of no guest");
    check_eq!(saved::<u64>(VMCB), guest.vmcb.address(), "the VMCB in the map");
    code::smi();
    check_eq!(saved::<u64>(SVM_STATE) & 1, 0, "the map of an SMI outside of the guest");
});

test!(
    svm_intercept,
    "An intercepted SMI exits, and is taken when the hypervisor sets GIF.",
    || {
        code::install(&[]);
        let mut guest = svm_guest();
        guest.intercept(&[exit::SMI]);
        guest.around = svm::Around::BARE;
        let exit = guest.run();
        check_eq!(exit.code, exit::SMI, "{exit:?} at {:#x}", guest.rip());
        check_eq!(code::count(), 0, "SMIs before STGI");
        check_ok!(svm::stgi());
        let came = time::wait_until(crate::PATIENCE, || code::count() == 1);
        check!(came, "no SMI after STGI");
        check_eq!(guest.run().code, exit::VMMCALL, "the guest goes on");
        check_eq!(guest.regs.rsi, 8, "RSI of the guest");
    }
);

test!(svm_gif, "An SMI waits while GIF is clear.", || {
    code::install(&[]);
    svm::enable();
    let apic = apic::set_mode(Mode::XApic);
    apic.enable();
    check_ok!(svm::clgi());
    apic.send(Delivery::Smi, Destination::Physical(apic.id()));
    time::delay(100);
    check_eq!(code::count(), 0, "SMIs under CLGI");
    check_ok!(svm::stgi());
    check!(time::wait_until(crate::PATIENCE, || code::count() == 1), "no SMI after STGI");
});

test!(
    svm_moved,
    "SMM that interrupted a guest of SVM goes on in another VM, and RSM leads to that guest.",
    || {
        code::install(&[]);
        let mut guest = svm_guest();
        let mut chain = Chain::new();
        chain.ask(payload_rt::lab::op::TRANSPLANT, &[]);
        ask(&chain);
        let exit = guest.run();
        check_ok!(chain.all_ok(), "into another VM");
        check_eq!(exit.code, exit::VMMCALL, "{exit:?} at {:#x}", guest.rip());
        check_eq!(guest.regs.rsi, 8, "RSI of the guest");
    }
);

/// What a guest of VMX does: sends itself an SMI, and counts on.
extern "C" fn send_and_count(n: u64) -> u64 {
    let apic = apic::local();
    apic.send(Delivery::Smi, Destination::Physical(apic.id()));
    n + 1
}

fn vmx_guest() -> Vm {
    vmx::enable();
    apic::set_mode(Mode::X2Apic).enable();
    Vm::new()
}

test!(vmx, "An SMI in a guest of VMX goes to SMM, and RSM back to that guest.", || {
    code::install(&[]);
    let mut vm = vmx_guest();
    let mut chain = Chain::new();
    let sregs = chain.get(kvm::GET_SREGS);
    ask(&chain);
    check_eq!(vm.run_to_end(send_and_count, 41), 42, "the guest's value");
    check_eq!(code::count(), 1, "SMIs taken");
    check_eq!(sregs.read().cr4, 0, "CR4 in SMM, outside of VMX operation");
    // The guest is entered again, and an SMI of its hypervisor is one, too.
    check_eq!(vm.run_to_end(send_and_count, 1), 2, "the guest's value");
    code::smi();
    check_eq!(code::count(), 3, "SMIs taken");
    check!(reg::cr4() & vmx::CR4_VMXE != 0, "CR4.VMXE afterwards");
});

test!(
    vmx_root,
    "An SMI in VMX root operation goes to SMM, and VMX operation goes on behind it.",
    || {
        code::install(&[asm_code!(".code16", "mov eax, cr4", "mov dword ptr [esi + 0x40], eax")]);
        let mut vm = vmx_guest();
        code::smi();
        check_eq!(code::note(0) as u64 & vmx::CR4_VMXE, 0, "CR4.VMXE in SMM");
        vm.start(asm_code!("inc rax"));
        vm.run_until(Reason::VMCALL, "a guest behind the SMI");
        code::smi();
        let behind = vm.run_until(Reason::VMCALL, "the same VMCALL again");
        check_eq!(code::count(), 2, "SMIs taken by {behind}");
    }
);

test!(
    vmx_moved,
    "SMM that interrupted a guest of VMX goes on in another VM, and RSM leads to that guest.",
    || {
        code::install(&[]);
        let mut vm = vmx_guest();
        let mut chain = Chain::new();
        chain.ask(payload_rt::lab::op::TRANSPLANT, &[]);
        ask(&chain);
        check_eq!(vm.run_to_end(send_and_count, 41), 42, "the guest's value");
        check_ok!(chain.all_ok(), "into another VM");
        check_eq!(code::count(), 1, "SMIs taken");
    }
);
