//! Linear-address masking where there is none: LAM of Intel (SDM volume 3, 4.4) and UAI of AMD (APM volume 2,
//! 5.10): the bits that would switch it on are refused, and pointers with something in their upper bits are
//! not canonical.

use payload_rt::lab::{self, Errno, kvm};
use payload_rt::*;

/// CR3: LAM of user pointers, for 57 bits and for 48.
const CR3_LAM_U57: u64 = 1 << 61;
const CR3_LAM_U48: u64 = 1 << 62;
/// CR4.LAM_SUP: LAM of supervisor pointers.
const CR4_LAM_SUP: u64 = 1 << 28;
/// EFER.UAIE: upper address ignore enable.
const EFER_UAIE: u64 = 1 << 20;

/// CPUID leaf 0x8000_0021, EAX bit 7: UpperAddressIgnore.
const UAI: cpuid::Feature =
    cpuid::Feature::new("upper-address-ignore", 0x8000_0021, 0, cpuid::Register::Eax, 7);

/// Ends the test with `skip` where there is LAM.
fn no_lam() {
    if cpuid::LAM.present() {
        skip!("CPUID has LAM");
    }
}

/// Ends the test with `skip` where there is UAI.
fn no_uai() {
    if UAI.present() {
        skip!("CPUID has UpperAddressIgnore");
    }
}

test!(lam_cr3, "Without LAM in CPUID its bits of CR3 are #GP, each and both.", || {
    no_lam();
    let cr3 = reg::cr3();
    for bits in [CR3_LAM_U57, CR3_LAM_U48, CR3_LAM_U57 | CR3_LAM_U48] {
        check_trap!(reg::set_cr3(cr3 | bits), trap::GP, 0, "CR3 with {bits:#x}");
        check_eq!(reg::cr3(), cr3, "CR3");
    }
});

test!(lam_cr4, "Without LAM in CPUID CR4.LAM_SUP is #GP.", || {
    no_lam();
    let cr4 = reg::cr4();
    check_trap!(reg::set_cr4(cr4 | CR4_LAM_SUP), trap::GP, 0, "CR4.LAM_SUP");
    check_eq!(reg::cr4(), cr4, "CR4");
});

test!(lam_host, "KVM_SET_SREGS refuses LAM's bits of CR3 and CR4 where CPUID lacks it.", || {
    no_lam();
    let before = check_ok!(lab::sregs());
    for (cr3, cr4) in [(CR3_LAM_U57, 0), (CR3_LAM_U48, 0), (0, CR4_LAM_SUP)] {
        let wrong = kvm::Sregs { cr3: before.cr3 | cr3, cr4: before.cr4 | cr4, ..before };
        check_eq!(lab::set_sregs(&wrong), Err(Errno::EINVAL), "CR3 {cr3:#x}, CR4 {cr4:#x}");
        check_eq!(check_ok!(lab::sregs()), before, "afterwards");
    }
});

/// A tag in the bits that LAM with 48 bits, LAM with 57 bits and UAI would ignore, and that leaves bit 63.
const TAGS: [u64; 4] = [1 << 62, 0x3f << 57, 0x55 << 57, 1 << 57];

/// Checks that accesses by a page's address with each tag are #GP(0), at CPL 0 and 3.
fn not_masked() {
    const AT: u64 = 0x1234_0000_0000;
    paging::map(AT, frames::alloc().address(), paging::Size::K4, paging::Flags::RWU);
    check_ok!(mem::write(AT, 1_u64), "without a tag");
    for tag in TAGS {
        let at = AT | tag;
        check_trap!(mem::read::<u64>(at), trap::GP, 0, "a read at {at:#x}");
        check_trap!(mem::write(at, 2_u64), trap::GP, 0, "a write at {at:#x}");
        let mut user = user::User::new(asm_code!("mov rax, [rdi]", "ret"));
        user.regs.rdi = at;
        let user::End::Trap(fault) = user.run().end else { fail!("no fault at {at:#x}, CPL 3") };
        check!(fault.is(trap::GP, 0), "a read at {at:#x} at CPL 3: {fault}");
        // Nor of the upper half, whose tags are zeroes.
        let upper = !at;
        check_trap!(mem::read::<u8>(upper), trap::GP, 0, "a read at {upper:#x}");
    }
    check_eq!(mem::read::<u64>(AT), Ok(1), "memory");
}

test!(
    tags_not_masked,
    "Pointers with tags in their upper bits are #GP where nothing masks.",
    || {
        no_lam();
        no_uai();
        not_masked();
    }
);

test!(uai_refused, "Without UpperAddressIgnore in CPUID EFER.UAIE is #GP.", || {
    no_uai();
    let efer = check_ok!(reg::rdmsr(reg::EFER));
    check_trap!(reg::wrmsr(reg::EFER, efer | EFER_UAIE), trap::GP, 0, "EFER.UAIE");
    check_eq!(reg::rdmsr(reg::EFER), Ok(efer), "EFER");
});

test!(uai_host, "KVM_SET_SREGS refuses EFER.UAIE where CPUID lacks it.", || {
    no_uai();
    let before = check_ok!(lab::sregs());
    let mut chain = lab::Chain::new();
    chain.set(kvm::SET_SREGS, kvm::Sregs { efer: before.efer | EFER_UAIE, ..before });
    // So that no processor sees what was taken all the same.
    chain.set(kvm::SET_SREGS, before);
    chain.run();
    check_eq!(chain.result(1), Ok(0), "the registers as they were");
    check_eq!(chain.result(0), Err(Errno::EINVAL), "EFER.UAIE");
});

test!(uai_host_msrs, "KVM_SET_MSRS refuses EFER.UAIE where CPUID lacks it.", || {
    no_uai();
    let efer = check_ok!(lab::msr(reg::EFER));
    let wrong = efer.unwrap_or(0) | EFER_UAIE;
    check_eq!(lab::set_msr(reg::EFER, wrong), Ok(false), "EFER.UAIE");
    check_eq!(lab::msr(reg::EFER), Ok(efer), "EFER");
});
