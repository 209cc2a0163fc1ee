//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE of a hypervisor on VMX. As for SVM, L2 itself asks for
//! the calls in the middle of its run.

use crate::{
    GUEST_MODE, Nested, RUN_PENDING, check_nested_refused, nested, round_trip, set_nested,
    transplant_chain,
};
use payload_rt::lab::{self, Chain};
use payload_rt::reg::{self, rdmsr, wrmsr};
use payload_rt::vmx::caps::CPU_IO_BITMAPS;
use payload_rt::vmx::{self, Field, Reason, Vm, get};
use payload_rt::{asm_code, check_eq, check_ok, frames, mem, test};

/// Where the fields of the header are, by word.
const VMXON: usize = 1;
const VMCS: usize = 2;
const SMM_AND_FLAGS: usize = 3;
/// No VMCS, and VMX off: KVM's invalid address.
const NONE: u64 = u64::MAX;

fn vm() -> Vm {
    vmx::enable();
    Vm::new()
}

/// Runs L2, which has the host carry out the chain, and checks it and L1 at its exit, twice.
fn check_runs(vm: &mut Vm, chain: &Chain) {
    check_ok!(wrmsr(reg::LSTAR, 0x7fff_1000));
    let code = asm_code!("out dx, eax", "inc r12");
    for round in 0..2 {
        let at = vm.start(code);
        vm.regs.rax = chain.address().into();
        vm.regs.rdx = lab::PORT.into();
        vm.regs.r12 = round;
        let before = vm.regs;
        let (cr3, cr4, gs) = (reg::cr3(), reg::cr4(), rdmsr(reg::GS_BASE));
        let exit = vm.run_until(Reason::VMCALL, "L2");
        check_ok!(chain.all_ok(), "the calls in the middle of L2");
        check_eq!(exit.rip, at + code.len() as u64, "RIP, round {round}");
        check_eq!(vm.regs, vmx::Regs { r12: round + 1, ..before }, "registers, round {round}");
        check_eq!(get(Field::GUEST_RSP), vm.stack_top(), "RSP");
        check_eq!(rdmsr(reg::LSTAR), Ok(0x7fff_1000), "LSTAR of L1");
        check_eq!((reg::cr3(), reg::cr4(), rdmsr(reg::GS_BASE)), (cr3, cr4, gs), "L1");
    }
}

// KVM_GET_NESTED_STATE.
test!(
    vmx_get_in_l2,
    "In the middle of L2 the state says so, and names VMXON region and VMCS.",
    || {
        let (chain, state) = round_trip(false);
        let region = vmx::enable();
        let mut vm = Vm::new();
        check_runs(&mut vm, &chain);
        let state = state.read();
        check_eq!(state[0] & 0xffff_ffff, GUEST_MODE, "flags and format");
        check_eq!((state[VMXON], state[VMCS]), (region, vm.vmcs()), "VMXON region and VMCS");
        check_eq!(nested()[0] & 0xffff_ffff, 0, "flags and format, back in L1");
    }
);

// KVM_SET_NESTED_STATE.
test!(vmx_set_in_l1, "L1 goes on with its guest after the state was got and set again.", || {
    let mut vm = vm();
    let state = nested();
    check_ok!(set_nested(&state));
    check_eq!(vmx::vmptrst(), Ok(vm.vmcs()), "the current VMCS");
    let (chain, _) = round_trip(false);
    check_runs(&mut vm, &chain);
});

test!(vmx_transplant, "L2 goes on in another VM, and exits to L1 there.", || {
    let chain = transplant_chain();
    check_runs(&mut vm(), &chain);
});

test!(vmx_transplant_ept, "L2 under EPT goes on in another VM.", || {
    let chain = transplant_chain();
    let mut vm = vm();
    vm.with_ept();
    check_runs(&mut vm, &chain);
});

test!(
    vmx_transplant_ports,
    "L2 goes on in another VM under the port bitmaps of L1, which still count.",
    || {
        let chain = transplant_chain();
        let mut vm = vm();
        let (a, b) = (frames::alloc().address(), frames::alloc().address());
        check_ok!(mem::write(a + 0x80 / 8, 1u8));
        vmx::set(Field::IO_BITMAP_A, a);
        vmx::set(Field::IO_BITMAP_B, b);
        vm.add(Field::CPU_CONTROLS, CPU_IO_BITMAPS);
        let at = vm.start(asm_code!("out dx, eax", "out 0x80, al"));
        vm.regs.rax = chain.address().into();
        vm.regs.rdx = lab::PORT.into();
        let exit = vm.run_until(Reason::IO, "L2");
        check_ok!(chain.all_ok(), "the transplant");
        check_eq!((exit.rip, exit.qualification >> 16), (at + 1, 0x80), "RIP and port");
    }
);

test!(
    vmx_transplant_l1,
    "L1 goes on in another VM: VMXON, its current VMCS, and its guest.",
    || {
        let mut vm = vm();
        vm.start(&[]);
        vm.run_until(Reason::VMCALL, "in the old VM");
        crate::transplant();
        check_eq!(vmx::vmptrst(), Ok(vm.vmcs()), "the current VMCS");
        check_eq!(get(Field::HOST_RIP), vmx::host_rip(), "a field of it");
        vm.start(asm_code!("inc r12"));
        let before = vm.regs.r12;
        vm.run_until(Reason::VMCALL, "in the new VM");
        check_eq!(vm.regs.r12, before + 1, "what L2 did there");
        check_ok!(vmx::vmxoff().map_err(|_| "VMXOFF in the new VM"));
    }
);

test!(vmx_off, "With VMX off the state has neither VMXON region nor VMCS, and can be set.", || {
    vmx::allow();
    let state = nested();
    check_eq!((state[VMXON], state[VMCS]), (NONE, NONE));
    check_eq!((state[0] & 0xffff, state[0] >> 32), (0, 128), "flags and size");
    check_ok!(set_nested(&state));
    let region = vmx::region();
    let mut on = state;
    on[VMXON] = region;
    check_ok!(set_nested(&on), "VMX is on");
    check_eq!(vmx::vmptrst(), Ok(NONE), "the current VMCS");
    check_ok!(set_nested(&state), "VMX is off");
    check_eq!(vmx::vmxon(region), Ok(()), "VMXON afterwards");
});

/// Checks that a changed state is refused, and L1 keeps its VMCS.
fn refused(vm: &Vm, good: &Nested, what: &str, change: fn(&mut Nested)) {
    let mut state = *good;
    change(&mut state);
    check_nested_refused(&state, what);
    check_eq!(vmx::vmptrst(), Ok(vm.vmcs()), "the current VMCS after {what}");
    check_eq!(nested()[..4], good[..4], "the state after {what}");
}

test!(vmx_refused, "A header that cannot be is EINVAL, and nothing changes.", || {
    let vm = vm();
    let good = nested();
    let refused = |what: &str, change: fn(&mut Nested)| refused(&vm, &good, what, change);
    refused("an unknown flag", |s| s[0] |= 1 << 4);
    refused("another unknown flag", |s| s[0] |= 1 << 15);
    refused("a size below the header's", |s| s[0] = s[0] & 0xffff_ffff | 127 << 32);
    refused("the format of SVM", |s| s[0] |= 1 << 16);
    refused("an unknown format", |s| s[0] |= 7 << 16);
    refused("an entry under way outside of L2", |s| s[0] |= RUN_PENDING);
    refused("a VMXON region that is not aligned", |s| s[VMXON] |= 1);
    refused("a VMXON region beyond physical addresses", |s| s[VMXON] = 1 << 62);
    refused("an unknown flag of SMM", |s| s[SMM_AND_FLAGS] |= 4);
    refused("flags of SMM outside of it", |s| s[SMM_AND_FLAGS] |= 3);
    refused("L2 in SMM without VMXON in it", |s| s[SMM_AND_FLAGS] |= 1);
    refused("an unknown flag of VMX", |s| s[SMM_AND_FLAGS] |= 2 << 32);
    refused("a VMCS without a VMXON region", |s| s[VMXON] = NONE);
});

// What these leave behind is KVM's choice: the good state makes it whole.
test!(
    vmx_refused_vmcs,
    "A VMCS that cannot be is EINVAL, and the old state can be set again.",
    || {
        let vm = vm();
        let good = nested();
        let refused = |what: &str, change: fn(&mut Nested)| {
            let mut state = good;
            change(&mut state);
            check_nested_refused(&state, what);
            check_ok!(set_nested(&good), "the good state after {what}");
            check_eq!(vmx::vmptrst(), Ok(vm.vmcs()), "the current VMCS after {what}");
        };
        refused("a VMCS in the VMXON region", |s| s[VMCS] = s[VMXON]);
        refused("a VMCS that is not aligned", |s| s[VMCS] |= 8);
        refused("a VMCS of 128 bytes", |s| s[0] = s[0] & 0xffff_ffff | 128 << 32);
    }
);
