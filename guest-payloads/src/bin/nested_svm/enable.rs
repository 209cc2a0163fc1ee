//! Enabling SVM (AMD APM volume 2, 15.4 and 15.30), and its instructions where they are not allowed
//! (APM volume 3).

use crate::l1::L1;
use crate::{guest, page, run_to_end};
use payload_rt::reg::{rdmsr, wrmsr};
use payload_rt::svm::{self, EFER_SVME, Registers, VM_CR, VM_HSAVE_PA, run};
use payload_rt::trap::{GP, UD};
use payload_rt::user::{End, User};
use payload_rt::{
    asm_code, check, check_eq, check_ok, check_trap, cpuid, insn, reg, test, trap::Trap,
};

// 15.4: SVME is EFER bit 12, 0 after reset, and gates all of SVM.
test!(svme_switches, "EFER.SVME is 0 at the start, and can be set and cleared.", || {
    cpuid::SVM.require();
    check_eq!(check_ok!(rdmsr(reg::EFER)) & EFER_SVME, 0, "EFER.SVME at the start");
    for on in [true, false, true] {
        check_ok!(svm::set_svme(on), "set SVME to {on}");
        check_eq!(check_ok!(rdmsr(reg::EFER)) & EFER_SVME != 0, on, "EFER.SVME");
    }
});

// APM volume 2, 15.30.4: MBZ are the bits below 12 and those above the physical address width.
test!(hsave_address, "VM_HSAVE_PA keeps a page's address, and refuses any other with #GP.", || {
    svm::enable();
    let area = page();
    check_ok!(wrmsr(VM_HSAVE_PA, area));
    check_eq!(rdmsr(VM_HSAVE_PA), Ok(area));
    for bad in [area | 1, area | 0x800, 1 << cpuid::physical_bits(), 1 << 63] {
        check_trap!(wrmsr(VM_HSAVE_PA, bad), GP, 0, "write {bad:#x}");
        check_eq!(rdmsr(VM_HSAVE_PA), Ok(area), "after the write of {bad:#x}");
    }
});

// 15.30.1.
test!(vm_cr_reads, "VM_CR can be read, and SVMDIS is clear where EFER.SVME can be set.", || {
    svm::enable();
    let value = check_ok!(rdmsr(VM_CR));
    check_eq!(value & svm::VM_CR_SVMDIS, 0, "VM_CR.SVMDIS");
    check_eq!(value & !0x1f, 0, "VM_CR's reserved bits");
});

// 15.30.1: VM_CR bits 63:5 are reserved, MBZ.
test!(vm_cr_reserved, "Reserved bits of VM_CR are #GP.", || {
    svm::enable();
    let value = check_ok!(rdmsr(VM_CR));
    for bit in [5, 12, 31, 32, 63] {
        check_trap!(wrmsr(VM_CR, value | 1 << bit), GP, 0, "write bit {bit}");
    }
    check_eq!(rdmsr(VM_CR), Ok(value));
});

type Instruction = (&'static str, fn() -> Result<(), Trap>, &'static [u8]);

fn instructions() -> [Instruction; 7] {
    [
        (
            "vmrun",
            || run::vmrun(&mut Registers::default(), 0, svm::Around::BARE),
            asm_code!("vmrun", "ret"),
        ),
        ("vmload", || svm::vmload(0), asm_code!("vmload", "ret")),
        ("vmsave", || svm::vmsave(0), asm_code!("vmsave", "ret")),
        ("stgi", svm::stgi, asm_code!("stgi", "ret")),
        ("clgi", svm::clgi, asm_code!("clgi", "ret")),
        ("invlpga", || svm::invlpga(0, 1), asm_code!("invlpga", "ret")),
        ("skinit", svm::skinit, asm_code!("skinit", "ret")),
    ]
}

// APM volume 3: #UD if SVME is 0.
test!(without_svme, "Without EFER.SVME the instructions that run guests are #UD at CPL 0.", || {
    cpuid::SVM.require();
    check_ok!(svm::set_svme(false));
    for (name, run, _) in instructions().into_iter().filter(|(name, ..)| !name.ends_with("gi")) {
        check_trap!(run(), UD, 0, "{name}");
    }
});

// APM volume 3: STGI is allowed without SVME only where CPUID has SKINIT.
const SKINIT: cpuid::Feature =
    cpuid::Feature::new("skinit", 0x8000_0001, 0, cpuid::Register::Ecx, 12);

test!(gif_without_svme, "Without EFER.SVME (and SKINIT) STGI and CLGI are #UD at CPL 0.", || {
    cpuid::SVM.require();
    check_ok!(svm::set_svme(false));
    if !SKINIT.present() {
        check_trap!(svm::stgi(), UD, 0, "stgi");
    }
    check_trap!(svm::clgi(), UD, 0, "clgi");
});

test!(at_cpl3, "With EFER.SVME each of SVM's privileged instructions is #GP at CPL 3.", || {
    svm::enable();
    for (name, _, code) in instructions() {
        let outcome = User::new(code).run();
        let End::Trap(trap) = outcome.end else {
            payload_rt::fail!("{name} at CPL 3: {:?}", outcome.end)
        };
        let vector = if name == "skinit" && !SKINIT.present() { UD } else { GP };
        check!(trap.is(vector, 0), "{name} at CPL 3: {trap}, must be vector {vector}");
    }
});

// APM volume 3, VMRUN: #GP if rAX is not a 4 KiB aligned physical address that is supported.
test!(
    vmcb_address,
    "VMRUN, VMLOAD and VMSAVE of a misaligned or too large address are #GP.",
    || {
        let mut guest = guest(asm_code!("vmmcall"));
        let l1 = L1::now();
        let at = guest.vmcb.address();
        for bad in [at + 8, at | 0x800, 1 << cpuid::physical_bits(), 1 << 63] {
            let run = run::vmrun(&mut Registers::default(), bad, svm::Around::USUAL);
            check_trap!(run, GP, 0, "vmrun of {bad:#x}");
            check_trap!(svm::vmload(bad), GP, 0, "vmload of {bad:#x}");
            check_trap!(svm::vmsave(bad), GP, 0, "vmsave to {bad:#x}");
            l1.check_intact("after the #GP");
        }
        run_to_end(&mut guest, "with its true address");
    }
);

// APM volume 3, VMRUN: the address is EAX where the address size is 32 bits.
test!(vmcb_address_32, "With a 32-bit address size VMRUN and VMSAVE use EAX alone.", || {
    svm::enable();
    let to = page();
    check_ok!(insn!(".byte 0x67", "vmsave"; in("rax") to | 1 << 40));
    let saved = svm::Vmcb::new();
    check_ok!(svm::vmsave(saved.address()));
    let at = |base: u64| check_ok!(payload_rt::mem::read::<u64>(base + 0x490));
    check_eq!(at(to), at(saved.address()), "TR as stored");
});

// 15.4: a hypervisor that clears SVME while it runs no guest can set it again and go on.
test!(svme_again, "VMRUN is #UD while EFER.SVME is clear, and works when it is set again.", || {
    let mut guest = guest(asm_code!("vmmcall"));
    run_to_end(&mut guest, "first");
    check_ok!(svm::set_svme(false));
    guest.around = svm::Around::BARE;
    check_trap!(guest.try_run().map(|_| ()), UD, 0, "vmrun without SVME");
    check_ok!(svm::set_svme(true));
    guest.around = svm::Around::USUAL;
    run_to_end(&mut guest, "again");
});

// 15.4 and CPUID leaf 0x8000_000a (APM volume 3, E.4.9).
test!(leaf, "CPUID's SVM leaf tells a revision and at least two ASIDs.", || {
    cpuid::SVM.require();
    let Some(words) = cpuid::get(0x8000_000a, 0) else {
        payload_rt::fail!("svm in CPUID, but no leaf 0x8000_000a")
    };
    check!(words.eax & 0xff >= 1, "revision {}", words.eax & 0xff);
    check!(words.ebx >= 2, "{} ASIDs", words.ebx);
    check_eq!(words.ecx, 0, "ECX, reserved");
});

// APM volume 3, VMMCALL: without a hypervisor's intercept #UD; KVM answers a hypercall.
test!(
    hypervisor_without_vmmcall,
    "VMMCALL of the hypervisor itself is no exit of its own guest.",
    || {
        let mut guest = guest(asm_code!("vmmcall"));
        run_to_end(&mut guest, "the guest");
        // Number 1000 is no hypercall of KVM: -KVM_ENOSYS (Documentation/virt/kvm/x86/hypercalls.rst).
        let answer: i64;
        check_ok!(insn!("vmmcall"; inout("rax") 1000_i64 => answer));
        check_eq!(answer, -1000, "the answer to an unknown hypercall");
        run_to_end(&mut guest, "the guest again");
    }
);
